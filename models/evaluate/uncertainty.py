"""Evaluation of uncertainty scores: how well each predicts where the cloud would choose another token, teacher-forced.

Device and cloud read the same sequences of held-out prompts, both guided as in deployment, and every score of `models.methods.scores` is
computed at every position. There are three events to predict (`reading.EVENTS`):

    differs   the cloud's arg max is not the device's
    tv        the total variation between both distributions is above its median over all tokens
    nll       the cloud's negative log-likelihood of the device's token is above its median

There are two sources of sequences (`on`):

    generated  decoded by the cloud with the method `base`, similar to the sequences of deployed models
    scenes     tokens of real held-out scenes, like the training sequences; cheaper, and not available for other images

The table of regions uses real scenes. For photographs it uses the generated images; for other images regions are unknown. A pair that
predicts scale by scale reads every token given all smaller scales.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from models import scenes
from models.evaluate.ceiling import CEILING, Ceiling
from models.evaluate.measures import measures
from models.evaluate.reading import Prompts, Settings, ceiling_data, token_table
from models.evaluate.sequences import Progress, distinct_scenes
from models.evaluate.tables import DRAWS, rank, region_table, with_pixels
from models.evaluate.timing import time_measures
from models.quality.judges import TRAINED_ON, Captions
from models.recording import Models
from simulator.core.errors import CiarSimError, WeightsError

CEILING_PROMPTS_PER_PROMPT = 3
DEFAULTS = Settings()


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_uncertainty`.

    Attributes:
        facts: pair, settings and totals.
        tokens: a row per token, with its events and scores.
        summary: a row per measure and event.
        risk: risk by coverage.
        calibration: share of events by score quantile.
        regions: a row per region, see `models.evaluate.tables.region_table`.
        timing: a row per measure and codebook size, or None.
    """

    facts: dict[str, Any]
    tokens: pd.DataFrame
    summary: pd.DataFrame
    risk: pd.DataFrame
    calibration: pd.DataFrame
    regions: pd.DataFrame
    timing: pd.DataFrame | None


def evaluate_uncertainty(
    pair: Models,
    settings: Settings = DEFAULTS,
    progress: Progress = lambda text, done, total: None,
    captions: Captions | None = None,
) -> Evaluation:
    """Compute everything that `ciar-sim evaluate uncertainty` reports. The same pair and settings give the same tables except `timing`.

    Args:
        pair: the pair.
        settings: settings of the evaluation.
        progress: called with (text, done, total).
        captions: captions by (seed, count); None for scenes.

    Raises:
        CiarSimError: a seed of training, `on: scenes` for captions that are not of scenes, or too few different captions.
        WeightsError: the pair has no device model.
        PromptError: the pair cannot encode a caption.
    """
    if captions is not None and settings.on == "scenes":
        raise CiarSimError("--on scenes: real images of these captions are not available; allowed: generated")
    if captions is None and settings.seed in TRAINED_ON:
        raise CiarSimError(
            f"--seed {settings.seed}: scenes of the seeds {', '.join(map(str, TRAINED_ON))} were used in training; choose another seed"
        )
    if pair.device is None:
        raise WeightsError(f"the pair {pair.manifest.name} has no device model; name one with pair.device")
    width = pair.device.config.dim
    found = measures(pair.manifest.bounds)
    wanted = settings.prompts * (1 + CEILING_PROMPTS_PER_PROMPT if settings.ceiling else 1)
    every = _prompts(settings.seed, wanted, captions)
    prompts, more = _part(every, 0, settings.prompts), _part(every, settings.prompts, wanted)
    head = None
    if settings.ceiling:
        head = Ceiling.train(ceiling_data(pair, settings, more, progress), settings.seed, progress)
    tokens = token_table(pair, settings, prompts, found, settings.on, head, progress)
    with_regions = settings.on == "scenes" or captions is not None
    real = tokens if with_regions else token_table(pair, settings, prompts, found, "scenes", None, progress)
    labels = {measure.name: measure.label for measure in found} | (
        {CEILING: "ceiling: a head trained for it"} if head else {}
    )
    owners = {measure.name: measure.method for measure in found}
    summary, risk, calibrated = rank(tokens, labels, owners, settings.seed)
    facts = {
        "pair": pair.manifest.name,
        "subject": pair.manifest.subject,
        "weights": pair.manifest.weights_hash,
        "on": settings.on,
        "seed": settings.seed,
        "prompts": len(prompts.captions),
        "tokens": len(tokens),
        "guidance": settings.decoding(pair).guidance,
        "differs_pct": 100 * float(tokens["differs"].mean()),
        "tv_median": float(tokens["tv"].median()),
        "nll_median_nats": float(tokens["nll"].median()),
        "bootstrap_draws": DRAWS,
    }
    timing = None
    if settings.timing:
        progress("timing", 0, 1)
        timing = time_measures(width)
        timed = [*labels, "radius"] if pair.manifest.bounds else list(labels)
        timing = timing[timing["measure"].isin(timed)].reset_index(drop=True)
    regions = region_table(real, list(labels))
    if not with_regions and "pixel_rms" in tokens:
        regions = with_pixels(regions, tokens)
    return Evaluation(facts, tokens, summary, risk, calibrated, regions, timing)


def _prompts(seed: int, count: int, captions: Captions | None) -> Prompts:
    """Return `count` different captions, of scenes if `captions` is None. Raises CiarSimError if there are fewer."""
    if captions is None:
        indices = distinct_scenes(seed, count)
        return Prompts([scenes.scene(seed, index).caption for index in indices], indices)
    found = list(dict.fromkeys(captions(seed, count)))
    if len(found) < count:
        raise CiarSimError(f"--prompts: {count} different captions are needed, found {len(found)}")
    return Prompts(found, [])


def _part(prompts: Prompts, first: int, end: int) -> Prompts:
    return Prompts(prompts.captions[first:end], prompts.scenes[first:end])
