"""The caption encoder of the shipped pairs: fixed word vectors, concatenated with those of neighbouring words. Nothing is trained.

It takes the place of LlamaGen's T5. Row t of a caption is the concatenation of the vectors of words t-4 .. t+4, so that the row
of a noun also encodes its size, colour and place.
"""

import difflib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.words import words_of
from simulator.core.errors import PromptError
from simulator.core.rng import stream

UNKNOWN = "<unk>"  # an encoder with this word replaces unknown words by it
MOST_LISTED = 100  # known words in an error message
WORD_DIM = 16
WINDOW_WORDS = 4  # on each side
CAPTION_SLOTS = 32  # default of the most words of a caption


class TextEncoder(Protocol):
    """Encodes captions as rows of features.

    Attributes:
        sample: A caption that it accepts, for timing.
    """

    @property
    def sample(self) -> str: ...

    def encode(self, caption: str) -> Tensor:
        """Return the rows of a caption, [n, caption_dim], 1 <= n <= the pair's caption slots. Raises PromptError."""
        ...


class WordEncoder:
    """Encodes captions as float32 rows of word vectors.

    Args:
        words: the known words.
        vectors: float [len(words), word_dim], one per word.
        window: neighbouring words on each side of a row's word.
        slots: most words of a caption.
    """

    def __init__(
        self, words: Sequence[str], vectors: Tensor, window: int = WINDOW_WORDS, slots: int = CAPTION_SLOTS
    ) -> None:
        if vectors.shape[0] != len(words):
            raise ValueError(f"{len(words)} words need as many vectors, got {vectors.shape[0]}")
        self.words = tuple(words)
        self.vectors = vectors.float()
        self.window = window
        self.slots = slots
        self._index = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def build(cls, words: Sequence[str], slots: int = CAPTION_SLOTS) -> "WordEncoder":
        """Return an encoder with random unit vectors, keyed by the word, so that adding words does not change the other vectors."""
        rows = [torch.from_numpy(stream(0, "words", word).standard_normal(WORD_DIM)) for word in words]
        return cls(words, torch.nn.functional.normalize(torch.stack(rows), dim=1).float(), slots=slots)

    @property
    def caption_dim(self) -> int:
        """Width of a row: (2 window + 1) word vectors."""
        return (2 * self.window + 1) * int(self.vectors.shape[1])

    @property
    def sample(self) -> str:
        """A caption of the first twelve words."""
        return " ".join(self.words[:12])

    def split(self, caption: str) -> list[str]:
        """Return the caption's words (`words_of`); an encoder with the word `UNKNOWN` replaces unknown ones by it.

        Raises:
            PromptError: the caption is empty or too long, or contains an unknown word.
        """
        words = words_of(caption)
        if not words:
            raise PromptError("the caption is empty")
        if UNKNOWN in self._index:
            words = [word if word in self._index else UNKNOWN for word in words]
        for word in words:
            if word not in self._index:
                nearest = difflib.get_close_matches(word, self.words, n=1, cutoff=0.0)[0]
                listed = ", ".join(self.words[:MOST_LISTED]) + (", ..." if len(self.words) > MOST_LISTED else "")
                raise PromptError(f"unknown word {word!r}; nearest known word: {nearest}; known words: {listed}")
        if len(words) > self.slots:
            raise PromptError(f"the caption has {len(words)} words, at most {self.slots} are allowed")
        return words

    def encode(self, caption: str) -> Tensor:
        """Return the rows, float32 [n_words, caption_dim], with zeros outside the caption. Raises PromptError, see `split`."""
        indices = [self._index[word] for word in self.split(caption)]
        count, dim = len(indices), self.vectors.shape[1]
        padded = torch.zeros(count + 2 * self.window, dim)
        padded[self.window : self.window + count] = self.vectors[indices]
        return torch.cat([padded[offset : offset + count] for offset in range(2 * self.window + 1)], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Return the encoder as tensors for a safetensors file; the words are UTF-8 bytes, one word per line."""
        return {
            "words": torch.tensor(list("\n".join(self.words).encode()), dtype=torch.uint8),
            "vectors": self.vectors,
            "sizes": torch.tensor([self.window, self.slots], dtype=torch.int32),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "WordEncoder":
        """Return the encoder from the tensors of `state`. Raises KeyError or ValueError if they are not those."""
        if not state["vectors"].is_floating_point():
            raise ValueError(f"vectors has type {state['vectors'].dtype}, needed torch.float32")
        words = bytes(state["words"].tolist()).decode().split("\n")
        window, slots = state["sizes"].tolist()
        return cls(words, state["vectors"], window=window, slots=slots)


def left_pad(rows: Tensor, slots: int = CAPTION_SLOTS) -> tuple[Tensor, Tensor]:
    """Pad rows [n, dim], n <= slots, with zeros on the left. Raises PromptError if n is larger.

    Returns:
        The padded rows [slots, dim] and a bool mask [slots], True for the n valid rows at the end.

    Source: LlamaGen pads caption features on the left, so that the image follows the last word directly.
    """
    count = rows.shape[0]
    if count > slots:
        raise PromptError(f"the caption has {count} rows, at most {slots} are allowed")
    padded = rows.new_zeros(slots, rows.shape[1])
    padded[slots - count :] = rows
    mask = torch.zeros(slots, dtype=torch.bool, device=rows.device)
    mask[slots - count :] = True
    return padded, mask
