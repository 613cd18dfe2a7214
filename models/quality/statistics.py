"""Distances between sets of images, computed from their features, and their intervals. Numpy only.

All intervals are over the generated images; the real images are fixed. All values depend on the number of images: compare methods at equal
numbers only.
Letters: N images, F features.
"""

import math
from collections.abc import Callable

import numpy as np

from simulator.results.statistics import CONFIDENCE, Interval

SUBSAMPLES = 200
NEIGHBOUR = 3  # k of improved precision and recall
CHUNK = 1024  # rows of a distance matrix computed at once


class Gaussian:
    """Mean [F] of features [N, F], and a root R [F, F] of their covariance R R^T with divisor N - 1.

    If N <= F the covariance does not have full rank; the distance is defined but not informative.

    Raises:
        ValueError: the features are not [N, F] with N >= 2.
    """

    def __init__(self, features: np.ndarray) -> None:
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"features of at least two images are needed as [N, F], got {list(x.shape)}")
        self.mean = x.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
        self.root = vectors * np.sqrt(values.clip(min=0.0))  # negative eigenvalues are rounding errors


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of the features.

    tr (C1 C2)^(1/2) is computed as the sum of the singular values of R1^T R2 with C = R R^T. This avoids the square root of a non-symmetric
    matrix, whose small eigenvalues may become negative or complex by rounding.
    Source: Dowson and Landau 1982; as a score of generated images, Heusel et al. 2017 (FID).
    """
    cross = np.linalg.svd(one.root.T @ other.root, compute_uv=False).sum()
    spread = np.square(one.root).sum() + np.square(other.root).sum() - 2 * cross
    return float(np.square(one.mean - other.mean).sum() + max(spread, 0.0))


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the squared distances between rows of [N, F] and [M, F], float64 [N, M], clipped at 0."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    middle = b.mean(0)  # centring reduces cancellation
    a, b = a - middle, b - middle
    parts = [
        np.square(rows).sum(1)[:, None] + np.square(b).sum(1) - 2 * (rows @ b.T)
        for rows in np.split(a, range(CHUNK, len(a), CHUNK))
    ]
    return np.concatenate(parts).clip(min=0.0)


def squared_radii(within: np.ndarray, k: int = NEIGHBOUR) -> np.ndarray:
    """Return each image's squared distance to its k-th nearest other image, [N], from squared distances [N, N] with N > k."""
    apart = np.array(within)
    np.fill_diagonal(apart, np.inf)
    return np.partition(apart, k - 1, axis=1)[:, k - 1]


def precision_recall_f1(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOUR) -> tuple[float, float, float]:
    """Return improved precision, improved recall and their harmonic mean F1, from features [N, F] and [M, F].

    Precision is the share of generated images that are closer to some real image than that image's k-th nearest real
    image. Recall is the same with the sets exchanged. F1 is 0 if both are 0. Source: Kynkäänniemi et al. 2019, eq. 1
    and 2.

    Raises:
        ValueError: a set has k images or fewer.
    """
    scorer = _ManifoldF1(real, generated, k)
    precision, recall = scorer.shares(np.arange(len(generated)))
    return precision, recall, _f1(precision, recall)


class _ManifoldF1:
    """Distances between a real and a generated set, for precision and recall of any subset of the generated set."""

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
    """Return (value, low, high): a statistic of images 0 .. count-1 with its 95 % interval, by subsampling without replacement.

    The statistic is computed for all n images and for `draws` subsets of m images. Only the subsets' deviations from
    their own mean are used, not their level: with m < n images a Fréchet distance is larger. It is also larger for a
    bootstrap sample, which contains some images twice, so a bootstrap interval may not contain the value.

    Two factors scale the deviations. Subsets share images, which makes deviations smaller than those of independent
    images by sqrt(1 - m / n). A subset has fewer than n images, which makes them larger by sqrt(n / m). Dividing by
    both gives deviations at n images: the factor is sqrt(m / (n - m)), which is 1 for halves. The interval is the value
    minus the quantiles of these deviations. Source: Politis and Romano 1994; Shao and Wu 1989 (the finite population
    factor, deleting half).

    Args:
        statistic: function of the indices of the images to use, int [m].
        count: number of images, n.
        rng: draws the subsets.
        size: size of a subset, m; None: half of the images.
        draws: number of subsets.

    Raises:
        ValueError: m is not between 1 and n - 1.
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
    """Return (value, low, high) of the Fréchet distance of features [N, F] to the reference; low is at least 0."""
    value, low, high = subsampled_interval(
        lambda chosen: frechet_distance(reference, Gaussian(features[chosen])), len(features), rng
    )
    return value, max(low, 0.0), high


def f1_interval(real: np.ndarray, features: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return (value, low, high) of F1 of features [M, F] against those of real images [N, F]; the interval is clipped to 0 .. 1."""
    scorer = _ManifoldF1(real, features, NEIGHBOUR)
    value, low, high = subsampled_interval(scorer.f1, len(features), rng)
    return value, max(low, 0.0), min(high, 1.0)
