"""`kill -9` at 20 random moments of sweeps: each continues to the same bytes and repeats only the work in progress.

    python -m pytest -m slow tests/ciar_sim/test_kills.py

A sweep is killed at most five times, then it may end. test_reliability.py has chosen moments and other signals.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ciar_sim.cli.main import main
from tests.ciar_sim.test_reliability import RUN, Files, ended, files, forked, small_report
from tests.fuzz.targets import SMALL

__all__ = ["small_report"]
KILLS = 20
KILLS_OF_A_SWEEP = 5


def arguments(scenario: Path, folder: Path) -> list[str]:
    """Return the arguments of the sweep: 16 recordings, then 24 cases."""
    axes = ["--axis", "network.rtt_ms=5,10,20,50,100,200"]
    places = ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
    return ["sweep", str(scenario), *axes, *places, "--max-batch", "1", "--quiet"]


def code(scenario: Path, folder: Path) -> str:
    return RUN.format(arguments=arguments(scenario, folder))


def cached(folder: Path) -> Files:
    """Return the complete recordings and simulated cases in the cache."""
    return {
        f"{kind}/{name}": content
        for kind in ("recordings", "cases")
        for name, content in files(folder / "cache" / kind).items()
        if not Path(name).name.startswith(".")
    }


def made(folder: Path) -> dict[str, int]:
    """Return their inodes: a file that is written again has another one."""
    return {name: (folder / "cache" / name).stat().st_ino for name in cached(folder)}


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_been(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SMALL.format(pair=tiny_pair_folder).replace("count: 2", "count: 4"))
    undisturbed = tmp_path / "undisturbed"
    result = CliRunner().invoke(main, arguments(scenario, undisturbed))  # in this process, to load torch before forking
    assert result.exit_code == 0, result.output
    begun = time.monotonic()
    assert ended(forked(code(scenario, tmp_path / "timed"), tmp_path / "stderr")) == 0
    whole_s = time.monotonic() - begun

    rng = random.Random(0)
    kills, sweeps, under_way = 0, 0, 0
    while kills < KILLS or not under_way:
        folder = tmp_path / f"killed-{sweeps}"
        sweeps += 1
        status, before = -signal.SIGKILL, made(folder)
        while status == -signal.SIGKILL:
            child = forked(code(scenario, folder), tmp_path / "stderr")
            if kills < sweeps * KILLS_OF_A_SWEEP:
                time.sleep(rng.uniform(0.05, 0.5) * whole_s)
                os.kill(child, signal.SIGKILL)  # without effect on a child that has exited and waits for `ended`
            status = ended(child)
            after = made(folder)
            assert before.items() <= after.items()  # nothing is lost or made again
            kills += status == -signal.SIGKILL
            under_way += status == -signal.SIGKILL and 0 < len(after) < len(made(undisturbed))
            before = after
        assert status == 0, (tmp_path / "stderr").read_text()
        assert files(folder / "run") == files(undisturbed / "run")
        assert cached(folder) == cached(undisturbed)
