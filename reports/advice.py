"""The sentences at the top of a report: which method to use under which conditions, and its speed-up."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from reports.findings import Finding, is_base, known_qualities
from reports.load import Run
from reports.words import condition, joined, number, shortened, significant, split_unit, times
from simulator.core.errors import counted

MOST_NAMED = 6  # conditions of a run up to which each is named
MOST_ANSWERS = 4  # answers in a run with more than MOST_NAMED conditions
MOST_LEFT = 3  # methods that are named together for the conditions that have no answer of their own
MOST_PLACES = 3  # ranges of conditions in one answer
MOST_IN_A_SENTENCE = 2  # answers in a sentence; more become a list


def condition_keys(run: Run) -> tuple[str, ...]:
    """Return the swept keys that define the conditions."""
    return tuple(
        key for key in run.swept if not key.startswith("methods.") and run.summary[key].nunique(dropna=False) > 1
    )


def advice(findings: Sequence[Finding], keys: Sequence[str] = ()) -> str:
    """Advise which method to use: the fastest one with base's image quality, or the fastest one if quality is unknown.

    Args:
        findings: The findings of the conditions.
        keys: Swept keys that define the conditions. If a number orders the conditions, those with the same answer become ranges.

    Returns:
        One sentence, or lines if there are many answers; lines of answers begin with `- `. Empty if no request was answered.
    """
    ran = [said for said in findings if said.fastest != "none"]
    if not ran:
        return ""
    if len({label for said in ran for label in said.cases["label"]}) == 1:
        return _alone_in_its_run(ran)
    if not any(said.at_base_quality for said in ran):
        where = _by_condition([((said.fastest,), said) for said in ran], findings, keys)
        fastest = pd.concat([said.cases[said.cases["label"] == said.fastest] for said in ran])
        known = (fastest["method_name"] == "base").all()
        doubt = "" if known else "Whether its images keep base's quality is not known from this run."
        if len(where) > MOST_IN_A_SENTENCE:
            return _list("Which method is fastest depends on the conditions:", where, doubt)
        return f"Fastest, by the mean: {_sentence(where)}. {doubt}".rstrip()
    where = _by_condition([(said.at_base_quality, said) for said in ran if said.at_base_quality], findings, keys)
    what = "the fastest, by the mean, of the methods whose images do not differ significantly from base's."
    if len(where) > MOST_IN_A_SENTENCE:
        return _list("Which method to use depends on the conditions:", where, f"Each is {what}")
    return f"Use {_sentence(where)}: {what}"


def _list(begin: str, answers: Sequence[str], end: str) -> str:
    return "\n".join((begin, *(f"- {answer}" for answer in answers), end))


def _sentence(answers: Sequence[str]) -> str:
    if len(answers) > 1 and any(" and " in answer for answer in answers):
        return "; ".join(answers)
    return answers[0] if len(answers) == 1 else f"{', '.join(answers[:-1])}, and {answers[-1]}"


def more_advice(findings: Sequence[Finding], keys: Sequence[str] = ()) -> str:
    """Name methods that are faster than the advised ones but differ in quality, and the basis of the quality test. keys: As in `advice`."""
    texts = []
    if faster := [(said.faster, said) for said in findings if said.faster]:
        where = _sentence(_by_condition(faster, findings, keys))
        texts.append(f"Faster, with images that differ significantly from base's: {where}.")
    if lossless := [(said.lossless, said) for said in findings if said.lossless]:
        where = _sentence(_by_condition(lossless, findings, keys))
        texts.append(f"Fastest with base's quality by construction (lossless): {where}.")
    advised = [row for said in findings for _, row in said.cases.iterrows() if row["label"] in said.at_base_quality]
    others = [row for row in advised if not is_base(row)]
    if others:
        judged = " and the agreement with the caption" if any("align" in known_qualities(row) for row in others) else ""
        # Where replies were given up, a method made several images of a prompt. Base never does, and qualities are paired with base's.
        bases = [row for said in findings for _, row in said.cases.iterrows() if is_base(row)]
        prompts = min(int(row["distinct_images"]) for row in [*others, *bases] if row["distinct_images"] > 0)
        texts.append(
            f"Quality: cloud_nll{judged} on {counted(prompts, 'prompt')}; ciar-sim recommend tests a bound on the loss."
        )
    return " ".join(texts)


def _alone_in_its_run(ran: Sequence[Finding]) -> str:
    """State the latency of a run with one method."""
    label = str(ran[0].cases["label"].iloc[0])
    seconds = [float(said.cases["latency_mean_s"].mean()) for said in ran]
    where = f" under {len(ran)} conditions" if len(ran) > 1 else ""
    text = f"{_alone(label)} takes {_range(seconds, significant)} s per image{where}."
    return text if is_base(ran[0].cases.iloc[0]) else f"{text} Without base in the run there is no speed-up."


def _alone(label: str) -> str:
    return "base (the cloud alone)" if label == "base" else label


def _by_condition(
    named: Sequence[tuple[tuple[str, ...], Finding]], findings: Sequence[Finding], keys: Sequence[str]
) -> list[str]:
    """Describe each distinct tuple of labels: the methods, their speed-up and the conditions. named: (labels, finding)."""
    where: dict[tuple[str, ...], list[Finding]] = {}
    for labels, said in named:
        where.setdefault(labels, []).append(said)
    told = list(where)
    if len(findings) > MOST_NAMED and len(where) > 2:
        ranked = sorted(where, key=lambda labels: -len(where[labels]))
        left = [labels for place, labels in enumerate(ranked) if place >= MOST_ANSWERS or len(where[labels]) == 1]
        if len(left) > 1:  # naming a single one takes no more words than counting it
            told = [labels for labels in where if labels not in left]
    parts = []
    for labels in told:
        here = where[labels]
        who = (
            _alone(labels[0])
            if len(labels) == 1
            else f"{labels[0]} or {labels[1]} (no significant difference in latency)"
        )
        cases = pd.concat([said.cases[said.cases["label"] == labels[0]] for said in here])
        gains = [float(gain) for gain in cases["speedup"] if math.isfinite(gain)]
        if gains and len(labels) == 1 and not is_base(cases.iloc[0]):
            who += f" ({_range(gains, times)}× base's speed)"
        parts.append(who + _place(here, findings, keys))
    if left := [labels for labels in where if labels not in told]:
        names = list(dict.fromkeys(label for labels in left for label in labels))
        who = " or ".join(map(_alone, names)) if len(names) <= MOST_LEFT else f"one of {len(names)} others"
        parts.append(f"{who} under {sum(len(where[labels]) for labels in left)} of {len(findings)} conditions")
    return parts


def _place(here: Sequence[Finding], findings: Sequence[Finding], keys: Sequence[str]) -> str:
    """Describe the conditions of some findings: as ranges of a number, by name, or by their count."""
    if len(findings) == 1:
        return ""
    if len(here) == len(findings):
        return f" under {'both' if len(findings) == 2 else f'all {len(findings)}'} conditions"
    if ranges := _ranges(here, findings, keys):
        return f" {ranges}"
    names = [said.condition for said in here]
    if len(findings) <= MOST_NAMED or len(names) <= 2:
        return f" for {_listed(names)}"
    return f" under {len(names)} of {len(findings)} conditions"


def _ranges(here: Sequence[Finding], findings: Sequence[Finding], keys: Sequence[str]) -> str:
    """Describe conditions as ranges of a number, by the other swept keys: `for lte from RTT 5 to 50 ms, for wifi at RTT 5 ms`.

    The text is empty if no number orders the conditions, or if there are more than `MOST_PLACES` ranges.
    """
    table = pd.DataFrame([{key: said.cases[key].iloc[0] for key in keys} for said in findings])
    along = _ordering_key(table)
    if along is None:
        return ""
    others = tuple(key for key in keys if key != along and table[along].duplicated().any())
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(table.to_dict("records")):
        groups.setdefault(condition({str(key): value for key, value in row.items()}, others), []).append(place)
    shown = shortened(table[along])
    mine = {id(said) for said in here}
    names_of: dict[str, list[str]] = {}  # by the ranges of a group
    for name, places in groups.items():
        places.sort(key=lambda place: float(table[along][place]))
        inside = [id(findings[place]) in mine for place in places]
        if any(inside):
            values = [number(shown[float(table[along][place])]) for place in places]
            names_of.setdefault(_steps(inside, values, along), []).append(name)
    parts = [
        " ".join([*([f"for {_groups(names, others)}"] if len(names) < len(groups) else []), *([text] if text else [])])
        for text, names in names_of.items()
    ]
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1] if len(parts) <= MOST_PLACES else ""


def _ordering_key(table: pd.DataFrame) -> str | None:
    """Return the key with the most values (three or more) that orders the conditions within each combination of the others, or None.

    Of keys with equally many values it is the last.
    """
    best = None
    for key in table.columns:
        others = [other for other in table.columns if other != key]
        if not pd.api.types.is_numeric_dtype(table[key]) or table[key].nunique() < 3 or table[key].isna().any():
            continue
        order = table.sort_values(key)
        together = not table[key].duplicated().any()  # all keys are zipped with this one, or it is the only one
        if together and all(_is_monotonic(order[other]) for other in others):
            return str(key)
        sizes = table.groupby(others, sort=False, dropna=False)[key].agg(["size", "nunique"]) if others else None
        if sizes is None or not (sizes["size"] == sizes["nunique"]).all() or (sizes["size"] < 3).any():
            continue
        if best is None or table[key].nunique() >= table[best].nunique():
            best = str(key)
    return best


def _is_monotonic(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and (column.is_monotonic_increasing or column.is_monotonic_decreasing)


def _steps(inside: Sequence[bool], values: Sequence[str], along: str) -> str:
    """Describe which steps are inside: `from RTT 5 to 50 ms and at RTT 200 ms`; empty if all are."""
    if all(inside):
        return ""
    name, unit = split_unit(along)
    parts = []
    for place, value in enumerate(values):
        if not inside[place] or (place and inside[place - 1]):
            continue
        end = next((last for last in range(place, len(values)) if not inside[last]), len(values)) - 1
        parts.append((f"at {name} {value}" if end == place else f"from {name} {value} to {values[end]}") + f" {unit}")
    return joined([part.rstrip() for part in parts])


def _groups(names: list[str], keys: Sequence[str]) -> str:
    """List the combinations of the other keys. For a single number, name and unit occur once: `uplink 5 and 20 Mbit/s`."""
    if len(keys) == 1:
        name, unit = split_unit(keys[0])
        before, after = f"{name} ", f" {unit}" if unit else ""
        if all(text.startswith(before) and text.endswith(after) for text in names):
            return f"{before}{joined([text.removeprefix(before).removesuffix(after) for text in names])}{after}"
    return _listed(names)


def _listed(names: list[str]) -> str:
    return "; ".join(names) if any(", " in name for name in names) else joined(names)


def _range(values: Sequence[float], written: Callable[[float], str]) -> str:
    """Format the range of some values, or a single value if both ends look the same."""
    low, high = (written(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
