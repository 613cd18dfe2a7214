"""Where every part of a scenario was written: a line of its file, or an option of the command line."""

from dataclasses import dataclass, field
from typing import Any

from simulator.core.errors import ScenarioError
from simulator.core.problems import subject
from simulator.core.yamlfile import Document, Place

# --- loading


@dataclass
class _Source:
    """Where every part of a scenario was written: a line of the file, or an option of the command line."""

    document: Document
    options: dict[Place, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        for end in range(len(place), -1, -1):
            if place[:end] in self.options:
                return self.options[place[:end]]
            if place[:end] in self.document.lines:
                return f"{self.document.name}:{self.document.lines[place[:end]]}"
        return self.document.where(())

    def fail(self, place: Place, message: str) -> ScenarioError:
        return ScenarioError(f"{self.where(place)}: {subject(place)}{message}")
