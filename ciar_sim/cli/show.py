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
@click.argument("what", type=click.Choice(["methods", "presets", "hardware", "pairs", "scenarios"]))
@errors_in_one_line
def list_(what: str) -> None:
    """Show what a scenario may name: methods with their settings, network presets, hardware, model pairs; and the shipped scenarios."""
    from ciar_sim.cli import console

    click.echo(console.listing(what))


@click.command()
@click.argument("run_folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_FOLDER...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the comparison of several runs.  [default: beside the first, named after all]",
)
@columns_option
@errors_in_one_line
def report(run_folders: tuple[Path, ...], out: Path | None, columns: str | None) -> None:
    """Draw plots and report.html of a RUN_FOLDER again, and print its table; of several, compare them on one page."""
    from ciar_sim.cli.console import chosen_columns, summary_lines, warning_lines
    from reports.build import build_report
    from reports.combined import write_comparison
    from reports.load import load_run

    chosen = chosen_columns(columns)
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
    click.echo(page)
