"""Run of each mutation in a temporary copy of the tree."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutate.table import ROOT, Mutation

TIME_LIMIT_S = 300.0  # for the tests of one mutation, which take seconds
LARGEST_FILE = 10_000_000  # bytes; larger files are weights, which are linked instead of copied


def copy_of_the_tree(folder: Path) -> None:
    """Copy every tracked file, as it is on disk, into a folder."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if not source.exists() and not source.is_symlink():  # deleted, not yet committed
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() or source.stat().st_size <= LARGEST_FILE:
            shutil.copy2(source, target, follow_symlinks=False)
        else:
            target.symlink_to(source)


def passes(folder: Path, tests: Sequence[str], limit_s: float | None = TIME_LIMIT_S) -> bool | None:
    """Return whether the tests pass in a tree within the time limit; None if they could not be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    # No byte code: Python would reuse it for a mutated file of the same size and modification time.
    around = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=around, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return False  # an endless loop counts as caught
    return {0: True, 1: False}.get(done.returncode)


def outcomes(mutations: Sequence[Mutation]) -> Iterator[tuple[str, str]]:
    """Yield name and outcome of each mutation: caught, SURVIVED, or what is wrong with its row.

    The tests run without any mutation first; if they fail, that is the only outcome.
    """
    with tempfile.TemporaryDirectory(prefix="mutate.") as temporary:
        folder = Path(temporary)
        copy_of_the_tree(folder)
        if not passes(folder, sorted({test for one in mutations for test in one.tests}), None):
            yield "without any mutation", "THE TESTS FAIL"
            return
        for one in mutations:
            path = folder / one.file
            source = path.read_text()
            if source.count(one.old) != 1:
                yield one.name, f"NOT APPLIED: its text stands {source.count(one.old)} times in {one.file}"
                continue
            path.write_text(source.replace(one.old, one.new))
            passed = passes(folder, one.tests)
            path.write_text(source)
            yield one.name, {False: "caught", True: "SURVIVED", None: "ITS TESTS DID NOT RUN"}[passed]
