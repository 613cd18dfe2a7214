"""Export of runs: rounds counted by hand and by who decided each token, metrics by their definitions, tables that parse."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import ciar_sim
from ciar_sim.cli.main import main
from ciar_sim.decide.export import latex_text, markdown_text
from ciar_sim.decide.rounds import Round, call_seconds, rounds_of
from models.scenes import captions
from reports.load import load_run
from simulator.protocol.cache import RecordingCache
from simulator.protocol.recording import FROM_DEVICE
from simulator.results.timeline import Span
from tests.simulator.build import call, forward, prefill, recording, reply


def test_rounds_of_a_hand_made_session() -> None:
    """Two prefix tokens; three drafts, one accepted; four drafts, all accepted: 2 + (1 + 1) + (4 + 1) = 9 tokens."""
    made = recording(
        [*call(0), *call(1), *call(2)],
        [
            [prefill("cloud"), forward("cloud", 1, 0), reply()],
            [forward("cloud", 4, 1), reply()],  # the newest token and three drafts
            [
                forward("cloud", 5, 3),
                reply(),
            ],  # the cache keeps 3 tokens (two drafts are cut); the newest token is fed
        ],
        tokens=9,
    )
    assert rounds_of(made) == [Round(1, 3, 1), Round(2, 4, 4)]


def test_a_call_lasts_until_the_last_of_its_reply() -> None:
    spans = [
        Span(0, 0, "uplink", "call 1", 1.0, 1.5, (("call", 1), ("bytes", 9))),
        Span(0, 0, "downlink", "part", 1.6, 1.8, (("call", 1),)),
        Span(0, 0, "downlink", "reply", 1.7, 2.25, (("call", 1),)),
        Span(0, 0, "uplink", "call 2", 2.5, 2.6, (("call", 2),)),
        Span(0, 0, "device", "pass", 0.0, 9.0),
    ]
    assert call_seconds(spans) == {(0, 1): 1.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def run(scenario: dict[str, Any], cache: Path, folder: Path) -> Path:
    methods = [
        "base",
        "speculative",
        {"name": "ciar", "threshold": 0.35, "prefix_rate": 0.25, "label": "50% & more|less"},
    ]
    out = folder / "run"
    if not out.exists():
        ciar_sim.run({**scenario, "methods": methods, "sweep": {"network.rtt_ms": [20, 50]}}, out=out, cache=cache)
    return out


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_accept_trace_adds_up_to_the_images(run: Path, cache: Path) -> None:
    lines = [json.loads(line) for line in shown(str(run), "--as", "accept-trace", "--cache", str(cache)).splitlines()]
    trace = pd.DataFrame(lines)
    assert list(trace.columns) == [
        "method",
        "network.rtt_ms",
        "request",
        "round",
        "drafted",
        "accepted",
        "milliseconds",
    ]
    assert (trace["accepted"] <= trace["drafted"]).all()
    assert (trace["milliseconds"] >= trace["network.rtt_ms"]).all()  # a call takes at least a round trip
    assert "base" not in set(trace["method"])  # one call, no round
    drafting = trace[trace["method"] == "speculative"]
    # Every round ends with a token of the cloud, so accepted drafts plus rounds equal the tokens of the image.
    made = drafting.groupby(["network.rtt_ms", "request"])["accepted"].agg(["sum", "size"]).sum(axis=1)
    assert (made == 16).all()
    # In the recordings of the same sessions, the accepted drafts are the tokens that the device decided.
    kept = RecordingCache(cache)
    by_device = {
        one.meta["spec"]["prompt"]: int(np.count_nonzero(one.decided_by == FROM_DEVICE))
        for path in kept.root.glob("*/*.npz")
        if (one := kept.get(path.stem)) is not None
        and (one.meta["spec"]["method"], one.meta["spec"]["seed"]) == ("speculative", 0)
    }
    accepted = drafting[drafting["network.rtt_ms"] == 20].groupby("request")["accepted"].sum()
    assert accepted.tolist() == [by_device[caption] for caption in captions(0, 6)]
    gated = trace[trace["method"] == "50% & more|less"]
    assert (gated["accepted"] == gated["drafted"]).all()  # CIAR's device decides for itself


def test_ianvs_metrics_are_those_of_their_names(run: Path, cache: Path) -> None:
    rows = {
        (row["method"], row["network.rtt_ms"]): row
        for row in json.loads(shown(str(run), "--as", "ianvs", "--cache", str(cache)))
    }
    summary = pd.read_csv(run / "summary.csv").set_index(["method", "network.rtt_ms"])
    for key, row in rows.items():
        assert row["end_to_end_latency"] == pytest.approx(summary.loc[key, "latency_mean_s"])
        assert row["TTFT"] == pytest.approx(summary.loc[key, "first_token_s"])
        assert row["internal_token_latency"] == pytest.approx((row["end_to_end_latency"] - row["TTFT"]) / 15)
        assert row["throughput"] == pytest.approx(16 / row["end_to_end_latency"])
    assert rows["base", 20]["acceptance_rate"] is None
    assert 0 <= rows["speculative", 20]["acceptance_rate"] < 1
    assert rows["speculative", 20]["acceptance_rate"] == rows["speculative", 50]["acceptance_rate"]


def test_ianvs_metrics_leave_the_warm_up_out(scenario: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    load = {"devices": 1, "arrivals": {"poisson_per_s": 0.5}, "duration_s": 20, "warmup_s": 10}
    out = tmp_path / "run"
    requests = ciar_sim.run({**scenario, "methods": ["speculative"], "workload": load}, out=out, cache=cache).requests
    (row,) = json.loads(shown(str(out), "--as", "ianvs", "--cache", str(cache)))
    lines = shown(str(out), "--as", "accept-trace", "--cache", str(cache))
    rounds = pd.DataFrame(map(json.loads, lines.splitlines()))
    counted = rounds["request"].isin(requests.loc[requests["requested_s"] >= 10, "request"])
    assert 0 < counted.sum() < len(rounds)
    shares = [part["accepted"].sum() / part["drafted"].sum() for part in (rounds[counted], rounds)]
    assert row["acceptance_rate"] == shares[0] != shares[1]


def test_tables(run: Path, tmp_path: Path) -> None:
    table = shown(str(run), "--as", "markdown").splitlines()
    assert len(table) == 2 + 6
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    head, *rows = [[cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")] for line in table]
    assert head[:6] == ["method", "condition", "latency (s)", "p95 (s)", "speed-up (× base)", "cloud calls (%)"]
    assert head[6] == "cloud_nll (nats per token)"
    assert [row[1] for row in rows[1:]] == ["RTT 20 ms"] * 3 + ["RTT 50 ms"] * 3
    latex = tmp_path / "table.tex"
    assert shown(str(run), "--as", "latex", "--out", str(latex)).strip() == str(latex)
    text = latex.read_text()
    assert r"50\% \& more\textbar{}less" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {6}
    assert r"\begin{tabular}{llrrrrr}" in text


def test_tables_have_the_cost_where_a_cloud_has_a_price(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    summary = pd.read_csv(folder / "summary.csv")
    summary.assign(cost_usd=0.25).to_csv(folder / "summary.csv", index=False)
    head, _, *rows = [line.split(" | ") for line in shown(str(folder), "--as", "markdown").splitlines()]
    place = head.index("cost ($)")
    assert {row[place] for row in rows} == {"0.250"}
    assert r"cost (\$)" in shown(str(folder), "--as", "latex")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("[x]", "{[x]}"),
        ("*", "{*}"),
        ("x[1]", "x[1]"),
        ("~", r"\textasciitilde{}"),
        ('a<"b"|', r"a\textless{}''b''\textbar{}"),
    ],
)
def test_no_label_is_a_command_of_latex(cell: str, text: str) -> None:
    assert latex_text(cell) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("<b>$x$ a|b", r"\<b>\$x\$ a\|b"),
        ("_a_ prefix_rate=0.3", r"\_a\_ prefix_rate=0.3"),
        ("a\\", r"a\\"),
        ("30 %", "30 %"),
    ],
)
def test_no_label_is_a_mark_of_markdown(cell: str, text: str) -> None:
    assert markdown_text(cell) == text


@pytest.mark.parametrize("form", ["accept-trace", "ianvs", "messages"])
def test_a_scenario_that_is_not_the_run_s_is_not_exported_as_it(run: Path, tmp_path: Path, form: str) -> None:
    """Messages and rounds of another scenario were exported as those of the run; a cut file has defaults in place of the rest."""
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / "scenario.yaml"
    whole = file.read_text()
    file.write_bytes(whole.replace("\n", "\r\n").encode())
    load_run(folder).require_own_scenario()  # the line ends are free
    for text in (whole[: whole.index("network:")], whole.replace("\nseed: ", "\nseed: 1")):
        file.write_text(text)
        refused = CliRunner().invoke(main, ["export", str(folder), "--as", form])
        assert refused.exit_code == 2
        assert f"{file} is not as the run wrote it: it was edited or cut" in refused.stderr


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["export", str(tmp_path), "--as", "ianvs"])
    assert refused.exit_code == 2
    assert "not a run folder" in refused.stderr
