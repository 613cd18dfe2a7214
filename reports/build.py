"""Draw a run's plots and its page from the run folder alone; doing it again gives the same bytes."""

import os
import tempfile
from pathlib import Path

from reports.html import page
from reports.load import load_run
from reports.plots import draw_plots
from simulator.core.errors import RunFolderError


def build_report(folder: Path) -> Path:
    """Write plots/*.png, plots/*.svg and report.html into the run folder; the path of the page.

    Raises RunFolderError where the folder is no whole run, or cannot be written.
    """
    run = load_run(folder)
    plots = draw_plots(run)
    report = folder / "report.html"
    text = page(run, plots)
    try:
        (folder / "plots").mkdir(exist_ok=True)
        for old in (folder / "plots").iterdir():
            if old.suffix in (".png", ".svg") and old.name not in plots:
                old.unlink()
        for name, data in plots.items():
            _write(folder / "plots" / name, data)
        _write(report, text.encode())
    except OSError as error:
        raise RunFolderError(f"cannot write the report into {folder}: {error.strerror or error}") from None
    return report


def _write(path: Path, data: bytes) -> None:
    """Through a file beside it and a rename, so that a reader sees all of it or what was there before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
