"""The queue before a link's wire in `network:`, the flows of others that keep it filled, and the Wi-Fi hop."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from simulator.core.part import Part, mapping_or
from simulator.core.settings import refuse

# Least mean length: shorter periods are shorter than a packet, and periods of 1e-300 s are below the resolution of the clock.
TurnS = Annotated[float, Field(ge=1e-3, le=1e6)]


class PausingFlow(Part):
    """A flow that alternates between busy and quiet periods of exponential length.

    Attributes:
        busy_s: Mean length of a busy period.
        quiet_s: Mean length of a quiet period.
    """

    busy_s: TurnS
    quiet_s: TurnS


Flow = Annotated[
    Annotated[Literal["greedy", "video"], Tag("<name>")] | Annotated[PausingFlow, Tag("<times>")],
    mapping_or("<name>", "<times>"),
]


class CrossTraffic(Part):
    """Other traffic on the same line, each way. greedy: an endless transfer. video: a stream of 5 Mbit/s in segments of 4 s.

    Attributes:
        up: Traffic on the uplink: greedy, video or {busy_s, quiet_s}.
        down: Traffic on the downlink, likewise.
    """

    up: Flow | None = None
    down: Flow | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.up is None and self.down is None:
            refuse("needs up, down or both: greedy, video or {busy_s, quiet_s}")
        return self


class WifiHop(Part):
    """A Wi-Fi hop before the wire: see `simulator.network.wifi`.

    Attributes:
        stations: Other stations on the channel, which always have something to send.
        tail_pct: Transmissions that take 50 to 100 ms longer, each way, in percent.
    """

    stations: int = Field(default=0, ge=0, le=100)
    tail_pct: float = Field(default=0.0, ge=0, le=50)

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.stations and not self.tail_pct:
            refuse("needs stations or tail_pct, above 0")
        return self


class Queue(Part):
    """The queue before the wire of each direction, and what others keep waiting in it.

    Attributes:
        buffer_bytes: size of the buffer; null for no limit.
        buffer_ms: size of the buffer as time at the mean rate of its direction, instead of bytes.
        cross_traffic: other flows on the same line.
        aqm: active queue management: none (drop-tail), codel, fq-codel or l4s.
        wifi: the Wi-Fi hop before the wire; null for none.
        handshake: for a transport with TLS: full, resumed (no certificates), or 0-rtt (the first message leaves with the hello).
        congestion_control: cubic or bbr; null for a window that grows and does not react to losses.
        flow_window_bytes: bytes of a message that may be sent before the receiver's next update of the flow-control window; null for no
            limit.
        idle_timeout_s: silence after which a NAT drops the connection, so that the device's next message opens a new one; null for never.
    """

    buffer_bytes: int | None = Field(default=None, ge=1, le=10**12)
    buffer_ms: float | None = Field(default=None, gt=0, le=1e6)
    cross_traffic: CrossTraffic | None = None
    aqm: Literal["none", "codel", "fq-codel", "l4s"] = "none"
    wifi: WifiHop | None = None
    handshake: Literal["full", "resumed", "0-rtt"] = "full"
    congestion_control: Literal["cubic", "bbr"] | None = None
    flow_window_bytes: int | None = Field(default=None, ge=1500, le=10**9)
    idle_timeout_s: float | None = Field(default=None, gt=0, le=1e6)

    @model_validator(mode="after")
    def _queue_holds(self) -> Self:
        bounded = self.buffer_bytes is not None or self.buffer_ms is not None
        if self.buffer_bytes is not None and self.buffer_ms is not None:
            refuse("conflicts with buffer_bytes: the buffer is given twice; give one of them", "buffer_ms")
        if self.cross_traffic is None and self.aqm != "none":
            refuse("does nothing without cross_traffic, which is missing", "aqm")
        transport = getattr(self, "transport", "grpc")
        if self.handshake != "full" and transport not in ("grpc", "quic"):
            refuse(f"needs transport: grpc or quic, got {transport}", "handshake")
        if transport == "ideal":
            for key in ("congestion_control", "idle_timeout_s"):
                if getattr(self, key) is not None:
                    refuse("needs transport: tcp, grpc, quic or sctp, got ideal", key)
        if self.flow_window_bytes is not None and transport not in ("grpc", "quic", "sctp"):
            refuse(f"needs transport: grpc, quic or sctp, got {transport}", "flow_window_bytes")
        fair = getattr(self, "sharing", "fcfs") != "fcfs"  # then it has its own queue
        if self.cross_traffic is not None and self.aqm == "none" and not bounded and not fair:
            refuse("needs buffer_ms or buffer_bytes, or an aqm: it fills what there is", "cross_traffic")
        return self

    def queue(self) -> dict[str, Any]:
        """Return the fields of `LinkFigures`."""

        def flow(given: str | PausingFlow | None) -> str | tuple[float, float] | None:
            return (given.busy_s, given.quiet_s) if isinstance(given, PausingFlow) else given

        cross = self.cross_traffic
        return {
            "buffer_bytes": self.buffer_bytes,
            "buffer_s": None if self.buffer_ms is None else self.buffer_ms * 1e-3,
            "up_cross": None if cross is None else flow(cross.up),
            "down_cross": None if cross is None else flow(cross.down),
            "aqm": self.aqm,
            "wifi": None if self.wifi is None else (self.wifi.stations, self.wifi.tail_pct / 100.0),
            "handshake": self.handshake,
            "congestion": self.congestion_control or "",
            "flow_bytes": self.flow_window_bytes or 0,
            "idle_timeout_s": self.idle_timeout_s,
        }
