"""Caption files: what splits lines, what is refused, and where an error says a caption is."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ciar_sim.cli.main import main
from simulator.core.errors import PromptError, ScenarioError
from simulator.experiment.loading import load_with_source
from simulator.experiment.plan import Plan
from simulator.experiment.schema.prompts import PromptList
from simulator.experiment.sweep import expand
from simulator.protocol.pairs import pair_manifest

COMPUTE = "compute: {device: {model: pair, hardware: snapdragon-8-gen-3}, cloud: {model: pair, hardware: a100}}\n"
SCENARIO = "name: s\nmethods: [base]\nprompts: {file: captions.txt}\n"


def captions(folder: Path, data: bytes) -> tuple[str, ...]:
    (folder / "captions.txt").write_bytes(data)
    (folder / "s.yaml").write_text(SCENARIO)
    prompts = load_with_source(folder / "s.yaml").scenario.prompts
    assert isinstance(prompts, PromptList)
    return prompts.captions


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        captions(folder, text.encode())
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e"])
def test_only_newlines_split_captions(tmp_path: Path, separator: str) -> None:
    assert captions(tmp_path, f"a red{separator}star\n".encode()) == (f"a red{separator}star",)


@given(st.lists(st.text(st.sampled_from("ab \u2028\x85"), min_size=1).map(lambda t: f"x{t}x"), unique=True, min_size=1))
def test_as_many_captions_as_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("captions")
    assert captions(folder, "\r\n".join(lines).encode()) == tuple(lines)


def test_a_caption_twice_is_named_by_file_and_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a star\n\na cube\na star\n")
    assert message.startswith("s.yaml:3: prompts.file holds a caption twice: captions.txt:4 equals line 1;")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("caption\na star\n", "captions.txt:1 is the header row of a table"),
        ("id,caption\n1,a star\n", "captions.txt:1 is the header row of a table"),
        ("image_id\tPrompt\tsplit\n", "captions.txt:1 is the header row of a table"),
        ('"a star"\n', "captions.txt:1 is in quotes"),
        ("a cube\n'a star'\n", "captions.txt:2 is in quotes"),
        ('["a star", "a cube"]\n', "captions.txt:1 is JSON"),
        ('{"caption": "a star"}\n{"caption": "a cube"}\n', "captions.txt:1 is JSON"),
        ('[\n  "a star",\n  "a cube"\n]\n', "captions.txt:1 is part of a JSON document"),
        ("a star\0\n", "captions.txt:1 holds the character U+0000"),
    ],
)
def test_what_is_no_list_of_captions_is_refused(tmp_path: Path, text: str, found: str) -> None:
    assert f"prompts.file is not a list of captions, one a line: {found}" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["a text, on a wall\n", "[photo] a star\n", 'a sign that says "go"\n', "the prompt player\n"]
)
def test_captions_that_look_a_little_like_something_else_are_taken(tmp_path: Path, text: str) -> None:
    assert captions(tmp_path, text.encode()) == (text.strip(),)


def test_a_caption_that_the_pair_refuses_is_named_by_file_and_line(tmp_path: Path, tiny_pair_folder: Path) -> None:
    (tmp_path / "captions.txt").write_text("a small red star\n\na small crimson star\n")
    (tmp_path / "s.yaml").write_text(f"{SCENARIO}pair: {tiny_pair_folder}\n{COMPUTE}")
    result = CliRunner().invoke(
        main, ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), "--cache", str(tmp_path / "c"), "--quiet"]
    )
    assert result.exit_code == 2
    assert f"Error: {tmp_path}/captions.txt:3: unknown word 'crimson'" in result.output
    assert not (tmp_path / "o").exists()


def test_a_refused_caption_of_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmethods: [base]\nprompts:\n  list:\n    - a star\n    - a cube\n")
    loaded = load_with_source(path)
    cases = expand(loaded.scenario)
    plan = Plan(cases, pair_manifest("scenes"), lambda seed, count: [])

    class Refuses:
        def recordings(self, specs: object) -> list[object]:
            error = PromptError("unknown word")
            error.prompt = "a cube"
            raise error

    with pytest.raises(PromptError) as caught:
        plan.record(Refuses())  # type: ignore[arg-type]
    assert loaded.source.where(caught.value.place) == f"{path}:6"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('prompts: {file: "a\\0b"}', "character U+0000 is not allowed"),
        ('pair: "\\ud800"', "character U+D800 is not allowed"),
        ('pair: "\\U00110000"', "\\U00110000 is no character; U+10FFFF is the last"),
        (f"pair: {'a' * 300}", "pair is no usable path"),
        ("pair: loop/x", "pair is no usable path"),
        (f"prompts: {{file: {'a' * 300}}}", "prompts.file is no usable path"),
        ("prompts: {file: loop}", "prompts.file is no usable path"),
        ("prompts: {file: s.yaml/x}", "prompts.file cannot be read"),
        ("prompts: {file: .}", "prompts.file cannot be read"),
        ("compute: {device: {model: pair, profile: loop}, cloud: {model: pair}}", "is no usable path"),
        (f"seed: {2**64}", "seed must be <= "),
    ],
)
def test_unusable_paths_and_numbers_are_one_line(tmp_path: Path, line: str, found: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nmethods: [base]\n{line}\n")
    with pytest.raises(ScenarioError) as caught:
        load_with_source(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)
