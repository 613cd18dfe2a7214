"""Rooflines compared with measured times."""

import itertools
from dataclasses import dataclass

from simulator.pricing import catalogue
from simulator.pricing.build import PairShapes
from simulator.pricing.catalogue import Hardware
from simulator.pricing.costs import Work
from simulator.pricing.profile import Profile
from simulator.pricing.roofline import RooflineCosts


@dataclass(frozen=True)
class RooflineCell:
    """One measured pass and its roofline. new_tokens, kv_tokens: of a row, new and cached before."""

    role: str
    rows: int
    new_tokens: int
    kv_tokens: int
    measured_s: float
    roofline_s: float

    @property
    def ratio(self) -> float:
        """Roofline over measured time: 1 is exact, below 1 the roofline is too optimistic."""
        return self.roofline_s / self.measured_s


def compare_with_roofline(profile: Profile, pair: "PairShapes", machine: Hardware) -> list[RooflineCell]:
    """Every pass of a profile with the roofline of the same pass, whose kernels are counted as for the runtime cuda-graphs."""
    cells = []
    for role, table in profile.passes.items():
        shape = pair.device if role == "device" else pair.cloud
        costs = RooflineCosts(shape, {}, machine, catalogue.runtime("cuda-graphs"))
        for i, j, k in itertools.product(
            *(range(len(axis)) for axis in (table.rows, table.new_tokens, table.kv_tokens))
        ):
            at = (table.rows[i], table.new_tokens[j], table.kv_tokens[k])
            cells.append(RooflineCell(role, *at, table.seconds[i][j][k], costs.pass_seconds(Work.of_pass(*at))))
    return cells
