"""The tables of the results page, from an invented summary."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks.results import PAPER, TABLES, main, results_table, with_tables
from simulator.experiment.loading import load_scenario
from simulator.experiment.sweep import expand
from simulator.protocol.pairs import pair_manifest

ROOT = Path(__file__).resolve().parents[1]


def summary() -> pd.DataFrame:
    columns = ["method", "method_name", "distinct_images", "cloud_call_pct", "speedup"]
    rows = [["base", "base", 128, 100.0, 1.0], ["code", "code", 128, 29.69, 1.5]]
    frame = pd.DataFrame(rows, columns=columns)
    quality = {
        "fd_scenes": (4.0, 5.0),
        "f1_scenes": (0.5, 0.4),
        "align_scenes": (0.9, 0.6),
        "cloud_nll_minus_base": (0.0, 1.25),
    }
    for name, values in quality.items():
        frame[name], frame[f"{name}_lo"], frame[f"{name}_hi"] = (
            values,
            [values[0], values[1] - 0.1],
            [values[0], values[1] + 0.1],
        )
    return frame


def test_a_row_stands_beside_the_papers() -> None:
    lines = results_table(summary(), {"base": "base", "code": "code"}).splitlines()
    assert lines[2] == (
        "| base | 128 | 100.0 | 1.00 | 4.00 | +0.0 % | 0.500 | 0.900 | 0.00 | 100.00 | 1.00 | 23.69 | +0.0 % | 0.610 |"
    )
    assert lines[3] == (
        "| code | 128 | 29.7 | 1.50 | 5.00 (4.90 to 5.10) | +25.0 % | 0.400 (0.300 to 0.500) | 0.600 (0.500 to 0.700) "
        "| 1.25 (1.15 to 1.35) | 30.00 | 2.04 | 35.67 | +50.6 % | 0.463 |"
    )


def test_swept_settings_are_in_the_label_and_unknown_figures_are_dashes() -> None:
    swept = summary().assign(**{"methods.code.prefix_rate": [float("nan"), 0.15]})
    row = results_table(swept, {"base": "ciar"}).splitlines()[3]
    assert row.startswith("| code, prefix_rate 0.15 | 128 |")
    assert row.endswith("| - | - | - | - | - |")
    for alone in ({}, {"base": "base"}):  # the paper has no row beside base's
        assert results_table(swept, alone).splitlines()[3] == row.removesuffix(" - | - | - | - | - |")
    photographs = summary().rename(columns=lambda name: name.replace("scenes", "photos"))
    assert "| `fd_photos` | against base | `f1_photos` | `align_photos` |" in results_table(photographs, {})
    few = summary().assign(fd_scenes=float("nan"))
    assert "| - | - |" in results_table(few, {})


def test_only_the_tables_of_a_page_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table:main -->\nold\n<!-- end -->\nbetween\n<!-- table:trees -->\nkept\n<!-- end -->\n"
    )
    for name, weights in (("main", pair_manifest("scenes").weights_hash), ("scores", "of another pair")):
        folder = tmp_path / "runs" / f"results-{name}"
        folder.mkdir(parents=True)
        summary().to_csv(folder / "summary.csv", index=False)
        (folder / "provenance.json").write_text(json.dumps({"pair": {"weights_sha256": weights}}))
    result = CliRunner().invoke(main, [str(tmp_path / "runs"), str(page)])
    assert result.exit_code == 0, result.output
    assert "results-trees/summary.csv: no such file; the table trees is left as it was" in result.output
    assert "results-scores/summary.csv: not of a shipped pair; the table scores is left as it was" in result.output
    table = results_table(summary(), TABLES["main"][1])
    assert (
        page.read_text()
        == f"before\n<!-- table:main -->\n{table}\n<!-- end -->\nbetween\n<!-- table:trees -->\nkept\n<!-- end -->\n"
    )
    # A place for a table that is still empty.
    assert with_tables("<!-- table:main -->\n<!-- end -->", {"main": "|"}) == "<!-- table:main -->\n|\n<!-- end -->"
    with pytest.raises(ValueError, match="0 places for the table threshold"):
        with_tables(page.read_text(), {"threshold": ""})


def test_the_tables_are_those_of_the_scenarios() -> None:
    for folder, paper in TABLES.values():
        scenario = load_scenario(ROOT / "scenarios" / f"{folder}.yaml")
        assert scenario.name == folder
        labels = {case.method.label for case in expand(scenario)}
        assert set(paper) <= labels
        assert set(paper.values()) <= set(PAPER)
