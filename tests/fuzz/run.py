"""Makes the inputs, one after another, and says what each led to."""

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from tests.fuzz.targets import SMALL, TARGETS, World


def world(folder: Path) -> World:
    """A tiny pair and a small run of it, in a folder of their own."""
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
    """Kind and number of each input in order, and what is wrong with what it led to, None for nothing."""
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
