"""CIAR's Inter-Head: an interval of logits per token, the interval of its probability, and the uncertainty score.

Source: CIAR section 3.2 (Inter-Head, InterFuse, score U = Omega * Sigma). InterFuse is the interval softmax of CreINN
(assumption A1). The score's scale is assumption A2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import at_least_float32


class RadiusHead(nn.Module):
    """Radius half of the Inter-Head: r = softplus(W_r h) >= 0, [..., D] -> [..., V], float32 or wider.

    The centre half, c = W_c h, is the model's own output matrix.
    """

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.softplus(at_least_float32(F.linear(hidden, self.weight)))


def log_odds(centre: Tensor) -> Tensor:
    """Return the log-odds of every softmax entry, log p_i - log(1 - p_i) = c_i - logsumexp_{j != i} c_j. [..., V] -> [..., V].

    Only the top entry can have p_i close to 1, where computing 1 - p_i cancels. Its rest is summed directly, without the top entry.
    """
    top, at = centre.max(dim=-1, keepdim=True)  # [..., 1]
    shifted = centre - top  # [..., V], 0 at the top
    # Log of the mass of all other entries, relative to the top's.
    rest = shifted.scatter(-1, at, -torch.inf).logsumexp(-1, keepdim=True)
    total = F.softplus(rest)  # log(1 + e^rest): log of the total mass, relative to the top's
    log_p = shifted - total  # [..., V]
    # log(1 - p_i). All entries but the top have p_i <= 1/2, where log1p(-p) is accurate.
    log_not_p = torch.log1p(-log_p.exp().clamp(max=0.5)).scatter(-1, at, rest - total)
    return log_p - log_not_p


def inter_fuse(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability interval of every token from its logit interval: CreINN's interval softmax (assumption A1).

        lower_i = e^(c_i - r_i) / (e^(c_i - r_i) + S_-i),  upper_i likewise with + r_i,  S_-i = sum over j != i of e^c_j

    computed as sigmoid(logit(p_i) -+ r_i) with p = softmax(c), so that lower <= p <= upper and sum lower <= 1 <= sum
    upper.

    CreINN then tightens both bounds to reachable ones; here that is a separate step, `reachable`.

    Args:
        centre: [..., V], c, the centre logits.
        radius: [..., V], r >= 0.

    Returns:
        (lower, upper), each [..., V], in float32 or wider. Source: CIAR section 3.2, InterFuse.
    """
    odds, r = log_odds(at_least_float32(centre)), at_least_float32(radius)
    return torch.sigmoid(odds - r), torch.sigmoid(odds + r)


def reachable(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tightest bounds that a distribution within [lower, upper] can reach, each [..., V].

    Both are computed from the given bounds:

        lower'_i = max(lower_i, 1 - sum over j != i of upper_j),  upper'_i = min(upper_i, 1 - sum over j != i of lower_j)

    Source: CreINN, the last step of its interval softmax (assumption A1, off by default).
    """
    return (
        torch.maximum(lower, 1 - (upper.sum(-1, keepdim=True) - upper)),
        torch.minimum(upper, 1 - (lower.sum(-1, keepdim=True) - lower)),
    )


def sampled_bounds(centre: Tensor, radius: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the element-wise minimum and maximum of k distributions softmax(c + noise_j r) from the box of the logit intervals.

    Args:
        centre: [V].
        radius: [V].
        noise: [k, V] in [-1, 1].

    Returns:
        (lower, upper), each [V]; neither sums to one in general.

    Source: CIAR's baseline that enumerates k feasible solutions; the paper does not say how it draws them.
    """
    c, r = at_least_float32(centre), at_least_float32(radius)
    rows = (c + noise.to(c) * r).softmax(-1)  # [k, V]
    return rows.amin(0), rows.amax(0)


@dataclass(frozen=True)
class Scores:
    """Uncertainty scores of predictions, each [...], from delta = upper - lower over the V tokens.

    Attributes:
        omega: Omega, the sum of delta.
        sigma: Sigma, the population standard deviation of delta.
        u: U = Omega * Sigma, CIAR's score as published.
        u_tilde: U~ = sqrt(V) * U, the score that thresholds refer to (assumption A2).
        lower_top: 1 minus the lower bound of the most likely token.
    """

    omega: Tensor
    sigma: Tensor
    u: Tensor
    u_tilde: Tensor
    lower_top: Tensor


def uncertainty(lower: Tensor, upper: Tensor, top: Tensor | None = None) -> Scores:
    """Return the uncertainty scores of probability intervals. Source: CIAR section 3.2, U = Omega * Sigma.

    Args:
        lower: [..., V].
        upper: [..., V].
        top: int [...], the token of `lower_top`; None: the one with the largest sum of lower and upper bound.
    """
    delta = upper - lower
    omega = delta.sum(-1)
    sigma = delta.std(-1, correction=0)
    u = omega * sigma
    at = ((lower + upper).argmax(-1) if top is None else top).unsqueeze(-1)  # [..., 1]
    lower_top = 1 - lower.gather(-1, at).squeeze(-1)
    return Scores(omega, sigma, u, delta.shape[-1] ** 0.5 * u, lower_top)
