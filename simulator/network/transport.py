"""The effects of a transport on a message: framing, connection set-up, retransmission timers, a congestion window.

Data flows in one direction at a time here; acknowledgements take no wire time. A loss causes a delay (see `Transport.recovery_s`) and
does not shrink the `Window`, so the delay has a closed form; congestion control simulates single packets:
`simulator.network.congestion`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

MAX_RTO_S = 120.0  # Linux TCP_RTO_MAX, for every timer of every transport; see `backoff`
SYN_RTO_S = 1.0  # before the first sample of the round trip, for TCP and QUIC: RFC 6298 sec. 2.1, RFC 9002 sec. 6.2.2
MAX_TRIES = 10_000  # transmissions of a packet, enough for any loss rate below 1: a path that loses them all is dead
DUPLICATE_ACKS = 3  # later segments that must arrive before one counts as lost: RFC 5681 sec. 3.2, RFC 6675
PROBE_S = 0.002  # Linux TCP_TIMEOUT_MIN_US: margin of a tail loss probe, and of the wait for reordering
LONE_PROBE_S = 0.2  # the same if one segment is in flight, whose acknowledgement may be delayed: RFC 8985 sec. 7.2, Linux TCP_RTO_MIN
_SEGMENTS_PER_ACK = 2  # RFC 5681 sec. 4.2: an acknowledgement for at least every second full segment
QUICK_ACKS = 16  # Linux TCP_MAX_QUICKACKS: first segments of a connection that are each acknowledged at once


def backoff(first_s: float) -> Iterator[float]:
    """Yield the timeouts of a packet and its retransmissions, in seconds: each twice the last, up to MAX_RTO_S (RFC 6298 sec. 5.5)."""
    timeout_s = min(first_s, MAX_RTO_S)
    while True:
        yield timeout_s
        timeout_s = min(2.0 * timeout_s, MAX_RTO_S)


_objects: dict[float, float] = {}


def one_object(figure: float) -> float:
    """Return the same number as one shared object.

    Thousands of links have the same few figures. One object for all stays in the processor's cache; one object per link would be
    fetched from memory for every message.
    """
    return _objects.setdefault(figure, figure)


@dataclass(frozen=True)
class Transport:
    """Figures of a transport.

    Attributes:
        segment_bytes: payload of a full segment (MSS).
        segment_overhead_bytes: headers of each segment.
        message_overhead_bytes: overhead per message.
        record_bytes: largest payload of a record or frame.
        record_overhead_bytes: overhead of each record or frame.
        initial_window: initial window in segments, 0 for no window.
        idle_restart: whether the window is halved per retransmission timeout without a message.
        handshake_rtts: round trips before the first message may leave.
        hello_bytes: bytes sent up in the last of them.
        handshake_bytes: bytes sent down in the last of them.
        opening_samples: number of round trips measured before the first message may leave; 0 for a transport without a connection.
        rto_floor_s: minimum of the variance term of the retransmission timeout.
        ack_delay_s: added to the retransmission timeout.
        reordering: time to wait for reordered packets, as a share of the round trip.
        probes: whether a probe recovers a lost tail (RFC 8985 sec. 7); otherwise the timeout does.
        congestion: cubic or bbr (`simulator.network.congestion`); empty for `Window`, which does not react to losses.
        stack: "linux" for ends that find losses by time and by probes as well (RFC 8985) and acknowledge each of the first segments of a
            connection; "quic" for those of RFC 9002, whose timer sends probes; "plain" for others.
        flow_bytes: bytes that may be in flight before the other end makes room for more, which takes a round trip; 0 for no limit.
        framed: bits on the wire and segments, by payload; a cache shared by all links.
    """

    name: str
    segment_bytes: int = 1448
    segment_overhead_bytes: int = 0
    message_overhead_bytes: int = 0
    record_bytes: int = 16384
    record_overhead_bytes: int = 0
    initial_window: int = 0
    idle_restart: bool = False
    handshake_rtts: int = 0
    hello_bytes: int = 0
    handshake_bytes: int = 0
    opening_samples: int = 0
    rto_floor_s: float = 0.2
    ack_delay_s: float = 0.0
    reordering: float = 0.25
    probes: bool = True
    congestion: str = ""
    stack: str = "linux"
    flow_bytes: int = 0
    framed: dict[int, tuple[float, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def frame(self, payload_bytes: int) -> tuple[int, int]:
        """Return the bytes on the wire and the number of segments of a message."""
        stream_bytes = payload_bytes + self.message_overhead_bytes
        stream_bytes += self.record_overhead_bytes * max(1, -(-stream_bytes // self.record_bytes))
        segments = max(1, -(-stream_bytes // self.segment_bytes))
        return stream_bytes + segments * self.segment_overhead_bytes, segments

    @property
    def flow_segments(self) -> int:
        """Number of full segments in `flow_bytes`."""
        return max(1, self.flow_bytes // self.segment_bytes) if self.flow_bytes else 10**9

    def rto_s(self, srtt_s: float, rttvar_s: float) -> float:
        """Return the retransmission timeout: RFC 6298 sec. 2.3 with a floor on the variance term, as in Linux; RFC 9002 sec. 6.2.1."""
        return min(srtt_s + max(4.0 * rttvar_s, self.rto_floor_s) + self.ack_delay_s, MAX_RTO_S)

    def opening_rto_s(self, rtt_s: float, left: int) -> float:
        """Return the first timeout of a handshake packet that `left` round trips follow: by an earlier sample of the round trip, or 1 s."""
        return self.rto_s(rtt_s, 0.5 * rtt_s) if self.opening_samples > left + 1 else SYN_RTO_S

    def probe_s(self, srtt_s: float, segments: int) -> float:
        """Return the time after which a probe is sent for the tail of `segments` segments in flight, unless a timeout comes first: RFC 8985
        sec. 7.2."""
        return 2.0 * srtt_s + (PROBE_S if segments > 1 else LONE_PROBE_S)

    def recovery_s(self, srtt_s: float, rto_s: float, segments: int, lost: Sequence[int]) -> float:
        """Return the delay of a message of `segments` segments if those numbered `lost` (ascending) are retransmitted once.

        A loss followed by three or more segments costs a round trip (fast retransmit); followed by one or two, the wait for reordering
        in addition (RACK, in Linux with a margin). A lost last segment is repeated by a tail loss probe or by the retransmission
        timeout, whichever comes first: the latter for a single segment once the round trip is known. Without RACK only the timeout
        remains.
        """
        after = segments - 1 - lost[-1]
        if after >= DUPLICATE_ACKS:
            return srtt_s
        if self.stack == "plain":
            return rto_s
        if after:
            return srtt_s * (1.0 + self.reordering) + (PROBE_S if self.stack == "linux" else 0.0)
        extra_s = min(rto_s, self.probe_s(srtt_s, segments)) if self.probes else rto_s
        if len(lost) > 1 and lost[-2] == segments - 2:  # its loss is known only once the probe is acknowledged
            extra_s += srtt_s
        return extra_s


# tcp: 20 B of IPv4, 20 B of TCP and 12 B of time stamps (RFC 9293, RFC 7323; Linux TCPOLEN_TSTAMP_ALIGNED) in a packet of 1500 B;
# initial window of RFC 6928; idle restart as in Linux (tcp_cwnd_restart).
# grpc: a record of TLS 1.3 adds 5 + 1 + 16 B (RFC 8446 sec. 5), a frame of HTTP/2 9 B (RFC 9113 sec. 4.1), a message of gRPC 5 B (gRPC over
# HTTP2). There is one bidirectional stream, so headers are sent once. A hello of 0.5 kB and a certificate chain of 3.5 kB are usual sizes.
# quic: datagrams of 1200 B (RFC 9000 sec. 14), each with 28 B of IPv4 and UDP in front, a short header of 11 B with an 8-byte
# connection id, a tag of 16 B and a stream frame of 6 B; an HTTP/3 frame of 3 B around gRPC's 5. Timers and window are those of RFC 9002,
# which waits an eighth of a round trip for reordering (sec. 6.1.2) and has one timer for probes (sec. 6.2).
# sctp: a data channel of WebRTC. A packet has 1191 B as in Chrome; a header of 12 B and a chunk header of 16 B (RFC 9260) leave 1160 B in
# multiples of four. A record of DTLS 1.2 adds 13 + 8 + 16 B (RFC 6347, RFC 5288), with 28 B of IPv4 and UDP in front. An ICE check takes
# a round trip (RFC 8445), DTLS 1.2 two, SCTP two, of which the second carries the first data (RFC 9260 sec. 5.1), and opening the channel
# none (RFC 8832). Both ends send a self-signed certificate of about 1 kB. Signalling before that is not counted. Window and timers are
# those of Chrome's dcsctp: 10 packets, 0.22 s of variance (general knowledge).
# For each transport the messages of a device in one direction form one stream: a message waits for the one before it.
TRANSPORTS = {
    "ideal": Transport("ideal"),
    "tcp": Transport(
        "tcp", segment_overhead_bytes=52, initial_window=10, idle_restart=True, handshake_rtts=1, opening_samples=1
    ),
    "grpc": Transport(
        "grpc",
        segment_overhead_bytes=52,
        message_overhead_bytes=5,
        record_overhead_bytes=31,
        initial_window=10,
        idle_restart=True,
        handshake_rtts=2,
        hello_bytes=500,
        handshake_bytes=3500,
        opening_samples=2,
    ),
    "quic": Transport(
        "quic",
        segment_bytes=1167,
        segment_overhead_bytes=61,
        message_overhead_bytes=8,
        initial_window=10,
        handshake_rtts=1,
        hello_bytes=1200,
        handshake_bytes=3500,
        opening_samples=1,
        rto_floor_s=0.001,
        ack_delay_s=0.025,
        reordering=0.125,
        probes=False,
        stack="quic",
    ),
    "sctp": Transport(
        "sctp",
        segment_bytes=1160,
        segment_overhead_bytes=93,
        initial_window=10,
        handshake_rtts=4,
        hello_bytes=1000,
        handshake_bytes=1200,
        opening_samples=1,
        rto_floor_s=0.22,
        stack="plain",
    ),
}


# The server's messages in a resumed TLS 1.3 handshake: hello, extensions and finished, but no certificates (RFC 8446).
RESUMED_BYTES = 300


def opened_by(transport: Transport, handshake: str) -> Transport:
    """Return the transport with a handshake: "full"; "resumed" with a ticket of an earlier session; "0-rtt": data leave with the hello."""
    if handshake == "full":
        return transport
    if handshake == "resumed":
        return replace(transport, handshake_bytes=RESUMED_BYTES)
    rtts = transport.handshake_rtts - 1  # of TCP alone; none for QUIC
    # QUIC's timer uses the round trip of the earlier connection as its first sample (RFC 9002 sec. 6.2.2).
    return replace(transport, handshake_rtts=rtts, hello_bytes=0, handshake_bytes=0, opening_samples=max(1, rtts))


class Timer:
    """The retransmission timeout of a new connection, after a few samples of the round trip by its messages.

    The first sample sets the estimated deviation to half of the round trip; each further one removes a quarter of the excess.
    Source: RFC 6298 sec. 2.2 and 2.3, RFC 9002 sec. 5.3; one sample per round trip, as in RFC 6298 sec. 3 and Linux.

    Attributes:
        rttvar_s: estimated deviation.
        settled: whether the first sample no longer has an effect.
    """

    __slots__ = ("_deviation_s", "_next_s", "_rtt_s", "_transport", "rttvar_s", "settled")

    def __init__(self, transport: Transport, rtt_s: float, deviation_s: float) -> None:
        """rtt_s, deviation_s: mean and mean deviation of the round trip, which every sample is assumed to have."""
        self._transport = transport
        self._rtt_s, self._deviation_s = rtt_s, deviation_s
        self._next_s = -math.inf  # time at which the latest sample is complete
        self.rttvar_s = 0.5 * rtt_s
        self.settled = False
        for _ in range(transport.opening_samples - 1):
            self._sample()

    def rto_s(self, time_s: float) -> float:
        """Return the timeout of a message that leaves at this time. Calls come in order of time."""
        if time_s >= self._next_s:
            if self._next_s > -math.inf:
                self._sample()
            self._next_s = time_s + self._rtt_s
        t, rtt_s = self._transport, self._rtt_s
        timeout_s, last_s = t.rto_s(rtt_s, self.rttvar_s), t.rto_s(rtt_s, self._deviation_s)
        self.settled = abs(timeout_s - last_s) < 1e-9
        return last_s if self.settled else timeout_s

    def _sample(self) -> None:
        self.rttvar_s += 0.25 * (self._deviation_s - self.rttvar_s)


class Window:
    """Congestion window of one direction: the flights in which a message leaves.

    A message that fits into the window together with the segments in flight leaves at once. Otherwise it leaves in several flights:
    each acknowledged segment makes room for itself and, in slow start, for one more, so the window doubles every round trip until the
    wire is always busy. The window grows only while more than half of it is used (Linux tcp_is_cwnd_limited; RFC 7661).

    Attributes:
        last_s: time when the last bit of the latest message leaves.
    """

    __slots__ = (
        "_ack_s",
        "_acked_s",
        "_flights",
        "_full_bits",
        "_growth",
        "_idle_restart",
        "_in_flight",
        "_initial",
        "_most",
        "_outgrown",
        "_quick",
        "_rto_s",
        "_segments",
        "last_s",
    )

    def __init__(self, transport: Transport, ack_s: float, rto_s: float, most_bits: float = math.inf) -> None:
        """Create the window of a new connection.

        Args:
            transport: figures of the transport.
            ack_s: time from the end of a segment's transmission until it is acknowledged.
            rto_s: retransmission timeout, for idle restart.
            most_bits: capacity of path and buffer. A window that outgrows it loses the excess and stays there.
        """
        full_bits = 8.0 * (transport.segment_bytes + transport.segment_overhead_bytes)
        self._most = max(1, int(most_bits / full_bits)) if most_bits < math.inf else 10**9
        self._outgrown = 0
        if transport.flow_segments < self._most:  # the receiver's window limits segments in flight, so none is lost
            self._outgrown = -1
        self._initial = self._segments = transport.initial_window
        self._idle_restart = transport.idle_restart
        self._full_bits = one_object(full_bits)
        self._ack_s = ack_s
        self._rto_s = rto_s
        # Of the segments in flight: time at which the last is acknowledged, their number, and the growth of the window by then.
        self._acked_s = -math.inf
        self._in_flight = self._growth = 0
        self._flights: deque[tuple[float, int, int]] | None = None  # the same for each flight; None for a single one
        self._quick = QUICK_ACKS  # segments that will still be acknowledged each at once; none if not above 0
        self.last_s = -math.inf

    def overflow(self) -> int:
        """Return the segments lost when the window outgrew path and buffer; not 0 at most once per connection."""
        if self._outgrown <= 0:
            return 0
        lost, self._outgrown = self._outgrown, -1
        return lost

    def _limited(self, window: int) -> int:
        if self._outgrown == 0:
            self._outgrown = window - self._most
        return self._most

    def send(self, start_s: float, segments: int, bits: float, finish_s: Callable[[float, float], float]) -> float:
        """Return the time at which the last bit of a message that may start at `start_s` leaves. finish_s: `Wire.finish_s`."""
        if self._acked_s > start_s:
            return self._send_overlapping(start_s, segments, bits, finish_s)
        window = self._segments + self._growth
        if window > self._most:
            window = self._limited(window)
        if window > self._initial and self._idle_restart:
            idle_s = start_s - self.last_s
            if idle_s > self._rto_s:
                window = max(self._initial, window >> min(int(idle_s / self._rto_s), 62))
        self._segments = window
        if segments > window:
            self._in_flight = self._growth = 0
            self._flights = deque()
            return self._send_flights(start_s, segments, bits, finish_s)
        if self._quick > 0:
            self._quick -= segments
        self._flights = None
        self._in_flight = segments
        self._growth = segments if 2 * segments > window else 0
        self.last_s = end_s = finish_s(start_s, bits)
        self._acked_s = end_s + self._ack_s
        return end_s

    def _send_overlapping(
        self, start_s: float, segments: int, bits: float, finish_s: Callable[[float, float], float]
    ) -> float:
        """Do `send` with segments in flight."""
        flights = self._flights
        if flights is None:
            flights = self._flights = deque([(self._acked_s, self._in_flight, self._growth)])
        while flights[0][0] <= start_s:  # the last is not acknowledged yet
            _, count, growth = flights.popleft()
            self._in_flight -= count
            self._growth -= growth
            self._segments += growth
        if self._segments > self._most:
            self._segments = self._limited(self._segments)
        if self._in_flight + segments > self._segments:
            return self._send_flights(start_s, segments, bits, finish_s)
        if self._quick > 0:
            self._quick -= segments
        self._in_flight += segments
        growth = segments if 2 * self._in_flight > self._segments else 0
        self._growth += growth
        self.last_s = end_s = finish_s(start_s, bits)
        self._acked_s = end_s + self._ack_s
        flights.append((self._acked_s, segments, growth))
        return end_s

    def _send_flights(
        self, start_s: float, segments: int, bits: float, finish_s: Callable[[float, float], float]
    ) -> float:
        """Do `send` for a message that does not fit into the rest of the window."""
        flights, in_flight, window, quick = self._flights, self._in_flight, self._segments, self._quick
        assert flights is not None
        full_bits = self._full_bits
        self._quick = quick - segments
        time_s = end_s = start_s
        while True:
            flight = min(window - in_flight, segments)
            if flight > 0:
                flight_bits = bits if flight == segments else flight * full_bits
                end_s = finish_s(time_s, flight_bits)
                acked_bits = full_bits if quick > 0 else _SEGMENTS_PER_ACK * full_bits
                acked_s = finish_s(time_s, min(acked_bits, flight_bits)) + self._ack_s
                quick -= flight
                if flights and acked_s < flights[-1][0]:  # acknowledgements come in order
                    acked_s = flights[-1][0]
                flights.append((acked_s, flight, flight))
                in_flight += flight
                segments -= flight
                bits -= flight_bits
                time_s = end_s
            if not segments:
                break
            acked_s, count, growth = flights.popleft()
            in_flight -= count
            window += growth
            if window > self._most:
                window = self._limited(window)
            if acked_s > time_s:
                time_s = acked_s
        self._in_flight, self._segments = in_flight, window
        self._growth = sum(growth for _, _, growth in flights)
        self._acked_s = flights[-1][0]
        self.last_s = end_s
        return end_s


class FlowWindow(Window):
    """A congestion window together with the receiver's window: at most `Transport.flow_bytes` of all messages are in flight.

    The congestion window counts packets, this one bytes. A flight makes room once its first packets are acknowledged, as in `Window`.
    """

    __slots__ = ("_held", "_most_bits", "_under_way_bits")

    def __init__(self, transport: Transport, ack_s: float, rto_s: float, most_bits: float = math.inf) -> None:
        super().__init__(transport, ack_s, rto_s, most_bits)
        self._most_bits = transport.flow_segments * self._full_bits
        self._held: deque[tuple[float, float]] = deque()  # (time, bits): when the room of these bits is free again
        self._under_way_bits = 0.0

    def send(self, start_s: float, segments: int, bits: float, finish_s: Callable[[float, float], float]) -> float:
        """Do `Window.send` within the receiver's window."""
        held, full_bits = self._held, self._full_bits
        end_s = start_s
        while segments and start_s < math.inf:
            while held and held[0][0] <= start_s:
                self._under_way_bits -= held.popleft()[1]
            room_bits = (self._most_bits - self._under_way_bits) * (1.0 + 1e-9)
            part = segments if bits <= room_bits else min(int(room_bits / full_bits), segments - 1)
            if part == 0 and held:
                start_s = held[0][0]
                continue
            part = max(part, 1)
            part_bits = bits if part == segments else part * full_bits  # all segments but the last are full
            acked_bits = full_bits if self._quick > 0 else _SEGMENTS_PER_ACK * full_bits
            end_s = super().send(start_s, part, part_bits, finish_s)
            acked_s = finish_s(start_s, min(acked_bits, part_bits)) if part < segments else end_s
            room_s = acked_s + self._ack_s
            held.append((max(room_s, held[-1][0]) if held else room_s, part_bits))
            self._under_way_bits += part_bits
            segments -= part
            bits -= part_bits
            start_s = end_s
        return end_s if segments == 0 else math.inf
