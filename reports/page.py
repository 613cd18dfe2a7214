"""The page of a run: one HTML file without external resources, for screens, phones and paper.

Layout, style and script are in templates/. This module prepares their content.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from PIL import Image

from reports.advice import advice, condition_keys, more_advice
from reports.findings import Finding
from reports.image_grid import (
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
from reports.load import Run
from reports.metrics import AFTER_QUALITY, BEFORE_QUALITY, WHOLE, Metric, metrics
from reports.sweep_plot import numeric_axes, sweep_name
from reports.words import axis_label, grouped, sentence, significant
from reports.words import condition as condition_words
from simulator.core.errors import counted
from simulator.protocol.methods import METHODS
from simulator.results.columns import interval_columns

TEMPLATES = Path(__file__).parent / "templates"


# Keys of provenance.json that are shown elsewhere on the page, or do not interest a reader.
SHOWN_ELSEWHERE = (
    "program",
    "run_format",
    "columns",
    "scenario_sha256",
    "notes",
    "warnings",
    "as_if",
    "name",
    "compute",
)


def page(run: Run, findings: Sequence[Finding], plots: Mapping[str, bytes]) -> str:
    """Return the HTML of a run. plots: file name -> bytes, from `build.draw_plots`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sentence"] = sentence
    return environment.get_template("page.html").render(
        style=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        run=run,
        counts=_counts(run),
        advice=advice(findings, condition_keys(run)).splitlines(),
        more_advice=more_advice(findings, condition_keys(run)),
        findings=findings,
        warnings=grouped([str(text) for text in run.provenance.get("warnings") or []]),
        plots=_plots(run, findings, plots),
        table=_table(run, findings),
        methods=_methods(run),
        images=_images(run),
        compute=_compute(run.provenance.get("compute") or {}),
        facts=[
            pair for key, value in run.provenance.items() if key not in SHOWN_ELSEWHERE for pair in _flat(value, key)
        ],
        notes=[str(note) for note in run.provenance.get("notes") or []],
        column_definitions=[(str(name), str(text)) for name, text in (run.provenance.get("columns") or {}).items()],
    )


def _counts(run: Run) -> str:
    methods, settings = run.summary["method_name"].nunique(), len(run.labels())
    conditions, images = run.summary["condition"].nunique(), int(run.summary["images"].sum())
    parts = [counted(methods, "method"), f"{counted(images, 'request')} answered"]
    if settings > methods:
        parts[0] += f" in {settings} settings"
    if conditions > 1:
        keys = condition_keys(run)
        grid = conditions == math.prod(run.summary[key].nunique(dropna=False) for key in keys)
        parts.insert(
            1, f"{conditions} conditions ({(' × ' if grid else ', ').join(keys)})"
        )  # a comma: zipped, or at random points
    return " · ".join(parts)


# ---- plots and images -------------------------------------------------------------------------------------------------


def _plots(run: Run, findings: Sequence[Finding], plots: Mapping[str, bytes]) -> dict[str, list[dict[str, Any]]]:
    """Return the plots by their place on the page: "first" before the table, "rest" after it."""
    headings = ". ".join(said.heading for said in findings[:6]) + "."
    first = [("at_a_glance", "At a glance", f"At most four methods. {headings}")]
    rest = [
        ("latency_quality", "Latency and quality", f"Latency against quality. {headings}"),
        ("heat_maps", "Over two settings", "Latency, cloud calls and quality over two settings of a method."),
        ("speedup_table", "Speed-up under every condition", "Speed-up and latency by method and condition."),
        (
            "load_curves",
            "Against the load",
            "p95 and goodput against the load, with the objective and the knee of each method.",
        ),
        ("latency_parts", "Where the time goes", f"Latency of every case in its ten parts. {headings}"),
        (
            "queue_over_time",
            "The queue over time",
            "Requests that wait in the cloud against simulated time, by method.",
        ),
        *(
            (
                sweep_name(key),
                f"Against {axis_label(key)}",
                f"Latency, cloud calls and quality against {axis_label(key)}.",
            )
            for key in numeric_axes(run)
        ),
    ]
    if "at_a_glance.svg" not in plots:
        first, rest = rest[:1], rest[1:]
    return {
        place: [_plot(name, title, alt, plots) for name, title, alt in group if f"{name}.svg" in plots]
        for place, group in (("first", first), ("rest", rest))
    }


def _plot(name: str, title: str, alt: str, plots: Mapping[str, bytes]) -> dict[str, Any]:
    svg = plots[f"{name}.svg"].decode()
    keeps_colours = name in ("heat_maps", "speedup_table")
    return {"name": name, "title": title, "svg": Markup(inline_svg(svg, name, alt)), "keeps_colours": keeps_colours}


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Convert an SVG of `figure.render` to an element of a page.

    Only ids that are referenced are kept, prefixed with `name` so that they are unique on the page. Elements of a method have the
    attribute `data-method`.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    kept = {*re.findall(r'(?:url\(|href=")#([^)"]+)', svg)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in kept else "", svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head, _, body = svg.partition(">")
    width = re.search(r' width="([\d.]+)pt"', head)
    head = re.sub(r' (width|height|version|xmlns:xlink|xmlns)="[^"]*"', "", head)
    wide = f' style="max-width:{float(width[1]) * 96 / 72:.0f}px"' if width else ""
    return f'{head}{wide} role="img" aria-label="{escape(alt)}">{body}'


def _images(run: Run) -> dict[str, Any]:
    """Return the rows of images and maps by prompt, and the legends of the maps' colours."""
    prompts, columns, top = grid_prompts(run), grid_columns(run), uncertainty_top(run)
    by_place = {(one.method, one.kind, one.prompt): one for one in run.images}
    rows = []
    for prompt, text in prompts.items():
        groups: dict[str, list[dict[str, str]]] = {}
        for method, kind in columns:
            one = by_place.get((method, kind, prompt))
            if one is None:
                continue
            data = one.png if kind == "image" else _png(map_rgb(one, top))
            src = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            groups.setdefault(method, []).append({"kind": kind, "src": src, "caption": MAP_TITLES.get(kind, method)})
        rows.append({"text": text, "groups": groups})
    kinds = {kind for _, kind in columns}
    stops = ",".join(to_hex(MAP_COLOURS(i / 6)) for i in range(7)) if "uncertainty" in kinds else ""
    who = [to_hex(WHO_COLOURS(1)), to_hex(WHO_COLOURS(0))] if "decided" in kinds else []
    return {
        "rows": rows,
        "note": grid_note(run),
        "ramp": stops,
        "top": significant(top),
        "no_score": NO_SCORE,
        "who": who,
    }


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


# ---- table ------------------------------------------------------------------------------------------------------------


def _table(run: Run, findings: Sequence[Finding]) -> dict[str, Any]:
    columns = metrics(run.summary)
    shown = {column.name for column in columns}
    usual = [*run.judged, *(one.name for one in (*BEFORE_QUALITY, *AFTER_QUALITY) if not one.if_any)]
    meaning = {
        name: str(text)
        for names, text in (run.provenance.get("columns") or {}).items()
        for name in str(names).split(", ")
    }
    best = {(said.condition, said.fastest) for said in findings if len(said.cases) > 1}
    advised = {(said.condition, label) for said in findings for label in said.at_base_quality if len(said.cases) > 1}
    fronts = {(said.condition, label) for said in findings for label in said.front}
    conditions = {said.condition: place for place, said in enumerate(findings)}
    of_runs = "run" in run.swept
    others = tuple(key for key in run.swept if key != "run")

    def rest(row: pd.Series) -> str:
        """Return the condition of a row without the run."""
        return condition_words({str(key): value for key, value in row.items()}, others)

    rows = [
        {
            "label": str(row["label"]),
            "method": str(row["method_name"]),
            "condition": row["condition"],
            "place": conditions[row["condition"]],
            "run": str(row["run"]) if of_runs else "",
            "rest": rest(row),
            "best": (row["condition"], row["label"]) in best,
            "advised": (row["condition"], row["label"]) in advised,
            "front": (row["condition"], row["label"]) in fronts,
            "cells": [_cell(row, column) for column in columns],
        }
        for _, row in run.summary.iterrows()
    ]
    rows.sort(key=lambda row: int(row["place"]))  # by condition, as in the terminal
    labels = run.labels()
    bases = run.summary.loc[run.summary["method_name"] == "base", "label"]
    return {
        "columns": [(column, meaning.get(column.name, column.name)) for column in columns],
        "hidden": [name for name in usual if name not in shown],
        "rows": rows,
        "labels": labels,
        "runs": list(dict.fromkeys(map(str, run.summary["run"]))) if of_runs else [],
        "baseline": str(bases.iloc[0]) if len(bases) else "",
        "conditions": list(conditions),
        "advises": bool(advised),
        "methods": list(dict.fromkeys(str(name) for name in run.summary["method_name"])),
    }


def _cell(row: pd.Series, column: Metric) -> dict[str, str]:
    """Return the texts of a cell: raw, the number for sorting, empty for none; text and interval, as displayed."""
    value = float(row[column.name]) * column.scale
    low, high = interval_columns(column.name)
    interval = ""
    if low in row and math.isfinite(row[low]) and row[low] != row[high]:
        interval = " – ".join(significant(float(row[end]) * column.scale) for end in (low, high))
    whole = column.name in WHOLE and math.isfinite(value)
    return {
        "raw": "" if math.isnan(value) else repr(value).replace("inf", "Infinity"),  # as JavaScript reads it
        "text": f"{value:,.0f}" if whole else significant(value),
        "interval": interval,
    }


def _methods(run: Run) -> dict[str, str]:
    """Return the description of each method of the run: the first paragraph of the docstring of its settings."""
    names = dict.fromkeys(str(name) for name in run.summary["method_name"])
    return {name: _first_paragraph(METHODS[name].settings.__doc__) for name in names if name in METHODS}


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


# ---- provenance -------------------------------------------------------------------------------------------------------


def _compute(compute: Any) -> list[tuple[str, str]]:
    return _flat(compute) if isinstance(compute, Mapping) else [("compute", str(compute))]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Flatten nested mappings to dotted names and texts."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        nested = any(isinstance(item, Mapping) for item in value)
        return [(name, ("; " if nested else ", ").join(_words(item) for item in value))]
    return [(name, "unknown" if value is None else str(value))]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in _flat(value))
    return str(value)
