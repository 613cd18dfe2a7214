"""Settings of training at toy size: all stages take seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from models.evaluate import ceiling

# A transformer for images of 4 x 4 tokens.
SHAPE: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "dim": 16,
    "ffn_hidden": 24,
    "vocab_size": 64,
    "grid": 4,
    "caption_slots": 32,
    "caption_dim": 144,
}


def stages(tokenizer: dict[str, Any], **shape: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of two steps of the tokenizer and of each sequence stage.

    Args:
        tokenizer: settings of the tokenizer.
        shape: changes of `SHAPE` for the cloud's model.
    """
    training = {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    common: dict[str, Any] = {"batch_images": 4, "training": training}
    return {
        "tokenizer": {**tokenizer, **common},
        "cloud": {"model": {**SHAPE, **shape}, **common},
        "device": {"positions": 8, **common},
        "phi": {"positions": 8, "bottleneck": 8, **common},
        "drafter": {"positions": 8, **common},
    }


@contextmanager
def quick_evaluation() -> Iterator[None]:
    """Reduce the training of the ceiling in the device stage's evaluation to 20 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "STEPS", 20)
        patch.setattr(ceiling, "CHECK_EVERY", 10)
        yield
