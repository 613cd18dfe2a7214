"""Prompt files, recognised by their content: plain text, tables with a header, JSON, JSON lines, COCO annotations.

The encoding is that of the byte-order mark, else UTF-8.

| form | recognised by | prompts |
|---|---|---|
| COCO annotations | a JSON mapping with `annotations` | the `caption` of each, in the order of the file |
| JSON list | a JSON list | its texts, or the `prompt`, `caption` or `text` of its mappings |
| JSON lines | a JSON value per line | as in a list |
| table | a first row of short words, one of them `prompt`, `caption`, `text` or a plural | that column, separated by `,` `;` `|` or tabs |
| plain text | any other file whose lines all look like captions | one per line; quotes are removed if all lines are in double quotes |

A file that is almost one of these is refused with its line; its lines are never taken for captions.
"""

import codecs
import csv
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from simulator.core.errors import PromptError
from simulator.core.part import found_text

# Keys of a mapping or a table; the first one present is used.
KEYS = ("prompt", "caption", "text", "prompts", "captions")
NEWLINE = re.compile(r"\r\n|\n|\r")  # str.splitlines also splits at U+2028, U+0085 and others
MOST_BYTES = 2**28
NOT_JSON = object()


ENCODINGS = (  # longer byte-order marks first: UTF-32-LE's begins with UTF-16-LE's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_FILES = (  # first bytes and name of other formats
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"PK\x03\x04", "a spreadsheet or another ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF-", "a PDF file"),
    (b"version https://git-lfs", "a pointer of Git LFS, and the file itself was not fetched"),
)
NO_TEXT = re.compile(r"[\0-\x08\x0e-\x1b\x1f\x7f\ud800-\udfff]")  # characters that no caption contains
# Lines of plain text that are not captions.
MARKUP = re.compile(
    r"<(!--|!doctype\b|\?xml\b|/?(html|head|body|title|meta|p|div|span|table|tr|td|ul|li|br|a|svg)\b)", re.I
)
KEY_AND_COLON = re.compile(rf"(negative[ _])?({'|'.join(KEYS)})\s*:|\w+\s*:(\s*$|\s+[\[{{|>])", re.I)
CELL_OF_A_ROW = re.compile(
    r"\"?(\d+\"?[,;|](?! |\d{3}\b)|[\w./-]+\.(jpe?g|png|webp|gif|bmp)(#\d+)?(\"? *[,;|:]| ))", re.I
)  # but not "1,000 birds"
RULE = re.compile(r"[-=*_.#~|+:\s]+")
LIST_MARKS = ("- ", "* ", "+ ", "\u2022 ")
_NO_COLUMN = f"is the header row of a table without a column of {', '.join(KEYS[:3])}"
_NO_HEADER = "is a row of a table; a first row must name its columns, one of them prompt, caption or text"
ALIKE = {"description", "descriptions", "sentence", "sentences"}  # unsupported names of a column of captions


class Prompt(NamedTuple):
    """A prompt and its place in the file.

    Attributes:
        text: The prompt.
        line: Its line, from 1; 0 if the form of the file has no lines.
        item: Its number in words, if it has no line.
    """

    text: str
    line: int
    item: str = ""

    def within(self, file: str) -> str:
        """Return its place for messages. file: name of the file."""
        return f"{file}:{self.line}" if self.line else f"{file} {self.item}"


def read_prompts(content: bytes) -> list[Prompt]:
    """Return the prompts in the content of a file. Raises PromptError: `LINE what is wrong`, or what is wrong with the file."""
    if len(content) > MOST_BYTES:
        raise PromptError(f"has {len(content)} bytes; allowed: {MOST_BYTES}")
    text = _decoded(content)
    # If files were concatenated, lines in the middle may begin with a byte-order mark.
    lines = [Prompt(line.strip(" \t\v\f\ufeff"), number) for number, line in enumerate(NEWLINE.split(text), start=1)]
    lines = [line for line in lines if not is_blank(line.text)]
    if not lines:
        raise PromptError("holds no prompt")
    for line in lines:
        _refuse_characters(line)
    found = _json(text, lines)
    if found is None:
        found = _table(text, lines)
    if found is None:
        found = list(_plain(lines))
    for prompt in found:
        if is_blank(prompt.text):
            raise PromptError(f"{prompt.line or prompt.item} holds an empty prompt")
        if NEWLINE.search(prompt.text):
            raise PromptError(f"{prompt.line or prompt.item} holds a prompt on several lines")
        _refuse_characters(prompt)  # JSON may contain them as escapes
    return found


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character: blanks, and format characters such as a zero-width space."""
    return all(one.isspace() or unicodedata.category(one) == "Cf" for one in text)


def _decoded(content: bytes) -> str:
    for begin, kind in OTHER_FILES:
        if content.startswith(begin):
            raise PromptError(f"is {kind}; captions are read from plain text, CSV, TSV and JSON")
    encoding = next((name for mark, name in ENCODINGS if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise PromptError(f"is not {encoding.upper()}, as its first bytes say: {error.reason}") from None
        raise PromptError(f"{content[: error.start].count(10) + 1} is not UTF-8; save it as UTF-8") from None


def _refuse_characters(prompt: Prompt) -> None:
    if found := NO_TEXT.search(prompt.text):
        raise PromptError(f"{prompt.line or prompt.item} holds the character U+{ord(found[0]):04X}")


def _json(text: str, lines: Sequence[Prompt]) -> list[Prompt] | None:
    """Return the prompts of a JSON document or of JSON lines; None if the text is neither."""
    if lines[0].text[0] not in "[{" and not all(line.text[0] in '{"' for line in lines):
        return None
    whole = _loaded(text)
    if isinstance(whole, dict) and ("annotations" in whole or len(lines) > 1 or _key(whole) is None):
        return _annotations(whole)
    if isinstance(whole, list):
        if not whole:
            raise PromptError("is an empty JSON list")
        return [Prompt(_text(item, place := f"item {index}"), 0, place) for index, item in enumerate(whole)]
    if _loaded(lines[0].text) is NOT_JSON or lines[0].text[0] != "{":
        if lines[0].text[0] == "{" or lines[0].text in ("[", "{") or lines[0].text.startswith(('["', "[{")):
            raise PromptError(f"{lines[0].line} is part of a JSON document that cannot be read")
        return None
    found = []
    for line in lines:
        value = _loaded(line.text)
        if value is NOT_JSON:
            raise PromptError(f"{line.line} is not JSON, though the lines before are")
        found.append(Prompt(_text(value, str(line.line)), line.line))
    return found


def _loaded(text: str) -> Any:
    """Return a JSON value; NOT_JSON if the text is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return NOT_JSON


class _Repeated(dict[str, Any]):
    """A JSON object that has a key twice: `twice`."""

    twice = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) == len(pairs):
        return dict(pairs)
    found, names = _Repeated(pairs), [name for name, _ in pairs]
    found.twice = next(name for name in names if names.count(name) > 1)
    return found


def _annotations(whole: dict[str, Any]) -> list[Prompt]:
    listed = whole.get("annotations")
    if listed == []:
        raise PromptError("holds an empty list of annotations")
    if not isinstance(listed, list):
        keys = ", ".join(str(key)[:30] for key in list(whole)[:6])
        raise PromptError(f"is a JSON mapping of {keys or 'nothing'}; of mappings COCO's with annotations are read")
    return [
        Prompt(_text(item, place := f"annotation {index}", ("caption",)), 0, place) for index, item in enumerate(listed)
    ]


def _text(value: Any, place: str, keys: Sequence[str] = KEYS) -> str:
    if isinstance(value, dict):
        if isinstance(value, _Repeated):
            raise PromptError(f"{place} has the key {value.twice} twice")
        key = _key(value, keys)
        if key is None:
            raise PromptError(f"{place} has none of the keys {', '.join(keys)}")
        value = value[key]
    if not isinstance(value, str):
        raise PromptError(f"{place} must hold a text, got {found_text(value)}")
    return value.strip()


def _key(value: dict[str, Any], keys: Sequence[str] = KEYS) -> str | None:
    return next((key for name in keys for key in value if str(key).lower() == name), None)


Row = tuple[int, list[str]]  # number of its first line, and its cells


def _table(text: str, lines: Sequence[Prompt]) -> list[Prompt] | None:
    """Return the prompts of a table with a header; None if the first line is not a header."""
    own = re.fullmatch(r'"?sep=(.?)"?', lines[0].text, re.I)  # Excel's first line; a tab at its end has been stripped
    lines = lines[1:] if own else lines
    if not lines:
        raise PromptError("names a separator and holds no row")
    first = lines[0].text
    sign = (own[1] or "\t") if own else next((sign for sign in "\t;|," if sign in first), ",")
    header = [cell.strip().strip("\"'").lower() for cell in first.split(sign)]
    if not set(KEYS).intersection(header) or not all(re.fullmatch(r"[\w -]{0,30}", cell) for cell in header):
        if own:
            raise PromptError(f"{lines[0].line} {_NO_COLUMN}")
        return None
    key = next(key for key in KEYS if key in header)
    column = header.index(key)
    if header.count(key) > 1:
        raise PromptError(f"{lines[0].line} names the column {key} twice")
    rows = _split_rows(lines[1:], sign, len(header)) if sign in "\t|" else _csv_rows(text, lines, sign, len(header))
    if not rows:
        raise PromptError(f"{lines[0].line} is the header row of a table without rows")
    for number, row in rows:
        if not len(header) - 1 <= len(row) <= len(header) or len(row) <= column:  # an empty last cell may be omitted
            raise PromptError(f"{number} has {len(row)} cells, the header has {len(header)}")
    return [Prompt(row[column].strip(), number) for number, row in rows]


def _split_rows(lines: Sequence[Prompt], sign: str, columns: int) -> list[Row]:
    """Return the rows of a table whose cells are separated by tabs or bars, without the rule below the header."""
    rows = [(line.line, [_unquoted(cell) for cell in line.text.split(sign)]) for line in lines]
    rows = [row for index, row in enumerate(rows) if index or not all(map(RULE.fullmatch, filter(None, row[1])))]
    for number, row in rows:
        if len(row) <= columns and any(map(_opens, row)):
            raise PromptError(f"{number} has an open quote; a caption stands on one line")
    return rows


def _csv_rows(text: str, lines: Sequence[Prompt], sign: str, columns: int) -> list[Row]:
    """Return the rows of a CSV table. lines: of the table, the header first; a single column may contain separators without quotes."""
    start = lines[0].line
    body = list(NEWLINE.split(text))[start:]
    reader = csv.reader((f"{line}\n" for line in body), delimiter=sign, strict=True)
    rows: list[Row] = []
    begin = start + 1  # the first line of the next row
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((begin, row))
            begin = start + reader.line_num + 1
        regular = columns > 1 or all(len(row) == 1 for _, row in rows)
    except csv.Error as error:
        if columns > 1:
            raise PromptError(f"{begin} is not a row of a table: {error}") from None
        regular = False
    if regular:
        return rows
    for line in lines[1:]:
        if _opens(_unquoted(line.text)):
            raise PromptError(f"{line.line} has an open quote; a caption stands on one line")
    return [(line.line, [_unquoted(line.text)]) for line in lines[1:]]


def _opens(cell: str) -> bool:
    """Return whether a cell begins with a quote that is not closed."""
    return cell.startswith('"') and cell.count('"') % 2 == 1


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if quoted else cell


def _plain(lines: Sequence[Prompt]) -> Iterator[Prompt]:
    if all(_unquoted(line.text) != line.text for line in lines):
        yield from (Prompt(_unquoted(line.text), line.line) for line in lines)
        return
    if all(line.text.startswith(LIST_MARKS) for line in lines[1:] or lines):
        raise PromptError(f"{lines[-1].line} is an item of a list; write the caption alone")
    if problem := _not_prompts([line.text for line in lines]):
        raise PromptError(f"{lines[0].line} {problem}")
    for line in lines:
        if problem := _not_a_prompt(line.text):
            raise PromptError(f"{line.line} {problem}")
        yield line


def _not_prompts(lines: Sequence[str]) -> str:
    """Return what the lines of plain text are together, if they cannot be prompts; else an empty text."""
    if all(map(CELL_OF_A_ROW.match, lines)):
        return _NO_HEADER
    if len(lines) == 1:
        return ""
    if any(sign in lines[0] for sign in ",;|") and all(map(CELL_OF_A_ROW.match, lines[1:])):
        return _NO_COLUMN
    if all(re.match(r"\d+[.)] ", line) for line in lines):
        return "is numbered; write the caption alone"
    first = lines[0]
    if re.fullmatch(r"[\"']?[\w-]+:?[\"']?", first) and _words(first) & {*KEYS, *ALIKE}:
        return f"is the header of another column than {', '.join(KEYS[:3])}"
    sign = next((sign for sign in ";|," if sign in first), "")
    if not sign or len({_cells(line, sign) for line in lines}) > 1:
        return ""
    cells = first.split(sign)
    if all(re.fullmatch(r"[\"']?[\w-]*[\"']?", cell) for cell in cells):
        return _NO_COLUMN
    apart = not any(cell.startswith(" ") for cell in cells[1:])
    if apart and any(len(cell) <= 30 and _words(cell) & set(KEYS) for cell in cells):
        return _NO_COLUMN
    return _NO_HEADER if sign in ";|" and not any(f"{sign} " in line for line in lines) else ""


def _cells(line: str, sign: str) -> int:
    """Return the number of cells of a line as a row of a table; 0 if it is too long for one."""
    try:
        return len(next(csv.reader([line], delimiter=sign)))
    except csv.Error:
        return 0


def _words(cell: str) -> set[str]:
    return set(re.findall(r"[a-z]+", cell.lower()))


def _not_a_prompt(line: str) -> str:
    """Return what a line of plain text is, if it cannot be a prompt; else an empty text."""
    if line in ("[", "{", "]", "}"):
        return "is part of a JSON document"
    if line.startswith(LIST_MARKS):
        return "is an item of a list; write the caption alone"
    if re.match(r"#+( |!|$)|//", line):
        return "is a comment or a heading; write captions alone"
    if MARKUP.match(line):
        return "is HTML or XML"
    if KEY_AND_COLON.match(line):
        return "is a line of YAML; write the caption alone"
    if re.match(r"\w+\s*=\s*[\[({\"']", line):
        return "is a line of a program or of TOML; write the caption alone"
    if re.search(r"\d --> \d", line) or line == "WEBVTT":
        return "is of subtitles, with times; write the captions alone"
    if re.match(r"\\[A-Za-z]+[{\[]", line):
        return "is a command of LaTeX"
    if re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d", line):
        return "begins with a time, as a log does; write the caption alone"
    if re.fullmatch(r"\[[\w .-]+\]", line):
        return "is the head of a section, as of an INI file; write captions alone"
    if RULE.fullmatch(line):
        return "holds no word"
    if "\t" in line:
        return "holds a tab; a table needs a first row that names its columns, one of them prompt, caption or text"
    if line[0] in "[{" and _loaded(line.rstrip(",")) is not NOT_JSON:
        return "is JSON"
    if line[0] == "[" and line[-1] == "]" and line[1] in "\"'":
        return "is a list; write the captions alone, or as JSON"
    if (len(line) > 1 and line[0] == line[-1] and line[0] in "\"'") or line.endswith(('",', "',")):
        return "is in quotes; write the caption alone"
    return ""
