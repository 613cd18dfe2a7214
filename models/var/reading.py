"""Teacher forcing of a model that predicts scale by scale: logits of every token given all smaller scales, in one pass.

Letters: B images, R rows (B, or 2B with guidance), T tokens of all scales, D width, V codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sampling import guide
from models.var.tokenizer import VarTokenizer
from models.var.transformer import VarTransformer


@dataclass(frozen=True)
class ScaleReading:
    """One model's teacher-forced outputs for B images.

    Attributes:
        logits: guided logits, [B, T, V].
        plain: conditional logits, [B, T, V].
        hidden: hidden states after the last layer, [B, T, D]; with guidance, followed by those of the unconditional row, [B, T, 2 D].
    """

    logits: Tensor
    plain: Tensor
    hidden: Tensor


def read_images(
    model: VarTransformer, tokenizer: VarTokenizer, labels: Sequence[int], codes: Tensor, guidance: float
) -> ScaleReading:
    """Return a model's teacher-forced outputs for images.

    Args:
        model: the model.
        tokenizer: tokenizer of the codes.
        labels: class of each image.
        codes: int [B, T], codes of all scales.
        guidance: strength at the last scale, see `VarTransformer.strengths`; 1 or less: no guidance.
    """
    latents = tokenizer.latents(codes)
    maps = torch.cat([tokenizer.inputs(latents[scale - 1], scale) for scale in range(1, len(latents))], dim=1)
    rows = 2 if guidance > 1 else 1
    asked = [*labels, *([model.classes] * len(labels) if rows == 2 else [])]
    condition = model.condition(torch.tensor(asked, device=codes.device))
    hidden = model.step(condition, maps.repeat(rows, 1, 1))  # [R, T, D]
    logits = model.logits(hidden, condition, slice(None))  # [R, T, V]
    count = len(codes)
    if rows == 1:
        return ScaleReading(logits, logits, hidden)
    guided = guide(logits[:count], logits[count:], model.strengths(guidance))
    return ScaleReading(guided, logits[:count], torch.cat([hidden[:count], hidden[count:]], dim=-1))
