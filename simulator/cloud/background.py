"""The background jobs that a replica holds when a run begins."""

import numpy as np

from simulator.cloud.rules import Background

# Warm-up before the run, in job lengths, during which iterations are simulated. The first iterations are drawn as single jobs; the
# warm-up is long enough that this has no effect on the state at the start of the run.
WARM_JOBS = 300.0


def standing(load: Background, max_batch: int, draws: np.random.Generator) -> tuple[float, int]:
    """Draw the stationary state of a replica under background load.

    The unfinished work is that of an M/D/1 queue: a geometric number of residual service times, which are uniform for jobs of equal
    length (Pollaczek-Khinchine; L. Kleinrock, Queueing Systems I, sec. 5.7). Which jobs share an iteration is simulated over `WARM_JOBS`.

    Args:
        load: The background load, with a utilisation above 0.
        max_batch: Largest number of jobs in one iteration.
        draws: Random stream of the replica.

    Returns:
        Seconds left of the current iteration (0 for an idle replica), and the number of waiting jobs.
    """
    share = load.utilisation
    # All times here are in job lengths; arrivals are Poisson.
    waiting, left = divmod(float(draws.random(draws.geometric(1.0 - share) - 1).sum()), 1.0)
    jobs, before = int(waiting), WARM_JOBS
    while left < before:
        jobs += int(draws.poisson(share * left))
        before -= left
        if not jobs:
            before -= float(draws.standard_exponential()) / share
            jobs = 1
            if before <= 0.0:
                return 0.0, 0
        batch = min(jobs, max_batch)
        jobs -= batch
        left = float(batch)
    return (left - before) * load.job_s, jobs + int(draws.poisson(share * before))
