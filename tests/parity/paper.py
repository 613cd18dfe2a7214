"""Parity with the paper's tables of the shipped rates from which statistical sessions are generated."""

import csv
from pathlib import Path

from simulator.protocol.methods import CodeSettings
from simulator.protocol.pairs import pair_manifest
from tests.parity.checks import Tally, check

PAIRS = {
    "LlamaGen-XL stage I": "paper-llamagen-xl",
    "LlamaGen-XL stage II": "paper-llamagen-xl-stage2",
    "Anole": "paper-anole",
}
METHODS = {
    "EAGLE-2": "eagle2",
    "Lantern": "lantern",
    "Entropy-Lens": "entropy-lens",
    "SoftmaxCorr": "softmax-corr",
    "Random": "random",
    "CIAR": "ciar",
    "Inter-Head (CIAR)": "ciar",
}
TABLES = ("main_reconciled", "ablation_uncertainty")  # other tables repeat these, or keep the misprints


@check("paper_tables*.csv")
def published_rates(file: Path, tally: Tally) -> None:
    """Compare cloud calls in percent wherever the table has them and the backbone's pair lists the method."""
    with file.open() as lines:
        for row in csv.DictReader(lines):
            if row["table"] not in TABLES or not row["cloud_call_pct"]:
                continue
            if row["backbone"] not in PAIRS:
                tally.skipped.append(f"{row['backbone']} (no pair is made from its figures)")
                continue
            rate, name = float(row["cloud_call_pct"]), f"{row['backbone']}, {row['method']}"
            statistics = pair_manifest(PAIRS[row["backbone"]]).statistics
            assert statistics is not None
            if row["method"] == "CoDe":
                tally.case()
                tally.close(name, 100 * CodeSettings().prefix_rate, rate, 1e-9)
            method = METHODS.get(row["method"], "")
            if method in statistics.cloud_call_pct:
                tally.case()
                tally.close(name, statistics.cloud_call_pct[method], rate, 1e-9)
