"""Comparison of several runs: a combined run in which the run is a condition, and the folder of its report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from reports.build import write_report
from reports.load import Run, load_run, with_words
from reports.words import grouped
from simulator.core.errors import RunFolderError, reason
from simulator.core.files import json_mapping, path_text, replace_folder, temporary_sibling, why_unusable
from simulator.results.files import csv_bytes, json_bytes

MARK = "comparison.json"


def combined(runs: Sequence[Run]) -> Run:
    """Combine the cases of several runs. The first swept key is `run`; runs of the same name are named by their folders."""
    names = _names(runs)
    swept = ("run", *dict.fromkeys(key for run in runs for key in run.swept))
    tables, queues, offset = [], [], 0
    for name, run in zip(names, runs, strict=True):
        table = run.summary.drop(columns=["label", "condition"]).assign(run=name)
        tables.append(table.assign(case=table["case"] + offset))
        queues.append(run.queue.assign(case=run.queue["case"] + offset))
        offset += int(table["case"].max()) + 1
    summary = pd.concat(tables, ignore_index=True)
    front = ["case", "method", "method_name", *swept]
    summary = summary[[*front, *(column for column in summary.columns if column not in front)]]
    provenance: dict[str, Any] = {
        "name": " against ".join(names),
        "columns": runs[0].provenance.get("columns") or {},
        "warnings": [
            f"{name}: {text}"
            for name, run in zip(names, runs, strict=True)
            for text in grouped(run.provenance.get("warnings") or [])
        ],
        "as_if": "; ".join(dict.fromkeys(run.as_if for run in runs if run.as_if)),
        "runs": {name: str(run.folder) for name, run in zip(names, runs, strict=True)},
    }
    images = tuple(
        replace(one, method=f"{name}: {one.method}")
        for name, run in zip(names, runs, strict=True)
        for one in run.images
    )
    scenario = "\n".join(f"# {name}\n{run.scenario}" for name, run in zip(names, runs, strict=True))
    words = with_words(summary, swept, str(provenance["name"]))
    queue = pd.concat(queues, ignore_index=True)
    return Run(str(provenance["name"]), scenario, provenance, swept, words, images, queue, runs[0].folder)


def write_comparison(folders: Sequence[Path], out: Path | None) -> tuple[Path, Run]:
    """Write report.html, summary.csv and plots/ of several runs into a folder.

    Args:
        folders: the run folders.
        out: the folder; by default next to the first run, named after all runs. An earlier comparison there is replaced.

    Returns:
        The path of the page, and the combined run.

    Raises:
        RunFolderError: a folder is not a run folder, or `out` is not a comparison or cannot be written.
    """
    if out is not None and (why := why_unusable(out)):
        raise RunFolderError(f"cannot write the comparison {out}: {why}")
    runs = [load_run(folder) for folder in folders]
    run = combined(runs)
    out = out or folders[0].resolve().parent / "-vs-".join(folder.resolve().name for folder in folders)
    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or json_mapping(out / MARK).get("program") == "ciar-sim")
    ):
        raise RunFolderError(
            f"cannot write the comparison {out}: it exists and is not a comparison made by ciar-sim; name another by --out"
        )
    table = run.summary.drop(columns=["label", "condition"])
    target = out.resolve()
    try:
        with temporary_sibling(target) as temporary:
            new = temporary / "new"
            new.mkdir()
            (new / MARK).write_bytes(json_bytes({"program": "ciar-sim", "runs": run.provenance["runs"]}))
            (new / "summary.csv").write_bytes(csv_bytes(table))
            page = write_report(run, new)
            replace_folder(temporary, target)
    except OSError as error:
        raise RunFolderError(f"cannot write the comparison {out}: {reason(error)}") from None
    except RunFolderError as error:
        raise RunFolderError(str(error).replace(str(new), str(out))) from None
    return out / page.name, run


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run: that of the scenario if it is unique, else that of the folder; equal names get a number."""
    own = [run.name for run in runs]
    names = [
        name if own.count(name) == 1 else path_text(run.folder.resolve().name)
        for name, run in zip(own, runs, strict=True)
    ]
    return [
        f"{name} #{names[:place].count(name) + 1}" if name in names[:place] else name
        for place, name in enumerate(names)
    ]
