"""Shape of a Llama that continues a prompt of text tokens with image codes: Anole, Lumina-mGPT, Janus-Pro."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.protocol.pairs import TransformerConfig

ROW_WIDTH = 2  # a text token is sent as two numbers below 2048, which fp16 represents exactly: `digits`
BASE = 256


@dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """Shape of a Llama that continues text tokens with image codes.

    Attributes:
        text_vocab: number of text tokens with an embedding.
        qk_norm: whether every head's queries and keys have their own layer norm (Chameleon).
        head_layer: whether there is a layer with a GELU between the final norm and the output matrix (Janus).
        row_token: text token that the model reads after each row of codes (Lumina-mGPT), -1 for none.
        null_tokens: the whole prompt of the unconditional row; empty: `null_pad` makes it.
        null_pad: text token that replaces all but the first and the last of the prompt in the unconditional row (Janus).
    """

    text_vocab: int = 1
    qk_norm: bool = False
    head_layer: bool = False
    row_token: int = -1
    null_tokens: tuple[int, ...] = ()
    null_pad: int = 0

    @property
    def positions(self) -> int:
        """Positions of a full sequence: prompt slots, image codes, and a row token after each row if there are row tokens."""
        return super().positions + (self.grid if self.row_token >= 0 else 0)


def digits(token: int) -> tuple[int, int]:
    """Return a text token as the two numbers (a, b) of a caption row: token = 256 a + b."""
    return token // BASE, token % BASE


def config_of(values: Mapping[str, Any]) -> TransformerConfig:
    """Return the shape described by a mapping of a file. Raises TypeError for an unknown key, ValueError for an impossible size."""
    if "text_vocab" not in values:
        return TransformerConfig(**values)
    return LlamaConfig(**{**values, "null_tokens": tuple(values.get("null_tokens", ()))})
