"""LlamaGen's cleaning of captions before they are encoded by its T5.

Source: LlamaGen, `language/t5.py` (the steps come from DeepFloyd IF through PixArt-alpha). URLs, HTML, nicknames, numbers that look like
identifiers, file names and words of web shops are removed; dashes, quotes and blanks are unified. LlamaGen cleans every caption twice.
"""

import html
import re
import warnings
from typing import Any
from urllib.parse import unquote_plus

DOMAINS = "com|co|ru|net|org|edu|gov|it"
URL = r"\b((?:{}:(?:\/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:{})[\w/-]*\b\/?(?!@)))"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
CJK = (
    "\u31c0-\u31ef",
    "\u31f0-\u31ff",
    "\u3200-\u32ff",
    "\u3300-\u33ff",
    "\u3400-\u4dbf",
    "\u4dc0-\u4dff",
    "\u4e00-\u9fff",
)
DASHES = "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"

# Patterns and their replacements, applied in order to the lower-case caption: before and after HTML parsing, and after resolving entities.
BEFORE_HTML = ((r"<person>", "person"), (URL.format("https?", DOMAINS), ""), (URL.format("www", DOMAINS), ""))
AFTER_HTML = (
    (r"@[\w\d]+\b", ""),
    *((f"[{block}]+", "") for block in CJK),
    (f"[{DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\][}{|\\/*]{1,}", " "),
    (r"\s+\.\s+", " "),
)
AFTER_ENTITIES = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def clean(caption: str) -> str:
    """Clean a caption once. Raises ImportError if ftfy or beautifulsoup4 is not installed."""
    import ftfy
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    text = _replaced(unquote_plus(caption).strip().lower(), BEFORE_HTML)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like a file name
        text = _replaced(BeautifulSoup(text, features="html.parser").text, AFTER_HTML)
    if len(re.findall(r"[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _replaced(text, AFTER_ENTITIES).strip()


def _replaced(text: str, rules: Any) -> str:
    for pattern, by in rules:
        text = re.sub(pattern, by, text)
    return text
