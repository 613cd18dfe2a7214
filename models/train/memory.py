"""The memory that a training needs at least, so that sizes which cannot fit are refused before anything is trained."""

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

STATE_BYTES = 20  # per weight: weight, gradient, two moments, average, float32 each


def least_bytes(
    settings: CloudConfig | TokenizerConfig | JudgeConfig | SceneNetworkTraining, image_size: int | None
) -> float:
    """A lower bound of what training a stage keeps in memory: weights and their optimiser, data, its widest activation.

    Args:
        settings: of the stage.
        image_size: pixels per side of a data set's images; None for scenes.
    """
    if isinstance(settings, SceneNetworkTraining):
        return 3.0 * IMAGE_SIZE**2 * settings.scenes.train  # renders are made in memory
    if isinstance(settings, JudgeConfig):
        assert image_size is not None  # it judges photographs
        # Of activations and their gradients.
        return 8.0 * settings.batch_images * settings.widths[0] * (image_size // 4) ** 2
    if isinstance(settings, TokenizerConfig):
        side = IMAGE_SIZE if image_size is None else image_size
        widest = settings.model.ch * max(side // settings.model.patch, 1) ** 2
        return STATE_BYTES * weights_of(lambda: VQModel(settings.model)) + 8.0 * settings.batch_images * widest
    shape = settings.model
    logits = 8.0 * settings.batch_images * shape.tokens * shape.vocab_size  # and their gradients
    scenes = max((round_.scenes.train for round_ in settings.rounds() if round_.scenes is not None), default=0)
    return STATE_BYTES * weights_of(lambda: Transformer(shape)) + logits + 2.0 * scenes * shape.tokens


def weights_of(make: Callable[[], nn.Module]) -> int:
    """How many weights a model has. No memory is allocated for them."""
    with unallocated():
        return sum(weight.numel() for weight in make().parameters())
