import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.build import build_report
from reports.figure import colours, short_labels
from reports.findings import finding, is_base
from reports.load import Run, load_run
from reports.picture_grid import grid_note, image_grid
from reports.quality_plot import latency_quality
from reports.queue_plot import queue_over_time
from reports.sweep_plot import break_evens, numeric_axes, sweep
from reports.words import axis_label, condition, label, significant, split_unit
from simulator.core.errors import RunFolderError
from simulator.core.rng import stream
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
    assert wifi.title == "wifi: ciar threshold=0.5 is fastest (2.0× base); at base's quality: code prefix_rate=0.3"
    pattern = r"ciar threshold=0\.5 is fastest: [34]\.\d\d s per image \(.* to .*\), .*× base's speed \(.* to .*\)\.$"
    assert re.match(pattern, wifi.sentences[0])
    assert wifi.sentences[1].startswith("Its pictures are not base's: cloud_nll 1.99 ")
    assert wifi.sentences[2].startswith("Fastest with a cloud_nll not told apart from base's: code prefix_rate=0.3, ")
    assert lte.title.startswith("lte: not told apart: ")
    assert "16" not in lte.title
    assert "code" not in lte.title


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
    frame["cloud_nll_minus_base_lo"] = math.nan
    return frame.assign(cloud_nll=math.nan, cloud_nll_lo=math.nan, cloud_nll_hi=math.nan)


def test_base_may_win() -> None:
    said = finding("wifi", rows(("ciar", 4.0, 0.1, 0.5), ("base", 2.0, 0.1, 1.0)))
    assert said.title == "wifi: base is fastest (ciar takes 2.0× as long)"
    sentence = "base is fastest: 2.00 s per image (1.90 to 2.10). The next, ciar, takes 2.0× as long (2.0 to 2.0)."
    assert said.sentences == (sentence,)


def test_no_difference_is_said_plainly() -> None:
    said = finding(
        "wifi", rows(("ciar", 4.0, 0.5, math.nan), ("code", 4.2, 0.5, math.nan), ("lantern", 9.0, 0.5, math.nan))
    )
    assert said.title == "wifi: not told apart: ciar and code"
    assert "ciar and code are not told apart" in said.sentences[0]


def test_paired_interval_decides_against_base() -> None:
    """The intervals of the means overlap, the paired one excludes 1: told apart."""
    apart = finding("x", rows(("ciar", 4.0, 1.0, 1.1), ("base", 4.4, 1.0, 1.0)))
    assert apart.title == "x: ciar is fastest (1.1× base)"
    close = finding("x", rows(("ciar", 4.0, 0.0, 1.005), ("base", 4.4, 0.0, 1.0)))
    assert close.title == "x: not told apart: ciar and base"


def test_pairs_tell_apart_what_single_intervals_do_not(tmp_path: Path) -> None:
    """Two methods whose latencies vary by 5 % together, 0.1 s apart, and pictures that differ from base's alike at every prompt."""
    base, slow, fast = (case(method, seconds, {}) for method, seconds in (("base", 8.0), ("code", 4.0), ("ciar", 4.0)))
    fast.quality["cloud_nll"][:] = base.quality["cloud_nll"] + np.array([0.01, 0.011, 0.012, 0.013])
    fast.columns["latency_s"][:] = slow.columns["latency_s"] - 0.1
    for name in ("device_compute_s", "uplink_s"):
        fast.columns[name][:] = fast.columns["latency_s"] / 2
    run = load_run(write(tmp_path / "run", [base, slow, fast], pictures=()))
    said = finding("x", run.summary)
    assert said.title == "x: ciar is fastest (2.1× base); at base's quality: code"
    ciar, code = run.summary.iloc[2], run.summary.iloc[1]
    assert ciar["latency_mean_hi_s"] > code["latency_mean_lo_s"]
    assert ciar["cloud_nll_lo"] < run.summary["cloud_nll"][0] < ciar["cloud_nll_hi"]
    assert said.sentences[1].startswith("Its pictures are not base's")


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
    assert finding("x", cases).title == f"x: device-only is fastest (8.0× base); at base's quality: {ending}"
    cases.loc[0, "cloud_nll_minus_base_lo"] = -3.0
    assert finding("x", cases).title == "x: device-only is fastest (8.0× base)"  # its own are base's


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
    assert finding("x", rows(("base", math.nan, 0.1, math.nan))).title == "x: no request was answered"
    single = finding("x", rows(("ciar", 1.0, math.nan, 2.0), ("base", 2.0, math.nan, 1.0)))
    assert "nothing can be concluded" in single.sentences[0]
    assert finding("x", rows(("ciar", 1.0, 0.1, math.nan))).title == "x: ciar takes 1.00 s"


def test_break_even_lies_on_the_line_between_runs() -> None:
    table = rows(("base", 5.0, 0.1, 1.0), ("base", 5.0, 0.1, 1.0), ("ciar", 4.0, 0.1, 1.2), ("ciar", 8.0, 0.1, 0.6))
    table["network.rtt_ms"] = [0.0, 100.0, 0.0, 100.0]
    assert break_evens(table, "network.rtt_ms") == [("ciar", 25.0, 5.0)]
    table["speedup_lo"] = 0.5  # base may be the faster one at both ends
    assert break_evens(table, "network.rtt_ms") == []


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
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) == {"data:"}
    assert "default-src 'none'" in page
    for words in (
        "ciar threshold=0.5 is fastest",
        "Latency as if llamagen-xl on a100; acceptance and quality of the scenes pair",
        "are not told apart",
        "roofline: data sheet",
        "published: &lt;figure&gt; &amp; text",
        "Heat of the device",
        "name: synthetic  # &lt;b&gt;",
        "prompt 0 &amp; &quot;more&quot;",
        "cloud_call_pct",
    ):
        assert words in page, words
    hidden = re.search(r"Not shown, for want of data: ([^.]*)\.", page)
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


def test_settings_of_one_method_share_a_hue(tmp_path: Path) -> None:
    cases = [case("ciar", 4.0, {"methods.ciar.threshold": t}) for t in (0.1, 0.2, 0.3)] + [case("base", 8.0, {})]
    run = load_run(write(tmp_path / "run", cases))
    assert list(short_labels(run).values()) == ["ciar threshold=0.1", "0.2", "0.3", "base"]
    assert len(set(colours(run).values())) == 4
    assert colours(run)["ciar threshold=0.2"] == "#d55e00"


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


def test_methods_that_the_picture_grid_leaves_out_are_counted(tmp_path: Path, run: Run) -> None:
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
    figure = latency_quality(load_run(write(tmp_path / "run", cases, pictures=())))
    for ax in figure.axes:
        assert ax.title.get_window_extent().x1 <= figure.bbox.x1


def test_many_conditions_are_a_table_of_speed_ups(tmp_path: Path) -> None:
    cases = [
        case(m, s, {"network.rtt_ms": 10 * (i + 1)}) for i in range(7) for m, s in (("base", 8.0), ("ciar", 3.0 + i))
    ]
    said = words(latency_quality(load_run(write(tmp_path / "run", cases, pictures=()))))
    assert "RTT 70 ms" in said
    assert re.search(r"2\.\d× 3\.0\d s|2\.\d× 2\.9\d s", said)


def test_nested_provenance_reads_as_words(tmp_path: Path) -> None:
    provenance = {"name": "x", "network": [{"down": 5, "up": 2.5}, {"down": 9, "up": None}]}
    page = (
        write(tmp_path / "run", [case("base", 8.0, {})], provenance=provenance, draw=build_report) / "report.html"
    ).read_text()
    assert "down 5, up 2.5; down 9, up unknown" in page


def test_without_answers_there_are_no_pictures_to_show(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [case("base", 8.0, {}, n=0)], draw=build_report)
    assert "<h2>Pictures" not in (folder / "report.html").read_text()
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
    wifi, lte = (ax for ax in queue_over_time(run).axes)
    assert [len(ax.lines) for ax in (wifi, lte)] == [3, 2]  # the fourth case was not looked at
    assert wifi.lines[0].get_ydata().tolist() == (2 * looks).tolist()
