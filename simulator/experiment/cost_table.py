"""Compute times of the cases, and the recorded sessions priced with them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.cloud.rules import CloudTier
from simulator.core.errors import ComputeError, ScenarioError, error_context
from simulator.engine.device import FleetPart
from simulator.experiment.branches import Branches, abandoned
from simulator.experiment.fleet import (
    colocated_compute,
    computes_of,
    counts_of,
    kinds_of,
    network_of,
    slos_of,
    throttling_of,
)
from simulator.experiment.inputs import check_memory, cloud_tier
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.cloud import Serving
from simulator.experiment.schema.compute import CloudCompute, Compute
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.catalogue import FP16_BYTES
from simulator.pricing.costs import Costs
from simulator.pricing.own import shape_of
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.program import SessionProgram, compile_colocated, compile_session
from simulator.pricing.roofline import RooflineCosts
from simulator.protocol.methods import DrafterSettings
from simulator.protocol.pairs import PairManifest, PairRef, PairSpec
from simulator.protocol.recording import Recording


@dataclass(frozen=True)
class PricedKind:
    """The sessions of a case, priced for one kind of device.

    Attributes:
        programs: One per prompt.
        device: Compute costs of the device.
        abandoned: Programs of sessions that gave up a reply, by (prompt, call).
        cloud: Compute costs of the cloud that serves it.
        companion: Compute costs of the device's model in the cloud; None if it does not run there.
        drafter: Compute costs of the drafter on the device; None if the method has none.
        keys: Choice of models and hardware of these costs, and that of the companion.
    """

    programs: Sequence[SessionProgram]
    device: Costs
    abandoned: Mapping[tuple[int, int], SessionProgram]
    cloud: Costs
    companion: Costs | None
    drafter: Costs | None
    keys: tuple[str, ...]

    @property
    def extrapolated(self) -> frozenset[str]:
        """As in `SimulatedCase`, for cloud times requested since `forget`."""
        told = [f"cloud {self.keys[0]}"] if self.cloud.extrapolated else []
        if self.companion is not None and self.companion.extrapolated:
            told.append(f"device {self.keys[-1]}")
        return frozenset(told)


@dataclass(frozen=True)
class Priced:
    """The priced sessions of a case, shared by cases that differ only in network and load.

    Attributes:
        kinds: Priced sessions by kind of device.
        extrapolated: As in `SimulatedCase`, for the times in the programs only.
    """

    kinds: Sequence[PricedKind]
    extrapolated: frozenset[str]


def fleet_parts(scenario: Scenario, priced: Priced) -> list[FleetPart]:
    """Return the kinds of devices of a case with their links and programs.

    Raises:
        ScenarioError: The models do not fit the memory of a kind of device.
    """
    for own in priced.kinds:
        check_memory(scenario, own.programs, own.device, own.drafter)
    places = {tier: number for number, tier in enumerate(scenario.servings)}
    described = zip(
        kinds_of(scenario),
        counts_of(scenario),
        slos_of(scenario),
        scenario.links,
        scenario.tiers,
        priced.kinds,
        strict=True,
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
            tier=places[tier],
        )
        for kind, count, slo_s, link, tier, own in described
    ]


def kinds_by_tier(scenario: Scenario, priced: Priced) -> list[list[PricedKind]]:
    """Return the kinds of devices that each cloud serves, in the order of `Scenario.servings`."""
    served = list(zip(scenario.tiers, priced.kinds, strict=True))
    return [[kind for own, kind in served if own == tier] for tier in scenario.servings]


def cloud_tiers(scenario: Scenario, priced: Priced, kv_tokens: Sequence[float]) -> list[CloudTier]:
    """Return the clouds of a case. kv_tokens: KV positions that fit a replica of each cloud."""
    clouds = zip(scenario.servings.values(), kinds_by_tier(scenario, priced), kv_tokens, strict=True)
    return [cloud_tier(serving, scenario.seed, own[0].cloud, kv, own[0].companion) for serving, own, kv in clouds]


class CostTable:
    """Compute times for the `compute` section of each kind of device, and the programs priced with them. Both are cached.

    Raises:
        ComputeError: A profile is of a pair with other weights.
    """

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
                        f"the profile is of the pair {side.profile.model}, and {manifest.name} has other weights; "
                        f"measure one with {_profile_command(cases[0].scenario.pair)}"
                    )
        # Sources of the drafters' costs, by choice and by the side on which they run.
        self.drafters: dict[str, dict[str, dict[str, Any]]] = {}
        for case in cases:
            self._add_drafter(case)
        # Keyed by id(recording), which stays unique because the value references the recording.
        self._programs: dict[tuple[str, str, int], tuple[Recording, SessionProgram, frozenset[str]]] = {}
        self._fingerprints: dict[str, str] = {}

    def _add_drafter(self, case: Case) -> None:
        """Note the source of a drafter's costs. Raise ComputeError if it runs where a measured profile has no times of it."""
        method = case.method
        if not isinstance(method, DrafterSettings):
            return
        in_cloud = case.scenario.placement == "cloud" or method.drafter == "cloud"
        side = "cloud" if in_cloud else "device"
        for choice in computes_of(case.scenario):
            device, cloud, pricing = self.costs[self._key(choice)]
            runs_on, known = (cloud, pricing.drafter) if in_cloud else (device, pricing.device_drafter)
            if isinstance(known, RooflineCosts | MeasuredCosts):
                # The side's own entry says what was extrapolated.
                source = {name: found for name, found in known.provenance.items() if name != "extrapolated"}
                self.drafters.setdefault(self._key(choice), {})[side] = source
            elif isinstance(runs_on, MeasuredCosts):
                model, measured = choice.cloud.model, runs_on.profile.model
                if model == "pair":
                    whose, how = "the pair's", f"measure one with {_profile_command(case.scenario.pair)}"
                else:
                    whose = f"{model}'s"
                    how = f"measure one with ciar-sim profile --model {model} --random-weights"
                    how = how if isinstance(model, str) else "give the hardware by name or figures"
                with error_context("compute", side):
                    raise ComputeError(
                        f"the profile of {measured} holds no times of {whose} drafter, with which {method.label} drafts; {how}"
                    )

    @staticmethod
    def _key(choice: Compute) -> str:
        """Return models and hardware of both sides as text, the name of the entry in provenance.json."""
        sides = (
            f"{side.model} on {side.hardware}{''.join(f', {more}' for more in (side.runtime, side.profile) if more)}"
            for side in (choice.device, choice.cloud)
        )
        return "device {}; cloud {}".format(*sides)

    def fingerprint(self, case: Case) -> str:
        """Return text that is equal for cases with equal compute times."""
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
        """Return the key of the compute choice of each kind of device."""
        return [self._key(choice) for choice in computes_of(case.scenario)]

    def priced(self, case: Case, recordings: Sequence[Recording], branches: Branches) -> Priced:
        """Price the sessions of a case.

        Args:
            case: The case.
            recordings: Recording of each prompt.
            branches: Recordings of sessions that gave up a reply.
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
            device, cloud, pricing = self.costs[key]
            drafter = pricing.device_drafter if isinstance(case.method, DrafterSettings) else None
            own = self._key(colocated_compute(self.choices[key])) if placement == "cloud" else None
            companion = None if own is None else self.costs[own][0]
            keys = (key,) if own is None else (key, own)
            kinds.append(PricedKind(programs, device, left, cloud, companion, drafter, keys))
        return Priced(kinds, extrapolated)

    def _compiled(self, key: str, placement: str, recording: Recording) -> tuple[SessionProgram, frozenset[str]]:
        """Return the program, and which of its times were extrapolated."""
        name = (key, placement, id(recording))
        if name not in self._programs:
            device, cloud, pricing = self.costs[key]
            sides = [
                (f"device {key}", device),
                (f"device {key}", pricing.device_drafter),
                (f"cloud {key}", cloud),
                (f"cloud {key}", pricing.drafter),
            ]
            own = self._key(colocated_compute(self.choices[key]))
            if placement == "cloud":
                sides.append((f"device {own}", self.costs[own][0]))
            for _, side in sides:
                forget(side)
            if placement == "cloud":
                program = compile_colocated(recording, device, self.costs[own][0], cloud, pricing)
            else:
                program = compile_session(recording, device, cloud, pricing)
            extrapolated = frozenset(what for what, side in sides if side is not None and side.extrapolated)
            self._programs[name] = recording, program, extrapolated
        _, program, extrapolated = self._programs[name]
        return program, extrapolated

    def kv_tokens(self, case: Case, priced: Priced) -> tuple[float, ...]:
        """Return the number of KV positions that fit a replica of each cloud, in the order of `Scenario.servings`.

        Raises:
            ScenarioError: A replica has fewer positions than one session needs.
        """
        scenario = case.scenario
        sides = dict(zip(scenario.tiers, (choice.cloud for choice in computes_of(scenario)), strict=True))
        return tuple(
            self._kv_tokens(
                case,
                tier,
                serving,
                sides[tier],
                own[0].cloud,
                max(program.kv_tokens for kind in own for program in kind.programs),
            )
            for (tier, serving), own in zip(scenario.servings.items(), kinds_by_tier(scenario, priced), strict=True)
        )

    def _kv_tokens(
        self, case: Case, tier: str | None, serving: Serving, side: CloudCompute, costs: Costs, needed: int
    ) -> float:
        memory_gb = serving.kv_memory_gb
        if memory_gb is None:
            return math.inf
        shape = self.shapes.cloud if side.model == "pair" else shape_of(side.model)
        # The cache has the type of the measured passes; by roofline it has 2 bytes per value.
        value_bytes = costs.profile.value_bytes if isinstance(costs, MeasuredCosts) else FP16_BYTES
        position_bytes = shape.kv_bytes_per_position * value_bytes // FP16_BYTES
        if needed * position_bytes > memory_gb * 1e9:
            at = ("cloud", *(() if tier is None else ("tiers", tier)), "kv_memory_gb")
            with error_context(*at):
                raise ScenarioError(
                    f"{'.'.join(at)} must be >= {math.ceil(needed * position_bytes / 1e6) / 1e3:g}, what one session of "
                    f"{case.method.label} needs at {side.model}'s shape, got {memory_gb:g}"
                )
        return memory_gb * 1e9 / position_bytes


def _profile_command(pair: PairRef) -> str:
    """Return the command that measures a pair."""
    # `--pair` reads a published backbone from a scenario's `pair:`.
    return f"ciar-sim profile --pair {'SCENARIO.yaml' if isinstance(pair, PairSpec) else pair}"


def forget(costs: Costs | None) -> None:
    """Reset the flag that measured times were extrapolated."""
    if isinstance(costs, MeasuredCosts):
        costs.extrapolated = False
