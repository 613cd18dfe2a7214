"""EAGLE's feature-level drafter: one decoder layer that predicts the base model's next feature from the last feature and a token.

The input at position j is fc([E(token j + 1); F_j]), where F_j is the base model's output after its final norm. The layer has no input
norm and no final norm. Its output is an estimate of F_(j+1): the base model's output matrix turns it into logits, and deeper levels of a
tree use it as their feature.

Source: Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty"; layout and details are those of LANTERN's port to
LlamaGen (Jang et al., "LANTERN: Accelerating Visual Autoregressive Models with Relaxed Speculative Decoding"). Inputs are shifted
by one token, so the rotary table starts one position earlier than the base model's. Caption positions have token id 0, and no
padding is masked. The RMS norm's eps is 1e-6.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.attention import repeat_heads
from models.kv_cache import CachedDecoder, Pass
from models.state import build, unallocated
from models.transformer import Attention, FeedForward, RMSNorm
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import TransformerConfig

NORM_EPS = 1e-6
CAPTION_TOKEN = 0  # token id at caption positions, which have no next image token

# By our parameter, the keys of the reference's checkpoints whose rows it concatenates, in this order.
CHECKPOINT_KEYS: dict[str, tuple[str, ...]] = {
    "fc.weight": ("fc.weight",),
    "fc.bias": ("fc.bias",),
    "attention.wqkv.weight": tuple(f"layers.0.self_attn.{x}_proj.weight" for x in "qkv"),
    "attention.wo.weight": ("layers.0.self_attn.o_proj.weight",),
    "feed_forward.w1.weight": ("layers.0.mlp.gate_proj.weight",),
    "feed_forward.w3.weight": ("layers.0.mlp.up_proj.weight",),
    "feed_forward.w2.weight": ("layers.0.mlp.down_proj.weight",),
    "ffn_norm.weight": ("layers.0.post_attention_layernorm.weight",),
}


class EagleDrafter(CachedDecoder):
    """The drafter without embedding and head, which are the base model's. Its `config` comes from `drafter_config`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, unrotated=config.caption_slots - 1)
        self.fc = nn.Linear(2 * config.dim, config.dim)
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name == "fc.bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, 0.02)

    def inputs(self, embedded: Tensor, features: Tensor) -> Tensor:
        """Return the layer's input [..., D] from E(next token) [..., D] and the feature before it [..., D]."""
        x: Tensor = self.fc(torch.cat([embedded, features.to(embedded.dtype)], dim=-1))
        return x

    def forward(self, embedded: Tensor, features: Tensor) -> Tensor:
        """Return the teacher-forced predicted features [B, n, D] at every position, from embeddings and features [B, n, D]."""
        x = self.inputs(embedded, features)
        return self._run(x, Pass(self._rotation(x, slice(None, x.shape[1])).unsqueeze(0), None))

    def _run(self, x: Tensor, p: Pass) -> Tensor:
        h = x + self.attention(x, 0, p)
        y: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return y


def drafter_config(
    base: TransformerConfig, ffn_hidden: int | None = None, norm_eps: float = NORM_EPS
) -> TransformerConfig:
    """Return the shape of a drafter: the base model's with one layer and its own norm eps. `ffn_hidden` None: the base model's."""
    return replace(base, n_layer=1, norm_eps=norm_eps, ffn_hidden=ffn_hidden or base.ffn_hidden)


def to_checkpoint(drafter: EagleDrafter) -> dict[str, Tensor]:
    """Return the drafter's weights under the reference's keys, without the embedding."""
    state: dict[str, Tensor] = {}
    for key, value in drafter.state_dict().items():
        names = CHECKPOINT_KEYS[key]
        state.update(zip(names, value.chunk(len(names)), strict=True))
    return state


def _every_head(state: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Return keys and values repeated for every head if heads share them; nothing if their shapes do not fit."""
    names = CHECKPOINT_KEYS["attention.wqkv.weight"][1:]
    k, v = (state[name] for name in names)
    groups, rest = divmod(len(k), config.head_dim) if k.dim() == 2 else (0, 1)
    if k.shape != v.shape or rest or not groups or config.n_head % groups:
        return {}
    return {name: repeat_heads(state[name], groups, config.n_head // groups) for name in names}


def from_checkpoint(
    state: Mapping[str, Tensor], base: TransformerConfig, source: Path | str, norm_eps: float = NORM_EPS
) -> EagleDrafter:
    """Build a drafter from weights under the reference's keys. Other keys, such as a copy of the embedding, are ignored.

    Args:
        state: tensors by key.
        base: shape of the model it drafts for.
        source: file, for messages.
        norm_eps: eps of its RMS norm.

    Raises:
        WeightsError: a key is missing or has another shape; the message names file and key.
    """
    for name in (name for names in CHECKPOINT_KEYS.values() for name in names):
        if name not in state:
            raise WeightsError(f"{source}: {name} is missing: not a feature-level drafter")
    gate = state["layers.0.mlp.gate_proj.weight"]
    try:
        config = drafter_config(base, len(gate), norm_eps)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: layers.0.mlp.gate_proj.weight has shape {list(gate.shape)}: {error}") from error
    state = {**state, **_every_head(state, config)}
    with unallocated():
        needed = EagleDrafter(config).state_dict()
    for key, names in CHECKPOINT_KEYS.items():
        shape = [needed[key].shape[0] // len(names), *needed[key].shape[1:]]
        for name in names:
            if list(state[name].shape) != shape:
                raise WeightsError(f"{source}: {name} has shape {list(state[name].shape)}, needed {shape}")
    ours = {key: torch.cat([state[name] for name in names]) for key, names in CHECKPOINT_KEYS.items()}
    return build(lambda: EagleDrafter(config), ours, source)
