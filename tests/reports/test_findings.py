"""Conclusions of a report: labels, the fastest method, significant differences, break-evens, the Pareto front, the advice.

Longer than other files, because every conclusion of a report is tested here.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.advice import advice, condition_keys, more_advice
from reports.build import build_report
from reports.findings import find, finding, pareto_front
from reports.load import Run, load_run, panels_along, summary_columns
from reports.sweep_plot import break_evens
from reports.words import (
    axis_label,
    clipped,
    condition,
    failures,
    grouped,
    label,
    shortened,
    significant,
    split_unit,
    times,
)
from simulator.core.errors import NOT_SIMULATED
from simulator.core.rng import stream
from simulator.results.columns import interval_columns
from simulator.results.folder import RunImage
from tests.reports.build import IMAGE, case, rows, write

# ---- words


def test_numbers_have_three_digits_and_no_data_is_a_dash() -> None:
    values = {
        0.0: "0",
        1.0: "1.00",
        9.999: "10.0",
        12.345: "12.3",
        1234.6: "1,235",
        0.00456: "0.00456",
        3.14e-4: "0.000314",  # a cost in dollars
        4.56e-6: "4.56e-06",
    }
    values |= {math.nan: "–", math.inf: "∞"}
    assert {value: significant(value) for value in values} == values


def test_a_speed_up_that_is_not_one_is_not_written_as_one() -> None:
    assert [times(gain) for gain in (1.0, 1.03, 0.996, 1.06, 0.94, 12.34)] == [
        "1.0",
        "1.03",
        "0.996",
        "1.1",
        "0.94",
        "12",
    ]


@pytest.mark.parametrize(
    ("text", "width", "found"),
    [
        ("ciar threshold=0.5", 18, "ciar threshold=0.5"),
        ("ciar threshold=0.1 prefix_rate=0.06", 24, "ciar thr…=0.1 pre…=0.06"),
        ("a long name of a method threshold=0.25", 30, "a long name of a…reshold=0.25"),
        ("a method at thirty per cent", 16, "a method…r cent"),
        ("averyverylongword", 9, "aver…word"),
    ],
)
def test_a_clipped_label_keeps_its_end_and_the_values_of_its_settings(text: str, width: int, found: str) -> None:
    assert clipped(text, width) == found
    assert len(found) <= width


def test_units_and_labels() -> None:
    assert split_unit("network.rtt_ms") == ("RTT", "ms")
    assert split_unit("cloud.replicas") == ("cloud replicas", "")
    assert axis_label("workload.arrivals.poisson_per_s") == "Poisson arrivals (per s)"
    assert axis_label("network.up_mbps") == "uplink (Mbit/s)"
    assert split_unit("network.devices_per_cell") == ("devices", "per cell")
    assert axis_label("compute.device.hardware.memory_gb") == "compute device hardware memory (GB)"
    assert axis_label("compute.cloud.hardware.bandwidth_gb_s") == "compute cloud hardware bandwidth (GB/s)"
    assert axis_label("cloud.price_usd_per_gpu_hour") == "cloud price (USD per GPU hour)"
    assert axis_label("cloud.kv_memory_gb") == "cloud KV memory (GB)"
    swept = ("methods.ciar.threshold", "network.preset", "cloud.replicas")
    row = {
        "method": "ciar",
        "method_name": "ciar",
        "methods.ciar.threshold": 0.5,
        "network.preset": "lte",
        "cloud.replicas": 4,
    }
    assert label(row, swept) == "ciar threshold=0.5"
    assert label({**row, "method": "ciar threshold=0.5"}, swept) == "ciar threshold=0.5"
    assert label({**row, "method": "base", "method_name": "base"}, swept) == "base"
    own = {"method": "my ciar v1.2", "method_name": "ciar", "methods.my ciar v1.2.threshold": 0.3}
    assert label(own, ("methods.my ciar v1.2.threshold",)) == "my ciar v1.2 threshold=0.3"
    assert axis_label("methods.my ciar v1.2.threshold") == "my ciar v1.2 threshold"
    assert axis_label("methods.my ciar v1.2.threshold.call_pct") == "my ciar v1.2 cloud calls (%)"
    assert condition(row, swept) == "lte, cloud replicas 4"


# ---- findings


def test_findings_by_network(run: Run) -> None:
    wifi, lte = (finding(name, cases) for name, cases in run.conditions())
    assert (
        wifi.heading
        == "wifi: ciar threshold=0.5 is fastest (2.0× base); at base's quality: code prefix_rate=0.3 (1.3×)"
    )
    pattern = r"ciar threshold=0\.5 is fastest: [34]\.\d\d s per image \(.* to .*\), .*× base's speed \(.* to .*\)\.$"
    assert re.match(pattern, wifi.sentences[0])
    assert wifi.sentences[1].startswith("Its images differ significantly from base's: cloud_nll 1.99 ")
    assert wifi.sentences[2].startswith(
        "Fastest, by the mean, without a significant difference in quality: code prefix_rate=0.3, "
    )
    assert lte.heading.startswith("lte: no significant difference in latency: ")
    assert "16" not in lte.heading
    assert "code" not in lte.heading


def test_base_may_win() -> None:
    said = finding("wifi", rows(("ciar", 4.0, 0.1, 0.5), ("base", 2.0, 0.1, 1.0)))
    assert said.heading == "wifi: base is fastest (ciar takes 2.0× as long)"
    sentence = "base is fastest: 2.00 s per image (1.90 to 2.10). The next, ciar, takes 2.0× as long (2.0 to 2.0)."
    assert said.sentences == (sentence,)


def test_what_is_unknown_of_images_is_not_said_of_base() -> None:
    values = ("ciar", 4.0, 0.1, 0.5), ("base", 2.0, 0.1, 1.0)
    assert advice([finding("wifi", rows(*values))]) == "Fastest, by the mean: base (the cloud alone)."
    faster = rows(("ciar", 1.0, 0.1, 2.0), values[1])
    assert advice([finding("wifi", faster)]).endswith(
        "Whether its images keep base's quality is not known from this run."
    )


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], []),
        ([0.5], ["Every other method's images differ significantly from base's, too."]),
        ([0.5, math.nan], ["No other method is known to have base's quality."]),
    ],
)
def test_what_no_interval_shows_is_not_said_of_other_methods(others: list[float], said: list[str]) -> None:
    """The other methods have the given losses in cloud_nll, with intervals of +- 0.1; NaN has no interval."""
    cases = rows(("ciar", 1.0, 0.1, 2.0), ("base", 2.0, 0.1, 1.0), *((f"m{loss}", 1.5, 0.1, 1.3) for loss in others))
    losses = np.array([0.5, 0.0, *others])
    cases = cases.assign(cloud_nll=4.0 + losses, cloud_nll_minus_base=losses)
    cases = cases.assign(cloud_nll_minus_base_lo=losses - 0.1, cloud_nll_minus_base_hi=losses + 0.1)
    sentences = finding("wifi", cases).sentences
    assert sentences[1].startswith("Its images differ significantly from base's: cloud_nll")
    assert [text for text in sentences[2:] if "other method" in text] == said


def test_no_difference_is_said_plainly() -> None:
    said = finding(
        "wifi", rows(("ciar", 4.0, 0.5, math.nan), ("code", 4.2, 0.5, math.nan), ("lantern", 9.0, 0.5, math.nan))
    )
    assert said.heading == "wifi: no significant difference in latency: ciar and code"
    assert "No significant difference in latency between ciar and code (95 %)." in said.sentences[0]


def test_a_heading_of_equals_tells_who_keeps_base_quality() -> None:
    """The images of both fastest methods differ from base's. Those of the third do not."""
    cases = rows(("random", 4.0, 0.5, 2.0), ("code", 4.2, 0.5, 1.9), ("ciar", 6.0, 0.5, 1.3), ("base", 8.0, 0.5, 1.0))
    cases["cloud_nll_minus_base"] = [0.3, 0.2, 0.0, math.nan]
    for end, half in (("lo", -0.1), ("hi", 0.1)):
        cases[f"cloud_nll_minus_base_{end}"] = cases["cloud_nll_minus_base"] + half
    heading = "wifi: no significant difference in latency: random and code; at base's quality: ciar (1.3×)"
    found = finding("wifi", cases)
    assert found.heading == heading
    assert more_advice([found]).startswith(
        "Faster, with images that differ significantly from base's: random or code (no significant difference in latency)."
    )
    # One of the fastest keeps base's quality, so no method is shown to be faster.
    cases.loc[1, ["cloud_nll_minus_base_lo", "cloud_nll_minus_base_hi"]] = -0.1, 0.1
    assert "Faster" not in more_advice([finding("wifi", cases)])


def test_a_lossless_method_has_base_quality_whatever_few_images_say() -> None:
    """One interval in twenty excludes 0 by chance. It is ignored for eagle2, which is lossless, but not for lantern."""
    cases = rows(("lantern", 2.0, 0.1, 4.0), ("eagle2", 4.0, 0.1, 2.0), ("base", 8.0, 0.1, 1.0))
    cases["cloud_nll_minus_base"] = [0.3, 0.3, math.nan]
    for end, half in (("lo", -0.1), ("hi", 0.1)):
        cases[f"cloud_nll_minus_base_{end}"] = cases["cloud_nll_minus_base"] + half
    assert finding("wifi", cases).at_base_quality == ("eagle2",)
    said = finding("wifi", cases.drop(index=0))
    assert said.sentences[1].startswith("It is lossless: its images have base's quality by construction (measured: ")


def test_images_that_follow_their_captions_less_are_not_base_s_whatever_their_nats() -> None:
    """The device alone draws likely images that show nothing of the caption."""
    cases = rows(("device-only", 2.0, 0.1, 4.0), ("ciar", 4.0, 0.1, 2.0), ("base", 8.0, 0.1, 1.0))
    cases["align_photos"], cases["cloud_nll_minus_base"] = [0.1, 0.3, 0.32], [0.1, 0.1, math.nan]
    cases["align_minus_base"] = [-0.22, -0.02, math.nan]
    for name in ("cloud_nll", "align"):
        for end, half in (("lo", -0.2), ("hi", 0.2)):
            cases[f"{name}_minus_base_{end}"] = cases[f"{name}_minus_base"] + half
    for end in ("lo", "hi"):
        cases[f"align_photos_{end}"] = math.nan
    cases.loc[cases["label"] == "ciar", "distinct_images"] = 11  # two more than prompts, of replies that were given up
    said = finding("wifi", cases)
    assert said.at_base_quality == ("ciar",)
    assert said.sentences[1:3] == (
        "Its images differ significantly from base's: align_photos 10.0, base 32.0 %, paired difference -22.0 (-42.0 to -2.00), on 9 "
        "distinct images.",
        "Fastest, by the mean, without a significant difference in quality: ciar, 2.00× base's speed (1.98 to 2.02).",
    )
    assert more_advice([said]).endswith(
        "Quality: cloud_nll and the agreement with the caption on 9 prompts; ciar-sim recommend tests a bound on the loss."
    )


def test_the_fastest_lossless_method_is_named_beside_a_faster_one_that_only_seems_as_good() -> None:
    cases = rows(
        ("ciar", 2.0, 0.1, 4.0), ("eagle2", 4.0, 0.1, 2.0), ("speculative", 5.0, 0.1, 1.6), ("base", 8.0, 0.1, 1)
    )
    cases["cloud_nll_minus_base"] = [0.0, 0.0, 0.0, math.nan]
    for end, half in (("lo", -0.1), ("hi", 0.1)):
        cases[f"cloud_nll_minus_base_{end}"] = cases["cloud_nll_minus_base"] + half
    said = finding("wifi", cases)
    assert said.at_base_quality == ("ciar",)
    assert "Fastest with base's quality by construction (lossless): eagle2 (2.0× base's speed)." in more_advice([said])
    assert "lossless" not in more_advice([finding("wifi", cases.drop(index=0))])  # it is advised itself
    slow = cases.assign(speedup_lo=[3.9, 0.9, 0.8, 1.0])
    assert "lossless" not in more_advice([finding("wifi", slow)])


def test_paired_interval_decides_against_base() -> None:
    """The intervals of the means overlap, but the paired one excludes 1: a significant difference."""
    apart = finding("x", rows(("ciar", 4.0, 1.0, 1.1), ("base", 4.4, 1.0, 1.0)))
    assert apart.heading == "x: ciar is fastest (1.1× base)"
    close = finding("x", rows(("ciar", 4.0, 0.0, 1.005), ("base", 4.4, 0.0, 1.0)))
    assert close.heading == "x: no significant difference in latency: ciar and base"


def test_paired_intervals_find_differences_that_single_ones_do_not(tmp_path: Path) -> None:
    """Two methods have latencies that vary together by 5 % and differ by 0.1 s; the images of one differ from base's by about the same
    amount for every prompt."""
    base, slow, fast = (case(method, seconds, {}) for method, seconds in (("base", 8.0), ("code", 4.0), ("ciar", 4.0)))
    fast.quality["cloud_nll"][:] = base.quality["cloud_nll"] + np.array([0.01, 0.011, 0.012, 0.013])
    fast.columns["latency_s"][:] = slow.columns["latency_s"] - 0.1
    for name in ("device_compute_s", "uplink_s"):
        fast.columns[name][:] = fast.columns["latency_s"] / 2
    run = load_run(write(tmp_path / "run", [base, slow, fast], images=()))
    said = finding("x", run.summary)
    assert said.heading == "x: ciar is fastest (2.1× base); at base's quality: code (2.0×)"
    ciar, code = run.summary.iloc[2], run.summary.iloc[1]
    assert ciar["latency_mean_hi_s"] > code["latency_mean_lo_s"]
    assert ciar["cloud_nll_lo"] < run.summary["cloud_nll"][0] < ciar["cloud_nll_hi"]
    assert said.sentences[1].startswith("Its images differ significantly from base's")


@pytest.mark.parametrize(
    ("seconds", "speedup", "nll_lo", "ending"),
    [
        (4.0, 2.0, -0.1, "code (2.0×)"),
        (7.98, 1.0025, -0.1, "base or code"),
        (9.0, 0.9, -0.1, "base"),
        (4.0, 2.0, 0.1, "base"),
    ],
)
def test_the_title_says_who_is_fastest_at_base_s_quality(
    seconds: float, speedup: float, nll_lo: float, ending: str
) -> None:
    cases = rows(("device-only", 1.0, 0.1, 8.0), ("code", seconds, 0.1, speedup), ("base", 8.0, 0.1, 1.0))
    cases["cloud_nll"] = cases["cloud_nll_minus_base"] = 1.0
    cases["cloud_nll_minus_base_lo"], cases["cloud_nll_minus_base_hi"] = [3.0, nll_lo, 0.0], [4.0, 0.2, 0.0]
    assert finding("x", cases).heading == f"x: device-only is fastest (8.0× base); at base's quality: {ending}"
    cases.loc[0, "cloud_nll_minus_base_lo"] = -3.0
    assert finding("x", cases).heading == "x: device-only is fastest (8.0× base)"  # its images are as good as base's


def test_few_requests_have_no_latency_interval() -> None:
    said = finding("x", rows(("ciar", 4.0, 0.1, 2.0), ("base", 8.0, 0.1, 1.0), n=4))
    assert (
        said.sentences[0] == "ciar is fastest: 4.00 s per image (too few requests for an interval), 2.00× base's speed."
    )


def test_nothing_and_one_request() -> None:
    assert finding("x", rows(("base", math.nan, 0.1, math.nan))).heading == "x: no request was answered"
    single = finding("x", rows(("ciar", 1.0, math.nan, 2.0), ("base", 2.0, math.nan, 1.0)))
    assert "nothing can be concluded" in single.sentences[0]
    assert finding("x", rows(("ciar", 1.0, 0.1, math.nan))).heading == "x: ciar takes 1.00 s"


def along(rtts: np.ndarray, ciar: np.ndarray, half: float = 0.05) -> pd.DataFrame:
    """Return cases of base at 5 s and ciar at the given latencies over RTT, with speed-ups +- half."""
    values = [("base", 5.0, 0.1, 1.0)] * len(rtts) + [("ciar", float(y), 0.1, 5.0 / float(y)) for y in ciar]
    table = rows(*values)
    table["speedup_lo"], table["speedup_hi"] = table["speedup"] - half, table["speedup"] + half
    table["network.rtt_ms"] = [*rtts, *rtts]
    return table


def test_break_even_lies_on_the_line_between_runs() -> None:
    table = along(np.array([0.0, 100.0]), np.array([4.0, 8.0]))
    (found,) = break_evens(table, "network.rtt_ms")
    assert (found.label, found.at, found.latency_s) == ("ciar", 25.0, 5.0)
    table["speedup_lo"] = 0.5  # base may be faster at both ends
    assert break_evens(table, "network.rtt_ms") == []


@given(points=st.integers(2, 400), slope=st.floats(0.005, 0.2), noise=st.floats(0.0, 0.02), seed=st.integers(0, 99))
def test_break_even_stays_on_a_finer_grid(points: int, slope: float, noise: float, seed: int) -> None:
    """Runs near the break-even show no significant difference. The latency is 4 s + slope * RTT, so it lies at 1 s / slope."""
    rtts = np.linspace(0.0, 3.0 / slope, points)
    jitter = noise * stream(seed, "test").uniform(-1, 1, points)
    (found,) = break_evens(along(rtts, 4.0 + slope * rtts + jitter), "network.rtt_ms")
    assert found.at == pytest.approx(1 / slope, abs=(2 * noise + 1e-9) / slope)
    assert found.low <= found.at <= found.high
    assert found.low > 0
    assert found.high < 3.0 / slope


def test_break_even_interval_does_not_depend_on_the_grid() -> None:
    """The interval ends where the interval of the speed-up reaches 1: 5 / (4 + 0.01 x) -+ 0.05 = 1."""
    (fine,) = break_evens(along(np.linspace(0, 300, 601), 4.0 + 0.01 * np.linspace(0, 300, 601)), "network.rtt_ms")
    assert (fine.low, fine.high) == pytest.approx((100 * (5 / 1.05 - 4), 100 * (5 / 0.95 - 4)), abs=0.1)


@pytest.mark.parametrize("power", [0.5, 2.0, 3.0])
def test_a_break_even_between_bent_latencies_holds_what_the_bend_leaves_open(power: float) -> None:
    """4 s + (RTT / 100 ms)^power s equals base's 5 s at 100 ms. Linear interpolation misses it; the interval contains it."""
    rtts = np.array([0.0, 60.0, 160.0, 300.0])
    (found,) = break_evens(along(rtts, 4.0 + (rtts / 100.0) ** power, half=0.001), "network.rtt_ms")
    assert abs(found.at - 100.0) > 5.0
    assert found.low <= 100.0 <= found.high
    assert 60.0 <= found.low < found.high <= 160.0


# ---- Pareto front and advice


def test_the_pareto_front_is_what_no_case_beats_in_both() -> None:
    generator = stream(0, "front")
    table = rows(*[(f"m{i}", float(generator.uniform(1, 9)), 0.1, 1.0) for i in range(40)])
    table["cloud_nll_minus_base"] = generator.uniform(-3, 3, 40)
    points = {row["label"]: (row["latency_mean_s"], abs(row["cloud_nll_minus_base"])) for _, row in table.iterrows()}
    front = [
        label
        for label, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    ]
    assert pareto_front(table, "cloud_nll_minus_base") == tuple(sorted(front, key=lambda label: points[label]))
    table["cloud_nll_minus_base"] = math.nan
    assert pareto_front(table, "cloud_nll_minus_base") == ()


def test_advice_names_the_fastest_at_base_quality(run: Run) -> None:
    assert advice(find(run)) == (
        "Use code prefix_rate=0.3 (1.3× base's speed) for wifi, and base or ciar threshold=0.5 (no significant difference in latency) "
        "for lte: the fastest, by the mean, of the methods whose images do not differ significantly from base's."
    )
    assert more_advice(find(run)).startswith(
        "Faster, with images that differ significantly from base's: ciar threshold=0.5 (2.0× base's speed) for wifi. Quality: "
    )


def test_advice_over_many_conditions_stays_short(tmp_path: Path) -> None:
    cases = [
        case(method, seconds, {"network.rtt_ms": 10 * (i + 1)})
        for i in range(9)
        for method, seconds in (("base", 8.0), ("ciar", 4.0 if i < 5 else 12.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    findings = find(run)
    tail = ": the fastest, by the mean, of the methods whose images do not differ significantly from base's."
    assert advice(findings) == (
        f"Use ciar (2.0× base's speed) under 5 of 9 conditions, and base (the cloud alone) under 4 of 9 conditions{tail}"
    )
    assert advice(findings, condition_keys(run)) == (
        f"Use ciar (2.0× base's speed) from RTT 10 to 50 ms, and base (the cloud alone) from RTT 60 to 90 ms{tail}"
    )


GRID = [(preset, rtt_ms) for preset in ("wifi", "lte", "5g-sub6") for rtt_ms in (5, 20, 50, 200)]


@pytest.mark.parametrize(
    ("wins", "said"),
    [
        (  # ciar wins from an RTT that depends on the network
            lambda preset, rtt_ms: rtt_ms >= {"wifi": 50, "lte": 5, "5g-sub6": 50}[preset],
            "base (the cloud alone) for wifi and 5g-sub6 from RTT 5 to 20 ms; "
            "ciar (2.0× base's speed) for wifi and 5g-sub6 from RTT 50 to 200 ms and for lte",
        ),
        (  # the same for every network
            lambda preset, rtt_ms: rtt_ms == 200,
            "base (the cloud alone) from RTT 5 to 50 ms, and ciar (2.0× base's speed) at RTT 200 ms",
        ),
        (
            lambda preset, rtt_ms: preset == "wifi" and rtt_ms != 20,
            "ciar (2.0× base's speed) for wifi at RTT 5 ms and from RTT 50 to 200 ms; "
            "base (the cloud alone) for wifi at RTT 20 ms and for lte and 5g-sub6",
        ),
        (lambda preset, rtt_ms: True, "ciar (2.0× base's speed) under all 12 conditions"),
    ],
)
def test_advice_over_a_grid_says_from_where_to_where(tmp_path: Path, wins: Callable[..., bool], said: str) -> None:
    cases = [
        case(method, seconds, {"network.preset": preset, "network.rtt_ms": rtt_ms})
        for preset, rtt_ms in GRID
        for method, seconds in (("base", 8.0), ("ciar", 4.0 if wins(preset, rtt_ms) else 12.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert advice(find(run), condition_keys(run)).startswith(f"Use {said}: the fastest, by the mean, of")
    assert condition_keys(run) == ("network.preset", "network.rtt_ms")


@pytest.mark.usefixtures("undrawn")
def test_many_answers_are_a_list(tmp_path: Path) -> None:
    """Three networks, each with a different fastest method."""
    cases = [
        case(method, 4.0 if method == best else 8.0, {"network.preset": preset})
        for preset, best in (("wifi", "ciar"), ("lte", "base"), ("5g-sub6", "code"))
        for method in ("base", "ciar", "code")
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    begin, *answers, end = advice(find(run), condition_keys(run)).splitlines()
    assert (begin, end) == (
        "Which method to use depends on the conditions:",
        "Each is the fastest, by the mean, of the methods whose images do not differ significantly from base's.",
    )
    assert answers == [
        "- ciar (2.0× base's speed) for wifi",
        "- base (the cloud alone) for lte",
        "- code (2.0× base's speed) for 5g-sub6",
    ]
    page = build_report(run.folder).read_text()
    assert "<li>base (the cloud alone) for lte</li>" in page
    assert f'<p class="advice">{begin}</p>' in page


def test_advice_over_two_numbers_names_each_once(tmp_path: Path) -> None:
    grid = [(mbps, rtt_ms) for mbps in (1, 5, 20) for rtt_ms in (5, 20, 50)]
    cases = [
        case(method, seconds, {"network.up_mbps": mbps, "network.rtt_ms": rtt_ms})
        for mbps, rtt_ms in grid
        for method, seconds in (("base", 8.0), ("ciar", 4.0 if mbps < 20 and rtt_ms > 5 else 12.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert advice(find(run), condition_keys(run)).startswith(
        "Use base (the cloud alone) for uplink 1 and 5 Mbit/s at RTT 5 ms and for uplink 20 Mbit/s; "
        "ciar (2.0 to 2.1× base's speed) for uplink 1 and 5 Mbit/s from RTT 20 to 50 ms: the fastest, by the mean, of"
    )


def test_advice_over_scattered_conditions_counts_them(tmp_path: Path) -> None:
    """Random points have no order in two numbers, so the advice gives no ranges."""
    points = [(7.5, 3.0), (80.0, 1.0), (20.0, 9.0), (45.0, 2.0), (150.0, 6.0), (11.0, 5.0), (60.0, 4.0), (33.0, 8.0)]
    cases = [
        case(method, seconds, {"network.rtt_ms": rtt_ms, "network.up_mbps": mbps})
        for rtt_ms, mbps in points
        for method, seconds in (("base", 8.0), ("ciar", 4.0 if rtt_ms > 40 else 12.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert "under 4 of 8 conditions" in advice(find(run), condition_keys(run))


@pytest.mark.parametrize(
    ("rare", "said"),
    [
        (("code", "device-only"), "code or device-only under 2 of 10 conditions"),
        (("code", "device-only", "random", "gsd"), "one of 4 others under 4 of 12 conditions"),
    ],
)
def test_methods_of_the_rest_of_the_conditions_are_named_or_counted(
    tmp_path: Path, rare: tuple[str, ...], said: str
) -> None:
    """They were "others"."""
    best = ["ciar"] * 4 + ["base"] * 4 + list(rare)
    cases = [
        case(method, 4.0 if method == fastest else 8.0, {"network.rtt_ms": place})
        for place, fastest in enumerate(best)
        for method in ("base", "ciar", *rare)
    ]
    told = advice(find(load_run(write(tmp_path / "run", cases, images=()))))
    assert f"\n- {said}\n" in told
    assert "- base (the cloud alone) under 4 of" in told


def test_a_run_of_one_method_has_its_latency_as_advice(tmp_path: Path) -> None:
    cases = [case("ciar", seconds, {"network.preset": name}) for name, seconds in (("wifi", 4.0), ("lte", 8.0))]
    said = advice(find(load_run(write(tmp_path / "run", cases, images=()))))
    assert (
        said == "ciar takes 4.02 to 8.01 s per image under 2 conditions. Without base in the run there is no speed-up."
    )


# ---- words


def test_numbers_of_conditions_are_no_longer_than_what_keeps_them_apart() -> None:
    assert shortened([5, 9.24656, 108.148, 1234.56]) == {5: 5, 9.24656: 9.25, 108.148: 108, 1234.56: 1235}
    assert shortened([9.24656, 9.24651]) == {9.24656: 9.2466, 9.24651: 9.2465}  # neighbours stay apart
    assert shortened([0.0625, 262144, math.inf]) == {0.0625: 0.0625, 262144: 262144}  # round numbers are not shortened


def test_random_points_that_agree_by_chance_are_no_curve() -> None:
    """Two of ten points had the same network and uplink, so that every point had a panel of its own, without a break-even in it."""
    points = [
        ("fibre", 5, 2.0),
        ("lte", 40, 1.0),
        ("fibre", 80, 2.0),
        ("lte", 20, 4.0),
        ("fibre", 120, 8.0),
        ("lte", 10, 16.0),
    ]
    summary = pd.DataFrame(points, columns=["network.preset", "network.rtt_ms", "network.up_mbps"])
    found = panels_along(summary, tuple(summary.columns), "network.rtt_ms")
    assert (set(found.names), found.joined, found.apart) == ({"fibre", "lte"}, False, ("network.up_mbps",))
    grid = pd.DataFrame(
        [(rtt, up) for rtt in (5, 40) for up in (1.0, 2.0)][:-1], columns=list(summary.columns)[1:]
    )  # one has failed
    found = panels_along(grid, tuple(grid.columns), "network.rtt_ms")
    assert (found.joined, len(set(found.names))) == (True, 2)


def test_numbers_of_labels_are_no_longer_than_what_keeps_them_apart(tmp_path: Path) -> None:
    """Those of random points and trials had six digits; the images are named as the methods are."""
    path = "methods.ciar.threshold"
    swept = [case("ciar", 4.0, {path: value}) for value in (0.322481, 0.28, 0.152977)]
    named = [f"ciar threshold={value}{more}" for value in (0.322481, 0.28) for more in ("", " seed=1")]
    images = [RunImage(name, 0, "a prompt", "image", IMAGE) for name in ("base", *named)]
    run = load_run(write(tmp_path / "run", [case("base", 8.0, {}), *swept], images=images))
    assert run.labels() == ["base", "ciar threshold=0.322", "ciar threshold=0.28", "ciar threshold=0.153"]
    assert [one.method for one in run.images] == [
        "base",
        *(f"ciar threshold={value}{more}" for value in ("0.322", "0.28") for more in ("", " seed=1")),
    ]
    assert list(run.summary[path].dropna()) == [0.322481, 0.28, 0.152977]
    own = case("ciar threshold=0.322", 5.0, {}, name="ciar")  # would be ambiguous
    run = load_run(write(tmp_path / "own", [*swept, own], images=()))
    assert run.labels()[0] == "ciar threshold=0.322481"


def test_warnings_that_say_the_same_of_many_cases_are_one() -> None:
    busy = [f"base rate={i}: the cloud was busy {99 + i / 10} % of the time; saturated: slow" for i in range(5)]
    other = "ciar: 3 requests were unfinished at 20 s"
    assert grouped([other, *busy]) == [
        other,
        "5 cases (base rate=0, base rate=1, base rate=2 and 2 more): "
        "the cloud was busy 99.0 to 99.4 % of the time; saturated: slow",
    ]
    assert grouped(busy[:3]) == busy[:3]  # so few are listed one by one
    assert grouped(["no colon"]) == ["no colon"]
    failed = [f"not simulated: ciar threshold={i}: does not fit" for i in range(5)]
    assert grouped(failed) == failed  # the text before the colon names no case


def test_failures_for_one_reason_are_one() -> None:
    """Also where a swept value has a colon, where numbers differ, and in the warnings of the page."""
    mapping = "compute.device={'model': 'pair', 'hardware': 'tiny'}"
    fits = [f"code {mapping}, rate={i}: code does not fit: it needs {i} GB" for i in range(5)]
    dead = [f"base rate={i}: deadlock at {i}.5 s: request {i} waits" for i in range(2)]
    known = [
        f"code {mapping}, rate=0; code {mapping}, rate=1; code {mapping}, rate=2 and 2 more: "
        "code does not fit: it needs 0 to 4 GB",
        "base rate=0; base rate=1: deadlock at 0.5 s: request 0 waits (figures of the first)",
        "no colon",
    ]
    assert failures([*fits, *dead, "no colon"]) == known
    assert failures(dead[:1]) == dead[:1]
    told = [f"{NOT_SIMULATED}{text}" for text in (*fits, *dead)]
    assert grouped(["ciar: late", *told, "base: early"]) == [
        "ciar: late",
        *(f"{NOT_SIMULATED}{text}" for text in known[:2]),
        "base: early",
    ]


def test_column_names_of_intervals_are_those_of_the_summary(run: Run) -> None:
    for name in ("latency_mean_s", "speedup", "latency_minus_fastest_s", "fd_scenes", "align_scenes", "cloud_nll"):
        assert set(interval_columns(name)) <= set(run.summary.columns) & set(summary_columns())
    assert set(run.summary.columns) - {"label", "condition", "network.preset"} == set(summary_columns())
