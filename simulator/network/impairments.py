"""Impairments of a link: jitter of the one-way delay, and packet loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from simulator.core.rng import buffered
from simulator.network.transport import one_object

_BURST_S = 0.2  # silence after which a burst of losses is over; bursts on access links last milliseconds
DISTRIBUTIONS = ("normal", "lognormal", "gamma", "pareto")
MAX_JITTER = 100.0  # deviation over mean: above it nearly all draws are 0, and no run is long enough to show the mean
# Share of a normal distribution below 0 up to which truncation changes the mean by at most 0.15 %.
_RARE_CUT = 0.01
_NORMAL_REACH = 4.0  # assumed reach of a normal draw below its mean, in deviations; less than 1e-4 of draws lie beyond


@dataclass(frozen=True)
class Jitter:
    """Distribution of the one-way delay of a message about its mean. No draw is below 0, and the mean is exact.

    - lognormal, gamma, pareto: positive, with standard deviation `sd_s`.
    - normal: truncated at 0. If more than 1 % of it lies below 0, it is shifted down so that the truncated mean is the given mean; its
        deviation is then below `sd_s`. Otherwise truncation adds at most 0.15 % to the mean, and nothing is shifted.
    - samples: drawn with replacement, shifted by one constant so that their mean truncated at 0 is the given mean.
    - on top: the given mean is the minimum delay instead, and a draw of the distribution with mean and deviation `sd_s` is added to it
        (with samples, their excess over the smallest).

    Attributes:
        sd_s: standard deviation.
        distribution: one of DISTRIBUTIONS.
        samples_s: measured deviations from the mean, used instead of a distribution.
        on_top: whether jitter only adds delay.
    """

    sd_s: float = 0.0
    distribution: str = "normal"
    samples_s: tuple[float, ...] = ()
    on_top: bool = False

    @property
    def added_s(self) -> float:
        """Mean of the time added to the given delay."""
        if not self.on_top:
            return 0.0
        return float(np.mean(self.samples_s)) - min(self.samples_s) if self.samples_s else self.sd_s

    @property
    def deviation_s(self) -> float:
        """Standard deviation; for a normal distribution before truncation."""
        return float(np.std(self.samples_s)) if self.samples_s else self.sd_s

    def draws(self, mean_s: float, stream: np.random.Generator) -> Callable[[int], np.ndarray]:
        """Return a function of a count that draws delays with mean `mean_s`, float64 [count] in seconds.

        Raises ValueError for a mean not above 0, for a deviation that is not finite or above 100 means, and for unknown names.
        """
        if self.on_top:
            added = replace(self, on_top=False).draws(self.added_s, stream)
            return lambda count: mean_s + added(count)
        if not 0.0 < mean_s < math.inf:
            raise ValueError(f"a delay that varies needs a mean > 0, got {mean_s}")
        if self.samples_s:
            delays = self._moved_samples(mean_s)

            def sampled(count: int) -> np.ndarray:
                drawn: np.ndarray = delays[stream.integers(len(delays), size=count)]
                return drawn

            return sampled
        sd_s = self.sd_s
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution}")
        if not (0.0 <= sd_s <= MAX_JITTER * mean_s and (sd_s > 0.0 or self.distribution == "normal")):
            raise ValueError(
                f"a {self.distribution} delay of mean {mean_s} needs a deviation up to {MAX_JITTER:g} times that, got {sd_s}"
            )
        if self.distribution == "normal":
            centre_s = cut_normal_centre(mean_s, sd_s)
            return lambda count: np.maximum(stream.normal(centre_s, sd_s, count), 0.0)
        ratio = (sd_s / mean_s) ** 2
        if self.distribution == "gamma":
            return lambda count: stream.gamma(1.0 / ratio, mean_s * ratio, count)
        if self.distribution == "lognormal":
            return lambda count: stream.lognormal(
                math.log(mean_s) - 0.5 * math.log1p(ratio), math.sqrt(math.log1p(ratio)), count
            )
        # A Pareto distribution's variance over squared mean is 1 / (a (a - 2)).
        shape = 1.0 + math.sqrt(1.0 + 1.0 / ratio)
        least_s = mean_s * (shape - 1.0) / shape
        return lambda count: least_s * (1.0 + stream.pareto(shape, count))

    def reach_s(self, mean_s: float) -> float:
        """Return the largest amount by which draws can lie below their mean; see `ImpairedLink`, `delay_at`."""
        if self.on_top:
            return 0.0
        if self.samples_s:
            return mean_s - float(self._moved_samples(mean_s).min())
        return min(mean_s, _NORMAL_REACH * self.sd_s) if self.distribution == "normal" else mean_s

    def _moved_samples(self, mean_s: float) -> np.ndarray:
        """Return the samples plus one constant, truncated at 0, so that their mean is `mean_s`: float64 [n]."""
        samples = np.sort(np.asarray(self.samples_s, np.float64))[::-1]
        if not np.all(np.isfinite(samples)):
            raise ValueError("samples of jitter must be finite")
        above = np.arange(1, len(samples) + 1)  # numbers of samples that stay above 0; `shifts`: constant for each
        shifts = (len(samples) * mean_s - np.cumsum(samples)) / above
        count = int(np.flatnonzero(samples + shifts >= 0.0)[-1])
        moved: np.ndarray = np.maximum(np.asarray(self.samples_s, np.float64) + shifts[count], 0.0)
        return moved


@lru_cache(maxsize=4096)
def cut_normal_centre(mean_s: float, sd_s: float) -> float:
    """Return the centre of a normal distribution of deviation `sd_s` whose mean after truncation at 0 is `mean_s`: see `Jitter`.

    The truncated mean over the deviation is r Phi(r) + phi(r) for a centre of r deviations. Raises ValueError as `Jitter.draws`.
    """
    if sd_s == 0.0:
        return mean_s
    if not 0.0 < sd_s <= MAX_JITTER * mean_s:
        raise ValueError(
            f"a normal delay of mean {mean_s} needs a deviation up to {MAX_JITTER:g} times that, got {sd_s}"
        )
    wanted = mean_s / sd_s

    def below(r: float) -> float:
        return 0.5 * math.erfc(r / math.sqrt(2.0))

    if below(wanted) <= _RARE_CUT:
        return mean_s
    low, high = -10.0, wanted
    for _ in range(80):
        r = 0.5 * (low + high)
        cut_mean = r * below(-r) + math.exp(-0.5 * r * r) / math.sqrt(2.0 * math.pi)
        low, high = (r, high) if cut_mean < wanted else (low, r)
    return low * sd_s


class Losses(Protocol):
    """Decides which packets of a link are lost."""

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """Return the indices of the lost ones among the next `packets` packets, ascending."""
        ...

    def lost_again(self, now_s: float, packets: int) -> int:
        """Return how many of `packets` packets that are sent again at `now_s`, much later, are lost again."""
        ...


class Loss:
    """Packet loss by a Markov chain of a good state, which loses no packet, and a bad one, which loses all.

    Without a mean burst length, losses are independent (Bernoulli): the chain whose bursts have the mean 1 / (1 - mean).
    The chain advances by packets, and restarts after 0.2 s without any.
    Source: E. N. Gilbert, Capacity of a burst-noise channel, Bell System Technical Journal 39 (1960), with all packets of the
    bad state lost.
    """

    __slots__ = ("_bad", "_forgets", "_gap", "_last_s", "_leave_bad", "_leave_good", "_uniform", "mean")

    def __init__(self, mean: float, stream: np.random.Generator, burst_packets: float | None = None) -> None:
        """Raises ValueError if no chain has these figures.

        Args:
            mean: share of packets lost.
            burst_packets: mean length of a burst; None: independent losses.
        """
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
        self._uniform = buffered(stream.random)
        self._last_s = math.inf
        self._gap = 0  # packets until the next burst, which has `_bad` packets
        self._restart()
        self._bad = self._geometric(self._leave_bad)

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """See `Losses.lost`."""
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
        """See `Losses.lost_again`."""
        return sum(self._uniform() < self.mean for _ in range(packets))

    def _restart(self) -> None:
        """Draw the state from its stationary distribution. The time in a state is geometric, so it has no memory."""
        if self._uniform() < self.mean:
            self._gap = 0
        elif self._gap == 0:
            self._gap = self._geometric(self._leave_good)

    def _geometric(self, chance: float) -> int:
        """Draw the number of packets in a state that is left with this probability at each packet; at least 1."""
        if chance >= 1.0:
            return 1
        if chance == 0.0:  # a loss of less than 1e-323 with bursts
            return 10**18
        return 1 + int(min(math.log1p(-self._uniform()) / math.log1p(-chance), 1e18))


class VaryingLoss:
    """Independent losses, with a probability that varies over time."""

    def __init__(self, share: Callable[[float], float], stream: np.random.Generator) -> None:
        """share: share of packets lost, by time in seconds."""
        self._share = share
        self._stream = stream

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """See `Losses.lost`."""
        share = self._share(now_s) if now_s < math.inf else 0.0  # a dead wire sends nothing
        return np.flatnonzero(self._stream.random(packets) < share).tolist() if share > 0.0 else ()

    def lost_again(self, now_s: float, packets: int) -> int:
        """See `Losses.lost_again`."""
        return len(self.lost(now_s, packets))
