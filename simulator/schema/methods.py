"""`methods:` of a scenario: each entry a method's name, its label and its settings."""

import operator
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, GetCoreSchemaHandler, Tag, create_model
from pydantic_core import CoreSchema

from simulator.methods import METHODS, Settings, refuse
from simulator.schema.base import Part, found_text, written
from simulator.yamlfile import did_you_mean

LABEL = r"^([^\x00-\x20\x7f][^\x00-\x1f\x7f]*)?$"  # printable, and not blank at its start


class MethodEntry(Part):
    """One method of a scenario under its label. Its settings are fields of the same mapping: a subclass per method."""

    name: str
    label: str = Field(default="", max_length=80, pattern=LABEL)

    @property
    def settings(self) -> Settings:
        """The method's settings alone."""
        return METHODS[self.name].model_validate(self.model_dump(exclude={"name", "label"}))


def _entry_class(name: str, settings: type[Settings]) -> type[MethodEntry]:
    title = "".join(word.capitalize() for word in name.split("-"))
    bases: Any = (settings, MethodEntry)
    literal: Any = Literal[name]
    entry: type[MethodEntry] = create_model(
        f"{title}Entry",
        __base__=bases,
        __doc__=settings.__doc__,
        name=(literal, name),
        label=(str, Field(default="", max_length=80, pattern=LABEL, description="name in tables; unique")),
    )
    return entry


ENTRIES: dict[str, type[MethodEntry]] = {name: _entry_class(name, settings) for name, settings in METHODS.items()}


def _entry(data: Any) -> Any:
    """A method's name alone, or a mapping with `name`; checked against that method's settings."""
    if isinstance(data, str):
        data = {"name": data}
    if isinstance(data, MethodEntry):
        return data
    if not isinstance(data, dict):
        refuse(f"must be the name of a method or a mapping with a name, got {found_text(data)}")
    else:
        if "name" not in data:
            refuse(f"must have a name; allowed: {', '.join(METHODS)}")
        name = data["name"]
        if not isinstance(name, str) or name not in METHODS:
            hint = did_you_mean(name, METHODS) if isinstance(name, str) else f"; allowed: {', '.join(METHODS)}"
            refuse(f"is not a known method, got {found_text(name)}{hint}", "name")
        fields = ENTRIES[name].model_fields
        for key in data:
            if key not in fields:
                takes = ", ".join(key for key in fields if key not in ("name", "label")) or "no settings"
                refuse(f"is not a setting of {name}{did_you_mean(key, fields)}; {name} takes {takes}", key)
    return data


class AnyEntry:
    """Validates and serialises a `MethodEntry` as the subclass of its method."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        tagged = tuple(Annotated[entry, Tag(f"<{name}>")] for name, entry in ENTRIES.items())
        choose = Discriminator(lambda data: f"<{data['name'] if isinstance(data, dict) else getattr(data, 'name', '')}>")
        return handler.generate_schema(Annotated[reduce(operator.or_, tagged), choose, BeforeValidator(_entry)])


def labelled_entries(methods: tuple[MethodEntry, ...]) -> tuple[MethodEntry, ...]:
    """Fills in labels: the name, with the settings that were given where a method stands more than once."""
    names = [entry.name for entry in methods]
    labelled: list[MethodEntry] = []
    for index, entry in enumerate(methods):
        label = entry.label
        if not label:
            given = [key for key in METHODS[entry.name].model_fields if key in entry.model_fields_set]
            extra = "".join(f" {key}={written(getattr(entry, key))}" for key in given) if names.count(entry.name) > 1 else ""
            label = entry.name + extra
        if any(label == other.label for other in labelled):
            refuse(f"label {label} stands twice; give each method its own label", index)
        labelled.append(entry.model_copy(update={"label": label}))
    return tuple(labelled)
