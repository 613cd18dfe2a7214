"""Framing, timers and the congestion window against the figures of their sources and a packet-level simulator."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Wire

TCP = TRANSPORTS["tcp"]


@pytest.mark.parametrize(
    ("name", "payload", "wire", "segments"),
    [
        ("ideal", 1449, 1449, 2),
        ("tcp", 1, 53, 1),
        ("tcp", 1448, 1500, 1),
        ("tcp", 1449, 1553, 2),
        ("grpc", 10, 98, 1),
        ("grpc", 100, 188, 1),
        ("grpc", 1000, 1088, 1),
        ("grpc", 100_000, 100_000 + 5 + 7 * 31 + 70 * 52, 70),
        ("quic", 100, 169, 1),
        ("quic", 1159, 1228, 1),
        ("quic", 1160, 1290, 2),
    ],
)
def test_bytes_on_the_wire(name: str, payload: int, wire: int, segments: int) -> None:
    assert TRANSPORTS[name].frame(payload) == (wire, segments)


def test_timers() -> None:
    assert TCP.rto_s(0.06, 0.0) == pytest.approx(0.26)
    assert TCP.rto_s(0.06, 0.1) == pytest.approx(0.46)
    assert TRANSPORTS["quic"].rto_s(0.06, 0.01) == pytest.approx(0.125)
    assert TRANSPORTS["quic"].rto_s(0.06, 0.0) == pytest.approx(0.086)
    recovery = [TCP.recovery_s(0.06, 0.26, 10, lost) for lost in ((0,), (6,), (7,), (9,), (8, 9), (3, 9))]
    assert recovery == pytest.approx([0.06, 0.06, 0.077, 0.122, 0.182, 0.122])
    assert TCP.recovery_s(0.06, 0.26, 1, (0,)) == 0.26
    assert TCP.recovery_s(0.3, 0.5, 2, (1,)) == 0.5  # the probe would come after the timeout
    assert TCP.recovery_s(0.3, 0.9, 1, (0,)) == pytest.approx(0.8)  # the probe comes before the timeout
    quic = [TRANSPORTS["quic"].recovery_s(0.06, 0.086, 10, lost) for lost in ((6,), (7,), (9,), (8, 9))]
    assert quic == pytest.approx(
        [0.06, 0.0675, 0.086, 0.146]
    )  # RFC 9002: an eighth for reordering, one timer for probes


class Once:
    """Loss of each message's first packet, but of no retransmission."""

    def lost(self, now_s: float, packets: int) -> list[int]:
        return [0]

    def lost_again(self, now_s: float, packets: int) -> int:
        return 0


@pytest.mark.parametrize(
    ("name", "rtt_s", "extra_s"),
    [
        # A round trip and four deviations, at first half a round trip each, or a probe after two round trips and 0.2 s.
        ("tcp", 0.3, [0.8, 0.75, 0.3 * (1 + 2 * 0.75**2), 0.3 * (1 + 2 * 0.75**3), 0.5, 0.5]),
        ("tcp", 0.15, [0.45, 0.375, 0.35, 0.35]),
        ("tcp", 0.1, [0.3, 0.3]),
        ("grpc", 0.3, [0.75, 0.3 * (1 + 2 * 0.75**2), 0.3 * (1 + 2 * 0.75**3), 0.5, 0.5]),  # TLS took one more sample
        ("quic", 0.06, [0.085 + max(0.12 * 0.75**n, 0.001) for n in range(20)]),
        ("sctp", 0.2, [0.6, 0.5, 0.425, 0.42, 0.42]),
        ("ideal", 0.3, [0.5, 0.5]),
    ],
)
def test_the_timer_forgets_the_first_round_trip_by_a_quarter_in_each(
    name: str, rtt_s: float, extra_s: list[float]
) -> None:
    """RFC 6298 sec. 2.2 and 2.3, RFC 9002 sec. 5.3. Packets are sent alone, and each is lost once."""
    one = ImpairedLink(Wire(1e12), rtt_s / 2, rtt_s, TRANSPORTS[name], loss=Once())
    for begin_s in (0.0, 100.0):
        times_s = [begin_s + 5.0 * n for n in range(len(extra_s))]
        found = [one.send(at_s, 10) - at_s - rtt_s / 2 for at_s in times_s]
        assert found == pytest.approx(extra_s)
        one.reconnect()  # a new connection starts afresh


def test_messages_within_a_round_trip_are_one_sample_of_it() -> None:
    """At an RTT of 0.3 s every second message is a sample if messages are 0.2 s apart."""
    one = ImpairedLink(Wire(1e12), 0.0, 0.3, TCP)
    timers = []
    for n in range(8):
        one.send(0.2 * n, 10)
        timers.append(one._rto_s)
    assert timers == pytest.approx([max(0.5, 0.3 * (1 + 2 * 0.75 ** (n // 2))) for n in range(8)])


def test_jitter_is_what_a_timer_comes_to() -> None:
    """The mean deviation is 50 ms at an RTT of 0.2 s. The timer begins at 0.1 s, and the excess shrinks by a quarter a sample."""
    one = ImpairedLink(Wire(1e12), 0.1, 0.2, TRANSPORTS["quic"], rttvar_s=0.05)
    timers = []
    for n in range(70):
        one.send(float(n), 10)
        timers.append(one._rto_s)
    assert timers[:3] == pytest.approx([0.225 + 4 * (0.05 + 0.05 * 0.75**n) for n in range(3)])
    assert timers[-1] == 0.2 + 4 * 0.05 + 0.025


def link(rtt_s: float = 0.1, bps: float = 1e12) -> ImpairedLink:
    return ImpairedLink(Wire(bps), rtt_s / 2, rtt_s, TCP)


def flights(one: ImpairedLink, at: float, segments: int, rtt_s: float = 0.1) -> int:
    """Return the number of round trips a message takes on a wire so fast that nothing else counts."""
    return round((one.send(at, segments * TCP.segment_bytes) - at - rtt_s / 2) / rtt_s) + 1


@pytest.mark.parametrize(
    ("segments", "expected"), [(1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (70, 3), (71, 4), (150, 4), (151, 5)]
)
def test_a_fresh_connection_doubles_from_ten_segments(segments: int, expected: int) -> None:
    assert flights(link(), 0.0, segments) == expected


def test_small_messages_leave_the_window_as_it_is() -> None:
    """The window grows only if more than half of it was used."""
    one = link()
    for n in range(100):
        assert flights(one, 0.2 * n, 5) == 1
    assert flights(one, 20.0, 11) == 2


def test_a_message_that_fills_the_window_makes_room_for_the_next() -> None:
    one = link()
    assert [flights(one, 0.25 * n, 20) for n in range(3)] == [2, 1, 1]
    assert flights(one, 0.75, 30) == 1  # acknowledged segments have grown the window to 30


def test_idling_halves_the_window_once_a_timeout() -> None:
    """The timeout is 0.3 s. 150 segments in four flights grow the window to 160."""
    for idle, expected in ((0.2, 1), (0.35, 2), (0.65, 3), (0.95, 4), (60.0, 4)):
        one = link()
        last_s = one.send(0.0, 150 * TCP.segment_bytes) - 0.05
        assert flights(one, last_s + idle, 150) == expected, idle


def test_small_messages_in_flight_fill_the_window() -> None:
    """Ten messages in a round trip leave at once. The eleventh waits for the first acknowledgement."""
    one = link(rtt_s=1.0)
    arrived = [one.send(0.01 * n, 10) for n in range(11)]
    assert arrived[:10] == pytest.approx([0.5 + 0.01 * n for n in range(10)], abs=1e-6)
    assert arrived[10] == pytest.approx(1.5, abs=1e-6)


def test_a_window_wider_than_the_pipe_never_stalls() -> None:
    """At 1 Mbit/s ten segments take 120 ms, longer than the round trip of 10 ms."""
    assert link(0.01, 1e6).send(0.0, 100 * 1448) == pytest.approx(100 * 1500 * 8 / 1e6 + 0.005)


# --- against a packet-level sender and receiver


def packet_by_packet(rtt_s: float, bps: float, payload: int, messages: int) -> list[float]:
    """Return the time in s from sending to the last byte's arrival of equal messages, each sent once the previous is answered.

    The receiver is that of Linux: it acknowledges each of the first 16 segments of a connection at once, then every second
    segment, and a lone one after 40 ms. Acknowledgements are 52 B on a return wire of the same rate. The sender is in slow start
    from ten segments. Its window grows by each acknowledged segment while this message has used more than half of it.
    """
    sizes = [1500] * (payload // 1448) + [52 + payload % 1448] * (payload % 1448 > 0)
    window, received, now, took, order = 10, 0, 0.0, [], itertools.count()
    for _ in range(messages):
        sent = acked = there = peak = unacked = 0
        out_s = back_s = begin_s = now  # out_s, back_s: when each wire is free
        events: list[tuple[float, int, str, int]] = [(now, next(order), "start", 0)]
        while there < len(sizes):
            now, _, what, number = heapq.heappop(events)
            acknowledges = False
            if what == "segment":
                there, received, unacked = there + 1, received + 1, unacked + 1
                acknowledges = received <= 16 or unacked == 2
                if not acknowledges:
                    heapq.heappush(events, (now + 0.04, next(order), "timer", there))
            elif what == "timer":
                acknowledges = unacked == 1 and number == there
            elif what == "ack":
                if 2 * peak > window:
                    window += number - acked
                acked = number
            if acknowledges:
                unacked = 0
                back_s = max(back_s, now) + 52 * 8 / bps
                heapq.heappush(events, (back_s + rtt_s / 2, next(order), "ack", there))
            while sent < len(sizes) and sent - acked < window:
                out_s = max(out_s, now) + sizes[sent] * 8 / bps
                sent += 1
                heapq.heappush(events, (out_s + rtt_s / 2, next(order), "segment", sent))
                peak = max(peak, sent - acked)
        took.append(now - begin_s)
        if 2 * peak > window:
            window += len(sizes) - acked  # acknowledged by the reply
        now += rtt_s / 2
    return took


SIZE = st.one_of(
    st.integers(0, 7000).map(lambda x: int(10 ** (x / 1e3))),
    st.builds(lambda n, more: 1448 * n + more, st.integers(1, 300), st.integers(-1, 1)),
)


@given(st.integers(0, 2778), st.integers(-1000, 3000), SIZE)
def test_the_window_agrees_with_a_simulation_of_every_packet(rtt: int, rate: int, payload: int) -> None:
    """Three messages of 1 byte to 10 MB, or within a byte of whole segments, at 1 to 600 ms and 0.1 to 1000 Mbit/s."""
    rtt_s, bps = 1e-3 * 10 ** (rtt / 1e3), 1e6 * 10 ** (rate / 1e3)
    one, at, found = link(rtt_s, bps), 0.0, []
    for _ in range(3):
        found.append(one.send(at, payload) - at)
        at += found[-1] + rtt_s / 2
    assert found == pytest.approx(packet_by_packet(rtt_s, bps, payload, 3), rel=0.01)
