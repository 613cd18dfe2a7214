"""Parser of JSON text: one document, an array, one document per line, or concatenated documents."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_BLANK = re.compile(r"[ \t\r\n]*")
_BEGINS = re.compile(r'\{\s*["}]|\[\s*[{\["\]]')  # other brackets open log lines and the like


# iperf3 repeats these keys in one object, once per socket.
_OF_EACH_SOCKET = frozenset(["sock_bufsize", "sndbuf_actual", "rcvbuf_actual", "tcp_mss", "tcp_mss_default"])


class _Twice(Exception):
    """A key occurs twice in one object, with two values."""


@dataclass
class Documents:
    """The documents of a text up to the first error.

    Attributes:
        found: (first line, value) of each document.
        error: (line, description) of the error after them; None if the whole text was read.
    """

    found: list[tuple[int, Any]] = field(default_factory=list)
    error: tuple[int, str] | None = None


def _integer(text: str) -> float:
    return int(text) if len(text) < 300 else float(text)  # int() refuses thousands of digits; float() gives infinity


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, value in pairs:
            if name not in _OF_EACH_SOCKET and value != values[name]:
                raise _Twice(name)
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def begins_like_json(text: str) -> bool:
    """Return whether the text begins like a JSON object, or like an array of objects, arrays or strings."""
    return _BEGINS.match(text.lstrip()) is not None


def documents(text: str) -> Documents:
    """Read documents until the end of the text or the first error."""
    result = Documents()
    place = _BLANK.match(text).end()  # type: ignore[union-attr]  # the pattern matches everywhere
    line = 1 + text.count("\n", 0, place)
    while place < len(text):
        try:
            value, end = _DECODER.raw_decode(text, place)
        except RecursionError:
            result.error = (line, "is JSON nested too deeply for any trace")
        except _Twice as twice:
            result.error = (line, f"key {str(twice)[:40]!r} occurs twice in one object, with two values")
        except json.JSONDecodeError as error:
            result.error = (line if result.found else error.lineno, f"damaged or cut-off JSON: {error.msg}")
        if result.error is not None:
            return result
        result.found.append((line, value))
        next_place = _BLANK.match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", place, next_place)
        place = next_place
    return result


def item_lines(text: str) -> list[int]:
    """Return the first line of each item of the JSON array that the text consists of."""
    lines: list[int] = []
    line = 1
    place = text.index("[") + 1
    line += text.count("\n", 0, place)
    while True:
        start = re.compile(r"[ \t\r\n,]*").match(text, place).end()  # type: ignore[union-attr]
        line += text.count("\n", place, start)
        if text[start] == "]":
            return lines
        lines.append(line)
        _, place = _DECODER.raw_decode(text, start)
        line += text.count("\n", start, place)
