"""LlamaGen's text-to-image decoder: blocks and model.

Source: Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (LlamaGen), architecture
and checkpoint key names of its text-to-image GPT. The cloud runs this model; CIAR's device runs the same architecture
with one layer. Its configuration is `simulator.protocol.pairs.TransformerConfig`.

One sequence is `caption_slots` caption rows, then the image tokens in raster order. Row `caption_slots - 1` (the last
caption row) predicts token 0, and the row of token t predicts token t + 1.

* `Transformer.forward` processes whole sequences at once (teacher forcing, for training and scoring);
* `CachedDecoder.step` continues many sequences, or draft trees, of different lengths with a `KVCache` (decoding).

Letters: B batch, R rows of one pass (B, or 2B with guidance), T = grid * grid image tokens, S = caption_slots + T
positions, n new positions, N new positions of all rows together, K keys read, D width, H heads, hd = D / H, V codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import at_least_float32, attend, attention_mask, rotate
from models.kv_cache import CachedDecoder, Pass
from simulator.protocol.pairs import TransformerConfig


@dataclass(frozen=True)
class Dropout:
    """Dropout probabilities in training; LlamaGen uses 0.1 everywhere. No effect in `eval()` mode."""

    token: float = 0.0
    residual: float = 0.0
    ffn: float = 0.0
    caption: float = 0.0  # share of captions replaced by the null caption, which guidance requires


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in float32 or wider, cast back to x's type, then scaled."""

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
        self.qk_norm: nn.Module = nn.Identity()  # norm of queries and keys [..., 2H, hd]; LlamaGen has none
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, layer: int, p: Pass) -> Tensor:
        heads = self.wqkv(x).unflatten(-1, (3 * self.n_head, -1))  # [R, n, 3H, hd]
        q, k = rotate(self.qk_norm(heads[:, :, : 2 * self.n_head]), p.rotation).chunk(2, dim=2)
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
        """Write the keys and values of N new positions [N, H, hd] to the cache, and return their attention output [N, D]."""
        assert p.cache is not None
        keys, values = p.cache.k[layer], p.cache.v[layer]  # [rows, H, S + spare, hd]
        keys[p.rows, :, p.columns] = k.to(keys.dtype)
        values[p.rows, :, p.columns] = v.to(values.dtype)
        found = []
        for group, some in zip(p.groups, torch.split(q, [group.size for group in p.groups]), strict=True):
            query = some.view(-1, group.new, *some.shape[1:]).transpose(1, 2)  # [r, H, n, hd]
            seen, read = (store[:, :, group.keys][group.rows].to(q.dtype) for store in (keys, values))  # [r, H, K, hd]
            y = F.scaled_dot_product_attention(query, seen, read, attn_mask=group.mask.to(q.dtype))
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
    """Projection of caption features to model width: fc2(gelu_tanh(fc1 x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return projected


class CaptionEmbedding(nn.Module):
    """The caption path: a projection, and the learned null caption for guidance."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        self.uncond_embedding = nn.Parameter(torch.empty(config.caption_slots, config.caption_dim))

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.cap_proj(features.to(self.uncond_embedding.dtype))
        return projected

    def null(self) -> Tensor:
        """Return the null caption, [caption_slots, caption_dim]."""
        return self.uncond_embedding


class LabelEmbedding(nn.Module):
    """The caption path of a class-conditional model: a caption is one row with one number, the class. The last class is the null class."""

    def __init__(self, config: TransformerConfig, classes: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, config.dim)

    def forward(self, labels: Tensor) -> Tensor:
        embedded: Tensor = self.embedding_table(labels.squeeze(-1).long())
        return embedded

    def null(self) -> Tensor:
        """Return the null class as a caption, [1, 1], in float32, because half precision would round it."""
        return torch.full(
            (1, 1), float(self.embedding_table.num_embeddings - 1), device=self.embedding_table.weight.device
        )


class Transformer(CachedDecoder):
    """The decoder. Parameter names are those of LlamaGen's checkpoints, so `load_state_dict` accepts them unchanged.

    Args:
        config: its shape.
        dropout: dropout probabilities.
        classes: number of classes of a class-conditional model, without the null class; 0: captions are rows of features.
    """

    def __init__(self, config: TransformerConfig, dropout: Dropout = Dropout(), classes: int = 0) -> None:
        super().__init__(config, config.caption_slots)
        self.dropout, self.classes = dropout, classes
        self.recompute = False  # whether to recompute activations in the backward pass: less memory, more time
        self.cls_embedding = LabelEmbedding(config, classes) if classes else CaptionEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList([Block(config, dropout) for _ in range(config.n_layer)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Set LlamaGen's initial weights: normal with std 0.02, norms one, output matrix and biases zero."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                elif name == "output.weight" or name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, 0.02, generator=generator)

    # --- embeddings and head

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the embeddings E(x) [..., n, D] of ids int [..., n]."""
        embedded: Tensor = self.tok_embeddings(ids)
        return embedded

    def embed_caption(self, features: Tensor) -> Tensor:
        """Return the inputs [R, caption_slots, D] of caption features [R, caption_slots, caption_dim], valid rows last."""
        projected: Tensor = self.cls_embedding(features)
        return projected

    def null_caption(self, rows: int) -> Tensor:
        """Return the learned null caption for `rows` sequences, [rows, caption_slots, caption_dim]."""
        return self.cls_embedding.null().expand(rows, -1, -1)

    def unconditional(self, caption: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the caption rows and the mask of the unconditional half: the null caption and the caption's own mask, as in LlamaGen.

        Args:
            caption: [B, caption_slots, caption_dim].
            mask: bool [B, caption_slots].
        """
        return self.null_caption(len(caption)).to(caption), mask

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V], float32 or wider, of hidden states [..., D] after the final norm."""
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
        """Return the teacher-forced hidden states after the final norm at every position, [B, caption_slots + n, D].

        Arguments as in `forward`; to `states`, if given, the hidden states after each layer are appended, before the final norm.
        """
        embedded = self.embed_tokens(tokens)  # [B, n, D]
        if features is not None:
            embedded = embedded + features.to(embedded.dtype)  # E(x) + f^I, CIAR's interval features
        x = torch.cat([self.embed_caption(caption), embedded], dim=1)  # [B, slots + n, D]
        return self._through(F.dropout(x, self.dropout.token, self.training), caption_mask, states)

    def _through(self, x: Tensor, caption_mask: Tensor | None, states: list[Tensor] | None) -> Tensor:
        """Return the hidden states [B, slots + n, D] of inputs x, one per caption slot and token."""
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
        """Return the teacher-forced predictions of tokens 0..n given tokens 0..n-1.

        Args:
            tokens: int [B, n], n <= T.
            caption: [B, caption_slots, caption_dim].
            caption_mask: bool [B, caption_slots], or None (purely causal).
            features: [B, n, D], added to the token embeddings, or None.

        Returns:
            Logits [B, n + 1, V] (row t predicts token t) and the hidden states [B, n + 1, D] they come from.
        """
        hidden = self.hidden(tokens, caption, caption_mask, features)[
            :, self.config.caption_slots - 1 :
        ]  # [B, n + 1, D]
        return self.logits(hidden), hidden

    def _run(self, x: Tensor, p: Pass, states: list[Tensor] | None = None) -> Tensor:
        again = self.recompute and torch.is_grad_enabled()
        for layer, block in enumerate(self.layers):
            x = checkpoint(block, x, layer, p, use_reentrant=False) if again else block(x, layer, p)
            if states is not None:
                states.append(x)
        normed: Tensor = self.norm(x)
        return normed
