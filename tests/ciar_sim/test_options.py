"""Options that the machine cannot satisfy, invalid numbers, unwritable places, inputs that are not files: one line and exit code 2."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ciar_sim.cli.common import resolve_torch_device
from ciar_sim.cli.main import main
from simulator.core.errors import CiarSimError, RecordingError
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.recording import Recording, SessionSpec
from tests.ciar_sim.test_no_dead_option import options


@pytest.mark.parametrize(
    "name",
    [
        "gpu",
        "",
        "cuda:x",
        "cuda:-1",
        "cuda:99",
        "cpu:1:2",
        "meta",
        "vulkan",
        "a\0b",
        "\udcff",
        "cuda:" + "9" * 50,
        "x" * 500,
    ],
)
def test_a_torch_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(CiarSimError, match=r"^--torch-device ") as caught:
        resolve_torch_device(name)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_a_device_that_this_build_lacks_is_refused(name: str) -> None:
    there = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}[name]
    if there.device_count():
        assert resolve_torch_device(name) == name
        return
    with pytest.raises(CiarSimError, match=rf"^--torch-device {name}: "):
        resolve_torch_device(name)


def test_the_cpu_is_always_there() -> None:
    assert resolve_torch_device("cpu") == "cpu"
    assert resolve_torch_device("auto") in ("cpu", "cuda")


@pytest.mark.parametrize("command", ["uncertainty", "samples"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--guidance", "nan"),
        ("--guidance", "inf"),
        ("--guidance", "-inf"),
        ("--guidance", "0.5"),
        ("--seed", "9" * 60),
        ("--seed", "nan"),
        ("--prompts", "1" + "0" * 60),
        ("--prompts", "inf"),
    ],
)
def test_numbers_that_are_none_are_refused(command: str, option: str, value: str) -> None:
    found = CliRunner().invoke(main, ["evaluate", command, option, value])
    assert found.exit_code == 2
    assert option in found.output


def test_a_figure_has_the_format_that_its_name_says(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["plot", str(tmp_path), "breakdown", "--out", str(tmp_path / "figure.jpg")])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "figure.jpg: must end in .svg or .pdf or .png, or give --format" in found.stderr


def test_a_cache_that_is_a_file_is_no_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = CliRunner().invoke(main, ["cache", "--cache", str(tmp_path / "file")])
    assert (found.exit_code, found.stderr) == (2, f"Error: {tmp_path / 'file'}: is not a folder\n")


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["profile", "--dtype", "float16"], "--dtype goes with --model"),
        (["profile", "--batch", "3"], "--batch goes with --model"),
        (["profile", "--pair", "scenes", "--runtime", "eager"], "--runtime goes with --model"),
        (["profile", "--seconds", "nan"], "nan is not a finite number"),
        (["run", "quickstart", "--dry-run", "--case-timeout", "nan"], "nan is not a finite number"),
        (["capacity", "x.yaml", "--slo-p95", "5s", "--precision", "60%"], "60% is not a percentage from 0.1 to 50"),
        (["recommend", "x.yaml", "--max-loss", "101%"], "101% is not a percentage from 0 to 100"),
        (
            ["evaluate", "pictures", "quickstart", "--inception", "x", "--prefix", "a photo of "],
            "--prefix goes with --clip",
        ),
        (["evaluate", "pictures", "quickstart", "--clip", "x", "--real", "."], "--real goes with --inception or --vgg"),
    ],
)
def test_an_option_without_effect_is_refused(arguments: list[str], needed: str) -> None:
    found = CliRunner().invoke(main, arguments)
    assert (found.exit_code, needed in found.output) == (2, True)


# Every option that names a file (FILES) or folder (FOLDERS) to write, in a command whose input is missing, which would be the next error.
# test_reliability.py has --out of run and sweep.
FILES = {
    "compare --out": ["compare", "none", "none"],
    "capacity --out": ["capacity", "none", "--slo-p95", "1s"],
    "recommend --out": ["recommend", "none"],
    "export --out": ["export", "none"],
    "plot --out": ["plot", "none", "sweep", "--format", "svg"],
    "profile --out": ["profile", "--pair", "none"],
    "profile --fit": ["profile", "--pair", "none"],
    "traces import --out": ["traces", "import", "none"],
    "traces show --out": ["traces", "show", "none"],
    "traces generate --out": ["traces", "generate", "none"],
}
FOLDERS = {
    "evaluate samples --out": ["evaluate", "samples", "--pair", "none"],
    "evaluate uncertainty --out": ["evaluate", "uncertainty", "--pair", "none"],
    "evaluate pictures --out": ["evaluate", "pictures", "none"],
    "export --out": ["export", "none", "--as", "mahimahi"],
    "regime --out": ["regime", "none", "--x", "network.rtt_ms=1,2"],
    "report --out": ["report", "none", "none"],
    "train device --out": ["train", "device", "--pair", "none"],
    "train file --out": ["train", "none"],
    "train file --export": ["train", "none"],
}


def test_every_option_that_names_a_place_to_write_has_a_row() -> None:
    places = {one for one in options(main) if one.endswith((" --out", " --fit", " --export"))}
    assert places - {"run --out", "sweep --out"} == {*FILES, *FOLDERS}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        *((row, place) for row in FILES.items() for place in ("folder", "file/x", "/proc/x", "a" * 250)),
        *((row, place) for row in FOLDERS.items() for place in ("file", "file/x", "/proc/x")),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    row: tuple[str, list[str]], place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    option, command = row
    found = CliRunner().invoke(main, [*command, option.split()[-1], str(tmp_path / place)])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.stderr
    assert str(tmp_path / place)[:200] in found.stderr
    assert "written" in found.stderr or "cannot write" in found.stderr


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_recorded(tmp_path: Path) -> None:
    def record(specs: Sequence[SessionSpec]) -> list[tuple[SessionSpec, Recording]]:
        raise AssertionError("recorded")

    source = CachedSource(RecordingCache(Path("/proc/cache")), record)
    with pytest.raises(RecordingError, match="cannot write the recording cache /proc/cache"):
        source.recordings([SessionSpec("w", "base", 1, {}, {}, "p", 0)])


# ---- inputs

READERS = {
    "a scenario": ["run", "PIPE"],
    "a scenario of a decision": ["recommend", "PIPE"],
    "a scenario to export": ["export", "PIPE", "--as", "netem"],
    "a trace": ["traces", "show", "PIPE"],
    "traces": ["traces", "import", "PIPE", "--out", "x.csv"],
    "a trace to fit": ["traces", "fit", "PIPE"],
    "a trace of a scenario": ["run", "quickstart", "--dry-run", "--set", "network={trace: PIPE}"],
    "arrivals": [
        *("run", "quickstart", "--dry-run"),
        *("--set", "workload={devices: 1, duration_s: 1, arrivals: {trace: PIPE}}"),
    ],
    "captions": ["run", "quickstart", "--dry-run", "--set", "prompts={file: PIPE}"],
    "a profile": ["run", "quickstart", "--dry-run", "--set", "compute.cloud={model: pair, profile: PIPE}"],
    "hardware": ["run", "quickstart", "--dry-run", "--set", "compute.cloud={model: pair, hardware: PIPE.yaml}"],
    "a pair": ["profile", "--pair", "PIPE.yaml"],
    "a training file": ["train", "PIPE"],
    "captions to train": ["train", "device", "--pair", "scenes", "--prompts", "PIPE"],
    "an answer": ["plot", "PIPE", "capacity"],
}


@pytest.mark.parametrize("what", READERS)
def test_what_is_no_regular_file_is_never_waited_for(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    os.mkfifo("PIPE.yaml")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)  # ends a wait for the pipe
    found = CliRunner().invoke(main, READERS[what])
    signal.alarm(0)
    assert found.exit_code == 2, found.output
    assert "PIPE" in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_is_no_trace(name: str) -> None:
    """Such a path has no name either, which the file of a plot would take."""
    found = CliRunner().invoke(main, ["traces", "show", name])
    assert (found.exit_code, found.stderr) == (2, f"Error: {name}: cannot be read: Is a directory\n")


def test_the_backend_of_a_notebook_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the notebook's packages are not installed, matplotlib ended every run in a traceback."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
    assert os.environ["MPLBACKEND"] == "agg"
