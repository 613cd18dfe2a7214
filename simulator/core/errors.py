"""The hierarchy of errors that a user can cause. The CLI prints `str(error)` to stderr and exits with code 2."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# Longer than any component of a path, so paths are never cut.
LONG_WORD = re.compile(r"[^\s/]{300,}")
MOST_CHARACTERS, MOST_LINES = 1200, 3


class CiarSimError(Exception):
    """Base of all errors caused by a user's input or environment. The text says where, what was found and what is allowed.

    Attributes:
        place: Keys and list indices of the part of a scenario that the error concerns; empty if the text names file and line. See
            `error_context`.
    """

    place: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        """Return the text for a terminal: control characters and lone surrogates escaped, cut to a few lines."""
        text = "".join(one if one == "\n" or one.isprintable() else ascii(one)[1:-1] for one in super().__str__())
        *lines, last = text.split("\n")
        if len(lines) >= MOST_LINES:  # usually the message of a library
            text = "\n".join([*lines[: MOST_LINES - 1], f"... {last}"])
        text = LONG_WORD.sub(lambda word: f"{word[0][:80]}...{word[0][-20:]}", text)
        return text if len(text) <= MOST_CHARACTERS else f"{text[:900]} ... {text[-250:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text; its type if the text is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def reason(error: BaseException) -> str:
    """Return the operating system's text for an OSError, or the text of any other exception."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def error_context(*place: str | int, kind: type[CiarSimError] = CiarSimError) -> Iterator[None]:
    """Give errors of this kind that are raised inside this place in the scenario, if they have none."""
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

    Attributes:
        prompt: The caption, if it is not part of the message.
    """

    prompt: str = ""


class WeightsError(CiarSimError):
    """Model weights are missing, damaged, or do not fit the model they are loaded into."""


class DataError(CiarSimError):
    """Training data is not usable: an image or a caption is missing, damaged, or named twice."""


class MethodError(CiarSimError):
    """A decoding method from another package cannot be used."""


class RecordingError(CiarSimError):
    """A recording is damaged, or is missing and cannot be made here."""


class UnrecordedError(RecordingError):
    """Recordings are missing, and no models are available to make them."""


class DivergedError(RecordingError):
    """A session never reached the call whose reply it was to give up: in another batch an earlier near tie had the other outcome."""


class ComputeError(CiarSimError):
    """A compute time is unknown: unknown hardware or model, or a profile that lacks it."""


class SimulationError(CiarSimError):
    """No case of a run could be simulated."""


class DeadlockError(CiarSimError):
    """A simulation cannot continue: a request waits for an event that never happens."""


class MessageError(CiarSimError):
    """Bytes on the wire do not decode to any message type."""


class RunFolderError(CiarSimError):
    """A run folder cannot be read or written."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 case, 2,000 cases."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


NOT_SIMULATED = "not simulated, and in no table: "  # begins the warning about a case that failed
