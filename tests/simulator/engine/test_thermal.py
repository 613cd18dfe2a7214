"""Thermal throttling against times computed by hand."""

import math
from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.engine.device import FleetPart
from simulator.engine.thermal import ThermalState, Throttling
from simulator.experiment.loading import load_scenario
from simulator.network.access import Network
from tests.simulator.build import UniformCosts, arrivals, case, forward, program

CURVE = Throttling([(4.0, 0.5), (8.0, 0.25)], cooling=0.5)


def test_work_is_stretched_step_by_step() -> None:
    """10 s of work: 4 s at full speed, 2 s of work in 4 s at half speed, and 4 s of work in 16 s at a quarter."""
    thermal = ThermalState(CURVE)
    assert thermal.stretch(0.0, 5.0, 10.0) == (6.0, 4.0 + 4.0 + 16.0)
    assert thermal.heat_s == 8.0  # heat is limited by the last step


def test_rest_cools() -> None:
    thermal = ThermalState(CURVE)
    assert thermal.stretch(0.0, -1.0, 6.0) == (-1.0, 8.0)
    assert thermal.stretch(18.0, -1.0, 1.0) == (-1.0, 1.0)  # 10 s of rest removed 5 s of heat: 3 s remain
    assert thermal.heat_s == 4.0
    assert thermal.stretch(19.0, -1.0, 1.0) == (-1.0, 2.0)
    assert thermal.stretch(1000.0, -1.0, 4.0) == (-1.0, 4.0)  # cold again


def test_no_rest_between_pieces_is_one_piece() -> None:
    whole, pieces = ThermalState(CURVE), ThermalState(CURVE)
    end_s = whole.stretch(0.0, -1.0, 7.0)[1]
    at_s = 0.0
    for _ in range(7):
        at_s += pieces.stretch(at_s, -1.0, 1.0)[1]
    assert (at_s, pieces.heat_s) == (end_s, whole.heat_s)


def test_a_hot_device_serves_later_and_the_parts_still_add_up() -> None:
    """Two simultaneous requests of 4 passes of 2 s: the first takes 4 + 4 + 8 s, the second 4 times its 8 s."""
    costs = UniformCosts(pass_s=2.0, image_decoder_s=0.0)
    one = program([forward()] * 4, first_by_cloud=False, device_costs=costs)
    part = FleetPart(1, [one], costs, Network(math.inf, math.inf, 0.0, 0.0), throttling=CURVE)
    result = case([], arrivals((0, 0, 0), (0, 0, 0)), parts=[part])
    assert result.columns["latency_s"].tolist() == [16.0, 48.0]
    assert result.columns["device_compute_s"].tolist() == [16.0, 32.0]
    assert result.columns["device_queue_s"].tolist() == [0.0, 16.0]
    assert result.columns["first_token_s"].tolist() == [2.0, 24.0]
    assert result.columns["device_energy_j"].tolist() == [8.0 * costs.power_w] * 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{steps: []}", "compute.device.throttling.steps must hold at least one entry"),
        ("{steps: [{after_s: 5, speed: 0}]}", "compute.device.throttling.steps[0].speed must be > 0, got 0"),
        (
            "{steps: [{after_s: 5, speed: 1}, {after_s: 5, speed: 0.5}]}",
            "steps[1].after_s must be above the step before it, 5, got 5",
        ),
        ("{steps: [{after_s: 5, speed: 1}], cooling: 0}", "compute.device.throttling.cooling must be > 0, got 0"),
    ],
)
def test_curves_that_cannot_be_are_refused(tmp_path: Path, given: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: t\nmethods: [base]\ncompute: {{device: {{throttling: {given}}}}}\n")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert says in str(caught.value)
