"""Readings of the photo network and claims of captions. This module does not import torch.

A caption of the pair claims the colour and the type of the product: "a COLOUR TYPE for USE ...".
"""

import re
from collections.abc import Sequence

import numpy as np

from models.words import words_of

FEATURES = 64  # width of the network's penultimate layer
READING_DTYPE = np.dtype([("features", "<f4", (FEATURES,)), ("kind", "<u2"), ("colour", "<u2")])
CLAIMS = ("type", "colour")


class PhotoClaims:
    """Parser of the claims of captions.

    Args:
        kinds: types that the network knows, as words of captions.
        colours: colours that it knows, as words of captions.
    """

    def __init__(self, kinds: Sequence[str], colours: Sequence[str]) -> None:
        self.kinds = {kind: number for number, kind in enumerate(kinds)}
        self.colours = {colour: number for number, colour in enumerate(colours)}
        one_of = (
            "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) for texts in (colours, kinds)
        )
        self._form = re.compile("a ({}) ({})(?: for .*)?".format(*one_of))

    def of(self, caption: str) -> tuple[int, int] | None:
        """Return the network's numbers of type and colour; None for a caption of another form."""
        whole = self._form.fullmatch(" ".join(words_of(caption)))
        return None if whole is None else (self.kinds[whole[2]], self.colours[whole[1]])
