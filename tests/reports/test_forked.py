"""Work shared with forked copies of the process: the results, and failures of a copy."""

import multiprocessing
import os
import signal
import sys
from functools import partial

import pytest

from reports import forked
from reports.forked import shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
FEW_S = 20.0  # a barrier fails after this time, which means that there is no second process


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def process() -> dict[str, bytes]:
    return {"process": str(os.getpid()).encode(), "large": bytes(1_000_000)}


def test_two_processes_take_the_pieces_and_all_come_back_in_order() -> None:
    both = multiprocessing.get_context("fork").Barrier(2)

    def one(name: str) -> dict[str, bytes]:
        if name in "ab":
            both.wait(FEW_S)  # until each process has taken a piece
        return {name: str(os.getpid()).encode(), f"{name} large": bytes(1_000_000)}

    found = shared({name: partial(one, name) for name in "abcdef"})
    assert list(found) == [file for name in "abcdef" for file in (name, f"{name} large")]
    assert all(len(found[f"{name} large"]) == 1_000_000 for name in "abcdef")
    processes = {int(found[name]) for name in "abcdef"}
    assert len(processes) == 2
    assert os.getpid() in processes
    (copy,) = processes - {os.getpid()}
    with pytest.raises(ChildProcessError):  # the copy has been reaped
        os.waitpid(copy, 0)


def test_what_the_copy_cannot_do_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    both = multiprocessing.get_context("fork").Barrier(2)

    def ended() -> dict[str, bytes]:
        if not taken.is_set():
            both.wait(FEW_S)
            if os.getpid() != own:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.set()
        return {str(os.getpid()): b""}

    taken = multiprocessing.get_context("fork").Event()
    assert list(shared({"first": ended, "second": ended})) == [str(own)]

    def wrong() -> dict[str, bytes]:
        raise ValueError("no such plot")

    with pytest.raises(ValueError, match="no such plot"):
        shared({"first": wrong, "second": wrong})
    monkeypatch.setattr(forked.sys, "platform", "darwin")
    assert int(shared({"first": process, "second": dict})["process"]) == own


def test_a_silent_copy_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "LEAST_PATIENCE_S", 0.1)
    own = os.getpid()
    both = multiprocessing.get_context("fork").Barrier(2)

    def waits() -> dict[str, bytes]:
        if not taken.is_set():
            both.wait(FEW_S)
            if os.getpid() != own:
                signal.pause()
            taken.set()
        return process()

    taken = multiprocessing.get_context("fork").Event()
    assert int(shared({"first": waits, "second": waits})["process"]) == own


def test_an_error_here_ends_the_copies() -> None:
    reading, writing = os.pipe()
    own = os.getpid()
    both = multiprocessing.get_context("fork").Barrier(2)

    def piece() -> dict[str, bytes]:
        both.wait(FEW_S)
        if os.getpid() == own:
            raise KeyboardInterrupt
        os.write(writing, str(os.getpid()).encode())
        signal.pause()
        return {}

    with pytest.raises(KeyboardInterrupt):
        shared({"first": piece, "second": piece})
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told or b"999999999"), 0)
