"""Plots of the answers of capacity and recommend: what they say, at the width of a column, and files that they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from ciar_sim.cli import plot as command
from ciar_sim.cli.main import main
from reports.decision_plots import decision_plot, read_answer
from reports.figure import Form, laid_out, styled, texts
from simulator.core.errors import RunFolderError
from tests.reports.build import ANSWERS

COLUMN = Form(3.3)


def drawn(folder: Path, kind: str, form: Form = COLUMN, **change: Any) -> Figure:
    file = folder / "answer.json"
    file.write_text(json.dumps({**ANSWERS[kind], **change}))
    with styled(form):
        figure = decision_plot(read_answer(file, kind), kind, form)
        laid_out(figure)
    return figure


@pytest.mark.parametrize("kind", command.ANSWERS)
def test_nothing_leaves_a_column(tmp_path: Path, kind: str) -> None:
    figure = drawn(tmp_path, kind)
    assert figure.get_figwidth() == 3.3
    box = figure.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= 3.32
    assert box.y0 >= -0.02
    assert box.y1 <= figure.get_figheight() + 0.02


def test_loads_are_said_with_their_intervals(tmp_path: Path) -> None:
    figure = drawn(tmp_path, "capacity")
    said = texts(figure)
    assert {"0.520/s, 41 devices", "carries none", "above all tried"} <= set(said)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["lantern wifi", "ciar wifi"]  # most first
    bars = [tuple(bar.get_segments()[0][:, 0]) for bar in ax.collections]
    assert pytest.approx((0.51, 0.53)) in bars


def test_devices_stand_for_the_rate_of_a_closed_loop(tmp_path: Path) -> None:
    rows = [
        {**row, "rate_per_s": None, "rate_lo_per_s": None, "rate_hi_per_s": None}
        for row in ANSWERS["capacity"]["table"]
    ]
    figure = drawn(tmp_path, "capacity", table=rows)
    assert figure.axes[0].get_xlabel() == "greatest number of devices"
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
