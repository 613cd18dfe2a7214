"""Cloud, workload and fallback of a scenario: refused values, effects in the simulation, warnings, and load columns of the summary."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from simulator.core.errors import ScenarioError
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.workload import bursty_arrivals, device_counts, read_times
from simulator.experiment.inputs import cloud_tier, simulate_case
from simulator.experiment.loading import load_scenario
from simulator.experiment.provenance import load_warnings
from simulator.experiment.scenario import Scenario
from simulator.experiment.sweep import expand
from simulator.network.access import Network
from simulator.results.columns import REQUEST_COLUMNS
from simulator.results.tables import CaseRecords, summary_table
from tests.simulator.build import DEVICE_COSTS, UniformCosts, call, forward, program, reply
from tests.simulator.traces.examples import ARRIVALS

HEAD = "name: t\nmethods: [base]\n"
POISSON = "workload: {devices: 4, arrivals: {poisson_per_s: 1}, duration_s: 60"


def load(folder: Path, text: str) -> Scenario:
    (folder / "t.yaml").write_text(HEAD + text)
    return load_scenario(folder / "t.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cloud: {max_batch: 0}", "cloud.max_batch must be >= 1, got 0"),
        ("cloud: {queue: lifo}", "cloud.queue must be fifo, shortest-first, earliest-deadline or priority, got 'lifo'"),
        (
            "cloud: {replicas: 2, crashes: [{replica: 2, at_s: 1, down_s: 1}]}",
            "cloud.crashes[0].replica must be below replicas, 2",
        ),
        ("cloud: {crashes: [{replica: 0, at_s: 1, down_s: 1}]}", "cloud.crashes needs arrivals in time"),
        ("cloud: {max_waiting: 3}", "cloud.max_waiting goes with max_sessions or kv_memory_gb"),
        (
            "cloud: {replicas: 4, autoscale: {max_replicas: 2, sessions_per_replica: 1}}",
            "cloud.autoscale.max_replicas must be >= replicas",
        ),
        ("cloud: {background: {utilisation: 1.0}}", "cloud.background.utilisation must be <= 0.999, got 1"),
        ("cloud: {queue: earliest-deadline}", "cloud.queue earliest-deadline needs deadlines"),
        ("cloud: {queue: priority}", "cloud.queue priority needs kinds of different priority"),
        (POISSON.replace("}", ", burst_s: 3}") + "}", "workload.arrivals.burst_s goes with bursty_per_s only"),
        ("workload: {devices: 2, arrivals: {unit: ms}, duration_s: 9}", "workload.arrivals.unit goes with trace only"),
        ("fallback: {deadline_ms: 200}", "fallback.deadline_ms does nothing without policy, which is missing"),
        ("fallback: {then: wait}", "fallback.then does nothing without policy, which is missing"),
        (
            POISSON + ", fleet: [{share: 0.5}, {share: 0.4}]}",
            "workload.fleet must have shares that add up to 1, got 0.5 + 0.4 = 0.9",
        ),
        (
            POISSON + ", fleet: [{share: 0.99}, {share: 0.01}]}",
            "workload.fleet[1].share is not a whole device: 0.01 of 4 devices",
        ),
        (
            POISSON + ", fleet: [{share: 1, hardware: a1000}]}",
            "workload.fleet[0].hardware must be a name of the catalogue, got 'a1000'",
        ),
        (POISSON + ", warmup_s: 60}", "workload.warmup_s must be below duration_s 60"),
        (
            "workload: {arrivals: {poisson_per_s: 1, think_s: 2}, duration_s: 9}",
            "workload.arrivals.think_s conflicts with poisson_per_s",
        ),
        ("workload: {arrivals: {poison_per_s: 1}, duration_s: 9}", "workload.arrivals.poison_per_s is not a known key"),
        ("workload: {arrivals: {trace: none.csv}, duration_s: 9}", "none.csv: cannot be read"),
        ("fallback: {policy: resume, deadline_ms: 9}", "fallback.policy must be wait, device or retry, got 'resume'"),
        ("fallback: {policy: device}", "fallback.deadline_ms is missing: policy device needs to know how long to wait"),
        ("fallback: {policy: retry, deadline_ms: 0}", "fallback.deadline_ms must be > 0, got 0"),
        ("fallback: {policy: retry, deadline_ms: 9, attempts: 1}", "fallback.attempts must be >= 2, got 1"),
        ("fallback: {policy: retry, deadline_ms: 9, then: fail}", "fallback.then must be device or wait, got 'fail'"),
        ("fallback: {policy: device, deadline_s: 9}", "fallback.deadline_s is not a known key"),
        (
            "fallback: {policy: device, deadline_ms: 9}\nplacement: cloud",
            "fallback.policy device goes with placement split",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, text + "\n")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("time\n1\n", "is of no known trace format; first line: 'time'; looked for: "),
        ("requested_s\n1\nx\n", ":3: 'x' is not a number (column requested_s)"),
        ("requested_s\n2\n1\n", ":3: requested_s goes back: 1 after 2; allowed: never decreasing"),
        ("requested_s\n-1\n", ":2: requested_s must be >= 0, got -1"),
        ("requested_s\nnan\n", ":2: 'nan' is not a finite number"),
        ("0 1\n1 2\n", "holds a network trace (time-rate); needed: request arrivals"),
        ("requested_s\n", "holds a header and no rows"),
    ],
)
def test_a_trace_of_arrivals_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_times(path)
    assert says in str(caught.value)


def test_arrivals_are_read_once_for_as_long_as_their_file_stays(tmp_path: Path) -> None:
    """A published trace has millions of requests, and every case of a sweep reads them."""
    path = tmp_path / "a.csv"
    path.write_text("requested_s\n1\n2\n")
    times, _ = read_times(path)
    assert read_times(path)[0] is times
    assert not times.flags.writeable
    assert read_times(path, time_scale=2.0)[0].tolist() == [2, 4]
    path.write_text("requested_s\n1\n2\n3\n")
    assert read_times(path)[0].tolist() == [1, 2, 3]
    path.unlink()
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_times(path)


def run(folder: Path, text: str, pass_s: float = 1 / 64) -> tuple[object, object]:
    scenario = load(folder, text + "\n")
    case = expand(scenario)[0]
    cloud = UniformCosts(pass_s=pass_s)
    one = program(call(0), [[forward("cloud", rows=1, kv_caption=0), reply()]], cloud_costs=cloud)
    free = Network(math.inf, math.inf, 0.0, 0.0)
    fleet = [FleetPart(scenario.workload.devices, [one], DEVICE_COSTS, free)]
    return case, simulate_case(case.scenario, fleet, [cloud_tier(scenario.cloud, 0, cloud, math.inf)])


def test_requests_come_when_the_trace_says(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("requested_s\n0.5\n2\n2\n90\n")
    for part, times in (
        ("", [0.5, 2.0, 2.0]),
        (", window_s: [0, 2]", [0.0, 1.5, 1.5]),
        (", window_s: [1, 90]", [0.5, 0.5]),
    ):
        _, result = run(tmp_path, f"workload: {{devices: 2, arrivals: {{trace: times.csv{part}}}, duration_s: 60}}")
        assert result.columns["requested_s"].tolist() == times  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", ["azure", "burstgpt", "gentd26", "mooncake", "bailian"])
def test_requests_come_when_a_foreign_trace_says(case: str, tmp_path: Path) -> None:
    """Times count from the first request."""
    (tmp_path / "foreign").write_bytes(ARRIVALS[case][0].encode())
    _, result = run(tmp_path, "workload: {devices: 2, arrivals: {trace: foreign}, duration_s: 60}")
    expected = {
        "azure": [0.0, 2.0],
        "burstgpt": [0.0, 4.0],
        "gentd26": [0.0, 0.0, 10.0],
        "mooncake": [0.0, 0.0, 4.0],
        "bailian": [0.0, 0.5, 4.0],
    }
    assert result.columns["requested_s"].tolist() == expected[case]  # type: ignore[attr-defined]


def test_a_scenario_names_the_line_of_a_bad_arrivals_file(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text(ARRIVALS["mooncake"][0].replace("4000", '"late"'))
    with pytest.raises(
        ScenarioError, match=r"arrivals\.trace .*foreign:3: key timestamp: must be a number >= 0, got 'late'"
    ):
        run(tmp_path, "workload: {devices: 2, arrivals: {trace: foreign}, duration_s: 60}")


def test_a_saturated_cloud_is_said_to_be_and_the_run_ends(tmp_path: Path) -> None:
    """At a load of 4, half of about 60 requests are served within 120 s."""
    case, result = run(tmp_path, "cloud: {max_batch: 1}\n" + POISSON + "}", pass_s=4.0)
    assert result.makespan_s == 120.0  # type: ignore[attr-defined]
    assert len(result.columns["request"]) in (28, 29, 30)  # type: ignore[attr-defined]
    assert result.unfinished > 0  # type: ignore[attr-defined]
    texts = load_warnings(case, result)  # type: ignore[arg-type]
    assert any("saturated" in text for text in texts)


def test_a_cloud_that_keeps_up_is_not_warned_of(tmp_path: Path) -> None:
    case, result = run(tmp_path, POISSON + "}", pass_s=1 / 64)
    assert load_warnings(case, result) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job_ms", "workload", "says"),
    [
        (1e6, POISSON + "}", "base: background jobs of 1000 s begin 0.0"),
        (1000, POISSON + "}", ""),
        (8000, POISSON + "}", "background jobs of 8 s begin"),
        (1000, "workload: {arrivals: sequential}", "background jobs of 1 s begin"),
    ],
)
def test_jobs_of_other_tenants_that_are_too_few_or_too_long_for_their_share_are_told(
    tmp_path: Path, job_ms: float, workload: str, says: str
) -> None:
    """The runs last a minute, or a few seconds for sequential requests. A job that may outlast the run gives a warning too."""
    cloud = f"cloud: {{background: {{utilisation: 0.5, job_ms: {job_ms:g}}}}}\n"
    texts = load_warnings(*run(tmp_path, cloud + workload))  # type: ignore[arg-type]
    assert sum(bool(says) and says in text for text in texts) == bool(says)
    assert says or not texts


def test_no_share_of_other_tenants_is_none(tmp_path: Path) -> None:
    """An axis over the utilisation of other tenants may begin at 0."""
    alone = run(tmp_path, POISSON + "}")[1]
    case, result = run(tmp_path, "cloud: {background: {utilisation: 0}}\n" + POISSON + "}")
    assert all(np.array_equal(values, alone.columns[name]) for name, values in result.columns.items())  # type: ignore[attr-defined]
    assert load_warnings(case, result) == []  # type: ignore[arg-type]


def test_cloud_keys_reach_the_simulation(tmp_path: Path) -> None:
    """One place and no queue: at load 1, half of the requests are refused (Erlang B)."""
    text = "cloud: {max_batch: 1, max_sessions: 1, max_waiting: 0}\nworkload: {devices: 4, arrivals: {poisson_per_s: 1}, duration_s: 400}"
    case, result = run(tmp_path, text, pass_s=1.0)
    asked = len(result.columns["request"]) + result.refused  # type: ignore[attr-defined]
    assert abs(result.refused / asked - 0.5) < 4.5 * math.sqrt(0.25 / asked)  # type: ignore[attr-defined]
    refused = f"{result.refused} of {asked} requests were refused"  # type: ignore[attr-defined]
    assert any(refused in told for told in load_warnings(case, result))  # type: ignore[arg-type]


def test_bursts_keep_the_mean_rate_and_cluster() -> None:
    """60 seeds: mean count within 4.2 standard errors (exceeded once in 10,000), and a variance above Poisson's (one-sided chi-square)."""
    counts = np.array([len(bursty_arrivals(seed, 1.0, 10.0, 20.0, 200.0, 2000.0, 3, 5)) for seed in range(60)], float)
    assert abs(counts.mean() - 2000.0) < 4.2 * counts.std(ddof=1) / math.sqrt(60)
    assert 59 * counts.var(ddof=1) / 2000.0 > stats.chi2.ppf(0.9999, 59)


def test_a_longer_duration_only_adds_bursts() -> None:
    short, long = (bursty_arrivals(3, 1.0, 5.0, 20.0, 50.0, duration_s, 3, 5) for duration_s in (200.0, 900.0))
    assert np.allclose(short.requested_s, long.requested_s[: len(short)])
    assert np.array_equal(short.device, long.device[: len(short)])


def test_a_calm_that_outlasts_the_run_costs_nothing() -> None:
    """Only ten seconds of 1e8 s of calm at one request per second are drawn."""
    assert 1 <= len(bursty_arrivals(1, 1.0, 10.0, 1e-6, 1e8, 10.0, 3, 5)) <= 25


@pytest.mark.parametrize(
    ("shares", "devices", "counts"), [([0.5, 0.5], 3, [2, 1]), ([0.7, 0.2, 0.1], 10, [7, 2, 1]), ([1.0], 4, [4])]
)
def test_devices_of_a_share(shares: list[float], devices: int, counts: list[int]) -> None:
    assert device_counts(shares, devices) == counts


def test_the_summary_leaves_out_the_warm_up_and_counts_what_is_good() -> None:
    columns = {name: np.zeros(4) for name in REQUEST_COLUMNS}
    columns |= {
        "request": np.arange(4),
        "requested_s": np.array([0.0, 10.0, 20.0, 30.0]),
        "latency_s": np.array([9.0, 1.0, 3.0, 2.0]),
    }
    columns["done_s"] = columns["requested_s"] + columns["latency_s"]
    columns["cloud_queue_s"] = columns["latency_s"]
    case = CaseRecords(
        "base", "base", {}, columns, refused=2, unfinished=1, warmup_s=10.0, duration_s=40.0, slos_s=[2.5], devices=[1]
    )
    row = summary_table([case]).iloc[0]
    assert (row["images"], row["latency_mean_s"], row["refused"], row["unfinished"]) == (3, 2.0, 2, 1)
    assert row["goodput_per_s"] == 2 / 30
    assert row["under_way_mean"] == row["cloud_waiting_mean"] == 6 / 30
    plain = CaseRecords("base", "base", {}, columns)
    assert math.isnan(summary_table([plain]).iloc[0]["goodput_per_s"])


def test_goodput_holds_each_request_against_the_objective_of_its_device() -> None:
    columns = {name: np.zeros(4) for name in REQUEST_COLUMNS}
    columns |= {"request": np.arange(4), "device": np.array([0, 1, 2, 2]), "latency_s": np.array([3.0, 3.0, 3.0, 1.0])}
    columns["cloud_queue_s"] = columns["latency_s"]
    fields = {"duration_s": 10.0, "devices": [1, 1, 1], "slos_s": [3.0, math.inf, 2.0]}
    case = CaseRecords("base", "base", {}, columns, **fields)
    assert summary_table([case]).iloc[0]["goodput_per_s"] == 3 / 10


def test_each_request_costs_what_its_tier_does() -> None:
    columns = {name: np.zeros(3) for name in REQUEST_COLUMNS}
    columns |= {
        "request": np.arange(3),
        "device": np.array([0, 1, 1]),
        "cloud_gpu_s": np.array([3600.0, 7200.0, 3600.0]),
    }
    fields = {"duration_s": 10.0, "devices": [1, 1], "slos_s": [math.inf] * 2}
    for prices, mean_usd in (([2.0, 0.5], (2.0 + 1.0 + 0.5) / 3), ([1.5, 1.5], 2.0), ([2.0, math.nan], math.nan)):
        case = CaseRecords("base", "base", {}, columns, gpu_usd_per_hour=prices, **fields)
        assert summary_table([case]).iloc[0]["cost_usd"] == pytest.approx(mean_usd, nan_ok=True)


def test_a_policy_is_a_rule_in_seconds_and_can_be_swept(tmp_path: Path) -> None:
    text = "fallback: {deadline_ms: 500, attempts: 3, then: wait}\nsweep: {fallback.policy: [wait, device, retry]}\n"
    rules = [case.scenario.fallback.rule() for case in expand(load(tmp_path, text))]
    assert rules[:3] == [None, Fallback(0.5), Fallback(0.5, attempts=3, gives_up=False)]


def test_images_of_one_prompt_count_as_its_requests_got_them() -> None:
    """Prompt 0 has four requests; one of them gave up a reply and received image 2. The fallback cost is that of this request alone."""
    n = 5
    columns = {name: np.zeros(n) for name in REQUEST_COLUMNS} | {
        "request": np.arange(n),
        "requested_s": np.arange(n) * 1.0,
    }
    columns |= {
        "prompt": np.array([0, 0, 0, 0, 1]),
        "image": np.array([0, 0, 2, 0, 1]),
        "fallback_pct": np.array([0.0, 0, 50, 0, 0]),
    }
    columns["fallback_cloud_nll_cost"] = np.array([math.nan, math.nan, 4.0, math.nan, math.nan])
    quality = {"image": np.arange(3), "cloud_nll": np.array([1.0, 7.0, 5.0])}
    case = CaseRecords("ciar", "ciar", {}, columns, quality)
    row = summary_table([case]).iloc[0]
    assert (row["distinct_images"], row["cloud_nll"], row["fallback_pct"]) == (3, ((3 * 1.0 + 5.0) / 4 + 7.0) / 2, 10.0)
    assert row["fallback_cloud_nll_cost"] == 4.0
    assert math.isnan(row["fallback_cloud_nll_cost_lo"])
    whole = CaseRecords(
        "ciar",
        "ciar",
        {},
        columns | {"image": columns["prompt"], "fallback_cloud_nll_cost": np.full(n, math.nan)},
        quality,
    )
    row = summary_table([whole]).iloc[0]
    assert (row["distinct_images"], row["cloud_nll"]) == (2, 4.0)
    assert math.isnan(row["fallback_cloud_nll_cost"])
