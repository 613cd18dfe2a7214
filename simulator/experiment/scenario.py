"""Scenarios, validated before anything slow is imported, and the cases of their sweeps.

Only the YAML has milliseconds and Mbit/s; `Scenario.links` has seconds and bit/s. An error is one line:
`file:line: dotted.key what is wrong, what was found`. For command-line options it begins with the option, such as `--axis path=...`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from simulator.core import yamlfile
from simulator.core.errors import WeightsError
from simulator.core.part import Part, folder_of, found_text, items, mapping_or, path_of
from simulator.core.settings import refuse
from simulator.core.yamlfile import Place
from simulator.experiment.schema.cloud import Cloud, Serving, check_tier
from simulator.experiment.schema.compute import Compute, at_own_shape
from simulator.experiment.schema.described import describe
from simulator.experiment.schema.fallback import FallbackPolicy
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.schema.idle import OF_A_CLOUD, OF_A_FALLBACK, OF_A_LINE, refuse_idle
from simulator.experiment.schema.methods import AnyEntry, MethodEntry, labelled_entries
from simulator.experiment.schema.network import (
    MultipathNetwork,
    OnePath,
    PresetNetwork,
    ScenarioNetwork,
    behind,
    paths_of,
)
from simulator.experiment.schema.prompts import Prompts, ScenePrompts
from simulator.experiment.schema.sweep import Sweep
from simulator.experiment.schema.workload import FleetWorkload, SequentialWorkload, Workload
from simulator.pricing import catalogue
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import (
    PairManifest,
    PairRef,
    PairSpec,
    is_shipped,
    known_pairs,
    pair_manifest,
    why_ambiguous,
)

ScenarioPair = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[PairSpec, Tag("<spec>")],
    mapping_or("<name>", "<spec>"),
]
FIXED = ("name", "pair", "sweep")  # first keys of dotted paths that cannot be swept


class Scenario(Part):
    """A complete scenario. Field names contain their units; `link` gives the network in base units.

    Attributes:
        name: Name of the run folder, runs/NAME.
        prompts: Where the captions come from.
        decoding: How distributions become tokens, for every method.
        methods: Methods to compare: names, or mappings of a name and settings.
        compute: Sizes and hardware at which passes are priced.
        cloud: Replicas, queue, load of others, price; or several clouds as tiers.
        network: A preset, figures, a trace, or several paths.
        fallback: What a device does when a reply is late.
        workload: Devices and their requests.
        seed: Seed of every draw except the prompts.
        sweep: Axes by dotted path, each a list of values or a range.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)
    pair: ScenarioPair = Field(
        default="scenes",
        description="scenes or photos (the embedded pairs), the path of a pair's folder (./NAME where a shipped pair has the name), "
        "or a published model and its files",
    )
    prompts: Prompts = Field(default={}, validate_default=True)
    decoding: Decoding = Field(default={}, validate_default=True)
    methods: Annotated[
        tuple[Annotated[MethodEntry, AnyEntry()], ...],
        BeforeValidator(items),
        Field(min_length=1),
        AfterValidator(labelled_entries),
    ]
    placement: Literal["split", "cloud"] = Field(
        default="split",
        description="cloud: the device's program also runs beside the cloud model; only the image's ids are sent",
    )
    compute: Compute = Field(
        default={}, validate_default=True
    )  # validated as if given, because its defaults depend on the pair
    cloud: Cloud = Field(default_factory=lambda: Cloud())
    network: ScenarioNetwork = Field(default_factory=lambda: PresetNetwork(preset="wifi"))
    fallback: FallbackPolicy = Field(default_factory=lambda: FallbackPolicy())
    workload: Workload = Field(default_factory=SequentialWorkload)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    sweep: Sweep = Field(default_factory=lambda: Sweep())

    @field_validator("pair", mode="before")
    @classmethod
    def _pair(cls, pair: Any, info: ValidationInfo) -> Any:
        if not isinstance(pair, str) or info.context is None:
            return pair
        if doubt := why_ambiguous(pair, folder_of(info)):
            refuse(doubt)
        if pair != "scenes" and not is_shipped(pair):
            path = path_of(pair, info)
            if not path.is_dir():
                shipped = dict.fromkeys(["scenes", *known_pairs()])
                refuse(
                    f"must be {' or '.join(shipped)}, or the path of a folder, got {found_text(pair)}, which is not there"
                )
            return str(path)
        return pair

    @field_validator("decoding", mode="before")
    @classmethod
    def _guidance_of_pair(cls, decoding: Any, info: ValidationInfo) -> Any:
        """Set the default of guidance to the pair's."""
        manifest = _manifest(info.data.get("pair"))
        if not isinstance(decoding, dict) or manifest is None:
            return decoding
        return {"guidance": manifest.guidance, **decoding}

    @field_validator("compute", mode="before")
    @classmethod
    def _compute_of_pair(cls, compute: Any, info: ValidationInfo) -> Any:
        """Set the default models of a published pair to the pair itself, so that its passes are priced at its own shape."""
        return at_own_shape(compute) if isinstance(info.data.get("pair"), PairSpec) else compute

    @field_validator("prompts", mode="before")
    @classmethod
    def _source_of_pair(cls, prompts: Any, info: ValidationInfo) -> Any:
        """Set the default source of prompts to the pair's subject."""
        subject = _subject(info.data.get("pair"))
        drawn = isinstance(prompts, dict) and not {"source", "list", "captions", "file"}.intersection(prompts)
        return {"source": subject, **prompts} if drawn and subject in ("scenes", "photos") else prompts

    @field_validator("prompts", mode="after")
    @classmethod
    def _words_of_pair(cls, prompts: Any, info: ValidationInfo) -> Any:
        subject = _subject(info.data.get("pair"))
        if isinstance(prompts, ScenePrompts) and subject == "other":
            refuse("must be a list or a file: the pair's models draw no captions of their own")
        if isinstance(prompts, ScenePrompts) and subject is not None and prompts.source != subject:
            refuse(f"must be {subject}, whose words the pair knows, got {prompts.source}", "source")
        return prompts

    @model_validator(mode="after")
    def _cloud_and_workload(self) -> "Scenario":
        w, kinds = self.workload, self.workload.fleet
        self._check_tiers()
        for tier, serving in self.servings.items():
            at = ("cloud",) if tier is None else ("cloud", "tiers", tier)
            served = [kind for kind in kinds if (kind.tier or self.cloud.tier) == tier]
            if serving.queue == "priority" and len({kind.priority for kind in served}) < 2:
                refuse("priority needs kinds of different priority in workload.fleet", *at, "queue")
            timed = w.slo_s is not None or (served and all(kind.slo_s is not None for kind in served))
            if serving.queue == "earliest-deadline" and not timed:
                refuse(
                    "earliest-deadline needs deadlines: workload.slo_s, or slo_s of every kind in workload.fleet",
                    *at,
                    "queue",
                )
            if serving.crashes and not isinstance(w, FleetWorkload):
                refuse("needs arrivals in time, not sequential ones", *at, "crashes")
        if any(link.fair for link in self.links):
            fair = (at for at, path in self.paths.items() if at != ("network",) and path.sharing != "fcfs")
            place = next(fair, ("network",))
            if self.fallback.policy != "wait":
                refuse("proportional-fair goes with fallback.policy: wait", *place, "sharing")
            if any(serving.crashes or serving.max_waiting is not None for serving in self.servings.values()):
                refuse("proportional-fair goes with a cloud without crashes and max_waiting", *place, "sharing")
        if self.fallback.policy != "wait" and self.placement == "cloud":
            refuse(
                f"{self.fallback.policy} goes with placement split: with placement cloud no device waits for a reply",
                "fallback",
                "policy",
            )
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "Scenario":
        swept = self.sweep.axes
        refuse_idle(self.cloud, OF_A_CLOUD, ("cloud",), swept)
        refuse_idle(self.fallback, OF_A_FALLBACK, ("fallback",), swept)
        for name, tier in self.cloud.tiers.items():
            refuse_idle(tier, OF_A_CLOUD, ("cloud", "tiers", name), swept)
        for at, path in self.paths.items():
            if not isinstance(path, PresetNetwork):  # presets check this themselves
                refuse_idle(path, OF_A_LINE, at, swept)
        return self

    def _check_tiers(self) -> None:
        tiers, kinds = self.cloud.tiers, self.workload.fleet
        for index, kind in enumerate(kinds):
            if kind.tier is not None:
                check_tier(kind.tier, tiers, "workload", "fleet", index, "tier")
        all_named = bool(kinds) and all(kind.tier for kind in kinds)
        for index, method in enumerate(self.methods):
            if method.tier is not None:
                check_tier(method.tier, tiers, "methods", index, "tier")
                if all_named:
                    refuse("does nothing: every kind in workload.fleet names its tier", "methods", index, "tier")
        if tiers and self.cloud.tier is None and not (all_named or all(method.tier for method in self.methods)):
            refuse(
                f"is missing: one of {', '.join(tiers)}, or tier of every kind in workload.fleet or of every method",
                "cloud",
                "tier",
            )
        for at, path in self.paths.items():
            if tiers and isinstance(path, PresetNetwork) and path.distance_km:
                refuse("conflicts with cloud.tiers: the distance is that of a tier", *at, "distance_km")
        for tier, link in [
            (tier, path) for tier, one in zip(self.tiers, self.links, strict=True) for path in (one, *one.also)
        ]:
            if (
                tier is not None
                and not link.rtt_s
                and (link.jitter_s or any(link.jitter_samples_s))
                and link.trace is None
            ):
                refuse(
                    "leaves no round trip for the jitter of the network; place it further away", "cloud", "tiers", tier
                )

    @property
    def tiers(self) -> list[str | None]:
        """The tier of each kind of device; None for a cloud without tiers."""
        return [kind.tier or self.cloud.tier for kind in self.workload.fleet] or [self.cloud.tier]

    @property
    def servings(self) -> dict[str | None, Serving]:
        """The clouds that serve devices, in the order of the kinds of devices."""
        return {tier: self.cloud if tier is None else self.cloud.tiers[tier] for tier in self.tiers}

    @property
    def paths(self) -> dict[Place, OnePath]:
        """Every path of the scenario's network and of the networks of its kinds of devices, by place."""
        networks: dict[Place, ScenarioNetwork] = {("network",): self.network}
        for index, kind in enumerate(self.workload.fleet):
            if kind.network is not None:
                networks["workload", "fleet", index, "network"] = kind.network
        return {
            (*at, "paths", index) if isinstance(network, MultipathNetwork) else at: path
            for at, network in networks.items()
            for index, path in enumerate(paths_of(network))
        }

    @property
    def links(self) -> list[LinkFigures]:
        """The link of each kind of device to the cloud that serves it, in bit/s and seconds."""
        networks = [kind.network or self.network for kind in self.workload.fleet] or [self.network]
        tiers = self.cloud.tiers
        return [
            network.figures() if tier is None else behind(network, tiers[tier].way_s)
            for network, tier in zip(networks, self.tiers, strict=True)
        ]


@dataclass(frozen=True)
class Case:
    """One cell of the grid: one method with one combination of swept values.

    Attributes:
        index: Its number in the run.
        position: The method's index in the scenario's list.
        method: The method.
        swept: Dotted path -> value, in file order.
        scenario: The scenario with these values and this method only, without a sweep.
    """

    index: int
    position: int
    method: MethodEntry
    swept: dict[str, Any]
    scenario: Scenario

    @property
    def decoding(self) -> Decoding:
        """The scenario's decoding, with the method's own `local` in place of `decoding.device` if it has one."""
        local = getattr(self.method, "local", None)
        return self.scenario.decoding if local is None else self.scenario.decoding.model_copy(update={"device": local})

    def named(self, prefixes: tuple[str, ...]) -> str:
        """Return the label with the swept values of paths with these prefixes, except those already in the label."""
        words = [
            f"{path.rpartition('.')[2]}={value}" for path, value in self.swept.items() if path.startswith(prefixes)
        ]
        return " ".join([self.method.label, *(word for word in words if word not in self.method.label.split())])

    @property
    def title(self) -> str:
        """The method's label and the swept values, for messages and timelines."""
        conditions = ", ".join(f"{path}={value}" for path, value in self.swept.items())
        return f"{self.method.label} {conditions}".strip()


def _manifest(pair: PairRef | None) -> PairManifest | None:
    """Return the pair's manifest, or None if it cannot be read, which is an error only when the pair is loaded."""
    try:
        return None if pair is None else pair_manifest(pair)
    except WeightsError:
        return None


def _subject(pair: PairRef | None) -> str | None:
    manifest = _manifest(pair)
    return None if manifest is None else manifest.subject


def resolved_yaml(scenario: Scenario) -> str:
    """Return the scenario with all defaults as YAML that loads to an equal scenario."""
    return yamlfile.dump(_plain(scenario.model_dump(by_alias=True)))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario file, for editors."""
    schema = TypeAdapter(Scenario).json_schema(by_alias=True)
    methods = schema["properties"]["methods"]
    methods["items"] = {"anyOf": [{"type": "string", "enum": list(METHODS)}, methods["items"]]}
    definitions = schema["$defs"]
    definitions["PresetNetwork"]["properties"]["preset"]["enum"] = list(catalogue.names("networks"))
    for side in ("DeviceCompute", "CloudCompute"):
        definitions[side]["properties"]["hardware"]["examples"] = ["local", *catalogue.names("hardware")]
    describe(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data
