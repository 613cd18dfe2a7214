"""Measured times of a pair on one machine, and costs interpolated between them."""

import itertools
import json
from bisect import bisect_right
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from simulator.core.errors import ComputeError, reason
from simulator.core.files import read_file, write_atomically
from simulator.core.settings import Settings
from simulator.pricing.costs import Work

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PassTable(Settings):
    """Times of one model's passes on a grid; one with missing times is refused.

    Attributes:
        rows: Sequences of a pass, ascending.
        new_tokens: New positions of a row, ascending.
        kv_tokens: Positions of a row in the cache before the pass, ascending.
        seconds: seconds[i][j][k] belongs to rows[i], new_tokens[j] and kv_tokens[k].
    """

    rows: list[int] = Field(min_length=1)
    new_tokens: list[int] = Field(min_length=1)
    kv_tokens: list[int] = Field(min_length=1)
    seconds: list[list[list[PositiveSeconds]]]

    @model_validator(mode="before")
    @classmethod
    def _no_holes(cls, data: Any) -> Any:
        try:
            axes = [data[name] for name in ("rows", "new_tokens", "kv_tokens")]
            for i, j, k in itertools.product(*(range(len(axis)) for axis in axes)):
                if data["seconds"][i][j][k] is None:
                    raise ValueError(
                        f"a hole, no time for {axes[0][i]} rows of {axes[1][j]} new and {axes[2][k]} cached tokens"
                    )
        except (TypeError, KeyError, IndexError):
            pass  # not a grid; the fields' own checks say why
        return data

    @model_validator(mode="after")
    def _whole(self) -> "PassTable":
        for name in ("rows", "new_tokens", "kv_tokens"):
            axis = getattr(self, name)
            if any(b <= a for a, b in itertools.pairwise(axis)):
                raise ValueError(f"{name} must increase, got {axis}")
        shape = (len(self.rows), len(self.new_tokens), len(self.kv_tokens))
        if len(self.seconds) != shape[0] or any(
            len(plane) != shape[1] or any(len(line) != shape[2] for line in plane) for plane in self.seconds
        ):
            raise ValueError(f"seconds must have the shape {shape} of its axes")
        return self


class Profile(Settings):
    """Measured times of models on one machine: of a pair, or of a model of the catalogue with random weights.

    Attributes:
        format: Of the file.
        model: The pair's name, or the model's in the catalogue.
        weights: Hash of the pair's weights, empty where they are random.
        hardware: What it ran on, in words.
        device: cpu or cuda.
        system: Operating system and architecture.
        date: Of measuring, in UTC, on which nothing depends.
        threads: Of torch on the processor.
        torch: Its version.
        dtype: Of the weights.
        runtime: eager, or cuda-graphs where passes were captured.
        passes: By role, passes whose last position alone is read out (prefill and decoding).
        verify: By role, passes over a tree of drafts or over whole scales, every position read out; empty where they were not measured.
        compute_seconds: By kind, batch 1.
    """

    format: Literal[1] = 1
    model: str
    weights: str = Field(default="", description="hash of the pair's weights")
    hardware: str
    device: str = ""
    system: str = ""
    date: str = ""
    threads: int = Field(ge=1)
    torch: str
    dtype: str = "float32"
    runtime: Literal["eager", "cuda-graphs"] = "eager"
    passes: dict[str, PassTable]
    verify: dict[str, PassTable] = Field(default_factory=dict)
    compute_seconds: dict[str, PositiveSeconds]

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Raises ComputeError where the file is missing, is not a profile of this format, or lacks times."""
        try:
            return cls.model_validate_json(read_file(path))
        except OSError as error:
            raise ComputeError(f"{path}: cannot be read: {reason(error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "file"
            said = first["msg"].removeprefix("Value error, ")
            raise ComputeError(f"{path}: {place}: {said}; measure it again with ciar-sim profile") from None

    def write(self, path: Path) -> None:
        """Raises ComputeError where the file cannot be written."""
        try:
            write_atomically(path, (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise ComputeError(f"{path}: cannot be written: {reason(error)}") from None


class MeasuredCosts:
    """Times from a profile: multilinear between measured points, linear beyond them (then `extrapolated` is set).

    A batch of unequal rows is looked up at its mean numbers of new tokens and cached positions per row.
    """

    def __init__(self, profile: Profile, role: str) -> None:
        if role not in profile.passes:
            held = ", ".join(profile.passes) or "none"
            raise ComputeError(f"the profile of {profile.model} holds no passes of {role}; held: {held}")
        self.table = profile.passes[role]
        self.profile = profile
        self.power_w = float("nan")
        self.extrapolated = False
        self.provenance: dict[str, Any] = {}
        self._table = _Interpolated(profile.passes[role])
        self._verify = _Interpolated(profile.verify[role]) if role in profile.verify else self._table

    def __repr__(self) -> str:
        """All that decides its times."""
        return f"MeasuredCosts({self.profile!r}, {self.table!r})"

    def pass_seconds(self, work: Work) -> float:
        """Seconds of one batched pass; one that reads out more than a position a row is looked up among those of drafts."""
        seconds, outside = (self._verify if work.logits > work.rows else self._table).seconds(work)
        self.extrapolated = self.extrapolated or outside
        return seconds

    def compute_seconds(self, kind: str) -> float:
        """Seconds of one `Compute`. Raises ComputeError where it was not measured."""
        if kind not in self.profile.compute_seconds:
            raise ComputeError(f"the profile of {self.profile.model} has no time of {kind}; measure the profile again")
        return self.profile.compute_seconds[kind]


class _Interpolated:
    """A table of passes at any size."""

    def __init__(self, table: PassTable) -> None:
        self.table = table
        self._axes = [[float(x) for x in axis] for axis in (table.rows, table.new_tokens, table.kv_tokens)]
        self._least = min(s for plane in table.seconds for line in plane for s in line)

    def seconds(self, work: Work) -> tuple[float, bool]:
        """Seconds of a batched pass, and whether it lies outside the table."""
        asked = (float(work.rows), work.tokens / work.rows, (work.kv_tokens - work.tokens) / work.rows)
        outside = any(not axis[0] <= x <= axis[-1] for axis, x in zip(self._axes, asked, strict=True))
        ends = [self._bracket(axis, x) for axis, x in zip(self._axes, asked, strict=True)]
        seconds = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = 1.0
            at: list[int] = []
            for (low, high, share), side in zip(ends, corner, strict=True):
                weight *= share if side else 1.0 - share
                at.append(high if side else low)
            i, j, k = at
            seconds += weight * self.table.seconds[i][j][k]
        return max(seconds, self._least), outside

    @staticmethod
    def _bracket(axis: list[float], x: float) -> tuple[int, int, float]:
        """Indices of the two grid points around x, or nearest to it, and the weight of the second (outside [0, 1] beyond the grid)."""
        if len(axis) == 1:
            return 0, 0, 0.0
        low = min(max(bisect_right(axis, x) - 1, 0), len(axis) - 2)
        return low, low + 1, (x - axis[low]) / (axis[low + 1] - axis[low])
