"""Measured profiles: they are complete, and the simulator prices with them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import step
from benchmarks.tiny_pair import make_tiny_pair
from ciar_sim.cli.main import main
from models.pair import Pair, load_pair
from models.profile import (
    NEW_TOKENS,
    ROWS,
    VERIFIED,
    Clock,
    Sizes,
    config_of,
    hardware_name,
    measure_hardware,
    measure_model,
    measure_profile,
    sizes_of,
)
from models.vq import VQModel
from simulator.core import yamlfile
from simulator.core.errors import ComputeError
from simulator.experiment.scenario import Scenario
from simulator.pricing import catalogue
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.costs import Work
from simulator.pricing.op_counts import vq_decoder_op_count
from simulator.pricing.own import OwnHardware
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.roofline import RooflineCosts
from simulator.protocol.ops import COMPUTE_KINDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair") / "tiny"


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return make_tiny_pair(folder)


@pytest.fixture(scope="module")
def profile(pair: Pair) -> Profile:
    return measure_profile(pair, budget_s=0.0)  # times each pass once


def test_a_profile_covers_both_models_and_all_other_work(pair: Pair, profile: Profile) -> None:
    assert set(profile.passes) == {"device", "drafter", "cloud"}
    assert set(profile.compute_seconds) == set(COMPUTE_KINDS)
    assert profile.weights == pair.manifest.weights_hash
    assert profile.torch == torch.__version__
    assert profile.hardware == hardware_name(torch.device("cpu"))
    assert profile.device == "cpu"
    assert profile.system
    assert profile.date
    for table in profile.passes.values():
        assert (table.rows, table.new_tokens) == (list(ROWS), list(NEW_TOKENS))
        assert all(value > 0 for plane in table.seconds for line in plane for value in line)
    assert set(profile.verify) == {"drafter", "cloud"}
    assert profile.verify["cloud"].new_tokens == profile.verify["drafter"].new_tokens == list(VERIFIED)


def test_every_pass_of_a_session_lies_inside_the_table(pair: Pair, profile: Profile) -> None:
    costs = MeasuredCosts(profile, "cloud")
    positions = pair.cloud.config.positions
    for new, kv in ((1, positions - 1), (pair.cloud.config.caption_slots, 0), (16, 20)):
        assert 0 < costs.pass_seconds(Work.of_pass(2, new, kv)) < 5
    drafter = MeasuredCosts(profile, "drafter")
    slots, beams = pair.cloud.config.caption_slots, 40  # four levels of ten nodes, the last past the end
    for work in (Work.of_pass(2, slots, 0), Work.of_pass(2, 5, slots), Work.of_pass(2, 10, positions - 1 + beams, 10)):
        assert 0 < drafter.pass_seconds(work) < 5
    assert (costs.extrapolated, drafter.extrapolated) == (False, False)


def test_a_median_is_taken_after_a_warm_up_until_the_budget_is_spent() -> None:
    runs: list[int] = []
    Clock(torch.device("cpu"), 1, None).typical_seconds(lambda: runs.append(1))
    assert len(runs) == 1 + 15
    Clock(torch.device("cpu"), 1, None, budget_s=0.0).typical_seconds(lambda: runs.append(1))
    assert len(runs) == 1 + 15 + 1


def test_every_round_times_the_same_work_and_the_least_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    clock = Clock(torch.device("cpu"), 2, lambda *at: told.append(at), rounds=3)
    times = iter([5.0, 1.0, 2.0, 4.0, 9.0, 3.0])  # two measurements a round
    monkeypatch.setattr(clock, "_typical_seconds", lambda run, warm=False: next(times))
    found = [[clock.typical_seconds(lambda: None) for _ in range(2)] for _ in clock.rounds()]
    assert found == [[5.0, 1.0], [2.0, 1.0], [2.0, 1.0]]
    spent = Clock(torch.device("cpu"), 2, lambda *at: told.append(at), budget_s=0.0, rounds=3)
    assert len(list(spent.rounds())) == 1
    assert told[-1] == (6, 6)


def test_a_clock_that_does_not_tick_gives_no_pass_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(torch.device("cpu"), total=1, progress=None)
    monkeypatch.setattr(clock, "now_s", lambda: 7.0)
    assert clock.typical_seconds(lambda: None) > 0.0


def test_measured_hardware_prices_a_pass() -> None:
    machine = measure_hardware(torch.device("cpu"))
    costs = RooflineCosts(catalogue.model("llamagen-xl"), {}, machine, catalogue.runtime("cuda-graphs"))
    assert 0 < costs.pass_seconds(Work.of_pass(1, 1, 0)) < math.inf


@pytest.mark.usefixtures("profile")
def test_measuring_leaves_the_pair_as_it_was(folder: Path, pair: Pair) -> None:
    fresh = load_pair(folder)
    assert pair.cloud.config == fresh.cloud.config
    for used, model in ((pair.cloud, fresh.cloud), (pair.device.transformer, fresh.device.transformer)):
        for key, value in model.state_dict().items():
            assert torch.equal(used.state_dict()[key], value), key


def test_the_pair_is_priced_by_its_profile_or_by_a_roofline(folder: Path, pair: Pair, profile: Profile) -> None:
    shapes = pair_shapes(folder)
    assert shapes.cloud.op_counts["image_decoder"] == vq_decoder_op_count(
        4, ch=32, ch_mult=(1, 1), z_channels=32, codebook_dim=8, num_res_blocks=1, patch=4
    )
    choice = {"device": {"model": "pair"}, "cloud": {"model": "pair", "hardware": "l4"}}
    scenario = Scenario.model_validate({"name": "t", "methods": ["base"], "compute": choice})
    device, cloud, pricing = build_costs(scenario.compute, shapes, lambda: profile)
    assert device.provenance["origin"] == "measured"
    assert cloud.provenance["origin"] == "roofline"
    assert pricing.caption_slots == pair.manifest.caption_slots
    # A drafter is priced on the hardware where it runs. Measured passes are its own, not those of the device's model.
    assert isinstance(pricing.drafter, RooflineCosts)
    assert isinstance(pricing.device_drafter, MeasuredCosts)
    assert pricing.device_drafter.table == profile.passes["drafter"] != profile.passes["device"]
    assert all(costs.compute_seconds(kind) > 0 for costs in (device, cloud) for kind in COMPUTE_KINDS)


# --- true shapes with random weights

TINY: dict[str, Any] = {
    "title": "tiny",
    "n_layer": 2,
    "n_head": 2,
    "dim": 16,
    "ffn_hidden": 32,
    "vocab_size": 32,
    "head_rows": 40,
    "caption_slots": 4,
    "caption_dim": 8,
    "image_tokens": 16,
    "image_pixels": 1024,
    "text_encoder": {"n_layer": 2, "dim": 64, "inner": 64, "ffn_hidden": 64},
    "image_decoder": {"latent_side": 4, "ch": 32},
    "source": "made up for tests",
    "evidence": "assumed",
}


def tiny_models() -> dict[str, catalogue.ModelShape]:
    return {
        "tiny": catalogue.ModelShape(**TINY),
        "tiny-1layer": catalogue.ModelShape(**{**TINY, "n_layer": 1, "interhead": True, "head_rows": None}),
        "other": catalogue.ModelShape(**{**TINY, "ffn_matrices": 2}),
    }


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that collects the lowest level of every image decoder created later."""
    made: list[Any] = []

    def make(*args: Any) -> VQModel:
        model = VQModel(*args)
        made.append(model.decoder.conv_blocks[0])
        return model

    monkeypatch.setattr("models.profile.VQModel", make)
    return made


def test_a_model_and_its_device_form_are_timed_at_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_models", tiny_models)
    found = measure_model("tiny", torch.device("cpu"), sizes=Sizes((1, 2), (1, 4), (5,)), budget_s=0.0)
    # In the cloud a drafter also reads the rows of the text vocabulary.
    drafters = {"drafter", "cloud_drafter"}
    assert (set(found.passes), set(found.verify)) == ({"device", "cloud", *drafters}, {"cloud", *drafters})
    assert set(found.compute_seconds) == set(COMPUTE_KINDS)
    assert (found.model, found.weights, found.runtime, found.dtype) == ("tiny", "", "eager", "float32")
    assert all(table.new_tokens == [5] for table in found.verify.values())
    alone = measure_model("tiny-1layer", torch.device("cpu"), torch.float64, Sizes((2,), (1,), (4,)), budget_s=0.0)
    assert (set(alone.passes), set(alone.verify), alone.dtype) == ({"device", "drafter"}, {"drafter"}, "float64")
    with pytest.raises(ComputeError, match="model other: its layers are not LlamaGen's"):
        measure_model("other", torch.device("cpu"))
    made = spied(monkeypatch)
    measure_model("tiny", torch.device("cpu"), sizes=Sizes((1,), (1,), (4,)), budget_s=0.0)
    decoder = {**TINY["image_decoder"], "level_attention": False}
    shape = catalogue.ModelShape(**{**TINY, "image_decoder": decoder})
    measure_model("tiny", torch.device("cpu"), sizes=Sizes((1,), (1,), (4,)), budget_s=0.0, shape=shape)
    assert [bool(len(level.attn)) for level in made] == [True, False]  # as in Chameleon's image decoder
    lines = CliRunner().invoke(step.main, ["tiny"]).output.splitlines()
    steps = [f"{role}, a step" for role in found.passes]
    assert [line.partition(":")[0] for line in lines[1:8]] == [
        *steps,
        *(f"{role}, a tree of 4" for role in found.verify),
    ]
    assert len(lines) == 8 + len(COMPUTE_KINDS)
    assert CliRunner().invoke(step.main, ["other"]).exit_code == 1


def test_the_timed_shape_is_the_catalogues() -> None:
    config = config_of(catalogue.model("llamagen-xl"))
    assert (config.n_layer, config.dim, config.vocab_size, config.tokens) == (36, 1280, 16384, 256)
    assert config_of(catalogue.model("anole-7b")).vocab_size == 65536
    assert sizes_of("llamagen-xl", 64).rows == (1, 2, 8, 32, 128)
    assert sizes_of("llamagen-xl", 16).new_tokens == (1, 4, 16, 64, 120)


def test_the_command_times_a_model_of_the_catalogue_with_random_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalogue, "_models", tiny_models)
    out, fit = tmp_path / "p.json", tmp_path / "fit.yaml"
    asked = ["profile", "--model", "tiny", "--batch", "1", "--seconds", "0", "--out", str(out)]
    more = ["--random-weights", "--dtype", "float16", "--compare-roofline", "--fit", str(fit)]
    result = CliRunner().invoke(main, [*asked, *more])
    assert result.exit_code == 0, result.output
    assert "fitted to cloud_drafter alone" in result.output
    stored = Profile.read(out)
    assert (stored.model, stored.dtype, stored.passes["cloud"].rows) == ("tiny", "float16", [1, 2])
    own = OwnHardware.model_validate(yamlfile.read(fit).data)
    assert own.bandwidth_gb_s > 0
    assert set(own.by_role) == {"device", "drafter", "cloud", "cloud_drafter"}
    for options, message in (
        ([], "--model goes with --random-weights"),
        (["--random-weights", "--pair", "scenes"], "give one of them"),
        (["--random-weights", "--runtime", "cuda-graphs", "--torch-device", "cpu"], "needs a CUDA device, got cpu"),
    ):
        refused = CliRunner().invoke(main, [*asked, *options])
        assert refused.exit_code == 2
        assert message in refused.output
