"""A small share of the fuzzer's inputs; `python -m tests.fuzz --count 10000` tries many more."""

from pathlib import Path

import pytest

from tests.fuzz.run import failures, world
from tests.fuzz.targets import TARGETS, World


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    return world(folder)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_damaged_input_ends_in_a_result_or_in_one_clear_error(kind: str, around: World) -> None:
    count = 3 if kind == "run" else max(5, 3 * TARGETS[kind][1])
    wrong = {f"{kind}:{number}": text for kind, number, text in failures(around, count, 1, kind) if text is not None}
    assert not wrong, "\n".join(f"{name}\n{text}" for name, text in wrong.items())
