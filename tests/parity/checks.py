"""The registry of parity checks: one function per kind of golden file, for pytest and `python -m tests.parity FOLDER`.

To add one, in any module of this package (`checks()` imports all of them):

    @check("llamagen_gpt_*_io*.safetensors", reads=("{}.pt", "{}_config.json"))
    def decoder(file: Path, tally: Tally) -> None:
        for case in ...:
            tally.case()
            tally.close("probabilities", found, wanted, atol=1e-6)
            tally.equal("tokens", found, wanted)

`{}` in `reads` stands for the file's name up to its last `_io`, or without its extension. Sizes, counts and settings come from the files,
never from a check. The command fails on a file that no check matches, so no file is skipped silently.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NOISES, MOST = 4.0, 2.0**-12  # see `rounding`


def rounding(found: Tensor, exact: Tensor) -> float:
    """Return the largest difference between two float32 implementations that rounding explains.

    It is `NOISES` times the largest difference of float32 from float64: the reference rounds in another order, with an error of the same
    size. More than 2^-12 of the largest value is no rounding of float32, but of half precision (2^-11), so it is never allowed.
    """
    if not exact.numel():
        return 0.0
    noise = float((found.double() - exact.double()).abs().max())
    return min(NOISES * noise, MOST * float(exact.abs().max()))


@dataclass
class Tally:
    """Result of one check.

    Attributes:
        cases: Number of cases.
        largest: Largest absolute error.
        failures: Values beyond their tolerance.
        skipped: Parts of the file that are not compared, and why.
    """

    cases: int = 0
    largest: float = 0.0
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def case(self) -> None:
        """Start the next case."""
        self.cases += 1

    def close(
        self, name: str, found: Any, wanted: Any, atol: float, rtol: float = 0.0, exact: Tensor | None = None
    ) -> None:
        """Compare floats: equal shapes, and |found - wanted| <= atol + rtol |wanted| everywhere. NaN equals nothing.

        exact: The same as `found`, computed in float64. What separates the two is the rounding of float32, which grows with the size of
            weights and logits and with guidance; `rounding` says how much more than atol it explains.
        """
        one, two = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
        if exact is not None and one.shape == two.shape == exact.shape:
            atol = max(atol, rounding(one, exact))
        if one.shape != two.shape:
            self._fail(name, f"shape {list(one.shape)} where {list(two.shape)} is wanted")
            return
        error = torch.where(one == two, 0.0, (one - two).abs())  # equal infinities have no error
        if error.numel():
            self.largest = max(self.largest, float(error.nan_to_num(torch.inf).max()))
        if not bool(((one == two) | (error <= atol + rtol * two.abs())).all()):
            allowed = f"{atol:g}" + (f" + {rtol:g} x" if rtol else "")
            self._fail(name, f"off by {float(error.nan_to_num(torch.inf).max()):.3g}, allowed {allowed}")

    def equal(self, name: str, found: Any, wanted: Any) -> None:
        """Compare exactly: integers, masks, tokens, trees."""
        if isinstance(found, Tensor) or isinstance(wanted, Tensor):
            found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
            if found.shape != wanted.shape:
                self._fail(name, f"shape {list(found.shape)} where {list(wanted.shape)} is wanted")
            elif not torch.equal(found, wanted.to(found.dtype)):
                self._fail(name, f"differs in {int((found != wanted).sum())} of {found.numel()} places")
        elif found != wanted:
            self._fail(name, f"is {found!r} where {wanted!r} is wanted")

    def picked(self, name: str, logits: Tensor, wanted: Tensor, apart: float) -> None:
        """Compare greedy tokens int [...] with the logits [..., V] that chose them: each must be the arg max, or tie with it.

        Two logits tie if float32 cannot tell which is larger: they are less than `apart` from each other.
        """
        best = logits.max(-1).values - logits.gather(-1, wanted.long().unsqueeze(-1)).squeeze(-1)
        if ties := int(((best > 0) & (best <= apart)).sum()):
            self.skipped.append(f"case {self.cases}: {name}: {ties} of {best.numel()} are ties within {apart:.2g}")
        if wrong := int((best > apart).sum()):
            self._fail(name, f"differs in {wrong} of {best.numel()} places")

    def _fail(self, name: str, what: str) -> None:
        self.failures.append(f"case {self.cases}: {name} {what}")


@dataclass(frozen=True)
class Check:
    """A check of one kind of golden file.

    Attributes:
        pattern: Pattern of the names of the files that `run` compares.
        reads: Patterns of the companions (weights, configurations, cases) that it reads for them.
        run: Function (file, tally) that compares everything in a file.
    """

    pattern: str
    reads: tuple[str, ...]
    run: Callable[[Path, Tally], None]

    def companions(self, name: str) -> list[str]:
        """Return the names, or patterns of names, of the files read for the file `name`."""
        return [companion.replace("{}", stem(name)) for companion in self.reads]


_CHECKS: dict[str, Check] = {}


def stem(name: str) -> str:
    """Return a file's name up to its last `_io`, or without its extension."""
    begin = name.removesuffix(".safetensors")
    return begin.rpartition("_io")[0] or begin


def check_of(name: str) -> Check | None:
    """Return the check for a file name, or None. A file of a subfolder has none: the check of its folder's companions reads it."""
    return next((one for pattern, one in checks().items() if "/" not in name and fnmatchcase(name, pattern)), None)


def check(
    pattern: str, reads: tuple[str, ...] = ()
) -> Callable[[Callable[[Path, Tally], None]], Callable[[Path, Tally], None]]:
    """Register a function (file, tally) as the check of files whose name matches `pattern`."""

    def register(run: Callable[[Path, Tally], None]) -> Callable[[Path, Tally], None]:
        assert pattern not in _CHECKS, f"{pattern} has two checks"
        _CHECKS[pattern] = Check(pattern, reads, run)
        return run

    return register


def checks() -> dict[str, Check]:
    """Import the modules of this package and return all checks by pattern."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith(("__", "test_")):
            importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_CHECKS.items()))
