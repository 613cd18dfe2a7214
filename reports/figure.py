"""Common functions of all plots: size, style, footnote, legend, layout, axes, rendering to PNG, SVG and PDF."""

import io
import itertools
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from reports.looks import MARK, Look, mix
from reports.words import clipped, sentence, unbroken, wrapped
from simulator.results.columns import interval_columns

INK, MUTED, GRID = "#1b1f24", "#5c6470", "#e4e7eb"
COMPACT_BELOW = 5.0  # inches; a narrower figure is for a column of a paper: smaller type, panels below one another
TITLE_LINES = 5  # most lines of a title; more would leave too little space for the plot
FONT = "DejaVu Sans"
NO_LETTERS = "Last Resort"  # draws a box for every character; matplotlib falls back to it by itself
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],  # one family: matplotlib looks up each further one for every text
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlepad": 10.0,
    "axes.titley": 1.0,  # the automatic position is the same, but needs another layout of the ticks
    "axes.formatter.useoffset": False,  # no offset text above the y axis, where the title is
    "axes.formatter.limits": (-9, 12),  # likewise
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "text.parse_math": False,  # a label may contain a $
    "text.hinting": "no_hinting",  # else text is up to 7 % wider in the file than in the layout
    "svg.fonttype": "none",  # text as text: editable, searchable, small
    "pdf.fonttype": 42,  # likewise
    "svg.hashsalt": "ciar-sim",
}
COMPACT_STYLE: dict[str, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.titlepad": 5.0,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "legend.fontsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "savefig.dpi": 300,
}
EVENLY = "evenly spaced"  # the choice of `spread`
T = TypeVar("T")


class Form(NamedTuple):
    """Size and style of a plot.

    Attributes:
        width: width of the figure in inches; None: the plot's default.
        height: height of the figure in inches; None: the plot's default.
        titles: whether it has headings and a footnote; without them the title of a panel is its condition.
        note: an additional sentence of the footnote.
    """

    width: float | None = None
    height: float | None = None
    titles: bool = True
    note: str = ""

    @property
    def compact(self) -> bool:
        return self.width is not None and self.width < COMPACT_BELOW

    @property
    def marker(self) -> float:
        """Scale factor of markers and lines."""
        return 0.7 if self.compact else 1.0


PAGE = Form()
# Matplotlib has one style for all threads. If two blocks overlapped, one would draw with the other's style, which would remain set.
_style_lock = threading.RLock()


def _unlock_in_copy() -> None:
    global _style_lock
    _style_lock = threading.RLock()


os.register_at_fork(after_in_child=_unlock_in_copy)  # a forked child has one thread, which does not hold the lock


@contextmanager
def styled(form: Form = PAGE) -> Iterator[None]:
    """Apply the style of the plots to everything drawn and rendered in the block, in one thread at a time."""
    style = STYLE | (COMPACT_STYLE if form.compact else {})
    with _style_lock, matplotlib.style.context(["default", style]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the glyph is drawn as a box
        yield


def render(figure: Figure, form: str) -> bytes:
    """Render the figure as "png", "svg" or "pdf". Equal figures give equal bytes. The layout is computed once for all formats.

    Characters that the plots' font lacks, such as Chinese ones, are taken from a font of this system that has most of them.
    """
    lacks = lacking(figure)
    if font := _font_with(lacks, form):
        for text in figure.findobj(Text):
            if isinstance(text, Text) and lacks & set(text.get_text()):
                text.set_fontfamily([FONT, font])
    with _no_word_of_weights():
        return _rendered(figure, form)


@contextmanager
def _no_word_of_weights() -> Iterator[None]:
    """Keep matplotlib from logging that a font of other letters has no bold face."""
    logger = logging.getLogger("matplotlib.font_manager")

    def of_other(record: logging.LogRecord) -> bool:
        return "font weight" not in record.getMessage()

    logger.addFilter(of_other)
    try:
        yield
    finally:
        logger.removeFilter(of_other)


def _rendered(figure: Figure, form: str) -> bytes:
    laid_out(figure)
    buffer = io.BytesIO()
    if form == "png":
        figure.savefig(buffer, format=form, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    else:
        none = {"Date": None, "Creator": None} if form == "svg" else {"CreationDate": None, "Creator": None}
        figure.savefig(buffer, format=form, metadata=none)
    if form == "svg":  # gids of methods are not unique, so they cannot be ids
        return re.sub(rf' id="{MARK}([^"]*)"', r' data-method="\1"', buffer.getvalue().decode()).encode()
    return buffer.getvalue()


def lacking(figure: Figure, form: str = "") -> frozenset[str]:
    """Return the characters of a figure that the plots' font lacks; with a form those that no font of this system has for it either."""
    used = frozenset(char for text in texts(figure) for char in text if not char.isspace())
    lacks = used - _held_by(findfont(FONT), used)
    font = _font_with(lacks, form) if form else ""
    return lacks - _held_by(findfont(font), lacks) if font else lacks


@lru_cache
def _held_by(path: str, chars: frozenset[str]) -> frozenset[str]:
    """Return those of the characters that a font file has."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or not readable
        return frozenset()
    return frozenset(char for char in chars if font.get_char_index(ord(char)))


@lru_cache
def _font_with(lacks: frozenset[str], form: str) -> str:
    """Return the name of the installed font that has most of the characters; empty if none has any.

    Text of an SVG is drawn by its viewer, with the viewer's fonts. A PDF embeds TrueType files only.
    """
    if not lacks or form == "svg":
        return ""
    fonts = [font for font in fontManager.ttflist if not font.name.startswith(NO_LETTERS)]
    if form == "pdf":
        fonts = [font for font in fonts if font.fname.lower().endswith(".ttf")]
    fonts.sort(key=lambda font: (font.weight != 400, font.style != "normal", font.name, font.fname))
    best = max(fonts, key=lambda font: len(_held_by(font.fname, lacks)), default=None)  # the first of equal ones
    return best.name if best is not None and _held_by(best.fname, lacks) else ""


def laid_out(figure: Figure) -> None:
    """Compute the layout once and remove the layout engine. With any engine, even "none", matplotlib would draw the figure twice."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        for ax in figure.axes:
            for axis in (ax.xaxis, ax.yaxis):
                if not axis.label.get_text():  # a fixed position avoids another layout of the ticks for an empty label
                    axis.set_label_coords(0.0, 0.0)
        engine.execute(figure)
        figure.set_layout_engine(None)


def new_figure(width: float, height: float, form: Form = PAGE) -> Figure:
    """Return an empty figure of a size in inches, which the form may override. `finish` adds legend and footnote."""
    pad = 0.03 if form.compact else 0.08
    figure = Figure(
        figsize=(form.width or width, form.height or height),
        layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, wspace=0.03, hspace=0.04),
    )
    FigureCanvasAgg(figure)
    return figure


def finish(
    figure: Figure, form: Form, handles: Sequence[Artist] = (), notes: Sequence[str] = (), about: str = ""
) -> None:
    """Add the legend above the panels and the footnote below them.

    Unless the form sets a height, the figure grows by the height of both and of long titles, so that the height of the panels stays.

    Args:
        figure: the figure.
        form: size and titles.
        handles: entries of the legend.
        notes: sentences of the footnote.
        about: last line of the footnote: what was measured.
    """
    height = figure.get_figheight() + _long_titles(figure)
    if handles:
        height += legend(figure, handles)
    lines = form.note, " ".join(filter(None, notes)), sentence(about)
    if form.titles and any(lines):
        height += footnote(figure, *lines)
    if form.height is None:
        figure.set_figheight(height)


def _long_titles(figure: Figure) -> float:
    """Return the height in inches of the title lines beyond the second, summed over rows."""
    beyond: dict[int, int] = {}
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if place is not None:
            beyond[place.rowspan.start] = max(beyond.get(place.rowspan.start, 0), ax.get_title("left").count("\n") - 1)
    return sum(beyond.values()) * _points(mpl.rcParams["axes.titlesize"]) * 1.2 / 72


def footnote(figure: Figure, *lines: str) -> float:
    """Add lines below a plot: how to read it, what is not shown, what latency means. Return their height in inches."""
    size = 6.0 if figure.get_figwidth() < COMPACT_BELOW else 8.0
    text = "\n".join(wrapped(line, int(figure.get_figwidth() * 132 / size)) for line in lines if line)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=size, color=MUTED)
    return (1 + text.count("\n")) * size * 1.25 / 72


def legend(figure: Figure, handles: Sequence[Artist]) -> float:
    """Add a legend above the panels, with as many columns as fit the width. Return its height in inches."""
    size = _points(mpl.rcParams["legend.fontsize"])
    longest = max(text_width(str(handle.get_label()), size) for handle in handles)
    handle_width = 2.8 if size > 7 else 2.2  # in units of the font size, like the gaps below
    wide = longest + (handle_width + 0.8 + 1.6) * size / 72
    columns = max(1, min(len(handles), int((figure.get_figwidth() - 0.2) / wide)))
    style: dict[str, Any] = {"handlelength": handle_width, "handletextpad": 0.8, "columnspacing": 1.6}
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, borderaxespad=0.3, **style)
    return math.ceil(len(handles) / columns) * size * 1.7 / 72 + 0.1


def _points(size: Any) -> float:
    """Return a font size in points. Outside `styled` it may be a word, by matplotlib's default style."""
    return float(FontProperties(size=size).get_size_in_points())


def text_width(text: str, size: float) -> float:
    """Return the width of a text in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) / 72


def handle(label: str, look: Look, form: Form, *, line: bool = True) -> Line2D:
    """Return a legend entry for a series."""
    style = look.line(6.0 * form.marker, 1.6 * form.marker) if line else {"ls": "", **look.point(7.0 * form.marker)}
    return Line2D([], [], label=clipped(label), **style)


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced, including the first and the last."""
    places = sorted({round(place) for place in np.linspace(0, len(items) - 1, min(len(items), most))})
    return [items[place] for place in places]


def left_out(shown: int, there: int, what: str, which: str) -> str:
    """Return a sentence about what a plot does not show; empty if it shows all."""
    which = "the first" if shown == 1 and which == EVENLY else which
    return f"{shown} of {there} {what}: {which}." if shown < there else ""


def scale_x(axes: Sequence[Axes], values: np.ndarray, log_from: float) -> None:
    """Make the x axes logarithmic if the largest value is at least `log_from` times the smallest."""
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() >= log_from * values.min():
        for ax in axes:
            logarithmic(ax, "x", values)


def logarithmic(ax: Axes, which: str, values: np.ndarray | None = None) -> None:
    """Make an x or y axis logarithmic, with ticks as in `_Decades`. values: those on the axis, at which the ticks are if that suits."""
    ax.set(**{f"{which}scale": "log"})
    axis: Axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    axis.set_major_locator(_Decades(() if values is None else np.unique(values)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def between(x: np.ndarray, ax: Axes) -> np.ndarray:
    """Return the points x. If an axis is logarithmic, add points between them, so that linear interpolation is drawn correctly."""
    if (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear"):
        return x
    steps = np.geomspace if ax.get_xscale() == "log" else np.linspace
    far = [(low, high) for low, high in itertools.pairwise(x) if high > 1.5 * low or steps is np.linspace]
    return np.unique(np.concatenate([x, *(steps(low, high, 17)[1:-1] for low, high in far)]))


def from_zero(ax: Axes) -> None:
    """Start the y axis at 0, with space for whole markers."""
    top = ax.get_ylim()[1]
    ax.set_ylim(-0.05 * top, top)


LEAST_TICKS = 3  # of a logarithmic axis
_FEWER: tuple[tuple[float, ...], ...] = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
_MORE: tuple[tuple[float, ...], ...] = ((1.0, 2.0, 3.0, 5.0, 7.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))


class _Decades(ticker.LogLocator):
    """Ticks of a logarithmic axis, as many as it has space for.

    They are at its few values, if these are short and not too close to each other. Else they are at 1, 2, 5, at 1, 3, or at 1 of each
    decade; on an axis that has fewer than three of these, and would look linear, at more numbers of a decade.
    """

    def __init__(self, values: Sequence[float] | np.ndarray = ()) -> None:
        super().__init__(numticks=1000)  # no limit: `tick_values` chooses the ticks
        short = all(len(f"{value:g}") <= 4 for value in values)
        self.values = np.asarray(values, dtype=float) if short and len(values) >= LEAST_TICKS else np.array([])

    def tick_values(self, vmin: float, vmax: float) -> Any:
        assert self.axis is not None
        room = max(self.axis.get_tick_space(), 2)
        if 0 < len(self.values) <= room and vmin > 0:
            gaps = np.diff(np.log(self.values)) / math.log(vmax / vmin)
            if gaps.min() >= 1.0 / room:
                return self.values
        found, inside = self._ticks(_FEWER[0], vmin, vmax)
        if inside < LEAST_TICKS:
            for subs in _MORE:
                more, count = self._ticks(subs, vmin, vmax)
                if LEAST_TICKS <= count <= room:
                    return more
        for subs in _FEWER[1:]:
            if inside <= room:
                break
            found, inside = self._ticks(subs, vmin, vmax)
        return found

    def _ticks(self, subs: Sequence[float], vmin: float, vmax: float) -> tuple[np.ndarray, int]:
        """Return the ticks at these numbers of each decade, and how many of them are on the axis."""
        self.set_params(subs=subs)
        found = np.asarray(super().tick_values(vmin, vmax))
        return found, int(np.count_nonzero((found >= vmin) & (found <= vmax)))


def wrapped_title(ax: Axes, text: str, inches: float) -> None:
    """Set a title wrapped to a width in inches, with at most `TITLE_LINES` lines."""
    size = _points(mpl.rcParams["axes.titlesize"])
    lines = wrapped(unbroken(text), max(12, int(110 * inches / size))).replace("\u00a0", " ").split("\n")
    if len(lines) > TITLE_LINES:
        lines = [*lines[: TITLE_LINES - 1], clipped(" ".join(lines[TITLE_LINES - 1 :]), len(lines[TITLE_LINES - 1]))]
    ax.set_title("\n".join(lines))


def cross(ax: Axes, x: float, y: float, look: Look, form: Form, ends: tuple[float, float] | None = None) -> None:
    """Mark with a cross where the line of a method crosses another line or a bound. ends: interval along x."""
    size, colour = form.marker, mix(look.colour, "black", 0.3)
    if ends is not None:
        ax.plot(ends, [y, y], color=colour, lw=2.2 * size, alpha=0.6, zorder=5, gid=look.gid)
    halo = [withStroke(linewidth=4.0 * size, foreground="white")]
    ax.plot(x, y, "x", color=colour, ms=8 * size, mew=2.0 * size, zorder=6, gid=look.gid, path_effects=halo)


def texts(figure: Figure) -> list[str]:
    """Return all texts of a figure, each as one line."""
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if isinstance(text, Text)]


def error_bars(row: pd.Series, name: str, scale: float = 1.0) -> np.ndarray:
    """Return float [2, 1], the distances from a metric to the ends of its interval; 0 if there is no interval."""
    low, high = (float(row[end]) if end in row else math.nan for end in interval_columns(name))
    ends = scale * np.array([[row[name] - low], [high - row[name]]], dtype=float)
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
