"""Session latencies on a generator of scheduling gaps, compared with those on the packet-delivery trace to which it was fitted.

    python -m benchmarks.gaps link.down link.up --levels 6

A session of 63 calls, as CIAR makes at 30 % on a 16 x 16 grid, is replayed from many places of the trace, of generated series of two hours,
and of generated series as long as the trace. The spread of the last shows the uncertainty of a trace of that length. A circular block
bootstrap (D. Politis and J. Romano, 1992) estimates the same uncertainty from the trace alone: blocks of `BLOCK_S`, drawn with replacement,
form traces that could have been recorded instead.
"""

import math
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.calls import Uniform, program
from simulator.core.rng import stream
from simulator.engine.case import CaseInputs
from simulator.engine.run import simulate
from simulator.engine.workload import Requests
from simulator.network.access import Network
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity
from simulator.traces.gaps import LEVELS, fit, generate
from simulator.traces.read import read_trace
from simulator.traces.series import RateSeries

CALLS = 63
RTT_S = 0.060
DEVICE_S, CLOUD_S = 0.010, 0.024  # a device step between calls, a cloud pass
LONG_S = 7200.0
BLOCK_S = 30.0  # several times as long as the part of the trace that a session depends on
DRAWN = 2000


def latencies_s(down: RateSeries, up: RateSeries, places: int, seed: int) -> NDArray[np.float64]:
    """Return the latencies float64 [places] of one session from each of `places` places of a link, alone in the cloud."""
    up_wire, down_wire = (Capacity(one.times_s, one.rate_bps, one.duration_s) for one in (up, down))
    network = Network(up_wire, down_wire, RTT_S / 2, RTT_S / 2, 0.0, 0.0, transport=TRANSPORTS["grpc"])
    cloud = Uniform(CLOUD_S)
    arrivals = Requests(np.zeros(places), np.arange(places), np.zeros(places, np.int64))
    session = program(cloud, CALLS)
    inputs = CaseInputs([session], Uniform(DEVICE_S), cloud, network, places, places, 1, arrivals, seed=seed)
    found: NDArray[np.float64] = simulate(inputs).columns["latency_s"]
    return found


def resampled(seconds: NDArray[np.float64], seed: int, duration_s: float) -> NDArray[np.float64]:
    """Return float64 [2, DRAWN]: means and 95th percentiles of latencies over resampled traces.

    Args:
        seconds: Latencies from `latencies_s`, with the same seed.
        duration_s: Length of the trace; a resampled trace has as many blocks.
    """
    places_s = np.array([stream(seed, "link.offset", n).random() for n in range(len(seconds))]) * duration_s
    order = np.argsort(places_s)
    places_s, seconds = places_s[order], np.tile(seconds[order], 2)
    count = max(1, round(duration_s / BLOCK_S))
    length_s = duration_s / count
    found = []
    for begins_s in stream(seed, "blocks").uniform(0.0, duration_s, (DRAWN, count)):
        first = np.searchsorted(places_s, begins_s)
        ends_s = begins_s + length_s
        last = np.searchsorted(places_s, ends_s % duration_s) + len(places_s) * (ends_s >= duration_s)
        found.append(figures(np.concatenate([seconds[a:b] for a, b in zip(first, last, strict=True)])))
    return np.array(found).T


def figures(seconds: NDArray[np.float64]) -> tuple[float, float]:
    return float(seconds.mean()), float(np.percentile(seconds, 95))


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--levels", default=LEVELS, show_default=True)
@click.option("--places", default=400, show_default=True, help="Of the trace and of each series of two hours.")
@click.option("--seeds", default=2, show_default=True, help="Series of two hours.")
@click.option("--short", default=30, show_default=True, help="Series as long as the trace.")
def main(files: tuple[Path, ...], levels: int, places: int, seeds: int, short: int) -> None:
    trace = read_trace(list(files))
    gaps = fit(trace, levels)
    down, up = trace.down.rate, trace.up.rate
    assert down is not None and up is not None  # noqa: PT018, a trace that was fitted
    mean_bps = down.mean_bps(), up.mean_bps()
    told_s = latencies_s(down, up, places, 0)
    truth = figures(told_s)
    long = np.concatenate(
        [latencies_s(*generate(gaps, *mean_bps, seed, LONG_S), places, seed) for seed in range(seeds)]
    )
    click.echo(f"trace of {trace.duration_s:.0f} s: mean {truth[0]:.2f} s, p95 {truth[1]:.2f} s")
    for name, values in zip(("mean", "p95"), resampled(told_s, 0, trace.duration_s), strict=True):
        low, high = np.percentile(values, [5, 95])
        click.echo(
            f"blocks of the trace: {name} {low:.2f} to {high:.2f} s in nine of ten, deviation {values.std():.2f} s"
        )
    errors = [100.0 * (found / told - 1.0) for found, told in zip(figures(long), truth, strict=True)]
    mean, p95 = figures(long)
    click.echo(f"generator, two hours: mean {mean:.2f} s ({errors[0]:+.1f} %), p95 {p95:.2f} s ({errors[1]:+.1f} %)")
    length_s = float(max(10, math.floor(trace.duration_s)))
    each = np.array(
        [
            figures(latencies_s(*generate(gaps, *mean_bps, 1000 + seed, length_s), places // 10, seed))
            for seed in range(short)
        ]
    )
    for name, values, told in zip(("mean", "p95"), each.T, truth, strict=True):
        low, high = np.percentile(values, [5, 95])
        below = 100.0 * float((values < told).mean())
        click.echo(
            f"generator, {length_s:.0f} s: {name} {low:.2f} to {high:.2f} s in nine of ten series; "
            f"the trace's is above {below:.0f} % of them"
        )


if __name__ == "__main__":
    main()
