"""Parity of the transport with the packet-level simulator ns-3."""

import csv
from pathlib import Path

from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Wire
from tests.parity.checks import Tally, check

TOLERANCE = 0.05
WARM = slice(5, 20)  # exchanges that count as steady


@check("ns3_*.csv")
def request_and_reply(file: Path, tally: Tally) -> None:
    """Compare the time in ms of a request and its reply over TCP, on a new connection and in steady state, within 5 %."""
    with file.open() as lines:
        for row in csv.DictReader(lines):
            tally.case()
            found = exchanges(*(float(row[name]) for name in ("rtt_ms", "rate_mbps", "upload_bytes", "reply_bytes")))
            tally.close("first_ms", found[0], float(row["first_ms"]), 0.0, TOLERANCE)
            tally.close("warm_ms", sum(found[WARM]) / len(found[WARM]), float(row["warm_ms"]), 0.0, TOLERANCE)


def exchanges(rtt_ms: float, rate_mbps: float, upload_bytes: float, reply_bytes: float) -> list[float]:
    """Return the times in ms of twenty requests and their replies, back to back, on an open connection."""
    rtt_s = 1e-3 * rtt_ms
    up, down = (ImpairedLink(Wire(1e6 * rate_mbps), rtt_s / 2, rtt_s, TRANSPORTS["tcp"]) for _ in range(2))
    now, found = 0.0, []
    for _ in range(20):
        done = down.send(up.send(now, int(upload_bytes)), int(reply_bytes))
        found.append(1e3 * (done - now))
        now = done
    return found
