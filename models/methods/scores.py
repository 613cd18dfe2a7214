"""Uncertainty scores of the gated methods, one small class each: high if the cloud should decide the token.

All scores are computed from the device's guided distribution at temperature 1, before any filter.
"""

import math
from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.interval import uncertainty
from simulator.core.rng import stream
from simulator.protocol.methods import (
    CiarSettings,
    DiscreteSettings,
    EntropyLensSettings,
    GatedSettings,
    RandomSettings,
    SoftmaxCorrSettings,
)
from simulator.protocol.ops import INTERVAL_SAMPLES, Compute, Op
from simulator.protocol.recording import SCORES

from .session import DeviceState, Step

WINDOW = 16  # tokens of SoftmaxCorr's sliding window


class Score(Protocol):
    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        """Return the score of the device's step for an image position.

        Positions come in order; those after a token that the cloud revised come again.
        """
        ...


class PassScore:
    """A score that the backend computes with every device pass (`all_scores`), by its name in `recording.SCORES`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        yield from ()
        return step.score(self.name)


class RandomScore:
    """A uniform draw per position: with a constant threshold 1 - b, a share b of the tokens goes to the cloud.

    Source: CIAR's baseline Random. It also serves SoftmaxCorr on single tokens, where all tokens have the same score (see
    `softmax_corr`), as the random tie-break.
    """

    def __init__(self, state: DeviceState, purpose: str) -> None:
        self.state, self.purpose = state, purpose

    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        yield from ()
        return self.state.draw(position, "score", self.purpose)


class WindowedCorr:
    """1 - SoftmaxCorr over the device's last 16 distributions, including the current one."""

    def __init__(self) -> None:
        self.window: list[Tensor] = []

    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        yield from ()
        self.window = [*self.window, step.logits.softmax(-1)][-WINDOW:]
        return 1 - softmax_corr(torch.stack(self.window))


class SampledIntervals:
    """U~ of the bounds of k distributions drawn from the box of the logit intervals (`sampled_bounds`), not of InterFuse's bounds.

    Each `interval_samples` op draws `INTERVAL_SAMPLES` distributions and is priced.
    Source: CIAR's baseline that enumerates k feasible solutions (k = 100, 300).
    """

    def __init__(self, state: DeviceState, samples: int) -> None:
        self.state, self.samples = state, samples

    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        lower, upper = torch.ones_like(step.logits), torch.zeros_like(step.logits)  # [V]
        seed, caption = self.state.key
        for chunk in range(self.samples // INTERVAL_SAMPLES):
            generator = stream(seed, "interval-samples", caption, position, chunk)
            noise = generator.uniform(-1.0, 1.0, (INTERVAL_SAMPLES, len(step.logits))).astype(np.float32)
            low, high = yield Compute("interval_samples", (step, noise))
            lower, upper = torch.minimum(lower, low), torch.maximum(upper, high)
        return float(uncertainty(lower, upper).u_tilde)


class Margin:
    """1 minus the margin between the two most likely tokens. No method uses it; the evaluation compares it with the others."""

    def of(self, step: Step, position: int) -> Generator[Op, Any, float]:
        yield from ()
        return float(margin(step.logits))


def margin(logits: Tensor) -> Tensor:
    """Return 1 - (p_1 - p_2) for the two largest probabilities of softmax(logits), [..., V] -> [...]."""
    top = logits.softmax(-1).topk(2, dim=-1).values
    return 1 - (top[..., 0] - top[..., 1])


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy in nats of softmax(logits), [..., V] -> [...].

    Source: Entropy-Lens, whose profile over layers is a single value for a one-layer model.
    """
    return _nats(logits.softmax(-1))


def _nats(p: Tensor) -> Tensor:
    nats: Tensor = torch.special.entr(p).sum(-1)
    return nats


def all_scores(logits: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return all scores of a pass, float32 [..., len(SCORES)], from guided logits and probability bounds, each [..., V].

    u, u_raw, omega, sigma and lower_top are CIAR's (`interval.uncertainty`; u is U~). entropy is H / log V, in [0, 1]. mid_top is
    1 - max p. gate is NaN; the method sets it.
    """
    s, p = uncertainty(lower, upper), logits.softmax(-1)
    columns = {
        "u": s.u_tilde,
        "u_raw": s.u,
        "omega": s.omega,
        "sigma": s.sigma,
        "lower_top": s.lower_top,
        "entropy": _nats(p) / math.log(logits.shape[-1]),
        "mid_top": 1 - p.amax(-1),
        "gate": torch.full_like(s.u, torch.nan),
    }
    return torch.stack([columns[name] for name in SCORES], dim=-1).float()


def softmax_corr(probs: Tensor) -> float:
    """Return the cosine between the class correlation C = P^T P / N and the uniform diagonal matrix, for N distributions P [N, V].

    With G = P P^T it is tr G / (||G|| sqrt V). For a single distribution it is always 1 / sqrt V, so it cannot rank single tokens.
    Source: Tu et al., SoftmaxCorr, a score that ranks classifiers without labels.
    """
    gram = probs @ probs.T  # [N, N], the same trace and Frobenius norm as P^T P
    return float(gram.trace() / (gram.norm() * math.sqrt(probs.shape[-1])))


def make_score(settings: GatedSettings, state: DeviceState) -> Score:
    """Return a new score for one session, as a gated method's settings choose it."""
    match settings:
        case CiarSettings():
            return PassScore(settings.score.replace("-", "_"))
        case EntropyLensSettings():
            return PassScore("entropy")
        case SoftmaxCorrSettings(reading="max-prob"):
            return PassScore("mid_top")
        case SoftmaxCorrSettings(reading="window"):
            return WindowedCorr()
        case SoftmaxCorrSettings():
            return RandomScore(state, "softmax-corr")
        case RandomSettings():
            return RandomScore(state, "random")
        case DiscreteSettings():
            return SampledIntervals(state, settings.k)
    raise AssertionError(f"no score for {type(settings).__name__}")
