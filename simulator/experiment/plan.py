"""The sessions of a run: one per case and prompt, base's greedy images as reference, and captions for calibration."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from simulator.core.errors import PromptError, ScenarioError, error_context
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.prompts import PromptList, Prompts, ScenePrompts
from simulator.protocol.cache import RecordingSource
from simulator.protocol.methods import METHODS, BaseSettings, Decoding, MethodSettings
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import Recording, SessionSpec

_CALIBRATION_SEED = 20_000_003  # seed of the captions for calibration
# Calibration excludes the first captions of the scenario's seed: as many as the scenario uses, rounded up to a multiple of this.
_SPARED = 1024
REPEAT_STEP = 2**40  # difference of seeds between repetitions of a caption, larger than any sweep of seeds


class Plan:
    """The sessions of a run: one per case and prompt, and base's greedy images as reference.

    Attributes:
        specs: Sessions by key.
        captions: Captions by index of the case.
        of_case: Keys of sessions by index of the case, one per caption.
        reference: The same for base's greedy images.
        recordings: Recordings by key, of the sessions that `record` has recorded.
    """

    def __init__(self, cases: Sequence[Case], manifest: PairManifest, scenes: Callable[[int, int], list[str]]) -> None:
        self.specs: dict[str, SessionSpec] = {}
        self.captions: dict[int, list[str]] = {}
        self.of_case: dict[int, list[str]] = {}
        self.reference: dict[int, list[str]] = {}
        self.recordings: dict[str, Recording] = {}
        self.prompts = [case.scenario.prompts for case in cases]
        texts: dict[tuple[str, ...], list[str]] = {}  # cases share lists of equal captions or sessions
        sessions: dict[tuple[Any, ...], list[str]] = {}

        def keys(name: str, settings: MethodSettings, decoding: Decoding, captions: list[str], seed: int) -> list[str]:
            told = name, settings.model_dump_json(), decoding.model_dump_json(), tuple(captions), seed
            if told not in sessions:
                mine = sessions[told] = []
                for spec in session_specs(manifest, name, settings, decoding, captions, seed):
                    self.specs.setdefault(key := spec.key(), spec)
                    mine.append(key)
            return sessions[told]

        for case in cases:
            s = case.scenario
            captions = captions_of(s, scenes)
            captions = self.captions[case.index] = texts.setdefault(tuple(captions), captions)
            self.of_case[case.index] = keys(case.method.name, case.method.settings, case.decoding, captions, s.seed)
            greedy = s.decoding.model_copy(update={"cloud": "greedy"})
            self.reference[case.index] = keys("base", BaseSettings.model_validate({}), greedy, captions, s.seed)

    def record(self, source: RecordingSource, keys: Collection[str] | None = None) -> None:
        """Record the sessions with these keys; None: all."""
        keys = self.specs if keys is None else keys
        with caption_context(self.prompts):
            self.recordings |= zip(keys, source.recordings([self.specs[key] for key in keys]), strict=True)

    def recorded(self, case: Case) -> list[Recording]:
        """Return the recordings of a case, one per caption."""
        return [self.recordings[key] for key in self.of_case[case.index]]


@contextmanager
def caption_context(prompts: Iterable[Prompts]) -> Iterator[None]:
    """Add the place in the scenario to errors about a caption that are raised inside: the first of `prompts` with that caption."""
    try:
        yield
    except PromptError as error:
        lists = [one for one in prompts if isinstance(one, PromptList)]
        named = [
            (key, held) for one in lists for key, held in (("list", one.captions), ("calibration", one.calibration))
        ]
        places = [("prompts", key, held.index(error.prompt)) for key, held in named if error.prompt in held]
        error.place = error.place or (places[0] if places else ("prompts",))
        raise


def session_specs(
    manifest: PairManifest,
    method: str,
    settings: MethodSettings,
    decoding: Decoding,
    captions: Sequence[str],
    seed: int,
) -> list[SessionSpec]:
    """Return one session per caption. Repetitions of a caption have different seeds, and so different images."""
    seen: Counter[str] = Counter()
    repeats = []
    for caption in captions:
        repeats.append(seen[caption])
        seen[caption] += 1
    return [
        SessionSpec(
            weights=manifest.weights_hash,
            method=method,
            revision=METHODS[method].revision_of(settings),
            settings=settings.model_dump(),
            decoding=decoding.model_dump(),
            prompt=caption,
            seed=(seed + repeat * REPEAT_STEP) % 2**63,
        )
        for caption, repeat in zip(captions, repeats, strict=True)
    ]


def calibration_captions(
    scenario: Scenario, asked: int | None, usual: int, scenes: Callable[[int, int], list[str]]
) -> list[str]:
    """Return captions for calibration: those of `prompts.calibration`, else drawn ones.

    They exclude the scenario's captions. Drawn ones also exclude those that it would use with up to `_SPARED` prompts, so that more
    prompts do not change the threshold.

    Args:
        scenario: The scenario.
        asked: Number of captions in `threshold.prompts`; None: `usual`, or fewer if `prompts.calibration` has fewer.
        usual: Default number of captions.
        scenes: Returns captions of the pair by (seed, count).

    Raises:
        ScenarioError: There are too few captions.
    """
    count = asked or usual
    used = set(captions_of(scenario, scenes))
    if isinstance(scenario.prompts, PromptList) and scenario.prompts.calibration:
        named = [caption for caption in dict.fromkeys(scenario.prompts.calibration) if caption not in used]
        if len(named) < (asked or 1):
            raise ScenarioError(
                f"prompts.calibration: holds {len(named)} captions that are not prompts, threshold.prompts asks for {count}"
            )
        return named[:count]
    if isinstance(scenario.prompts, ScenePrompts):
        last = scenario.prompts.skip + scenario.prompts.count
        used |= set(scenes(scenario.prompts.seed, _SPARED * math.ceil(last / _SPARED)))
    drawn, different = 2 * count, dict[str, None]()
    while True:
        known, different = len(different), dict.fromkeys(scenes(_CALIBRATION_SEED, drawn))
        other = [caption for caption in different if caption not in used]
        if len(other) >= count:
            return other[:count]
        if len(different) == known:  # doubling the number of scenes gave no new caption
            hint = "" if other else "; name some with prompts.calibration, or the threshold as a number"
            raise ScenarioError(
                f"threshold.prompts: only {len(other)} captions are left to calibrate on, asked for {count}{hint}"
            )
        drawn *= 2


def captions_of(scenario: Scenario, scenes: Callable[[int, int], list[str]]) -> list[str]:
    """Return the captions of a scenario. Drawn captions are distinct; those of a list or file may repeat.

    Raises:
        ScenarioError: The pair does not have as many captions.
    """
    match scenario.prompts:
        case ScenePrompts(seed=seed, count=count, skip=skip, source=source):
            wanted = drawn = skip + count
            known = 0
            while len(different := list(dict.fromkeys(scenes(seed, drawn)))) < wanted:
                if len(different) == known:  # doubling the number of scenes gave no new caption
                    after, sum_ = (f" after {skip}", "skip + count ") if skip else ("", "")
                    with error_context("prompts", "count"):
                        raise ScenarioError(
                            f"prompts.count: {count} captions wanted{after}, but {drawn} {source} of seed {seed} hold only "
                            f"{known} different ones; {sum_}must be <= {known}"
                        )
                drawn, known = 2 * drawn, len(different)
            return different[skip:wanted]
        case PromptList(captions=captions):
            return list(captions)
    raise AssertionError(scenario.prompts)
