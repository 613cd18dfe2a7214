"""Comparison of finished runs."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import ciar_sim
from ciar_sim.cli.main import main
from ciar_sim.decide import compare as module
from ciar_sim.decide.compare import KEYS, PART, _by_request, _left_out, _name, _row, _said, _told
from simulator.core.errors import CiarSimError

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def made(runs: Path, name: str, scenario: dict[str, Any], cache: Path, **sets: Any) -> Path:
    if not (runs / name).exists():
        ciar_sim.run(
            scenario, sets={key.replace("__", "."): value for key, value in sets.items()}, out=runs / name, cache=cache
        )
    return runs / name


def test_a_longer_way_is_slower_by_its_calls_and_draws_the_same_images(
    scenario: dict[str, Any], cache: Path, runs: Path
) -> None:
    near, far = made(runs, "near", scenario, cache), made(runs, "far", scenario, cache, network__rtt_ms=40)
    found = ciar_sim.compare(near, far)
    rows = found.table.set_index(["case", "column"])
    for method in ("base", "speculative", "code"):
        calls = rows.loc[(method, "calls"), "first"]
        row = rows.loc[(method, "latency_s")]
        assert row["difference"] == pytest.approx(0.020 * calls, rel=1e-3)
        assert row["paired"] == "by request"
        assert row["low"] <= row["difference"] <= row["high"]
        assert rows.loc[(method, "cloud_nll"), "verdict"] == "equal"
    assert rows.loc[("base", "latency_s"), "verdict"] == "more"
    assert any("slower" in text and "no difference in quality" in text for text in found.sentences)
    back = ciar_sim.compare(far, near)
    assert any("faster" in text for text in back.sentences)


def test_costs_have_an_interval_and_are_said(scenario: dict[str, Any], cache: Path, runs: Path) -> None:
    """They had none, so that none was ever among the significant differences."""
    one, two = (
        made(runs, f"at {usd}", scenario, cache, cloud__price_usd_per_gpu_hour=usd, network__rtt_ms=40 - 10 * usd)
        for usd in (2, 3)
    )
    found = ciar_sim.compare(one, two)
    rows = found.table.set_index(["case", "column"])
    for method in ("base", "speculative", "code"):
        row, gpu_s = rows.loc[(method, "cost_usd")], rows.loc[(method, "cloud_gpu_s")]
        assert (row["verdict"], row["paired"]) == ("more", "by request")
        assert [row["first"], row["other"]] == pytest.approx([2 / 3600 * gpu_s["first"], 3 / 3600 * gpu_s["other"]])
        assert row["low"] <= row["difference"] <= row["high"]
    assert all("faster" in text and "; cost per image " in text for text in found.sentences[:3])


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ([], "ciar threshold=0.3"),
        (["methods.ciar.threshold"], "ciar threshold=0.3"),
        (["methods.ciar.threshold", "network.preset"], "ciar threshold=0.3, wifi"),
    ],
)
def test_a_case_has_a_condition_where_one_is_swept(swept: list[str], name: str) -> None:
    assert _name({"label": "ciar threshold=0.3", "condition": "wifi"}, swept) == name


def test_the_same_run_does_not_differ_and_other_images_are_not_paired(
    scenario: dict[str, Any], cache: Path, runs: Path
) -> None:
    near = made(runs, "near", scenario, cache)
    same = ciar_sim.compare(near, near)
    assert (same.table["verdict"] == "equal").all()
    assert len(same.sentences) == 1  # a sentence that holds for all cases appears once
    assert "the latency is the same; no difference in quality." in same.sentence
    other = made(runs, "other", scenario, cache, prompts__seed=5)
    shown = CliRunner().invoke(main, ["compare", str(near), str(other), "--json"])
    rows = {(row["case"], row["column"]): row for row in json.loads(shown.stdout)["table"]}
    assert rows["base", "cloud_nll"]["paired"] == "no"
    assert rows["base", "cloud_nll"]["low"] < rows["base", "cloud_nll"]["high"]
    assert rows["base", "latency_s"]["verdict"] == "no difference"
    assert "no difference in latency" in CliRunner().invoke(main, ["compare", str(near), str(other)]).output


def asked(numbers: list[int], extra_s: float = 0.0) -> pd.DataFrame:
    """Requests by number, one a second, of which those above 100 come from another loop."""
    requests = pd.DataFrame({"request": numbers, "prompt": [one % 4 for one in numbers]})
    return requests.assign(
        requested_s=[float(one) for one in numbers], latency_s=[one % 7 + extra_s for one in numbers]
    )


@pytest.mark.parametrize(
    ("first", "second", "paired", "common"),
    [
        (range(20), range(20), "by request", 20),
        (range(20), range(1, 20), PART, 19),
        (range(1, 20), range(20), PART, 19),
        (range(20), [*range(9), 109, *range(10, 20)], PART, 19),
        (range(20), range(3, 20), "no", 20),
        (range(20), range(20, 40), "no", 20),
        ([1], [2], "no", 1),
        ([], [], "by request", 0),
        ([], range(20), "no", 0),
    ],
)
def test_requests_are_paired_where_both_runs_have_nearly_all(
    first: list[int], second: list[int], paired: str, common: int
) -> None:
    one, two = asked(list(first)), asked(list(second), 0.5)
    mine, its, how = _by_request(one, two)
    assert (how, len(mine)) == (paired, common)
    if how == PART:
        assert mine[KEYS].to_numpy().tolist() == its[KEYS].to_numpy().tolist()
        row = _row("latency_s", mine["latency_s"].to_numpy(), its["latency_s"].to_numpy(), how, 20)
        assert (row["difference"], row["low"], row["high"], row["verdict"]) == pytest.approx((0.5, 0.5, 0.5, "more"))
        assert _left_out(one, two, [row]) == (
            f"compared on the 19 requests that both runs answered; {len(one) - 19} of {len(one)} and {len(two) - 19} of {len(two)} "
            "are left out"
        )
    else:
        assert _left_out(one, two, [{"paired": how}]) == ""


def test_of_many_differences_the_largest_are_shown_and_all_are_written(
    scenario: dict[str, Any], cache: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = made(runs, "near", scenario, cache), made(runs, "far", scenario, cache, network__rtt_ms=40)
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    monkeypatch.setattr(module, "LARGEST", 2)
    file = tmp_path / "differences.csv"
    shown = CliRunner().invoke(main, ["compare", str(near), str(far), "--out", str(file)])
    written = pd.read_csv(file)
    assert (
        f"The table shows the 2 largest of {len(written)} differences: those in latency, cost and quality"
        in shown.output
    )
    rows = [line.split() for line in shown.output.partition("run  ")[2].splitlines()[1:]]
    latency = written[written["column"].isin(["latency_s", "cost_usd"]) & written["verdict"].isin(["more", "less"])]
    size = (latency["difference"] / latency["first"]).abs().sort_values(ascending=False)
    assert [row[1] for row in rows] == latency.loc[size.index, "case"].head(2).tolist()
    assert ciar_sim.compare(near, near).sentences[-1].startswith("The table shows none, because none is significant,")
    assert len(json.loads(CliRunner().invoke(main, ["compare", str(near), str(far), "--json"]).stdout)["table"]) == len(
        written
    )


def test_swept_settings_are_those_of_the_case(scenario: dict[str, Any], cache: Path, runs: Path) -> None:
    """The warm-up and the settings of images are those of the case, even if the scenario's own settings differ from the sweep."""
    timed = {"devices": 2, "arrivals": {"poisson_per_s": 3}, "duration_s": 8}
    swept = {**scenario, "workload": timed, "sweep": {"workload.warmup_s": [0, 4]}}
    near, far = made(runs, "warm", swept, cache), made(runs, "warm far", swept, cache, network__rtt_ms=40)
    table = ciar_sim.compare(near, far).table.set_index("column")
    for side, folder in (("first", near), ("other", far)):
        means = ciar_sim.open_run(folder).summary["latency_mean_s"]
        assert table.loc["latency_s", side].tolist() == pytest.approx(means.tolist(), rel=1e-12)
    one = {**scenario, "methods": ["base"]}
    drawn = {**one, "sweep": {"prompts.seed": [5]}}
    pairs = [(made(runs, "one", one, cache), made(runs, "drawn", drawn, cache))]
    pairs += [(made(runs, "set", one, cache, prompts__seed=5), runs / "drawn")]
    told = [ciar_sim.compare(*pair).table.set_index("column")["paired"] for pair in pairs]
    assert [(of["latency_s"], of["cloud_nll"]) for of in told] == [("no", "no"), ("by request", "by prompt")]


@pytest.mark.parametrize(
    ("before", "after", "half", "verdict"),
    [
        (3.2e-05, 3.2e-05 + 2e-16, 1e-16, "equal"),
        (4e-16, 2e-15, 3e-14, "equal"),
        (0.1, 0.1, math.nan, "equal"),
        (3.2e-05, 3.3e-05, 1e-8, "more"),
        (3.2e-05, 3.2e-05, 1e-6, "no difference"),
    ],
)
def test_rounding_is_no_difference(before: float, after: float, half: float, verdict: str) -> None:
    assert _told("encode_s", before, after, half, "no")["verdict"] == verdict


@pytest.mark.parametrize(
    ("halves", "said"),
    [
        ({"cloud_nll": math.nan}, "; the quality has no interval"),
        ({"cloud_nll": math.nan, "align_scenes": 0.3}, "; no difference in quality"),
        ({"cloud_nll": 0.01, "align_scenes": math.nan}, "; cloud_nll 2.00 to 2.20"),
        ({}, ""),
    ],
)
def test_no_difference_in_quality_is_said_of_what_has_an_interval(halves: dict[str, float], said: str) -> None:
    """One prompt gives no interval: two images of different quality were once reported not to differ."""
    rows = [
        _told("latency_s", 1.0, 2.0, 0.1, "no"),
        *(_told(name, 2.0, 2.2, half, "no") for name, half in halves.items()),
    ]
    assert _said(rows) == f"1.00 s slower (0.900 to 1.10){said}"


def test_a_single_request_is_faster_or_slower_and_never_less_than_nothing_more(
    scenario: dict[str, Any], cache: Path, runs: Path
) -> None:
    one = {**scenario, "methods": ["base"], "prompts": {"source": "scenes", "count": 1}}
    slow = made(runs, "slow", one, cache)
    fast = made(runs, "fast", {**one, "network": {**scenario["network"], "rtt_ms": 10}}, cache)
    assert ciar_sim.compare(slow, fast).sentence.startswith("base: 0.0100 s faster, without an interval")
    assert ciar_sim.compare(fast, slow).sentence.startswith("base: 0.0100 s slower, without an interval")


def test_runs_of_one_case_are_compared_whatever_they_are_called(
    scenario: dict[str, Any], cache: Path, runs: Path
) -> None:
    one = made(runs, "one", {**scenario, "methods": ["base"]}, cache)
    two = made(runs, "two", {**scenario, "methods": ["speculative"]}, cache)
    found = ciar_sim.compare(one, two)
    assert found.sentence.startswith("speculative against base: ")
    rest = made(runs, "rest", {**scenario, "methods": ["code", "speculative"]}, cache)
    with pytest.raises(CiarSimError, match="no case in common"):
        ciar_sim.compare(one, rest)
    # A case that failed in a run, or is not part of it, is named.
    near = made(runs, "near", scenario, cache)
    assert ciar_sim.compare(near, rest).sentences[-1] == f"base: not in {rest}, and not compared."
    assert ciar_sim.compare(rest, near).sentences[-1] == f"base: not in {rest}, and not compared."


def test_requests_for_other_captions_are_other_requests(scenario: dict[str, Any], cache: Path, runs: Path) -> None:
    """Requests for other captions have the same numbers and times. A run of a version without `prompts.skip` has the same captions."""
    one = {**scenario, "methods": ["base"], "prompts": {"source": "scenes", "count": 2}}
    first = made(runs, "captions", one, cache)
    other = made(runs, "others", {**one, "prompts": {**one["prompts"], "seed": 5}}, cache)
    assert set(ciar_sim.compare(first, other).table["paired"]) == {"no"}
    older = shutil.copytree(first, runs / "older")
    (older / "scenario.yaml").write_text((first / "scenario.yaml").read_text().replace("  skip: 0\n", ""))
    assert (older / "scenario.yaml").read_text() != (first / "scenario.yaml").read_text()
    assert {"by request", "by prompt"} <= set(ciar_sim.compare(first, older).table["paired"])


def test_columns_of_text_where_numbers_belong_are_named(scenario: dict[str, Any], cache: Path, runs: Path) -> None:
    one = made(runs, "single", {**scenario, "methods": ["base"]}, cache)
    other = shutil.copytree(one, runs / "damaged")
    pd.read_parquet(other / "requests.parquet").assign(cloud_nll="x").to_parquet(other / "requests.parquet")
    with pytest.raises(
        CiarSimError, match=r"requests\.parquet cannot be read: column cloud_nll holds \w+, needed numbers"
    ):
        ciar_sim.compare(one, other)
    whole = pd.read_parquet(one / "requests.parquet")
    whole.assign(prompt=whole["prompt"].where(whole["prompt"] > 0)).to_parquet(other / "requests.parquet")
    with pytest.raises(
        CiarSimError, match=r"requests\.parquet cannot be read: column prompt holds values that are not"
    ):
        ciar_sim.compare(one, other)
    whole.assign(remark="mine").to_parquet(other / "requests.parquet")  # an unknown column is ignored
    assert ciar_sim.compare(one, other).sentence == ciar_sim.compare(one, one).sentence.replace(
        "single against", "damaged against"
    )


@pytest.mark.parametrize("folders", [["one"], ["one", "nowhere"]])
def test_what_is_no_pair_of_runs_is_one_line(folders: list[str], tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["compare", *(str(tmp_path / name) for name in folders)])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "name", "allowed"),
    [
        (["compare", "a", "b"], "x.json", ".csv"),
        (["capacity", "quickstart", "--slo-p95", "5"], "x.csv", ".json"),
        (["recommend", "quickstart"], "x.csv", ".json"),
        (["export", "a", "--as", "latex"], "x.md", ".tex"),
        (["profile", "--seconds", "0"], "x.yaml", ".json"),
    ],
)
def test_a_file_is_not_written_under_the_ending_of_another_format(
    command: list[str], name: str, allowed: str, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(main, [*command, "--out", str(tmp_path / name)])
    assert shown.exit_code == 2
    assert f"{name}: would not be a file of {name[2:].upper()}; allowed: a name in {allowed}" in shown.stderr
