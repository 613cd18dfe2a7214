"""`sweep:` of a scenario: the values of its axes, and how points of them are chosen."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from simulator.core.part import Part, items, mapping_or
from simulator.core.settings import refuse
from simulator.results.columns import BETTER

Scalar = bool | int | Annotated[float, Field(allow_inf_nan=True)] | str
Values = Annotated[tuple[Scalar, ...], BeforeValidator(items), Field(min_length=1)]
DIGITS = 6  # significant digits of the values of a range


class Range(Part):
    """Numbers between two ends, both included.

    Attributes:
        min: The lower end.
        max: The upper end.
        steps: Number of values, ends included; None: any number, for `random` and `tune`.
        scale: linear or log: equal differences or equal ratios.
    """

    min: float
    max: float
    steps: int | None = Field(default=None, ge=2, le=100_000)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min < self.max:
            refuse(f"must be above min, {self.min:g}, got {self.max:g}", "max")
        if self.scale == "log" and self.min <= 0:
            refuse(f"must be > 0 with scale log, got {self.min:g}", "min")
        return self

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the range, rounded to `DIGITS`. The ends are exact."""
        if share in (0.0, 1.0):
            return self.max if share else self.min
        if self.scale == "log":
            value = math.exp(math.log(self.min) + share * (math.log(self.max) - math.log(self.min)))
        else:
            value = self.min + share * (self.max - self.min)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """Round a value of the range to `DIGITS` significant digits."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.min), self.max)

    def values(self) -> tuple[float, ...]:
        """Return the values of a range with steps."""
        assert self.steps is not None
        return tuple(self.at(step / (self.steps - 1)) for step in range(self.steps))


class Tune(Part):
    """A search for settings of the methods with low latency and high quality: multi-objective TPE.

    Attributes:
        trials: Settings tried per method and condition.
        quality: The column of summary.csv that is the second objective, besides latency_mean_s; None: the agreement of images and
            captions (`align_scenes`, `align_photos`).
    """

    trials: int = Field(ge=1, le=100_000)
    quality: str | None = None

    @field_validator("quality")
    @classmethod
    def _known(cls, quality: str | None) -> str | None:
        if quality is not None and quality not in BETTER:
            refuse(f"must be {', '.join(BETTER)}, got {quality}")
        return quality


Axis = Annotated[
    Annotated[Values, Tag("<values>")] | Annotated[Range, Tag("<range>")],
    mapping_or("<values>", "<range>"),
]


class Sweep(BaseModel):
    """Axes by dotted path, each a list of values or a range; together they form a grid.

    Attributes:
        zip: Lists of paths whose values change together.
        random: Number of points spread evenly over all axes (Sobol), instead of the grid.
        tune: Searches settings of the methods by trial; the other axes stay a grid of conditions.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Axis] = Field(init=False)

    zip: Annotated[tuple[Annotated[tuple[str, ...], BeforeValidator(items)], ...], BeforeValidator(items)] = ()
    random: int | None = Field(default=None, ge=1, le=1_000_000)
    tune: Tune | None = None

    @field_validator("zip", mode="before")
    @classmethod
    def _one_group(cls, groups: Any) -> Any:
        """Accept one list of paths as a list with one group."""
        return [groups] if isinstance(groups, list | tuple) and any(isinstance(one, str) for one in groups) else groups

    @field_validator("tune", mode="before")
    @classmethod
    def _number(cls, tune: Any) -> Any:
        """Accept a number of trials as `{trials: N}`."""
        return {"trials": tune} if isinstance(tune, int) and not isinstance(tune, bool) else tune

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.random is not None and self.tune is not None:
            refuse("conflicts with random: two ways to choose points; give one of them", "tune")
        seen: set[str] = set()
        for index, group in enumerate(self.zip):
            for path in group:
                if path not in self.axes:
                    refuse(f"names {path}, which is not an axis of this sweep", "zip", index)
                if path in seen:
                    refuse(f"names {path} twice", "zip", index)
                seen.add(path)
        if not self.axes and (self.random is not None or self.tune is not None):
            refuse("needs axes to choose from", "random" if self.tune is None else "tune")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        choice = {key: plain.pop(key) for key in ("zip", "random", "tune")}
        return {**plain, **{key: value for key, value in choice.items() if value not in ((), None)}}

    @property
    def axes(self) -> "dict[str, tuple[Any, ...] | Range]":
        """Values, or the range from which they are drawn, by dotted path in the order of the file."""
        return dict(self.__pydantic_extra__ or {})
