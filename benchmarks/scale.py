"""Scaling: processor time per request and peak memory, from 1,000 to 1,000,000 requests.

Each request is one call with one pass, over constant links, with full records.

    python -m benchmarks.scale --json
"""

import json
import resource
import time

import click

from benchmarks.calls import NETWORKS, Uniform, program
from simulator.cloud.rules import CloudTier
from simulator.engine.case import CaseInputs
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import poisson_arrivals

SIZES = (1_000, 10_000, 100_000, 1_000_000)
DEVICES = 20  # few, because creating a device takes as long as several requests


def seconds_per_request(requests: int) -> float:
    """Return the processor time of the simulation alone, divided by the number of requests."""
    cloud = Uniform(0.002)
    arrivals = poisson_arrivals(0, 100.0, requests / 100.0, DEVICES, 1)
    part = FleetPart(DEVICES, [program(cloud, 1)], Uniform(0.010), NETWORKS["constant"]())
    inputs = CaseInputs([part], [CloudTier(cloud, 4, 16)], arrivals, seed=0)
    begin = time.process_time()
    simulate(inputs)
    return (time.process_time() - begin) / len(arrivals)


@click.command()
@click.option("--most", type=click.IntRange(1), default=SIZES[-1], show_default=True, help="Requests at most.")
@click.option("--json", "as_json", is_flag=True)
def main(most: int, as_json: bool) -> None:
    found = []
    for size in (size for size in SIZES if size <= most):
        repeats = max(1, min(9, 50_000 // size))
        seconds = sorted(seconds_per_request(size) for _ in range(repeats))[repeats // 2]
        # In kB on Linux. The peak never falls, so the sizes are in ascending order.
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found.append({"requests": size, "us_per_request": 1e6 * seconds, "peak_mb": peak_mb})
    times = [each["us_per_request"] for each in found]
    ratio = max(times) / min(times) if times else float("nan")
    if as_json:
        click.echo(json.dumps({"sizes": found, "slowest_over_fastest": ratio}))
        return
    for each in found:
        click.echo(
            f"{each['requests']:>9,} requests: {each['us_per_request']:5.1f} us each, peak {each['peak_mb']:,.0f} MB"
        )
    click.echo(f"slowest over fastest: {ratio:.2f}")


if __name__ == "__main__":
    main()
