"""Work in a copy of the process: what comes back, and what happens where the copy fails."""

import os
import signal
import sys

import pytest

from reports import beside
from reports.beside import here_and_beside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def process() -> dict[str, bytes]:
    return {"process": str(os.getpid()).encode(), "large": bytes(1_000_000)}


def test_both_parts_come_back_from_two_processes() -> None:
    found = here_and_beside(lambda: {"here": str(os.getpid()).encode()}, process)
    assert found["here"] == str(os.getpid()).encode()
    assert int(found["process"]) != os.getpid()
    assert len(found["large"]) == 1_000_000
    with pytest.raises(ChildProcessError):  # it was waited for
        os.waitpid(int(found["process"]), 0)


def test_what_the_copy_cannot_do_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()

    def ended() -> dict[str, bytes]:
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return process()

    assert int(here_and_beside(dict, ended)["process"]) == own

    def wrong() -> dict[str, bytes]:
        raise ValueError("no such plot")

    with pytest.raises(ValueError, match="no such plot"):
        here_and_beside(dict, wrong)
    monkeypatch.setattr(beside.sys, "platform", "darwin")
    assert int(here_and_beside(dict, process)["process"]) == own


def test_a_silent_copy_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "LEAST_PATIENCE_S", 0.1)
    own = os.getpid()

    def waits() -> dict[str, bytes]:
        if os.getpid() != own:
            signal.pause()
        return process()

    assert int(here_and_beside(dict, waits)["process"]) == own


def test_an_error_here_ends_the_copy() -> None:
    reading, writing = os.pipe()

    def long() -> dict[str, bytes]:
        os.write(writing, str(os.getpid()).encode())
        signal.pause()
        return {}

    def failing() -> dict[str, bytes]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here_and_beside(failing, long)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told or b"999999999"), 0)
