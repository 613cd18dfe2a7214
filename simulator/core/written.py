"""Values of Python programs as a YAML file would hold them."""

import os
from collections.abc import Mapping
from typing import Any

from simulator.core.errors import ScenarioError
from simulator.core.problems import dotted
from simulator.core.yamlfile import Place

_DEEPEST = 100  # deeper than any file; a value that contains itself never ends


def as_written(value: Any, name: str, place: Place = ()) -> Any:
    """Return a value as plain data: mappings as dicts, tuples and arrays as lists, numbers of numpy and torch as Python's, paths as text.

    Args:
        value: The value.
        name: What it belongs to, named in errors.
        place: Keys and list indices from there to the value, named as well.

    Raises:
        ScenarioError: A part is of another type; the message gives its place.
    """
    where = f"{name}: {dotted(place)}" if place else name
    if hasattr(value, "tolist"):
        value = value.tolist()
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, such as an enumeration's
    if value is None or isinstance(value, str):
        return value and str.__str__(value)
    if isinstance(value, os.PathLike):
        return as_written(os.fspath(value), name, place)
    if isinstance(value, list | tuple | Mapping) and len(place) > _DEEPEST:
        raise ScenarioError(f"{name}: is nested deeper than {_DEEPEST} levels")
    if isinstance(value, list | tuple):
        return [as_written(item, name, (*place, index)) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ScenarioError(f"{where}: a key must be text, got {key!r:.60}")
        return {str.__str__(key): as_written(item, name, (*place, key)) for key, item in value.items()}
    raise ScenarioError(
        f"{where} is of type {type(value).__name__}; allowed: mappings, lists, text, paths, numbers, booleans, None"
    )
