"""The messages of a run as a table, and as a packet capture of one request.

The capture is taken at the device, in virtual time. An uplink message has the time at which it is handed over, a downlink message the time
at which it is complete. All packets of a message have this time. They are framed as by the transport and contain zeros. Packets without
message data are not captured: handshakes, acknowledgements, retransmissions.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simulator.network.transport import Transport
from simulator.results.timeline import Span

WAYS = {"uplink": "up", "downlink": "down"}
_KINDS = (
    (r"call \d+ again", "request again"),
    (r"call \d+", "request"),
    (r"part of \d+", "part"),
    (r"reply \d+", "reply"),
)
COLUMNS = ("request", "device", "call", "direction", "kind", "bytes", "sent_s", "delivered_s")

MAGIC = 0xA1B2C3D4  # pcap with time stamps in microseconds, in the writer's byte order
ETHERNET = 1
DEVICE_MAC, CLOUD_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
DEVICE_IP, CLOUD_IP = bytes([10, 0, 0, 2]), bytes([10, 0, 1, 1])
DEVICE_PORT, CLOUD_PORT = 50000, 443
IPV4_BYTES, UDP_BYTES, TCP_BYTES = 20, 8, 32  # TCP with the time-stamp option, which its framing counts
_TCP, _UDP = 6, 17
_PSH_ACK = 0x18


def messages_of(spans: Sequence[Span]) -> pd.DataFrame:
    """Return a table with the columns `COLUMNS` and a row per delivered message, sorted by time sent and time delivered."""
    rows: list[dict[str, Any]] = []
    for span in spans:
        if span.track not in WAYS:
            continue
        args = dict(span.args)
        kind = next(kind for pattern, kind in _KINDS if re.fullmatch(pattern, span.name))
        rows.append(
            {
                "request": span.request,
                "device": span.device,
                "call": args["call"],
                "direction": WAYS[span.track],
                "kind": kind,
                "bytes": args["bytes"],
                "sent_s": span.start_s,
                "delivered_s": span.end_s,
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["sent_s", "delivered_s", "request"], kind="stable", ignore_index=True)


@dataclass
class _End:
    """One side of a connection. sent: payload bytes of the stream so far."""

    mac: bytes
    address: bytes
    port: int
    sent: int = 0


def capture(messages: pd.DataFrame, transport: Transport) -> bytes:
    """Return a classic pcap file (Ethernet, IPv4, TCP or UDP) of the messages of one request."""
    device, cloud = _End(DEVICE_MAC, DEVICE_IP, DEVICE_PORT), _End(CLOUD_MAC, CLOUD_IP, CLOUD_PORT)
    seen_s = np.where(messages["direction"] == "up", messages["sent_s"], messages["delivered_s"])
    parts = [struct.pack("<IHHiIII", MAGIC, 2, 4, 0, 0, 65535, ETHERNET)]
    for place in np.argsort(seen_s, kind="stable"):
        row = messages.iloc[int(place)]
        ends = (device, cloud) if row["direction"] == "up" else (cloud, device)
        at_us = round(1e6 * float(seen_s[place]))
        for packet in _packets(int(row["bytes"]), transport, *ends, at_us):
            frame = ends[1].mac + ends[0].mac + b"\x08\x00" + packet
            parts.append(struct.pack("<IIII", at_us // 1_000_000, at_us % 1_000_000, len(frame), len(frame)) + frame)
    return b"".join(parts)


def _packets(payload_bytes: int, transport: Transport, source: _End, target: _End, at_us: int) -> Iterator[bytes]:
    """Yield the IPv4 packets of a message. With the headers that the transport counts, they have the length that it counts."""
    wire_bytes, segments = transport.frame(payload_bytes)
    stream_bytes = wire_bytes - segments * transport.segment_overhead_bytes
    streamed = transport.name in ("tcp", "grpc")
    # Overhead inside a UDP datagram (QUIC, SCTP). The ideal transport counts no headers at all.
    inside = 0 if streamed else max(0, transport.segment_overhead_bytes - IPV4_BYTES - UDP_BYTES)
    for segment in range(segments):
        size = min(transport.segment_bytes, stream_bytes - segment * transport.segment_bytes)
        if streamed:
            head = _tcp_header(source, target, at_us, push=segment == segments - 1)
            body = _checked(head + bytes(size), 16, _TCP, source, target)
            source.sent += size
        else:
            length = UDP_BYTES + inside + size
            head = struct.pack("!HHHH", source.port, target.port, length, 0)
            body = _checked(head + bytes(inside + size), 6, _UDP, source, target)
        yield _ip_header(len(body), _TCP if streamed else _UDP, source, target) + body


def _tcp_header(source: _End, target: _End, at_us: int, push: bool) -> bytes:
    flags = _PSH_ACK if push else 0x10
    sequence, acknowledged = (1 + end.sent & 0xFFFFFFFF for end in (source, target))
    ports = struct.pack("!HHII", source.port, target.port, sequence, acknowledged)
    stamp_ms = at_us // 1000 & 0xFFFFFFFF
    return (
        ports
        + struct.pack("!BBHHH", TCP_BYTES // 4 << 4, flags, 65535, 0, 0)
        + struct.pack("!BBBBII", 1, 1, 8, 10, stamp_ms, 0)
    )


def _ip_header(body_bytes: int, protocol: int, source: _End, target: _End) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, IPV4_BYTES + body_bytes, 0, 0x4000, 64, protocol, 0)
    head += source.address + target.address
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def _checked(body: bytes, at: int, protocol: int, source: _End, target: _End) -> bytes:
    """Insert the checksum over the body and the pseudo header."""
    pseudo = source.address + target.address + struct.pack("!BBH", 0, protocol, len(body))
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2")
    total = int(words.sum(dtype=np.uint64))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
