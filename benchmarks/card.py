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


def rows_of(measured: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and value of every number in nested mappings."""
    if isinstance(measured, dict):
        for key, value in measured.items():
            yield from rows_of(value, f"{name}.{key}" if name else str(key))
    elif isinstance(measured, int | float) and not isinstance(measured, bool):
        yield name, f"{measured:,}" if isinstance(measured, int) else f"{measured:.4g}"


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
        "| measure | value |",
        "|---|--:|",
    ]
    for path, prefix in ((folder / "metrics.json", ""), (folder / JUDGE / "metrics.json", JUDGE)):
        if path.is_file():
            lines += [f"| {name} | {value} |" for name, value in rows_of(json.loads(path.read_text()), prefix)]
    return "\n".join(lines) + "\n"


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
