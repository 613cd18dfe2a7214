"""Plots of the answers of capacity and recommend: content, fit in the width of a column, and refused files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from ciar_sim.cli import plot as command
from ciar_sim.cli.main import main
from reports.decision_plots import decision_plot, read_answer
from reports.figure import Form, laid_out, styled, texts
from reports.regime_plot import read_map, regime_map
from simulator.core.errors import RunFolderError
from tests.reports.build import ANSWERS, write_maps

COLUMN = Form(3.3)


def drawn(folder: Path, kind: str, form: Form = COLUMN, **change: Any) -> Figure:
    file = folder / "answer.json"
    file.write_text(json.dumps({**ANSWERS[kind], **change}))
    with styled(form):
        figure = decision_plot(read_answer(file, kind), kind, form)
        laid_out(figure)
    return figure


@pytest.fixture(scope="module")
def drawn_maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_maps(tmp_path_factory.mktemp("maps"))


@pytest.fixture
def line(drawn_maps: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the folder of a map over one condition, which the test may change."""
    return Path(shutil.copytree(drawn_maps[0], tmp_path / "line"))


@pytest.mark.parametrize("kind", command.ANSWERS)
def test_nothing_leaves_a_column(tmp_path: Path, kind: str) -> None:
    figure = drawn(tmp_path, kind)
    assert figure.get_figwidth() == 3.3
    box = figure.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= 3.32
    assert box.y0 >= -0.02
    assert box.y1 <= figure.get_figheight() + 0.02


def test_no_cell_of_positive_values_reaches_below_zero(drawn_maps: tuple[Path, Path]) -> None:
    """The cell around the lower of the rates 1 and 10 Mbit/s would, on a linear axis."""
    ax = regime_map(read_map(drawn_maps[1]), COLUMN).axes[0]
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim() == (0.0, 14.5)


def test_curves_along_a_logarithmic_axis_are_linear_in_its_number(tmp_path: Path) -> None:
    """The curves then meet at the break-even."""
    line, _ = write_maps(tmp_path)
    (ax,) = regime_map(read_map(line), COLUMN).axes
    assert ax.get_xscale() == "log"
    for curve, slope in zip(ax.lines[:2], (0.01, 0.03), strict=True):
        x, y = (np.asarray(values, dtype=float) for values in curve.get_data())
        assert len(x) > 3
        assert y == pytest.approx(4.0 + slope * x)


def test_loads_are_said_with_their_intervals(tmp_path: Path) -> None:
    figure = drawn(tmp_path, "capacity")
    said = texts(figure)
    assert {"0.520/s, 41 devices", "carries none", "above all tried"} <= set(said)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["lantern wifi", "ciar wifi"]  # most first
    bars = [tuple(bar.get_segments()[0][:, 0]) for bar in ax.collections]
    assert pytest.approx((0.51, 0.53)) in bars


@pytest.mark.parametrize("form", [Form(), COLUMN])
def test_names_of_two_loads_do_not_overlap(tmp_path: Path, form: Form) -> None:
    figure = drawn(tmp_path, "capacity", form, table=ANSWERS["capacity"]["table"][:2])
    upper, lower = (text.get_window_extent() for text in figure.axes[0].get_yticklabels())
    assert lower.y1 + 2 < upper.y0


def test_devices_stand_for_the_rate_of_a_closed_loop(tmp_path: Path) -> None:
    rows = [
        {**row, "rate_per_s": None, "rate_lo_per_s": None, "rate_hi_per_s": None}
        for row in ANSWERS["capacity"]["table"]
    ]
    figure = drawn(tmp_path, "capacity", table=rows)
    assert figure.axes[0].get_xlabel() == "largest number of devices"
    assert "41 devices" in texts(figure)


def test_what_is_recommended_is_ringed_and_what_is_not_allowed_open(tmp_path: Path) -> None:
    figure = drawn(tmp_path, "recommend", Form())
    wifi, lte = figure.axes
    assert (wifi.get_title(loc="left"), lte.get_title(loc="left")) == ("wifi: ciar", "lte: base")
    rings = [[line.get_xydata().tolist() for line in ax.lines if line.get_markersize() == 14.0] for ax in (wifi, lte)]
    assert rings == [[[[6.0, 3.0]]], []]
    faces = {
        tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in wifi.lines if len(line.get_xydata()) == 1
    }
    assert faces[3.2, 22.5] == "white"
    assert faces[9.5, 0.0] != "white"
    floor = next(line for line in wifi.lines if len(line.get_xydata()) == 2)
    assert set(floor.get_ydata()) == {5.0}


def test_of_many_settings_the_legend_names_those_that_nothing_beats(tmp_path: Path) -> None:
    """With 20 settings, all names would fill half of a figure of a column's width, and the shades could not be told apart."""
    first = ANSWERS["recommend"]["table"][0]
    settings = {
        f"ciar threshold={n}": {"latency_mean_s": 9.0 - n / 4, "loss_pct": float(n * (1 + n % 2))} for n in range(1, 21)
    }
    settings["ciar threshold=9"]["loss_pct"] = None  # NaN beats nothing
    rows = [first, *({**first, "floor": "unclear", "method": label, **of} for label, of in settings.items())]
    figure = drawn(
        tmp_path,
        "recommend",
        Form(),
        table=[{key: value for key, value in row.items() if key != "network.preset"} for row in rows],
        names={"base": "base", **dict.fromkeys(settings, "ciar")},
        verified=[],
    )
    (legend,) = figure.legends
    named = [f"ciar threshold={n}" for n in (2, 4, 6, 8, 10, 12, 14)]
    assert [text.get_text() for text in legend.get_texts()][:9] == ["base", *named, "ciar, other settings"]
    assert len(figure.axes[0].lines) == 2 + 19  # the floor and base, and all settings but the one without a loss
    assert figure.axes[0].get_title(loc="left") == "recommended: base"


@pytest.mark.parametrize("kind", command.ANSWERS)
def test_methods_are_those_asked_for(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(ANSWERS[kind]))
    answer = read_answer(file, kind)
    said = " ".join(texts(decision_plot(answer, kind, COLUMN, ["base"])))
    assert "base" in said
    assert "device-only" not in said
    with pytest.raises(RunFolderError, match="--methods beam: no method of this answer; it has base, ciar"):
        decision_plot(answer, kind, COLUMN, ["beam"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not the answer of ciar-sim capacity: JSONDecodeError"),
        ("[]", "is not the answer of ciar-sim capacity: TypeError"),
        ("{}", "is not the answer of ciar-sim capacity: KeyError"),
        ('{"decision": "recommend"}', "holds the answer of ciar-sim recommend, not of capacity"),
        (json.dumps({**ANSWERS["capacity"], "names": {}}), "is not the answer of ciar-sim capacity: KeyError: 'base'"),
        (json.dumps({**ANSWERS["capacity"], "table": [{"method": "base"}]}), "KeyError: 'rate_per_s'"),
        (json.dumps({**ANSWERS["capacity"], "slo_p95_s": "soon"}), "ValueError: 'soon' is no objective"),
        (json.dumps({**ANSWERS["capacity"], "slo_p95_s": -1}), "ValueError: -1 is no objective"),
        (
            json.dumps({**ANSWERS["capacity"], "names": dict.fromkeys(ANSWERS["capacity"]["names"])}),
            "names must be those",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "answer.json"
    file.write_text(content)
    for path, told in ((file, message), (tmp_path / "none.json", "cannot be read: No such file")):
        result = CliRunner().invoke(main, ["plot", str(path), "capacity"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr
        assert "write one with ciar-sim capacity ... --out capacity.json" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(main, ["plot", str(file), "capacity", "--by", "network.preset"])
    assert (result.exit_code, "--by network.preset" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "change",
    [
        {"verified": 3},
        {"verified": [3]},
        {"verified": [{"method": "base"}]},
        {"verified": [{"method": "beam", "held": True}]},
        {"verified": [{"method": "base", "held": "yes"}]},
        {"metric": None},
        {"max_loss_pct": True},
        {"max_loss_pct": float("nan")},
    ],
)
def test_facts_of_a_recommendation_are_checked_before_they_are_drawn(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RunFolderError, match="is not the answer of ciar-sim recommend"):
        drawn(tmp_path, "recommend", **change)


@pytest.mark.parametrize(("measured", "said"), [(False, "base failed"), (True, "no request was answered")])
def test_a_map_says_why_a_cell_has_no_winner(drawn_maps: tuple[Path, Path], measured: bool, said: str) -> None:
    drawn = read_map(drawn_maps[1])
    cells = drawn.cells.assign(winner=["none", *drawn.cells["winner"][1:]])
    latency = drawn.latency if measured else drawn.latency.iloc[2:]
    figure = regime_map(drawn._replace(cells=cells, latency=latency))
    assert f"no winner: {said}" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_label_of_a_map_may_read_as_a_missing_value(line: Path) -> None:
    for file in line.glob("*.csv"):
        file.write_text(file.read_text().replace("ciar", "NA"))
    file = line / "regime.json"
    file.write_text(file.read_text().replace('"ciar"', '"NA"'))
    assert set(read_map(line).cells["winner"]) == {"NA", "base"}


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("regime.csv", "True", "perhaps", "sure must hold True and False"),
        ("regime.csv", "80", "20", "a row for each network.rtt_ms is needed"),
        ("regime.csv", "80", "x", "network.rtt_ms must hold numbers"),
        ("regime.csv", "80", "-80", "network.rtt_ms must be above 0 on a logarithmic axis"),
        ("regime.csv", ",base", ",beam", "KeyError: 'beam'"),
        ("latency.csv", "20.0", "", "a row for each network.rtt_ms and method is needed"),
        ("break_evens.csv", "8", "low", "low must hold numbers"),
        ("regime.json", '"Quality floor."', "3", "must be texts"),
        ("regime.json", '"log_x": true', '"log_x": "yes"', "network.rtt_ms must be above 0"),
    ],
)
def test_a_damaged_map_is_refused(line: Path, file: str, before: str, after: str, message: str) -> None:
    text = (line / file).read_text()
    assert before in text
    (line / file).write_text(text.replace(before, after))
    with pytest.raises(RunFolderError, match=message):
        read_map(line)
