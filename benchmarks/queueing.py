"""The simulator against queueing theory: mean waits of systems with a closed form, driven through `simulate` as any case is.

    python -m benchmarks.queueing --json

Every request is a session of one call whose work takes a drawn time by itself. Links are infinitely fast, so that only the
queues are left. Replications with seeds of their own give the mean and its 99 % interval (Student t); the means of the drawn
gaps and services, whose expectations are known, serve as control variates (Lavenberg and Welch, A perspective on the use of
control variables, Management Science 27, 1981). The first `WARM_UP` of each replication, which starts empty, are left out.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
import numpy as np
from scipy import optimize, stats

from benchmarks.calls import Uniform
from simulator.cloud import CloudRules
from simulator.engine import CaseInputs, CaseResult, Network, simulate
from simulator.replay import OTHER, SessionProgram
from simulator.rng import stream
from simulator.workload import Arrivals

WARM_UP = 0.15  # of the requests of a replication
UTILISATIONS = (0.5, 0.8, 0.95)
CAPACITY = 5  # K of M/M/1/K
MACHINES = 10
SERVERS = 4
FREE = Network(math.inf, math.inf, 0.0, 0.0)

# A replication: seed, load and size to values to compare with theory, and control variates of expectation 0.
Replication = Callable[[int, float, int], tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Queue:
    """A system with closed forms. theory: load to the expectations of what a replication measures; what: their names."""

    replicate: Replication
    theory: Callable[[float], list[float]]
    what: tuple[str, ...] = ("mean wait",)


@dataclass(frozen=True)
class Check:
    """One measured quantity beside its formula, in units of the mean service time. half_width: of the 99 % interval."""

    system: str
    load: float
    what: str
    formula: float
    simulated: float
    half_width: float
    replications: int

    @property
    def inside(self) -> bool:
        return abs(self.simulated - self.formula) <= self.half_width

    @property
    def error(self) -> float:
        return self.simulated / self.formula - 1.0


def session(services_s: Sequence[float], device_s: Sequence[float]) -> SessionProgram:
    """Calls one after another: the device computes, then the cloud works by itself for a given time."""
    steps = tuple((seconds, -1.0, call, call) for call, seconds in enumerate(device_s))
    calls = tuple((0, (), ((0, 0, 0, 0, 0, seconds, OTHER, ()),), (0, call == 0)) for call, seconds in enumerate(services_s))
    return SessionProgram(steps, calls, sum(device_s), 0.0, 0.0, 0, 0, 0, 0, math.nan)


def run(
    programs: Sequence[SessionProgram], requested_s: np.ndarray, devices: int, replicas: int = 1, rules: CloudRules | None = None
) -> CaseResult:
    """Request i replays program i; request i comes from device i modulo `devices`."""
    n = len(requested_s)
    arrivals = Arrivals(requested_s, np.arange(n) % devices, np.arange(n))
    costs = Uniform(1.0)
    return simulate(CaseInputs(programs, costs, costs, FREE, devices, replicas, 1, arrivals, 0, rules=rules or CloudRules()))


def _open(
    services: Callable[[np.random.Generator, int], np.ndarray], moments: Sequence[float], replicas: int = 1,
    rules: CloudRules | None = None,
) -> Replication:  # fmt: skip
    """Poisson requests, each one service. moments: expectations of the powers of a service, as control variates."""

    def replicate(seed: int, load: float, size: int) -> tuple[list[float], list[float]]:
        draws = stream(seed, "queueing.services")
        served = services(draws, size)
        gaps = stream(seed, "queueing.gaps").standard_exponential(size)
        requested_s = np.cumsum(gaps) / (load * replicas)
        result = run([session([s], [0.0]) for s in served.tolist()], requested_s, 8, replicas, rules)
        begin = int(WARM_UP * size)
        kept = result.columns["request"] >= begin
        values = [float(result.columns["cloud_queue_s"][kept].mean())]
        if rules is not None and rules.max_waiting is not None:
            values.append(1.0 - float(kept.sum()) / (size - begin))
        controls = [float(gaps.mean()) - 1.0]
        controls += [float(np.mean(served**power)) - moment for power, moment in enumerate(moments, start=1)]
        return values, controls

    return replicate


def _exponential(draws: np.random.Generator, size: int) -> np.ndarray:
    return draws.standard_exponential(size)


def _two_point(draws: np.random.Generator, size: int) -> np.ndarray:
    """0.5, or 5.5 once in ten: mean 1, second moment 3.25."""
    return np.where(draws.random(size) < 0.1, 5.5, 0.5)


def erlang_c(servers: int, load: float) -> float:
    """Probability of waiting in M/M/c at this load of each server."""
    offered = servers * load
    below = sum(offered**n / math.factorial(n) for n in range(servers))
    last = offered**servers / math.factorial(servers) / (1.0 - load)
    return last / (below + last)


def _mm1k(load: float) -> list[float]:
    weights = [load**n for n in range(CAPACITY + 1)]
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(n * share for n, share in enumerate(shares))
    return [mean / (load * (1.0 - shares[-1])) - 1.0, shares[-1]]


def _repair_shares(think: float) -> list[float]:
    """Probabilities of n machines at the repairer; repairs of mean 1, times between failures of mean `think`."""
    weights = [math.perm(MACHINES, n) / think**n for n in range(MACHINES + 1)]
    return [weight / sum(weights) for weight in weights]


def _think_at(load: float) -> float:
    return float(optimize.brentq(lambda think: 1.0 - _repair_shares(think)[0] - load, 1e-3, 1e4))


def _repair_theory(load: float) -> list[float]:
    think = _think_at(load)
    return [MACHINES / load - think - 1.0]  # by Little's law, throughput being the load


def _repair(seed: int, load: float, size: int) -> tuple[list[float], list[float]]:
    """Each machine is one long session: it computes (works), then waits for its call (the repair)."""
    think, cycles = _think_at(load), size // MACHINES
    draws = stream(seed, "queueing.repair").standard_exponential((2, MACHINES, cycles))
    programs = [session(draws[0, m].tolist(), (think * draws[1, m]).tolist()) for m in range(MACHINES)]
    result = run(programs, np.zeros(MACHINES), MACHINES)
    wait = float(result.columns["cloud_queue_s"].sum()) / (MACHINES * cycles)
    return [wait], [float(draws[0].mean()) - 1.0, float(draws[1].mean()) - 1.0]


def _tandem(seed: int, load: float, size: int) -> tuple[list[float], list[float]]:
    """One device, then the cloud: by Burke's theorem both are M/M/1."""
    device_s, cloud_s, gaps = (stream(seed, f"queueing.tandem.{name}").standard_exponential(size) for name in ("device", "cloud", "gaps"))
    programs = [session([c], [d]) for d, c in zip(device_s.tolist(), cloud_s.tolist(), strict=True)]
    columns = run(programs, np.cumsum(gaps) / load, 1).columns
    begin = int(WARM_UP * size)
    waits = [float(columns[name][begin:].mean()) for name in ("device_queue_s", "cloud_queue_s")]
    return waits, [float(draws.mean()) - 1.0 for draws in (device_s, cloud_s, gaps)]


def _pollaczek_khinchine(second_moment: float) -> Callable[[float], list[float]]:
    return lambda load: [load * second_moment / (2.0 * (1.0 - load))]


QUEUES: dict[str, Queue] = {
    "M/M/1": Queue(_open(_exponential, (1.0, 2.0)), _pollaczek_khinchine(2.0)),
    "M/M/4": Queue(
        _open(_exponential, (1.0, 2.0), SERVERS, CloudRules(max_sessions=1)),
        lambda load: [erlang_c(SERVERS, load) / (SERVERS * (1.0 - load))],
    ),
    "M/D/1": Queue(_open(lambda draws, size: np.ones(size), ()), _pollaczek_khinchine(1.0)),
    "M/G/1": Queue(_open(_two_point, (1.0,)), _pollaczek_khinchine(3.25)),
    "M/M/1/5": Queue(
        _open(_exponential, (1.0, 2.0), 1, CloudRules(max_sessions=1, max_waiting=CAPACITY - 1)), _mm1k, ("mean wait", "lost")
    ),
    "machine repair": Queue(_repair, _repair_theory),
    "tandem": Queue(_tandem, lambda load: [load / (1.0 - load)] * 2, ("mean wait, first", "mean wait, second")),
}  # fmt: skip


def estimate(values: np.ndarray, controls: np.ndarray, confidence: float = 0.99) -> tuple[float, float]:
    """Mean of values [R] and its half-width, the controls [R, q] of expectation 0 regressed out where there are any."""
    known = controls[:, np.ptp(controls, axis=0) > 0.0]
    design = np.column_stack([np.ones(len(values)), known])
    fit, *_ = np.linalg.lstsq(design, values, rcond=None)
    free = len(values) - design.shape[1]
    residual = values - design @ fit
    variance = float(residual @ residual) / free * float(np.linalg.inv(design.T @ design)[0, 0])
    return float(fit[0]), float(stats.t.ppf(0.5 + confidence / 2, free)) * math.sqrt(variance)


def check(name: str, load: float, replications: int, size: int, precision: float = 0.0, most: int = 0) -> list[Check]:
    """Compare a system with its formulas. precision: replicate on, up to `most`, until half-widths are this share of the formula."""
    queue = QUEUES[name]
    formulas = queue.theory(load)
    values: list[list[float]] = []
    controls: list[list[float]] = []
    while True:
        for _ in range(replications):
            value, control = queue.replicate(len(values), load, size)
            values.append(value)
            controls.append(control)
        found = [estimate(np.array(column), np.array(controls)) for column in zip(*values, strict=True)]
        if len(values) >= most or all(half <= precision * f for (_, half), f in zip(found, formulas, strict=True)):
            break
    return [
        Check(name, load, what, formula, mean, half, len(values))
        for what, formula, (mean, half) in zip(queue.what, formulas, found, strict=True)
    ]


@click.command()
@click.option("--size", default=40_000, show_default=True, help="Requests of a replication.")
@click.option("--replications", default=20, show_default=True, help="At least; more until the interval is within 0.6 %.")
@click.option("--most", default=200, show_default=True, help="Replications at most, at loads up to 0.8.")
@click.option("--only", default="", help="One system.")
@click.option("--json", "as_json", is_flag=True)
def main(size: int, replications: int, most: int, only: str, as_json: bool) -> None:
    checks = []
    for name in [only] if only else QUEUES:
        for load in UTILISATIONS:
            checks += check(name, load, replications, size, *((0.006, most) if load <= 0.8 else (0.0, replications * 2)))
            if not as_json:
                for one in (c for c in checks if (c.system, c.load) == (name, load)):
                    click.echo(f"{name:14s} load {load:.2f} {one.what:18s} formula {one.formula:8.4f} simulated {one.simulated:8.4f} "
                               f"+- {one.half_width:.4f} ({100 * one.error:+.2f} %, {'inside' if one.inside else 'OUTSIDE'}, "
                               f"{one.replications} replications of {size})")  # fmt: skip
    if as_json:
        click.echo(json.dumps([{**vars(one), "inside": one.inside, "error": one.error} for one in checks]))


if __name__ == "__main__":
    main()
