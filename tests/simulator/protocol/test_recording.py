"""Recordings on disk: keys, round trips, damage, and the source that records into the cache."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import RecordingError
from simulator.protocol import recording as recording_module
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.messages import Widths
from simulator.protocol.ops import ROLES
from simulator.protocol.recording import CLOUD, FORWARD, OP_DTYPE, SCORES, SEND, Recording, SessionSpec


def spec(**changes: object) -> SessionSpec:
    fields: dict[str, object] = {
        "weights": "w",
        "method": "base",
        "revision": 1,
        "settings": {"a": 1, "b": 2},
        "decoding": {},
        "prompt": "p",
        "seed": 0,
    }
    return SessionSpec(**{**fields, **changes})  # type: ignore[arg-type]


def recording(passes: int = 3) -> Recording:
    ops = np.zeros(passes + 1, OP_DTYPE)
    ops[0]["kind"] = SEND
    ops["kind"][1:] = FORWARD
    ops["side"][1:] = CLOUD
    ops["what"][1:] = ROLES.index("cloud")
    ops["decides"][1:] = 1
    count = 4
    return Recording(
        ops=ops,
        tokens=np.arange(count, dtype=np.uint16),
        decided_by=np.zeros(count, np.uint8),
        scores=np.full((count, len(SCORES)), np.nan, np.float32),
        image=np.zeros((2, 2, 3), np.uint8),
        nll=np.ones(count, np.float32),
        argmax=np.zeros(count, np.uint16),
        widths=Widths(16, 64, 24, 4, 8),
        meta={"note": "hand-made"},
    )


@pytest.mark.parametrize(
    "image", [np.zeros((0, 2, 3), np.uint8), np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(4, 2, 3))]
)
def test_arrays_are_read_as_numpy_reads_them(image: np.ndarray) -> None:
    data = replace(recording(), image=image).to_bytes()
    found = Recording.from_bytes(data)
    with np.load(io.BytesIO(data)) as file:
        for name in ("ops", "tokens", "decided_by", "scores", "image", "nll", "argmax"):
            own = getattr(found, name)
            np.testing.assert_array_equal(own, file[name], strict=True)
            assert own.flags.writeable


def test_key_depends_on_every_field_and_on_nothing_else() -> None:
    base = spec()
    assert base.key() == spec(settings={"b": 2, "a": 1}).key()
    changes: dict[str, object] = {
        "weights": "x",
        "method": "ciar",
        "revision": 2,
        "settings": {"a": 2, "b": 2},
        "decoding": {"guidance": 1.0},
        "prompt": "q",
        "seed": 1,
        "dtype": "float64",
        "missed_calls": (3,),
    }
    assert set(changes) == {field.name for field in fields(SessionSpec)}  # a new field needs its entry here
    keys = [spec(**{name: value}).key() for name, value in changes.items()]
    assert len({base.key(), *keys}) == 1 + len(changes)


def test_key_depends_on_the_torch_version_and_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for version, number in (("2.13.0", 4), ("2.14.0", 4), ("2.13.0", 5)):
        monkeypatch.setattr(recording_module, "torch_version", lambda version=version: version)
        monkeypatch.setattr(recording_module, "FORMAT", number)
        keys.add(spec().key())
    assert len(keys) == 3


def test_keys_stay_those_of_older_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "torch_version", lambda: "2.13.0")
    assert spec().key() == "941d43376ad8b6b03dbbaee662276fe6c709503290446e2770a7acd8f44e74d8"
    assert spec(missed_calls=(3,)).key() == "6a8d90cd251ed7e8d4cf30bdd736cff977c61944bc796c57ac458d9e954f3002"


def test_round_trip_and_equal_bytes() -> None:
    one = recording()
    again = Recording.from_bytes(one.to_bytes())
    for name in ("ops", "tokens", "decided_by", "scores", "image", "nll", "argmax"):
        assert np.array_equal(getattr(one, name), getattr(again, name), equal_nan=name == "scores"), name
    assert (one.widths, one.meta) == (again.widths, again.meta)
    assert one.to_bytes() == again.to_bytes()


def test_counts() -> None:
    one = recording(passes=3)
    assert (one.calls(), one.cloud_passes(), one.cloud_call_pct()) == (1, 3, 75.0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-50], lambda data: b"", lambda data: data[:100] + b"\0" * 100 + data[200:]]
)
def test_damage_is_an_error_and_in_the_cache_a_miss(tmp_path: Path, damage: object) -> None:
    data = damage(recording().to_bytes())  # type: ignore[operator]
    with pytest.raises(RecordingError):
        Recording.from_bytes(data)
    cache = RecordingCache(tmp_path)
    path = cache.path(spec().key())
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert cache.get(spec().key()) is None
    assert not path.exists()


def test_source_records_only_what_is_missing_and_keeps_it(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def record(specs: Sequence[SessionSpec]) -> Iterator[tuple[SessionSpec, Recording]]:
        asked.append([s.seed for s in specs])
        for s in reversed(specs):  # sessions finish in any order
            yield s, recording(passes=s.seed + 1)

    wanted = [spec(seed=1), spec(seed=2), spec(seed=1)]
    first = CachedSource(RecordingCache(tmp_path), record).recordings(wanted)
    assert [r.cloud_passes() for r in first] == [2, 3, 2]
    second = CachedSource(RecordingCache(tmp_path), record).recordings([*wanted, spec(seed=3)])
    assert [r.cloud_passes() for r in second] == [2, 3, 2, 4]
    assert asked == [[1, 2], [3]]


def test_an_interrupted_recorder_loses_nothing_that_was_done(tmp_path: Path) -> None:
    def stops(specs: Sequence[SessionSpec]) -> Iterator[tuple[SessionSpec, Recording]]:
        yield specs[0], recording()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedSource(RecordingCache(tmp_path), stops).recordings([spec(seed=1), spec(seed=2)])
    assert RecordingCache(tmp_path).get(spec(seed=1).key()) is not None
    assert RecordingCache(tmp_path).get(spec(seed=2).key()) is None


def test_without_models_a_missing_recording_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="lacks 1 recording, and"):
        CachedSource(RecordingCache(tmp_path)).recordings([spec()])


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "recordings").write_text("a file where the folder should be")
    with pytest.raises(RecordingError, match="cannot write the recording cache"):
        RecordingCache(tmp_path).put(spec().key(), recording())
