"""Distillation losses of the device: CIAR's Inter-DRO and variants of it.

Source: CIAR section 3.3 (Inter-DRO); weights are assumption A9, reductions A10. Letters: N tokens, V codebook size. No
gradient flows through the cloud's distribution p_cloud.

`inter-dro` is the published loss read literally. It pulls both bounds to the same p_cloud through one shared radius:
nothing rewards width, and the radius vanishes where it is needed. `quantile` keeps the paper's elements (an interval,
its lower bound as the worst case, DRO weights on it) but trains the bounds as quantiles: p_cloud lies below the lower
bound in a given share of cases, and above the upper bound in the same share. `inter-dro-asymmetric` and
`inter-dro-envelope` are two more variants that reward width. `quantile-no-dro` isolates the effect of the DRO term.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Weights:
    """Weights of the terms (assumption A9) and the quantile of the lower bound; the upper bound's is 1 - quantile."""

    value: float = 1.0  # lambda_v
    prediction: float = 0.1  # lambda_p
    align: float = 1.0  # lambda_beta
    sharpness: float = 1.0  # alpha of the DRO weights
    quantile: float = 0.2
    prediction_upper: float = 1.0  # lambda_p of the upper bound in `inter-dro-asymmetric`


@dataclass(frozen=True)
class Terms:
    """Terms of a loss."""

    total: Tensor  # scalar to minimise
    anchor_mid: Tensor  # [N]
    anchor_upper: Tensor  # [N]
    anchor_lower: Tensor  # [N]
    align: Tensor  # [N]
    worst_case: Tensor  # DRO term, scalar


def cross_entropy(p_cloud: Tensor, p: Tensor) -> Tensor:
    """Return CE(p_cloud, p) = - sum p_cloud log p over the codebook, [N, V] -> [N]; p need not sum to 1 (assumption A10).

    Source: CIAR section 3.3, in the anchor loss and in the DRO term.
    """
    return -(p_cloud * p.clamp_min(SMALLEST_PROBABILITY).log()).sum(-1)


def anchor(p_cloud: Tensor, p: Tensor, weights: Weights) -> Tensor:
    """Return lambda_v |p - p_cloud|_1 + lambda_p CE(p_cloud, p), [N]. Source: CIAR section 3.3, anchor loss."""
    return weights.value * (p - p_cloud).abs().sum(-1) + weights.prediction * cross_entropy(p_cloud, p)


def align(p_cloud: Tensor, p_mid: Tensor) -> Tensor:
    """Return KL(p_cloud || p_mid), [N], without lambda_beta. Source: CIAR section 3.3, alignment loss."""
    return (
        p_cloud * (p_cloud.clamp_min(SMALLEST_PROBABILITY).log() - p_mid.clamp_min(SMALLEST_PROBABILITY).log())
    ).sum(-1)


def dro_weights(losses: Tensor, sharpness: float) -> Tensor:
    """Return weights of the tokens of a batch, w_n ~ exp(alpha CE_n) summing to 1, [N] -> [N].

    No gradient flows through them (assumption A10). Source: CIAR section 3.3, DRO term.
    """
    return (sharpness * losses.detach()).softmax(0)


def inter_dro(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """Return anchor(mid) + align + anchor(upper) + anchor(lower) + DRO(lower) of distributions and bounds [N, V].

    Source: CIAR section 3.3.
    """
    mid, high, low = (anchor(p_cloud, p, weights) for p in (p_mid, upper, lower))  # each [N]
    kl = weights.align * align(p_cloud, p_mid)  # [N]
    worst = cross_entropy(p_cloud, lower)  # [N]
    dro = (dro_weights(worst, weights.sharpness) * worst).sum()
    return Terms((mid + kl + high + low).mean() + dro, mid, high, low, kl, dro)


def pinball(p_cloud: Tensor, bound: Tensor, quantile: float) -> Tensor:
    """Return the quantile (pinball) loss of a bound, summed over the codebook, [N, V] -> [N].

    It is minimal where P(p_cloud < bound) = quantile. Source: Koenker and Bassett, "Regression Quantiles", 1978.
    """
    gap = p_cloud - bound
    return torch.maximum(quantile * gap, (quantile - 1) * gap).sum(-1)


def quantile(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """Return anchor(mid) + align + pinball(upper) + pinball(lower) + DRO of distributions and bounds [N, V].

    The DRO term is the weighted sum of the lower bound's pinball losses; the tokens with the largest losses weigh most.
    """
    mid = anchor(p_cloud, p_mid, weights)  # [N]
    kl = weights.align * align(p_cloud, p_mid)  # [N]
    high = pinball(p_cloud, upper, 1 - weights.quantile)  # [N]
    low = pinball(p_cloud, lower, weights.quantile)  # [N]
    dro = (dro_weights(low, weights.sharpness) * low).sum()
    return Terms((mid + kl + high + low).mean() + dro, mid, high, low, kl, dro)


def quantile_no_dro(
    p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()
) -> Terms:
    """Return `quantile` without its DRO term."""
    terms = quantile(p_cloud, p_mid, lower, upper, weights)
    return replace(terms, total=terms.total - terms.worst_case, worst_case=torch.zeros_like(terms.worst_case))


def asymmetric(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """Return `inter_dro` with a larger lambda_p for the upper bound: CE rewards high bounds, so the upper bound moves up."""
    terms = inter_dro(p_cloud, p_mid, lower, upper, weights)
    high = anchor(p_cloud, upper, replace(weights, prediction=weights.prediction_upper))  # [N]
    return replace(terms, total=terms.total + (high - terms.anchor_upper).mean(), anchor_upper=high)


def envelope(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """Return a loss whose interval contains both models: L1 to max(p_mid, p_cloud) (upper) and min(p_mid, p_cloud) (lower).

    The interval's width is then the device's estimate of |p_cloud - p_mid|. The DRO term is the weighted sum of the lower bound's losses.
    """
    mid = anchor(p_cloud, p_mid, weights)  # [N]
    kl = weights.align * align(p_cloud, p_mid)  # [N]
    high = weights.value * (upper - torch.maximum(p_mid, p_cloud).detach()).abs().sum(-1)  # [N]
    low = weights.value * (lower - torch.minimum(p_mid, p_cloud).detach()).abs().sum(-1)  # [N]
    dro = (dro_weights(low, weights.sharpness) * low).sum()
    return Terms((mid + kl + high + low).mean() + dro, mid, high, low, kl, dro)


BOUNDS = {
    "quantile": quantile,
    "quantile-no-dro": quantile_no_dro,
    "inter-dro": inter_dro,
    "inter-dro-asymmetric": asymmetric,
    "inter-dro-envelope": envelope,
}
