"""Atomic writes, leftovers of killed processes, pruning of the cache, and limits of memory and time."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from simulator.core import cache, files, limits

ROOT = Path(__file__).resolve().parents[3]


def killed(code: str, *arguments: str | Path) -> None:
    """Run code in a process that kills itself with SIGKILL."""
    text = f"import os, signal, sys\nfrom pathlib import Path\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", text, *map(str, arguments)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


KILLED_FILE = """
    from simulator.core.files import write_atomically

    def write(file):
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    write_atomically(Path(sys.argv[1]), write)
"""
KILLED_FOLDER = """
    from simulator.core.files import temporary_sibling

    target = Path(sys.argv[1])
    with temporary_sibling(target) as beside:
        (beside / "new").mkdir()
        if target.exists():
            os.rename(target, beside / "old")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_everybody_may_read_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_atomically(path, b"one")
    files.write_atomically(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["b.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    files.write_atomically(path, b"one")

    def fails(file: object) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        files.write_atomically(path, fails)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"one", ["b.json"])


def test_files_that_belong_together_are_written_all_or_none(tmp_path: Path) -> None:
    files.write_together(tmp_path, {"a.csv": b"old", "b.csv": b"old", "c.csv": b"old"})
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            files.write_together(tmp_path, {"a.csv": b"new", "b.csv": bytes(2000), "c.csv": None})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.filename == str(tmp_path / "b.csv")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.csv", "b.csv", "c.csv"), b"old"
    )
    files.write_together(tmp_path, {"a.csv": b"new", "c.csv": None})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.csv": b"new", "b.csv": b"old"}


def test_what_is_no_regular_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    """Tested with a pipe; the same holds for devices such as /dev/stdout and /dev/null."""
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "elsewhere" / "target"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_atomically(pipe, b"through it")
        assert os.read(reader, 100) == b"through it"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    link.symlink_to(target)
    for content in (b"made", b"made again"):
        files.write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    with pytest.raises(OSError, match="Is a directory") as raised:
        files.write_atomically(target.parent, b"")
    assert raised.value.filename == str(target.parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "pipe"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    killed(KILLED_FILE, path)
    assert len(os.listdir(tmp_path)) == 1
    assert not path.exists()
    (tmp_path / ".b.json.notes").write_text("of somebody else")
    files.write_atomically(path, b"one")
    assert sorted(os.listdir(tmp_path)) == [".b.json.notes", "b.json"]


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.json"

    def write(file: object) -> None:
        files.write_atomically(path, b"inner")  # as another process would
        file.write(b"outer")  # type: ignore[attr-defined]

    files.write_atomically(path, write)
    assert path.read_bytes() == b"outer"


@pytest.mark.parametrize("there", [False, True])
def test_the_next_run_removes_the_folder_of_a_killed_one_and_loses_nothing(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "run"
    if there:
        target.mkdir()
        (target / "summary.csv").write_text("of the run before")
    killed(KILLED_FOLDER, target)
    assert len(os.listdir(tmp_path)) == 1
    with files.temporary_sibling(target) as beside:
        assert target.exists() == there
        assert sorted(os.listdir(tmp_path)) == sorted([beside.name, *(["run"] if there else [])])
    assert os.listdir(tmp_path) == (["run"] if there else [])
    assert not there or (target / "summary.csv").read_text() == "of the run before"


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with files.temporary_sibling(tmp_path / "run") as one, files.temporary_sibling(tmp_path / "run") as two:
        assert one.is_dir()
        assert two.is_dir()
    assert os.listdir(tmp_path) == []


def test_pruning_deletes_the_least_recently_used_first(tmp_path: Path) -> None:
    store = cache.ContentCache(tmp_path / "recordings", ".npz")
    for age, key in enumerate(("aa1", "ab2", "ac3")):
        store.put(key, b"x" * 100)
        os.utime(store.path(key), (1e9 - age, 1e9 - age))
    killed(KILLED_FILE, store.path("ad4"))
    assert cache.cache_use(tmp_path) == {"recordings": (3, 300)}
    assert cache.prune(tmp_path, 250.0) == (2, 110)  # the oldest, and what the killed process left
    assert [store.get(key) is not None for key in ("aa1", "ab2", "ac3")] == [True, True, False]
    assert cache.prune(tmp_path, 0.0) == (2, 200)
    assert cache.cache_use(tmp_path) == {"recordings": (0, 0)}
    assert cache.cache_use(tmp_path / "nothing") == {}


def test_a_folder_of_the_cache_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scan = cache.ContentCache(tmp_path / "recordings", ".npz"), os.scandir
    store.put("aa1", b"x")

    def refusing(path: Any) -> Any:
        if str(path) == str(tmp_path / "recordings" / "aa"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for reading in (cache.cache_use, lambda root: cache.prune(root, 0.0)):
        with pytest.raises(PermissionError):
            reading(tmp_path)


def test_work_beyond_its_memory_raises_and_the_process_goes_on() -> None:
    with pytest.raises(MemoryError), limits.limited_memory(5e7):
        bytearray(1_000_000_000)
    assert len(bytearray(200_000_000)) == 200_000_000


@pytest.mark.parametrize(
    ("held", "free"),
    [
        (
            {
                "memory.max": "1000",
                "memory.current": "990",
                "memory.stat": "anon 10\nactive_file 300\ninactive_file 500\n",
            },
            810,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "700",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 0\n",
            },
            500,
        ),
        ({"memory.max": "1000", "memory.current": "990"}, 10),
        ({"memory.max": "max", "memory.current": "990"}, None),
    ],
)
def test_memory_for_files_that_a_group_has_read_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: dict[str, str], free: int | None
) -> None:
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    for name, text in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = limits.free_memory_bytes()
    assert found == free if free is not None else found > 1e6


def test_work_that_never_ends_is_stopped() -> None:
    def loop() -> None:
        while True:
            pass

    with pytest.raises(limits.TimeLimitError), limits.limited_time(0.05):
        loop()
    with limits.limited_time(None):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_its_own_process_deletes_meanwhile_is_not_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was listed is gone when it is examined."""
    gone = tmp_path / ".run.0123456789ab.tmp"
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([gone]))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    with files.temporary_sibling(tmp_path / "run") as beside:
        (beside / "new").mkdir()
    assert not files.is_abandoned(gone)


def test_of_writers_that_finish_at_once_each_replaces_the_one_before_it(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def write(writer: int) -> None:
        for _ in range(20):
            with files.temporary_sibling(target) as beside:
                (beside / "new").mkdir()
                for name in ("a", "b"):
                    (beside / "new" / name).write_text(str(writer))
                files.replace_folder(beside, target)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert os.listdir(tmp_path) == ["run"]
    assert (target / "a").read_text() == (target / "b").read_text()
