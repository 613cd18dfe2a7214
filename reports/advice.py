"""The sentences that a report begins with: what to use, where, and what it gains."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from reports.findings import Finding, is_base
from reports.load import Run
from reports.words import condition, joined, number, shortened, significant, split_unit, times
from simulator.core.errors import counted

MOST_NAMED = 6  # conditions, each by its name
MOST_ANSWERS = 4  # of a run with more conditions than these
MOST_PLACES = 3  # of one answer
MOST_IN_A_SENTENCE = 2  # answers; more are listed


def condition_keys(run: Run) -> tuple[str, ...]:
    """Swept keys that make the conditions."""
    return tuple(
        key for key in run.swept if not key.startswith("methods.") and run.summary[key].nunique(dropna=False) > 1
    )


def advice(findings: Sequence[Finding], keys: Sequence[str] = ()) -> str:
    """What to use, and how much it gains: of the methods that keep base's image quality the fastest; without quality, the fastest.

    One sentence; or, where there are many answers, lines, those of the answers begin with `- `.

    keys: Those that make the conditions; where they order them by a number, conditions with the same answer are written as ranges.
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
    """What is faster than the advised methods, and why it is not advised; and what the advice rests on. keys: As in `advice`."""
    texts = []
    if faster := [(said.faster, said) for said in findings if said.faster]:
        where = _sentence(_by_condition(faster, findings, keys))
        texts.append(f"Faster, with images that differ significantly from base's: {where}.")
    advised = [row for said in findings for _, row in said.cases.iterrows() if row["label"] in said.at_base_quality]
    prompts = [int(row["distinct_images"]) for row in advised if not is_base(row)]
    if prompts:
        texts.append(
            f"Quality: cloud_nll on {counted(min(prompts), 'prompt')}; ciar-sim recommend tests a bound on the loss."
        )
    return " ".join(texts)


def _alone_in_its_run(ran: Sequence[Finding]) -> str:
    """What a run of one method says: its latency."""
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
    """(labels, finding) of each as words: who is named where, and how much faster than base it is. An answer for each who."""
    where: dict[tuple[str, ...], list[Finding]] = {}
    for labels, said in named:
        where.setdefault(labels, []).append(said)
    told = list(where)
    if len(findings) > MOST_NAMED and len(where) > 2:
        ranked = sorted(where, key=lambda labels: -len(where[labels]))
        left = [labels for place, labels in enumerate(ranked) if place >= MOST_ANSWERS or len(where[labels]) == 1]
        if len(left) > 1:  # one alone is named in no more words than it is counted in
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
    if others := sum(len(where[labels]) for labels in where if labels not in told):
        parts.append(f"others under {others} of {len(findings)} conditions")
    return parts


def _place(here: Sequence[Finding], findings: Sequence[Finding], keys: Sequence[str]) -> str:
    """The conditions of some findings in words: as ranges of a number, by their names, or how many they are."""
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
    """Conditions as ranges of a number by what else is swept: `for lte from RTT 5 to 50 ms, for wifi at RTT 5 ms`.

    Empty where no number orders the conditions, or it takes more than a few ranges to say.
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
    """The key with the most values, of three or more, that orders the conditions within each choice of the others; of two the last."""
    best = None
    for key in table.columns:
        others = [other for other in table.columns if other != key]
        if not pd.api.types.is_numeric_dtype(table[key]) or table[key].nunique() < 3 or table[key].isna().any():
            continue
        order = table.sort_values(key)
        together = not table[key].duplicated().any()  # all keys move with this one, or it is the only one
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
    """`from RTT 5 to 50 ms and at RTT 200 ms`, of steps that are inside or not; empty where all are."""
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
    """Choices of the other keys; of one number, such as `uplink 5 and 20 Mbit/s`, name and unit stand once."""
    if len(keys) == 1:
        name, unit = split_unit(keys[0])
        before, after = f"{name} ", f" {unit}" if unit else ""
        if all(text.startswith(before) and text.endswith(after) for text in names):
            return f"{before}{joined([text.removeprefix(before).removesuffix(after) for text in names])}{after}"
    return _listed(names)


def _listed(names: list[str]) -> str:
    return "; ".join(names) if any(", " in name for name in names) else joined(names)


def _range(values: Sequence[float], written: Callable[[float], str]) -> str:
    """The least and the greatest of some values, or the one that both are."""
    low, high = (written(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
