"""`methods:` of a scenario: each entry a method's name, its label and its settings."""

import operator
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, GetCoreSchemaHandler, Tag, create_model, model_validator
from pydantic_core import CoreSchema

from simulator.core.part import Part, fork, found_text, written
from simulator.core.settings import Settings, refuse
from simulator.core.yamlfile import did_you_mean
from simulator.protocol.methods import (
    METHODS,
    LocalTokens,
    MethodSettings,
    RandomSettings,
    ThresholdMode,
    ThresholdSettings,
)

LABEL = r"^([^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?)?$"  # printable, and not blank at its ends


DEFAULT_CALL_PCT = 30.0  # about the paper's 30.44 % of cloud calls


class CallTarget(Part):
    """A threshold given by its rate of cloud calls, measured on separate prompts."""

    call_pct: float | None = Field(
        default=None,
        gt=0,
        lt=100,
        description="cloud calls in percent of an image's tokens; default 30, or with a budget the rate that follows from it",
    )
    prompts: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="captions to calibrate on, none of the scenario's; default 8 with threshold_mode even or a given budget, else 64, or "
        "all that prompts.calibration names if there are fewer",
    )

    def __str__(self) -> str:
        return "calibrated" if self.call_pct is None else f"{self.call_pct:g}%"


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
    tier: str | None = Field(
        default=None, description="the tier of the cloud that serves this method, instead of cloud.tier"
    )

    @property
    def target(self) -> CallTarget | None:
        """The target of the calibration; None if all settings are known."""
        threshold = getattr(self, "threshold", None)
        return threshold if isinstance(threshold, CallTarget) else None

    @property
    def settings(self) -> MethodSettings:
        """The method's settings. Not available before calibration of a method that needs it."""
        assert self.target is None
        return METHODS[self.name].settings.model_validate(self._given())

    def at(self, **found: Any) -> "MethodEntry":
        """Return the method with calibrated settings."""
        return self.model_copy(update=found)

    def _given(self) -> dict[str, Any]:
        fields = METHODS[self.name].settings.model_fields
        return {key: value for key, value in self.model_dump().items() if key in fields}


class _Thresholded(Settings):
    """Mixin for entries with `ThresholdSettings`, which are calibrated unless the threshold is a number."""

    if TYPE_CHECKING:  # fields of the entry
        name: str
        threshold: float | CallTarget | None
        threshold_mode: ThresholdMode | None
        budget: float | None

    @property
    def mode(self) -> ThresholdMode:
        if self.threshold_mode is not None:
            return self.threshold_mode
        own: ThresholdMode = METHODS[self.name].settings.model_fields["threshold_mode"].default
        return own if isinstance(self.threshold, float) else "even"

    @property
    def target(self) -> CallTarget | None:
        if isinstance(self.threshold, float):
            return None
        return self.threshold or CallTarget()

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        if isinstance(self.threshold, CallTarget) and self.threshold.call_pct is not None and self.budget is not None:
            refuse(
                f"goes without threshold.call_pct: either gives the share, got budget {self.budget:g} and "
                f"call_pct {self.threshold.call_pct:g}",
                "budget",
            )
        return self

    def _given(self) -> dict[str, Any]:
        return {**super()._given(), "threshold_mode": self.mode}  # type: ignore[misc]


class _Rated(Settings):
    """Mixin for entries of `random`, whose rate follows from the target of cloud calls unless it is given."""

    if TYPE_CHECKING:  # fields of the entry
        threshold: CallTarget | None
        upload_rate: float | None

    @property
    def target(self) -> CallTarget | None:
        return None if self.upload_rate is not None else self.threshold or CallTarget()

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.threshold is not None and self.upload_rate is not None:
            refuse("goes without threshold: either gives the share of calls", "upload_rate")
        return self


def _entry_class(name: str, settings: type[MethodSettings]) -> type[MethodEntry]:
    title = "".join(word.capitalize() for word in name.split("-"))
    bases: tuple[Any, ...] = (settings, MethodEntry)
    fields = settings.model_fields
    literal: Any = Literal[name]
    own: dict[str, Any] = {}
    if settings.local_tokens:
        local = "how the device picks its tokens here; default: as decoding.device"
        own["local"] = (LocalTokens | None, Field(default=None, description=local))
    if issubclass(settings, ThresholdSettings):
        bases = (_Thresholded, *bases)
        described = (
            f"{fields['threshold'].description}; or {{call_pct: PERCENT}}, calibrated, which is the default at 30"
        )
        own["threshold"] = (Threshold | None, Field(default=None, description=described))
        mode = fields["threshold_mode"]
        described = (
            f"{mode.description}; default: {mode.default} for a number as threshold, the mode even for a calibrated one"
        )
        own["threshold_mode"] = (ThresholdMode | None, Field(default=None, description=described))
    elif issubclass(settings, RandomSettings):
        bases = (_Rated, *bases)
        rate = fields["upload_rate"]
        described = f"{rate.description}; default: the value that gives the target rate of calls"
        own["upload_rate"] = (float | None, Field(default=None, ge=0.0, le=1.0, description=described))
        described = "{call_pct: PERCENT}: the calls that upload_rate follows from; default 30"
        own["threshold"] = (CallTarget | None, Field(default=None, description=described))
    elif "threshold" in fields:
        given = fields["threshold"]
        described = f"{given.description}; or {{call_pct: PERCENT}}, calibrated"
        own["threshold"] = (Threshold, Field(default=given.default, description=described))
    entry: type[MethodEntry] = create_model(
        f"{title}Entry",
        __base__=bases,
        __doc__=settings.__doc__,
        name=(literal, Field(default=name, description="the method")),
        label=(str, Field(default="", max_length=80, pattern=LABEL, description="name in tables; unique")),
        **own,
    )
    return entry


ENTRIES: dict[str, type[MethodEntry]] = {name: _entry_class(name, kind.settings) for name, kind in METHODS.items()}


def settings_of(name: str) -> list[str]:
    """Return the keys of a method's entry without name and label."""
    return [key for key in ENTRIES[name].model_fields if key not in ("name", "label")]


def _entry(data: Any) -> Any:
    """Parse a method's name, or a mapping of `name` and settings of that method."""
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
                takes = ", ".join(settings_of(name)) or "no settings"
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
    """Set default labels: the name, with the given settings if a method occurs more than once."""
    names = [entry.name for entry in methods]
    labelled: list[MethodEntry] = []
    for index, entry in enumerate(methods):
        label = entry.label
        if not label:
            given = [key for key in settings_of(entry.name) if key in entry.model_fields_set]
            extra = (
                "".join(f" {key}={written(getattr(entry, key))}" for key in given)
                if names.count(entry.name) > 1
                else ""
            )
            label = entry.name + extra
        if label in METHODS and label != entry.name:
            refuse(f"label {label} is the name of another method; choose one of its own", index)
        if label == "none":
            refuse("label none stands for no method in tables; choose another", index)
        if any(label == other.label for other in labelled):
            refuse(f"label {label} is used twice; give each method its own label", index)
        labelled.append(entry.model_copy(update={"label": label}))
    return tuple(labelled)
