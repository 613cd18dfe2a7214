"""Images of a few prompts by method, with maps of uncertainty and of the side that decided each token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figure import MUTED, PAGE, Form, left_out
from reports.findings import best_labels
from reports.load import Run, StoredImage
from reports.looks import PART_COLOURS
from reports.words import clipped, unbroken, wrapped

MOST_METHODS, MOST_COMPACT, MOST_PROMPTS = 8, 4, 4
NO_SCORE = "#e3e6ea"
OUTLINE = "#ff3b30"
MAP_COLOURS = mpl.colormaps["cividis"].with_extremes(bad=NO_SCORE)
WHO_COLOURS = ListedColormap([PART_COLOURS["cloud_compute_s"], PART_COLOURS["device_compute_s"]]).with_extremes(
    bad=NO_SCORE
)
MAP_TITLES = {"uncertainty": "uncertainty", "decided": "who decided"}


def shown_methods(run: Run, most: int = MOST_METHODS, kind: str = "image") -> list[str]:
    """Return the methods with images of a kind, in order: all, or base and the fastest."""
    there = list(dict.fromkeys(one.method for one in run.images if one.kind == kind))
    best = best_labels(run, most, there)
    kept = [*best, *(name for name in there if name not in best)][:most]
    return [name for name in there if name in kept]


def grid_columns(run: Run, form: Form = PAGE) -> list[tuple[str, str]]:
    """Return (method, kind) of the columns: the images of each method, followed by its maps unless the figure is narrow."""
    there = {(one.method, one.kind) for one in run.images}
    kinds = ("image",) if form.compact else ("image", *MAP_TITLES)
    methods = shown_methods(run, MOST_COMPACT if form.compact else MOST_METHODS)
    return [(method, kind) for method in methods for kind in kinds if (method, kind) in there]


def grid_note(run: Run, form: Form = PAGE) -> str:
    """Describe the rows of the grid, and how many methods are not shown."""
    there = len({one.method for one in run.images})
    more = left_out(len({method for method, _ in grid_columns(run, form)}), there, "methods", "base and the fastest")
    return f"A row is one prompt with one seed. {more}".strip()


def grid_prompts(run: Run) -> dict[int, str]:
    """Return number and text of the first prompts in order; empty if no request was answered."""
    if not run.summary["images"].any():
        return {}
    texts = {one.prompt: one.text for one in run.images if one.kind == "image"}
    return {prompt: texts[prompt] for prompt in sorted(texts)[:MOST_PROMPTS]}


def uncertainty_top(run: Run) -> float:
    """Return the upper end of the colour scale of all uncertainty maps: the 98th percentile, so that outliers do not darken the rest."""
    values = [one.pixels[np.isfinite(one.pixels)] for one in run.images if one.kind == "uncertainty"]
    joined = np.concatenate(values) if values else np.empty(0)
    top = float(np.percentile(joined, 98)) if len(joined) else 0.0
    return top if top > 0 else 1.0


def map_rgb(one: StoredImage, top: float) -> np.ndarray:
    """Return uint8 [h, w, 3], the displayed pixels of a stored image or of a coloured map."""
    if one.kind == "image":
        return one.pixels
    table, scale = (MAP_COLOURS, top) if one.kind == "uncertainty" else (WHO_COLOURS, 1.0)
    values = np.ma.masked_invalid(one.pixels / scale)
    return np.asarray(table(np.clip(values, 0.0, 1.0), bytes=True))[..., :3]


class _Places(NamedTuple):
    """Positions of the tiles of a grid, in inches from the lower left corner of the figure.

    Attributes:
        width: width of the figure.
        height: height of the figure.
        size: width and height of a tile.
        lefts: left edges of the columns.
        bottoms: lower edges of the rows.
    """

    width: float
    height: float
    size: float
    lefts: list[float]
    bottoms: list[float]


def _places(groups: Sequence[bool], rows: int, form: Form, text: float, above: float, below: float) -> _Places:
    """Compute the positions of tiles that are as large as the form allows.

    Args:
        groups: per column, whether it is the first one of a method.
        rows: number of rows.
        form: size of the figure.
        text: space left of the tiles, in inches.
        above: space above the tiles, in inches.
        below: space below the tiles, in inches.
    """
    wide, narrow = (0.08, 0.03) if form.compact else (0.22, 0.07)
    gaps = [0.0, *(wide if begins else narrow for begins in groups[1:])]
    most = 1.6 if len(groups) <= 8 else 1.2
    size = most if form.width is None else min(most, (form.width - text - sum(gaps) - 0.05) / len(groups))
    lefts = [text + place * size + sum(gaps[: place + 1]) for place in range(len(groups))]
    gap = 0.05 if form.compact else 0.12
    height = above + rows * size + (rows - 1) * gap + below
    bottoms = [height - above - (row + 1) * size - row * gap for row in range(rows)]
    width = form.width or max(lefts[-1] + size + 0.15, 6.8)
    return _Places(width, height, size, lefts, bottoms)


def _sheet(places: _Places) -> tuple[Figure, Axes]:
    """Return a figure with a single Axes in units of inches, because drawing is slow with one Axes per tile."""
    figure = Figure(figsize=(places.width, places.height))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, places.width), ylim=(0, places.height))
    ax.set_axis_off()
    return figure, ax


def _tile(ax: Axes, places: _Places, column: int, row: int, pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Draw an image. Return its left, right, bottom and top."""
    left, bottom = places.lefts[column], places.bottoms[row]
    extent = left, left + places.size, bottom, bottom + places.size
    ax.imshow(pixels, interpolation="none", extent=extent, aspect="auto")
    ax.set(xlim=(0, places.width), ylim=(0, places.height))
    return extent


def _prompt(ax: Axes, places: _Places, row: int, text: str, inches: float, form: Form) -> None:
    size = 5.5 if form.compact else 8.0
    most = int(places.size * 72 / (size * 1.3 * 1.2))  # lines that fit the height of a tile
    lines = wrapped(text, max(8, int(inches * 118 / size))).splitlines()
    lines = [*lines[: most - 1], f"{lines[most - 1]} …"] if len(lines) > most > 0 else lines
    middle = places.bottoms[row] + places.size / 2
    ax.text(inches - 0.08, middle, "\n".join(lines), ha="right", va="center", fontsize=size, linespacing=1.3)


def _title(ax: Axes, places: _Places, column: int, text: str, form: Form, *, bold: bool) -> None:
    size = 5.5 if form.compact else 8.0
    at = places.lefts[column] + places.size / 2, places.bottoms[0] + places.size + 0.05
    word = max(map(len, unbroken(text).split(" ")))  # set smaller if it is too long for a line
    size *= min(1.0, max(0.75, places.size * 115 / size / word))
    across = max(6, int(places.size * 115 / size))
    most = int((places.height - at[1]) * 72 / (size * 1.25))  # lines that fit above the tile
    lines = next(
        lines
        for width in range(across * most, 0, -1)
        if (lines := wrapped(unbroken(clipped(text, width)), across)).count("\n") < most
    )
    ax.text(*at, lines.replace("\u00a0", " "), ha="center", fontsize=size, fontweight="bold" if bold else "normal")


def image_grid(run: Run, form: Form = PAGE) -> Figure:
    """Draw a row per prompt and a column per method, with maps of uncertainty and of the deciding side to the right of each method."""
    columns = grid_columns(run, form)
    prompts, top = grid_prompts(run), uncertainty_top(run)
    by_place = {(one.method, one.kind, one.prompt): one for one in run.images}
    maps = {kind for _, kind in columns} & set(MAP_TITLES)
    text = 0.82 if form.compact else 1.88
    note = 0.3 if form.titles else 0.05
    above, below = (0.4, note) if form.compact else (0.62, (0.6 if maps else 0.1) + note)
    places = _places([kind == "image" for _, kind in columns], len(prompts), form, text, above, below)
    figure, ax = _sheet(places)
    for row, (prompt, words) in enumerate(prompts.items()):
        _prompt(ax, places, row, words, text, form)
        for column, (method, kind) in enumerate(columns):
            one = by_place.get((method, kind, prompt))
            if one is not None:
                _tile(ax, places, column, row, map_rgb(one, top))
            if row == 0:
                _title(ax, places, column, method if kind == "image" else MAP_TITLES[kind], form, bold=kind == "image")
    handles = [Patch(color=WHO_COLOURS(1), label="device decided"), Patch(color=WHO_COLOURS(0), label="cloud decided")]
    _key(figure, places, top if "uncertainty" in maps else None, handles if "decided" in maps else [], below, form)
    if form.titles:
        size = 5.5 if form.compact else 8.0
        ax.text(0.15, 0.1, wrapped(grid_note(run, form), int(places.width * 132 / size)), fontsize=size, color=MUTED)
    return figure


def uncertainty_maps(run: Run, form: Form = PAGE) -> Figure:
    """Draw a row per prompt: for each method its image and its map of uncertainty, with outlines of the tokens decided by the cloud."""
    by_place = {(one.method, one.kind, one.prompt): one for one in run.images}
    methods = shown_methods(run, 2 if form.compact else 4, "uncertainty")
    there = len({one.method for one in run.images if one.kind == "uncertainty"})
    prompts, top = grid_prompts(run), uncertainty_top(run)
    text, note = (0.82 if form.compact else 1.88), (0.3 if form.titles else 0.05)
    above, below = (0.4, 0.42 + note) if form.compact else (0.55, 0.6 + note)
    places = _places([begins for _ in methods for begins in (True, False)], len(prompts), form, text, above, below)
    figure, ax = _sheet(places)
    for row, (prompt, words) in enumerate(prompts.items()):
        _prompt(ax, places, row, words, text, form)
        for place, method in enumerate(methods):
            for column, kind in ((2 * place, "image"), (2 * place + 1, "uncertainty")):
                one = by_place.get((method, kind, prompt))
                if row == 0:
                    title = method if kind == "image" else MAP_TITLES[kind]
                    _title(ax, places, column, title, form, bold=kind == "image")
                if one is None:
                    continue
                extent = _tile(ax, places, column, row, map_rgb(one, top))
                decided = by_place.get((method, "decided", prompt))
                if kind == "uncertainty" and decided is not None:
                    _outline(ax, decided.pixels == 0.0, extent, 0.6 if form.compact else 1.1)
    outline = Line2D([], [], color=OUTLINE, lw=1.4, label="decided by the cloud")
    _key(figure, places, top, [outline], below, form)
    if form.titles:
        size = 5.5 if form.compact else 8.0
        more = left_out(len(methods), there, "methods with a score", "the fastest")
        said = wrapped(f"A row is one prompt with one seed. {more}", int(places.width * 132 / size))
        ax.text(0.15, 0.1, said, fontsize=size, color=MUTED)
    return figure


def _outline(ax: Axes, inside: np.ndarray, extent: tuple[float, float, float, float], width: float) -> None:
    """Draw the outline of the tokens that are inside: their edges to tokens that are not."""
    left, right, bottom, top = extent
    rows, columns = inside.shape
    x, y = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    padded = np.pad(inside, 1)
    upright = padded[1:-1, 1:] != padded[1:-1, :-1]  # [rows, columns + 1]
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [rows + 1, columns]
    lines = [[(x[j], y[i]), (x[j], y[i + 1])] for i, j in zip(*np.nonzero(upright), strict=True)]
    lines += [[(x[j], y[i]), (x[j + 1], y[i])] for i, j in zip(*np.nonzero(level), strict=True)]
    ax.add_collection(LineCollection(lines, colors=OUTLINE, linewidths=width, capstyle="projecting", zorder=3))


def _key(figure: Figure, places: _Places, top: float | None, handles: Sequence[Any], below: float, form: Form) -> None:
    """Draw the legend below the tiles: the colour scale of uncertainty up to `top` (None: no such map), and other colours."""
    width, height, size = places.width, places.height, 5.5 if form.compact else 8.0
    start = places.lefts[0]
    if top is not None:
        long = 1.1 if form.compact else 2.4
        bar = figure.add_axes((start / width, (below - 0.16) / height, long / width, 0.09 / height))
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, top), MAP_COLOURS)
        figure.colorbar(scale, cax=bar, orientation="horizontal", extend="max").outline.set_visible(False)
        bar.tick_params(labelsize=size - 1, length=2, pad=1)
        bar.set_xlabel("uncertainty of the token", fontsize=size, labelpad=1)
        start += long + 0.2
        handles = [*handles, Patch(color=NO_SCORE, label="no score")]
    if handles:
        place = start / width, (below - 0.05) / height
        look: dict[str, Any] = {
            "ncols": 1 if form.compact else 3,
            "fontsize": size,
            "borderaxespad": 0,
            "handlelength": 1.1,
        }
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, **look)
