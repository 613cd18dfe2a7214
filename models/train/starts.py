"""Starting weights of the cloud model: codebook embeddings, caption heads, a curved caption projection."""

import math

import numpy as np
import torch
from torch import Tensor

from models.train.sequences import Batch
from models.transformer import Attention, Transformer

SHARED_LEVEL = 10.0  # of the embeddings' constant channel, against the others' root mean square
COUNT_SCORE, READ_SCORE = 0.8, -8.0  # see `start_first_layer`


@torch.no_grad()
def start_from_codes(model: Transformer, codebook: Tensor, rng: np.random.Generator) -> None:
    """Starts embeddings and logits as smooth functions on the codebook, float [V, C] of unit rows: close codes, close rows.

    Random Fourier features of the code vectors (Rahimi & Recht 2007), Gaussian kernel of width 1/2, so that neighbours
    (about 0.2 apart) are nearly alike and others independent. Without it the model has to learn that most of the
    codebook's entries are each other's near synonyms from their co-occurrence alone.
    """
    for table in (model.tok_embeddings.weight, model.output.weight):  # both [V, D]
        width = table.shape[1]
        directions = torch.from_numpy(2.0 * rng.standard_normal((codebook.shape[1], width))).to(table)
        phases = torch.from_numpy(rng.uniform(0.0, 2 * np.pi, width)).to(table)
        table.copy_(0.02 * 2**0.5 * torch.cos(codebook.to(table) @ directions + phases))


@torch.no_grad()
def start_first_layer(model: Transformer) -> None:
    """Starts the first layer's heads as what a caption's places need: two count rows and columns, the others read the caption.

    Rotary positions tell offsets only. Where a token stands can be told from how many tokens are to be seen, against the caption,
    whose keys are zero; and what the caption says is shared out among ever more keys as the image grows, unless a head shuts the
    image out. Both can be learned, but a thousand steps left a model of this size with columns known to within three cells, and
    with no trace of an object's colour in the middle of the image.

    One channel of all embeddings is set to one value, so that queries and keys which read it alone score offsets only. The counters
    score an offset D along their axis by 9 (cos D + cos f1 D + cos f2 D) + flat, with the axis's three fastest frequencies and its
    slowest for the flat part: COUNT_SCORE at D = 0 and, with heads of 64, at least 6 less at 1 to 15. The n tokens of a token's own
    row (head 0), or column (head 1), then get n e^s / (n e^s + caption rows) of the attention, and the value is that channel, so
    that the share comes out. The readers score every key of the image READ_SCORE; their values and outputs start at unit gain.
    Needs three heads of 16 channels at least.
    """
    heads, width = model.config.n_head, model.config.head_dim
    per_axis = width // 4  # rotary pairs
    table = model.tok_embeddings.weight  # [V, D]
    table[:, 0] = SHARED_LEVEL * table[:, 1:].square().mean().sqrt()
    normed = (
        SHARED_LEVEL / ((SHARED_LEVEL**2 + table.shape[1] - 1) / table.shape[1]) ** 0.5
    )  # that channel behind RMSNorm
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
    v[:2, 0, 0] = 16.0 / normed  # as large as what the readers find
    gain = model.config.dim**-0.5 / 0.02
    v[2:] *= gain
    attention.wo.weight[:, 2 * width :] *= gain


@torch.no_grad()
def start_from_captions(model: Transformer, batch: Batch, rng: np.random.Generator) -> None:
    """Starts the caption projection where its GELU is curved: inputs and outputs of unit scale on this batch's rows.

    Caption keys are zero (`rope_table`), so image tokens see the plain mean of the caption's rows, and only products of
    words within a row (place and colour, place and shape) say which object stands where. LlamaGen's 0.02, meant for T5's
    wide features, leaves the GELU all but linear on rows this narrow, and the mean then holds no such product: a ridge
    regression reads an object's colour off the mean of random projections for 59 % of places if they are linear, for 97 %
    if they are not.
    """
    rows = batch.caption[batch.mask]  # [rows, caption_dim]
    projection = model.cls_embedding.cap_proj
    for linear, scale in ((projection.fc1, rows.norm(dim=1).mean()), (projection.fc2, projection.fc2.in_features**0.5)):
        linear.weight.copy_(torch.from_numpy(rng.standard_normal(tuple(linear.weight.shape))) / scale)
