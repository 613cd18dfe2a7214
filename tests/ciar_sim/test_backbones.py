"""A whole run on random files in LlamaGen's official layout: distil a device, record sessions, simulate networks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from ciar_sim.cli.main import main
from models.quality import foreign
from models.train import distil
from tests.models import llamagen_files as files

PAIR = {"cloud": "llamagen-xl-stage1", "weights": "t2i", "text": "t2i/features", "image_size": 64, "heads": 2}
SCENARIO = {
    "name": "official",
    "pair": {**PAIR, "device": "device"},
    "prompts": {"file": "captions.json", "count": 1, "calibration": 1},
    "methods": [
        "base",
        {"name": "code", "prefix_rate": 0.3},
        {"name": "ciar", "threshold": {"call_pct": 40, "prompts": 1}},
        {"name": "eagle2", "total_tokens": 6, "depth": 2, "top_k": 3},
    ],
    "compute": {
        "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
        "cloud": {"model": "pair", "hardware": "a100"},
    },
    "sweep": {"network.preset": ["fibre", "lte"]},
}
TRAINING = ["--images", "32", "--steps", "4", "--phi-steps", "2", "--batch-images", "4"]


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files in the official layout, a device distilled from them, and a drafter in the published layout."""
    found = tmp_path_factory.mktemp("official")
    files.write_t2i(found / "t2i")
    (found / "captions.json").write_text(json.dumps(files.CAPTIONS))
    (found / "pair.yaml").write_text(yaml.safe_dump(PAIR))
    (found / "scenario.yaml").write_text(yaml.safe_dump(SCENARIO))
    trained = train(found, "device")
    assert trained.exit_code == 0, trained.output
    files.write_drafter(found / "device")
    return found


def train(folder: Path, out: str, *more: str) -> Result:
    pair, prompts = folder / "pair.yaml", folder / "captions.json"
    return call("train", "device", "--pair", pair, "--prompts", prompts, "--out", folder / out, *TRAINING, *more)


@pytest.mark.usefixtures("undrawn")
def test_official_files_train_record_simulate_and_report(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "device" / "metrics.json").read_text())
    assert (told["pair"], told["guidance"], told["steps"]) == ("llamagen-xl-stage1", 7.5, 4)
    assert 0 <= told["agreement"] <= 1
    out = tmp_path / "run"
    result = call("run", folder / "scenario.yaml", "--out", out, "--cache", tmp_path / "cache", "--quiet")
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(out / "summary.csv")
    assert sorted(summary["method"]) == sorted(2 * ["base", "code", "ciar", "eagle2"])
    assert (summary["latency_mean_s"] > 0).all()
    assert summary["cloud_nll"].notna().all()
    assert (out / "report.html").is_file()
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["pair"]["name"] == "llamagen-xl-stage1"
    again = yaml.safe_load((out / "scenario.yaml").read_text())
    assert again["pair"]["weights"] == str(folder / "t2i")
    assert again["decoding"]["guidance"] == 7.5  # as its authors sample
    repeated = call("run", out / "scenario.yaml", "--out", tmp_path / "2", "--cache", tmp_path / "cache", "--quiet")
    assert repeated.exit_code == 0, repeated.output
    assert (tmp_path / "2" / "summary.csv").read_bytes() == (out / "summary.csv").read_bytes()


def test_images_of_the_captions_of_a_file_are_drawn_in_its_order(folder: Path, tmp_path: Path) -> None:
    shown = {}
    for name, captions in {"one": files.CAPTIONS[:1], "both": [*files.CAPTIONS, files.CAPTIONS[0]]}.items():
        (tmp_path / name).write_text(json.dumps(captions))
        where = ["--captions", tmp_path / name, "--out", tmp_path / f"{name}-out", "--cache", tmp_path / "cache"]
        result = call("evaluate", "samples", "--pair", folder / "pair.yaml", *where, "--max-batch", 1)
        assert result.exit_code == 0, result.output
        assert "no claims are counted" in result.output
        with Image.open(tmp_path / f"{name}-out" / "samples.png") as image:
            shown[name] = np.asarray(image)
    assert shown["one"].shape == (64, 8 * 66 - 2, 3)
    assert np.array_equal(shown["one"][:, :66], shown["both"][:, :66])
    assert (shown["both"][:, 66:130] != 255).any()
    assert (shown["both"][:, 132:] == 255).all()  # a caption that comes twice is drawn once


def test_images_of_class_labels_are_scored_by_what_reads_no_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flat:
        """A stand-in for a feature network loaded from a file."""

        def __init__(self, path: Path, torch_device: str) -> None: ...

        def __call__(self, images: list[np.ndarray]) -> np.ndarray:
            return np.stack([image.mean((0, 1)) for image in images])

    monkeypatch.setattr(foreign, "FeatureNet", Flat)
    files.write_c2i(tmp_path / "c2i")
    labels = [str(label) for label in range(files.CLASSES)]
    pair = {"cloud": "llamagen-c2i-256", "weights": "c2i", "image_size": 64}
    scenario = {"name": "labels", "pair": pair, "prompts": {"list": labels}, "methods": ["base"]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    (tmp_path / "real").mkdir()
    for index in range(10):
        Image.new("RGB", (64, 64), (20 * index, 0, 0)).save(tmp_path / "real" / f"{index}.png")
    common = ["evaluate", "pictures", tmp_path / "s.yaml", "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    refused = call(*common, "--clip", tmp_path / "clip")
    assert refused.exit_code == 2
    assert "clip and hpsv2 read captions, and the prompts of llamagen-c2i-256 are class labels" in refused.output
    few = call(*common, "--inception", "net.pt", "--real", tmp_path / "real", "--set", "prompts.list=['1']")
    assert "base: fid and f1 need at least 10 images, prompts are 1" in few.output
    alone = call(*common, "--inception", "net.pt")
    assert "name their folder by --real" in alone.output
    assert not (tmp_path / "cache").exists()  # every refusal came before anything was decoded
    scored = call(*common, "--inception", "net.pt", "--real", tmp_path / "real")
    assert scored.exit_code == 0, scored.output
    table = pd.read_csv(tmp_path / "out" / "pictures.csv")
    assert table[["method", "images"]].values.tolist() == [["base", 10]]
    assert (table["fid_lo"] <= table["fid"]).all()


def test_distilling_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud decodes nothing again, and the weights equal those of an uninterrupted training."""
    own = shutil.copytree(folder / "device", folder / "again")
    for path in [*own.glob("*.safetensors"), own / "device" / "checkpoint.pt", own / "phi" / "checkpoint.pt"]:
        path.unlink()
    monkeypatch.setattr("models.train.cloud_outputs.Recorder", pytest.fail)
    again = train(folder, "again", "--quiet")
    assert (again.exit_code, again.output) == (0, "")
    for name in ("device.safetensors", "phi.safetensors"):
        assert (own / name).read_bytes() == (folder / "device" / name).read_bytes()
    for option in ("--guidance", "--top-k"):  # they need other images of the cloud, which would have to be recorded
        with pytest.raises(AssertionError, match="Failed"):
            train(folder, "again", option, "2", "--quiet")


def test_a_device_starts_from_the_clouds_own_layers() -> None:
    cloud = files.decoder(files.T2I, 0)
    device = distil.first_device(cloud)
    for key in ("layers.0.attention.wqkv.weight", "tok_embeddings.weight", "norm.weight", "output.weight"):
        assert device.transformer.get_parameter(key).equal(cloud.get_parameter(key))


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    def refused(change: dict[str, object], *found: str) -> None:
        path = folder / "wrong.yaml"
        path.write_text(yaml.safe_dump({**SCENARIO, **change}, sort_keys=False))
        result = call("run", path, "--out", tmp_path / "no", "--cache", tmp_path / "c", "--quiet")
        assert result.exit_code == 2
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
        for text in found:
            assert text in result.output
        assert not (tmp_path / "no").exists()
        dry = call("run", path, "--out", tmp_path / "no", "--cache", tmp_path / "c", "--dry-run")
        assert (dry.exit_code, dry.output) == (result.exit_code, result.output)

    refused(
        {"pair": PAIR, "methods": ["eagle2"]},
        "has no drafter, which this method drafts with; name one with pair.device",
    )
    refused(
        {"pair": {**PAIR, "cloud": "llamagen-xl-stage3"}},
        "wrong.yaml:3: pair.cloud is not a known model",
        "did you mean",
    )
    refused({"pair": {**PAIR, "weights": "elsewhere"}}, "pair.weights must be a file or a folder, got 'elsewhere'")
    refused({"pair": {**PAIR, "weight": "t2i"}}, "pair.weight is not a known key; did you mean weights?")
    refused({"pair": PAIR}, "has no device model, which this method decodes with; name one with pair.device")
    refused({"pair": {**SCENARIO["pair"], "image_size": 24}}, "shrinks images by 16, which does not divide")  # type: ignore[dict-item]
    refused({"prompts": {"list": ["a cat"]}, "methods": ["base"]}, "holds no features of 'a cat'")
    refused({"prompts": {"count": 2}}, "prompts must be a list or a file")
    result = call("train", "device", "--pair", folder / "pair.yaml", "--out", tmp_path / "no")
    assert (result.exit_code, result.output) == (2, "Error: --prompts: a file of captions is needed\n")
    (tmp_path / "unknown.txt").write_text(f"{files.CAPTIONS[0]}\na cat\n")
    options = ("--prompts", tmp_path / "unknown.txt", "--out", tmp_path / "no")
    result = call("train", "device", "--pair", folder / "pair.yaml", *options)
    assert (result.exit_code, (tmp_path / "no").exists()) == (2, False)
    assert result.output.startswith(f"Error: {tmp_path / 'unknown.txt'}:2: ")
    for what in ("samples", "uncertainty"):
        result = call("evaluate", what, "--pair", folder / "pair.yaml", "--out", tmp_path / "no")
        assert result.exit_code == 2
        assert result.output.startswith("Error: --captions: a file of captions is needed; the pair llamagen-xl-stage1")
    refused({"prompts": {"file": "captions.json"}}, "name some with prompts.calibration, or the threshold as a number")
    refused(
        {"prompts": {"file": "captions.json", "count": 1, "calibration": 2}},
        "prompts.calibration must be <= 1, the captions of",
        "captions.json after count, got 2",
    )
