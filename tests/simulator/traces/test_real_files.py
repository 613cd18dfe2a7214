"""Figures of published traces, if a folder of them is next to the checkout."""

import re
from pathlib import Path

import pytest

from simulator.core.errors import TraceError
from simulator.traces.own import own_text
from simulator.traces.read import read
from simulator.traces.summary import summary
from simulator.traces.trace import Arrivals
from tests.simulator.traces.examples import REAL, file


def facts() -> dict[str, list[str]]:
    """Return the row of each file in its folder's table of facts."""
    rows = {}
    for page in sorted(REAL.glob("*/README.md")):
        for line in page.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) == 10 and (page.parent / cells[0]).is_file():
                rows[f"{page.parent.name}/{cells[0]}"] = cells
    return rows


FACTS = facts()


@pytest.mark.skipif(not FACTS, reason="no folder of real traces beside the checkout")
def test_real_files_have_the_figures_of_their_tables(tmp_path: Path) -> None:
    """The files have the figures as they are and after an import."""
    compared = 0
    for name, (_, _, _, duration_s, lines, _, rates, rtt, _, _) in FACTS.items():
        path = REAL / name
        if duration_s == "-" and name.startswith(("rrc_probe", "speedtests")) and "/ping_" not in name:
            with pytest.raises(TraceError, match="looked for"):  # independent tests, not a time series
                read([path])
            continue
        trace = read([path])
        figures = summary(trace)
        # Large files take long.
        again = (
            summary(read([file(tmp_path, own_text(trace), "own.csv")])) if path.stat().st_size < 100_000 else figures
        )
        for key in set(figures) - {"format", "packets", "assumed"}:
            assert again[key] == (
                figures[key] if figures[key] is None else pytest.approx(figures[key], rel=1e-3, abs=1e-6)
            ), (name, key)
        if duration_s != "-":
            assert figures["duration_s"] == pytest.approx(float(duration_s), rel=1e-3), name
        if isinstance(trace, Arrivals):
            assert figures["requests"] == int(lines)
            assert figures["rate_per_s"] == pytest.approx(float(rates.split()[0]), rel=0.01)
            compared += 1
            continue
        if figures["packets"] is not None:
            assert figures["packets"] == int(lines), name
        triple = re.match(r"([\d.]+) / ([\d.]+) / ([\d.]+)", rates)
        # In the Pantheon tables a value holds until its time stamp, here from it on. Figures differ by some 2 %.
        if triple and figures["format"] != "pantheon-json":
            mean, p5, p95 = map(float, triple.groups())
            found = figures["down_mbps"] or figures["up_mbps"]
            assert found["mean"] == pytest.approx(mean, rel=0.01), name
            assert found["p5"] == pytest.approx(p5, rel=0.05, abs=0.005), name  # tables have 2 or 3 digits
            assert found["p95"] == pytest.approx(p95, rel=0.05), name
            compared += 1
        rtt_mean = re.match(r"mean ([\d.]+)", rtt)
        if rtt_mean:
            assert figures["rtt_ms"]["mean"] == pytest.approx(float(rtt_mean.group(1)), rel=0.01), name
    left_out = 1 + sum(name.startswith("pantheon") for name in FACTS)  # 1: the 4G speed tests
    assert compared == sum(" / " in cells[6] or "req/s" in cells[6] for cells in FACTS.values()) - left_out
