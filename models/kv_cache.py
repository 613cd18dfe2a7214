"""Cached decoding: the KV cache of many sequences, and the pass that continues them.

Letters: B batch, R rows of one pass (B, or 2B with guidance), T = grid * grid image tokens, S = caption_slots + T
positions, n new positions, N new positions of all rows together, K keys read, D width, H heads, hd = D / H, V codebook.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from models.attention import attention_mask, rope_table, tree_view
from simulator.protocol.pairs import TransformerConfig

# Zero rows after the rotary table: a draft tree may extend past the image's end (as in EAGLE-2's LlamaGen port).
OVERHANG = 10


def _zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros. On a CPU, memory pages are allocated only when written, because much of a cache is never used."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(*shape)


@dataclass(frozen=True)
class CachedRows:
    """A copy of the first columns of some rows of a `KVCache`: keys and values [L, r, H, columns, hd], caption masks and weights."""

    k: Tensor
    v: Tensor
    caption_mask: Tensor  # [r, slots]
    caption_weight: Tensor  # [r]


class KVCache:
    """Keys (after rotation) and values of many sequences, each [L, rows, H, S + spare, hd], and their caption masks.

    The caller keeps track of how many columns of a row are valid and passes it to every `step`. Nothing is ever cleared: to roll back,
    pass a smaller `start`.

    Caption keys are zero (`rope_table`), so in a later position's attention each valid one has score 0 and contributes e^0 times its
    value. After the pass that feeds the caption, one column replaces them: the last caption column holds their mean value, and the
    logarithm of their number (`caption_weight` [rows]) is added to its score. All later passes read from that column on.

    Args:
        config: shape of the model.
        rows: sequences.
        device: where the tensors are.
        dtype: of keys and values.
        spare: columns past the end of the image, for draft trees.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        spare: int = 0,
    ) -> None:
        shape = (config.n_layer, rows, config.n_head, config.positions + spare, config.head_dim)
        self.k, self.v = (_zeros(shape, torch.device(device), dtype) for _ in range(2))
        self.caption_mask = torch.ones(rows, config.caption_slots, device=device, dtype=torch.bool)
        self.caption_weight = torch.zeros(rows, device=device, dtype=dtype)

    def gather_captions(self, rows: Tensor, count: int) -> None:
        """Replace the first `count` columns of some rows, int [r], whose keys are zero, by one column (see the class)."""
        mask = self.caption_mask[rows, :count].to(self.v.dtype)  # [r, count]
        number = mask.sum(-1)
        mean = torch.einsum("lrhsd,rs->lrhd", self.v[:, rows, :, :count], mask / number.unsqueeze(-1))
        self.v[:, rows, :, count - 1] = mean
        self.caption_weight[rows] = number.log()

    @property
    def columns(self) -> int:
        return self.k.shape[3]

    def read(self, rows: slice, columns: int) -> CachedRows:
        """Return a copy of the first columns of some rows."""
        k, v = (store[:, rows, :, :columns].clone() for store in (self.k, self.v))
        return CachedRows(k, v, self.caption_mask[rows].clone(), self.caption_weight[rows].clone())

    def write(self, rows: slice, copied: CachedRows) -> None:
        """Write a copy made by `read` into the first columns of as many rows."""
        columns = copied.k.shape[3]
        self.k[:, rows, :, :columns], self.v[:, rows, :, :columns] = copied.k, copied.v
        self.caption_mask[rows], self.caption_weight[rows] = copied.caption_mask, copied.caption_weight

    def move(self, rows: Sequence[int], sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy column sources[i] of row rows[i] to column targets[i]. All sources are read first, so a source may also be a target."""
        row, source, target = (torch.tensor(x, device=self.k.device) for x in (rows, sources, targets))
        for store in (self.k, self.v):
            store[:, row, :, target] = store[:, row, :, source]  # [m, L, H, hd]


@dataclass(frozen=True)
class RowGroup:
    """Adjacent rows of a pass with the same number of new positions, whose attention is computed together.

    Attributes:
        size: r * n, their share of the pass's N positions.
        new: n, new positions per row.
        rows: their rows of the cache; a slice if these are adjacent too, so that the cache is read in place.
        keys: cache columns read.
        mask: [r, 1, n, K], added to the attention scores.
    """

    size: int
    new: int
    rows: slice | Tensor
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class Pass:
    """The inputs that all layers of one pass share.

    With a cache, the new positions of all rows form one sequence of N, x is [1, N, D], and the last four attributes are set.

    Attributes:
        rotation: [R or 1, n, hd/2, 2].
        mask: bool [R, n, K], without a cache; None: plain causal.
        cache: KV cache that the pass reads and extends.
        rows: int [N], cache row of each new position.
        columns: int [N], cache column of each new position.
        groups: the rows whose attention is computed together.
    """

    rotation: Tensor
    mask: Tensor | None = None
    cache: KVCache | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    groups: Sequence[RowGroup] = ()


class CachedDecoder(nn.Module):
    """Base of the models that continue sequences with a `KVCache`: `Transformer`, and the drafter of EAGLE-2 (`models/eagle.py`).

    Attributes:
        config: shape of the model.
        unrotated: positions before the first cell of the grid.
        captions_as_one: whether caption keys are zero, so that one cache column replaces all of them once they are fed (`KVCache`).
    """

    captions_as_one = True

    def __init__(self, config: TransformerConfig, unrotated: int) -> None:
        super().__init__()
        self.config = config
        self.unrotated = unrotated
        self._rope = torch.zeros(0)  # computed on first use; not a buffer, because half precision would round it

    def columns(self, positions: int) -> int:
        """Return how many cache columns so many positions occupy, caption slots included."""
        return positions

    def step(
        self,
        cache: KVCache,
        rows: Tensor,
        start: Tensor,
        embeds: Tensor,
        n_new: Tensor,
        trees: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Continue R sequences of different lengths in one pass.

        Args:
            cache: keys and values of the sequences so far; those of this pass are added.
            rows: int [R] on the CPU, distinct rows of the cache.
            start: int [R] on the CPU, valid columns of each row before this pass, caption slots included.
            embeds: [R, n, D], inputs of columns start .. start + n_new - 1, padded at the end (caption rows from `embed_caption`,
                tokens from `embed_tokens`; one pass may contain both).
            n_new: int [R] on the CPU, 1 <= n_new <= n.
            trees: per row the parents of the last entries, or None for a chain; see `tree_view`.

        Returns:
            Hidden states after the last layer (and the final norm, if there is one), [R, n, D]; those past n_new are meaningless.

        Raises:
            IndexError: a sequence would become longer than the cache or than the rotary table.
        """
        device = embeds.device
        real = torch.arange(embeds.shape[1]) < n_new.unsqueeze(1)  # [R, n]
        ragged = not bool(real.all())
        x = embeds[real.to(device)] if ragged else embeds.flatten(0, 1)  # [N, D]
        hidden = self._run(x.unsqueeze(0), self.plan(cache, rows, start, x, n_new, trees))[0]  # [N, D]
        fed = (start < self.unrotated) & (start + n_new >= self.unrotated)
        if self.captions_as_one and bool(fed.any()):
            cache.gather_captions(rows[fed].to(device), self.unrotated)
        if not ragged:
            return hidden.view(len(rows), -1, hidden.shape[-1])
        padded = hidden.new_zeros(embeds.shape)
        padded[real.to(device)] = hidden
        return padded

    def plan(
        self,
        cache: KVCache,
        rows: Tensor,
        start: Tensor,
        x: Tensor,
        n_new: Tensor,
        trees: Sequence[Sequence[int] | None] | None = None,
    ) -> Pass:
        """Return the inputs that all layers of a `step` share, prepared on the host. Raises IndexError as `step` does.

        x: [N, D], the inputs without padding; only its type and device are used. The other arguments are those of `step`.
        """
        ends = (start + n_new).tolist()
        if max(ends) > cache.columns:
            raise IndexError(f"a sequence of {max(ends)} positions does not fit {cache.columns}")
        groups, positions = self._groups(cache, rows, start, n_new, trees or [None] * len(rows))
        offset = torch.arange(int(n_new.max()))
        columns = (start.unsqueeze(1) + offset)[offset < n_new.unsqueeze(1)]  # [N]
        rotation = self._rotation(x, (columns if positions is None else positions).to(x.device)).unsqueeze(0)
        return Pass(rotation, None, cache, rows.repeat_interleave(n_new).to(x.device), columns.to(x.device), groups)

    def _groups(
        self, cache: KVCache, rows: Tensor, start: Tensor, n_new: Tensor, trees: Sequence[Sequence[int] | None]
    ) -> tuple[list[RowGroup], Tensor | None]:
        """Return the row groups of a pass and, if it contains trees, the positions int [N] of the new entries.

        On a CPU, the rows of a group have the same length and read the cache in place. A GPU is faster with few large reads: there a
        group is all adjacent rows with the same number of new positions, copied together. A row that feeds a caption attends to the
        caption's columns; later passes attend to the one column that replaces them (`KVCache`).
        """
        on_cpu = cache.k.device.type == "cpu"
        gathered = self.unrotated if self.captions_as_one else 0  # columns replaced by one
        row, begin, new = rows.tolist(), start.tolist(), n_new.tolist()

        def alike(i: int) -> object:
            feeds = begin[i] < gathered
            return (new[i], feeds, begin[i], row[i] - i) if on_cpu else (new[i], feeds)

        groups, positions = [], []
        for _, members in groupby(range(len(row)), alike):
            group = list(members)
            i, n, mine = group[0], new[group[0]], slice(group[0], group[-1] + 1)
            where: slice | Tensor = slice(row[i], row[i] + len(group)) if on_cpu else rows[mine].to(cache.k.device)
            end, first = max(begin[mine]) + n, max(gathered - 1, 0) if begin[i] >= gathered else 0
            columns = start[mine].unsqueeze(1) + torch.arange(n)  # [r, n]
            # A single new position per row attends to all columns.
            if n == 1 and first and min(begin[mine]) + n == end and not any(trees[mine]):
                mask = cache.k.new_zeros(len(group), 1, end - first)
            else:
                allowed = attention_mask(
                    columns.to(cache.k.device), end, cache.caption_mask[where], self.config.caption_slots
                )
                if any(trees[mine]):
                    columns, visible = tree_view(columns, start[mine] + n, end, trees[mine])
                    allowed &= visible.to(allowed.device)
                mask = cache.k.new_zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[..., first:]  # [r, n, K]
            if first:
                mask[..., 0] = cache.caption_weight[where].unsqueeze(1)
            groups.append(RowGroup(len(group) * n, n, where, slice(first, end), mask.unsqueeze(1)))
            if any(trees):
                positions.append(columns.flatten())
        return groups, torch.cat(positions) if positions else None

    def _rotation(self, x: Tensor, index: slice | Tensor) -> Tensor:
        """Return rows of the rotary table on x's device, in float32, or float64 if x is float64."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if len(self._rope) == 0 or self._rope.device != x.device or self._rope.dtype != dtype:
            with torch.inference_mode(False):  # autograd cannot use a table created in inference mode
                self._rope = self._rope_table().to(x.device, dtype)
        return self._rope[index]

    def _rope_table(self) -> Tensor:
        """Return the rotary table, float64 [unrotated + T + OVERHANG, hd/2, 2], see `rope_table`."""
        return rope_table(self.config, self.unrotated, OVERHANG)

    def _run(self, x: Tensor, p: Pass) -> Tensor:
        raise NotImplementedError
