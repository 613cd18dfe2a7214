"""JSON traces in every layout: they are read, or refused for their actual fault."""

import gzip
import json
from pathlib import Path

import pytest

from simulator.core.errors import TraceError
from simulator.traces.read import read, read_arrivals
from simulator.traces.summary import summary
from tests.simulator.traces.examples import LLMSERVINGSIM, SABRE, file

ROWS = [json.loads(line) for line in LLMSERVINGSIM.splitlines()]
WRITTEN = {
    "lines": LLMSERVINGSIM,
    "CRLF": LLMSERVINGSIM.replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + LLMSERVINGSIM,
    "empty lines": LLMSERVINGSIM.replace("\n", "\n\n"),
    "an array": json.dumps(ROWS),
    "an array over lines": json.dumps(ROWS, indent=2),
    "one after another": "".join(json.dumps(row) for row in ROWS),
    "one after another, over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "more keys": LLMSERVINGSIM.replace("{", '{"session": {"id": [1, {"x": null}]}, '),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_the_same_requests(case: str, tmp_path: Path) -> None:
    arrivals = read_arrivals(file(tmp_path, WRITTEN[case]))
    assert arrivals.requested_s.tolist() == pytest.approx([0.0, 0.3])
    assert arrivals.input_tokens is not None
    assert arrivals.input_tokens.tolist() == [10, 12]


UNKNOWN = {
    "lines": '{"when": 1, "who": "a"}\n{"when": 2, "who": "b"}\n',
    "an array": '[{"when": 1}, {"when": 2}]',
    "over lines": '{\n "when": 1\n}\n{\n "when": 2\n}\n',
    "then words": '{"when": 1}\nand so on\n',
    "an empty array": "[]",
    "an empty object": "{}",
    "numbers in an array": "[1, 2, 3]",
    "a log": "[2024-01-01 10:00:00] started\n[2024-01-01 10:00:01] ended\n",
    "Python": "{'timestamp': 1, 'input_length': 2}\n",
    "a template": "{% if x %}\n",
    "one key in common": '{"timestamp": 1}\n{"timestamp": 2}\n',
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_of_another_tool_is_not_called_damaged(case: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        read([file(tmp_path, UNKNOWN[case])])
    assert "is of no known trace format" in str(caught.value)
    assert "input_toks, arrival_time_ns (llmservingsim-jsonl)" in str(caught.value)
    assert "damaged" not in str(caught.value)


WRONG = {
    "cut off": (LLMSERVINGSIM[:-20], ":2: damaged or cut-off JSON"),
    "the first cut off": ('{"input_toks": 10, "arr', ":1: damaged or cut-off JSON"),
    "words after": (LLMSERVINGSIM + "the end\n", ":3: damaged or cut-off JSON"),
    "a number between": (LLMSERVINGSIM.replace("\n", "\n7\n", 1), ":2: a line must be a JSON object, got 7"),
    "a null in an array": (json.dumps([ROWS[0], None], indent=1), ":7: [1] must be a JSON object, got None"),
    "a missing key": (LLMSERVINGSIM + '{"input_toks": 1}\n', ":3: key arrival_time_ns: is missing; found: input_toks"),
    "in an array": (json.dumps([*ROWS, {}]), ":1: key [2].arrival_time_ns: is missing; found: nothing"),
    "negative": (LLMSERVINGSIM.replace("346", "-346"), ":2: key arrival_time_ns: must be 0 to 1e+20, got -346000000"),
    "NaN": (LLMSERVINGSIM.replace("346000000", "NaN"), ":2: key arrival_time_ns: must be 0 to 1e+20, got nan"),
    "infinite": (
        LLMSERVINGSIM.replace("346000000", "-Infinity"),
        ":2: key arrival_time_ns: must be 0 to 1e+20, got -inf",
    ),
    "huge": (LLMSERVINGSIM.replace("346000000", "9" * 6000), ":2: key arrival_time_ns: must be 0 to 1e+20, got inf"),
    "true": (LLMSERVINGSIM.replace("346000000", "true"), ":2: key arrival_time_ns: must be a number >= 0, got True"),
    "decreasing": (LLMSERVINGSIM.replace("346", "3"), ":2: arrival_time_ns goes back: 3000000 after 46000000"),
    "half a token": (LLMSERVINGSIM.replace("12", "12.5"), ":2: tokens must be a whole number, got 12.5"),
    "a key twice": (LLMSERVINGSIM.replace('"output_toks": 6', '"input_toks": 6'), ":2: key 'input_toks' occurs twice"),
    "two traces in one file": (SABRE + SABRE, "holds 2 JSON documents; allowed in this format: one"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "gzip": (gzip.compress(LLMSERVINGSIM.encode()), "is a gzip file; unpack it first"),
    "UTF-16": (LLMSERVINGSIM.encode("utf-16"), "is UTF-16 text"),
    "Latin-1": ('{"é": 1}'.encode("latin-1"), "is not text (UTF-8)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    with pytest.raises(TraceError) as caught:
        summary(read([file(tmp_path, content)]))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 3000
