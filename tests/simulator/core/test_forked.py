"""Work in forked processes: results, errors, and processes that die, hang or are left."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.core.forked import LostProcessError, can_fork, forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
FEW_S = 20.0  # a barrier fails after this time, which means that there is no second process


def gone(process: int) -> bool:
    """Return whether a process has ended within some seconds, waited for by its parent or not."""
    end = time.monotonic() + FEW_S
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_each_process_takes_the_next_item_and_all_results_come_back() -> None:
    both = multiprocessing.get_context("fork").Barrier(2)

    def one(name: str) -> tuple[int, bytes]:  # not picklable, which it need not be
        if name in "ab":
            both.wait(FEW_S)  # until each process has taken an item
        return os.getpid(), name.encode() * 1_000_000

    found = dict(forked(one, "abcdef", 2))
    assert {name: large[-1:] for name, (_, large) in found.items()} == {name: name.encode() for name in "abcdef"}
    processes = {process for process, _ in found.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    for process in processes:
        with pytest.raises(ChildProcessError):  # it has been reaped
            os.waitpid(process, 0)
    assert list(forked(one, "", 2)) == []
    assert len(dict(forked(lambda name: name, "cd", 5))) == 2


def kills_itself(name: str) -> int:
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def hangs(name: str) -> int:
    if name == "b":
        signal.pause()
    return os.getpid()


@pytest.mark.parametrize(("work", "patience_s"), [(kills_itself, None), (hangs, 0.2)])
def test_a_process_that_dies_or_hangs_is_an_error_after_the_other_results(
    work: Callable[[str], int], patience_s: float | None
) -> None:
    done: dict[str, int] = {}
    with pytest.raises(LostProcessError):
        done.update(forked(work, "ab", 1, patience_s))
    assert list(done) == ["a"]
    assert gone(done["a"])


def test_an_error_of_the_work_is_raised_here_and_ends_the_processes() -> None:
    def wrong(name: str) -> int:
        if name == "b":
            raise ValueError("no such plot")
        return os.getpid()

    done: list[int] = []
    with pytest.raises(ValueError, match="no such plot"):
        done.extend(process for _, process in forked(wrong, "ab", 1))
    rest = forked(lambda name: os.getpid(), "abcd", 2)
    process = next(rest)[1]
    rest.close()  # type: ignore[attr-defined]
    assert gone(process)


def test_processes_end_when_their_parent_is_killed() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:  # its children wait for their next items while it is killed
        for _, process in forked(lambda name: os.getpid(), "ab", 2):
            os.write(writing, f"{process} ".encode())
            signal.pause()
    told = b""
    while not told.endswith(b" "):
        told += os.read(reading, 100)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(int(told))
    os.close(reading)
    os.close(writing)


def test_a_worker_of_a_pool_may_not_fork() -> None:
    assert can_fork()
    assert dict(forked(lambda name: can_fork(), "a", 1)) == {"a": False}
