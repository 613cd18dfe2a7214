"""The load at which a share crosses a limit, with its interval, from simulations at many loads around it.

The logit of the share is taken to be linear in the logarithm of the load (logistic regression by Newton's method), which holds near the
crossing only: loads at which far more requests are late are left out. The interval is that of the jackknife over the simulations
(Efron and Stein 1981). Late requests come in bursts, so the spread among the simulations is many times that of independent requests.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit, stdtrit

FAR = 0.3  # share of late requests from which a load is too far above the crossing
LEAST_NEAR = 6  # simulations of the fit, however far they are
GENTLE, STEEP = 1.0, 1000.0  # bounds of the slope: logit per logarithm of the load
BEYOND = 0.1  # how far, in the logarithm of the load, the crossing may lie outside the loads that were simulated
STEPS = 60  # of Newton's method
NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # of a mean over a normal variable
WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Crossing(NamedTuple):
    """Where the share crosses the limit.

    Attributes:
        at: Logarithm of the load.
        slope: Of the logit of the share, per logarithm of the load.
        half: Half of the interval of `at`.
    """

    at: float
    slope: float
    half: float


def crossing(
    loads: np.ndarray, came: np.ndarray, late: np.ndarray, asked: np.ndarray, limit: float, confidence: float
) -> Crossing:
    """Estimate the load at which the expected share of late requests crosses a limit.

    Where requests are a Poisson process, their number is a control variate with a known mean. Its best coefficient is the slope, as the
    covariance of the late requests with it is the derivative of their expectation by the logarithm of the rate. So the share is fitted on
    the load that came, and the crossing is that of the share's mean over the loads that may come.

    Args:
        loads: Logarithm of the load of each simulation, at least three.
        came: Logarithm of its number of requests divided by their expectation, and the standard deviation of that: two columns, 0 where
            the number is no control variate.
        late: Late requests of each.
        asked: All requests of each.
        limit: The share that is looked for.
        confidence: Of the interval.
    """
    loads, spread = loads + came[:, 0], came[:, 1]
    share = smoothed(loads, late, asked)
    over = share[share > limit]
    top = max(FAR, float(np.sort(share)[min(LEAST_NEAR, len(share)) - 1]), float(over.min()) if len(over) else 0.0)
    near = share <= top
    loads, late, asked, spread = loads[near], late[near], asked[near], spread[near]
    ends = float(loads.min()) - BEYOND, float(loads.max()) + BEYOND

    def fitted(kept: np.ndarray) -> tuple[float, float]:
        at, slope = _fit(loads[kept], late[kept], asked[kept], limit)
        at -= _raised(slope * math.sqrt(float(np.mean(spread[kept] ** 2))), limit) / slope
        return min(max(at, ends[0]), ends[1]), slope

    every = np.arange(len(loads))
    at, slope = fitted(every)
    without = np.array([fitted(every != place)[0] for place in every])
    deviation = math.sqrt((len(every) - 1) / len(every) * float(np.sum((without - without.mean()) ** 2)))
    return Crossing(at, slope, float(stdtrit(max(len(every) - 2, 1), (1 + confidence) / 2)) * deviation)


def _raised(spread: float, limit: float) -> float:
    """Return how far below the logit of a limit the mean of a normal logit must lie for the mean of its share to be the limit.

    spread: Standard deviation of the logit.
    """
    goal = math.log(limit / (1.0 - limit))
    below = 0.5 * spread**2
    for _ in range(STEPS if spread else 0):
        shares = expit(goal - below + spread * NODES)
        step = (float(WEIGHTS @ shares) - limit) / float(WEIGHTS @ (shares * (1.0 - shares)))
        below += min(max(step, -1.0), 1.0)
        if abs(step) < 1e-9:
            break
    return below


def smoothed(loads: np.ndarray, late: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the share of late requests at the load of each simulation, rising with the load (pool adjacent violators)."""
    order = np.argsort(loads, kind="stable")
    pools: list[list[float]] = []  # late, asked and number of simulations
    for place in order:
        pools.append([float(late[place]), float(asked[place]), 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            pool = pools.pop()
            pools[-1] = [mine + more for mine, more in zip(pools[-1], pool, strict=True)]
    share = np.empty(len(loads))
    share[order] = np.repeat([pool[0] / pool[1] for pool in pools], [int(pool[2]) for pool in pools])
    return share


def _fit(loads: np.ndarray, late: np.ndarray, asked: np.ndarray, limit: float) -> tuple[float, float]:
    """Where the fitted share is the limit, and the slope.

    Each simulation has one more request, late by the share `limit`: where no load but the last has a late request, the slope is finite,
    and the crossing is not moved.
    """
    trials = asked + 1.0
    shares = (late + limit) / trials
    centre = float(np.average(loads, weights=trials))
    off = loads - centre
    reach = max(float(np.abs(off).max()), 1e-12)
    mean = float(np.average(shares, weights=trials))
    level, slope = math.log(mean / (1.0 - mean)), 2.0 * GENTLE
    for _ in range(STEPS):
        expected = expit(level + slope * off)
        weights, errors = trials * expected * (1.0 - expected), trials * (shares - expected)
        w0, w1, w2 = float(weights.sum()), float(weights @ off), float(weights @ off**2)
        determinant = w0 * w2 - w1 * w1
        if determinant <= 1e-12 * w0 * reach**2 * w0:  # one load
            break
        e0, e1 = float(errors.sum()), float(errors @ off)
        steps = (w2 * e0 - w1 * e1) / determinant, (w0 * e1 - w1 * e0) / determinant
        damped = min(1.0, 3.0 / max(abs(steps[0]) + reach * abs(steps[1]), 1e-12))
        level, slope = level + damped * steps[0], slope + damped * steps[1]
        if abs(steps[0]) + reach * abs(steps[1]) < 1e-9:
            break
    slope = min(max(slope, GENTLE), STEEP)
    return centre + (math.log(limit / (1.0 - limit)) - level) / slope, slope
