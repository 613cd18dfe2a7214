"""Comparison with queueing theory: mean waits of systems with a closed form, simulated with `simulate` like any case.

    python -m benchmarks.queueing

Every request is a session of one call, whose work takes a drawn time and is not batched. Links are infinitely fast, so only the queues
remain. A run starts empty, so its first requests are discarded: ten relaxation times of 1 / (1 - sqrt(load))^2 mean services each (M/M/1:
Cohen, The Single Server Queue, III.7), after which the start-up bias has fallen by a factor of e^-10. The rest is divided into `BATCHES`
batches of tens of relaxation times. The batch means of all runs, each with its own seed, give the mean and its 99 % interval (Student t).
The batch means of the drawn gaps and services, whose expectations are known, are control variates (Lavenberg and Welch, A perspective on
the use of control variables, Management Science 27, 1981). At loads up to 0.8, runs are added until the half-width of the interval is
within `PRECISION` of the formula.

Exponential services are drawn from `STRATA` conditional means of equally likely slices of the distribution: their mean is exact, their
second moment too small by one part in 100,000.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import click
import numpy as np
from scipy import optimize, stats

from benchmarks.calls import Uniform
from simulator.cloud.rules import CloudRules, CloudTier
from simulator.core.rng import stream
from simulator.engine.case import CaseInputs, CaseResult
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import ClosedLoop, Requests
from simulator.network.access import Network
from simulator.pricing.program import OTHER, SessionProgram

UTILISATIONS = (0.5, 0.8, 0.95)
BATCHES = 10  # per run
PRECISION = 0.008
STRATA = 1 << 16
CAPACITY = 5  # K of M/M/1/K
MACHINES = 10
SERVERS = 4
FREE = Network(math.inf, math.inf, 0.0, 0.0)

# A run maps (seed, load, requests to keep, batches) to the values to compare with theory and the control variates of expectation 0. Both
# have a row per batch.
Run = Callable[[int, float, int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Queue:
    """A system with closed forms.

    Attributes:
        run: Simulates the system.
        theory: Maps the load to the expectations of the quantities that a run measures.
        what: Names of these quantities.
    """

    run: Run
    theory: Callable[[float], list[float]]
    what: tuple[str, ...] = ("mean wait",)


@dataclass(frozen=True)
class Check:
    """One measured quantity and its formula, in units of the mean service time.

    Attributes:
        half_width: Half-width of the 99 % interval.
    """

    system: str
    load: float
    what: str
    formula: float
    simulated: float
    half_width: float
    requests: int

    @property
    def inside(self) -> bool:
        return abs(self.simulated - self.formula) <= self.half_width

    @property
    def error(self) -> float:
        return self.simulated / self.formula - 1.0


def session(services_s: Sequence[float], device_s: Sequence[float]) -> SessionProgram:
    """Return a session of sequential calls: the device computes, then the cloud works for a given time, unbatched."""
    steps = tuple((seconds, -1.0, call, call) for call, seconds in enumerate(device_s))
    calls = tuple(
        (0, (), ((0, 0, 0, 0, 0, seconds, OTHER, ()),), (0, call == 0)) for call, seconds in enumerate(services_s)
    )
    return SessionProgram(steps, calls, sum(device_s), 0.0, 0.0, 0, 0, 0, 0, math.nan)


def run(
    programs: Sequence[SessionProgram],
    requested_s: np.ndarray,
    prompt: np.ndarray,
    devices: int,
    replicas: int = 1,
    rules: CloudRules | None = None,
) -> CaseResult:
    """Simulate requests: request i replays program prompt[i] and comes from device i modulo `devices`."""
    arrivals = Requests(requested_s, np.arange(len(requested_s)) % devices, prompt)
    costs = Uniform(1.0)
    part, tier = FleetPart(devices, programs, costs, FREE), CloudTier(costs, replicas, 1, rules or CloudRules())
    return simulate(CaseInputs([part], [tier], arrivals, seed=0))


def warm_up(load: float, servers: int = 1) -> int:
    """Return the number of requests to discard at the start of a run."""
    return math.ceil(10.0 * servers / (1.0 - math.sqrt(load)) ** 2)


def batch_means(column: np.ndarray, batches: int) -> np.ndarray:
    return np.array([float(np.mean(batch)) for batch in np.array_split(column, batches)])


@cache
def service_times(name: str) -> tuple[np.ndarray, list[SessionProgram]]:
    """Return equally likely services of mean 1, and a session for each."""
    if name == "exponential":
        edges = -np.log1p(-np.arange(STRATA) / STRATA)
        above = (edges + 1.0) * np.exp(-edges)  # the mean beyond each edge times the probability of being beyond it
        services = STRATA * (above - np.append(above[1:], 0.0))
    else:
        services = np.array({"fixed": [1.0], "two points": [5.5] + [0.5] * 9}[name])  # second moment 3.25
    return services, [session([seconds], [0.0]) for seconds in services.tolist()]


def _open(services: str, replicas: int = 1, rules: CloudRules | None = None) -> Run:
    """Return a run of Poisson requests with one service each."""

    def run_open(seed: int, load: float, size: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
        left_out = warm_up(load, replicas)
        seconds, programs = service_times(services)
        prompt = stream(seed, "queueing.services").integers(len(seconds), size=left_out + size)
        gaps = stream(seed, "queueing.gaps").standard_exponential(left_out + size)
        columns = run(programs, np.cumsum(gaps) / (load * replicas), prompt, 8, replicas, rules).columns
        waits = np.full(left_out + size, np.nan)
        waits[columns["request"]] = columns["cloud_queue_s"]
        waits = waits[left_out:]
        values = [np.array([float(np.nanmean(batch)) for batch in np.array_split(waits, batches)])]
        if rules is not None and rules.max_waiting is not None:
            values.append(batch_means(np.isnan(waits), batches))
        controls = [batch_means(drawn[left_out:], batches) - 1.0 for drawn in (gaps, seconds[prompt])]
        return np.column_stack(values), np.column_stack(controls)

    return run_open


def erlang_c(servers: int, load: float) -> float:
    """Return the probability of waiting in M/M/c at this load per server."""
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
    """Return the probabilities of n machines at the repairer. Repairs have mean 1, times between failures mean `think`."""
    weights = [math.perm(MACHINES, n) / think**n for n in range(MACHINES + 1)]
    return [weight / sum(weights) for weight in weights]


def _think_at(load: float) -> float:
    return float(optimize.brentq(lambda think: 1.0 - _repair_shares(think)[0] - load, 1e-3, 1e4))


def _repair_theory(load: float) -> list[float]:
    think = _think_at(load)
    return [MACHINES / load - think - 1.0]  # Little's law; the throughput is the load


def _repair(seed: int, load: float, size: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a closed loop: each machine works (thinks), then requests its repair. More repairs are simulated than evaluated."""
    left_out = warm_up(load)
    seconds, programs = service_times("exponential")
    think = _think_at(load)
    asked = left_out + size + 10 * math.isqrt(left_out + size) + 100
    costs, loop = Uniform(1.0), ClosedLoop(seed, think, asked / load, len(programs))
    part, tier = FleetPart(MACHINES, programs, costs, FREE), CloudTier(costs, 1, 1)
    columns = simulate(CaseInputs([part], [tier], loop, seed=0)).columns
    kept = slice(left_out, left_out + size)
    if len(columns["request"]) < kept.stop:
        raise ValueError(f"{len(columns['request'])} repairs where {kept.stop} are needed")
    values = batch_means(columns["cloud_queue_s"][kept], batches)
    return values[:, None], batch_means(seconds[columns["prompt"][kept]] - 1.0, batches)[:, None]


def _tandem(seed: int, load: float, size: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate one device followed by the cloud: by Burke's theorem both are M/M/1."""
    left_out = 2 * warm_up(load)
    n = left_out + size
    drawn = [stream(seed, f"queueing.tandem.{name}").standard_exponential(n) for name in ("device", "cloud", "gaps")]
    device_s, cloud_s, gaps = drawn
    programs = [session([c], [d]) for d, c in zip(device_s.tolist(), cloud_s.tolist(), strict=True)]
    columns = run(programs, np.cumsum(gaps) / load, np.arange(n), 1).columns
    waits = [batch_means(columns[name][left_out:], batches) for name in ("device_queue_s", "cloud_queue_s")]
    return np.column_stack(waits), np.column_stack([batch_means(each[left_out:], batches) - 1.0 for each in drawn])


def _pollaczek_khinchine(second_moment: float) -> Callable[[float], list[float]]:
    return lambda load: [load * second_moment / (2.0 * (1.0 - load))]


QUEUES: dict[str, Queue] = {
    "M/M/1": Queue(_open("exponential"), _pollaczek_khinchine(2.0)),
    "M/M/4": Queue(
        _open("exponential", SERVERS, CloudRules(max_sessions=1)),
        lambda load: [erlang_c(SERVERS, load) / (SERVERS * (1.0 - load))],
    ),
    "M/D/1": Queue(_open("fixed"), _pollaczek_khinchine(1.0)),
    "M/G/1": Queue(_open("two points"), _pollaczek_khinchine(3.25)),
    "M/M/1/5": Queue(
        _open("exponential", 1, CloudRules(max_sessions=1, max_waiting=CAPACITY - 1)), _mm1k, ("mean wait", "lost")
    ),
    "machine repair": Queue(_repair, _repair_theory),
    "tandem": Queue(_tandem, lambda load: [load / (1.0 - load)] * 2, ("mean wait, first", "mean wait, second")),
}


def estimate(values: np.ndarray, controls: np.ndarray, confidence: float = 0.99) -> tuple[float, float]:
    """Return the mean of values [R] and its half-width, after regressing out the controls [R, q] of expectation 0 (q may be 0)."""
    known = controls[:, np.ptp(controls, axis=0) > 0.0]
    design = np.column_stack([np.ones(len(values)), known])
    fit, *_ = np.linalg.lstsq(design, values, rcond=None)
    free = len(values) - design.shape[1]
    residual = values - design @ fit
    variance = float(residual @ residual) / free * float(np.linalg.inv(design.T @ design)[0, 0])
    return float(fit[0]), float(stats.t.ppf(0.5 + confidence / 2, free)) * math.sqrt(variance)


def check(name: str, load: float, size: int, runs: int, most: int) -> list[Check]:
    """Compare a system with its formulas.

    Args:
        size: Requests per run.
        runs: Least number of runs.
        most: Largest number of runs; they are added until the half-widths are within `PRECISION`.
    """
    queue = QUEUES[name]
    formulas = queue.theory(load)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    while True:
        pieces.append(queue.run(len(pieces), load, size, BATCHES))
        if len(pieces) < runs:
            continue
        values, controls = (np.concatenate(each) for each in zip(*pieces, strict=True))
        found = [estimate(column, controls) for column in values.T]
        if len(pieces) >= most or all(half <= PRECISION * f for (_, half), f in zip(found, formulas, strict=True)):
            break
    return [
        Check(name, load, what, formula, mean, half, len(pieces) * size)
        for what, formula, (mean, half) in zip(queue.what, formulas, found, strict=True)
    ]


@click.command()
@click.option("--size", default=500_000, show_default=True, help="Requests of a run, those of its start left out.")
@click.option(
    "--runs", default=2, show_default=True, help="At least; at loads up to 0.8 more until the interval is narrow."
)
@click.option("--most", default=24, show_default=True, help="Runs at most.")
@click.option("--only", type=click.Choice(list(QUEUES)), help="One system.")
@click.option("--json", "as_json", is_flag=True)
def main(size: int, runs: int, most: int, only: str | None, as_json: bool) -> None:
    checks = []
    if not as_json:
        click.echo(
            f"{'system':14s} {'load':>5s} {'what':18s} {'formula':>9s} {'simulated':>9s}  {'99 % interval':19s} inside "
            f"{'error':>8s} {'requests':>10s}"
        )
    for name in [only] if only else QUEUES:
        for load in UTILISATIONS:
            found = check(name, load, size, *((runs, most) if load <= 0.8 else (2 * runs, 2 * runs)))
            checks += found
            for one in found if not as_json else ():
                interval = f"{one.simulated - one.half_width:.4f} .. {one.simulated + one.half_width:.4f}"
                click.echo(
                    f"{name:14s} {load:5.2f} {one.what:18s} {one.formula:9.4f} {one.simulated:9.4f}  {interval:19s} "
                    f"{'y' if one.inside else 'N':6s} {100 * one.error:+6.2f} % {one.requests:10,d}"
                )
    if as_json:
        click.echo(json.dumps([{**vars(one), "inside": one.inside, "error": one.error} for one in checks]))


if __name__ == "__main__":
    main()
