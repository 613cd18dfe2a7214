"""Which sessions a run needs: one per case and prompt, base's greedy images to compare with, and those to calibrate thresholds on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from simulator.calibrate import Calibrated, calibrate
from simulator.errors import ScenarioError
from simulator.methods import REVISIONS, BaseSettings, Decoding, GatedSettings, Settings, prefix_length
from simulator.pairs import PairManifest
from simulator.recording import Recording, RecordingSource, SessionSpec
from simulator.scenario import Case, PromptList, Scenario, ScenePrompts

_CALIBRATION_SEED = 20_000_003  # of the captions that thresholds are calibrated on


class Plan:
    """Which sessions a run needs: one per case and prompt, and base's greedy images to compare with. specs: by key."""

    def __init__(self, cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]]) -> None:
        specs: dict[str, SessionSpec] = {}
        self.captions: dict[int, list[str]] = {}
        self.of_case: dict[int, list[str]] = {}
        self.reference: dict[int, list[str]] = {}
        for case in cases:
            s = case.scenario
            captions = captions_of(s, scenes)
            self.captions[case.index] = captions

            def keys(name: str, settings: Settings, decoding: Decoding, s: Scenario = s, captions: list[str] = captions) -> list[str]:
                mine = []
                for spec in session_specs(manifest, name, settings, decoding, captions, s.seed):
                    specs.setdefault(key := spec.key(), spec)
                    mine.append(key)
                return mine

            self.of_case[case.index] = keys(case.method.name, case.method.settings, s.decoding)
            greedy = s.decoding.model_copy(update={"cloud": "greedy"})
            self.reference[case.index] = keys("base", BaseSettings.model_validate({}), greedy)
        self.specs = specs


def session_specs(
    manifest: PairManifest, method: str, settings: Settings, decoding: Decoding, captions: Sequence[str], seed: int
) -> list[SessionSpec]:
    """One session per caption."""
    return [
        SessionSpec(
            weights=manifest.weights_hash, method=method, revision=REVISIONS[method], settings=settings.model_dump(),
            decoding=decoding.model_dump(), prompt=caption, seed=seed,
        )
        for caption in captions
    ]  # fmt: skip


def with_calibrated(
    cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]], source: RecordingSource
) -> tuple[list[Case], dict[str, dict[str, Any]]]:
    """The cases with a threshold wherever a call rate was asked for; and what was found, by method and decoding settings."""
    found: dict[str, Calibrated] = {}
    told: dict[str, dict[str, Any]] = {}
    resolved = []
    for case in cases:
        target, s = case.method.call_target, case.scenario
        if target is None:
            resolved.append(case)
            continue
        captions = _calibration_captions(s, target.prompts, scenes)
        key = json.dumps([case.method.model_dump(exclude={"label"}), s.decoding.model_dump(), s.seed, captions], sort_keys=True)
        if key not in found:

            def record(threshold: float, case: Case = case, s: Scenario = s, captions: list[str] = captions) -> list[Recording]:
                method = case.method.at_threshold(threshold)
                return source.recordings(session_specs(manifest, method.name, method.settings, s.decoding, captions, s.seed))

            gated = case.method.at_threshold(0.0).settings
            assert isinstance(gated, GatedSettings)
            prefix_rate = prefix_length(gated.prefix_rate, manifest.image_tokens) / manifest.image_tokens
            found[key] = calibrate(target.call_pct, prefix_rate, record, case.method.label)
        name = f"{case.method.label} {conditions_of(case)}".strip()
        told[name] = {"call_pct_asked": target.call_pct, "prompts": target.prompts, **asdict(found[key])}
        resolved.append(replace(case, method=case.method.at_threshold(found[key].threshold)))
    return resolved, told


def _calibration_captions(scenario: Scenario, count: int, scenes: Callable[[int, int], list[str]]) -> list[str]:
    """Captions that the scenario does not use."""
    used = set(captions_of(scenario, scenes))
    drawn = dict.fromkeys(scenes(_CALIBRATION_SEED, 4 * (count + len(used))))
    other = [caption for caption in drawn if caption not in used][:count]
    if len(other) < count:
        raise ScenarioError(f"threshold.prompts: only {len(other)} captions are left to calibrate on, asked for {count}")
    return other


def captions_of(scenario: Scenario, scenes: Callable[[int, int], list[str]]) -> list[str]:
    """The captions of a scenario, all different: a second image of one caption and seed would be the same image.

    Raises ScenarioError where the scenes do not hold as many.
    """
    match scenario.prompts:
        case ScenePrompts(seed=seed, count=count):
            drawn, known = count, 0
            while len(different := list(dict.fromkeys(scenes(seed, drawn)))) < count:
                if len(different) == known:  # twice as many scenes brought no caption more
                    raise ScenarioError(
                        f"prompts.count: {count} captions wanted, but {drawn} scenes of seed {seed} hold only {known} different ones; "
                        f"must be <= {known}"
                    )
                drawn, known = 2 * drawn, len(different)
            return different[:count]
        case PromptList(captions=captions):
            return list(captions)
    raise AssertionError(scenario.prompts)


def conditions_of(case: Case) -> str:
    return ", ".join(f"{path}={value}" for path, value in case.swept.items())
