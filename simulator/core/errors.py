"""Errors that a user can cause, one small hierarchy. The CLI prints `str(error)` on one line of stderr and exits with code 2."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# No name that a file system takes has a part this long, so paths stay whole.
LONG_WORD = re.compile(r"[^\s/]{300,}")
MOST_CHARACTERS, MOST_LINES = 1200, 3


class CiarSimError(Exception):
    """Base of every error that a user's input or environment can cause. Its text says where, what was found and what is allowed.

    place: keys and list indices of the part of a scenario it is about, where its text does not name file and line yet; see `error_context`.
    """

    place: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        """The text as any terminal shows it: control characters and lone surrogates as escapes, cut to a few lines."""
        text = "".join(one if one == "\n" or one.isprintable() else ascii(one)[1:-1] for one in super().__str__())
        *lines, last = text.split("\n")
        if len(lines) >= MOST_LINES:  # of a library's message, mostly
            text = "\n".join([*lines[: MOST_LINES - 1], f"... {last}"])
        text = LONG_WORD.sub(lambda word: f"{word[0][:80]}...{word[0][-20:]}", text)
        return text if len(text) <= MOST_CHARACTERS else f"{text[:900]} ... {text[-250:]}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def reason(error: BaseException) -> str:
    """Why the system refused, in its own words, or the exception's text where it was not the system."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def error_context(*place: str | int, kind: type[CiarSimError] = CiarSimError) -> Iterator[None]:
    """Errors of this kind that are raised inside get this place of the scenario, if they have none."""
    try:
        yield
    except kind as error:
        error.place = error.place or place
        raise


class ScenarioError(CiarSimError):
    """A scenario file, or a `--set`/`--axis` on the command line, is not usable."""


class TraceError(CiarSimError):
    """A trace file cannot be read or written, or a trace cannot be generated as asked."""


class PromptError(CiarSimError):
    """A prompt cannot be given to the chosen model pair (an unknown word, a caption that is too long).

    prompt: the caption, where the text is not all of the message.
    """

    prompt: str = ""


class WeightsError(CiarSimError):
    """Model weights are missing, damaged, or do not fit the model they are loaded into."""


class DataError(CiarSimError):
    """Training data is not usable: an image or a caption is missing, damaged, or named twice."""


class MethodError(CiarSimError):
    """A decoding method of another package cannot be used."""


class RecordingError(CiarSimError):
    """A recording is damaged, or is missing and cannot be made here."""


class UnrecordedError(RecordingError):
    """Recordings are missing and no models are at hand."""


class DivergedError(RecordingError):
    """A session that was to give a reply up never asked for it: in another batch a near tie went the other way before."""


class ComputeError(CiarSimError):
    """No compute time can be given: unknown hardware or model, or a profile that does not cover what is asked of it."""


class SimulationError(CiarSimError):
    """No case of a run could be simulated."""


class DeadlockError(CiarSimError):
    """A simulation cannot continue: a request waits for an event that never happens."""


class MessageError(CiarSimError):
    """Bytes on the wire do not decode to any message type."""


class RunFolderError(CiarSimError):
    """A run folder cannot be read or written."""


def counted(number: int, noun: str) -> str:
    """How many there are of something: 1 case, 2,000 cases."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
