"""Ranking of tokens by a score for an event: AUROC with an interval over prompts, risk and coverage, calibration. Numpy only.

Tokens of one image are dependent, so intervals come from resampling whole prompts (a cluster bootstrap).
Letters: n tokens, G prompts. A higher score predicts the event; ties count half.
"""

from dataclasses import dataclass

import numpy as np

BINS = 10  # bins of a calibration, by quantiles of the score


@dataclass(frozen=True)
class PairCounts:
    """Counts from which the AUROC of a score follows for any sample of prompts.

    Attributes:
        wins: float64 [G, G]; entry (g, h) is the number of pairs of an event of prompt g and a non-event of prompt h in which the
            event's score is higher, ties counting half.
        events: float64 [G], tokens of each prompt with the event.
        others: float64 [G], tokens of each prompt without it.
    """

    wins: np.ndarray
    events: np.ndarray
    others: np.ndarray

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Return the AUROC with prompt g counted weights[..., g] times, [..., G] -> [...]; NaN without events or without non-events."""
        won = np.einsum("...g,gh,...h->...", weights, self.wins, weights, optimize=True)
        pairs = (weights @ self.events) * (weights @ self.others)
        return np.asarray(np.divide(won, pairs, out=np.full(np.shape(won), np.nan), where=pairs > 0))


def count_pairs(score: np.ndarray, event: np.ndarray, prompt: np.ndarray, prompts: int) -> PairCounts:
    """Return the counts for `score` float [n] and `event` bool [n] of tokens with prompt `prompt` int [n] in 0 .. prompts-1."""
    wins = np.zeros((prompts, prompts))
    owner, scores = prompt[event], score[event]
    for g in range(prompts):
        others = np.sort(score[~event & (prompt == g)])
        below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
        wins[:, g] = 0.5 * np.bincount(owner, below, prompts)
    return PairCounts(
        wins,
        np.bincount(owner, minlength=prompts).astype(float),
        np.bincount(prompt[~event], minlength=prompts).astype(float),
    )


def auroc(score: np.ndarray, event: np.ndarray) -> float:
    """Return the AUROC of `score` float [n] for `event` bool [n]; NaN without events or without non-events.

    It is the probability that the score of a random event is above that of a random non-event, ties counting half.
    """
    return float(count_pairs(score, event, np.zeros(len(score), np.int64), 1).auroc(np.ones(1)))


def bootstrap_weights(rng: np.random.Generator, prompts: int, draws: int) -> np.ndarray:
    """Return how often each prompt occurs in a sample of `prompts` prompts with replacement, float64 [draws, prompts]."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, (2.5, 97.5))
    return float(low), float(high)


def risk_coverage(score: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Return the share of events among the k tokens with the lowest scores, k = 1 .. n, float64 [n].

    Tied tokens count with the mean over all their orders.
    """
    order = np.argsort(score, kind="stable")
    _, group, size = np.unique(score[order], return_inverse=True, return_counts=True)
    mean = np.bincount(group, event[order]) / size
    return np.asarray(np.cumsum(mean[group]) / np.arange(1, len(score) + 1))


def area_under_risk(score: np.ndarray, event: np.ndarray) -> float:
    """Return the mean risk over all coverages k / n.

    With event rate p and many tokens it is p + (1 - p) ln(1 - p) for a perfect score and p for an uninformative one.

    Source: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks" (risk-coverage curve).
    """
    return float(risk_coverage(score, event).mean())


@dataclass(frozen=True)
class Bin:
    """A bin of score quantiles: mean score, share of events with its 95 % interval over prompts, number of tokens."""

    score: float
    share: float
    low: float
    high: float
    tokens: int


def calibration(score: np.ndarray, event: np.ndarray, prompt: np.ndarray, weights: np.ndarray) -> list[Bin]:
    """Return the share of events by quantile of the score, lowest first. Equal scores share a bin, so there may be fewer than `BINS`.

    Args:
        score: float [n].
        event: bool [n].
        prompt: int [n], prompt of each token.
        weights: [draws, G], see `bootstrap_weights`.
    """
    edges = np.unique(np.quantile(score, np.linspace(0, 1, BINS + 1)[1:-1]))
    at = np.searchsorted(edges, score, "left")
    found = []
    for index in np.unique(at):
        inside = at == index
        count = np.bincount(prompt[inside], minlength=weights.shape[1])
        hits = np.bincount(prompt[inside], event[inside], weights.shape[1])
        drawn = weights @ count
        shares = np.divide(weights @ hits, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
        found.append(
            Bin(float(score[inside].mean()), float(event[inside].mean()), *interval(shares), int(inside.sum()))
        )
    return found
