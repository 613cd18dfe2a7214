"""Damaged files of every format are read, or refused in one line. Seeds make every run try the same files."""

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.traces.read import read
from simulator.traces.summary import summary
from tests.simulator.traces.examples import ARRIVALS, NETWORK, assert_refused, call, file

CELLS = [
    *("", "0", "-1", "-0.0", "1e308", "1e9", "1e19", "0.001", "9" * 14, "9" * 400, "9" * 5000, "nan", "inf", "null"),
    *("true", "2024-02-30", "\u0661", "\u2028", "\u00b2", "x" * 200_000, "0x10", "1_0", "{}", "[]", "//"),
    *'-",[]{}#:\t\x0c\ud7ff',
]
LINES = ["\n", "0\n", "0 0\n", "x,y,z\n", "{}\n", "[1]\n", "null\n", '"\n', "#\n", ",,,,,,\n"]
# Changes of the whole file as bytes.
WHOLE: list[Callable[[bytes], bytes]] = [
    lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    lambda data: data.replace(b"\n", b"\r"),
    lambda data: data.replace(b"\n", b" "),
    lambda data: data + data,
    lambda data: data * 3,
    lambda data: b"[" + data + b"]",
    lambda data: b"[" + data.strip().replace(b"}\n{", b"},{") + b"]",
    lambda data: data.replace(b"\n", b",\n"),
    gzip.compress,
    lambda data: data.decode(errors="replace").encode("utf-16"),
    lambda data: data + b"\x00",
    lambda data: data[::-1],
    lambda data: data.replace(b".", b","),
    lambda data: b"\n".join(data.split(b"\n")[1:]),
    lambda data: data.split(b"\n")[0],
    lambda data: b"",
]


def damaged(random_: random.Random, text: str) -> bytes:
    """Return the file with pieces of text or lines lost, doubled, reversed or replaced, or with another encoding or line ends."""
    for _ in range(random_.randint(1, 3)):
        by_line = random_.random() < 0.4
        parts = text.splitlines(keepends=True) if by_line else re.split(r"(\W)", text)
        start = random_.randint(0, max(len(parts) - 1, 0))
        end = random_.randint(start, min(len(parts), start + 5))
        old = parts[start:end]
        new = random_.choice(
            [[], old * 2, old[::-1], [random_.choice(LINES)]] if by_line else [[random_.choice(CELLS)]]
        )
        text = "".join([*parts[:start], *new, *parts[end:]])
    if random_.random() < 0.1:
        text = text[: random_.randint(0, len(text))]
    data = text.encode()
    return random_.choice(WHOLE)(data) if random_.random() < 0.3 else data


SEEDS_PER_FORMAT = 16
CASES = {**NETWORK, **ARRIVALS}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_read_or_refused(case: str, tmp_path: Path) -> None:
    """A file that is read can be written, read again and shown."""
    out = tmp_path / "again.csv"
    for seed in range(SEEDS_PER_FORMAT):
        path = file(tmp_path, damaged(random.Random(f"{case} {seed}"), str(CASES[case][0])), "damaged")
        out.unlink(missing_ok=True)
        result = call("import", path, "--out", out)
        if result.exit_code:
            assert_refused(result, str(path))
            assert len(result.stderr) < 3500
            assert not out.exists()
        else:
            shown = call("show", out, "--json")
            assert shown.exit_code == 0, shown.output
            expected = summary(read([path]))["duration_s"]
            assert json.loads(shown.stdout)["duration_s"] == pytest.approx(expected, rel=1e-6)
