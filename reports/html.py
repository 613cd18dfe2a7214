"""The page of a run: one file, no network, readable on paper, a phone, in the light and in the dark."""

import base64
import io
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.colors import to_hex
from PIL import Image

from reports.findings import Finding, finding
from reports.load import Run
from reports.picture_grid import (
    MAP_COLOURS,
    MAP_TITLES,
    NO_SCORE,
    WHO_COLOURS,
    grid_columns,
    grid_note,
    grid_prompts,
    map_rgb,
    uncertainty_top,
)
from reports.sweep_plot import numeric_axes, sweep_name
from reports.words import significant


class _Column(NamedTuple):
    """A column of the table on the page. scale: what the value is multiplied by, so that the title's unit holds."""

    title: str
    name: str
    low: str = ""
    high: str = ""
    scale: float = 1.0


_COLUMNS = (
    _Column("images", "images"),
    _Column("latency, mean (s)", "latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s"),
    _Column("p50 (s)", "latency_p50_s"),
    _Column("p95 (s)", "latency_p95_s"),
    _Column("p99 (s)", "latency_p99_s"),
    _Column("speed-up (× base)", "speedup", "speedup_lo", "speedup_hi"),
    _Column("first token (s)", "first_token_s"),
    _Column("decode (s)", "decode_s"),
    _Column("calls", "calls"),
    _Column("device passes", "device_passes"),
    _Column("cloud passes", "cloud_passes"),
    _Column("cloud calls (% of tokens)", "cloud_call_pct"),
    _Column("cloud_nll (nats per token)", "cloud_nll", "cloud_nll_lo", "cloud_nll_hi"),
    _Column("fd_scenes", "fd_scenes", "fd_scenes_lo", "fd_scenes_hi"),
    _Column("f1_scenes", "f1_scenes", "f1_scenes_lo", "f1_scenes_hi"),
    _Column("align_scenes (% of attributes)", "align_scenes", "align_scenes_lo", "align_scenes_hi", scale=100.0),
    _Column("equal to base's greedy (%)", "base_greedy_pct", "base_greedy_pct_lo", "base_greedy_pct_hi"),
    _Column("equal to cloud's arg max (%)", "cloud_greedy_pct", "cloud_greedy_pct_lo", "cloud_greedy_pct_hi"),
    _Column("distinct images", "distinct_images"),
    _Column("up (kB)", "bytes_up", scale=1e-3),
    _Column("down (kB)", "bytes_down", scale=1e-3),
    _Column("device energy (J)", "device_energy_j"),
    _Column("cloud GPU (s)", "cloud_gpu_s"),
    _Column("cloud busy (%)", "cloud_utilisation", scale=100.0),
    _Column("under way, mean", "under_way_mean"),
    _Column("waiting in the cloud, mean", "cloud_waiting_mean"),
    _Column("refused", "refused"),
    _Column("unfinished", "unfinished"),
    _Column("cost (USD per 1000 images)", "cost_usd", scale=1000.0),
    _Column("goodput (per s)", "goodput_per_s"),
    _Column("retries", "retries"),
    _Column("by the device after a deadline (% of tokens)", "fallback_pct"),
    _Column(
        "cloud_nll more for it (nats per token)",
        "fallback_cloud_nll_cost",
        "fallback_cloud_nll_cost_lo",
        "fallback_cloud_nll_cost_hi",
    ),
)
_IF_ANY = ("refused", "unfinished", "retries", "fallback_pct", "fallback_cloud_nll_cost")  # shown where there are some
_ELSEWHERE = (
    "program",
    "run_format",
    "columns",
    "notes",
    "warnings",
    "as_if",
    "name",
    "compute",
)  # of provenance, not in its table

_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfc;--card:#fff;--ink:#1b1f24;--muted:#5c6470;--line:#e1e5ea;
--accent:#b34700;--soft:#fdf3ea}
@media(prefers-color-scheme:dark){:root{--bg:#0d0e10;--card:#141414;--ink:#e8eaed;--muted:#a3abb5;--line:#2b2f35;--accent:#ff9d57;
--soft:#2a1d12}.plot{filter:invert(.92) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main,header,footer{max-width:1200px;margin:0 auto;padding:0 20px}
header{padding-top:36px}h1{font-size:1.9rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:44px 0 12px}h3{font-size:1rem;margin:22px 0 8px}
p{max-width:76ch;margin:8px 0}.muted,.note{color:var(--muted)}.note{font-size:.87rem}
.as-if{display:inline-block;background:var(--soft);color:var(--accent);
border-radius:6px;padding:5px 11px;margin:8px 0 0;font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px}
.card h3{margin:0 0 6px;color:var(--muted);font-size:.88rem}
.card p{margin:0 0 6px;font-size:.94rem}.card p:nth-of-type(1){font-weight:600;font-size:1.02rem;line-height:1.4}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
.scroll:focus-visible,button:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.scroll img.plot{display:block;width:100%;min-width:720px;padding:12px}.scroll img.narrow{max-width:860px;margin:0 auto}
table{border-collapse:collapse;font-size:.86rem;width:100%}
th,td{padding:7px 11px;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline;white-space:nowrap}
thead th{vertical-align:bottom;white-space:normal;min-width:92px;font-weight:600}
tbody tr:last-child>*{border-bottom:0}tbody th{font-weight:500}.text{text-align:left}
td,.card{font-variant-numeric:tabular-nums}td small{display:block;color:var(--muted);font-size:.78rem}
.pin{position:sticky;left:0;background:var(--card);z-index:1;border-right:1px solid var(--line)}
tr.best .pin{font-weight:700}.tag{margin-left:7px;font-size:.7rem;font-weight:600;color:var(--accent);background:var(--soft);
border-radius:4px;padding:1px 6px}
th button{all:unset;cursor:pointer;font-weight:600;position:relative}th button::after{position:absolute;right:-.85em;bottom:0}
th[aria-sort=ascending] button::after{content:"\\2191"}th[aria-sort=descending] button::after{content:"\\2193"}
.tiles{display:flex;flex-wrap:wrap;gap:14px}.tiles .one{display:flex;gap:5px}
.tiles figure{margin:0;width:132px}.tiles img{width:132px;height:132px;display:block;border-radius:4px;image-rendering:pixelated}
.tiles figcaption{font-size:.76rem;line-height:1.35;color:var(--muted);margin-top:4px;overflow-wrap:anywhere}
.tiles figcaption b{color:var(--ink);font-weight:600}
.key{display:flex;flex-wrap:wrap;gap:8px 20px;align-items:center;font-size:.85rem;color:var(--muted);margin-top:14px}
.key i{display:inline-block;width:13px;height:13px;border-radius:3px;margin-right:6px;vertical-align:-2px}.key .ramp{width:130px}
dl{margin:0;font-size:.9rem}dl>div{display:grid;grid-template-columns:minmax(150px,250px) 1fr;gap:4px 18px;padding:7px 16px;
border-bottom:1px solid var(--line)}dl>div:last-child{border:0}
dt{font-weight:600;overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
dl.card{padding:4px 0}
pre{font:.85rem/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace;margin:0;padding:12px 16px;overflow-x:auto}
details{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:12px 0}
summary{cursor:pointer;padding:10px 16px;font-weight:600}
details dl{border-top:1px solid var(--line)}details pre{border-top:1px solid var(--line)}
footer{padding-top:32px;padding-bottom:48px}
@media(max-width:600px){dl>div{grid-template-columns:1fr}h1{font-size:1.5rem}
.tiles figure,.tiles img{width:96px}.tiles img{height:96px}}
@media print{.scroll{overflow:visible}.scroll img.plot{min-width:0}}
"""

_SCRIPT = """
for(const th of document.querySelectorAll("th[data-column]"))th.querySelector("button").addEventListener("click",()=>{
const body=th.closest("table").tBodies[0],i=+th.dataset.column,up=th.getAttribute("aria-sort")!=="ascending";
for(const other of th.parentNode.children)other.removeAttribute("aria-sort");
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>row.cells[i].dataset.v,number=th.dataset.kind==="number";
const order=(a,b)=>{const x=key(a),y=key(b);if(x===""||y==="")return(x==="")-(y==="");
return(up?1:-1)*(number?x-y:x.localeCompare(y))};
for(const row of[...body.rows].sort(order))body.append(row)});
"""


def page(run: Run, plots: Mapping[str, bytes]) -> str:
    """The HTML of a run, with its plots (`plots.draw_plots`) inside."""
    findings = [finding(condition, cases, where=False) for condition, cases in run.conditions()]
    several = len(findings) > 1
    as_if = f'<p class="as-if">{escape(_sentence(run.as_if))}</p>' if run.as_if else ""
    under = f'<p class="note">{escape(_sentence(run.as_if))}</p>' if run.as_if else ""
    parts = [
        _warnings(run),
        _section("What wins where" if several else "What wins", _cards(findings)),
        _plot(plots, "latency_quality", "Latency and quality", "Mean latency against quality. " + _titles(run)),
        _section("Every case", _table(run, findings) + under),
        _plot(
            plots,
            "latency_parts",
            "Where the seconds go",
            "Mean latency of every case in its ten parts. " + _titles(run),
        ),
        _plot(
            plots,
            "queue_over_time",
            "The queue over time",
            "Requests that wait in the cloud against simulated time, by method.",
        ),
        *[
            _plot(plots, sweep_name(key), f"Along {key}", f"Latency, cloud calls and quality against {key}.")
            for key in numeric_axes(run)
        ],
        _pictures(run),
        _provenance(run),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(run.name)}: ciar-sim</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f'<header>\n<h1>{escape(run.name)}</h1>\n<p class="muted">{_what(run)}</p>\n{as_if}\n</header>',
            "<main>",
            *[part for part in parts if part],
            "</main>",
            '<footer class="note">ciar-sim. The same numbers, unrounded: summary.csv, a row per case; requests.parquet, '
            "a row per image. timeline.json.gz opens in Perfetto.</footer>",
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _warnings(run: Run) -> str:
    """Saturated cases, before anything is said about who wins."""
    texts = [str(text) for text in run.provenance.get("warnings") or []]
    if not texts:
        return ""
    items = "".join(f"<li>{escape(_sentence(text))}.</li>" for text in texts)
    return f'<section role="alert">\n<h2>Warnings</h2>\n<ul>{items}</ul>\n</section>'


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _what(run: Run) -> str:
    methods, conditions = len(run.labels()), run.summary["condition"].nunique()
    images = int(run.summary["images"].sum())
    parts = [f"{methods} method{'s' * (methods != 1)}", f"{images:,} request{'s' * (images != 1)} answered"]
    if conditions > 1:
        parts.insert(1, f"{conditions} conditions")
    return " · ".join(parts)


def _titles(run: Run) -> str:
    return ". ".join(finding(condition, cases).title for condition, cases in list(run.conditions())[:6]) + "."


def _cards(findings: list[Finding]) -> str:
    cards = []
    for one in findings:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in one.sentences)
        cards.append(f'<article class="card"><h3>{escape(one.condition)}</h3>{said}</article>')
    note = (
        "Brackets hold 95 % intervals, each on its own, not adjusted for the number of comparisons. A method is told from base "
        "by the interval of its speed-up, from another method by that of the difference of their latencies, both paired by request; "
        "its pictures from base's by the difference of cloud_nll, paired by prompt."
    )
    return f'<div class="cards">{"".join(cards)}</div>\n<p class="note">{escape(note)}</p>'


def _plot(plots: Mapping[str, bytes], name: str, title: str, alt: str) -> str:
    if f"{name}.svg" not in plots:
        return ""
    data = base64.b64encode(plots[f"{name}.svg"]).decode()
    with Image.open(io.BytesIO(plots[f"{name}.png"])) as drawn:
        narrow = " narrow" if drawn.width < 1300 else ""
    image = f'<img class="plot{narrow}" alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    return _section(title, f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{image}</div>')


# ---- table ------------------------------------------------------------------------------------------------------------


def _table(run: Run, findings: list[Finding]) -> str:
    best = {(one.condition, one.fastest) for one in findings}
    several = len(findings) > 1
    columns = [column for column in _COLUMNS if column.name in run.summary and run.summary[column.name].notna().any()]
    columns = [
        column for column in columns if column.name not in _IF_ANY or (run.summary[column.name].fillna(0) != 0).any()
    ]
    hidden = [column.name for column in _COLUMNS if column not in columns and column.name not in _IF_ANY]
    meaning = {name: text for names, text in run.provenance.get("columns", {}).items() for name in names.split(", ")}
    heads = ["method", *(["condition"] if several else [])]
    head = "".join(
        f'<th scope="col" class="text{" pin" * (i == 0)}" data-column="{i}" data-kind="text">'
        f'<button type="button">{title}</button></th>'
        for i, title in enumerate(heads)
    )
    head += "".join(
        f'<th scope="col" data-column="{i}" data-kind="number" title="{escape(meaning.get(column.name, column.name))}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for i, column in enumerate(columns, start=len(heads))
    )
    rows = []
    for place, (_, row) in enumerate(run.summary.iterrows()):
        won = (row["condition"], row["label"]) in best
        tag = '<span class="tag">lowest mean</span>' if won else ""
        label = escape(str(row["label"]))
        cells = f'<th scope="row" class="text pin" data-v="{label}">{label}{tag}</th>'
        if several:
            cells += f'<td class="text" data-v="{place:06d}">{escape(str(row["condition"]))}</td>'
        cells += "".join(_cell(row, column) for column in columns)
        rows.append(f'<tr class="best">{cells}</tr>' if won else f"<tr>{cells}</tr>")
    note = "A heading sorts. Small print: 95 % intervals. –: no samples."
    if hidden:
        note += f" Not shown, for want of data: {', '.join(hidden)}."
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table>"
    scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="Every case">{table}</div>'
    return f'{scroll}\n<p class="note">{escape(note)}</p>'


def _cell(row: pd.Series, column: _Column) -> str:
    value = float(row[column.name]) * column.scale
    raw = "" if math.isnan(value) else repr(value)
    whole = column.name in ("images", "distinct_images")
    text = f"{value:,.0f}" if whole and math.isfinite(value) else significant(value)
    if column.low and math.isfinite(row[column.low]) and row[column.low] != row[column.high]:
        low, high = (significant(float(row[end]) * column.scale) for end in (column.low, column.high))
        text += f"<small>{low} – {high}</small>"
    return f'<td data-v="{raw}">{text}</td>'


# ---- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(run: Run) -> str:
    prompts, columns, top = grid_prompts(run), grid_columns(run), uncertainty_top(run)
    if not prompts:
        return ""
    by_place = {(picture.method, picture.kind, picture.prompt): picture for picture in run.pictures}
    rows = []
    for prompt, text in prompts.items():
        groups: dict[str, list[str]] = {}
        for method, kind in columns:
            picture = by_place.get((method, kind, prompt))
            if picture is None:
                continue
            if kind == "image":
                data, caption = picture.png, f"<b>{escape(method)}</b>"
            else:
                data, caption = _png(map_rgb(picture, top)), escape(MAP_TITLES[kind])
            alt = escape(f"{method}, {kind}: {text}")
            source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            tile = f'<figure><img alt="{alt}" src="{source}"><figcaption>{caption}</figcaption></figure>'
            groups.setdefault(method, []).append(tile)
        tiles = "".join(f'<div class="one">{"".join(group)}</div>' for group in groups.values())
        rows.append(f'<h3>“{escape(text)}”</h3>\n<div class="tiles">{tiles}</div>')
    kinds = {kind for _, kind in columns}
    keys = []
    if "uncertainty" in kinds:
        stops = ",".join(to_hex(MAP_COLOURS(i / 6)) for i in range(7))
        ramp = f'<i class="ramp" style="background:linear-gradient(90deg,{stops})"></i>'
        keys.append(f"<span>uncertainty of the token: 0 {ramp}{significant(top)} and above</span>")
        keys.append(f'<span><i style="background:{NO_SCORE}"></i>no score</span>')
    if "decided" in kinds:
        keys.append(f'<span><i style="background:{to_hex(WHO_COLOURS(1))}"></i>decided by the device</span>')
        keys.append(f'<span><i style="background:{to_hex(WHO_COLOURS(0))}"></i>decided by the cloud</span>')
    key = f'<div class="key">{"".join(keys)}</div>' if keys else ""
    return _section("Pictures", "\n".join(rows) + key + f'\n<p class="note">{escape(grid_note(run))}</p>')


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


# ---- provenance -------------------------------------------------------------------------------------------------------


def _provenance(run: Run) -> str:
    given = run.provenance
    parts = []
    if run.as_if:
        parts.append(f"<p>{escape(_sentence(run.as_if))}.</p>")
    compute = given.get("compute")
    if compute:
        pairs = _flat(compute) if isinstance(compute, Mapping) else [("compute", str(compute))]
        parts.append("<h3>How each compute time was obtained</h3>" + _definitions(pairs, "card"))
    rest = [pair for key, value in given.items() if key not in _ELSEWHERE for pair in _flat(value, key)]
    if rest:
        parts.append("<h3>Everything the numbers rest on</h3>" + _definitions(rest, "card"))
    parts.append(f"<details><summary>The scenario, resolved</summary><pre>{escape(run.scenario)}</pre></details>")
    sections = [_section("Provenance", "\n".join(parts))]
    notes = given.get("notes") or []
    if notes:
        items = "".join(f"<li>{escape(_sentence(str(note)))}</li>" for note in notes)
        sections.append(_section("What is not modelled", f"<ul>{items}</ul>"))
    columns = given.get("columns") or {}
    if columns:
        table = _definitions([(name, str(text)) for name, text in columns.items()], "")
        summary = "<summary>Definitions of all columns of summary.csv</summary>"
        sections.append(_section("What the columns mean", f"<details>{summary}{table}</details>"))
    return "\n".join(sections)


def _definitions(pairs: Iterable[tuple[str, str]], style: str) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)
    return f'<dl class="{style}">{rows}</dl>'


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in _flat(value))
    return str(value)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names and text."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        nested = any(isinstance(item, Mapping) for item in value)
        return [(name, ("; " if nested else ", ").join(_words(item) for item in value))]
    return [(name, "unknown" if value is None else str(value))]
