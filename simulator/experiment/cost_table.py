"""Compute times of the cases, and the recorded sessions priced with them."""

import math
from collections.abc import Callable, Sequence

from simulator.core.errors import ComputeError, ScenarioError, error_context
from simulator.engine.device import FleetPart
from simulator.experiment.branches import Branches, abandoned
from simulator.experiment.fleet import (
    colocated_compute,
    computes_of,
    counts_of,
    kinds_of,
    links_of,
    network_of,
    slos_of,
    throttling_of,
)
from simulator.experiment.scenario import Case
from simulator.experiment.schema.compute import Compute
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.costs import Costs
from simulator.pricing.own import shape_of
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.program import SessionProgram, compile_colocated, compile_session
from simulator.protocol.pairs import PairManifest, pair_folder
from simulator.protocol.recording import Recording


class CostTable:
    """Compute times by the `compute` section of each kind of device, and the programs priced with them, each made once."""

    def __init__(self, manifest: PairManifest, cases: Sequence[Case], profile: Callable[[], Profile]) -> None:
        self.shapes = pair_shapes(pair_folder(cases[0].scenario.pair), manifest)
        self.choices = {self._key(choice): choice for case in cases for choice in computes_of(case.scenario)}
        colocated = [
            colocated_compute(choice)
            for case in cases
            if case.scenario.placement == "cloud"
            for choice in computes_of(case.scenario)
        ]
        built = self.choices | {self._key(choice): choice for choice in colocated}
        self.costs = {key: build_costs(choice, self.shapes, profile) for key, choice in built.items()}
        for side in (side for device, cloud, _ in self.costs.values() for side in (device, cloud)):
            if isinstance(side, MeasuredCosts) and side.profile.weights not in ("", manifest.weights_hash):
                with error_context("compute"):
                    raise ComputeError(
                        f"a profile of the pair {side.profile.model} says nothing about {manifest.name}, whose weights are others; "
                        f"measure one with ciar-sim profile --pair {cases[0].scenario.pair}"
                    )
        self._programs: dict[tuple[str, str, int], SessionProgram] = {}

    @staticmethod
    def _key(choice: Compute) -> str:
        """Models and hardware of both sides as text, which also names the entry in provenance.json."""
        sides = (
            f"{side.model} on {side.hardware}{''.join(f', {more}' for more in (side.runtime, side.profile) if more)}"
            for side in (choice.device, choice.cloud)
        )
        return "device {}; cloud {}".format(*sides)

    def beyond(self, in_cloud: set[str]) -> list[str]:
        """Choices with an extrapolated time. in_cloud: those whose cloud extrapolated, perhaps in another process."""
        return sorted(
            in_cloud | {key for key, sides in self.costs.items() if sides[0].extrapolated or sides[1].extrapolated}
        )

    def keys(self, case: Case) -> list[str]:
        """The choice of each kind of device of a case."""
        return [self._key(choice) for choice in computes_of(case.scenario)]

    def programs(
        self, case: Case, recordings: Sequence[Recording], branches: Branches
    ) -> tuple[list[FleetPart], Costs, float]:
        """The kinds of devices of a case, the cloud's costs, and the number of KV positions that fit a replica.

        Args:
            case: The case.
            recordings: Of each prompt.
            branches: Of sessions that gave up a reply.

        Raises:
            ScenarioError: Fewer positions fit than one session needs.
        """
        scenario = case.scenario
        parts = []
        for kind, count, slo_s, key, link in zip(
            kinds_of(scenario), counts_of(scenario), slos_of(scenario), self.keys(case), links_of(scenario), strict=True
        ):
            programs = [self._compiled(key, case.scenario.placement, recording) for recording in recordings]
            broken = {
                (prompt, call): abandoned(programs[prompt], self._compiled(key, case.scenario.placement, branch), call)
                for (prompt, call), branch in branches.items()
            }
            parts.append(
                FleetPart(
                    devices=count,
                    programs=programs,
                    device=self.costs[key][0],
                    network=network_of(link, case.scenario.seed),
                    priority=kind.priority if kind else 0,
                    slo_s=slo_s,
                    throttling=throttling_of(case.scenario.compute),
                    abandoned=broken,
                )
            )
        _, cloud, _ = self.costs[self.keys(case)[0]]
        return (
            parts,
            cloud,
            self._kv_tokens(case, max(program.kv_tokens for part in parts for program in part.programs)),
        )

    def _compiled(self, key: str, placement: str, recording: Recording) -> SessionProgram:
        name = (key, placement, id(recording))
        if name not in self._programs:
            device, cloud, pricing = self.costs[key]
            if placement == "cloud":
                companion = self.costs[self._key(colocated_compute(self.choices[key]))][0]
                self._programs[name] = compile_colocated(recording, device, companion, cloud, pricing)
            else:
                self._programs[name] = compile_session(recording, device, cloud, pricing)
        return self._programs[name]

    def _kv_tokens(self, case: Case, needed: int) -> float:
        memory_gb, side = case.scenario.cloud.kv_memory_gb, case.scenario.compute.cloud
        if memory_gb is None:
            return math.inf
        shape = self.shapes.cloud if side.model == "pair" else shape_of(side.model)
        position_bytes = shape.kv_bytes_per_position * (
            2 if side.hardware == "local" else 1
        )  # measured passes keep float32
        if needed * position_bytes > memory_gb * 1e9:
            with error_context("cloud", "kv_memory_gb"):
                raise ScenarioError(
                    f"cloud.kv_memory_gb must be >= {math.ceil(needed * position_bytes / 1e6) / 1e3:g}, what one session of "
                    f"{case.method.label} needs at {side.model}'s shape, got {memory_gb:g}"
                )
        return memory_gb * 1e9 / position_bytes
