"""A wheel, built and installed on its own, runs from a folder outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # a copy, because building leaves files behind
    tree.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(
        ["tar", "c", "--null", "-T", "-", "-f", str(tmp_path / "tree.tar")], cwd=ROOT, input=files, check=True
    )
    subprocess.run(["tar", "x", "-f", str(tmp_path / "tree.tar"), "-C", str(tree)], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def program(*arguments: str) -> str:
        code = "import sys; from ciar_sim.cli.main import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert "sweep" in program("--help")
    assert "eagle2" in program("list", "methods")
    assert "scenes" in program("list", "pairs")
    assert '"methods"' in program("schema")
    program("run", "quickstart", "--set", "prompts.count=1", "--out", "out", "--quiet")
    assert (elsewhere / "out" / "report.html").is_file()
