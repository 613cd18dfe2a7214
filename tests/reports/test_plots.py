"""Plots: colours and markers of methods, lines of sweeps, titles, legends and conditions, the queue over time."""

import itertools
import math
import os
import re
import signal
import threading
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.build import at_a_glance, build_report
from reports.figure import Form, finish, lacking, logarithmic, new_figure, render, styled, wrapped_title
from reports.findings import find
from reports.load import Run, load_run
from reports.looks import METHOD_LOOKS, PART_COLOURS, looks
from reports.quality_plot import latency_quality, short_labels, speedup_table
from reports.queue_plot import queue_over_time
from reports.sweep_plot import numeric_axes, sweep
from simulator.protocol.methods import METHODS
from simulator.results.columns import SAMPLED
from tests.reports.build import CASES, SWEEP, case, words, write


def test_the_front_is_drawn_and_its_methods_are_named(run: Run) -> None:
    figure = latency_quality(run, find(run))
    assert {"ciar threshold=0.5", "code prefix_rate=0.3", "base"} <= {text.get_text() for text in figure.axes[0].texts}
    stairs = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert [len(line.get_xydata()) for line in stairs] == [3]


@pytest.mark.usefixtures("undrawn")
def test_sweep(tmp_path: Path) -> None:
    folder = write(tmp_path / "sweep", SWEEP, images=(), draw=build_report)
    run = load_run(folder)
    assert numeric_axes(run) == ["network.rtt_ms"]
    assert run.labels() == ["base", "ciar threshold=0.3"]
    assert {path.name for path in (folder / "plots").glob("*.png")} == {
        "latency_quality.png",
        "latency_parts.png",
        "sweep_network_rtt_ms.png",
    }
    assert "Against RTT (ms)" in (folder / "report.html").read_text()


def test_a_sweep_without_images_has_no_panel_of_quality(tmp_path: Path) -> None:
    imagined = [case("base", 8.0 + rtt, {"network.rtt_ms": rtt}, nll=math.nan) for rtt in (10, 50)]
    figures = [sweep(load_run(write(tmp_path / "run", cases)), "network.rtt_ms") for cases in (imagined, SWEEP)]
    assert [len(figure.axes) for figure in figures] == [2, 3]


def test_settings_of_one_method_share_hue_and_marker_and_differ_in_all_else(tmp_path: Path) -> None:
    cases = [case("ciar", 4.0, {"methods.ciar.threshold": t}) for t in (0.1, 0.2, 0.3)] + [case("base", 8.0, {})]
    run = load_run(write(tmp_path / "run", cases))
    assert list(short_labels(run.labels()).values()) == ["ciar threshold=0.1", "0.2", "0.3", "base"]
    assert list(short_labels(run.labels()[1:]).values()) == ["ciar threshold=0.2", "ciar threshold=0.3", "base"]
    two = [f"ciar threshold={t} prefix_rate={r}" for t in (0.1, 0.3) for r in (0.0, 0.06, 0.2)]
    assert list(short_labels(two).values()) == two  # the last value alone would be ambiguous
    look = looks(zip(run.summary["label"], run.summary["method_name"], strict=True))
    assert look["ciar threshold=0.2"].colour == METHOD_LOOKS["ciar"][0]
    *settings, base = look.values()
    assert {one.marker for one in settings} == {METHOD_LOOKS["ciar"][1]} != {base.marker}
    for differing in ("colour", "fill", "dash"):
        assert len({getattr(one, differing) for one in settings}) == 3, differing
    lightness = [luminance(one.colour) for one in settings]
    assert min(lightness[0] - lightness[1], lightness[1] - lightness[2]) > 0.08


def test_parts_of_a_latency_differ_in_greyscale() -> None:
    """The parts that are long in most runs, of which neighbours in a bar change where another part is 0."""
    names = ("device_compute_s", "uplink_s", "cloud_compute_s", "downlink_s", "wait_s")
    greys = [luminance(PART_COLOURS[name]) for name in names]
    assert min(abs(one - other) for one, other in itertools.combinations(greys, 2)) > 0.1


def luminance(colour: str) -> float:
    """Return the grey value of a colour in print, 0 to 1."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def lab(colour: str, seen: np.ndarray | None = None) -> np.ndarray:
    """Return CIE L*a*b* (D65) of a colour, float [3].

    Args:
        seen: Matrix [3, 3] on linear RGB that simulates a colour vision deficiency.
    """
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = linear if seen is None else np.clip(seen @ linear, 0.0, 1.0)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    x = to_xyz @ linear / to_xyz.sum(axis=1)
    f = np.where(x > 0.008856, np.cbrt(x), (903.3 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Deuteranopia: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def test_looks_of_rows_differ_also_in_grey_and_without_green() -> None:
    """Methods without colour and marker share `OTHER_LOOKS`, because no further shades of grey can be distinguished in print."""
    assert {name for name, kind in METHODS.items() if kind.colour or kind.marker} == set(METHOD_LOOKS)
    colours, markers = zip(*METHOD_LOOKS.values(), strict=True)
    assert len(set(markers)) == len(METHOD_LOOKS)
    for one, other in combinations(colours, 2):
        assert abs(lab(one)[0] - lab(other)[0]) > 5.0, (one, other)  # L*, 0 to 100, which a grey print preserves
        assert np.linalg.norm(lab(one, DEUTERANOPIA) - lab(other, DEUTERANOPIA)) > 9.0, (one, other)


def test_looks_do_not_depend_on_the_other_methods_of_a_run() -> None:
    alone = looks([("mine", "somebody-s"), ("ciar", "ciar")])
    beside = looks([("code", "code"), ("ciar", "ciar"), ("base", "base"), ("mine", "somebody-s")])
    assert {name: beside[name] for name in alone} == alone
    many = looks([(f"ciar threshold={i}", "ciar") for i in range(30)])
    assert len({(one.fill, str(one.dash)) for one in many.values()}) == 30
    assert len({one.colour for one in many.values()}) == 30


def test_lines_of_a_sweep_differ_without_colour(tmp_path: Path) -> None:
    """One method at six prefix rates over its threshold, and three other methods, as in a grid of threshold and prefix rate."""
    cases = [
        case("ciar", 4.0 + t + rate, {"methods.ciar.threshold": t, "methods.ciar.prefix_rate": rate})
        for t in (0.1, 0.2, 0.3)
        for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    cases += [case(method, 8.0, {}) for method in ("base", "code", "lantern")]
    run = load_run(write(tmp_path / "run", cases, images=()))
    lines = sweep(run, "methods.ciar.threshold").legends[0].get_lines()
    drawn = [(line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor() == "white") for line in lines]
    assert len(drawn) == len(set(drawn)) == 9
    dashes = [str(line._unscaled_dash_pattern) for line in lines if line.get_marker() == "D"]  # type: ignore[attr-defined]
    assert len(dashes) == len(set(dashes)) == 6


@pytest.mark.usefixtures("undrawn")
def test_the_report_of_a_sweep_of_the_load_has_its_curves(tmp_path: Path) -> None:
    cases = [case("base", 8.0 * rate, {"workload.arrivals.poisson_per_s": rate}) for rate in (1, 2)]
    folder = write(tmp_path / "run", cases, images=(), draw=build_report)
    assert (folder / "plots" / "load_curves.svg").is_file()
    assert "<h2>Against the load</h2>" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_many_conditions_and_methods(tmp_path: Path) -> None:
    settings = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    cases = [
        case(f"ciar threshold={t}", 4.0 + t + i, {"network.rtt_ms": 10 * (i + 1)}) for i in range(7) for t in settings
    ]
    folder = write(tmp_path / "run", cases, images=(), draw=build_report)
    assert "RTT 70 ms" in (folder / "plots" / "latency_quality.svg").read_text()


def test_infinity_has_no_place_on_an_axis(tmp_path: Path) -> None:
    cases = [case("base", 8.0, {})] + [case("ciar", 4.0 + t, {"methods.ciar.threshold": t}) for t in (0.1, 0.2)]
    cases.append(case("ciar", 7.0, {"methods.ciar.threshold": math.inf}))
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert "Not on the axis: ciar threshold inf." in words(sweep(run, "methods.ciar.threshold"))


def test_titles_fit_their_figure(tmp_path: Path) -> None:
    """A long title of one panel ends before the edge of the figure."""
    label = "ciar with a name that is rather long, as names of methods go"
    cases = [case("base", 8.0, {}), case(label, 4.0, {})]
    run = load_run(write(tmp_path / "run", cases, images=()))
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
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = latency_quality(run, find(run))
    assert sum(bool(ax.get_title()) for ax in figure.axes) == panels
    assert f"RTT {10 * count} ms" in words(figure)
    assert ("12 of 30 conditions" in words(figure)) == (count == 30)


def test_the_first_plot_has_four_methods_the_advised_and_the_fastest_among_them(tmp_path: Path, run: Run) -> None:
    assert at_a_glance(run, find(run)) is None  # with three methods the whole plot is easy to read
    seconds = {"device-only": 1.0, "lantern": 9.0, "eagle2": 10.0, "speculative": 12.0, "code": 6.0, "base": 8.0}
    away = {"device-only": 9.0, "lantern": 6.0}
    cases = [case(method, s, {}, nll=away.get(method, 4.0)) for method, s in seconds.items()]
    crowd = load_run(write(tmp_path / "run", cases, images=()))
    figure = at_a_glance(crowd, find(crowd))
    assert figure is not None
    said = words(figure)
    assert "4 of 6 methods: base, the fastest at its quality, the fastest, and the next." in said
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert {"base", "code", "device-only"} < drawn
    assert len(drawn) == 4


def test_the_first_plot_names_the_fastest_method_of_a_condition_that_it_does_not_draw(tmp_path: Path) -> None:
    """Three methods whose images differ are the fastest: device-only on two networks, lantern and code on one each."""
    seconds = {"base": 8.0, "ciar": 5.0, "eagle2": 7.0, "device-only": 1.0, "lantern": 9.0, "code": 9.0}
    fastest = {"wifi": "device-only", "lte": "device-only", "geo": "lantern", "leo": "code"}
    cases = [
        case(
            m,
            0.5 if m == fastest[network] else s,
            {"network.preset": network},
            nll=9.0 if m in fastest.values() else 4.0,
        )
        for network in fastest
        for m, s in seconds.items()
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = at_a_glance(run, find(run))
    assert figure is not None
    panels = [ax for ax in figure.axes if ax.get_title()]
    said = [" ".join(ax.get_title().split()) for ax in panels]
    assert [
        f"{name}: {method} is fastest" in title for (name, method), title in zip(fastest.items(), said, strict=True)
    ] == [True] * 4
    drawn = {text.get_text() for ax in panels for text in ax.texts}
    assert drawn == {"base", "ciar", "device-only", "lantern"}


def test_the_first_plot_of_many_conditions_is_along_the_rtt(tmp_path: Path) -> None:
    """Also where another number comes first, as in a sweep of random points."""
    cases = [
        case(m, s * i, {"network.up_mbps": up, "network.rtt_ms": 10 * i})
        for i, up in enumerate((1.4, 1.1, 1.9, 1.2, 1.7, 1.3, 1.6), start=1)
        for m, s in (("base", 8.0), ("ciar", 3.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = at_a_glance(run, find(run))
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "RTT (ms)"
    assert "faster than base: ciar at all 7 points" in words(figure)


def test_many_conditions_have_a_table_of_speed_ups(tmp_path: Path) -> None:
    cases = [
        case(m, s, {"network.rtt_ms": 10 * (i + 1)}) for i in range(7) for m, s in (("base", 8.0), ("ciar", 3.0 + i))
    ]
    said = words(speedup_table(load_run(write(tmp_path / "run", cases, images=()))))
    assert "RTT 70 ms" in said
    assert re.search(r"2\.\d× 3\.0\d s|2\.\d× 2\.9\d s", said)


def test_intervals_and_legends_stay_inside(tmp_path: Path) -> None:
    cases = [case(f"ciar with a rather long label number {i}", 4.0 + i, {}) for i in range(30)] + [
        case("base", 8.0, {})
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    name = "align_of_the_pair"  # names of quality metrics depend on the pair
    run.summary[name], run.summary[f"{name}_lo"], run.summary[f"{name}_hi"] = 0.9, 0.7, 1.1
    figure = latency_quality(run, find(run))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = figure.legends[0].get_window_extent(renderer)
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert figure.axes[1].get_ylim()[1] > 110
    for column in ("latency_mean_lo_s", "latency_mean_hi_s"):
        low, high = figure.axes[0].get_xlim()
        assert run.summary[column].between(low, high).all()


@pytest.mark.usefixtures("undrawn")
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
    assert [len(ax.lines) for ax in (wifi, lte)] == [3, 2]  # the fourth case has no samples
    assert wifi.lines[0].get_ydata().tolist() == (2 * looks).tolist()


def test_long_labels_leave_the_axes_their_room() -> None:
    """A heading with a label of a hundred letters once took the whole figure of two bars, and the layout failed."""
    form = Form(3.3)
    with styled(form):
        short, long = (new_figure(3.3, 0.9, form) for _ in range(2))
        for figure, words in ((short, 2), (long, 60)):
            wrapped_title(figure.subplots(), " ".join(["fastest"] * words), 2.0)
            finish(figure, form)
    title = long.axes[0].get_title("left")
    assert title.count("\n") == 4
    assert "…" in title
    assert all(len(line) <= 29 for line in title.split("\n"))
    assert long.get_figheight() - short.get_figheight() == pytest.approx(3 * 7.5 * 1.2 / 72)


def test_a_text_is_as_wide_in_a_file_as_it_was_laid_out() -> None:
    with styled():
        figure = new_figure(6.0, 2.0)
        text = figure.text(0, 0, "a label of some length, in small type", fontsize=7.5)
        widths = []
        for dpi in (100, 160, 300):
            figure.set_dpi(dpi)
            widths.append(text.get_window_extent(figure.canvas.get_renderer()).width / dpi)  # type: ignore[attr-defined]
    assert max(widths) < 1.01 * min(widths)


def test_a_lone_method_is_not_ringed_and_a_share_of_none_has_no_ticks_below_it(tmp_path: Path) -> None:
    run = load_run(write(tmp_path / "run", [case("ciar", 4.0, {})], images=()))
    run.summary["align_of_the_pair"] = 0.0
    figure = latency_quality(run, find(run))
    assert "lowest" not in words(figure)
    upper, lower = figure.axes
    assert not any(line.get_marker() == "o" for line in upper.lines)
    low, high = lower.get_ylim()
    assert min(tick for tick in lower.get_yticks() if low <= tick <= high) == 0


def test_threads_draw_in_turn_and_leave_the_programs_style() -> None:
    before = dict(mpl.rcParams)
    drawing, enough = threading.Event(), threading.Event()
    entered: list[int] = []

    def draw(number: int) -> None:
        with styled(), styled():  # nested blocks of a thread do not block
            entered.append(number)
            drawing.set()
            enough.wait(10)

    first, second = (threading.Thread(target=draw, args=(number,)) for number in (1, 2))
    first.start()
    drawing.wait(10)
    second.start()
    second.join(0.05)
    child = os.fork()
    if child == 0:  # the fork lacks the thread that holds the lock
        signal.alarm(10)
        with styled():
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert entered == [1]
    enough.set()
    first.join()
    second.join()
    assert (entered, status, dict(mpl.rcParams)) == ([1, 2], 0, before)


@pytest.mark.parametrize("form", ["png", "pdf"])
def test_letters_that_the_font_lacks_are_taken_from_another(form: str) -> None:
    """STIXGeneral, which matplotlib has, stands for a Chinese font: DejaVu Sans lacks this letter. No font has the last code point."""
    with styled():
        figure = new_figure(3.0, 2.0)
        ax = figure.subplots()
        ax.set_title("z\u1d8e z")
        assert lacking(figure) == {"\u1d8e"}
        assert not lacking(figure, form)
        assert render(figure, form)
        assert ax.title.get_fontfamily() == ["sans-serif"]  # the centred title, which is empty
        (title,) = (text for text in figure.findobj(Text) if isinstance(text, Text) and "z" in text.get_text())
        assert title.get_fontfamily()[0] == "DejaVu Sans"
        assert len(title.get_fontfamily()) == 2
        ax.set_title("z\U0010fffd z")
        assert lacking(figure, form) == lacking(figure, "svg") == {"\U0010fffd"}
        assert render(figure, form)


@pytest.mark.parametrize(
    ("values", "limits", "ticks"),
    [
        ((0.2, 0.5, 1.0, 2.0, 4.0), (0.18, 4.4), [0.2, 0.5, 1.0, 2.0, 4.0]),  # the last one had no tick
        ((1.0, 10.0, 40.0), (0.9, 45.0), [1.0, 10.0, 40.0]),
        ((1.0, 1.02, 40.0), (0.9, 45.0), [1.0, 2.0, 5.0, 10.0, 20.0]),  # too close to each other
        ((9.24656, 20.0, 108.148), (8.0, 120.0), [10.0, 20.0, 50.0, 100.0]),  # too long
        ((), (5.2, 49.0), [7.0, 10.0, 20.0, 30.0]),  # 10 and 20 alone looked linear
        ((), (0.9, 2e6), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]),
    ],
)
def test_a_logarithmic_axis_has_ticks_that_show_it(
    values: tuple[float, ...], limits: tuple[float, float], ticks: list[float]
) -> None:
    ax = Figure(figsize=(3.0, 2.0)).subplots()
    logarithmic(ax, "x", np.array(values))
    ax.set_xlim(*limits)
    assert [tick for tick in ax.get_xticks() if limits[0] <= tick <= limits[1]] == pytest.approx(ticks)


def test_two_numbers_beside_many_names_are_no_axis_at_a_glance(tmp_path: Path) -> None:
    """Seven networks, of which one is farther away: speed-ups against the distance would be two columns of points."""
    networks = ("fibre", "cable", "wifi", "lan", "leo", "geo", "lte")
    cases = [
        case(method, seconds, {"network.preset": name, "network.distance_km": 1500 if name == "lte" else 600})
        for name in networks
        for method, seconds in (("base", 8.0), ("ciar", 4.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = at_a_glance(run, find(run))
    assert figure is not None
    assert "latency (s)" in words(figure)
    assert "distance (km)" not in words(figure)
