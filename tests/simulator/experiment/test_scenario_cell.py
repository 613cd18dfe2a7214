"""`network:` of a scenario: handovers, uplink scheduling, timers of operators, fair cells and several paths."""

from dataclasses import replace
from pathlib import Path

import pytest

from simulator.experiment.fleet import network_of
from simulator.experiment.schema.figures import LinkFigures
from simulator.network.cross import GREEDY
from simulator.network.handover import Handovers
from tests.simulator.experiment.scenario_files import HEAD, LINE, load, refusal, written_out


def link(folder: Path, keys: str) -> LinkFigures:
    return load(folder, f"{HEAD}network: {{{keys}}}\n").network.figures()


def test_handovers_of_a_speed_are_those_of_the_radio(tmp_path: Path) -> None:
    """A handover comes every 0.6 km in LTE and every 0.13 km in mmWave: at 36 km/h every 60 s and every 13 s."""
    assert link(tmp_path, "preset: lte, handover: {speed_kmh: 36}").handover == pytest.approx((60.0, 0.055))
    assert link(tmp_path, "preset: 5g-mmwave, handover: {speed_kmh: 36}").handover == pytest.approx((13.0, 0.1))
    assert link(tmp_path, "preset: lte, handover: {speed_kmh: 36, gap_ms: 1000}").handover == pytest.approx((60.0, 1.0))
    assert link(tmp_path, "preset: wifi, handover: {every_s: 5, gap_ms: 40}").handover == (5.0, 0.04)
    line = link(tmp_path, "rtt_ms: 50, up_mbps: 1, down_mbps: 1, radio: lte, handover: {speed_kmh: 72}")
    assert network_of(line, 0).handovers == Handovers(30.0, 0.055)


def test_the_uplink_of_a_preset_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    """LTE's preset round trip of 60 ms includes 5 + 12 ms of uplink access; a given `rtt_ms` includes none."""
    lte = link(tmp_path, "preset: lte")
    usual = link(tmp_path, "preset: lte, uplink: {sr_period_ms: 10}")
    assert usual == replace(lte, rtt_s=pytest.approx(0.043), uplink=(0.01, 0.012, 0.0, 0.0))
    radio = network_of(usual, 0).radio
    assert radio is not None
    assert usual.rtt_s is not None
    assert lte.rtt_s == pytest.approx(usual.rtt_s + radio.mean_access_s)  # the mean stays
    assert link(tmp_path, "preset: lte, rtt_ms: 60, uplink: {sr_period_ms: 20}").rtt_s == 0.06
    assert link(tmp_path, "preset: lte, uplink: {configured_ms: 5}").uplink == (0.0, 0.0, 0.0, 0.005)
    # It is the preset's own radio that the round trip was measured with, whatever radio is put in its place.
    assert link(tmp_path, "preset: fibre, radio: lte, uplink: {sr_period_ms: 20}").rtt_s == 0.012
    assert link(tmp_path, "preset: lte, radio: none, uplink: {slot_ms: 5}").rtt_s == pytest.approx(0.043)
    assert link(tmp_path, "preset: lte, radio: 5g-sub6, uplink: {slot_ms: 5}").rtt_s == pytest.approx(0.043)
    assert link(tmp_path, "preset: 5g, uplink: {slot_ms: 2.5}").uplink == (0.01, 0.003, 0.0025, 0.0)
    plain = link(tmp_path, "rtt_ms: 50, up_mbps: 1, down_mbps: 1, uplink: {sr_period_ms: 10, grant_ms: 4}")
    assert (plain.rtt_s, plain.uplink, plain.radio) == (0.05, (0.01, 0.004, 0.0, 0.0), None)
    alone = network_of(plain, 0).radio
    assert alone is not None
    assert (alone.promotion_s, alone.active_w, alone.mean_access_s) == (0.0, 0.0, pytest.approx(0.009))


def test_operators_keep_what_they_do_not_choose(tmp_path: Path) -> None:
    network = network_of(link(tmp_path, "preset: lte, operators: catalogue"), 0)
    assert [(share, one.inactivity_s) for share, one in network.operators] == [
        (pytest.approx(1 / 3), 5.0),
        (pytest.approx(1 / 3), 10.2),
        (pytest.approx(1 / 3), 11.2),
    ]
    assert network.radio == replace(network.operators[0][1], inactivity_s=10.2)
    own = "{share: 0.25, drx_after_ms: 100, drx_cycle_ms: 40}, {share: 0.75, inactivity_s: 5}"
    found = network_of(link(tmp_path, f"preset: lte, operators: [{own}]"), 0).operators
    assert [(share, one.inactivity_s, one.drx_after_s, one.drx_cycle_s) for share, one in found] == [
        (0.25, 10.2, 0.1, 0.04),
        (0.75, 5.0, 0.2, 0.32),
    ]


def test_what_a_cell_does_is_kept_in_the_resolved_file(tmp_path: Path) -> None:
    text = (
        f"{HEAD}network: {{preset: lte, handover: {{speed_kmh: 50}}, uplink: {{slot_ms: 5}}, operators: catalogue}}\n"
    )
    scenario = load(tmp_path, text)
    again = load(tmp_path, written_out(tmp_path, scenario).read_text())
    assert again == scenario
    swept = load(tmp_path, f"{text}sweep: {{network.handover.speed_kmh: [5, 50], network.uplink.slot_ms: [5, 2.5]}}\n")
    assert len(swept.sweep.axes) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("handover: {}", "handover needs speed_kmh or every_s"),
        ("handover: {every_s: 3, speed_kmh: 3}", "handover.every_s conflicts with speed_kmh"),
        ("handover: {speed_kmh: 30}", "handover.speed_kmh needs a radio whose handovers are known (lte, "),
        ("radio: 3g, handover: {speed_kmh: 30}", "handover.speed_kmh needs a radio whose handovers are known (lte, "),
        ("handover: {every_s: 3}", "handover.gap_ms is missing"),
        ("handover: {every_s: 0.2, gap_ms: 150}", "handover.gap_ms must be at most two thirds of the 0.2 s between"),
        ("handover: {every_s: 3, gap_ms: 50}, devices_per_cell: 2", "handover goes with devices_per_cell: 1"),
        ("handover: {every_s: 3, gap_ms: 50}, wifi: {stations: 1}", "handover does not go with wifi"),
        ("handover: {every_s: 1e-300, gap_ms: 1}", "handover.every_s must be >= 0.001, got 1e-300"),
        ("handover: {every_s: 1, gap_ms: 1e-300}", "handover.gap_ms must be >= 0.001, got 1e-300"),
        ("uplink: {sr_period_ms: 10, grant_ms: 1, slot_ms: 1e-310}", "uplink.slot_ms must be >= 0.001, got 1e-310"),
        ("uplink: {configured_ms: 1e-300}", "uplink.configured_ms must be >= 0.001, got 1e-300"),
        ("uplink: {}", "uplink needs sr_period_ms, grant_ms, slot_ms or configured_ms"),
        ("uplink: {configured_ms: 5, grant_ms: 5}", "uplink.grant_ms conflicts with configured_ms"),
        (
            "uplink: {sr_period_ms: 10, slot_ms: 3, grant_ms: 1}",
            "uplink.sr_period_ms must be a multiple of slot_ms, 3, got 10",
        ),
        ("radio: lte, uplink: {slot_ms: 3}", "uplink.slot_ms must divide the radio's sr_period_ms, 10, got 3"),
        ("uplink: {sr_period_ms: 10}", "uplink.grant_ms is missing"),
        ("uplink: {grant_ms: 10}", "uplink.grant_ms needs sr_period_ms"),
        ("radio: wifi, uplink: {slot_ms: 5}", "uplink needs a radio with a scheduled uplink (lte, 5g-sub6"),
        ("wifi: {stations: 1}, uplink: {slot_ms: 5}", "uplink does not go with wifi"),
        ("operators: catalogue", "operators needs a radio, which is missing"),
        ("radio: wifi, operators: catalogue", "operators has no timers of operators for this radio"),
        ("radio: lte, operators: []", "operators "),
        ("radio: lte, operators: [{share: 1}]", "operators[0] needs inactivity_s, drx_after_ms or drx_cycle_ms"),
        ("radio: lte, operators: [{share: 1, inactivity_s: 1}, {inactivity_s: 2}]", "operators must have a share each"),
        (
            "radio: lte, operators: [{share: 0.5, inactivity_s: 1}]",
            "operators must have shares that add up to 1, got 0.5",
        ),
    ],
)
def test_a_cell_that_cannot_be_is_refused(tmp_path: Path, keys: str, message: str) -> None:
    assert refusal(tmp_path, f"{HEAD}{LINE}{keys}}}\n").startswith(f"t.yaml:5: network.{message}")


def test_a_cell_is_shared_side_by_side(tmp_path: Path) -> None:
    network = network_of(
        link(tmp_path, "preset: lte, devices_per_cell: 9, sharing: proportional-fair, fading_snr_db: 10"), 0
    )
    assert (network.fair, network.fading_snr_db, network.devices_per_cell) == (True, 10.0, 9)
    assert not network_of(link(tmp_path, "preset: lte, devices_per_cell: 9, sharing: fcfs"), 0).fair
    fair = "preset: lte, devices_per_cell: 9, sharing: proportional-fair"
    busy = network_of(link(tmp_path, f"{fair}, cross_traffic: {{down: greedy}}"), 0)  # in a queue of its own: no buffer
    assert (busy.up_cross, busy.down_cross) == (None, GREEDY)


FAIR = "network: {preset: lte, devices_per_cell: 9, sharing: proportional-fair}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {preset: lte, sharing: proportional-fair}", "network.sharing does nothing with devices_per_cell: 1"),
        ("network: {preset: lte, devices_per_cell: 2, fading_snr_db: 3}", "network.fading_snr_db does nothing without"),
        (FAIR.replace("}", ", buffer_ms: 50}"), "network.buffer_ms does not go with sharing: proportional-fair"),
        (
            FAIR.replace("}", ", aqm: codel, cross_traffic: {up: greedy}}"),
            "network.aqm does not go with sharing: proportional-fair",
        ),
        (
            FAIR.replace("}", ", cross_traffic: {up: greedy, down: video}}"),
            "network.cross_traffic.down must be greedy or {busy_s, quiet_s} with sharing: proportional-fair, got video",
        ),
        (FAIR.replace("}", ", wifi: {stations: 1}}"), "network.wifi does not go with sharing: proportional-fair"),
        (
            "network: {paths: [wifi, {preset: lte, devices_per_cell: 2, sharing: proportional-fair}]}",
            "network.paths[1].sharing",
        ),
        (
            FAIR + "fallback: {policy: device, deadline_ms: 9}",
            "network.sharing proportional-fair goes with fallback.policy: wait",
        ),
        (
            FAIR + "cloud: {max_sessions: 1, max_waiting: 1}",
            "network.sharing proportional-fair goes with a cloud without crashes",
        ),
    ],
)
def test_a_fair_cell_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, f"{HEAD}{text}\n").startswith(f"t.yaml:5: {message}")


def test_paths_are_networks_side_by_side(tmp_path: Path) -> None:
    both = load(tmp_path, f"{HEAD}network: {{paths: [wifi, {{preset: lte, rtt_ms: 50}}]}}\n")
    wifi, lte = link(tmp_path, "preset: wifi"), link(tmp_path, "preset: lte, rtt_ms: 50")
    assert both.network.figures() == replace(wifi, also=(lte,))
    assert network_of(both.network.figures(), 0) == replace(network_of(wifi, 0), also=(network_of(lte, 0),))
    tiers = "cloud: {tier: here, tiers: {here: {rtt_ms: 30}}}\n"
    there = load(tmp_path, f"{HEAD}network: {{paths: [wifi, lte]}}\n{tiers}").links[0]
    assert (there.rtt_s, there.also[0].rtt_s) == pytest.approx((0.039, 0.079))
    assert load(tmp_path, written_out(tmp_path, both).read_text()) == both
    assert both.network.figures().plain()["also"][0]["rtt_s"] == 0.05


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("{paths: [wifi]}", "network.paths must be 2 to 4 networks, got 1"),
        ("{paths: [wifi, wifi, lte, lte, lan]}", "network.paths must be 2 to 4 networks, got 5"),
        ("{paths: [wifi, lte], rtt_ms: 3}", "network.rtt_ms conflicts with paths: give it in each of them"),
        ("{paths: [wifi, {preset: lte, rtt: 3}]}", "network.paths[1].rtt is not a known key"),
        ("{paths: [wifi, {paths: [wifi, lte]}]}", "network.paths[1].paths cannot be in a path"),
        (
            "{paths: [wifi, {preset: lte, distance_km: 3}]}\ncloud: {tier: here, tiers: {here: {rtt_ms: 30}}}",
            "network.paths[1].distance_km conflicts",
        ),
    ],
)
def test_paths_that_cannot_be_are_refused(tmp_path: Path, network: str, message: str) -> None:
    assert refusal(tmp_path, f"{HEAD}network: {network}\n").startswith(f"t.yaml:5: {message}")
