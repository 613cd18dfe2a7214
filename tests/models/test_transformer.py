"""The decoder's cached and teacher-forced passes against each other. Reference outputs of LlamaGen are in tests/parity/."""

import pytest
import torch
from torch import Tensor

from models.attention import attend, attention_mask
from models.kv_cache import KVCache
from models.transformer import Transformer
from simulator.protocol.pairs import TransformerConfig

SMALL = TransformerConfig(
    n_layer=2, n_head=2, dim=16, ffn_hidden=24, vocab_size=32, caption_slots=5, caption_dim=6, grid=4
)


def small_model(seed: int = 0) -> Transformer:
    model = Transformer(SMALL).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


def small_inputs(batch: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SMALL.vocab_size, (batch, SMALL.tokens), generator=generator)
    caption = torch.randn(batch, SMALL.caption_slots, SMALL.caption_dim, generator=generator, dtype=torch.float64)
    valid = torch.randint(1, SMALL.caption_slots + 1, (batch, 1), generator=generator)
    mask = torch.arange(SMALL.caption_slots) >= SMALL.caption_slots - valid  # left padded
    return tokens, caption * mask.unsqueeze(-1), mask


# --- the cache against teacher forcing, in float64


@torch.inference_mode()
def test_ragged_steps_equal_teacher_forcing() -> None:
    """Rows advance with different strides, in passes over random subsets of the rows in random order."""
    model = small_model()
    tokens, caption, mask = small_inputs(4)
    features = torch.randn(4, SMALL.tokens, SMALL.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = model.hidden(tokens, caption, mask, features)  # [B, S, D]
    inputs = torch.cat([model.embed_caption(caption), model.embed_tokens(tokens) + features], dim=1)  # [B, S, D]
    cache = KVCache(SMALL, 6, dtype=torch.float64)
    placed = torch.tensor([4, 1, 5, 0])  # sequence b is in cache row placed[b]
    cache.caption_mask[placed] = mask
    done = torch.zeros(4, dtype=torch.long)
    generator = torch.Generator().manual_seed(3)
    got = torch.full_like(expected, torch.nan)
    while bool((done < SMALL.positions).any()):
        chosen = torch.randperm(4, generator=generator)[: int(torch.randint(1, 5, (1,), generator=generator))]
        chosen = chosen[done[chosen] < SMALL.positions]
        if not len(chosen):
            continue
        stride = torch.randint(1, 8, (len(chosen),), generator=generator)
        n_new = torch.minimum(stride, SMALL.positions - done[chosen])
        embeds = torch.zeros(len(chosen), int(n_new.max()), SMALL.dim, dtype=torch.float64)
        for i, b in enumerate(chosen.tolist()):
            embeds[i, : n_new[i]] = inputs[b, done[b] : done[b] + n_new[i]]
        hidden = model.step(cache, placed[chosen], done[chosen], embeds, n_new)
        for i, b in enumerate(chosen.tolist()):
            got[b, done[b] : done[b] + n_new[i]] = hidden[i, : n_new[i]]
        done[chosen] += n_new
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@torch.inference_mode()
def test_rolling_back_is_a_smaller_start() -> None:
    model = small_model()
    tokens, caption, mask = small_inputs(2)
    inputs = torch.cat([model.embed_caption(caption), model.embed_tokens(tokens)], dim=1)  # [B, S, D]
    expected = model.hidden(tokens, caption, mask)
    cache = KVCache(SMALL, 2, dtype=torch.float64)
    cache.caption_mask[:] = mask
    rows, zero, slots = torch.arange(2), torch.zeros(2, dtype=torch.long), SMALL.caption_slots
    wrong = inputs.clone()
    wrong[:, slots + 3 :] = 7.0  # drafted tokens that are rolled back
    model.step(cache, rows, zero, wrong[:, : slots + 9], torch.full((2,), slots + 9))
    start = torch.tensor([slots + 3, slots + 1])
    n_new = torch.tensor([4, 6])
    embeds = torch.zeros(2, 6, SMALL.dim, dtype=torch.float64)
    for row in range(2):
        embeds[row, : n_new[row]] = inputs[row, start[row] : start[row] + n_new[row]]
    hidden = model.step(cache, rows, start, embeds, n_new)
    for row in range(2):
        span = slice(int(start[row]), int(start[row] + n_new[row]))
        torch.testing.assert_close(hidden[row, : n_new[row]], expected[row, span], atol=1e-12, rtol=0)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = small_model()
    tokens, caption, mask = small_inputs(3)
    together, _ = model(tokens[:, :-1], caption, mask)
    for b in range(3):
        alone, _ = model(tokens[b : b + 1, :-1], caption[b : b + 1], mask[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], atol=1e-12, rtol=0)


def test_a_sequence_that_is_too_long_is_refused() -> None:
    model = small_model()
    cache = KVCache(SMALL, 1, dtype=torch.float64)
    embeds = torch.zeros(1, 2, SMALL.dim, dtype=torch.float64)
    with pytest.raises(IndexError, match="22 positions does not fit 21"):
        model.step(cache, torch.tensor([0]), torch.tensor([SMALL.positions - 1]), embeds, torch.tensor([2]))


def test_a_shape_that_rotary_pairs_cannot_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        TransformerConfig(1, 2, 12, 8, 8, 2, 4, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_stays_close_and_keeps_exact_rotation(dtype: torch.dtype) -> None:
    model = small_model()
    tokens, caption, mask = small_inputs(2)
    exact, _ = model(tokens[:, :-1], caption, mask)
    halved, _ = model.to(dtype)(tokens[:, :-1], caption.to(dtype), mask)
    assert halved.dtype == torch.float32
    assert model._rope.dtype == torch.float32
    assert (halved - exact).abs().mean() < 0.05 * exact.std()


def test_untrained_model_is_uniform() -> None:
    model = Transformer(SMALL)
    tokens, caption, mask = small_inputs(1)
    logits, _ = model(tokens[:, :-1], caption.float(), mask)
    assert torch.equal(logits, torch.zeros(1, SMALL.tokens, SMALL.vocab_size))


def test_attention_written_out_for_gradients_is_the_fused_one() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3))
    captions = torch.tensor([[False, True, True], [True, True, True]])
    mask = attention_mask(torch.arange(7).expand(2, -1), 7, captions, 3).unsqueeze(1)
    written = attend(q, k, v, mask)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(attend(q.detach(), k.detach(), v.detach(), mask), fused)
    torch.testing.assert_close(written, fused)
    weight = torch.randn(written.shape, generator=generator, dtype=torch.float64)
    one, other = (torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (written, fused))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)
