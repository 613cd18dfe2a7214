"""Cases on real networks: what is waited for is booked, everything adds up, and dead links are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import catalogue
from simulator.cloud import CloudRules, Crash
from simulator.engine import PARTS, CaseResult, FleetPart, Network, _Device
from simulator.errors import DeadlockError
from simulator.link import Capacity
from simulator.network import Access
from simulator.radio import RadioFigures
from simulator.run import network_of
from simulator.schema.network import ExplicitNetwork, PresetNetwork, TraceNetwork
from simulator.transport import TRANSPORTS
from simulator.workload import Arrivals, ClosedLoop, poisson_arrivals
from tests.simulator.build import CLOUD_COSTS, DEVICE_COSTS, arrivals, base, call, case, forward, one_forward_calls, program, reply

MIXED = (one_forward_calls(20, 2), base(12))
RADIO = RadioFigures(promotion_s=0.25, inactivity_s=8.0, drx_after_s=0.125, drx_cycle_s=0.25, paging_cycle_s=1.0, active_w=1.0, drx_w=0.5)


def busy(network: Network, seed: int = 0, **changes: Any) -> CaseResult:
    return case(MIXED, poisson_arrivals(5, 0.8, 60.0, 4, 2), network=network, seed=seed, **changes)


def same(a: CaseResult, b: CaseResult) -> bool:
    return all(np.array_equal(a.columns[name], b.columns[name], equal_nan=True) for name in a.columns)


def preset(name: str, **changes: Any) -> Network:
    return network_of(PresetNetwork.model_validate({"preset": name, **changes}).figures())


def explicit(**changes: Any) -> Network:
    figures = {"rtt_ms": 62.5, "up_mbps": 2.0**20 / 1e6, "down_mbps": 2.0**20 / 1e6, **changes}
    return network_of(ExplicitNetwork.model_validate(figures).figures())


@pytest.mark.parametrize("name", catalogue.names("networks"))
def test_on_every_preset_the_parts_add_up(name: str) -> None:
    result = busy(preset(name))
    columns = result.columns
    assert np.all(np.abs(sum(columns[part] for part in PARTS) - columns["latency_s"]) <= 1e-9)
    assert all(np.all(columns[part] >= -1e-9) for part in PARTS)
    assert result.events <= 4 * columns["calls"].sum() + 6 * len(columns["request"])
    first = [int(np.flatnonzero(columns["device"] == number)[0]) for number in np.unique(columns["device"])]
    assert np.all(columns["connect_s"][first] >= 2e-3 * catalogue.network(name).rtt_ms)
    assert columns["connect_s"][-10:].max() == 0.0
    computing_j = case(MIXED, poisson_arrivals(5, 0.8, 60.0, 4, 2)).columns["device_energy_j"]
    radio_j = columns["device_energy_j"] - computing_j
    assert np.all(radio_j > 0.0) if catalogue.network(name).radio else np.all(radio_j == 0.0)


@pytest.mark.parametrize(
    "network",
    [preset("lte"), preset("3g", transport="ideal"), explicit(loss_pct=5, transport="tcp", jitter_ms=20, jitter_distribution="gamma"),
     explicit(radio="lte", outage_every_s=3, outage_ms=900, jitter_ms=5)],
    ids=["lte", "3g", "loss", "outage"],
)  # fmt: skip
def test_working_ahead_of_the_clock_changes_nothing_but_the_events(network: Network) -> None:
    """With jitter or loss, so that no two devices land in the same instant."""

    def never_ahead(self: _Device, change: int) -> None:
        self.open_sessions += change

    ahead = busy(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Device, "count", never_ahead)
        plain = busy(network)
    assert same(ahead, plain)
    assert ahead.events < plain.events
    assert same(ahead, busy(network))
    assert not same(ahead, busy(network, seed=1))


def test_the_first_request_of_a_device_opens_its_connection() -> None:
    """Two round trips and what they carry; on the wire 83 bytes more than the payload and 52 a segment."""
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
    columns = case([one_forward_calls(1)], arrivals((0.0, 0, 0), (1 / 32, 0, 0)), network=explicit(transport="tcp")).columns
    assert columns["connect_s"] == pytest.approx([1 / 16, 1 / 32], abs=1e-12)  # a pass of the device is over long before


def test_a_lost_handshake_costs_a_second() -> None:
    """At 20 % each way a round trip is lost with 36 %: the mean is 0.36 + 2 * 0.36**2 + 4 * ... = 0.36 / (1 - 0.72) seconds."""
    requests = Arrivals(np.arange(3000.0), np.arange(3000), np.zeros(3000, np.int64))
    columns = case([one_forward_calls(1)], requests, network=explicit(transport="tcp", loss_pct=20), devices=3000).columns
    lost = columns["connect_s"] > 1 / 16 + 1e-9
    assert lost.mean() == pytest.approx(0.36, abs=5 * np.sqrt(0.36 * 0.64 / 3000))
    assert np.median(columns["connect_s"][lost]) == pytest.approx(1.0 + 1 / 16)


def test_waiting_for_the_radio_is_booked_as_such() -> None:
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    result = case([one_forward_calls(1)], arrivals((0.0, 0, 0), (4.0, 0, 0), (32.0, 0, 0)), network=network)
    assert result.columns["wait_s"] == pytest.approx([0.25, 0.0, 0.25])  # the cloud answers before the radio falls asleep
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
    access = Access(Network(capacity, capacity, 0.0, 0.0), 0, [])
    arrived = [access.links(device)[0].send(0.0, 10_000) for device in range(20)]
    assert len(set(arrived)) == 20
    assert [Access(Network(capacity, capacity, 0.0, 0.0), 0, []).links(device)[0].send(0.0, 10_000) for device in range(20)] == arrived


@pytest.mark.parametrize("way", ["uplink", "downlink"])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_a_link_without_any_bandwidth_is_named(way: str, transport: str) -> None:
    dead = Capacity([0.0], [0.0], 1.0)
    up, down = (dead, 1e6) if way == "uplink" else (1e6, dead)
    network = Network(up, down, 0.0, 0.0, transport=TRANSPORTS[transport], radio=RADIO)
    if transport in ("grpc", "quic"):
        what, where = "its connection to open", "link"
    else:
        what, where = ("call 0 to reach the cloud" if way == "uplink" else "the reply to call 0"), way
    told = rf"^deadlock at \S+ s of simulated time: request 0 of device 3 waits for {what}, but the {where} has no bandwidth"
    with pytest.raises(DeadlockError, match=told):
        case([one_forward_calls(2)], arrivals((0.5, 3, 0)), network=network)


def traced(folder: Path, rows: str, **changes: Any) -> Network:
    path = folder / "trace.csv"
    path.write_text(f"time_s,down_mbps,up_mbps\n{rows}\n")
    return network_of(TraceNetwork.model_validate({"trace": str(path), "rtt_ms": 62.5, **changes}).figures())


def test_a_trace_of_one_rate_is_a_link_of_that_rate(tmp_path: Path) -> None:
    of_trace = busy(traced(tmp_path, "0,4,2\n1,4,2\n2,4,2", jitter_ms=3)).columns
    of_figures = busy(explicit(down_mbps=4, up_mbps=2, jitter_ms=3)).columns
    for name, column in of_figures.items():
        assert of_trace[name] == pytest.approx(column, abs=1e-9, nan_ok=True), name


def test_a_trace_of_nothing_is_a_deadlock_and_a_constant_in_its_place_is_not(tmp_path: Path) -> None:
    with pytest.raises(DeadlockError, match=r"waits for call 0 to reach the cloud, but the uplink has no bandwidth"):
        busy(traced(tmp_path, "0,8,0\n1,8,0"))
    assert np.all(busy(traced(tmp_path, "0,8,0\n1,8,0", up_mbps=1)).columns["latency_s"] > 0.0)


def test_presets_in_base_units() -> None:
    figures = PresetNetwork.model_validate({"preset": "leo", "distance_km": 2000}).figures()
    assert figures.rtt_s == pytest.approx(0.045 + 0.044)
    assert (figures.transport, figures.outage_every_s, figures.outage_s) == ("grpc", 15.0, 0.1)
    assert preset("lan", transport="ideal").plain
    assert not preset("lan").plain
    lte = preset("lte")
    assert lte.radio is not None
    assert (lte.up_bps, lte.up_delay_s, lte.radio.promotion_s, lte.radio.drx_cycle_s) == (10.6e6, 0.03, 0.26, 0.32)
    assert lte.radio.up_j_per_byte == pytest.approx(3.504e-6)
    for name in catalogue.names("radios"):
        assert catalogue.radio(name).inactivity_s > 0.0


def test_each_part_of_a_fleet_has_cells_and_radios_of_its_own() -> None:
    """128 bytes take 2**-10 s. Devices 0 and 1 share a cell, 2 is alone; 3 and 4 share one, 5 is alone."""
    one = one_forward_calls(1, device_passes=0)
    plain = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, devices_per_cell=2)
    parts = [FleetPart(count, [one], DEVICE_COSTS, n) for count, n in ((3, plain), (3, plain), (1, replace(plain, radio=RADIO)))]
    columns = case([], arrivals(*((0.0, device, 0) for device in range(7))), devices=7, fleet=parts).columns
    first_s = columns["uplink_s"][0]
    assert columns["uplink_s"][:6].tolist() == [first_s, first_s + 2.0**-10, first_s] * 2
    assert np.all(columns["device_energy_j"][:6] == 0.0)
    assert columns["device_energy_j"][6] > 0.0


def test_a_closed_loop_books_the_radio_to_each_request() -> None:
    """The same requests as a list of arrivals cost the same."""
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    loop = case(MIXED, ClosedLoop(1, 2.0, 60.0, 2), network=network, devices=3)  # type: ignore[arg-type]
    columns = loop.columns
    assert len(columns["request"]) > 30
    assert np.all(columns["device_energy_j"] > 0.0)
    again = case(MIXED, Arrivals(columns["requested_s"], columns["device"], columns["prompt"]), network=network, devices=3)
    assert columns["device_energy_j"] == pytest.approx(again.columns["device_energy_j"])


def test_after_a_crash_the_radio_and_the_wire_carry_what_is_sent_again() -> None:
    """One call of 128 bytes, lost in the cloud in mid-pass: the news sleeps no longer than the radio, the request comes again in full."""
    network = Network(2.0**20, 2.0**20, 1 / 32, 1 / 32, radio=RADIO)
    requests = arrivals((0.0, 0, 0))
    whole = case([one_forward_calls(1)], requests, network=network, timeline_sessions=1)
    at_s = next((span.start_s + span.end_s) / 2 for span in whole.spans if span.track == "cloud")
    rules = CloudRules(crashes=[Crash(0, at_s, 0.5)])
    columns = case([one_forward_calls(1)], requests, network=network, rules=rules).columns
    assert sum(columns[part] for part in PARTS) == pytest.approx(columns["latency_s"], abs=1e-9)
    assert columns["device_energy_j"][0] > whole.columns["device_energy_j"][0]
    assert columns["uplink_s"][0] > 2 * whole.columns["uplink_s"][0] - 1e-9
