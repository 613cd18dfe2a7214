"""`ciar-sim plot`: every kind at the width of a paper's column, its content, and what a run must contain for it.

Longer than other files, because every kind of plot has its content and its refusals tested here.
"""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ciar_sim.cli import plot as command
from ciar_sim.cli.main import main
from ciar_sim.plot import Plots
from reports.figure import Form, laid_out, render, styled
from reports.kinds import KINDS, of_methods, of_values, plot
from reports.load import Run, load_run
from reports.looks import METHOD_LOOKS, PART_COLOURS, looks
from reports.setting_plots import knee, load_axes
from reports.words import rejoined
from simulator.core.errors import CiarSimError, RunFolderError
from simulator.results.columns import SAMPLED
from simulator.results.folder import RunImage
from tests.reports.build import IMAGE, OF_KIND, case, words, write, write_kinds

COLUMN = Form(3.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The runs of `OF_KIND`, by name."""
    made = write_kinds(tmp_path_factory.mktemp("kinds"))
    return {name: load_run(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with latencies from 0.05 to about 500 s, RTTs from 1 to 3,000 ms, one of them without answers, and long labels that differ only
    at the end."""
    name = "a method with a label that is longer than any column"
    seconds = {"base": 9.0, "device-only": 0.05, name: 4.0}
    cases = [
        case(
            m if m != name else f"{name} {end}",
            s + (0.16 * rtt if m == name else 0.0),
            {"network.rtt_ms": rtt},
            n=0 if rtt == 2 else 12,
        )
        for rtt in (1, 2, 3000)
        for m, s in seconds.items()
        for end in (("one", "two") if m == name else ("",))
    ]
    looks = np.arange(5)
    waited = replace(cases[0], samples=dict.fromkeys(SAMPLED, looks) | {"time_s": 2.0 * looks})
    nothing = replace(cases[-1], samples=dict.fromkeys(SAMPLED, 0 * looks) | {"time_s": 2.0 * looks})
    images = [RunImage(one.method, 0, "a prompt", "image", IMAGE) for one in cases[-4:]]
    return load_run(write(tmp_path_factory.mktemp("wild") / "wild", [waited, *cases[1:-1], nothing], images=images))


def drawn(run: Run, kind: str, file_format: str) -> bytes:
    """Return the file that the command writes."""
    with styled(COLUMN):
        return render(plot(run, kind, COLUMN), file_format)


def inside(figure: Figure) -> None:
    """Assert that legends, titles and labels are inside the figure and no tick label overlaps the next one."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for axis in (axis for ax in figure.axes if ax.axison for axis in (ax.xaxis, ax.yaxis)):
        labels = [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible() and tick.label1.get_text()]  # type: ignore[attr-defined]
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert all(box.x0 >= -1 and box.y0 >= -1 for box in boxes), [label.get_text() for label in labels]
        if not any(label.get_rotation() for label in labels):
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes)), [
                label.get_text() for label in labels
            ]
    words = [text for ax in figure.axes if ax.axison for text in (ax._left_title, ax.yaxis.label)]  # type: ignore[attr-defined]
    words += [text for ax in figure.axes if not ax.axison for text in ax.texts]  # of a sheet of images
    for one in (*figure.legends, *(text for text in words if text.get_text())):
        box = one.get_window_extent(renderer)
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_a_column_and_keeps_its_text(runs: dict[str, Run], kind: str) -> None:
    run = runs[OF_KIND[kind]]
    with styled(COLUMN):
        figure = plot(run, kind, COLUMN)
        laid_out(figure)
        assert figure.get_figwidth() == 3.3
        inside(figure)
        svg = render(figure, "svg").decode()
    assert 'width="237.6pt"' in svg  # 3.3 in
    assert "<text" in svg  # text is not converted to outlines
    assert drawn(run, kind, "svg").decode() == svg
    bare = words(plot(run, kind, COLUMN._replace(titles=False)))
    assert "fastest (" not in bare
    assert "as if llamagen-xl" not in bare


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("heat-maps", "load", "uncertainty")])
def test_every_kind_takes_unequal_latencies_and_conditions_without_answers(wild: Run, kind: str) -> None:
    for form in (COLUMN, Form()):
        with styled(form):
            figure = plot(wild, kind, form)
            laid_out(figure)
            inside(figure)


def test_words_over_small_images_are_whole(tmp_path: Path) -> None:
    labels = ("base", "entropy-lens", "device-only", "ciar at 30 %")
    images = [RunImage(label, 0, "a prompt", "image", IMAGE) for label in labels]
    run = load_run(write(tmp_path / "run", [case(label, 8.0, {}) for label in labels], images=images))
    with styled(COLUMN):
        figure = plot(run, "images", COLUMN)
    texts = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert {"base", "entropy-lens", "device-only", "ciar at\n30 %"} <= texts


RATE, UP, DOWN = "workload.arrivals.poisson_per_s", "network.up_mbps", "network.down_mbps"
TOGETHER = [{RATE: 0.1 * i, UP: float(i), DOWN: 40.0 / i} for i in (1, 2, 4)]  # zipped: one rises, one falls
AT_RANDOM = [{RATE: rate, UP: up} for rate, up in ((0.13, 7.1), (0.41, 1.3), (0.27, 4.7), (0.35, 8.9))]
NAMED = [{RATE: 0.1 * (i + 1), "network.preset": name} for i, name in enumerate(("wifi", "lte", "geo"))]


@pytest.mark.parametrize(
    ("points", "note", "joined"),
    [
        (TOGETHER, "Uplink and downlink change with Poisson arrivals.", True),
        (AT_RANDOM, "The points differ in uplink too, so they are not joined.", False),
        (NAMED, "The points differ in preset too, so they are not joined.", False),
    ],
)
@pytest.mark.parametrize("kind", ["sweep", "speed-up", "load"])
def test_points_that_differ_in_other_conditions_share_a_panel(
    tmp_path: Path, kind: str, points: list[dict[str, float]], note: str, joined: bool
) -> None:
    """Values that change together are one line. Random points are no line, and nothing is read off between them."""
    cases = [
        case(m, s * (1 + at[RATE]), at) for at in points for m, s in (("base", 8.0), ("ciar", 10.0 - 10 * at[RATE]))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = plot(run, kind, Form(), by=RATE)
    ax = figure.axes[0]
    assert len([one for one in figure.axes if one.get_title("left")]) == 1
    lines = [line for line in ax.lines if len(set(line.get_xdata())) >= len(points)]
    assert len(lines) == (1 if kind == "speed-up" else 2)
    assert {line.get_linestyle() != "None" for line in lines} == {joined}
    assert note in words(figure)
    assert "no break-even" not in words(figure)
    if not joined:
        assert "break-even" not in words(figure)
        assert f"{len(points)} points" in words(figure)


@pytest.mark.parametrize("key", ["threshold", "prefix_rate"])
def test_random_settings_of_a_method_are_points_of_one_series(tmp_path: Path, key: str) -> None:
    """Also where each has its own condition, in which base has another latency."""
    settings = [(0.31, 0.02), (0.87, 0.05), (0.52, 0.11), (0.74, 0.08)]
    of_ciar = [{"methods.ciar.threshold": t, "methods.ciar.prefix_rate": rate} for t, rate in settings]
    for rtts in ((20,), (11, 47, 23, 90)):
        rtts_of = [rtts[i % len(rtts)] for i in range(len(settings))]
        cases = [case("base", 8.0, {"network.rtt_ms": rtt}) for rtt in rtts]
        cases += [case("ciar", 5.0 + i, {"network.rtt_ms": rtts_of[i], **own}) for i, own in enumerate(of_ciar)]
        run = load_run(write(tmp_path / f"run-{len(rtts)}", cases, images=()))
        figure = plot(run, "sweep", Form(), by=f"methods.ciar.{key}")
        assert [line.get_label() for line in figure.legends[0].get_lines()] == ["base", "ciar"]
        (points,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(settings)]
        assert points.get_linestyle() == "None"
        levels = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
        assert len(levels) == (len(rtts) == 1)  # base has one latency, or one per condition
        if len(rtts) > 1:
            with pytest.raises(RunFolderError, match="no two numbers of one method under one condition"):
                plot(run, "heat-maps", Form())
            continue
        maps = plot(run, "heat-maps", Form())
        assert not any(ax.images for ax in maps.axes)
        points_of, front = maps.axes[0].collections
        assert np.asarray(points_of.get_offsets()).tolist() == [list(own) for own in settings]
        assert len(front.get_offsets()) >= 1


def test_labels_of_a_fine_heat_map_do_not_overlap(runs: dict[str, Run]) -> None:
    one, keys = runs["settings"].summary.iloc[[-1]], ("methods.ciar.threshold", "methods.ciar.prefix_rate")
    fine = pd.MultiIndex.from_product(
        [np.linspace(0.0123, 0.9, 25).round(4), np.linspace(0, 0.9, 21).round(3)], names=keys
    )
    cases = one.drop(columns=list(keys)).merge(fine.to_frame(index=False), how="cross")
    run = replace(runs["settings"], summary=cases.assign(latency_mean_s=np.arange(len(cases), dtype=float)))
    for form in (COLUMN, Form()):
        with styled(form):
            figure = plot(run, "heat-maps", form)
            laid_out(figure)
            for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
                boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
                assert len(boxes) > 3
                assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("kind", ["latency-quality", "latency-cdf", "breakdown"])
def test_a_lone_condition_needs_no_name(wild: Run, kind: str) -> None:
    bare = plot(of_values(wild, ["network.rtt_ms=1"]), kind, Form(titles=False))
    assert [ax.get_title("left") for ax in bare.axes if ax.axison] == [""] * sum(ax.axison for ax in bare.axes)


def test_pdf_holds_type_that_can_be_edited(runs: dict[str, Run]) -> None:
    pdf = drawn(runs["rtt"], "speed-up", "pdf")
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType (type 42), not outlines (type 3)
    assert b"/Type3" not in pdf
    assert pdf == drawn(runs["rtt"], "speed-up", "pdf")


def test_the_kinds_of_the_command_are_those_that_can_be_drawn() -> None:
    rows = {
        "reports/kinds.py": KINDS,
        "ciar_sim/cli/plot.py": command.KINDS,
        "OF_KIND of tests/reports/build.py": OF_KIND,
    }
    missing = {place: {*KINDS, *command.KINDS, *OF_KIND} - {*kinds} for place, kinds in rows.items()}
    assert not any(missing.values()), f"rows are missing: {missing}"
    assert tuple(KINDS) == tuple(command.KINDS) == tuple(OF_KIND)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        (
            "rtt",
            "heat-maps",
            "sweeps no two numbers of one method under one condition; one that does: --axis methods.ciar.threshold=",
        ),
        (
            "settings",
            "speed-up",
            "sweeps no number beside the methods' settings; one that does: --axis network.rtt_ms=",
        ),
        ("settings", "load", "sweeps no rate of arrivals, .*--axis workload.arrivals.poisson_per_s="),
        ("settings", "images", "this run has no images"),
        ("settings", "uncertainty", "no maps of uncertainty; they come with the method ciar"),
        ("rtt", "queue", "no request waited in the cloud"),
    ],
)
def test_a_kind_that_the_data_cannot_give_is_refused_by_what_it_needs(
    runs: dict[str, Run], name: str, kind: str, says: str
) -> None:
    with pytest.raises(RunFolderError, match=says):
        plot(runs[name], kind, COLUMN)


def test_heat_maps_hold_every_setting_and_outline_the_front(runs: dict[str, Run]) -> None:
    run = runs["settings"]
    figure = plot(run, "heat-maps", Form())
    maps = [ax for ax in figure.axes if ax.images and ax.get_xlabel() != ""]
    values = np.asarray(maps[0].images[0].get_array())
    by_setting = run.summary.set_index(["methods.ciar.threshold", "methods.ciar.prefix_rate"])["latency_mean_s"]
    assert values.shape == (2, 3)
    assert values[1, 2] == by_setting[1.0, 0.2]
    outlined = [patch for patch in maps[0].patches if isinstance(patch, Rectangle)]
    assert outlined
    assert "threshold" in words(figure)
    assert "base 8." in words(figure)
    narrow = plot(run, "heat-maps", COLUMN)
    assert {len(text.get_text()) for text in narrow.axes[0].texts} == {
        4
    }  # 3.00: two digits hide small differences of quality


def test_the_bars_of_a_breakdown_add_up_to_the_latency(runs: dict[str, Run]) -> None:
    run = runs["rtt"]
    figure = plot(run, "breakdown", Form())
    for ax, (_, cases) in zip(figure.axes, run.conditions(), strict=True):
        bars: dict[float, float] = {}
        for patch in ax.patches:
            assert isinstance(patch, Rectangle)
            bars[round(patch.get_y(), 3)] = bars.get(round(patch.get_y(), 3), 0.0) + patch.get_width()
        assert len(ax.patches) <= len(PART_COLOURS) * len(cases)
        assert [bars[y] for y in sorted(bars)] == pytest.approx(list(cases["latency_mean_s"]))


def test_speed_up_crosses_one_at_the_break_even(runs: dict[str, Run]) -> None:
    """ciar takes 4 s + 0.05 s per ms of RTT, base 8 s: they are equal near 80 ms."""
    figure = plot(runs["rtt"], "speed-up", COLUMN)
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    at = float(cross.get_xdata()[0])  # type: ignore[index]
    assert at == pytest.approx(80, rel=0.1)
    (line,) = [line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) > 3]
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    assert np.interp(at, x, y) == pytest.approx(1.0, abs=5e-3)  # on the drawn curve over the logarithmic axis
    assert len(line.get_markevery()) == 3  # type: ignore[arg-type]
    assert "ciar threshold=0.3 breaks even at" in words(figure)


def test_a_line_of_base_is_drawn_where_all_are_faster(tmp_path: Path) -> None:
    cases = [case(m, s, {"network.rtt_ms": rtt}) for rtt in (1, 10) for m, s in (("base", 90.0 * rtt), ("ciar", 4.0))]
    ax = plot(load_run(write(tmp_path / "run", cases)), "speed-up", COLUMN).axes[0]
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1.0


def test_short_parts_of_a_breakdown_are_seen(wild: Run) -> None:
    edges = [(patch.get_width(), patch.get_linewidth()) for patch in plot(wild, "breakdown", Form()).axes[-1].patches]  # type: ignore[attr-defined]
    assert {width > 5 for width, edge in edges if edge} == {True}
    assert {edge for width, edge in edges if width < 0.1} == {0.0}


def test_cdf_reaches_all_requests_and_marks_the_percentiles(runs: dict[str, Run]) -> None:
    run = runs["rtt"]
    figure = plot(run, "latency-cdf", Form())
    ax = figure.axes[0]
    (base,) = [line for line in ax.lines if len(line.get_xdata()) == 13 and line.get_color() == METHOD_LOOKS["base"][0]]
    assert float(base.get_ydata()[-1]) == 100.0  # type: ignore[index]
    row = run.summary.iloc[0]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata()) == 1
    }  # type: ignore[index]
    assert (float(row["latency_p95_s"]), 95.0) in points


def test_load_curves_have_the_objective_and_the_knee(runs: dict[str, Run]) -> None:
    figure = plot(runs["load"], "load", COLUMN)
    upper = figure.axes[0]
    assert any(list(line.get_ydata()) == [20.0, 20.0] for line in upper.lines)
    knees = [line for line in upper.lines if line.get_marker() == "x"]
    assert len(knees) == 2
    assert all(float(line.get_ydata()[0]) == 20.0 for line in knees)  # type: ignore[index]
    assert "p95 passes 20 s: base at" in words(figure)
    assert "goodput (per s)" in words(figure)


def test_load_is_what_rises_with_it_and_a_swept_objective_is_that_of_its_column(tmp_path: Path) -> None:
    rate, slo = "workload.arrivals.poisson_per_s", "workload.slo_s"
    cases = [
        case("base", 8.0 * per_s, {slo: slo_s, "workload.arrivals.think_s": 5, rate: per_s})
        for slo_s in (10, 20)
        for per_s in (1, 2, 4)
    ]
    run = load_run(write(tmp_path / "run", cases, images=(), scenario_yaml="workload: {slo_s: 3}\n"))
    assert load_axes(run) == [rate]
    figure = plot(run, "load", Form())
    levels = [{line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"} for ax in figure.axes[:2]]
    assert levels == [{10}, {20}]
    assert "p95 passes 10 s: base at" in words(figure)
    assert "p95 passes 20 s: base at" in words(figure)
    assert "Dashed: the objective." in words(figure)


@pytest.mark.parametrize(
    ("slo_s", "title"),
    [
        (1, "p95 passes 1 s: base and ciar at the lowest load already"),
        (8, "p95 passes 8 s: ciar at 0.10 per s, base at the lowest load already"),
        (1000, "p95 stays within 1000 s"),
    ],
)
def test_a_method_beyond_the_objective_at_every_load_is_not_said_to_be_within_it(
    runs: dict[str, Run], slo_s: int, title: str
) -> None:
    run = replace(runs["load"], scenario=f"workload: {{slo_s: {slo_s}}}")
    figure = plot(run, "load", Form())
    assert figure.axes[0].get_title("left").replace("\n", " ") == title
    crosses = any(line.get_marker() == "x" for line in figure.axes[0].lines)
    assert ("Crosses" in words(figure)) == crosses == (slo_s == 8)


def test_a_condition_without_answers_is_not_said_to_have_no_break_even(tmp_path: Path) -> None:
    cases = [
        case(method, seconds, {"network.rtt_ms": rtt, "cloud.replicas": replicas}, n=n)
        for replicas, n in ((1, 12), (2, 0))
        for rtt in (5, 50)
        for method, seconds in (("base", 8.0), ("ciar", 4.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    titles = [ax.get_title("left").replace("\n", " ") for ax in plot(run, "speed-up", Form(), by="network.rtt_ms").axes]
    assert titles == [
        "cloud replicas 1: no break-even with base in this range of RTT",
        "cloud replicas 2: no speed-up is known",
    ]


def test_a_condition_without_answers_does_not_stay_within_the_objective(tmp_path: Path) -> None:
    rate = "workload.arrivals.poisson_per_s"
    cases = [
        case("base", 8.0, {"network.preset": network, rate: per_s}, n=n)
        for network, n in (("wifi", 12), ("lte", 0))
        for per_s in (1, 2)
    ]
    run = load_run(write(tmp_path / "run", cases, images=(), scenario_yaml="workload: {slo_s: 30}\n"))
    titles = [ax.get_title("left").replace("\n", " ") for ax in plot(run, "load", Form()).axes[:2]]
    assert titles == ["wifi: p95 stays within 30 s", "lte: no request was answered"]


def test_the_knee_lies_on_the_line_between_runs() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 6.0])
    assert knee(x, y, 4.0) == 3.0
    assert knee(x, y, 1.0) == 1.0
    assert math.isnan(knee(x, y, 9.0))


def test_the_cloud_s_tokens_are_outlined(runs: dict[str, Run]) -> None:
    """The cloud decided the upper two of 2 x 2 tokens: a rectangle of six edges."""
    figure = plot(runs["rtt"], "uncertainty", COLUMN)
    outlines = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    assert [len(one.get_segments()) for one in outlines] == [6] * 4


def test_methods_and_panels_are_those_asked_for(runs: dict[str, Run]) -> None:
    figure = plot(runs["rtt"], "sweep", COLUMN, ["ciar"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ciar threshold=0.3"]
    with pytest.raises(
        RunFolderError, match=r"--methods 'cia': .* no such method; did you mean ciar\? allowed: .*base"
    ):
        plot(runs["rtt"], "sweep", COLUMN, ["cia"])
    with pytest.raises(
        RunFolderError, match=r"--by nothing: is not a swept number.*those of this run that do: network.rtt_ms"
    ):
        plot(runs["rtt"], "sweep", COLUMN, (), "nothing")


def test_one_axis_divides_the_panels_and_its_panels_hold_the_other_conditions(tmp_path: Path) -> None:
    cases = [
        case(method, seconds + rtt / 100, {"network.rtt_ms": rtt, "cloud.replicas": n})
        for n in (1, 2)
        for rtt in (10, 50, 200)
        for method, seconds in (("base", 8.0), ("ciar", 4.0))
    ]
    run = load_run(write(tmp_path / "run", cases, images=()))
    figure = plot(run, "latency-quality", Form(), (), "cloud.replicas")
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["cloud replicas 1", "cloud replicas 2"]
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    assert len({tuple(map(float, line.get_xdata())) for line in points}) >= 6
    rings = [line for line in points if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert len(rings) == 1  # of three cases of ciar, the one with the lowest mean
    laid_out(figure)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["base", "ciar"]


def test_the_command_writes_one_file(runs: dict[str, Run], tmp_path: Path) -> None:
    folder = str(runs["rtt"].folder)
    out = tmp_path / "figure.svg"
    arguments = ["plot", folder, "speed-up", "--size", "84mm", "--no-titles", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"<?xml")
    assert "Above the dashed line a method is faster than base." in result.output  # for the caption
    assert re.search(r'width="238\.1\d*pt"', out.read_text())
    refused = CliRunner().invoke(main, [*arguments[:5], "--format", "png", "--out", str(out)])
    assert refused.exit_code == 2
    assert f"--format png: does not go with --out {out}, which ends in .svg" in " ".join(refused.output.split())
    bare = out.with_name("figure.of.mine")  # its extension names no format
    assert CliRunner().invoke(main, [*arguments[:5], "--format", "png", "--out", str(bare)]).exit_code == 0
    assert bare.read_bytes().startswith(b"\x89PNG")
    for size in ("3.3", "3.3in", "8.4cm", "3.3x2in"):
        assert CliRunner().invoke(main, [*arguments[:4], size, "--out", str(out)]).exit_code == 0
    for size in ("wide", "0in", "3inx", "1e9in"):
        refused = CliRunner().invoke(main, [*arguments[:4], size, "--out", str(out)])
        assert refused.exit_code == 2
        assert "--size" in refused.output


def test_swept_values_are_those_asked_for(runs: dict[str, Run]) -> None:
    run = runs["rtt"]
    values = list(run.summary["network.rtt_ms"].unique())
    some = of_values(run, [f"network.rtt_ms={values[0]:g},{values[-1]:g}"])
    assert set(some.summary["network.rtt_ms"]) == {values[0], values[-1]}
    of_setting = of_values(runs["settings"], ["methods.ciar.threshold=0.5"])
    assert set(of_setting.summary["label"].str.partition(" prefix")[0]) == {
        "base",
        "ciar threshold=0.5",
    }  # base has no threshold
    assert plot(run, "speed-up", COLUMN, where=[f"network.rtt_ms={values[0]:g},{values[-1]:g}"]).axes[0].lines
    with pytest.raises(
        RunFolderError,
        match=r"--where network.up_mbps=5: network.up_mbps is not swept in this run; swept: network.rtt_ms",
    ):
        of_values(run, ["network.up_mbps=5"])
    with pytest.raises(RunFolderError, match=r"network.rtt_ms has no value '7' in this run; it has "):
        of_values(run, ["network.rtt_ms=7"])


@pytest.mark.parametrize("value", ["50.0", "5e1", " 50 "])
def test_a_swept_number_may_be_written_in_any_way(runs: dict[str, Run], value: str) -> None:
    some = of_values(runs["rtt"], [f"network.rtt_ms={value},200"])
    assert set(some.summary["network.rtt_ms"]) == {50.0, 200.0}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b", ["a", "b"]),
        (" a , x=1,y ,,b", ["a", "x=1,y", "b"]),
        ("x=1,y", ["x=1,y"]),
        ("x=1,z", ["x=1", "z"]),
        ("", []),
        (",", []),
    ],
)
def test_a_label_with_commas_stays_whole(text: str, found: list[str]) -> None:
    assert rejoined(text, {"a", "b", "x=1,y"}) == found


def test_methods_and_values_of_a_label_with_commas_and_equals_signs(tmp_path: Path) -> None:
    path = "methods.a=b,c.threshold"
    cases = [case("base", 8.0, {}), *(case("a=b,c", seconds, {path: seconds}) for seconds in (4.0, 5.0))]
    run = load_run(write(tmp_path / "run", cases, images=()))
    assert len(of_values(run, [f"{path}=4"]).summary) == 2
    label = str(run.summary["label"].iloc[1])
    assert len(of_methods(run, [label]).summary) == 1
    assert len(of_methods(run, label.split(",")).summary) == 1


def test_latencies_of_a_selection_are_drawn(runs: dict[str, Run]) -> None:
    """A selection of methods and values is drawn from the requests of the whole run."""
    run = runs["rtt"]
    value = run.summary["network.rtt_ms"].iloc[0]
    figure = plot(run, "latency-cdf", COLUMN, ["base"], where=[f"network.rtt_ms={value:g}"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base"]


def test_every_kind_is_a_figure_in_python(runs: dict[str, Run]) -> None:
    plots = Plots(runs["rtt"].folder)
    figure = plots.figure("speed-up", width=3.3, titles=False)
    assert figure.get_figwidth() == 3.3
    assert words(figure) == words(plot(runs["rtt"], "speed-up", Form(3.3, None, False)))
    with pytest.raises(CiarSimError, match=r"plot speedup: not a kind of plot; did you mean speed-up"):
        plots.figure("speedup")


def test_a_method_keeps_its_look_in_a_selection(runs: dict[str, Run]) -> None:
    run = runs["settings"]
    one = "ciar threshold=0.5 prefix_rate=0.2"
    assert looks(of_methods(run, [one]).series)[one] == looks(run.series)[one]


def test_the_knee_lies_on_the_line_that_is_drawn() -> None:
    x, y = np.array([1.0, 4.0]), np.array([10.0, 40.0])
    assert knee(x, y, 20.0) == pytest.approx(2.0)
    assert knee(x, y, 20.0, log_x=True, log_y=True) == pytest.approx(2.0)  # y = 10 x is straight on both
    assert knee(x, y, 20.0, log_y=True) == pytest.approx(2.5)
    assert math.isnan(knee(x, y, 50.0, log_y=True))


def test_a_legend_of_too_many_settings_has_base_and_the_front(tmp_path: Path) -> None:
    cases = [case("base", 8.0, {})] + [
        case("ciar", 1.0 + t, {"methods.ciar.threshold": t}, nll=9.0 - t if t in (1.0, 5.0) else 12.0 + t)
        for t in map(float, range(1, 16))
    ]
    figure = plot(load_run(write(tmp_path / "run", cases, images=())), "latency-quality", COLUMN)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[2:] == ["base", "ciar threshold=1", "ciar threshold=5"]
    assert "The legend leaves out 13 cases beside the front." in words(figure)
