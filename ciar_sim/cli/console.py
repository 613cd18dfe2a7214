"""What the command line shows: progress bars, the summary of a run, and the listings of `ciar-sim list`."""

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from simulator.pricing.catalogue import Hardware
from simulator.pricing.compare import RooflineCell
from simulator.pricing.profile import Profile


class _Bars:
    """One bar per stage, made at its first report. Callable as `simulator.experiment.simulating.Progress`."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        if self.progress is None:
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total)
        self.progress.update(self.tasks[stage], completed=done, total=total)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[_Bars]:
    """Bars on stderr while the block runs; nothing when quiet."""
    if quiet:
        yield _Bars(None)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress)


def profile_lines(profile: Profile) -> str:
    """Milliseconds of the measured passes, by role, rows and new tokens; a column per number of cached tokens."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    cached = sorted({kv for passes in profile.passes.values() for kv in passes.kv_tokens})
    for name in ("model", "rows", "new tokens", *(f"ms at {kv} cached" for kv in cached)):
        table.add_column(name, justify="left" if name == "model" else "right")
    for role, passes in profile.passes.items():
        for rows, plane in zip(passes.rows, passes.seconds, strict=True):
            for new, line in zip(passes.new_tokens, plane, strict=True):
                times = dict(zip(passes.kv_tokens, line, strict=True))
                table.add_row(role, str(rows), str(new), *(_number(1e3 * times.get(kv, math.nan), 2) for kv in cached))
    other = ", ".join(f"{kind} {1e3 * seconds:.2f} ms" for kind, seconds in profile.compute_seconds.items())
    return f"{_drawn(table)}\n{other}\n{profile.hardware}, {profile.threads} threads, torch {profile.torch}, {profile.dtype}"


def roofline_lines(cells: Sequence[RooflineCell], machine: Hardware) -> str:
    """How far the roofline of a machine is off, by role and number of new tokens: roofline over measured."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "new tokens", "passes", "roofline / measured: lowest", "median", "highest"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for role, new in dict.fromkeys((cell.role, cell.new_tokens) for cell in cells):
        ratios = [cell.ratio for cell in cells if (cell.role, cell.new_tokens) == (role, new)]
        table.add_row(
            role,
            str(new),
            str(len(ratios)),
            *(_number(x, 2) for x in (min(ratios), statistics.median(ratios), max(ratios))),
        )
    off = statistics.median(abs(cell.ratio - 1.0) for cell in cells)
    figures = (
        f"roofline of measured figures: {1e3 * machine.fp16_tflops:.0f} GFLOP/s, {2 * machine.bandwidth_gb_s:.1f} GB/s, "
        f"{machine.kernel_overhead_us:.1f} us a kernel; median error {100 * off:.0f} %"
    )
    return f"{_drawn(table)}\n{figures}"


def summary_lines(summary: pd.DataFrame) -> str:
    """The table a run prints: a row per case, the columns a reader asks for first."""
    first = list(summary.columns).index("images")
    swept = [name for name in summary.columns[:first] if name not in ("case", "method", "method_name")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*swept, "method"):
        table.add_column(escape(name))
    for name in (
        "images",
        "latency s",
        "p95 s",
        "speed-up",
        "cloud calls %",
        "up kB",
        "down kB",
        "nats/token",
        "align %",
    ):
        table.add_column(name, justify="right")
    by_network = summary.sort_values(swept, kind="stable", key=_first_seen) if swept else summary
    for _, row in by_network.iterrows():
        table.add_row(
            *("" if pd.isna(row[name]) else escape(str(row[name])) for name in swept),
            escape(row["method"]),
            str(row["images"]),
            _number(row["latency_mean_s"], 2),
            _number(row["latency_p95_s"], 2),
            _number(row["speedup"], 2),
            _number(row["cloud_call_pct"], 1),
            _number(row["bytes_up"] / 1e3, 1),
            _number(row["bytes_down"] / 1e3, 1),
            _number(row["cloud_nll"], 2),
            _number(100 * row["align_scenes"], 1),
        )
    return _drawn(table)


def warning_lines(warnings: Sequence[str], most: int = 8) -> list[str]:
    """The warnings of a run, one a line; where there are more than `most`, the last line says how many."""
    lines = [f"warning: {text}" for text in warnings[:most]]
    return [*lines, f"warning: {len(warnings) - most} more, in provenance.json"] if len(warnings) > most else lines


def _first_seen(column: pd.Series) -> pd.Series:
    """Sort key that keeps values in the order in which they first occur; all missing ones (an axis of another method) are one value."""
    return pd.Series(pd.factorize(column, use_na_sentinel=False)[0], index=column.index)


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def listing(what: str) -> str:
    """The table of `ciar-sim list WHAT`."""
    tables = {
        "methods": _methods,
        "presets": _presets,
        "hardware": _hardware,
        "pairs": _pairs,
        "scenarios": _scenarios,
    }
    return _drawn(tables[what]())


def _methods() -> Table:
    from simulator.protocol.methods import METHODS

    table = _table("method", "setting", "default", "meaning")
    for name, kind in METHODS.items():
        table.add_row(f"[bold]{name}", "", "", (kind.settings.__doc__ or "").split("\n\n")[0])
        for key, field in kind.settings.model_fields.items():
            table.add_row("", key, str(field.default), field.description or "")
    return table


def _presets() -> Table:
    from simulator.pricing import catalogue

    table = _table("preset", "down Mbit/s", "up Mbit/s", "RTT ms", "jitter SD ms", "source")
    for name in catalogue.names("networks"):
        n = catalogue.network(name)
        table.add_row(
            f"[bold]{name}", f"{n.down_mbps:g}", f"{n.up_mbps:g}", f"{n.rtt_ms:g}", f"{n.jitter_ms:g}", n.source
        )
    return table


def _hardware() -> Table:
    from simulator.pricing import catalogue

    table = _table("hardware", "what", "fp16 TFLOP/s", "GB/s", "W", "evidence")
    table.add_row("[bold]local", "this machine, with model: pair", "", "", "", "measured")
    for name in catalogue.names("hardware"):
        h = catalogue.hardware(name)
        table.add_row(
            f"[bold]{name}", h.title, f"{h.fp16_tflops:g}", f"{h.bandwidth_gb_s:g}", f"{h.power_w:g}", h.evidence
        )
    return table


def _pairs() -> Table:
    from simulator.protocol.pairs import known_pairs, pair_manifest

    table = _table("pair", "cloud", "device", "tokens", "codebook", "image", "weights")
    for name in known_pairs():
        m = pair_manifest(name)
        table.add_row(
            f"[bold]{name}",
            f"{m.cloud.n_layer} layers, width {m.cloud.dim}",
            f"{m.device.n_layer} layer, width {m.device.dim}",
            f"{m.grid} x {m.grid}",
            str(m.codebook_size),
            f"{m.image_size} x {m.image_size} px",
            m.weights_hash[:12],
        )
    return table


def _scenarios() -> Table:
    from ciar_sim.shipped import SCENARIOS, shipped_scenarios

    table = _table("scenario", "opens with")
    for name in shipped_scenarios():
        first = (SCENARIOS / f"{name}.yaml").read_text().partition("\n")[0]
        table.add_row(f"[bold]{name}", escape(first.removeprefix("#").strip()))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0], overflow="fold")
    return table


def _drawn(renderable: Any) -> str:
    console = Console()
    if console.is_terminal:
        with console.capture() as capture:
            console.print(renderable)
        return capture.get().rstrip("\n")
    buffer = io.StringIO()  # piped or in a test: plain text, wide enough not to fold
    Console(file=buffer, width=200).print(renderable)
    return buffer.getvalue().rstrip("\n")
