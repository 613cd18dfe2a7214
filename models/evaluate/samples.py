"""Sample images of a pair: images of held-out captions in one grid, the share of the captions' claims seen in them, and their distance
from real images, beside what real images attain."""

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
    """What `draw_samples` found.

    Attributes:
        png: the first images as a grid, row by row.
        claims: a row per claim of a caption: prompt, caption, claim, right.
        by_kind: their shares by kind.
        figures: a row for the generated images and for each of the judge's baselines: images, and the judge's columns with `_lo`, `_hi`.
        share_of_real: the generated images' alignment over that of the first baseline; NaN without one.
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
    """At most `prompts` different captions, decoded by `method` at its defaults, the cloud sampling.

    captions_of_pair: gives them by (seed, count).
    claims and figures are empty for a pair without a judge, or whose images are of another size than that reads.
    Raises CiarSimError for a pair without weights.
    """
    manifest = pair_manifest(pair)
    captions = list(dict.fromkeys(captions_of_pair(seed, prompts)))
    if manifest.statistics is not None:
        raise CiarSimError(
            f"pair {manifest.name}: holds published figures and no weights; it can be run, and draws nothing"
        )
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
    """Of captions and what is right of each."""
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
    """uint8: images [H, W, 3] of one size side by side, COLUMNS to a row, on white."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // COLUMNS)
    page = np.full(
        (rows * (height + GAP_PIXELS) - GAP_PIXELS, COLUMNS * (width + GAP_PIXELS) - GAP_PIXELS, 3), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // COLUMNS * (height + GAP_PIXELS), index % COLUMNS * (width + GAP_PIXELS)
        page[top : top + height, left : left + width] = image
    return page
