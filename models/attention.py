"""Attention of LlamaGen's decoder: the two-dimensional rotary embedding, the masks, and the attention product.

Source: Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (LlamaGen).

Letters: B batch, R rows of one pass (B, or 2B with guidance), T = grid * grid image tokens, S = caption_slots + T
positions, n new positions, N new positions of all rows together, K keys read, D width, H heads, hd = D / H, V codebook.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.tree import layout
from simulator.protocol.pairs import TransformerConfig


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it has half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rope_table(config: TransformerConfig, zeros_before: int | None = None, zeros_after: int = 0) -> Tensor:
    """Return the two-dimensional rotary table.

    The angle of the first half of the channel pairs depends on the row of the grid cell, that of the second half on its column. Caption
    positions hold (0, 0), as in LlamaGen: queries and keys become the zero vector there, so every caption key scores 0.

    Args:
        config: shape of the decoder.
        zeros_before: positions before the image that hold (0, 0); None: the caption slots.
        zeros_after: positions after the image that hold (0, 0).

    Returns:
        float64 [zeros_before + T + zeros_after, hd/2, 2]; entry (p, j) is (cos a, sin a), the rotation of channel pair j at position p.
    """
    quarter = config.head_dim // 4
    # base^(-2i / (hd/2)), [hd/4].
    frequency = config.rope_base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    cell = torch.arange(config.tokens)
    row, column = cell // config.grid, cell % config.grid  # each [T]
    angle = torch.cat([torch.outer(row, frequency), torch.outer(column, frequency)], dim=1)  # [T, hd/2]
    image = torch.stack([angle.cos(), angle.sin()], dim=-1)  # [T, hd/2, 2]
    before = config.caption_slots if zeros_before is None else zeros_before
    return F.pad(image, (0, 0, 0, 0, before, zeros_after))  # [S, hd/2, 2]


def line_rope_table(config: TransformerConfig, positions: int) -> Tensor:
    """Return the rotary table with one axis, float64 [positions, hd/2, 2]: the angle of channel pair j is position * base^(-2j / hd)."""
    half = config.head_dim // 2
    frequency = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x [R, n, H, hd] by `rotation` [R or 1, n, hd/2, 2], in float32 or wider; the result has x's type."""
    wide = at_least_float32(x)
    even, odd = wide[..., 0::2], wide[..., 1::2]  # each [R, n, H, hd/2]
    cos, sin = rotation.unsqueeze(2).unbind(-1)  # each [R or 1, n, 1, hd/2]
    return (
        torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
    )  # [R, n, H, hd]


def repeat_heads(rows: Tensor, groups: int, share: int) -> Tensor:
    """Repeat the rows [groups * w, ...] of grouped-query keys or values for each of the `share` heads of a group.

    Returns:
        [groups * share * w, ...].
    """
    return rows.reshape(groups, -1, *rows.shape[1:]).repeat_interleave(share, dim=0).flatten(0, 1)


def paired_channels(rows: Tensor, heads: int) -> Tensor:
    """Reorder the channels of every head, of queries, keys or their norms [heads * hd, ...], from halves to adjacent pairs.

    The rotary embedding of the transformers library turns channel j with j + hd/2, `rotate` 2j with 2j + 1. Attention does not change
    if queries and keys have the same order.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def attention_mask(positions: Tensor, key_count: int, caption_mask: Tensor | None, caption_slots: int) -> Tensor:
    """Return which keys each query attends to, bool [R, n, K].

    The mask is causal and hides caption padding; every position attends to itself. A padded caption row attends only to itself.

    Args:
        positions: int [R, n], the sequence position of each query.
        key_count: K.
        caption_mask: bool [R, caption_slots], True where a caption row is valid, or None for purely causal.
        caption_slots: positions of the caption.
    """
    key = torch.arange(key_count, device=positions.device)  # [K]
    query = positions.unsqueeze(-1)  # [R, n, 1]
    allowed = key <= query  # [R, n, K]
    if caption_mask is not None:
        valid = F.pad(caption_mask, (0, max(0, key_count - caption_slots)), value=True)[:, :key_count]  # [R, K]
        allowed = (allowed & valid.unsqueeze(1)) | (key == query)
    return allowed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention output [R, H, n, hd].

    With a mask and gradients on a CPU, the product is written out: the fused kernel's backward pass takes two to three times as long.

    Args:
        q: [R, H, n, hd].
        k: [R, H, n, hd].
        v: [R, H, n, hd].
        mask: bool [R, 1, n, n], True where a query attends to a key, or None (causal).
    """
    if mask is None or q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [R, H, n, n]
    seen: Tensor = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v
    return seen


def tree_view(
    columns: Tensor, ends: Tensor, key_count: int, trees: Sequence[Sequence[int] | None]
) -> tuple[Tensor, Tensor]:
    """Return the positions and the attention mask of draft trees. A row whose tree is None is a chain.

    Args:
        columns: int [R, n], cache column of each query.
        ends: int [R], columns filled after the pass; a row's tree fills the last ones.
        key_count: K.
        trees: parents of every entry of the tree, see `simulator.protocol.ops.Forward.tree`.

    Returns:
        Positions int [R, n] (committed length plus depth), and bool [R, n, K], False where a tree entry must not attend to another one.
        Combine it with `attention_mask` of the columns, which hides later columns.
    """
    positions = columns.clone()
    visible = torch.ones(*columns.shape, key_count, dtype=torch.bool)
    for row, parents in enumerate(trees):
        if parents is not None:
            depth, sees = layout(tuple(parents))
            committed = int(ends[row]) - len(parents)
            entry = columns[row] - committed  # [n], index into the tree
            positions[row] = committed + depth[entry]
            visible[row, :, committed : committed + len(parents)] = sees[entry]
    return positions, visible
