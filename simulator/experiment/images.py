"""The images of a run: their quality, and the ones stored in the run folder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from simulator.experiment.branches import images_of
from simulator.experiment.fleet import counts_of, slos_of
from simulator.experiment.plan import Plan
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.simulating import Simulated
from simulator.protocol.methods import CiarSettings, MethodSettings, RandomSettings, ThresholdSettings
from simulator.protocol.recording import FROM_DEVICE, SCORES, Recording
from simulator.results.folder import RunImage
from simulator.results.tables import CaseRecords, OfSet

KEPT_PROMPTS = 4  # prompts whose images are stored in the run folder


class ImageScorer(Protocol):
    """Scores images. The caller provides it, since this package contains no models."""

    def __call__(
        self, recordings: Sequence[Recording], captions: Sequence[str]
    ) -> tuple[Mapping[str, np.ndarray], OfSet]:
        """Return quality columns with one value per image, and a function for the quality of a set of images, given by indices."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions and settings that determine the scores."""
        ...

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        """Return why images of these drawn captions (`ScenePrompts`) are no fair test: training or the comparison knows them; or None."""
        ...


def score_cases(simulated: Sequence[Simulated], plan: Plan, scorer: ImageScorer | None) -> list[CaseRecords]:
    """Return the records of every case with the quality of its images. Without a scorer its columns are missing."""
    records = []
    # Cases that differ only in network and load have the same images.
    known: dict[tuple[object, ...], tuple[Mapping[str, np.ndarray], OfSet]] = {}
    for case, result, branches in simulated:
        of_prompts = plan.recorded(case)
        images = images_of(result.columns["prompt"], result.columns["timed_out_call"], of_prompts, branches)
        reference = [plan.recordings[plan.reference[case.index][prompt]] for prompt in images.prompts]
        captions = [plan.captions[case.index][prompt] for prompt in images.prompts]
        name = (*map(id, images.recordings), *map(id, reference), *captions)
        if name not in known:
            scored, of_set = scorer(images.recordings, captions) if scorer else ({}, lambda images: {})
            known[name] = {**quality_columns(images.recordings, reference), **scored}, of_set
        quality, of_set = known[name]
        workload, scenario = case.scenario.workload, case.scenario
        prices = [scenario.servings[tier].price_usd_per_gpu_hour for tier in scenario.tiers]
        fleet = workload if isinstance(workload, FleetWorkload) else None
        records.append(
            CaseRecords(
                method=case.method.label,
                name=case.method.name,
                swept=case.swept,
                columns={**result.columns, **images.columns()},
                quality=quality,
                of_set=of_set,
                sequential=fleet is None,
                utilisation=result.utilisation,
                gpu_usd_per_hour=[math.nan if price is None else price for price in prices],
                refused=result.refused,
                unfinished=result.unfinished,
                warmup_s=workload.warmup_s,
                duration_s=fleet.duration_s if fleet else math.nan,
                slos_s=slos_of(case.scenario),
                devices=counts_of(case.scenario),
                tiers=case.scenario.tiers,
                settings=_settings(case.method.settings),
                samples=result.samples,
                statistical="statistical" in of_prompts[0].meta,
            )
        )
    return records


def _settings(settings: MethodSettings) -> dict[str, float]:
    """Return the threshold and budget of a method, if it has them (see results.COLUMNS)."""
    if isinstance(settings, RandomSettings):
        return {"threshold": 1.0 - settings.upload_rate}
    if isinstance(settings, ThresholdSettings) and settings.mode in settings.modes["budget"]:
        return {"threshold": settings.threshold, "budget": settings.value_of("budget")}
    threshold = getattr(settings, "threshold", None)
    return {"threshold": threshold} if isinstance(threshold, int | float) else {}


def quality_columns(recordings: Sequence[Recording], reference: Sequence[Recording]) -> dict[str, np.ndarray]:
    """Return the quality per distinct image: cloud_nll (nats per token), cloud_greedy_pct, base_greedy_pct (see results.COLUMNS)."""
    return {
        "image": np.arange(len(recordings)),
        "cloud_nll": np.array([float(r.nll.mean(dtype=np.float64)) for r in recordings]),
        "cloud_greedy_pct": np.array([_equal_pct(r, r.argmax) for r in recordings]),
        "base_greedy_pct": np.array([_equal_pct(r, b.tokens) for r, b in zip(recordings, reference, strict=True)]),
    }


def _equal_pct(recording: Recording, tokens: np.ndarray) -> float:
    """Return the share of a recording's tokens that equal these, in percent; NaN for a statistical session."""
    return math.nan if "statistical" in recording.meta else 100.0 * float(np.mean(recording.tokens == tokens))


# Prefixes of swept paths that change images; networks, clouds and loads do not.
CHANGE_IMAGES = ("methods.", "decoding.", "prompts.", "seed")


def kept_images(simulated: Sequence[Simulated], plan: Plan, grid: int) -> list[RunImage]:
    """Return the images of the first prompts, once per distinct set of recordings. CIAR's have maps of scores and of deciding sides."""
    images: list[RunImage] = []
    seen: set[tuple[str, ...]] = set()
    for case, _, _ in simulated:
        keys = plan.of_case[case.index][:KEPT_PROMPTS]
        if tuple(keys) in seen or "statistical" in plan.recordings[keys[0]].meta:
            continue
        seen.add(tuple(keys))
        label = case.named(CHANGE_IMAGES)
        for prompt, (key, text) in enumerate(zip(keys, plan.captions[case.index], strict=False)):
            recording = plan.recordings[key]
            images.append(RunImage(label, prompt, text, "image", recording.image))
            if isinstance(case.method, CiarSettings):
                scores = recording.scores[:, SCORES.index("u")].reshape(grid, grid)
                decided = (recording.decided_by == FROM_DEVICE).astype(np.float32).reshape(grid, grid)
                images.append(RunImage(label, prompt, text, "uncertainty", scores))
                images.append(RunImage(label, prompt, text, "decided", decided))
    return images
