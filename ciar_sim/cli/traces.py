"""`ciar-sim traces import|show|generate|fit`. Each command imports what it needs when it runs."""

import os
from pathlib import Path
from typing import Any

import click

from ciar_sim.cli.common import Commands, errors_in_one_line, options, refuse_unwritable
from simulator.core.errors import TraceError
from simulator.core.files import path_text


@click.group(cls=Commands)
def traces() -> None:
    """Network and arrival traces: read any known format, plot, generate, fit."""


reading_options = options(
    click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."),
    click.option(
        "--direction",
        type=click.Choice(["down", "up"]),
        help="Direction of the rates if a file does not state it.  [default: down]",
    ),
    click.option(
        "--unit",
        metavar="UNIT",
        help="Units of times, rates or both if a file does not state them: 'ms', 'ms kbit/s'.",
    ),
    click.option(
        "--window-s",
        nargs=2,
        type=float,
        metavar="FROM UNTIL",
        help="Read this part only: seconds from the first time stamp or request.",
    ),
    click.option("--time-scale", type=float, help="Multiply all times: 0.5 plays the trace twice as fast."),
)


@traces.command("import")
@reading_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="CSV file to write.")
@errors_in_one_line
def import_(files: tuple[Path, ...], out: Path, **reading: Any) -> None:
    """Convert a trace of any known format to the project's own CSV.

    Give files that belong together (.up and .down, bandwidth and delay) in one command.
    """
    from simulator.traces.own import as_own, write_own
    from simulator.traces.summary import table

    _check_out(out, files, "csv")
    trace = as_own(_read(files, **reading))
    notes = "".join(f"\n{note}" for note in trace.notes)
    write_own(trace, out, f"from {', '.join(path_text(path.name) for path in files)} ({trace.format}){notes}")
    click.echo(table(trace))
    click.echo(out)


@traces.command()
@reading_options
@click.option("--out", type=click.Path(path_type=Path), help="PNG file to draw.  [default: FILE.png]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; draw only if --out is given.")
@errors_in_one_line
def show(files: tuple[Path, ...], out: Path | None, as_json: bool, **reading: Any) -> None:
    """Print and plot a trace of any known format, and the assumptions made in reading it."""
    from simulator.traces import summary as figures
    from simulator.traces.own import write
    from simulator.traces.plot import plot

    if out is not None:
        _check_out(out, files, "png")
    elif not as_json:
        out = files[0].parent / f"{files[0].name}.png"
    trace = _read(files, **reading)
    if out is not None:
        write(out, plot(trace, f"{', '.join(path_text(path.name) for path in files)} ({trace.format})"))
    click.echo(figures.as_json(figures.summary(trace)) if as_json else f"{figures.table(trace)}\n{out}")


@traces.command()
@click.argument("kind")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw.")
@click.option("--duration-s", type=float, default=300.0, show_default=True, help="Length of the trace, in seconds.")
@errors_in_one_line
def generate(kind: str, out: Path, seed: int, duration_s: float) -> None:
    """Generate a network trace of a KIND.

    Kinds: lte, lte-driving, umts-driving, mmwave-walking, wifi-office, wifi-restaurant, train-with-tunnels, leo, leo-isl,
    mmwave-blocked. With scheduling gaps: lte-gaps, lte-driving-gaps, umts-gaps.
    """
    from simulator.traces.generate import generate as generated
    from simulator.traces.own import write_own
    from simulator.traces.summary import table

    refuse_unwritable(out, "csv")
    trace = generated(kind, seed, duration_s)
    write_own(trace, out, f"ciar-sim traces generate {kind} --seed {seed} --duration-s {duration_s:g}")
    click.echo(table(trace))
    click.echo(out)


@traces.command()
@reading_options
@click.option(
    "--levels",
    type=click.IntRange(1, 20),
    default=4,
    show_default=True,
    help="Number of levels (kinds of seconds) to distinguish.",
)
@errors_in_one_line
def fit(files: tuple[Path, ...], levels: int, **reading: Any) -> None:
    """Fit a generator of scheduling gaps to a packet-delivery trace of both directions, and print it as YAML.

    Put the output under `network` of a scenario, beside the mean rates (up_mbps, down_mbps).
    """
    from simulator.traces.gaps import as_yaml
    from simulator.traces.gaps import fit as fitted
    from simulator.traces.trace import Arrivals

    trace = _read(files, **reading)
    try:
        if isinstance(trace, Arrivals):
            raise TraceError("holds request arrivals; needed: a network trace")
        text = as_yaml(fitted(trace, levels))
    except TraceError as error:
        raise TraceError(f"{', '.join(map(str, files))}: {error}") from None
    click.echo(f"# {', '.join(path_text(path.name) for path in files)}, {trace.duration_s:g} s")
    for way, rate in (("down", trace.down.rate), ("up", trace.up.rate)):
        click.echo(f"{way}_mbps: {1e-6 * rate.mean_bps():.3g}")
    click.echo("\n".join(["rate:", *(f"  {line}" for line in text.splitlines())]))


def _read(
    files: tuple[Path, ...],
    direction: Any,
    unit: str | None,
    window_s: tuple[float, float] | None,
    time_scale: float | None,
) -> Any:
    from simulator.traces.excerpt import excerpt, excerpt_of_arrivals
    from simulator.traces.read import read
    from simulator.traces.trace import Trace
    from simulator.traces.units import told

    trace = read(files, told(direction, unit))
    scale = 1.0 if time_scale is None else time_scale
    try:
        return (excerpt if isinstance(trace, Trace) else excerpt_of_arrivals)(trace, window_s, scale)  # type: ignore[arg-type]
    except TraceError as error:
        raise TraceError(f"{files[0]}: {error}") from None


def _check_out(out: Path, files: tuple[Path, ...], ending: str) -> None:
    """Raise TraceError if the file to write is one of the files to read, and RunFolderError as `refuse_unwritable`."""
    try:
        same = any(os.path.realpath(out) == os.path.realpath(path) for path in files)
    except (OSError, ValueError):
        return  # reading or writing reports what is wrong with the name
    if same:
        raise TraceError(f"--out {out}: is one of the files to read; allowed: another name")
    refuse_unwritable(out, ending)
