"""`ciar-sim run` and `ciar-sim sweep`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ciar_sim.cli.common import columns_option, errors_in_one_line


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("scenario", type=click.Path(path_type=Path)),
        click.option("--out", type=click.Path(path_type=Path), help="Run folder to write.  [default: runs/<name>]"),
        click.option(
            "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change one value of the scenario, e.g. seed=1."
        ),
        click.option(
            "--cache", type=click.Path(path_type=Path), help="Folder of recordings.  [default: the user's cache folder]"
        ),
        click.option(
            "--torch-device",
            default="auto",
            show_default=True,
            help="Where forward passes run: auto, cpu, cuda, cuda:1 ...",
        ),
        click.option(
            "--max-batch",
            type=click.IntRange(1),
            default=64,
            show_default=True,
            help="Sessions recorded at once; bounds memory. Decisions near a tie can depend on it (docs/guide.md).",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes that simulate; changes no result.",
        ),
        columns_option,
        click.option(
            "--case-timeout",
            type=click.FloatRange(0, 1e6, min_open=True),
            default=60,
            show_default=True,
            metavar="MINUTES",
            help="A case whose simulation takes longer fails alone.",
        ),
        click.option(
            "--timeline",
            type=click.IntRange(0, 10_000),
            default=2,
            show_default=True,
            metavar="N",
            help="Requests of every case, from the first on, in timeline.json.gz.",
        ),
        click.option("--quiet", is_flag=True, help="No progress and no table."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@run_options
@errors_in_one_line
def run(scenario: Path, **options: Any) -> None:
    """Run a SCENARIO (a file, or the name of a shipped one): every method under every swept value.

    Writes tables, plots and report.html.
    """
    _run(scenario, (), (), None, **options)


@click.command()
@run_options
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=VALUES",
    help="Values to sweep: V1,V2,... or a range MIN:MAX:STEPS[:log]; repeat for a grid.",
)
@click.option("--zip", "zips", multiple=True, metavar="PATH,PATH", help="Axes whose values move together.")
@click.option(
    "--random",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="N points spread evenly over all axes (Sobol), in place of the grid. Ranges need no STEPS.",
)
@errors_in_one_line
def sweep(scenario: Path, axes: tuple[str, ...], zips: tuple[str, ...], random: int | None, **options: Any) -> None:
    """Run a SCENARIO over the axes of its `sweep:` and those given here.

    For example --axis network.rtt_ms=5:200:6:log --axis methods.ciar.threshold=0.2,0.4. An axis of the same path takes the place of
    the scenario's.
    """
    _run(scenario, axes, zips, random, **options)


def _run(
    path: Path,
    axes: tuple[str, ...],
    zips: tuple[str, ...],
    random: int | None,
    out: Path | None,
    sets: tuple[str, ...],
    cache: Path | None,
    torch_device: str,
    max_batch: int,
    jobs: int,
    columns: str | None,
    case_timeout: float,
    timeline: int,
    quiet: bool,
) -> None:
    from ciar_sim.shipped import scenario_path
    from simulator.experiment.loading import load_with_source
    from simulator.experiment.options import Choice

    loaded = load_with_source(scenario_path(path), axes, sets, Choice(zips, random))

    from ciar_sim.api import execute
    from ciar_sim.cli.console import chosen_columns, progress_bars, summary_lines, warning_lines
    from simulator.experiment.assumptions import trace_notes
    from simulator.experiment.sweep import expand

    chosen = chosen_columns(columns)
    with progress_bars(quiet) as progress:
        result = execute(
            loaded.scenario,
            loaded.source.where,
            out,
            cache,
            torch_device,
            max_batch,
            jobs,
            60.0 * case_timeout,
            timeline,
            progress,
        )
    if not quiet:
        click.echo(summary_lines(result.summary, chosen))
        ties = json.loads((result.folder / "provenance.json").read_text())["near_ties"]
        if ties["near_ties"]:
            click.echo(f"note: {ties['meaning']}")
        for note in trace_notes(case.scenario for case in expand(loaded.scenario)):
            click.echo(f"note: {note}")
        for line in warning_lines(result.warnings):
            click.echo(line)
        click.echo(f"{result.report}")
    if result.failed:
        click.echo(f"{len(result.failed)} cases failed and are in no table:", err=True)
        for message in result.failed:
            click.echo(f"  {message}", err=True)
        sys.exit(1)
