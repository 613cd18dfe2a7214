"""Runs too large for the machine are refused before anything is recorded; warnings about saturation and events without effect."""

from pathlib import Path
from typing import Any

import pytest

from simulator.cloud.rules import Background, CloudRules, Crash
from simulator.core.errors import CiarSimError, ScenarioError
from simulator.experiment import estimate
from simulator.experiment.estimate import check_size, size_of
from simulator.experiment.inputs import SimulatedCase
from simulator.experiment.loading import load_scenario
from simulator.experiment.provenance import load_warnings
from simulator.experiment.sweep import expand
from tests.simulator.build import UniformCosts, arrivals, call, case, compute, forward, program, reply

HEAD = "name: t\nmethods: [base]\n"


def loaded(folder: Path, text: str) -> Any:
    (folder / "t.yaml").write_text(HEAD + text)
    return load_scenario(folder / "t.yaml", (), ())


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (
            "workload: {arrivals: {poisson_per_s: 1e6}, duration_s: 3600}",
            ("workload", "arrivals"),
            "makes about 3.6e+09 requests",
        ),
        (
            "workload: {arrivals: {bursty_per_s: 1, burst_s: 1e-300, calm_s: 1e-300}, duration_s: 60}",
            ("workload", "arrivals"),
            "makes about 6e+301 bursts",
        ),
        (
            "workload: {devices: 10000000, arrivals: {think_s: 1e6}, duration_s: 60}",
            ("workload", "devices"),
            "makes 1e+07 devices",
        ),
        (
            "network: {preset: wifi, cross_traffic: {up: {busy_s: 1e-3, quiet_s: 1e-3}}, buffer_ms: 10}\n"
            "workload: {devices: 1000, arrivals: {poisson_per_s: 1}, duration_s: 3600}",
            ("workload", "duration_s"),
            "makes about 3.6e+09 turns of cross traffic",
        ),
        (
            "workload: {arrivals: {poisson_per_s: 1e5}, duration_s: 100}\nsweep: {cloud.max_batch: [1, 2, 3, 4, 5, 6]}",
            ("workload", "arrivals"),
            "makes about 6e+07 requests in 6 cases",
        ),
    ],
)
def test_what_no_machine_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: tuple[str, ...], what: str
) -> None:
    monkeypatch.setattr(estimate, "memory_bytes", lambda: 32e9)
    with pytest.raises(ScenarioError, match=r"GB of memory, and this machine has 32 GB") as caught:
        check_size(expand(loaded(tmp_path, text)))
    assert caught.value.place == place
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replicas_and_jobs_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = expand(loaded(tmp_path, "cloud: {replicas: 100000}\nsweep: {cloud.max_batch: [1, 2]}"))
    monkeypatch.setattr(estimate, "memory_bytes", lambda: 0.2e9)
    check_size(many)
    with pytest.raises(ScenarioError, match=r"^cloud.replicas makes 1e\+05 replicas"):
        check_size(many, jobs=2)


def test_what_fits_is_not_refused(tmp_path: Path) -> None:
    for text in (
        "",
        "workload: {devices: 100, arrivals: {think_s: 1e-6}, duration_s: 600}",
        "cloud: {replicas: 100000}",
    ):
        check_size(expand(loaded(tmp_path, text)))
    assert 1e8 < estimate.memory_bytes() < 1e15


def test_arrivals_after_the_end_are_told_and_none_before_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("requested_s\n5\n40\n60\n90\n")
    text = "workload: {{devices: 2, arrivals: {{trace: late.csv}}, duration_s: {}}}"
    scenario = loaded(tmp_path, text.format(60))
    assert size_of(scenario).requests == 2.0
    check_size(expand(scenario))
    found = told(scenario, arrivals((5, 0, 0), (40, 1, 0)))
    assert found == ["base: 2 of 4 arrivals of late.csv come at or after duration_s (60 s) and were left out"]
    assert not told(loaded(tmp_path, text.format(91)), arrivals((5, 0, 0), (40, 1, 0), (60, 0, 0), (90, 0, 0)))
    with pytest.raises(
        CiarSimError, match=r"late.csv: no arrival comes before duration_s \(4 s\), the first of 4 is at 5 s"
    ) as caught:
        check_size(expand(loaded(tmp_path, text.format(4))))
    assert caught.value.place == ("workload", "arrivals", "trace")


def told(scenario: Any, requests: Any, seconds: float = 4.0, **changes: Any) -> list[str]:
    """Return the warnings of a case whose requests take `seconds` in the cloud each."""
    one = program(call(0), [[forward("cloud"), reply()]], cloud_costs=UniformCosts(pass_s=seconds))
    inputs = {
        "cloud": UniformCosts(pass_s=seconds),
        "devices": 2,
        "duration_s": scenario.workload.duration_s,
        "max_batch": 1,
    }
    result = case([one], requests, **{**inputs, **changes})
    return load_warnings(expand(scenario)[0], SimulatedCase(**vars(result)))


def test_a_cloud_is_saturated_by_its_work_over_the_whole_run(tmp_path: Path) -> None:
    """Three requests that queue keep a cloud busy for 12 of 600 s; 155 requests of 4 s keep it busy for the whole run and longer."""
    scenario = loaded(tmp_path, "workload: {devices: 2, arrivals: {poisson_per_s: 1}, duration_s: 600}")
    few = arrivals((0, 0, 0), (1, 1, 0), (2, 0, 0))
    assert not told(scenario, few)
    assert not told(scenario, few, rules=CloudRules(background=Background(0.25, 1 / 64), seed=3))
    many = arrivals(*[(3.9 * n, n % 2, 0) for n in range(155)])
    (text,) = told(scenario, many)
    assert text.startswith("base: the cloud was busy 99.9 % of the time; saturated") or "busy 100.0 %" in text
    assert not told(scenario, many, replicas=2)
    # The cloud is always busy with a batch of two, but the latency does not grow.
    level = arrivals(*[(2.0 * n, n % 8, 0) for n in range(300)])
    wide = loaded(tmp_path, "workload: {devices: 8, arrivals: {poisson_per_s: 1}, duration_s: 600}")
    assert not told(wide, level, devices=8, max_batch=4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("outage_every_s: 90, outage_ms: 5", "an outage comes once in 90 s, and the run takes"),
        (
            "handover: {every_s: 90, gap_ms: 50}",
            "a handover comes once in 90 s, and the run takes",
        ),
        ("devices_per_cell: 9", "devices_per_cell is 9, and there are 2 devices: no cell has more"),
        (
            "cross_traffic: {up: {busy_s: 30, quiet_s: 60}, down: greedy}, buffer_ms: 9",
            "a busy period of cross_traffic comes once in 90 s, and the run takes",
        ),
        (
            "loss_pct: 10, loss_burst_packets: 900",
            "a burst of losses has 900 packets, and the run sends about 2: it is left to chance",
        ),
        ("cross_traffic: {up: {busy_s: 3, quiet_s: 6}}, buffer_ms: 9", ""),
        ("loss_pct: 1, loss_burst_packets: 2", ""),
        ("loss_pct: 1, loss_burst_packets: 5", ""),
        ("loss_pct: 80, loss_burst_packets: 900", ""),
        ("loss_pct: 1", ""),
        ("outage_every_s: 9, outage_ms: 5, devices_per_cell: 2", "an outage comes once in 9 s, and the run takes"),
        ("outage_every_s: 5, outage_ms: 5, devices_per_cell: 2", ""),
    ],
)
def test_what_is_too_rare_for_the_run_is_told(tmp_path: Path, network: str, message: str) -> None:
    load = "workload: {devices: 2, arrivals: {poisson_per_s: 1}, duration_s: 600}"
    scenario = loaded(tmp_path, f"{load}\nnetwork: {{rtt_ms: 9, up_mbps: 1, down_mbps: 1, {network}}}")
    found = told(scenario, arrivals((2, 0, 0)))
    assert [text.startswith(f"base: {message}") for text in found] == [True] * bool(message)


def test_a_device_is_saturated_by_the_pixels_that_it_makes(tmp_path: Path) -> None:
    """The device decodes images for 4 s of every 3.9 s; if the cloud sends pixels (`deliver: image`), the cloud decodes them."""
    costs = UniformCosts(image_decoder_s=4.0)
    one = program([*call(0), compute("image_decoder")], [[forward("cloud"), reply()]], device_costs=costs)
    requests = arrivals(*[(3.9 * n, 0, 0) for n in range(150)])
    text = "workload: {devices: 1, arrivals: {poisson_per_s: 1}, duration_s: 580}"
    scenario = loaded(tmp_path, text)
    result = SimulatedCase(**vars(case([one], requests, device=costs, devices=1, duration_s=580.0)))
    (warning,) = load_warnings(expand(scenario)[0], result)
    assert warning.startswith("base: 1 of 1 devices computed 98 % of the time or more; saturated")
    (tmp_path / "t.yaml").write_text(f"name: t\nmethods: [{{name: base, deliver: image}}]\n{text}")
    assert not load_warnings(expand(load_scenario(tmp_path / "t.yaml", (), ()))[0], result)


def test_requests_before_the_warm_up_and_crashes_after_the_end_are_told(tmp_path: Path) -> None:
    scenario = loaded(
        tmp_path,
        "cloud: {crashes: [{replica: 0, at_s: 500, down_s: 1}]}\n"
        "workload: {devices: 2, arrivals: {poisson_per_s: 1}, duration_s: 600, warmup_s: 100}",
    )
    assert told(scenario, arrivals((5, 0, 0), (40, 1, 0))) == [
        "base: all 2 requests come before warmup_s (100 s), so there are no figures",
        "base: the crash of replica 0 at 500 s comes after the last request and had no effect",
    ]
    assert told(scenario, arrivals())[0] == "base: no request came within duration_s (600 s), so there are no figures"
    gone = CloudRules(crashes=[Crash(0, 50.0, 1e6)])
    only = told(scenario, arrivals((5, 0, 0), (200, 1, 0)), rules=gone, until_s=1200.0)
    assert "base: the only answered request comes before warmup_s (100 s), so there are no figures" in only
    none = told(scenario, arrivals((60, 0, 0)), rules=gone, until_s=1200.0)
    assert "base: no request was answered, so there are no figures" in none


def test_utilisation_by_hand() -> None:
    """One of two replicas is busy from 10 to 14 s. The run lasts 40 s, or until the last answer if no duration is given."""
    one = program(call(0), [[forward("cloud"), reply()]], cloud_costs=UniformCosts(pass_s=4.0))
    inputs: dict[str, Any] = {"cloud": UniformCosts(pass_s=4.0), "replicas": 2}
    requests = arrivals((10, 0, 0))
    assert case([one], requests, **inputs, duration_s=40.0).utilisation == pytest.approx(4 / 80)
    assert case([one], requests, **inputs, duration_s=40.0, warmup_s=12.0).utilisation == pytest.approx(2 / 56, rel=0.1)
    assert case([one], requests, **inputs, duration_s=40.0, warmup_s=20.0).utilisation == 0.0
    alone = case([one], requests, **inputs)
    assert alone.utilisation == pytest.approx(4.0 / (2 * alone.makespan_s))
