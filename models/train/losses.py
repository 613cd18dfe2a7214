"""Distillation losses of the device: CIAR's Inter-DRO, term by term, and a variant whose bounds are quantiles.

Source: CIAR section 3.3 (Inter-DRO); weights are assumption A9, reductions A10. Letters: N tokens, V codebook. The
cloud's distribution p_cloud is a constant everywhere.

Read literally, Inter-DRO pulls both bounds to the same p_cloud through one shared radius, so nothing rewards width and
the radius vanishes where it is needed. `quantile` keeps the words (an interval, its lower bound the worst case, DRO
weights on it) and asks of the bounds what an interval promises: that p_cloud lies below the lower one in a given share
of cases, and above the upper one in as many. `inter-dro-asymmetric` and `inter-dro-envelope` are two more readings in
which width is worth something; `quantile-no-dro` shows what the DRO term does.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Weights:
    """Weights of the terms (assumption A9) and the quantile of the lower bound (the upper one is 1 - quantile)."""

    value: float = 1.0  # lambda_v
    prediction: float = 0.1  # lambda_p
    align: float = 1.0  # lambda_beta
    sharpness: float = 1.0  # alpha of the DRO weights
    quantile: float = 0.2
    prediction_upper: float = 1.0  # lambda_p of the upper bound in `inter-dro-asymmetric`


@dataclass(frozen=True)
class Terms:
    """The parts of a loss: scalars, except per-token values [N] where named. `total` is what is minimised."""

    total: Tensor
    anchor_mid: Tensor  # [N]
    anchor_upper: Tensor  # [N]
    anchor_lower: Tensor  # [N]
    align: Tensor  # [N]
    worst_case: Tensor  # DRO, a scalar


def cross_entropy(p_cloud: Tensor, p: Tensor) -> Tensor:
    """CE(p_cloud, p) = - sum p_cloud log p over the codebook, [N, V] -> [N]; p need not sum to one (assumption A10)."""
    return -(p_cloud * p.clamp_min(SMALLEST_PROBABILITY).log()).sum(-1)


def anchor(p_cloud: Tensor, p: Tensor, weights: Weights) -> Tensor:
    """lambda_v |p - p_cloud|_1 + lambda_p CE(p_cloud, p), [N]."""
    return weights.value * (p - p_cloud).abs().sum(-1) + weights.prediction * cross_entropy(p_cloud, p)


def align(p_cloud: Tensor, p_mid: Tensor) -> Tensor:
    """KL(p_cloud || p_mid), [N], unweighted."""
    return (
        p_cloud * (p_cloud.clamp_min(SMALLEST_PROBABILITY).log() - p_mid.clamp_min(SMALLEST_PROBABILITY).log())
    ).sum(-1)


def dro_weights(losses: Tensor, sharpness: float) -> Tensor:
    """Weights of the tokens of a batch, softmax(alpha * loss), [N] -> [N]; no gradient runs through them (assumption
    A10)."""
    return (sharpness * losses.detach()).softmax(0)


def inter_dro(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """anchor(mid) + align + anchor(upper) + anchor(lower) + DRO(lower), all arguments [N, V]. Source: CIAR section
    3.3."""
    mid, high, low = (anchor(p_cloud, p, weights) for p in (p_mid, upper, lower))  # each [N]
    kl = weights.align * align(p_cloud, p_mid)  # [N]
    worst = cross_entropy(p_cloud, lower)  # [N]
    dro = (dro_weights(worst, weights.sharpness) * worst).sum()
    return Terms((mid + kl + high + low).mean() + dro, mid, high, low, kl, dro)


def pinball(p_cloud: Tensor, bound: Tensor, quantile: float) -> Tensor:
    """Quantile (pinball) loss of a bound, summed over the codebook, [N, V] -> [N]. Least where P(p_cloud < bound) =
    quantile."""
    gap = p_cloud - bound
    return torch.maximum(quantile * gap, (quantile - 1) * gap).sum(-1)


def quantile(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """anchor(mid) + align + pinball(upper) + pinball(lower) + DRO, the bounds as quantiles of p_cloud; all arguments
    [N, V].

    The DRO term weighs the lower bound's own pinball loss, so that its worst tokens count most.
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
    """`quantile` without its DRO term."""
    terms = quantile(p_cloud, p_mid, lower, upper, weights)
    return replace(terms, total=terms.total - terms.worst_case, worst_case=torch.zeros_like(terms.worst_case))


def asymmetric(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """`inter_dro` with a larger lambda_p for the upper bound: CE rewards every bound for being high, so this one stands off."""
    terms = inter_dro(p_cloud, p_mid, lower, upper, weights)
    high = anchor(p_cloud, upper, replace(weights, prediction=weights.prediction_upper))  # [N]
    return replace(terms, total=terms.total + (high - terms.anchor_upper).mean(), anchor_upper=high)


def envelope(p_cloud: Tensor, p_mid: Tensor, lower: Tensor, upper: Tensor, weights: Weights = Weights()) -> Terms:
    """The interval is to hold both models: upper anchored to max(p_mid, p_cloud), lower to min(p_mid, p_cloud), by L1.

    Its width is then the device's own guess of |p_cloud - p_mid|. The DRO term weighs the lower bound's loss.
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
