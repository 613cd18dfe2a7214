"""Interval softmax, its guarantees under extreme logits, the score and the losses. Golden data is in tests/parity/."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.interval import RadiusHead, inter_fuse, log_odds, reachable, uncertainty
from models.train import losses


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 3, 64, 4096, 16384]),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    peak=st.sampled_from([0.0, 5.0, 17.0, 40.0, 300.0, 1e5]),
    peaks=st.integers(0, 2),
    radius=st.sampled_from([0.0, 1e-4, 0.7, 20.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_interval_holds_its_promises(
    seed: int, size: int, spread: float, peak: float, peaks: int, radius: float, dtype: torch.dtype
) -> None:
    """lower <= softmax <= upper and sum lower <= 1 <= sum upper for any logits, within V machine epsilons."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(3, size, generator=generator) * spread
    centre[:, :peaks] += peak
    centre = centre.to(dtype)
    r = (torch.rand(3, size, generator=generator) * radius).to(dtype)
    lower, upper = inter_fuse(centre, r)
    p = centre.double().softmax(-1)
    assert lower.dtype == upper.dtype == torch.float32
    assert torch.cat([lower, upper]).isfinite().all()
    slack = size * torch.finfo(torch.float32).eps
    assert (lower.double() <= p + slack).all()
    assert (p <= upper.double() + slack).all()
    assert (lower.double().sum(-1) <= 1 + slack).all()
    assert (upper.double().sum(-1) >= 1 - slack).all()
    reach_lower, reach_upper = reachable(lower, upper)
    assert (reach_lower >= lower).all()
    assert (reach_upper <= upper).all()


@pytest.mark.parametrize("gap", [1.0, 10.0, 17.0, 30.0, 80.0, 1000.0])
def test_log_odds_keep_their_digits_when_one_token_holds_all_mass(gap: float) -> None:
    """1 - p is 0 in float32 from a gap of 17 on. The log-odds of the top token must still be the gap - log(V - 1)."""
    centre = torch.zeros(1, 9)
    centre[0, 4] = gap
    assert log_odds(centre)[0, 4] == pytest.approx(gap - torch.tensor(8.0).log().item(), rel=1e-6)


def test_no_radius_means_no_uncertainty() -> None:
    centre = torch.randn(4, 33, generator=torch.Generator().manual_seed(0))
    lower, upper = inter_fuse(centre, torch.zeros(4, 33))
    assert torch.equal(lower, upper)
    scores = uncertainty(lower, upper, centre.argmax(-1))
    assert scores.u.abs().max() == 0
    assert scores.omega.abs().max() == 0
    torch.testing.assert_close(scores.lower_top, 1 - centre.softmax(-1).max(-1).values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_under_extreme_logits(dtype: torch.dtype) -> None:
    centre = torch.tensor([[1e4, 0.0, 0.0], [3.0, 3.0, -1e4], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    pre = torch.tensor([[50.0, 0.0, -50.0]] * 3, dtype=dtype, requires_grad=True)
    lower, upper = inter_fuse(centre, torch.nn.functional.softplus(pre))
    for gradient in torch.autograd.grad(lower.sum() + upper.square().sum(), [centre, pre]):
        assert gradient.isfinite().all()


def test_radius_starts_at_softplus_of_zero() -> None:
    radius = RadiusHead(8, 5)(torch.randn(2, 3, 8))
    torch.testing.assert_close(radius, torch.full((2, 3, 5), 2.0).log(), atol=1e-6, rtol=0)


def test_pinball_is_least_at_the_quantile() -> None:
    """The bound with the smallest mean loss over samples of p_cloud is their quantile."""
    p_cloud = torch.linspace(0, 1, 1001, dtype=torch.float64).unsqueeze(-1)  # [N, 1]
    for wanted in (0.2, 0.8):
        grid = torch.linspace(0, 1, 101, dtype=torch.float64)
        loss = torch.stack([losses.pinball(p_cloud, bound.expand(1001, 1), wanted).mean() for bound in grid])
        assert grid[loss.argmin()] == pytest.approx(wanted)


@pytest.mark.parametrize("bounds", sorted(losses.BOUNDS))
def test_losses_are_finite_and_pull_the_centre_to_the_cloud(bounds: str) -> None:
    generator = torch.Generator().manual_seed(1)
    p_cloud = (3 * torch.randn(6, 20, generator=generator)).softmax(-1)
    centre = torch.zeros(6, 20, requires_grad=True)
    pre = torch.zeros(6, 20, requires_grad=True)
    optimiser = torch.optim.Adam([centre, pre], lr=0.1)
    before = after = 0.0
    for step in range(200):
        lower, upper = inter_fuse(centre, torch.nn.functional.softplus(pre))
        terms = losses.BOUNDS[bounds](p_cloud, centre.softmax(-1), lower, upper)
        optimiser.zero_grad()
        torch.autograd.backward(terms.total)
        optimiser.step()
        after = float(terms.align.detach().mean())
        before = before if step else after
    assert after < 0.05 * before
