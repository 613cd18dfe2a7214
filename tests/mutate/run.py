"""Runs each mutation in a copy of the tree that is thrown away."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutate.table import ROOT, Mutation

TIME_LIMIT_S = 300.0  # of the tests of one mutation; they take seconds
LARGEST_FILE = 10_000_000  # bytes; larger ones are weights, and linked


def copy_of_the_tree(folder: Path) -> None:
    """Every tracked file as it is on disk."""
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
    """Whether the tests pass in a tree, all within the limit; None where they could not be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    # Without byte code: a mutated file of the same size and second would be taken for the one before.
    around = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=around, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return False  # a loop without end does not go unnoticed
    return {0: True, 1: False}.get(done.returncode)


def outcomes(mutations: Sequence[Mutation]) -> Iterator[tuple[str, str]]:
    """Name and outcome of each: caught, SURVIVED, or what is wrong with its row. First of all, the tests without any."""
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
