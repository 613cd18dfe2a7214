"""Measured profiles: every cell is there, and the simulator prices with them."""

import math
from pathlib import Path

import pytest
import torch

from models.pair import Pair, make_tiny_pair
from models.profile import NEW_TOKENS, ROWS, _Clock, hardware_name, measure_hardware, measure_profile
from simulator.experiment.scenario import Scenario
from simulator.pricing import catalogue
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.costs import Work
from simulator.pricing.op_counts import vq_decoder_op_count
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
    return measure_profile(pair)


def test_a_profile_covers_both_models_and_all_other_work(pair: Pair, profile: Profile) -> None:
    assert set(profile.passes) == {"device", "cloud"}
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


def test_every_pass_of_a_session_lies_inside_the_table(pair: Pair, profile: Profile) -> None:
    costs = MeasuredCosts(profile, "cloud")
    positions = pair.cloud.config.positions
    for new, kv in ((1, positions - 1), (pair.cloud.config.caption_slots, 0), (16, 20)):
        assert 0 < costs.pass_seconds(Work.of_pass(2, new, kv)) < 5
    assert not costs.extrapolated


def test_a_median_is_taken_after_a_warm_up_until_the_budget_is_spent() -> None:
    runs: list[int] = []
    _Clock(torch.device("cpu"), 1, None).typical_seconds(lambda: runs.append(1))
    assert len(runs) == 1 + 15
    _Clock(torch.device("cpu"), 1, None, budget_s=0.0).typical_seconds(lambda: runs.append(1))
    assert len(runs) == 1 + 15 + 1


def test_measured_hardware_prices_a_pass() -> None:
    machine = measure_hardware(torch.device("cpu"))
    costs = RooflineCosts(catalogue.model("llamagen-xl"), {}, machine, catalogue.runtime("cuda-graphs"))
    assert 0 < costs.pass_seconds(Work.of_pass(1, 1, 0)) < math.inf


def test_measuring_leaves_the_pair_as_it_was(pair: Pair) -> None:
    assert pair.cloud.config.tokens == 16
    assert all(parameter.device.type == "cpu" for parameter in pair.cloud.parameters())


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
    assert isinstance(
        pricing.drafter, RooflineCosts
    )  # it runs on the cloud's hardware, not where the device was measured
    assert all(costs.compute_seconds(kind) > 0 for costs in (device, cloud) for kind in COMPUTE_KINDS)
