"""Strict YAML: plain data with the line of every part, so that an error can name its place.

Plain scalars are read by the YAML 1.2 core schema: `1e-3` is a number, `on` and `yes` are text, dates are text. Refused:
whole numbers with a leading zero, duplicate keys, tags, several documents, keys that are not text, merge keys. Aliases are allowed.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simulator.core.errors import ScenarioError, reason
from simulator.core.files import read_file

Place = tuple[str | int, ...]  # keys and list indices from the top

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"[-+]?0+[1-9][0-9]*")  # octal in YAML 1.1, decimal in YAML 1.2
_RADIX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

_BEYOND_UNICODE = re.compile(
    r"(?<!\\)(?:\\\\)*(\\U(?!0010|000)[0-9a-fA-F]{8})"
)  # escapes that make PyYAML fail with a traceback
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # not allowed in file names or UTF-8 text
_MAX_DEPTH = 40
_MAX_NODES = 200_000  # with aliases expanded
_MAX_DIGITS = 300
MOST_BYTES = 2**26
_SHIPPED_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes:
        name: Name of the file in messages.
        data: Dicts, lists and scalars.
        lines: Place -> line (from 1) of its key or list item.
    """

    name: str
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """Return `file:line` of a place, or of the nearest enclosing part that is in the file."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return f"{self.name}:{self.lines[place[:end]]}"
        return f"{self.name}:1"

    def line(self, place: Place) -> int:
        """Return the largest line among those of a place and its enclosing parts; 0 if the file contains none of them."""
        return max((self.lines[place[:end]] for end in range(len(place) + 1) if place[:end] in self.lines), default=0)


def read(path: str | os.PathLike[str], shipped: bool = False) -> Document:
    """Read the only document of a file.

    Args:
        path: The file.
        shipped: Whether it is part of the program. Such files are read with libyaml if available, which is ten times as fast but has other
            error messages and accepts other input.

    Raises:
        ScenarioError: The file cannot be read or is not strict YAML.
    """
    name = os.fspath(path)
    try:
        text = read_file(Path(name), MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ScenarioError(f"{name}: cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{name}: is not UTF-8 text (byte {error.start}: {error.reason})") from None
    return parse(text, name, shipped)


def parse(text: str, name: str, shipped: bool = False) -> Document:
    """Read the only document of a text. name: its name in messages. Raises ScenarioError if it is not strict YAML."""
    if escape := _BEYOND_UNICODE.search(text):
        line = text.count("\n", 0, escape.start()) + 1
        raise ScenarioError(f"{name}:{line}: is not YAML: {escape[1]} is not a character; U+10FFFF is the last")
    try:
        return _Reader(text, name, _SHIPPED_LOADER if shipped else yaml.SafeLoader).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(part for part in (error.problem, error.context) if part)
        raise ScenarioError(f"{name}:{line}: is not YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise ScenarioError(f"{name}:{line}: is not YAML: character {character} is not allowed") from None


def scalar(text: str) -> Any:
    """Return the value of a plain scalar by the YAML 1.2 core schema: None, bool, int, float or the text itself."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        return int(text) if len(text) <= _MAX_DIGITS else text
    if _RADIX.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float("nan") if _NAN.fullmatch(text) else text


def dump(data: Any) -> str:
    """Write plain data as block YAML that `parse` reads back unchanged; keys keep their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def did_you_mean(found: object, allowed: Iterable[str]) -> str:
    """Return `; did you mean X? allowed: A, B` for a message about an unknown name; the comparison ignores case."""
    names = list(allowed)
    if not names:
        return "; allowed: none"
    near = difflib.get_close_matches(str(found).lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    hint = f"; did you mean {next(name for name in names if name.lower() == near[0])}?" if near else ";"
    return f"{hint} allowed: {', '.join(names)}"


class _Reader:
    """Builds data and lines from PyYAML's parse events, which preserve how scalars were written."""

    def __init__(self, text: str, name: str, loader: Any) -> None:
        self.name = name
        self.events: Iterator[Any] = yaml.parse(text, Loader=loader)
        self.lines: dict[Place, int] = {}
        self.anchors: dict[str, tuple[Any, dict[Place, int]] | None] = {}  # None: still being read
        self.nodes = 0

    def fail(self, event: Any, message: str) -> ScenarioError:
        return ScenarioError(f"{self.name}:{event.start_mark.line + 1}: {message}")

    def document(self) -> Document:
        data: Any = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self.fail(event, "holds a second document (---); one file is one document")
                seen = True
                data = self.node(next(self.events), ())
        return Document(self.name, data, self.lines)

    def node(self, event: Any, place: Place) -> Any:
        self.nodes += 1
        if len(place) > _MAX_DEPTH or self.nodes > _MAX_NODES:
            limits = f"{_MAX_DEPTH} levels, {_MAX_NODES} entries"
            raise self.fail(event, f"is nested too deep or too large (limits: {limits})")
        self.lines.setdefault(place, event.start_mark.line + 1)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, place)
        if event.tag is not None:
            raise self.fail(event, f"tag {_written(event.tag)} is not allowed; write plain values without tags")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        data: Any
        if isinstance(event, yaml.ScalarEvent):
            self.check(event)
            # The style of a plain scalar is None, or "" from libyaml.
            data = event.value if event.style else self.plain(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            data = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                data.append(self.node(item, (*place, len(data))))
        else:
            data = {}
            while not isinstance(item := next(self.events), yaml.MappingEndEvent):
                key = self.key(item, data)
                self.lines[(*place, key)] = item.start_mark.line + 1
                data[key] = self.node(next(self.events), (*place, key))
        if event.anchor is not None:
            below = {at[len(place) :]: line for at, line in self.lines.items() if at[: len(place)] == place}
            self.anchors[event.anchor] = (data, below)
        return data

    def check(self, event: Any) -> None:
        if unusable := _UNUSABLE.search(event.value):
            raise self.fail(event, f"character U+{ord(unusable[0]):04X} is not allowed")

    def plain(self, event: Any) -> Any:
        value = scalar(event.value)
        if isinstance(value, str) and _INT.fullmatch(value):
            raise self.fail(event, f"a number of {len(value)} digits is too long (at most {_MAX_DIGITS})")
        if _OCTAL.fullmatch(event.value):
            raise self.fail(
                event,
                f"{event.value} is octal to some readers of YAML and decimal to others; write {value}, or quotes for text",
            )
        return value

    def key(self, event: Any, siblings: dict[str, Any]) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            raise self.fail(event, "a key must be plain text, found a list, a mapping, an alias or a tag")
        self.check(event)
        if not event.style:
            if not isinstance(scalar(event.value), str):
                raise self.fail(event, f"a key must be text, got {event.value or 'nothing'}; put it in quotes")
            if event.value == "<<":
                raise self.fail(event, "merge keys (<<) are not allowed; write the keys out")
        key = str(event.value)
        if key in siblings:
            raise self.fail(event, f"key {key} is given twice in the same mapping")
        return key

    def alias(self, event: Any, place: Place) -> Any:
        if event.anchor not in self.anchors:
            raise self.fail(event, f"alias *{event.anchor} names no anchor")
        found = self.anchors[event.anchor]
        if found is None:
            raise self.fail(event, f"alias *{event.anchor} stands inside its own anchor")
        data, below = found
        self.nodes += len(below)
        if self.nodes > _MAX_NODES:
            raise self.fail(event, f"is too large once its aliases are followed (limit: {_MAX_NODES} entries)")
        for at, line in below.items():
            self.lines.setdefault((*place, *at), line)
        return data


def _written(tag: str) -> str:
    prefix = "tag:yaml.org,2002:"
    return f"!!{tag[len(prefix) :]}" if tag.startswith(prefix) else tag


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read back as another type, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(text), str) and text != "<<" else "'"
    if not text.isprintable():
        style = '"'  # the only style with escapes
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
