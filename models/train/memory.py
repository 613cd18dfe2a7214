"""Lower bound of the memory that a training stage needs, used to refuse sizes that cannot fit before training starts."""

from collections.abc import Callable

from torch import nn

from models.scenes import IMAGE_SIZE
from models.state import unallocated
from models.train.cloud import CloudConfig
from models.train.judge import JudgeConfig
from models.train.scene_network import SceneNetworkTraining
from models.train.tokenizer import TokenizerConfig
from models.transformer import Transformer
from models.vq import VQModel

STATE_BYTES = 20  # per weight: weight, gradient, two moments and average, all float32


def least_bytes(
    settings: CloudConfig | TokenizerConfig | JudgeConfig | SceneNetworkTraining, image_size: int | None
) -> float:
    """Return a lower bound of the bytes that training a stage needs: weights and optimiser state, data, its widest activation.

    Args:
        settings: settings of the stage.
        image_size: pixels per side of a data set's images; None for scenes.
    """
    if isinstance(settings, SceneNetworkTraining):
        return 3.0 * IMAGE_SIZE**2 * settings.scenes.train  # all renders are in memory when they are written
    if isinstance(settings, JudgeConfig):
        assert image_size is not None  # the judge always has photographs
        # 8 bytes: float32 activation and gradient.
        return 8.0 * settings.batch_images * settings.widths[0] * (image_size // 4) ** 2
    if isinstance(settings, TokenizerConfig):
        side = IMAGE_SIZE if image_size is None else image_size
        widest = settings.model.ch * max(side // settings.model.patch, 1) ** 2
        return STATE_BYTES * weights_of(lambda: VQModel(settings.model)) + 8.0 * settings.batch_images * widest
    shape = settings.model
    logits = 8.0 * settings.batch_images * shape.tokens * shape.vocab_size  # float32 logits and gradients
    scenes = max((round_.scenes.train for round_ in settings.rounds() if round_.scenes is not None), default=0)
    return STATE_BYTES * weights_of(lambda: Transformer(shape)) + logits + 2.0 * scenes * shape.tokens


def weights_of(make: Callable[[], nn.Module]) -> int:
    """Return the number of weights of a model, without allocating them."""
    with unallocated():
        return sum(weight.numel() for weight in make().parameters())
