"""The documents agree with the code: method cards, commands, names.

Longer than other files, because everything that the documents show is run or parsed with the same helpers.
"""

import inspect
import json
import re
import shlex
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import ciar_sim
from benchmarks.tiny_pair import make_tiny_pair
from ciar_sim.cli.main import main
from ciar_sim.cli.plot import KINDS
from ciar_sim.shipped import scenario_path
from models.train.data import DataConfig
from simulator.core import yamlfile
from simulator.experiment.loading import load_scenario
from simulator.experiment.schema.methods import ENTRIES, settings_of
from simulator.experiment.schema.network import ExplicitNetwork, MultipathNetwork, PresetNetwork, TraceNetwork
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.sweep import expand
from simulator.protocol.methods import METHODS
from simulator.protocol.pairs import PairSpec, pair_manifest
from tests.reports.build import ANSWERS

pytestmark = pytest.mark.usefixtures("undrawn", "short_gaps", "quick_capacity")

ROOT = Path(__file__).resolve().parents[1]


def settings_table(name: str) -> str:
    fields = {key: ENTRIES[name].model_fields[key] for key in settings_of(name)}
    if not fields:
        return "No settings."
    rows = [f"| `{key}` | `{field.default}` | {field.description} |" for key, field in fields.items()]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card_whose_settings_are_those_of_the_code(name: str) -> None:
    card, needed = ROOT / "docs" / "methods" / f"{name}.md", settings_table(name)
    text = card.read_text() if card.is_file() else ""
    found = re.search(rf"<!-- settings:{name} -->\n(.*?)\n?<!-- end -->", text, re.DOTALL)
    assert found is not None, f"{card} must hold\n<!-- settings:{name} -->\n{needed}\n<!-- end -->"
    assert found.group(1) == needed
    assert f"({name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text(), (
        "needs a row in docs/methods/README.md"
    )


def test_every_key_of_a_network_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    part = guide[guide.index("\n## Networks") : guide.index("\n## When the cloud is late")]
    keys = {
        key for form in (PresetNetwork, ExplicitNetwork, TraceNetwork, MultipathNetwork) for key in form.model_fields
    }
    missing = sorted(key for key in keys if not re.search(rf"\b{key}\b", part))
    assert not missing, f"the table of keys in docs/guide.md, Networks, needs a row for {', '.join(missing)}"


def test_every_kind_of_plot_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    table = guide[guide.index("| kind | what |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(KINDS), (
        "the kinds of docs/guide.md, Plots, in this order"
    )


def test_names_in_the_cards_are_those_of_the_code() -> None:
    """A name `module.name` in a card refers to a module of models/ or models/methods/."""
    modules = {path.stem: path for folder in ("models", "models/methods") for path in ROOT.glob(f"{folder}/[a-z]*.py")}
    named = {
        (page.name, *name.split("."))
        for page in ROOT.glob("docs/methods/*.md")
        for name in re.findall(r"`((?:\w+\.)+\w+)`", page.read_text())
    }
    of_code = [name for name in named if name[1] in modules or name[1][:1].isupper()]
    assert of_code
    for page, module, *names in of_code:
        assert module in modules, f"{page}: {module} is no module"
        found = import_module(".".join(modules[module].relative_to(ROOT).with_suffix("").parts))
        for name in names:
            assert hasattr(found, name), f"{page}: {module}.{'.'.join(names)}"
            found = getattr(found, name)


def test_assumptions_named_in_the_code_are_listed() -> None:
    listed = set(re.findall(r"^\| (A\d+) \|", (ROOT / "docs" / "methods" / "README.md").read_text(), re.MULTILINE))
    named: set[str] = set()
    for path in [*ROOT.glob("models/**/*.py"), *ROOT.glob("simulator/**/*.py")]:
        named |= set(re.findall(r"\bassumptions? (A\d+)", path.read_text()))
    assert named <= listed
    assert named


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, formed as by GitHub and mkdocs."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_relative_links_and_anchors_lead_somewhere() -> None:
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("traces/*.md"),
        *ROOT.glob("models/**/*.md"),
    ]:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}"
            if anchor and linked.suffix == ".md":
                assert anchor in anchors(linked), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def test_the_lock_file_is_of_these_dependencies() -> None:
    """`uv.lock` repeats the requirements of pyproject.toml. A failure means that `uv lock` has not been run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = next(package for package in packages if package["name"] == project["name"])
    asked = {re.split(r"[\[<>=]", text)[0].lower() for text in project["dependencies"]}
    extra = {
        (name, re.split(r"[\[<>=]", text)[0].lower())
        for name, texts in project["optional-dependencies"].items()
        for text in texts
    }
    assert locked["version"] == project["version"]
    assert {one["name"] for one in locked["dependencies"]} == asked
    assert {(name, one["name"]) for name, found in locked["optional-dependencies"].items() for one in found} == extra
    torch = next(package for package in packages if package["name"] == "torch")
    assert f"torch=={torch['version']}" in (ROOT / "constraints.txt").read_text()


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}


def _shown_by_the_api_page() -> list[Any]:
    """Return the function or class of each `::: name` in docs/api.md, or the members that the entry lists."""
    shown = []
    for name, options in re.findall(
        r"^::: (\S+)\n((?: +.*\n)*)", (ROOT / "docs/api.md").read_text() + "\n", re.MULTILINE
    ):
        members = re.search(r"members: \[(.*)\]", options)
        module, _, attribute = (name, "", "") if members else name.rpartition(".")
        names = members[1].split(", ") if members else [attribute]
        shown += [getattr(import_module(module), one) for one in names]
    return shown


@pytest.mark.parametrize("entry", _shown_by_the_api_page(), ids=lambda entry: entry.__name__)
def test_arguments_on_the_api_page_are_those_of_the_code(entry: Any) -> None:
    """Each argument has its own line with its name: the build of the site fails on "x, y:"."""
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", inspect.getdoc(entry) or "", re.MULTILINE)
    described = re.findall(r"^    (\S.*?): ", section[1], re.MULTILINE) if section else []
    assert {name.lstrip("*") for name in described} <= set(inspect.signature(entry).parameters)


# ---- commands, YAML and Python -----------------------------------------------------------------------------------------

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "traces" / "README.md",
]
PROGRAMS = ("ciar-sim ", "python -m ", "make ")

# Prefixes of commands that are parsed but not run here, and why.
ONLY_PARSED = {
    "ciar-sim run benchmarks/lte-100k.yaml": "replays 100,000 requests",
    "ciar-sim run results-": "records for tens of minutes; tests/test_quickstart.py loads every scenario",
    "ciar-sim train": "takes hours; tests/models/test_train_stages.py trains on a tiny configuration",
    "ciar-sim profile --model": "allocates gigabytes; tests/models/test_profile.py times a small shape",
    "ciar-sim evaluate pictures": "needs networks that are not shipped; tests/models/test_quality_foreign.py uses tiny ones",
    "ciar-sim evaluate uncertainty --ceiling": "trains a network; tests/models/test_uncertainty.py does",
    **dict.fromkeys(
        ("ciar-sim evaluate samples --pair llamagen", "ciar-sim evaluate uncertainty --pair llamagen"),
        "needs downloaded files; tests/ciar_sim/test_backbones.py and tests/models/test_huggingface_pairs.py make tiny ones",
    ),
    "python -m benchmarks": "takes minutes and is to be run alone on a machine",
    "python -m pytest -m slow": "takes minutes; .github/workflows/ci.yml runs it",
    "python -m pytest tests/": "runs these tests",
    "python -m tests": "takes minutes; a share of each runs among the tests",
    "make ": "sets up an environment",
}
# Commands that are not parsed, and why.
UNPARSED = {
    "ciar-sim run": "the name of the command alone",
    **dict.fromkeys(
        (
            "for name in main trees claim confirmed scores readings training prefix threshold",
            "for name in main trees claim scores readings training prefix threshold",  # of docs/results-scenes.md
        ),
        "a loop of the shell over scenarios; tests/test_quickstart.py loads every scenario",
    ),
}


def blocks(kind: str) -> list[tuple[str, str]]:
    """Return (page:line, text) of every fenced block of this kind."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            line = page.read_text().count("\n", 0, match.start()) + 1
            found.append((f"{page.relative_to(ROOT)}:{line}", match.group(1)))
    return found


def commands() -> dict[str, str]:
    """Return every command in a block (fenced or indented) or in backticks, and the page that shows it first.

    Commands with placeholders in capitals are omitted.
    """
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        shown = [
            line
            for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            for line in block.splitlines()
        ]
        shown += re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
        shown += re.findall(r"`([^`\n]+)`", text)
        for line in shown:
            command = re.sub(r"\s+", " ", line.partition(" #")[0]).strip()
            if command.startswith((*PROGRAMS, "for ")) and not re.search(r"\b[A-Z]{3,}\b|\.\.\.|\|", command):
                found.setdefault(command, page.name)
    return found


SHOWN = {command: page for command, page in commands().items() if command.split(";")[0] not in UNPARSED}


def test_commands_that_write_the_same_run_folder_are_equal() -> None:
    """A reader who follows the pages in one folder would otherwise be told that it holds a run of another scenario."""
    writers: dict[str, set[str]] = {}
    for command in SHOWN:
        words = shlex.split(re.sub(r"scenarios/([\w-]+)\.yaml", r"\1", command))
        if words[:2] in (["ciar-sim", "run"], ["ciar-sim", "sweep"]) and len(words) > 2 and "--dry-run" not in words:
            own = words[2] if words[1] == "run" else " ".join(words[2:])  # a sweep with options has a folder of its own
            out = words[words.index("--out") + 1] if "--out" in words else f"runs/{own}"
            writers.setdefault(out, set()).add(" ".join(words))
    for page, code in blocks("python"):
        for call, out in re.findall(r"ciar_sim\.(?:run|sweep)\((.*?)(?:, out=\"([^\"]*)\")?\)$", code, re.MULTILINE):
            assert out, f"{page}: a run without out= replaces that of a command"
            writers.setdefault(out, set()).add(call)
    assert {out: sorted(calls) for out, calls in writers.items() if len(calls) > 1} == {}


def only_parsed(command: str) -> bool:
    return any(command == prefix or command.startswith(prefix) for prefix in ONLY_PARSED)


def parse(command: str) -> None:
    """Raise click.UsageError or AssertionError if the program would reject the command."""
    arguments = shlex.split(command)
    if arguments[0] == "make":
        assert set(arguments[1:]) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif arguments[0] == "python":
        assert find_spec(arguments[2]) is not None, arguments[2]
        program = getattr(import_module(arguments[2]), "main", None)
        if isinstance(program, click.Command):
            options = [a for a in arguments[3:] if a.startswith("-")]
            known = {name for parameter in program.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert set(options) <= known
    else:
        node: click.Command = main
        rest = arguments[1:]
        if rest[:1] == ["train"] and len(rest) > 1 and rest[1] != "device":
            rest.insert(1, "file")  # as the command does
        while isinstance(node, click.Group) and rest:
            found = node.get_command(click.Context(node), rest[0])
            assert found is not None, rest[0]
            node, rest = found, rest[1:]
        if rest or not isinstance(node, click.Group):
            try:
                node.make_context(node.name, list(rest))
            except click.MissingParameter:
                assert not rest  # the bare name of a command in a sentence
            except click.BadParameter as error:
                if "does not exist" not in error.message:  # a file of the reader's own
                    raise
            if rest and node.name == "run":
                load_scenario(ROOT / scenario_path(rest[0]))


@pytest.mark.parametrize("command", [command for command in SHOWN if only_parsed(command)])
def test_every_long_command_shown_is_one_that_the_program_takes(command: str) -> None:
    parse(command)


def test_the_exceptions_are_still_shown() -> None:
    for prefix in ONLY_PARSED:
        assert any(command.startswith(prefix) for command in SHOWN), prefix
    assert {command.split(";")[0] for command in commands()} >= set(UNPARSED)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair with enough codes for the methods that count neighbours, and four tokens, because recording takes most of a run."""
    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, codebook_size=128, grid=2)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def checkout(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a reader's checkout, in which no report is drawn."""
    for name in ("scenarios", "models", "traces", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIAR_SIM_CACHE", str(cache))

    def draw(folder: Path) -> Path:
        (folder / "report.html").write_text("not drawn")
        return folder / "report.html"

    monkeypatch.setattr("reports.build.build_report", draw)
    return tmp_path


def tiny(pair: Path) -> dict[str, Any]:
    """Return the settings, by dotted path, that make a scenario use the tiny pair."""
    return {
        "pair": str(pair),
        "prompts.source": "scenes",
        "prompts.count": 1,
        "compute.device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
        "compute.cloud": {"model": "pair", "hardware": "a100"},
    }


def tiny_options(pair: Path, scenario: str) -> list[str]:
    """Return `--set` options that make a scenario use the tiny pair, at most 120 s of its workload and at most ten devices."""
    loaded, sets = load_scenario(scenario_path(scenario)), tiny(pair)
    if pair_manifest(loaded.pair).statistics is not None:  # no model runs
        sets = {"prompts.list": ["a cat"]}
    if isinstance(loaded.workload, FleetWorkload):
        limits = {"duration_s": 120, "devices": 10}
        sets |= {f"workload.{key}": most for key, most in limits.items() if getattr(loaded.workload, key) > most}
    return [part for path, value in sets.items() for part in ("--set", f"{path}={json.dumps(value)}")]


def made_tiny(arguments: list[str], pair: Path) -> list[str]:
    """Return the arguments of a command on a scenario with `tiny_options`, in place of its own options for the same settings."""
    options = tiny_options(pair, arguments[1])
    set_by_them = {option.partition("=")[0] for option in options[1::2]}
    own = [
        place
        for place, text in enumerate(arguments[:-1])
        if text == "--set" and arguments[place + 1].partition("=")[0] in set_by_them
    ]
    return [text for place, text in enumerate(arguments) if not {place, place - 1} & set(own)] + options


def swept_for(arguments: list[str]) -> dict[str, list[Any]]:
    """Return the axes that a plot's run must sweep to contain the values of its --where."""
    wheres = [arguments[place + 1] for place, text in enumerate(arguments) if text == "--where"]
    return {path: values.split(",") for path, _, values in (where.partition("=") for where in wheres)}


# Options that make a decision fast. They are appended, and the last value of an option counts.
SMALL = {
    "recommend": [],
    "regime": ["--x", "network.rtt_ms=1:300:3:log", "--y", "network.up_mbps=1,10"],
    "capacity": [
        *["--slo-p95", "150ms", "--requests", "20", "--precision", "50"],
        *["--set", "cloud.max_batch=1", "--set", "cloud.max_sessions=1", "--set", "workload.warmup_s=0"],
    ],
}


def bare(command: str) -> bool:
    """Return whether this is only the name of a command (`ciar-sim sweep` in a sentence), without its arguments."""
    try:
        parse(command)
    except click.UsageError:
        return False
    return len(shlex.split(command)) <= 3 and shlex.split(command)[1] not in ("list", "schema")


@pytest.mark.parametrize("command", [command for command in SHOWN if not only_parsed(command)])
def test_every_command_shown_runs(command: str, checkout: Path, pair: Path) -> None:
    arguments = shlex.split(command)[1:]
    if bare(command) and arguments[0] not in ("run", "report"):
        parse(command)
        return
    if arguments[0] in ("run", "sweep"):
        arguments = [*made_tiny(arguments, pair), "--quiet"]
    elif arguments[0] in SMALL:
        arguments = [*made_tiny(arguments, pair), *SMALL[arguments[0]]]
    elif arguments[0] in ("compare", "export"):
        for folder in (one for one in arguments[1:] if one.startswith("runs/") and "." not in one):
            ciar_sim.run(MINIMAL, sets=tiny(pair), out=checkout / folder)
    elif arguments[0] == "profile":
        arguments += ["--pair", str(pair), "--seconds", "0.01"]
    elif arguments[0] == "evaluate":
        arguments += ["--pair", str(pair), "--prompts", "8", "--quiet"]
    elif arguments[:1] + arguments[2:3] == ["plot", "regime-map"]:
        made = ["regime", "regime-map", "--out", arguments[1], *tiny_options(pair, "regime-map"), *SMALL["regime"]]
        assert CliRunner().invoke(main, made).exit_code == 0
    elif arguments[0] == "plot" and arguments[2] in ANSWERS:
        (checkout / arguments[1]).parent.mkdir(parents=True, exist_ok=True)
        (checkout / arguments[1]).write_text(json.dumps(ANSWERS[arguments[2]]))
    elif arguments[0] in ("report", "plot"):
        options = next((place for place, text in enumerate(arguments) if text.startswith("--")), len(arguments))
        for folder in [argument for argument in arguments[1:options] if argument.startswith("runs/")]:
            ciar_sim.run(MINIMAL, sets=tiny(pair), axes=swept_for(arguments), out=checkout / folder)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


MINIMAL: dict[str, Any] = {
    "name": "minimal",
    "pair": "scenes",
    "prompts": {"source": "scenes", "count": 1},
    "methods": ["base", {"name": "ciar", "threshold": 0.5}],
    "compute": {
        "device": {"model": "llamagen-xl-1layer", "hardware": "snapdragon-8-gen-3"},
        "cloud": {"model": "llamagen-xl", "hardware": "a100"},
    },
    "network": {"preset": "wifi"},
}


@pytest.mark.parametrize(("place", "text"), blocks("yaml"), ids=[place for place, _ in blocks("yaml")])
def test_every_yaml_block_is_a_scenario_or_part_of_one(place: str, text: str) -> None:
    part = yamlfile.parse(text, place).data
    if set(part) == {"data"}:  # of a training file
        DataConfig.model_validate(part["data"], context={"folder": ROOT})
        return
    if isinstance(part.get("pair"), dict):  # names files of the reader's own
        PairSpec.model_validate(part.pop("pair"))
    assert expand(load_scenario({**MINIMAL, **part}))


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=[place for place, _ in blocks("python")])
def test_every_python_block_runs(
    place: str, text: str, checkout: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ciar_sim.run

    def tiny_run(scenario: Any, *, sets: Any = None, **options: Any) -> ciar_sim.Result:
        return run(scenario, sets={**(sets or {}), **tiny(pair)}, **options)

    monkeypatch.setattr(ciar_sim, "run", tiny_run, raising=False)
    exec(compile(text, place, "exec"), {"__name__": place})


def test_long_files_say_why() -> None:
    """The module docstring of a file of more than 450 lines gives the reason for its length."""
    rooms = ("benchmarks", "ciar_sim", "models", "reports", "simulator", "tests")
    long = [
        path
        for room in rooms
        for path in sorted((ROOT / room).rglob("*.py"))
        if len(lines := path.read_text().splitlines()) > 450 and "onger than other" not in "\n".join(lines[:30])
    ]
    assert [str(path.relative_to(ROOT)) for path in long] == []
