"""`compute:` of a scenario: how long a pass takes."""

import itertools
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Tag, ValidationError, ValidationInfo, model_validator

from simulator.core import yamlfile
from simulator.core.errors import ComputeError, ScenarioError
from simulator.core.part import Part, filled_in, found_text, items, mapping_or, path_of
from simulator.core.problems import first_problem, subject
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.pricing import catalogue
from simulator.pricing.own import OwnHardware, OwnModel
from simulator.pricing.profile import Profile

USUAL_HARDWARE = {"device": "snapdragon-8-gen-3", "cloud": "a100"}
SideT = TypeVar("SideT", "DeviceCompute", "CloudCompute")


def _read(profile: str | None, info: ValidationInfo) -> str | None:
    """Resolve a path relative to the scenario's folder and read the file, so that a damaged one is refused when the scenario is loaded."""
    if profile is None or info.context is None:
        return profile
    path = path_of(profile, info)
    try:
        Profile.read(path)
    except ComputeError as error:
        refuse(str(error))
    return str(path)


StoredProfile = Annotated[
    str | None,
    AfterValidator(_read),
    Field(description="file of `ciar-sim profile`, used instead of measuring here; needs hardware: local"),
]


class ThrottleStep(Part):
    """With at least this much heat, in seconds of computing, the device computes at this share of its speed.

    Attributes:
        after_s: Seconds of heat.
        speed: Share of the full speed.
    """

    after_s: float = Field(gt=0, le=1e8)
    speed: float = Field(gt=0, le=1)


class ThermalThrottling(Part):
    """A device slows down under load. Computing adds a second of heat per second, up to the last step; rest removes `cooling`.

    Attributes:
        steps: Speeds by heat, in ascending order of heat.
    """

    steps: Annotated[tuple[ThrottleStep, ...], BeforeValidator(items)] = Field(min_length=1)
    cooling: float = Field(default=1.0, gt=0, le=1e6, description="seconds of heat lost per second of rest")

    @model_validator(mode="after")
    def _ascending(self) -> "ThermalThrottling":
        for index, (before, step) in enumerate(itertools.pairwise(self.steps), start=1):
            if step.after_s <= before.after_s:
                refuse(
                    f"must be above the step before it, {before.after_s:g}, got {step.after_s:g}",
                    "steps",
                    index,
                    "after_s",
                )
        return self


def _one_word(side: Any) -> Any:
    """Accept the name of hardware as `{hardware: NAME}`."""
    return {"hardware": side} if isinstance(side, str) else side


def _file(key: str, form: type[Part]) -> BeforeValidator:
    """Read the figures of a YAML file, named relative to the scenario's folder. The default title is its name.

    The content is validated here, so that errors name its file and line.
    """

    def read(given: Any, info: ValidationInfo) -> Any:
        if given == "":
            refuse("must be a name or a file of figures, got '' (text)")
        if not isinstance(given, str) or info.context is None:
            return given
        if not given.endswith((".yaml", ".yml")):
            if "/" in given or given.endswith((".json", ".toml", ".txt", ".csv")):
                refuse(f"must be a name or a file of figures that ends in .yaml or .yml, got {found_text(given)}")
            return given
        path = path_of(given, info)
        try:
            document = yamlfile.read(path)
        except ScenarioError as error:
            refuse(str(error))
        data = document.data
        if not isinstance(data, dict):
            refuse(f"must be a file of figures, got {found_text(data)} in {path}")
        within = (key,) if isinstance(data.get(key), dict) else ()
        figures = {"title": path.stem, **(data[key] if within else data)}
        try:
            form.model_validate(figures)
        except ValidationError as error:
            place, message = first_problem(error, document, within)
            refuse(f"{document.where(place)}: {subject(place)}{message}")
        return figures

    return BeforeValidator(read)


ChosenHardware = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[OwnHardware, Tag("<own>")],
    mapping_or("<name>", "<own>"),
    _file("hardware", OwnHardware),
    Field(
        description="local (times measured here, with model: pair), a catalogue name, figures, or a YAML file of figures"
    ),
]


def _in_the_cloud(hardware: str | OwnHardware) -> str | OwnHardware:
    """Make figures without a class those of a GPU in a data centre; on the device they are those of a phone."""
    if isinstance(hardware, OwnHardware) and "kind" not in hardware.model_fields_set:
        return hardware.model_copy(update={"kind": "datacentre"})
    return hardware


CloudHardware = Annotated[ChosenHardware, AfterValidator(_in_the_cloud)]


def _known_model(name: str) -> str:
    name = catalogue.canonical("models", name)
    known = ("pair", *catalogue.names("models"))
    if name not in known:
        refuse(f"is not known, got {found_text(name)}{did_you_mean(name, known)}")
    return name


ChosenModel = Annotated[
    Annotated[str, AfterValidator(_known_model), Tag("<name>")] | Annotated[OwnModel, Tag("<own>")],
    mapping_or("<name>", "<own>"),
    _file("model", OwnModel),
    Field(description="pair, a name of `ciar-sim list models`, a shape, or a YAML file of a shape"),
]


Runtime = Literal["eager", "cuda-graphs", "serial"]


class DeviceCompute(Part):
    """How long the device's passes take.

    Attributes:
        runtime: How kernels are launched: eager, cuda-graphs, or serial (a CPU, which reads and computes in turns).
        throttling: Slows every device of the fleet down under load; by default off.
    """

    model: ChosenModel = "llamagen-xl-1layer"
    hardware: ChosenHardware = ""
    runtime: Runtime | None = None
    profile: StoredProfile = None
    throttling: ThermalThrottling | None = None

    @model_validator(mode="after")
    def _fits(self) -> "DeviceCompute":
        return _choose_hardware(self, USUAL_HARDWARE["device"])


class CloudCompute(Part):
    """How long the cloud's passes take.

    Attributes:
        runtime: How kernels are launched: eager, cuda-graphs, or serial (a CPU, which reads and computes in turns).
    """

    model: ChosenModel = "llamagen-xl"
    hardware: CloudHardware = ""
    runtime: Runtime | None = None
    profile: StoredProfile = None

    @model_validator(mode="after")
    def _fits(self) -> "CloudCompute":
        return _choose_hardware(self, USUAL_HARDWARE["cloud"])


def _choose_hardware(side: SideT, default: str) -> SideT:
    hardware = side.hardware or ("local" if side.model == "pair" or side.profile is not None else default)
    if hardware == "local":
        if side.model != "pair" and side.profile is None:
            refuse(
                f"must be a name of the catalogue with model {side.model}, got local; local goes with model: pair, or with a profile "
                "of the model",
                "hardware",
            )
        if side.runtime is not None:
            refuse("goes with catalogue hardware; local times are measured as they are", "runtime")
        return filled_in(side, hardware=hardware)
    if side.profile is not None:
        refuse(f"goes with hardware: local, got {side.model} on {hardware}", "profile")
    if isinstance(hardware, OwnHardware):
        return filled_in(side, runtime=side.runtime or "eager")
    return filled_in(side, hardware=catalogued(hardware, "local"), runtime=side.runtime or "eager")


def at_own_shape(compute: Any) -> Any:
    """Return the plain data of `compute` with both models set to the pair's own, on the default hardware, if neither side names a model."""
    if not isinstance(compute, dict):
        return compute
    sides = {name: _one_word(compute.get(name, {})) for name in USUAL_HARDWARE}
    if any(not isinstance(side, dict) or "model" in side for side in sides.values()):
        return compute
    usual = {name: {} if "profile" in side else {"hardware": USUAL_HARDWARE[name]} for name, side in sides.items()}
    return {**compute, **{name: {"model": "pair", **usual[name], **side} for name, side in sides.items()}}


def catalogued(hardware: str, *more: str) -> str:
    """Return the canonical name of an accelerator. Refuse one that is not in the catalogue. more: names to suggest in addition."""
    name = catalogue.canonical("hardware", hardware)
    known: tuple[str, ...] = catalogue.names("hardware")
    if name not in known:
        refuse(f"is not known, got {found_text(name)}{did_you_mean(name, [*more, *known])}", "hardware")
    return name


class Compute(Part):
    """Sizes and hardware at which passes are priced: both sides at the pair's own size, or both as other models.

    The default model of a device is the one-layer form of the cloud's, if the catalogue has one. With a published model's files and no
    model given, both sides have their own size.

    Attributes:
        device: Model and hardware of the device.
        cloud: Model and hardware of the cloud.
    """

    device: Annotated[DeviceCompute, BeforeValidator(_one_word)] = Field(default_factory=lambda: DeviceCompute())
    cloud: Annotated[CloudCompute, BeforeValidator(_one_word)] = Field(default_factory=lambda: CloudCompute())

    @model_validator(mode="after")
    def _same_size(self) -> "Compute":
        form = catalogue.one_layer(self.cloud.model) if isinstance(self.cloud.model, str) else ""
        if "model" not in self.device.model_fields_set and form in catalogue.names("models"):
            filled_in(self, device=self.device.model_copy(update={"model": form}))
        if (self.device.model == "pair") != (self.cloud.model == "pair"):
            refuse(
                f"device.model {self.device.model} and cloud.model {self.cloud.model} do not belong together; "
                "allowed: pair on both sides, or on neither"
            )
        return self
