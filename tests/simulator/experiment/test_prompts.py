"""Caption files: line breaks, formats, refused files, and the place that an error gives for a caption."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ciar_sim.cli.main import main
from simulator.core.errors import PromptError, ScenarioError
from simulator.core.prompt_files import read_prompts
from simulator.experiment.assumptions import repeated_captions
from simulator.experiment.loading import load_scenario, load_with_source
from simulator.experiment.plan import Plan, session_specs
from simulator.experiment.schema.prompts import PromptList
from simulator.experiment.sweep import expand
from simulator.protocol.methods import METHODS, Decoding
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


def test_a_line_without_a_visible_character_is_blank(tmp_path: Path) -> None:
    assert captions(tmp_path, "\u200b\na star\n\u2060 \u3000\n".encode()) == ("a star",)
    with pytest.raises(ScenarioError, match=r"prompts\.list\[1\] must be a caption on one line"):
        load_scenario({"name": "s", "methods": ["base"], "prompts": {"list": ["a star", "\u200b"]}})


@given(st.lists(st.text(st.sampled_from("ab \u2028\x85"), min_size=1).map(lambda t: f"x{t}x"), unique=True, min_size=1))
def test_as_many_captions_as_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("captions")
    assert captions(folder, "\r\n".join(lines).encode()) == tuple(lines)


FORMS = {
    "plain": "a star\n\n a cube, red\na star\n",
    "quoted lines": '"a star"\n"a cube, red"\n"a star"\n',
    "one column": 'Prompt\na star\n"a cube, red"\na star\n',
    "one column, commas without quotes": "Prompt\na star\na cube, red\na star\n",
    "csv": 'id,caption\n1,a star\n2,"a cube, red"\n3,a star\n',
    "tsv": "Prompt\tCategory\tNote\na star\tx\t\na cube, red\ty\t1\na star\tz\n",
    "semicolons": "text;id\na star;1\na cube, red;2\na star;3\n",
    "excel's first line": 'sep=;\r\nPrompt;Note\r\na star;x\r\n"a cube, red";\r\na star;\r\n',
    "markdown": "| id | prompt |\n|---|:--|\n| 1 | a star |\n| 2 | a cube, red |\n| 3 | a star |\n",
    "json": '[\n "a star",\n "a cube, red",\n "a star"\n]',
    "json of mappings": '[{"caption": "a star"}, {"caption": "a cube, red"}, {"caption": "a star"}]',
    "json lines": '{"tag": 1, "prompt": "a star"}\n{"prompt": "a cube, red"}\n\n{"prompt": "a star"}\n',
    "coco": '{"info": {}, "images": [], "annotations": [{"id": 3, "caption": "a star"}, {"id": 1, "caption": "a cube, red\\n"}, '
    '{"id": 2, "caption": "a star"}]}',
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_by_its_content(tmp_path: Path, form: str) -> None:
    for start in ("", "\ufeff"):
        assert captions(tmp_path, (start + FORMS[form]).encode()) == ("a star", "a cube, red", "a star")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    assert captions(tmp_path, FORMS["tsv"].encode(encoding)) == ("a star", "a cube, red", "a star")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"PAR1\x15\x04", "is a Parquet file; captions are read from"),
        (b"PK\x03\x04\x14\x00", "is a spreadsheet or another ZIP archive"),
        (b"\x1f\x8b\x08\x00", "is a gzip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "is a pointer of Git LFS"),
        ("a star\ncaf\u00e9\n".encode("latin-1"), ":2 is not UTF-8; save it as UTF-8"),
        (b"\xff\xfea\0b", "is not UTF-16, as its first bytes say"),
        (b"a \x1b[31mstar\n", ":1 holds the character U+001B"),
        (rb'["a star", "\u0000"]', "item 1 holds the character U+0000"),
        (rb'{"prompt": "a star"}' + b"\n" + rb'{"prompt": "\ud800"}', ":2 holds the character U+D800"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        captions(tmp_path, data)
    assert f"is not a list of captions: {tmp_path}/captions.txt{' ' * (found[0] != ':')}{found}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("PartiPrompts.tsv", 1632, "bond"),
        ("llamagen_coco_captions_5k.csv", 5000, "This wire metal rack holds several pairs of shoes and sandals"),
        ("captions_val2017_sample.json", 2001, "A small closed toilet in a cramped space."),
        ("coco_val2014_captions_10k.json", 10000, "This wire metal rack holds several pairs of shoes and sandals"),
        ("geneval_evaluation_metadata.jsonl", 553, "a photo of a bench"),
        ("geneval_generation_prompts.txt", 553, "a photo of a bench"),
        ("drawbench.csv", 200, "A red colored car."),
    ],
)
def test_published_lists_are_read_whole(name: str, count: int, first: str) -> None:
    path = Path(__file__).resolve().parents[4] / "shared" / "prompts" / name
    if not path.is_file():
        pytest.skip("needs ../shared/prompts")
    found = read_prompts(path.read_bytes())
    assert (len(found), found[0].text) == (count, first)


def test_a_file_may_give_some_of_its_captions_only(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a star\na cube\n")
    path = tmp_path / "s.yaml"
    for keys, found in (("count: 1", ("a star",)), ("count: 2", ("a star", "a cube")), ("skip: 1", ("a cube",))):
        path.write_text(f"name: s\nmethods: [base]\nprompts: {{file: captions.txt, {keys}}}\n")
        prompts = load_with_source(path).scenario.prompts
        assert isinstance(prompts, PromptList)
        assert prompts.captions == found
    for keys, refused in (
        ("count: 3", r"count must be <= 2, the captions of .*captions\.txt, got 3"),
        ("count: 2, skip: 1", r"count must be <= 1, the captions of .*captions\.txt after 1, got 2"),
        ("skip: 2", r"skip must be < 2, the captions of .*captions\.txt, got 2"),
    ):
        path.write_text(f"name: s\nmethods: [base]\nprompts: {{file: captions.txt, {keys}}}\n")
        with pytest.raises(ScenarioError, match=rf"s\.yaml:3: prompts\.{refused}"):
            load_with_source(path)


def test_a_repeated_caption_has_a_seed_of_its_own() -> None:
    settings, decoding = METHODS["base"].settings(), Decoding.model_validate({})
    specs = session_specs(pair_manifest("scenes"), "base", settings, decoding, ["a", "b", "a", "a"], 5)
    assert [spec.prompt for spec in specs] == ["a", "b", "a", "a"]
    assert len({spec.key() for spec in specs}) == 4
    assert specs[0].seed == specs[1].seed == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cube\n'a star'\n", "captions.txt:2 is in quotes"),
        ("a star\0\n", "captions.txt:1 holds the character U+0000"),
        ("1.jpg#0\ta star\n1.jpg#1\ta cube\n", "captions.txt:1 holds a tab; a table needs a first row"),
        ("id,split,title\n1,train,a star\n2,test,a cube\n", "captions.txt:1 is the header row of a table without a"),
        ("prompts:\n  - a star\n  - a cube\n", "captions.txt:3 is an item of a list"),
        ("- a star\n- a cube\n", "captions.txt:2 is an item of a list"),
        ("+ a star\n\u2022 a cube\n", "captions.txt:2 is an item of a list"),
        ("- id: 1\n  prompt: a star\n", "captions.txt:1 is an item of a list"),
        ("prompt: a star\n", "captions.txt:1 is a line of YAML"),
        ("a star\ncaption : a cube\n", "captions.txt:2 is a line of YAML"),
        ("pair: {cloud: x}\n", "captions.txt:1 is a line of YAML"),
        ("a star\nlist:\n", "captions.txt:2 is a line of YAML"),
        ("# stars\na star\n", "captions.txt:1 is a comment or a heading"),
        ("a star\n---\na cube\n", "captions.txt:2 holds no word"),
        ("1. a star\n2. a cube\n", "captions.txt:1 is numbered"),
        ("<!DOCTYPE html>\n<p>Not found</p>\n", "captions.txt:1 is HTML or XML"),
        ("prompts = ['a star', 'a cube']\n", "captions.txt:1 is a line of a program or of TOML"),
        ("Caption:\na star\n", "captions.txt:1 is the header of another column than prompt, caption, text"),
        ("description\na star\na cube\n", "captions.txt:1 is the header of another column"),
        ("image_id,description\n1,a star\n", "captions.txt:1 is the header row of a table without a column"),
        ('id,split,title\n1,train,"a star, red"\n', "captions.txt:1 is the header row of a table without a column"),
        ("Prompt (English);Kind\na star;x\n", "captions.txt:1 is the header row of a table without a column"),
        ("sep=;\nid;title\n1;a star\n", "captions.txt:2 is the header row of a table without a column"),
        ("sep=;\n", "captions.txt names a separator and holds no row"),
        ("1,a star, red\n2,a cube\n", "captions.txt:1 is a row of a table; a first row must name its columns"),
        ("1.jpg|a star\n", "captions.txt:1 is a row of a table"),
        ("a/1.jpg a star\na/2.jpg a cube\n", "captions.txt:1 is a row of a table"),
        ("1.png: a star\n2.png: a cube\n", "captions.txt:1 is a row of a table"),
        ("image| number| comment\n1.jpg| 0| a star\n2.jpg| 1| a cube\n", "captions.txt:1 is the header row of a table"),
        ("a star\nNegative prompt: blurry\nSteps: 20, Seed: 1\n", "captions.txt:2 is a line of YAML"),
        ("a star;x\na cube;y\n", "captions.txt:1 is a row of a table"),
        ("prompt,Prompt\nx,a star\n", "captions.txt:1 names the column prompt twice"),
        ('Prompt\tKind\n"a star\nand a cube"\tx\n', "captions.txt:2 has an open quote"),
        ("['a star', 'a cube']\n", "captions.txt:1 is a list; write the captions alone"),
        ("1\n00:00:01,000 --> 00:00:02,000\na star\n", "captions.txt:2 is of subtitles, with times"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\na star\n", "captions.txt:1 is of subtitles"),
        ("\\documentclass{article}\na star\n", "captions.txt:1 is a command of LaTeX"),
        ("2024-01-01 10:00:00 INFO a star\n", "captions.txt:1 begins with a time, as a log does"),
        ("[prompts]\na = a star\n", "captions.txt:1 is the head of a section, as of an INI file"),
        ("image_id\tPrompt\tsplit\n", "captions.txt:1 is the header row of a table without rows"),
        ("id,caption\n1,a star\n2,a cube, red\n", "captions.txt:3 has 3 cells, the header has 2"),
        ('"a star"\na cube\n', "captions.txt:1 is in quotes"),
        ('["a star",\n "a cube"', "captions.txt:1 is part of a JSON document that cannot be read"),
        ('["a star", 3]', "captions.txt item 1 must hold a text, got 3"),
        ("[]", "captions.txt is an empty JSON list"),
        ('{"images": [],\n "licenses": []}', "captions.txt is a JSON mapping of images, licenses; of mappings COCO's"),
        ('{"annotations": [{"bbox": [1]}]}', "captions.txt annotation 0 has none of the keys caption"),
        ('{"prompt": "a star"}\na cube\n', "captions.txt:2 is not JSON, though the lines before are"),
        ('{"prompt": "a star"}\nnull\n', "captions.txt:2 must hold a text, got nothing"),
        ('{"prompt": "a star"}\n{"prompt": "a", "id": 2, "prompt": "b"}\n', "captions.txt:2 has the key prompt twice"),
        ('[{"caption": "a star", "caption": "a star"}]', "captions.txt item 0 has the key caption twice"),
        ('{"annotations": []}', "captions.txt holds an empty list of annotations"),
        ('["a star", "\\u200b"]', "captions.txt item 1 holds an empty prompt"),
        ('Prompt\n"a star\na cube\n', "captions.txt:2 has an open quote"),
        ('id,Prompt\n1,a star\n2,"a cube\n3,a cone\n4,a ball\n', "captions.txt:3 is not a row of a table"),
        ('id,Prompt\n1,a star\n2,"a cube\nin red"\n', "captions.txt:3 holds a prompt on several lines"),
        ('{"prompt": "a star"}\n{"tag": 1}\n', "captions.txt:2 has none of the keys prompt"),
        ("\n \n", "captions.txt holds no prompt"),
    ],
)
def test_what_is_no_list_of_captions_is_refused(tmp_path: Path, text: str, found: str) -> None:
    assert f"prompts.file is not a list of captions: {found}" in refusal(tmp_path, text)


def test_files_that_were_joined_keep_no_byte_order_mark(tmp_path: Path) -> None:
    assert captions(tmp_path, "\ufeffa star\n\ufeffa cube\n".encode()) == ("a star", "a cube")


def test_bars_divide_the_columns_of_a_table(tmp_path: Path) -> None:
    assert captions(tmp_path, b"image| caption\n1.jpg| a star , red .\n") == ("a star , red .",)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a text, on a wall",
            "[photo] a star",
            'a sign that says "go"',
            "the prompt player",
            "1,000 birds",
            "#1 of all",
        ),
        *(
            "a star, red\na cube, blue",
            "a 1:2 model; red\na cube; blue",
            "texture\nwood",
            "2. of May",
            "207\n360",
            "<lora:x:1> a star",
        ),
    ],
)
def test_captions_that_look_a_little_like_something_else_are_taken(tmp_path: Path, text: str) -> None:
    assert captions(tmp_path, text.encode()) == tuple(text.split("\n"))


RED, BAD = "a small red star", "a small crimson star"


@pytest.mark.parametrize(
    ("text", "more", "place"),
    [
        (f"{RED}\n\n{BAD}\n", "", ":3:"),
        (f'["{RED}", "{BAD}"]', "", " item 1:"),
        (f'[\n{{"prompt": "{RED}"}},\n{{"prompt": "{BAD}"}}]', "", " item 1:"),
        (f'{{"annotations": [{{"caption": "{RED}"}}, {{"caption": "{BAD}"}}]}}', "", " annotation 1:"),
        (f"{RED}\na small blue star\n{BAD}\n", ", count: 1, calibration: 2", ":3:"),
        (f'["{RED}", "a small blue star", "{BAD}"]', ", count: 1, calibration: 2", " item 2:"),
    ],
)
def test_a_caption_that_the_pair_refuses_is_named_by_its_place_in_the_file(
    tmp_path: Path, tiny_pair_folder: Path, text: str, more: str, place: str
) -> None:
    (tmp_path / "captions.txt").write_text(text)
    method = "{name: entropy-lens, threshold: {call_pct: 50, prompts: 2}, threshold_mode: const}" if more else "base"
    (tmp_path / "s.yaml").write_text(
        f"name: s\nmethods: [{method}]\nprompts: {{file: captions.txt{more}}}\npair: {tiny_pair_folder}\n{COMPUTE}"
    )
    result = CliRunner().invoke(
        main, ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), "--cache", str(tmp_path / "c"), "--quiet"]
    )
    assert result.exit_code == 2
    assert f"Error: {tmp_path}/captions.txt{place} unknown word 'crimson'" in result.output
    assert not (tmp_path / "o").exists()


def test_captions_that_stand_again_are_told(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a star\na cube\na star\na star\n")
    (tmp_path / "s.yaml").write_text(SCENARIO)
    made = load_with_source(tmp_path / "s.yaml").scenario
    (note,) = repeated_captions([made, made])
    assert note == "2 of 4 captions are repetitions ('a star' occurs 3 times): each has a different seed"
    (tmp_path / "captions.txt").write_text("a star\na cube\n")
    assert repeated_captions([load_with_source(tmp_path / "s.yaml").scenario]) == []


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
        ('pair: "\\U00110000"', "\\U00110000 is not a character; U+10FFFF is the last"),
        (f"pair: {'a' * 300}", "pair is not a usable path"),
        ("pair: loop/x", "pair is not a usable path"),
        (f"prompts: {{file: {'a' * 300}}}", "prompts.file is not a usable path"),
        ("prompts: {file: loop}", "prompts.file is not a usable path"),
        ("prompts: {file: s.yaml/x}", "prompts.file cannot be read"),
        ("prompts: {file: .}", "prompts.file cannot be read"),
        ("compute: {device: {model: pair, profile: loop}, cloud: {model: pair}}", "is not a usable path"),
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


def test_captions_may_be_longer_than_a_cell_of_a_table() -> None:
    long = f"a red cube, {'very ' * 40_000}large"
    assert [prompt.text for prompt in read_prompts(f"a star, small\n{long}\n".encode())] == ["a star, small", long]
