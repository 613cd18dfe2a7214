"""What a replica holds of other tenants' jobs when the run begins."""

import numpy as np

from simulator.cloud.rules import Background

# Lengths of a job before the begin from which on iterations are drawn. What the first ones were, of single jobs, is forgotten by then.
WARM_JOBS = 300.0


def standing(load: Background, max_batch: int, draws: np.random.Generator) -> tuple[float, int]:
    """What a replica holds that has always served these jobs: seconds left of its iteration, 0 for an idle one, and jobs that wait.

    Its work is that of an M/D/1 queue: by Pollaczek and Khinchine (L. Kleinrock, Queueing Systems I, sec. 5.7) a geometric number of
    residual lives, uniform ones here. Which jobs run together follows from those before.
    """
    share = load.utilisation
    # Times are in lengths of a job. Jobs that come in a time are Poisson.
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
