"""Weights trained from other inputs are refused, and the error names the input. Errors name damaged files of a training."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from models.train import tokens
from models.train.cloud import CloudConfig
from models.train.inputs import FREE, difference, settings_of
from models.train.kept import load_array, save_array
from models.train.loop import LoopSettings, train
from models.train.run import TrainingFile
from models.vq import VQConfig, VQModel, save_vq
from simulator.core.errors import DataError, WeightsError
from simulator.core.rng import stream
from tests.models import toy

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = LoopSettings(steps=4, learning_rate=0.01, warmup_steps=1, log_every_steps=1, checkpoint_every_s=0.0)
INPUTS = {"batch_images": 8, "model.dim": 16, "training data": "blake2b:00", "cloud": "blake2b:01"}
SCENES = {"train": 8, "held_out": 4}
STEPS = {"steps": 2, "learning_rate": 1e-3}
SHAPE = {**toy.SHAPE, "n_layer": 2}
FILE = {
    "tokenizer": {"model": {"codebook_size": 64, "ch": 32, "patch": 2}, "continuous_steps": 1, "training": STEPS},
    "cloud": {"model": SHAPE, "scenes": SCENES, "training": STEPS},
    "device": {"scenes": SCENES, "training": STEPS},
    "phi": {"scenes": SCENES, "training": STEPS},
    "drafter": {"scenes": SCENES, "training": STEPS},
    "scene-network": {"scenes": SCENES, "training": STEPS},
}


class Line:
    """A stage that fits a line."""

    def __init__(self, width: int = 3) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(width, 1)

    def batch(self, step: int) -> torch.Tensor:
        width = self.model.in_features
        return torch.from_numpy(stream(0, "line", step).standard_normal((4, width)).astype(np.float32))

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        return (self.model(batch)[:, 0] - batch.sum(1)).square().mean(), {}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    train(Line(), SETTINGS, tmp_path, inputs=INPUTS)
    return tmp_path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_images": 16}, "batch_images = 8, asked for 16"),
        ({"model.dim": None}, "model.dim = 16, asked for its default"),
        ({"positions": 3}, "positions = its default, asked for 3"),
        ({"training data": "blake2b:02"}, "another training data"),
        ({"cloud": "blake2b:02"}, "another cloud"),
    ],
)
def test_other_inputs_are_refused_by_name(finished: Path, changed: dict[str, Any], said: str) -> None:
    asked = {key: value for key, value in {**INPUTS, **changed}.items() if value is not None}
    with pytest.raises(WeightsError, match=rf"checkpoint.pt: made with {said}; delete it to start again"):
        train(Line(), SETTINGS, finished, inputs=asked)
    assert train(Line(), SETTINGS, finished, inputs=INPUTS).finished


def test_another_seed_is_refused(finished: Path) -> None:
    with pytest.raises(WeightsError, match="made with seed = 0, asked for 1"):
        train(Line(), SETTINGS.model_copy(update={"seed": 1}), finished, inputs=INPUTS)


def test_finished_weights_keep_their_inputs_and_unfinished_ones_do_not(finished: Path, tmp_path: Path) -> None:
    assert json.loads((finished / "inputs.json").read_text()) == INPUTS
    train(Line(), SETTINGS.model_copy(update={"max_minutes": 0.0}), tmp_path / "stopped", inputs=INPUTS)
    assert not (tmp_path / "stopped" / "inputs.json").exists()


def test_a_setting_younger_than_the_checkpoint_had_its_default(finished: Path) -> None:
    path = finished / "checkpoint.pt"
    edited(path, lambda saved: saved["settings"].pop("optimizer"))
    assert train(Line(), SETTINGS, finished, inputs=INPUTS).finished
    edited(path, lambda saved: saved["settings"].pop("optimizer"))
    with pytest.raises(WeightsError, match="made with optimizer = adamw, asked for muon"):
        train(Line(), SETTINGS.model_copy(update={"optimizer": "muon"}), finished, inputs=INPUTS)


def test_a_checkpoint_older_than_the_record_of_inputs_goes_on_and_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(finished / "checkpoint.pt", lambda saved: saved.pop("inputs"))
    assert train(Line(), SETTINGS, finished, inputs=INPUTS).finished
    assert "older than the record of inputs" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="made with batch_images = 8"):
        train(Line(), SETTINGS, finished, inputs={**INPUTS, "batch_images": 9})


@pytest.mark.parametrize("key", ["step", "model", "averaged", "optimizer", "settings", "minutes"])
@pytest.mark.parametrize("value", [None, "text", [], -1])
def test_a_checkpoint_that_lacks_a_key_or_holds_another_thing_is_named(finished: Path, key: str, value: Any) -> None:
    edited(finished / "checkpoint.pt", lambda saved: saved.pop(key) if value is None else saved.update({key: value}))
    with pytest.raises(WeightsError, match=r"checkpoint.pt: damaged checkpoint: ") as caught:
        train(Line(), SETTINGS, finished, inputs=INPUTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved["model"].pop("weight"), "weight is missing"),
        (lambda saved: saved["averaged"].pop("weight"), "weight is missing"),
        (lambda saved: saved["averaged"].update(weight="text"), "averaged holds values that are not tensors"),
        (lambda saved: saved["model"]["weight"].fill_(float("nan")), "weight is not finite"),
        (lambda saved: saved["optimizer"].pop("state"), "the optimiser's state does not fit"),
        (lambda saved: saved["optimizer"]["param_groups"].pop(), "the optimiser's state does not fit"),
        (lambda saved: saved["optimizer"]["state"][0].update(exp_avg=torch.ones(9)), "state of shape .9."),
        (lambda saved: saved.update(step=99), "at step 99 of 4"),
        (lambda saved: saved.update(inputs=3), "inputs is a int"),
    ],
)
def test_content_that_does_not_fit_is_named(finished: Path, change: Callable[[Any], object], said: str) -> None:
    edited(finished / "checkpoint.pt", change)
    with pytest.raises(WeightsError, match=f"checkpoint.pt: .*{said}"):
        train(Line(), SETTINGS, finished, inputs=INPUTS)


def test_another_width_is_named(finished: Path) -> None:
    with pytest.raises(WeightsError, match=r"checkpoint.pt: weight has shape \[1, 3\], needed \[1, 5\]"):
        train(Line(5), SETTINGS, finished, inputs=INPUTS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe binary",
        b"a,b\n1,2\n",
        b"step,lr,loss,grad_norm\n0,0.1,0.",
        b"step,lr,loss,grad_norm\nx,1,1,1\n",
    ],
)
def test_a_damaged_log_is_named_and_may_be_deleted(finished: Path, content: bytes) -> None:
    log = finished / "loss.csv"
    log.write_bytes(content)
    with pytest.raises(WeightsError, match=r"loss.csv:\d+: not a log of losses .*; delete it"):
        train(Line(), SETTINGS, finished, inputs=INPUTS)
    log.unlink()
    assert train(Line(), SETTINGS, finished, inputs=INPUTS).finished


@given(st.binary(max_size=200))
def test_no_bytes_in_place_of_an_array_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.npy"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"array.npy: (damaged|holds)"):
        load_array(path, np.uint16, (3, None))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_cut_array_is_named(tmp_path: Path, mapped: bool) -> None:
    path, array = tmp_path / "array.npy", np.arange(600, dtype=np.uint16).reshape(3, 200)
    save_array(path, array)
    assert np.array_equal(load_array(path, np.uint16, (3, None), mapped), array)
    whole = path.read_bytes()
    for size in (0, 5, 60, 128, 700, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"array.npy: damaged; delete it"):
            load_array(path, np.uint16, (3, None), mapped)
    save_array(path, array[:2])
    with pytest.raises(DataError, match=r"holds uint16 \[2, 200\], needed uint16 \[3, any\]"):
        load_array(path, np.uint16, (3, None), mapped)


def test_cut_tokens_of_scenes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PART_SCENES", 2)
    monkeypatch.setattr(tokens, "_BATCH_SCENES", 2)
    shape = VQConfig(8, 4, 32, (1,), (1,), 32, 1, 32)
    save_vq(tmp_path / "t.safetensors", VQModel(shape), {})
    tokens.scene_tokens(tmp_path / "t.safetensors", 1, 2, tmp_path / "kept")
    for suffix in (".npy", ".json"):
        (path,) = (tmp_path / "kept").rglob(f"*{suffix}")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"part-00000{suffix}: damaged"):
            tokens.scene_tokens(tmp_path / "t.safetensors", 1, 2, tmp_path / "kept")
        path.write_bytes(whole)


def changes(part: Any, prefix: str = "") -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the dotted name of every setting of a part, and a function that returns the part with that setting changed."""
    names = part.__dataclass_fields__ if is_dataclass(part) else type(part).model_fields
    for name in names:
        value = getattr(part, name)

        def with_value(changed: Any, name: str = name) -> Any:
            if isinstance(part, BaseModel):
                return part.model_copy(update={name: changed})
            copied = replace(part)
            object.__setattr__(copied, name, changed)
            return copied

        if isinstance(value, BaseModel) or is_dataclass(value):
            for inner, made in changes(value, f"{prefix}{name}."):
                yield inner, lambda made=made, with_value=with_value: with_value(made())
        else:
            if isinstance(value, bool):
                other: Any = not value
            else:
                other = "other" if isinstance(value, str) else (9, 9) if isinstance(value, tuple) else (value or 0) + 1
            yield prefix + name, lambda other=other, with_value=with_value: with_value(other)


@pytest.mark.parametrize("stage", list(FILE))
def test_every_setting_of_a_stage_is_an_input_or_free(stage: str) -> None:
    settings = TrainingFile.model_validate(FILE).stages[stage]
    before = settings_of(settings)
    seen = set()
    for name, make in changes(settings):
        if name.startswith("training."):
            continue  # the training loop checks these
        seen.add(name)
        found = difference(before, settings_of(make()))
        assert (found is None) == (name in FREE), name
        assert found is None or found.startswith(f"{name} = ")
    assert len(seen) >= 4


def test_a_checkpoint_of_an_earlier_round_is_told_from_a_later_one() -> None:
    config = CloudConfig.model_validate({**FILE["cloud"], "then": [{"object_weight": 2.0}]})
    first, second = (settings_of(round_) for round_ in config.rounds())
    assert difference(first, second) == "object_weight = its default, asked for 2.0"
    assert difference(settings_of(config), first) is None


def test_a_copy_of_a_training_folder_goes_on_elsewhere(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    there = tmp_path_factory.mktemp("copy") / "stage"
    shutil.copytree(finished, there)
    assert train(Line(), SETTINGS, there, inputs=INPUTS).finished
