"""Fallbacks on the command line: recorded branches, their columns, and a network that never recovers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from ciar_sim.cli.main import main
from simulator.results.columns import PARTS

SCENARIO = """\
name: tiny
pair: {pair}
prompts: {{source: scenes, count: 2}}
decoding: {{text_encoder: device}}
methods: [base, {{name: ciar, threshold: 0.35}}]
compute:
  device: {{model: pair, hardware: snapdragon-8-gen-3}}
  cloud: {{model: pair, hardware: a100}}
network: {{trace: tunnels.csv, rtt_ms: 60, transport: grpc}}
workload: {{devices: 3, arrivals: {{poisson_per_s: 2}}, duration_s: 10}}
fallback: {{deadline_ms: 150, attempts: 2}}
sweep:
  fallback.policy: [wait, device, retry]
"""
TUNNELS = "time_s,down_mbps,up_mbps\n0,8,8\n1,0,0\n2,8,8\n2.5,0,0\n4,8,8\n5,8,8\n"
DEAD = "time_s,down_mbps,up_mbps\n0,0,0\n5,0,0\n"


pytestmark = pytest.mark.usefixtures("undrawn")


def call(
    folder: Path, pair: Path, *options: str, out: str = "out", trace: str = TUNNELS, text: str = SCENARIO
) -> Result:
    (folder / "tunnels.csv").write_text(trace)
    (folder / "scenario.yaml").write_text(text.format(pair=pair))
    arguments = [
        "run",
        str(folder / "scenario.yaml"),
        "--out",
        str(folder / out),
        "--cache",
        str(folder / "cache"),
        "--quiet",
        "--force",  # tests run several scenarios into one folder
    ]
    return CliRunner().invoke(main, [*arguments, *options])


def test_a_run_through_tunnels_records_what_it_needs(tmp_path: Path, tiny_pair_folder: Path) -> None:
    result = call(tmp_path, tiny_pair_folder)
    assert result.exit_code == 0, result.output
    requests = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index(["method", "fallback.policy"])
    assert np.abs(requests[list(PARTS)].sum(axis=1) - requests["latency_s"]).max() < 1e-9
    assert (summary["images"] == summary["images"].iloc[0]).all()
    # Base waits under every policy.
    assert summary.loc["base", ["latency_mean_s", "fallback_pct"]].nunique().tolist() == [1, 1]
    waits, device, retry = (summary.loc[("ciar", policy)] for policy in ("wait", "device", "retry"))
    assert (waits["fallback_pct"], waits["retries"], waits["distinct_images"]) == (0, 0, 2)
    assert np.isnan(waits["fallback_cloud_nll_cost"])
    assert device["fallback_pct"] > 0
    assert device["latency_p95_s"] < waits["latency_p95_s"]
    assert retry["retries"] > 0 == device["retries"]
    assert device["distinct_images"] > 2
    # Quality columns of a request belong to its image: equal images have the same fallback tokens, nats and calls.
    mine = requests[(requests["method"] == "ciar") & (requests["fallback.policy"] == "device")]
    assert (mine.groupby("image")[["fallback_pct", "cloud_nll", "calls"]].nunique() == 1).all(axis=None)
    whole, broken = mine[mine["image"] < 2], mine[mine["image"] >= 2]
    assert (whole["fallback_pct"] == 0).all()
    assert (broken["fallback_pct"] > 0).all()
    unbroken = requests[(requests["method"] == "ciar") & (requests["fallback.policy"] == "wait")]
    own = broken["prompt"].map(unbroken.groupby("prompt")["cloud_nll"].first())
    assert (broken["cloud_nll"] - own).to_numpy() == pytest.approx(broken["fallback_cloud_nll_cost"].to_numpy())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "on the device after a missed deadline (% of tokens)" in page
    # Another run from the cache, in two processes, gives the same bytes.
    again = call(tmp_path, tiny_pair_folder, "--jobs", "2", out="again")
    assert again.exit_code == 0, again.output
    for name in ("summary.csv", "requests.parquet", "provenance.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def assert_refused(result: Result, *named: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in named:
        assert text in lines[0]


def test_a_network_that_never_comes_is_a_deadlock_but_for_a_device_that_goes_on(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    dead = ("s of simulated time: request 0 of device", "waits for")
    result = call(tmp_path, tiny_pair_folder, trace=DEAD)  # of six cases only ciar under device and retry can finish
    assert result.exit_code == 1, result.output
    assert "4 cases failed and are in no table" in result.output
    assert 1 <= result.output.count("deadlock at") <= 4  # each reason once
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv")["fallback.policy"]) == {"device", "retry"}
    ciar = SCENARIO.replace("[base, {{name: ciar, threshold: 0.35}}]", "[{{name: ciar, threshold: 0.35}}]")
    alone = ciar.replace("[wait, device, retry]", "[device, retry]")
    result = call(tmp_path, tiny_pair_folder, trace=DEAD, text=alone)
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["fallback_pct"].tolist() == [100.0, 100.0]  # not even the prefix arrives
    assert summary["wait_s"].tolist()[0] == pytest.approx(0.15)
    # A caption encoded by the cloud is indispensable, and endless retries do not help.
    assert_refused(
        call(tmp_path, tiny_pair_folder, "--set", "decoding.text_encoder=cloud", trace=DEAD, text=alone),
        "deadlock at",
        *dead,
    )
    waits = ciar.replace("attempts: 2", "attempts: 2, then: wait").replace("[wait, device, retry]", "[retry]")
    assert_refused(call(tmp_path, tiny_pair_folder, trace=DEAD, text=waits), "deadlock at", *dead)


def test_methods_that_need_the_cloud_have_no_fallback(tmp_path: Path, tiny_pair_folder: Path) -> None:
    text = SCENARIO.replace("[base, {{name: ciar, threshold: 0.35}}]", "[base, speculative]").replace(
        "[wait, device, retry]", "[device]"
    )
    assert_refused(
        call(tmp_path, tiny_pair_folder, text=text),
        "fallback.policy device",
        "no method",
        "ciar",
        "entropy-lens",
        "code",
    )
    assert not (tmp_path / "out").exists()
    code = text.replace("[base, speculative]", "[code]").replace("text_encoder: device", "text_encoder: cloud")
    assert_refused(call(tmp_path, tiny_pair_folder, text=code), "code with decoding.text_encoder: device")
