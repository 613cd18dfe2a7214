"""LlamaGen's text-to-image decoder: configuration, blocks, model, and the two ways to run it.

Source: Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (LlamaGen), architecture
and checkpoint key names of its text-to-image GPT. The cloud is this model; the device of CIAR is the same with one
layer.

One sequence is `caption_slots` caption rows, then the image tokens in raster order. Row `caption_slots - 1` (the last
caption row) predicts token 0, and the row of token t predicts token t + 1.

* `Transformer.forward` sees whole sequences at once (teacher forcing: training and scoring);
* `CachedDecoder.step` continues many sequences, or trees of drafts, of different lengths against a `KVCache` (decoding).

Letters: B batch, R rows of one pass (B, or 2B with guidance), T = grid * grid image tokens, S = caption_slots + T
positions, n new positions, N new positions of all rows together, K keys read, D width, H heads, hd = D / H, V codebook.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tree import layout

OVERHANG = 10  # zero rows behind the rotary table: a tree of drafts may reach past the image's end (as EAGLE-2's LlamaGen port)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder. `caption_dim` is the width of the caption features, `grid` the side of the token grid."""

    n_layer: int
    n_head: int
    dim: int
    ffn_hidden: int
    vocab_size: int
    caption_slots: int
    caption_dim: int
    grid: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % (4 * self.n_head):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 4 * n_head ({4 * self.n_head}): two rotary axes of pairs"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def tokens(self) -> int:
        """T, image tokens per image."""
        return self.grid * self.grid

    @property
    def positions(self) -> int:
        """S, positions of a full sequence: the caption slots and the image tokens."""
        return self.caption_slots + self.tokens


@dataclass(frozen=True)
class Dropout:
    """Dropout shares while training; LlamaGen uses 0.1 everywhere. Inert in `eval()` mode."""

    token: float = 0.0
    residual: float = 0.0
    ffn: float = 0.0
    caption: float = 0.0  # share of captions replaced by the null caption (this is what makes guidance possible)


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
    frequency = config.rope_base ** (
        -torch.arange(quarter, dtype=torch.float64) / quarter
    )  # base^(-2i / (hd/2)), [hd/4]
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


def attention_mask(positions: Tensor, key_count: int, caption_mask: Tensor | None, caption_slots: int) -> Tensor:
    """Which keys each query may see, bool [R, n, K]: causal, caption padding hidden, and always itself.

    positions: int [R, n], the sequence position of each query. caption_mask: bool [R, caption_slots], True where a
    caption row is valid, or None for purely causal. A padded caption row sees only itself.
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

    columns: int [R, n], cache column of each query. ends: int [R], columns filled after the pass; a row's tree is the last
    ones. trees: parents of every entry of the tree, see `simulator.protocol.ops.Forward.tree`.
    Returns positions int [R, n] (committed length plus depth) and bool [R, n, K]: false where an entry of a tree is
    hidden from another. To be combined with `attention_mask` of the columns, which hides what comes later.
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


def _zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on a CPU in memory that becomes real as it is written to, which much of a cache never is."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(*shape)


class KVCache:
    """Keys (after rotation) and values of many sequences, each [L, rows, H, S + spare, hd], and their caption masks.

    spare: columns past the image's end, for trees of drafts. The caller knows how many columns of a row are valid and says
    so in every `step`; nothing is ever cleared. Rolling back is passing a smaller `start`.

    Caption keys are zero (`rope_table`): each valid one adds e^0 and its value to what a later position sums up. Once the pass that feeds
    the caption is done, one column stands for them all: the last of them holds their mean value, weighed by their number (`caption_weight`
    [rows], its logarithm). All later passes read from that column on.
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
        """The first `count` columns of some rows, int [r], whose keys are zero, are read as one from now on."""
        mask = self.caption_mask[rows, :count].to(self.v.dtype)  # [r, count]
        number = mask.sum(-1)
        mean = torch.einsum("lrhsd,rs->lrhd", self.v[:, rows, :, :count], mask / number.unsqueeze(-1))
        self.v[:, rows, :, count - 1] = mean
        self.caption_weight[rows] = number.log()

    @property
    def columns(self) -> int:
        return self.k.shape[3]

    def move(self, rows: Sequence[int], sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy column sources[i] of row rows[i] to column targets[i], all at once: a source may be another's target."""
        row, source, target = (torch.tensor(x, device=self.k.device) for x in (rows, sources, targets))
        for store in (self.k, self.v):
            store[:, row, :, target] = store[:, row, :, source]  # [m, L, H, hd]


@dataclass(frozen=True)
class Span:
    """Rows of a pass that attend together: neighbours in the pass with equally many new positions.

    rows: of the cache, a slice of it where they are neighbours there too, so that it is read in place. keys: the columns read.
    mask: [r, 1, n, K] for the r rows, added to the scores.
    """

    size: int  # r * n, positions among the pass's N
    new: int  # n
    rows: slice | Tensor
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class Pass:
    """What every layer of one pass shares. With a cache, the new positions of all rows stand in one sequence of N, x is [1, N, D],
    and the last four are set."""

    rotation: Tensor  # [R or 1, n, hd/2, 2]
    mask: Tensor | None = None  # bool [R, n, K], without a cache; None: plain causal
    cache: KVCache | None = None
    rows: Tensor | None = None  # int [N], row of the cache of each new position
    columns: Tensor | None = None  # int [N], where its key is written
    spans: Sequence[Span] = ()


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32 or wider, cast back, then scaled."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(x), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Multi-head attention with one fused q | k | v projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, layer: int, p: Pass) -> Tensor:
        heads = self.wqkv(x).unflatten(-1, (3 * self.n_head, -1))  # [R, n, 3H, hd]
        q, k = rotate(heads[:, :, : 2 * self.n_head], p.rotation).chunk(2, dim=2)
        v = heads[:, :, 2 * self.n_head :]  # each [R, n, H, hd]
        if p.cache is None:
            mask = None if p.mask is None else p.mask.unsqueeze(1)  # [R, 1, n, K]
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # each [R, H, n, hd]
            y = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        else:
            y = self._through_cache(q[0], k[0], v[0], layer, p).unsqueeze(0)
        mixed: Tensor = self.wo(y)  # [R, n, D]
        return mixed

    @staticmethod
    def _through_cache(q: Tensor, k: Tensor, v: Tensor, layer: int, p: Pass) -> Tensor:
        """What N new positions [N, H, hd] attend to in the cache, their own keys included, [N, D]."""
        assert p.cache is not None
        keys, values = p.cache.k[layer], p.cache.v[layer]  # [rows, H, S + spare, hd]
        keys[p.rows, :, p.columns] = k.to(keys.dtype)
        values[p.rows, :, p.columns] = v.to(values.dtype)
        found = []
        for span, some in zip(p.spans, torch.split(q, [span.size for span in p.spans]), strict=True):
            query = some.view(-1, span.new, *some.shape[1:]).transpose(1, 2)  # [r, H, n, hd]
            seen, read = (store[:, :, span.keys][span.rows].to(q.dtype) for store in (keys, values))  # [r, H, K, hd]
            y = F.scaled_dot_product_attention(query, seen, read, attn_mask=span.mask.to(q.dtype))
            found.append(y.transpose(1, 2).flatten(2).flatten(0, 1))  # [r * n, D]
        return torch.cat(found)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y


class Block(nn.Module):
    """h = x + Attention(N1(x)); y = h + FFN(N2(h))."""

    def __init__(self, config: TransformerConfig, dropout: Dropout) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.residual_dropout = dropout.residual
        self.ffn_dropout = dropout.ffn

    def forward(self, x: Tensor, layer: int, p: Pass) -> Tensor:
        h = x + F.dropout(self.attention(self.attention_norm(x), layer, p), self.residual_dropout, self.training)
        return h + F.dropout(self.feed_forward(self.ffn_norm(h)), self.ffn_dropout, self.training)


class CaptionProjection(nn.Module):
    """Caption features to model width: fc2(gelu_tanh(fc1 x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return projected


class CaptionEmbedding(nn.Module):
    """The caption path: a projection, and the learned null caption that guidance compares with."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        self.uncond_embedding = nn.Parameter(torch.empty(config.caption_slots, config.caption_dim))


class CachedDecoder(nn.Module):
    """What continues sequences against a `KVCache`: `Transformer`, and the drafter of EAGLE-2 (`models/eagle.py`).

    unrotated: positions before the first cell of the grid.
    """

    def __init__(self, config: TransformerConfig, unrotated: int) -> None:
        super().__init__()
        self.config = config
        self.unrotated = unrotated
        self._rope = torch.zeros(0)  # made when asked for; not a buffer: it must not be rounded in half precision

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

        rows: int [R] on the CPU, distinct rows of the cache. start: int [R] on the CPU, valid columns of each row
        before this pass, caption slots included. embeds: [R, n, D], inputs of columns start .. start + n_new - 1,
        padded at the end (caption rows come from `embed_caption`, tokens from `embed_tokens`; one pass may hold both).
        n_new: int [R] on the CPU, 1 <= n_new <= n. trees: per row the parents of the last entries, or None for a chain; see
        `tree_view`.
        Returns hidden states after the last layer (and the final norm, if there is one), [R, n, D]; rows past n_new are
        meaningless.
        Raises IndexError when a sequence would become longer than the cache or than the rotary table.
        """
        ends = (start + n_new).tolist()
        if max(ends) > cache.columns:
            raise IndexError(f"a sequence of {max(ends)} positions does not fit {cache.columns}")
        device = embeds.device
        offset = torch.arange(embeds.shape[1])
        real = offset < n_new.unsqueeze(1)  # [R, n]
        ragged = not bool(real.all())
        spans, positions = self._spans(cache, rows, start, n_new, trees or [None] * len(rows))
        columns = (start.unsqueeze(1) + offset)[real]  # [N]
        x = embeds[real.to(device)] if ragged else embeds.flatten(0, 1)  # [N, D]
        rotation = self._rotation(x, (columns if positions is None else positions).to(device)).unsqueeze(0)
        shared = Pass(rotation, None, cache, rows.repeat_interleave(n_new).to(device), columns.to(device), spans)
        hidden = self._run(x.unsqueeze(0), shared)[0]  # [N, D]
        fed = (start < self.unrotated) & (start + n_new >= self.unrotated)
        if bool(fed.any()):
            cache.gather_captions(rows[fed].to(device), self.unrotated)
        if not ragged:
            return hidden.view(len(rows), -1, hidden.shape[-1])
        padded = hidden.new_zeros(embeds.shape)
        padded[real.to(device)] = hidden
        return padded

    def _spans(
        self, cache: KVCache, rows: Tensor, start: Tensor, n_new: Tensor, trees: Sequence[Sequence[int] | None]
    ) -> tuple[list[Span], Tensor | None]:
        """How the rows of a pass attend, and the positions int [N] of the new entries where trees are among them.

        A CPU reads the cache in place, rows of one length at a time. A GPU is kept busy by few large reads: all rows of equally many
        new positions, copied together. Whoever feeds a caption sees its columns, whoever comes after it the one column that stands for
        them (`KVCache`).
        """
        on_cpu = cache.k.device.type == "cpu"
        row, begin, new = rows.tolist(), start.tolist(), n_new.tolist()

        def alike(i: int) -> object:
            feeds = begin[i] < self.unrotated
            return (new[i], feeds, begin[i], row[i] - i) if on_cpu else (new[i], feeds)

        spans, positions = [], []
        for _, members in groupby(range(len(row)), alike):
            group = list(members)
            i, n, mine = group[0], new[group[0]], slice(group[0], group[-1] + 1)
            where: slice | Tensor = slice(row[i], row[i] + len(group)) if on_cpu else rows[mine].to(cache.k.device)
            end, first = max(begin[mine]) + n, 0 if begin[i] < self.unrotated else self.unrotated - 1
            columns = start[mine].unsqueeze(1) + torch.arange(n)  # [r, n]
            if (
                n == 1 and first and min(begin[mine]) + n == end and not any(trees[mine])
            ):  # one more entry sees all there is
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
            spans.append(Span(len(group) * n, n, where, slice(first, end), mask.unsqueeze(1)))
            if any(trees):
                positions.append(columns.flatten())
        return spans, torch.cat(positions) if positions else None

    def _rotation(self, x: Tensor, index: slice | Tensor) -> Tensor:
        """Rows of the rotary table beside x, float32, or float64 for float64."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if len(self._rope) == 0 or self._rope.device != x.device or self._rope.dtype != dtype:
            self._rope = rope_table(self.config, self.unrotated, OVERHANG).to(x.device, dtype)
        return self._rope[index]

    def _run(self, x: Tensor, p: Pass) -> Tensor:
        raise NotImplementedError


class Transformer(CachedDecoder):
    """The decoder. Parameter names are those of LlamaGen's checkpoints, so `load_state_dict` takes them as they are."""

    def __init__(self, config: TransformerConfig, dropout: Dropout = Dropout()) -> None:
        super().__init__(config, config.caption_slots)
        self.dropout = dropout
        self.cls_embedding = CaptionEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList([Block(config, dropout) for _ in range(config.n_layer)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """LlamaGen's initial weights: normal with std 0.02, norms one, output matrix zero."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                elif name == "output.weight":
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, 0.02, generator=generator)

    # --- embeddings and head

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids int [..., n] -> E(x) [..., n, D]."""
        embedded: Tensor = self.tok_embeddings(ids)
        return embedded

    def embed_caption(self, features: Tensor) -> Tensor:
        """Caption features [R, caption_slots, caption_dim], valid rows last -> [R, caption_slots, D]."""
        projected: Tensor = self.cls_embedding.cap_proj(features.to(self.output.weight.dtype))
        return projected

    def null_caption(self, rows: int) -> Tensor:
        """The learned null caption for `rows` sequences, [rows, caption_slots, caption_dim]."""
        return self.cls_embedding.uncond_embedding.expand(rows, -1, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] after the final norm -> logits [..., V], float32 or wider."""
        return at_least_float32(self.output(hidden))

    # --- teacher forcing

    def hidden(
        self,
        tokens: Tensor,
        caption: Tensor,
        caption_mask: Tensor | None,
        features: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm at every position, [B, caption_slots + n, D]. Arguments as in `forward`; `states`, if
        given, receives those after each layer, before any norm."""
        embedded = self.embed_tokens(tokens)  # [B, n, D]
        if features is not None:
            embedded = embedded + features.to(embedded.dtype)  # E(x) + f^I, CIAR's interval features
        x = torch.cat([self.embed_caption(caption), embedded], dim=1)  # [B, slots + n, D]
        x = F.dropout(x, self.dropout.token, self.training)
        length = x.shape[1]
        mask = None
        if caption_mask is not None:
            positions = torch.arange(length, device=x.device).unsqueeze(0)  # [1, slots + n]
            mask = attention_mask(
                positions, length, caption_mask, self.config.caption_slots
            )  # [B, slots + n, slots + n]
        return self._run(x, Pass(self._rotation(x, slice(None, length)).unsqueeze(0), mask), states)

    def forward(
        self, tokens: Tensor, caption: Tensor, caption_mask: Tensor | None, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing: every prediction of tokens 0..n given tokens 0..n-1.

        tokens: int [B, n], n <= T. caption: [B, caption_slots, caption_dim]. caption_mask: bool [B, caption_slots] or
        None (purely causal). features: [B, n, D], added to the token embeddings, or None.
        Returns logits [B, n + 1, V] (row t predicts token t) and the hidden states [B, n + 1, D] they come from.
        """
        hidden = self.hidden(tokens, caption, caption_mask, features)[
            :, self.config.caption_slots - 1 :
        ]  # [B, n + 1, D]
        return self.logits(hidden), hidden

    def _run(self, x: Tensor, p: Pass, states: list[Tensor] | None = None) -> Tensor:
        for layer, block in enumerate(self.layers):
            x = block(x, layer, p)
            if states is not None:
                states.append(x)
        normed: Tensor = self.norm(x)
        return normed
