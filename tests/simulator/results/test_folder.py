"""Writing a run folder: complete, repeatable, and without touching other files."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simulator.core.errors import RunFolderError
from simulator.results.folder import RunImage, check_run_folder, write_run
from tests.simulator.results.test_results import case

IMAGES = (
    RunImage("ciar threshold=0.5", 0, "a red ring", "image", np.full((8, 8, 3), 7, dtype=np.uint8)),
    RunImage("ciar threshold=0.5", 0, "a red ring", "uncertainty", np.array([[0.0, 1.0], [0.5, np.nan]])),
    RunImage("ciar threshold=0.5", 0, "a red ring", "decided", np.array([[0.0, 1.0], [1.0, 1.0]])),
)


def write(folder: Path, **more: Any) -> pd.DataFrame:
    arguments: dict[str, Any] = {"scenario_yaml": "name: test\n", "provenance": {"name": "test"}, "images": IMAGES}
    return write_run(folder, **{**arguments, "cases": [case("base", [1.0, 2.0])], **more})


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_run_folder_is_the_same_twice_and_replaces_itself(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "run", draw=lambda folder: (folder / "report.html").write_text("x"))
    first = digests(tmp_path / "deep" / "run")
    needed = (
        "scenario.yaml",
        "requests.parquet",
        "queue.parquet",
        "summary.csv",
        "provenance.json",
        "timeline.json.gz",
        "report.html",
    )
    assert set(first) >= set(needed)
    write(tmp_path / "deep" / "run")
    assert digests(tmp_path / "deep" / "run") == {name: hash_ for name, hash_ in first.items() if name != "report.html"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]  # no temporary folder is left


def test_images_and_their_index(tmp_path: Path) -> None:
    write(tmp_path / "run")
    index = json.loads((tmp_path / "run/images/index.json").read_text())
    assert [entry["file"] for entry in index] == [
        "ciar-threshold-0.5_0.png",
        "ciar-threshold-0.5_0_uncertainty.png",
        "ciar-threshold-0.5_0_decided.png",
    ]
    assert (index[0]["low"], index[1]["low"], index[1]["high"]) == (None, 0.0, 1.0)
    with Image.open(tmp_path / "run/images/ciar-threshold-0.5_0_uncertainty.png") as image:
        assert np.asarray(image).tolist() == [[[0, 255], [255, 255]], [[128, 255], [0, 0]]]


def test_provenance_is_plain_json(tmp_path: Path) -> None:
    write(tmp_path / "run", provenance={"name": "test", "power_w": math.nan, "n": np.int64(3), "threshold": math.inf})
    text = (tmp_path / "run/provenance.json").read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (read["program"], read["power_w"], read["n"], read["threshold"]) == ("ciar-sim", None, 3, "inf")


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(RunFolderError, match=r"holds chapter\.tex and is not a run of ciar-sim"):
        write(tmp_path / "thesis")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is not a folder"):
        write(tmp_path / "file")
    with pytest.raises(RunFolderError):
        write(tmp_path / "file" / "run")
    write(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.txt in it is not from ciar-sim"):
        write(tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run", "thesis"]


def test_hidden_files_and_files_among_the_plots_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"it holds \.git and is not a run"):
        write(tmp_path / "repo")
    folder = tmp_path / "run"
    for name in (".hidden", "plots/figure.pdf", "images/.keep.png", "images/mine/a.png"):
        write(folder, draw=lambda new: (new / "plots").mkdir())
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        top = name.removesuffix("/a.png")
        with pytest.raises(RunFolderError, match=f"{re.escape(top)} in it is not from ciar-sim"):
            write(folder)
        (folder / name).unlink()
        if top != name:
            (folder / top).rmdir()
    write(folder)


def test_what_another_process_writes_there_is_not_foreign(tmp_path: Path) -> None:
    """Of two runs that start together, the second checks the folder while the first writes its first files into it."""
    half = tmp_path / "run" / ".scenario.yaml.0123456789ab.tmp"
    half.parent.mkdir()
    half.write_text("na")
    check_run_folder(tmp_path / "run")
    write(tmp_path / "run")
    half.write_text("na")
    check_run_folder(tmp_path / "run")
    half.rename(half.with_name(".thesis.tex.0123456789ab.tmp"))
    with pytest.raises(RunFolderError, match="is not from ciar-sim"):
        check_run_folder(tmp_path / "run")


def test_two_images_of_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two images of one place"):
        write(tmp_path / "run", images=(*IMAGES, IMAGES[0]))
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run")
    assert (tmp_path / "run" / "summary.csv").is_file()


def test_a_failure_leaves_the_old_run_whole(tmp_path: Path) -> None:
    write(tmp_path / "run")
    before = digests(tmp_path / "run")

    def draw(_: Path) -> None:
        raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        write(tmp_path / "run", cases=[case("base", [5.0])], draw=draw)
    assert digests(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
