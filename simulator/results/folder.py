"""The run folder. It is written atomically and replaces nothing but an earlier run."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from simulator.core.errors import RunFolderError
from simulator.core.files import (
    is_temporary_of,
    json_mapping,
    replace_folder,
    temporary_sibling,
    why_unusable,
    write_atomically,
)
from simulator.results.columns import RUN_FORMAT, definitions
from simulator.results.files import ROWS, csv_bytes, json_bytes, write_parquet
from simulator.results.tables import CaseRecords, queue_blocks, request_blocks, summary_table, tiers_table
from simulator.results.timeline import timeline_bytes

IMAGE_KINDS = ("image", "uncertainty", "decided")


@dataclass(frozen=True)
class RunImage:
    """An image of the run folder's `images/`.

    Attributes:
        method: Label of the method.
        prompt: Number of the prompt.
        text: Text of the prompt.
        kind: "image", "uncertainty" or "decided" (0 by the cloud, 1 by the device).
        pixels: For "image": uint8 [H, W, 3]. For other kinds: float [h, w], one value per token, NaN for no value.
    """

    method: str
    prompt: int
    text: str
    kind: str
    pixels: np.ndarray


UNFINISHED = "unfinished.json"  # of a run in progress or stopped, instead of provenance.json
_FILES = (
    UNFINISHED,
    "scenario.yaml",
    "requests.parquet",
    "queue.parquet",
    "summary.csv",
    "tiers.csv",
    "provenance.json",
    "timeline.json.gz",
    "report.html",
)
SCENARIO_SHA256 = "scenario_sha256"  # in provenance.json: of the text of scenario.yaml
_FOLDERS = ("images", "plots")  # contain images and index.json
_IMAGE_FILES = (".png", ".svg")


def check_run_folder(folder: Path) -> None:
    """Raise RunFolderError if `write_run` would refuse the folder. Call it before long work."""
    cannot = f"cannot write the run folder {folder}:"
    try:
        if not (folder.exists() or folder.is_symlink()):
            place = next(parent for parent in folder.absolute().parents if parent.exists())
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise RunFolderError(f"{cannot} {place} is not a folder that can be written")
            if why := why_unusable(folder):
                raise RunFolderError(f"{cannot} {why}")
            return
        if not folder.is_dir():
            raise RunFolderError(f"{cannot} it exists and is not a folder")
        names = sorted(path.name for path in folder.iterdir() if not _is_half_written(path))
        if names and told_of(folder, "program") != "ciar-sim":
            raise RunFolderError(f"{cannot} it holds {names[0]} and is not a run of ciar-sim; name another")
        if foreign := _foreign(folder):
            raise RunFolderError(f"{cannot} {foreign[0]} in it is not from ciar-sim; move it away")
        if not os.access(folder.resolve().parent, os.W_OK | os.X_OK):
            raise RunFolderError(f"{cannot} {folder.resolve().parent} cannot be written")
    except _UNUSABLE_PATH as error:
        raise RunFolderError(f"{cannot} {_reason(error)}") from None


# ValueError: a character that no path can contain; RuntimeError: a symlink loop.
_UNUSABLE_PATH = (
    OSError,
    ValueError,
    RuntimeError,
)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:  # the text of the error may be that of a library
        return os.strerror(error.errno)
    return str(error)


def _foreign(folder: Path) -> list[str]:
    """Return the files in a run folder, by relative name, that neither `write_run` nor the report writes. Hidden files are foreign."""
    found = []
    for path in folder.iterdir():
        if path.name in _FOLDERS and path.is_dir():
            for inner in path.iterdir():
                drawn = inner.suffix in _IMAGE_FILES and not inner.name.startswith(".")
                if not inner.is_file() or not (drawn or inner.name == "index.json"):
                    found.append(f"{path.name}/{inner.name}")
        elif _is_half_written(path) or not os.path.lexists(path):  # deleted meanwhile
            continue
        elif path.name not in _FILES or not path.is_file():
            found.append(path.name)
    return sorted(found)


def _is_half_written(path: Path) -> bool:
    """Return whether a file in a run folder is the temporary file of another process, running or killed."""
    return any(is_temporary_of(name, path.name) for name in _FILES)


def told_of(folder: Path, key: str) -> Any:
    """Return an entry of provenance.json or unfinished.json of a run folder; None if it has none."""
    return (json_mapping(folder / UNFINISHED) | json_mapping(folder / "provenance.json")).get(key)


def mark_unfinished(folder: Path, scenario_yaml: str, told: Mapping[str, Any]) -> bool:
    """Write the scenario and `unfinished.json` into a folder without a run, and return whether it did.

    Args:
        folder: The run folder. An earlier run in it stays until `write_run` replaces it.
        scenario_yaml: The resolved scenario.
        told: Further entries of unfinished.json.

    Raises:
        RunFolderError: The folder contains something else than a run of ciar-sim, or cannot be written.
    """
    check_run_folder(folder)
    if folder.exists() and {path.name for path in folder.iterdir()} - {UNFINISHED, "scenario.yaml"}:
        return False
    try:
        write_atomically(folder / UNFINISHED, json_bytes({"program": "ciar-sim", **told}))
        write_atomically(folder / "scenario.yaml", scenario_yaml.encode())
    except OSError as error:
        clear_unfinished(folder)
        raise RunFolderError(f"cannot write the run folder {folder}: {_reason(error)}") from None
    return True


def scenario_digest(scenario_yaml: str) -> str:
    """Return the sha256 (hex) of the text of scenario.yaml, whatever its line ends."""
    return hashlib.sha256("\n".join(scenario_yaml.splitlines()).encode()).hexdigest()


def clear_unfinished(folder: Path) -> None:
    """Delete what `mark_unfinished` wrote, and the folder if it is then empty. Finished runs are not changed."""
    if is_unfinished(folder):
        with suppress(OSError):
            for name in ("scenario.yaml", UNFINISHED):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def is_unfinished(folder: Path) -> bool:
    """Return whether the folder contains a run that has started and not finished."""
    return (folder / UNFINISHED).is_file() and not (folder / "provenance.json").exists()


def write_run(
    folder: Path,
    *,
    scenario_yaml: str,
    cases: Sequence[CaseRecords],
    provenance: Mapping[str, Any],
    timeline: Iterable[tuple[str, bytes]] = (),
    images: Sequence[RunImage] = (),
    draw: Callable[[Path], object] | None = None,
) -> pd.DataFrame:
    """Write a run folder, completely or not at all, and return its summary.

    Everything is written to a temporary sibling folder, which is renamed at the end. An earlier run is replaced.

    Args:
        folder: The run folder.
        scenario_yaml: The resolved scenario.
        cases: Records of all cases.
        provenance: Content of provenance.json, without `program`, `run_format`, `columns` and `scenario_sha256`. The report shows all of
            it, with special treatment of name (str), as_if (str or None), compute (what -> how its time was obtained) and notes (list of
            what is not modelled).
        timeline: Title and events (`simulator.results.timeline.drawn`) of each case.
        images: Images for `images/`.
        draw: Adds plots and page to the temporary folder (`reports.build.build_report`).

    Raises:
        RunFolderError: The folder contains something else than a run of ciar-sim, or cannot be written.
        ValueError: Two images have the same method, prompt and kind.
    """
    check_run_folder(folder)
    places = [(image.method, image.prompt, image.kind) for image in images]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise ValueError(f"two images of one place: {twice[0]}")
    summary = summary_table(cases)
    marks = {
        "program": "ciar-sim",
        "run_format": RUN_FORMAT,
        "columns": definitions(summary.columns),
        SCENARIO_SHA256: scenario_digest(scenario_yaml),
    }
    try:
        target = folder.resolve()
    except _UNUSABLE_PATH as error:
        raise RunFolderError(f"cannot write the run folder {folder}: {_reason(error)}") from None
    try:
        with temporary_sibling(target) as temporary:
            new = temporary / "new"
            new.mkdir()
            (new / "scenario.yaml").write_bytes(scenario_yaml.encode())
            write_parquet(new / "requests.parquet", request_blocks(cases, ROWS))
            write_parquet(new / "queue.parquet", queue_blocks(cases, ROWS))
            (new / "summary.csv").write_bytes(csv_bytes(summary))
            tiers = tiers_table(cases)
            if len(tiers):
                (new / "tiers.csv").write_bytes(csv_bytes(tiers))
            (new / "provenance.json").write_bytes(json_bytes({**provenance, **marks}))
            (new / "timeline.json.gz").write_bytes(timeline_bytes(timeline))
            _write_images(new / "images", images)
            if draw is not None:
                with _named(new, folder):
                    draw(new)
            check_run_folder(folder)  # again, because drawing takes long
            replace_folder(temporary, target)
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {folder}: {_reason(error)}") from None
    return summary


@contextmanager
def _named(temporary: Path, folder: Path) -> Iterator[None]:
    """Replace the temporary folder by the run folder in the text of errors raised inside."""
    try:
        yield
    except RunFolderError as error:
        raise RunFolderError(str(error).replace(str(temporary), str(folder))) from None


def _write_images(folder: Path, images: Sequence[RunImage]) -> None:
    """Write images/*.png and images/index.json, a list of {file, method, prompt, text, kind, low, high} in the order given.

    Kind "image" is RGB, with low and high null. "uncertainty" and "decided" are grey with alpha, one pixel per token:
    value = low + grey / 255 * (high - low); alpha is 0 for no value.
    """
    folder.mkdir()
    index: list[dict[str, Any]] = []
    taken: set[str] = set()
    for drawn in images:
        if drawn.kind not in IMAGE_KINDS:
            raise ValueError(f"image kind must be one of {', '.join(IMAGE_KINDS)}, got {drawn.kind!r}")
        stem = re.sub(r"[^a-z0-9.]+", "-", drawn.method.lower()).strip("-.") + f"_{drawn.prompt}"
        stem += "" if drawn.kind == "image" else f"_{drawn.kind}"
        file = next(name for i in range(len(taken) + 1) if (name := f"{stem}{f'-{i + 1}' * (i > 0)}.png") not in taken)
        taken.add(file)
        low: float | None = None
        high: float | None = None
        if drawn.kind == "image":
            image = Image.fromarray(np.ascontiguousarray(drawn.pixels, dtype=np.uint8))
        else:
            values = np.asarray(drawn.pixels, dtype=np.float64)
            known = np.isfinite(values)
            low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 1.0)
            if drawn.kind == "decided":
                low, high = 0.0, 1.0
            scaled = np.where(known, values - low, 0.0) * (255.0 / (high - low) if high > low else 0.0)
            image = Image.fromarray(np.stack([np.rint(scaled), 255.0 * known], axis=-1).astype(np.uint8))
        image.save(folder / file, format="PNG", compress_level=4)  # noise: smaller and faster than level 9
        entry = {"file": file, "method": drawn.method, "prompt": int(drawn.prompt), "text": drawn.text}
        index.append({**entry, "kind": drawn.kind, "low": low, "high": high})
    (folder / "index.json").write_bytes(json_bytes(index))
