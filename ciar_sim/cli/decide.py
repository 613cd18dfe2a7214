"""`ciar-sim compare|capacity|regime|recommend|export`. A decision prints sentences, then tables."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ciar_sim.cli.common import (
    cache_option,
    errors_in_one_line,
    jobs_option,
    max_batch_option,
    options,
    refuse_unusable,
    refuse_unwritable,
    sets_option,
    torch_device_option,
)
from simulator.core.errors import CiarSimError


class Percent(click.types.FloatParamType):
    """`5%` or `5`, from `low` to `high`."""

    name = "percent"

    def __init__(self, low: float = 0.0, high: float = 100.0) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%?\s*", str(value))
        if found is None or not self.low <= float(found[1]) <= self.high:
            self.fail(f"{value} is not a percentage from {self.low:g} to {self.high:g}, such as 5%", param, ctx)
        return float(found[1])


class Seconds(click.types.FloatParamType):
    """`5s`, `800ms` or `5`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(ms|s|)\s*", str(value))
        seconds = float(found[1]) * (1e-3 if found[2] == "ms" else 1.0) if found else 0.0
        if not 0 < seconds <= 1e6:
            self.fail(f"{value} is not a time above 0, such as 5s or 800ms", param, ctx)
        return seconds


json_option = click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
max_loss_option = click.option(
    "--max-loss",
    type=Percent(),
    default="5%",
    show_default=True,
    metavar="PERCENT",
    help="Largest acceptable loss of quality relative to base.",
)
# By form of `export`: endings of its file.
ENDINGS = {
    "accept-trace": ("jsonl", "json"),
    "ianvs": ("json",),
    "markdown": ("md",),
    "latex": ("tex",),
    "netem": ("sh",),
    "messages": ("csv", "jsonl"),
    "pcap": ("pcap",),
}
answer_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file for all figures; ciar-sim plot draws it.",
)
metric_option = click.option(
    "--metric", metavar="NAME", help="Quality metric.  [default: agreement with the caption, if the images have it]"
)


# Options of all decisions that record and simulate.
replay_options = options(sets_option, cache_option, torch_device_option, max_batch_option, jobs_option, json_option)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="CSV file for all differences.")
@json_option
@errors_in_one_line
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare RUNS (run folders) with the first one: differences in latency, quality and cost, with 95 % intervals."""
    from ciar_sim.cli.common import write_files
    from ciar_sim.decide.compare import compare as decide
    from simulator.results.files import csv_bytes

    refuse_unwritable(out, "csv")
    found = decide(runs)
    if out is not None:
        write_files(out.absolute().parent, {out.name: csv_bytes(found.table)})
    _print(found, as_json)


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--slo-p95", type=Seconds(), required=True, metavar="TIME", help="Objective for p95 of the latency, e.g. 5s."
)
@click.option(
    "--requests",
    type=click.IntRange(20, 10_000_000),
    default=1000,
    show_default=True,
    help="Requests per replication, after its warm-up.",
)
@click.option(
    "--precision",
    type=Percent(0.1, 50),
    default="2.5%",
    show_default=True,
    metavar="PERCENT",
    help="End the search early when the 95 % interval of the load reaches at most this far to either side.",
)
@answer_option
@replay_options
@errors_in_one_line
def capacity(
    scenario: Path,
    slo_p95: float,
    requests: int,
    precision: float,
    out: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Find the largest load of a SCENARIO, in devices and requests per second, that each method carries within a latency objective."""
    from ciar_sim.decide.capacity import capacity as decide
    from ciar_sim.shipped import scenario_path
    from simulator.experiment.loading import load_with_source

    refuse_unwritable(out, "json")
    loaded = load_with_source(scenario_path(scenario), (), sets)
    _print(_run(lambda resources: decide(loaded, slo_p95, resources, requests, precision), given), as_json, out)


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--x",
    required=True,
    metavar="PATH=MIN:MAX[:POINTS][:log]",
    help="First axis: a range, e.g. network.rtt_ms=1:300:log, or values.",
)
@click.option("--y", metavar="PATH=MIN:MAX[:POINTS][:log]", help="Second axis, e.g. network.up_mbps=1,5,25.")
@max_loss_option
@metric_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for tables and figure.  [default: runs/<name>-regime]"
)
@replay_options
@errors_in_one_line
def regime(
    scenario: Path,
    x: str,
    y: str | None,
    max_loss: float,
    metric: str | None,
    out: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Map the fastest method of a SCENARIO that keeps a quality floor, over one or two conditions, with break-evens."""
    from ciar_sim.cli.common import write_files
    from ciar_sim.decide.recommend import scenario_of
    from ciar_sim.decide.regime import drawing
    from ciar_sim.decide.regime import regime as decide
    from simulator.experiment.loading import load_scenario

    if out is not None:
        refuse_unusable(out)
    path = scenario_of(scenario)
    folder = out or Path("runs") / f"{load_scenario(path).name}-regime"
    refuse_unusable(folder)
    _usable(folder)
    found = _run(lambda resources: decide(path, x, y, max_loss, metric, resources, sets), given)
    write_files(folder, dict(drawing(found)))
    _print(found, as_json)
    if not as_json:
        click.echo(folder / "regime.png")


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@max_loss_option
@metric_option
@click.option("--slo-p95", type=Seconds(), metavar="TIME", help="Objective for p95 of the latency, e.g. 5s.")
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="PATH=V1,V2,...",
    help="Settings to choose among, e.g. methods.ciar.threshold=1,1.5.",
)
@answer_option
@replay_options
@errors_in_one_line
def recommend(
    scenario: Path,
    max_loss: float,
    metric: str | None,
    slo_p95: float | None,
    axes: tuple[str, ...],
    out: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Recommend a method and its settings for the network and load of a SCENARIO (a file, a shipped one, or a run folder).

    The recommendation is verified on other prompts with another seed. If the cloud alone is best, base is recommended.
    """
    from ciar_sim.decide.recommend import recommend as decide
    from ciar_sim.decide.recommend import scenario_of

    refuse_unwritable(out, "json")
    path = scenario_of(scenario)
    _print(_run(lambda resources: decide(path, max_loss, metric, slo_p95, resources, sets, axes), given), as_json, out)


def _run(decide: Callable[[Any], Any], given: dict[str, Any]) -> Any:
    """Compute a decision with progress on the terminal."""
    from ciar_sim.cli.console import progress_bars
    from ciar_sim.decide.bench import Resources

    with progress_bars(False) as progress:
        return decide(Resources(progress=progress, **given))


def _print(decision: Any, as_json: bool, out: Path | None = None) -> None:
    from ciar_sim.cli.common import write_files

    if out is not None:
        write_files(out.parent, {out.name: decision.to_json().encode()})
    click.echo(decision.to_json() if as_json else str(decision))


def _usable(folder: Path) -> None:
    """Raise CiarSimError if the folder has files that are not of a regime map. Called before minutes of work."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {f"{name}.csv" for name in ("regime", "break_evens", "quality", "latency")}
    ours |= {"regime.json", "regime.png", "regime.svg"}
    if (folder.exists() and not folder.is_dir()) or names - ours:
        found = sorted(names - ours)[0] if names - ours else "a file"
        raise CiarSimError(f"--out {folder}: holds {found}, which is not of a regime map; name another folder")


@click.command()
@click.argument("run_or_scenario", type=click.Path(path_type=Path))
@click.option(
    "--as",
    "form",
    default="markdown",
    show_default=True,
    type=click.Choice(["accept-trace", "ianvs", "markdown", "latex", "netem", "mahimahi", "messages", "pcap"]),
    help="From a run: rounds as JSON lines, KubeEdge-Ianvs' five metrics, or a table. From a run or a scenario: links for an emulator, "
    "messages as CSV, or a packet capture of one request.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write (a folder for mahimahi). Messages are JSON lines if the file ends in .jsonl.  [default: standard output]",
)
@sets_option
@click.option("--method", metavar="LABEL", help="Messages of this method.  [default: all; pcap: the first]")
@click.option("--request", type=click.IntRange(0, 2**62), help="Messages of this request.  [default: all; pcap: 0]")
@cache_option
@errors_in_one_line
def export(
    run_or_scenario: Path,
    form: str,
    out: Path | None,
    sets: tuple[str, ...],
    method: str | None,
    request: int | None,
    cache: Path | None,
) -> None:
    """Export a run folder, or the links or messages of a scenario, in a format of other tools. Sessions are replayed from recordings."""
    from ciar_sim.cli.common import write_files
    from ciar_sim.decide.bench import Resources
    from ciar_sim.decide.export import Choice, content
    from ciar_sim.decide.export import export as exported

    if out is None and form in ("mahimahi", "pcap"):
        raise CiarSimError(
            f"--as {form}: is not a text format; name a {'folder' if form == 'mahimahi' else 'file'} with --out"
        )
    if form == "mahimahi" and out is not None:
        refuse_unusable(out)
    else:
        refuse_unwritable(out, *ENDINGS[form])
    found = exported(run_or_scenario, form, Resources(cache=cache), Choice(sets, method, request))
    if isinstance(found, dict):
        assert out is not None
        write_files(out, dict(found))
    elif out is None:
        click.echo(content(found), nl=False)
        return
    else:
        write_files(out.absolute().parent, {out.name: content(found, lines=out.suffix == ".jsonl")})
    click.echo(out)
