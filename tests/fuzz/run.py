"""The loop over the damaged inputs and the outcome of each."""

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from tests.fuzz.targets import SMALL, TARGETS, World


def world(folder: Path) -> World:
    """Create a tiny pair and a small run of it in a folder."""
    from benchmarks.tiny_pair import make_tiny_pair
    from ciar_sim.cli.main import main

    found = World(folder / "inputs", folder / "tiny", folder / "run", folder / "cache")
    found.folder.mkdir()
    make_tiny_pair(found.pair, seed=0)
    path = folder / "small.yaml"
    path.write_text(SMALL.format(pair=found.pair))
    arguments = ["run", str(path), "--out", str(found.run_folder), "--cache", str(found.cache), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return found


def failures(around: World, count: int, seed: int, only: str | None = None) -> Iterator[tuple[str, int, str | None]]:
    """Yield kind and number of each input in order, and what is wrong with its outcome (None if nothing).

    Args:
        count: Number of inputs, of all kinds together, or of the kind in `only`.
        only: `KIND` or `KIND:NUMBER`. With a number, warnings are raised as errors.
    """
    logging.disable()
    kind_only, _, number_only = (only or "").partition(":")
    for kind, (target, share) in TARGETS.items():
        if kind_only not in ("", kind):
            continue
        numbers = [int(number_only)] if number_only else range(count if kind_only else max(1, count * share // 100))
        for number in numbers:
            with warnings.catch_warnings():
                warnings.simplefilter("error" if number_only else "ignore")
                yield kind, number, target(random.Random(f"{seed} {kind} {number}"), around)
