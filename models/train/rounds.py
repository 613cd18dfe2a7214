"""Folders of a stage that trains in rounds."""

import os
from pathlib import Path

from models.train.inputs import FILE

# Files of a round. The checkpoint is moved last: an interrupted move is repeated until the checkpoint has moved.
KEPT = ("loss.csv", "loss.png", FILE, "checkpoint.pt")


def round_folders(out_dir: Path, count: int) -> list[Path]:
    """Return a folder for each round: `round-<n>` in `out_dir`, and `out_dir` itself for the last.

    If rounds were added to the training file after its stage was trained, the files of the former last round move to
    their new folder, so that the round is not trained again.
    """
    folders = [*(out_dir / f"round-{number}" for number in range(1, count)), out_dir]
    missing = next(folder for folder in folders if folder == out_dir or not (folder / "checkpoint.pt").exists())
    if missing != out_dir and (out_dir / "checkpoint.pt").exists():
        missing.mkdir(exist_ok=True)
        for name in KEPT:
            if (out_dir / name).exists():
                os.replace(out_dir / name, missing / name)
    return folders
