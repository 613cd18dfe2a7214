"""Placement of labels next to points, with little overlap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from reports.looks import mix


class Label(NamedTuple):
    """A text for the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool
    gid: str = ""


# Offsets from the point in units of 1/72 inch, and alignment, in order of preference.
_PLACES = (
    *((9, 0, "left"), (0, 11, "center"), (0, -11, "center"), (-9, 0, "right"), (8, 9, "left"), (8, -9, "left")),
    *((-8, 9, "right"), (-8, -9, "right"), (0, 22, "center"), (0, -22, "center"), (12, 19, "left"), (12, -19, "left")),
    *((-12, 19, "right"), (-12, -19, "right"), (14, 30, "left"), (14, -30, "left"), (-14, 30, "right")),
    *((-14, -30, "right"), (0, 40, "center"), (0, -40, "center"), (16, 48, "left"), (-16, 48, "right")),
)


def place_labels(ax: Axes, labels: Sequence[Label], marks: Sequence[tuple[float, float]]) -> None:
    """Place labels next to their points. In order, each label takes the fixed place with the least overlap."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = ax.get_window_extent(renderer)
    boxes = (
        [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in ax.transData.transform(np.array(marks))] if marks else []
    )
    points = figure.dpi / 72
    for label in labels:
        font = FontProperties(size=8, weight="bold" if label.bold else "normal")
        width, height, _ = renderer.get_text_width_height_descent(label.text, font, ismath=False)
        x, y = ax.transData.transform((label.x, label.y))
        best: tuple[float, tuple[int, int, str], Bbox] | None = None
        for rank, place in enumerate(_PLACES):
            dx, dy, align = place
            left = x + dx * points - width * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
            box = Bbox.from_bounds(left, y + dy * points - height / 2, width, height).padded(4.0, 1.0)
            outside = box.width * box.height - _overlap(box, frame)
            cost = rank * 12.0 + sum(_overlap(box, other) for other in boxes) + 3.0 * outside
            if best is None or cost < best[0]:
                best = cost, place, box
        if best is None:
            continue
        _, (dx, dy, align), box = best
        boxes.append(box)
        ax.annotate(
            label.text,
            (label.x, label.y),
            (dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
            color=mix(label.colour, "black", 0.25),
            fontproperties=font,
            gid=label.gid or None,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "#b6bcc5", "lw": 0.6, "shrinkB": 5} if abs(dy) > 15 else None,
        )


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))
