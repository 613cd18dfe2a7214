"""Recording of sessions in parts, in this process or in several.

On a CPU sessions are divided into parts (`simulator.protocol.families.parts`), which are recorded separately. Two processes with one
thread each are faster than one process with two threads, because most tensors of a pass are small. On a GPU all sessions form one part,
because large batches use it best.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import lru_cache
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.core.errors import RecordingError
from simulator.experiment.workers import cores, most_processes
from simulator.protocol.cache import RecordingCache
from simulator.protocol.families import parts
from simulator.protocol.pairs import PairManifest, PairSpec
from simulator.protocol.recording import Recording, SessionSpec

if TYPE_CHECKING:
    from simulator.protocol.pairs import PairRef

Recorded = Iterator[tuple[SessionSpec, Recording]]
Report = Callable[[float, float], object]  # tokens decided, all tokens
# Least image tokens for which processes are started by default. A process needs some seconds to load torch and the pair.
LEAST_TOKENS = 10_000
LOOK_S = 0.5  # least interval between checks of the cache for new recordings
LOOK_SHARE = 0.05  # largest share of the time for these checks, which look up every missing session
TELL_S = 0.25  # least interval between two messages of a process on its progress


def divided(
    specs: Sequence[SessionSpec], image_tokens: int, max_batch: int, torch_device: str
) -> list[list[SessionSpec]]:
    """Return the parts in which sessions are recorded."""
    return parts(specs, image_tokens, max_batch) if torch_device == "cpu" else [list(specs)]


def processes(
    asked: int | None, divided: Sequence[Sequence[SessionSpec]], pair: "PairRef", manifest: PairManifest
) -> int:
    """Return the number of recording processes. asked: None for one per core, or one for a published model or little work."""
    tokens = manifest.image_tokens * sum(map(len, divided))
    if asked is None:
        asked = 1 if isinstance(pair, PairSpec) or tokens < LEAST_TOKENS else cores()
    return int(min(asked, len(divided), most_processes()))


def record_in_processes(
    divided: Sequence[Sequence[SessionSpec]],
    jobs: int,
    pair: "PairRef",
    max_batch: int,
    cache: Path,
    image_tokens: int,
    report: Report,
) -> Recorded:
    """Record sessions on the CPU in `jobs` processes, which put them into the cache. Yield them in the order of completion.

    The processes tell the tokens that they have decided through one pipe: a batch of sessions that advance together ends all at once, so
    the number of finished sessions would show no progress for as long as a batch takes.

    Raises:
        RecordingError: A process was killed, or a recording disappeared from the cache or is damaged.
        CiarSimError: An error of recording.
    """
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // jobs))
    left = {spec.key(): spec for part in divided for spec in part}
    total, cached = float(image_tokens * len(left)), RecordingCache(cache)
    told, tell = multiprocessing.Pipe(duplex=False)  # all processes write to it; each short message in one piece
    pool = ProcessPoolExecutor(
        max_workers=jobs, env={"OMP_NUM_THREADS": str(threads)}, initializer=_tell_through, initargs=(tell,)
    )
    # One for each process: the pool's own thread fails if it still has parts to hand out when the pool is ended.
    tasks = (
        pool.submit(_record_part, number, part, pair, max_batch, cache, threads, os.getpid())
        for number, part in enumerate(divided)
    )
    decided = [0] * len(divided)  # tokens, by part
    try:
        under_way, look_s = set(islice(tasks, jobs)), 0.0
        while left:
            done, under_way = wait(under_way, max(LOOK_S, look_s / LOOK_SHARE), FIRST_COMPLETED)
            under_way |= set(islice(tasks, len(done)))
            begin = time.perf_counter()
            there = [key for key in left if cached.has(key)]
            look_s = time.perf_counter() - begin
            for key in there:
                recording = cached.get(key)
                if recording is None:
                    raise RecordingError(f"a recording in the cache {cached.root} was damaged as soon as it was there")
                yield left.pop(key), recording
            while told.poll():
                number, tokens = told.recv()
                decided[number] = tokens
            for task in done:
                number = task.result()
                decided[number] = image_tokens * len(divided[number])
            if not under_way and left:
                raise RecordingError(f"{len(left)} recordings vanished from the cache {cached.root}")
            report(float(sum(decided)) if left else total, total)
    except TerminatedWorkerError:
        raise RecordingError(
            "a recording process was killed, perhaps for lack of memory; finished sessions are kept, and the same command continues "
            "from there; fewer --record-jobs need less memory"
        ) from None
    finally:
        pool.shutdown(kill_workers=True)
        told.close()
        tell.close()


_tell: Connection | None = None  # in a child process: where it tells its progress


def _tell_through(connection: Connection) -> None:
    global _tell
    _tell = connection


def _record_part(
    number: int, part: Sequence[SessionSpec], pair: "PairRef", max_batch: int, cache: Path, threads: int, parent: int
) -> int:
    """Record the sessions of a part into the cache, in a child process that exits when its parent is gone. Return the part's number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    import torch

    from models.recording import recorder_of

    told_s = 0.0

    def look(finished: int, sessions: int, decided: int, tokens: int) -> None:
        nonlocal told_s
        if os.getppid() != parent:
            os._exit(1)
        now = time.monotonic()
        if _tell is not None and now - told_s >= TELL_S:
            told_s = now
            try:
                _tell.send((number, decided))
            except OSError:  # the parent is just ending
                os._exit(1)

    torch.set_num_threads(threads)
    cached = RecordingCache(cache)
    for spec, recording in recorder_of(_pair(pair), max_batch, look).record(part):
        cached.put(spec.key(), recording)
    return number


@lru_cache(maxsize=1)
def _pair(pair: "PairRef") -> Any:
    from models.recording import load_models

    return load_models(pair, "cpu")
