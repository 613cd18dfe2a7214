"""The greatest load within an objective: against the closed form of M/D/1, and the test that decides a load."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from click.testing import CliRunner
from scipy.optimize import brentq

import ciar_sim
from ciar_sim.cli.main import main
from ciar_sim.decide import capacity as module
from ciar_sim.decide import loads as loads_module
from ciar_sim.decide.bench import Measured, measured
from ciar_sim.decide.capacity import (
    ALLOWED,
    AT_MOST,
    IN_BRACKET,
    LOOKS,
    Found,
    Load,
    Replayed,
    Tried,
    _sentences,
    devices_of,
    late_share,
    search,
    share_beyond,
)
from ciar_sim.decide.loads import LEAST, MOST, rate_of
from simulator.core.errors import CiarSimError
from simulator.engine.workload import poisson_arrivals
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.simulating import Simulated
from simulator.experiment.sweep import expand
from simulator.network.access import Network
from tests.simulator.build import UniformCosts, case, one_forward_calls

pytestmark = pytest.mark.usefixtures("undrawn")

SERVICE_S = 1 / 64
AT_ONCE = Network(up_bps=1e15, down_bps=1e15, up_delay_s=0.0, down_delay_s=0.0)
COSTS = {"device_costs": UniformCosts(pass_s=0.0), "cloud_costs": UniformCosts(pass_s=SERVICE_S)}


def waits_longer(rate_per_s: float, t: float) -> float:
    """P(W > t) of M/D/1 (Erlang 1909): 1 - (1 - rho) sum over k <= t / D of (rate (k D - t))^k / k! exp(-rate (k D - t))."""
    terms = [
        (rate_per_s * (k * SERVICE_S - t)) ** k / math.factorial(k) * math.exp(-rate_per_s * (k * SERVICE_S - t))
        for k in range(int(t / SERVICE_S) + 1)
    ]
    return 1.0 - (1.0 - rate_per_s * SERVICE_S) * sum(terms)


class Queue:
    """The replications of M/D/1, in place of a scenario's; `simulated` returns the latencies of one load, rate and seed."""

    def __init__(self, slo_s: float, requests: int, seed: int = 0) -> None:
        workload = {"devices": 1000, "arrivals": {"poisson_per_s": 20}, "duration_s": 60}
        self.case = expand(load_scenario({"name": "queue", "methods": ["base"], "workload": workload}))[0]
        self.case = replace(self.case, scenario=self.case.scenario.model_copy(update={"seed": seed}))
        self.replays = Replayed(self, self.case, slo_s, requests)  # type: ignore[arg-type]
        self.requests = 0

    def again(self, variants: Sequence[tuple[Case, Scenario]]) -> list[Measured]:
        done = [self.simulated(one, scenario) for one, scenario in variants]
        self.requests += sum(one.asked for one in done)
        return done

    def simulated(self, one: Case, scenario: Scenario) -> Measured:
        raise NotImplementedError


def renewed(one: Case, scenario: Scenario) -> Case:
    return replace(one, scenario=scenario)


class OneServer(Queue):
    """Replays a call of one cloud pass, over a link that takes no time, at the arrivals of a scenario."""

    program = one_forward_calls(1, device_passes=0, **COSTS)

    def simulated(self, one: Case, scenario: Scenario) -> Measured:
        workload = scenario.workload
        assert isinstance(workload, FleetWorkload)
        asked = poisson_arrivals(scenario.seed, rate_of(workload), workload.duration_s, workload.devices, 1)
        sides = {"device": COSTS["device_costs"], "cloud": COSTS["cloud_costs"]}
        result = case([self.program], asked, network=AT_ONCE, devices=workload.devices, max_batch=1, **sides)
        return measured(Simulated(renewed(one, scenario), SimulatedCase(**vars(result)), {}))


class Lindley(Queue):
    """Lindley's recursion: what `OneServer` simulates, in microseconds."""

    def simulated(self, one: Case, scenario: Scenario) -> Measured:
        workload = scenario.workload
        assert isinstance(workload, FleetWorkload)
        draws = np.random.default_rng(scenario.seed)
        number = draws.poisson(rate_of(workload) * workload.duration_s)
        requested_s = np.sort(draws.uniform(0.0, workload.duration_s, number))
        served = np.concatenate([[0.0], np.cumsum(SERVICE_S - np.diff(requested_s))])
        latency_s = served - np.minimum.accumulate(served) + SERVICE_S
        return Measured(
            renewed(one, scenario), pd.Series(latency_s[requested_s >= workload.warmup_s]), {}, 0, 0, 0, number
        )


def edge(slo_s: float) -> float:
    """The rate at which 5 % of the requests of M/D/1 take longer than `slo_s`."""
    return float(brentq(lambda rate: waits_longer(rate, slo_s - SERVICE_S) - 0.05, 1.0, 0.99 / SERVICE_S))


def test_capacity_is_that_of_m_d_1() -> None:
    """P(W > 2.5 D) = 5 %: the rate that makes it so, within 2 %. The standard deviation of the estimate is 1 %, at a fixed seed."""
    slo_s = 3.5 * SERVICE_S
    queue = OneServer(slo_s, 1000)
    found = search(queue.replays, 0.02, 1000, LEAST)
    assert 20 * found.times == pytest.approx(edge(slo_s), rel=0.02)
    assert 20 * found.low < edge(slo_s) < 20 * found.high
    assert found.high / found.low < 1.1
    far = [load for load in found.loads if not 0.5 < 20 * load.times / edge(slo_s) < 2.0]
    assert all(load.replications == IN_BRACKET for load in far)


@pytest.mark.parametrize("services", [3.5, 8.0, 15.5])
def test_the_interval_holds_the_closed_form_of_m_d_1(services: float) -> None:
    """Over 100 seeds both ends hold in 94 to 97 %, and the standard deviation of the estimate is 1.0 to 1.1 %."""
    expected, seeds, held, errors = edge(services * SERVICE_S), 8, 0, []
    for seed in range(seeds):
        found = search(Lindley(services * SERVICE_S, 1000, 10_000 * seed).replays, 0.02, 1000, LEAST)
        held += 20 * found.low <= expected <= 20 * found.high
        errors.append(math.log(20 * found.times / expected))
    assert held >= seeds - 2
    assert float(np.median(np.abs(errors))) < 0.02


@pytest.mark.parametrize("services", [100.0])
def test_more_than_a_server_serves_is_not_carried_though_its_queue_takes_long_to_be_late(services: float) -> None:
    """Within 100 D: at 1.05 of the server's rate the wait has grown to some 75 D after the 1,500 requests of ten times that."""
    found = search(Lindley(services * SERVICE_S, 400).replays, 0.02, 400, LEAST)
    assert 0.96 / SERVICE_S < 20 * found.times < 1.01 / SERVICE_S
    assert 20 * found.low < 1.0 / SERVICE_S


class Known:
    """A share that crosses 5 % at `edge`, whose logit is linear in the logarithm of the load."""

    def __init__(self, edge: float, slope: float, burst: float = 0.0) -> None:
        self.edge, self.slope, self.burst = edge, slope, burst
        self.draws = np.random.default_rng(0)
        self.loads: list[float] = []

    def tried(self, loads: Sequence[float], long: bool) -> list[Tried]:
        done = []
        for times in loads:
            self.loads.append(times)
            logit = math.log(0.05 / 0.95) + self.slope * math.log(times / self.edge) + self.draws.normal(0, self.burst)
            done.append(Tried(times, int(self.draws.binomial(1000, scipy.special.expit(logit))), 1000))
        return done

    def verdict(self, times: float) -> tuple[int, list[Tried]]:
        return (1 if times < self.edge else -1), self.tried([times] * 4, False)


@pytest.mark.parametrize("at", [0.03, 0.9999, 1.0, 7.3, 900.0])
@pytest.mark.parametrize(("slope", "burst"), [(3.0, 0.0), (20.0, 0.5), (400.0, 0.0)])
def test_the_search_finds_the_edge(at: float, slope: float, burst: float) -> None:
    found = search(Known(at, slope, burst), 0.01, 1000, LEAST)
    assert 0.97 * found.low <= at <= 1.03 * found.high
    assert found.times == pytest.approx(at, rel=0.03)
    assert math.log(found.high / found.low) < 0.12
    assert sum(load.replications for load in found.loads) <= AT_MOST + 2 * 20


@pytest.mark.parametrize(
    ("at", "devices", "carried"), [(4.3, 5, 21), (0.5, 5, 2), (9.0, 5, 45), (9.01, 5, 45), (3.5, 1, 3), (0.9, 200, 180)]
)
def test_the_loads_of_a_closed_loop_are_whole_devices(at: float, devices: int, carried: int) -> None:
    known = Known(at, 400.0)
    found = search(known, 0.01, 1000, 1 / devices, MOST, devices)
    tried = [devices * load.times for load in found.loads]
    assert tried == pytest.approx([round(one) for one in tried])
    assert abs(math.floor(devices * found.times) - carried) <= (round(devices * at) == devices * at)
    assert len(set(map(round, tried))) == len(tried)


def latencies(*late_and_asked: tuple[int, int]) -> list[tuple[np.ndarray, int]]:
    """Replications of which so many requests take 2 s and the others 1 s."""
    return [(np.repeat([2.0, 1.0], [late, asked - late]), 0) for late, asked in late_and_asked]


def test_a_share_is_over_all_requests_and_not_the_mean_of_shares() -> None:
    """A replication with a burst has more requests, and more of them late."""
    bursts = latencies((0, 100), (90, 300), (0, 100), (30, 100))
    share, half = share_beyond(bursts, 1.5)
    assert share == 120 / 600
    off = [0 - 20, 90 - 60, 0 - 20, 30 - 20]
    spread = math.sqrt(sum(one**2 for one in off) / 3 / 4) / 150
    assert half == pytest.approx(float(scipy.stats.t.ppf(1 - 0.025 / 3, 3)) * spread)
    assert late_share(bursts, 1.5) == pytest.approx(
        (0.2, 0.2 * math.exp(-half / 0.2), min(1.0, 0.2 * math.exp(half / 0.2)))
    )
    refused = [(latency_s[latency_s < 2], int((latency_s == 2).sum())) for latency_s, _ in bursts]
    assert share_beyond(refused, 1.5) == (share, half)
    assert late_share(refused, 9.0) == late_share(bursts, 1.5)
    assert late_share(latencies((0, 100), (0, 50)), 1.5) == (0.0, 0.0, 0.0)


def test_where_nobody_is_late_the_spread_is_that_of_the_latest() -> None:
    """One replication of four has a burst just below the objective: that no request is late in any says little."""
    rising = np.linspace(1.0, 2.0, 100)  # of the four together, 5 % are later than the 20th latest of the burst
    burst = [(rising if place == 1 else rising / 2, 0) for place in range(4)]
    share, low, high = late_share(burst, 2.0)
    assert (share, low) == (0.0, 0.0)
    assert high == share_beyond(burst, rising[-21])[1]
    assert high > ALLOWED


def test_no_load_and_any_load() -> None:
    none = search(Known(1e-9, 3.0), 0.01, 1000, LEAST)
    assert (none.times, none.low, none.high, none.missed) == (0.0, 0.0, LEAST, True)
    endless = search(Known(1e9, 3.0), 0.01, 1000, LEAST, 8.0)
    assert (endless.times, endless.low, len(endless.loads)) == (math.inf, 8.0, 4)
    assert [load.replications for load in endless.loads] == [IN_BRACKET] * 3 + [IN_BRACKET + 4]
    assert math.isinf(search(Known(1e9, 3.0), 0.01, 1000, LEAST).times)


def test_no_load_is_named_as_what_was_shown() -> None:
    """Missed where requests hardly ever meet, or only not decided there; beyond what was tried; a closed loop by its devices."""
    idle = (Load(1e-3, 0.052, 400, 16), Load(1.0, 0.5, 400, 2))
    found = [Found(0.0, 0.0, 1e-3, idle, True), Found(0.0, 0.0, math.inf, idle)]
    found += [Found(math.inf, 64.0, math.inf, ()), Found(2.5, 2.0, 3.0, ())]
    table = pd.DataFrame({"method": list("abde"), "rate_per_s": math.nan, "devices": [0, 0, math.inf, 5]})
    table = table.assign(devices_lo=4, devices_hi=6)
    assert _sentences(table, found, 1.0) == (
        "d carries at least 64 times this load with p95 of the latency within 1 s; higher loads were not tried.",
        "e carries 5 devices (4 to 6), with p95 of the latency within 1 s.",
        "a carries no load with p95 of the latency within 1 s: it misses that even where requests hardly ever meet.",
        "b is not shown to carry any load with p95 of the latency within 1 s: "
        f"even where requests hardly ever meet, 5.2 % are late, too near the allowed {100 * ALLOWED:g} % to decide.",
    )


@pytest.mark.parametrize(("late_pct", "verdict"), [(0, 1), (3, 1), (5, 0), (8, -1), (100, -1)])
def test_the_test_of_one_load_ends_where_it_is_clear(late_pct: int, verdict: int) -> None:
    """Of 400 requests, each replication has two late ones more or fewer than the last."""

    class Fixed(Queue):
        number = 0

        def simulated(self, one: Case, scenario: Scenario) -> Measured:
            self.number += 1
            late = min(max(late_pct * 4 + (-1) ** self.number * 2 * (0 < late_pct < 100), 0), 400)
            return Measured(one, pd.Series(np.repeat([2.0, 1.0], [late, 400 - late])), {}, 0, 0, 0, 400)

    queue = Fixed(1.5, 400)
    found, done = queue.replays.verdict(1.0)
    assert found == verdict
    assert len(done) == queue.number == (LOOKS[-1] if not verdict else LOOKS[0])


def test_whole_devices_of_a_load() -> None:
    found = Found(2.55, 2.52, 2.63, ())
    kinds = ({"think_s": 5}, {"poisson_per_s": 2})
    closed, opened = (FleetWorkload(devices=10, arrivals=arrivals, duration_s=9) for arrivals in kinds)
    assert devices_of(closed, found) == devices_of(opened, found) == (25, 25, 26)
    assert devices_of(opened, Found(0.05, 0.04, 0.06, ())) == (1, 1, 1)  # a device that asks less often
    assert devices_of(opened, Found(0.0, 0.0, 0.06, ())) == (0, 0, 1)
    assert devices_of(closed, Found(0.32, 0.3, 0.6, ())) == (3, 3, 6)
    assert devices_of(closed, Found(0.09, 0.08, 0.6, ())) == (0, 0, 6)
    assert devices_of(closed, Found(math.inf, 4.0, math.inf, ())) == (math.inf, 40, math.inf)


def test_a_replication_without_a_request_tells_nothing(
    fleet: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2,))
    monkeypatch.setattr(module, "AT_MOST", 4)
    fleet |= {"methods": ["base"], "workload": {"devices": 2, "arrivals": {"think_s": 1e7}, "duration_s": 10}}
    with pytest.raises(
        CiarSimError, match=r"^workload.duration_s: at 1.00 times this load a replication has no request"
    ):
        ciar_sim.capacity(fleet, slo_p95_s=1.0, cache=cache)


def test_a_case_that_fails_leaves_the_others_their_answer(
    fleet: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2,))
    monkeypatch.setattr(module, "AT_MOST", 4)
    monkeypatch.setattr(loads_module, "MOST", 1.0)
    phone = {"class": "phone", "fp16_tflops": 3.5, "bandwidth_gb_s": 60, "memory_gb": 8.4e-4, "power_w": 6}
    fleet["compute"]["device"]["hardware"] = phone  # without room for the device's weights
    found = ciar_sim.capacity(fleet, slo_p95_s=0.4, requests=20, cache=cache)
    assert found.table["method"].tolist() == ["base"]
    assert found.sentences[-1].startswith("1 case failed and is in no table: ")
    assert found.facts["failed"][0].startswith("speculative: ")
    assert "speculative does not fit the device" in found.facts["failed"][0]
    with pytest.raises(CiarSimError, match="speculative does not fit the device"):
        ciar_sim.capacity({**fleet, "methods": ["speculative"]}, slo_p95_s=0.4, requests=20, cache=cache)


@pytest.fixture
def fleet(scenario: dict[str, Any]) -> dict[str, Any]:
    workload = {"devices": 4, "arrivals": {"poisson_per_s": 4}, "duration_s": 10}
    return {**scenario, "methods": ["base", "speculative"], "workload": workload}


def test_the_command_says_what_each_method_carries(
    fleet: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2, 4))
    monkeypatch.setattr(module, "AT_MOST", 12)
    monkeypatch.setattr(loads_module, "LONG_REQUESTS", 20)
    monkeypatch.setattr(loads_module, "SHORT", 2.0)
    fleet["workload"]["arrivals"] = {"poisson_per_s": 128}
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(fleet))
    command = [
        "capacity",
        str(path),
        "--slo-p95",
        "400ms",
        "--requests",
        "40",
        "--precision",
        "20%",
        "--cache",
        str(cache),
    ]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "base carries" in shown.stdout.splitlines()[0]  # one call an image: it carries more than a call per token
    file = tmp_path / "answers" / "capacity.json"
    shown = CliRunner().invoke(main, [*command, "--json", "--out", str(file)])
    known = json.loads(shown.stdout)
    assert json.loads(file.read_text()) == known
    drawn = CliRunner().invoke(
        main, ["plot", str(file), "capacity", "--size", "3.3in", "--out", str(tmp_path / "a.svg")]
    )
    assert drawn.exit_code == 0, drawn.output
    svg = (tmp_path / "a.svg").read_text()
    assert all(f"{row['rate_per_s']:.3g}/s" in svg for row in known["table"])
    assert known["slo_p95_s"] == 0.4
    rows = {row["method"]: row for row in known["table"]}
    assert rows["base"]["rate_lo_per_s"] <= rows["base"]["rate_per_s"] <= rows["base"]["rate_hi_per_s"]
    assert rows["base"]["rate_per_s"] > 4
    assert {row["method"] for row in known["loads"]} == {"base", "speculative"}


def test_an_objective_below_the_latency_of_one_image_is_carried_at_no_load(
    fleet: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps({**fleet, "methods": ["base"]}))
    command = ["capacity", str(path), "--slo-p95", "1ms", "--requests", "20", "--cache", str(cache)]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("base carries no load with p95 of the latency within 0.001 s: ")


def test_a_device_that_is_not_there_is_one_line(fleet: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CiarSimError, match="cuda:77"):
        ciar_sim.capacity(fleet, slo_p95_s=1.0, torch_device="cuda:77", cache=tmp_path)


def test_one_at_a_time_has_no_capacity(scenario: dict[str, Any], cache: Path) -> None:
    with pytest.raises(CiarSimError, match="arrivals in time") as raised:
        ciar_sim.capacity(scenario, slo_p95_s=1.0, cache=cache)
    assert "\n" not in str(raised.value)


def test_times_and_percentages_are_read_or_refused(tmp_path: Path) -> None:
    for option in (
        ["capacity", "x", "--slo-p95", "0"],
        ["capacity", "x", "--slo-p95", "fast"],
        ["recommend", "x", "--max-loss", "a lot"],
    ):
        refused = CliRunner().invoke(main, option)
        assert refused.exit_code == 2
        assert option[2] in refused.output
