"""`ciar-sim evaluate uncertainty` on the tiny pair: its tables, its plots, and scores equal to those of the methods."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ciar_sim.cli.main import main
from models import scenes
from models.evaluate import measures as measuring
from models.evaluate import reading
from models.evaluate.ceiling import Ceiling
from models.evaluate.reading import EVENTS, Settings
from models.evaluate.sequences import distinct_scenes, token_regions
from models.evaluate.timing import time_measures
from models.evaluate.uncertainty import Evaluation, evaluate_uncertainty
from models.methods.scores import Margin, margin
from models.methods.session import Step
from models.pair import Pair
from models.recorder import Recorder
from simulator.core.errors import CiarSimError
from simulator.core.rng import stream
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.recording import SCORES, SessionSpec

pytestmark = pytest.mark.usefixtures("undrawn")

FEW = Settings(prompts=5, seed=3, sampled_tokens=3, timing=False)


@pytest.fixture(scope="module")
def found(tiny_pair: Pair) -> Evaluation:
    return evaluate_uncertainty(tiny_pair, FEW)


def test_every_measure_is_ranked_for_every_event(found: Evaluation, tiny_pair: Pair) -> None:
    names = {measure.name for measure in measuring.measures(tiny_pair.manifest.bounds)}
    assert {
        "u",
        "u-raw",
        "omega",
        "lower-top",
        "u[inter-dro]",
        "entropy",
        "max-prob",
        "margin",
        "softmax-corr-window",
        "softmax-corr-literal",
        "discrete-100",
        "discrete-300",
        "random",
    } <= names
    assert set(zip(found.summary["measure"], found.summary["event"], strict=True)) == {
        (n, e) for n in names for e in EVENTS
    }
    assert len(found.tokens) == 5 * tiny_pair.manifest.image_tokens
    assert found.tokens["discrete-300"].notna().sum() == 5 * 3
    rows = found.summary.set_index(["measure", "event"])
    assert rows.loc[("u", "tv"), "auroc"] == rows.loc[("u-raw", "tv"), "auroc"]  # they differ by the factor sqrt V
    assert (
        rows.xs("tv", level="event")["event_pct"][["u", "entropy"]] == 50
    ).all()  # the event is a value above the median
    assert (
        (found.summary["auroc_low"] <= found.summary["auroc"]) & (found.summary["auroc"] <= found.summary["auroc_high"])
    ).mean() > 0.9


def test_it_repeats(found: Evaluation, tiny_pair: Pair) -> None:
    again = evaluate_uncertainty(tiny_pair, FEW)
    pd.testing.assert_frame_equal(found.summary, again.summary)
    pd.testing.assert_frame_equal(found.tokens, again.tokens)
    pd.testing.assert_frame_equal(found.regions, again.regions)


def test_scores_are_those_that_a_session_records(tiny_pair: Pair) -> None:
    """The evaluation must give the tokens of a device-only session the scores recorded in the session."""
    caption = scenes.scene(3, 0).caption
    settings = METHODS["device-only"].settings.model_validate({}).model_dump()
    spec = SessionSpec(
        tiny_pair.manifest.weights_hash,
        "device-only",
        METHODS["device-only"].revision,
        settings,
        Decoding().model_dump(),
        caption,
        3,
    )
    ((_, recording),) = Recorder(tiny_pair).record([spec])
    with pytest.MonkeyPatch.context() as patch:
        import torch

        tokens = torch.from_numpy(recording.tokens.astype(np.int64)).unsqueeze(0)
        patch.setattr(reading, "generated", lambda *_: tokens)
        measures = measuring.measures(tiny_pair.manifest.bounds)
        table = reading.token_table(
            tiny_pair, Settings(), reading.Prompts([caption], [0]), measures, "generated", None, lambda *_: None
        )
    # A session's device gets the caption rows in fp16.
    for column, name in (
        ("u", "u"),
        ("u-raw", "u_raw"),
        ("omega", "omega"),
        ("lower-top", "lower_top"),
        ("entropy", "entropy"),
        ("max-prob", "mid_top"),
    ):
        assert table[column].to_numpy() == pytest.approx(recording.scores[:, SCORES.index(name)], abs=2e-3), name
    assert table["cloud_token"].tolist() == recording.argmax.tolist()
    assert table["nll"].to_numpy() == pytest.approx(recording.nll, abs=2e-3)
    assert table["device_token"].tolist() == recording.tokens.tolist()


def test_regions_are_those_of_the_scene() -> None:
    scene = scenes.scene(3, 0)
    pixels = scenes.region_map(scene)
    assert np.array_equal(token_regions(scene, 128), pixels.reshape(-1))  # one token per pixel
    coarse = token_regions(scene, 16).reshape(16, 16)
    borders = (pixels.reshape(16, 8, 16, 8) == scenes.BORDER).any((1, 3))
    assert np.array_equal(coarse == scenes.BORDER, borders)
    inside = (pixels.reshape(16, 8, 16, 8) == scenes.OBJECT).all((1, 3))
    assert (coarse[inside] == scenes.OBJECT).all()


def test_region_shares_add_up(found: Evaluation) -> None:
    regions = found.regions.set_index("region")
    assert regions.loc[["background", "object", "border"], "tokens"].sum() == regions.loc["all", "tokens"]
    # A token covers 32 x 32 pixels, so few tokens are without a border.
    assert regions["cloud_entropy_nats"].dropna().between(0, np.log(64) + 1e-6).all()
    assert np.isfinite(regions.loc[["border", "all"], "cloud_entropy_nats"]).all()


def test_margin_by_hand() -> None:
    import torch

    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert float(margin(logits)) == pytest.approx(0.8)
    program = Margin().of(Step(0, logits, logits), 0)
    with pytest.raises(StopIteration) as stop:
        next(program)
    assert stop.value.value == pytest.approx(0.8)


def test_the_ceiling_learns_what_can_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs determine the first event and are independent of the others."""
    import torch

    from models.evaluate import ceiling

    monkeypatch.setattr(ceiling, "STEPS", 200)
    rng = stream(0, "test.ceiling")
    hidden, logits = (
        rng.standard_normal((16, 64, 8)).astype(np.float32),
        rng.standard_normal((16, 64, 40)).astype(np.float32),
    )
    inputs = Ceiling.inputs(torch.from_numpy(hidden), torch.from_numpy(logits)).numpy()
    known, noise = (hidden[..., 0] > 0).astype(np.float32), rng.random((16, 64)).astype(np.float32)
    head = Ceiling.train([(inputs[g], known[g], noise[g], noise[g]) for g in range(12)], 0, lambda *_: None)
    scores = head.scores(torch.from_numpy(hidden[12:]), torch.from_numpy(logits[12:]))
    right = (scores["ceiling.differs"] > 0) == (known[12:] > 0)
    assert right.mean() > 0.9
    assert abs(np.corrcoef(scores["ceiling.tv"].ravel(), noise[12:].ravel())[0, 1]) < 0.25


def test_prompts_are_distinct_and_not_those_of_training(tiny_pair: Pair) -> None:
    captions = [scenes.scene(3, index).caption for index in distinct_scenes(3, 200)]
    assert len(set(captions)) == 200
    with pytest.raises(CiarSimError, match="seed 1: scenes of the seeds 1, 2 were used in training"):
        evaluate_uncertainty(tiny_pair, Settings(seed=1))


def test_times_name_every_measure_and_size() -> None:
    timing = time_measures(8, (32, 64), repeats=6)
    names = {measure.name for measure in measuring.measures(("",))} | {"radius"}
    assert set(zip(timing["measure"], timing["vocab_size"], strict=True)) == {(n, v) for n in names for v in (32, 64)}
    assert (timing["ms_per_token"] > 0).all()


def test_the_command_writes_tables_and_images(tiny_pair_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    (out / "timing.csv").write_text("of an earlier run")
    arguments = [
        "evaluate",
        "uncertainty",
        "--pair",
        str(tiny_pair_folder),
        "--prompts",
        "4",
        "--sampled-tokens",
        "2",
        "--on",
        "scenes",
        "--ceiling",
        "--no-timing",
        "--out",
        str(out),
    ]
    with pytest.MonkeyPatch.context() as patch:
        from models.evaluate import ceiling

        patch.setattr(ceiling, "STEPS", 20)
        patch.setattr(ceiling, "CHECK_EVERY", 10)
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    names = {
        "uncertainty.csv",
        "regions.csv",
        "tokens.parquet",
        "uncertainty.md",
        "risk-coverage.png",
        "risk-coverage.svg",
        "calibration.png",
        "calibration.svg",
        "mine.txt",
    }
    assert {path.name for path in out.iterdir()} == names
    summary, tokens = pd.read_csv(out / "uncertainty.csv"), pd.read_parquet(out / "tokens.parquet")
    assert set(summary[summary["measure"] == "ceiling"]["event"]) == set(EVENTS)
    assert len(tokens) == 4 * 16
    assert "| Inter-Head U~ |" in (out / "uncertainty.md").read_text()


def test_mistakes_are_one_line(tiny_pair_folder: Path, tmp_path: Path) -> None:
    for arguments in (["--pair", "scense"], ["--pair", str(tiny_pair_folder), "--seed", "2"]):
        result = CliRunner().invoke(main, ["evaluate", "uncertainty", *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert "Error: " in result.output
        assert not (tmp_path / "out").exists()
