"""Provenance of a run: versions, seeds, hashes, sources of compute times, warnings, limits of the model."""

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence, Set
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from simulator.core.errors import NOT_SIMULATED, counted
from simulator.experiment.assumptions import familiar_captions, repeated_captions, trace_notes
from simulator.experiment.branches import common_prefix
from simulator.experiment.cost_table import CostTable
from simulator.experiment.images import ImageScorer
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.plan import Plan
from simulator.experiment.rerun import digest
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.schema.workload import ClosedArrivals, FleetWorkload, TraceArrivals
from simulator.experiment.search import calibration_warnings
from simulator.experiment.simulating import FailedCase, Simulated
from simulator.network.transport import TRANSPORTS
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import Recording, torch_version

NOTES = (
    "The rates of a preset are constant unless it has scheduling gaps or a generated trace; jitter and loss are random. A loss delays a "
    "message but does not shrink the transport's window unless congestion_control is given, and acknowledgements take no wire time.",
    "bytes_up and bytes_down are message payloads; transport overhead counts on the wire and in the latency, but not in these columns.",
    "device_energy_j includes the radio if the network has one (mobile and Wi-Fi presets); otherwise it is compute energy only.",
    "Cloud memory for KV caches is unlimited unless cloud.kv_memory_gb is given; a drafter's cache in the cloud is not counted.",
    "With placement: cloud, passes of the device's model run in separate iterations, which go first until a batch of other work is full; "
    "its cache has no memory limit.",
    "After the crash of a replica the connection breaks at once, and devices learn of it one message later.",
    "device_energy_j of a throttled device is that of the same work at full speed.",
)


def divergence_warnings(simulated: Sequence[Simulated], plan: Plan) -> list[str]:
    """Return warnings about branches that differ from their session before the branch, because of rounding in another batch."""
    found = []
    for one in simulated:
        whole, mine = plan.recorded(one.case), one.branches
        diverged = sum(not common_prefix(whole[prompt], branch, call) for (prompt, call), branch in mine.items())
        if diverged:
            found.append(
                f"{one.case.title}: {diverged} of {len(mine)} sessions that gave a reply up differ from the uninterrupted session before "
                "the deadline, by rounding in another batch; their images are those of separate sessions"
            )
    return found


SATURATED = 0.98  # busy share above which a mean may depend on the duration of the run
# Growth of the median latency from the first to the last third of the requests. A busy cloud need not be saturated, because it batches.
GROWTH = 1.3
# Jobs of other tenants. With 10 jobs their busy share varies by a third (1 / sqrt(10)). No job runs at the begin of a run, so jobs of a
# tenth of its length lower the share by a twentieth on average.
FEW_JOBS = 10
LONG_JOB = 0.1  # share of the run's duration
LONG_BURST = 10.0  # packets; the bursts of presets, up to 5, are shorter than any message of interest


def load_warnings(case: Case, result: SimulatedCase) -> list[str]:
    """Return warnings about the load: excluded requests, events without effect, a saturated cloud or saturated devices."""
    workload = case.scenario.workload
    who = case.title
    found = _tenant_warnings(case, result) + _link_warnings(case, result)
    if not isinstance(workload, FleetWorkload):
        return found
    if isinstance(workload.arrivals, TraceArrivals):
        times, _ = workload.arrivals.times()
        cut = int(np.count_nonzero(times >= workload.duration_s))
        if cut:
            found.append(
                f"{who}: {cut} of {len(times)} arrivals of {Path(workload.arrivals.trace).name} come at or after duration_s "
                f"({workload.duration_s:g} s) and were left out"
            )
    requested_s = result.columns["requested_s"]
    answered = "answered " if result.refused + result.unfinished else ""
    if not len(requested_s):
        what = "was answered" if answered else f"came within duration_s ({workload.duration_s:g} s)"
        found.append(f"{who}: no request {what}, so there are no figures")
    elif workload.warmup_s > requested_s.max():
        count = len(requested_s)
        all_of_them = f"the only {answered}request comes" if count == 1 else f"all {count} {answered}requests come"
        found.append(f"{who}: {all_of_them} before warmup_s ({workload.warmup_s:g} s), so there are no figures")
    for crash in (crash for serving in case.scenario.servings.values() for crash in serving.crashes):
        if not crash.at_s <= result.makespan_s:
            found.append(
                f"{who}: the crash of replica {crash.replica} at {crash.at_s:g} s comes after the last request and had no effect"
            )
    if result.unfinished:
        found.append(
            f"{who}: {counted(result.unfinished, 'request')} {_were(result.unfinished)} unfinished at the end of the run at "
            f"{2 * workload.duration_s:g} s; the figures cover answered requests only"
        )
    if result.refused:
        asked = result.refused + result.unfinished + len(requested_s)
        found.append(
            f"{who}: {result.refused} of {asked} requests {_were(result.refused)} refused, because max_waiting others were waiting; "
            "the figures cover answered requests only"
        )
    if isinstance(workload.arrivals, ClosedArrivals) or not math.isfinite(result.makespan_s):
        return found
    saturated = "saturated: requests come faster than they are served, so latency grows with duration_s and its mean means little"
    if result.utilisation >= SATURATED and (result.unfinished or grows(result.columns)):
        found.append(f"{who}: the cloud was busy {100 * result.utilisation:.1f} % of the time; {saturated}")
    end_s = max(result.makespan_s, workload.duration_s)
    computing = np.bincount(result.columns["device"], _on_device_s(case, result.columns), 1) / end_s
    if computing.max() >= SATURATED:
        number = int(np.count_nonzero(computing >= SATURATED))
        found.append(
            f"{who}: {number} of {workload.devices} devices computed {100 * SATURATED:g} % of the time or more; {saturated}"
        )
    return found


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def grows(columns: Mapping[str, np.ndarray]) -> bool:
    """Return whether latency grows during the run: the median of the last third of requests exceeds `GROWTH` times that of the first."""
    latency_s = columns["latency_s"][np.argsort(columns["requested_s"], kind="stable")]
    third = len(latency_s) // 3
    return third > 0 and bool(np.median(latency_s[-third:]) > GROWTH * np.median(latency_s[:third]))


def _tenant_warnings(case: Case, result: SimulatedCase) -> list[str]:
    """Return warnings about jobs of other tenants that are too few or too long to reach their share of the run."""
    took_s = result.makespan_s  # NaN without requests
    found = []
    for serving in case.scenario.servings.values():
        load = serving.background
        if load is None or not load.utilisation or not took_s > 0.0:
            continue
        job_s = 1e-3 * load.job_ms
        jobs = serving.replicas * load.utilisation * took_s / job_s
        if jobs < FEW_JOBS or job_s > LONG_JOB * took_s:
            found.append(
                f"{case.title}: background jobs of {job_s:g} s begin {jobs:.2g} times on average in the {took_s:.3g} s of the run: "
                f"too few or too long for a share of {load.utilisation:g}, so their actual share is left to chance"
            )
    return found


def _link_warnings(case: Case, result: SimulatedCase) -> list[str]:
    """Return warnings about what alternates too slowly for the run, and about cells with fewer devices than configured."""
    devices, took_s = case.scenario.workload.devices, result.makespan_s
    found = []
    for link in dict.fromkeys(path for one in case.scenario.links for path in (one, *one.also)):
        cells = -(-devices // link.devices_per_cell)
        turns_s = [sum(flow) for flow in (link.up_cross, link.down_cross) if isinstance(flow, tuple)]
        rare = {
            "an outage": link.outage_every_s if link.outage_s else None,
            "a handover": link.handover and link.handover[0],
            "a busy period of cross_traffic": max(turns_s, default=None),
        }
        for what, every_s in rare.items():
            if every_s is not None and took_s * cells < every_s:
                found.append(
                    f"{case.title}: {what} comes once in {every_s:g} s, and the run takes {took_s:.3g} s: "
                    "it is left to chance whether any device meets one"
                )
        if link.loss and link.loss_burst_packets is not None:
            packets, requests = _packets(link, result.columns), len(result.columns["calls"])
            # After the silence between requests the next packet is in a burst or not, as at the start.
            long = LONG_BURST < link.loss_burst_packets > packets > 0.0
            if long and link.loss * (requests + 1) < 1.0:
                found.append(
                    f"{case.title}: a burst of losses has {link.loss_burst_packets:g} packets, and the run sends about {packets:.3g}: "
                    "it is left to chance whether any message meets one"
                )
        if link.devices_per_cell > devices:
            there = "is one device" if devices == 1 else f"are {devices} devices"
            found.append(
                f"{case.title}: devices_per_cell is {link.devices_per_cell}, and there {there}: no cell has more"
            )
    return found


def _packets(link: LinkFigures, columns: Mapping[str, np.ndarray]) -> float:
    """Return the number of packets that a link carries both ways for these requests, about: a message has at least one."""
    payload_bytes = float(columns["bytes_up"].sum() + columns["bytes_down"].sum())
    return max(payload_bytes / TRANSPORTS[link.transport].segment_bytes, 2.0 * float(columns["calls"].sum()))


def _on_device_s(case: Case, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the seconds for which each request occupied its device's processor."""
    busy_s: np.ndarray = columns["device_compute_s"]
    if getattr(case.method, "deliver", "ids") != "image":  # the device makes the pixels
        busy_s = busy_s + columns["image_decode_s"]
    if case.scenario.decoding.text_encoder == "device" and case.scenario.placement == "split":
        busy_s = busy_s + columns["encode_s"]
    return busy_s


def provenance_of(
    scenario: Scenario,
    manifest: PairManifest,
    costs: CostTable,
    plan: Plan,
    calibrated: Mapping[str, dict[str, Any]],
    simulated: Sequence[Simulated],
    failed: Sequence[FailedCase],
    scorer: ImageScorer | None,
) -> dict[str, Any]:
    """Return the content of provenance.json. It has no date and no host name, so that equal runs give equal bytes."""
    cases = [one.case for one in simulated]
    extrapolated = {what for one in simulated for what in one.result.extrapolated}
    return {
        "name": scenario.name,
        "asked_sha256": digest(scenario),
        "as_if": _as_if(costs, manifest),
        "compute": _compute(costs, extrapolated),
        "pair": {"name": manifest.name, "weights_sha256": manifest.weights_hash},
        **({"calibrated": dict(calibrated)} if calibrated else {}),
        "seed": scenario.seed,
        "prompts": sorted({len(texts) for texts in plan.captions.values()}),
        "network": [one.plain() for one in dict.fromkeys(link for case in cases for link in case.scenario.links)],
        "versions": {
            "ciar-sim": _version("ciar-sim"),
            "git_commit": _git_commit(),
            "python": platform.python_version(),
            "torch": torch_version(),
            **{name: _version(name) for name in ("numpy", "pandas", "simpy")},
        },
        "recordings": "statistical: generated from published rates of cloud calls, no model ran"
        if manifest.statistics
        else "float32; exact for one machine, thread count and batch size",
        "near_ties": near_ties(plan.recordings),
        "notes": [
            *NOTES,
            *trace_notes(case.scenario for case in cases),
            *repeated_captions(case.scenario for case in cases),
            *(familiar_captions((case.scenario for case in cases), scorer) if scorer else []),
        ],
        **({"quality": dict(scorer.provenance)} if scorer else {}),
        **({"failed": [one.message for one in failed]} if failed else {}),
        "warnings": [
            *(
                ["statistical sessions: no model ran, so there are no images and no quality"]
                if manifest.statistics
                else []
            ),
            *(f"{NOT_SIMULATED}{one.message}" for one in failed),
            *(
                f"compute times lay outside what was measured, and are extrapolated: {key}"
                for key in sorted({what.partition(" ")[2] for what in extrapolated})
            ),
            *calibration_warnings(calibrated),
            *(text for one in simulated for text in load_warnings(one.case, one.result)),
            *divergence_warnings(simulated, plan),
        ],
    }


def _as_if(costs: CostTable, manifest: PairManifest) -> str | None:
    """Describe the models and hardware that latency is priced for, if they are not the pair's own."""
    foreign = ", or ".join(
        f"{chosen.cloud.model} on {chosen.cloud.hardware} and {chosen.device.model} on {chosen.device.hardware}"
        for chosen in costs.choices.values()
        if chosen.cloud.model != "pair"
    )
    if manifest.statistics is not None:
        rates = f"at the rates of cloud calls of {manifest.statistics.source}"
        return f"statistical sessions, no model ran: latency as if {foreign}, {rates}"
    return f"latency as if {foreign}; acceptance and quality of the {manifest.name} pair" if foreign else None


def _compute(costs: CostTable, extrapolated: Set[str]) -> dict[str, Any]:
    """Return the sources of the compute times of both sides, and of drafters that run, by key if the cases have several."""
    by_key = {
        key: {
            "device": {**device.provenance, "extrapolated": f"device {key}" in extrapolated},
            "cloud": {**cloud.provenance, "extrapolated": f"cloud {key}" in extrapolated},
            **({"drafter": costs.drafters[key]} if key in costs.drafters else {}),
        }
        for key, (device, cloud, _) in costs.costs.items()
    }
    return next(iter(by_key.values())) if len(by_key) == 1 else by_key


def near_ties(recordings: Mapping[str, Recording]) -> dict[str, Any]:
    """Count the near ties of all recordings, which another --max-batch or machine may decide differently."""
    counted = [one.meta for one in recordings.values() if "near_ties" in one.meta]
    decisions, near = (sum(int(meta[name]) for meta in counted) for name in ("decisions", "near_ties"))
    text = (
        f"{near} of {decisions} recorded decisions are within 1e-4 of a tie: in float32 another --max-batch, number of "
    )
    text += "prompts or machine may decide them otherwise, and the image then differs from there on"
    return {
        "decisions": decisions,
        "near_ties": near,
        "sessions_not_counted": len(recordings) - len(counted),
        "meaning": text,
    }


@cache
def _version(package: str) -> str:
    """Return the installed version of a package."""
    return metadata.version(package)


@cache
def _git_commit() -> str | None:
    """Return the commit of the source tree of this program, with "+changes" if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    found = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        found.append(answer.stdout.strip())
    return found[0] + ("+changes" if found[1] else "")
