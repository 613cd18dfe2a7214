"""Axes of a sweep: ranges, zipped paths, random points, and refused axes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.core.errors import ScenarioError
from simulator.experiment.loading import load_scenario
from simulator.experiment.options import Choice
from simulator.experiment.points import sobol
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.experiment.sweep import expand

BASE: dict[str, Any] = {"name": "t", "methods": ["base", {"name": "ciar", "threshold": 0.3}], "network": "lte"}


def load(*axes: str, sweep: dict[str, Any] | None = None, **choice: Any) -> Scenario:
    return load_scenario({**BASE, "sweep": sweep or {}}, axes, (), Choice(**choice))


def swept(scenario: Scenario, method: str = "base") -> list[tuple[Any, ...]]:
    return [tuple(case.swept.values()) for case in expand(scenario) if case.method.name == method]


def test_a_range_is_the_same_in_the_file_and_on_the_command_line() -> None:
    for text, mapping, values in (
        ("5:80:5:log", {"min": 5, "max": 80, "steps": 5, "scale": "log"}, (5, 10, 20, 40, 80)),
        ("5:80:6", {"min": 5, "max": 80, "steps": 6}, (5, 20, 35, 50, 65, 80)),
        ("1.1:1.7:7:linear", {"min": 1.1, "max": 1.7, "steps": 7}, (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)),
        ("{min: 5, max: 7, steps: 2}", {"min": 5, "max": 7, "steps": 2}, (5, 7)),
    ):
        option = load(f"network.rtt_ms={text}")
        assert option.sweep.axes == {"network.rtt_ms": values}
        assert load(sweep={"network.rtt_ms": mapping}) == option


def test_a_range_of_whole_numbers_holds_whole_numbers_once() -> None:
    values = load("cloud.max_batch=1:8:15:log").sweep.axes["cloud.max_batch"]
    assert values == (1, 2, 3, 4, 5, 6, 7, 8)
    assert all(isinstance(value, int) for value in values)


def test_paths_that_move_together_are_one_axis() -> None:
    s = load("network.up_mbps=1,5", "network.down_mbps=10,50", "seed=1,2", zips=["network.up_mbps,network.down_mbps"])
    assert swept(s) == [(1, 10, 1), (1, 10, 2), (5, 50, 1), (5, 50, 2)]
    axes = {"network.up_mbps": [1, 5], "network.down_mbps": [10, 50], "seed": [1, 2]}
    assert load(sweep={**axes, "zip": ["network.up_mbps", "network.down_mbps"]}) == s
    assert load_scenario(_file(s)) == s


def test_of_paths_that_move_together_a_method_has_those_that_concern_it() -> None:
    s = load("methods.ciar.threshold=0.1,0.2,0.3", "seed=1,2,1", zips=["methods.ciar.threshold,seed"])
    assert swept(s) == [(1,), (2,)]
    assert swept(s, "ciar") == [(0.1, 1), (0.2, 2), (0.3, 1)]


def test_random_points_are_even_repeatable_and_written_out() -> None:
    axes = ("network.rtt_ms=1:1000:log", "network.preset=lte,geo", "methods.ciar.threshold=0.1:0.7:3")
    s = load(*axes, random=64)
    rows = swept(s, "ciar")
    assert len(rows) == 64
    assert swept(s) == [row[:2] for row in rows]  # all methods have the same conditions, so they can be compared
    rtt, preset, threshold = (np.array(column) for column in zip(*rows, strict=True))
    assert [int(np.sum((rtt >= 10.0**k) & (rtt < 10.0 ** (k + 1)))) for k in range(3)] == pytest.approx(
        [21, 21, 21], abs=2
    )
    assert np.sum(preset == "lte") == 32
    assert set(threshold) == {0.1, 0.4, 0.7}
    assert load(*axes, random=64) == s
    assert load(*axes, "seed=3", random=64).sweep.axes["network.rtt_ms"] != s.sweep.axes["network.rtt_ms"]
    assert load_scenario(_file(s)) == s
    assert s.sweep.random is None


def test_sobol_points_fill_every_part_of_the_space() -> None:
    points = np.array(list(sobol(2, 64, 0)))
    cells = {tuple(cell) for cell in np.floor(8 * points).astype(int).tolist()}
    assert cells == set(itertools.product(range(8), range(8)))
    assert len(list(sobol(3, 5, 1))) == 5


def _file(scenario: Scenario) -> dict[str, Any]:
    from simulator.core import yamlfile

    data = yamlfile.parse(resolved_yaml(scenario), "s").data
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize(
    ("axes", "choice", "message"),
    [
        (["network.rtt_ms=5:9"], {}, "--axis network.rtt_ms=5:9: sweep.network.rtt_ms needs steps: "),
        (["network.rtt_ms=9:5:3"], {}, "--axis network.rtt_ms=9:5:3: sweep.network.rtt_ms.max must be above min, 9, got 5"),
        (["network.rtt_ms=0:5:3:log"], {}, "--axis network.rtt_ms=0:5:3:log: sweep.network.rtt_ms.min must be > 0 with "),
        (["network.rtt_ms=1:5:1"], {}, "--axis network.rtt_ms=1:5:1: sweep.network.rtt_ms.steps must be >= 2, got 1"),
        (["network.rtt_ms=-1:5"], {"random": 3}, "--axis network.rtt_ms=-1:5: sweep.network.rtt_ms must be >= 0, got -1"),
        (["network.preset=1:5:3"], {}, "--axis network.preset=1:5:3: sweep.network.preset must be text, got 1"),
        (["seed=1,2", "prompts.seed=1,2,3"], {"zips": ["seed,prompts.seed"]}, "--zip seed,prompts.seed: sweep.zip[0] needs as "),
        (["seed=1,2"], {"zips": ["seed,cloud.replicas"]}, "--zip seed,cloud.replicas: sweep.zip[0] names cloud.replicas, which "),
        (["seed=1,2"], {"zips": ["seed,seed"]}, "--zip seed,seed: sweep.zip[0] names seed twice"),
        (["seed=1,1", "prompts.seed=2,2"], {"zips": ["seed,prompts.seed"]}, "--zip seed,prompts.seed: sweep.zip[0] holds 1, 2 twice"),
        ([], {"random": 3}, "--random 3: sweep.random needs axes to choose from"),
        (["seed=1:2"], {"random": 0}, "--random 0: sweep.random must be >= 1, got 0"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused(axes: list[str], choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(*axes, **choice)
    assert str(caught.value).startswith(message)


def test_more_cases_than_any_machine_can_run_are_refused() -> None:
    axes = [f"{path}=1:1000:100" for path in ("seed", "prompts.seed", "cloud.max_batch")]
    with pytest.raises(ScenarioError, match="sweep: makes 2000000 cases; allowed: 1000000"):
        expand(load_scenario({**BASE, "cloud": {"max_batch": 1}}, axes))


def test_a_preset_can_be_swept_by_its_figures(tmp_path: Path) -> None:
    cases = expand(load("network.rtt_ms=30,60"))
    assert [case.scenario.network.figures().rtt_s for case in cases[:2]] == [0.03, 0.06]
    assert cases[0].scenario.network.figures().radio == "lte"
