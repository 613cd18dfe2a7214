"""Quality loss of a method against base with its interval, and the number of prompts needed to test it against a bound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from simulator.core.errors import CiarSimError
from simulator.core.yamlfile import did_you_mean
from simulator.results.statistics import ratio
from simulator.results.tables import CaseRecords

HIGHER, LOWER, TWO_SIDED = ("align_", "f1", "clip", "hpsv2"), ("fd_", "fid"), ("cloud_nll",)
KEEPS, FAILS, UNCLEAR = "keeps", "fails", "unclear"


@dataclass(frozen=True)
class QualityLoss:
    """Loss of quality against base, in percent of base's quality. A negative loss is a gain.

    Attributes:
        pct: The loss.
        low: Lower end of its 95 % interval; NaN with too few images.
        high: Upper end of its 95 % interval.
        prompts: Number of prompts.
        of_set: Whether the metric is of sets of images, whose intervals are not Student's.
        lossless: Whether the images have base's distribution by construction: the loss is chance, and the floor is kept.
    """

    pct: float
    low: float
    high: float
    prompts: int
    of_set: bool = False
    lossless: bool = False

    def verdict(self, most_pct: float) -> str:
        """Return `keeps` if lossless or the whole interval is at most `most_pct`, `fails` if all of it is above, else `unclear`."""
        if self.lossless or self.high <= most_pct:
            return KEEPS
        return FAILS if self.low > most_pct else UNCLEAR

    def prompts_needed(self, most_pct: float) -> float:
        """Return the number of prompts with which the interval would lie on one side of `most_pct`, at equal loss and spread.

        It is the present number if the verdict is clear, and larger otherwise; NaN without an interval, infinite if the loss equals
        `most_pct`.
        """
        half = self.high - self.pct  # the lower end of a two-sided loss is clipped at 0
        if self.verdict(most_pct) != UNCLEAR:
            return float(self.prompts)
        margin = abs(most_pct - self.pct)
        if math.isnan(half):
            return math.nan
        if margin == 0:
            return math.inf
        most = max(self.prompts + 1, self.prompts * (half / margin) ** 2)
        return float(math.ceil(most) if self.of_set else _with_student(self.prompts, half / margin, math.ceil(most)))


def _with_student(prompts: int, narrower: float, most: int) -> int:
    """Return the fewest prompts, more than `prompts` and at most `most`, whose Student interval is `narrower` times narrower.

    The spread is assumed equal. The Student quantile of few prompts is large, so four times as many prompts make the interval more than
    twice as narrow.
    """
    now = float(stdtrit(prompts - 1, 0.975)) / math.sqrt(prompts)
    few = prompts + 1
    while few < most:
        middle = (few + most) // 2
        if float(stdtrit(middle - 1, 0.975)) / math.sqrt(middle) * narrower <= now:
            most = middle
        else:
            few = middle + 1
    return few


def metrics(records: CaseRecords) -> list[str]:
    """Return the quality metrics of a case that have a known direction and a value: alignment first, cloud_nll last."""
    of_image = [name for name in records.quality if name != "image"]
    found = [
        name
        for name in (*of_image, *records.of_set(np.empty(0, np.int64)))
        if name.startswith((*HIGHER, *LOWER, *TWO_SIDED)) and math.isfinite(_value(records, name)[0])
    ]
    return sorted(found, key=lambda name: (not name.startswith("align_"), name.startswith(TWO_SIDED)))


def chosen_metric(records: Sequence[CaseRecords], asked: str | None) -> str:
    """Return the requested metric, else the first of `metrics`.

    Raises:
        CiarSimError: The images do not have this metric, or have none (statistical sessions).
    """
    known = metrics(records[0])
    if not known:
        raise CiarSimError(
            "there is no quality to keep: no model ran, the sessions are statistical; `ciar-sim sweep` and `capacity` need none"
        )
    if asked is None:
        return known[0]
    if asked not in known and asked in records[0].of_set(np.empty(0, np.int64)):
        raise CiarSimError(
            f"--metric {asked}: has no value for so few images; use more prompts (docs/quality.md says how many it needs), "
            f"or one of {', '.join(known)}"
        )
    if asked not in known:
        raise CiarSimError(f"--metric {asked}: not a quality that these images have{did_you_mean(asked, known)}")
    return asked


def _of_set(name: str, records: CaseRecords) -> bool:
    return name not in records.quality


def _value(records: CaseRecords, name: str) -> tuple[float, float, float]:
    """Return the value of a metric and the ends of its interval; NaN without an interval."""
    if _of_set(name, records):
        return records.of_set(_one_each(records)).get(name, (math.nan,) * 3)
    values = np.asarray(records.quality[name], float)
    values = values[np.isfinite(values)]
    return (float(values.mean()) if len(values) else math.nan), math.nan, math.nan


def _one_each(records: CaseRecords) -> np.ndarray:
    """Return int64 [prompts], one image per prompt: that of its first request if fallbacks made several.

    Distances of sets depend on the number of images, so both sets must have equally many, and images without a request do not count.
    """
    images = np.asarray(records.quality["image"], np.int64)
    prompt, got = (np.asarray(records.columns[key], np.int64) for key in ("prompt", "image"))
    further = got[got != prompt]
    if not len(further):
        return images
    chosen = images[: further.min()].copy()  # images without fallbacks come first, one per prompt
    asked, first = np.unique(prompt, return_index=True)
    chosen[asked] = got[first]
    return chosen


def by_prompt(records: CaseRecords, name: str) -> pd.Series:
    """Return a metric of images by prompt; the mean over its requests if fallbacks made several images."""
    quality = np.asarray(records.quality[name], float)
    prompt, image = (np.asarray(records.columns[key]) for key in ("prompt", "image"))
    if np.array_equal(prompt, image):
        return pd.Series(quality).dropna()
    return pd.Series(quality[image], index=prompt).groupby(level=0).mean().dropna()


def loss(records: CaseRecords, base: CaseRecords, name: str, lossless: bool = False) -> QualityLoss:
    """Return the loss of a case against base, paired by prompt for a metric of images, from both intervals for one of sets.

    The interval is that of the ratio to base (delta method).

    Args:
        records: The case.
        base: Base under the same conditions.
        name: The metric.
        lossless: `MethodSettings.lossless` of the case.
    """
    if records is base:
        count = len(base.quality["image"])
        return QualityLoss(0.0, 0.0, 0.0, count, lossless=lossless)
    of_set = _of_set(name, records)
    if of_set:
        (own, low, high), (its, base_low, base_high) = _value(records, name), _value(base, name)
        prompts = len(_one_each(records))
        value = own / its if its > 0 else math.nan
        halves = max(high - own, own - low), max(base_high - its, its - base_low)  # one end may be clipped at 0
        half = math.hypot(halves[0], value * halves[1]) / its if its > 0 else math.nan
    else:
        pairs = pd.concat([by_prompt(records, name), by_prompt(base, name)], axis=1, join="inner").to_numpy()
        prompts = len(pairs)
        value, low, _ = ratio(pairs[:, 0], pairs[:, 1], prompts)
        half = value - low
    if name.startswith(TWO_SIDED):
        off = abs(value - 1.0)
        return QualityLoss(100 * off, 100 * max(0.0, off - half), 100 * (off + half), prompts, of_set, lossless)
    signed = value - 1.0 if name.startswith(LOWER) else 1.0 - value
    return QualityLoss(100 * signed, 100 * (signed - half), 100 * (signed + half), prompts, of_set, lossless)
