"""Several runs on one page."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from ciar_sim.cli.main import main
from ciar_sim.decide.compare import compare
from reports.combined import combined, write_comparison
from reports.load import load_run
from simulator.core.errors import RunFolderError
from tests.reports.build import case, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("several")
    one = [case(method, seconds, {"network.preset": "wifi"}) for method, seconds in (("base", 8.0), ("ciar", 4.0))]
    two = [case(method, seconds, {"cloud.replicas": 2}) for method, seconds in (("base", 6.0), ("ciar", 3.0))]
    warned = {"name": "night", "warnings": ["base: the cloud was always busy"]}
    return [
        write(root / "first", one, images=(), provenance={"name": "day"}),
        write(root / "second", two, images=(), provenance=warned),
        write(root / "third", one, images=(), provenance={"name": "day"}),
    ]


def test_the_run_is_one_more_condition(folders: list[Path]) -> None:
    run = combined([load_run(folder) for folder in folders])
    assert run.swept == ("run", "network.preset", "cloud.replicas")
    assert list(dict.fromkeys(run.summary["condition"])) == ["first, wifi", "night, cloud replicas 2", "third, wifi"]
    assert list(run.summary["case"]) == [0, 1, 2, 3, 4, 5]
    assert run.provenance["warnings"] == ["night: base: the cloud was always busy"]
    means = [load_run(folder).summary["latency_mean_s"] for folder in folders]
    assert list(run.summary["latency_mean_s"]) == [value for column in means for value in column]
    twice = combined([load_run(folders[0]), load_run(folders[0])])
    assert list(twice.summary["run"].unique()) == ["first", "first #2"]


def test_the_command_writes_a_folder_of_its_own_and_says_the_warnings(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["report", str(folders[0]), str(folders[1]), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "warning: night: base: the cloud was always busy" in result.output
    assert list(pd.read_csv(out / "summary.csv")["run"]) == ["day", "day", "night", "night"]
    page = (out / "report.html").read_text()
    assert 'value="run:night"' in page
    assert "day against night" in page
    assert {path: path.read_bytes() for path in before} == before
    again = CliRunner().invoke(main, ["report", str(folders[0]), str(folders[1]), "--out", str(out)])
    assert again.exit_code == 0, again.output


def test_names_of_folders_that_are_no_text_are_written(folders: list[Path], tmp_path: Path) -> None:
    """As of an archive whose names have another encoding."""
    odd = tmp_path / os.fsdecode(b"o\xfc")
    shutil.copytree(folders[0], odd)
    assert set(compare([folders[0], odd]).table["run"]) == {f"{tmp_path}/o\ufffd"}
    page, run = write_comparison([odd, folders[0]], tmp_path / "both")
    assert list(run.summary["run"].unique()) == ["o\ufffd", "first"]
    assert "o\ufffd" in page.read_text()
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["runs"]["o\ufffd"] == str(odd)


def test_nothing_but_a_comparison_is_replaced(folders: list[Path]) -> None:
    with pytest.raises(
        RunFolderError, match="it exists and is not a comparison made by ciar-sim; name another by --out"
    ):
        write_comparison(folders[:2], folders[2])
    refused = CliRunner().invoke(main, ["report", str(folders[0]), "--out", str(folders[1])])
    assert refused.exit_code == 2
    assert "--out goes with several run folders" in refused.output
