"""The paper's table: published figures, the predictions on the page, and the shipped scenario that reproduces them."""

import csv
from pathlib import Path

import pytest

from benchmarks.paper import ANOLE, GATED, STAGE_1, STAGE_2, TABLE, break_even, decode_s, speedups

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper-table.md").read_text()
GOLDEN = ROOT.parent / "shared" / "golden" / "paper_tables.csv"
NAMES = {"Inter-Head (CIAR)": "CIAR"}


def page_rows() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the published and predicted figures on the page by (backbone, method)."""
    table = PAGE.split("<!-- table:predicted -->")[1].split("<!-- end -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): (row[3], row[4]) for row in cells[1:]}


def test_gated_rows_are_within_ten_percent_of_the_published_ones() -> None:
    shown = page_rows()
    checked = [row for row in TABLE if row.method in GATED and row.latency is not None]
    assert {row.title for row in checked} == {"Entropy-Lens", "Random", "SoftmaxCorr", "CIAR"}
    for row in checked:
        published, predicted = shown[row.backbone, row.title]
        assert float(published) == row.latency
        assert float(predicted) == pytest.approx(row.latency, rel=0.10), row


def test_the_shipped_scenario_gives_the_page_its_figures(tmp_path: Path) -> None:
    methods = ["base", {"name": "entropy-lens", "threshold": 0.5}, {"name": "ciar", "threshold": 0.3}]
    found = speedups(decode_s("paper-llamagen-xl", tmp_path, {"methods": methods, "prompts.list": ["a cat"]}))
    shown = page_rows()
    assert found["ciar"] == pytest.approx(float(shown[STAGE_1, "CIAR"][1]), rel=0.02)
    assert found["entropy-lens"] == pytest.approx(float(shown[STAGE_1, "Entropy-Lens"][1]), rel=0.02)


def test_break_even_is_where_the_lines_cross() -> None:
    lines = {("base", 0.0): 8.0, ("base", 200.0): 8.2, ("a", 0.0): 4.0, ("a", 200.0): 12.2}
    lines |= {("b", 0.0): 9.0, ("b", 200.0): 9.2, ("c", 0.0): 4.0, ("c", 200.0): 4.2}
    assert break_even(lines, "a") == "100 ms"
    assert break_even(lines, "b") == "never"
    assert break_even(lines, "c") == "none: faster at any"


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the shared table of published figures is not beside this checkout")
def test_figures_are_as_published() -> None:
    rows = csv.DictReader(GOLDEN.read_text().splitlines())
    known = {
        (row["backbone"], NAMES.get(row["method"], row["method"])): row
        for row in rows
        if row["table"] in ("main_reconciled", "ablation_uncertainty")
        and (row["latency_speedup"] or row["cloud_call_pct"])
    }
    ours = {(row.backbone, row.title): row for row in TABLE if row.latency or row.call_pct}
    assert {key for key in known if key[0] in (STAGE_1, STAGE_2, ANOLE)} == set(ours)
    for key, row in ours.items():
        for name, value in (("latency_speedup", row.latency), ("cloud_call_pct", row.call_pct)):
            assert (float(known[key][name]) if known[key][name] else None) == value, (key, name)
