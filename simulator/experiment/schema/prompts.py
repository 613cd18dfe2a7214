"""`prompts:` of a scenario: where the captions come from."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag, ValidationInfo, field_validator

from simulator.core.files import shown
from simulator.core.part import Part, fork, items, path_of
from simulator.core.settings import refuse


class ScenePrompts(Part):
    """Captions of the pair's subject, drawn by their own seed: of the scene grammar, or of held-out photographs."""

    source: Literal["scenes", "photos"] = Field(default="scenes", description="the pair's own; by default just that")
    count: int = Field(default=16, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


class PromptList(Part):
    """Captions as they are."""

    captions: Annotated[tuple[str, ...], BeforeValidator(items), Field(min_length=1, alias="list")]

    @field_validator("captions")
    @classmethod
    def _one_line_each(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
        first: dict[str, int] = {}
        for index, caption in enumerate(captions):
            if not caption.strip() or _NEWLINE.search(caption):
                refuse("must be a caption on one line", index)
            if first.setdefault(caption, index) != index:
                refuse("stands twice; a caption gives one image, however often it is asked for", index)
        return captions


class PromptFile(Part):
    """Captions in a text file, one a line; blank lines are skipped. Read when the scenario is loaded."""

    file: str


def _read_prompts(prompts: Any, info: ValidationInfo) -> Any:
    """A file's captions as a list; `caption_places` of the context gets the file and line of each, for errors found later."""
    if not isinstance(prompts, PromptFile):
        return prompts
    path = path_of(prompts.file, info, "file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        refuse(f"cannot be read: {path}: {getattr(error, 'strerror', None) or error}", "file")
    name = shown(path)
    lines = [(number, line.strip()) for number, line in enumerate(_NEWLINE.split(text), start=1) if line.strip()]
    if not lines:
        refuse(f"holds no caption: {path}", "file")
    found: dict[str, int] = {}
    for number, line in lines:
        if problem := _not_a_caption(line, first=not found):
            refuse(f"is not a list of captions, one a line: {name}:{number} {problem}", "file")
        if line in found:
            refuse(
                f"holds a caption twice: {name}:{number} equals line {found[line]}; "
                "a caption gives one image, however often it is asked for",
                "file",
            )
        found[line] = number
    places = (info.context or {}).setdefault("caption_places", {})
    places.update({("prompts", "list", index): f"{name}:{number}" for index, (number, _) in enumerate(lines)})
    return PromptList.model_validate({"list": [line for _, line in lines]})


def _not_a_caption(line: str, first: bool) -> str:
    """What a line of a caption file is instead of a caption; empty where it can be one."""
    if "\0" in line:
        return "holds the character U+0000"
    if line in ("[", "{", "]", "}"):
        return "is part of a JSON document"
    if line[0] in "[{":
        try:
            json.loads(line.rstrip(","))
        except RecursionError:  # thousands of brackets
            return "is JSON"
        except ValueError:
            pass
        else:
            return "is JSON"
    if (len(line) > 1 and line[0] == line[-1] and line[0] in "\"'") or line.endswith(('",', "',")):
        return "is in quotes; write the caption alone"
    cells = [cell.strip().strip("\"'").lower() for cell in re.split(r"[,;\t]", line)]
    if first and _HEADERS.intersection(cells) and all(re.fullmatch(r"[\w ]{0,30}", cell) for cell in cells):
        return "is the header row of a table; write the captions alone"
    return ""


_NEWLINE = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at U+2028, U+0085 and others
_HEADERS = {"caption", "captions", "prompt", "prompts", "text"}
Prompts = Annotated[
    Annotated[ScenePrompts, Tag("<scenes>")]
    | Annotated[PromptList, Tag("<list>")]
    | Annotated[PromptFile, Tag("<file>")],
    fork({"list": "<list>", "captions": "<list>", "file": "<file>"}, "<scenes>"),
    AfterValidator(_read_prompts),
]
