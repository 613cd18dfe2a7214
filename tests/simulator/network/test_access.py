"""Access networks: a change of any field changes the arrivals or the energy, or is refused. Handshakes: opening and timers."""

import itertools
import math
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import AQMS, GREEDY
from simulator.network.handover import Handovers
from simulator.network.link import ImpairedLink
from simulator.network.radio import RadioFigures
from simulator.network.transport import MAX_RTO_S, SYN_RTO_S, TRANSPORTS, Transport, backoff, opened_by
from simulator.network.wifi import Hop
from simulator.network.wire import Capacity, StepFunction, VaryingWire, Wire

RADIO = RadioFigures(
    promotion_s=0.25,
    inactivity_s=4.0,
    drx_after_s=0.1,
    drx_cycle_s=0.3,
    paging_cycle_s=1.0,
    grant_bytes=1000,
    grant_s=0.02,
    promotion_w=1.0,
    active_w=2.0,
    drx_w=0.5,
    up_j_per_byte=1e-6,
    down_j_per_byte=2e-6,
)
PLAIN = Network(1e6, 1e6, 0.02, 0.03)
QUEUED = replace(PLAIN, up_buffer_bytes=1e5, down_buffer_bytes=1e5)
LOSSY = replace(PLAIN, up_loss=0.1, down_loss=0.1)

# For each field: a network, and the change of the field.
CHANGES: dict[str, tuple[Network, dict[str, Any]]] = {
    "up_bps": (PLAIN, {"up_bps": 2e6}),
    "down_bps": (PLAIN, {"down_bps": Capacity([0.0, 1.0], [1e6, 3e6], 2.0)}),
    "up_delay_s": (PLAIN, {"up_delay_s": 0.025}),
    "down_delay_s": (PLAIN, {"down_delay_s": StepFunction([0.0, 1.0], [0.03, 0.06], 2.0)}),
    "up_jitter_s": (PLAIN, {"up_jitter_s": 0.004}),
    "down_jitter_s": (PLAIN, {"down_jitter_s": 0.004}),
    "distribution": (replace(PLAIN, up_jitter_s=0.004, down_jitter_s=0.004), {"distribution": "gamma"}),
    "jitter_samples_s": (PLAIN, {"jitter_samples_s": (-0.01, 0.01)}),
    "jitter_on_top": (replace(PLAIN, up_jitter_s=0.004, down_jitter_s=0.004), {"jitter_on_top": True}),
    "up_loss": (PLAIN, {"up_loss": 0.1}),
    "down_loss": (PLAIN, {"down_loss": StepFunction([0.0, 1.0], [0.0, 0.2], 2.0)}),
    "burst_packets": (LOSSY, {"burst_packets": 5.0}),
    "up_buffer_bytes": (PLAIN, {"up_buffer_bytes": 3000.0}),
    "down_buffer_bytes": (PLAIN, {"down_buffer_bytes": 3000.0}),
    "up_cross": (QUEUED, {"up_cross": GREEDY}),
    "down_cross": (QUEUED, {"down_cross": GREEDY}),
    "aqm": (replace(QUEUED, up_cross=GREEDY), {"aqm": AQMS["codel"]}),
    "wifi": (PLAIN, {"wifi": Hop(stations=2)}),
    "transport": (PLAIN, {"transport": TRANSPORTS["tcp"]}),
    "handovers": (PLAIN, {"handovers": Handovers(5.0, 0.5)}),
    "idle_timeout_s": (replace(PLAIN, transport=TRANSPORTS["tcp"]), {"idle_timeout_s": 2.0}),
    "radio": (PLAIN, {"radio": RADIO}),
    "operators": (PLAIN, {"operators": ((1.0, RADIO),)}),
    "devices_per_cell": (PLAIN, {"devices_per_cell": 2}),
    "block_s": (replace(PLAIN, up_bps=Capacity([0.0, 1.0], [1e6, 3e6], 2.0)), {"block_s": 5.0}),
}


def seen(network: Network) -> list[float]:
    """Return the arrivals of messages of two devices, and the energy of the radios.

    Messages go both ways, back to back and after short and long silences.
    """
    joules = [0.0] * 2
    access = AccessNetwork(network, 3, joules, [0.0] * 2)
    devices = [access.links(number) for number in range(2)]
    found = []
    for n in range(60):
        sizes = (200, 5000, 60_000) if n % 2 else (1100, 60_000)
        for pause_s, ways in ((0.0, (0, 1)), (2.5, (1,)), (3.0, (0, 1))):
            for way, size, (number, links) in itertools.product(ways, sizes, enumerate(devices)):
                if links[2] is not None:
                    links[2].request = number
                found.append(links[(way + n) % 2].send(12.0 * n + pause_s, size))
    for radio in access.radios:
        radio.finish()
    return [*found, *joules]


# These return arrivals in another way or have their own links: test_fair.py, test_paths.py.
ELSEWHERE = ("fair", "fading_snr_db", "also")


def test_every_field_has_an_entry() -> None:
    missing = {field.name for field in fields(Network)} - {*CHANGES, *ELSEWHERE}
    assert not missing, f"CHANGES needs an entry for {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_changes_the_link(name: str) -> None:
    network, change = CHANGES[name]
    assert list(change) == [name]
    assert seen(network) == seen(replace(network))
    assert seen(network) != seen(replace(network, **change))


@pytest.mark.parametrize(
    "field",
    [field for field in fields(Network) if field.default is not MISSING and field.name in CHANGES],
    ids=lambda f: f.name,
)
def test_the_fast_link_is_given_only_where_it_covers_all(field: Any) -> None:
    network, change = CHANGES[field.name]
    up, down, _ = AccessNetwork(replace(network, **change), 0, [0.0], [0.0]).links(0)
    fast = field.name in ("up_jitter_s", "down_jitter_s")
    assert {isinstance(up, ImpairedLink), isinstance(down, ImpairedLink)} == {not fast}


@pytest.mark.parametrize(
    "changes",
    [
        {"devices_per_cell": 0},
        {"burst_packets": 3.0, "up_loss": StepFunction([0.0], [0.1], 1.0)},
        {"up_jitter_s": 0.01, "up_delay_s": 0.0},
        {"jitter_samples_s": (0.0, 0.1), "down_delay_s": 0.0},
        {"up_jitter_s": 2.1},
        {"up_buffer_bytes": 0.0},
        {"up_bps": 0.0},
        {"down_cross": GREEDY},
    ],
)
def test_a_network_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|needs|goes with"):
        AccessNetwork(replace(PLAIN, **changes), 0, [0.0], [0.0]).links(0)


RADIO_CHANGES = {field.name: getattr(RADIO, field.name) * 1.5 for field in fields(RadioFigures)} | {
    "drx_after_s": 0.4,
    "inactivity_s": 2.0,
    "fach_promotion_s": 0.2,
    "configured_s": 30.0,
}


@pytest.mark.parametrize("name", RADIO_CHANGES)
def test_a_changed_figure_of_the_radio_changes_arrivals_or_energy(name: str) -> None:
    scheduled = replace(RADIO, sr_period_s=0.02, sr_grant_s=0.004, slot_s=0.003)
    network = replace(PLAIN, radio=scheduled)
    assert seen(network) != seen(replace(network, radio=replace(scheduled, **{name: RADIO_CHANGES[name]})))


FULL = Transport(
    "all",
    segment_overhead_bytes=40,
    message_overhead_bytes=5,
    record_overhead_bytes=10,
    initial_window=10,
    idle_restart=True,
    handshake_rtts=2,
    hello_bytes=500,
    handshake_bytes=3000,
    opening_samples=1,
    rto_floor_s=0.01,
    ack_delay_s=0.01,
)
TRANSPORT_CHANGES: dict[str, Any] = {
    "segment_bytes": 1200,
    "segment_overhead_bytes": 60,
    "message_overhead_bytes": 50,
    "record_bytes": 4000,
    "record_overhead_bytes": 30,
    "initial_window": 4,
    "idle_restart": False,
    "handshake_rtts": 1,
    "hello_bytes": 1000,
    "handshake_bytes": 9000,
    "opening_samples": 2,
    "rto_floor_s": 0.4,
    "ack_delay_s": 0.05,
    "reordering": 0.5,
    "probes": False,
    "congestion": "cubic",
    "stack": "plain",
    "flow_bytes": 9000,
}


def test_a_changed_figure_of_the_transport_changes_the_link() -> None:
    assert {"name", "framed", *TRANSPORT_CHANGES} == {field.name for field in fields(Transport)}
    network = replace(LOSSY, transport=FULL)
    for name, value in TRANSPORT_CHANGES.items():
        assert seen(network) != seen(replace(network, transport=replace(FULL, **{name: value}))), name


# --- opening


@pytest.mark.parametrize(("name", "rtts", "carried"), [("grpc", 2, 300), ("quic", 1, 300)])
def test_a_resumed_session_sends_no_certificates(name: str, rtts: int, carried: int) -> None:
    def opened_s(handshake: str) -> float:
        up, _, _ = AccessNetwork(replace(PLAIN, transport=opened_by(TRANSPORTS[name], handshake)), 0, [], []).links(0)
        up.send(0.0, 10)
        return max(up.open_s, 0.0)

    full, rtt_s = TRANSPORTS[name], PLAIN.up_delay_s + PLAIN.down_delay_s  # type: ignore[operator]
    assert opened_s("full") == pytest.approx(rtts * rtt_s + 8e-6 * (full.hello_bytes + full.handshake_bytes))
    assert opened_s("resumed") == pytest.approx(rtts * rtt_s + 8e-6 * (full.hello_bytes + carried))
    assert opened_s("0-rtt") == pytest.approx((rtts - 1) * rtt_s)


@pytest.mark.parametrize(
    ("begin_s", "passes_s"),
    [
        (0.0, 0.0),
        (4.7, 4.7),
        (5.0, 20.0),  # sent at 5, 6, 8, 12 and 20 s
        (7.0, 22.0),  # at 7, 8, 10, 14 and 22 s
        (19.5, 20.0),  # an outage shorter than the timer: the packet waits
        (18.0, 21.0),  # at 18, 19 and 21 s
    ],
)
def test_a_connection_that_opens_in_an_outage_waits_for_its_timer(begin_s: float, passes_s: float) -> None:
    """The uplink has no rate from 5 to 20 s. TCP opens in one round trip, and the downlink has no outage."""
    rate = Capacity([0.0, 5.0, 20.0], [1e6, 0.0, 1e6], 1000.0)
    up, down = (ImpairedLink(wire, 0.02, 0.04, TRANSPORTS["tcp"]) for wire in (VaryingWire(rate), Wire(1e6)))
    assert up.opening_s(begin_s, 0.0) == pytest.approx(passes_s + 0.02, abs=1e-6)
    assert down.opening_s(begin_s, 0.0) == pytest.approx(begin_s + 0.02)
    up.opened_by(lambda now_s: down.opening_s(up.opening_s(now_s, 0.0), 0.0))
    up.send(begin_s, 10)
    assert up.open_s == pytest.approx(passes_s + 0.04, abs=1e-6)


# --- timers


class Nth:
    """Loss of one handshake packet: that of the given round trip, counted from 0."""

    def __init__(self, number: int) -> None:
        self.left = number

    def lost(self, now_s: float, packets: int) -> list[int]:
        return []

    def lost_again(self, now_s: float, packets: int) -> int:
        self.left -= 1
        return int(self.left == -1)


@pytest.mark.parametrize(
    ("name", "number", "timeout_s"),
    [
        ("tcp", 0, 1.0),
        ("grpc", 0, 1.0),
        ("grpc", 1, 0.25),  # TLS: TCP has already measured a round trip of 0.05 s
        ("quic", 0, 1.0),
        ("sctp", 3, 1.0),
    ],
)
def test_a_lost_packet_of_a_handshake_is_sent_again_by_the_timer_of_its_protocol(
    name: str, number: int, timeout_s: float
) -> None:
    def opened_s(lost: int) -> float:
        up, _, _ = AccessNetwork(replace(PLAIN, transport=TRANSPORTS[name]), 0, [], []).links(0)
        up.loss = Nth(lost)  # type: ignore[union-attr]
        up.send(0.0, 10)
        return up.open_s

    assert opened_s(number) - opened_s(9) == pytest.approx(timeout_s)


def test_the_timer_of_tls_is_that_of_a_first_sample() -> None:
    """The first sample gives three round trips of 0.3 s, not one plus 0.2 s. The same holds where an outage loses the hello."""
    assert TRANSPORTS["grpc"].opening_rto_s(0.3, 0) == pytest.approx(0.9)
    assert TRANSPORTS["grpc"].opening_rto_s(0.3, 1) == 1.0
    rate = Capacity([0.0, 5.0, 7.0], [1e15, 0.0, 1e15], 1000.0)
    up = ImpairedLink(VaryingWire(rate), 0.15, 0.3, TRANSPORTS["grpc"])
    assert up.opening_s(5.5, 500.0, 0.9) == pytest.approx(5.5 + 0.9 + 1.8 + 0.15)


def test_every_timer_stops_at_two_minutes() -> None:
    first = list(itertools.islice(backoff(SYN_RTO_S), 12))
    assert first == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, *[120.0] * 5]
    assert max(itertools.islice(backoff(500.0), 2000)) == MAX_RTO_S
    for transport in TRANSPORTS.values():
        assert transport.rto_s(1000.0, 10.0) == MAX_RTO_S


@pytest.mark.parametrize("transport", ["tcp", "grpc", "quic"])
def test_the_tries_of_a_handshake_are_two_minutes_apart_at_most(transport: str) -> None:
    """99 % of the round trips are lost: some of 200 connections need hundreds of tries. Uncapped doubling would never end."""
    network = replace(PLAIN, up_loss=0.9, down_loss=0.9, transport=TRANSPORTS[transport])
    access = AccessNetwork(network, 0, [], [])
    opened_s = []
    for device in range(200):
        up, _, _ = access.links(device)
        up.send(0.0, 10)
        opened_s.append(up.open_s)
    tries = TRANSPORTS[transport].handshake_rtts * 99.0
    spread = 10.0 * math.sqrt(tries) * 120.0 / math.sqrt(200) * 5
    assert abs(sum(opened_s) / 200 - 120.0 * tries) < 120.0 * 8 * 2 + spread


@pytest.mark.parametrize("duration_s", [120.0, 60.0, 40.0])
def test_a_path_that_loses_every_try_is_a_dead_one_and_no_endless_loop(duration_s: float) -> None:
    """Tries two minutes apart hit the same second of a two-minute trace, where every packet is lost."""
    loss = StepFunction([0.0, duration_s / 20], [0.0, 1.0], duration_s)
    for transport in ("ideal", "tcp"):
        access = AccessNetwork(replace(PLAIN, up_loss=loss, transport=TRANSPORTS[transport]), 0, [], [])
        arrived = [access.links(device)[0].send(0.0, 10) for device in range(6)]
        assert any(at == math.inf for at in arrived)
        assert any(at < math.inf for at in arrived)
