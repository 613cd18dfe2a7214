"""Pricing of recorded sessions by the compute section of a scenario."""

import pytest

from simulator.experiment.cost_table import CostTable
from simulator.experiment.loading import load_scenario
from simulator.experiment.sweep import expand
from simulator.protocol.pairs import pair_manifest

from ..build import call, forward, recording, reply


def test_a_session_is_priced_as_itself_though_those_before_it_are_forgotten() -> None:
    """A source need not keep its recordings, so later recordings may have the same memory address."""
    scenario = load_scenario({"name": "table", "methods": ["base"]})
    (case,) = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), [case], pytest.fail)
    for size in range(128, 148):
        session = recording(call(0, size), [[forward("cloud"), reply()]])
        assert costs.priced(case, [session], {}).kinds[0].programs[0].bytes_up == size
        del session


def test_hardware_that_differs_in_a_late_digit_has_times_of_its_own() -> None:
    figures = {"class": "datacentre", "fp16_tflops": 312, "bandwidth_gb_s": 2039, "memory_gb": 80, "power_w": 400}
    scenario = load_scenario(
        {
            "name": "table",
            "methods": ["base"],
            "compute": {"cloud": {"hardware": figures}},
            "sweep": {"compute.cloud.hardware.bandwidth_gb_s": [2039, 2039.0001]},
        }
    )
    cases = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), cases, pytest.fail)
    assert len({costs.fingerprint(case) for case in cases}) == 2
