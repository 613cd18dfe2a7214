"""From logits to tokens: guidance, two filter chains, and sampling with keyed draws.

Tensor functions are batched over rows, with one temperature, top-k and top-p per row, so that sessions with different
settings can share a pass. Nothing here draws random numbers: callers pass the uniform draws.

Source: LlamaGen's generation code (guide, filter_probs); the transformers library's logits warpers in the order of EAGLE and
LANTERN (warp_probs). The order of the steps matters and differs between the two.
"""

import numpy as np
import torch
from torch import Tensor

from models.attention import at_least_float32

SMALLEST_TEMPERATURE = 1e-5


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Apply classifier-free guidance u + s (c - u) to raw logits [..., V]; a scale (float, or [...] per row) of 1 or less gives c."""
    if isinstance(scale, Tensor):
        s = scale.to(cond.dtype).unsqueeze(-1)  # [..., 1]
        return torch.where(s > 1, uncond + (cond - uncond) * s, cond)
    return uncond + (cond - uncond) * scale if scale > 1 else cond


def greedy(logits: Tensor) -> Tensor:
    """Return the arg max over the codebook, [..., V] -> int64 [...]; the lowest id wins ties."""
    best = logits.max(dim=-1, keepdim=True).values
    # On a GPU, argmax may return any of several equal maxima.
    return (logits == best).to(torch.uint8).argmax(dim=-1)


def filter_probs(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Apply LlamaGen's chain: temperature, then top-k (ties kept), then top-p, then softmax.

    The settings may be on the CPU whatever the logits' device; then the host does not wait for a GPU. With top-k and top-p off for all
    rows, the cost is one softmax.

    Args:
        logits: [B, V].
        temperature: float [B].
        top_k: int [B], 0 is off.
        top_p: float [B], 1 is off.

    Returns:
        float32 [B, V] (float64 for float64 logits), rows summing to 1.
    """
    x = _tempered(logits, temperature)
    x = _top_k(x, top_k)
    if bool((top_p < 1).any()):
        descending, order = x.sort(dim=-1, descending=True)  # [B, V]
        before = descending.softmax(-1).cumsum(-1).roll(1, dims=-1)  # mass of all larger entries
        before[:, 0] = 0.0
        x = _drop(x, order, before > top_p.to(x).unsqueeze(-1), top_p)
    return x.softmax(-1)


def warp_probs(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Apply the warper chain of EAGLE and LANTERN: temperature, then top-p, then top-k, then softmax.

    Arguments and result are those of `filter_probs`.
    """
    x = _tempered(logits, temperature)
    if bool((top_p < 1).any()):
        ascending, order = x.sort(dim=-1)  # [B, V]
        # Drop the tail whose mass is at most 1 - p.
        drop = ascending.softmax(-1).cumsum(-1) <= (1 - top_p.to(x)).unsqueeze(-1)
        drop[:, -1] = False
        x = _drop(x, order, drop, top_p)
    return _top_k(x, top_k).softmax(-1)


def sample(probs: Tensor, u: Tensor) -> Tensor:
    """Draw ids by inverse CDF in id order, in float64: the first id whose cumulative mass exceeds u times the total mass.

    Args:
        probs: [B, V], non-negative, not necessarily normalised.
        u: float64 [B] in [0, 1), one keyed uniform draw per row.

    Returns:
        int64 [B]; an id of probability zero is never drawn.
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)  # [B, V]
    total = cumulative[:, -1:].contiguous()  # [B, 1]
    index = torch.searchsorted(cumulative, u.to(cumulative).unsqueeze(-1) * total, right=True).squeeze(-1)  # [B]
    # Rounding may make u * total equal to the total; then the last id with any mass is drawn.
    last = torch.searchsorted(cumulative, total).squeeze(-1)  # [B]
    return torch.minimum(index, last)


def draw_with_margin(probs: np.ndarray, u: float) -> tuple[int, float]:
    """Draw as `sample` does, for one distribution and one uniform draw, without the overhead of tensors.

    Args:
        probs: float64 [V], non-negative, not necessarily normalised.
        u: uniform draw in [0, 1).

    Returns:
        The id, and the smallest change of u that would draw another id.
    """
    cumulative = probs.cumsum()
    total = cumulative[-1]
    index = int(cumulative.searchsorted(u * total, side="right"))
    index = min(index, int(cumulative.searchsorted(total, side="left")))
    # Without mass below or above, no change of u in that direction draws another id.
    below = cumulative[index - 1] if index and cumulative[index - 1] > 0 else -np.inf
    above = cumulative[index] if cumulative[index] < total else np.inf
    return index, float(min(u - below / total, above / total - u))


def sample_margins(probs: Tensor, u: Tensor, ids: Tensor) -> Tensor:
    """Return the smallest change of each draw u that would make `sample` draw another id, float64 [B].

    Args:
        probs: [B, V].
        u: float64 [B].
        ids: int64 [B], the result of `sample`.
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    cumulative = cumulative / cumulative[:, -1:]
    above = cumulative.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    below = cumulative.gather(-1, (ids - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    at = u.to(cumulative)
    return torch.minimum(
        torch.where((ids > 0) & (below > 0), at - below, torch.inf), torch.where(above < 1, above - at, torch.inf)
    )


def greedy_margins(logits: Tensor) -> Tensor:
    """Return the difference of the two largest logits of each row, [B, V] -> float64 [B]; infinite if V is 1."""
    best = logits.topk(min(2, logits.shape[-1]), dim=-1).values.double()
    return best[:, 0] - best[:, 1] if best.shape[-1] > 1 else torch.full_like(best[:, 0], torch.inf)


def wire_weights(probs: np.ndarray) -> np.ndarray:
    """Round a distribution up to fp16 and return it as weights float64 [..., V], whose sum is at least one. Zeros stay zero.

    A draft is drawn from the weights that are sent, not from probabilities that are rounded afterwards. This keeps
    speculative decoding lossless (see `models.methods.speculative.residual`).
    """
    nearest = probs.astype(np.float16)
    up = np.where(nearest < probs, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return up.astype(np.float64)


def _tempered(logits: Tensor, temperature: Tensor) -> Tensor:
    x = at_least_float32(logits)
    return x / temperature.to(x).clamp_min(SMALLEST_TEMPERATURE).unsqueeze(-1)


def _drop(x: Tensor, order: Tensor, drop: Tensor, top_p: Tensor) -> Tensor:
    """Remove the sorted entries marked in `drop` [B, V], in rows whose top-p is on."""
    drop = drop & (top_p.to(x.device) < 1).unsqueeze(-1)
    return x.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def _top_k(x: Tensor, top_k: Tensor) -> Tensor:
    """Keep all values at or above each row's k-th largest one (ties kept); k = 0 keeps all."""
    size = x.shape[-1]
    k = torch.where(top_k > 0, top_k.clamp(max=size), size)  # [B]
    if not bool((k < size).any()):
        return x
    largest = int(k[k < size].max())
    k = k.to(x.device)
    best = x.topk(largest, dim=-1).values  # [B, largest], descending
    kth = best.gather(-1, (k.clamp(max=largest) - 1).unsqueeze(-1))  # [B, 1]
    return x.masked_fill((x < kth) & (k < size).unsqueeze(-1), -torch.inf)
