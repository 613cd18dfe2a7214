"""The text of an error fits a few lines of a terminal and is printable, whatever the input contains."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import CiarSimError, ScenarioError, first_line, reason
from simulator.experiment.loading import load_scenario


@given(st.text(max_size=40).map(lambda text: text * 200) | st.lists(st.text(max_size=9)).map("\n".join))
def test_any_text_is_cut_and_printable(text: str) -> None:
    shown = str(CiarSimError(text))
    assert len(shown) <= 1200
    assert shown.count("\n") < 3
    assert all(one == "\n" or one.isprintable() for one in shown)


def test_place_and_allowed_values_of_a_long_line_stay() -> None:
    shown = str(CiarSimError(f"file.yaml:3: methods: unknown key {'word ' * 1000}; allowed: threshold, prefix_rate"))
    assert shown.startswith("file.yaml:3: methods")
    assert shown.endswith("allowed: threshold, prefix_rate")


def test_a_path_stays_whole() -> None:
    path = "/" + "/".join(["p" * 250] * 4)
    assert path in str(CiarSimError(f"{path}: damaged"))


def test_a_key_as_long_as_a_page_is_one_short_error(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(f"name: long\nmethods: [base, {{name: ciar, {'a' * 1000}: 1}}]\n")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert len(str(caught.value)) < 800
    assert f"{path}:2" in str(caught.value)
    assert "threshold" in str(caught.value)


def test_an_error_without_text_is_told_by_its_type() -> None:
    """An error without text has no first line; its type is shown instead."""
    assert [first_line(error) for error in (RuntimeError(), ValueError("a\nb"), OSError("\nb"))] == [
        "RuntimeError",
        "a",
        "OSError",
    ]
    assert [reason(error) for error in (OSError(2, "no such file"), ValueError("why"))] == ["no such file", "why"]
