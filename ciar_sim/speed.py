"""Speed of recording and simulating on this machine, from its last runs, for the forecast of a dry run."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.core.files import json_mapping, write_atomically

if TYPE_CHECKING:
    from simulator.experiment.simulating import Progress
    from simulator.experiment.state import State

FILE = "speed.json"
# Defaults without measurements: the scenes pair and a request of a few hundred calls on two slow CPU cores.
SESSION_S, REQUEST_S = 1.0, 0.02
RECORDING_BYTES, CASE_BYTES = 30_000.0, 30_000.0
_SAMPLE = 64  # files from which the mean size is estimated


class Stopwatch:
    """Forwards progress, and measures the time of recording and simulating."""

    def __init__(self, progress: "Progress") -> None:
        self.progress = progress
        self.seconds = {"recording": 0.0, "simulating": 0.0}
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, stage: str, done: float, total: float) -> None:
        kind, now = stage.partition(" ")[0].rstrip(","), time.monotonic()
        before, since = self._last
        if kind == before and kind in self.seconds:
            self.seconds[kind] += now - since
        self._last = kind, now
        self.progress(stage, done, total)

    def remember(self, cache: Path, where: str, sessions: int, requests: float) -> None:
        """Store the seconds per session, by weights and torch device, and per request. It is no error if the cache cannot be written."""
        told = _read(cache)
        if sessions:
            told[f"session {where}"] = self.seconds["recording"] / sessions
        if requests >= 1.0:
            told["request"] = self.seconds["simulating"] / requests
        with suppress(OSError):
            write_atomically(cache / FILE, json.dumps(told, indent=1, sort_keys=True).encode())


@dataclass(frozen=True)
class Forecast:
    """Expected time and disk space of a run. basis: the source of the times, in words."""

    recording_s: float
    simulating_s: float
    recording_bytes: float
    case_bytes: float
    basis: str


def forecast(state: "State", cache: Path, torch_device: str) -> Forecast:
    """Return the expected time and disk space of the remaining work."""
    told = _read(cache)
    sessions = len(state.missing) + state.more_sessions
    cases = len(state.cases) - len(state.simulated) + state.more_cases
    session_s = told.get(f"session {where(state.manifest.weights_hash, torch_device)}")
    request_s = told.get("request")
    measured = (session_s is not None or not sessions) and (request_s is not None or not cases)
    return Forecast(
        sessions * (SESSION_S if session_s is None else session_s),
        state.requests * (REQUEST_S if request_s is None else request_s),
        sessions * _mean_bytes(cache / "recordings", RECORDING_BYTES),
        cases * _mean_bytes(cache / "cases", CASE_BYTES),
        "as the last runs here took"
        if measured
        else "a rough figure of two CPU cores, as nothing like it was measured here yet",
    )


def where(weights: str, torch_device: str) -> str:
    """Return the key of the speed of recording: weights and torch device."""
    return f"{weights[:16]} {torch_device}"


def _read(cache: Path) -> dict[str, float]:
    found = json_mapping(cache / FILE)
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float) and 0 <= value < 1e9}


def _mean_bytes(folder: Path, default: float) -> float:
    sizes = []
    for path in folder.rglob("*.*"):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
        if len(sizes) == _SAMPLE:
            break
    return sum(sizes) / len(sizes) if sizes else default
