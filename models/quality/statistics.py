"""Distances between sets of images, from their features, and intervals for them. numpy only.

Every interval here is over the generated images; the real ones are taken as they are. Values that depend on the number of images (all
of these do) belong to that number: compare methods at equal numbers.
Letters: N images, F features.
"""

import math
from collections.abc import Callable

import numpy as np

from simulator.results.statistics import CONFIDENCE, Interval

SUBSAMPLES = 200
NEIGHBOUR = 3  # k of improved precision and recall
CHUNK = 1024  # rows of a distance matrix made at once


class Gaussian:
    """Mean [F] and a root R [F, F] of the covariance R R^T of features [N, F], by N - 1.

    Where F > N the covariance has no full rank; the distance is still defined, but says little.
    """

    def __init__(self, features: np.ndarray) -> None:
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"features of at least two images are needed as [N, F], got {list(x.shape)}")
        self.mean = x.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
        self.root = vectors * np.sqrt(values.clip(min=0.0))  # negative ones are rounding


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), squared units of the features.

    tr (C1 C2)^(1/2) is the sum of the singular values of R1^T R2, C = R R^T: no square root of a non-symmetric matrix, whose small
    eigenvalues may come out negative or complex, is ever taken.
    Source: Dowson and Landau 1982; as a score of generated images, Heusel et al. 2017 (FID).
    """
    cross = np.linalg.svd(one.root.T @ other.root, compute_uv=False).sum()
    spread = np.square(one.root).sum() + np.square(other.root).sum() - 2 * cross
    return float(np.square(one.mean - other.mean).sum() + max(spread, 0.0))


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [N, M]: between rows of [N, F] and [M, F]; not below 0."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    middle = b.mean(0)  # near the origin little is lost to cancellation
    a, b = a - middle, b - middle
    parts = [
        np.square(rows).sum(1)[:, None] + np.square(b).sum(1) - 2 * (rows @ b.T)
        for rows in np.split(a, range(CHUNK, len(a), CHUNK))
    ]
    return np.concatenate(parts).clip(min=0.0)


def squared_radii(within: np.ndarray, k: int = NEIGHBOUR) -> np.ndarray:
    """[N]: squared distance of each image to its k-th nearest other image, of squared distances [N, N]. Needs N > k."""
    apart = np.array(within)
    np.fill_diagonal(apart, np.inf)
    return np.partition(apart, k - 1, axis=1)[:, k - 1]


def precision_recall_f1(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOUR) -> tuple[float, float, float]:
    """Improved precision, recall and their harmonic mean, of features [N, F] and [M, F].

    Precision: share of generated images nearer to some real image than that one's k-th nearest real image is; recall: the same with the
    sets exchanged. F1 is 0 where both are. Source: Kynkäänniemi et al. 2019, eq. 1 and 2.
    """
    scorer = _ManifoldF1(real, generated, k)
    precision, recall = scorer.shares(np.arange(len(generated)))
    return precision, recall, _f1(precision, recall)


class _ManifoldF1:
    """Distances of one pair of sets, to be asked for subsets of the generated one."""

    def __init__(self, real: np.ndarray, generated: np.ndarray, k: int) -> None:
        if min(len(real), len(generated)) <= k:
            raise ValueError(f"more than {k} images are needed on either side, got {len(real)} and {len(generated)}")
        self.k = k
        self.within = squared_distances(generated, generated)
        self.across = squared_distances(generated, real)  # [M, N]
        near = self.across < squared_radii(squared_distances(real, real), k)
        self.precise = np.asarray(near.any(axis=1))  # [M]: of each generated image

    def shares(self, chosen: np.ndarray) -> tuple[float, float]:
        radii = squared_radii(self.within[np.ix_(chosen, chosen)], self.k)
        recalled = (self.across[chosen] < radii[:, None]).any(0)
        return float(self.precise[chosen].mean()), float(recalled.mean())

    def f1(self, chosen: np.ndarray) -> float:
        return _f1(*self.shares(chosen))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def subsampled_interval(
    statistic: Callable[[np.ndarray], float],
    count: int,
    rng: np.random.Generator,
    size: int | None = None,
    draws: int = SUBSAMPLES,
) -> Interval:
    """(value, low, high): a statistic of images 0 .. count-1 with its 95 % interval, by subsampling without replacement.

    The statistic is taken of all n images, and of `draws` subsets of m. Only the subsets' deviations from their own mean are used, never
    their level: at m < n images a Fréchet distance is higher, and a bootstrap, which counts some images twice, is higher too, so that
    its interval can lie wholly beside the value. A subset of m shares images with all the others, which makes deviations
    smaller than those of fresh images by sqrt(1 - m / n), and it has fewer images than n, which makes them larger by sqrt(n / m); dividing
    both out gives deviations at n: factor sqrt(m / (n - m)), which is 1 for halves. The interval is value - (their quantiles).
    Source: Politis and Romano 1994; Shao and Wu 1989 (the finite population factor, deleting half).

    Args:
        statistic: of int [m], the indices of the images it is to use.
        count: n.
        rng: chooses the subsets.
        size: m; None: half of them.
        draws: number of subsets.

    Raises:
        ValueError: m is not between 0 and n.
    """
    m = count // 2 if size is None else size
    if not 0 < m < count:
        raise ValueError(f"subsets must hold between 1 and {count - 1} images, got {m}")
    value = statistic(np.arange(count))
    found = np.array([statistic(rng.choice(count, m, replace=False)) for _ in range(draws)])
    deviations = (found - found.mean()) * math.sqrt(m / (count - m))
    tail = (1 - CONFIDENCE) / 2
    high, low = np.quantile(deviations, (tail, 1 - tail))
    return value, value - float(low), value - float(high)


def frechet_interval(reference: Gaussian, features: np.ndarray, rng: np.random.Generator) -> Interval:
    """(value, low, high) of the Fréchet distance of features [N, F] to the reference; low is at least 0."""
    value, low, high = subsampled_interval(
        lambda chosen: frechet_distance(reference, Gaussian(features[chosen])), len(features), rng
    )
    return value, max(low, 0.0), high


def f1_interval(real: np.ndarray, features: np.ndarray, rng: np.random.Generator) -> Interval:
    """(value, low, high) of F1 of features [N, F] against as many real ones; the interval is kept within 0 and 1."""
    scorer = _ManifoldF1(real, features, NEIGHBOUR)
    value, low, high = subsampled_interval(scorer.f1, len(features), rng)
    return value, max(low, 0.0), min(high, 1.0)
