"""VAR's transformer: each pass predicts a whole token map from the sum of all smaller ones.

Source: Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (VAR), architecture and
checkpoint key names of its models (`var_d16.pth` to `var_d36.pth`).

One sequence is the maps of all scales, the smallest first, each in raster order. The input of the first position is the class. The inputs
of a later scale are the sum of all maps before it, resized to its side (`models.var.tokenizer`). A position attends to its own scale and
all smaller ones.

Letters: B batch, R rows of one pass (B, or 2B with guidance), T tokens of all scales, n new positions, K keys read, D width, H heads,
hd = D / H, V codebook, C width of a code.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import at_least_float32
from simulator.protocol.var import MODULATION, SharedVarConfig, VarConfig

LARGEST_SCALE = math.log(100.0)  # upper bound of a head's learned scale of attention scores, as a logarithm
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Condition:
    """The vectors that depend on the class of each row, the same in all passes of an image.

    Attributes:
        start: [R, 1, D], input of the first position.
        layers: per layer [R, 6, 1, D]: the gains of attention and feed-forward part, the scales of the norms before them, their shifts.
        head: [R, 2, 1, D], scale and shift of the norm before the head.
    """

    start: Tensor
    layers: list[Tensor]
    head: Tensor


class ScaleCache:
    """Keys and values of an image's first positions, each [L, R, H, length, hd]; all rows have the same length."""

    def __init__(self, config: VarConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, rows, config.n_head, length, config.head_dim)
        self.k, self.v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))

    def extend(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [R, H, n, hd] at the positions from `start` on, and return all keys and values up to their end."""
        end = start + k.shape[2]
        self.k[layer, :, :, start:end], self.v[layer, :, :, start:end] = k, v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class ScaleAttention(nn.Module):
    """Attention with l2-normalised queries and keys and a learned scale per head; keys have no bias."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.scale_mul_1H11 = nn.Parameter(torch.zeros(1, config.n_head, 1, 1))  # logarithm of the scale
        self.mat_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(config.dim)) for _ in range(2))
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, layer: int, start: int, cache: ScaleCache | None, mask: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = F.linear(x, self.mat_qkv.weight, bias).view(*x.shape[:2], 3, self.n_head, -1)  # [R, n, 3, H, hd]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [R, H, n, hd]
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(LARGEST_SCALE).exp()
        k = F.normalize(k, dim=-1)
        if cache is not None:
            k, v = cache.extend(layer, start, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        mixed: Tensor = self.proj(y.transpose(1, 2).flatten(2))  # [R, n, D]
        return mixed


class PlainFeedForward(nn.Module):
    """Feed-forward part: fc2(gelu_tanh(fc1 x))."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.ffn_hidden)
        self.fc2 = nn.Linear(config.ffn_hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


def class_projection(dim: int, vectors: int) -> nn.Sequential:
    """Return the projection of a class embedding to a number of vectors of width D."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, vectors * dim))


def projected(projection: nn.Module, embedded: Tensor) -> Tensor:
    """Return the vectors [R, vectors, 1, D] that a projection computes from class embeddings [R, D]."""
    found: Tensor = projection(embedded)
    return found.view(len(embedded), -1, 1, embedded.shape[1])


class HeadNorm(nn.Module):
    """The projection of the class to scale and shift of the norm before the head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ada_lin = class_projection(dim, 2)


class ScaleBlock(nn.Module):
    """h = x + g1 Attention(N1(x)); y = h + g2 FFN(N2(h)).

    Gains and norms depend on the class: through the layer's own projection, or through a projection that all layers share, to which
    each layer adds its own vectors.
    """

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.attn = ScaleAttention(config)
        self.ffn = PlainFeedForward(config)
        if isinstance(config, SharedVarConfig):
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, MODULATION, config.dim))
        else:
            self.ada_lin = class_projection(config.dim, MODULATION)

    def vectors_of(self, embedded: Tensor, shared: Tensor | None) -> Tensor:
        """Return the layer's vectors [R, 6, 1, D] (`Condition.layers`).

        Args:
            embedded: class embeddings [R, D].
            shared: [R, 6, 1, D] from the shared projection; None if each layer has its own.
        """
        if shared is None:
            return projected(self.ada_lin, embedded)
        return shared + self.ada_gss.transpose(1, 2)

    def forward(
        self, x: Tensor, vectors: Tensor, layer: int, start: int, cache: ScaleCache | None, mask: Tensor | None
    ) -> Tensor:
        gain1, gain2, scale1, scale2, shift1, shift2 = vectors.unbind(1)  # each [R, 1, D]
        h = x + gain1 * self.attn(modulated(x, scale1, shift1), layer, start, cache, mask)
        y: Tensor = h + gain2 * self.ffn(modulated(h, scale2, shift2))
        return y


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return layer_norm(x) * (1 + scale) + shift for x [R, n, D]; scale and shift: [R, 1, D]."""
    return F.layer_norm(at_least_float32(x), (x.shape[-1],), eps=NORM_EPS).to(x.dtype) * (1 + scale) + shift


class VarTransformer(nn.Module):
    """The transformer. Parameter names are those of VAR's checkpoints.

    Args:
        config: its shape.
        classes: number of classes without the null class, which is the last.
        code_dim: C.
    """

    def __init__(self, config: VarConfig, classes: int, code_dim: int) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.word_embed = nn.Linear(code_dim, config.dim)
        self.class_emb = nn.Embedding(classes + 1, config.dim)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_1LC = nn.Parameter(torch.zeros(1, config.tokens, config.dim))
        self.lvl_embed = nn.Embedding(len(config.scales), config.dim)
        if isinstance(config, SharedVarConfig):
            self.shared_ada_lin = class_projection(config.dim, MODULATION)
        self.blocks = nn.ModuleList([ScaleBlock(config) for _ in range(config.n_layer)])
        self.head_nm = HeadNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size)

    def levels(self) -> Tensor:
        """Return the scale index of every position, int [T]."""
        sizes = torch.tensor([side * side for side in self.config.scales])
        return torch.arange(len(sizes)).repeat_interleave(sizes).to(self.pos_1LC.device)

    def strengths(self, guidance: float) -> Tensor:
        """Return the scale s of `models.sampling.guide` at every position, float64 [T].

        It is 1 + guidance * k / (S - 1) in map k = 0 .. S - 1, as in VAR.
        """
        return 1 + guidance * self.levels().double() / (len(self.config.scales) - 1)

    def condition(self, labels: Tensor) -> Condition:
        """Return the condition of class labels int [R]; the label `classes` is the null class."""
        embedded = self.class_emb(labels)  # [R, D]
        shared = projected(self.shared_ada_lin, embedded) if isinstance(self.config, SharedVarConfig) else None
        vectors = [block.vectors_of(embedded, shared) for block in self.blocks if isinstance(block, ScaleBlock)]
        return Condition(embedded.unsqueeze(1) + self.pos_start, vectors, projected(self.head_nm.ada_lin, embedded))

    def step(self, condition: Condition, maps: Tensor, start: int = 0, cache: ScaleCache | None = None) -> Tensor:
        """Continue R sequences of `start` positions by whole scales, in one pass.

        Args:
            condition: condition of the rows' classes.
            maps: [R, m, C], inputs of the new positions without the first position of the sequence, whose input is the class.
            start: positions in the cache.
            cache: keys and values of these positions; the new ones are added. None: start is 0, and no keys and values are stored.

        Returns:
            Hidden states after the last layer at the new positions, [R, n, D].
        """
        x = self.word_embed(maps.to(self.word_embed.weight.dtype))  # [R, m, D]
        if start == 0:
            x = torch.cat([condition.start, x], dim=1)  # [R, n, D]
        end = start + x.shape[1]
        levels = self.levels()[:end]
        new = levels[start:]
        x = x + self.lvl_embed(new) + self.pos_1LC[:, start:end]
        alone = bool(new[0] == new[-1])  # the positions of a single new scale attend to all positions
        mask = None if alone else new.unsqueeze(1) >= levels  # [n, K]
        hidden: Tensor = x
        for layer, (block, vectors) in enumerate(zip(self.blocks, condition.layers, strict=True)):
            hidden = block(hidden, vectors, layer, start, cache, mask)
        return hidden

    def logits(self, hidden: Tensor, condition: Condition, rows: slice) -> Tensor:
        """Return the logits [r, n, V], float32 or wider, of hidden states [r, n, D]. rows: their rows of the condition."""
        scale, shift = condition.head[rows].unbind(1)  # each [r, 1, D]
        return at_least_float32(self.head(modulated(hidden, scale, shift)))
