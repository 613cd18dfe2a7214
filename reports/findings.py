"""Findings for each condition: the fastest method, its lead and its image quality, with 95 % intervals.

A method differs significantly from base if the paired interval of its speed-up excludes 1, and from the fastest method if the paired
interval of the difference of their latencies excludes 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.load import Run
from reports.metrics import CLOUD_NLL, Metric, quality_metric_of
from reports.words import joined, significant, times
from simulator.protocol.methods import METHODS
from simulator.results.columns import JUDGED, interval_columns

FEW = 5  # with fewer requests the text has no interval of the latency


@dataclass(frozen=True)
class Finding:
    """The result of one condition.

    Attributes:
        condition: name of the condition.
        heading: the result in a few words, for plots; it starts with the condition if there are several.
        sentences: the result in sentences.
        cases: rows of the summary.
        fastest: label with the lowest mean latency; "none" if no request was answered.
        at_base_quality: labels that may be the fastest among base and the methods with base's image quality; empty if quality is unknown.
        faster: labels that are faster than these but whose images differ: the fastest one, and of those not significantly slower the one
            whose quality is closest to base's.
        lossless: label of the fastest lossless method that is significantly faster than base; empty if none is, or if it is advised anyway.
        front: labels on the Pareto front of mean latency and quality loss, fastest first; empty if the loss is unknown.
    """

    condition: str
    heading: str
    sentences: tuple[str, ...]
    cases: pd.DataFrame
    fastest: str
    at_base_quality: tuple[str, ...] = ()
    faster: tuple[str, ...] = ()
    lossless: tuple[str, ...] = ()
    front: tuple[str, ...] = ()

    def titled(self, titles: bool, of: int) -> str:
        """Return the title of its panel: the heading, or without titles the condition if there are several."""
        return self.heading if titles else self.condition if of > 1 else ""


def quality_metric(run: Run) -> Metric:
    """Return the distance to real images if every case that ran has it, else cloud_nll, which exists for any number of images."""
    return quality_metric_of(run.summary)


def has_quality(run: Run) -> bool:
    """Return whether any case has a quality; none has in a run of statistical sessions."""
    return bool(np.isfinite(run.summary[quality_metric(run).name]).any())


def find(run: Run) -> tuple[Finding, ...]:
    """Return the finding of every condition of a run, in order."""
    conditions = list(run.conditions())
    metric = quality_metric(run)
    return tuple(finding(name, cases, metric, name_it=len(conditions) > 1) for name, cases in conditions)


def finding(condition: str, cases: pd.DataFrame, metric: Metric = CLOUD_NLL, *, name_it: bool = True) -> Finding:
    """Return the finding of the cases of one condition. name_it: the heading starts with the condition."""
    prefix = f"{condition}: " if name_it else ""
    ran = cases[np.isfinite(cases["latency_mean_s"])].sort_values("latency_mean_s", kind="stable")
    rows = [row for _, row in ran.iterrows()]
    if not rows:
        text = "No request was answered, so there is nothing to compare."
        return Finding(condition, f"{prefix}no request was answered", (text,), cases, "none")
    best = rows[0]
    bases = [row for row in rows if is_base(row)]
    heading, first = _latency_result(rows, bases)
    sentences = [first]
    good, faster, lossless, front = tuple[str, ...](), tuple[str, ...](), tuple[str, ...](), tuple[str, ...]()
    if len(rows) > 1:
        good = _fastest_at_base_quality(rows, bases)
        faster = _faster(rows, good)
        lossless = _fastest_lossless(rows, good)
        front = pareto_front(ran, metric.loss)
        several = not math.isnan(best["latency_mean_lo_s"])
        sentences += _quality_sentences(rows, bases) if several else ()
        if several and good and not is_base(best) and not base_quality(best):
            heading += f"; at {bases[0]['label']}'s quality: {' or '.join(good)}{_single_gain(rows, good)}"
        if len(front) > 1:
            sentences.append(f"Pareto front of mean latency and {metric.title}, by the means: {', '.join(front)}.")
    return Finding(
        condition, prefix + heading, tuple(sentences), cases, str(best["label"]), good, faster, lossless, front
    )


def _latency_result(rows: list[pd.Series], bases: list[pd.Series]) -> tuple[str, str]:
    """Return heading and first sentence: the method with the lowest latency. rows: sorted by latency."""
    best, others = rows[0], rows[1:]
    name, seconds = str(best["label"]), _seconds(best)
    if not others:
        return f"{name} takes {significant(best['latency_mean_s'])} s", f"{name}: {seconds}."
    gain = "" if is_base(best) or not bases else _gain(best)
    if math.isnan(best["latency_mean_lo_s"]):
        text = f"{name} has the lowest mean latency, {seconds}, but one request gives no interval: nothing can be concluded."
        return f"{name} has the lowest mean, from one request", text
    if equal := [str(row["label"]) for row in others if not significantly_different(best, row)]:
        names = joined([name, *equal] if len(equal) < 3 else [name, f"{len(equal)} others"])
        text = f"No significant difference in latency between {joined([name, *equal])} (95 %). "
        text += f"{name} has the lowest mean, {seconds}{', ' + gain if gain else ''}."
        return f"no significant difference in latency: {names}", text
    if is_base(best):
        second = others[0]
        # The interval of very few requests may extend to a speed-up of 0 or less.
        slowdowns = (
            1 / x if (x := second[column]) > 0 else math.inf for column in ("speedup", "speedup_hi", "speedup_lo")
        )
        longer, least, most = (times(x) for x in slowdowns)
        range_ = "" if _few(best) else f" ({least} to {most})"
        text = f"{name} is fastest: {seconds}. The next, {second['label']}, takes {longer}× as long{range_}."
        return f"{name} is fastest ({second['label']} takes {longer}× as long)", text
    text = f"{name} is fastest: {seconds}{', ' + gain if gain else ''}."
    text += "" if bases else " Base was not run, so there is no speed-up."
    speed = f" ({times(best['speedup'])}× base)" if bases else ""
    return f"{name} is fastest{speed}", text


def _single_gain(rows: list[pd.Series], good: tuple[str, ...]) -> str:
    """Return the speed-up of the one method in good, such as " (1.7×)", or "" if that is base or there are two."""
    best = next(row for row in rows if row["label"] == good[0])
    return "" if is_base(best) or len(good) > 1 else f" ({times(best['speedup'])}×)"


def _gain(row: pd.Series) -> str:
    if _few(row):
        return f"{significant(row['speedup'])}× base's speed"
    return with_interval(row, "speedup", "× base's speed")


def _few(row: pd.Series) -> bool:
    return bool(row["images"] < FEW)


def _seconds(row: pd.Series) -> str:
    if _few(row):
        return f"{significant(row['latency_mean_s'])} s per image (too few requests for an interval)"
    return with_interval(row, "latency_mean_s", " s per image")


def is_base(row: pd.Series) -> bool:
    """Return whether a case is one of base, whatever its label."""
    return bool(row["method_name"] == "base")


def is_lossless(row: pd.Series) -> bool:
    """Return whether the method draws from base's distribution by construction; False for a method that is not registered."""
    kind = METHODS.get(str(row["method_name"]))
    return kind is not None and kind.settings.lossless


def significantly_different(fastest: pd.Series, other: pd.Series) -> bool:
    """Return whether the latency of a case differs from that of the fastest, by the paired 95 % interval."""
    for base, method in ((fastest, other), (other, fastest)):
        if is_base(base) and not is_base(method):
            return bool(method["speedup_lo"] > 1 or method["speedup_hi"] < 1)
    return bool(other["latency_minus_fastest_lo_s"] > 0)


QUALITIES = ("cloud_nll", "align")  # compared with base by prompt; align only where the pair has a judge


def differing(row: pd.Series) -> list[str]:
    """Return those of `QUALITIES` that differ significantly from base's (interval of the difference, paired by prompt)."""
    return [name for name in QUALITIES if row[f"{name}_minus_base_lo"] > 0 or row[f"{name}_minus_base_hi"] < 0]


def base_quality(row: pd.Series) -> bool:
    """Return whether a case has base's quality: its method is lossless, or none of `QUALITIES` differs significantly from base's."""
    return is_lossless(row) or (math.isfinite(row["cloud_nll_minus_base_lo"]) and not differing(row))


def _fastest_at_base_quality(rows: list[pd.Series], bases: list[pd.Series]) -> tuple[str, ...]:
    """Return base, the fastest other method with base's quality, or both if their latencies do not differ. rows: sorted by latency."""
    if not bases or not any(math.isfinite(row["cloud_nll_minus_base_lo"]) for row in rows if not is_base(row)):
        return ()
    base = str(bases[0]["label"])
    near = next((row for row in rows if not is_base(row) and base_quality(row)), None)
    if near is None or near["speedup_hi"] < 1:
        return (base,)
    return (str(near["label"]),) if near["speedup_lo"] > 1 else (base, str(near["label"]))


def _fastest_lossless(rows: list[pd.Series], good: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fastest lossless method as in `Finding`. rows: sorted by latency."""
    near = next((row for row in rows if is_lossless(row) and not is_base(row)), None)
    if not good or near is None or not near["speedup_lo"] > 1 or near["label"] in good:
        return ()
    return (str(near["label"]),)


def _faster(rows: list[pd.Series], good: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that are faster than those with base's quality: see `Finding.faster`. rows: sorted by latency."""
    alike = [rows[0], *(row for row in rows[1:] if not significantly_different(rows[0], row))]
    if not good or any(is_base(row) or row["label"] in good for row in alike):
        return ()
    known = [row for row in alike if math.isfinite(row["cloud_nll_minus_base"])]
    nearest = min(known, key=lambda row: abs(row["cloud_nll_minus_base"]), default=rows[0])
    return tuple(dict.fromkeys((str(rows[0]["label"]), str(nearest["label"]))))


def _quality_sentences(rows: list[pd.Series], bases: list[pd.Series]) -> tuple[str, ...]:
    """Describe whether the fastest method has base's image quality, and if not, which is the fastest that has. rows: sorted by latency."""
    best = rows[0]
    if not bases or is_base(best) or not math.isfinite(best["cloud_nll_minus_base_lo"]):
        return ()
    images = f"on {int(best['distinct_images'])} distinct images"
    if is_lossless(best):
        values = _compared(best, bases[0], known_qualities(best))
        return (f"It is lossless: its images have base's quality by construction (measured: {values}, {images}).",)
    if base_quality(best):
        values = _compared(best, bases[0], known_qualities(best))
        return (f"Its images show no significant difference from base's (95 %): {values}, {images}.",)
    first = f"Its images differ significantly from base's: {_compared(best, bases[0], differing(best))}, {images}."
    near = next((row for row in rows if not is_base(row) and base_quality(row)), None)
    if near is None:
        others = [row for row in rows[1:] if not is_base(row)]
        if not others:
            return (first,)
        if all(math.isfinite(row["cloud_nll_minus_base_lo"]) for row in others):
            return first, "Every other method's images differ significantly from base's, too."
        return first, "No other method is known to have base's quality."
    if near["speedup_lo"] > 1:
        return (
            first,
            f"Fastest, by the mean, without a significant difference in quality: {near['label']}, {_gain(near)}.",
        )
    return (
        first,
        "Of the methods without a significant difference in quality, none is significantly faster than base; the fastest: "
        f"{near['label']}, {_gain(near)}.",
    )


def known_qualities(row: pd.Series) -> list[str]:
    """Return those of `QUALITIES` whose difference from base is known."""
    return [name for name in QUALITIES if math.isfinite(row[f"{name}_minus_base"])]


def _compared(row: pd.Series, base: pd.Series, names: Sequence[str]) -> str:
    """Describe qualities of a case beside those of base."""
    texts = []
    for name in names:
        column = next(
            (one.align for one in JUDGED if name == "align" and math.isfinite(row.get(one.align, math.nan))), name
        )
        unit, scale = ("nats per token", 1.0) if name == "cloud_nll" else ("%", 100.0)
        own, its = (with_interval(one, column, scale=scale) for one in (row, base))
        difference = with_interval(row, f"{name}_minus_base", scale=scale)
        texts.append(f"{column} {own}, base {its} {unit}, paired difference {difference}")
    return "; ".join(texts)


def pareto_front(cases: pd.DataFrame, loss: str) -> tuple[str, ...]:
    """Return the labels on the Pareto front of mean latency and absolute quality loss (means only), fastest first."""
    points = [
        (float(row["latency_mean_s"]), abs(float(row[loss])), str(row["label"]))
        for _, row in cases.iterrows()
        if math.isfinite(row["latency_mean_s"]) and math.isfinite(row[loss])
    ]
    front: list[str] = []
    least = math.inf
    for _, lost, label in sorted(points):
        if lost < least:
            front.append(label)
            least = lost
    return tuple(front)


def best_labels(run: Run, most: int, among: Sequence[str] = ()) -> list[str]:
    """Return at most `most` labels in order of appearance: base's, and those with the lowest mean latency over the conditions.

    among: labels to consider; empty for all.
    """
    return best(run.summary, "label", most, among)


def best(table: pd.DataFrame, column: str, most: int, among: Sequence[str] = (), *, at_best: bool = False) -> list[str]:
    """Return at most `most` series in the same way. A column names them; at_best: rank by the lowest latency instead of the mean."""
    ran = table[np.isfinite(table["latency_mean_s"])]
    seconds = (
        ran.groupby(column, sort=False)["latency_mean_s"].agg("min" if at_best else "mean").sort_values(kind="stable")
    )
    bases = ran.loc[ran["method_name"] == "base", column].unique()
    there = list(dict.fromkeys(map(str, table[column])))
    ranked = dict.fromkeys([*map(str, bases), *map(str, seconds.index), *there])
    kept = [name for name in ranked if not among or name in among][:most]
    return [name for name in there if name in kept]


def with_interval(row: pd.Series, name: str, unit: str = "", scale: float = 1.0) -> str:
    """Format as "3.21 s (3.10 to 3.33)", without brackets if there is no interval or its width is 0."""
    low, high = (scale * float(row[end]) for end in interval_columns(name))
    text = f"{significant(scale * row[name])}{unit}"
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return text
    return f"{text} ({significant(low)} to {significant(high)})"
