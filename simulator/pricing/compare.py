"""Rooflines compared with measured times, and fitted to them."""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulator.pricing import catalogue
from simulator.pricing.catalogue import Hardware, ModelShape, Runtime
from simulator.pricing.costs import Work
from simulator.pricing.profile import PassTable, Profile
from simulator.pricing.roofline import RooflineCosts

PHASES = ("prefill", "decode", "more tokens", "verify")
# The figures of a fit at least and at most: bytes per second, operations per second, and seconds of a kernel. `OwnHardware` takes these.
LEAST, MOST = (1e-3, 1e-3, 1e-20), (1e15, 1e18, 1.0)
STARTS = (1e9, 1e10, 1e11, 1e12)  # bytes and operations per second from which a fit starts


@dataclass(frozen=True)
class RooflineCell:
    """One measured pass and its roofline.

    Attributes:
        role: Of the model.
        phase: Of `PHASES`: into an empty cache, one token, more than one, or a tree of drafts, every position read out.
        rows: Sequences.
        new_tokens: New positions of a row.
        kv_tokens: Positions of a row cached before.
        measured_s: Measured seconds.
        roofline_s: Those of the roofline.
    """

    role: str
    phase: str
    rows: int
    new_tokens: int
    kv_tokens: int
    measured_s: float
    roofline_s: float

    @property
    def ratio(self) -> float:
        """Roofline over measured time: 1 is exact, below 1 the roofline is too optimistic."""
        return self.roofline_s / self.measured_s

    @property
    def error(self) -> float:
        """How far the roofline is off, as a share of the measured time."""
        return abs(self.ratio - 1.0)


@dataclass(frozen=True)
class FittedRoofline:
    """A roofline nearest to a profile: hardware by three fitted figures (bandwidth, rate, launch of a kernel), and the runtime."""

    hardware: Hardware
    runtime: str


def compare_with_roofline(
    profile: Profile, shapes: Mapping[str, ModelShape], machine: Hardware, runtime: str = "cuda-graphs"
) -> list[RooflineCell]:
    """Every pass of a profile with the roofline of the same pass.

    Args:
        profile: Measured times.
        shapes: Of its models, by role.
        machine: Whose figures make the roofline.
        runtime: How launches, memory and arithmetic add up: a name of the catalogue.
    """
    cells = []
    for role, phase, at, work, seconds in _passes(profile):
        costs = RooflineCosts(shapes[role], {}, machine, catalogue.runtime(runtime))
        cells.append(RooflineCell(role, phase, *at, seconds, costs.pass_seconds(work)))
    return cells


def fit_roofline(profile: Profile, shapes: Mapping[str, ModelShape]) -> FittedRoofline:
    """The roofline that is nearest to a profile: memory and arithmetic alongside (cuda-graphs) or one after the other (serial).

    Least sum of |log(roofline / measured)| over all passes, by Nelder and Mead's simplex from several starts. Efficiencies are 1:
    the figures are what is reached. The catalogue counts values of 2 bytes; where weights have 4, the bandwidth stands at half.
    """
    from scipy.optimize import minimize

    passes = [(shapes[role], work, seconds) for role, _, _, work, seconds in _passes(profile)]
    least = min(seconds for _, _, seconds in passes)
    found: list[tuple[float, str, Sequence[float]]] = []
    for runtime in ("cuda-graphs", "serial"):
        start = catalogue.runtime(runtime)

        def loss(logs: Sequence[float], start: Runtime = start) -> float:
            machine = _machine(profile.hardware, logs)
            costs = {id(shape): RooflineCosts(shape, {}, machine, start) for shape in shapes.values()}
            return sum(abs(math.log(costs[id(shape)].pass_seconds(work) / seconds)) for shape, work, seconds in passes)

        for rate in STARTS:
            guess = [math.log(x) for x in (rate, 10 * rate, least / start.kernels_per_layer)]
            best = minimize(loss, guess, method="Nelder-Mead", options={"maxiter": 600})
            found.append((float(best.fun), runtime, best.x))
    _, runtime, logs = min(found, key=lambda one: one[0])
    return FittedRoofline(_machine(profile.hardware, logs), runtime)


def _machine(title: str, logs: Sequence[float]) -> Hardware:
    """logs: of bytes per second, operations per second, and seconds of a kernel."""
    # Where passes are launches alone, nothing holds the rates, and the simplex walks away with them.
    bytes_per_s, flop_per_s, kernel_s = (
        math.exp(min(max(float(value), math.log(least)), math.log(most)))
        for value, least, most in zip(logs, LEAST, MOST, strict=True)
    )
    return catalogue.measured_hardware(
        title,
        flop_per_s,
        bytes_per_s,
        kernel_s,
        source="fitted to a measured profile",
        efficiency_source="fitted figures are what is reached",
    )


def errors_by_phase(cells: Sequence[RooflineCell]) -> dict[tuple[str, str], float]:
    """Median error of the roofline by model and phase, those that were measured."""
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in sorted(cells, key=lambda one: (one.role, PHASES.index(one.phase))):
        groups.setdefault((cell.role, cell.phase), []).append(cell.error)
    return {key: statistics.median(errors) for key, errors in groups.items()}


_Pass = tuple[str, str, tuple[int, int, int], Work, float]


def _passes(profile: Profile) -> Iterator[_Pass]:
    """Role, phase, (rows, new, cached), work and seconds of every measured pass."""
    for tables, read in ((profile.passes, _last), (profile.verify, _all)):
        for role, table in tables.items():
            for at, seconds in _cells(table):
                rows, new, kv = at
                phase = "verify" if read is _all else "decode" if new == 1 else "prefill" if kv == 0 else "more tokens"
                yield role, phase, at, Work.of_pass(rows, new, kv, read(new)), seconds


def _last(new: int) -> int:
    return 1


def _all(new: int) -> int:
    return new


def _cells(table: PassTable) -> Iterator[tuple[tuple[int, int, int], float]]:
    for i, j, k in itertools.product(*(range(len(axis)) for axis in (table.rows, table.new_tokens, table.kv_tokens))):
        yield (table.rows[i], table.new_tokens[j], table.kv_tokens[k]), table.seconds[i][j][k]
