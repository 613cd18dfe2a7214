"""What a run says of itself: versions, seeds, hashes, origins of compute times, warnings, limits."""

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from simulator.experiment.branches import Branches, common_prefix
from simulator.experiment.cost_table import _CostTable
from simulator.experiment.fleet import _links
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.plan import Plan, conditions_of
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.workload import ClosedArrivals, FleetWorkload
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import Recording, torch_version

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


def _divergence_warnings(
    cases: Sequence[Case], plan: Plan, recordings: Mapping[str, Recording], branches: Mapping[int, Branches]
) -> list[str]:
    """What a reader must know of branches: that some are not, to the last bit, what they branch from."""
    found = []
    for case in cases:
        keys, mine = plan.of_case[case.index], branches[case.index]
        parted = sum(
            not common_prefix(recordings[keys[prompt]], branch, call) for (prompt, call), branch in mine.items()
        )
        if parted:
            who = f"{case.method.label} {conditions_of(case)}".strip()
            found.append(
                f"{who}: {parted} of {len(mine)} sessions that gave a reply up had left the way of the unbroken session before, by "
                "floating point in another batch; their images are those of sessions of their own"
            )
    return found


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
        found.append(
            f"{who}: {number} of {workload.devices} devices computed {100 * SATURATED:g} % of the time or more; {saturated}"
        )
    return found


def _provenance(
    scenario: Scenario,
    manifest: PairManifest,
    costs: _CostTable,
    extrapolated: set[str],
    cases: Sequence[Case],
    captions: Mapping[int, list[str]],
    calibrated: Mapping[str, dict[str, Any]],
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
    foreign = [
        f"{c.cloud.model} on {c.cloud.hardware} and {c.device.model} on {c.device.hardware}"
        for c in shown.values()
        if c.cloud.model != "pair"
    ]
    as_if = (
        f"latency as if {', or '.join(foreign)}; acceptance and quality of the {manifest.name} pair"
        if foreign
        else None
    )
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
            "ciar-sim": metadata.version("ciar-sim"),
            "git_commit": _git_commit(),
            "python": platform.python_version(),
            "torch": torch_version(),
            **{name: metadata.version(name) for name in ("numpy", "pandas", "simpy")},
        },
        "recordings": "float32; exact for one machine, thread count and batch size",
        "notes": list(NOTES),
    }


def _git_commit() -> str | None:
    """Commit of the source tree this program runs from, "+changes" where files differ from it; None outside a checkout."""
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
