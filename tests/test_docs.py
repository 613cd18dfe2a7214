"""The documents say what the code does: method cards, commands, names."""

import re
import tomllib
from pathlib import Path

import pytest

from simulator.protocol.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]


def settings_table(name: str) -> str:
    fields = METHODS[name].settings.model_fields
    if not fields:
        return "No settings."
    rows = [f"| `{key}` | `{field.default}` | {field.description} |" for key, field in fields.items()]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card_whose_settings_are_those_of_the_code(name: str) -> None:
    card = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    found = re.search(rf"<!-- settings:{name} -->\n(.*?)\n<!-- end -->", card, re.DOTALL)
    assert found is not None
    assert found.group(1) == settings_table(name)
    assert f"({name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()


def test_assumptions_named_in_the_code_are_listed() -> None:
    listed = set(re.findall(r"^\| (A\d+) \|", (ROOT / "docs" / "methods" / "README.md").read_text(), re.MULTILINE))
    named: set[str] = set()
    for path in [*ROOT.glob("models/**/*.py"), *ROOT.glob("simulator/**/*.py")]:
        named |= set(re.findall(r"\bassumptions? (A\d+)", path.read_text()))
    assert named <= listed
    assert named


def test_relative_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("traces/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_lock_file_is_of_these_dependencies() -> None:
    """`uv.lock` repeats what pyproject.toml asks for; where it does not, `uv lock` was forgotten."""
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
