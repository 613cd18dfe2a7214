"""Output of the command line: progress bars, tables and warnings."""

import difflib
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from simulator.core.errors import CiarSimError
from simulator.pricing.catalogue import Hardware
from simulator.pricing.compare import FittedRoofline, RooflineCell, errors_by_phase
from simulator.pricing.profile import Profile

if TYPE_CHECKING:
    from reports.metrics import Metric
    from simulator.experiment.state import State


class _Bars:
    """One bar per stage, created at its first report. It is a `simulator.experiment.simulating.Progress`."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        if self.progress is None:
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total)
        self.progress.update(self.tasks[stage], completed=done, total=total)


class _Rate(ProgressColumn):
    """Column with the rate of work: tokens, cases or images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_pace(speed) if speed else "")


def _pace(rate: float) -> str:
    """Format a rate in steps per second: `4.33/s`, or `154 s each` below 1/s."""
    return f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"


LINE_EVERY_S = 30.0  # interval of progress lines without a terminal


class _Lines:
    """A line on stderr every 30 s, for logs: stage, share done, rate and remaining time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.last_s = clock()
        self.begun: dict[str, tuple[float, float]] = {}  # by stage: start time, and work done at that time
        self.done: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        now = self.clock()
        if done < self.done.get(stage, 0.0):  # the stage restarts, as in a search
            del self.begun[stage]
        self.done[stage] = done
        start_s, before = self.begun.setdefault(stage, (now, done))
        # A finished stage needs no line, because the next stage or the result follows.
        if now - self.last_s < LINE_EVERY_S or done >= total:
            return
        self.last_s = now
        unit = " tokens" if stage.startswith("recording") else ""  # the name of the stage counts sessions
        text = f"{stage}: {done:.0f} of {total:.0f}{unit} ({100.0 * done / max(total, 1e-9):.0f} %)"
        if done > before and now > start_s:
            rate = (done - before) / (now - start_s)
            text += f", {_pace(rate)}, {duration((total - done) / rate)} left"
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a duration: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def progress_bars(quiet: bool) -> Iterator["_Bars | _Lines"]:
    """Show bars on stderr while the block runs, or a line every 30 s if it is not a terminal; nothing if quiet."""
    console = Console(stderr=True)
    if quiet:
        yield _Bars(None)
        return
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


def profile_lines(profile: Profile) -> str:
    """Format the milliseconds of the measured passes by role, rows and new tokens, with a column per number of cached tokens."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    cached = sorted({kv for passes in (*profile.passes.values(), *profile.verify.values()) for kv in passes.kv_tokens})
    for name in ("model", "rows", "new tokens", *(f"ms at {kv} cached" for kv in cached)):
        table.add_column(name, justify="left" if name == "model" else "right")
    tables = [*profile.passes.items(), *((f"{role}, all read out", passes) for role, passes in profile.verify.items())]
    for role, passes in tables:
        for rows, plane in zip(passes.rows, passes.seconds, strict=True):
            for new, line in zip(passes.new_tokens, plane, strict=True):
                times = dict(zip(passes.kv_tokens, line, strict=True))
                table.add_row(role, str(rows), str(new), *(_number(1e3 * times.get(kv, math.nan), 2) for kv in cached))
    other = ", ".join(f"{kind} {1e3 * seconds:.2f} ms" for kind, seconds in profile.compute_seconds.items())
    where = f"{profile.hardware}, {profile.threads} threads, torch {profile.torch}, {profile.dtype}, {profile.runtime}"
    return f"{drawn(table)}\n{other}\n{where}"


def roofline_lines(cells: Mapping[str, Sequence[RooflineCell]], machine: Hardware, fit: FittedRoofline) -> str:
    """Format the errors of rooflines by model and phase.

    Args:
        cells: All passes by kind of roofline: of measured figures ("measured"), of figures fitted to device and cloud together
            ("together"), and of figures fitted to each model alone ("alone").
        machine: The measured figures.
        fit: The fitted ones.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    ends = ("alone / measured: lowest", "median", "highest")
    for name in ("model", "phase", "passes", "measured figures", "fitted together", "fitted alone", *ends):
        table.add_column(name, justify="left" if name in ("model", "phase") else "right")
    errors = {kind: errors_by_phase(own) for kind, own in cells.items()}
    for role, phase in errors["alone"]:
        ratios = [cell.ratio for cell in cells["alone"] if (cell.role, cell.phase) == (role, phase)]
        shares = (f"{100 * errors[kind][role, phase]:.0f} %" for kind in ("measured", "together", "alone"))
        spread = (_number(x, 2) for x in (min(ratios), statistics.median(ratios), max(ratios)))
        table.add_row(role, phase, str(len(ratios)), *shares, *spread)

    def figures(name: str, one: Hardware, own: Sequence[RooflineCell]) -> str:
        median = 100 * statistics.median(cell.error for cell in own)
        return (
            f"{name}: {1e3 * one.fp16_tflops:.0f} GFLOP/s, {one.bandwidth_gb_s:.2f} GB/s of values of 2 bytes, "
            f"{one.kernel_overhead_us:.1f} us a kernel; median error {median:.0f} %"
        )

    lines = [
        "median errors of rooflines:",
        drawn(table),
        figures("measured figures", machine, cells["measured"]),
        figures(f"fitted to cloud and device together, {fit.runtime}", fit.hardware, cells["together"]),
    ]
    for role, one in fit.by_role.items():
        own = [cell for cell in cells["alone"] if cell.role == role]
        lines.append(figures(f"fitted to {role} alone, {fit.runtime}", one, own))
    return "\n".join(lines)


# Columns of the table of a run. In a narrow terminal the last ones are omitted first.
_SHOWN = ("latency_mean_s", "latency_p95_s", "speedup", "cloud_call_pct", "cloud_nll")
_SHOWN_LAST = ("images", "bytes_up", "bytes_down")
_GAP = 2  # blanks between columns
_TEXT_AT_LEAST = 12  # least width to which a condition or method is folded


def chosen_columns(text: str | None) -> tuple[str, ...] | None:
    """Parse --columns. None stands for the default columns.

    Raises:
        CiarSimError: A name is not a column of summary.csv.
    """
    if text is None:
        return None
    from reports.load import summary_columns

    known = tuple(name for name in summary_columns() if name not in ("case", "method", "method_name"))
    if text == "all":
        return known
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CiarSimError(f"--columns {name!r}: allowed: all, or columns of summary.csv{hint}")
    return names


def summary_lines(summary: pd.DataFrame, columns: Sequence[str] | None = None, width: int | None = None) -> str:
    """Format the table of a run: a row per case with its condition, method and numbers. Numbers are never truncated.

    Args:
        summary: The table of summary.csv.
        columns: Columns to print, in several tables if necessary; None prints the default ones that fit, and names the others.
        width: Width in characters; None: that of the terminal, or 200 if the output is not a terminal.
    """
    from reports.load import with_words
    from reports.metrics import WHOLE, metrics, quality_metrics
    from reports.words import significant

    names = list(summary.columns)
    swept = tuple(names[names.index("method_name") + 1 : names.index("images")])
    table = with_words(summary, swept, "")
    table = table.sort_values("condition", kind="stable", key=_first_seen)
    texts = {"method": list(table["label"])}
    if (table["condition"] != "").any():
        texts = {"condition": list(table["condition"]), **texts}
    if columns is None:
        known = {one.name: one for one in metrics(table)}
        shown = [
            known[name]
            for name in (*_SHOWN, *(one.name for one in quality_metrics(table)), *_SHOWN_LAST)
            if name in known
        ]
        numbers = {one.heading: [_cell(value, one) for value in table[one.name]] for one in shown}
    else:
        numbers = {
            name: [
                f"{value:,.0f}" if name in WHOLE and not pd.isna(value) else significant(value, 4)
                for value in table[name]
            ]
            for name in columns
            if name in table
        }
    width = _terminal_width() if width is None else width
    blocks = _blocks(texts, numbers, width)
    if columns is None:
        blocks = blocks[:1]
    lines = "\n\n".join(_block(texts, {name: numbers[name] for name in block}, width) for block in blocks)
    left_out = [name for name in numbers if columns is None and name not in blocks[0]]
    return f"{lines}\nNot shown: {', '.join(left_out)}. --columns all shows every column." if left_out else lines


def _blocks(texts: dict[str, list[str]], numbers: dict[str, list[str]], width: int) -> list[list[str]]:
    """Divide the columns of numbers into groups that fit next to the texts, at least one in each."""
    texts_width = sum(_GAP + _longest(name, cells) for name, cells in texts.items())
    widest = max((_longest(name, cells) for name, cells in numbers.items()), default=0)
    if texts_width + widest > width:  # the texts must be folded
        texts_width = min(texts_width, max(len(texts) * (_GAP + _TEXT_AT_LEAST), width - 2 * (widest + _GAP)))
    blocks: list[list[str]] = [[]]
    used = texts_width
    for name, cells in numbers.items():
        own = _longest(name, cells) + _GAP
        if blocks[-1] and used + own - _GAP > width:
            blocks.append([])
            used = texts_width
        blocks[-1].append(name)
        used += own
    return blocks


def _block(texts: dict[str, list[str]], numbers: dict[str, list[str]], width: int) -> str:
    needed = sum(_longest(name, cells) + _GAP for name, cells in (texts | numbers).items()) - _GAP
    for_numbers = sum(_longest(name, cells) + _GAP for name, cells in numbers.items())
    least = for_numbers + len(texts) * (_TEXT_AT_LEAST + _GAP)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in texts:
        table.add_column(name, overflow="fold", min_width=_TEXT_AT_LEAST if needed > width else None)
    for name, cells in numbers.items():
        table.add_column(name, justify="right", no_wrap=True, min_width=_longest(name, cells))
    for row in zip(*texts.values(), *numbers.values(), strict=True):
        table.add_row(*map(Text, row))  # Text, because markup would interpret backslashes
    return drawn(table, max(width, min(needed, least)))


def _longest(name: str, cells: Sequence[str]) -> int:
    return max(map(cell_len, (name, *cells)))


def warning_lines(warnings: Sequence[str], most: int = 8) -> list[str]:
    """Return the warnings of a run, one per line. If there are more than `most`, the last line gives the number of the others."""
    from reports.words import grouped

    texts = grouped(warnings)
    lines = [f"warning: {text}" for text in texts[:most]]
    return [*lines, f"warning: {len(texts) - most} more, in provenance.json"] if len(texts) > most else lines


def _first_seen(column: pd.Series) -> pd.Series:
    """Sort key for the order of first occurrence."""
    return pd.Series(pd.factorize(column, use_na_sentinel=False)[0], index=column.index)


def _cell(value: float, metric: "Metric") -> str:
    from reports.words import significant

    shown, digits = metric.scale * value, 0 if metric.name == "images" else 1 if "%" in metric.unit else 2
    if digits and 0 < abs(shown) < 10 ** (1 - digits):  # fixed decimals would leave fewer than two digits
        return significant(shown, 2)
    return _number(shown, digits)


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _terminal_width() -> int:
    console = Console()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else 200  # wide enough not to fold


def drawn(renderable: Any, width: int | None = None) -> str:
    """Render as text, in colour on a terminal."""
    width = _terminal_width() if width is None else width
    console = Console(width=width)
    if console.is_terminal:
        with console.capture() as capture:
            console.print(renderable)
        text = capture.get()
    else:
        buffer = io.StringIO()
        Console(file=buffer, width=width).print(renderable)
        text = buffer.getvalue()
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def pareto_lines(pareto: pd.DataFrame, quality: str) -> str:
    """Format the cases on the Pareto front of latency and a quality."""
    from reports.metrics import LATENCY, Metric, quality_metrics
    from reports.words import significant

    judged = next((one for one in quality_metrics(pareto) if one.name == quality), Metric(quality, quality))
    names = list(pareto.columns)
    swept = names[names.index("method_name") + 1 : names.index("images")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("method", *swept, LATENCY.heading, judged.heading):
        table.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
    for _, row in pareto.iterrows():
        chosen = ["" if pd.isna(row[name]) else str(row[name]) for name in swept]
        cells = [row["method"], *chosen, *(significant(one.scale * row[one.name], 4) for one in (LATENCY, judged))]
        table.add_row(*map(Text, cells))
    return f"Pareto set of latency and {quality}: no other case is as fast and as good.\n{drawn(table)}"


def state_lines(state: "State", cache: Path, torch_device: str) -> list[str]:
    """Format the remaining work of a run: cases, sessions, time and disk space."""
    from ciar_sim.speed import forecast

    cases, left = len(state.cases) + state.more_cases, len(state.cases) - len(state.simulated) + state.more_cases
    sessions = state.sessions + state.more_sessions
    to_record = len(state.missing) + state.more_sessions
    at_most = "at most " if state.more_sessions else ""
    ahead = forecast(state, cache, torch_device)
    return [
        f"cases: {cases}, of which {left} remain to be simulated",
        f"sessions: {at_most}{sessions}, of which {at_most}{to_record} remain to be recorded"
        + ("" if to_record else ": no forward pass"),
        f"expected time: {at_most}{duration(ahead.recording_s)} of recording, {duration(ahead.simulating_s)} of simulating "
        f"({ahead.basis}), plus tables and plots",
        f"bytes: {at_most}{ahead.recording_bytes / 1e6:.1f} MB of recordings and {ahead.case_bytes / 1e6:.1f} MB of cases in {cache}",
    ]
