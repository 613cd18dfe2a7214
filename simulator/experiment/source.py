"""Says where a part of a scenario is written, for messages."""

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
        options: Place -> the option that wrote it.
        context: What validators are told and tell: "folder", the scenario's own; "caption_places", the places of captions in their file.
    """

    document: Document
    options: dict[Place, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """`file:line` of a part of the scenario, or the option that put it there."""
        written: dict[Place, str] = self.context.get("caption_places", {})
        if place in written:
            return written[place]
        for end in range(len(place), -1, -1):
            if place[:end] in self.options:
                return self.options[place[:end]]
            if place[:end] in self.document.lines:
                return f"{self.document.name}:{self.document.lines[place[:end]]}"
        return self.document.where(())

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors inside that are about a part of the scenario say where it is written."""
        try:
            yield
        except CiarSimError as error:
            if not error.place:
                raise
            raise type(error)(f"{self.where(error.place)}: {error}") from None

    def fail(self, place: Place, message: str) -> ScenarioError:
        """The error that a part of the scenario is wrong."""
        return ScenarioError(f"{self.where(place)}: {subject(place)}{message}")
