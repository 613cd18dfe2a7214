"""Formatting of values, units, methods and conditions in tables, plots and sentences."""

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from simulator.core.errors import NOT_SIMULATED

# Suffix of a setting's name -> unit as displayed.
UNITS = {
    **{
        "ms": "ms",
        "us": "µs",
        "s": "s",
        "mbps": "Mbit/s",
        "pct": "%",
        "bytes": "B",
        "gb": "GB",
        "gb_s": "GB/s",
        "tokens": "tokens",
    },
    **{
        "tflops": "TFLOP/s",
        "j": "J",
        "w": "W",
        "km": "km",
        "kmh": "km/h",
        "db": "dB",
        "usd_per_gpu_hour": "USD per GPU hour",
    },
}
SPELLED = {word.lower(): word for word in ("RTT", "KV", "SNR", "SLO", "DRX", "SR", "GPU")}
NAMES = {
    "network.up_mbps": "uplink",
    "network.down_mbps": "downlink",
    "workload.arrivals.poisson_per_s": "Poisson arrivals",
    "workload.arrivals.bursty_per_s": "bursty arrivals",
}
# By key, see `simulator.experiment.axes.FORMS`.
KEYS_OF_SETTINGS = {"call_pct": "threshold", "prompts": "threshold", "top_p": "local"}
NAMED_KEYS = ("run", "network", "network.preset", "network.trace")  # their values are names that need no key


_NUMBER = r"\d+(?:\.\d+)?"


def own_setting(key: str) -> tuple[str, str] | None:
    """Return method (label or name) and setting of a swept key: "methods.ciar v1.2.threshold" -> ("ciar v1.2", "threshold").

    Of a key of a setting, the last part: "methods.ciar.threshold.call_pct" -> ("ciar", "call_pct").
    """
    front, _, setting = key.rpartition(".")
    if setting in KEYS_OF_SETTINGS:
        front = front.removesuffix(f".{KEYS_OF_SETTINGS[setting]}")
    return (front.removeprefix("methods."), setting) if front.startswith("methods.") else None


def split_unit(key: str) -> tuple[str, str]:
    """Return name and unit of a dotted path: "network.rtt_ms" -> ("RTT", "ms"), "cloud.replicas" -> ("cloud replicas", "")."""
    own = own_setting(key)  # the label of a method may contain dots
    words = [*own] if own else [word for word in key.split(".") if word not in ("network", "workload", "arrivals")]
    last = words[-1] if words else key
    suffix = max((one for one in UNITS if last.endswith(f"_{one}")), key=len, default="")
    name, unit = (last.removesuffix(f"_{suffix}"), UNITS[suffix]) if suffix else (last, "")
    if "_per_" in last and "_per_" not in suffix:
        name, _, unit = last.partition("_per_")
        unit = f"per {unit}"
    if own and last == "call_pct":
        name = "cloud calls"
    text = NAMES.get(key) or " ".join([*words[:-1], name]).replace("_", " ")
    return " ".join(SPELLED.get(word, word) for word in text.split()), unit


def axis_label(key: str) -> str:
    """Return the axis label of a swept key: "RTT (ms)"."""
    name, unit = split_unit(key)
    return f"{name} ({unit})" if unit else name


def number(value: Any) -> str:
    """Format a swept value: 0.5, 20, lte."""
    return f"{value:.12g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def rejoined(text: str, known: Collection[str]) -> list[str]:
    """Split a text at commas, but not within known names that contain commas."""
    parts = text.split(",")
    found, start = [], 0
    while start < len(parts):
        whole = (",".join(parts[start:end]).strip() for end in range(len(parts), start, -1))
        name = next((one for one in whole if one in known), parts[start].strip())
        found.append(name)
        start += 1 + name.count(",")
    return [name for name in found if name]


def shortened(values: Iterable[float]) -> dict[float, float]:
    """Return the displayed value of each value. Whole numbers are unchanged.

    If any value has more than four significant digits, all are rounded to three digits, or to as many as keep the values distinct. Values
    of ranges and random points have six.
    """
    distinct = {value for value in map(float, values) if math.isfinite(value)}
    broken = {value for value in distinct if value != round(value)}
    if not any(len(f"{abs(value):.12g}".replace(".", "").lstrip("0")) > 4 for value in broken):
        return {value: value for value in distinct}
    for digits in range(3, 17):
        shown = {value: float(f"{value:.{max(digits, len(str(int(abs(value)))))}g}") for value in broken}
        if len({*shown.values(), *(distinct - broken)}) == len(distinct):
            return {value: shown.get(value, value) for value in distinct}
    return {value: value for value in distinct}


def significant(value: float, digits: int = 3) -> str:
    """Format a value with the given number of significant digits, without an exponent unless it is very small or large. NaN is a dash."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits - 1}e}"
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.999 has one less
    return f"{value:.{decimals}f}" if decimals <= digits + 3 else f"{value:.{digits - 1}e}"


def clipped(text: str, width: int = 36) -> str:
    """Shorten the text to at most `width` characters, with an ellipsis.

    Labels differ at their ends. Therefore names of settings, not their values, are shortened first, and then the middle is removed.
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    for most in range(12, 0, -1):
        shorter = re.sub(rf"(?<= )([^\W\d]\w{{{most - 1}}})\w{{2,}}(?==)", r"\1…", text)
        if len(shorter) <= width:
            return shorter
    head = (width - 1) * 3 // 5
    return f"{text[:head].rstrip()}…{text[len(text) - (width - 1 - head) :].lstrip()}"


def wrapped(text: str, width: int) -> str:
    """Wrap the text into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))


def unbroken(text: str) -> str:
    """Put non-breaking spaces before units, so that "30 %" and "81 ms" are not split between lines."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|Mbit/s|per s)(?![\w/]))|(?<=×) (?=base)", "\u00a0", text)


def times(gain: float) -> str:
    """Format a speed-up with two digits, or with three if two would show 1.0 although it is not 1."""
    text = significant(gain, 2)
    return significant(gain, 3) if text == "1.0" and gain != 1 else text


def grouped(warnings: Sequence[str], most: int = 3) -> list[str]:
    """Merge warnings "CASE: text" with the same text: the number of cases, the first few, and the range of the number that varies.

    Warnings about cases that could not be simulated are merged as in `failures`.

    Args:
        warnings: As in provenance.json.
        most: Number of cases named per text.
    """
    failed = [text for text in warnings if text.startswith(NOT_SIMULATED)]
    alike: dict[str, list[tuple[str, str]]] = {}
    for text in warnings:
        if text in failed:
            alike.setdefault(NOT_SIMULATED, [])
            continue
        case, colon, rest = text.partition(": ")
        alike.setdefault(re.sub(_NUMBER, "#", rest) if colon else text, []).append((case, rest))
    lines = []
    for key, group in alike.items():
        if key == NOT_SIMULATED:
            messages = [text.removeprefix(NOT_SIMULATED) for text in failed]
            lines += [NOT_SIMULATED + text for text in failures(messages, most)]
            continue
        said = _ranges([rest for _, rest in group])
        named_apart = len({case for case, _ in group}) == len(group)
        if len(group) <= most or said is None or not named_apart:
            lines += [f"{case}: {rest}" if rest else case for case, rest in group]
            continue
        named = ", ".join(case for case, _ in group[:most])
        lines.append(f"{len(group)} cases ({named} and {len(group) - most} more): {said}")
    return lines


def failures(messages: Sequence[str], most: int = 3) -> list[str]:
    """Merge messages "CASE: reason" with the same reason, except for numbers, into "CASE; CASE; CASE and 2 more: reason".

    A number that varies is given as a range. If several vary, the reason is that of the first case, and says so.

    Args:
        messages: One per case that could not be simulated.
        most: Number of cases named per reason.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for text in messages:
        place = _end_of_case(text)
        case, reason = (text[:place], text[place + 2 :]) if place else ("", text)
        alike.setdefault(re.sub(_NUMBER, "#", reason), []).append((case, reason))
    lines = []
    for group in alike.values():
        said = _ranges([reason for _, reason in group]) or f"{group[0][1]} (figures of the first)"
        names = list(dict.fromkeys(case for case, _ in group))
        named = "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        lines.append(f"{named}: {said}" if named else said)
    return lines


def _end_of_case(text: str) -> int:
    """Return the place of the first ": " outside brackets, which swept values may have; 0 without one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in ")}]")
        if depth <= 0 and text.startswith(": ", place):
            return place
    return 0


def _ranges(texts: Sequence[str]) -> str | None:
    """Return the text of all, which differ in numbers only, with the range of the number that varies; None if several vary."""
    numbers = list(zip(*(re.findall(_NUMBER, text) for text in texts), strict=True))
    if sum(len(set(found)) > 1 for found in numbers) > 1:
        return None
    parts = re.split(_NUMBER, texts[0])
    said = [
        "{} to {}".format(*sorted({*found}, key=float)[:: len({*found}) - 1]) if len({*found}) > 1 else found[0]
        for found in numbers
    ]
    return parts[0] + "".join(text + part for text, part in zip(said, parts[1:], strict=True))


def joined(names: list[str]) -> str:
    """Join names as "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def apart_note(keys: Sequence[str], key: str, line: bool) -> str:
    """Return a sentence about other swept keys in which the points along a key differ; empty without any. line: they are joined."""
    if not keys:
        return ""
    names = joined([split_unit(other)[0] for other in keys])
    if line:
        return sentence(f"{names} {'changes' if len(keys) == 1 else 'change'} with {split_unit(key)[0]}.")
    return f"The points differ in {names} too, so they are not joined."


def sentence(text: str) -> str:
    """Capitalise the first letter of a text."""
    return text[:1].upper() + text[1:]


def absent(value: Any) -> bool:
    """Return whether a cell of a swept column is empty because the axis does not apply to the method."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def label(row: dict[str, Any], swept: tuple[str, ...]) -> str:
    """Return the method with its own swept settings, unless its label contains them: "ciar threshold=0.5"."""
    text = str(row["method"])
    for key in swept:
        own = own_setting(key)
        if own and own[0] in (row["method"], row["method_name"]) and not absent(row[key]):
            setting = f"{own[1]}={number(row[key])}"
            text += "" if setting in text.split() else f" {setting}"
    return text


def condition(row: dict[str, Any], swept: tuple[str, ...]) -> str:
    """Describe the swept values that are not settings of methods: "wifi", "RTT 20 ms", "lte, cloud replicas 4"."""
    parts = []
    for key in swept:
        if key.startswith("methods.") or absent(row[key]):
            continue
        if key in NAMED_KEYS:
            parts.append(str(row[key]))
        else:
            name, unit = split_unit(key)
            parts.append(f"{name} {number(row[key])} {unit}".strip())
    return ", ".join(parts)
