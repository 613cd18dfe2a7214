"""`python -m tests.parity FOLDER`: the files of a golden folder against this program.

One line per file: cases and largest absolute error, or why it is skipped. Exit code 1 where something is beyond its
tolerance, a file cannot be read, or no check knows it.
"""

import sys
from pathlib import Path

import torch

from tests.parity.checks import LATER, Tally, checks


def main(folder: Path) -> int:
    """The exit code: 0 where every file is checked or named as skipped, and all errors are within tolerance."""
    known = checks()
    read_by = {name: one.file for one in known.values() for name in one.reads}
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    bad = 0
    for name in files:
        if name in known:
            tally = Tally()
            try:
                with torch.inference_mode():
                    known[name].run(folder, tally)
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
            print(f"{name}: read for {read_by[name]}" + ("" if read_by[name] in files else ", which is not here"))
        elif name != "README.md":
            reason = next((text for start, text in LATER.items() if name.startswith(start)), None)
            print(f"{name}: " + (f"skipped: not built ({reason})" if reason else "UNKNOWN: no check reads this file"))
            bad += reason is None
    if not files:
        print(f"{folder}: no files", file=sys.stderr)
    return 1 if bad or not files else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.parity FOLDER")
    sys.exit(main(Path(sys.argv[1])))
