"""Compute times of the cases, and the recorded sessions priced with them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.compute import Compute
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.costs import Costs
from simulator.pricing.own import shape_of
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.program import SessionProgram, compile_colocated, compile_session
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import Recording


@dataclass(frozen=True)
class PricedKind:
    """The sessions of a case, priced for one kind of device.

    Attributes:
        programs: One per prompt.
        device: Compute costs.
        abandoned: Programs of sessions that gave a reply up, by (prompt, call).
    """

    programs: Sequence[SessionProgram]
    device: Costs
    abandoned: Mapping[tuple[int, int], SessionProgram]


@dataclass(frozen=True)
class Priced:
    """The sessions of a case with their times: what cases that differ in network and load share.

    Attributes:
        kinds: By kind of device.
        cloud: Compute costs.
        keys: The choice of models and hardware of each kind.
        extrapolated: As in `SimulatedCase`, of the times of the sessions alone.
    """

    kinds: Sequence[PricedKind]
    cloud: Costs
    keys: Sequence[str]
    extrapolated: frozenset[str]


def fleet_parts(scenario: Scenario, priced: Priced) -> list[FleetPart]:
    """The kinds of devices of a case with their links and programs."""
    described = zip(
        kinds_of(scenario), counts_of(scenario), slos_of(scenario), links_of(scenario), priced.kinds, strict=True
    )
    return [
        FleetPart(
            devices=count,
            programs=own.programs,
            device=own.device,
            network=network_of(link, scenario.seed),
            priority=kind.priority if kind else 0,
            slo_s=slo_s,
            throttling=throttling_of(scenario.compute),
            abandoned=own.abandoned,
        )
        for kind, count, slo_s, link, own in described
    ]


class CostTable:
    """Compute times by the `compute` section of each kind of device, and the programs priced with them, each made once."""

    def __init__(self, manifest: PairManifest, cases: Sequence[Case], profile: Callable[[], Profile]) -> None:
        self.shapes = pair_shapes(cases[0].scenario.pair)
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
        self._programs: dict[tuple[str, str, int], tuple[SessionProgram, frozenset[str]]] = {}
        self._fingerprints: dict[str, str] = {}

    @staticmethod
    def _key(choice: Compute) -> str:
        """Models and hardware of both sides as text, which also names the entry in provenance.json."""
        sides = (
            f"{side.model} on {side.hardware}{''.join(f', {more}' for more in (side.runtime, side.profile) if more)}"
            for side in (choice.device, choice.cloud)
        )
        return "device {}; cloud {}".format(*sides)

    def fingerprint(self, case: Case) -> str:
        """Text that is equal for equal compute times of a case."""
        choices = computes_of(case.scenario)
        if case.scenario.placement == "cloud":
            choices += [colocated_compute(choice) for choice in choices]
        return " ".join(self._fingerprint(self._key(choice)) for choice in choices)

    def _fingerprint(self, key: str) -> str:
        if key not in self._fingerprints:
            told = repr((self.costs[key], self.shapes))
            self._fingerprints[key] = hashlib.sha256(told.encode()).hexdigest()
        return self._fingerprints[key]

    def keys(self, case: Case) -> list[str]:
        """The choice of each kind of device of a case."""
        return [self._key(choice) for choice in computes_of(case.scenario)]

    def priced(self, case: Case, recordings: Sequence[Recording], branches: Branches) -> Priced:
        """The sessions of a case with their times.

        Args:
            case: The case.
            recordings: Of each prompt.
            branches: Of sessions that gave up a reply.
        """
        kinds = []
        extrapolated: frozenset[str] = frozenset()
        placement = case.scenario.placement
        for key in self.keys(case):
            compiled = [self._compiled(key, placement, recording) for recording in recordings]
            broken = {place: self._compiled(key, placement, branch) for place, branch in branches.items()}
            programs = [program for program, _ in compiled]
            extrapolated = extrapolated.union(*(told for _, told in (*compiled, *broken.values())))
            left = {
                (prompt, call): abandoned(programs[prompt], branch, call)
                for (prompt, call), (branch, _) in broken.items()
            }
            kinds.append(PricedKind(programs, self.costs[key][0], left))
        return Priced(kinds, self.costs[self.keys(case)[0]][1], self.keys(case), extrapolated)

    def _compiled(self, key: str, placement: str, recording: Recording) -> tuple[SessionProgram, frozenset[str]]:
        """The program, and which of its times were extrapolated."""
        name = (key, placement, id(recording))
        if name not in self._programs:
            device, cloud, pricing = self.costs[key]
            sides: dict[str, Costs] = {f"device {key}": device, f"cloud {key}": cloud}
            own = self._key(colocated_compute(self.choices[key]))
            if placement == "cloud":
                sides[f"device {own}"] = self.costs[own][0]
            for side in sides.values():
                forget(side)
            if placement == "cloud":
                program = compile_colocated(recording, device, self.costs[own][0], cloud, pricing)
            else:
                program = compile_session(recording, device, cloud, pricing)
            self._programs[name] = program, frozenset(what for what, side in sides.items() if side.extrapolated)
        return self._programs[name]

    def kv_tokens(self, case: Case, priced: Priced) -> float:
        """Number of KV positions that fit a replica.

        Raises:
            ScenarioError: Fewer fit than one session needs.
        """
        return self._kv_tokens(case, max(program.kv_tokens for kind in priced.kinds for program in kind.programs))

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


def forget(costs: Costs) -> None:
    """Measured times count as not extrapolated until they are asked again."""
    if isinstance(costs, MeasuredCosts):
        costs.extrapolated = False
