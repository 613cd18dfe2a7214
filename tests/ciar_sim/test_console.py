import math
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciar_sim.cli.console import chosen_columns, summary_lines
from reports.words import significant
from simulator.core.errors import CiarSimError

NUMBERS = (
    "latency_mean_s",
    "latency_p95_s",
    "speedup",
    "cloud_call_pct",
    "bytes_up",
    "bytes_down",
    "cloud_nll",
    "align_scenes",
)


def summary(labels: list[str], conditions: list[str], value: float = 1234.56) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "case": i,
            "method": label,
            "method_name": "ciar",
            "network.preset": condition,
            "images": 1000,
            **dict.fromkeys(NUMBERS, value),
        }
        for i, (label, condition) in enumerate(zip(labels, conditions, strict=True))
    ]
    return pd.DataFrame(rows)


def words(text: str) -> str:
    return re.sub(r"\s", "", text)


names = st.text(
    st.characters(codec="ascii", exclude_characters="\n\r\t", categories=["L", "N", "P"]), min_size=1, max_size=70
)


@given(names, names, st.floats(-1e12, 1e12) | st.just(math.nan), st.integers(40, 160))
def test_nothing_is_cut_at_any_width(label: str, condition: str, value: float, width: int) -> None:
    text = summary_lines(summary([label], [condition], value), width=width)
    assert "…" not in text.replace(label, "").replace(condition, "")
    shown = significant(value, 2) if 0 < abs(value) < 0.1 else f"{value:.2f}"
    assert math.isnan(value) or shown in text  # the latency, however narrow
    assert "1000" in text or width < 150
    body = [line for line in text.splitlines()[1:] if not line.startswith("Not shown")]
    for whole in (label, condition):  # it may be wrapped: its letters appear in order
        letters = iter(words("".join(body)))
        assert all(letter in letters for letter in words(whole))


def test_small_numbers_keep_two_digits_and_counts_are_whole() -> None:
    text = summary_lines(summary(["ciar"], ["wifi"], 0.034).assign(images=6), width=200)
    assert "0.034" in text
    assert re.search(r" 6 ", text)


def test_a_label_is_printed_as_it_stands_and_counts_have_no_digits() -> None:
    text = summary_lines(summary([r"[bold]x\ \\"], ["wifi"]).assign(images=1234), ("images", "speedup"), 100)
    assert r"[bold]x\ \\ " in text
    assert " 1,234 " in text


def test_eighty_columns_hold_fewer_numbers_and_name_the_others() -> None:
    label = "ciar threshold=0.3 prefix_rate=0.06"
    text = summary_lines(summary([label] * 2, ["wifi", "5g-sub6"]), width=80)
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines[:3])
    assert [label in line for line in lines[:3]] == [False, True, True]
    assert lines[1].split()[-1] == "1234.56"
    assert "latency (s)" in summary_lines(summary([label], ["wifi"]), width=40).splitlines()[0]
    left_out = lines[-1].removeprefix("Not shown: ").partition(".")[0].split(", ")
    shown = re.split(r"\s{2,}", lines[0].strip())
    assert [*shown[2:], *left_out] == [
        *("latency (s)", "p95 (s)", "speed-up (× base)", "cloud calls (%)"),
        *("cloud_nll (nats per token)", "align_scenes (%)", "images", "up (kB)", "down (kB)"),
    ]
    assert "Not shown" not in summary_lines(summary([label], ["wifi"]), width=200)


def test_columns_are_those_asked_for_in_as_many_tables_as_it_takes() -> None:
    text = summary_lines(summary(["ciar"], ["wifi"], 0.123456), NUMBERS, width=50)
    for name in NUMBERS:
        assert len(re.findall(rf"\b{name}\b", text)) == 1
    assert text.count("0.1235") == len(NUMBERS)
    assert text.count("ciar") == text.count("\n\n") + 1 > 1
    assert max(map(len, text.splitlines())) <= 50


def test_unknown_columns_are_refused() -> None:
    assert chosen_columns(None) is None
    assert chosen_columns("speedup, latency_p99_s") == ("speedup", "latency_p99_s")
    assert "cloud_nll_hi" in (chosen_columns("all") or ())
    with pytest.raises(
        CiarSimError,
        match=r"--columns 'latency_p9_s': allowed: all, or columns of summary.csv; did you mean latency_p9",
    ):
        chosen_columns("speedup,latency_p9_s")
