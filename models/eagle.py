"""EAGLE's feature-level drafter: one decoder layer that predicts the base model's next feature from the last feature and a token.

The input at position j is fc([E(token j + 1); F_j]), where F_j is the base model's output after its final norm. The layer has no input
norm and no final norm. Its output is an estimate of F_(j+1): the base model's output matrix turns it into logits, and deeper levels of a
tree use it as their feature.

Source: Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty"; layouts and details are those of LANTERN's ports
(Jang et al., "LANTERN: Accelerating Visual Autoregressive Models with Relaxed Speculative Decoding"). E is the drafter's own table if
its file has one: LANTERN's are copied from the base model, for LlamaGen from its output matrix.

* LlamaGen: inputs are shifted by one token, so the rotary table starts one position earlier than the base model's. Caption positions
  have token id 0, and no padding is masked. The RMS norm's eps is 1e-6.
* Chameleon (Anole): the layer is the base model's, with its input norm and the norms of queries and keys. It reads the prompt's text
  tokens; padding is masked as in the base model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.attention import line_rope_table, paired_channels, repeat_heads
from models.kv_cache import OVERHANG, CachedDecoder, Pass
from models.llama import HeadNorm, prompt_tokens
from models.state import build, refuse_misfits, unallocated
from models.transformer import Attention, FeedForward, RMSNorm, Transformer
from simulator.core.errors import WeightsError
from simulator.protocol.llama import LlamaConfig
from simulator.protocol.pairs import TransformerConfig

NORM_EPS = 1e-6
TABLE, GATE = "embed_tokens.weight", "layers.0.mlp.gate_proj.weight"  # keys of the reference's checkpoints
COMPUTED = "rotary_emb.inv_freq"  # suffix of a table that older versions of transformers saved
CAPTION_TOKEN = 0  # token id at caption positions, which have no next image token

# By our parameter, the keys of the reference's checkpoints whose rows it concatenates, in this order.
CHECKPOINT_KEYS: dict[str, tuple[str, ...]] = {
    "embeddings.weight": ("embed_tokens.weight",),
    "fc.weight": ("fc.weight",),
    "fc.bias": ("fc.bias",),
    "attention_norm.weight": ("layers.0.input_layernorm.weight",),
    "attention.wqkv.weight": tuple(f"layers.0.self_attn.{x}_proj.weight" for x in "qkv"),
    "attention.qk_norm.weight": tuple(f"layers.0.self_attn.{x}_norm.weight" for x in "qk"),
    "attention.qk_norm.bias": tuple(f"layers.0.self_attn.{x}_norm.bias" for x in "qk"),
    "attention.wo.weight": ("layers.0.self_attn.o_proj.weight",),
    "feed_forward.w1.weight": ("layers.0.mlp.gate_proj.weight",),
    "feed_forward.w3.weight": ("layers.0.mlp.up_proj.weight",),
    "feed_forward.w2.weight": ("layers.0.mlp.down_proj.weight",),
    "ffn_norm.weight": ("layers.0.post_attention_layernorm.weight",),
}


class EagleDrafter(CachedDecoder):
    """The drafter without the head, which is the base model's.

    Args:
        config: its shape, from `drafter_config`.
        own_table: whether it has its own embeddings; if not, they are the base model's.

    Attributes:
        codes: row of the embeddings for every image code, int [V]; None: its number.
    """

    codes: Tensor | None

    def __init__(self, config: TransformerConfig, own_table: bool = False) -> None:
        super().__init__(config, unrotated=config.caption_slots - 1)
        self.reads_prompt = isinstance(config, LlamaConfig)
        self.captions_as_one = not self.reads_prompt
        rows = config.text_vocab if isinstance(config, LlamaConfig) else config.vocab_size
        self.embeddings = nn.Embedding(rows, config.dim) if own_table else None
        self.register_buffer("codes", None, persistent=False)
        self.fc = nn.Linear(2 * config.dim, config.dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps) if self.reads_prompt else nn.Identity()
        self.attention = Attention(config)
        if isinstance(config, LlamaConfig) and config.qk_norm:
            self.attention.qk_norm = HeadNorm(2 * config.n_head, config.head_dim)
        self.feed_forward = FeedForward(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, 0.02)

    def embed_tokens(self, ids: Tensor, base: Transformer) -> Tensor:
        """Return E [..., D] of image tokens int [...]."""
        if self.embeddings is None:
            return base.embed_tokens(ids)
        embedded: Tensor = self.embeddings(ids if self.codes is None else self.codes[ids])
        return embedded

    def embed_prompt(self, rows: Tensor, base: Transformer) -> Tensor:
        """Return E [..., D] of prompt tokens, given as caption rows [..., 2]."""
        if self.embeddings is None:
            return base.embed_caption(rows)
        embedded: Tensor = self.embeddings(prompt_tokens(rows))
        return embedded

    def inputs(self, embedded: Tensor, features: Tensor) -> Tensor:
        """Return the layer's input [..., D] from E(next token) [..., D] and the feature before it [..., D]."""
        x: Tensor = self.fc(torch.cat([embedded, features.to(embedded.dtype)], dim=-1))
        return x

    def forward(self, embedded: Tensor, features: Tensor) -> Tensor:
        """Return the teacher-forced predicted features [B, n, D] at every position, from embeddings and features [B, n, D]."""
        x = self.inputs(embedded, features)
        return self._run(x, Pass(self._rotation(x, slice(None, x.shape[1])).unsqueeze(0), None))

    def _run(self, x: Tensor, p: Pass) -> Tensor:
        h = x + self.attention(self.attention_norm(x), 0, p)
        y: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return y

    def _rope_table(self) -> Tensor:
        if self.reads_prompt:
            return line_rope_table(self.config, self.config.positions + OVERHANG)
        return super()._rope_table()


def drafter_config(
    base: TransformerConfig, ffn_hidden: int | None = None, norm_eps: float | None = None
) -> TransformerConfig:
    """Return the shape of a drafter: the base model's with one layer.

    Args:
        base: shape of the base model.
        ffn_hidden: width of the feed-forward part; None: the base model's.
        norm_eps: eps of its RMS norms; None: the base model's, for LlamaGen 1e-6.
    """
    eps = norm_eps or (base.norm_eps if isinstance(base, LlamaConfig) else NORM_EPS)
    return replace(base, n_layer=1, norm_eps=eps, ffn_hidden=ffn_hidden or base.ffn_hidden)


def to_checkpoint(drafter: EagleDrafter) -> dict[str, Tensor]:
    """Return the weights of a drafter for a LlamaGen model under the reference's keys."""
    assert not drafter.reads_prompt, "Chameleon's layout has another order of channels"
    return _under_their_keys(drafter)


def _under_their_keys(drafter: EagleDrafter) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in drafter.state_dict().items():
        names = CHECKPOINT_KEYS[key]
        state.update(zip(names, value.chunk(len(names)), strict=True))
    return state


def from_checkpoint(
    state: Mapping[str, Tensor],
    base: TransformerConfig,
    source: Path | str,
    norm_eps: float | None = None,
    codes: Sequence[int] = (),
) -> EagleDrafter:
    """Build a drafter from weights under the reference's keys.

    Args:
        state: tensors by key.
        base: shape of the model it drafts for.
        source: file, for messages.
        norm_eps: eps of its RMS norms; None: see `drafter_config`.
        codes: text token of every image code, whose embedding is that token's; empty if codes have their own.

    Raises:
        WeightsError: keys are missing or unknown, have another shape, or values that are not finite; the message names the file and
            lists the keys.
    """
    state = {key: tensor for key, tensor in state.items() if not key.endswith(COMPUTED)}
    gate = state.get(GATE)
    try:
        config = drafter_config(base, len(gate) if gate is not None and gate.dim() else None, norm_eps)
    except ValueError as error:
        raise WeightsError(f"{source}: {GATE} gives an impossible width: {error}") from error
    with unallocated():
        needed = EagleDrafter(config, TABLE in state)
    state |= _every_head(state, config)
    refuse_misfits(_under_their_keys(needed), state, source, exact=True, finite=True)
    if needed.reads_prompt:
        state |= {
            key: paired_channels(state[key].reshape(config.dim, -1), config.n_head).reshape(state[key].shape)
            for key in state
            if re.search(r"self_attn\.[qk]_", key)
        }
    ours = {  # in one type: torch joins no float8 with others
        key: torch.cat([state[name].to(tensor.dtype) for name in CHECKPOINT_KEYS[key]])
        for key, tensor in needed.state_dict().items()
    }
    drafter = build(lambda: EagleDrafter(config, TABLE in state), ours, source)
    if TABLE in state and codes:
        drafter.codes = torch.tensor(codes)
    return drafter


def _every_head(state: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Return keys, their norms and values repeated for every head if heads share them; nothing if their shapes do not fit."""
    k, v = (state.get(f"layers.0.self_attn.{x}_proj.weight", torch.empty(0)) for x in "kv")
    groups, rest = divmod(len(k), config.head_dim) if k.dim() == 2 else (0, 1)
    if k.shape != v.shape or rest or not groups or config.n_head % groups:
        return {}
    return {
        key: repeat_heads(tensor, groups, config.n_head // groups)
        for key, tensor in state.items()
        if re.search(r"self_attn\.(k|v)_", key) and tensor.dim() and len(tensor) % groups == 0
    }
