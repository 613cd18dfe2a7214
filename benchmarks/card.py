"""Write a pair's shapes, files and training measurements into its model card.

    python -m benchmarks.card models/weights/photos

Replaces the part of the card between the two `figures` comments; the rest is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.quality.judge_files import JUDGE
from simulator.core.errors import CiarSimError
from simulator.core.files import write_atomically
from simulator.protocol.pairs import PairManifest, pair_manifest

CARD = "MODEL_CARD.md"
_FIGURES = re.compile(r"(<!-- figures:[^\n]*-->\n).*(<!-- end of figures -->)", re.DOTALL)


DEEPEST = 3  # of a mapping whose numbers the card shows; figures of a score by region are deeper


def groups_of(measured: dict[str, Any], *path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield dotted name and numbers of every mapping down to level `DEEPEST`, outer ones first."""
    numbers = {
        key: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        for key, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if numbers and path:
        yield ".".join(path), numbers
    for key, value in measured.items():
        if isinstance(value, dict) and len(path) < DEEPEST:
            yield from groups_of(value, *path, key)


def tables(measured: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of single mappings, a row each, and of a table for all mappings with the same keys."""
    alike: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
    for name, numbers in groups_of(measured):
        alike.setdefault(tuple(numbers), []).append((name, numbers))
    yield from ("| part | figures |", "|---|---|")
    for keys, rows in alike.items():
        if len(rows) == 1:
            name, numbers = rows[0]
            yield f"| {name} | {', '.join(f'{key} {numbers[key]}' for key in keys)} |"
    for keys, rows in alike.items():
        if len(rows) > 1:
            yield from ("", f"| | {' | '.join(keys)} |", "|---|" + "--:|" * len(keys))
            yield from (f"| {name} | {' | '.join(numbers.values())} |" for name, numbers in rows)


def figures(folder: Path, manifest: PairManifest) -> str:
    """Return shapes, files and measured figures of the pair in a folder, as Markdown."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shapes = (
        f"{role}: {shape.n_layer} layer{'s' if shape.n_layer > 1 else ''}, width {shape.dim}, {shape.n_head} heads"
        for role, shape in (("cloud", manifest.cloud), ("device", manifest.device))
        if shape is not None
    )
    lines = [
        "## What it is made of",
        "",
        f"{manifest.image_size} x {manifest.image_size} pixels as {manifest.grid} x {manifest.grid} tokens of a codebook of "
        f"{manifest.codebook_size}; {'; '.join(shapes)}; radius matrices",
        f"{', '.join(manifest.bounds)}. {size / 1e6:.1f} MB in all.",
        "",
        "| file | kB |",
        "|---|--:|",
        *(f"| {file.name} | {file.bytes / 1e3:.0f} |" for file in manifest.files),
        "",
        "## What was attained (held-out photographs)",
        "",
        "`metrics.json` has these figures, and those of every score by region.",
        "",
    ]
    measured: dict[str, Any] = {}
    for path, part in ((folder / "metrics.json", None), (folder / JUDGE / "metrics.json", JUDGE)):
        if path.is_file():
            found = json.loads(path.read_text())
            measured |= found if part is None else {part: found}
    return "\n".join([*lines, *tables(measured)]) + "\n"


def write_card(folder: Path) -> None:
    """Write the figures into the card.

    Raises:
        CiarSimError: If the card has no place for them, or the folder contains no pair.
    """
    manifest, path = pair_manifest(folder), folder / CARD
    text = path.read_text() if path.is_file() else ""
    if not _FIGURES.search(text):
        raise CiarSimError(f"{path}: needs the lines <!-- figures: ... --> and <!-- end of figures -->")
    found = figures(folder, manifest)
    write_atomically(path, _FIGURES.sub(lambda match: match[1] + found + match[2], text).encode())


if __name__ == "__main__":
    try:
        write_card(Path(sys.argv[1]))
    except (CiarSimError, IndexError) as error:
        sys.exit(f"usage: python -m benchmarks.card FOLDER: {error}")
