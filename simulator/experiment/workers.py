"""Parallel execution: in this process, in processes of this machine (forked, or loky's), or on a Dask cluster, in any order."""

import asyncio
import logging
import math
import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from simulator.core.errors import CiarSimError, SimulationError
from simulator.core.forked import LostProcessError, can_fork, forked
from simulator.core.limits import free_memory_bytes
from simulator.experiment.estimate import REQUEST_BYTES, size_of
from simulator.experiment.scenario import Case

ItemT = TypeVar("ItemT")
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_WAITING = 4  # queued tasks per worker, so that no worker idles; it bounds the memory of this process
_PATIENCE_S = 20  # for an answer of a scheduler
_IDLE_S = 300  # time for which an idle worker process is kept
# Least requests per process by default. Forking takes as long as some tens of them; other processes load the program for a second or two.
_LEAST_REQUESTS, _LEAST_FORKED = 500, 100
_SPARE = 4.0  # memory per process, as a multiple of the (low) estimate for a case


@dataclass(frozen=True)
class Workers:
    """Where the cases of a run are simulated. It does not affect results.

    Attributes:
        jobs: Number of processes on this machine; 1 is this process; None: up to one per core (see `settled`).
        scheduler: Address of a Dask scheduler to use instead of processes.
        local: Number of worker processes of a Dask cluster started for the run, instead of an address.
    """

    jobs: int | None = 1
    scheduler: str | None = None
    local: int | None = None

    @property
    def remote(self) -> bool:
        """Whether Dask runs the workers, so that the free memory of this process does not limit them."""
        return self.scheduler is not None or self.local is not None

    @property
    def apart(self) -> bool:
        """Whether tasks are sent to other processes as pickles. Forked processes have the memory of this one."""
        return self.remote or (self.most > 1 and not can_fork())

    @property
    def most(self) -> int:
        """Number of cases simulated on this machine at once."""
        return int(min(self.jobs or 1, most_processes()))

    def settled(self, cases: Sequence[Case]) -> "Workers":
        """Choose the number of processes if `jobs` is None: at most one per core, each with enough work and memory."""
        if self.jobs is not None or self.remote or not cases:
            return self
        sizes = [size_of(case.scenario) for case in cases]
        largest_bytes = max(REQUEST_BYTES * size.requests + size.state_bytes for size in sizes)
        by_work = sum(size.requests for size in sizes) / (_LEAST_FORKED if can_fork() else _LEAST_REQUESTS)
        by_memory = free_memory_bytes() / (_SPARE * max(largest_bytes, 1.0))
        return replace(self, jobs=max(1, int(min(cores(), len(cases), by_work, by_memory))))

    def check(self) -> None:
        """Raise CiarSimError if Dask is to run the workers and is not installed, or if no scheduler with workers answers at the address."""
        if self.scheduler is not None:
            with _connected(self):
                pass
        elif self.local is not None:
            _distributed()

    def run(
        self, work: Callable[[TaskT], ResultT], items: Sequence[ItemT], task: Callable[[ItemT], TaskT]
    ) -> Iterator[tuple[ItemT, ResultT]]:
        """Yield each item with the result of `work` on its task, in the order of completion. An error ends the iteration.

        Args:
            work: Runs in a worker; importable there, and its result picklable.
            items: What to work on.
            task: Builds the task of an item when a worker is free: in the worker if that has the memory of this process, else here.

        Raises:
            SimulationError: A worker process was killed.
            CiarSimError: The cluster cannot be used.
        """
        if self.remote:
            return _on_cluster(work, items, task, self)
        if self.most > 1:
            return _in_processes(work, items, task, self.most)
        return ((item, work(task(item))) for item in items)


def cores() -> int:
    """Return the number of cores that this process may use, as reported by the system; 1 where it may start no process."""
    from joblib import cpu_count

    return int(min(cpu_count(), most_processes()))


def most_processes() -> float:
    """Return 1 in a process that may have no children, such as a worker of `multiprocessing.Pool`, and infinity elsewhere."""
    return 1 if multiprocessing.current_process().daemon else math.inf


def _pool(jobs: int) -> Any:
    from joblib.externals.loky import get_reusable_executor

    # A short timeout causes warnings of loky when a worker times out while new work arrives.
    return get_reusable_executor(max_workers=jobs, timeout=_IDLE_S)


def _in_processes(
    work: Callable[[TaskT], ResultT], items: Sequence[ItemT], task: Callable[[ItemT], TaskT], jobs: int
) -> Iterator[tuple[ItemT, ResultT]]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def ended(pending: Collection[Any]) -> Iterable[Any]:
        return wait(pending, return_when=FIRST_COMPLETED).done

    try:
        if can_fork():
            yield from forked(lambda item: work(task(item)), items, jobs)
        else:
            pool = _pool(jobs)
            yield from _windowed(lambda item: pool.submit(work, task(item)), ended, items, _WAITING * jobs)
    except (TerminatedWorkerError, LostProcessError):
        raise SimulationError(
            "a worker process was killed, perhaps for lack of memory; finished cases are kept, and the same command continues from there; "
            "fewer --jobs need less memory"
        ) from None


def _on_cluster(
    work: Callable[[TaskT], ResultT], items: Sequence[ItemT], task: Callable[[ItemT], TaskT], workers: Workers
) -> Iterator[tuple[ItemT, ResultT]]:
    """Run tasks on a Dask cluster, which repeats the tasks of a dead worker on another one."""
    distributed = _distributed()
    with _connected(workers) as client:

        def ended(pending: Collection[Any]) -> Iterable[Any]:
            with client.as_current():
                found = distributed.wait(list(pending), return_when="FIRST_COMPLETED")
            done: Iterable[Any] = found.done
            return done

        submit = lambda item: client.submit(work, task(item), pure=False)  # noqa: E731
        most = _WAITING * sum(client.nthreads().values())
        try:
            yield from _windowed(submit, ended, items, most)
        except distributed.KilledWorker:
            raise SimulationError(
                "a case ended every worker that simulated it, perhaps for lack of memory; finished cases are kept, and the same command "
                "continues from there"
            ) from None


def _distributed() -> Any:
    """Return the library. Raises CiarSimError if it is not installed."""
    try:
        import distributed
    except ImportError:
        raise CiarSimError("Dask is not installed; install it with pip install 'ciar-sim[dask]'") from None
    return distributed


@contextmanager
def _connected(workers: Workers) -> Iterator[Any]:
    """Yield a client of the cluster, which is started if no scheduler is named.

    Raises:
        CiarSimError: Dask is not installed, no scheduler answers, it has no workers, or they run another version of this program.
    """
    distributed = _distributed()
    from simulator.experiment.kept import code_digest

    with ExitStack() as stack:
        if workers.scheduler is None:
            stack.enter_context(_silent())
            cluster = distributed.LocalCluster(
                n_workers=workers.local,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,  # in its processes; here it ends too early
            )
            address: Any = stack.enter_context(cluster)
        else:
            address = workers.scheduler
        try:
            if workers.scheduler is not None:
                _reach(distributed, workers.scheduler)
            opened = distributed.Client(address, set_as_default=False, timeout=f"{_PATIENCE_S}s")
            client = stack.enter_context(opened)
        except (OSError, ValueError, TypeError) as error:
            raise CiarSimError(f"--dask {workers.scheduler}: no scheduler answers: {error}") from None
        if not client.nthreads():
            raise CiarSimError(f"--dask {workers.scheduler}: the scheduler has no workers")
        strangers = [name for name, digest in client.run(code_digest).items() if digest != code_digest()]
        if strangers:
            raise CiarSimError(f"--dask {workers.scheduler}: worker {strangers[0]} runs another version of ciar-sim")
        yield client


def _reach(distributed: Any, address: str) -> None:
    """Raise OSError or ValueError if nothing answers at the address. A client that fails to connect hangs when it is freed."""

    async def reach() -> None:
        arguments = distributed.security.Security().get_connection_args("client")
        connection = await distributed.comm.connect(address, timeout=_PATIENCE_S, **arguments)
        await connection.close()

    with ThreadPoolExecutor(1) as apart:  # this thread may run a loop, as in a notebook
        apart.submit(asyncio.run, reach()).result()


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what Dask prints about its own processes, such as those that it has to end. What concerns a run is raised as an exception."""
    handlers = logging.getLogger("distributed").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _windowed(
    submit: Callable[[ItemT], Any],
    ended: Callable[[Collection[Any]], Iterable[Any]],
    items: Iterable[ItemT],
    most: int,
) -> Iterator[tuple[ItemT, Any]]:
    """Submit items, at most `most` of them at a time, and yield each with its result."""
    left = iter(items)
    pending = {submit(item): item for item in islice(left, most)}
    try:
        while pending:
            for future in list(ended(pending)):
                item = pending.pop(future)
                result = future.result()
                del future
                for more in islice(left, 1):
                    pending[submit(more)] = more
                yield item, result
    finally:
        for future in pending:
            future.cancel()
