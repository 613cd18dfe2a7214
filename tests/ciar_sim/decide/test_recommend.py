"""Recommendations: the quality floor, verification, the number of prompts needed, and losses with their intervals."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from click.testing import CliRunner

import ciar_sim
from ciar_sim.cli.main import main
from ciar_sim.decide import recommend as module
from ciar_sim.decide.bench import Measured, measured
from ciar_sim.decide.decision import failed_cases
from ciar_sim.decide.quality import FAILS, KEEPS, UNCLEAR, QualityLoss, chosen_metric, loss, metrics
from simulator.core.errors import CiarSimError
from simulator.protocol.methods import METHODS
from simulator.results.tables import CaseRecords


def records(values: dict[str, list[float]], of_set: dict[str, tuple[float, float, float]] | None = None) -> CaseRecords:
    count = len(next(iter(values.values())))
    columns = {"prompt": np.arange(count), "image": np.arange(count)}
    quality = {"image": np.arange(count), **{name: np.array(column) for name, column in values.items()}}
    return CaseRecords("m", "m", {}, columns, quality, lambda images: of_set or {})


def test_the_loss_is_paired_by_prompt() -> None:
    """A method at exactly 0.97 of base on every prompt loses 3 % without uncertainty, however much the prompts differ."""
    base = [0.2, 0.9, 0.5, 0.7]
    found = loss(
        records({"align_photos": [0.97 * one for one in base]}), records({"align_photos": base}), "align_photos"
    )
    assert found.pct == pytest.approx(3.0)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-9)
    assert found.verdict(5.0) == KEEPS
    assert found.verdict(2.0) == FAILS
    assert loss(base_records := records({"align_photos": base}), base_records, "align_photos") == QualityLoss(
        0.0, 0.0, 0.0, 4
    )


def test_lower_is_better_for_a_distance_and_either_side_is_worse_for_nll() -> None:
    base, worse = (
        records({"cloud_nll": [2.0, 2.0]}, {"fd_photos": (10.0, 9.0, 11.0)}),
        records({"cloud_nll": [1.8, 1.8]}, {"fd_photos": (12.0, 11.0, 13.0)}),
    )
    found = loss(worse, base, "fd_photos")
    assert found.pct == pytest.approx(20.0)
    assert (found.high - found.low) / 2 == pytest.approx(100 * math.hypot(1.0, 1.2) / 10)
    assert loss(worse, base, "cloud_nll").pct == pytest.approx(10.0)  # a lower value is a loss too
    cut = records({"cloud_nll": [1.8, 1.8]}, {"fd_photos": (1.0, 0.0, 4.0)})  # an interval whose lower half is cut at 0
    assert loss(cut, base, "fd_photos").high == pytest.approx(-90 + 100 * math.hypot(3.0, 0.1) / 10)
    assert metrics(base) == ["fd_photos", "cloud_nll"]


def test_a_lossless_method_keeps_every_floor_however_few_prompts_there_are() -> None:
    base, own = records({"align_photos": [0.2, 0.9, 0.5, 0.7]}), records({"align_photos": [0.9, 0.1, 0.6, 0.2]})
    assert loss(own, base, "align_photos").verdict(5.0) == UNCLEAR
    found = loss(own, base, "align_photos", lossless=True)
    assert found.verdict(0.0) == KEEPS
    assert found.prompts_needed(0.0) == 4


def test_lossless_methods_are_those_of_base_s_distribution() -> None:
    assert {name for name, kind in METHODS.items() if kind.settings.lossless} == {"base", "speculative", "eagle2"}


def test_prompts_needed_shrink_the_interval_to_the_margin() -> None:
    found = QualityLoss(3.0, -1.0, 7.0, 10, of_set=True)
    assert found.verdict(5.0) == UNCLEAR
    assert found.prompts_needed(5.0) == 40  # a half-width of 4 points must become 2: four times the prompts
    assert found.prompts_needed(8.0) == 10
    # The interval of a two-sided loss is cut at 0, but its half-width is 30 points: halving it takes four times the prompts.
    assert QualityLoss(20.0, 0.0, 50.0, 10, of_set=True).prompts_needed(5.0) == 40
    assert math.isnan(QualityLoss(math.nan, math.nan, math.nan, 1).prompts_needed(5.0))
    assert QualityLoss(math.nan, math.nan, math.nan, 1).verdict(5.0) == UNCLEAR


def test_a_set_holds_one_image_of_each_prompt_as_its_requests_got_them() -> None:
    """Prompts 0 and 2 gave up a reply, prompt 2 in two requests. The set once contained images that no request received."""
    sets = []

    def of_set(images: np.ndarray) -> dict[str, tuple[float, float, float]]:
        sets.append(images.tolist())
        return {"fd_photos": (10.0, 9.0, 11.0)}

    columns = {"prompt": np.array([2, 0, 2, 1]), "image": np.array([6, 4, 5, 1])}
    broken = CaseRecords("m", "m", {}, columns, {"image": np.arange(7), "cloud_nll": np.ones(7)}, of_set)
    found = loss(broken, records({"cloud_nll": [1.0] * 4}, {"fd_photos": (10.0, 9.0, 11.0)}), "fd_photos")
    assert sets[-1] == [4, 1, 6, 3]
    assert (found.pct, found.prompts) == (0.0, 4)


@pytest.mark.parametrize(("prompts", "narrower"), [(2, 1.01), (2, 12.0), (4, 2.0), (8, 3.0), (30, 1.001), (900, 7.0)])
def test_prompts_needed_of_a_student_interval_are_the_fewest_that_do(prompts: int, narrower: float) -> None:
    """With two prompts, Student's quantile is 6 times the normal one: a twelfth of the interval takes 10 prompts, not 288."""
    found = QualityLoss(0.0, -narrower, narrower, prompts).prompts_needed(1.0)

    def half(count: float) -> float:
        return narrower * float(
            scipy.stats.t.ppf(0.975, count - 1) / scipy.stats.t.ppf(0.975, prompts - 1) * math.sqrt(prompts / count)
        )

    assert found > prompts
    assert half(found) <= 1.0
    assert found == prompts + 1 or half(found - 1) > 1.0


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    one = records({"align_photos": [0.5, 0.6], "base_greedy_pct": [1.0, 2.0], "cloud_nll": [2.0, 2.0]})
    assert chosen_metric([one], None) == "align_photos"
    with pytest.raises(CiarSimError, match="did you mean align_photos"):
        chosen_metric([one], "align_scenes")
    few = records({"cloud_nll": [2.0, 2.0]}, {"fd_photos": (math.nan,) * 3})
    with pytest.raises(
        CiarSimError, match=r"^--metric fd_photos: has no value for so few images; .* or one of cloud_nll$"
    ):
        chosen_metric([few], "fd_photos")


@pytest.fixture
def quick(scenario: dict[str, Any]) -> dict[str, Any]:
    return {**scenario, "methods": ["base", {"name": "code", "prefix_rate": 0.5}, "device-only"]}


def test_what_is_faster_and_keeps_the_floor_is_verified_before_it_is_said(
    quick: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(quick))
    found = ciar_sim.recommend(path, max_loss_pct=1e9, cache=cache)
    assert found.sentence.startswith("device-only: ")
    assert "on 6 other prompts with another seed" in found.sentence
    assert found.more["verified"]["held"].tolist() == [True]
    assert set(found.table["method"]) == {"base", "code", "device-only"}
    assert any("Only the settings" in text for text in found.sentences)
    # The verified figures come from other images than those of the choice.
    chosen = found.table.set_index("method").loc["device-only", "loss_pct"]
    assert found.more["verified"]["loss_pct"].iloc[0] != chosen


def test_base_is_recommended_where_nothing_keeps_the_floor(quick: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(quick))
    shown = CliRunner().invoke(main, ["recommend", str(path), "--max-loss", "0%", "--cache", str(cache)])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("base: no method is shown to be faster")
    late = CliRunner().invoke(
        main,
        ["recommend", str(path), "--max-loss", "0", "--slo-p95", "1ms", "--cache", str(cache), "--json"],
    )
    assert json.loads(late.stdout)["sentences"][0].startswith("None: base has a p95 of")


def test_requests_without_an_answer_are_told_and_no_answer_decides_nothing(
    quick: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quick.json"
    load = {"devices": 9, "arrivals": {"poisson_per_s": 200.0}, "duration_s": 1}
    path.write_text(json.dumps({**quick, "workload": load, "cloud": {"max_sessions": 1, "max_waiting": 0}}))
    found = ciar_sim.recommend(path, max_loss_pct=0, cache=cache)
    assert any("requests refused and 0 unfinished" in text for text in found.sentences)
    # Refused requests count as late, even if all answered ones are in time.
    prompt = ciar_sim.recommend(path, max_loss_pct=0, slo_p95_s=1e3, cache=cache)
    assert prompt.sentence.startswith(
        "None: more than 5 % of base's requests have no answer within 1000 s, and no method within it"
    )
    assert not prompt.table.set_index("method").loc["base", "in_time"]
    down = {"crashes": [{"replica": 0, "at_s": 0, "down_s": 1e9}]}
    path.write_text(json.dumps({**quick, "workload": load, "cloud": down}))
    assert ciar_sim.recommend(path, cache=cache).sentence.startswith("base: no request was answered")


@pytest.mark.parametrize(
    ("asked", "late", "lost", "within"),
    [(100, 1, 0, True), (100, 1, 4, True), (100, 1, 5, False), (100, 6, 0, False), (100, 0, 6, False)]
    # Interpolated, p95 of 3 late ones of 58 is 1.15 s.
    + [(20, 1, 0, True), (58, 3, 0, False), (0, 0, 0, False)],
)
def test_an_objective_counts_requests_and_those_without_an_answer_as_late(
    asked: int, late: int, lost: int, within: bool
) -> None:
    """One rule with and without lost requests, and that of capacity."""
    latency_s = pd.Series([2.0] * late + [1.0] * (asked - late - lost))
    one = Measured(None, latency_s, {}, 0, 0, lost, asked)  # type: ignore[arg-type]
    assert (one.late(1.5), one.asked) == (late + lost, asked)
    assert one.within(1.5) is within


def test_requests_without_an_answer_count_from_the_warm_up_on() -> None:
    """Of 10 requests, one a second, those at 1, 2, 6 and 9 s were refused or are open; the warm-up ends after 4 s."""
    answered = np.array([0, 3, 4, 5, 7, 8])
    columns = {"requested_s": answered.astype(float), "request": answered, "latency_s": np.ones(6)}
    workload = SimpleNamespace(warmup_s=4.0)
    case = SimpleNamespace(scenario=SimpleNamespace(workload=workload))
    for refused, unfinished in ((4, 0), (3, 1)):
        result = SimpleNamespace(columns=columns, refused=refused, unfinished=unfinished)
        one = measured(SimpleNamespace(case=case, result=result))  # type: ignore[arg-type]
        assert (one.lost, one.asked, one.late(2.0)) == (2, 6, 2)
    workload.warmup_s = 100.0
    assert measured(SimpleNamespace(case=case, result=result)).asked == 1  # type: ignore[arg-type]


def test_what_could_not_be_simulated_is_said(quick: dict[str, Any], cache: Path) -> None:
    """On a phone without memory for the device's weights only base is simulated; the answer names the failed cases."""
    phone = {"class": "phone", "fp16_tflops": 3.5, "bandwidth_gb_s": 60, "memory_gb": 8.4e-4, "power_w": 6}
    quick["compute"]["device"]["hardware"] = phone
    found = ciar_sim.recommend(quick, max_loss_pct=1e9, cache=cache)
    assert found.table["method"].tolist() == ["base"]
    assert found.sentences[-1].startswith("2 cases failed and are in no table: code: code does not fit the device")
    mapped = ciar_sim.regime(quick, "network.rtt_ms=10,50", cache=cache)
    assert mapped.sentences[0].startswith("base wins throughout")
    assert mapped.sentences[-1].startswith(
        "4 cases failed and are in no table: code network.rtt_ms=10.0; code network.rtt_ms=50.0: code does not fit"
    )
    assert mapped.sentences[-1].count("does not fit") == 2  # a reason for each method


def test_a_reason_is_given_once_for_all_cases() -> None:
    assert failed_cases([f"code rate={i}: nobody answers" for i in range(5)]) == [
        "5 cases failed and are in no table: code rate=0; code rate=1; code rate=2 and 2 more: nobody answers."
    ]
    reasons = failed_cases([f"a{i}: reason {'x' * i}" for i in range(5)])
    assert [one.partition("table: ")[2] for one in reasons] == [
        "a0: reason ; a1: reason x; a2: reason xx; and 2 other reasons."
    ]
    assert failed_cases([]) == []


def test_statistical_sessions_have_no_quality_to_keep(cache: Path) -> None:
    sets = {"prompts.list": ["a dog"]}
    with pytest.raises(CiarSimError, match="no quality to keep: no model ran"):
        ciar_sim.recommend("paper-anole", sets=sets, cache=cache)
    with pytest.raises(CiarSimError, match="no quality to keep: no model ran"):
        ciar_sim.regime("paper-anole", "network.rtt_ms=10,50", sets=sets, cache=cache)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"verdict": FAILS, "in_time": False}, "its quality"),
        ({"verdict": UNCLEAR}, "its quality, which stays unclear,"),
        ({"in_time": False}, "its p95 within the objective"),
        ({"speedup": (1.1, 0.9, 1.3)}, "its speed-up over base"),
    ],
)
def test_a_choice_that_does_not_hold_is_not_recommended_and_the_sentence_names_what_did_not(
    changes: dict[str, Any], what: str, quick: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = module.verify

    def failing(*args: Any) -> Any:
        return verify(*args)._replace(**changes)

    monkeypatch.setattr(module, "verify", failing)
    found = ciar_sim.recommend(quick, max_loss_pct=1e9, cache=cache)
    assert found.sentence.startswith("base: ")
    assert sum(f"but {what} did not hold" in text for text in found.sentences) == 2
    assert found.more["verified"]["held"].tolist() == [False, False]


@pytest.mark.parametrize("failing", [["device-only"], ["device-only", "code"]])
def test_a_verification_that_fails_is_named_and_the_next_candidate_is_verified(
    quick: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch, failing: list[str]
) -> None:
    verify = module.verify

    def sometimes(bench: Any, case: Any, *args: Any) -> Any:
        if case.method.name in failing:
            raise CiarSimError(f"{case.title}: nobody answers")
        return verify(bench, case, *args)

    monkeypatch.setattr(module, "verify", sometimes)
    found = ciar_sim.recommend(quick, max_loss_pct=1e9, cache=cache)
    assert found.sentence.startswith("code: " if len(failing) == 1 else "base: no method is shown to be faster")
    for name in failing:
        assert f"{name} was not verified, for a simulation failed: {name}: nobody answers." in found.sentences


def test_every_condition_and_every_setting_is_judged(quick: dict[str, Any], cache: Path) -> None:
    sweep = {"network.rtt_ms": [20, 60], "methods.code.prefix_rate": [0.25, 0.5]}
    found = ciar_sim.recommend({**quick, "methods": quick["methods"][:2]}, max_loss_pct=0, axes=sweep, cache=cache)
    assert len(found.table) == 2 * 3
    assert sum(text.startswith("RTT 20 ms: ") for text in found.sentences) >= 1
    assert "code prefix_rate=0.25" in set(found.table["method"])


def test_a_list_of_captions_has_none_left_for_a_verification(quick: dict[str, Any], cache: Path) -> None:
    from models.scenes import captions

    listed = {**quick, "prompts": {"list": captions(0, 6)}}
    with pytest.raises(CiarSimError, match="a verification needs other captions"):
        ciar_sim.recommend(listed, max_loss_pct=1e9, cache=cache)


def test_a_lossless_winner_is_verified_on_the_listed_captions_with_another_seed(
    scenario: dict[str, Any], cache: Path
) -> None:
    """Its quality is known, so other captions are not needed. Another seed verifies its latency."""
    from models.scenes import captions

    near = {"rtt_ms": 0, "up_mbps": 1e5, "down_mbps": 1e5}
    listed = {**scenario, "prompts": {"list": captions(0, 6)}, "network": near}
    listed["compute"] = {
        "device": {"model": "pair", "hardware": "h200", "runtime": "cuda-graphs"},
        "cloud": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
    }
    found = ciar_sim.recommend(listed, max_loss_pct=0.0, cache=cache)
    assert found.sentence.startswith("speculative: ")
    assert "lossless, so its images have the quality of base (measured: loss of cloud_nll " in found.sentence
    assert "on 6 prompts with another seed" in found.sentence
    assert found.table.set_index("method").loc["speculative", ["floor", "lossless"]].tolist() == [KEEPS, True]


def test_a_run_folder_stands_for_its_scenario(quick: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    run = ciar_sim.run(quick, out=tmp_path / "run", cache=cache)
    assert ciar_sim.recommend(run.folder, max_loss_pct=0, cache=cache).sentence.startswith("base: ")
    with pytest.raises(CiarSimError, match="not a run folder"):
        ciar_sim.recommend(tmp_path, cache=cache)
