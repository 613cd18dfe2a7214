"""`sweep.tune`: a search for settings of methods with low latency and high quality.

The sampler is Optuna's multi-objective TPE (Ozaki et al. 2022, "Multiobjective Tree-Structured Parzen Estimator"). It is seeded, and
trials are sampled and evaluated in rounds of a fixed size. The trials therefore do not depend on the number of workers or on interruptions.
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from pydantic import ValidationError

from simulator.core.errors import ScenarioError, error_context
from simulator.core.rng import stream
from simulator.experiment.axes import axis_place, read_value
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.sweep import Range
from simulator.experiment.sweep import case_at, grid_of, tuned_positions
from simulator.protocol.pairs import PairManifest
from simulator.results.columns import BETTER, judged

ROUND = 8  # trials of a study that are recorded and simulated together
Objectives = Mapping[int, tuple[float, float]]  # latency (s) and quality by index of the case


@dataclass
class _Study:
    """The search for one method under one condition. tried: cases by their chosen values as JSON."""

    position: int
    condition: dict[str, Any]
    study: Any
    tried: dict[str, Case] = field(default_factory=dict)


def tuned_quality(scenario: Scenario, manifest: PairManifest) -> str:
    """Return the quality column of `sweep.tune`, by default the agreement of images and captions.

    Raises:
        ScenarioError: Images of the pair do not have this quality.
    """
    tune, columns = scenario.sweep.tune, judged(manifest.subject)
    if tune is None:
        return columns.align
    quality = tune.quality or columns.align
    if quality in BETTER and quality in columns:
        return quality
    there = [name for name in columns if name in BETTER]
    if manifest.statistics is not None:
        why = "the sessions are statistical, so that there are no images"
    elif there:
        why = f"images of the pair {manifest.name} have no {quality}; allowed: {', '.join(there)}"
    else:
        why = f"images of the pair {manifest.name} have no judge; pairs of scenes and photos have one"
    with error_context("sweep", "tune"):
        raise ScenarioError(f"sweep.tune: a search needs a quality, and {why}")


def trial_cases(scenario: Scenario) -> list[Case]:
    """Return one case per trial of the searches, all with the lowest or first values; empty without `sweep.tune`.

    They represent the trials when only the amount and kind of work matter.
    """
    if scenario.sweep.tune is None:
        return []
    found: list[Case] = []
    for position, condition in _conditions(scenario):
        axes = {path: scenario.sweep.axes[path] for path in tuned_positions(scenario)[position]}
        lowest = {path: axis.min if isinstance(axis, Range) else axis[0] for path, axis in axes.items()}
        one = case_at(scenario, position, {**condition, **_read(scenario, lowest)}, 0)
        found += [replace(one, index=len(found) + number) for number in range(scenario.sweep.tune.trials)]
    return found


def tuned_cases(scenario: Scenario, quality: str, objectives: Callable[[Sequence[Case]], Objectives]) -> list[Case]:
    """Run the searches. Return the distinct cases tried, by method and condition, in the order of the trials.

    Args:
        scenario: A scenario with `sweep.tune`.
        quality: The quality column, the second objective.
        objectives: Returns the latency and quality of cases.

    Raises:
        ScenarioError: The quality of all trials is unknown (NaN).
    """
    import optuna

    tune = scenario.sweep.tune
    assert tune is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = []
    for number, (position, condition) in enumerate(_conditions(scenario)):
        seed = int(stream(scenario.seed, "sweep.tune", number).integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        directions = ["minimize", "maximize" if BETTER[quality] > 0 else "minimize"]
        studies.append(_Study(position, condition, optuna.create_study(sampler=sampler, directions=directions)))
    known: dict[int, tuple[float, float]] = {}
    for start in range(0, tune.trials, ROUND):
        asked: list[tuple[_Study, Any, Case]] = []
        new: list[Case] = []
        for one in studies:
            for _ in range(min(ROUND, tune.trials - start)):
                trial = one.study.ask()
                chosen = _read(scenario, _suggested(scenario, one.position, trial))
                text = json.dumps(chosen, sort_keys=True)
                if text not in one.tried:
                    index = sum(len(other.tried) for other in studies)
                    one.tried[text] = case_at(scenario, one.position, {**one.condition, **chosen}, index)
                    new.append(one.tried[text])
                asked.append((one, trial, one.tried[text]))
        if new:
            known.update(objectives(new))
        for one, trial, case in asked:
            values = known.get(case.index, (math.nan, math.nan))
            if any(map(math.isnan, values)):
                one.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                one.study.tell(trial, values)
        if all(math.isnan(found) for _, found in known.values()):
            with error_context("sweep", "tune"):
                raise ScenarioError(
                    f"sweep.tune: {quality} is known of no trial; it may need other prompts, or more of them "
                    "(see docs/quality.md)"
                )
    return [case for one in studies for case in one.tried.values()]


def _conditions(scenario: Scenario) -> list[tuple[int, dict[str, Any]]]:
    """Return, for each study, the position of its method and the values of the axes that are not tuned."""
    found = []
    for position in tuned_positions(scenario):
        grid = grid_of(scenario, position, conditions_only=True)
        for values in itertools.product(*(rows for _, rows in grid)):
            paths = [path for group, _ in grid for path in group]
            found.append((position, dict(zip(paths, itertools.chain(*values), strict=True))))
    return found


def _suggested(scenario: Scenario, position: int, trial: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for path in tuned_positions(scenario)[position]:
        axis = scenario.sweep.axes[path]
        if isinstance(axis, Range):
            share = trial.suggest_float(path, axis.min, axis.max, log=axis.scale == "log")
            chosen[path] = axis.rounded(share)
        else:
            chosen[path] = trial.suggest_categorical(path, list(axis))
    return chosen


def _read(scenario: Scenario, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as validated by the settings, rounded for settings that take whole numbers only."""
    whole = {**scenario.model_dump(by_alias=True), "sweep": {}}
    read: dict[str, Any] = {}
    for path, value in chosen.items():
        ranged = isinstance(scenario.sweep.axes[path], Range)
        with suppress(ValidationError):  # invalid in combination: `case_at` raises the error
            value = read_value(whole, axis_place(scenario, path), value, ranged)
        read[path] = value
    return read


def pareto_rows(summary: pd.DataFrame, swept: Iterable[str], quality: str) -> pd.DataFrame:
    """Return the rows of a summary on the Pareto front of latency and quality of their condition, over all methods."""
    conditions = [path for path in swept if not path.startswith("methods.") and path in summary]
    known = summary.dropna(subset=["latency_mean_s", quality])
    groups = [group for _, group in known.groupby(conditions, sort=False)] if conditions else [known]
    rows = []
    for group in groups:
        best = -math.inf
        order = group.assign(gain=BETTER[quality] * group[quality])
        for index, gain in order.sort_values(["latency_mean_s", "gain"], ascending=[True, False])["gain"].items():
            if gain > best:
                best = gain
                rows.append(index)
    return summary.loc[rows]
