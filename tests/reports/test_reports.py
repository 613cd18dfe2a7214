import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.build import build_report
from reports.findings import find, finding, is_base, pareto_front
from reports.image_grid import grid_note, image_grid
from reports.load import Run, interval_columns, load_run, summary_columns
from reports.looks import METHOD_LOOKS, looks
from reports.page import advice
from reports.quality_plot import latency_quality, short_labels, speedup_table
from reports.queue_plot import queue_over_time
from reports.sweep_plot import break_evens, numeric_axes, sweep
from reports.words import axis_label, condition, label, significant, split_unit
from simulator.core.errors import RunFolderError
from simulator.core.rng import stream
from simulator.protocol.methods import METHODS
from simulator.results.columns import REQUEST_COLUMNS, SAMPLED
from simulator.results.folder import Picture, write_run
from simulator.results.tables import CaseRecords

PROVENANCE = {
    "name": "synthetic",
    "as_if": "latency as if llamagen-xl on a100; acceptance and quality of the scenes pair",
    "compute": {"cloud": "roofline: data sheet", "device": "published: <figure> & text"},
    "notes": ["heat of the device"],
    "git_commit": "0123abc",
}


def case(
    method: str, seconds: float, swept: dict[str, Any], nll: float = 4.0, n: int = 12, name: str = ""
) -> CaseRecords:
    """Latencies around `seconds` (5 %), half of them in the uplink."""
    latency = seconds * stream(0, "test", method, str(swept)).uniform(0.95, 1.05, n)
    columns = {name: np.zeros(n) for name in REQUEST_COLUMNS}
    columns |= {
        "request": np.arange(n),
        "prompt": np.arange(n) % 4,
        "image": np.arange(n) % 4,
        "requested_s": 10.0 * np.arange(n),
    }
    columns |= {"latency_s": latency, "uplink_s": latency / 2, "device_compute_s": latency / 2}
    columns |= {"done_s": columns["requested_s"] + latency, "cloud_call_pct": np.full(n, 20.0)}
    shift = np.array([-0.1, 0.1, -0.05, 0.05])
    by_prompt = nll + shift + stream(0, "nll", method).uniform(-0.05, 0.05, 4)
    quality = {
        "image": np.arange(4),
        "cloud_nll": by_prompt,
        "cloud_greedy_pct": 40 + shift,
        "base_greedy_pct": 30 + shift,
    }
    return CaseRecords(method, name or method.split(" ")[0], swept, columns, quality)


CASES = [
    case("base", 8.0, {"network.preset": "wifi"}),
    case("ciar threshold=0.5", 4.0, {"network.preset": "wifi"}, nll=2.0),
    case("code prefix_rate=0.3", 6.0, {"network.preset": "wifi"}, nll=3.98),
    case("base", 8.0, {"network.preset": "lte"}),
    case("ciar threshold=0.5", 8.0, {"network.preset": "lte"}),
    case("code prefix_rate=0.3", 16.0, {"network.preset": "lte"}),
]
SWEEP = [
    case(
        method,
        seconds + slope * rtt,
        {"network.rtt_ms": rtt, **({"methods.ciar.threshold": 0.3} if method == "ciar" else {})},
    )
    for rtt in (10, 50, 200)
    for method, seconds, slope in (("base", 8.0, 0.0), ("ciar", 4.0, 0.05))
]
IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PICTURES = [
    *[Picture(m, p, f'prompt {p} & "more"', "image", IMAGE) for m in ("base", "ciar threshold=0.5") for p in range(5)],
    *[
        Picture("ciar threshold=0.5", p, f"prompt {p}", "uncertainty", np.array([[0.1, np.nan], [0.3, 0.4]]))
        for p in range(5)
    ],
    *[Picture("ciar threshold=0.5", p, f"prompt {p}", "decided", np.array([[0.0, 0.0], [1.0, 1.0]])) for p in range(5)],
]


def write(folder: Path, cases: list[CaseRecords], **more: Any) -> Path:
    arguments: dict[str, Any] = {
        "scenario_yaml": "name: synthetic  # <b>\n",
        "provenance": PROVENANCE,
        "pictures": PICTURES,
    }
    write_run(folder, **{**arguments, "cases": cases, **more})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "grid", CASES, draw=build_report)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- words


def test_numbers_have_three_digits_and_no_data_is_a_dash() -> None:
    values = {
        0.0: "0",
        1.0: "1.00",
        9.999: "10.0",
        12.345: "12.3",
        1234.6: "1,235",
        0.00456: "0.00456",
        4.56e-6: "4.56e-06",
    }
    values |= {math.nan: "–", math.inf: "∞"}
    assert {value: significant(value) for value in values} == values


def test_units_and_labels() -> None:
    assert split_unit("network.rtt_ms") == ("RTT", "ms")
    assert split_unit("cloud.replicas") == ("cloud replicas", "")
    assert axis_label("workload.arrivals.poisson_per_s") == "poisson (per s)"
    assert axis_label("network.up_mbps") == "up (Mbit/s)"
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
    assert condition(row, swept) == "lte, cloud replicas 4"


# ---- findings


def test_findings_by_network(run: Run) -> None:
    wifi, lte = (finding(name, cases) for name, cases in run.conditions())
    assert wifi.heading == "wifi: ciar threshold=0.5 is fastest (2.0× base); at base's quality: code prefix_rate=0.3"
    pattern = r"ciar threshold=0\.5 is fastest: [34]\.\d\d s per image \(.* to .*\), .*× base's speed \(.* to .*\)\.$"
    assert re.match(pattern, wifi.sentences[0])
    assert wifi.sentences[1].startswith("Its images differ significantly from base's: cloud_nll 1.99 ")
    assert wifi.sentences[2].startswith("Fastest without a significant difference in cloud_nll: code prefix_rate=0.3, ")
    assert lte.heading.startswith("lte: no significant difference: ")
    assert "16" not in lte.heading
    assert "code" not in lte.heading


def rows(*values: tuple[str, float, float, float], n: int = 9) -> pd.DataFrame:
    """Cases by (label, mean latency, half-width, speed-up, +- 1 %)."""
    frame = pd.DataFrame(values, columns=["label", "latency_mean_s", "half", "speedup"])
    frame["method"], frame["distinct_images"] = frame["label"], n
    frame["latency_mean_lo_s"] = frame["latency_mean_s"] - frame["half"]
    frame["latency_mean_hi_s"] = frame["latency_mean_s"] + frame["half"]
    frame["speedup_lo"], frame["speedup_hi"] = frame["speedup"] * 0.99, frame["speedup"] * 1.01
    frame["method_name"], frame["images"] = frame["label"], n
    later = frame["latency_mean_s"] - frame["latency_mean_s"].min()
    frame["latency_minus_fastest_lo_s"], frame["latency_minus_fastest_hi_s"] = (
        later - frame["half"],
        later + frame["half"],
    )
    frame["cloud_nll_minus_base"] = frame["cloud_nll_minus_base_lo"] = math.nan
    return frame.assign(cloud_nll=math.nan, cloud_nll_lo=math.nan, cloud_nll_hi=math.nan)


def test_base_may_win() -> None:
    said = finding("wifi", rows(("ciar", 4.0, 0.1, 0.5), ("base", 2.0, 0.1, 1.0)))
    assert said.heading == "wifi: base is fastest (ciar takes 2.0× as long)"
    sentence = "base is fastest: 2.00 s per image (1.90 to 2.10). The next, ciar, takes 2.0× as long (2.0 to 2.0)."
    assert said.sentences == (sentence,)


def test_no_difference_is_said_plainly() -> None:
    said = finding(
        "wifi", rows(("ciar", 4.0, 0.5, math.nan), ("code", 4.2, 0.5, math.nan), ("lantern", 9.0, 0.5, math.nan))
    )
    assert said.heading == "wifi: no significant difference: ciar and code"
    assert "No significant difference in latency between ciar and code (95 %)." in said.sentences[0]


def test_paired_interval_decides_against_base() -> None:
    """The intervals of the means overlap, the paired one excludes 1: a significant difference."""
    apart = finding("x", rows(("ciar", 4.0, 1.0, 1.1), ("base", 4.4, 1.0, 1.0)))
    assert apart.heading == "x: ciar is fastest (1.1× base)"
    close = finding("x", rows(("ciar", 4.0, 0.0, 1.005), ("base", 4.4, 0.0, 1.0)))
    assert close.heading == "x: no significant difference: ciar and base"


def test_paired_intervals_find_differences_that_single_ones_do_not(tmp_path: Path) -> None:
    """Two methods whose latencies vary by 5 % together, 0.1 s apart, and images that differ from base's alike at every prompt."""
    base, slow, fast = (case(method, seconds, {}) for method, seconds in (("base", 8.0), ("code", 4.0), ("ciar", 4.0)))
    fast.quality["cloud_nll"][:] = base.quality["cloud_nll"] + np.array([0.01, 0.011, 0.012, 0.013])
    fast.columns["latency_s"][:] = slow.columns["latency_s"] - 0.1
    for name in ("device_compute_s", "uplink_s"):
        fast.columns[name][:] = fast.columns["latency_s"] / 2
    run = load_run(write(tmp_path / "run", [base, slow, fast], pictures=()))
    said = finding("x", run.summary)
    assert said.heading == "x: ciar is fastest (2.1× base); at base's quality: code"
    ciar, code = run.summary.iloc[2], run.summary.iloc[1]
    assert ciar["latency_mean_hi_s"] > code["latency_mean_lo_s"]
    assert ciar["cloud_nll_lo"] < run.summary["cloud_nll"][0] < ciar["cloud_nll_hi"]
    assert said.sentences[1].startswith("Its images differ significantly from base's")


@pytest.mark.parametrize(
    ("seconds", "speedup", "nll_lo", "ending"),
    [(4.0, 2.0, -0.1, "code"), (7.98, 1.0025, -0.1, "base or code"), (9.0, 0.9, -0.1, "base"), (4.0, 2.0, 0.1, "base")],
)
def test_the_title_says_who_is_fastest_at_base_s_quality(
    seconds: float, speedup: float, nll_lo: float, ending: str
) -> None:
    cases = rows(("device-only", 1.0, 0.1, 8.0), ("code", seconds, 0.1, speedup), ("base", 8.0, 0.1, 1.0))
    cases["cloud_nll"] = cases["cloud_nll_minus_base"] = 1.0
    cases["cloud_nll_minus_base_lo"], cases["cloud_nll_minus_base_hi"] = [3.0, nll_lo, 0.0], [4.0, 0.2, 0.0]
    assert finding("x", cases).heading == f"x: device-only is fastest (8.0× base); at base's quality: {ending}"
    cases.loc[0, "cloud_nll_minus_base_lo"] = -3.0
    assert finding("x", cases).heading == "x: device-only is fastest (8.0× base)"  # its own are base's


def test_few_requests_have_no_latency_interval() -> None:
    said = finding("x", rows(("ciar", 4.0, 0.1, 2.0), ("base", 8.0, 0.1, 1.0), n=4))
    assert (
        said.sentences[0] == "ciar is fastest: 4.00 s per image (too few requests for an interval), 2.00× base's speed."
    )


def test_labels_are_the_users_own_words(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """No mathematics, no missing values, no method names are read from a label; no case is dropped."""
    texts = ["NA", "cost $5 and $x_", "base of mine", "方法", "nan"]
    cases = [case(text, 4.0, {"network.preset": "None"}, name="ciar") for text in texts]
    cases += [
        case("cloud only", 8.0, {"network.preset": "None"}, name="base"),
        case("NA", 5.0, {"network.preset": "None"}, name="ciar"),
    ]
    folder = write(tmp_path / "run", cases, pictures=(), draw=build_report)
    run = load_run(folder)
    assert list(run.summary["label"]) == [*texts, "cloud only", "NA"]
    assert [is_base(row) for _, row in run.summary.iterrows()] == [False] * 5 + [True, False]
    assert set(run.summary["condition"]) == {"None"}
    assert not recwarn.list


def test_nothing_and_one_request() -> None:
    assert finding("x", rows(("base", math.nan, 0.1, math.nan))).heading == "x: no request was answered"
    single = finding("x", rows(("ciar", 1.0, math.nan, 2.0), ("base", 2.0, math.nan, 1.0)))
    assert "nothing can be concluded" in single.sentences[0]
    assert finding("x", rows(("ciar", 1.0, 0.1, math.nan))).heading == "x: ciar takes 1.00 s"


def along(rtts: np.ndarray, ciar: np.ndarray, half: float = 0.05) -> pd.DataFrame:
    """base at 5 s and ciar at its latencies along the RTT, with speed-ups +- half."""
    values = [("base", 5.0, 0.1, 1.0)] * len(rtts) + [("ciar", float(y), 0.1, 5.0 / float(y)) for y in ciar]
    table = rows(*values)
    table["speedup_lo"], table["speedup_hi"] = table["speedup"] - half, table["speedup"] + half
    table["network.rtt_ms"] = [*rtts, *rtts]
    return table


def test_break_even_lies_on_the_line_between_runs() -> None:
    table = along(np.array([0.0, 100.0]), np.array([4.0, 8.0]))
    (found,) = break_evens(table, "network.rtt_ms")
    assert (found.label, found.at, found.latency_s) == ("ciar", 25.0, 5.0)
    table["speedup_lo"] = 0.5  # base may be the faster one at both ends
    assert break_evens(table, "network.rtt_ms") == []


@given(points=st.integers(2, 400), slope=st.floats(0.005, 0.2), noise=st.floats(0.0, 0.02), seed=st.integers(0, 99))
def test_break_even_stays_on_a_finer_grid(points: int, slope: float, noise: float, seed: int) -> None:
    """However many runs near it show no significant difference; latency is 4 s + slope * RTT, so it lies at 1 s / slope."""
    rtts = np.linspace(0.0, 3.0 / slope, points)
    jitter = noise * stream(seed, "test").uniform(-1, 1, points)
    (found,) = break_evens(along(rtts, 4.0 + slope * rtts + jitter), "network.rtt_ms")
    assert found.at == pytest.approx(1 / slope, abs=(2 * noise + 1e-9) / slope)
    assert found.low <= found.at <= found.high
    assert found.low > 0
    assert found.high < 3.0 / slope


def test_break_even_interval_does_not_depend_on_the_grid() -> None:
    """The ends lie where the interval of the speed-up reaches 1: 5 / (4 + 0.01 x) -+ 0.05 = 1."""
    (fine,) = break_evens(along(np.linspace(0, 300, 601), 4.0 + 0.01 * np.linspace(0, 300, 601)), "network.rtt_ms")
    assert (fine.low, fine.high) == pytest.approx((100 * (5 / 1.05 - 4), 100 * (5 / 0.95 - 4)), abs=0.1)


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


def test_the_front_is_drawn_and_its_methods_are_named(run: Run) -> None:
    figure = latency_quality(run, find(run))
    assert {"ciar threshold=0.5", "code prefix_rate=0.3", "base"} <= {text.get_text() for text in figure.axes[0].texts}
    stairs = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert [len(line.get_xydata()) for line in stairs] == [3]


def test_advice_names_the_fastest_at_base_quality(run: Run) -> None:
    assert advice(find(run)).startswith("Fastest at base's image quality: code prefix_rate=0.3 (wifi); ")


def test_column_names_of_intervals_are_those_of_the_summary(run: Run) -> None:
    for name in ("latency_mean_s", "speedup", "latency_minus_fastest_s", "fd_scenes", "align_scenes", "cloud_nll"):
        assert set(interval_columns(name)) <= set(run.summary.columns) & set(summary_columns())
    assert set(run.summary.columns) - {"label", "condition", "network.preset"} == set(summary_columns())


# ---- plots and page


def test_files_and_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    before = files(folder)
    names = ("latency_quality", "latency_parts", "image_grid")
    assert {f"plots/{name}.{form}" for name in names for form in ("png", "svg")} < set(before)
    build_report(folder)
    assert files(folder) == before
    assert files(write(tmp_path / "elsewhere", CASES, draw=build_report)) == before
    stale = folder / "plots" / "sweep_gone.png"
    stale.write_bytes(b"")
    build_report(folder)
    assert files(folder) == before


def test_page_is_self_contained_and_says_what_it_must(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert set(re.findall(r'src="([^"]{5})', page)) == {"data:"}
    assert all((folder / link).is_file() for link in re.findall(r'href="([^"]*)"', page))
    assert "default-src 'none'" in page
    for words in (
        "ciar threshold=0.5 is fastest",
        "Latency as if llamagen-xl on a100; acceptance and quality of the scenes pair",
        "No significant difference in latency between",
        "roofline: data sheet",
        "published: &lt;figure&gt; &amp; text",
        "Heat of the device",
        "name: synthetic  # &lt;b&gt;",
        "prompt 0 &amp; &#34;more&#34;",
        "cloud_call_pct",
        "Fastest at base&#39;s image quality: code prefix_rate=0.3 (wifi)",
        "Pareto front of mean latency and cloud_nll, by the means: ciar threshold=0.5, code prefix_rate=0.3, base.",
    ):
        assert words in page, words
    hidden = re.search(r"Not shown, no data: ([^.]*)\.", page)
    assert hidden is not None
    assert {"fd_scenes", "cost_usd", "goodput_per_s"} <= set(hidden.group(1).split(", "))
    assert page.count("<figure>") == 4 * 4  # four prompts of five; two images and two maps each
    images = re.findall(r"<img [^>]*>", page)
    assert images
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_svg_carries_no_date(folder: Path) -> None:
    for path in (folder / "plots").glob("*.svg"):
        assert b"<dc:date>" not in path.read_bytes()


def test_sweep(tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", SWEEP, pictures=(), draw=build_report)
    run = load_run(folder)
    assert numeric_axes(run) == ["network.rtt_ms"]
    assert run.labels() == ["base", "ciar threshold=0.3"]
    assert {path.name for path in (folder / "plots").glob("*.png")} == {
        "latency_quality.png",
        "latency_parts.png",
        "sweep_network_rtt_ms.png",
    }
    assert "Along network.rtt_ms" in (folder / "report.html").read_text()


def test_settings_of_one_method_share_hue_and_marker_and_differ_in_all_else(tmp_path: Path) -> None:
    cases = [case("ciar", 4.0, {"methods.ciar.threshold": t}) for t in (0.1, 0.2, 0.3)] + [case("base", 8.0, {})]
    run = load_run(write(tmp_path / "run", cases))
    assert list(short_labels(run).values()) == ["ciar threshold=0.1", "0.2", "0.3", "base"]
    look = looks(zip(run.summary["label"], run.summary["method_name"], strict=True))
    assert look["ciar threshold=0.2"].colour == METHOD_LOOKS["ciar"][0]
    *settings, base = look.values()
    assert {one.marker for one in settings} == {METHOD_LOOKS["ciar"][1]} != {base.marker}
    for differing in ("colour", "fill", "dash"):
        assert len({getattr(one, differing) for one in settings}) == 3, differing
    lightness = [luminance(one.colour) for one in settings]
    assert min(lightness[0] - lightness[1], lightness[1] - lightness[2]) > 0.08


def luminance(colour: str) -> float:
    """Grey of a colour as a printer draws it, 0 to 1."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(METHOD_LOOKS) == set(METHODS)
    for part in zip(*METHOD_LOOKS.values(), strict=True):
        assert len(set(part)) == len(METHODS)  # hues; markers, which greyscale keeps


def test_looks_do_not_depend_on_the_other_methods_of_a_run() -> None:
    alone = looks([("mine", "somebody-s"), ("ciar", "ciar")])
    beside = looks([("code", "code"), ("ciar", "ciar"), ("base", "base"), ("mine", "somebody-s")])
    assert {name: beside[name] for name in alone} == alone
    many = looks([(f"ciar threshold={i}", "ciar") for i in range(30)])
    assert len({(one.fill, str(one.dash)) for one in many.values()}) == 30
    assert len({one.colour for one in many.values()}) == 30


def test_lines_of_a_sweep_differ_without_colour(tmp_path: Path) -> None:
    """One method at six prefix rates along its threshold, beside three other methods: as in a threshold x prefix-rate grid."""
    cases = [
        case("ciar", 4.0 + t + rate, {"methods.ciar.threshold": t, "methods.ciar.prefix_rate": rate})
        for t in (0.1, 0.2, 0.3)
        for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    cases += [case(method, 8.0, {}) for method in ("base", "code", "lantern")]
    run = load_run(write(tmp_path / "run", cases, pictures=()))
    lines = sweep(run, "methods.ciar.threshold").legends[0].get_lines()
    drawn = [(line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor() == "white") for line in lines]
    assert len(drawn) == len(set(drawn)) == 9
    dashes = [str(line._unscaled_dash_pattern) for line in lines if line.get_marker() == "D"]  # type: ignore[attr-defined]
    assert len(dashes) == len(set(dashes)) == 6


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_requests(tmp_path: Path, count: int) -> None:
    cases = [case("base", 8.0, {}, n=count), case("device-only", 4.0, {}, n=count)]
    folder = write(tmp_path / "run", cases, provenance={"name": "few"}, pictures=(), draw=build_report)
    page = (folder / "report.html").read_text()
    assert ("nothing to compare" if count == 0 else "nothing can be concluded") in page
    assert not re.search(r"\bnan\b", page)


def test_many_conditions_and_methods(tmp_path: Path) -> None:
    settings = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    cases = [
        case(f"ciar threshold={t}", 4.0 + t + i, {"network.rtt_ms": 10 * (i + 1)}) for i in range(7) for t in settings
    ]
    folder = write(tmp_path / "run", cases, pictures=(), draw=build_report)
    assert (folder / "plots" / "latency_quality.png").stat().st_size > 10_000


def test_methods_that_the_image_grid_leaves_out_are_counted(tmp_path: Path, run: Run) -> None:
    assert grid_note(run) == "A row is one prompt with one seed."
    labels = [f"ciar threshold={number}" for number in range(9)]
    cases = [case(label, 4.0, {"network.preset": "wifi"}) for label in labels]
    pictures = [Picture(label, 0, "prompt", "image", IMAGE) for label in labels]
    folder = write(tmp_path / "run", cases, pictures=pictures, draw=build_report)
    assert "The first 8 of 9 methods." in (folder / "report.html").read_text()
    assert "The first 8 of 9 methods." in words(image_grid(load_run(folder)))


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def test_infinity_has_no_place_on_an_axis(tmp_path: Path) -> None:
    cases = [case("base", 8.0, {})] + [case("ciar", 4.0 + t, {"methods.ciar.threshold": t}) for t in (0.1, 0.2)]
    cases.append(case("ciar", 7.0, {"methods.ciar.threshold": math.inf}))
    run = load_run(write(tmp_path / "run", cases, pictures=()))
    assert "Not on the axis: ciar threshold inf." in words(sweep(run, "methods.ciar.threshold"))


def test_titles_fit_their_figure(tmp_path: Path) -> None:
    """A wide title of one column ends before the edge of the figure."""
    label = "ciar with a name that is rather long, as names of methods go"
    cases = [case("base", 8.0, {}), case(label, 4.0, {})]
    run = load_run(write(tmp_path / "run", cases, pictures=()))
    figure = latency_quality(run, find(run))
    for ax in figure.axes:
        assert ax.title.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(("count", "panels"), [(6, 6), (7, 7), (30, 12)])
def test_any_number_of_conditions_has_a_latency_quality_plot(tmp_path: Path, count: int, panels: int) -> None:
    cases = [
        case(m, s, {"network.rtt_ms": 10 * (i + 1)})
        for i in range(count)
        for m, s in (("base", 8.0), ("ciar", 3.0 + i))
    ]
    run = load_run(write(tmp_path / "run", cases, pictures=()))
    figure = latency_quality(run, find(run))
    assert sum(bool(ax.get_title()) for ax in figure.axes) == panels
    assert f"RTT {10 * count} ms" in words(figure)
    assert ("12 of 30 conditions" in words(figure)) == (count == 30)


def test_many_conditions_have_a_table_of_speed_ups(tmp_path: Path) -> None:
    cases = [
        case(m, s, {"network.rtt_ms": 10 * (i + 1)}) for i in range(7) for m, s in (("base", 8.0), ("ciar", 3.0 + i))
    ]
    said = words(speedup_table(load_run(write(tmp_path / "run", cases, pictures=()))))
    assert "RTT 70 ms" in said
    assert re.search(r"2\.\d× 3\.0\d s|2\.\d× 2\.9\d s", said)


def test_intervals_and_legends_stay_inside(tmp_path: Path) -> None:
    cases = [case(f"ciar with a rather long label number {i}", 4.0 + i, {}) for i in range(30)] + [
        case("base", 8.0, {})
    ]
    run = load_run(write(tmp_path / "run", cases, pictures=()))
    run.summary["align_scenes"], run.summary["align_scenes_lo"], run.summary["align_scenes_hi"] = 0.9, 0.7, 1.1
    figure = latency_quality(run, find(run))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = figure.legends[0].get_window_extent(renderer)
    assert (box.x0, box.y0) >= (0, 0)
    assert box.x1 <= figure.bbox.x1
    assert figure.axes[1].get_ylim()[1] > 110
    for column in ("latency_mean_lo_s", "latency_mean_hi_s"):
        low, high = figure.axes[0].get_xlim()
        assert run.summary[column].between(low, high).all()


def test_nested_provenance_reads_as_words(tmp_path: Path) -> None:
    provenance = {"name": "x", "network": [{"down": 5, "up": 2.5}, {"down": 9, "up": None}]}
    page = (
        write(tmp_path / "run", [case("base", 8.0, {})], provenance=provenance, draw=build_report) / "report.html"
    ).read_text()
    assert "down 5, up 2.5; down 9, up unknown" in page


def test_without_answers_there_are_no_images_to_show(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [case("base", 8.0, {}, n=0)], draw=build_report)
    assert "<h2>Images" not in (folder / "report.html").read_text()
    assert not (folder / "plots" / "image_grid.png").exists()


# ---- bad folders


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="it does not exist"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="not a folder"):
        load_run(tmp_path / "file")
    with pytest.raises(RunFolderError, match=r"it has no provenance\.json"):
        load_run(tmp_path)
    (tmp_path / "provenance.json").write_text('{"program": "other"}')
    with pytest.raises(RunFolderError, match="not from ciar-sim"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["scenario.yaml", "summary.csv", "requests.parquet", "queue.parquet", "provenance.json", "images/base_0.png"],
)
def test_missing_files_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(name)):
        build_report(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("summary.csv", b"a,b\n1,2\n"),
        ("summary.csv", b""),
        ("provenance.json", b"{"),
        ("images/base_0.png", b"x"),
        ("images/index.json", b"[1]"),
    ],
)
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, data: bytes) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(RunFolderError, match=name.split("/")[0]):
        build_report(tmp_path / "run")


def test_the_queue_is_drawn_where_something_waited(folder: Path, tmp_path: Path) -> None:
    assert not (folder / "plots" / "queue_over_time.png").exists()
    looks = np.arange(5)
    samples = dict.fromkeys(SAMPLED, looks) | {"time_s": 2.0 * looks}
    waiting = [replace(one, samples=samples) if index != 3 else one for index, one in enumerate(CASES)]
    write(tmp_path / "run", waiting, draw=build_report)
    assert (tmp_path / "run" / "plots" / "queue_over_time.svg").exists()
    assert "The queue over time" in (tmp_path / "run" / "report.html").read_text()
    run = load_run(tmp_path / "run")
    wifi, lte = (ax for ax in queue_over_time(run, find(run)).axes)
    assert [len(ax.lines) for ax in (wifi, lte)] == [3, 2]  # the fourth case was not looked at
    assert wifi.lines[0].get_ydata().tolist() == (2 * looks).tolist()
