"""The table of decoding methods: those of this repository and those that other installed packages register."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from simulator.core.errors import MethodError

if TYPE_CHECKING:
    from simulator.protocol.methods import MethodSettings

ENTRY_POINT_GROUP = "ciar_sim.methods"


@dataclass(frozen=True)
class MethodKind:
    """One decoding method: everything that the rest of the program knows about it.

    Attributes:
        settings: The class of its settings; `ciar-sim list methods` shows the first paragraph of its docstring.
        program: `module:Class` of its programs, called with (settings, pair). Text, because a scenario is checked without torch.
        revision: Part of every recording's key: raise it when a change of the programs alters their recordings.
        colour: Its colour in plots, as #rrggbb; None: chosen by its name.
        marker: Its marker in plots, one of matplotlib's filled markers; None: chosen by its name.
    """

    settings: "type[MethodSettings]"
    program: str
    revision: int = 1
    colour: str | None = None
    marker: str | None = None

    def revision_of(self, settings: "MethodSettings") -> int:
        """Return the revision in the key of a recording with these settings."""
        return self.revision + settings.revision_step

    def load_program(self) -> Any:
        """Return the class of its programs. Raises MethodError if it cannot be imported."""
        module, _, name = self.program.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MethodError(f"method program {self.program} cannot be loaded: {error}") from None


class MethodTable(Mapping[str, MethodKind]):
    """Methods by name: the given rows, then those of installed packages in the order of their names.

    A package registers a method by an entry point of the group `ciar_sim.methods`, whose name is the method's and whose object is
    a `MethodKind`. Entry points are loaded at the first look-up, so that such a package can import this one.
    """

    def __init__(self, own: Mapping[str, MethodKind]) -> None:
        self.own = dict(own)

    @cached_property
    def _rows(self) -> dict[str, MethodKind]:
        rows = dict(self.own)
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            if point.name in rows:
                raise MethodError(f"{_described(point)}: the name is taken; rename the entry point")
            rows[point.name] = _loaded(point)
        return rows

    def __getitem__(self, name: str) -> MethodKind:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _loaded(point: EntryPoint) -> MethodKind:
    try:
        found = point.load()
    except Exception as error:  # another package's code can raise anything
        raise MethodError(f"{_described(point)}: cannot be loaded: {type(error).__name__}: {error}") from None
    if not isinstance(found, MethodKind):
        raise MethodError(f"{_described(point)}: must be a MethodKind, got {type(found).__name__}")
    return found


def _described(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"method {point.name}{package} ({point.value})"
