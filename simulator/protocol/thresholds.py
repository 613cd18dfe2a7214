"""Thresholds on the uncertainty score: CIAR's dynamic threshold in five interpretations (assumption A3).

Source: CIAR section 3.2 gives the best value, 0.30, and calls the threshold dynamic; how it changes is not published.

Each object belongs to one session and is called once per scored token, in order. It depends only on the scores of earlier positions: if
the cloud discards tokens, `keep` makes it forget their scores, so that every position counts once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from simulator.protocol.methods import GatedSettings, RandomSettings, ThresholdSettings

WARM_UP = 8  # scores before a threshold that depends on them starts to change


class Threshold(ABC):
    """A rule that accepts tokens on the device.

    Attributes:
        past: scores of the image's positions so far.
        margin: distance of the last score from the threshold.
    """

    def __init__(self) -> None:
        self.past: list[float] = []
        self.margin = math.inf

    def accepts(self, score: float) -> bool:
        """Return whether the device's token is accepted (score < tau_t), and remember the score. NaN is never accepted."""
        value, tau = self.compared(score)
        self.remember(score)
        self.margin = abs(value - tau) if math.isfinite(value) and math.isfinite(tau) else math.inf
        return value < tau

    @abstractmethod
    def compared(self, score: float) -> tuple[float, float]:
        """Return the value to compare and its threshold."""

    def remember(self, score: float) -> None:
        """Add the score to the past ones."""
        self.past.append(score)

    def keep(self, count: int) -> None:
        """Forget all scores after the first `count`, whose positions will be decided again."""
        if count < len(self.past):
            kept, self.past = self.past[:count], []
            for score in kept:
                self.remember(score)


class Const(Threshold):
    """score < tau."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def compared(self, score: float) -> tuple[float, float]:
        return score, self.tau


class Ema(Threshold):
    """tau_t = tau (1 - beta + beta m_t / m_0): the threshold follows the image's level of uncertainty.

    m_0 is the mean of the first 8 scores and m_t an exponential mean that starts there; until then tau.
    """

    def __init__(self, tau: float, beta: float, decay: float) -> None:
        super().__init__()
        self.tau, self.beta, self.decay = tau, beta, decay
        self.mean = math.nan

    def value(self) -> float:
        """Return tau_t for the next score."""
        if len(self.past) < WARM_UP:
            return self.tau
        start = sum(self.past[:WARM_UP]) / WARM_UP
        return self.tau * (1 - self.beta + self.beta * self.mean / start) if start > 0 else self.tau

    def compared(self, score: float) -> tuple[float, float]:
        return score, self.value()

    def remember(self, score: float) -> None:
        super().remember(score)
        if len(self.past) <= WARM_UP:
            self.mean = sum(self.past) / len(self.past)
        else:
            self.mean = self.decay * self.mean + (1 - self.decay) * score


class Budget(Threshold):
    """tau_t is the (1 - b) quantile of the scores so far, so that a share b of tokens is uploaded; tau for the first 8."""

    def __init__(self, tau: float, budget: float) -> None:
        super().__init__()
        self.tau, self.budget = tau, budget

    def value(self) -> float:
        """Return tau_t for the next score; a share of 0 uploads nothing, a share of 1 everything."""
        return self.of_share(self.budget)

    def of_share(self, share: float) -> float:
        """Return the threshold for which the given share of the scores so far is at or above it."""
        if share in (0.0, 1.0):
            return math.inf if share == 0.0 else -math.inf
        return float(np.quantile(self.past, 1 - share)) if len(self.past) >= WARM_UP else self.tau

    def compared(self, score: float) -> tuple[float, float]:
        return score, self.value()


class Even(Budget):
    """Every image makes the same number of calls, round(b N) for its N scored positions.

    tau_t is the (1 - b_t) quantile of the scores so far, with b_t the calls left divided by the positions left; tau for the first 8
    while calls are left. A token that is not accepted uses a call, which is not returned if the position is decided again.
    """

    def __init__(self, tau: float, budget: float, positions: int) -> None:
        super().__init__(tau, budget)
        self.positions = positions
        self.calls_left = round(budget * positions)

    def value(self) -> float:
        left = self.positions - len(self.past)
        return self.of_share(min(self.calls_left / left, 1.0) if left > 0 and self.calls_left > 0 else 0.0)

    def accepts(self, score: float) -> bool:
        accepted = super().accepts(score)
        self.calls_left -= not accepted
        return accepted


class Running(Threshold):
    """score / (largest score so far, this one included) < tau; 0 as long as all scores are 0."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def compared(self, score: float) -> tuple[float, float]:
        largest = max([0.0, *self.past, score])
        return (score / largest if largest > 0 else score), self.tau


def make_threshold(settings: GatedSettings, positions: int) -> Threshold:
    """Return a new threshold with a gated method's settings, for one session that scores `positions` positions."""
    if isinstance(settings, RandomSettings):
        return Const(1 - settings.upload_rate)  # the share upload_rate of uniform scores is at or above it
    assert isinstance(settings, ThresholdSettings)
    tau = settings.threshold
    match settings.threshold_mode:
        case "const":
            return Const(tau)
        case "ema":
            return Ema(tau, settings.value_of("beta"), settings.value_of("decay"))
        case "budget":
            return Budget(tau, settings.value_of("budget"))
        case "even":
            return Even(tau, settings.value_of("budget"), positions)
        case "running":
            return Running(tau)


def compared_with_one(rule: Threshold, scores: Iterable[float]) -> np.ndarray:
    """Return, for a rule with tau 1, the value per score that is accepted if it is below tau, for any tau: float64 [n].

    Rules whose threshold is a quantile have no such value.
    """
    found = []
    for score in scores:
        value, tau = rule.compared(score)
        rule.remember(score)
        found.append(value / tau if tau > 0 else math.inf)
    return np.array(found)
