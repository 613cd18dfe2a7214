"""A Llama that continues text tokens with image codes: the decoder of Anole, Lumina-mGPT and Janus-Pro.

The blocks are LlamaGen's (`models/transformer.py`), with these differences: the prompt consists of text tokens of the model's own
vocabulary; positions are those of the sequence, with one rotary axis; queries and keys may have a layer norm (Chameleon); a layer may
precede the output matrix (Janus); a row token may follow each row of codes (Lumina-mGPT).

Rotary attention scores depend only on distances, so the absolute position of a left-padded prompt does not matter: cache columns are
used as positions, while the references count from the prompt's first token.

Letters: B batch, R rows of one pass, n new positions, D width, H heads, hd = D / H.
Sources: Chameleon and Janus in transformers (arithmetic); Lumina-mGPT (row tokens).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import line_rope_table
from models.kv_cache import OVERHANG, KVCache, Pass
from models.transformer import Block, Transformer
from simulator.core.errors import WeightsError
from simulator.protocol.llama import BASE, LlamaConfig, digits
from simulator.protocol.pairs import TransformerConfig

QK_NORM_EPS = 1e-5  # a constant in both references, independent of the RMS norms' eps


def prompt_tokens(rows: Tensor) -> Tensor:
    """Return the prompt tokens int [...] of caption rows [..., 2] (`simulator.protocol.llama.digits`)."""
    pair = rows.round().long()
    return pair[..., 0] * BASE + pair[..., 1]


class HeadNorm(nn.Module):
    """Layer norm over the channels of every head, with a scale and a shift per head and channel: [..., heads, hd] -> the same."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS) * self.weight + self.bias


class LlamaDecoder(Transformer):
    """`Transformer` with a prompt of text tokens; see the top of this file.

    Its hidden states are the input of the output matrix: with a `head_layer`, they are taken after it.
    """

    config: LlamaConfig
    captions_as_one = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        del self.cls_embedding
        self.text_embeddings = nn.Embedding(config.text_vocab, config.dim)
        if config.qk_norm:
            for block in self.layers:
                assert isinstance(block, Block)
                block.attention.qk_norm = HeadNorm(2 * config.n_head, config.head_dim)
        self.head_layer = nn.Linear(config.dim, config.dim) if config.head_layer else None
        self.output = nn.Linear(config.dim, config.vocab_size, bias=config.head_layer)
        self.initialise()

    # --- the prompt

    def embed_caption(self, features: Tensor) -> Tensor:
        """Return the embeddings [..., D] of prompt tokens given as two digits [..., 2] (`simulator.protocol.llama.digits`)."""
        embedded: Tensor = self.text_embeddings(prompt_tokens(features))
        return embedded

    def unconditional(self, caption: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.null_tokens:
            rows, valid = torch.zeros_like(caption), torch.zeros_like(mask)
            count = len(self.config.null_tokens)
            rows[:, -count:] = torch.tensor([digits(token) for token in self.config.null_tokens]).to(rows)
            valid[:, -count:] = True
            return rows, valid
        inside = mask & (mask.cumsum(1) > 1)
        inside[:, -1] = False
        pad = torch.tensor(digits(self.config.null_pad)).to(caption)
        return torch.where(inside.unsqueeze(-1), pad, caption), mask

    # --- positions

    def _rope_table(self) -> Tensor:
        """Return the rotary table with one axis, float64 [S + OVERHANG, hd/2, 2], see `line_rope_table`."""
        return line_rope_table(self.config, self.config.positions + OVERHANG)

    def columns(self, positions: int) -> int:
        return positions + (int(self._row_tokens(torch.tensor(positions))) if self.config.row_token >= 0 else 0)

    def step(
        self,
        cache: KVCache,
        rows: Tensor,
        start: Tensor,
        embeds: Tensor,
        n_new: Tensor,
        trees: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Continue sequences as `CachedDecoder.step` does. Callers count only codes; the row token is fed after the last code of a row.

        Raises:
            WeightsError: the model has row tokens and `trees` holds a draft tree.
        """
        if self.config.row_token < 0:
            return super().step(cache, rows, start, embeds, n_new, trees)
        if trees is not None and any(trees):
            raise WeightsError("a model with row tokens cannot verify draft trees")
        before = self._row_tokens(start)
        offset = torch.arange(embeds.shape[1])
        position = start.unsqueeze(1) + offset  # [R, n], without row tokens
        to = offset + self._row_tokens(position) - before.unsqueeze(1)  # [R, n], index of each entry in the pass
        last = to + self._ends_row(position)  # index of the row token after it if there is one, else its own
        more = self._row_tokens(start + n_new) - before
        laid = self._row_embedding(embeds).expand(len(embeds), embeds.shape[1] + int(more.max()), -1).clone()
        row = torch.arange(len(embeds)).unsqueeze(1)
        real = offset < n_new.unsqueeze(1)
        laid[row.expand_as(to)[real], to[real]] = embeds[real.to(embeds.device)]
        hidden = super().step(cache, rows, start + before, laid, n_new + more)
        return hidden[row, torch.where(real, last, 0)]

    def _through(self, x: Tensor, caption_mask: Tensor | None, states: list[Tensor] | None) -> Tensor:
        if self.config.row_token < 0:
            return super()._through(x, caption_mask, states)
        position = torch.arange(x.shape[1])
        to = position + self._row_tokens(position)
        last = to + self._ends_row(position)
        laid = self._row_embedding(x).repeat(len(x), int(last[-1]) + 1, 1).index_copy(1, to.to(x.device), x)
        hidden = super()._through(laid, caption_mask, states)
        if states is not None:
            states[:] = [state[:, last] for state in states]
        return hidden[:, last]

    def _row_tokens(self, position: Tensor) -> Tensor:
        """Return the number of row tokens before a position that counts only prompt slots and codes."""
        return (position - self.config.caption_slots).clamp_min(0) // self.config.grid

    def _ends_row(self, position: Tensor) -> Tensor:
        """Return 1 if the position holds the last code of a row, else 0."""
        return self._row_tokens(position + 1) - self._row_tokens(position)

    def _row_embedding(self, x: Tensor) -> Tensor:
        """Return the row token's embedding [1, 1, D] in x's type."""
        return self.text_embeddings.weight[self.config.row_token].to(x.dtype).view(1, 1, -1)

    def _run(self, x: Tensor, p: Pass, states: list[Tensor] | None = None) -> Tensor:
        hidden = super()._run(x, p, states)
        return hidden if self.head_layer is None else F.gelu(self.head_layer(hidden))


def decoder(config: TransformerConfig, classes: int = 0) -> Transformer:
    """Return a decoder of that shape with initial weights; classes: see `Transformer`."""
    return LlamaDecoder(config) if isinstance(config, LlamaConfig) else Transformer(config, classes=classes)
