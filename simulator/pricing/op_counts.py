"""Operation counts (flops, weights, kernels) of work other than forward passes."""

from collections.abc import Sequence

from pydantic import Field

from simulator.core.settings import Settings
from simulator.protocol.ops import INTERVAL_SAMPLES


class OpCount(Settings):
    """Operation counts of one `Compute`.

    Attributes:
        flops: Floating-point operations, 2 per multiply-add.
        parameters: Weights read.
        unread: Weights that memory holds in addition, such as other rows of an embedding.
        activation_values: Activations that kernels read and write, in values of 2 bytes.
        kernels: Kernels launched.
    """

    flops: float = Field(ge=0)
    parameters: int = Field(ge=0)
    unread: int = Field(default=0, ge=0)
    activation_values: int = Field(default=0, ge=0)
    kernels: int = Field(ge=0)


def vq_decoder_op_count(
    latent_side: int,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    z_channels: int = 256,
    codebook_dim: int = 8,
    num_res_blocks: int = 2,
    patch: int = 1,
    level_attention: bool = True,
) -> OpCount:
    """Count one run of a VQGAN image decoder, convolution by convolution. The defaults are those of LlamaGen's VQ-16.

    Source: LlamaGen, image tokenizer: 1x1 to z_channels, 3x3 to the widest level, Res-Attn-Res, then the levels from the
    lowest resolution with one ResBlock more than in the encoder, attention on the lowest level only, nearest x2 and 3x3 between
    levels, norm, 3x3 to RGB. Norms, activations and sums count by the values that they read and write, not as flops.

    Args:
        latent_side: Side of the grid of codes.
        ch: Width of the narrowest level.
        ch_mult: Multiples of ch, from the highest resolution to the lowest.
        z_channels: Channels of the latent.
        codebook_dim: Width of a code.
        num_res_blocks: ResBlocks of an encoder level; a decoder level has one more.
        patch: Side of the square of pixels that the last convolution gives per position.
        level_attention: Whether the lowest level has attention (Chameleon's VQGAN has it in the middle only).
    """
    flops = parameters = values = kernels = 0

    def conv(inputs: int, outputs: int, size: int, side: int) -> None:
        nonlocal flops, parameters, values, kernels
        flops += 2 * side * side * inputs * outputs * size * size
        parameters += inputs * outputs * size * size + outputs
        values += side * side * (inputs + outputs)
        kernels += 1

    def pointwise(channels: int, side: int, count: int = 1, learned: bool = False) -> None:
        nonlocal parameters, values, kernels
        parameters += 2 * channels * learned
        values += 2 * side * side * channels * count
        kernels += count

    def norm_act(channels: int, side: int) -> None:
        pointwise(channels, side, learned=True)
        pointwise(channels, side)

    def res(inputs: int, outputs: int, side: int) -> None:
        norm_act(inputs, side)
        conv(inputs, outputs, 3, side)
        norm_act(outputs, side)
        conv(outputs, outputs, 3, side)
        if inputs != outputs:
            conv(inputs, outputs, 1, side)
        pointwise(outputs, side)  # the sum

    def attention(channels: int, side: int) -> None:
        nonlocal flops, values, kernels
        pointwise(channels, side, learned=True)
        for _ in range(4):  # q, k, v, output
            conv(channels, channels, 1, side)
        flops += 4 * side**4 * channels
        values += 4 * side * side * channels
        kernels += 1
        pointwise(channels, side)

    widths = [ch * mult for mult in reversed(ch_mult)]
    side, width = latent_side, widths[0]
    conv(codebook_dim, z_channels, 1, side)
    conv(z_channels, width, 3, side)
    res(width, width, side)
    attention(width, side)
    res(width, width, side)
    for level, outputs in enumerate(widths):
        for _ in range(num_res_blocks + 1):
            res(width, outputs, side)
            width = outputs
            if level == 0 and level_attention:
                attention(width, side)
        if level < len(widths) - 1:
            side *= 2
            pointwise(width, side)
            conv(width, width, 3, side)
    norm_act(width, side)
    conv(width, 3 * patch**2, 3, side)
    return OpCount(flops=flops, parameters=parameters, activation_values=values, kernels=kernels)


def text_encoder_op_count(
    positions: int, n_layer: int, dim: int, inner: int, ffn_hidden: int, ffn_matrices: int = 3, vocab_size: int = 0
) -> OpCount:
    """Count one run of a T5 encoder.

    Flops: 2 per weight and position, 4 * inner per query-key pair and layer. The weights read include `positions` rows of the embedding,
    not the whole table. Kernels: about 20 per layer (two norms of 3, q, k, v, scores, bias, softmax, values, output, 4 of the FFN, two
    sums).

    Args:
        positions: Positions, padding included.
        n_layer: Layers.
        dim: Width of the residual stream.
        inner: Number of heads times their width.
        ffn_hidden: Width of the feed-forward part.
        ffn_matrices: 3 for a gated feed-forward part (T5 1.1, flan-T5), 2 for a plain one.
        vocab_size: Rows of the embedding; 0 if only those read count.
    """
    weights = n_layer * (4 * dim * inner + ffn_matrices * dim * ffn_hidden + 2 * dim) + dim
    flops = 2 * positions * weights + 4 * n_layer * inner * positions**2
    unread = max(0, vocab_size - positions) * dim
    return OpCount(flops=flops, parameters=weights + positions * dim, unread=unread, kernels=20 * n_layer)


def phi_op_count(dim: int, vocab_size: int, bottleneck: int) -> OpCount:
    """Count CIAR's feature projection phi for one token: (D + 2V) x bottleneck, GELU, bottleneck x D (assumption A8)."""
    weights = (dim + 2 * vocab_size) * bottleneck + bottleneck * dim
    return OpCount(flops=2 * weights, parameters=weights, kernels=4)


def interval_samples_op_count(vocab_size: int) -> OpCount:
    """Count the drawing of `INTERVAL_SAMPLES` distributions from a box of logits, and their bounds.

    Per sample and code: noise (10 flops a draw), c + noise r, softmax, running minimum and maximum: about 20 flops and 8 values.
    """
    entries = INTERVAL_SAMPLES * vocab_size
    return OpCount(flops=20 * entries, parameters=0, activation_values=8 * entries, kernels=6)
