"""Strict YAML: types of scalars, line numbers, and refused documents with their lines."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.pricing import catalogue
from simulator.traces import gaps


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("0x1F", 31),
        ("0o17", 15),
        ("00", 0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("inf", "inf"),
        ("1e", "1e"),
        ("0b1", "0b1"),
        ("tRue", "tRue"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'017'", "017"),
        ("01.5", 1.5),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    found = yamlfile.parse(f"key: {text}", "t").data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "decimal"), [("017", 17), ("-010", -10), ("+08", 8), ("00123", 123)])
def test_a_whole_number_with_a_leading_zero_is_refused(text: str, decimal: int) -> None:
    message = f"t:2: {text} is octal to some readers of YAML and decimal to others; write {decimal}, or quotes for text"
    with pytest.raises(ScenarioError) as caught:
        yamlfile.parse(f"key:\n  - {text}", "t")
    assert str(caught.value) == message


def test_nan_is_a_number() -> None:
    assert math.isnan(yamlfile.parse("key: .nan", "t").data["key"])


def test_every_place_has_the_line_of_its_key_or_item() -> None:
    document = yamlfile.parse("# comment\na: 1\nb:\n  - x\n  - c:\n      5.0\nd: {e: 1,\n    f: 2}\n", "t.yaml")
    assert document.data == {"a": 1, "b": ["x", {"c": 5.0}], "d": {"e": 1, "f": 2}}
    assert {
        place: document.lines[place] for place in (("a",), ("b",), ("b", 0), ("b", 1, "c"), ("d", "e"), ("d", "f"))
    } == {
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1, "c"): 5,
        ("d", "e"): 7,
        ("d", "f"): 8,
    }
    assert document.where(("b", 1, "c")) == "t.yaml:5"
    assert document.where(("b", 1, "nothing", "below")) == "t.yaml:5"  # the nearest enclosing part
    assert yamlfile.parse("", "t.yaml").where(("a",)) == "t.yaml:1"


def test_an_alias_repeats_what_its_anchor_holds() -> None:
    document = yamlfile.parse("a: &x {b: [1, 2]}\nc: *x\n", "t")
    assert document.data["c"] == {"b": [1, 2]}
    assert document.lines[("c",)] == 2
    assert document.lines[("c", "b", 1)] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "t:3: key a is given twice in the same mapping"),
        ("a: {b: 1, 'b': 2}\n", "t:1: key b is given twice in the same mapping"),
        (
            "a: 1\nb: !!python/object:os.system 1\n",
            "t:2: tag !!python/object:os.system is not allowed; write plain values without tags",
        ),
        ("a: !foo [1]\n", "t:1: tag !foo is not allowed; write plain values without tags"),
        ("a: !!str 1\n", "t:1: tag !!str is not allowed; write plain values without tags"),
        ("a: 1\n---\nb: 2\n", "t:2: holds a second document (---); one file is one document"),
        ("a: 1\n5: 2\n", "t:2: a key must be text, got 5; put it in quotes"),
        ("true: 2\n", "t:1: a key must be text, got true; put it in quotes"),
        ("? \n: 2\n", "t:1: a key must be text, got nothing; put it in quotes"),
        ("? [a, b]\n: 1\n", "t:1: a key must be plain text, found a list, a mapping, an alias or a tag"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "t:3: merge keys (<<) are not allowed; write the keys out"),
        ("a: *x\n", "t:1: alias *x names no anchor"),
        ("a: &x [*x]\n", "t:1: alias *x stands inside its own anchor"),
        ("a: \x01\n", "t:1: is not YAML: character U+0001 is not allowed"),
        (
            "a:\n\t- 1\n",
            "t:2: is not YAML: found character '\\t' that cannot start any token while scanning for the next token",
        ),
        ("a: " + "9" * 400, "t:1: a number of 400 digits is too long (at most 300)"),
    ],
)
def test_what_is_not_strict_yaml_is_refused_at_its_line(text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        yamlfile.parse(text, "t")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["a: [1\n", "a: 1\n b: 2\n", "a: 'x\n", "a: b: c\n", "%YAML 1.1", "{", "a: @x"])
def test_what_does_not_parse_is_one_line_with_a_place(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"^t:\d+: is not YAML: ") as caught:
        yamlfile.parse(text, "t")
    assert "\n" not in str(caught.value)


def test_depth_and_the_growth_of_aliases_are_limited() -> None:
    with pytest.raises(ScenarioError, match="too deep or too large"):
        yamlfile.parse("a: " + "[" * 60 + "]" * 60, "t")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 8)
    )
    with pytest.raises(ScenarioError, match="too large once its aliases are followed"):
        yamlfile.parse(bomb, "t")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no\.yaml: cannot be read: No such file or directory"):
        yamlfile.read(tmp_path / "no.yaml")
    with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
        yamlfile.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ScenarioError, match="is not UTF-8 text"):
        yamlfile.read(tmp_path / "latin.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert yamlfile.read(tmp_path / "bom.yaml").data == {"a": 1}


def test_unknown_names_get_the_nearest_one() -> None:
    assert yamlfile.did_you_mean("rtt_s", ["rtt_ms", "up_mbps"]) == "; did you mean rtt_ms? allowed: rtt_ms, up_mbps"
    assert yamlfile.did_you_mean("zzz", ["rtt_ms"]) == "; allowed: rtt_ms"
    assert yamlfile.did_you_mean("zzz", []) == "; allowed: none"


LETTERS = st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])  # files may not contain the others
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(LETTERS, max_size=12)
)
KEYS = st.text(LETTERS, min_size=1, max_size=6)


@given(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
    )
)
def test_what_is_dumped_reads_back_the_same(data: object) -> None:
    assert yamlfile.parse(yamlfile.dump({"data": data}), "t").data == {"data": data}


@pytest.mark.parametrize("file", [*sorted(catalogue.FOLDER.glob("*.yaml")), gaps.FILE], ids=lambda file: file.name)
def test_libyaml_reads_the_shipped_files_as_pyyaml_does(file: Path) -> None:
    """Data and lines are equal, and shipped files pass the strict checks for users' files."""
    assert yamlfile.read(file, shipped=True) == yamlfile.read(file)
