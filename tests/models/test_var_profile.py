"""Profiles of VAR: the measured table covers every pass of a session, and a catalogue model is timed at its own shape."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ciar_sim.cli.main import main
from ciar_sim.cli.profiling import shapes_of
from models.backbones.var import load
from models.recording import profile_of
from models.var.profile import measure_scale_model
from simulator.core.errors import ComputeError
from simulator.experiment.schema.compute import Compute
from simulator.pricing import catalogue
from simulator.pricing.build import PairShapes, build_costs
from simulator.pricing.costs import Pricing
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.program import compile_session
from simulator.protocol.pairs import find_pair
from tests.models import var_files as files
from tests.models.test_var import asked, named, recorded


def test_every_pass_of_a_session_lies_inside_the_measured_ones(tmp_path: Path) -> None:
    """The table covers every share of scales and the whole image in one pass, for both models."""
    found = find_pair(named(files.write(tmp_path / "var")))
    pair = load(found, torch.device("cpu"), torch.float32)
    profile = profile_of(pair, budget_s=0.0)
    assert (set(profile.passes), set(profile.verify)) == ({"cloud", "device"}, {"cloud", "device"})
    assert set(profile.compute_seconds) == {"caption_encoder", "image_decoder"}
    assert profile.weights == found.manifest.weights_hash
    device, cloud = (MeasuredCosts(profile, role) for role in ("device", "cloud"))
    for rate in (0.0, 0.134, 0.624):
        (code,) = recorded(pair, asked("code", {"prefix_rate": rate}))
        compile_session(code, device, cloud, Pricing(1, code.widths))
    assert not cloud.extrapolated
    assert not device.extrapolated


def test_a_model_of_scales_is_timed_at_its_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = catalogue.model("var-d16")
    tiny = {"n_layer": 1, "n_head": 2, "dim": 16, "ffn_hidden": 32, "vocab_size": 24}
    decoder = {"latent_side": 16, "ch": 32, "z_channels": 32, "codebook_dim": 6}
    small = whole.model_copy(update={**tiny, "image_decoder": decoder})
    one = small.model_copy(update={"interhead": True})
    monkeypatch.setattr(catalogue, "_models", lambda: {"var-d16": small, "var-d16-1layer": one})
    out = tmp_path / "p.json"
    asked_for = ["profile", "--model", "var-d16", "--random-weights", "--seconds", "0", "--out", str(out)]
    done = CliRunner().invoke(main, asked_for)
    assert done.exit_code == 0, done.output
    assert "device, all read out" in done.output
    assert shapes_of("", "var-d16") == {"device": small, "cloud": small}
    profile = Profile.read(out)
    assert profile.verify["cloud"].new_tokens == [4, 16, 64, 256, 680]
    assert profile.passes["cloud"].kv_tokens == [0, 424]
    side = {"hardware": "local", "profile": str(out)}
    for form in ("var-d16", "var-d16-1layer"):
        choice = Compute.model_validate({"cloud": {"model": "var-d16", **side}, "device": {"model": form, **side}})
        shapes = PairShapes(cloud=small, device=small)
        if form == "var-d16":
            build_costs(choice, shapes, pytest.fail)
        else:
            with pytest.raises(ComputeError, match="does not cover var-d16-1layer"):
                build_costs(choice, shapes, pytest.fail)
    with pytest.raises(ComputeError, match="has no one-layer form"):
        measure_scale_model("var-d16-1layer", torch.device("cpu"))
