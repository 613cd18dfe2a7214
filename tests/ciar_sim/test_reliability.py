"""Interrupted runs and damaged files: nothing is lost or left behind, and the next run gives the same bytes as an undisturbed one.

docs/reliability.md lists the guarantees.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ciar_sim.cli.common import errors_in_one_line
from ciar_sim.cli.main import main
from simulator.protocol.cache import RecordingCache
from simulator.protocol.recording import Recording
from tests.fuzz.targets import SMALL

ROOT = Path(__file__).resolve().parents[2]
# A stand-in for the report, whose plots take most of a run's time: it writes two files.
REPORT = """
import sys, types
def build_report(folder):
    (folder / "plots").mkdir()
    (folder / "plots" / "plot.svg").write_bytes((folder / "summary.csv").read_bytes())
    (folder / "report.html").write_bytes(20_000 * b"page ")
sys.modules["reports.build"] = types.ModuleType("reports.build")
sys.modules["reports.build"].build_report = build_report
sys.modules["reports.build"].answer = lambda run: []
"""
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "small.yaml"
    path.write_text(SMALL.format(pair=tiny_pair_folder))
    return path


@pytest.fixture(autouse=True, scope="module")
def small_report() -> Iterator[None]:
    import reports.build

    exec(REPORT, {})
    yield
    sys.modules["reports.build"] = reports.build


def arguments(scenario: Path, folder: Path) -> list[str]:
    """Return the arguments of a run with one session per batch.

    The other sessions of a batch change the last digits of a recording, and they differ after an interruption.
    """
    places = ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
    return ["run", str(scenario), *places, "--max-batch", "1", "--quiet"]


def forked(code: str, errors: Path) -> int:
    """Fork a process that runs this code, and return its id. It has torch loaded, which takes most of the start of a new process."""
    with warnings.catch_warnings():
        # Python 3.12 warns about forking with threads; the child does not wait for any.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parallel test runner ignores SIGINT
        with errors.open("w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
            try:
                exec(code, {"build_report": sys.modules["reports.build"].build_report})
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)  # skips the clean-up of the test session


def ended(child: int) -> int:
    """Return a child's exit status; a negative one is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(scenario: Path, folder: Path) -> Result:
    return CliRunner().invoke(main, arguments(scenario, folder))


def files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, scenario: Path) -> Path:
    """A folder with an undisturbed run and its cache."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(scenario, folder)
    assert result.exit_code == 0, result.output
    return folder


def assert_undisturbed(folder: Path, undisturbed: Path) -> None:
    """Assert that the folder has the same run and recordings, byte for byte, and nothing else, hidden or not."""
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "run"]
    for name in ("run", "cache/recordings"):
        found, wanted = files(folder / name), files(undisturbed / name)
        assert sorted(found) == sorted(wanted)
        assert [file for file in wanted if found[file] != wanted[file]] == []
    assert not [path for path in folder.rglob(".*") if path.name.endswith(".tmp")]


def refused(result: Result) -> str:
    """Return the single line on stderr of a refused command."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


# ---- signals and kill -9

# The process sends itself a signal at a chosen moment.
DYING = """
import os, signal, sys
from pathlib import Path
from ciar_sim.cli.main import main

def die():
    os.kill(os.getpid(), {signal})

{moment}
main({arguments!r})
"""
RUN = """
from ciar_sim.cli.main import main
main({arguments!r})
"""
WHILE_RECORDING = """
from simulator.core import cache
put, done = cache.ContentCache.put, []
def counted(self, key, content):
    put(self, key, content)
    done.append(key)
    if len(done) == 3:
        die()
cache.ContentCache.put = counted
"""
IN_A_RECORDING = """
replace, done = os.replace, []
def counted(source, target):
    done.append(target)
    if len(done) == 5:  # the first two mark the run folder
        die()
    replace(source, target)
os.replace = counted
"""
WHILE_DRAWING = """
def drawn(folder):
    build_report(folder)
    die()
sys.modules["reports.build"].build_report = drawn
"""
BETWEEN_THE_RENAMES = """
rename, done = os.rename, []
def counted(source, target):
    rename(source, target)
    done.append(target)
    if len(done) == 1:
        die()
os.rename = counted
"""
MOMENTS = {
    "while recording": WHILE_RECORDING,
    "in a recording": IN_A_RECORDING,
    "while drawing": WHILE_DRAWING,
    "between the renames": BETWEEN_THE_RENAMES,
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *((moment, signal.SIGKILL) for moment in MOMENTS),
        *((moment, signal.SIGTERM) for moment in ("while recording", "between the renames")),
        ("while recording", signal.SIGINT),
    ],
)
def test_a_run_that_is_ended_loses_nothing_and_goes_on(
    tmp_path: Path, scenario: Path, undisturbed: Path, moment: str, number: signal.Signals
) -> None:
    writing = moment in ("while drawing", "between the renames")
    if writing:  # there is an earlier run, which is replaced and could be lost
        shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    code = DYING.format(signal=int(number), moment=MOMENTS[moment], arguments=arguments(scenario, tmp_path))
    status = ended(forked(code, tmp_path / "stderr"))
    stderr = (tmp_path / "stderr").read_text()
    (tmp_path / "stderr").unlink()
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL, stderr
    else:
        assert status == 128 + number, stderr
        assert stderr.splitlines() == ["Stopped. What was done is kept: the same command continues from there."]
        assert not writing or files(tmp_path / "run") == files(undisturbed / "run")
        assert [path for path in tmp_path.rglob(".*") if path.name.endswith(".tmp")] == []
    if not writing:
        kept = files(tmp_path / "cache" / "recordings")
        whole = {name: content for name, content in kept.items() if not name.endswith(".tmp")}
        assert len(whole) == (3 if moment == "while recording" else 2)
        assert whole.items() <= files(undisturbed / "cache" / "recordings").items()
        assert sorted(files(tmp_path / "run")) == ["scenario.yaml", "unfinished.json"]
    again = run(scenario, tmp_path)
    assert again.exit_code == 0, again.output
    assert_undisturbed(tmp_path, undisturbed)


# ---- disks


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Make writes beyond a file size fail half done, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size_bytes", "what"), [(4000, "the recording cache"), (50_000, "the run folder")])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, scenario: Path, undisturbed: Path, size_bytes: int, what: str
) -> None:
    with largest_file(size_bytes):
        line = refused(run(scenario, tmp_path))
    assert line.startswith(f"Error: cannot write {what} "), line
    assert line.endswith(": File too large")
    assert not (tmp_path / "run").exists()
    assert [path for path in tmp_path.rglob(".*") if path.name.endswith(".tmp")] == []
    again = run(scenario, tmp_path)
    assert again.exit_code == 0, again.output
    assert_undisturbed(tmp_path, undisturbed)


def test_an_output_that_takes_nothing_is_one_line(scenario: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Every write to /dev/full fails with "no space left on device"."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    with open("/dev/full", "w") as full:
        code = f"{REPORT}\n{RUN.format(arguments=arguments(scenario, tmp_path)[:-1])}"
        around = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=ROOT, env=around, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr
    assert_undisturbed(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--out", "file"),
        ("--out", "file/run"),
        ("--out", "/proc/run"),
        ("--out", "/proc/a/run"),
        ("--cache", "file"),
        ("--cache", "file/cache"),
        ("--cache", "/proc/cache"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, scenario: Path, option: str, place: str) -> None:
    """The places are below a file or in /proc, where root cannot write either."""
    (tmp_path / "file").write_text("a user's own")
    result = CliRunner().invoke(main, [*arguments(scenario, tmp_path), option, str(tmp_path / place)])
    line = refused(result)
    assert str(tmp_path / place) in line
    assert (tmp_path / "file").read_text() == "a user's own"
    assert not (tmp_path / "run").exists()


# ---- damage

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "a bit": lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"PK\x03\x04 not a recording",
}


def test_damaged_recordings_are_made_again(tmp_path: Path, scenario: Path, undisturbed: Path) -> None:
    """Each kind of damage in its own entry, and one entry replaced by the recording of another session."""
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    entries = sorted((tmp_path / "cache" / "recordings").rglob("*.npz"))
    assert len(entries) > len(DAMAGE) + 1
    entries[-1].write_bytes(entries[-2].read_bytes())
    for entry, damage in zip(entries, DAMAGE.values(), strict=False):
        entry.write_bytes(damage(entry.read_bytes()))
    result = run(scenario, tmp_path)
    assert result.exit_code == 0, result.output
    assert_undisturbed(tmp_path, undisturbed)


def test_no_flipped_bit_of_a_recording_goes_unnoticed(undisturbed: Path) -> None:
    """The entry is refused, or the bit is in data that is not read, such as time stamps of the archive."""
    entry = next(iter(sorted((undisturbed / "cache" / "recordings").rglob("*.npz"))))
    data = entry.read_bytes()
    whole = Recording.from_bytes(data).to_bytes()
    cache = RecordingCache(undisturbed / "flipped")
    refusals = 0
    for place in range(0, len(data), max(1, len(data) // 300)):
        cache.files.put(entry.stem, data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        found = cache.get(entry.stem)
        refusals += found is None
        assert found is None or found.to_bytes() == whole, f"byte {place} of {len(data)}"
    assert refusals > 100
    shutil.rmtree(undisturbed / "flipped")


def test_a_damaged_run_folder_is_replaced_and_a_doubtful_one_left_alone(
    tmp_path: Path, scenario: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "run"
    (folder / "requests.parquet").write_bytes(b"")
    (folder / "summary.csv").write_bytes(b"\x00\xff")
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "plots")
    (folder / "images" / "index.json").write_text("[[")
    assert run(scenario, tmp_path).exit_code == 0
    assert_undisturbed(tmp_path, undisturbed)
    # Without a readable provenance.json nothing shows that the folder is a run of ciar-sim.
    (folder / "provenance.json").write_bytes((folder / "provenance.json").read_bytes()[:100])
    before = files(tmp_path)
    line = refused(run(scenario, tmp_path))
    assert re.search(r"run: it holds \S+ and is not a run of ciar-sim; name another$", line), line
    assert files(tmp_path) == before


# ---- two at once


def test_two_runs_at_once_into_one_folder_and_one_cache(tmp_path: Path, scenario: Path, undisturbed: Path) -> None:
    code = RUN.format(arguments=arguments(scenario, tmp_path))
    errors = [tmp_path / "one", tmp_path / "two"]
    for child, file in zip([forked(code, file) for file in errors], errors, strict=True):
        assert ended(child) == 0, file.read_text()
        file.unlink()
    assert_undisturbed(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.40 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 2 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_is_used_up_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command(**options: object) -> None:
        raise error

    for options, how in (({"max_batch": 64}, ": a smaller --max-batch needs less"), ({}, "")):
        with pytest.raises(SystemExit) as stop:
            errors_in_one_line(command)(**options)
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"Error: not enough memory{how}.")
        assert said.count("\n") == 1
        assert "See the" not in said


def test_another_fault_of_the_program_keeps_its_traceback() -> None:
    def command() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        errors_in_one_line(command)()
