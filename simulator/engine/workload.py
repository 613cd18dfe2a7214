"""Requests over time. They depend only on the seed: every method and network gets the same ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from simulator.core.errors import ScenarioError, TraceError
from simulator.core.rng import draws, stream
from simulator.traces.arrival_readers import is_own_arrivals, own_arrivals_table
from simulator.traces.excerpt import Window, excerpt_notes, excerpt_of_arrivals, times_in_window
from simulator.traces.read import read_arrivals
from simulator.traces.source import Source
from simulator.traces.units import told

_BLOCK = 64  # draws of a closed loop taken at once; the draws themselves do not depend on it


@dataclass(frozen=True)
class Requests:
    """Requests in order of time.

    Attributes:
        requested_s: float64 [n], seconds.
        device: int64 [n], number of the requesting device.
        prompt: int64 [n], number of the requested prompt.
    """

    requested_s: np.ndarray
    device: np.ndarray
    prompt: np.ndarray

    def __len__(self) -> int:
        return len(self.requested_s)

    def next_of_device(self) -> np.ndarray:
        """Return the time of the next request of each request's device, float64 [n]; infinity after the last."""
        order = np.argsort(self.device, kind="stable")
        device, requested_s = self.device[order], self.requested_s[order]
        following = np.full(len(order), np.inf)
        same = device[1:] == device[:-1]
        following[:-1][same] = requested_s[1:][same]
        result = np.empty(len(order))
        result[order] = following
        return result


@dataclass(frozen=True)
class ClosedLoop:
    """Each device thinks, sends a request, and thinks again once it has its image (or was refused), until `duration_s`.

    A device's times and prompts (drawn uniformly) depend only on the seed and its number.

    Attributes:
        think_s: mean of the exponential think times.
    """

    seed: int
    think_s: float
    duration_s: float
    prompts: int

    def __post_init__(self) -> None:
        if not (0.0 < self.think_s < np.inf and 0.0 <= self.duration_s < np.inf) or self.prompts < 1:
            raise ValueError(f"think_s must be > 0 and prompts >= 1, got {self.think_s} and {self.prompts}")

    def of_device(self, device: int) -> Iterator[tuple[float, int]]:
        """Yield endless pairs of think time in seconds and number of the prompt requested after it."""
        think, ask = stream(self.seed, "workload.think", device), stream(self.seed, "workload.prompt", device)
        while True:
            seconds = (think.standard_exponential(_BLOCK) * self.think_s).tolist()
            yield from zip(seconds, ask.integers(self.prompts, size=_BLOCK).tolist(), strict=True)


def poisson_arrivals(seed: int, rate_per_s: float, duration_s: float, devices: int, prompts: int) -> Requests:
    """Poisson requests of the whole fleet at `rate_per_s` in [0, duration_s), possibly none.

    Each request comes from a device drawn uniformly. Every `prompts` requests use each prompt once, in a new random order each round. A
    longer duration does not change the requests of a shorter one.

    Raises ValueError for a negative or infinite rate or duration, or no devices or prompts.
    """
    if not (0.0 <= rate_per_s < np.inf and 0.0 <= duration_s < np.inf):
        raise ValueError(f"rate_per_s and duration_s must be finite and >= 0, got {rate_per_s} and {duration_s}")
    return timed_arrivals(
        seed, _poisson_times(stream(seed, "workload.arrivals"), rate_per_s, duration_s), devices, prompts
    )


def bursty_arrivals(
    seed: int,
    mean_per_s: float,
    burst_factor: float,
    burst_s: float,
    calm_s: float,
    duration_s: float,
    devices: int,
    prompts: int,
) -> Requests:
    """A two-state Markov-modulated Poisson process: bursts of mean length `burst_s` with `burst_factor` times the rate between bursts
    (mean length `calm_s`); `mean_per_s` is the rate over both. Devices and prompts as in `poisson_arrivals`.

    Source: Fischer and Meier-Hellstern, The Markov-modulated Poisson process (MMPP) cookbook, 1993. It starts in its
    stationary distribution. Raises ValueError for figures that make no process.
    """
    figures = (mean_per_s, burst_factor, burst_s, calm_s)
    if not all(0.0 < figure < np.inf for figure in figures) or not 0.0 <= duration_s < np.inf:
        raise ValueError(f"mean_per_s, burst_factor, burst_s and calm_s must be finite and > 0, got {figures}")
    calm_per_s = mean_per_s * (calm_s + burst_s) / (calm_s + burst_factor * burst_s)
    changes = stream(seed, "workload.bursts")
    bursting = bool(changes.random() < burst_s / (burst_s + calm_s))
    edges, expected = [0.0], [0.0]  # when the state changes, and how many requests are expected until then
    while edges[-1] < duration_s:
        length_s = float(changes.standard_exponential()) * (burst_s if bursting else calm_s)
        edges.append(edges[-1] + length_s)
        expected.append(expected[-1] + length_s * calm_per_s * (burst_factor if bursting else 1.0))
        bursting = not bursting
    # A Poisson process of rate 1 over expected requests, mapped to time, has the rate of each state. It is cut at the duration, because
    # the last state may last much longer.
    until = min(expected[-1], float(np.interp(duration_s, edges, expected)) * (1.0 + 1e-9))
    times = np.interp(_poisson_times(stream(seed, "workload.arrivals"), 1.0, until), expected, edges)
    return timed_arrivals(seed, times[times < duration_s], devices, prompts)


def timed_arrivals(seed: int, requested_s: np.ndarray, devices: int, prompts: int) -> Requests:
    """Requests at given times, in order; devices and prompts as in `poisson_arrivals`. Raises ValueError without either."""
    if devices < 1 or prompts < 1:
        raise ValueError(f"at least one device and one prompt are needed, got {devices} and {prompts}")
    n = len(requested_s)
    device = (draws(seed, n, "workload.device") * devices).astype(np.int64)
    rounds = -(-n // prompts)
    # Sorting uniform draws shuffles the prompts of each round. Rounds are rows, so that more requests never change earlier ones.
    order = np.argsort(draws(seed, rounds * prompts, "workload.prompt").reshape(rounds, prompts), axis=1, kind="stable")
    return Requests(requested_s, device, order.reshape(-1)[:n].astype(np.int64))


def read_times(
    path: Path, unit: str | None = None, window_s: Window | None = None, time_scale: float = 1.0
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the times of requests in an arrivals file of any known format; the result is cached while the file does not change.

    Args:
        path: the file.
        unit: unit of its times, if it does not state it; as for `simulator.traces.units.told`.
        window_s: start and end of the part to use, in seconds of the file.
        time_scale: multiplies all times.

    Returns:
        float64 [n], seconds, in order, read-only: those of the project's own CSV as given, those of other formats since the first
        request. And the reader's assumptions.

    Raises:
        ScenarioError: not such a file; names file and line.
    """
    try:
        state = path.stat()
    except (OSError, ValueError):  # the reader raises the error with its reason
        return _times_of(path, unit, window_s, time_scale, 0, 0)
    return _times_of(path, unit, window_s, time_scale, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)  # called for every case of a sweep, and a published trace may have millions of requests
def _times_of(
    path: Path, unit: str | None, window_s: Window | None, time_scale: float, _mtime_ns: int, _size: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        source = Source(path)
        if not is_own_arrivals(source):
            read = excerpt_of_arrivals(read_arrivals(path, told(unit=unit)), window_s, time_scale)
            times, notes = read.requested_s, read.notes
        else:
            if unit is not None:
                source.fail("a unit is given, but requested_s states its own; allowed: no unit")
            table = own_arrivals_table(source)
            times = table.numbers("requested_s")
            source.need_sorted(times, table.lines, "requested_s")
            times, notes = times_in_window(times, window_s, time_scale), excerpt_notes(window_s, time_scale)
    except TraceError as error:
        message = str(error)
        raise ScenarioError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    times.setflags(write=False)
    return times, notes


def device_counts(shares: list[float], devices: int) -> list[int]:
    """Return the number of devices of each share of a fleet, by largest remainder; the sum is `devices`."""
    exact = [share * devices / sum(shares) for share in shares]
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: devices - sum(counts)]:
        counts[i] += 1
    return counts


def _poisson_times(generator: np.random.Generator, rate_per_s: float, duration_s: float) -> np.ndarray:
    """Return Poisson times in [0, duration_s), float64, ascending: sums of exponential gaps, drawn in blocks until the duration is
    exceeded."""
    if rate_per_s == 0.0:
        return np.empty(0)
    expected = rate_per_s * duration_s
    gaps = generator.standard_exponential(int(expected + 6.0 * np.sqrt(expected)) + 16)
    times = np.cumsum(gaps) / rate_per_s
    while times[-1] < duration_s:
        gaps = np.concatenate([gaps, generator.standard_exponential(len(gaps))])
        times = np.cumsum(gaps) / rate_per_s
    return times[times < duration_s]
