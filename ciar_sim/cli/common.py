"""Common parts of all commands: options, one-line errors, the cache folder, the torch device, writing of files."""

import errno
import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from simulator.core.errors import CiarSimError, first_line, reason

if TYPE_CHECKING:
    from simulator.core.prompt_files import Prompt
    from simulator.protocol.pairs import PairRef

MOST_CHARACTERS = 1200  # of an error message
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # faults of a disk, not of the program
NO_MEMORY = ("out of memory", "can't allocate memory")  # in torch's errors for GPU memory and main memory
TORCH_DEVICES = ("cpu", "cuda", "mps", "xpu")


def default_cache() -> Path:
    """Return the folder of recordings, cases and profiles: $CIAR_SIM_CACHE, else ciar-sim/ in the user's cache folder."""
    import platformdirs

    own = os.environ.get("CIAR_SIM_CACHE")
    return Path(own) if own else platformdirs.user_cache_path("ciar-sim", appauthor=False)


class Commands(click.Group):
    """A group whose help lists its commands in the order of definition, each with the whole first paragraph of its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((one.help or "").partition("\n\n")[0].split())) for name, one in self.commands.items()]
            )


PAIR_HELP = "A shipped pair's name, a pair's folder, or a YAML file with pair: and a published model's files."


def pair_of(text: str) -> "PairRef":
    """Resolve --pair: the `pair:` of a YAML file, the whole mapping of a file without `pair:`, a shipped pair or a folder.

    Raises:
        ScenarioError: the file has no valid pair, or a name is that of both a shipped pair and a folder.
    """
    from pydantic import ValidationError

    from simulator.core import yamlfile
    from simulator.core.errors import ScenarioError
    from simulator.core.part import found_text
    from simulator.core.problems import first_problem, subject
    from simulator.protocol.pairs import MANIFEST, PairSpec, why_ambiguous

    if not text.endswith((".yaml", ".yml")):
        if doubt := why_ambiguous(text, Path()):
            raise ScenarioError(f"--pair: {doubt}")
        return text
    document, folder = yamlfile.read(text), Path(text).resolve().parent
    written = document.data.get("pair", document.data) if isinstance(document.data, dict) else document.data
    if isinstance(written, str):
        if doubt := why_ambiguous(written, folder):
            raise ScenarioError(f"{document.where(('pair',))}: {doubt}")
        return str(folder / written) if (folder / written / MANIFEST).is_file() else written
    if not isinstance(written, dict):
        raise ScenarioError(f"{document.where(())}: must hold pair:, got {found_text(written)}")
    try:
        return PairSpec.model_validate(written, context={"folder": folder})
    except ValidationError as error:
        place, message = first_problem(error, document)
    raise ScenarioError(f"{document.where(place)}: {subject(place)}{message}")


def prompts_of(path: Path) -> "list[Prompt]":
    """Read the prompts of a file in any format that scenarios accept. Raises PromptError, which names the file and line."""
    from simulator.core.errors import PromptError
    from simulator.core.files import read_file
    from simulator.core.prompt_files import MOST_BYTES, read_prompts

    try:
        return read_prompts(read_file(path, MOST_BYTES))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {reason(error)}") from None
    except PromptError as error:
        raise PromptError(f"{path}{':' if str(error)[0].isdigit() else ' '}{error}") from None


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

sets_option = click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change one value of the scenario, e.g. seed=1."
)
cache_option = click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of recordings.  [default: the user's cache folder]"
)
torch_device_option = click.option(
    "--torch-device", default="auto", show_default=True, help="Where the models run: auto, cpu, cuda, cuda:1 ..."
)
max_batch_option = click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Sessions recorded at once; limits memory use. Decisions near a tie can depend on it (docs/guide.md).",
)
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Simulate in N processes; does not change the results.  [default: one per core where that pays off]",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print no progress and no table.")
columns_option = click.option(
    "--columns",
    metavar="NAME,...|all",
    help="Columns of summary.csv to print.  [default: the most used ones that fit]",
)


def options(*some: Decorator) -> Decorator:
    """Combine several options in one decorator, in the order of the help."""

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(some):
            command = option(command)
        return command

    return added


def errors_in_one_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """Report user errors in one line on stderr with exit code 2, and SIGINT and SIGTERM in one line with exit codes 130 and 143.

    A full or read-only disk and exhausted memory are reported like user errors. Any other exception is a fault of the program and keeps
    its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with _sigterm_interrupts():
                return command(*args, **kwargs)
        except CiarSimError as error:
            click.echo(f"Error: {one_line(error)}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            click.echo("Stopped. What was done is kept: the same command continues from there.", err=True)
            sys.exit(143 if isinstance(stop, Terminated) else 130)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if error.filename is None:  # standard output, whose buffer would fail again at exit
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"Error: {error.filename or 'the output'} cannot be written: {reason(error)}", err=True)
            sys.exit(2)
        except (MemoryError, RuntimeError) as error:
            found = next(iter(str(error).splitlines()), "")[:300]
            if isinstance(error, RuntimeError) and not any(text in found for text in NO_MEMORY):
                raise
            how = "" if "max_batch" not in kwargs else ": a smaller --max-batch needs less"
            click.echo(f"Error: not enough memory{how}. {found}".rstrip(), err=True)
            sys.exit(2)

    return wrapped


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as SIGINT does."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise Terminated inside the block. It has no effect outside the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: CiarSimError) -> str:
    """Return the text of an error as one line, truncated to `MOST_CHARACTERS`."""
    text = " ".join(str(error).split("\n")).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ... ({len(text)} characters)"


def resolve_torch_device(name: str) -> str:
    """Return the name of a usable torch device. `auto` is the first CUDA device if there is one, else the CPU.

    Raises:
        CiarSimError: there is no such device, or this build of torch does not support it.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    shown = ascii(name)[1:-1][:40]
    kind, _, index = name.partition(":")
    if kind not in TORCH_DEVICES or (index and not (index.isascii() and index.isdigit() and len(index) < 4)):
        raise CiarSimError(
            f"--torch-device {shown}: must be auto, {', '.join(TORCH_DEVICES)}, or one with a number as cuda:1"
        )
    try:
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise CiarSimError(f"--torch-device {shown}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CiarSimError(f"--torch-device {shown}: not usable here: {first_line(error)}") from error
    return name


class FiniteRange(click.FloatRange):
    """A range of finite floats; click's own range accepts NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


def refuse_unusable(folder: Path) -> None:
    """Raise RunFolderError if a folder is not writable. Called before work that may take hours."""
    from simulator.core.errors import RunFolderError
    from simulator.core.files import why_unusable

    if why := why_unusable(folder):
        raise RunFolderError(f"{folder}: cannot be written: {why}")


# Endings of files by which other programs know the format.
ENDINGS_OF_FORMATS = {
    "csv",
    "html",
    "jpeg",
    "jpg",
    "json",
    "jsonl",
    "md",
    "parquet",
    "pcap",
    "pdf",
    "png",
    "sh",
    "svg",
    "tex",
    "yaml",
    "yml",
}


def refuse_unwritable(file: Path | None, *endings: str) -> None:
    """Raise RunFolderError if a file is not writable or its name ends as one of another format. Called before work that may take hours.

    Args:
        file: The file; None is no file.
        endings: Endings of the format that is written, the usual one first; none where any name is right.
    """
    from simulator.core.errors import RunFolderError
    from simulator.core.files import why_unwritable

    if file is None:
        return
    ending = file.suffix.removeprefix(".").lower()
    if endings and ending in ENDINGS_OF_FORMATS.difference(endings):
        raise RunFolderError(
            f"{file}: would not be a file of {ending.upper()}; allowed: a name in .{' or .'.join(endings)}"
        )
    if why := why_unwritable(file):
        raise RunFolderError(f"{file}: cannot be written: {why}")


def write_files(folder: Path, files: dict[str, bytes | None]) -> None:
    """Write files into a folder, all or none, and delete those that are None. Other files are kept. Raises RunFolderError."""
    from simulator.core.errors import RunFolderError
    from simulator.core.files import write_atomically, write_together

    try:
        ((name, content), *others) = files.items()
        if content is not None and not others:  # a single file may be a device
            write_atomically(folder / name, content)
        else:
            write_together(folder, files)
    except OSError as error:
        raise RunFolderError(f"{error.filename or folder}: cannot be written: {reason(error)}") from None
