"""One run from a scenario to its folder: recordings, compute times, a simulation per case, tables and plots.

No models here: recordings come from a `RecordingSource`, captions and measured profiles from callables; `simulator/cli.py` composes.
"""

import math
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from simulator import catalogue
from simulator.cloud import Autoscale, Background, CloudRules, Crash
from simulator.compute import MeasuredCosts, Profile, build_costs, pair_shapes
from simulator.costs import Costs
from simulator.engine import CaseInputs, CaseResult, simulate
from simulator.errors import ComputeError, PromptError, ScenarioError, about
from simulator.fallback import broken_off, images_of, same_until
from simulator.heat import Throttling
from simulator.link import Capacity, Steps
from simulator.methods import METHODS
from simulator.network import Network
from simulator.pairs import PairManifest, pair_folder, pair_manifest
from simulator.plan import Plan, conditions_of, with_calibrated
from simulator.radio import RadioFigures
from simulator.recording import FROM_DEVICE, SCORES, Recording, RecordingSource, SessionSpec, torch_version
from simulator.replay import SessionProgram, compile_colocated, compile_session
from simulator.results import Case as CaseRecords
from simulator.results import OfSet, Picture, Span, check_run_folder, write_run
from simulator.scenario import Case, Compute, FleetWorkload, LinkFigures, Scenario, expand, resolved_yaml
from simulator.schema.network import link_trace
from simulator.schema.workload import BurstyArrivals, ClosedArrivals, FleetKind, PoissonArrivals, TraceArrivals
from simulator.session import FleetPart
from simulator.traces.generate import KINDS
from simulator.traces.generate import generate as generated_trace
from simulator.traces.series import RateSeries, StepSeries
from simulator.traces.trace import Direction, Trace
from simulator.transport import TRANSPORTS
from simulator.workload import (
    Arrivals,
    ClosedLoop,
    bursty_arrivals,
    device_counts,
    poisson_arrivals,
    read_times,
    single_arrival,
    timed_arrivals,
)

PICTURED_PROMPTS = 4  # prompts whose images are kept in the run folder
QUEUE_SAMPLES = 240  # looks at the cloud per duration_s of a fleet
TIMELINE_SESSIONS = 2  # requests per case whose spans are kept

NOTES = (
    "Presets have constant rates; their jitter and loss are chance alone. A loss delays a message but does not shrink the window of the "
    "transport, and acknowledgements take no wire time.",
    "bytes_up and bytes_down are message payloads; what a transport adds is on the wire and in the latency, not in these columns.",
    "device_energy_j holds the radio where the network has one (mobile and Wi-Fi presets); elsewhere it is computing only.",
    "Cloud memory for KV caches is not limited where cloud.kv_memory_gb is not given; a drafter's cache in the cloud is not counted.",
    "With placement: cloud, passes of the device's model are not batched over sessions.",
    "After the crash of a replica the connection breaks at once, and devices learn of it one message later.",
    "device_energy_j of a throttled device is that of the same work at full speed.",
)


class Judge(Protocol):
    """What looks at pictures. No models here: it is handed in."""

    def __call__(self, recordings: Sequence[Recording], captions: Sequence[str]) -> tuple[Mapping[str, np.ndarray], OfSet]:
        """Quality columns with an entry per picture, and the quality of the set of pictures at given indices."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What its numbers rest on."""
        ...


class Progress(Protocol):
    """What a run tells about its way: the total of a stage, then how much of it is done."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its folder and the summary that stands in it."""

    folder: Path
    summary: pd.DataFrame
    events: int


def run_scenario(
    scenario: Scenario,
    folder: Path,
    source: RecordingSource,
    scenes: Callable[[int, int], list[str]],
    profile: Callable[[], Profile],
    draw: Callable[[Path], object] | None = None,
    progress: Progress = lambda stage, done, total: None,
    jobs: int = 1,
    judge: Judge | None = None,
) -> Outcome:
    """Run every case of a scenario and write its run folder.

    scenes: captions of the scene grammar by (seed, count). profile: measured compute times of this machine, asked for only where the
    scenario wants them. draw: adds plots and report to the folder. jobs: processes that simulate cases; it changes no result.
    judge: looks at the pictures; without one the quality columns that need it are NaN.
    Raises a CiarSimError: nothing is left half-written.
    """
    check_run_folder(folder)
    manifest = pair_manifest(scenario.pair)
    cases = expand(scenario)
    for case in cases:
        with about("methods", case.position):
            case.method.at_threshold(0.0).settings.check(case.scenario.decoding, manifest)
    _check_fallback(cases)
    costs = _CostTable(manifest, cases, profile)  # before the recordings: an impossible choice is refused at once
    cases, calibrated = with_calibrated(cases, manifest, scenes, source)
    plan = Plan(cases, manifest, scenes)
    with about("prompts", kind=PromptError):
        recordings = dict(zip(plan.specs, source.recordings(list(plan.specs.values())), strict=True))
    results, branches = _simulated(cases, costs, plan, recordings, source, progress, jobs)
    extrapolated = {key for case, result in zip(cases, results, strict=True) if result.extrapolated for key in costs.keys(case)}
    prompts = plan.captions
    records = []
    for case, result in zip(cases, results, strict=True):
        mine = [recordings[key] for key in plan.of_case[case.index]]
        images = images_of(result.columns["prompt"], result.columns["given_up"], mine, branches[case.index])
        reference = [recordings[plan.reference[case.index][prompt]] for prompt in images.prompts]
        captions = [plan.captions[case.index][prompt] for prompt in images.prompts]
        judged, of_set = judge(images.recordings, captions) if judge else ({}, lambda images: {})
        price = case.scenario.cloud.price_usd_per_gpu_hour
        workload = case.scenario.workload
        fleet = workload if isinstance(workload, FleetWorkload) else None
        records.append(
            CaseRecords(
                method=case.method.label, name=case.method.name, swept=case.swept, columns={**result.columns, **images.columns()},
                quality={**quality_columns(images.recordings, reference), **judged}, of_set=of_set,
                sequential=fleet is None, replicas=_replicas(case.scenario, result), gpu_usd_per_hour=math.nan if price is None else price,
                refused=result.refused, unfinished=result.unfinished,
                warmup_s=fleet.warmup_s if fleet else 0.0, duration_s=fleet.duration_s if fleet else math.nan,
                slo_s=fleet.slo_s if fleet and fleet.slo_s is not None else math.nan, samples=result.samples,
            )
        )  # fmt: skip
    spans = [
        Span(f"{case.method.label} {conditions_of(case)}".strip(), *span)
        for case, result in zip(cases, results, strict=True)
        for span in result.spans
    ]
    progress("writing", 0, 1)
    summary = write_run(
        folder,
        scenario_yaml=resolved_yaml(scenario),
        cases=records,
        provenance={
            **_provenance(scenario, manifest, costs, extrapolated, cases, prompts, calibrated),
            **({"quality": dict(judge.provenance)} if judge else {}),
            "warnings": [
                *(f"compute times lay outside what was measured, and are extrapolated: {key}" for key in costs.beyond(extrapolated)),
                *(text for case, result in zip(cases, results, strict=True) for text in _warnings(case, result)),
                *_parted(cases, plan, recordings, branches),
            ],
        },
        spans=spans,
        pictures=_pictures(cases, plan, recordings, manifest.grid),
        draw=draw,
    )
    progress("writing", 1, 1)
    return Outcome(folder, summary, sum(result.events for result in results))


Branches = dict[tuple[int, int], Recording]  # by prompt and the call whose reply was given up


def _simulated(
    cases: Sequence[Case], costs: "_CostTable", plan: Plan, recordings: Mapping[str, Recording], source: RecordingSource,
    progress: Progress, jobs: int,
) -> tuple[list["SimulatedCase"], dict[int, Branches]]:
    """Every case simulated, and by case what was recorded of sessions that gave a reply up.

    Only the simulation tells which reply is late, and only a recording what follows: so a case is simulated again with what it missed
    until it misses nothing.
    """
    results: dict[int, SimulatedCase] = {}
    branches: dict[int, Branches] = {case.index: {} for case in cases}
    while left := [case for case in cases if case.index not in results]:
        work = []
        for case in left:
            parts, cloud, kv_tokens = costs.programs(case, [recordings[key] for key in plan.of_case[case.index]], branches[case.index])
            work.append(delayed(simulate_case)(case.scenario, parts, cloud, kv_tokens))
        missing: list[tuple[int, tuple[int, int], SessionSpec]] = []
        for case, result in zip(left, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True):
            if not result.missing:
                results[case.index] = result
            for prompt, call in result.missing:
                spec = replace(plan.specs[plan.of_case[case.index][prompt]], outcomes=(call,))
                missing.append((case.index, (prompt, call), spec))
            progress("simulating", len(results), len(cases))
        for (index, place, _), recording in zip(missing, source.recordings([spec for _, _, spec in missing]), strict=True):
            branches[index][place] = recording
    return [results[case.index] for case in cases], branches


def _check_fallback(cases: Sequence[Case]) -> None:
    """Raises ScenarioError where nobody could follow the policy."""
    bound = [case for case in cases if case.scenario.fallback.policy != "wait"]
    if bound and not any(case.method.at_threshold(0.0).settings.can_fall_back(case.scenario.decoding) for case in bound):
        able = [name for name, settings in METHODS.items() if settings().can_fall_back(bound[0].scenario.decoding)]
        with about("fallback", "policy"):
            raise ScenarioError(
                f"fallback.policy {bound[0].scenario.fallback.policy}: no method of the scenario can do without a reply of the cloud; "
                f"of all methods these can: {', '.join(able)}; and code with decoding.text_encoder: device"
            )


def _parted(
    cases: Sequence[Case], plan: Plan, recordings: Mapping[str, Recording], branches: Mapping[int, Branches]
) -> list[str]:
    """What a reader must know of branches: that some are not, to the last bit, what they branch from."""
    found = []
    for case in cases:
        keys, mine = plan.of_case[case.index], branches[case.index]
        parted = sum(not same_until(recordings[keys[prompt]], branch, call) for (prompt, call), branch in mine.items())
        if parted:
            who = f"{case.method.label} {conditions_of(case)}".strip()
            found.append(
                f"{who}: {parted} of {len(mine)} sessions that gave a reply up had left the way of the unbroken session before, by "
                "floating point in another batch; their images are those of sessions of their own"
            )
    return found


class _CostTable:
    """Compute times by the `compute` part of a case, one for each kind of its devices, and programs compiled with them, each made once."""

    def __init__(self, manifest: PairManifest, cases: Sequence[Case], profile: Callable[[], Profile]) -> None:
        self.shapes = pair_shapes(pair_folder(cases[0].scenario.pair), manifest)
        self.choices = {self._key(choice): choice for case in cases for choice in _computes(case.scenario)}
        beside = [_beside(choice) for case in cases if case.scenario.placement == "cloud" for choice in _computes(case.scenario)]
        built = self.choices | {self._key(choice): choice for choice in beside}
        self.costs = {key: build_costs(choice, self.shapes, profile) for key, choice in built.items()}
        for side in (side for device, cloud, _ in self.costs.values() for side in (device, cloud)):
            if isinstance(side, MeasuredCosts) and side.profile.weights not in ("", manifest.weights_hash):
                with about("compute"):
                    raise ComputeError(
                        f"a profile of the pair {side.profile.model} says nothing about {manifest.name}, whose weights are others; "
                        f"measure one with ciar-sim profile --pair {cases[0].scenario.pair}"
                    )
        self._programs: dict[tuple[str, str, int], SessionProgram] = {}

    @staticmethod
    def _key(choice: Compute) -> str:
        """In words what is priced as what, which also names its entry in provenance.json."""
        sides = (f"{side.model} on {side.hardware}{''.join(f', {more}' for more in (side.runtime, side.profile) if more)}"
                 for side in (choice.device, choice.cloud))  # fmt: skip
        return "device {}; cloud {}".format(*sides)

    def beyond(self, in_cloud: set[str]) -> list[str]:
        """Choices with a time outside what was measured; in_cloud: those of a cloud, which other processes may have met."""
        return sorted(in_cloud | {key for key, sides in self.costs.items() if sides[0].extrapolated or sides[1].extrapolated})

    def keys(self, case: Case) -> list[str]:
        return [self._key(choice) for choice in _computes(case.scenario)]

    def programs(self, case: Case, recordings: Sequence[Recording], branches: Branches) -> tuple[list[FleetPart], Costs, float]:
        """The kinds of devices of a case, the cloud's costs, and how many cached positions fit a replica. recordings: of each prompt.

        Raises ScenarioError where these are fewer than one session needs.
        """
        workload = case.scenario.workload
        kinds = _kinds(case.scenario)
        counts = device_counts([kind.share if kind else 1.0 for kind in kinds], workload.devices)
        common_slo_s = workload.slo_s if isinstance(workload, FleetWorkload) else None
        parts = []
        for kind, count, key, link in zip(kinds, counts, self.keys(case), _links(case.scenario), strict=True):
            slo_s = kind.slo_s if kind and kind.slo_s is not None else common_slo_s
            programs = [self._compiled(key, case.scenario.placement, recording) for recording in recordings]
            broken = {
                (prompt, call): broken_off(programs[prompt], self._compiled(key, case.scenario.placement, branch), call)
                for (prompt, call), branch in branches.items()
            }
            parts.append(
                FleetPart(
                    devices=count,
                    programs=programs,
                    device=self.costs[key][0],
                    network=network_of(link, case.scenario.seed),
                    priority=kind.priority if kind else 0,
                    slo_s=math.inf if slo_s is None else slo_s,
                    throttling=_throttling(case.scenario.compute),
                    broken_off=broken,
                )
            )
        _, cloud, _ = self.costs[self.keys(case)[0]]
        return parts, cloud, self._kv_tokens(case, max(program.kv_tokens for part in parts for program in part.programs))

    def _compiled(self, key: str, placement: str, recording: Recording) -> SessionProgram:
        name = (key, placement, id(recording))
        if name not in self._programs:
            device, cloud, pricing = self.costs[key]
            if placement == "cloud":
                companion = self.costs[self._key(_beside(self.choices[key]))][0]
                self._programs[name] = compile_colocated(recording, device, companion, cloud, pricing)
            else:
                self._programs[name] = compile_session(recording, device, cloud, pricing)
        return self._programs[name]

    def _kv_tokens(self, case: Case, needed: int) -> float:
        memory_gb, side = case.scenario.cloud.kv_memory_gb, case.scenario.compute.cloud
        if memory_gb is None:
            return math.inf
        shape = self.shapes.cloud if side.model == "pair" else catalogue.model(side.model)
        position_bytes = shape.kv_bytes_per_position * (2 if side.hardware == "local" else 1)  # measured passes keep float32
        if needed * position_bytes > memory_gb * 1e9:
            with about("cloud", "kv_memory_gb"):
                raise ScenarioError(
                    f"cloud.kv_memory_gb must be >= {math.ceil(needed * position_bytes / 1e6) / 1e3:g}, what one session of "
                    f"{case.method.label} needs at {side.model}'s shape, got {memory_gb:g}"
                )
        return memory_gb * 1e9 / position_bytes


def _kinds(scenario: Scenario) -> Sequence[FleetKind | None]:
    """The kinds of the fleet's devices; None for the one kind that is as the scenario says."""
    return (scenario.workload.fleet if isinstance(scenario.workload, FleetWorkload) else ()) or (None,)


def _computes(scenario: Scenario) -> list[Compute]:
    """`compute` as each kind of the fleet's devices has it."""
    own = scenario.compute

    def of(kind: FleetKind | None) -> Compute:
        if kind is None or kind.hardware is None:
            return own
        side = own.device.model_copy(update={"hardware": kind.hardware, "runtime": own.device.runtime or "eager", "profile": None})
        return own.model_copy(update={"device": side})

    return [of(kind) for kind in _kinds(scenario)]


def _throttling(choice: Compute) -> Throttling | None:
    given = choice.device.throttling
    return None if given is None else Throttling([(step.after_s, step.speed) for step in given.steps], given.cooling)


def _beside(choice: Compute) -> Compute:
    """The device's model on the cloud's hardware."""
    cloud = choice.cloud
    side = choice.device.model_copy(update={"hardware": cloud.hardware, "runtime": cloud.runtime, "profile": cloud.profile})
    return choice.model_copy(update={"device": side})


def _links(scenario: Scenario) -> list[LinkFigures]:
    """The link of each kind of the fleet's devices."""
    return [kind.network.figures() if kind and kind.network else scenario.link for kind in _kinds(scenario)]


def _replicas(scenario: Scenario, result: CaseResult) -> float:
    """Of the cloud, on average."""
    changing = scenario.cloud.autoscale is not None or scenario.cloud.crashes
    return result.mean_replicas if changing and not math.isnan(result.mean_replicas) else float(scenario.cloud.replicas)


@dataclass(frozen=True)
class SimulatedCase(CaseResult):
    """A case's result. extrapolated: whether a cloud time lay outside what was measured; the costs may live in another process."""

    extrapolated: bool = False


def simulate_case(scenario: Scenario, parts: Sequence[FleetPart], cloud: Costs, kv_tokens: float) -> SimulatedCase:
    """Simulate one case: the scenario's fleet, links and cloud, each request replaying one of its part's programs (one per prompt)."""
    workload, prompts = scenario.workload, len(parts[0].programs)
    inputs = CaseInputs(
        programs=parts[0].programs, device=parts[0].device, cloud=cloud, network=parts[0].network, devices=workload.devices,
        replicas=scenario.cloud.replicas, max_batch=scenario.cloud.max_batch, arrivals=single_arrival(), seed=scenario.seed,
        timeline_sessions=TIMELINE_SESSIONS, rules=_rules(scenario, kv_tokens), fleet=parts, fallback=scenario.fallback.rule(),
    )  # fmt: skip

    def done(result: CaseResult) -> SimulatedCase:
        return SimulatedCase(**vars(result), extrapolated=cloud.extrapolated)

    if isinstance(workload, FleetWorkload):
        arrivals = _arrivals(scenario.seed, workload, prompts)
        every_s = workload.duration_s / QUEUE_SAMPLES
        of_fleet = replace(inputs, arrivals=arrivals, until_s=2.0 * workload.duration_s, sample_every_s=every_s, warmup_s=workload.warmup_s)
        return done(simulate(of_fleet))
    # Sequential: every prompt once, far enough apart that no request meets the one before.
    spacing_s = 64.0
    while True:
        arrivals = Arrivals(np.arange(prompts) * spacing_s, np.zeros(prompts, np.int64), np.arange(prompts))
        result = simulate(replace(inputs, arrivals=arrivals))
        if result.columns["latency_s"].max() < spacing_s:
            return done(result)
        spacing_s *= 4


GENERATED_S = 6 * 3600.0  # of the generated trace that a preset follows, every device from a place of its own


def network_of(link: LinkFigures, seed: int) -> Network:
    """The network as the engine takes it. seed: of what is generated."""
    radio = None
    if link.radio is not None:
        r = catalogue.radio(link.radio)
        radio = RadioFigures(
            promotion_s=r.promotion_ms * 1e-3, fach_promotion_s=r.fach_promotion_ms * 1e-3, inactivity_s=r.inactivity_s,
            drx_after_s=math.inf if r.drx_after_ms is None else r.drx_after_ms * 1e-3, drx_cycle_s=r.drx_cycle_ms * 1e-3,
            paging_cycle_s=r.paging_cycle_ms * 1e-3, grant_bytes=math.inf if r.grant_bytes is None else r.grant_bytes,
            grant_s=r.grant_ms * 1e-3, promotion_w=r.promotion_mw * 1e-3, active_w=r.active_mw * 1e-3, drx_w=r.drx_mw * 1e-3,
            up_j_per_byte=8e-9 * r.up_nj_per_bit, down_j_per_byte=8e-9 * r.down_nj_per_bit,
        )  # fmt: skip

    trace, own_rtt_s = Trace("", Direction(), Direction()), 0.0
    if link.trace is not None:
        trace = link_trace(link.trace)
    elif link.generated is not None:
        trace, leo = generated_trace(link.generated, seed, GENERATED_S), KINDS[link.generated].leo
        own_rtt_s = 0.0 if leo is None else 1e-3 * leo.rtt_ms

    def rate(bps: float | None, told: RateSeries | None) -> float | Capacity:
        if bps is None:
            assert told is not None, "a link with neither rate nor trace"
            return Capacity(told.times_s, told.rate_bps, told.duration_s)
        if link.outage_every_s is None or not link.outage_s:
            return bps
        return Capacity.with_outages(bps, link.outage_every_s, link.outage_s)

    def steps(constant: float | None, told: StepSeries | None) -> float | Steps:
        if constant is not None or told is None:
            return constant or 0.0
        return Steps(told.times_s, told.values, told.duration_s)

    def delay(told: StepSeries | None) -> float | Steps:
        if link.rtt_s is None or link.generated is None or told is None:
            return steps(None if link.rtt_s is None else link.rtt_s / 2, told)
        return Steps(told.times_s, told.values + (link.rtt_s - own_rtt_s) / 2, told.duration_s)

    return Network(
        up_bps=rate(link.up_bps, trace.up.rate), down_bps=rate(link.down_bps, trace.down.rate),
        up_delay_s=delay(trace.up.delay_s), down_delay_s=delay(trace.down.delay_s),
        up_jitter_s=link.jitter_s, down_jitter_s=link.jitter_s, distribution=link.jitter_distribution,
        jitter_samples_s=link.jitter_samples_s, up_loss=steps(link.loss, trace.up.loss), down_loss=steps(link.loss, trace.down.loss),
        burst_packets=link.loss_burst_packets,
        buffer_bytes=math.inf if link.buffer_bytes is None else link.buffer_bytes, transport=TRANSPORTS[link.transport], radio=radio,
        devices_per_cell=link.devices_per_cell,
    )  # fmt: skip


def _arrivals(seed: int, workload: FleetWorkload, prompts: int) -> Arrivals | ClosedLoop:
    devices, duration_s = workload.devices, workload.duration_s
    match workload.arrivals:
        case PoissonArrivals(poisson_per_s=rate):
            return poisson_arrivals(seed, rate, duration_s, devices, prompts)
        case BurstyArrivals(bursty_per_s=rate, burst_factor=factor, burst_s=burst_s, calm_s=calm_s):
            return bursty_arrivals(seed, rate, factor, burst_s, calm_s, duration_s, devices, prompts)
        case ClosedArrivals(think_s=think_s):
            return ClosedLoop(seed, think_s, duration_s, prompts)
        case TraceArrivals(trace=trace):
            times = read_times(Path(trace))
            return timed_arrivals(seed, times[times < duration_s], devices, prompts)
    raise AssertionError(workload.arrivals)


def _rules(scenario: Scenario, kv_tokens: float) -> CloudRules:
    c = scenario.cloud
    return CloudRules(
        queue=c.queue, routing=c.routing, max_sessions=c.max_sessions, max_waiting=c.max_waiting, kv_tokens=kv_tokens,
        evict=c.kv_full == "evict", crashes=tuple(Crash(x.replica, x.at_s, x.down_s) for x in c.crashes),
        autoscale=Autoscale(**c.autoscale.model_dump()) if c.autoscale else None,
        background=Background(c.background.utilisation, c.background.job_ms * 1e-3) if c.background else None, seed=scenario.seed,
    )  # fmt: skip


SATURATED = 0.98  # busy share from which a mean says more about the duration than about the system


def _warnings(case: Case, result: SimulatedCase) -> list[str]:
    """What a reader must know before believing a mean: a cloud or devices that cannot keep up."""
    workload = case.scenario.workload
    if not isinstance(workload, FleetWorkload):
        return []
    who = f"{case.method.label} {conditions_of(case)}".strip()
    found = []
    if result.unfinished:
        found.append(
            f"{who}: {result.unfinished} requests were unfinished at {2 * workload.duration_s:g} s, where the run was ended; "
            "its figures are of the answered ones only"
        )
    if isinstance(workload.arrivals, ClosedArrivals) or not math.isfinite(result.makespan_s):
        return found
    saturated = "saturated: requests come faster than they are served, so latency grows with duration_s and its mean means little"
    busy = sum(result.cloud_busy_s) / sum(result.cloud_up_s) if sum(result.cloud_up_s) > 0 else 0.0
    if busy >= SATURATED:
        found.append(f"{who}: the cloud was busy {100 * busy:.1f} % of the time; {saturated}")
    computing_s = np.bincount(result.columns["device"], result.columns["device_compute_s"], 1) / result.makespan_s
    if computing_s.max() >= SATURATED:
        number = int(np.count_nonzero(computing_s >= SATURATED))
        found.append(f"{who}: {number} of {workload.devices} devices computed {100 * SATURATED:g} % of the time or more; {saturated}")
    return found


def quality_columns(recordings: Sequence[Recording], reference: Sequence[Recording]) -> dict[str, np.ndarray]:
    """Quality per distinct image: cloud_nll (nats per token), cloud_greedy_pct and base_greedy_pct (see results.COLUMNS)."""
    return {
        "image": np.arange(len(recordings)),
        "cloud_nll": np.array([float(r.nll.mean(dtype=np.float64)) for r in recordings]),
        "cloud_greedy_pct": np.array([100.0 * float(np.mean(r.tokens == r.argmax)) for r in recordings]),
        "base_greedy_pct": np.array(
            [100.0 * float(np.mean(r.tokens == b.tokens)) for r, b in zip(recordings, reference, strict=True)]
        ),
    }


_CHANGES_IMAGES = ("methods.", "decoding.", "prompts.", "pair", "seed")  # swept paths that change recordings


def _pictures(cases: Sequence[Case], plan: Plan, recordings: Mapping[str, Recording], grid: int) -> list[Picture]:
    """Images of the first prompts, once per distinct set of recordings, with the device's scores and who decided each token."""
    pictures: list[Picture] = []
    seen: set[tuple[str, ...]] = set()
    for case in cases:
        keys = plan.of_case[case.index][:PICTURED_PROMPTS]
        if tuple(keys) in seen:
            continue
        seen.add(tuple(keys))
        own = [f"{path.rpartition('.')[2]}={value}" for path, value in case.swept.items() if path.startswith(_CHANGES_IMAGES)]
        label = " ".join([case.method.label, *(text for text in own if text not in case.method.label)])
        for prompt, (key, text) in enumerate(zip(keys, plan.captions[case.index], strict=False)):
            recording = recordings[key]
            pictures.append(Picture(label, prompt, text, "image", recording.image))
            if case.method.name == "ciar":
                scores = recording.scores[:, SCORES.index("u")].reshape(grid, grid)
                decided = (recording.decided_by == FROM_DEVICE).astype(np.float32).reshape(grid, grid)
                pictures.append(Picture(label, prompt, text, "uncertainty", scores))
                pictures.append(Picture(label, prompt, text, "decided", decided))
    return pictures


def _provenance(
    scenario: Scenario, manifest: PairManifest, costs: _CostTable, extrapolated: set[str], cases: Sequence[Case],
    captions: Mapping[int, list[str]], calibrated: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """What the numbers rest on. It holds no date and no host name, so that equal runs are equal bytes."""
    distinct = {
        key: {
            "device": {**device.provenance, "extrapolated": device.extrapolated},
            "cloud": {**cloud.provenance, "extrapolated": key in extrapolated},
        }
        for key, (device, cloud, _) in costs.costs.items()
    }
    shown = costs.choices
    foreign = [f"{c.cloud.model} on {c.cloud.hardware} and {c.device.model} on {c.device.hardware}"
               for c in shown.values() if c.cloud.model != "pair"]  # fmt: skip
    as_if = f"latency as if {', or '.join(foreign)}; acceptance and quality of the {manifest.name} pair" if foreign else None
    compute = next(iter(distinct.values())) if len(distinct) == 1 else distinct
    return {
        "name": scenario.name,
        "as_if": as_if,
        "compute": compute,
        "pair": {"name": manifest.name, "weights_sha256": manifest.weights_hash},
        **({"calibrated": dict(calibrated)} if calibrated else {}),
        "seed": scenario.seed,
        "prompts": sorted({len(texts) for texts in captions.values()}),
        "network": [asdict(one) for one in dict.fromkeys(link for case in cases for link in _links(case.scenario))],
        "versions": {
            "ciar-sim": metadata.version("ciar-sim"), "git_commit": _git_commit(), "python": platform.python_version(),
            "torch": torch_version(), **{name: metadata.version(name) for name in ("numpy", "pandas", "simpy")},
        },
        "recordings": "float32; exact for one machine, thread count and batch size",
        "notes": list(NOTES),
    }  # fmt: skip


def _git_commit() -> str | None:
    """Commit of the source tree this program runs from, "+changes" where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    found = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        found.append(answer.stdout.strip())
    return found[0] + ("+changes" if found[1] else "")
