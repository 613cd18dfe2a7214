"""When a score is low enough to accept a token on the device: CIAR's dynamic threshold, four readings (assumption A3).

Source: CIAR section 3.2 gives the best value, 0.30, and calls the threshold dynamic; how it moves is not published. Each
object belongs to one session, is asked once per scored token, in order, and decides from earlier scores and this one.
"""

import math
from typing import Protocol

import numpy as np

from simulator.protocol.methods import GatedSettings, RandomSettings, ThresholdSettings

WARM_UP = 8  # scores before a threshold that follows them begins to move


class Threshold(Protocol):
    def accepts(self, score: float) -> bool:
        """Whether the device's token stands; then the score is taken into account. A score of NaN never stands."""
        ...


class Const:
    """score < tau."""

    def __init__(self, tau: float) -> None:
        self.tau = tau

    def accepts(self, score: float) -> bool:
        return score < self.tau


class Ema:
    """tau_t = tau (1 - beta + beta m_t / m_0): the threshold follows the image's level of doubt.

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

    def accepts(self, score: float) -> bool:
        accepted = score < self.value()
        if len(self.first) < WARM_UP:
            self.first.append(score)
            self.mean = sum(self.first) / len(self.first)
        else:
            self.mean = self.decay * self.mean + (1 - self.decay) * score
        return accepted


class Budget:
    """tau_t is the (1 - b) quantile of the scores so far, so that a share b of the tokens goes up; tau for the first 8."""

    def __init__(self, tau: float, budget: float) -> None:
        self.tau, self.budget = tau, budget
        self.past: list[float] = []

    def value(self) -> float:
        """tau_t, for the next score; a share of nothing and of everything are taken at their word."""
        if self.budget in (0.0, 1.0):
            return math.inf if self.budget == 0.0 else -math.inf
        return float(np.quantile(self.past, 1 - self.budget)) if len(self.past) >= WARM_UP else self.tau

    def accepts(self, score: float) -> bool:
        accepted = score < self.value()
        self.past.append(score)
        return accepted


class Running:
    """score / (largest score so far, this one included) < tau; an image without any doubt so far scores 0."""

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.largest = 0.0

    def accepts(self, score: float) -> bool:
        self.largest = max(self.largest, score)
        return (score / self.largest if self.largest > 0 else score) < self.tau


def make_threshold(settings: GatedSettings) -> Threshold:
    """The threshold of a gated method's settings, fresh for one session."""
    if isinstance(settings, RandomSettings):
        return Const(1 - settings.upload_rate)  # of uniform scores, this share is at or above it
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
