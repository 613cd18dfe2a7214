"""Files of prompts, recognised by their content: plain text, tables with a header, JSON and JSON lines, COCO's annotations.

| form | recognised by | prompts |
|---|---|---|
| COCO annotations | a JSON mapping with `annotations` | the `caption` of each, in the file's order |
| JSON list | a JSON list | its texts, or the `prompt`, `caption` or `text` of its mappings |
| JSON lines | a JSON value a line | as in a list |
| table | a first row of short words, one of them `prompt`, `caption`, `text` or a plural | that column; `,` `;` `|` or tabs divide |
| plain text | anything else without JSON, quotes, tabs, list marks or NUL | a line each, or each line in double quotes |

A file that is almost one of these is refused with its line, never taken for captions.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from simulator.core.errors import PromptError

KEYS = ("prompt", "caption", "text", "prompts", "captions")  # of a mapping or a table's header, the first that is there
NEWLINE = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at U+2028, U+0085 and others
MOST_BYTES = 2**28


class Prompt(NamedTuple):
    """A prompt, and the line that it stands on; 0 where the form has no lines."""

    text: str
    line: int


def read_prompts(content: bytes) -> list[Prompt]:
    """The prompts of a file's content. Raises PromptError: `LINE what is wrong`, or what is wrong with the file."""
    if len(content) > MOST_BYTES:
        raise PromptError(f"has {len(content)} bytes; allowed: {MOST_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{content[: error.start].count(10) + 1} is not UTF-8") from None
    # A byte-order mark stands at the begin of each file that was appended to this one.
    lines = [Prompt(line.strip(" \t\v\f\ufeff"), number) for number, line in enumerate(NEWLINE.split(text), start=1)]
    lines = [line for line in lines if line.text.strip()]
    if not lines:
        raise PromptError("holds no prompt")
    for line in lines:
        if "\0" in line.text:
            raise PromptError(f"{line.line} holds the character U+0000")
    found = _json(text, lines)
    if found is None:
        found = _table(text, lines)
    if found is None:
        found = list(_plain(lines))
    for prompt in found:
        if not prompt.text.strip():
            raise PromptError(f"{prompt.line or ''} holds an empty prompt".strip())
        if NEWLINE.search(prompt.text):
            raise PromptError(f"{prompt.line or ''} holds a prompt on several lines".strip())
    return found


def _json(text: str, lines: Sequence[Prompt]) -> list[Prompt] | None:
    """Prompts of a JSON document or of JSON lines; None where it is neither."""
    if lines[0].text[0] not in "[{" and not all(line.text[0] in '{"' for line in lines):
        return None
    whole = _loaded(text)
    if isinstance(whole, dict) and ("annotations" in whole or len(lines) > 1 or _key(whole) is None):
        return _annotations(whole)
    if isinstance(whole, list):
        if not whole:
            raise PromptError("is an empty JSON list")
        return [Prompt(_text(item, f"item {index}"), 0) for index, item in enumerate(whole)]
    if _loaded(lines[0].text) is None or lines[0].text[0] != "{":
        if lines[0].text[0] == "{" or lines[0].text in ("[", "{") or lines[0].text.startswith(('["', "[{")):
            raise PromptError(f"{lines[0].line} is part of a JSON document that cannot be read")
        return None
    found = []
    for line in lines:
        value = _loaded(line.text)
        if value is None:
            raise PromptError(f"{line.line} is not JSON, though the lines before are")
        found.append(Prompt(_text(value, str(line.line)), line.line))
    return found


def _loaded(text: str) -> Any:
    """A JSON value, None where the text is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _annotations(whole: dict[str, Any]) -> list[Prompt]:
    listed = whole.get("annotations")
    if not isinstance(listed, list) or not listed:
        keys = ", ".join(str(key)[:30] for key in list(whole)[:6])
        raise PromptError(f"is a JSON mapping of {keys or 'nothing'}; of mappings COCO's with annotations are read")
    return [Prompt(_text(item, f"annotation {index}", ("caption",)), 0) for index, item in enumerate(listed)]


def _text(value: Any, place: str, keys: Sequence[str] = KEYS) -> str:
    if isinstance(value, dict):
        key = _key(value, keys)
        if key is None:
            raise PromptError(f"{place} has none of the keys {', '.join(keys)}")
        value = value[key]
    if not isinstance(value, str):
        raise PromptError(f"{place} must hold a text, got a {type(value).__name__}")
    return value.strip()


def _key(value: dict[str, Any], keys: Sequence[str] = KEYS) -> str | None:
    return next((key for name in keys for key in value if str(key).lower() == name), None)


def _table(text: str, lines: Sequence[Prompt]) -> list[Prompt] | None:
    """Prompts of a table with a header; None where the first line is none."""
    first = lines[0].text
    sign = next((sign for sign in "\t;|," if sign in first), ",")
    header = [cell.strip().strip("\"'").lower() for cell in first.split(sign)]
    if not all(re.fullmatch(r"[\w -]{0,30}", cell) for cell in header):
        return None
    if not set(KEYS).intersection(header):
        alike = len(lines) > 1 and all(line.text.count(sign) == first.count(sign) for line in lines)
        if len(header) > 2 and alike and re.fullmatch(r"[\w-]+", first.replace(sign, "")):
            raise PromptError(f"{lines[0].line} is the header row of a table without a column of {', '.join(KEYS[:3])}")
        return None
    column = next(header.index(key) for key in KEYS if key in header)
    if sign in "\t|":
        rows = [(line.line, [_unquoted(cell) for cell in line.text.split(sign)]) for line in lines[1:]]
    else:
        body = list(NEWLINE.split(text))
        start = next(index for index, line in enumerate(body) if line.strip()) + 1
        reader = csv.reader((f"{line}\n" for line in body[start:]), delimiter=sign, strict=True)
        alone = [(line.line, [_unquoted(line.text)]) for line in lines[1:]]  # one column needs no quotes around commas
        try:
            rows = [(start + reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            if len(header) > 1:
                raise PromptError(f"{start + reader.line_num} is no row of a table: {error}") from None
            rows = alone
        if len(header) == 1 and any(len(row) != 1 for _, row in rows):
            rows = alone
    if not rows:
        raise PromptError(f"{lines[0].line} is the header row of a table without rows")
    for number, row in rows:
        if not len(header) - 1 <= len(row) <= len(header) or len(row) <= column:  # an empty last cell may be left out
            raise PromptError(f"{number} has {len(row)} cells, the header has {len(header)}")
    return [Prompt(row[column].strip(), number) for number, row in rows]


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if quoted else cell


def _plain(lines: Sequence[Prompt]) -> Iterator[Prompt]:
    if all(_unquoted(line.text) != line.text for line in lines):
        yield from (Prompt(_unquoted(line.text), line.line) for line in lines)
        return
    if all(line.text.startswith(("- ", "* ")) for line in lines[1:] or lines):
        raise PromptError(f"{lines[-1].line} is an item of a list; write the caption alone")
    for line in lines:
        if problem := _not_a_prompt(line.text):
            raise PromptError(f"{line.line} {problem}")
        yield line


def _not_a_prompt(line: str) -> str:
    """What a line of plain text is instead of a prompt; empty where it can be one."""
    if line in ("[", "{", "]", "}"):
        return "is part of a JSON document"
    if "\t" in line:
        return "holds a tab; a table needs a first row that names its columns, one of them prompt, caption or text"
    if line[0] in "[{" and _loaded(line.rstrip(",")) is not None:
        return "is JSON"
    if line[0] == "[" and line[-1] == "]" and line[1] in "\"'":
        return "is a list; write the captions alone, or as JSON"
    if (len(line) > 1 and line[0] == line[-1] and line[0] in "\"'") or line.endswith(('",', "',")):
        return "is in quotes; write the caption alone"
    return ""
