"""Replay speed: one-forward calls per second, end to end with full records, beside SimPy's bare timeout rate in the same run.

    python -m benchmarks.calls --json
"""

import json
import time
from collections.abc import Callable

import click
import numpy as np
import simpy

from simulator.costs import Work
from simulator.engine import CaseInputs, Network, simulate
from simulator.replay import PASS, SessionProgram
from simulator.workload import poisson_arrivals

CALLS = 77  # a CIAR session at the paper's call rate


class Uniform:
    """A pass takes the same time whatever its batch."""

    power_w = float("nan")
    extrapolated = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def pass_seconds(self, work: Work) -> float:
        return self.seconds

    def compute_seconds(self, kind: str) -> float:
        return 0.0


def program(cloud: Uniform) -> SessionProgram:
    """One session: device computes 10 ms, asks the cloud for one pass, CALLS times."""
    item = (*Work.of_pass(2, 4, 200), cloud.seconds, PASS, ())
    calls = tuple((2600, (), (item,), (20, index == 0)) for index in range(CALLS))
    steps = tuple((0.010, -1.0, index, index) for index in range(CALLS))
    return SessionProgram(
        steps=steps, calls=calls, device_s=0.010 * CALLS, encode_s=0.0, image_decode_s=0.0, bytes_up=2600 * CALLS, bytes_down=20 * CALLS,
        cloud_passes=CALLS, cloud_call_pct=30.0,
    )  # fmt: skip


def calls_per_second(requests: int, devices: int, replicas: int) -> dict[str, float]:
    cloud = Uniform(0.002)
    rate = 0.5 * replicas
    arrivals = poisson_arrivals(0, rate, requests / rate, devices, 1)
    network = Network(40e6, 90e6, 0.010, 0.010, 0.002, 0.002)
    inputs = CaseInputs([program(cloud)], Uniform(0.010), cloud, network, devices, replicas, 16, arrivals, seed=0)
    begin = time.perf_counter()
    result = simulate(inputs)
    seconds = time.perf_counter() - begin
    calls = int(np.sum(result.columns["calls"]))
    return {
        "requests": len(arrivals), "calls": calls, "seconds": seconds, "calls_per_s": calls / seconds,
        "events_per_call": result.events / calls,
    }  # fmt: skip


def timeouts_per_second(count: int = 300_000) -> float:
    """SimPy's own rate: one process that waits `count` times."""
    environment = simpy.Environment()

    def waits(wait: Callable[[float], simpy.Timeout]) -> simpy.events.ProcessGenerator:
        for _ in range(count):
            yield wait(1.0)

    environment.process(waits(environment.timeout))
    begin = time.perf_counter()
    environment.run()
    return count / (time.perf_counter() - begin)


@click.command()
@click.option("--requests", default=5000, show_default=True)
@click.option("--devices", default=100, show_default=True)
@click.option("--replicas", default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(requests: int, devices: int, replicas: int, as_json: bool) -> None:
    found = {**calls_per_second(requests, devices, replicas), "simpy_timeouts_per_s": timeouts_per_second()}
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['calls']:,.0f} calls in {found['seconds']:.2f} s: {found['calls_per_s']:,.0f} calls/s, "
               f"{found['events_per_call']:.2f} events a call; SimPy's bare timeout: {found['simpy_timeouts_per_s']:,.0f}/s")  # fmt: skip


if __name__ == "__main__":
    main()
