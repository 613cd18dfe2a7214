"""`methods:` of a scenario: each entry a method's name, its label and its settings."""

import operator
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, GetCoreSchemaHandler, Tag, create_model, model_validator
from pydantic_core import CoreSchema

from simulator.core.part import Part, fork, found_text, written
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.protocol.methods import METHODS, GatedSettings, MethodSettings, ThresholdSettings

LABEL = r"^([^\x00-\x20\x7f][^\x00-\x1f\x7f]*)?$"  # printable, and not blank at its start


class CallTarget(Part):
    """A threshold given by its call rate: cloud calls in percent of an image's tokens, measured on prompts of its own."""

    call_pct: float = Field(gt=0, lt=100)
    prompts: int = Field(default=16, ge=1, le=4096, description="captions to calibrate on; none of the scenario's")

    def __str__(self) -> str:
        return f"{self.call_pct:g}%"


Threshold = Annotated[
    Annotated[float, Field(ge=0.0, allow_inf_nan=True), Tag("<number>")] | Annotated[CallTarget, Tag("<target>")],
    fork({"call_pct": "<target>", "prompts": "<target>"}, "<number>"),
]


class MethodEntry(Part, MethodSettings):
    """One method of a scenario under its label.

    Every method has a subclass, which is its settings class, too: its settings are fields of the same mapping, and `check` and
    `can_fall_back` are those of the settings.
    """

    name: str
    label: str = Field(default="", max_length=80, pattern=LABEL)

    @model_validator(mode="after")
    def _target_needs_const(self) -> "MethodEntry":
        mode = getattr(self, "threshold_mode", "const")
        if self.uncalibrated is not None and mode != "const":
            refuse(f"by its call rate goes with threshold_mode const, got {mode}", "threshold")
        return self

    @property
    def uncalibrated(self) -> "UncalibratedMethod | None":
        """The method without its threshold, where that is to be calibrated; None where every setting is known."""
        target = getattr(self, "threshold", None)
        return UncalibratedMethod(self, target) if isinstance(target, CallTarget) else None

    @property
    def settings(self) -> MethodSettings:
        """The method's settings. Not for an uncalibrated method, which has none until its threshold is found."""
        assert self.uncalibrated is None
        return METHODS[self.name].settings.model_validate(self.model_dump(exclude={"name", "label"}))


@dataclass(frozen=True)
class UncalibratedMethod:
    """A method whose threshold is not known yet, only the call rate that it is to lead to."""

    entry: MethodEntry
    target: CallTarget

    @property
    def prefix_rate(self) -> float:
        """Share of tokens that the cloud makes whatever the threshold."""
        assert isinstance(self.entry, GatedSettings)
        return self.entry.prefix_rate

    def at(self, threshold: float) -> MethodEntry:
        """The method with this threshold."""
        return self.entry.model_copy(update={"threshold": threshold})


def _entry_class(name: str, settings: type[MethodSettings]) -> type[MethodEntry]:
    title = "".join(word.capitalize() for word in name.split("-"))
    bases: Any = (settings, MethodEntry)
    literal: Any = Literal[name]
    own: Any = {}
    if issubclass(settings, ThresholdSettings):
        given = settings.model_fields["threshold"]
        own["threshold"] = (
            Threshold,
            Field(default=given.default, description=f"{given.description}; or {{call_pct: PERCENT}}"),
        )
    entry: type[MethodEntry] = create_model(
        f"{title}Entry",
        __base__=bases,
        __doc__=settings.__doc__,
        name=(literal, name),
        label=(str, Field(default="", max_length=80, pattern=LABEL, description="name in tables; unique")),
        **own,
    )
    return entry


ENTRIES: dict[str, type[MethodEntry]] = {name: _entry_class(name, kind.settings) for name, kind in METHODS.items()}


def _entry(data: Any) -> Any:
    """A method's name, or a mapping with `name` whose other keys are settings of that method."""
    if isinstance(data, str):
        data = {"name": data}
    if isinstance(data, MethodEntry):
        return data
    if not isinstance(data, dict):
        refuse(f"must be the name of a method or a mapping with a name, got {found_text(data)}")
    else:
        if "name" not in data:
            refuse(f"must have a name; allowed: {', '.join(METHODS)}")
        name = data["name"]
        if not isinstance(name, str) or name not in METHODS:
            hint = did_you_mean(name, METHODS) if isinstance(name, str) else f"; allowed: {', '.join(METHODS)}"
            refuse(f"is not a known method, got {found_text(name)}{hint}", "name")
        fields = ENTRIES[name].model_fields
        for key in data:
            if key not in fields:
                takes = ", ".join(key for key in fields if key not in ("name", "label")) or "no settings"
                refuse(f"is not a setting of {name}{did_you_mean(key, fields)}; {name} takes {takes}", key)
    return data


class AnyEntry:
    """Validates and serialises a `MethodEntry` as the subclass of its method."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        tagged = tuple(Annotated[entry, Tag(f"<{name}>")] for name, entry in ENTRIES.items())
        choose = Discriminator(
            lambda data: f"<{data['name'] if isinstance(data, dict) else getattr(data, 'name', '')}>"
        )
        return handler.generate_schema(Annotated[reduce(operator.or_, tagged), choose, BeforeValidator(_entry)])


def labelled_entries(methods: tuple[MethodEntry, ...]) -> tuple[MethodEntry, ...]:
    """Fills in labels: the name, with the settings that were given where a method stands more than once."""
    names = [entry.name for entry in methods]
    labelled: list[MethodEntry] = []
    for index, entry in enumerate(methods):
        label = entry.label
        if not label:
            given = [key for key in METHODS[entry.name].settings.model_fields if key in entry.model_fields_set]
            extra = (
                "".join(f" {key}={written(getattr(entry, key))}" for key in given)
                if names.count(entry.name) > 1
                else ""
            )
            label = entry.name + extra
        if any(label == other.label for other in labelled):
            refuse(f"label {label} stands twice; give each method its own label", index)
        labelled.append(entry.model_copy(update={"label": label}))
    return tuple(labelled)
