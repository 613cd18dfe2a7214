"""Looks of methods and of the parts of a latency: the same in all plots and runs, and distinct in greyscale.

A method has a hue and a marker. Its settings share both and differ in lightness, marker fill and dash.
"""

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from simulator.protocol.methods import METHODS
from simulator.results.columns import PARTS

METHOD_LOOKS = {name: (kind.colour, kind.marker) for name, kind in METHODS.items() if kind.colour and kind.marker}
OTHER_LOOKS = (("#b22222", "8"), ("#00868b", "H"))  # for methods without a look of their own
LARGER = {"*": 1.5, "P": 1.15, "X": 1.15, "^": 1.1, "v": 1.1}  # factors for markers of small area
MARK = "method:"  # prefix of the method's name in the gid of what is drawn for it
FILLS = ("full", "none", "left", "bottom", "right", "top")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
# Blue: device. Orange: network. Green: cloud. Purple: caption encoder. Grey: other waits. Computing, links and waits differ in lightness.
PART_COLOURS = dict(
    zip(
        PARTS,
        ("#f6d7a7", "#8c6bb1", "#bcd7ee", "#0f4c81", "#f0ab1f", "#b5ddc8", "#3fb58a", "#b04a00", "#d3d6db", "#6fb1de"),
        strict=True,
    )
)


class Look(NamedTuple):
    """The look of one series."""

    colour: str
    marker: Any
    fill: str
    dash: Any
    method: str = ""

    @property
    def gid(self) -> str:
        """Group id of everything drawn for this method, by which the page can hide it."""
        return f"{MARK}{self.method}"

    def point(self, size: float = 7.0) -> dict[str, Any]:
        """Return the arguments of `Axes.plot` for its marker."""
        half = {} if self.fill in ("full", "none") else {"markerfacecoloralt": "white"}
        face = "white" if self.fill == "none" else self.colour
        edge = "white" if self.fill == "full" else self.colour
        fill = "full" if self.fill == "none" else self.fill  # a white face hides the lines under an open marker
        size *= LARGER.get(self.marker, 1.0)
        return {
            "marker": self.marker,
            "ms": size,
            "mfc": face,
            "mec": edge,
            "mew": 0.9,
            "fillstyle": fill,
            "gid": self.gid,
            **half,
        }

    def line(self, size: float = 6.0, width: float = 1.6) -> dict[str, Any]:
        """Return the arguments of `Axes.plot` for its line with markers."""
        return {"color": self.colour, "ls": self.dash, "lw": width, **self.point(size)}


def looks(series: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """Return the look of each series by name.

    Args:
        series: (name, method name) of every series, in order; repetitions are ignored.
    """
    families: dict[str, list[str]] = {}
    for name, method in dict.fromkeys(series):
        families.setdefault(method, []).append(name)
    found: dict[str, Look] = {}
    taken: set[int] = set()
    for method, names in families.items():
        hue, marker = METHOD_LOOKS.get(method) or OTHER_LOOKS[_other(method, taken)]
        first = list(METHOD_LOOKS).index(method) if method in METHOD_LOOKS else 0
        for place, name in enumerate(names):
            shade = 0.0 if len(names) == 1 else 0.5 - 1.0 * place / (len(names) - 1)
            colour = mix(hue, "white", shade) if shade > 0 else mix(hue, "black", -shade)
            turn = place // len(FILLS)  # the seventh setting has the fill of the first, but another dash
            dash = DASHES[(first + place + turn) % len(DASHES)]
            found[name] = Look(colour, marker, FILLS[place % len(FILLS)], dash, method)
    return found


def _other(method: str, taken: set[int]) -> int:
    """Return the index in `OTHER_LOOKS` of a method without a look: by the hash of its name, else the next free one."""
    start = zlib.crc32(method.encode())
    places = [(start + step) % len(OTHER_LOOKS) for step in range(len(OTHER_LOOKS))]
    place = next((place for place in places if place not in taken), places[0])
    taken.add(place)
    return place


def mix(colour: str, other: str, share: float) -> str:
    """Mix a colour with a share of another one. Return it as hex."""
    mixed = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return str(to_hex((float(mixed[0]), float(mixed[1]), float(mixed[2]))))
