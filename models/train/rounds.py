"""Folders of a stage that trains in rounds."""

import os
from pathlib import Path

from models.train.inputs import FILE

KEPT = ("loss.csv", "loss.png", FILE, "checkpoint.pt")  # of a round; the checkpoint last: until it is moved, nothing is


def round_folders(out_dir: Path, count: int) -> list[Path]:
    """A folder for each round: `round-<n>` in `out_dir`, and `out_dir` itself for the last.

    Where a training file has got further rounds since its stage was trained, what was the last one is moved to the folder that it has
    now, so that it is not trained again.
    """
    folders = [*(out_dir / f"round-{number}" for number in range(1, count)), out_dir]
    missing = next(folder for folder in folders if folder == out_dir or not (folder / "checkpoint.pt").exists())
    if missing != out_dir and (out_dir / "checkpoint.pt").exists():
        missing.mkdir(exist_ok=True)
        for name in KEPT:
            if (out_dir / name).exists():
                os.replace(out_dir / name, missing / name)
    return folders
