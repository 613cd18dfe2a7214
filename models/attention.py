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
    """Half precision is widened to float32, float32 and float64 pass unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rope_table(config: TransformerConfig, zeros_before: int | None = None, zeros_after: int = 0) -> Tensor:
    """Two-dimensional rotary table, float64 [S, hd/2, 2]: entry (p, j) is (cos a, sin a), the rotation of channel pair
    j.

    The first half of the pairs turns with the row of the grid cell, the second half with its column. The caption
    positions (`zeros_before`, None: the configured slots) hold (0, 0), as in LlamaGen: there queries and keys become the
    zero vector, so that every caption key scores 0. So do `zeros_after` positions past the image.
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


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn adjacent channel pairs of x [R, n, H, hd] by rotation [R or 1, n, hd/2, 2]; computed in float32 or wider."""
    wide = at_least_float32(x)
    even, odd = wide[..., 0::2], wide[..., 1::2]  # each [R, n, H, hd/2]
    cos, sin = rotation.unsqueeze(2).unbind(-1)  # each [R or 1, n, 1, hd/2]
    return (
        torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
    )  # [R, n, H, hd]


def repeat_heads(rows: Tensor, groups: int, share: int) -> Tensor:
    """Rows [groups * w, ...] of keys or values, which `share` heads have in common, once for each of them: [groups * share * w, ...]."""
    return rows.reshape(groups, -1, *rows.shape[1:]).repeat_interleave(share, dim=0).flatten(0, 1)


def attention_mask(positions: Tensor, key_count: int, caption_mask: Tensor | None, caption_slots: int) -> Tensor:
    """Which keys each query may see, bool [R, n, K]: causal, caption padding hidden, and always itself.

    A padded caption row sees only itself.

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
    """Attention of q to k and v, each [R, H, n, hd]. mask: bool [R, 1, n, n], True where a query sees a key, or None (causal).

    Written out where a CPU needs gradients of it: there the fused kernel's backward pass takes two to three times as long.
    """
    if mask is None or q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [R, H, n, n]
    seen: Tensor = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v
    return seen


def tree_view(
    columns: Tensor, ends: Tensor, key_count: int, trees: Sequence[Sequence[int] | None]
) -> tuple[Tensor, Tensor]:
    """Where the entries of draft trees stand and what they see, for rows whose tree is not None; others are chains.

    Args:
        columns: int [R, n], cache column of each query.
        ends: int [R], columns filled after the pass; a row's tree is the last ones.
        key_count: K.
        trees: parents of every entry of the tree, see `simulator.protocol.ops.Forward.tree`.

    Returns:
        Positions int [R, n] (committed length plus depth), and bool [R, n, K]: false where an entry of a tree is hidden from another. To
        be combined with `attention_mask` of the columns, which hides what comes later.
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
