"""Draw the plots and the page of a run from its folder alone; drawing again gives the same bytes."""

from pathlib import Path

from matplotlib.figure import Figure

from reports.figure import render, styled
from reports.findings import Finding, find
from reports.image_grid import grid_prompts, image_grid
from reports.load import Run, load_run
from reports.page import page
from reports.parts_plot import latency_parts
from reports.quality_plot import TWO_ROWS_UP_TO, latency_quality, speedup_table
from reports.queue_plot import queue_over_time
from reports.sweep_plot import numeric_axes, sweep, sweep_name
from simulator.core.errors import RunFolderError
from simulator.core.files import write_atomically


def build_report(folder: Path) -> Path:
    """Write plots/*.png, plots/*.svg and report.html into a run folder.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: the folder is no complete run folder, or cannot be written.
    """
    run = load_run(folder)
    findings = find(run)
    plots = draw_plots(run, findings)
    report = folder / "report.html"
    text = page(run, findings, plots)
    try:
        (folder / "plots").mkdir(exist_ok=True)
        for old in (folder / "plots").iterdir():
            if old.suffix in (".png", ".svg") and old.name not in plots:
                old.unlink()
        for name, data in plots.items():
            write_atomically(folder / "plots" / name, data)
        write_atomically(report, text.encode())
    except OSError as error:
        raise RunFolderError(f"cannot write the report into {folder}: {error.strerror or error}") from None
    return report


def draw_plots(run: Run, findings: tuple[Finding, ...]) -> dict[str, bytes]:
    """Every plot that the run allows, as file name -> bytes, in the order of the page."""
    files: dict[str, bytes] = {}
    with styled():
        figures: dict[str, Figure] = {}
        if any(said.fastest != "none" for said in findings):
            figures["latency_quality"] = latency_quality(run, findings)
            if len(findings) > TWO_ROWS_UP_TO:
                figures["speedup_table"] = speedup_table(run)
            figures["latency_parts"] = latency_parts(run, findings)
            figures |= {sweep_name(key): sweep(run, key) for key in numeric_axes(run)}
        if (run.queue["queued"] + run.queue["admission"]).any():
            figures["queue_over_time"] = queue_over_time(run, findings)
        if grid_prompts(run):
            figures["image_grid"] = image_grid(run)
        for name, figure in figures.items():
            files |= {f"{name}.{form}": render(figure, form) for form in ("png", "svg")}
    return files
