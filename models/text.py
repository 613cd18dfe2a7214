"""The embedded pair's caption encoder: fixed word vectors with their neighbours beside them. Nothing is trained.

It stands where T5 stands in LlamaGen. Row t of a caption is the concatenation of the vectors of words t-4 .. t+4, so that the row
of a noun also tells its size, its colour and its place.
"""

import difflib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.words import words_of
from simulator.core.errors import PromptError
from simulator.core.rng import stream

UNKNOWN = "<unk>"  # an encoder that has this word takes any word it does not know for it
MOST_LISTED = 100  # known words in an error message
WORD_DIM = 16
WINDOW_WORDS = 4  # to either side
CAPTION_SLOTS = 32  # most words a caption can have, unless an encoder says otherwise


class TextEncoder(Protocol):
    """Turns captions into rows of features.

    Attributes:
        sample: A caption that it takes, to time it by.
    """

    @property
    def sample(self) -> str: ...

    def encode(self, caption: str) -> Tensor:
        """Rows of a caption, [n, caption_dim], at least one and at most the pair's caption slots. Raises PromptError."""
        ...


class WordEncoder:
    """Captions to rows of float32. `vectors`: float32 [len(words), word_dim], one per word."""

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
        """An encoder for `words` with random unit vectors, keyed by the word: adding words leaves the others as they are."""
        rows = [torch.from_numpy(stream(0, "words", word).standard_normal(WORD_DIM)) for word in words]
        return cls(words, torch.nn.functional.normalize(torch.stack(rows), dim=1).float(), slots=slots)

    @property
    def caption_dim(self) -> int:
        """Width of a row: (2 window + 1) word vectors."""
        return (2 * self.window + 1) * int(self.vectors.shape[1])

    @property
    def sample(self) -> str:
        """A caption of twelve words."""
        return " ".join(self.words[:12])

    def split(self, caption: str) -> list[str]:
        """The caption's words, see `words_of`; unknown ones become `UNKNOWN` where the encoder has that word.

        Raises PromptError if it is empty, too long, or has a word that the encoder does not know.
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
        """float32 [n_words, caption_dim]; zeros where the window reaches outside the caption. Raises PromptError, see `split`."""
        indices = [self._index[word] for word in self.split(caption)]
        count, dim = len(indices), self.vectors.shape[1]
        padded = torch.zeros(count + 2 * self.window, dim)
        padded[self.window : self.window + count] = self.vectors[indices]
        return torch.cat([padded[offset : offset + count] for offset in range(2 * self.window + 1)], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Tensors that hold the whole encoder, for a safetensors file: words as UTF-8 bytes, one per line."""
        return {
            "words": torch.tensor(list("\n".join(self.words).encode()), dtype=torch.uint8),
            "vectors": self.vectors,
            "sizes": torch.tensor([self.window, self.slots], dtype=torch.int32),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "WordEncoder":
        """The encoder that `state` describes."""
        words = bytes(state["words"].tolist()).decode().split("\n")
        window, slots = state["sizes"].tolist()
        return cls(words, state["vectors"], window=window, slots=slots)


def left_pad(rows: Tensor, slots: int = CAPTION_SLOTS) -> tuple[Tensor, Tensor]:
    """Rows [n, dim] as ([slots, dim], bool mask [slots]), n <= slots: the valid rows come last, zeros before them.

    Source: LlamaGen (caption features are padded on the left, so that the image follows the last word directly).
    """
    count = rows.shape[0]
    if count > slots:
        raise PromptError(f"the caption has {count} rows, at most {slots} are allowed")
    padded = rows.new_zeros(slots, rows.shape[1])
    padded[slots - count :] = rows
    mask = torch.zeros(slots, dtype=torch.bool, device=rows.device)
    mask[slots - count :] = True
    return padded, mask
