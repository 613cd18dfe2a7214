"""Options that no machine can serve, and numbers that are none: one line and exit code 2."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ciar_sim.cli.common import resolve_torch_device
from ciar_sim.cli.main import main
from simulator.core.errors import CiarSimError


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


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "samples"],
        ["evaluate", "uncertainty"],
        ["profile"],
        ["recommend", "quickstart"],
        ["regime", "quickstart", "--x", "network.rtt_ms=1,2"],
        ["train", "device", "--pair", "x"],
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "file" / "x")])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "cannot be written" in found.stderr
