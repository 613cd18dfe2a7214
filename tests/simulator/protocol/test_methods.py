"""The table of methods: its own rows, and rows registered by other packages."""

import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import MethodError
from simulator.protocol import registry
from simulator.protocol.methods import METHODS, BaseSettings, prefix_length
from simulator.protocol.registry import MethodKind, MethodTable

PLUGIN = """\
from simulator.protocol.methods import METHODS, BaseSettings
from simulator.protocol.registry import MethodKind

class Settings(BaseSettings):
    \"\"\"A method of another package.\"\"\"

class Program:
    def __init__(self, settings, pair):
        self.settings, self.pair = settings, pair

KIND = MethodKind(Settings, f"{__name__}:Program", revision=7)
NOT_A_KIND = Settings
"""


def table(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> MethodTable:
    """Return the table in an environment in which packages register these entry points (name, value)."""

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return MethodTable({"base": METHODS["base"]})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_method.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_method", raising=False)
    return "toy_method"


@pytest.mark.parametrize("name", METHODS.own)
def test_every_row_names_a_class_of_programs(name: str) -> None:
    module, _, attribute = METHODS[name].program.partition(":")
    assert isinstance(getattr(import_module(module), attribute), type)


def test_a_package_registers_a_method(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(monkeypatch, ("toy", f"{plugin}:KIND"))
    assert list(found) == ["base", "toy"]
    assert found["toy"].revision == 7
    made: Any = found["toy"].load_program()(found["toy"].settings(), "pair")
    assert (made.settings, made.pair) == (found["toy"].settings(), "pair")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base", "toy_method:KIND", "method base (toy_method:KIND): the name is taken; rename the entry point"),
        ("toy", "no_such_module:KIND", "method toy (no_such_module:KIND): cannot be loaded: ModuleNotFoundError"),
        ("toy", "toy_method:NOT_A_KIND", "method toy (toy_method:NOT_A_KIND): must be a MethodKind, got"),
    ],
)
def test_a_broken_registration_is_refused_by_name(
    plugin: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    with pytest.raises(MethodError) as caught:
        len(table(monkeypatch, (name, value)))
    assert str(caught.value).startswith(message)


def test_programs_that_cannot_be_imported_are_named() -> None:
    for program in ("no_such_module:Gsd", "simulator.protocol.methods:Nothing"):
        with pytest.raises(MethodError, match=f"method program {program} cannot be loaded"):
            MethodKind(BaseSettings, program).load_program()


@given(st.integers(0, 999), st.integers(1, 4096))
def test_prefix_length_is_exact_in_decimals(thousandths: int, tokens: int) -> None:
    assert prefix_length(thousandths / 1000, tokens) == thousandths * tokens // 1000


def test_prefix_length_where_floats_would_be_one_short() -> None:
    assert int(0.06 * 50) == 3 == prefix_length(0.06, 50)
    assert int(0.29 * 100) == 28
    assert prefix_length(0.29, 100) == 29
