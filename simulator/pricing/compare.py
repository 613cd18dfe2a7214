"""Comparison of rooflines with measured times, and rooflines fitted to them."""

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

TOGETHER = ("device", "cloud")  # roles whose passes give the figures of the hardware as a whole
PHASES = ("prefill", "decode", "more tokens", "verify")
# Bounds of the fitted figures: bytes per second, operations per second, seconds per kernel. `OwnHardware` accepts all values within them.
LEAST, MOST = (1e-3, 1e-3, 1e-20), (1e15, 1e18, 1.0)
STARTS = (1e9, 1e10, 1e11, 1e12)  # starting points of a fit: bytes per second; ten times as many operations per second


@dataclass(frozen=True)
class RooflineCell:
    """One measured pass and its roofline.

    Attributes:
        role: Role of the model.
        phase: One of `PHASES`. prefill: several tokens into an empty cache. decode: one token. more tokens: several tokens after cached
            ones. verify: a draft tree or whole scales, with logits at every position.
        rows: Rows of the pass.
        new_tokens: New positions per row.
        kv_tokens: Cached positions per row before the pass.
        measured_s: Measured seconds.
        roofline_s: Seconds by the roofline.
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
        """Roofline time over measured time; below 1 the roofline is too optimistic."""
        return self.roofline_s / self.measured_s

    @property
    def error(self) -> float:
        """Absolute error of the roofline, as a share of the measured time."""
        return abs(self.ratio - 1.0)


@dataclass(frozen=True)
class FittedRoofline:
    """The roofline nearest to a profile: three fitted figures (bandwidth, peak rate, kernel overhead), and a runtime.

    Attributes:
        hardware: Figures fitted to the passes of the cloud's and the device's model together, for models of other sizes.
        by_role: Figures fitted to the passes of each model alone. They differ, because the weights of a small model may stay in caches.
        runtime: A name of the catalogue, the same for all.
    """

    hardware: Hardware
    by_role: Mapping[str, Hardware]
    runtime: str


def role_shapes(cloud: ModelShape, device: ModelShape, drafter_ffn: int | None = None) -> dict[str, ModelShape]:
    """Return the shapes of all models of a profile by role. drafter_ffn: `ffn_hidden` of `catalogue.drafter_of`."""
    drafters = {} if cloud.by_scales else {"drafter": False, "cloud_drafter": True}
    shapes = {role: catalogue.drafter_of(cloud, drafter_ffn, all_rows) for role, all_rows in drafters.items()}
    return {"device": device, "cloud": cloud, **shapes}


def compare_with_roofline(
    profile: Profile,
    shapes: Mapping[str, ModelShape],
    machine: Hardware | Mapping[str, Hardware],
    runtime: str = "cuda-graphs",
) -> list[RooflineCell]:
    """Return every pass of a profile with the roofline of the same pass.

    Args:
        profile: Measured times.
        shapes: Shapes of its models, by role.
        machine: Hardware of the roofline, or that of each role.
        runtime: Runtime of the roofline, a name of the catalogue.
    """
    cells = []
    for role, phase, at, work, seconds in _passes(profile, shapes):
        own = machine if isinstance(machine, Hardware) else machine[role]
        costs = RooflineCosts(shapes[role], {}, own, catalogue.runtime(runtime))
        cells.append(RooflineCell(role, phase, *at, seconds, costs.pass_seconds(work)))
    return cells


def fit_roofline(profile: Profile, shapes: Mapping[str, ModelShape]) -> FittedRoofline:
    """Fit a roofline to a profile, with memory and arithmetic in parallel (cuda-graphs) or one after the other (serial).

    Minimises the error of each phase, the mean plus the median of |log(roofline / measured)| over its passes, squared and summed over
    phases: a phase with few passes counts as much as one with many, and a few passes that run at another speed, such as those of one
    position whose weights stay in a cache, do not draw the others along. By the Nelder-Mead simplex from several starting points. The
    fitted figures are the ones reached, so efficiencies are 1. Rooflines count 2 bytes per value; for weights of 4 bytes the fitted
    bandwidth is half the true one.
    """
    phases: dict[tuple[str, str], list[tuple[Work, float]]] = {}
    for role, phase, _, work, seconds in _passes(profile, shapes):
        phases.setdefault((role, phase), []).append((work, seconds))
    groups = {role: (role,) for role in shapes if role in profile.passes}
    fits = {}
    for name in ("cuda-graphs", "serial"):
        runtime = catalogue.runtime(name)
        alone = {role: _fit(profile.hardware, phases, shapes, roles, runtime) for role, roles in groups.items()}
        fits[name] = sum(loss for loss, _ in alone.values()), {role: machine for role, (_, machine) in alone.items()}
    best = min(fits, key=lambda name: fits[name][0])
    _, together = _fit(profile.hardware, phases, shapes, TOGETHER, catalogue.runtime(best))
    return FittedRoofline(together, fits[best][1], best)


def _fit(
    title: str,
    phases: Mapping[tuple[str, str], Sequence[tuple[Work, float]]],
    shapes: Mapping[str, ModelShape],
    roles: Sequence[str],
    runtime: Runtime,
) -> tuple[float, Hardware]:
    """Return the least loss of a roofline over the phases of some roles, and the hardware that reaches it.

    phases: Work and seconds of every pass, by (role, phase).
    """
    from scipy.optimize import minimize

    own = {key: passes for key, passes in phases.items() if key[0] in roles}
    least = min(seconds for passes in own.values() for _, seconds in passes)

    def loss(logs: Sequence[float]) -> float:
        machine, total = _machine(title, logs), 0.0
        costs = {role: RooflineCosts(shapes[role], {}, machine, runtime) for role, _ in own}
        for (role, _), passes in own.items():
            errors = [abs(math.log(costs[role].pass_seconds(work) / seconds)) for work, seconds in passes]
            total += (statistics.fmean(errors) + statistics.median(errors)) ** 2
        return total

    found: list[tuple[float, Sequence[float]]] = []
    for rate in STARTS:
        guess = [math.log(x) for x in (rate, 10 * rate, least / runtime.kernels_per_layer)]
        reached = minimize(loss, guess, method="Nelder-Mead", options={"maxiter": 600})
        found.append((float(reached.fun), reached.x))
    smallest, logs = min(found, key=lambda one: one[0])
    return smallest, _machine(title, logs)


def _machine(title: str, logs: Sequence[float]) -> Hardware:
    """Return hardware with fitted figures. logs: logarithms of bytes per second, operations per second, and seconds per kernel."""
    # If kernel launches alone explain the times, the rates are undetermined and the simplex diverges in them.
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
    """Return the median error of the roofline by (role, phase), for the phases that were measured."""
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in sorted(cells, key=lambda one: (one.role, PHASES.index(one.phase))):
        groups.setdefault((cell.role, cell.phase), []).append(cell.error)
    return {key: statistics.median(errors) for key, errors in groups.items()}


_Pass = tuple[str, str, tuple[int, int, int], Work, float]


def _passes(profile: Profile, shapes: Mapping[str, ModelShape]) -> Iterator[_Pass]:
    """Yield role, phase, (rows, new, cached), work and seconds of every measured pass.

    The work is that of the timed pass: several rows are pairs of a conditional and an unconditional one, which are guided before the head
    (of VAR after it), so the head is applied once per pair. A scenario's rooflines count both rows, as in LlamaGen's own code.
    """
    for tables, read in ((profile.passes, _last), (profile.verify, _all)):
        for role, table in tables.items():
            for at, seconds in _cells(table):
                rows, new, kv = at
                phase = "verify" if read is _all else "decode" if new == 1 else "prefill" if kv == 0 else "more tokens"
                heads = rows if shapes[role].by_scales else max(rows // 2, 1)
                work = Work.of_pass(rows, new, kv)._replace(logits=heads * read(new))
                yield role, phase, at, work, seconds


def _last(new: int) -> int:
    return 1


def _all(new: int) -> int:
    return new


def _cells(table: PassTable) -> Iterator[tuple[tuple[int, int, int], float]]:
    for i, j, k in itertools.product(*(range(len(axis)) for axis in (table.rows, table.new_tokens, table.kv_tokens))):
        yield (table.rows[i], table.new_tokens[j], table.kv_tokens[k]), table.seconds[i][j][k]
