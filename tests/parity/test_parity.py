"""The golden data, file by file, and the command that checks a folder of golden data."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main
from tests.parity.checks import Tally, checks

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="golden data (../shared/golden) is not on this machine")


@needs_golden
@pytest.mark.parametrize("pattern", checks())
def test_golden(pattern: str) -> None:
    files = sorted(GOLDEN.glob(pattern))
    assert files
    for file in files:
        tally = Tally()
        with torch.inference_mode():
            checks()[pattern].run(file, tally)
        assert tally.cases
        assert not tally.failures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the sampling files and a README only."""
    for name in ("sampling.safetensors", "sampling_cases.json", "README.md"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    return tmp_path


@needs_golden
def test_the_command_names_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(GOLDEN / "paper_tables.csv", folder / "paper_tables.csv")
    assert main(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "paper_tables.csv: ok, 15 cases, largest error 0"
    assert lines[1].startswith("sampling.safetensors: ok, 36 cases, largest error ")
    assert lines[2] == "sampling_cases.json: read for sampling.safetensors"
    assert len(lines) == 3


@needs_golden
def test_a_wrong_value_an_unknown_file_and_a_missing_one_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "surprise.json").write_text("{}")
    assert main(folder) == 1
    assert "surprise.json: UNKNOWN: no check reads this file" in capsys.readouterr().out
    (folder / "surprise.json").unlink()
    tensors = load_file(folder / "sampling.safetensors")
    tensors["007.probs_llamagen"][0, 3] += 1e-4
    save_file(tensors, folder / "sampling.safetensors")
    assert main(folder) == 1
    out = capsys.readouterr().out
    assert "sampling.safetensors: FAILED, 36 cases, largest error 0.0001" in out
    assert "    case 8: LlamaGen's chain off by 0.0001, allowed 1e-06" in out
    (folder / "sampling_cases.json").unlink()
    assert main(folder) == 1
    assert "FileNotFoundError" in capsys.readouterr().out


def test_nothing_to_check_is_no_success(tmp_path: Path) -> None:
    assert main(tmp_path) == 1
    assert main(tmp_path / "nowhere") == 1


def test_a_tally_compares_floats_within_and_the_rest_exactly() -> None:
    tally = Tally()
    tally.close("a", torch.tensor([1.0, torch.inf]), torch.tensor([1.0 + 5e-7, torch.inf]), atol=1e-6)
    tally.equal("b", torch.tensor([1, 2]), torch.tensor([1, 2]))
    tally.equal("c", [1, 2], [1, 2])
    assert not tally.failures
    assert tally.largest == pytest.approx(5e-7, rel=0.3)
    tally.close("d", torch.zeros(2), torch.zeros(3), atol=1.0)
    tally.close("e", torch.tensor([torch.nan]), torch.tensor([1.0]), atol=1.0)
    tally.equal("f", torch.tensor([1, 2]), torch.tensor([1, 3]))
    tally.equal("g", 1, 2)
    assert [line.split(": ")[1].split()[0] for line in tally.failures] == ["d", "e", "f", "g"]
