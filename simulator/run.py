"""One run from a scenario to its folder: recordings, compute times, a simulation per case, tables and plots.

No models here: recordings come from a `RecordingSource`, captions and measured profiles from callables; `simulator/cli.py` composes.
"""

import json
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
from simulator.calibrate import Calibrated, calibrate
from simulator.compute import Profile, build_costs, pair_shapes
from simulator.costs import Costs
from simulator.engine import CaseInputs, CaseResult, Network, simulate
from simulator.errors import ScenarioError
from simulator.link import Capacity
from simulator.methods import REVISIONS, BaseSettings, Decoding, GatedSettings, Settings, prefix_length
from simulator.pairs import PairManifest, pair_folder, pair_manifest
from simulator.radio import RadioFigures
from simulator.recording import FROM_DEVICE, SCORES, Recording, RecordingSource, SessionSpec, torch_version
from simulator.replay import SessionProgram, compile_session
from simulator.results import Case as CaseRecords
from simulator.results import OfSet, Picture, Span, check_run_folder, write_run
from simulator.scenario import Case, LinkFigures, PoissonWorkload, PromptList, Scenario, ScenePrompts, expand, resolved_yaml
from simulator.schema.network import trace_rates
from simulator.traces.series import RateSeries
from simulator.transport import TRANSPORTS
from simulator.workload import Arrivals, poisson_arrivals, single_arrival

PICTURED_PROMPTS = 4  # prompts whose images are kept in the run folder
_CALIBRATION_SEED = 20_000_003  # of the captions that thresholds are calibrated on
TIMELINE_SESSIONS = 2  # requests per case whose spans are kept

NOTES = (
    "Presets have constant rates; their jitter and loss are chance alone. A loss delays a message but does not shrink the window of the "
    "transport, and acknowledgements take no wire time.",
    "bytes_up and bytes_down are message payloads; what a transport adds is on the wire and in the latency, not in these columns.",
    "device_energy_j holds the radio where the network has one (mobile and Wi-Fi presets); elsewhere it is computing only.",
    "Cloud memory for KV caches is not limited.",
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
        case.method.at_threshold(0.0).settings.check(case.scenario.decoding, manifest)
    costs = _CostTable(manifest, cases, profile)  # before the recordings: an impossible choice is refused at once
    cases, calibrated = _with_calibrated(cases, manifest, scenes, source)
    plan = _Plan(cases, manifest, scenes)
    recordings = dict(zip(plan.keys, source.recordings(plan.specs), strict=True))
    inputs = []
    for case in cases:
        programs, device, cloud = costs.programs(case, [recordings[key] for key in plan.of_case[case.index]])
        inputs.append((case.scenario, programs, device, cloud))
    results = []
    work = (delayed(simulate_case)(*one) for one in inputs)
    for result in Parallel(n_jobs=jobs, return_as="generator")(work):
        results.append(result)
        progress("simulating", len(results), len(cases))
    extrapolated = {key for key, result in zip(costs.keys(cases), results, strict=True) if result.extrapolated}
    prompts = plan.captions
    records = []
    for case, result in zip(cases, results, strict=True):
        mine = [recordings[key] for key in plan.of_case[case.index]]
        reference = [recordings[key] for key in plan.reference[case.index]]
        judged, of_set = judge(mine, plan.captions[case.index]) if judge else ({}, lambda prompts: {})
        price = case.scenario.cloud.price_usd_per_gpu_hour
        records.append(
            CaseRecords(
                method=case.method.label, name=case.method.name, swept=case.swept, columns=result.columns,
                quality={**quality_columns(mine, reference), **judged}, of_set=of_set,
                sequential=not isinstance(case.scenario.workload, PoissonWorkload),
                replicas=case.scenario.cloud.replicas, gpu_usd_per_hour=math.nan if price is None else price,
            )
        )  # fmt: skip
    spans = [
        Span(f"{case.method.label} {_conditions(case)}".strip(), *span)
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
        },
        spans=spans,
        pictures=_pictures(cases, plan, recordings, manifest.grid),
        draw=draw,
    )
    progress("writing", 1, 1)
    return Outcome(folder, summary, sum(result.events for result in results))


class _Plan:
    """Which sessions a run needs: one per case and prompt, and base's greedy images to compare with."""

    def __init__(self, cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]]) -> None:
        specs: dict[str, SessionSpec] = {}
        self.captions: dict[int, list[str]] = {}
        self.of_case: dict[int, list[str]] = {}
        self.reference: dict[int, list[str]] = {}
        for case in cases:
            s = case.scenario
            captions = _captions(s, scenes)
            self.captions[case.index] = captions

            def keys(name: str, settings: Settings, decoding: Decoding, s: Scenario = s, captions: list[str] = captions) -> list[str]:
                mine = []
                for spec in _specs(manifest, name, settings, decoding, captions, s.seed):
                    specs.setdefault(key := spec.key(), spec)
                    mine.append(key)
                return mine

            self.of_case[case.index] = keys(case.method.name, case.method.settings, s.decoding)
            greedy = s.decoding.model_copy(update={"cloud": "greedy"})
            self.reference[case.index] = keys("base", BaseSettings.model_validate({}), greedy)
        self.keys, self.specs = list(specs), list(specs.values())


def _specs(
    manifest: PairManifest, method: str, settings: Settings, decoding: Decoding, captions: Sequence[str], seed: int
) -> list[SessionSpec]:
    """One session per caption."""
    return [
        SessionSpec(
            weights=manifest.weights_hash, method=method, revision=REVISIONS[method], settings=settings.model_dump(),
            decoding=decoding.model_dump(), prompt=caption, seed=seed,
        )
        for caption in captions
    ]  # fmt: skip


def _with_calibrated(
    cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]], source: RecordingSource
) -> tuple[list[Case], dict[str, dict[str, Any]]]:
    """The cases with a threshold wherever a call rate was asked for; and what was found, by method and decoding settings."""
    found: dict[str, Calibrated] = {}
    told: dict[str, dict[str, Any]] = {}
    resolved = []
    for case in cases:
        target, s = case.method.call_target, case.scenario
        if target is None:
            resolved.append(case)
            continue
        captions = _calibration_captions(s, target.prompts, scenes)
        key = json.dumps([case.method.model_dump(exclude={"label"}), s.decoding.model_dump(), s.seed, captions], sort_keys=True)
        if key not in found:

            def record(threshold: float, case: Case = case, s: Scenario = s, captions: list[str] = captions) -> list[Recording]:
                method = case.method.at_threshold(threshold)
                return source.recordings(_specs(manifest, method.name, method.settings, s.decoding, captions, s.seed))

            gated = case.method.at_threshold(0.0).settings
            assert isinstance(gated, GatedSettings)
            prefix_rate = prefix_length(gated.prefix_rate, manifest.image_tokens) / manifest.image_tokens
            found[key] = calibrate(target.call_pct, prefix_rate, record, case.method.label)
        name = f"{case.method.label} {_conditions(case)}".strip()
        told[name] = {"call_pct_asked": target.call_pct, "prompts": target.prompts, **asdict(found[key])}
        resolved.append(replace(case, method=case.method.at_threshold(found[key].threshold)))
    return resolved, told


def _calibration_captions(scenario: Scenario, count: int, scenes: Callable[[int, int], list[str]]) -> list[str]:
    """Captions that the scenario does not use."""
    used = set(_captions(scenario, scenes))
    drawn = dict.fromkeys(scenes(_CALIBRATION_SEED, 4 * (count + len(used))))
    other = [caption for caption in drawn if caption not in used][:count]
    if len(other) < count:
        raise ScenarioError(f"threshold.prompts: only {len(other)} captions are left to calibrate on, asked for {count}")
    return other


def _captions(scenario: Scenario, scenes: Callable[[int, int], list[str]]) -> list[str]:
    """The captions of a scenario, all different: a second image of one caption and seed would be the same image.

    Raises ScenarioError where the scenes do not hold as many.
    """
    match scenario.prompts:
        case ScenePrompts(seed=seed, count=count):
            drawn, known = count, 0
            while len(different := list(dict.fromkeys(scenes(seed, drawn)))) < count:
                if len(different) == known:  # twice as many scenes brought no caption more
                    raise ScenarioError(
                        f"prompts.count: {count} captions wanted, but {drawn} scenes of seed {seed} hold only {known} different ones; "
                        f"must be <= {known}"
                    )
                drawn, known = 2 * drawn, len(different)
            return different[:count]
        case PromptList(captions=captions):
            return list(captions)
    raise AssertionError(scenario.prompts)


class _CostTable:
    """Compute times by the `compute` part of a case, and programs compiled with them, each made once."""

    def __init__(self, manifest: PairManifest, cases: Sequence[Case], profile: Callable[[], Profile]) -> None:
        shapes = pair_shapes(pair_folder(cases[0].scenario.pair), manifest)
        choices = {self._key(case): case.scenario.compute for case in cases}
        self.costs = {key: build_costs(choice, shapes, profile) for key, choice in choices.items()}
        self._programs: dict[tuple[str, int], SessionProgram] = {}

    @staticmethod
    def _key(case: Case) -> str:
        """In words what is priced as what, which also names its entry in provenance.json."""
        c = case.scenario.compute
        sides = (f"{side.model} on {side.hardware}{f', {side.runtime}' if side.runtime else ''}" for side in (c.device, c.cloud))
        return "device {}; cloud {}".format(*sides)

    def keys(self, cases: Sequence[Case]) -> list[str]:
        return [self._key(case) for case in cases]

    def programs(self, case: Case, recordings: Sequence[Recording]) -> tuple[list[SessionProgram], Costs, Costs]:
        key = self._key(case)
        device, cloud, pricing = self.costs[key]
        compiled = []
        for recording in recordings:
            name = (key, id(recording))
            if name not in self._programs:
                self._programs[name] = compile_session(recording, device, cloud, pricing)
            compiled.append(self._programs[name])
        return compiled, device, cloud


@dataclass(frozen=True)
class SimulatedCase(CaseResult):
    """A case's result. extrapolated: whether a cloud time lay outside what was measured; the costs may live in another process."""

    extrapolated: bool = False


def simulate_case(scenario: Scenario, programs: Sequence[SessionProgram], device: Costs, cloud: Costs) -> SimulatedCase:
    """Simulate one case: the scenario's fleet, link and cloud, each request replaying one of the programs (one per prompt)."""
    workload = scenario.workload
    inputs = CaseInputs(
        programs=programs, device=device, cloud=cloud,
        network=network_of(scenario.link),
        devices=workload.devices, replicas=scenario.cloud.replicas, max_batch=scenario.cloud.max_batch,
        arrivals=single_arrival(), seed=scenario.seed, timeline_sessions=TIMELINE_SESSIONS,
    )  # fmt: skip
    if isinstance(workload, PoissonWorkload):
        rate = workload.arrivals.poisson_per_s
        arrivals = poisson_arrivals(scenario.seed, rate, workload.duration_s, workload.devices, len(programs))
        return SimulatedCase(**vars(simulate(replace(inputs, arrivals=arrivals))), extrapolated=cloud.extrapolated)
    # Sequential: every prompt once, far enough apart that no request meets the one before.
    spacing_s = 64.0
    count = len(programs)
    while True:
        arrivals = Arrivals(np.arange(count) * spacing_s, np.zeros(count, np.int64), np.arange(count))
        result = simulate(replace(inputs, arrivals=arrivals))
        if result.columns["latency_s"].max() < spacing_s:
            return SimulatedCase(**vars(result), extrapolated=cloud.extrapolated)
        spacing_s *= 4


def network_of(link: LinkFigures) -> Network:
    """The network as the engine takes it."""
    one_way_s = link.rtt_s / 2
    radio = None
    if link.radio is not None:
        r = catalogue.radio(link.radio)
        radio = RadioFigures(
            promotion_s=r.promotion_ms * 1e-3, inactivity_s=r.inactivity_s,
            drx_after_s=math.inf if r.drx_after_ms is None else r.drx_after_ms * 1e-3, drx_cycle_s=r.drx_cycle_ms * 1e-3,
            paging_cycle_s=r.paging_cycle_ms * 1e-3, grant_bytes=math.inf if r.grant_bytes is None else r.grant_bytes,
            grant_s=r.grant_ms * 1e-3, promotion_w=r.promotion_mw * 1e-3, active_w=r.active_mw * 1e-3, drx_w=r.drx_mw * 1e-3,
            up_j_per_byte=8e-9 * r.up_nj_per_bit, down_j_per_byte=8e-9 * r.down_nj_per_bit,
        )  # fmt: skip

    up_trace, down_trace = (None, None) if link.trace is None else trace_rates(link.trace)

    def rate(bps: float | None, trace: RateSeries | None) -> float | Capacity:
        if bps is None:
            assert trace is not None, "a link with neither rate nor trace"
            return Capacity(trace.times_s, trace.rate_bps, trace.duration_s)
        if link.outage_every_s is None or not link.outage_s:
            return bps
        return Capacity.with_outages(bps, link.outage_every_s, link.outage_s)

    return Network(
        up_bps=rate(link.up_bps, up_trace), down_bps=rate(link.down_bps, down_trace), up_delay_s=one_way_s, down_delay_s=one_way_s,
        up_jitter_s=link.jitter_s, down_jitter_s=link.jitter_s, distribution=link.jitter_distribution,
        jitter_samples_s=link.jitter_samples_s, up_loss=link.loss, down_loss=link.loss, burst_packets=link.loss_burst_packets,
        buffer_bytes=math.inf if link.buffer_bytes is None else link.buffer_bytes, transport=TRANSPORTS[link.transport], radio=radio,
        devices_per_cell=link.devices_per_cell,
    )  # fmt: skip


def quality_columns(recordings: Sequence[Recording], reference: Sequence[Recording]) -> dict[str, np.ndarray]:
    """Quality per distinct image: cloud_nll (nats per token), cloud_greedy_pct and base_greedy_pct (see results.COLUMNS)."""
    return {
        "prompt": np.arange(len(recordings)),
        "cloud_nll": np.array([float(r.nll.mean(dtype=np.float64)) for r in recordings]),
        "cloud_greedy_pct": np.array([100.0 * float(np.mean(r.tokens == r.argmax)) for r in recordings]),
        "base_greedy_pct": np.array(
            [100.0 * float(np.mean(r.tokens == b.tokens)) for r, b in zip(recordings, reference, strict=True)]
        ),
    }


def _conditions(case: Case) -> str:
    return ", ".join(f"{path}={value}" for path, value in case.swept.items())


_CHANGES_IMAGES = ("methods.", "decoding.", "prompts.", "pair", "seed")  # swept paths that change recordings


def _pictures(cases: Sequence[Case], plan: _Plan, recordings: Mapping[str, Recording], grid: int) -> list[Picture]:
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
    shown = {key: case.scenario.compute for key, case in zip(costs.keys(cases), cases, strict=True)}
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
        "network": [asdict(one) for one in dict.fromkeys(case.scenario.link for case in cases)],
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
