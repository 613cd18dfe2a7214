"""Every term of the device's losses against values calculated by hand (natural logarithms, V = 2, two tokens)."""

from math import exp, log

import pytest
import torch

from models.train import losses
from models.train.losses import Weights

P_CLOUD = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
P_MID = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
LOWER = torch.tensor([[0.2, 0.6], [0.4, 0.3]], dtype=torch.float64)
UPPER = torch.tensor([[0.4, 0.8], [0.7, 0.6]], dtype=torch.float64)
WEIGHTS = Weights(value=2.0, prediction=0.5, prediction_upper=3.0, align=4.0, sharpness=2.0, quantile=0.2)


def near(found: torch.Tensor, wanted: list[float] | float) -> None:
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


CE_MID = [-0.5 * log(0.25) - 0.5 * log(0.75), -log(0.5)]
CE_UPPER = [-0.5 * log(0.4) - 0.5 * log(0.8), -log(0.7)]
CE_LOWER = [-0.5 * log(0.2) - 0.5 * log(0.6), -log(0.4)]
KL = [0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75), log(1 / 0.5)]
MID = [2.0 * 0.5 + 0.5 * CE_MID[0], 2.0 * 1.0 + 0.5 * CE_MID[1]]
HIGH = [2.0 * (0.1 + 0.3) + 0.5 * CE_UPPER[0], 2.0 * (0.3 + 0.6) + 0.5 * CE_UPPER[1]]
LOW = [2.0 * (0.3 + 0.1) + 0.5 * CE_LOWER[0], 2.0 * (0.6 + 0.3) + 0.5 * CE_LOWER[1]]
# Pinball: q * (p - b) if the cloud's p is above the bound b, else (1 - q) * (b - p); q = 0.8 for the upper bound, 0.2 for the lower.
PINBALL_HIGH = [0.8 * 0.1 + 0.2 * 0.3, 0.8 * 0.3 + 0.2 * 0.6]
PINBALL_LOW = [0.2 * 0.3 + 0.8 * 0.1, 0.2 * 0.6 + 0.8 * 0.3]


def weighed(values: list[float], sharpness: float = 2.0) -> float:
    """Return the worst case: the mean of the values with weights proportional to exp(sharpness * value)."""
    weights = [exp(sharpness * value) for value in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def mean(*columns: list[float]) -> float:
    return sum(sum(column) for column in columns) / 2


def test_anchor_of_each_bound_is_l1_and_cross_entropy() -> None:
    near(losses.cross_entropy(P_CLOUD, P_MID), CE_MID)
    for bound, wanted in ((P_MID, MID), (UPPER, HIGH), (LOWER, LOW)):
        near(losses.anchor(P_CLOUD, bound, WEIGHTS), wanted)


def test_alignment_is_kl_from_cloud_to_middle() -> None:
    near(losses.align(P_CLOUD, P_MID), KL)


def test_dro_weights_are_proportional_to_exp_alpha_loss() -> None:
    first, second = exp(2.0 * CE_LOWER[0]), exp(2.0 * CE_LOWER[1])
    found = losses.dro_weights(torch.tensor(CE_LOWER, dtype=torch.float64), 2.0)
    near(found, [first / (first + second), second / (first + second)])


def test_pinball() -> None:
    near(losses.pinball(P_CLOUD, UPPER, 0.8), PINBALL_HIGH)
    near(losses.pinball(P_CLOUD, LOWER, 0.2), PINBALL_LOW)


def test_inter_dro_is_the_sum_of_its_terms() -> None:
    terms = losses.inter_dro(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS)
    near(terms.anchor_mid, MID)
    near(terms.anchor_upper, HIGH)
    near(terms.anchor_lower, LOW)
    near(terms.align, [4.0 * value for value in KL])
    near(terms.worst_case, weighed(CE_LOWER))
    near(terms.total, mean(MID, [4.0 * value for value in KL], HIGH, LOW) + weighed(CE_LOWER))


def test_quantile_replaces_the_anchors_of_the_bounds_and_keeps_dro_on_the_lower() -> None:
    common = mean(MID, [4.0 * value for value in KL], PINBALL_HIGH, PINBALL_LOW)
    near(losses.quantile(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS).total, common + weighed(PINBALL_LOW))
    near(losses.quantile_no_dro(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS).total, common)


def test_asymmetric_weighs_the_upper_bound_s_cross_entropy_more() -> None:
    literal = losses.inter_dro(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS).total
    extra = sum((3.0 - 0.5) * value for value in CE_UPPER) / 2
    near(losses.asymmetric(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS).total, float(literal) + extra)


def test_envelope_anchors_the_bounds_to_both_models() -> None:
    high = [2.0 * (abs(0.4 - 0.5) + abs(0.8 - 0.75)), 2.0 * (abs(0.7 - 1.0) + abs(0.6 - 0.5))]
    low = [2.0 * (abs(0.2 - 0.25) + abs(0.6 - 0.5)), 2.0 * (abs(0.4 - 0.5) + abs(0.3 - 0.0))]
    wanted = mean(MID, [4.0 * value for value in KL], high, low) + weighed(low)
    near(losses.envelope(P_CLOUD, P_MID, LOWER, UPPER, WEIGHTS).total, wanted)


def test_no_gradient_runs_through_the_dro_weights() -> None:
    """d/dlower of the worst case is only the weights times d/dlower of each token's loss."""
    lower = LOWER.clone().requires_grad_(True)
    torch.autograd.backward(losses.inter_dro(P_CLOUD, P_MID, lower, UPPER, WEIGHTS).worst_case)
    weights = losses.dro_weights(torch.tensor(CE_LOWER, dtype=torch.float64), 2.0)
    assert lower.grad is not None
    near(lower.grad[1], [float(-weights[1] * 1.0 / 0.4), 0.0])
