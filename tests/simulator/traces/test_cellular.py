"""CellReplay's two workloads: its files, and packet times calculated by hand."""

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import TraceError
from simulator.experiment.fleet import network_of
from simulator.network.access import AccessNetwork
from simulator.network.trains import TrainCapacity, TrainWire
from simulator.network.wire import Capacity, StepFunction
from simulator.traces.excerpt import excerpt
from simulator.traces.own import as_own, own_text
from simulator.traces.read import read_trace
from tests.simulator.experiment.scenario_files import HEAD, load, refusal
from tests.simulator.traces.examples import LIGHT, file

PACKET_BITS = 8 * 1400


def wire(base_s: float = 0.0, sizes: tuple[tuple[int, float], ...] = ()) -> TrainWire:
    """Return a wire with a train of packets after 0, 2 and 5 ms, and one of a single packet from the second second on.

    The saturated link carries a packet per millisecond.
    """
    saturated = Capacity([0.0], [1000.0 * PACKET_BITS], 1.0)
    base = StepFunction([0.0], [base_s], 2.0)
    return TrainCapacity(saturated, [0.0, 1.0], [[0.0, 0.002, 0.005], [0.0]], 2.0, base, sizes).wire(0.0, shared=False)


def sent(link: TrainWire, start_s: float, packets: float) -> float:
    """Return the time in ms from the start to the last packet."""
    return 1e3 * (link.finish_s(start_s, packets * PACKET_BITS) - start_s)


def test_packets_after_an_idle_queue_leave_as_in_the_train_of_the_moment() -> None:
    assert sent(wire(), 0.1, 1) == 0.0
    assert sent(wire(), 0.1, 3) == pytest.approx(5.0)
    assert sent(wire(), 0.1, 2.5) == pytest.approx(5.0)  # part of a packet takes a whole place
    assert sent(wire(), 1.1, 1) == 0.0
    assert sent(wire(), 4.1, 3) == pytest.approx(5.0)  # trains repeat


def test_messages_in_a_row_take_the_next_places_of_a_train() -> None:
    link = wire()
    assert [sent(link, 0.1, 1), sent(link, 0.1, 1)] == [0.0, pytest.approx(2.0)]
    assert sent(link, 0.1 + 0.002, 1) == pytest.approx(3.0)  # after the previous packet has left
    link = wire()
    assert sent(link, 0.1, 1) == 0.0
    assert sent(link, 0.1001, 1) == 0.0  # the queue was idle: a new train


def test_packets_beyond_a_train_go_through_the_saturated_link() -> None:
    """As in CellReplay, they enter it after the last offset, less the base delay."""
    assert sent(wire(), 0.1, 5) == pytest.approx(5.0 + 2.0)
    assert sent(wire(base_s=0.003), 0.1, 5) == pytest.approx(2.0 + 2.0 + 1.0)
    assert sent(wire(base_s=0.1), 0.1, 5) == pytest.approx(5.0)  # done before the last packet of the train
    assert sent(wire(base_s=0.1), 0.1, 13) == pytest.approx(10.0)
    link = wire(base_s=0.1)
    sent(link, 0.1, 13)
    assert sent(link, 0.11, 4) == pytest.approx(4.0)


def test_asking_twice_about_the_same_packets_takes_no_place_twice() -> None:
    link = wire()
    ends = [link.finish_s(0.1, 3 * PACKET_BITS), link.finish_s(0.1, PACKET_BITS), link.finish_s(0.1, 3 * PACKET_BITS)]
    assert ends == pytest.approx([0.105, 0.1, 0.105])


def test_small_packets_have_delays_of_their_own() -> None:
    link = wire(sizes=((100, 0.001), (200, 0.003)))
    assert sent(link, 0.1, 100 / 1400) == pytest.approx(1.0)
    assert sent(link, 0.2, 150 / 1400) == pytest.approx(2.0)
    assert sent(link, 0.3, 1) == pytest.approx(3.0)


def test_a_link_of_its_files(tmp_path: Path) -> None:
    """File names give the directions. The base delay rises linearly from 20 to 30 ms in the first half second."""
    for name, content in (
        ("up-delay-light-pdo", LIGHT),
        ("down-delay-light-pdo", LIGHT),
        ("up-pdo", "1\n2\n3\n1000\n"),
        ("down-pdo", "500\n1000\n"),
        ("latency-offset-down", "100 0.5\n200 1.5\n"),
    ):
        file(tmp_path, content, name)
    names = "[up-delay-light-pdo, up-pdo, down-delay-light-pdo, down-pdo, latency-offset-down]"
    s = load(tmp_path, HEAD + f"network: {{trace: {names}}}\n")
    network = network_of(s.links[0], 0)
    assert isinstance(network.up_bps, TrainCapacity)
    assert isinstance(network.down_bps, TrainCapacity)
    assert network.up_bps.mean_bps == pytest.approx(4 * PACKET_BITS)
    assert network.down_bps.mean_bps == pytest.approx(2 * PACKET_BITS)
    assert isinstance(network.up_delay_s, StepFunction)
    assert network.up_delay_s.mean == pytest.approx((0.025 + 0.035) / 2)
    assert network.up_delay_s.entered_at(0.0)(0.26) == pytest.approx(0.0255)
    joules = np.zeros(1)
    up, down, _ = AccessNetwork(network, 0, joules, joules).links(0)
    delays = [link.send(now_s, 150) - now_s for link, now_s in ((up, 1.0), (down, 1.0))]
    assert 0.02 <= delays[0] <= 0.04
    assert delays[1] == pytest.approx(delays[0] + 0.001)  # 150 bytes: between the offsets of 100 and 200
    for key, why in (
        ("devices_per_cell: 2", "are those of a queue that is idle"),
        ("wifi: {tail_pct: 1}", "are those of a queue that is idle"),
        ("resample_s: 60", "depend on what was sent before"),
    ):
        told = refusal(tmp_path, HEAD + f"network: {{trace: {names}, {key}}}\n")
        assert told == f"t.yaml:5: network.{key.split(':')[0]} does not go with packet trains, which {why}"


def test_a_window_of_trains(tmp_path: Path) -> None:
    trains = excerpt(read_trace([file(tmp_path, LIGHT)]), (0.25, 0.75), 2.0).down.trains
    assert trains is not None
    assert (trains.times_s.tolist(), trains.duration_s) == ([0.0, 0.5], 1.0)
    assert trains.offsets_s == ((0.0, 0.001, 0.003), (0.0, 0.002, 0.002))


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("0 20 0 1\n500 30 0\n", "t", "holds 2 trains; allowed: 3 or more"),
        ("0 20 0 1\n500 30 0\n900\n", "t", ":3: holds 1 columns"),
        ("0 20 0 1\n500 30 1 2\n900 3 0\n", "t", ":2: offsets must ascend from 0"),
        ("0 20 0 1\n500 30 0 x\n900 3 0\n", "t", ":2: 'x' is not a number"),
        ("0 20 0 1\n500 30 0 -1\n900 3 0\n", "t", ":2: must hold whole numbers of milliseconds >= 0"),
        ("0 20 0 1\n500 30 0\n400 3 0\n", "t", ":3: time goes back"),
        ("100 1\n200 2\n", "latency-offset-up", "holds delays by size and nothing else"),
        ("100 1\n300 2\n", "latency-offset-up", ":2: sizes must be 100, 200, 300 and so on, got 300"),
        ("1.5,Mbits/sec\n2,Mbit\n", "t", ":2: must hold a rate and its unit"),
        ("1.5,Mbits/sec\n-2,Mbits/sec\n", "t", ":2: rate in bit/s must be 0 to 1e+12"),
    ],
)
def test_what_is_none_of_these_is_refused(content: str, name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace([file(tmp_path, content, name)])
    assert says in str(caught.value)


def test_what_the_own_form_cannot_hold_is_named(tmp_path: Path) -> None:
    """The comments of the CSV described trains that it does not have."""
    paths = [
        file(tmp_path, content, name)
        for name, content in (
            ("up-delay-light-pdo", LIGHT),
            ("up-pdo", "1\n1000\n"),
            ("latency-offset-up", "100 0.5\n200 1.5\n"),
        )
    ]
    trace = read_trace(paths)
    kept = as_own(trace)
    assert kept.notes[-1].startswith("left out, as this form cannot hold it: packet trains and the additional delay")
    assert own_text(kept) == own_text(trace)
    plain = read_trace(paths[1:2])
    assert as_own(plain) is plain
