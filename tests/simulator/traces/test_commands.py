"""`ciar-sim traces show | import`."""

import json
import os
from pathlib import Path

from simulator.traces.read import read
from simulator.traces.summary import summary
from tests.simulator.traces.examples import GNETTRACK, MOONCAKE, assert_refused, call, file


def test_show_and_import(tmp_path: Path) -> None:
    path = file(tmp_path, GNETTRACK)
    result = call("show", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == summary(read([path]))
    assert not list(tmp_path.glob("*.png"))
    result = call("show", path)
    assert "lower bound" in result.stdout
    assert (tmp_path / "trace.dat.png").read_bytes().startswith(b"\x89PNG")
    result = call("import", path, "--out", tmp_path / "own.csv")
    assert result.exit_code == 0
    lines = (tmp_path / "own.csv").read_text().splitlines()
    assert lines[0] == "# from trace.dat (gnettrack)"
    assert lines[1].startswith("# what the phone received: a lower bound")
    header = next(line for line in lines if not line.startswith("#"))
    assert header == "time_s,down_mbps,up_mbps,rtt_ms,loss_pct"
    assert call("show", file(tmp_path, MOONCAKE, "m"), "--out", tmp_path / "m.png").exit_code == 0
    assert (tmp_path / "m.png").exists()


def test_a_name_that_is_no_text_is_drawn_and_written(tmp_path: Path) -> None:
    """As of an archive whose names have another encoding."""
    path = file(tmp_path, GNETTRACK, os.fsdecode(b"gr\xfc.csv"))
    assert call("show", path, "--out", tmp_path / "drawn.png").exit_code == 0
    assert call("import", path, "--out", tmp_path / "own.csv").exit_code == 0
    assert (tmp_path / "own.csv").read_text().startswith("# from gr\ufffd.csv (gnettrack)\n")


def test_a_name_of_another_format_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, GNETTRACK)
    for arguments, name, allowed in (
        (("show", path), "x.pdf", ".png"),
        (("import", path), "x.JSON", ".csv"),
        (("generate", "lte"), "x.png", ".csv"),
    ):
        result = call(*arguments, "--out", tmp_path / name)
        ending = name[2:].upper()
        assert_refused(result, f"{name}: would not be a file of {ending}; allowed: a name in {allowed}")
        assert not (tmp_path / name).exists()
    assert call("import", path, "--out", tmp_path / "lte.trace").exit_code == 0
