"""Jitter and loss of a link."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.network.transport import one_object

_BLOCK = 64  # draws taken from a stream at once; the draws themselves do not depend on it
_BURST_S = 0.2  # a burst of losses is over once nothing was sent for so long; bursts on access links last milliseconds


# --- delay


DISTRIBUTIONS = ("normal", "lognormal", "gamma", "pareto")


@dataclass(frozen=True)
class Jitter:
    """How the one-way delay varies about its mean: a distribution of that mean and of standard deviation `sd_s`.

    distribution: one of DISTRIBUTIONS; normal draws are cut off at 0, the others are positive by nature. samples_s: measured
    deviations from the mean instead, drawn with replacement, the delay cut off at 0.
    """

    sd_s: float = 0.0
    distribution: str = "normal"
    samples_s: tuple[float, ...] = ()

    @property
    def deviation_s(self) -> float:
        """Standard deviation."""
        return float(np.std(self.samples_s)) if self.samples_s else self.sd_s

    def draws(self, mean_s: float, stream: np.random.Generator) -> Callable[[int], np.ndarray]:
        """Draws delays, in seconds, by their number. Raises ValueError where no distribution can have such a mean and deviation."""
        if self.samples_s:
            samples = mean_s + np.asarray(self.samples_s, np.float64)
            if not np.all(np.isfinite(samples)):
                raise ValueError("samples of jitter must be finite")
            return lambda count: np.maximum(stream.choice(samples, count), 0.0)
        sd_s = self.sd_s
        if not 0.0 <= sd_s < math.inf:
            raise ValueError(f"sd_s must be finite and >= 0, got {sd_s}")
        if self.distribution == "normal":
            return lambda count: np.maximum(stream.normal(mean_s, sd_s, count), 0.0)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution}")
        if not (mean_s > 0.0 and sd_s > 0.0):
            raise ValueError(f"a {self.distribution} delay needs a mean and a deviation > 0, got {mean_s} and {sd_s}")
        ratio = (sd_s / mean_s) ** 2
        if self.distribution == "gamma":
            return lambda count: stream.gamma(1.0 / ratio, mean_s * ratio, count)
        if self.distribution == "lognormal":
            return lambda count: stream.lognormal(
                math.log(mean_s) - 0.5 * math.log1p(ratio), math.sqrt(math.log1p(ratio)), count
            )
        shape = 1.0 + math.sqrt(
            1.0 + 1.0 / ratio
        )  # of a Pareto distribution whose variance over squared mean is 1 / (a (a - 2))
        least_s = mean_s * (shape - 1.0) / shape
        return lambda count: least_s * (1.0 + stream.pareto(shape, count))


# --- loss


class Loss:
    """Which packets are lost: a chain of a good state, in which none is, and a bad one, in which all are.

    Source: E. N. Gilbert, Capacity of a burst-noise channel, Bell System Technical Journal 39 (1960), with every packet of
    the bad state lost. Without a mean burst each packet is lost by itself (Bernoulli), which is the chain whose bursts are 1 / (1 - mean).
    The chain moves with packets and forgets after 0.2 s without any.
    """

    __slots__ = ("_bad", "_forgets", "_gap", "_last_s", "_leave_bad", "_leave_good", "_stream", "_uniforms", "mean")

    def __init__(self, mean: float, stream: np.random.Generator, burst_packets: float | None = None) -> None:
        """mean: share of packets lost. burst_packets: mean length of a burst. Raises ValueError where no chain has them."""
        if not 0.0 < mean < 1.0:
            raise ValueError(f"the mean loss must be > 0 and < 1, got {mean}")
        burst = 1.0 / (1.0 - mean) if burst_packets is None else burst_packets
        if not (1.0 <= burst < math.inf and burst >= mean / (1.0 - mean)):
            raise ValueError(
                f"a mean burst must be finite, >= 1 and >= mean / (1 - mean), got {burst_packets} at a mean of {mean}"
            )
        self.mean = one_object(mean)
        self._forgets = burst_packets is not None
        self._leave_bad = one_object(1.0 / burst)
        self._leave_good = one_object(mean / (burst * (1.0 - mean)))
        self._stream = stream
        self._uniforms: list[float] = []
        self._last_s = math.inf
        self._gap = 0  # good packets to come, then `_bad` bad ones
        self._restart()
        self._bad = self._geometric(self._leave_bad)

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """Which of the next `packets` are lost, by number, ascending."""
        if self._forgets:
            if now_s - self._last_s > _BURST_S:
                self._restart()
            self._last_s = now_s
        gap = self._gap
        if gap >= packets:
            self._gap = gap - packets
            return ()
        found: list[int] = []
        position = 0
        while True:
            step = min(self._gap, packets - position)
            position += step
            self._gap -= step
            if position == packets:
                return found
            step = min(self._bad, packets - position)
            found.extend(range(position, position + step))
            position += step
            self._bad -= step
            if self._bad == 0:
                self._gap = self._geometric(self._leave_good)
                self._bad = self._geometric(self._leave_bad)

    def lost_again(self, now_s: float, packets: int) -> int:
        """How many of `packets` sent again at `now_s`, long after, are lost once more."""
        return sum(self._uniform() < self.mean for _ in range(packets))

    def _restart(self) -> None:
        """Any state again, as likely as ever. What is left of one lasts as long as before, however long it has lasted."""
        if self._uniform() < self.mean:
            self._gap = 0
        elif self._gap == 0:
            self._gap = self._geometric(self._leave_good)

    def _geometric(self, chance: float) -> int:
        if chance >= 1.0:
            return 1
        return 1 + int(min(math.log1p(-self._uniform()) / math.log1p(-chance), 1e18))

    def _uniform(self) -> float:
        uniforms = self._uniforms
        if not uniforms:
            uniforms.extend(self._stream.random(_BLOCK)[::-1].tolist())
        return uniforms.pop()


class VaryingLoss:
    """Packets lost one by one, each with the chance that holds at the time."""

    def __init__(self, share: Callable[[float], float], stream: np.random.Generator) -> None:
        """share: of packets lost, by time."""
        self._share = share
        self._stream = stream

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """As `Loss.lost`."""
        share = self._share(now_s) if now_s < math.inf else 0.0  # what a dead wire never sends is not lost
        return np.flatnonzero(self._stream.random(packets) < share).tolist() if share > 0.0 else ()

    def lost_again(self, now_s: float, packets: int) -> int:
        """As `Loss.lost_again`."""
        return len(self.lost(now_s, packets))
