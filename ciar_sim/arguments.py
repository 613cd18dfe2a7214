"""Arguments of the Python API as options of the program: refused as these are, in one `CiarSimError` that names the argument, or written
as these are.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from simulator.core.errors import CiarSimError

LONGEST_NAME = 4096  # characters; Linux's PATH_MAX


def unusable(text: str) -> str:
    """What makes a text unusable as a name or a value, empty for nothing."""
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
) -> None:
    """Raises CiarSimError where a value is no finite number in the range. over: the least is not in it."""
    kind: type = Integral if whole else Real
    if isinstance(value, kind) and type(value) is not bool:
        number: Any = value
        if (least < number if over else least <= number) and number <= most and math.isfinite(number):
            return
    ends = f"above {least:g}" if over else f"from {least:g}"
    ends += f" to {most:g}" if math.isfinite(most) else " on"
    raise CiarSimError(f"{name}: must be a {'whole ' if whole else ''}number {ends}, got {_shown(value)}")


def check_place(name: str, value: Any, what: str = "a path") -> None:
    """Raises CiarSimError where a value is no path that a file system can hold."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise CiarSimError(f"{name}: must be {what}, got {_shown(value)}")
    if problem := unusable(text):
        raise CiarSimError(f"{name} {text[:60]!a}: {problem}")


def check_scenario(value: Any) -> None:
    """Raises CiarSimError where a value is neither a scenario as a mapping, nor the name of a file or of a shipped one."""
    if isinstance(value, Mapping):
        return
    check_place("scenario", value, "a file, the name of a shipped scenario, or a mapping")
    if isinstance(value, str) and "\n" in value:
        raise CiarSimError(
            "scenario: holds several lines, and is not the name of a file; YAML text becomes a mapping with yaml.safe_load"
        )


def check_mapping(name: str, value: Any, form: str) -> None:
    """Raises CiarSimError where a value is no mapping whose keys are texts. form: what it looks like."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise CiarSimError(f"{name}: must be a mapping like {form}, got {_shown(value)}")


def check_text(name: str, value: Any, form: str) -> None:
    """Raises CiarSimError where a value is no text. form: what it looks like."""
    if not isinstance(value, str):
        raise CiarSimError(f"{name}: must be text like {form}, got {_shown(value)}")


def check_means(
    cache: Any = None, torch_device: Any = "auto", max_batch: Any = 64, jobs: Any = None, progress: Any = None
) -> None:
    """Raises CiarSimError where one of these cannot be used."""
    if cache is not None:
        check_place("cache", cache)
    check_text("torch_device", torch_device, "auto, cpu, cuda or cuda:1")
    check_number("max_batch", max_batch, 1, whole=True)
    if jobs is not None:
        check_number("jobs", jobs, 1, whole=True)
    if progress is not None and not callable(progress):
        raise CiarSimError(f"progress: must be a function of a stage, what is done and its total, got {progress!r:.60}")


def options_of_sets(sets: Mapping[str, Any] | None) -> list[str]:
    """Values of keys as those of the option --set: `path=YAML`."""
    check_mapping("sets", {} if sets is None else sets, '{"cloud.replicas": 2}')
    return [f"{path}={_yaml(value, path)}" for path, value in (sets or {}).items()]


def options_of_axes(axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None) -> list[str]:
    """Values of swept keys as those of the option --axis."""
    check_mapping("axes", {} if axes is None else axes, '{"network.rtt_ms": [5, 50]}')
    return [f"{path}={_values(values, path)}" for path, values in (axes or {}).items()]


def _yaml(value: Any, path: str) -> str:
    """A value in YAML's flow form, as the options of the command line are read. Numbers of numpy are numbers."""

    def plain(other: Any) -> Any:
        if hasattr(other, "tolist"):
            return other.tolist()
        raise TypeError(type(other).__name__)

    try:
        return json.dumps(value, default=plain)
    except (TypeError, ValueError):
        found = type(value).__name__
        raise CiarSimError(
            f"{path}: a value of type {found}; allowed: numbers, text, booleans, None, lists, mappings"
        ) from None


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
