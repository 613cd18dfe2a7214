"""The calibrations of a run. Thresholds of all methods with a target of cloud calls are searched at the same time."""

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from simulator.core.errors import error_context
from simulator.experiment.calibrate import Asked, Calibrated, Trial, calibrate
from simulator.experiment.plan import calibration_captions, caption_context, session_specs
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.methods import DEFAULT_CALL_PCT, CallTarget, MethodEntry
from simulator.protocol.cache import RecordingSource
from simulator.protocol.methods import GatedSettings, RandomSettings, ThresholdSettings, prefix_length
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import SessionSpec
from simulator.protocol.thresholds import compared_with_one, make_threshold

Told = dict[str, dict[str, Any]]  # results of calibrations by title of the case


def search_thresholds(
    cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]], source: RecordingSource
) -> tuple[list[Case], Told]:
    """Return the cases with calibrated settings in place of call rates, and the results of calibration by title of the case.

    Raises:
        ScenarioError: A calibration has too few captions, or fails (see `calibrate`).
    """
    searches: dict[str, _Search] = {}
    for case in cases:
        target, key = case.method.target, _search_key(case)
        if target is not None and key not in searches:
            with error_context("methods", case.position):
                asked = _asked(case.method, target, manifest)
                if isinstance(case.method, RandomSettings):
                    searches[key] = _Search(case, [], _rated(asked))
                    continue
                captions = calibration_captions(case.scenario, asked.prompts, asked.most_prompts, scenes)
            searches[key] = _Search(case, captions, calibrate(replace(asked, prompts=len(captions))))
    found = _search_all(searches, manifest, source)
    told: Told = {}
    resolved = []
    for case in cases:
        if (target := case.method.target) is not None:
            at = found[_search_key(case)]
            numbers = {name: value for name, value in at.settings.items() if isinstance(value, float)}
            told[case.title] = {
                **({} if target.call_pct is None else {"call_pct_asked": target.call_pct}),
                **numbers,
                "call_pct": at.call_pct,
                "call_pct_se": at.call_pct_se,
                "prompts": at.prompts,
                "rounds": at.rounds,
            }
            case = replace(case, method=_at(case.method, at.settings))
        resolved.append(case)
    return resolved, told


def most_sessions(cases: Sequence[Case], manifest: PairManifest, prompts: Callable[[Scenario], int]) -> int:
    """Return the largest number of sessions of cases that are not calibrated yet, and of their calibrations.

    Args:
        cases: The cases. Those that differ in network, cloud or load only share their sessions.
        manifest: Manifest of the pair.
        prompts: Number of captions of a scenario.
    """
    distinct = {_search_key(case): case for case in cases}
    searched = [
        _asked(case.method, case.method.target, manifest).most_sessions
        for case in distinct.values()
        if case.method.target is not None and not isinstance(case.method, RandomSettings)
    ]
    return sum(searched) + sum(prompts(case.scenario) for case in distinct.values())


def calibration_warnings(told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return warnings about call rates that may differ from the target by more than a percentage point on other captions."""
    found = []
    for title, one in told.items():
        half = 1.96 * one["call_pct_se"]
        captions, interval = f"{one['prompts']} captions", f"95 % interval of the mean: +- {half:.1f}"
        if not math.isfinite(half):
            captions, interval, half = "one caption", "its standard error is unknown", 0.0
        off = abs(one["call_pct"] - one.get("call_pct_asked", one["call_pct"])) + half
        if off > 1.0 and one["prompts"]:
            found.append(
                f"{title}: calibrated on {captions}, whose calls are {one['call_pct']:.1f} % ({interval}); "
                "threshold_mode even keeps every image to its share, more prompts narrow the interval"
            )
    return found


def with_found(scenario: Scenario, before: Sequence[Case], after: Sequence[Case]) -> Scenario:
    """Return the scenario with calibrated settings for the methods whose cases all have the same ones."""
    methods = list(scenario.methods)
    for position, entry in enumerate(methods):
        pairs = [pair for pair in zip(before, after, strict=True) if pair[0].position == position]
        names = ("threshold", "threshold_mode", "budget", "upload_rate")
        found = [
            {name: getattr(new.method, name) for name in names if hasattr(new.method, name)}
            for old, new in pairs
            if old.method.target is not None
        ]
        if entry.target is not None and len(found) == len(pairs) and all(one == found[0] for one in found):
            methods[position] = entry.at(**found[0])
    return scenario.model_copy(update={"methods": tuple(methods)})


def _asked(method: MethodEntry, target: CallTarget, manifest: PairManifest) -> Asked:
    prefix_rate, tokens = getattr(method, "prefix_rate", 0.0), manifest.image_tokens
    prefix = prefix_length(prefix_rate, tokens)
    call_pct, prompts = target.call_pct, target.prompts
    if not isinstance(method, ThresholdSettings):
        return Asked(method.label, "own", call_pct or DEFAULT_CALL_PCT, prefix / tokens, None, prompts)

    def values(scores: np.ndarray) -> np.ndarray:
        settings = _at(method, {"threshold": 1.0, "threshold_mode": method.mode}).settings
        assert isinstance(settings, GatedSettings)
        return compared_with_one(make_threshold(settings, tokens - prefix), scores)

    if call_pct is None and method.budget is None:
        call_pct = DEFAULT_CALL_PCT
    return Asked(method.label, method.mode, call_pct, prefix / tokens, method.budget, prompts, values)


def _rated(asked: Asked) -> Generator[Trial, Sequence[Any], Calibrated]:
    """Calibrate `random`. Its share of the scored tokens follows from the rate, without recordings."""
    yield from ()
    asked.check()
    assert asked.call_pct is not None
    return Calibrated({"upload_rate": asked.share, "threshold": None}, asked.call_pct, 0.0, 0, 0)


def _at(method: MethodEntry, settings: Mapping[str, Any]) -> MethodEntry:
    """Return the method with these settings, without settings that apply to other modes only."""
    own = dict(settings)
    if isinstance(method, ThresholdSettings):
        mode = settings.get("threshold_mode", method.mode)
        own |= {name: None for name, modes in method.modes.items() if mode not in modes}
    return method.at(**own)


@dataclass(frozen=True)
class _Search:
    """A running search: one of the cases that share it, the calibration captions, and the generator of trials."""

    case: Case
    captions: list[str]
    steps: Generator[Trial, Sequence[Any], Calibrated]

    def step(self, recordings: Sequence[Any] | None) -> Trial:
        """Return the next trial, given the recordings of the last one; None for the first trial."""
        with error_context("methods", self.case.position):
            return next(self.steps) if recordings is None else self.steps.send(recordings)

    def specs(self, manifest: PairManifest, trial: Trial) -> list[SessionSpec]:
        method, case = _at(self.case.method, trial.settings), self.case
        captions = self.captions[: trial.prompts]
        return session_specs(manifest, method.name, method.settings, case.decoding, captions, case.scenario.seed)


def _search_key(case: Case) -> str:
    """Return text that is equal for cases that share a search: network, cloud and load do not change tokens."""
    s = case.scenario
    return json.dumps(
        [case.method.model_dump(exclude={"label"}), case.decoding.model_dump(), s.seed, s.prompts.model_dump()],
        sort_keys=True,
    )


def _search_all(
    searches: Mapping[str, _Search], manifest: PairManifest, source: RecordingSource
) -> dict[str, Calibrated]:
    """Run all searches at the same time. The sessions of a round are recorded together, which batches their forward passes."""
    found: dict[str, Calibrated] = {}
    wanted: dict[str, Trial] = {}

    def advance(key: str, recordings: Sequence[Any] | None) -> None:
        try:
            wanted[key] = searches[key].step(recordings)
        except StopIteration as stop:
            found[key] = stop.value

    for key in searches:
        advance(key, None)
    while wanted:
        specs = {key: searches[key].specs(manifest, trial) for key, trial in wanted.items()}
        with caption_context(search.case.scenario.prompts for search in searches.values()):
            recordings = iter(source.recordings([spec for mine in specs.values() for spec in mine]))
        wanted.clear()
        for key, mine in specs.items():
            advance(key, list(islice(recordings, len(mine))))
    return found
