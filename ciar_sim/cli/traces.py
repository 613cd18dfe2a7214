"""`ciar-sim traces import|show|generate`. What a command needs is imported when it runs."""

from pathlib import Path
from typing import Any

import click

from ciar_sim.cli.common import errors_in_one_line
from simulator.core.errors import TraceError


@click.group()
def traces() -> None:
    """Network and arrival traces: read any known format, plot, generate."""


FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
DIRECTION = click.option(
    "--direction",
    type=click.Choice(["down", "up"]),
    default="down",
    show_default=True,
    help="Of a file that does not say it.",
)


@traces.command("import")
@FILES
@click.option("--out", required=True, type=click.Path(path_type=Path), help="CSV file to write.")
@DIRECTION
@errors_in_one_line
def import_(files: tuple[Path, ...], out: Path, direction: Any) -> None:
    """Turn a trace of any known format into the project's own CSV.

    Files that belong together (.up and .down, bandwidth and delay) are given together.
    """
    from simulator.traces.own import write_own
    from simulator.traces.read import read
    from simulator.traces.show import table

    _spare(out, files)
    trace = read(files, direction)
    write_own(trace, out, f"from {', '.join(path.name for path in files)} ({trace.format})")
    click.echo(table(trace))
    click.echo(out)


@traces.command()
@FILES
@click.option("--out", type=click.Path(path_type=Path), help="PNG file to draw.  [default: beside FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; draw only where --out is given.")
@DIRECTION
@errors_in_one_line
def show(files: tuple[Path, ...], out: Path | None, as_json: bool, direction: Any) -> None:
    """Print and plot what a trace of any known format says."""
    from simulator.traces import show as drawing
    from simulator.traces.own import write
    from simulator.traces.read import read
    from simulator.traces.trace import summary

    if out is None and not as_json:
        out = files[0].with_name(f"{files[0].name}.png")
    if out is not None:
        _spare(out, files)
    trace = read(files, direction)
    if out is not None:
        write(out, drawing.plot(trace, f"{', '.join(path.name for path in files)} ({trace.format})"))
    click.echo(drawing.as_json(summary(trace)) if as_json else f"{drawing.table(trace)}\n{out}")


@traces.command()
@click.argument("kind")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="CSV file to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--duration-s", type=float, default=300.0, show_default=True)
@errors_in_one_line
def generate(kind: str, out: Path, seed: int, duration_s: float) -> None:
    """Generate a network trace of a KIND.

    Kinds: lte, lte-driving, umts-driving, mmwave-walking, wifi-office, wifi-restaurant, train-with-tunnels, leo, leo-isl,
    mmwave-blocked.
    """
    from simulator.traces.generate import generate as generated
    from simulator.traces.own import write_own
    from simulator.traces.show import table

    trace = generated(kind, seed, duration_s)
    write_own(trace, out, f"ciar-sim traces generate {kind} --seed {seed} --duration-s {duration_s:g}")
    click.echo(table(trace))
    click.echo(out)


def _spare(out: Path, files: tuple[Path, ...]) -> None:
    if any(out.resolve() == path.resolve() for path in files):
        raise TraceError(f"--out {out}: is one of the files to read; allowed: another name")
