"""Statements with intervals: what a method gains or loses against base under one condition."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.words import significant

FEW = 5  # with fewer requests the findings give no interval of a latency


@dataclass(frozen=True)
class Finding:
    """What the cases under the same conditions say. fastest: a label of the summary, "none" if nothing ran."""

    condition: str
    fastest: str
    title: str  # a few words, for plots
    sentences: tuple[str, ...]


# ---- findings ---------------------------------------------------------------------------------------------------------


def finding(condition: str, cases: pd.DataFrame, *, where: bool = True) -> Finding:
    """Which method is fastest under one set of conditions, by how much, and whether its pictures are base's.

    A method is told apart from the fastest where the interval of the speed-up excludes 1 if one of them is base, otherwise where
    the interval of the difference excludes 0. Both are paired by request.
    """
    on = f"{condition}: " if where else ""
    ran = cases[np.isfinite(cases["latency_mean_s"])].sort_values("latency_mean_s", kind="stable")
    if ran.empty:
        sentence = "No request was answered, so there is nothing to compare."
        return Finding(condition, "none", f"{on}no request was answered", (sentence,))
    rows = [row for _, row in ran.iterrows()]
    best, others = rows[0], rows[1:]
    name = str(best["label"])
    seconds = _seconds(best)
    if not others:
        return Finding(
            condition, name, f"{on}{name} takes {significant(best['latency_mean_s'])} s", (f"{name}: {seconds}.",)
        )
    bases = [row for row in rows if is_base(row)]
    equal = [str(row["label"]) for row in others if not significantly_different(best, row)]
    if math.isnan(best["latency_mean_lo_s"]):
        title = f"{on}{name} has the lowest mean, from one request"
        first = f"{name} has the lowest mean latency, {seconds}, but one request gives no interval: nothing can be concluded."
        return Finding(condition, name, title, (first, *_pictures_sentence(best, rows, bases)))
    gain = _gain(best, bases)
    if equal:
        title = f"{on}not told apart: {_join([name, *equal] if len(equal) < 3 else [name, f'{len(equal)} others'])}"
        first = f"{_join([name, *equal])} are not told apart: the paired intervals allow no difference or are missing. "
        first += f"{name} has the lowest mean, {seconds}{', ' + gain if gain else ''}."
    elif is_base(best):
        second = others[0]
        longer, least, most = (significant(1 / second[column], 2) for column in ("speedup", "speedup_hi", "speedup_lo"))
        title = f"{on}{name} is fastest ({second['label']} takes {longer}× as long)"
        range_ = "" if _few(best) else f" ({least} to {most})"
        first = f"{name} is fastest: {seconds}. The next, {second['label']}, takes {longer}× as long{range_}."
    else:
        speed = f" ({significant(best['speedup'], 2)}× base)" if bases else ""
        title = f"{on}{name} is fastest{speed}{_at_base_s_quality(best, rows, bases)}"
        first = f"{name} is fastest: {seconds}{', ' + gain if gain else ''}."
        first += "" if bases else " Base was not run, so there is no speed-up to give."
    return Finding(condition, name, title, (first, *_pictures_sentence(best, rows, bases)))


def _gain(best: pd.Series, bases: list[pd.Series]) -> str:
    if not bases or is_base(best):
        return ""
    if _few(best):
        return f"{significant(best['speedup'])}× base's speed"
    return interval(best, "speedup", "speedup_lo", "speedup_hi", unit="× base's speed")


def _few(row: pd.Series) -> bool:
    return bool(row["images"] < FEW)


def _seconds(row: pd.Series) -> str:
    if _few(row):
        return f"{significant(row['latency_mean_s'])} s per image (too few requests for an interval)"
    return interval(row, "latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s", unit=" s per image")


def is_base(row: pd.Series) -> bool:
    return bool(row["method_name"] == "base")


def significantly_different(fastest: pd.Series, other: pd.Series) -> bool:
    """Whether the latency of a case differs from the fastest's by more than their paired 95 % interval allows."""
    for base, method in ((fastest, other), (other, fastest)):
        if is_base(base) and not is_base(method):
            return bool(method["speedup_lo"] > 1 or method["speedup_hi"] < 1)
    return bool(other["latency_minus_fastest_lo_s"] > 0)


def same_pictures(one: pd.Series) -> bool:
    """Whether the interval of cloud_nll minus base's, paired by prompt, allows no difference."""
    return bool(one["cloud_nll_minus_base_lo"] <= 0 <= one["cloud_nll_minus_base_hi"])


def _pictures_sentence(best: pd.Series, rows: list[pd.Series], bases: list[pd.Series]) -> tuple[str, ...]:
    if not bases or is_base(best) or not math.isfinite(best["cloud_nll_minus_base_lo"]):
        return ()
    base = bases[0]
    own, its = (interval(row, "cloud_nll", "cloud_nll_lo", "cloud_nll_hi") for row in (best, base))
    apart = interval(best, "cloud_nll_minus_base", "cloud_nll_minus_base_lo", "cloud_nll_minus_base_hi")
    beside = f"{own} beside base's {its} nats per token, paired difference {apart}"
    images = f"{int(best['distinct_images'])} distinct images"
    if same_pictures(best):
        return (f"Its pictures are not told apart from base's by cloud_nll: {beside}, on {images}.",)
    first = f"Its pictures are not base's: cloud_nll {beside}, on {images}."
    near = [row for row in rows if not is_base(row) and same_pictures(row)]
    if not near:
        return (first, "No other method here has a cloud_nll that is not told apart from base's.")
    speed = f"{near[0]['label']}, {_gain(near[0], bases)}"
    if near[0]["speedup_lo"] > 1:
        return (first, f"Fastest with a cloud_nll not told apart from base's: {speed}.")
    return (
        first,
        f"Of those with a cloud_nll not told apart from base's, none is told to be faster than base; the fastest: {speed}.",
    )


def _at_base_s_quality(best: pd.Series, rows: list[pd.Series], bases: list[pd.Series]) -> str:
    """For a title: where the fastest has other pictures, who is fastest of those that have base's."""
    if not bases or is_base(best) or not math.isfinite(best["cloud_nll_minus_base_lo"]) or same_pictures(best):
        return ""
    base = str(bases[0]["label"])
    near = next((row for row in rows if not is_base(row) and same_pictures(row)), None)
    if near is None or near["speedup_hi"] < 1:
        who = base
    else:
        who = str(near["label"]) if near["speedup_lo"] > 1 else f"{base} or {near['label']}"
    return f"; at {base}'s quality: {who}"


def interval(row: pd.Series, mean: str, low: str, high: str, unit: str = "") -> str:
    """ "3.21 s (3.10 to 3.33)", without brackets where there is no interval or it has no width."""
    text = f"{significant(row[mean])}{unit}"
    if not (math.isfinite(row[low]) and math.isfinite(row[high])) or row[low] == row[high]:
        return text
    return f"{text} ({significant(row[low])} to {significant(row[high])})"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
