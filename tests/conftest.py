"""Set-up for all tests: one thread, no windows, and a tiny random pair for real forward passes."""

import base64
import gc
import html
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# Garbage collection takes a tenth of the tests' time: it is off while modules are imported, and then runs a seventieth as often as usual.
gc.disable()

if TYPE_CHECKING:
    from simulator.experiment.run import Outcome

# The models under test are tiny: a second thread costs more synchronisation than it saves, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# No deadline, because a busy machine is not a failure. The suite tries the same examples every time.
settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.tiny_pair import make_tiny_pair

    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, seed=0)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests with the longest set-up first, so that no process waits for them at the end.

    The tests of the models come next, so that only one of two processes imports torch.
    """
    first = ("tests/test_quickstart.py", "tests/models/")
    items.sort(key=lambda item: next((at for at, path in enumerate(first) if item.nodeid.startswith(path)), len(first)))


def pytest_collection_finish() -> None:
    """Exclude what is loaded by now from garbage collection: it lives until the end."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@contextmanager
def without_drawing() -> Iterator[None]:
    """Build figures without rendering them, which takes most of a run's time. A figure's file holds only its texts."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text

    def savefig(self: Figure, target: Any, *, format: str = "png", **_: Any) -> None:
        texts = html.escape("; ".join(text.get_text() for text in self.findobj(Text) if isinstance(text, Text)))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><desc>{texts}</desc></svg>'
        data = ONE_PIXEL if format == "png" else svg.encode()
        Path(target).write_bytes(data) if isinstance(target, str | Path) else target.write(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda self, figure: None)
        yield


@pytest.fixture(scope="module")
def short_gaps() -> Iterator[None]:
    """Let presets with scheduling gaps repeat after a minute: generating the usual two hours takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.experiment.fleet.GAPS_S", 60.0)
        yield


@pytest.fixture
def quick_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search with few and short replications. The answer is fast but not reliable."""
    monkeypatch.setattr("ciar_sim.decide.capacity.LOOKS", (4,))
    monkeypatch.setattr("ciar_sim.decide.capacity.AT_MOST", 4)
    monkeypatch.setattr("ciar_sim.decide.loads.LONG_REQUESTS", 20)


@pytest.fixture
def undrawn() -> Iterator[None]:
    with without_drawing():
        yield


@pytest.fixture(scope="session")
def run_undrawn(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> "Callable[..., Outcome]":
    """Return a function that runs a scenario file of the tiny pair without a report, whose plots take most of a run's time.

    Recordings are cached for the whole test session.
    """
    from models.pair import load_pair
    from models.recorder import Recorder
    from models.scenes import captions
    from simulator.experiment.loading import load_scenario
    from simulator.experiment.run import run_scenario
    from simulator.protocol.cache import CachedSource, RecordingCache

    recorder = Recorder(load_pair(tiny_pair_folder), 8)
    source = CachedSource(RecordingCache(tmp_path_factory.mktemp("recordings")), recorder.record)

    def run(path: Path, out: Path, **more: Any) -> "Outcome":
        return run_scenario(load_scenario(path), out, source, captions, **{"profile": pytest.fail, **more})

    return run
