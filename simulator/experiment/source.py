"""Locations of the parts of a scenario in its file, for messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from simulator.core.errors import CiarSimError, ScenarioError
from simulator.core.problems import subject
from simulator.core.yamlfile import Document, Place


@dataclass
class ScenarioSource:
    """The file and the command-line options that a scenario was read from.

    Attributes:
        document: The file.
        options: The option that set the value at a place.
        context: Validation context: "folder", that of the scenario; "caption_places", set by validators: lines of captions in their file.
    """

    document: Document
    options: dict[Place, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """Return `file:line` of a part of the scenario, or the option that set it."""
        written: dict[Place, str] = self.context.get("caption_places", {})
        if place in written:
            return written[place]
        for end in range(len(place), -1, -1):
            if place[:end] in self.options:
                return self.options[place[:end]]
            # An option for a part around it replaced it.
            replaced = any(place[:before] in self.options for before in range(end))
            if place[:end] in self.document.lines and not replaced:
                return f"{self.document.name}:{self.document.lines[place[:end]]}"
        return self.document.where(())

    @contextmanager
    def located(self) -> Iterator[None]:
        """Prefix errors raised inside that have a place in the scenario with its location."""
        try:
            yield
        except CiarSimError as error:
            if not error.place:
                raise
            raise type(error)(f"{self.where(error.place)}: {error}") from None

    def fail(self, place: Place, message: str) -> ScenarioError:
        """Return the error for a wrong part of the scenario."""
        return ScenarioError(f"{self.where(place)}: {subject(place)}{message}")
