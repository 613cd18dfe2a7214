"""The sampling chains and the keyed draw. tests/parity/ compares both chains with the references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.sampling import draw_with_margin, filter_probs, greedy, guide, sample, warp_probs


@pytest.mark.parametrize("chain", [filter_probs, warp_probs])
def test_rows_with_different_settings_share_a_pass(chain: object) -> None:
    assert callable(chain)
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    temperature, top_p = torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 0.7]), torch.tensor([1.0, 1.0, 0.8, 0.3, 1.0, 0.9])
    settings = (temperature, torch.tensor([0, 5, 0, 49, 80, 1]), top_p)
    together = chain(logits, *settings)
    for row in range(6):
        alone = chain(logits[row : row + 1], *(value[row : row + 1] for value in settings))
        torch.testing.assert_close(together[row], alone[0], atol=1e-7, rtol=0)


def test_guidance_per_row() -> None:
    cond, uncond = torch.randn(3, 7), torch.randn(3, 7)
    mixed = guide(cond, uncond, torch.tensor([1.0, 3.0, 7.5]))
    assert torch.equal(mixed[0], cond[0])
    for row, scale in ((1, 3.0), (2, 7.5)):
        assert torch.equal(mixed[row], guide(cond[row], uncond[row], scale))


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert greedy(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])).tolist() == [1, 0]


def test_draws_follow_the_distribution_at_exact_boundaries() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    drawn = [
        int(sample(probs, torch.tensor([u], dtype=torch.float64)))
        for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53)
    ]
    assert drawn == [1, 1, 3, 3, 4, 4]


@given(seed=st.integers(0, 2**32 - 1), u=st.floats(0, 1, exclude_max=True), kept=st.integers(1, 40))
def test_one_draw_is_the_batched_one(seed: int, u: float, kept: int) -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    law = filter_probs(logits, torch.ones(1), torch.tensor([kept]), torch.ones(1))
    for at in (u, 0.0, 1 - 2**-53):
        assert draw_with_margin(law[0].numpy(), at)[0] == int(sample(law, torch.tensor([at], dtype=torch.float64)))


@given(seed=st.integers(0, 2**32 - 1), u=st.floats(0, 1, exclude_max=True), kept=st.integers(1, 40))
def test_an_impossible_token_is_never_drawn(seed: int, u: float, kept: int) -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) * 4
    probs = filter_probs(logits, torch.ones(1), torch.tensor([kept]), torch.ones(1))
    assert probs[0, sample(probs, torch.tensor([u], dtype=torch.float64))] > 0


def test_frequencies_pass_a_chi_square_test() -> None:
    """33.7 is the 99.99 % point of 9 degrees of freedom, so a correct sampler fails at one of 10,000 seeds."""
    generator = torch.Generator().manual_seed(5)
    probs = torch.softmax(torch.randn(1, 10, generator=generator), -1)
    u = torch.rand(20_000, generator=generator, dtype=torch.float64)
    counts = torch.bincount(sample(probs.expand(20_000, -1), u), minlength=10)
    expected = 20_000 * probs[0].double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 33.7
