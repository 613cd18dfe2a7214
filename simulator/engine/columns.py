"""Columns that follow from the arrivals alone."""

import numpy as np

from simulator.engine.workload import Requests


def next_request_of_device(arrivals: Requests) -> np.ndarray:
    """float64 [n]: time of the next request of each request's device, infinity after the last."""
    order = np.argsort(arrivals.device, kind="stable")
    device, requested_s = arrivals.device[order], arrivals.requested_s[order]
    following = np.full(len(order), np.inf)
    same = device[1:] == device[:-1]
    following[:-1][same] = requested_s[1:][same]
    result = np.empty(len(order))
    result[order] = following
    return result
