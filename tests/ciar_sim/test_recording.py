"""Recording in parts and in processes: the same recordings for any number of processes, saved as sessions end."""

import os
import pickle
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ciar_sim.cli import recording
from ciar_sim.cli.models import Models
from models.pair import Pair, load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.core.errors import PromptError, RecordingError
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.families import families, parts
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import pair_manifest
from simulator.protocol.recording import SessionSpec
from tests.ciar_sim.test_reliability import ended, files

TOKENS = 16


def sessions(weights: str, methods: Sequence[str], count: int) -> list[SessionSpec]:
    return [
        SessionSpec(
            weights,
            name,
            METHODS[name].revision,
            METHODS[name].settings.model_validate({}).model_dump(),
            Decoding.model_validate({}).model_dump(),
            caption,
            seed=0,
        )
        for name in methods
        for caption in captions(0, count)
    ]


def test_parts_hold_families_whole_and_are_a_power_of_two() -> None:
    specs = sessions("", ["base", "device-only", "code"], 7)
    assert sorted(map(len, families(specs, TOKENS))) == [1] * 7 + [2] * 7
    for most, count in ((64, 1), (21, 1), (20, 2), (8, 4), (5, 8), (1, 14)):
        made = parts(specs, TOKENS, most)
        assert len(made) == count
        assert sorted(spec.key() for part in made for spec in part) == sorted(spec.key() for spec in specs)
        prompts = [{spec.prompt for spec in part if spec.method != "device-only"} for part in made]
        assert sum(map(len, prompts)) == 7  # base and code of a prompt are in the same part
    assert [len(part) for part in parts(specs, TOKENS, 11)] == [11, 10]


def test_how_many_processes_record(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pair_manifest("scenes")
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    specs = sessions("", ["base"], 64)

    def chosen(asked: int | None, max_batch: int, torch_device: str = "cpu", count: int = 64) -> int:
        some = recording.divided(specs[:count], manifest.image_tokens, max_batch, torch_device)
        return recording.processes(asked, some, "scenes", manifest)

    assert chosen(None, 16) == 4
    assert chosen(None, 32) == 2
    assert chosen(None, 64) == 1  # one part
    assert chosen(None, 16, "cuda") == chosen(8, 16, "cuda") == 1
    assert chosen(None, 1, count=8) == 1  # a second or two of work
    assert chosen(3, 1, count=8) == 3
    assert chosen(1, 16) == 1
    monkeypatch.setattr("multiprocessing.current_process", lambda: SimpleNamespace(daemon=True))
    assert chosen(None, 16) == chosen(8, 16) == 1  # it may start none


def test_processes_make_the_recordings_of_one(tmp_path: Path, tiny_pair_folder: Path) -> None:
    specs = sessions(pair_manifest(tiny_pair_folder).weights_hash, ["base", "ciar", "device-only"], 4)
    told: list[tuple[str, float, float]] = []
    for jobs in (1, 2):
        cache = tmp_path / str(jobs)
        models = Models(tiny_pair_folder, "cpu", 6, cache, lambda *progress: told.append(progress), record_jobs=jobs)
        source = CachedSource(RecordingCache(cache), models.record)
        assert len(source.recordings(specs)) == source.recorded == len(specs)
    assert len(files(tmp_path / "1")) == len(specs)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert {(stage, total) for stage, _, total in told} == {("recording 12 sessions", TOKENS * 12.0)}


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_record_part", lambda *_: os._exit(1))
    specs = sessions("", ["base"], 2)
    with pytest.raises(RecordingError, match=r"was killed.*finished sessions are kept.*--record-jobs"):
        list(recording.record_in_processes([specs[:1], specs[1:]], 2, "scenes", 1, tmp_path, TOKENS, print))


def test_progress_of_processes_counts_tokens_of_unfinished_sessions(
    tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood at 0 % until the first batch of sessions that advance together ended."""
    specs = sessions(pair_manifest(tiny_pair_folder).weights_hash, ["base"], 4)
    sent: list[tuple[int, int]] = []
    with monkeypatch.context() as child:
        child.setattr(signal, "signal", lambda *_: None)
        child.setattr(recording, "TELL_S", 0.0)
        child.setattr(recording, "_tell", SimpleNamespace(send=sent.append))
        torch_threads = torch.get_num_threads()
        assert recording._record_part(7, specs, tiny_pair_folder, 4, tmp_path, torch_threads, os.getppid()) == 7
    assert {number for number, _ in sent} == {7}
    decided = [tokens for _, tokens in sent]
    assert decided == sorted(decided)
    assert set(range(4, 4 * TOKENS, 4)) <= set(decided)

    def half(number: int, *_: object) -> None:
        recording._tell.send((number, 10 + number))  # type: ignore[union-attr]
        time.sleep(60.0)

    told: list[tuple[float, float]] = []

    def stop(done: float, total: float) -> None:
        told.append((done, total))
        if done == 21.0:
            raise KeyboardInterrupt

    monkeypatch.setattr(recording, "_record_part", half)
    monkeypatch.setattr(recording, "LOOK_S", 0.01)
    with pytest.raises(KeyboardInterrupt):
        list(recording.record_in_processes([specs[:2], specs[2:]], 2, "scenes", 2, tmp_path / "none", TOKENS, stop))
    assert {total for _, total in told} == {4.0 * TOKENS}


def test_an_interrupt_leaves_no_error_of_the_pool_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread failed with a traceback if it still had parts to hand out. An error in a thread fails a test."""
    begun = tmp_path / "begun"

    def stop(done: float, total: float) -> None:
        if begun.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(recording, "_record_part", lambda *_: (begun.touch(), time.sleep(60.0)))
    monkeypatch.setattr(recording, "LOOK_S", 0.01)
    specs = sessions("", ["base"], 8)
    with pytest.raises(KeyboardInterrupt):
        list(recording.record_in_processes([[spec] for spec in specs], 2, "scenes", 1, tmp_path, TOKENS, stop))


def test_the_error_of_a_process_names_its_prompt() -> None:
    error = PromptError("a word that the pair does not know")
    error.prompt, error.place = "a red cubist", ("prompts",)
    crossed = pickle.loads(pickle.dumps(error))
    assert (str(crossed), crossed.prompt, crossed.place) == (str(error), error.prompt, error.place)


def test_a_kill_in_the_midst_of_a_batch_loses_no_session_that_had_ended(tmp_path: Path, tiny_pair_folder: Path) -> None:
    """Sessions of one batch end at different times: each is decoded to its image and saved while the others continue."""
    pair: Pair = load_pair(tiny_pair_folder)
    specs = sessions(pair.manifest.weights_hash, ["base", "speculative"], 3)

    def killing(finished: int, sessions: int, decided: int, tokens: int) -> None:
        if finished:
            assert decided < tokens
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            CachedSource(RecordingCache(tmp_path), Recorder(pair, 8, killing).record).recordings(specs)
        finally:
            os._exit(1)
    assert ended(child) == -signal.SIGKILL
    saved = files(tmp_path)
    assert 0 < len(saved) < len(specs)
    source = CachedSource(RecordingCache(tmp_path), Recorder(pair, 8).record)
    source.recordings(specs)
    assert (source.reused, source.recorded) == (len(saved), len(specs) - len(saved))
    assert saved.items() <= files(tmp_path).items()
