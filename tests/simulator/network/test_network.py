"""Cases on real networks: every wait is booked, the parts add up, and errors name dead links."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.cloud.rules import CloudRules, Crash
from simulator.core.errors import DeadlockError
from simulator.core.rng import stream
from simulator.engine.case import CaseResult
from simulator.engine.device import Device, FleetPart
from simulator.engine.workload import ClosedLoop, Requests, poisson_arrivals
from simulator.experiment.fleet import network_of
from simulator.experiment.schema.network import ExplicitNetwork, PresetNetwork, TraceNetwork
from simulator.network.access import AccessNetwork, Network
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, StepFunction
from simulator.pricing import catalogue
from simulator.results.columns import PARTS
from simulator.traces.generate import KINDS
from tests.simulator.build import (
    CLOUD_COSTS,
    DEVICE_COSTS,
    arrivals,
    base,
    call,
    case,
    forward,
    one_forward_calls,
    program,
    reply,
)

MIXED = (one_forward_calls(20, 2), base(12))
SPREAD_MS = {name: kind.leo.spread_ms for name, kind in KINDS.items() if kind.leo}  # of the round trip, by preset
RADIO = RadioFigures(
    promotion_s=0.25, inactivity_s=8.0, drx_after_s=0.125, drx_cycle_s=0.25, paging_cycle_s=1.0, active_w=1.0, drx_w=0.5
)


def busy(network: Network, seed: int = 0, **changes: Any) -> CaseResult:
    return case(MIXED, poisson_arrivals(5, 0.8, 60.0, 4, 2), network=network, seed=seed, **changes)


def same(a: CaseResult, b: CaseResult) -> bool:
    return all(np.array_equal(a.columns[name], b.columns[name], equal_nan=True) for name in a.columns)


def preset(name: str, **changes: Any) -> Network:
    return network_of(PresetNetwork.model_validate({"preset": name, **changes}).figures(), 0)


def explicit(**changes: Any) -> Network:
    figures = {"rtt_ms": 62.5, "up_mbps": 2.0**20 / 1e6, "down_mbps": 2.0**20 / 1e6, **changes}
    return network_of(ExplicitNetwork.model_validate(figures).figures(), 0)


@pytest.mark.parametrize("name", catalogue.names("networks"))
def test_on_every_preset_the_parts_add_up(name: str) -> None:
    result = busy(preset(name))
    columns = result.columns
    assert np.all(np.abs(sum(columns[part] for part in PARTS) - columns["latency_s"]) <= 1e-9)
    assert all(np.all(columns[part] >= -1e-9) for part in PARTS)
    assert result.events <= 4 * columns["calls"].sum() + 6 * len(columns["request"])
    first = [int(np.flatnonzero(columns["device"] == number)[0]) for number in np.unique(columns["device"])]
    assert np.all(columns["connect_s"][first] >= 2e-3 * (catalogue.network(name).rtt_ms - SPREAD_MS.get(name, 0.0)))
    assert columns["connect_s"][-10:].max() == 0.0
    computing_j = case(MIXED, poisson_arrivals(5, 0.8, 60.0, 4, 2)).columns["device_energy_j"]
    radio_j = columns["device_energy_j"] - computing_j
    assert columns["device_active_j"] + columns["device_static_j"] == pytest.approx(columns["device_energy_j"])
    static_j = columns["device_static_j"]
    # A request that overlaps others throughout has no idle radio time of its own.
    assert np.all((static_j >= 0.0) & (static_j < radio_j) if catalogue.network(name).radio else static_j == 0.0)
    assert (static_j.sum() > 0.0) == (catalogue.network(name).radio is not None)
    assert np.all(radio_j > 0.0) if catalogue.network(name).radio else np.all(radio_j == 0.0)


@pytest.mark.parametrize(
    "made",
    [
        lambda: preset("lte"),
        lambda: preset("3g", transport="ideal"),
        lambda: explicit(loss_pct=5, transport="tcp", jitter_ms=20, jitter_distribution="gamma"),
        lambda: explicit(radio="lte", outage_every_s=3, outage_ms=900, jitter_ms=5),
    ],
    ids=["lte", "3g", "loss", "outage"],
)
def test_working_ahead_of_the_clock_changes_nothing_but_the_events(made: Callable[[], Network]) -> None:
    """Jitter or loss keeps events of two devices from falling at the same time."""
    network = made()

    def never_ahead(self: Device, change: int) -> None:
        self.open_sessions += change

    may_run_ahead = busy(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "count", never_ahead)
        plain = busy(network)
    assert same(may_run_ahead, plain)
    assert may_run_ahead.events < plain.events
    assert same(may_run_ahead, busy(network))
    assert not same(may_run_ahead, busy(network, seed=1))


def test_the_first_request_of_a_device_opens_its_connection() -> None:
    """Opening takes two round trips and their bytes. Framing adds 36 bytes to the payload and 52 per segment."""
    network = explicit(transport="grpc")
    result = case([one_forward_calls(1)], arrivals((0.0, 0, 0), (4.0, 0, 0), (4.0, 1, 0)), network=network)
    columns = result.columns
    connect_s = 2 / 16 + 8 * (500 + 3500) / 2**20
    assert columns["connect_s"] == pytest.approx([connect_s, 0.0, connect_s], abs=1e-12)
    ideal = case([one_forward_calls(1)], arrivals((0.0, 0, 0)), network=explicit()).columns
    framing_s = 8 * (5 + 31 + 52) / 2**20
    assert columns["uplink_s"] == pytest.approx([ideal["uplink_s"][0] + framing_s] * 3, abs=1e-12)
    assert columns["decode_s"] == pytest.approx(
        columns["latency_s"] - columns["connect_s"] - columns["encode_s"] - columns["image_decode_s"]
    )


def test_requests_that_meet_an_opening_connection_wait_for_it_together() -> None:
    columns = case(
        [one_forward_calls(1)], arrivals((0.0, 0, 0), (1 / 32, 0, 0)), network=explicit(transport="tcp")
    ).columns
    # The device's forward pass ends long before.
    assert columns["connect_s"] == pytest.approx([1 / 16, 1 / 32], abs=1e-12)


def test_a_lost_handshake_costs_a_second() -> None:
    """At 20 % loss each way 36 % of the handshakes lose a round trip. The first retransmission timer is 1 s."""
    requests = Requests(np.arange(3000.0), np.arange(3000), np.zeros(3000, np.int64))
    columns = case(
        [one_forward_calls(1)], requests, network=explicit(transport="tcp", loss_pct=20), devices=3000
    ).columns
    lost = columns["connect_s"] > 1 / 16 + 1e-9
    assert lost.mean() == pytest.approx(0.36, abs=5 * np.sqrt(0.36 * 0.64 / 3000))
    assert np.median(columns["connect_s"][lost]) == pytest.approx(1.0 + 1 / 16)


def test_waiting_for_the_radio_is_booked_as_such() -> None:
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    result = case([one_forward_calls(1)], arrivals((0.0, 0, 0), (4.0, 0, 0), (32.0, 0, 0)), network=network)
    # The cloud answers before the radio sleeps.
    assert result.columns["wait_s"] == pytest.approx([0.25, 0.0, 0.25])
    slow = program([*call(0)], [[*[forward("cloud") for _ in range(16)], reply()]])  # a quarter of a second
    waits = case([slow], arrivals(*[(4.0 * n, 0, 0) for n in range(64)]), network=network).columns["wait_s"]
    assert 0.0 < waits[1:].min() < 0.05
    assert 0.2 < waits[1:].max() <= 0.25
    assert waits[1:].mean() == pytest.approx(0.125, abs=5 * 0.25 / np.sqrt(12 * 63))


def test_devices_of_a_cell_share_its_wire() -> None:
    both = arrivals((0.0, 0, 0), (0.0, 1, 0))
    size = {"device_costs": DEVICE_COSTS, "cloud_costs": CLOUD_COSTS}
    upload = program([*call(0, 1 << 14)], [[forward("cloud"), reply()]], **size)  # type: ignore[arg-type]
    alone = case([upload], both, network=explicit()).columns["uplink_s"]
    shared = case([upload], both, network=explicit(devices_per_cell=2)).columns["uplink_s"]
    assert alone.tolist() == [1 / 8 + 1 / 32] * 2
    assert shared.tolist() == [1 / 8 + 1 / 32, 2 / 8 + 1 / 32]
    apart = case([upload], arrivals((0.0, 0, 0), (0.0, 2, 0)), network=explicit(devices_per_cell=2)).columns["uplink_s"]
    assert apart.tolist() == alone.tolist()
    result = busy(explicit(devices_per_cell=4))
    assert np.all(np.abs(sum(result.columns[part] for part in PARTS) - result.columns["latency_s"]) <= 1e-9)


def test_every_device_has_its_own_place_in_a_trace() -> None:
    capacity = Capacity(np.arange(100.0), np.linspace(1e5, 1e6, 100), 100.0)
    access = AccessNetwork(Network(capacity, capacity, 0.0, 0.0), 0, [], [])
    arrived = [access.links(device)[0].send(0.0, 10_000) for device in range(20)]
    assert len(set(arrived)) == 20
    assert [
        AccessNetwork(Network(capacity, capacity, 0.0, 0.0), 0, [], []).links(device)[0].send(0.0, 10_000)
        for device in range(20)
    ] == arrived


@pytest.mark.parametrize("way", ["uplink", "downlink"])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_a_link_without_any_bandwidth_is_named(way: str, transport: str) -> None:
    dead = Capacity([0.0], [0.0], 1.0)
    up, down = (dead, 1e6) if way == "uplink" else (1e6, dead)
    network = Network(up, down, 0.0, 0.0, transport=TRANSPORTS[transport], radio=RADIO)
    if transport in ("grpc", "quic", "sctp"):
        what, where = "its connection to open", "link"
    else:
        what, where = ("call 0 to reach the cloud" if way == "uplink" else "the reply to call 0"), way
    told = rf"^deadlock at \S+ s of simulated time: request 0 of device 3 waits for {what}, but the {where} has no bandwidth"
    with pytest.raises(DeadlockError, match=told):
        case([one_forward_calls(2)], arrivals((0.5, 3, 0)), network=network)


def traced(folder: Path, rows: str, more: str = "", **changes: Any) -> Network:
    path = folder / "trace.csv"
    path.write_text(f"time_s,down_mbps,up_mbps{more}\n{rows}\n")
    given = {} if "rtt" in more or "delay" in more else {"rtt_ms": 62.5}
    return network_of(TraceNetwork.model_validate({"trace": str(path), **given, **changes}).figures(), 0)


def entered_s(network: Network, seed: int, device: int = 0) -> float:
    """Return the device's offset in s into the varying figures of the network."""
    return float(stream(seed, "link.offset", device).random()) * network.varying[0].duration_s


def test_a_trace_of_one_rate_is_a_link_of_that_rate(tmp_path: Path) -> None:
    of_trace = busy(traced(tmp_path, "0,4,2\n1,4,2\n2,4,2", jitter_ms=3)).columns
    of_figures = busy(explicit(down_mbps=4, up_mbps=2, jitter_ms=3)).columns
    for name, column in of_figures.items():
        assert of_trace[name] == pytest.approx(column, abs=1e-9, nan_ok=True), name


def test_a_trace_of_nothing_is_a_deadlock_and_a_constant_in_its_place_is_not(tmp_path: Path) -> None:
    with pytest.raises(DeadlockError, match=r"waits for call 0 to reach the cloud, but the uplink has no bandwidth"):
        busy(traced(tmp_path, "0,8,0\n1,8,0"))
    assert np.all(busy(traced(tmp_path, "0,8,0\n1,8,0", up_mbps=1)).columns["latency_s"] > 0.0)


def test_a_message_takes_the_delay_that_holds_when_it_leaves(tmp_path: Path) -> None:
    """1000 bytes take 1 ms at 8 Mbit/s."""
    network = traced(tmp_path, "0,8,8,10,40\n3,8,8,30,200\n4,8,8,10,40", ",delay_down_ms,delay_up_ms")
    up, down, _ = AccessNetwork(network, 5, [], []).links(0)
    place_s = entered_s(network, 5)
    for n in range(200):
        left_s = 0.37 * n + 1e-3
        high = 3.0 <= (left_s + place_s) % 5.0 < 4.0
        assert up.send(0.37 * n, 1000) - left_s == pytest.approx(0.2 if high else 0.04, abs=1e-9), n
        assert down.send(0.37 * n, 1000) - left_s == pytest.approx(0.03 if high else 0.01, abs=1e-9), n
    assert network.up_delay_s.mean == pytest.approx((4 * 0.04 + 0.2) / 5)  # type: ignore[union-attr]


def test_jitter_is_added_to_the_delay_of_the_trace_and_order_is_kept(tmp_path: Path) -> None:
    network = traced(tmp_path, "0,8,8,40\n1,8,8,400\n2,8,8,40", ",rtt_ms", jitter_ms=4)
    up, _, _ = AccessNetwork(network, 5, [], []).links(0)
    delays = np.array([up.send(0.5 * n, 1000) - 0.5 * n - 1e-3 for n in range(4000)])
    high = (0.5 * np.arange(4000) + 1e-3 + entered_s(network, 5)) % 3.0 // 1.0 == 1.0
    for at, mean_s in ((high, 0.2), (~high, 0.02)):
        assert abs(delays[at].mean() - mean_s) < 5 * 0.004 / np.sqrt(at.sum())
        assert delays[at].std() == pytest.approx(0.004, rel=0.1)
    up, _, _ = AccessNetwork(network, 6, [], []).links(0)
    assert np.all(np.diff([up.send(0.01 * n, 1000) for n in range(1000)]) >= 0.0)


def test_packets_are_lost_with_the_chance_of_their_time(tmp_path: Path) -> None:
    """A lost single segment costs a timeout of RTT + 200 ms or more, so the delays show how many were lost in each second."""
    network = traced(tmp_path, "0,8,8,0\n1,8,8,20\n2,8,8,5\n3,8,8,0", ",loss_pct", transport="tcp")
    up, _, _ = AccessNetwork(network, 5, [], []).links(0)
    up.send(0.0, 1000)  # opens the connection
    sent_s = 10.0 + 5.13 * np.arange(8000)
    late = np.array([up.send(at_s, 948) - at_s - 1e-3 - 1 / 32 for at_s in sent_s.tolist()])
    second = (sent_s + entered_s(network, 5)) % 4.0 // 1.0
    for number, share in ((0, 0.0), (1, 0.2), (2, 0.05), (3, 0.0)):
        lost = late[second == number] > 1e-9
        assert abs(lost.mean() - share) <= 5 * np.sqrt(share * (1 - share) / len(lost))
    assert late[late > 1e-9].min() == pytest.approx(1 / 16 + 0.2 + 1e-3)  # sent a second time


def test_what_is_sent_again_while_every_packet_is_lost_comes_after_it(tmp_path: Path) -> None:
    """Every packet is lost for 2 s of 10. Tries follow at 1, 3, 7 and 15 timeouts of 262.5 ms; the first after the 2 s arrives.

    Each try occupies the wire for 1 ms.
    """
    network = traced(tmp_path, "0,8,8,0\n4,8,8,100\n6,8,8,0\n8,8,8,0", ",loss_pct", transport="tcp")
    up, _, _ = AccessNetwork(network, 5, [], []).links(0)
    begins_s = 20.0 + (4.0 - entered_s(network, 5)) % 10.0
    up.send(0.0, 1000)
    rto_s = 1 / 16 + 0.2
    assert up.send(begins_s + 0.01, 948) == pytest.approx(begins_s + 0.01 + 15 * rto_s + 5e-3 + 1 / 32)
    assert up.send(begins_s + 10.0 + 1.5, 948) == pytest.approx(begins_s + 11.5 + 3 * rto_s + 3e-3 + 1 / 32)


def test_a_network_of_a_trace_with_everything_adds_up(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{1 + n % 3},{1 + n % 2},{20 + 40 * (n % 4)},{n % 5}" for n in range(20))
    network = traced(tmp_path, rows, ",rtt_ms,loss_pct", transport="grpc", radio="lte", jitter_ms=3)
    columns = busy(network).columns
    assert np.all(np.abs(sum(columns[part] for part in PARTS) - columns["latency_s"]) <= 1e-9)
    assert same(busy(network), busy(network))
    constant = busy(traced(tmp_path, rows, ",rtt_ms,loss_pct", rtt_ms=80, loss_pct=0, transport="grpc")).columns
    alike = busy(
        traced(
            tmp_path,
            "\n".join(row.rsplit(",", 2)[0] + ",80,0" for row in rows.split()),
            ",rtt_ms,loss_pct",
            transport="grpc",
        )
    )
    assert alike.columns["latency_s"] == pytest.approx(constant["latency_s"], abs=1e-9)


def test_presets_in_base_units() -> None:
    figures = PresetNetwork.model_validate({"preset": "leo", "distance_km": 2000}).figures()
    assert figures.rtt_s == pytest.approx(0.045 + 0.044)
    assert (figures.transport, figures.generated, figures.up_bps) == ("grpc", "leo", None)
    assert preset("lan", transport="ideal").plain
    assert not preset("lan").plain
    lte = preset("lte", rate="constant")
    assert lte.radio is not None
    assert (lte.up_bps, lte.up_delay_s, lte.radio.promotion_s, lte.radio.drx_cycle_s) == (10.6e6, 0.03, 0.26, 0.32)
    assert lte.radio.up_j_per_byte == pytest.approx(3.504e-6)
    for name in catalogue.names("radios"):
        assert catalogue.radio(name).inactivity_s > 0.0


@pytest.mark.parametrize(("name", "spread_ms"), [("leo", 10.0), ("leo-isl", 15.0)])
def test_a_low_orbit_preset_draws_rate_and_delay_anew_every_15_seconds(name: str, spread_ms: float) -> None:
    """There are 1440 uniform delays and log-normal rates. Every device has its own offset into them."""
    network, figures = preset(name, distance_km=1000), catalogue.network(name)
    kind = KINDS[name]
    for delay, capacity, rate in (
        (network.up_delay_s, network.up_bps, kind.up),
        (network.down_delay_s, network.down_bps, kind.down),
    ):
        assert isinstance(delay, StepFunction)
        assert isinstance(capacity, Capacity)
        assert capacity.total_bits / capacity.duration_s == pytest.approx(1e6 * rate.mean_mbps, rel=1e-4)
        drawn = np.array([value for value in capacity.rates_bps if value])
        assert len(drawn) == 1440 + 1
        s = np.sqrt(np.log1p(rate.cv**2))
        assert abs(np.log(drawn).std() / s - 1) < 5 / np.sqrt(2 * len(drawn))
        delays = np.array(delay.values) - (figures.rtt_ms + 22.0) / 2e3
        half_s = spread_ms / 2e3
        assert np.abs(delays).max() <= half_s + 1e-4
        assert abs(delays.mean()) < 5 * half_s / np.sqrt(3 * len(delays))
        assert delays.std() == pytest.approx(half_s / np.sqrt(3), rel=0.06)
    access = AccessNetwork(network, 0, [], [])
    assert len({access.links(device)[0].delay_at(100.0) for device in range(20)}) > 10  # type: ignore[misc]


def test_a_millimetre_wave_preset_is_blocked_for_its_share_of_the_time() -> None:
    """A Markov chain ends a blockage with probability 1/3 per second. Over 21,600 s: a share of 12 % and 3 s each, within 5 SE."""
    capacity = preset("5g-mmwave").down_bps
    assert isinstance(capacity, Capacity)
    share, run_s = 0.12, 3.0
    memory = 1.0 - 1.0 / run_s - share / (1.0 - share) / run_s
    blocked = np.array([stop_s - begin_s for begin_s, stop_s in capacity.outages_s])
    error = np.sqrt(share * (1 - share) * (1 + memory) / (1 - memory) / capacity.duration_s)
    assert abs(blocked.sum() / capacity.duration_s - share) < 5 * error
    assert abs(blocked.mean() - run_s) < 5 * np.sqrt(run_s * (run_s - 1) / len(blocked))
    in_sight = np.array([value for value in capacity.rates_bps if value])
    assert in_sight.mean() == pytest.approx(1e9, rel=0.02)
    assert in_sight.std() < 0.05e9


def test_each_part_of_a_fleet_has_cells_and_radios_of_its_own() -> None:
    """128 bytes take 2**-10 s. Devices 0 and 1 share a cell, and so do 3 and 4; 2 and 5 are alone."""
    one = one_forward_calls(1, device_passes=0)
    plain = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, devices_per_cell=2)
    parts = [
        FleetPart(count, [one], DEVICE_COSTS, n)
        for count, n in ((3, plain), (3, plain), (1, replace(plain, radio=RADIO)))
    ]
    columns = case([], arrivals(*((0.0, device, 0) for device in range(7))), parts=parts).columns
    first_s = columns["uplink_s"][0]
    assert columns["uplink_s"][:6].tolist() == [first_s, first_s + 2.0**-10, first_s] * 2
    assert np.all(columns["device_energy_j"][:6] == 0.0)
    assert columns["device_energy_j"][6] > 0.0


def test_a_closed_loop_books_the_radio_to_each_request() -> None:
    """The same requests given as arrivals cost the same energy."""
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    loop = case(MIXED, ClosedLoop(1, 2.0, 60.0, 2), network=network, devices=3)  # type: ignore[arg-type]
    columns = loop.columns
    assert len(columns["request"]) > 30
    assert np.all(columns["device_energy_j"] > 0.0)
    again = case(
        MIXED, Requests(columns["requested_s"], columns["device"], columns["prompt"]), network=network, devices=3
    )
    assert columns["device_energy_j"] == pytest.approx(again.columns["device_energy_j"])


def test_after_a_crash_the_radio_and_the_wire_carry_what_is_sent_again() -> None:
    """The cloud loses one call of 128 bytes during its forward pass. The device is notified and sends the whole request again."""
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    requests = arrivals((0.0, 0, 0))
    whole = case([one_forward_calls(1)], requests, network=network, timeline_sessions=1)
    at_s = next((span.start_s + span.end_s) / 2 for span in whole.spans if span.track == "cloud")
    rules = CloudRules(crashes=[Crash(0, at_s, 0.5)])
    columns = case([one_forward_calls(1)], requests, network=network, rules=rules).columns
    assert sum(columns[part] for part in PARTS) == pytest.approx(columns["latency_s"], abs=1e-9)
    assert columns["device_energy_j"][0] > whole.columns["device_energy_j"][0]
    assert columns["uplink_s"][0] > 2 * whole.columns["uplink_s"][0] - 1e-9
