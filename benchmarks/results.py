"""The tables of docs/results.md, from run folders of the results scenarios; each row has the paper's figures too.

    for name in main trees claim confirmed scores readings training prefix threshold; do ciar-sim run scenarios/results-$name.yaml; done
    python -m benchmarks.results runs docs/results.md

Replaces the text between `<!-- table:NAME -->` and `<!-- end -->` and leaves the rest unchanged. A table whose run folder is missing, or
was made with weights of no shipped pair, keeps its old content; a message names it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd

from simulator.protocol.pairs import known_pairs, pair_manifest
from simulator.results.columns import judged_in


@dataclass(frozen=True)
class Paper:
    """A row of CIAR's tables as printed: cloud calls in percent, speed-up over Base, FID and F1 of the row, and FID of its Base."""

    call_pct: float | None = None
    latency: float | None = None
    fid: float | None = None
    f1: float | None = None
    base_fid: float = 23.69
    backbone: str = "LlamaGen-XL stage I"


# CIAR: Interval-based Collaborative Decoding for Image Generation Acceleration (arXiv 2603.25463), main table and ablations. The figures of
# EAGLE-2 are legible for Anole only.
PAPER = {
    "base": Paper(100.0, 1.0, 23.69, 0.6097),
    "code": Paper(30.0, 2.04, 35.67, 0.4625),
    "lantern": Paper(50.11, 1.66, 25.55, 0.5834),
    "eagle2": Paper(91.98, 1.02, 23.71, 0.6117, base_fid=19.95, backbone="Anole"),
    "entropy-lens": Paper(52.34, 1.70, 24.58, 0.5796),
    "ciar": Paper(30.44, 2.53, 24.25, 0.5997),
    "random": Paper(36.46, 2.28, 30.19, 0.5369),
    "softmax-corr": Paper(36.49, 2.27, 31.10, 0.5130),
    "discrete k=100": Paper(fid=26.04),
    "discrete k=300": Paper(fid=24.82),
}

CLAIM = {
    "base": "base",
    "code": "code",
    "random": "random",
    "entropy-lens": "entropy-lens",
    "softmax-corr": "softmax-corr",
    "ciar u": "ciar",
    "ciar lower-top": "ciar",
    "ciar published loss": "ciar",
    "ciar revised": "ciar",
}

# table -> run folder, and the paper's row by label of the run; other labels have no row in the paper
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "main": (
        "results-main",
        {
            "base": "base",
            "code": "code",
            "entropy-lens": "entropy-lens",
            "ciar at 0.30": "ciar",
            "ciar at 30 %": "ciar",
            "ciar lower-top at 30 %": "ciar",
            "ciar at 30 %, one threshold": "ciar",
        },
    ),
    "trees": (
        "results-trees",
        {"base": "base", "eagle2": "eagle2", "lantern": "lantern", "lantern delta 0.4": "lantern"},
    ),
    "claim": ("results-claim", CLAIM),
    "confirmed": ("results-confirmed", {"base": "base"}),
    "scores": (
        "results-scores",
        {
            "base": "base",
            "code": "code",
            "random": "random",
            "entropy-lens": "entropy-lens",
            "softmax-corr": "softmax-corr",
            "discrete k=100": "discrete k=100",
            "discrete k=300": "discrete k=300",
            "ciar u": "ciar",
            "ciar omega": "ciar",
            "ciar lower-top": "ciar",
        },
    ),
    "readings": (
        "results-readings",
        {"base": "base", "random": "random", "ciar, one threshold": "ciar", "ciar revised": "ciar"},
    ),
    "training": ("results-training", {"base": "base", "ciar u": "ciar"}),
    "prefix": ("results-prefix", {"base": "base"}),
    "threshold": ("results-threshold", {"base": "base"}),
}

COLUMNS = (
    "method",
    "images",
    "cloud calls %",
    "speed-up",
    "`{fd}`",
    "against base",
    "`{f1}`",
    "`{align}`",
    "`cloud_nll` - base",
)
PAPER_COLUMNS = (
    "paper: calls %",
    "speed-up",
    "FID",
    "against Base",
    "F1",
)


def results_table(summary: pd.DataFrame, paper: dict[str, str]) -> str:
    """Return a Markdown table with a row per case of a summary. Fréchet distance and FID come with their relative change against base.

    paper: label of a case -> row of the paper. The paper's columns are left out if it has a row of base only.
    """
    names, compared = judged_in(summary.columns), bool(set(paper.values()) - {"base"})
    columns = COLUMNS + (PAPER_COLUMNS if compared else ())
    base_fd = summary.loc[summary["method_name"] == "base", names.fd].iloc[0]
    swept = [name for name in summary.columns if name.startswith("methods.")]
    lines = ["| " + " | ".join(columns).format(**names._asdict()) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    for row in summary.to_dict("records"):
        label = row["method"] + "".join(
            f", {name.split('.')[-1]} {row[name]:g}" for name in swept if pd.notna(row[name])
        )
        ours = [
            label,
            str(row["distinct_images"]),
            f"{row['cloud_call_pct']:.1f}",
            f"{row['speedup']:.2f}",
            _with_interval(row, names.fd, 2),
            _change(row[names.fd], base_fd),
            _with_interval(row, names.f1, 3),
            _with_interval(row, names.align, 3),
            _with_interval(row, "cloud_nll_minus_base", 2),
        ]
        printed = PAPER.get(paper.get(row["method"], ""), Paper())
        name = "" if printed.backbone == Paper.backbone else f" ({printed.backbone})"
        theirs = [
            _number(printed.call_pct, 2),
            _number(printed.latency, 2),
            _number(printed.fid, 2) + name,
            "-" if printed.fid is None else _change(printed.fid, printed.base_fid),
            _number(printed.f1, 3),
        ]
        lines.append("| " + " | ".join([*ours, *(theirs if compared else ())]) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _with_interval(row: Mapping[Any, Any], name: str, digits: int) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    found = _number(row[name], digits)
    return found if pd.isna(low) or low == high else f"{found} ({low:.{digits}f} to {high:.{digits}f})"


def _change(value: float, base: float) -> str:
    return "-" if pd.isna(value) or pd.isna(base) else f"{100.0 * (value / base - 1.0):+.1f} %"


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Return the page with the text between each table's marks replaced.

    Raises:
        ValueError: If the page does not have exactly one place for a table.
    """
    for name, table in tables.items():
        mark = f"<!-- table:{name} -->"
        written = f"{mark}\n{table}\n<!-- end -->"
        page, count = re.subn(f"{mark}\n.*?<!-- end -->", lambda _, written=written: written, page, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name}, it needs one")
    return page


@click.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(runs: Path, page: Path) -> None:
    """Write the tables of the run folders in RUNS into PAGE."""
    tables = {}
    shipped = [pair_manifest(name).weights_hash for name in known_pairs()]
    for name, (folder, paper) in TABLES.items():
        path = runs / folder / "summary.csv"
        if not path.is_file():
            problem = "no such file"
        elif json.loads((runs / folder / "provenance.json").read_text())["pair"]["weights_sha256"] not in shipped:
            problem = "not of a shipped pair"
        else:
            tables[name] = results_table(pd.read_csv(path), paper)
            continue
        click.echo(f"{path}: {problem}; the table {name} is left as it was", err=True)
    page.write_text(with_tables(page.read_text(), tables))


if __name__ == "__main__":
    main()
