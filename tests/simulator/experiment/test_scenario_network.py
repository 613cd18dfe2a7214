"""The network section: impairments, presets, traces, and keys that conflict."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from simulator.experiment.fleet import network_of
from simulator.experiment.loading import load_scenario
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.sweep import expand
from simulator.network.access import AccessNetwork
from simulator.network.cross import AQMS, GREEDY, Traffic
from simulator.network.transport import TRANSPORTS
from simulator.network.wifi import Hop
from simulator.network.wire import Capacity, StepFunction
from simulator.traces.gaps import fitted
from tests.simulator.experiment.scenario_files import HEAD, LINE, load, refusal, written_out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("loss_pct: -1}", "loss_pct must be >= 0, got -1"),
        ("loss_pct: 100}", "loss_pct must be <= 90, got 100"),
        ("loss_pct: .nan}", "loss_pct must be a finite number, got .nan"),
        ("loss_burst_packets: 0.5}", "loss_burst_packets must be >= 1, got 0.5"),
        ("loss_pct: 80, loss_burst_packets: 2}", "loss_burst_packets must be >= 4 for a loss_pct of 80, got 2"),
        ("jitter_ms: .inf}", "jitter_ms must be a finite number, got .inf"),
        (
            "jitter_ms: 2, jitter_distribution: gama}",
            "jitter_distribution must be normal, lognormal, gamma or pareto, got 'gama' (text); did you mean gamma?",
        ),
        ("jitter_samples_ms: [1, .nan]}", "jitter_samples_ms[1] must be a finite number, got .nan"),
        (
            "jitter_ms: 2, jitter_samples_ms: [1, 2]}",
            "jitter_samples_ms conflicts with jitter_ms or jitter_distribution",
        ),
        ("buffer_bytes: 0}", "buffer_bytes must be >= 1, got 0"),
        ("buffer_bytes: 1.5}", "buffer_bytes must be a whole number, got 1.5"),
        ("buffer_bytes: 9, buffer_ms: 9}", "buffer_ms conflicts with buffer_bytes: the buffer is given twice"),
        ("handshake: resumed}", "handshake needs transport: grpc or quic, got ideal"),
        ("congestion_control: bbr}", "congestion_control needs transport: tcp, grpc, quic or sctp, got ideal"),
        ("idle_timeout_s: 60}", "idle_timeout_s needs transport: tcp, grpc, quic or sctp, got ideal"),
        ("transport: tcp, flow_window_bytes: 65535}", "flow_window_bytes needs transport: grpc, quic or sctp, got tcp"),
        ("transport: sctp, handshake: resumed}", "handshake needs transport: grpc or quic, got sctp"),
        ("transport: tcp, handshake: 0-rtt}", "handshake needs transport: grpc or quic, got tcp"),
        ("loss_burst_packets: 5}", "loss_burst_packets does nothing without loss_pct, which is missing"),
        ("jitter_distribution: gamma}", "jitter_distribution does nothing without jitter_ms, which is missing"),
        ("outage_every_s: 60}", "outage_every_s does nothing without outage_ms, which is missing"),
        ("jitter_on: top}", "jitter_on does nothing without jitter_ms or jitter_samples_ms, which are missing"),
        ("aqm: codel}", "aqm does nothing without cross_traffic, which is missing"),
        ("cross_traffic: {up: greedy}}", "cross_traffic needs buffer_ms or buffer_bytes, or an aqm"),
        ("cross_traffic: {}, aqm: codel}", "cross_traffic needs up, down or both: greedy, video or {busy_s, quiet_s}"),
        ("cross_traffic: {up: gready}, aqm: codel}", "cross_traffic.up must be greedy or video, got 'gready' (text)"),
        ("cross_traffic: {up: {busy_s: 1}}, aqm: codel}", "cross_traffic.up.quiet_s is missing"),
        (
            "cross_traffic: {up: {busy_s: 0, quiet_s: 1}}, aqm: codel}",
            "cross_traffic.up.busy_s must be >= 0.001, got 0",
        ),
        (
            "cross_traffic: {up: {busy_s: 1, quiet_s: 1e-300}}, aqm: codel}",
            "cross_traffic.up.quiet_s must be >= 0.001, got",
        ),
        ("wifi: {}}", "wifi needs stations or tail_pct, above 0"),
        ("wifi: {stations: -1}}", "wifi.stations must be >= 0, got -1"),
        ("outage_ms: 5}", "outage_ms needs outage_every_s, which is missing"),
        ("outage_every_s: 1, outage_ms: 1000}", "outage_ms must be < outage_every_s (1 s), got 1000"),
        ("outage_every_s: 0}", "outage_every_s must be >= 0.001, got 0"),
        ("rate: lte-gaps, outage_every_s: 1, outage_ms: 5}", "outage_ms needs rate: constant"),
        ("transport: udp}", "transport must be ideal, tcp, grpc, quic or sctp, got 'udp' (text)"),
        ("radio: lt}", "radio is not a known radio, got 'lt' (text); did you mean lte?"),
        ("devices_per_cell: 0}", "devices_per_cell must be >= 1, got 0"),
        ("distance_km: 5}", "distance_km goes with preset only"),
        ("resample_s: 5}", "resample_s goes with trace only"),  # it was called an unknown key
        ("unit: ms}", "unit goes with trace only"),
        ("los_pct: 5}", "los_pct is not a known key; did you mean loss_pct? allowed: preset, trace, paths, rtt_ms, "),
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, settings: str, message: str) -> None:
    assert refusal(tmp_path, f"{HEAD}{LINE}{settings}\n").startswith(f"t.yaml:5: network.{message}")


def test_a_setting_whose_other_half_is_swept_does_something(tmp_path: Path) -> None:
    line = f"{HEAD}{LINE}loss_burst_packets: 5}}\n"
    assert load(tmp_path, f"{line}sweep: {{network.loss_pct: [0, 2]}}\n").network
    late = f"{HEAD}fallback: {{deadline_ms: 200}}\n".replace("base", "ciar")
    assert load(tmp_path, f"{late}sweep: {{fallback.policy: [wait, device]}}\n").fallback.deadline_ms == 200
    evict = f"{HEAD}cloud: {{kv_full: evict}}\n"
    assert load(tmp_path, f"{evict}sweep: {{cloud.kv_memory_gb: [1, 2]}}\n").cloud.kv_full == "evict"
    assert refusal(tmp_path, evict) == "t.yaml:5: cloud.kv_full does nothing without kv_memory_gb, which is missing"


def test_figures_of_a_preset_can_be_replaced(tmp_path: Path) -> None:
    def link(keys: str) -> LinkFigures:
        return load(tmp_path, HEAD + f"network: {{{keys}}}\n").network.figures()

    lte = link("preset: lte")
    assert link("preset: lte, rtt_ms: 30") == replace(lte, rtt_s=0.03)
    assert link("preset: lte, rtt_ms: 30, distance_km: 1000").rtt_s == pytest.approx(0.052)
    assert link("preset: lte, up_mbps: 1, down_mbps: 2") == replace(lte, up_bps=1e6, down_bps=2e6)
    assert link("preset: lte, jitter_ms: 3, jitter_distribution: gamma") == replace(
        lte, jitter_s=0.003, jitter_distribution="gamma"
    )
    assert link("preset: lte, loss_pct: 1, loss_burst_packets: 2") == replace(lte, loss=0.01, loss_burst_packets=2.0)
    assert link("preset: lte, radio: none") == replace(lte, radio=None)
    assert link("preset: lan, radio: wifi").radio == "wifi"
    assert link("preset: leo, up_mbps: 4") == replace(link("preset: leo"), up_bps=4e6)
    assert load(tmp_path, HEAD + "network: lte\n").network.figures() == lte
    assert lte.gaps == link("preset: wifi, rate: lte-gaps").gaps == fitted()["lte-gaps"].gaps
    assert link("preset: lte, rate: constant") == replace(lte, gaps=None)
    blocked = link("preset: 5g-mmwave, rate: constant")
    assert (blocked.down_bps, blocked.up_bps, blocked.gaps) == (1e9, 2e8, None)


@pytest.mark.parametrize(("keys", "told_ms"), [("rate: constant", 38), ("jitter_ms: 0", 16), ("distance_km: 500", 50)])
def test_pings_over_a_preset_differ_as_the_documentation_says(tmp_path: Path, keys: str, told_ms: float) -> None:
    """Bursts of five pings of 64 bytes over `lte`, a second apart: the median over 1000 bursts of the largest time minus the least."""
    network = network_of(load(tmp_path, f"{HEAD}network: {{preset: lte, {keys}}}\n").network.figures(), 0)
    bare = replace(network, radio=None, up_loss=0.0, down_loss=0.0, burst_packets=None, transport=TRANSPORTS["ideal"])
    access = AccessNetwork(bare, 1, [], [])
    differences_s = []
    for device in range(50):
        up, down, _ = access.links(device)
        for burst in range(20):
            times_s = [12.0 * burst + ping for ping in range(5)]
            took_s = [down.send(up.send(at_s, 64), 64) - at_s for at_s in times_s]
            differences_s.append(max(took_s) - min(took_s))
    assert 1e3 * median(differences_s) == pytest.approx(told_ms, rel=0.2)


def test_rates_with_gaps_keep_their_means(tmp_path: Path) -> None:
    for section in ("{preset: lte, up_mbps: 4}", "{rtt_ms: 60, up_mbps: 4, down_mbps: 27, rate: lte-driving-gaps}"):
        link = load(tmp_path, f"{HEAD}network: {section}\n").network.figures()
        network = network_of(link, 0)
        assert isinstance(network.up_bps, Capacity)
        assert isinstance(network.down_bps, Capacity)
        assert (network.up_bps.mean_bps, network.down_bps.mean_bps) == pytest.approx((4e6, 27e6))
        assert network_of(link, 0).up_bps is network.up_bps  # made once


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("preset: lan, loss_burst_packets: 3", "loss_burst_packets has no effect: lan loses no packets"),
        ("preset: lan, radio: none", "radio has no effect: lan has no radio"),
        ("preset: lte, radio: x", "radio is not a known radio, got 'x' (text)"),
        ("preset: lte, rtt_ms: 0", "jitter_ms needs a delay > 0"),
        ("preset: lte, loss_pct: 90", "loss_burst_packets must be >= 9 for a loss_pct of 90, got 4"),
        ("preset: lte, outage_ms: 5", "outage_ms does not go with preset, which takes buffer_bytes, "),
        ("preset: lte, up_mbps: 0.0001", "up_mbps must be >= 0.001 (1 kbit/s)"),
        ("preset: wifi, rate: constant", "rate has no effect: rates of wifi are constant"),
        ("preset: lte, rate: lte-gap", "rate is not a known way to vary, got 'lte-gap' (text); did you mean lte-gaps?"),
        ("preset: lte, rate: {slow_s: 1}", "rate.slow_share is missing"),
        ("preset: 4G", "preset is not a known preset, got '4G' (text); did you mean lte?"),
        ("preset: up.csv", "preset is not a known preset, got 'up.csv' (text); for a trace: network: {trace: up.csv}"),
        ("preset: LTE", "preset is not a known preset, got 'LTE' (text); did you mean lte?"),
    ],
)
def test_figures_that_a_preset_cannot_take_are_refused(tmp_path: Path, keys: str, message: str) -> None:
    assert refusal(tmp_path, HEAD + f"network: {{{keys}}}\n").startswith(f"t.yaml:5: network.{message}")


def test_a_preset_takes_distance_transport_and_cell(tmp_path: Path) -> None:
    s = load(tmp_path, HEAD + "network: {preset: lte, distance_km: 1000, transport: quic, devices_per_cell: 8}\n")
    link = s.network.figures()
    assert (link.rtt_s, link.transport, link.devices_per_cell) == (pytest.approx(0.082), "quic", 8)
    assert (
        refusal(tmp_path, HEAD + "network: {preset: lte, distance_km: -1}\n")
        == "t.yaml:5: network.distance_km must be >= 0, got -1"
    )
    zero = "network: {rtt_ms: 0, up_mbps: 1, down_mbps: 1, jitter_ms: 1, jitter_distribution: pareto}\n"
    assert "network.jitter_ms needs a delay > 0: rtt_ms is 0" in refusal(tmp_path, HEAD + zero)
    samples = "network: {rtt_ms: 0, up_mbps: 1, down_mbps: 1, jitter_samples_ms: [1, -1]}\n"
    assert "network.jitter_samples_ms needs a delay > 0" in refusal(tmp_path, HEAD + samples)
    wide = "network: {rtt_ms: 2, up_mbps: 1, down_mbps: 1, jitter_ms: 101}\n"
    told = "network.jitter_ms must be at most 100 times the mean one-way delay (1 ms), got 101"
    assert told in refusal(tmp_path, HEAD + wide)
    s = load(
        tmp_path, HEAD + LINE + "loss_pct: 1}\nsweep: {network.loss_pct: [0, 2], network.transport: [tcp, quic]}\n"
    )
    assert [case.scenario.network.figures().loss for case in expand(s)][:4] == [0.0, 0.0, 0.02, 0.02]


def test_cross_traffic_of_a_preset_is_sized_by_its_rates(tmp_path: Path) -> None:
    text = "network: {preset: wifi, cross_traffic: {up: greedy, down: {busy_s: 1, quiet_s: 2}}, aqm: codel, buffer_ms: 200}\n"
    s = load(tmp_path, HEAD + text)
    network = network_of(s.network.figures(), 0)
    assert (network.up_cross, network.down_cross) == (GREEDY, Traffic(1.0, 2.0))
    assert (network.up_buffer_bytes, network.down_buffer_bytes) == pytest.approx((1e6, 2.25e6))
    assert network.aqm == AQMS["codel"]
    assert load_scenario(written_out(tmp_path, s)) == s
    video = load(tmp_path, HEAD + "network: {preset: wifi, cross_traffic: {down: video}, buffer_bytes: 9000}\n")
    assert network_of(video.network.figures(), 0).down_cross == Traffic.video(90e6)
    for more, share in (("wifi: {stations: 1}", Hop(1).share), ("handover: {every_s: 10, gap_ms: 1000}", 0.9)):
        keys = f"preset: wifi, cross_traffic: {{down: video}}, buffer_bytes: 9000, {more}"
        slower = load(tmp_path, HEAD + f"network: {{{keys}}}\n")  # less of the rate is left, so segments take longer
        assert network_of(slower.network.figures(), 0).down_cross == Traffic.video(90e6 * share)
    generated = load(tmp_path, HEAD + "network: {preset: leo, cross_traffic: {down: greedy}, buffer_ms: 100}\n")
    assert network_of(generated.network.figures(), 0).down_buffer_bytes == pytest.approx(100e6 * 0.1 / 8, rel=1e-4)
    swept = load(
        tmp_path, HEAD + text + "sweep: {network.aqm: [codel, fq-codel], network.cross_traffic.up: [greedy, video]}\n"
    )
    assert len({case.scenario.network.figures() for case in expand(swept)}) == 4


def test_a_trace_gives_the_rates(tmp_path: Path) -> None:
    (tmp_path / "both.csv").write_text("time_s,down_mbps,up_mbps\n0,10,5\n1,0,0\n2,20,10\n3,1,1\n")
    (tmp_path / "down.csv").write_text("time_s,down_mbps\n0,10\n1,20\n2,5\n")
    more = {
        "half": ("delay_up_ms", "9"),
        "lost": ("loss_pct", "95"),
        "all": ("rtt_ms,loss_pct", "9,1"),
        "zero": ("rtt_ms", "0"),
    }
    for name, (column, value) in more.items():
        (tmp_path / f"{name}.csv").write_text(f"time_s,down_mbps,up_mbps,{column}\n0,10,5,{value}\n1,20,5,{value}\n")
    s = load(tmp_path, HEAD + "network: {trace: all.csv}\n")
    assert (s.network.figures().rtt_s, s.network.figures().loss) == (None, None)
    assert load_scenario(written_out(tmp_path, s)) == s
    s = load(
        tmp_path, HEAD + "network: {trace: both.csv, rtt_ms: 50, loss_pct: 1}\nsweep: {network.trace: [both.csv]}\n"
    )
    assert s.network.figures().trace is not None
    assert s.network.figures().trace.files == (str(tmp_path / "both.csv"),)
    assert (s.network.figures().up_bps, s.network.figures().down_bps, s.network.figures().loss) == (None, None, 0.01)
    assert expand(s)[0].scenario.network.figures() == s.network.figures()
    assert load_scenario(written_out(tmp_path, s)) == s
    s = load(tmp_path, HEAD + "network: {trace: down.csv, rtt_ms: 50, up_mbps: 4}\n")
    assert (s.network.figures().up_bps, s.network.figures().down_bps) == (4e6, None)
    for line, message in (
        ("{trace: down.csv, rtt_ms: 50}", "up_mbps is missing: the trace has no rate in this direction"),
        ("{trace: both.csv}", "rtt_ms is missing: the trace has no delays"),
        ("{trace: half.csv}", "rtt_ms is missing: the trace has delays of one direction only"),
        (
            "{trace: lost.csv, rtt_ms: 5}",
            "trace loses 95 % of packets; allowed: 90 % on average, or loss_pct beside it",
        ),
        (
            "{trace: all.csv, loss_burst_packets: 3}",
            "loss_burst_packets goes with loss_pct only: packets of a trace are lost one by one",
        ),
        (
            "{trace: zero.csv, jitter_ms: 3, jitter_distribution: gamma}",
            "jitter_ms needs a delay > 0: rtt_ms is 0, or the trace says so",
        ),
        ("{trace: no.csv, rtt_ms: 50}", "trace must be the path of a file, got 'no.csv' (text), which is not there"),
        ("{trace: ., rtt_ms: 50}", "trace must be the path of a file, got '.' (text), which is a folder"),
        ("{trace: t.yaml, rtt_ms: 50}", "trace cannot be used: t.yaml: is of no known trace format"),
        ("{trace: both.csv, preset: lte}", "trace does not go with preset, which takes "),
        ("{trace: both.csv, rtt_ms: 5, outage_ms: 3}", "outage_ms goes without trace only"),
        ("{trace: both.csv, rtt_ms: 5, up_mbps: 0}", "up_mbps must be > 0, got 0"),
    ):
        assert refusal(tmp_path, f"{HEAD}network: {line}\n").startswith(f"t.yaml:5: network.{message}")


@pytest.mark.parametrize("rtt_ms", [0.1, 5, 20, 100])
def test_a_round_trip_of_a_varying_preset_keeps_its_mean_and_no_delay_is_below_0(tmp_path: Path, rtt_ms: float) -> None:
    """Those of `leo` vary by 10 ms to either side of 45, and the two ends of a shorter round trip by what there is."""
    network = network_of(
        load(tmp_path, f"{HEAD}network: {{preset: leo, rtt_ms: {rtt_ms}, jitter_ms: 0}}\n").network.figures(), 0
    )
    delay = network.up_delay_s
    assert isinstance(delay, StepFunction)
    assert min(delay.values) >= 0.0
    assert network.rtt_s == pytest.approx(1e-3 * rtt_ms, abs=3e-5)  # the mean of what was drawn, as without rtt_ms
    assert max(delay.values) - delay.mean == pytest.approx(min(5e-3, delay.mean), rel=0.02)
