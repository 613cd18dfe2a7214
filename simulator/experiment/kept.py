"""Content-addressed cache of simulated cases, so that no case is simulated twice."""

import hashlib
import json
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from simulator.core.cache import ContentCache
from simulator.core.errors import RecordingError, reason
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.network import TraceNetwork
from simulator.experiment.schema.workload import TraceArrivals

FORMAT = 2
_DIGEST_BYTES = 16
_NOT_SIMULATED = {"name", "pair", "prompts", "methods", "sweep"}  # the keys of the recordings cover these


@dataclass(frozen=True)
class KeptCase:
    """A simulated case, and the (prompt, call) of the branches that it needs."""

    result: SimulatedCase
    branches: tuple[tuple[int, int], ...] = ()

    def to_bytes(self) -> bytes:
        body = zlib.compress(msgspec.msgpack.encode((FORMAT, self.result, self.branches), enc_hook=_plain), 1)
        return hashlib.sha256(body).digest()[:_DIGEST_BYTES] + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "KeptCase":
        """Decode the output of `to_bytes`. Raises ValueError if the bytes are damaged."""
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest()[:_DIGEST_BYTES] != digest:
            raise ValueError("damaged")
        kind = tuple[int, SimulatedCase, tuple[tuple[int, int], ...]]
        _, result, branches = msgspec.msgpack.decode(zlib.decompress(body), type=kind, dec_hook=_array)
        return cls(result, branches)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(type(value))


def _array(kind: type, value: Any) -> Any:
    if kind is not np.ndarray:
        raise NotImplementedError(kind)
    dtype, shape, data = value
    # A copy, because views of buffers take several times the memory.
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()


class CaseCache:
    """Simulated cases on disk by key: `<root>/cases/<2 hex>/<key>.case`.

    Attributes:
        added: Number of calls of `put`.
    """

    def __init__(self, root: Path) -> None:
        self.files = ContentCache(root / "cases", ".case")
        self.added = 0

    def get(self, key: str) -> KeptCase | None:
        """Return the case, or None if there is none. A damaged file is deleted and counts as none.

        Raises:
            RecordingError: The cache folder cannot be read.
        """
        try:
            data = self.files.get(key)
        except OSError as error:
            raise RecordingError(f"cannot read the cache {self.files.root}: {reason(error)}") from None
        if data is None:
            return None
        try:
            return KeptCase.from_bytes(data)
        except (ValueError, TypeError, KeyError, zlib.error):
            self.files.drop(key)
            return None

    def has(self, key: str) -> bool:
        """Return whether there is a file of this key. It may be damaged."""
        return self.files.has(key)

    def put(self, key: str, content: bytes) -> None:
        """Store `KeptCase.to_bytes` under a key. Raises RecordingError if the cache folder cannot be written."""
        self.added += 1
        try:
            self.files.put(key, content)
        except OSError as error:
            raise RecordingError(f"cannot write the cache {self.files.root}: {reason(error)}") from None


class MemoryCases(CaseCache):
    """Simulated cases of one run, in memory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.added = 0

    def get(self, key: str) -> KeptCase | None:
        data = self.contents.get(key)
        return None if data is None else KeptCase.from_bytes(data)

    def has(self, key: str) -> bool:
        return key in self.contents

    def put(self, key: str, content: bytes) -> None:
        self.added += 1
        self.contents[key] = content


def case_key(case: Case, recordings: Sequence[str], prices: str, timeline_sessions: int) -> str:
    """Return the sha256 (hex) of everything that determines the result of a case.

    Args:
        case: The case.
        recordings: Keys of its sessions, one per prompt.
        prices: Fingerprint of the compute times.
        timeline_sessions: Number of requests whose spans are kept.
    """
    data = case.scenario.model_dump(by_alias=True, exclude=_NOT_SIMULATED)
    files = [_content(file) for file in _files(case.scenario)]
    told = [data, list(recordings), prices, timeline_sessions, files, FORMAT, code_digest()]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _files(scenario: Scenario) -> list[Path]:
    """Return the trace files of the scenario."""
    followed = [path.choice() for path in scenario.paths.values() if isinstance(path, TraceNetwork)]
    found = [Path(file) for choice in followed for file in choice.files]
    arrivals = scenario.workload.arrivals
    return [*found, Path(arrivals.trace)] if isinstance(arrivals, TraceArrivals) else found


def _content(file: Path) -> str:
    state = file.stat()
    return _digest(file, state.st_mtime_ns, state.st_size)


@cache
def _digest(file: Path, _mtime_ns: int, _size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def code_digest() -> str:
    """Return the sha256 (hex) of the sources and catalogues that determine results, and of the versions of Python, NumPy and SimPy."""
    root = Path(__file__).resolve().parents[1]
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if path.suffix in (".py", ".yaml") and (place.parts[0] != "results" or place.name == "timeline.py"):
            whole.update(str(place).encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [platform.python_version(), *(metadata.version(name) for name in ("numpy", "simpy"))]
    return hashlib.sha256(whole.digest() + " ".join(versions).encode()).hexdigest()
