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
from ciar_sim.decide.bench import Measured, measured
from ciar_sim.decide.capacity import (
    ALLOWED,
    LEAST,
    LOOKS,
    MOST,
    MOST_REQUESTS,
    Found,
    Load,
    _sentences,
    _Tester,
    devices_of,
    idle_times,
    late_share,
    most_times,
    rate_of,
    scaled,
    search,
    share_beyond,
)
from simulator.core.errors import CiarSimError
from simulator.engine.workload import poisson_arrivals
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.workload import FleetWorkload, PoissonArrivals
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


class OneServer:
    """Replays a call of one cloud pass, over a link that takes no time, at the arrivals of a scenario: M/D/1."""

    def __init__(self) -> None:
        self.program = one_forward_calls(1, device_passes=0, **COSTS)
        self.lasted_s: set[float] = set()

    def again(self, variants: Sequence[tuple[Case, Scenario]]) -> list[Measured]:
        done = []
        for one, scenario in variants:
            workload = scenario.workload
            assert isinstance(workload, FleetWorkload)
            assert isinstance(workload.arrivals, PoissonArrivals)
            self.lasted_s.add(workload.duration_s)
            asked = poisson_arrivals(
                scenario.seed, workload.arrivals.poisson_per_s, workload.duration_s, workload.devices, 1
            )
            sides = {"device": COSTS["device_costs"], "cloud": COSTS["cloud_costs"]}
            result = case([self.program], asked, network=AT_ONCE, devices=workload.devices, max_batch=1, **sides)
            renewed = Case(one.index, one.position, one.method, one.swept, scenario)
            done.append(measured(Simulated(renewed, SimulatedCase(**vars(result)), {})))
        return done


def test_capacity_is_that_of_m_d_1() -> None:
    """P(W > 2.5 D) = 5 %: the rate that makes it so, within 2 %. The Monte Carlo error of the estimate is some 1 %, at a fixed seed."""
    slo_s = 3.5 * SERVICE_S
    expected = brentq(lambda rate: waits_longer(rate, slo_s - SERVICE_S) - 0.05, 1.0, 0.99 / SERVICE_S)
    start = {"methods": ["base"], "workload": {"devices": 1000, "arrivals": {"poisson_per_s": 20}, "duration_s": 60}}
    one = expand(load_scenario({"name": "queue", **start}))[0]
    found = search(_Tester(OneServer(), one, slo_s, 2500), 0.03, LEAST)  # type: ignore[arg-type]
    assert 20 * found.times == pytest.approx(expected, rel=0.02)
    assert 20 * found.low < expected < 20 * found.high
    assert found.high / found.low < 1.2
    assert max(load.replications for load in found.loads) <= LOOKS[-1]
    far = [load for load in found.loads if not 0.7 < 20 * load.times / expected < 1.3]
    assert all(load.replications == LOOKS[0] for load in far)  # the sequential test ends early where it is clear


@pytest.mark.parametrize(("load", "verdict", "lengths"), [(1.05, -1, 2), (1.025, -1, 2), (0.8, 1, 1)])
def test_more_than_a_server_serves_is_not_carried_though_its_queue_takes_longer_to_be_late(
    load: float, verdict: int, lengths: int
) -> None:
    """Within 100 D: at 1.05 of the server's rate the wait has grown to some 75 D after the 1,500 requests of ten times that."""
    start = {"methods": ["base"], "workload": {"devices": 1000, "arrivals": {"poisson_per_s": 64}, "duration_s": 60}}
    one, server = expand(load_scenario({"name": "queue", **start}))[0], OneServer()
    assert _Tester(server, one, 100 * SERVICE_S, 400)(load).verdict == verdict  # type: ignore[arg-type]
    assert len(server.lasted_s) == lengths
    assert lengths == 1 or max(server.lasted_s) >= 100 * SERVICE_S / 0.02


def known(edge: float, undecided: float) -> Any:
    """A test whose share crosses 5 % at `edge`, and that cannot tell within `undecided` of it."""

    def test(times: float) -> Load:
        verdict = 0 if abs(math.log(times / edge)) < undecided else 1 if times < edge else -1
        return Load(times, 0.05 * times / edge, 0.0, 1.0, 4, verdict)

    return test


@pytest.mark.parametrize("edge", [0.03, 0.9999, 1.0, 7.3, 900.0])
@pytest.mark.parametrize("undecided", [0.0, 0.1])
def test_the_search_brackets_the_edge(edge: float, undecided: float) -> None:
    found = search(known(edge, undecided), 0.01, LEAST)
    assert found.low < edge <= found.high
    assert found.times == pytest.approx(edge, rel=max(0.02, undecided / 2))
    # Undecided loads end it as near to them as the precision asks.
    assert math.log(found.high / found.low) < max(0.05, 2 * undecided + 0.02)


@pytest.mark.parametrize(
    ("edge", "undecided", "low", "high"),
    [(4.3, 0.0, 21, 22), (4.2, 0.01, 20, 22), (0.5, 0.0, 2, 3), (9.0, 0.0, 44, 45)],
)
def test_the_loads_of_a_closed_loop_are_whole_devices_and_none_is_tried_twice(
    edge: float, undecided: float, low: int, high: int
) -> None:
    found = search(known(edge, undecided), 0.01, 1 / 5, MOST, 5)
    devices = [5 * load.times for load in found.loads]
    assert devices == pytest.approx([round(one) for one in devices])
    assert len(set(map(round, devices))) == len(devices)
    assert (5 * found.low, 5 * found.high) == pytest.approx((low, high))


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


class Lindley:
    """M/D/1 by Lindley's recursion: what `OneServer` simulates, in microseconds."""

    def again(self, variants: Sequence[tuple[Case, Scenario]]) -> list[Measured]:
        done = []
        for one, scenario in variants:
            workload = scenario.workload
            assert isinstance(workload, FleetWorkload)
            assert isinstance(workload.arrivals, PoissonArrivals)
            draws = np.random.default_rng(scenario.seed)
            gaps_s = draws.exponential(
                1 / workload.arrivals.poisson_per_s, int(2 * rate_of(workload) * workload.duration_s)
            )
            requested_s = np.cumsum(gaps_s)
            served = np.concatenate([[0.0], np.cumsum(SERVICE_S - gaps_s[1:])])
            latency_s = served - np.minimum.accumulate(served) + SERVICE_S
            kept = (requested_s >= workload.warmup_s) & (requested_s < workload.duration_s)
            done.append(Measured(one, pd.Series(latency_s[kept]), {}, 0, 0))
        return done


@pytest.mark.parametrize("services", [3.5, 15.5])
def test_a_load_is_seldom_said_to_be_what_it_is_not(services: float) -> None:
    """Of M/D/1 at the very edge, either verdict is wrong about a load next to it; over 400 seeds 7 and 8 % are decided at all.

    Late requests come in bursts: at 15.5 services six replications in ten have none. By Student's interval of the share alone a third of
    the seeds called the load carried.
    """
    slo_s, seeds = services * SERVICE_S, 100
    edge = brentq(lambda rate: waits_longer(rate, slo_s - SERVICE_S) - 0.05, 1.0, 0.99 / SERVICE_S)
    start = {"methods": ["base"], "workload": {"devices": 9, "arrivals": {"poisson_per_s": edge}, "duration_s": 60}}
    one = expand(load_scenario({"name": "queue", **start}))[0]
    verdicts = []
    for seed in range(seeds):
        seeded = replace(one, scenario=one.scenario.model_copy(update={"seed": 1000 * seed}))
        verdicts.append(_Tester(Lindley(), seeded, slo_s, 400)(1.0).verdict)  # type: ignore[arg-type]
    assert verdicts.count(1) + verdicts.count(-1) <= 0.12 * seeds


def test_no_load_and_any_load() -> None:
    assert search(known(1e-9, 0.0), 0.01, LEAST).times == 0.0
    endless = search(known(1e9, 0.0), 0.01, LEAST, 8.0)
    assert (endless.times, endless.low, len(endless.loads)) == (math.inf, 8.0, 4)
    assert math.isinf(search(known(1e9, 0.0), 0.01, LEAST).times)


def test_no_load_is_named_as_what_was_shown() -> None:
    """Missed where requests hardly ever meet, or only not decided there; beyond what was tried; a closed loop by its devices."""
    shares = {-1: 0.2, 0: 0.052, 1: 0.01}
    found = []
    for first, idle in ((-1, -1), (-1, 0), (0, 0)):
        of = {1.0: first, 1e-3: idle}
        found.append(search(lambda times, of=of: Load(times, shares[of[times]], 0.0, 1.0, 4, of[times]), 0.1, 1e-3))  # type: ignore[arg-type, misc]
    assert [(one.times, one.low, one.high) for one in found] == [(0, 0, 1e-3), (0, 0, 1.0), (0, 0, math.inf)]
    found += [Found(math.inf, 64.0, math.inf, ()), Found(2.5, 2.0, 3.0, ())]
    table = pd.DataFrame({"method": list("abcde"), "rate_per_s": math.nan, "devices": [0, 0, 0, math.inf, 5]})
    table = table.assign(devices_lo=4, devices_hi=6)
    assert _sentences(table, found, 1.0) == (
        "d carries at least 64 times this load with p95 of the latency within 1 s; higher loads were not tried.",
        "e carries 5 devices (4 to 6), with p95 of the latency within 1 s.",
        "a carries no load with p95 of the latency within 1 s: it misses that even where requests hardly ever meet.",
        *(
            f"{name} is not shown to carry any load with p95 of the latency within 1 s: "
            f"even where requests hardly ever meet, 5.2 % are late, too near the allowed {100 * ALLOWED:g} % to decide."
            for name in "bc"
        ),
    )


def test_whole_devices_of_a_load() -> None:
    found = Found(2.55, 2.52, 2.6, ())
    kinds = ({"think_s": 5}, {"poisson_per_s": 2})
    closed, opened = (FleetWorkload(devices=10, arrivals=arrivals, duration_s=9) for arrivals in kinds)
    assert devices_of(closed, found) == (26, 26, 26)  # 25.2 devices were simulated as 26
    assert devices_of(opened, found) == (25, 25, 26)
    assert devices_of(opened, Found(0.05, 0.04, 0.06, ())) == (1, 1, 1)  # a device that asks less often
    assert devices_of(opened, Found(0.0, 0.0, 0.06, ())) == (0, 0, 1)
    assert devices_of(closed, Found(0.3, 0.3, 0.6, ())) == (3, 3, 6)
    assert devices_of(closed, Found(math.inf, 4.0, math.inf, ())) == (math.inf, 40, math.inf)


@pytest.mark.parametrize(
    ("devices", "arrivals", "most"),
    [
        (10, {"poisson_per_s": 1e-3}, MOST),
        (10, {"poisson_per_s": 100}, 32.0),  # of 10 s after 5 s of warm-up: 1,500 requests at the scenario's load
        (10, {"poisson_per_s": 1e5}, 16.0),  # a scenario of its own size is tried at more
        (10, {"think_s": 1e3}, MOST),
        (1000, {"poisson_per_s": 1e-3}, 8192.0),  # and no more than ten million devices
        (1000, {"think_s": 1}, 32.0),
    ],
)
def test_a_load_that_no_machine_or_nobody_waits_for_is_not_tried(
    devices: int, arrivals: dict[str, float], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = {"devices": devices, "arrivals": arrivals, "duration_s": 1.1}
    monkeypatch.setattr("simulator.experiment.estimate.memory_bytes", lambda: 1e12)
    one = expand(load_scenario({"name": "queue", "methods": ["base"], "workload": workload}))[0]
    assert most_times(one, 20, 1.0) == most
    if "poisson_per_s" in arrivals and most == 32.0:
        assert MOST_REQUESTS / 2 < 1500 * most <= MOST_REQUESTS
    monkeypatch.setattr("simulator.experiment.estimate.memory_bytes", lambda: 1e4)
    assert most_times(one, 20, 1.0) < max(most, 16)


def test_arrivals_of_a_file_come_closer_together_and_none_falls_into_the_warm_up(tmp_path: Path) -> None:
    """The same requests at every load: a file that is over before its warm-up was said to be carried at any load."""
    (tmp_path / "asked.csv").write_text("requested_s\n" + "".join(f"{second}\n" for second in range(200)))
    workload = {"devices": 10, "arrivals": {"trace": str(tmp_path / "asked.csv")}, "duration_s": 100, "warmup_s": 20}
    scenario = load_scenario({"name": "queue", "methods": ["base"], "workload": workload})
    assert rate_of(scenario.workload) == 1.0  # type: ignore[arg-type]
    for times in (idle_times(scenario, 400, 5.0), 0.5, 1.0, 4.0):
        found = scaled(scenario, times, 400, 5.0).workload
        assert isinstance(found, FleetWorkload)
        assert rate_of(found) == pytest.approx(times)
        asked, _ = found.arrivals.times()  # type: ignore[union-attr]
        assert ((asked >= found.warmup_s) & (asked < found.duration_s)).sum() == 80
    dense = scaled(scenario, 100.0, 400, 5.0).workload
    assert (dense.duration_s, dense.warmup_s) == (5.0, 0.2)  # type: ignore[union-attr]


def test_a_replication_without_a_request_tells_nothing(
    fleet: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2,))
    fleet |= {"methods": ["base"], "workload": {"devices": 2, "arrivals": {"think_s": 1e7}, "duration_s": 10}}
    with pytest.raises(
        CiarSimError, match=r"^workload.duration_s: at 1.00 times this load a replication has no request"
    ):
        ciar_sim.capacity(fleet, slo_p95_s=1.0, cache=cache)


def test_a_case_that_fails_leaves_the_others_their_answer(
    fleet: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2,))
    monkeypatch.setattr(module, "MOST", 1.0)
    phone = {"class": "phone", "fp16_tflops": 3.5, "bandwidth_gb_s": 60, "memory_gb": 8.4e-4, "power_w": 6}
    fleet["compute"]["device"]["hardware"] = phone  # without room for the device's weights
    found = ciar_sim.capacity(fleet, slo_p95_s=0.4, requests=20, cache=cache)
    assert found.table["method"].tolist() == ["base"]
    assert found.sentences[-1].startswith("1 case failed and is in no table: ")
    assert "speculative does not fit the device" in found.facts["failed"][0]
    with pytest.raises(CiarSimError, match="speculative does not fit the device"):
        ciar_sim.capacity({**fleet, "methods": ["speculative"]}, slo_p95_s=0.4, requests=20, cache=cache)


@pytest.mark.parametrize("arrivals", [{"poisson_per_s": 2}, {"bursty_per_s": 2, "burst_factor": 3}, {"think_s": 5}])
def test_devices_and_rate_grow_together(arrivals: dict[str, float]) -> None:
    workload = {"devices": 10, "arrivals": arrivals, "duration_s": 100}
    scenario = load_scenario({"name": "queue", "methods": ["base"], "workload": workload})
    larger = scaled(scenario, 2.5, 100, 1.0).workload
    assert isinstance(larger, FleetWorkload)
    assert larger.devices == 25
    assert larger.warmup_s == pytest.approx(larger.duration_s / 3)
    assert "think_s" in arrivals or rate_of(larger) == pytest.approx(5.0)
    counted_s = larger.duration_s - larger.warmup_s
    if "poisson_per_s" in arrivals:
        assert rate_of(larger) * counted_s == pytest.approx(100)
    if "bursty_per_s" in arrivals:  # no bursts, no lateness: five cycles of 30 s of burst and 300 s of calm
        assert counted_s == pytest.approx(5 * 330)


@pytest.mark.parametrize("arrivals", [{"poisson_per_s": 0.05}, {"poisson_per_s": 1e6}, {"think_s": 5}])
@pytest.mark.parametrize("slo_s", [1e-3, 5.0, 1e6])
def test_the_idle_load_can_be_simulated(arrivals: dict[str, float], slo_s: float) -> None:
    workload = {"devices": 4, "arrivals": arrivals, "duration_s": 1200}
    scenario = load_scenario({"name": "queue", "methods": ["base"], "workload": workload})
    times = idle_times(scenario, 400, slo_s)
    assert 0 < times <= 0.5
    assert isinstance(scaled(scenario, times, 400, slo_s).workload, FleetWorkload)


@pytest.fixture
def fleet(scenario: dict[str, Any]) -> dict[str, Any]:
    workload = {"devices": 4, "arrivals": {"poisson_per_s": 4}, "duration_s": 10}
    return {**scenario, "methods": ["base", "speculative"], "workload": workload}


def test_the_command_says_what_each_method_carries(
    fleet: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", (2, 4))
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(fleet))
    command = [
        "capacity",
        str(path),
        "--slo-p95",
        "400ms",
        "--requests",
        "60",
        "--precision",
        "20",
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
