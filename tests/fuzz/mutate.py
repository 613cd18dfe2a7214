"""Mutations of structured values, texts and bytes, drawn from a `random.Random`."""

import copy
import random
from collections.abc import Callable
from typing import Any

# Values that people and programs write where something else is expected.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    "",
    " ",
    "abc",
    "\x00",
    "\ud800",
    "\u2028",
    "\U0001f600" * 3,
    "a" * 5000,
    "../..",
    "~nobody/x",
    "/",
    ".",
    "-1",
    "1e400",
    "nan",
    "[red]",
    "{}",
    [],
    {},
    [[]],
    [None],
    {"": 0},
    {"name": None},
    {1: 2},
    0,
    -1,
    1,
    2,
    3.5,
    -0.0,
    1e-300,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**60,
)
LINES = ("", "nan", "1e400", "-1", "\x00", "a,b,c", '{"', "[]", "\u2028", "9" * 400, "\ufeff0", "# note", ",,,,", "\t")

Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> list[Place]:
    """Return the path of every item of a nested value, containers included."""
    found = [at]
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*at, index))
    return found


def structure(value: Any, rng: random.Random) -> Any:
    """Return a copy of a nested value with one to three structural changes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.choice([place for place in places(value) if place] or [()])
        if not at:
            return rng.choice(STRANGE)
        holder = _get(value, at[:-1])
        rng.choice(_CHANGES)(holder, at[-1], value, rng)
    return value


def _get(value: Any, at: Place) -> Any:
    for key in at:
        value = value[key]
    return value


def _replace(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    holder[key] = copy.deepcopy(rng.choice(STRANGE))


def _scale(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * rng.choice((-1, 0, 0.5, 10, 1e6, 1e-6)) + rng.choice((0, 0, 1, -1))
    else:
        _replace(holder, key, _, rng)


def _delete(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    if isinstance(holder, dict):
        name = str(key)
        holder[rng.choice((name + "s", name[:-1], name.upper(), name.replace("_", "-"), "", 7))] = holder.pop(key)
    else:
        holder.insert(key, copy.deepcopy(holder[key]))


def _swap(holder: Any, key: Any, whole: Any, rng: random.Random) -> None:
    other = rng.choice([place for place in places(whole) if place])
    holder[key] = copy.deepcopy(_get(whole, other))


def _wrap(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    holder[key] = rng.choice((lambda x: [x], lambda x: {"x": x}, lambda x: str(x), lambda x: [x, x]))(holder[key])


def _add(holder: Any, key: Any, _: Any, rng: random.Random) -> None:
    value = copy.deepcopy(rng.choice(STRANGE))
    if isinstance(holder, dict):
        holder[rng.choice(("extra", "name", "seed", "list", "file", "trace", ""))] = value
    else:
        holder.append(value)


_CHANGES: tuple[Callable[[Any, Any, Any, random.Random], None], ...] = (
    _replace,
    _replace,
    _scale,
    _scale,
    _delete,
    _rename,
    _swap,
    _wrap,
    _add,
)


def text(content: str, rng: random.Random) -> str:
    """Return a copy of a text with one to three changes of its lines or tokens."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = content.split("\n")
        at = rng.randrange(len(lines))
        match rng.randrange(9):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, rng.choice(LINES))
            case 2:
                lines[at] = rng.choice(LINES)
            case 3:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 4:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case 5:
                parts = lines[at].split(",")
                parts[rng.randrange(len(parts))] = str(rng.choice(STRANGE))
                lines[at] = ",".join(parts)
            case 6:
                lines[at] = lines[at].replace(
                    rng.choice("0123456789.,:{}[]- "), rng.choice(("", "9", "-", ",", "\t", "e"))
                )
            case 7:
                del lines[at:]
            case _:
                lines = [line + "\r" for line in lines]
        content = "\n".join(lines)
    return content


def raw(content: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of bytes: truncated, with flipped bits, with a part replaced, repeated or deleted, or other content."""
    if not content:
        return rng.randbytes(rng.randrange(40))
    data = bytearray(content)
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            del data[at:]
        case 1:
            for _ in range(rng.choice((1, 4, 32))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[at : at + 16] = rng.randbytes(rng.randrange(32))
        case 3:
            data[at:at] = data[at : at + 64]
        case 4:
            data = bytearray(
                rng.choice((b"", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"\xff\xfe\x00", b"null", b"[" * 20_000))
            )
        case _:
            del data[at : at + rng.randrange(1, 64)]
    return bytes(data)
