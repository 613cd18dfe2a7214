"""`python -m tests.parity FOLDER`: compare the files of a golden folder with this program.

Prints one line per file: cases and largest absolute error, or the file for which it is read. The exit code is 1 if an error exceeds its
tolerance, a file cannot be read, or no check reads it.
"""

import fnmatch
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from tests.parity.checks import Check, Tally, check_of, checks, stem


def main(folder: Path) -> int:
    """Return the exit code: 0 if every file is checked or read for another one, and all errors are within tolerance."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    found = {name: one for name in files if (one := check_of(name)) is not None}
    read_by: dict[str, list[str]] = {}
    for name, one in found.items():
        for companion in one.companions(name):
            for held in fnmatch.filter(files, companion):
                read_by.setdefault(held, []).append(name)
    orphans = {name: one.pattern for one in checks().values() for name in files if one.reads and reads_like(one, name)}
    bad = 0
    for name in files:
        if name in found:
            tally = Tally()
            try:
                with torch.inference_mode():
                    found[name].run(folder / name, tally)
            except Exception as error:  # a damaged file, a missing companion: the other files are still checked
                tally.failures.append(f"{type(error).__name__}: {error}")
            print(
                f"{name}: {'FAILED' if tally.failures else 'ok'}, {tally.cases} cases, largest error {tally.largest:.2g}"
            )
            for line in tally.failures[:5] + (
                [f"and {len(tally.failures) - 5} more"] if len(tally.failures) > 5 else []
            ):
                print(f"    {line}")
            for part in tally.skipped:
                print(f"    skipped: {part}")
            bad += bool(tally.failures)
        elif name in read_by:
            print(f"{name}: read for {', '.join(read_by[name])}")
        elif name in orphans:
            print(f"{name}: read for {orphans[name]}, which is not here")
        elif not name.startswith("README"):
            print(f"{name}: UNKNOWN: no check reads this file")
            bad += 1
    if not files:
        print(f"{folder}: no files", file=sys.stderr)
    return 1 if bad or not files else 0


def reads_like(one: Check, name: str) -> bool:
    """Return whether a file is named like a companion of some file of this check."""
    return any(fnmatchcase(name, f"{stem(one.pattern)}{suffix}") for suffix in endings(one))


def endings(one: Check) -> list[str]:
    """Return what follows the stem in the names of a check's companions."""
    return [companion.removeprefix("{}") for companion in one.reads if companion.startswith("{}")]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.parity FOLDER")
    sys.exit(main(Path(sys.argv[1])))
