"""Initial weights of the cloud model: codebook embeddings, caption heads, a non-linear caption projection."""

import math

import numpy as np
import torch
from torch import Tensor

from models.train.sequences import Batch
from models.transformer import Attention, CaptionEmbedding, Transformer

SHARED_LEVEL = 10.0  # constant channel of the embeddings, relative to the root mean square of the others
COUNT_SCORE, READ_SCORE = 0.8, -8.0  # see `start_first_layer`


@torch.no_grad()
def start_from_codes(model: Transformer, codebook: Tensor, rng: np.random.Generator) -> None:
    """Initialise embeddings and output rows as smooth functions of the code vectors, so that similar codes start alike.

    Random Fourier features (Rahimi & Recht 2007) of a Gaussian kernel of width 1/2: neighbouring codes (distance about
    0.2) get nearly equal rows, distant codes independent ones. Otherwise the model has to learn from co-occurrence
    alone that most codes are interchangeable with others.

    Args:
        codebook: float [V, C], unit rows.
        rng: directions and phases of the features.
    """
    for table in (model.tok_embeddings.weight, model.output.weight):  # both [V, D]
        width = table.shape[1]
        directions = torch.from_numpy(2.0 * rng.standard_normal((codebook.shape[1], width))).to(table)
        phases = torch.from_numpy(rng.uniform(0.0, 2 * np.pi, width)).to(table)
        table.copy_(0.02 * 2**0.5 * torch.cos(codebook.to(table) @ directions + phases))


@torch.no_grad()
def start_first_layer(model: Transformer) -> None:
    """Initialise the first layer's heads: two count rows and columns, the others read the caption.

    Rotary positions encode offsets only. A token's absolute position follows from how many tokens it sees relative to
    the caption, whose keys are zero. The caption's share of the attention falls as the image grows, unless a head
    ignores the image. Both can be learned, but after a thousand steps a model of this size knew columns to within
    three cells only, and nothing of an object's colour in the middle of the image.

    One channel of all embeddings is set to a constant; queries and keys that read only this channel score offsets only.
    The counting heads score an offset D along their axis by 9 (cos D + cos f1 D + cos f2 D) + flat, with the axis's
    three fastest frequencies, and its slowest for the flat part: COUNT_SCORE at D = 0 and, with 64 channels a head, at
    least 6 less at 1 to 15. The n tokens of a token's own row (head 0) or column (head 1) then get
    n e^s / (n e^s + caption rows) of the attention, and the value is the constant channel, so the head outputs that
    share. The caption-reading heads score every image key READ_SCORE; their values and outputs start at unit gain.
    Needs at least three heads of 16 channels.
    """
    heads, width = model.config.n_head, model.config.head_dim
    per_axis = width // 4  # rotary pairs
    table = model.tok_embeddings.weight  # [V, D]
    table[:, 0] = SHARED_LEVEL * table[:, 1:].square().mean().sqrt()
    # The shared channel after RMSNorm.
    normed = SHARED_LEVEL / ((SHARED_LEVEL**2 + table.shape[1] - 1) / table.shape[1]) ** 0.5
    attention = model.layers[0].get_submodule("attention")
    assert isinstance(attention, Attention)
    q, k, v = attention.wqkv.weight.view(3, heads, width, -1)  # each [H, hd, D]
    q.zero_()
    k.zero_()
    for head in range(heads):
        axis = per_axis * (head % 2)
        sharp = [(axis + pair, 9.0) for pair in range(3)] if head < 2 else []
        flat = COUNT_SCORE - 27.0 if head < 2 else READ_SCORE
        for pair, score in (*sharp, (axis + per_axis - 1, flat)):
            size = (abs(score) * width**0.5) ** 0.5 / normed
            q[head, 2 * pair, 0] = size
            k[head, 2 * pair, 0] = math.copysign(size, score)
    v[:2].zero_()
    v[:2, 0, 0] = 16.0 / normed  # the scale of the caption-reading heads' outputs
    gain = model.config.dim**-0.5 / 0.02
    v[2:] *= gain
    attention.wo.weight[:, 2 * width :] *= gain


@torch.no_grad()
def start_from_captions(model: Transformer, batch: Batch, rng: np.random.Generator) -> None:
    """Initialise the caption projection so that its GELU is non-linear: unit scale in and out on this batch's rows.

    Caption keys are zero (`rope_table`), so image tokens see the mean of the caption's rows, and only products of
    words within a row (place and colour, place and shape) encode which object is where. LlamaGen's standard deviation
    of 0.02, meant for T5's wide features, leaves the GELU nearly linear on rows this narrow, and the mean then holds no
    such product: a ridge regression on the mean of random projections finds an object's colour at 59 % of places if
    they are linear, at 97 % if they are not.

    Args:
        batch: captions whose scale is used.
        rng: the random weights.
    """
    rows = batch.caption[batch.mask]  # [rows, caption_dim]
    assert isinstance(model.cls_embedding, CaptionEmbedding)
    projection = model.cls_embedding.cap_proj
    for linear, scale in ((projection.fc1, rows.norm(dim=1).mean()), (projection.fc2, projection.fc2.in_features**0.5)):
        linear.weight.copy_(torch.from_numpy(rng.standard_normal(tuple(linear.weight.shape))) / scale)
