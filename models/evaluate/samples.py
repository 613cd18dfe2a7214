"""Sample images of a pair: a grid of images of held-out captions, the claims that the judge finds in them, and their distance from real
images, with the values of real images for comparison.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.images import png_bytes
from models.quality.judges import Captions, judge_of, share_right
from models.quality.scorer import Scorer
from simulator.core.errors import CiarSimError
from simulator.experiment.plan import session_specs
from simulator.protocol.cache import RecordingSource
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import PairRef, pair_manifest
from simulator.results.columns import with_ends
from simulator.results.statistics import UNKNOWN, Interval, student_interval

COLUMNS = 8
GAP_PIXELS = 2
SHOWN = 64  # images in the grid


@dataclass(frozen=True)
class Samples:
    """Result of `draw_samples`.

    Attributes:
        png: PNG of the first images as a grid, row by row.
        claims: a row per claim of a caption: prompt, caption, claim, right.
        by_kind: number of claims and share of right ones, by kind of claim.
        figures: a row for the generated images and for each of the judge's baselines: images, and the judge's columns with `_lo`, `_hi`.
        share_of_real: alignment of the generated images divided by that of the first baseline; NaN without one.
    """

    png: bytes
    claims: pd.DataFrame
    by_kind: pd.DataFrame
    figures: pd.DataFrame
    share_of_real: float


def draw_samples(
    source: RecordingSource,
    pair: PairRef,
    captions_of_pair: Captions,
    cache: Path,
    prompts: int,
    seed: int,
    method: str,
    guidance: float | None,
) -> Samples:
    """Decode at most `prompts` different captions by `method` at its defaults and judge the images.

    `claims` and `figures` are empty if the pair has no judge or its images have another size than the judge reads.

    Args:
        source: source of the sessions' recordings.
        pair: the pair.
        captions_of_pair: captions by (seed, count).
        cache: folder of the judge's readings.
        prompts: maximum number of captions.
        seed: seed of captions and sessions.
        method: name of the method.
        guidance: guidance scale; None: the pair's default.

    Raises:
        CiarSimError: the pair has no weights.
    """
    manifest = pair_manifest(pair)
    captions = list(dict.fromkeys(captions_of_pair(seed, prompts)))
    if manifest.statistics is not None:
        raise CiarSimError(f"pair {manifest.name}: has published figures and no weights, so it makes no images")
    decoding = Decoding.model_validate({"guidance": manifest.guidance if guidance is None else guidance})
    settings = METHODS[method].settings.model_validate({})
    settings.check(decoding, manifest)
    recordings = source.recordings(session_specs(manifest, method, settings, decoding, captions, seed))
    images = [recording.image for recording in recordings]
    claims, figures, share = _claims([]), pd.DataFrame(), math.nan
    judge = judge_of(pair)
    if judge is not None and images[0].shape == (judge.image_size, judge.image_size, 3):
        scorer = Scorer(cache, judge)
        readings = scorer.readings(recordings)
        right = [judge.right(caption, reading) for caption, reading in zip(captions, readings, strict=True)]
        claims = _claims([(caption, found or {}) for caption, found in zip(captions, right, strict=True)])
        columns, of_set = scorer(recordings, captions)
        align = columns[scorer.columns.align]
        rows = [
            _figures("generated", scorer, align[np.isfinite(align)], len(images), dict(of_set(np.arange(len(images)))))
        ]
        for one in judge.baselines(captions):
            seen = [judge.right(caption, reading) for caption, reading in zip(one.captions, one.readings, strict=False)]
            shares = np.array([share_right(found) for found in seen if found is not None])
            sets = {} if one.is_reference else scorer.of_readings(one.readings)
            rows.append(_figures(one.name, scorer, shares, len(one.readings), sets))
        figures = pd.DataFrame(rows)
        if len(figures) > 1:
            own, real = figures[scorer.columns.align].iloc[:2]
            share = float(own / real)
    return Samples(png_bytes(grid(images[:SHOWN])), claims, _by_kind(claims), figures, share)


def _claims(found: Sequence[tuple[str, dict[str, list[bool]]]]) -> pd.DataFrame:
    """Return the table of claims, from each caption and whether its claims are right, by kind."""
    rows = [
        (prompt, caption, kind, right)
        for prompt, (caption, right_of) in enumerate(found)
        for kind, seen in right_of.items()
        for right in seen
    ]
    return pd.DataFrame(rows, columns=["prompt", "caption", "claim", "right"])


def _by_kind(claims: pd.DataFrame) -> pd.DataFrame:
    groups = [("all", claims), *claims.groupby("claim", sort=False)] if len(claims) else []
    return pd.DataFrame(
        [(kind, len(group), 100.0 * float(group["right"].mean())) for kind, group in groups],
        columns=["claim", "claims", "right_pct"],
    )


def _figures(name: str, scorer: Scorer, align: np.ndarray, images: int, sets: dict[str, Interval]) -> dict[str, object]:
    found = {scorer.columns.align: student_interval(align), **sets}
    row: dict[str, object] = {"images of": name, "images": images}
    for column in scorer.columns:
        row |= with_ends(column, found.get(column, UNKNOWN))
    return row


def grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return images uint8 [H, W, 3] of one size as one image, COLUMNS per row, on white."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // COLUMNS)
    page = np.full(
        (rows * (height + GAP_PIXELS) - GAP_PIXELS, COLUMNS * (width + GAP_PIXELS) - GAP_PIXELS, 3), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // COLUMNS * (height + GAP_PIXELS), index % COLUMNS * (width + GAP_PIXELS)
        page[top : top + height, left : left + width] = image
    return page
