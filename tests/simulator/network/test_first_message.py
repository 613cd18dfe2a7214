"""The first message of a device over any deterministic network of a scenario, against a calculation by hand."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from simulator.experiment.fleet import network_of
from simulator.experiment.schema.network import ScenarioNetwork, behind
from simulator.network.access import AccessNetwork
from simulator.network.transport import RESUMED_BYTES, TRANSPORTS
from simulator.pricing import catalogue

NETWORKS: TypeAdapter[Any] = TypeAdapter(ScenarioNetwork)
PACKET_BITS = 8 * 1514


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    line: dict[str, Any] = {
        "rtt_ms": draw(st.integers(1, 700)),
        "up_mbps": draw(st.sampled_from([0.3, 2.0, 10.6, 75.0])),
        "down_mbps": draw(st.sampled_from([0.8, 27.0, 200.0])),
        "transport": draw(st.sampled_from(sorted(TRANSPORTS))),
    }
    if line["transport"] in ("grpc", "quic"):
        line["handshake"] = draw(st.sampled_from(["full", "resumed", "0-rtt"]))
    if draw(st.booleans()):
        line["radio"] = draw(st.sampled_from(["3g", "lte", "5g-sub6", "wifi-power-save"]))
    ways = draw(st.sampled_from([(), ("up",), ("down",), ("up", "down")]))
    if ways:
        line["cross_traffic"] = dict.fromkeys(ways, "greedy")
        line["aqm"] = draw(st.sampled_from(["l4s", "fq-codel"]))  # the others drop packets by chance
    if line["transport"] != "ideal" and draw(st.booleans()):
        line["idle_timeout_s"] = 30.0
    if line["transport"] in ("grpc", "quic", "sctp") and draw(st.booleans()):
        line["flow_window_bytes"] = 65_536
    return line


def by_hand_s(line: dict[str, Any], way_s: float, payload_bytes: int) -> float:
    """Return promotion + handshake round trips with their bytes + queue + wire + grant + half a round trip, in s."""
    rtt_s = 1e-3 * line["rtt_ms"] + way_s
    transport, aqm = TRANSPORTS[line["transport"]], line.get("aqm")
    radio = catalogue.radio(line["radio"]) if "radio" in line else None
    wait_s, rates = {}, {way: 1e6 * line[f"{way}_mbps"] for way in ("up", "down")}
    for way, rate in rates.items():
        standing = {"l4s": max(1e-3 * rate, PACKET_BITS), "fq-codel": PACKET_BITS / 2, None: 0.0}[aqm]
        wait_s[way] = standing / rate if way in line.get("cross_traffic", ()) else 0.0

    def carried_s(way: str, wire_bytes: float) -> float:
        bits = 8.0 * wire_bytes
        if aqm == "fq-codel" and way in line["cross_traffic"]:  # half the rate after the first packet
            bits += max(0.0, bits - PACKET_BITS)
        more = way == "up" and radio is not None and radio.grant_bytes and wire_bytes > radio.grant_bytes
        return bits / rates[way] + (1e-3 * radio.grant_ms if more and radio is not None else 0.0)

    rounds, up_bytes, down_bytes = transport.handshake_rtts, transport.hello_bytes, transport.handshake_bytes
    if line.get("handshake") == "resumed":
        down_bytes = RESUMED_BYTES
    elif line.get("handshake") == "0-rtt":
        rounds, up_bytes, down_bytes = rounds - 1, 0, 0
    opened_s = rounds * (rtt_s + wait_s["up"] + wait_s["down"])
    if rounds:
        opened_s += carried_s("up", up_bytes) + carried_s("down", down_bytes)
    promotion_s = 0.0 if radio is None else 1e-3 * radio.promotion_ms
    message_s = wait_s["up"] + carried_s("up", transport.frame(payload_bytes)[0]) + rtt_s / 2
    return promotion_s + opened_s + message_s


@settings(max_examples=80)
@given(lines(), st.sampled_from([None, 0.0, 0.088]), st.integers(1, 11_000))
def test_the_first_message_takes_as_long_as_by_hand(line: dict[str, Any], way_s: float | None, payload: int) -> None:
    network = NETWORKS.validate_python(line)
    figures = network.figures() if way_s is None else behind(network, way_s)
    up, _, _ = AccessNetwork(network_of(figures, 0), 0, [0.0], [0.0]).links(0)
    assert up.send(7.0, payload) - 7.0 == pytest.approx(by_hand_s(line, way_s or 0.0, payload), rel=1e-9)
