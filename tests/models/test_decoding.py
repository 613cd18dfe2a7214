"""The decoding benchmark: its plain loops and the recorder decode the same tokens, and it prints their times."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import decoding

SMALL = ["--layers", "1", "--width", "64", "--codes", "64", "--grid", "3", "--batch", "2", "--rounds", "1", "--json"]


def test_the_loops_and_the_recorder_decode_the_same_tokens() -> None:
    result = CliRunner().invoke(decoding.main, SMALL)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert set(found["seconds_per_image"]) == {"reference", "plain", "batch 1", "batch 2"}
    assert found["tokens"] == 9
    assert all(ratio > 0 for ratio in found["ratios"].values())


def test_loops_that_part_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.Loop, "image", lambda self, caption, sampled=True: [0] * 9)
    result = CliRunner().invoke(decoding.main, SMALL)
    assert result.exit_code == 1
    assert "do not decode the same greedy tokens" in result.output
