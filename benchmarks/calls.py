"""Replay speed: calls of one cloud pass per second, end to end with full records, compared with SimPy's bare timeout rate.

The networks are: constant links; an LTE link whose rates follow a trace, with TCP, jitter and bursts of loss; the same with scheduling
gaps, CUBIC, BBR, a flow window or an idle timeout; Wi-Fi with five contending stations; and constant links with one effect of a cell each:
handovers, uplink scheduling with the timers of two operators, two paths at once, ten devices in a fair cell.

    python -m benchmarks.calls --json
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np
import simpy

from simulator.cloud.rules import CloudTier
from simulator.engine.case import CaseInputs
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import poisson_arrivals
from simulator.network.access import Network
from simulator.network.handover import Handovers
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wifi import Hop
from simulator.network.wire import Capacity
from simulator.pricing.costs import Work
from simulator.pricing.program import PASS, SessionProgram
from simulator.traces.gaps import fitted, generate

CALLS = 77  # a CIAR session at the paper's call rate


class Uniform:
    """Costs under which a pass takes the same time at any batch size."""

    power_w = float("nan")
    extrapolated = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def pass_seconds(self, work: Work) -> float:
        return self.seconds

    def compute_seconds(self, kind: str) -> float:
        return 0.0


def program(cloud: Uniform, count: int = CALLS) -> SessionProgram:
    """Return a session of `count` calls: each is 10 ms of computing on the device and one cloud pass."""
    item = (*Work.of_pass(2, 4, 200), cloud.seconds, PASS, ())
    calls = tuple((2600, (), (item,), (20, index == 0)) for index in range(count))
    steps = tuple((0.010, -1.0, index, index) for index in range(count))
    return SessionProgram(
        steps=steps,
        calls=calls,
        device_s=0.010 * count,
        encode_s=0.0,
        image_decode_s=0.0,
        bytes_up=2600 * count,
        bytes_down=20 * count,
        device_passes=count,
        cloud_passes=count,
        cloud_call_pct=30.0,
    )


def lte(seed: int = 0) -> Network:
    """Return an LTE network with ten minutes of rates, one per second.

    The logarithm of the rate is a Gauss-Markov process with the deviation of driving traces; the mean rates are those of MONROE.
    """
    generator = np.random.default_rng(seed)

    def rates(mean_bps: float) -> Capacity:
        level, levels = 0.0, []
        for noise in generator.standard_normal(600):
            level = 0.8 * level + 0.6 * 0.7 * float(noise)
            levels.append(level)
        rate = np.exp(levels)
        return Capacity(np.arange(600.0), rate * mean_bps / rate.mean(), 600.0)

    return Network(
        rates(10.6e6),
        rates(27e6),
        0.030,
        0.030,
        0.012,
        0.012,
        up_loss=0.002,
        down_loss=0.002,
        burst_packets=4.0,
        transport=TRANSPORTS["tcp"],
    )


def gaps() -> Network:
    """Return the network of `lte` with rates that have the scheduling gaps of LTE."""
    down, up = (
        Capacity(one.times_s, one.rate_bps, one.duration_s)
        for one in generate(fitted()["lte-gaps"].gaps, 27e6, 10.6e6, 0, 7200.0)
    )
    return replace(lte(), up_bps=up, down_bps=down)


def _with(network: Network, **transport: Any) -> Network:
    return replace(network, transport=replace(network.transport, **transport))


CONSTANT = Network(40e6, 90e6, 0.010, 0.010, 0.002, 0.002)
LTE_RADIO = RadioFigures(
    promotion_s=0.26,
    inactivity_s=10.2,
    drx_after_s=0.2,
    drx_cycle_s=0.32,
    sr_period_s=0.01,
    sr_grant_s=0.012,
    slot_s=0.0025,
)
NETWORKS: dict[str, Callable[[], Network]] = {
    "constant": lambda: CONSTANT,
    "lte": lte,
    "gaps": gaps,
    "cubic": lambda: _with(lte(), congestion="cubic"),
    "bbr": lambda: _with(lte(), congestion="bbr"),
    "flow window": lambda: _with(lte(), flow_bytes=65_535),
    "idle timeout": lambda: replace(lte(), idle_timeout_s=60.0),
    "handover": lambda: replace(CONSTANT, handovers=Handovers(20.0, 0.055)),
    "uplink": lambda: replace(
        CONSTANT, radio=LTE_RADIO, operators=((0.5, LTE_RADIO), (0.5, replace(LTE_RADIO, inactivity_s=5.0)))
    ),
    "paths": lambda: replace(CONSTANT, also=(CONSTANT,)),
    "fair": lambda: replace(CONSTANT, devices_per_cell=10, fair=True, fading_snr_db=10.0),
    "wifi": lambda: Network(40e6, 90e6, 0.010, 0.010, 0.002, 0.002, transport=TRANSPORTS["tcp"], wifi=Hop(5)),
}


def calls_per_second(network: Network, requests: int, devices: int, replicas: int) -> dict[str, float]:
    cloud = Uniform(0.002)
    rate = 0.5 * replicas
    arrivals = poisson_arrivals(0, rate, requests / rate, devices, 1)
    part = FleetPart(devices, [program(cloud)], Uniform(0.010), network)
    inputs = CaseInputs([part], [CloudTier(cloud, replicas, 16)], arrivals, seed=0)
    begin = time.perf_counter()
    result = simulate(inputs)
    seconds = time.perf_counter() - begin
    calls = int(np.sum(result.columns["calls"]))
    return {
        "requests": len(arrivals),
        "calls": calls,
        "seconds": seconds,
        "calls_per_s": calls / seconds,
        "events_per_call": result.events / calls,
    }


def timeouts_per_second(count: int = 300_000) -> float:
    """Return SimPy's own rate: one process that waits `count` times."""
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
    timeouts = timeouts_per_second()
    found = {name: calls_per_second(network(), requests, devices, replicas) for name, network in NETWORKS.items()}
    if as_json:
        click.echo(json.dumps({**found, "simpy_timeouts_per_s": timeouts}))
        return
    for name, of in found.items():
        click.echo(
            f"{name}: {of['calls']:,.0f} calls in {of['seconds']:.2f} s: {of['calls_per_s']:,.0f} calls/s, "
            f"{of['events_per_call']:.2f} events a call"
        )
    click.echo(f"SimPy's bare timeout: {timeouts:,.0f}/s")


if __name__ == "__main__":
    main()
