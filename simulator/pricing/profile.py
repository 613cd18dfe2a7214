"""Measured compute times of models on one machine, and costs interpolated between them."""

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

DtypeName = Literal["float16", "bfloat16", "float32", "float64"]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PassTable(Settings):
    """Times of one model's passes on a complete grid.

    Attributes:
        rows: Rows of a pass, ascending.
        new_tokens: New positions per row, ascending.
        kv_tokens: Cached positions per row before the pass, ascending.
        seconds: seconds[i][j][k] is the time for rows[i], new_tokens[j] and kv_tokens[k].
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
                        f"no time for {axes[0][i]} rows of {axes[1][j]} new and {axes[2][k]} cached tokens"
                    )
        except (TypeError, KeyError, IndexError):
            pass  # not a grid: the checks of the fields report it
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
        format: Version of the file format.
        model: Name of the pair, or of the model in the catalogue.
        weights: Hash of the pair's weights; empty for random weights.
        hardware: Name of the hardware.
        device: cpu or cuda.
        system: Operating system and architecture.
        date: Date of measurement, UTC; for information only.
        threads: CPU threads of torch.
        torch: Version of torch.
        dtype: Dtype of the weights.
        runtime: eager, or cuda-graphs if passes were captured.
        passes: By role: passes with logits at the last position only (prefill and decoding).
        verify: By role: passes over a draft tree or whole scales, with logits at every position; empty if not measured.
        compute_seconds: Seconds at batch size 1, by kind of `Compute`.
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
    dtype: DtypeName = "float32"
    runtime: Literal["eager", "cuda-graphs"] = "eager"
    passes: dict[str, PassTable]
    verify: dict[str, PassTable] = Field(default_factory=dict)
    compute_seconds: dict[str, PositiveSeconds]

    @property
    def value_bytes(self) -> int:
        """Return the bytes of one weight, or of one value in the KV cache."""
        return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read a file. Raises ComputeError if it is missing, is not a profile of this format, or lacks times."""
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
        """Write a file. Raises ComputeError if it cannot be written."""
        try:
            write_atomically(path, (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise ComputeError(f"{path}: cannot be written: {reason(error)}") from None


class MeasuredCosts:
    """Times from a profile: multilinear interpolation between measured points, linear extrapolation beyond (sets `extrapolated`).

    A batch of unequal rows is looked up at its mean number of new tokens and of cached positions per row. No extrapolated time is below
    the shortest measured one.
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
        self._verify = self._table
        if role in profile.verify:
            self._verify = _Interpolated(_from_one_position(profile.verify[role], self.table))

    def __repr__(self) -> str:
        """Return all that its times depend on: the text serves as a key."""
        return f"MeasuredCosts({self.profile!r}, {self.table!r})"

    def pass_seconds(self, work: Work) -> float:
        """Return the seconds of one batched pass. More than one position with logits per row selects the table `verify`."""
        seconds, outside = (self._verify if work.logits > work.rows else self._table).seconds(work)
        self.extrapolated = self.extrapolated or outside
        return seconds

    def compute_seconds(self, kind: str) -> float:
        """Return the seconds of one `Compute`. Raises ComputeError if it was not measured."""
        if kind not in self.profile.compute_seconds:
            raise ComputeError(f"the profile of {self.profile.model} has no time of {kind}; measure the profile again")
        return self.profile.compute_seconds[kind]


def _from_one_position(verify: PassTable, passes: PassTable) -> PassTable:
    """Return verifications with the passes of one position in front, if both have the same rows and cached tokens.

    A verification of one position is such a pass. Drafts at the end of an image are shorter than the smallest tree that is measured.
    """
    alike = (verify.rows, verify.kv_tokens) == (passes.rows, passes.kv_tokens)
    if not alike or passes.new_tokens[0] != 1 or verify.new_tokens[0] == 1:
        return verify
    seconds = [[one[0], *more] for one, more in zip(passes.seconds, verify.seconds, strict=True)]
    return verify.model_copy(update={"new_tokens": [1, *verify.new_tokens], "seconds": seconds})


class _Interpolated:
    """A table of passes, interpolated to any size."""

    def __init__(self, table: PassTable) -> None:
        self.table = table
        self._axes = [[float(x) for x in axis] for axis in (table.rows, table.new_tokens, table.kv_tokens)]
        self._least = min(s for plane in table.seconds for line in plane for s in line)

    def seconds(self, work: Work) -> tuple[float, bool]:
        """Return the seconds of a batched pass, and whether it lies outside the table."""
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
        """Return indices of the two grid points around or nearest to x, and the weight of the second (outside [0, 1] beyond the grid)."""
        if len(axis) == 1:
            return 0, 0, 0.0
        low = min(max(bisect_right(axis, x) - 1, 0), len(axis) - 2)
        return low, low + 1, (x - axis[low]) / (axis[low + 1] - axis[low])
