"""Readings of the scene network and claims of captions. This module does not import torch.

A caption of `models.scenes` makes four claims about each object: that an object is at its place, its shape, its colour
and its size. It also claims texture and colour of the background. It claims nothing about places that it does not name.
"""

import re
from dataclasses import dataclass

import numpy as np

from models import scenes
from models.words import words_of

FEATURES = 64  # width of the network's penultimate layer
PLACES = tuple(scenes.PLACES)
SHAPES = ("nothing", *scenes.SHAPES)
COLORS, SIZES = tuple(scenes.COLORS), tuple(scenes.SIZES)
BACKGROUND_COLORS = tuple(scenes.BACKGROUND_COLORS)

# Reading of one image: indices into SHAPES, COLORS and SIZES for each place, into scenes.TEXTURES and BACKGROUND_COLORS for the background.
READING_DTYPE = np.dtype(
    [
        ("features", "<f4", (FEATURES,)),
        ("shape", "u1", (len(PLACES),)),
        ("color", "u1", (len(PLACES),)),
        ("size", "u1", (len(PLACES),)),
        ("texture", "u1"),
        ("background_color", "u1"),
    ]
)


@dataclass(frozen=True)
class Claims:
    """Claims of a caption. `objects` holds (place, shape, color, size) as indices; texture and background_color are indices."""

    objects: tuple[tuple[int, int, int, int], ...]
    texture: int
    background_color: int


def _one_of(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "at the top left" before "at the top"


_OBJECT = f"a ({_one_of(SIZES)}) ({_one_of(COLORS)}) ({_one_of(scenes.SHAPES)}) ({_one_of(PLACES)})"
_CAPTION = re.compile(
    f"({_OBJECT}(?: and {_OBJECT})*) on a ({_one_of(scenes.TEXTURES)}) ({_one_of(BACKGROUND_COLORS)}) background"
)


def claims_of(caption: str) -> Claims | None:
    """Return the claims of a caption; None if it does not have the form of `models.scenes`."""
    whole = _CAPTION.fullmatch(" ".join(words_of(caption)))
    if whole is None:
        return None
    found = re.findall(_OBJECT, whole.group(1))
    objects = ((PLACES.index(p), SHAPES.index(s), COLORS.index(c), SIZES.index(z)) for z, c, s, p in found)
    texture, color = whole.groups()[-2:]
    return Claims(tuple(objects), scenes.TEXTURES.index(texture), BACKGROUND_COLORS.index(color))


def agreement(claims: Claims, reading: np.ndarray) -> np.ndarray:
    """Return which claims agree with a reading (READING_DTYPE, one image), bool [4 * objects + 2].

    The order is presence, shape, colour and size of each object, then texture and colour of the background. If no
    object is read at a place, all four claims about it are wrong.
    """
    right = []
    for place, *wanted in claims.objects:
        present = bool(reading["shape"][place])
        seen = [reading[name][place] == value for name, value in zip(("shape", "color", "size"), wanted, strict=True)]
        right += [present, *(present and bool(one) for one in seen)]
    return np.array(
        [*right, reading["texture"] == claims.texture, reading["background_color"] == claims.background_color], bool
    )


def claim_names(claims: Claims) -> list[str]:
    """Return the kind of each claim, in the order of `agreement`."""
    return ["place", "shape", "color", "size"] * len(claims.objects) + ["texture", "background_color"]
