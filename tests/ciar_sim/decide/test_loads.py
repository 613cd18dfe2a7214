"""A scenario at other loads: how long its replications are, and which loads can be simulated."""

from pathlib import Path

import pytest

from ciar_sim.decide.loads import LONG_REQUESTS, MOST, MOST_REQUESTS, fleet_of, idle_times, most_times, rate_of, scaled
from simulator.experiment.loading import load_scenario
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.sweep import expand


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
        assert counted_s == pytest.approx(50)  # objectives: 250 requests
        longer = scaled(scenario, 2.5, 300, 1.0).workload
        short = scaled(scenario, 2.5, 300, 1.0, long=False).workload
        assert 2 / 3 * longer.duration_s == pytest.approx(300 / 5)  # type: ignore[union-attr]
        assert short == longer
        assert scaled(scenario, 2.5, 20, 1.0, long=False).workload.duration_s == pytest.approx(1.5 * 10)  # type: ignore[union-attr]
        busy = scaled(scenario, 2000.0, 20, 1.0).workload
        assert 2 / 3 * busy.duration_s * rate_of(busy) == pytest.approx(max(LONG_REQUESTS, 10 * 4000))  # type: ignore[union-attr, arg-type]
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


@pytest.mark.parametrize("arrivals", [{"poisson_per_s": 2}, {"bursty_per_s": 2}, {"think_s": 5}])
def test_a_fleet_keeps_its_kinds_at_every_load(arrivals: dict[str, float]) -> None:
    """Rounding would change who asks, or leave a kind without a device: then no load below the scenario's could be simulated."""
    fleet = [{"share": 0.5}, {"share": 0.3, "priority": 1}, {"share": 0.2, "priority": 2}]
    workload = {"devices": 40, "arrivals": arrivals, "duration_s": 100, "fleet": fleet}
    scenario = load_scenario({"name": "queue", "methods": ["base"], "workload": workload})
    closed = "think_s" in arrivals
    idle = idle_times(scenario, 100, 1.0)
    counts = [scaled(scenario, times, 100, 1.0).workload.devices for times in (idle, 0.4, 1.0, 2.0)]
    assert counts == [10, 16 if closed else 20, 40, 80]
    assert idle * 40 == 10 if closed else idle < 0.01


@pytest.mark.parametrize(
    ("shares", "devices", "fewest"), [((0.95, 0.05), 400, 20), ((1 / 3, 2 / 3), 4000, 3), ((0.37, 0.63), 50, 27)]
)
def test_the_fewest_devices_of_a_fleet(shares: tuple[float, ...], devices: int, fewest: int) -> None:
    kinds = [{"share": share, "priority": place} for place, share in enumerate(shares)]
    workload = {"devices": devices, "arrivals": {"poisson_per_s": 1}, "duration_s": 9, "fleet": kinds}
    found = load_scenario({"name": "queue", "methods": ["base"], "workload": workload}).workload
    assert isinstance(found, FleetWorkload)
    assert fleet_of(found, 1) == fewest
    assert fleet_of(found, devices + 1) == devices + 1
