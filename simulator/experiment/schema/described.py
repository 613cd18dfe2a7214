"""Descriptions of keys for editors, from the docstrings of sections."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from simulator.core.settings import Settings
from simulator.experiment.schema.sweep import Sweep

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def describe(schema: dict[str, Any]) -> None:
    """Add descriptions to the keys of a JSON Schema that have none, from the docstring of their class or its base classes.

    The description of a class is its docstring before `Attributes:`.
    """
    sections: list[type[BaseModel]] = [Sweep, *_subclasses(Settings)]
    classes = {one.__name__: one for one in sections}
    for name, section in {schema["title"]: schema, **schema["$defs"]}.items():
        if name not in classes:
            continue
        told: dict[str, str] = {}
        for one in reversed(classes[name].__mro__):
            told |= attributes(one)
        for field, info in classes[name].model_fields.items():
            entry = section["properties"].get(info.alias or field)
            if entry is not None and field in told:
                entry.setdefault("description", told[field])
        if "description" in section:
            section["description"] = section["description"].partition("\n\nAttributes:")[0]


def attributes(of: type) -> dict[str, str]:
    """Return the entries of the section `Attributes:` of a class's own docstring, each as one line."""
    text = inspect.cleandoc(of.__doc__ or "").partition("Attributes:\n")[2]
    return {name: " ".join(said.split()) for name, said in _ATTRIBUTE.findall(text)}


def _subclasses(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in of.__subclasses__():
        yield one
        yield from _subclasses(one)
