"""`ciar-sim run` and `ciar-sim sweep`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciar_sim.cli.common import (
    FiniteRange,
    cache_option,
    columns_option,
    errors_in_one_line,
    jobs_option,
    max_batch_option,
    options,
    quiet_option,
    sets_option,
    torch_device_option,
)
from simulator.core.errors import NOT_SIMULATED, CiarSimError, counted

if TYPE_CHECKING:
    from ciar_sim.api import Result


run_options = options(
    click.argument("scenario", type=click.Path(path_type=Path)),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run folder to write.  [default: runs/<name>; sweep with options: runs/<name>-<digest>]",
    ),
    sets_option,
    cache_option,
    torch_device_option,
    max_batch_option,
    jobs_option,
    click.option(
        "--record-jobs",
        type=click.IntRange(1),
        metavar="N",
        help="On a CPU, record in N processes.  [default: one per core where that pays off]",
    ),
    click.option(
        "--dask",
        "scheduler",
        metavar="ADDRESS",
        help="Simulate on a Dask cluster, e.g. tcp://host:8786; does not change the results.",
    ),
    click.option(
        "--dask-local",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Start a Dask cluster of N processes for the run and simulate on it.",
    ),
    columns_option,
    click.option(
        "--case-timeout",
        type=FiniteRange(0, 1e6, min_open=True),
        default=60,
        show_default=True,
        metavar="MINUTES",
        help="A case whose simulation takes longer fails; the others go on.",
    ),
    click.option(
        "--timeline",
        type=click.IntRange(0, 10_000),
        default=2,
        show_default=True,
        metavar="N",
        help="Write the first N requests of every case to timeline.json.gz.",
    ),
    click.option("--force", is_flag=True, help="Replace a run of another scenario in the run folder."),
    click.option("--dry-run", is_flag=True, help="Print what the run would do, and write nothing."),
    quiet_option,
)


@click.command()
@run_options
@errors_in_one_line
def run(scenario: Path, **given: Any) -> None:
    """Run a SCENARIO (a file or the name of a shipped one): every method with every swept value.

    Writes tables, plots and report.html.
    """
    _run(scenario, (), ((), None, None), **given)


@click.command()
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=VALUES",
    help="Values to sweep: V1,V2,... or a range MIN:MAX:STEPS[:log]; repeat for a grid.",
)
@click.option("--zip", "zips", multiple=True, metavar="PATH,PATH", help="Axes whose values change together.")
@click.option(
    "--random",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="N points spread evenly over all axes (Sobol) instead of the grid. Ranges need no STEPS.",
)
@click.option(
    "--tune",
    metavar="N[:QUALITY]",
    help="Search the methods' swept settings in N trials, for low latency and high quality.  [default quality: agreement with the caption]",
)
@run_options
@errors_in_one_line
def sweep(
    scenario: Path, axes: tuple[str, ...], zips: tuple[str, ...], random: int | None, tune: str | None, **given: Any
) -> None:
    """Run a SCENARIO over the axes of its `sweep:` and those given here.

    For example --axis network.rtt_ms=5:200:6:log --axis methods.ciar.threshold=0.2,0.4. An axis given here replaces one with the same
    path in the scenario.
    """
    _run(scenario, axes, (zips, random, tune), **given)


def _run(
    path: Path,
    axes: tuple[str, ...],
    choice: tuple[tuple[str, ...], int | None, str | None],
    out: Path | None,
    sets: tuple[str, ...],
    cache: Path | None,
    torch_device: str,
    max_batch: int,
    jobs: int | None,
    record_jobs: int | None,
    scheduler: str | None,
    dask_local: int | None,
    columns: str | None,
    case_timeout: float,
    timeline: int,
    force: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    from ciar_sim.shipped import scenario_path
    from simulator.experiment.loading import load_with_source
    from simulator.experiment.options import Choice

    loaded = load_with_source(scenario_path(path), axes, sets, Choice(*choice))

    from ciar_sim.api import execute, rehearse, run_folder
    from ciar_sim.cli.common import default_cache
    from ciar_sim.cli.console import chosen_columns, progress_bars, state_lines
    from ciar_sim.decide.bench import Resources
    from simulator.experiment.rerun import check_replaced
    from simulator.experiment.workers import Workers

    chosen = chosen_columns(columns)
    if scheduler is not None and dask_local is not None:
        raise CiarSimError("--dask-local conflicts with --dask: give one of them")
    workers = Workers(jobs, scheduler, dask_local)
    changed = bool(axes or sets or any(choice))
    out = out or run_folder(loaded.scenario, changed and click.get_current_context().info_name == "sweep")
    if dry_run:
        check_replaced(out, loaded.scenario, force)
        state = rehearse(loaded, Resources(cache, torch_device, max_batch), workers)
        click.echo("\n".join(state_lines(state, cache or default_cache(), torch_device)))
        return
    with progress_bars(quiet) as progress:
        resources = Resources(cache, torch_device, max_batch, workers, progress)
        result = execute(loaded, out, resources, 60.0 * case_timeout, timeline, force, record_jobs)
    if not quiet:
        _print(result, chosen)
    if number := len(result.failed):
        from reports.words import failures

        click.echo(f"{counted(number, 'case')} failed and {'is' if number == 1 else 'are'} in no table:", err=True)
        for message in failures(result.failed):
            click.echo(f"  {message}", err=True)
        sys.exit(1)


def _print(result: "Result", columns: tuple[str, ...] | None) -> None:
    """Print the table, notes, warnings and the advice."""
    from ciar_sim.cli.console import pareto_lines, summary_lines, warning_lines
    from reports.build import answer
    from reports.load import load_run
    from simulator.experiment.provenance import NOTES

    click.echo(summary_lines(result.summary, columns))
    if result.pareto is not None:
        click.echo(pareto_lines(result.pareto, result.quality))
    run = load_run(result.folder)
    ties = run.provenance["near_ties"]
    if ties["near_ties"]:
        click.echo(f"note: {ties['meaning']}")
    for note in run.provenance["notes"]:
        if note not in NOTES:  # assumptions of trace readers, repeated captions
            click.echo(f"note: {note}")
    for line in [
        *warning_lines([text for text in result.warnings if not text.startswith(NOT_SIMULATED)]),
        result.work,
        *answer(run),
        result.report,
    ]:
        click.echo(line)
