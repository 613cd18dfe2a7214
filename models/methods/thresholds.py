"""Thresholds on the uncertainty score: CIAR's dynamic threshold in four readings (assumption A3).

Source: CIAR section 3.2 gives the best value, 0.30, and calls the threshold dynamic; how it changes is not published.
Each object belongs to one session, is called once per scored token, in order, and depends on the scores so far.
"""

import math
from abc import ABC, abstractmethod

import numpy as np

from simulator.protocol.methods import GatedSettings, RandomSettings, ThresholdSettings

WARM_UP = 8  # scores before a threshold that depends on them starts to change


class Threshold(ABC):
    """A rule that accepts tokens on the device. `margin`: how far the last score was from the threshold."""

    margin: float = math.inf

    def accepts(self, score: float) -> bool:
        """Whether the device's token is accepted: score < tau_t. The score is remembered; NaN is never accepted."""
        value, tau = self._compared(score)
        self.margin = abs(value - tau) if math.isfinite(value) and math.isfinite(tau) else math.inf
        return value < tau

    @abstractmethod
    def _compared(self, score: float) -> tuple[float, float]:
        """The value compared and the threshold for it; the score then counts as a past one."""


class Const(Threshold):
    """score < tau."""

    def __init__(self, tau: float) -> None:
        self.tau = tau

    def _compared(self, score: float) -> tuple[float, float]:
        return score, self.tau


class Ema(Threshold):
    """tau_t = tau (1 - beta + beta m_t / m_0): the threshold follows the image's level of uncertainty.

    m_0 is the mean of the first 8 scores and m_t an exponential mean that starts there; until then tau.
    """

    def __init__(self, tau: float, beta: float, decay: float) -> None:
        self.tau, self.beta, self.decay = tau, beta, decay
        self.first: list[float] = []
        self.mean = math.nan

    def value(self) -> float:
        """tau_t, for the next score."""
        if len(self.first) < WARM_UP:
            return self.tau
        start = sum(self.first) / WARM_UP
        return self.tau * (1 - self.beta + self.beta * self.mean / start) if start > 0 else self.tau

    def _compared(self, score: float) -> tuple[float, float]:
        tau = self.value()
        if len(self.first) < WARM_UP:
            self.first.append(score)
            self.mean = sum(self.first) / len(self.first)
        else:
            self.mean = self.decay * self.mean + (1 - self.decay) * score
        return score, tau


class Budget(Threshold):
    """tau_t is the (1 - b) quantile of the scores so far, so that a share b of tokens is uploaded; tau for the first 8."""

    def __init__(self, tau: float, budget: float) -> None:
        self.tau, self.budget = tau, budget
        self.past: list[float] = []

    def value(self) -> float:
        """tau_t, for the next score; shares of 0 and 1 upload nothing and everything."""
        if self.budget in (0.0, 1.0):
            return math.inf if self.budget == 0.0 else -math.inf
        return float(np.quantile(self.past, 1 - self.budget)) if len(self.past) >= WARM_UP else self.tau

    def _compared(self, score: float) -> tuple[float, float]:
        tau = self.value()
        self.past.append(score)
        return score, tau


class Running(Threshold):
    """score / (largest score so far, this one included) < tau; 0 as long as all scores are 0."""

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.largest = 0.0

    def _compared(self, score: float) -> tuple[float, float]:
        self.largest = max(self.largest, score)
        return (score / self.largest if self.largest > 0 else score), self.tau


def make_threshold(settings: GatedSettings) -> Threshold:
    """The threshold of a gated method's settings, fresh for one session."""
    if isinstance(settings, RandomSettings):
        return Const(1 - settings.upload_rate)  # this share of uniform scores is at or above it
    assert isinstance(settings, ThresholdSettings)
    tau = settings.threshold
    match settings.threshold_mode:
        case "const":
            return Const(tau)
        case "ema":
            return Ema(tau, settings.value_of("beta"), settings.value_of("decay"))
        case "budget":
            return Budget(tau, settings.value_of("budget"))
        case "running":
            return Running(tau)
