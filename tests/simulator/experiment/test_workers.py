"""Cases in other processes and on a Dask cluster, the cache of simulated cases, and tuning: none of them changes a result."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ciar_sim.api import open_run
from models.pair import load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.core.errors import CiarSimError, SimulationError
from simulator.core.limits import TimeLimitError, limited_time
from simulator.experiment import simulating, workers
from simulator.experiment.kept import CaseCache
from simulator.experiment.loading import load_scenario
from simulator.experiment.run import Outcome, run_scenario
from simulator.experiment.simulating import SimulationOptions
from simulator.experiment.sweep import expand
from simulator.experiment.tuning import tuned_quality
from simulator.experiment.workers import Workers
from simulator.pricing.profile import Profile
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.pairs import pair_manifest
from simulator.protocol.recording import Recording

BASE: dict[str, Any] = {
    "name": "sweep",
    "prompts": {"source": "scenes", "count": 2},
    "methods": ["base", {"name": "ciar", "threshold": 0.35}],
    "compute": {
        "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
        "cloud": {"model": "pair", "hardware": "a100"},
    },
    "network": {"rtt_ms": 40, "up_mbps": 5, "down_mbps": 20, "jitter_ms": 2},
    "workload": {"devices": 3, "arrivals": {"poisson_per_s": 2}, "duration_s": 20},
    "sweep": {"network.rtt_ms": {"min": 10, "max": 100, "steps": 10}},
}
ROOT = Path(__file__).resolve().parents[3]


class World:
    """A scenario file, its pair and the cache of all its recordings."""

    def __init__(self, folder: Path, pair: Path) -> None:
        self.folder, self.pair = folder, pair
        self.recordings = RecordingCache(folder / "cache")
        self.recorder = Recorder(load_pair(pair), 8)

    def run(self, out: str, change: dict[str, Any] | None = None, record: bool = False, **more: Any) -> Outcome:
        path = self.folder / "s.yaml"
        path.write_text(yaml.safe_dump({"pair": str(self.pair), **BASE, **(change or {})}))
        source = CachedSource(self.recordings, self.recorder.record if record else None)
        options = SimulationOptions(jobs=more.pop("jobs", 1), kept=more.pop("kept", None))
        return run_scenario(
            load_scenario(path), self.folder / out, source, captions, no_profile, options=options, **more
        )

    def tables(self, out: str) -> bytes:
        files = ("summary.csv", "requests.parquet", "timeline.json.gz", "provenance.json", "queue.parquet")
        return b"".join((self.folder / out / name).read_bytes() for name in files)


def no_profile() -> Profile:
    raise AssertionError("nothing is measured here")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> World:
    one = World(tmp_path_factory.mktemp("world"), tiny_pair_folder)
    one.run("here", record=True)
    return one


# ---- the cache of simulated cases


def test_a_sweep_of_networks_makes_no_forward_pass(world: World) -> None:
    """The source of this run has no recorder, so a missing recording would be an error."""
    outcome = world.run("networks", {"sweep": {"network.up_mbps": [1, 2], "network.rtt_ms": [5, 500]}})
    assert len(outcome.summary) == 8


def test_a_case_is_simulated_once(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = CaseCache(tmp_path)
    assert world.run("first", kept=kept).simulated == 20
    calls = []
    real = simulating.simulate_case
    monkeypatch.setattr(simulating, "simulate_case", lambda *args: calls.append(args) or real(*args))
    assert world.run("second", kept=kept).simulated == 0
    assert calls == []
    assert world.tables("first") == world.tables("second") == world.tables("here")
    more = {"sweep": {"network.rtt_ms": [10, 100, 1000]}, "methods": [{**BASE["methods"][1], "label": "other"}]}
    assert world.run("third", more, kept=kept).simulated == len(calls) == 1
    world.run("fourth", {"seed": 1, "sweep": {}}, record=True, kept=kept)
    assert len(calls) == 3


def test_what_a_stop_left_is_taken_up_and_a_damaged_case_is_simulated_again(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = CaseCache(tmp_path)

    def stop(stage: str, done: float, total: float) -> None:
        if stage.startswith("simulating") and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run("stopped", kept=kept, progress=stop)
    files = sorted(tmp_path.rglob("*.case"))
    assert len(files) == 7
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(files[2].read_bytes()[:100] + files[1].read_bytes()[100:])
    files[3].write_bytes(b"")
    assert world.run("stopped", kept=kept).simulated == 20 - 7 + 3
    assert world.tables("stopped") == world.tables("here")


def test_branches_of_missed_replies_are_kept_with_their_case(world: World, tmp_path: Path) -> None:
    late = {"fallback": {"policy": "device", "deadline_ms": 30}, "sweep": {"network.rtt_ms": [20, 60]}}
    kept = CaseCache(tmp_path)
    world.run("late", late, record=True, kept=kept)
    assert world.run("again", late, kept=kept).simulated == 0
    assert world.tables("late") == world.tables("again")
    assert b"fallback" in (world.folder / "late" / "summary.csv").read_bytes()


# ---- processes and clusters


@pytest.mark.parametrize("fork", [pytest.param(True, id="forked"), pytest.param(False, id="as on macOS")])
def test_processes_change_no_result(world: World, monkeypatch: pytest.MonkeyPatch, fork: bool) -> None:
    if not fork:
        monkeypatch.setattr(workers, "can_fork", lambda: False)
    world.run("processes", jobs=2)
    assert world.tables("processes") == world.tables("here")


def test_a_killed_process_is_an_error_and_its_finished_cases_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept, real, here = CaseCache(tmp_path), simulating.simulate_case, os.getpid()

    def killed(*args: Any) -> Any:
        if os.getpid() != here and list(tmp_path.rglob("*.case")):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    monkeypatch.setattr(simulating, "simulate_case", killed)
    with pytest.raises(SimulationError, match=r"^a worker process was killed, .*; finished cases are kept"):
        world.run("killed", jobs=2, kept=kept)
    monkeypatch.undo()
    assert 1 <= 20 - world.run("killed", kept=kept).simulated <= 3
    assert world.tables("killed") == world.tables("here")


def test_a_process_that_may_have_no_children_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker of `multiprocessing.Pool`."""
    monkeypatch.setattr("multiprocessing.current_process", lambda: SimpleNamespace(daemon=True))
    assert (workers.cores(), Workers(3).most, Workers(3).apart) == (1, 1, False)
    assert list(Workers(3).run(str, [1, 2], float)) == [(1, "1.0"), (2, "2.0")]


@pytest.mark.parametrize(
    ("fields", "jobs"),
    [
        pytest.param("{devices: 3, arrivals: {poisson_per_s: 2}, duration_s: 400}", 4, id="one for each core"),
        pytest.param("{devices: 3, arrivals: {poisson_per_s: 2}, duration_s: 10}", 1, id="little work"),
        pytest.param("{devices: 3, arrivals: {poisson_per_s: 2}, duration_s: 15}", 2, id="work for two"),
        pytest.param(
            "{devices: 400000, arrivals: {poisson_per_s: 2000}, duration_s: 200}", 2, id="memory for two such cases"
        ),
    ],
)
def test_by_default_there_is_a_process_for_each_core_with_enough_work_and_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, fields: str, jobs: int
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 4)
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: 32e9)
    path = world.folder / "size.yaml"
    path.write_text(yaml.safe_dump({"pair": str(world.pair), **BASE, "workload": yaml.safe_load(fields)}))
    cases = expand(load_scenario(path))[:8]
    assert Workers(None).settled(cases).most == jobs
    assert Workers(None).settled(cases[:1]).most == 1
    monkeypatch.setattr(workers, "can_fork", lambda: False)  # processes that load the program first
    assert Workers(None).settled(cases).most == (1 if jobs == 2 and "15" in fields else jobs)
    assert Workers(3).settled(cases).most == 3
    assert Workers(None).settled([]).most == Workers(None, local=2).settled(cases).most == 1


@contextmanager
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a Dask scheduler and two worker processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    commands = [[*scheduler, "--no-dashboard"], *[[*worker, "--no-dashboard"]] * 2]
    processes = [subprocess.Popen(command, env=around, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_workers(address: str, count: int) -> None:
    import distributed

    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(OSError), distributed.Client(address, set_as_default=False, timeout="5s") as client:  # type: ignore[no-untyped-call]
            client.wait_for_workers(count, timeout=60)
            return
    raise AssertionError("no workers")


@pytest.mark.filterwarnings("default")
def test_a_sweep_on_a_cluster_survives_the_death_of_a_worker(world: World) -> None:
    with cluster() as (address, workers):
        wait_for_workers(address, 2)
        died = []

        def kill_one(stage: str, done: float, total: float) -> None:
            if stage.startswith("simulating") and done >= 4 and not died:
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait()
                died.append(done)

        outcome = world.run("cluster", jobs=Workers(scheduler=address), progress=kill_one)
        assert died
        assert died[0] < 20
        assert not outcome.failed
    assert world.tables("cluster") == world.tables("here")


@pytest.mark.filterwarnings("default")
def test_a_cluster_is_started_for_a_run(world: World) -> None:
    world.run("local", {"sweep": {"network.rtt_ms": [10, 20]}}, jobs=Workers(local=1))
    world.run("not", {"sweep": {"network.rtt_ms": [10, 20]}})
    assert world.tables("local") == world.tables("not")


@pytest.mark.filterwarnings("default")
def test_a_scheduler_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(CiarSimError, match=r"^--dask nowhere: no scheduler answers"):
        world.run("none", jobs=Workers(scheduler="nowhere"))


def test_time_is_limited_in_a_thread_too() -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            with limited_time(0.05):
                while True:
                    pass
        except TimeLimitError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert [str(error) for error in caught] == ["took longer than 0.05 s"]


# ---- tuning


class TokenScorer:
    """A stand-in for a judge: the share of tokens that are the cloud's most likely ones."""

    provenance: dict[str, Any] = {}  # noqa: RUF012

    def __call__(self, recordings: Sequence[Recording], captions: Sequence[str]) -> Any:
        share = np.array([float(np.mean(one.tokens == one.argmax)) for one in recordings])
        return {"align_scenes": share}, lambda images: {}

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        return None


TUNED = {
    "sweep": {
        "network.rtt_ms": [10, 200],
        "methods.ciar.threshold": {"min": 0.2, "max": 0.6},
        "methods.ciar.prefix_rate": [0.0, 0.25, 0.5],
        "tune": 10,
    }
}


def test_settings_are_tuned_per_condition_and_again_the_same(world: World, tmp_path: Path) -> None:
    kept = CaseCache(tmp_path)
    one = world.run("tuned", TUNED, record=True, scorer=TokenScorer(), kept=kept)
    of_ciar = one.summary[one.summary["method"] == "ciar"]
    assert 2 < len(of_ciar) <= 20
    assert set(of_ciar["network.rtt_ms"]) == {10, 200}
    assert list(one.summary["method"][:2]) == ["base", "base"]
    assert of_ciar["methods.ciar.threshold"].between(0.2, 0.6).all()
    pareto = one.pareto
    assert pareto is not None
    for _, row in pareto.iterrows():
        same = one.summary[one.summary["network.rtt_ms"] == row["network.rtt_ms"]]
        faster = same[same["latency_mean_s"] <= row["latency_mean_s"]]
        assert faster["align_scenes"].max() == row["align_scenes"]
    again = world.run("again", TUNED, scorer=TokenScorer(), jobs=2)
    assert world.tables("tuned") == world.tables("again")
    assert again.quality == "align_scenes"
    opened = open_run(world.folder / "again")
    assert opened.quality == "align_scenes"
    assert opened.pareto is not None
    pd.testing.assert_frame_equal(opened.pareto, pareto)
    written = world.folder / "again" / "scenario.yaml"
    written.write_text(written.read_text().replace("quality: null", "quality: beauty"))
    with pytest.raises(CiarSimError, match=r"scenario.yaml: sweep.tune.quality is beauty"):
        open_run(world.folder / "again")


def test_without_a_known_quality_nothing_is_tuned(world: World) -> None:
    with pytest.raises(CiarSimError, match="align_scenes is known of no trial"):
        world.run("none", TUNED, record=True)


@pytest.mark.parametrize(
    ("pair", "tune", "why"),
    [
        ("paper-llamagen-xl", {"trials": 2}, "the sessions are statistical, so that there are no images"),
        (
            "scenes",
            {"trials": 2, "quality": "align_photos"},
            "have no align_photos; allowed: align_scenes, fd_scenes, f1_scenes",
        ),
        ("other", {"trials": 2}, "images of the pair other have no judge; pairs of scenes and photos have one"),
    ],
)
def test_a_quality_that_the_images_do_not_have_is_refused_at_once(pair: str, tune: dict[str, Any], why: str) -> None:
    other: Any = SimpleNamespace(name="other", subject="other", statistics=None)
    manifest = other if pair == "other" else pair_manifest(pair)
    methods = [{"name": "ciar", "threshold": 0.3}]
    scenario = load_scenario({"name": "t", "methods": methods, "sweep": {**TUNED["sweep"], "tune": tune}})
    with pytest.raises(CiarSimError, match=f"sweep.tune: a search needs a quality, and .*{why}"):
        tuned_quality(scenario, manifest)
