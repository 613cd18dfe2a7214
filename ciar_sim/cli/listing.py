"""The tables of `ciar-sim list`."""

import itertools
import re

from rich.markup import escape
from rich.table import Table

from ciar_sim.cli.console import drawn


def listing(what: str) -> str:
    """Return the table of `ciar-sim list WHAT` as text."""
    tables = {
        "methods": _methods,
        "presets": _presets,
        "hardware": _hardware,
        "models": _models,
        "pairs": _pairs,
        "backbones": _backbones,
        "scenarios": _scenarios,
    }
    return drawn(tables[what]())


def _methods() -> Table:
    from simulator.core.part import written
    from simulator.experiment.schema.methods import ENTRIES, settings_of

    table = _table("method", "setting", "default", "meaning")
    for name, entry in ENTRIES.items():
        table.add_row(f"[bold]{name}", "", "", (entry.__doc__ or "").split("\n\n")[0])
        for key in settings_of(name):
            field = entry.model_fields[key]
            default = "" if field.default is None else written(field.default)  # its description explains the default
            table.add_row("", key, default, escape(field.description or ""))
    return table


def _presets() -> Table:
    from simulator.pricing import catalogue

    table = _table("preset", "down Mbit/s", "up Mbit/s", "RTT ms", "jitter SD ms", "source")
    for name in catalogue.names("networks"):
        n = catalogue.network(name)
        table.add_row(
            f"[bold]{name}", f"{n.down_mbps:g}", f"{n.up_mbps:g}", f"{n.rtt_ms:g}", f"{n.jitter_ms:g}", n.source
        )
    return table


def _hardware() -> Table:
    from simulator.pricing import catalogue

    table = _table("hardware", "what", "fp16 TFLOP/s", "GB/s", "GB", "W", "evidence")
    table.add_row("[bold]local", "this machine, with model: pair", "", "", "", "", "measured")
    for name in catalogue.names("hardware"):
        h = catalogue.hardware(name)
        table.add_row(
            f"[bold]{name}",
            h.title,
            *(f"{figure:g}" for figure in (h.fp16_tflops, h.bandwidth_gb_s, h.memory_gb, h.power_w)),
            h.evidence,
        )
    return table


def _models() -> Table:
    from simulator.pricing import catalogue

    table = _table("model", "what", "parameters", "read per pass", "tokens", "evidence")
    table.add_row("[bold]pair", "the pair's own size", "", "", "", "")
    for name in catalogue.names("models"):
        m = catalogue.model(name)
        counts = (f"{count / 1e6:,.0f} M" for count in (m.parameters, m.pass_parameters))
        table.add_row(f"[bold]{name}", m.title, *counts, str(m.image_tokens), m.evidence)
    return table


def _pairs() -> Table:
    from simulator.protocol.pairs import SUBJECTS, known_pairs, pair_manifest
    from simulator.results.columns import judged

    table = _table("pair", "", "")
    manifests = {name: pair_manifest(name) for name in known_pairs()}
    for name, m in sorted(manifests.items(), key=lambda one: one[1].statistics is not None):  # pairs with images first
        quality = (*(judged(m.subject) if m.subject != "other" else ()), "cloud_nll")
        rows = {
            "draws": f"{'no images (statistical)' if m.statistics else SUBJECTS[m.subject]}, {m.image_size} x {m.image_size} pixels",
            "tokens": f"{m.grid} x {m.grid}, of {m.codebook_size} codes",
            "cloud": f"{m.cloud.n_layer} layers, width {m.cloud.dim}",
            "device": f"{m.device.n_layer} layer{'s' if m.device.n_layer > 1 else ''}, width {m.device.dim}"
            if m.device
            else "none",
            "prompts": "list, file" if m.subject == "other" else f"source: {m.subject}, list, file",
            "quality": "none" if m.statistics else ", ".join(quality),
            **({"rates": m.statistics.source} if m.statistics else {"weights": m.weights_hash[:12]}),
        }
        for index, (key, value) in enumerate(rows.items()):
            table.add_row(f"[bold]{name}" if index == 0 else "", key, value)
    return table


def _backbones() -> Table:
    from simulator.protocol.backbones import BACKBONES

    table = _table("pair.cloud", "what", "pixels", "guidance", "prompts")
    for name, row in BACKBONES.items():
        table.add_row(
            f"[bold]{name}",
            row.title,
            f"{row.image_size} x {row.image_size}",
            f"{row.guidance:g}",
            "class labels: list, file" if row.classes else "captions: list, file",
        )
    return table


def _scenarios() -> Table:
    from ciar_sim.shipped import SCENARIOS, shipped_scenarios

    table = _table("scenario", "question")
    for name in shipped_scenarios():
        comment = itertools.takewhile(
            lambda line: line.startswith("#"), (SCENARIOS / f"{name}.yaml").read_text().split("\n")
        )
        text = " ".join(line.removeprefix("#").strip() for line in comment)
        table.add_row(f"[bold]{name}", escape(re.split(r"(?<=[.?])\s(?=[A-Z`])", text)[0]))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0], overflow="fold")
    return table
