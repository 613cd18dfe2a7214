"""Images of a few prompts by method, with maps of uncertainty and of who decided each token."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.figure import MUTED
from reports.load import Run, RunImage
from reports.looks import PART_COLOURS
from reports.words import wrapped

MOST_METHODS, MOST_PROMPTS = 8, 4
NO_SCORE = "#e3e6ea"
MAP_COLOURS = mpl.colormaps["cividis"].with_extremes(bad=NO_SCORE)
WHO_COLOURS = ListedColormap([PART_COLOURS["cloud_compute_s"], PART_COLOURS["device_compute_s"]]).with_extremes(
    bad=NO_SCORE
)
MAP_TITLES = {"uncertainty": "uncertainty", "decided": "who decided"}


def grid_columns(run: Run) -> list[tuple[str, str]]:
    """(method, kind) of the columns: the images of each method, then its maps."""
    methods = list(dict.fromkeys(one.method for one in run.images))[:MOST_METHODS]
    there = {(one.method, one.kind) for one in run.images}
    return [
        (method, kind) for method in methods for kind in ("image", "uncertainty", "decided") if (method, kind) in there
    ]


def grid_note(run: Run) -> str:
    """What a row is, and how many methods are left out."""
    there = len({one.method for one in run.images})
    left_out = f" The first {MOST_METHODS} of {there} methods." if there > MOST_METHODS else ""
    return f"A row is one prompt with one seed.{left_out}"


def grid_prompts(run: Run) -> dict[int, str]:
    """Number and text of the first prompts, in order; none where no request was answered."""
    if not run.summary["images"].any():
        return {}
    texts = {one.prompt: one.text for one in run.images if one.kind == "image"}
    return {prompt: texts[prompt] for prompt in sorted(texts)[:MOST_PROMPTS]}


def uncertainty_top(run: Run) -> float:
    """Upper end of the colours of all uncertainty maps: their 98th percentile, so that one outlier does not darken the rest."""
    values = [one.pixels[np.isfinite(one.pixels)] for one in run.images if one.kind == "uncertainty"]
    joined = np.concatenate(values) if values else np.empty(0)
    top = float(np.percentile(joined, 98)) if len(joined) else 0.0
    return top if top > 0 else 1.0


def map_rgb(one: RunImage, top: float) -> np.ndarray:
    """uint8 [h, w, 3] of a stored image as it is shown: images as they are, maps in colours."""
    if one.kind == "image":
        return one.pixels
    table, scale = (MAP_COLOURS, top) if one.kind == "uncertainty" else (WHO_COLOURS, 1.0)
    values = np.ma.masked_invalid(one.pixels / scale)
    return np.asarray(table(np.clip(values, 0.0, 1.0), bytes=True))[..., :3]


def image_grid(run: Run) -> Figure:
    """A row per prompt, a column per method; right of a method its maps of uncertainty and of who decided each token."""
    columns, prompts, top = grid_columns(run), grid_prompts(run), uncertainty_top(run)
    by_place = {(one.method, one.kind, one.prompt): one for one in run.images}
    maps = {kind for _, kind in columns} & set(MAP_TITLES)
    # All lengths in inches: the columns of one method stand closer than the methods do.
    size = 1.6 if len(columns) <= 8 else 1.2
    starts: list[float] = []
    edge = 1.95
    for _, kind in columns:
        edge += 0.0 if not starts else 0.22 if kind == "image" else 0.07
        starts.append(edge)
        edge += size
    above, below, gap = 0.62, 0.9 if maps else 0.4, 0.12
    width, height = max(edge + 0.15, 6.8), above + len(prompts) * (size + gap) + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for y, (prompt, text) in enumerate(prompts.items()):
        bottom = height - above - (y + 1) * size - y * gap
        lines = "\n".join(wrapped(text, 24).splitlines()[:7])
        middle = (bottom + size / 2) / height
        figure.text(1.8 / width, middle, lines, ha="right", va="center", fontsize=8, linespacing=1.35)
        for start, (method, kind) in zip(starts, columns, strict=True):
            ax = figure.add_axes((start / width, bottom / height, size / width, size / height))
            ax.set_axis_off()
            one = by_place.get((method, kind, prompt))
            if one is not None:
                ax.imshow(map_rgb(one, top), interpolation="nearest")
            if y == 0:
                title = wrapped(method if kind == "image" else MAP_TITLES[kind], int(size * 12))
                weight = "bold" if kind == "image" else "normal"
                at = ((start + size / 2) / width, (bottom + size + 0.08) / height)
                figure.text(*at, title, ha="center", fontsize=8, fontweight=weight)
    if "uncertainty" in maps:
        bar = figure.add_axes((starts[0] / width, (below - 0.22) / height, 2.4 / width, 0.11 / height))
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, top), MAP_COLOURS)
        figure.colorbar(scale, cax=bar, orientation="horizontal", extend="max").outline.set_visible(False)
        bar.tick_params(labelsize=7, length=2)
        bar.set_xlabel("uncertainty of the token (no unit)", fontsize=8, labelpad=2)
    handles = [Patch(color=WHO_COLOURS(1), label="device decided"), Patch(color=WHO_COLOURS(0), label="cloud decided")]
    handles = handles if "decided" in maps else []
    handles += [Patch(color=NO_SCORE, label="no score")] if "uncertainty" in maps else []
    if handles:
        place = ((starts[0] + (2.6 if "uncertainty" in maps else 0.0)) / width, (below - 0.05) / height)
        look: dict[str, Any] = {"ncols": 3, "fontsize": 8, "borderaxespad": 0, "handlelength": 1.1}
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, **look)
    figure.text(0.15 / width, 0.12 / height, grid_note(run), fontsize=8, color=MUTED)
    return figure
