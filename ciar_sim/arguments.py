"""Checks of arguments of the Python API, with errors like those of the options of the program, and conversion to such options."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from simulator.core.errors import CiarSimError

if TYPE_CHECKING:
    from simulator.experiment.options import Choice

LONGEST_NAME = 4096  # characters; Linux's PATH_MAX


def unusable(text: str) -> str:
    """Return why a text cannot be used as a name or value; empty if it can."""
    if len(text) > LONGEST_NAME:
        return f"has {len(text)} characters; allowed: {LONGEST_NAME}"
    if "\0" in text:
        return "holds a NUL character, which no name or value may"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return "holds a character (a lone surrogate) that no name or value may"
    return ""


def check_number(
    name: str, value: Any, least: float, most: float = math.inf, *, whole: bool = False, over: bool = False
) -> Any:
    """Return a number as a Python number, since NumPy's cannot be written as JSON. over: the range excludes `least`.

    Raises:
        CiarSimError: The value is not a finite number in the range.
    """
    kind: type = Integral if whole else Real
    if isinstance(value, kind) and type(value) is not bool:
        number: Any = value
        if (least < number if over else least <= number) and number <= most and math.isfinite(number):
            return int(number) if isinstance(value, Integral) else float(number)
    ends = f"above {least:g}" if over else f"from {least:g}"
    ends += f" to {most:g}" if math.isfinite(most) else " on"
    raise CiarSimError(f"{name}: must be a {'whole ' if whole else ''}number {ends}, got {_shown(value)}")


def check_place(name: str, value: Any, what: str = "a path") -> None:
    """Raise CiarSimError if a value is not a possible path."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise CiarSimError(f"{name}: must be {what}, got {_shown(value)}")
    if problem := unusable(text):
        raise CiarSimError(f"{name} {text[:60]!a}: {problem}")


def check_scenario(value: Any) -> None:
    """Raise CiarSimError if a value is neither a mapping nor a possible name of a file or shipped scenario."""
    if isinstance(value, Mapping):
        return
    check_place("scenario", value, "a file, the name of a shipped scenario, or a mapping")
    if isinstance(value, str) and "\n" in value:
        raise CiarSimError(
            "scenario: holds several lines, and is not the name of a file; YAML text becomes a mapping with yaml.safe_load"
        )


def check_mapping(name: str, value: Any, form: str) -> None:
    """Raise CiarSimError if a value is not a mapping with texts as keys. form: an example, for the message."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise CiarSimError(f"{name}: must be a mapping like {form}, got {_shown(value)}")


def check_text(name: str, value: Any, form: str) -> None:
    """Raise CiarSimError if a value is not a text. form: examples, for the message."""
    if not isinstance(value, str):
        raise CiarSimError(f"{name}: must be text like {form}, got {_shown(value)}")


def check_texts(name: str, value: Any) -> list[str]:
    """Return one text or several as a list. Raises CiarSimError where the value is neither."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise CiarSimError(f"{name}: must be a text or a list of texts, got {_shown(value)}")
    return list(listed)


def check_resources(
    cache: Any = None, torch_device: Any = "auto", max_batch: Any = 64, jobs: Any = None, progress: Any = None
) -> dict[str, Any]:
    """Return the numbers among these arguments by name, as Python numbers. Raises CiarSimError if an argument cannot be used."""
    if cache is not None:
        check_place("cache", cache)
    check_text("torch_device", torch_device, "auto, cpu, cuda or cuda:1")
    numbers = {"max_batch": check_number("max_batch", max_batch, 1, whole=True)}
    if jobs is not None:
        numbers["jobs"] = check_number("jobs", jobs, 1, whole=True)
    if progress is not None and not callable(progress):
        raise CiarSimError(f"progress: must be a function of a stage, what is done and its total, got {progress!r:.60}")
    return numbers


def choice_of(zips: Any, random: Any, tune: Any) -> "Choice":
    """Return the choice of points of the axes for the arguments of these names.

    Raises:
        CiarSimError: zips are not groups of paths, random is not a whole number, or tune is neither a whole number nor a text.
    """
    from simulator.experiment.options import Choice

    groups = [] if zips is None else zips
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        groups = [groups]
    for group in groups:
        if (
            isinstance(group, str)
            or not isinstance(group, Sequence)
            or not all(isinstance(path, str) for path in group)
        ):
            form = '[["network.up_mbps", "network.down_mbps"]]'
            raise CiarSimError(f"zips: must be groups of paths like {form}, got {_shown(zips)}")
    if random is not None:
        random = check_number("random", random, 1, whole=True)
    if tune is not None and not isinstance(tune, str):
        tune = check_number("tune", tune, 1, whole=True)
    return Choice([",".join(group) for group in groups], random, None if tune is None else str(tune))


def options_of_sets(sets: Mapping[str, Any] | None) -> list[str]:
    """Convert values by path to values of the option --set: `path=YAML`."""
    check_mapping("sets", {} if sets is None else sets, '{"cloud.replicas": 2}')
    return [f"{path}={_yaml(value, path)}" for path, value in (sets or {}).items()]


def options_of_axes(axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None) -> list[str]:
    """Convert axes by path to values of the option --axis."""
    check_mapping("axes", {} if axes is None else axes, '{"network.rtt_ms": [5, 50]}')
    return [f"{path}={_values(values, path)}" for path, values in (axes or {}).items()]


def _yaml(value: Any, path: str) -> str:
    """Format a value as YAML in flow style, which command-line options use."""
    from simulator.core.written import as_written

    return _flow(as_written(value, path))


def _flow(value: Any) -> str:
    """Format plain data as JSON, with YAML's infinities, NaN and escapes of characters."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    # JSON escapes a character beyond U+FFFF as a surrogate pair, which YAML does not join.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _values(values: Sequence[Any] | Mapping[str, Any], path: str) -> str:
    if isinstance(values, str):
        raise CiarSimError(f"{path}: axes take a list of values, or a range, got the text {values!r}")
    if isinstance(values, Mapping):
        return _yaml(dict(values), path)
    try:
        listed = list(values)
    except TypeError:
        raise CiarSimError(f"{path}: axes take a list of values, or a range, got {values!r:.60}") from None
    return _yaml(listed, path)[1:-1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"
