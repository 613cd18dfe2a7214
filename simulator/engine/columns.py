"""Request columns from the records of a simulation."""

import numpy as np

from simulator.engine.workload import Arrivals


def _next_of_same_device(arrivals: Arrivals) -> np.ndarray:
    """float64 [n]: when the device of each request is next asked for one, infinity after its last."""
    order = np.argsort(arrivals.device, kind="stable")
    device, requested_s = arrivals.device[order], arrivals.requested_s[order]
    following = np.full(len(order), np.inf)
    same = device[1:] == device[:-1]
    following[:-1][same] = requested_s[1:][same]
    result = np.empty(len(order))
    result[order] = following
    return result
