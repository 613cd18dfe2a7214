"""Recommendation of the fastest method and settings within a quality floor and a latency objective, verified on other prompts and seeds.

The choice is made on the scenario's prompts. The figures of the winner are biased there, because it was selected by them. Therefore the
winner and base are decoded again with other captions and another seed. A candidate is recommended only if it meets all conditions there.
If it does not, the next best is tried, and finally base is recommended.
Lossless methods keep every floor by construction, however few prompts there are.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ciar_sim.decide.bench import Bench, Measured, Prepared, Resources, base_of, candidate, condition
from ciar_sim.decide.decision import Decision, failed_cases, span
from ciar_sim.decide.quality import KEEPS, UNCLEAR, QualityLoss, chosen_metric, loss
from reports.words import condition as condition_words
from reports.words import number, significant
from simulator.core.errors import CiarSimError, RunFolderError, ScenarioError, counted
from simulator.experiment.loading import Written, load_with_source
from simulator.experiment.plan import captions_of
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.prompts import PromptList
from simulator.results.statistics import BATCHES, bounded, ratio

FRESH_SEED = 1_000_003  # added to the scenario's seed for verification
MOST_TRIED = 3  # candidates verified before base is recommended


class Requirement(NamedTuple):
    """What a recommended candidate keeps, besides being faster than base.

    Attributes:
        metric: Quality metric.
        max_loss_pct: Largest acceptable loss of quality, in percent of base's quality.
        slo_s: Objective for p95 of the latency in seconds; None for none.
    """

    metric: str
    max_loss_pct: float
    slo_s: float | None


class CandidateFigures(NamedTuple):
    """Figures of a candidate.

    Attributes:
        case: The case.
        measured: Its latencies.
        speedup: Speed-up over base on the same requests, with its 95 % interval.
        loss: Its quality loss.
        verdict: Whether it keeps the quality floor: keeps, fails or unclear.
        in_time: Whether its p95 is within the objective.
    """

    case: Case
    measured: Measured
    speedup: tuple[float, float, float]
    loss: QualityLoss
    verdict: str  # of the floor
    in_time: bool

    @property
    def faster(self) -> bool:
        """Whether it is significantly faster than base."""
        return self.speedup[1] > 1.0

    @property
    def meets(self) -> bool:
        """Whether it keeps the requirement and is faster than base."""
        return self.verdict == KEEPS and self.in_time and self.faster


def scenario_of(path: str | Path) -> Path:
    """Return the path of the scenario of a run folder, or of a scenario given by file or name.

    Raises:
        RunFolderError: The folder has no scenario.
        ScenarioError: There is no such file or shipped scenario.
    """
    folder = Path(path)
    if not folder.is_dir():
        from ciar_sim.shipped import scenario_path

        return scenario_path(path)
    if not (folder / "scenario.yaml").is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no scenario.yaml")
    return folder / "scenario.yaml"


def recommend(
    scenario: Written,
    max_loss_pct: float,
    metric: str | None,
    slo_s: float | None,
    resources: Resources,
    sets: Sequence[str] = (),
    axes: Sequence[str] = (),
) -> Decision:
    """Recommend a method for each condition of a scenario. The candidates are its methods with their swept settings.

    Args:
        scenario: The scenario; base must be among its methods.
        max_loss_pct: Largest acceptable loss of quality, in percent of base's quality.
        metric: Quality metric; None: the first that the images have.
        slo_s: Objective for p95 of the latency in seconds; None for none.
        resources: Cache, processes, progress.
        sets: Changes as in `ciar-sim sweep`.
        axes: Axes as in `ciar-sim sweep`.

    Raises:
        CiarSimError: The scenario is not usable, or has no captions left for verification.
    """
    bench = Bench(load_with_source(scenario, axes, sets), resources)
    prepared = bench.prepare(bench.cases())
    base_of(prepared.cases, "recommend")
    measured = prepared.measure()
    groups: dict[str, list[Case]] = {}
    for case in prepared.cases:
        if case.index in measured:
            groups.setdefault(json.dumps(condition(case), sort_keys=True, default=str), []).append(case)
    sentences: list[str] = []
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    name = ""
    for cases in groups.values():
        where = condition(cases[0])
        prefix = f"{condition_words(where, tuple(where))}: " if where else ""
        base = next((case for case in cases if case.method.name == "base"), None)
        if base is None:
            sentences.append(f"{prefix}base could not be simulated, so nothing can be compared with it.")
            continue
        name = chosen_metric([prepared.quality(base)], metric)
        required = Requirement(name, max_loss_pct, slo_s)
        judged = judge(prepared, measured, cases, base, required)
        rows += [{**where, **_row(one, max_loss_pct)} for one in judged]
        said, verified = _decide(bench, judged, required)
        sentences += [f"{prefix}{text}" for text in said]
        checks += [{**where, **check} for check in verified]
    if not rows:
        raise CiarSimError(
            f"recommend: no condition in which base could be simulated: {'; '.join(prepared.failed[:1])}"
        )
    if not any(path.startswith("methods.") for case in prepared.cases for path in case.swept):
        sentences.append(
            "Only the settings that the scenario names were compared; sweep methods.LABEL.threshold and methods.LABEL.prefix_rate "
            "to search others."
        )
    sentences += failed_cases(prepared.failed)
    names = {candidate(case): case.method.name for case in prepared.cases}
    facts = {
        "decision": "recommend",
        "names": names,
        "metric": name,
        "max_loss_pct": max_loss_pct,
        "slo_p95_s": slo_s,
        "failed": prepared.failed,
    }
    return Decision(tuple(sentences), pd.DataFrame(rows), {"verified": pd.DataFrame(checks)}, facts)


def judge(
    prepared: Prepared,
    measured: dict[int, Measured],
    cases: Sequence[Case],
    base: Case,
    required: Requirement,
) -> list[CandidateFigures]:
    """Return the candidates of one condition, fastest first."""
    judged = []
    reference = measured[base.index]
    for case in cases:
        one = measured[case.index]
        both = pd.concat([reference.latency_s, one.latency_s], axis=1, join="inner").to_numpy(float)
        found = loss(prepared.quality(case), prepared.quality(base), required.metric, case.method.lossless)
        in_time = required.slo_s is None or one.within(required.slo_s)
        speedup = (1.0, 1.0, 1.0) if case is base else bounded(ratio(both[:, 0], both[:, 1], BATCHES))
        judged.append(CandidateFigures(case, one, speedup, found, found.verdict(required.max_loss_pct), in_time))
    return sorted(judged, key=lambda one: (math.isnan(one.measured.mean_s), one.measured.mean_s))


def _row(one: CandidateFigures, max_loss_pct: float) -> dict[str, Any]:
    return {
        "method": candidate(one.case),
        "latency_mean_s": one.measured.mean_s,
        "latency_p95_s": one.measured.p95_s,
        "speedup": one.speedup[0],
        "speedup_lo": one.speedup[1],
        "speedup_hi": one.speedup[2],
        "loss_pct": one.loss.pct,
        "loss_lo_pct": one.loss.low,
        "loss_hi_pct": one.loss.high,
        "floor": one.verdict,
        "lossless": one.loss.lossless,
        "in_time": one.in_time,
        "prompts": one.loss.prompts,
        "prompts_needed": one.loss.prompts_needed(max_loss_pct),
    }


def _decide(
    bench: Bench, judged: Sequence[CandidateFigures], required: Requirement
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the sentences for one condition, and a row per verified candidate."""
    base = next(one for one in judged if one.case.method.name == "base")
    if not len(base.measured.latency_s):
        return ["base: no request was answered, so nothing can be compared with it.", *_unanswered(base)], []
    checks: list[dict[str, Any]] = []
    said: list[str] = []
    for one in [one for one in judged if one.meets][:MOST_TRIED]:
        captions = _captions(bench, one.case)
        try:
            fresh = verify(bench, one.case, base.case, captions, required)
        except CiarSimError as error:  # the next candidate may be verified
            said.append(f"{candidate(one.case)} was not verified, for a simulation failed: {error}.")
            continue
        checks.append({**_row(fresh, required.max_loss_pct), "held": fresh.meets})
        if fresh.meets:
            more = [*said, *_unanswered(one, base), *_unclear(judged, fresh.measured.mean_s, required.max_loss_pct)]
            return [_recommended(one, fresh, required.metric), *more], checks
        why = _failure(fresh)
        said.append(f"{candidate(one.case)} was tried, but {why} did not hold on other prompts and another seed.")
    said += _unanswered(base)
    return [
        _nobody(judged, base, required),
        *said,
        *_unclear(judged, base.measured.mean_s, required.max_loss_pct),
    ], checks


def _recommended(one: CandidateFigures, fresh: CandidateFigures, metric: str) -> str:
    """Return the recommendation of a candidate, with the figures of its verification."""
    speed = f"{significant(fresh.speedup[0])} times as fast as base{span(*fresh.speedup[1:])}"
    lost = f"loss of {metric} {significant(fresh.loss.pct)} %{span(fresh.loss.low, fresh.loss.high)}"
    if fresh.loss.lossless:
        lost = f"lossless, so its images have the quality of base (measured: {lost})"
    which = "other " if _seed_of_prompts(one.case.scenario) is not None else ""
    return (
        f"{candidate(one.case)}: {significant(fresh.measured.mean_s)} s, {speed}; {lost}, "
        f"on {fresh.loss.prompts} {which}prompt{'s' if fresh.loss.prompts > 1 else ''} with another seed."
    )


def _nobody(judged: Sequence[CandidateFigures], base: CandidateFigures, required: Requirement) -> str:
    """Return the recommendation of base or, if base misses the objective, of nothing."""
    floor = f"at most {number(required.max_loss_pct)} % of {required.metric} lost"
    if base.in_time:
        seconds = f"{significant(base.measured.mean_s)} s, p95 {significant(base.measured.p95_s)} s"
        return f"base: no method is shown to be faster with {floor} ({seconds})."
    lowest = min(judged, key=lambda one: one.measured.p95_s)
    slo_s = required.slo_s or 0.0
    missed = f"base has a p95 of {significant(base.measured.p95_s)} s, the objective is {number(slo_s)} s"
    if base.measured.p95_s <= slo_s:
        missed = f"more than 5 % of base's requests have no answer within {number(slo_s)} s"
    return (
        f"None: {missed}, and no method "
        f"within it is shown to be faster with {floor}; the lowest p95 is that of {candidate(lowest.case)}, "
        f"{significant(lowest.measured.p95_s)} s (quality floor: {lowest.verdict})."
    )


def _failure(fresh: CandidateFigures) -> str:
    """Describe why a candidate failed verification: its quality, else its p95, else its speed-up."""
    if fresh.verdict != KEEPS:
        return "its quality, which stays unclear," if fresh.verdict == UNCLEAR else "its quality"
    return "its speed-up over base" if fresh.in_time else "its p95 within the objective"


def _unanswered(*named: CandidateFigures) -> list[str]:
    """Return sentences about candidates with unanswered requests, which have no latency."""
    return [
        f"{candidate(one.case)}: {counted(one.measured.refused, 'request')} refused and {one.measured.unfinished} unfinished; its "
        f"figures are of the {len(one.measured.latency_s)} that were answered."
        for one in named
        if one.measured.refused or one.measured.unfinished
    ]


def _unclear(judged: Sequence[CandidateFigures], than_s: float, max_loss_pct: float) -> list[str]:
    """Return a sentence about faster candidates that need more prompts, and how many; empty if there are none."""
    faster = [one for one in judged if one.verdict == UNCLEAR and one.in_time and one.measured.mean_s < than_s]
    if not faster:
        return []
    all_needed = [one.loss.prompts_needed(max_loss_pct) for one in faster]
    needed, best = min(zip(all_needed, faster, strict=True), key=lambda pair: (math.isnan(pair[0]), pair[0]))
    count = f"about {needed:,.0f}" if math.isfinite(needed) else "more"
    many = f"{len(faster)} faster candidates are" if len(faster) > 1 else "1 faster candidate is"
    lost = f"{significant(best.loss.pct)} %{span(best.loss.low, best.loss.high)}"
    return [
        f"{many} not decided by {counted(best.loss.prompts, 'prompt')}: the loss of {candidate(best.case)} is {lost}; "
        f"{count} prompts would decide it."
    ]


def _captions(bench: Bench, case: Case) -> Sequence[str]:
    """Return the captions of a verification: captions that were not used for the choice.

    A lossless method of a scenario that lists its captions is measured on the same captions: its quality needs no verification.

    Raises:
        CiarSimError: There are no other captions.
    """
    if case.method.lossless and _seed_of_prompts(case.scenario) is None:
        return captions_of(case.scenario, bench.models.captions)
    return _fresh(bench, case.scenario)


def verify(
    bench: Bench,
    case: Case,
    base: Case,
    captions: Sequence[str],
    required: Requirement,
) -> CandidateFigures:
    """Measure a candidate and base on the captions of a verification, with another seed.

    Raises:
        CiarSimError: One of the two could not be simulated.
    """
    seed = (case.scenario.seed + FRESH_SEED) % 2**63
    again = [_again(one, captions, seed) for one in (base, case)]
    prepared = bench.prepare(again)
    measured = prepared.measure()
    if len(measured) < len(again):
        raise CiarSimError(prepared.failed[0])
    found = judge(prepared, measured, prepared.cases, prepared.cases[0], required)
    return next(one for one in found if one.case.index == 1)


def _seed_of_prompts(scenario: Scenario) -> int | None:
    """Return the seed that draws the captions from their source; None if they are listed, so that there are no others."""
    seed: int | None = getattr(scenario.prompts, "seed", None)
    return seed


def _again(case: Case, captions: Sequence[str], seed: int) -> Case:
    prompts = PromptList.model_validate({"list": captions})
    scenario = case.scenario.model_copy(update={"prompts": prompts, "seed": seed, "methods": (case.method,)})
    return Case(case.index, case.position, case.method, case.swept, scenario)


def _fresh(bench: Bench, scenario: Scenario) -> list[str]:
    """Return up to as many captions as the scenario has, none of which it uses. Raises CiarSimError if there are none."""
    prompts, captions = scenario.prompts, bench.models.captions
    used = captions_of(scenario, captions)
    seed = _seed_of_prompts(scenario)
    if seed is None:
        raise CiarSimError(
            f"{bench.loaded.source.where(('prompts',))}: a verification needs other captions than those of the list; use prompts of a "
            "source, or give half of the list to the search and run the winner on the other half"
        )
    drawn: list[str] = []
    for count in (2 * len(used), len(used)):  # a small source may not have twice as many
        other = prompts.model_copy(update={"seed": (seed + FRESH_SEED) % 2**63, "count": count, "skip": 0})
        try:
            drawn = captions_of(scenario.model_copy(update={"prompts": other}), captions)
            break
        except ScenarioError:
            continue
    found = [caption for caption in drawn if caption not in set(used)][: len(used)]
    if not found:
        raise CiarSimError("a verification needs other captions, and the source has none left")
    return found
