"""Who asks for which picture when, keyed by the seed alone: every method and network sees the same requests."""

from dataclasses import dataclass

import numpy as np

from simulator.rng import draws, stream


@dataclass(frozen=True)
class Arrivals:
    """Requests in order of time. requested_s: float64 [n], seconds. device, prompt: int64 [n]."""

    requested_s: np.ndarray
    device: np.ndarray
    prompt: np.ndarray

    def __len__(self) -> int:
        return len(self.requested_s)


def poisson_arrivals(seed: int, rate_per_s: float, duration_s: float, devices: int, prompts: int) -> Arrivals:
    """Poisson requests of the whole fleet at `rate_per_s` in [0, duration_s), possibly none.

    Each request comes from a device drawn uniformly. Prompts take turns: every `prompts` requests use each prompt once,
    in an order drawn anew each round. A longer duration leaves the requests of the shorter one as they are.

    Raises ValueError for a negative or infinite rate or duration, or no devices or prompts.
    """
    if not (0.0 <= rate_per_s < np.inf and 0.0 <= duration_s < np.inf):
        raise ValueError(f"rate_per_s and duration_s must be finite and >= 0, got {rate_per_s} and {duration_s}")
    if devices < 1 or prompts < 1:
        raise ValueError(f"at least one device and one prompt are needed, got {devices} and {prompts}")
    requested_s = _poisson_times(stream(seed, "workload.arrivals"), rate_per_s, duration_s)
    n = len(requested_s)
    device = (draws(seed, n, "workload.device") * devices).astype(np.int64)
    rounds = -(-n // prompts)
    # Sorting uniform draws shuffles each round; row by row, so that more requests never change the earlier ones.
    order = np.argsort(draws(seed, rounds * prompts, "workload.prompt").reshape(rounds, prompts), axis=1, kind="stable")
    return Arrivals(requested_s, device, order.reshape(-1)[:n].astype(np.int64))


def single_arrival(prompt: int = 0) -> Arrivals:
    """One request, on device 0 at time 0: what a picture costs when nothing else goes on."""
    return Arrivals(np.zeros(1), np.zeros(1, np.int64), np.array([prompt], np.int64))


def _poisson_times(generator: np.random.Generator, rate_per_s: float, duration_s: float) -> np.ndarray:
    """float64, ascending, below duration_s: sums of exponential gaps, drawn in blocks until the duration is passed."""
    if rate_per_s == 0.0:
        return np.empty(0)
    expected = rate_per_s * duration_s
    gaps = generator.standard_exponential(int(expected + 6.0 * np.sqrt(expected)) + 16)
    times = np.cumsum(gaps) / rate_per_s
    while times[-1] < duration_s:
        gaps = np.concatenate([gaps, generator.standard_exponential(len(gaps))])
        times = np.cumsum(gaps) / rate_per_s
    return times[times < duration_s]
