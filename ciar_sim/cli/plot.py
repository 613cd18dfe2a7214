"""`ciar-sim plot`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciar_sim.cli.common import errors_in_one_line
from simulator.core.errors import CiarSimError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.figure import Form

# The names of `reports.kinds.KINDS` with descriptions. That module is slow to import, so they are repeated here; a test compares them.
KINDS = {
    "latency-quality": "latency against quality, with the Pareto front",
    "heat-maps": "latency, cloud calls and quality over two settings",
    "speed-up": "speed-up against the RTT or another number, with break-even",
    "sweep": "latency, cloud calls and quality against a number",
    "latency-cdf": "share of requests answered within a given latency",
    "breakdown": "latency by its ten parts",
    "load": "p95 and goodput against the load, with the objective and the knee",
    "queue": "the cloud's queue over time",
    "speed-up-table": "speed-up and latency of every method under every condition",
    "uncertainty": "maps of uncertainty; the cloud's tokens are outlined",
    "images": "images by prompt and method",
}
REGIME_MAP = "regime-map"
ANSWERS = ("capacity", "recommend")
ENDINGS = ("svg", "pdf", "png")
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}
LEAST, MOST = 1.5, 40.0  # inches


def _help(text: str) -> str:
    """Return the help of the command, with a line for each kind."""
    shown = {
        **KINDS,
        REGIME_MAP: "from the folder of `ciar-sim regime`",
        **{kind: f"from the file of `ciar-sim {kind} --out`" for kind in ANSWERS},
    }
    return "\n".join([text, "", "\b", *(f"{kind:<{max(map(len, shown)) + 2}}{what}" for kind, what in shown.items())])


@click.command(
    help=_help(
        "Draw one plot of a KIND from a RUN_FOLDER, or from the result of a decision, for a paper or a talk.\n\n"
        "For example: ciar-sim plot runs/quickstart latency-quality --size 3.3in"
    )
)
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.argument("kind", type=click.Choice([*KINDS, REGIME_MAP, *ANSWERS]), metavar="KIND")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(ENDINGS),
    help="File format; text remains text in SVG and PDF.  [default: that of --out, else pdf]",
)
@click.option(
    "--size",
    metavar="WIDTH[xHEIGHT]",
    help="Size in in, cm or mm: 3.3in for a column of a paper, 84mm, 7x3in.  [default: wide]",
)
@click.option("--methods", metavar="NAME,...", help="Draw only these methods or labels.")
@click.option(
    "--where",
    multiple=True,
    metavar="PATH=VALUE,...",
    help="Draw only the cases with these swept values, e.g. network.preset=lte.",
)
@click.option(
    "--by",
    metavar="PATH",
    help="Swept key for the panels of latency-quality, or for the x axis of sweep, speed-up and load.",
)
@click.option(
    "--no-titles", is_flag=True, help="Draw no headings and no footnote; print the footnote, for the paper's caption."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write.  [default: NAME-KIND.FORMAT in this folder]"
)
@errors_in_one_line
def plot(
    run_folder: Path,
    kind: str,
    file_format: str | None,
    size: str | None,
    methods: str | None,
    where: tuple[str, ...],
    by: str | None,
    no_titles: bool,
    out: Path | None,
) -> None:
    form = _form(size, not no_titles)
    ending = out.suffix.removeprefix(".").lower() if out is not None else ""
    if file_format is None and ending not in ("", *ENDINGS):
        raise CiarSimError(f"--out {out}: must end in {' or '.join(f'.{one}' for one in ENDINGS)}, or give --format")
    if file_format is not None and ending in ENDINGS and ending != file_format:
        raise CiarSimError(
            f"--format {file_format}: does not go with --out {out}, which ends in .{ending}; leave one out"
        )
    file_format = file_format or ending or "pdf"

    from ciar_sim.cli.common import refuse_unwritable, write_files
    from reports.figure import lacking, render, styled, texts

    refuse_unwritable(out)
    names = (methods or "").split(",")
    name, draw = _drawing(run_folder, kind, names, by, where)
    with styled(form):
        figure = draw(form)
        data = render(figure, file_format)
    if boxes := "".join(sorted(lacking(figure, file_format))) if file_format != "svg" else "":
        shown = boxes if len(boxes) <= 12 else f"{boxes[:12]}..."
        click.echo(
            f"note: no font for {shown}: boxes in the figure; install one, or use --format svg, which keeps text",
            err=True,
        )
    stem = re.sub(r"[^\w.-]+", "-", name)
    path = out or Path(f"{stem}-{kind}.{file_format}")
    write_files(path.parent, {path.name: data})
    if no_titles:
        captioned = draw(form._replace(titles=True))
        note = captioned.get_supxlabel() or (texts(captioned) or [""])[-1]
        click.echo(" ".join(note.split()))
    click.echo(path)


def _drawing(
    folder: Path, kind: str, methods: Sequence[str], by: str | None, where: Sequence[str]
) -> tuple[str, Callable[["Form"], "Figure"]]:
    """Return the name of the run or answer, and a function that draws it in a given form."""
    if kind == REGIME_MAP:
        from reports.regime_plot import read_map, regime_map
        from simulator.core.errors import RunFolderError

        if where:
            raise RunFolderError(f"--where {where[0]}: a regime map is drawn whole; `ciar-sim regime` takes its ranges")
        if by is not None:
            raise RunFolderError(f"--by {by}: a regime map has the axes that `ciar-sim regime` gave it")
        made = read_map(folder)
        return folder.resolve().name, lambda form: regime_map(made, form, methods)
    if kind in ANSWERS:
        from reports.decision_plots import decision_plot, read_answer
        from simulator.core.errors import RunFolderError

        if where:
            raise RunFolderError(f"--where {where[0]}: the answer of a decision is drawn whole")
        if by is not None:
            raise RunFolderError(f"--by {by}: the answer of a decision has a panel or a row per condition")
        answer = read_answer(folder, kind)
        return folder.stem, lambda form: decision_plot(answer, kind, form, methods)
    from reports.kinds import plot
    from reports.load import load_run

    run = load_run(folder)
    return run.name, lambda form: plot(run, kind, form, methods, by, where)


def _form(size: str | None, titles: bool) -> "Form":
    from reports.figure import Form

    if size is None:
        return Form(titles=titles)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?))?\s*(in|cm|mm)?", size.strip())
    inches = INCHES[match[3] or "in"] if match else 1.0
    lengths = [float(text) * inches for text in match.groups()[:2] if text] if match else []
    if not lengths or not all(LEAST <= length <= MOST for length in lengths):
        from simulator.core.errors import CiarSimError

        raise CiarSimError(
            f"--size {size!r}: allowed: WIDTH or WIDTHxHEIGHT of {LEAST:g} to {MOST:g} inches, as 3.3in, 84mm, 7x3in"
        )
    return Form(lengths[0], lengths[1] if len(lengths) > 1 else None, titles)
