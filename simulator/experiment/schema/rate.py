"""`rate:` of a network: how its rates vary about their means."""

from typing import Annotated

from pydantic import AfterValidator, Tag

from simulator.core.part import found_text, mapping_or
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.traces.gaps import Gaps, fitted

CONSTANT = "constant"


def _known(name: str) -> str:
    known = [CONSTANT, *fitted()]
    if name not in known:
        refuse(f"is not a known way to vary, got {found_text(name)}{did_you_mean(name, known)}")
    return name


# constant, a fit of `simulator/traces/gaps.yaml`, or the figures that `ciar-sim traces fit` prints.
Variation = Annotated[
    Annotated[str, AfterValidator(_known), Tag("<name>")] | Annotated[Gaps, Tag("<figures>")],
    mapping_or("<name>", "<figures>"),
]


def gaps_of(rate: str | Gaps | None) -> Gaps | None:
    """Return the scheduling gaps of `rate:`, or None for rates without gaps."""
    if isinstance(rate, str):
        return None if rate == CONSTANT else fitted()[rate].gaps
    return rate
