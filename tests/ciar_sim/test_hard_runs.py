"""Extreme runs finish with figures that add up, and print the warnings that a reader needs under the table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from ciar_sim.cli.console import warning_lines
from ciar_sim.cli.main import main
from simulator.experiment.run import Outcome
from simulator.results.columns import PARTS

pytestmark = pytest.mark.usefixtures("undrawn")

HEAD = """\
name: t
pair: {pair}
prompts: {{source: scenes, count: 2}}
methods: [base]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
"""

Undrawn = Callable[..., Outcome]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def written(folder: Path, pair: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text((HEAD + text).format(pair=pair))
    return path


def run(folder: Path, pair: Path, cache: Path, text: str) -> Result:
    path = written(folder, pair, text)
    return CliRunner().invoke(main, ["run", str(path), "--out", str(folder / "out"), "--cache", str(cache), "--force"])


@pytest.mark.parametrize("loss_pct", [70, 85, 90])
@pytest.mark.parametrize("transport", ["tcp", "quic"])
def test_parts_add_up_at_any_loss(
    tmp_path: Path, tiny_pair_folder: Path, run_undrawn: Undrawn, transport: str, loss_pct: int
) -> None:
    """Tries of the handshake are at most two minutes apart, so a long connection time is whole timeouts plus its round trips."""
    network = f"network: {{{{rtt_ms: 40, up_mbps: 10, down_mbps: 30, loss_pct: {loss_pct}, transport: {transport}}}}}\n"
    run_undrawn(written(tmp_path, tiny_pair_folder, network), tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    assert np.all(np.abs(table[list(PARTS)].sum(axis=1) - table["latency_s"]) <= 1e-6)
    connect_s = table["connect_s"].max()
    assert connect_s > 127.04 + 100.0
    assert (connect_s - 127.04) % 120.0 < 0.1


def test_parts_add_up_years_after_the_start(tmp_path: Path, tiny_pair_folder: Path, run_undrawn: Undrawn) -> None:
    (tmp_path / "late.csv").write_text("requested_s\n99999990.1\n99999990.2\n99999999.9\n")
    text = "workload: {{devices: 2, arrivals: {{trace: late.csv}}, duration_s: 1e8}}\n"
    run_undrawn(written(tmp_path, tiny_pair_folder, text), tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    assert table["requested_s"].tolist() == [99999990.1, 99999990.2, 99999999.9]
    # A time of 1e8 s has a rounding error of 1.5e-8 s.
    assert np.all(np.abs(table[list(PARTS)].sum(axis=1) - table["latency_s"]) <= 1e-6)


def test_a_few_requests_do_not_saturate_a_cloud_and_many_do_and_that_is_printed(
    tmp_path: Path, tiny_pair_folder: Path, cache: Path
) -> None:
    (tmp_path / "few.csv").write_text("requested_s\n0\n0.1\n0.2\n900\n")
    few = "network: {{rtt_ms: 4, up_mbps: 100, down_mbps: 100}}\nworkload: {{devices: 4, arrivals: {{trace: few.csv}}, duration_s: 600}}\n"
    result = run(tmp_path, tiny_pair_folder, cache, few)
    assert result.exit_code == 0, result.output
    assert "saturated" not in result.output
    assert (
        "warning: base: 1 of 4 arrivals of few.csv come at or after duration_s (600 s) and were left out"
        in result.output
    )
    row = pd.read_csv(tmp_path / "out" / "summary.csv").iloc[0]
    assert row["cloud_utilisation"] == pytest.approx(3 * row["cloud_gpu_s"] / 600)
    many = few.replace("trace: few.csv", "poisson_per_s: 200").replace("600", "2")
    result = run(
        tmp_path, tiny_pair_folder, cache, many.replace("}}\nworkload", "}}\ncloud: {{max_batch: 1}}\nworkload")
    )
    assert result.exit_code == 0, result.output
    (told,) = [line for line in result.output.splitlines() if "the cloud was busy" in line]
    assert told.startswith("warning: base: the cloud was busy ")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert told.removeprefix("warning: ") in provenance["warnings"]


def test_a_size_that_no_machine_holds_is_one_line(tmp_path: Path, tiny_pair_folder: Path, cache: Path) -> None:
    text = "workload: {{devices: 10, arrivals: {{poisson_per_s: 1e6}}, duration_s: 1e8}}\n"
    result = run(tmp_path, tiny_pair_folder, cache, text)
    assert result.exit_code == 2
    assert "s.yaml:6: workload.arrivals makes about 1e+14 requests" in result.stderr.replace(f"{tmp_path}/", "")
    assert not (tmp_path / "out").exists()


def test_no_more_than_a_few_warnings_are_printed() -> None:
    assert warning_lines([]) == []
    assert warning_lines(["a", "b"]) == ["warning: a", "warning: b"]
    lines = warning_lines([str(n) for n in range(20)])
    assert len(lines) == 9
    assert lines[-1] == "warning: 12 more, in provenance.json"
