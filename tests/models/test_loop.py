"""The training loop: a killed and resumed run ends bit for bit like an uninterrupted one."""

import csv
import itertools
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.tiny_pair import make_tiny_pair
from models import scenes
from models.state import save_state
from models.train import tokens
from models.train.kept import load_array, save_array
from models.train.loop import LoopSettings, moved, train
from models.train.tokenizer import TokenizerConfig, TokenizerStage
from models.vq import VQModel, save_vq
from simulator.core.errors import WeightsError
from simulator.core.rng import stream

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = LoopSettings(
    steps=12, learning_rate=0.01, warmup_steps=3, log_every_steps=1, checkpoint_every_s=0.0, ema_decay=0.9
)

TINY_TOKENIZER: dict[str, Any] = {
    "batch_images": 2,
    "continuous_steps": 2,
    "object_weight": 3.0,
    "restart_every_steps": 2,
    "restart_until_step": 5,
    "model": {
        "codebook_size": 32,
        "codebook_dim": 4,
        "ch": 32,
        "encoder_ch_mult": [1],
        "decoder_ch_mult": [1],
        "z_channels": 32,
        "num_res_blocks": 1,
        "patch": 16,
    },
    "training": {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 1, "checkpoint_every_s": 0.0, "log_every_steps": 1},
}


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Images:
    pixels: Tensor
    parts: list[Tensor]
    number: int


class LineStage:
    """A stage that fits a line through dropout. It can be killed before a step, and can copy a checkpoint after one."""

    def __init__(self, kill_at: int | None = None, copy: tuple[int, Path, Path] | None = None) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.kill_at, self.copy, self.begun = kill_at, copy, 0

    def begin(self) -> None:
        self.begun += 1
        with torch.no_grad():
            next(self.model.parameters()).mul_(0.5)

    def batch(self, step: int) -> Tensor:
        return torch.from_numpy(stream(0, "line", step).standard_normal((16, 4)).astype(np.float32))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        if step == self.kill_at:
            raise Killed
        error = self.model(batch)[:, 0] - batch.sum(dim=1)
        return error.square().mean(), {"worst": error.detach().abs().max()}

    def after_step(self, step: int) -> None:
        if self.copy and step == self.copy[0]:
            shutil.copy(self.copy[1], self.copy[2])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def logged(out_dir: Path) -> list[dict[str, str]]:
    with (out_dir / "loss.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kill_at", [1, 7, 11])
def test_resuming_after_a_kill_changes_no_bit(tmp_path: Path, kill_at: int) -> None:
    whole = train(LineStage(), SETTINGS, tmp_path / "whole")
    with pytest.raises(Killed):
        train(LineStage(kill_at=kill_at), SETTINGS, tmp_path / "killed")
    stage = LineStage()
    resumed = train(stage, SETTINGS, tmp_path / "killed")
    assert stage.begun == 0
    assert whole.finished
    assert resumed.finished
    assert same(whole.averaged, resumed.averaged)
    assert (tmp_path / "whole" / "loss.csv").read_bytes() == (tmp_path / "killed" / "loss.csv").read_bytes()
    assert (tmp_path / "killed" / "loss.png").is_file()


def test_an_interrupt_within_a_step_keeps_all_steps(tmp_path: Path) -> None:
    """Training stops after the step. A checkpoint was at most a minute old, so a short training began again."""

    class Interrupted(LineStage):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
            if step == 5:
                signal.raise_signal(signal.SIGINT)
            return super().loss(batch, step)

    whole = train(LineStage(), SETTINGS, tmp_path / "whole")
    # A job in the background of a shell ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Interrupted(), SETTINGS.model_copy(update={"checkpoint_every_s": 60.0}), tmp_path / "stopped")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [int(row["step"]) for row in logged(tmp_path / "stopped")] == list(range(6))
    stage = LineStage()
    assert same(train(stage, SETTINGS, tmp_path / "stopped").averaged, whole.averaged)
    assert stage.begun == 0


def test_steps_logged_after_the_last_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    checkpoint, aside = tmp_path / "run" / "checkpoint.pt", tmp_path / "aside.pt"
    whole = train(LineStage(copy=(6, checkpoint, aside)), SETTINGS, tmp_path / "run")
    log = (tmp_path / "run" / "loss.csv").read_bytes()
    shutil.copy(aside, checkpoint)  # as if killed after logging and before the next checkpoint
    assert same(train(LineStage(), SETTINGS, tmp_path / "run").averaged, whole.averaged)
    assert (tmp_path / "run" / "loss.csv").read_bytes() == log
    rows = logged(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert set(rows[0]) == {"step", "lr", "loss", "grad_norm", "worst"}


def test_a_time_budget_stops_early_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = LoopSettings(**{**SETTINGS.__dict__, "max_minutes": 0.0})
    result = train(LineStage(), limited, tmp_path)
    assert not result.finished
    assert result.steps == 0
    assert "at step 0 of 12" in capsys.readouterr().err
    assert train(LineStage(), SETTINGS, tmp_path).finished


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(LineStage(), SETTINGS, tmp_path)
    again = train(LineStage(kill_at=11), SETTINGS, tmp_path)
    assert again.steps == 12
    assert same(first.averaged, again.averaged)


def test_the_schedule_warms_up_and_falls_to_its_floor() -> None:
    settings = LoopSettings(steps=100, learning_rate=1.0, warmup_steps=10, final_lr_ratio=0.1)
    rates = [settings.lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_bf16_autocast_trains(tmp_path: Path) -> None:
    settings = LoopSettings(steps=60, learning_rate=0.02, warmup_steps=3, amp="bf16", log_every_steps=1)
    train(LineStage(), settings, tmp_path)
    losses = [float(row["loss"]) for row in logged(tmp_path)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


class Diverges(LineStage):
    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        loss, told = super().loss(batch, step)
        return loss * (1.0 if step < 5 else float("nan")), told


def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"the loss of step 5 is nan, .*: the training diverges; lower"):
        train(Diverges(), SETTINGS, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 5
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert not (tmp_path / "inputs.json").exists()


def test_divergence_between_logged_steps_is_found_when_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.train.loop._Training.out_of_time", lambda training: training.step == 7)
    settings = LoopSettings(**{**SETTINGS.__dict__, "log_every_steps": 10, "checkpoint_every_s": 60.0})
    with pytest.raises(WeightsError, match=r"the loss of step 6 is nan, .*: the training diverges; lower"):
        train(Diverges(), settings, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_other_settings_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    train(LineStage(), SETTINGS, tmp_path)
    with pytest.raises(WeightsError, match=r"made with learning_rate = 0.01, asked for 0.02"):
        train(LineStage(), LoopSettings(**{**SETTINGS.__dict__, "learning_rate": 0.02}), tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged checkpoint"):
        train(LineStage(), SETTINGS, tmp_path)


def test_the_tokenizer_stage_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.train.tokenizer.CODEBOOK_IMAGES", 16)
    config = TokenizerConfig.model_validate(TINY_TOKENIZER)

    class Stopping(TokenizerStage):
        def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            if step == 4:
                raise Killed
            return super().loss(batch, step)

    whole = train(TokenizerStage(config), config.training, tmp_path / "whole")
    with pytest.raises(Killed):
        train(Stopping(config), config.training, tmp_path / "killed")
    resumed = train(TokenizerStage(config), config.training, tmp_path / "killed")
    assert same(whole.averaged, resumed.averaged)
    assert float(whole.averaged["vq.quantize.embedding.weight"].abs().sum()) > 0


def test_scene_tokens_are_kept_in_parts_and_cut_to_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PART_SCENES", 4)
    monkeypatch.setattr(tokens, "_BATCH_SCENES", 2)
    config = TokenizerConfig.model_validate(TINY_TOKENIZER).model
    torch.manual_seed(0)
    save_vq(tmp_path / "tokenizer.safetensors", VQModel(config), {"steps": 0})
    few = tokens.scene_tokens(tmp_path / "tokenizer.safetensors", 5, 3, tmp_path / "cache")
    assert few.codes.shape == (3, 64)
    assert few.codes.dtype == np.uint16
    assert int(few.codes.max()) < config.codebook_size
    assert few.captions == scenes.captions(5, 3)
    more = tokens.scene_tokens(tmp_path / "tokenizer.safetensors", 5, 6, tmp_path / "cache")
    assert np.array_equal(more.codes[:3], few.codes)
    parts = sorted((tmp_path / "cache").rglob("part-*.npy"))
    assert len(parts) == 2
    parts[0].unlink()  # as if interrupted
    again = tokens.scene_tokens(tmp_path / "tokenizer.safetensors", 5, 6, tmp_path / "cache")
    assert np.array_equal(again.codes, more.codes)
    assert again.captions == more.captions


def test_a_batch_is_moved_with_all_that_is_in_it() -> None:
    batch = (Images(torch.zeros(2), [torch.ones(3)], 4), torch.arange(5))
    there = moved(batch, "meta")
    assert isinstance(there[0], Images)
    assert {there[0].pixels.device.type, there[0].parts[0].device.type, there[1].device.type} == {"meta"}
    assert there[0].number == 4
    assert moved(batch, "cpu")[0].parts[0] is batch[0].parts[0]


ARRAY = np.arange(6000, dtype=np.uint16).reshape(3, 2000)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda folder: train(LineStage(), SETTINGS, folder), "checkpoint.pt"),
        (lambda folder: save_state(folder / "w.safetensors", {"w": torch.zeros(6000)}), "w.safetensors"),
        (lambda folder: save_array(folder / "codes.npy", ARRAY), "codes.npy"),
        (lambda folder: make_tiny_pair(folder / "pair"), "pair"),
    ],
    ids=["checkpoint", "weights", "array", "pair"],
)
def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], object], named: str
) -> None:
    """A write beyond 4,000 bytes of a file fails, as on a full disk. The writing libraries report it in different ways."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / named)
    assert {path.name for path in tmp_path.rglob("*")} <= {"loss.csv"}


def test_an_array_is_numpys_own_file(tmp_path: Path) -> None:
    for array in (ARRAY, ARRAY.T, np.zeros((0, 3), np.float32)):
        save_array(tmp_path / "a.npy", array)
        found = np.load(tmp_path / "a.npy")
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert load_array(tmp_path / "a.npy", np.float32, (0, 3)).shape == (0, 3)
