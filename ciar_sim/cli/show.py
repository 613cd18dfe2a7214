"""`ciar-sim schema|list|report`."""

from pathlib import Path

import click

from ciar_sim.cli.common import columns_option, errors_in_one_line


@click.command()
@errors_in_one_line
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    import json

    from simulator.experiment.scenario import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@click.command("list")
@click.argument(
    "what",
    type=click.Choice(["methods", "presets", "hardware", "models", "pairs", "backbones", "scenarios"]),
    metavar="WHAT",
)
@errors_in_one_line
def list_(what: str) -> None:
    """List what a scenario can refer to.

    WHAT is one of methods (with their settings), presets (of networks), hardware, models (sizes that can be priced), pairs (of models),
    backbones (published models) and scenarios (shipped ones).
    """
    from ciar_sim.cli.listing import listing

    click.echo(listing(what))


@click.command()
@click.argument("run_folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_FOLDER...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write for a comparison of several runs.  [default: beside the first, named after all]",
)
@columns_option
@errors_in_one_line
def report(run_folders: tuple[Path, ...], out: Path | None, columns: str | None) -> None:
    """Draw the plots and report.html of a RUN_FOLDER again, and print its table. Several folders are compared on one page.

    For a run that is in progress or was interrupted, print the cases that are done and what is missing.
    """
    from ciar_sim.cli.console import chosen_columns, summary_lines, warning_lines
    from simulator.results.folder import is_unfinished

    chosen = chosen_columns(columns)
    if len(run_folders) == 1 and is_unfinished(run_folders[0]):
        _unfinished(run_folders[0], chosen)
        return
    from reports.build import answer, build_report
    from reports.combined import write_comparison
    from reports.load import load_run

    if len(run_folders) > 1:
        page, run = write_comparison(run_folders, out)
        table = run.summary.drop(columns=["label", "condition"])
    else:
        if out is not None:
            raise click.UsageError("--out goes with several run folders; one is drawn in place")
        page = build_report(run_folders[0])
        run = load_run(run_folders[0])
        table = run.summary
    click.echo(summary_lines(table, chosen))
    for line in warning_lines(run.provenance.get("warnings") or []):
        click.echo(line)
    for line in answer(run):
        click.echo(line)
    click.echo(page)


MOST_MISSING = 10  # missing cases that are named


def _unfinished(folder: Path, columns: tuple[str, ...] | None) -> None:
    import json

    from ciar_sim.api import foresee
    from ciar_sim.cli.console import state_lines, summary_lines
    from ciar_sim.cli.models import Models
    from simulator.core.errors import RunFolderError
    from simulator.experiment.kept import CaseCache
    from simulator.experiment.loading import load_with_source
    from simulator.experiment.state import finished_records
    from simulator.protocol.cache import RecordingCache
    from simulator.results.folder import UNFINISHED
    from simulator.results.tables import summary_table

    try:
        cache = Path(json.loads((folder / UNFINISHED).read_text())["cache"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RunFolderError(f"{folder / UNFINISHED}: is damaged; start the run again") from None
    loaded = load_with_source(folder / "scenario.yaml")
    state = foresee(loaded, cache)
    scorer = Models(loaded.scenario.pair, "auto", 1, cache, lambda stage, done, total: None).scorer()
    records = finished_records(state, RecordingCache(cache), CaseCache(cache), scorer)
    if records:
        click.echo(summary_lines(summary_table(records), columns))
    click.echo(
        f"{folder} is unfinished: {len(state.simulated)} of {len(state.cases) + state.more_cases} cases are simulated."
    )
    there = {case.index for case in state.simulated}
    left = [case.title for case in state.cases if case.index not in there]
    for title in left[:MOST_MISSING]:
        click.echo(f"  missing: {title}")
    if len(left) > MOST_MISSING:
        click.echo(f"  and {len(left) - MOST_MISSING} more")
    for line in state_lines(state, cache, "auto"):
        click.echo(line)
    click.echo("The same command continues it.")
