"""The network of a case in base units, and the links it gives each device."""

import math
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass

import numpy as np

from simulator.core.rng import stream
from simulator.network.impairments import Jitter, Loss, VaryingLoss
from simulator.network.link import ImpairedLink, Link
from simulator.network.radio import Radio, RadioFigures
from simulator.network.transport import SYN_RTO_S, TRANSPORTS, Transport
from simulator.network.wire import Capacity, StepFunction, VaryingWire, Wire

AnyLink = Link | ImpairedLink


@dataclass(frozen=True)
class Network:
    """Every device's link. up_bps, down_bps: bits per second, or a capacity that varies, each device at its own place in it.

    up_delay_s, down_delay_s: one way, the mean, or steps entered at the same place. up_jitter_s, down_jitter_s: standard deviation,
    of delays distributed as `distribution` says (one of link.DISTRIBUTIONS); jitter_samples_s: measured deviations instead. up_loss,
    down_loss: share of packets lost, or steps; burst_packets: mean length of a burst, None for none, and with steps.
    buffer_bytes: of the queue before the wire. radio: of each
    device, None for none. devices_per_cell: devices whose messages share one wire each way, first come first served.
    """

    up_bps: float | Capacity
    down_bps: float | Capacity
    up_delay_s: float | StepFunction
    down_delay_s: float | StepFunction
    up_jitter_s: float = 0.0
    down_jitter_s: float = 0.0
    distribution: str = "normal"
    jitter_samples_s: tuple[float, ...] = ()
    up_loss: float | StepFunction = 0.0
    down_loss: float | StepFunction = 0.0
    burst_packets: float | None = None
    buffer_bytes: float = math.inf
    transport: Transport = TRANSPORTS["ideal"]
    radio: RadioFigures | None = None
    devices_per_cell: int = 1

    @property
    def plain(self) -> bool:
        """Whether nothing but rate, delay and normal jitter matters, which `Link` has by itself."""
        constant = not self.varying
        quiet = self.distribution == "normal" and not self.jitter_samples_s and not self.up_loss and not self.down_loss
        bare = self.buffer_bytes == math.inf and self.radio is None and self.devices_per_cell == 1
        return constant and quiet and bare and self.transport.name == "ideal"

    @property
    def varying(self) -> list[Capacity | StepFunction]:
        """What follows time."""
        parts = (self.up_bps, self.down_bps, self.up_delay_s, self.down_delay_s, self.up_loss, self.down_loss)
        return [part for part in parts if isinstance(part, Capacity | StepFunction)]


class AccessNetwork:
    """Gives devices their links. seed: of all draws. joules: energy of radios is added here, by request. first: number of the first
    device, with which the first cell begins.
    """

    def __init__(self, network: Network, seed: int, joules: MutableSequence[float], first: int = 0) -> None:
        """Raises ValueError where devices_per_cell is below 1."""
        if network.devices_per_cell < 1:
            raise ValueError(f"devices_per_cell must be >= 1, got {network.devices_per_cell}")
        self.network = network
        self.seed = seed
        self.joules = joules
        self.first = first
        self.radios: list[Radio] = []
        self._cells: dict[int, tuple[Wire, Wire]] = {}

    def links(self, device: int) -> tuple[AnyLink, AnyLink, Radio | None]:
        """Uplink, downlink and radio of a device, to be asked for once."""
        n, seed = self.network, self.seed
        if n.plain:
            jitter_up = stream(seed, "link.up.jitter", device) if n.up_jitter_s else None
            jitter_down = stream(seed, "link.down.jitter", device) if n.down_jitter_s else None
            plain_up = Link(_constant(n.up_bps), _constant(n.up_delay_s), n.up_jitter_s, jitter_up)
            return plain_up, Link(_constant(n.down_bps), _constant(n.down_delay_s), n.down_jitter_s, jitter_down), None
        cell = -(-self.first // n.devices_per_cell) + (device - self.first) // n.devices_per_cell
        # One place for both ways and for all that varies.
        offset_s = float(stream(seed, "link.offset", cell).random()) * max(
            (one.duration_s for one in n.varying), default=0.0
        )
        up_wire, down_wire = self._wires(cell, offset_s)
        up_jitter, down_jitter = (
            Jitter(sd_s, n.distribution, n.jitter_samples_s) for sd_s in (n.up_jitter_s, n.down_jitter_s)
        )
        up_delay_s, down_delay_s = (
            one.mean if isinstance(one, StepFunction) else one for one in (n.up_delay_s, n.down_delay_s)
        )
        up_delay_at, down_delay_at = (
            one.entered_at(offset_s) if isinstance(one, StepFunction) else None
            for one in (n.up_delay_s, n.down_delay_s)
        )
        radio = None
        if n.radio is not None:
            radio = Radio(n.radio, stream(seed, "radio", device), self.joules)
            self.radios.append(radio)
        # The timers of a transport go by the round trip's mean deviation, which is sqrt(2 / pi) of a normal one's standard deviation.
        rtt_s = up_delay_s + down_delay_s
        rttvar_s = math.sqrt(2.0 / math.pi) * math.hypot(up_jitter.deviation_s, down_jitter.deviation_s)

        def draws(jitter: Jitter, mean_s: float, way: str) -> Callable[[int], np.ndarray] | None:
            return (
                jitter.draws(mean_s, stream(seed, f"link.{way}.jitter", device))
                if jitter.sd_s or jitter.samples_s
                else None
            )

        def loss(share: float | StepFunction, way: str) -> Loss | VaryingLoss | None:
            draw = stream(seed, f"link.{way}.loss", device)
            if isinstance(share, StepFunction):
                return VaryingLoss(share.entered_at(offset_s), draw)
            return Loss(share, draw, n.burst_packets) if share else None

        up = ImpairedLink(
            up_wire,
            up_delay_s,
            rtt_s,
            n.transport,
            rttvar_s=rttvar_s,
            draw=draws(up_jitter, up_delay_s, "up"),
            delay_at=up_delay_at,
            loss=loss(n.up_loss, "up"),
            buffer_bytes=n.buffer_bytes,
            gate=None if radio is None else radio.up,
        )
        down = ImpairedLink(
            down_wire,
            down_delay_s,
            rtt_s,
            n.transport,
            rttvar_s=rttvar_s,
            draw=draws(down_jitter, down_delay_s, "down"),
            delay_at=down_delay_at,
            loss=loss(n.down_loss, "down"),
            buffer_bytes=n.buffer_bytes,
            gate=None if radio is None else radio.down,
        )
        if n.transport.handshake_rtts:
            up.opened_by(_handshake(up, down))
        return up, down, radio

    def _wires(self, cell: int, offset_s: float) -> tuple[Wire, Wire]:
        """Wires up and down: of the device's own, or of its cell."""
        n = self.network
        shared = n.devices_per_cell > 1
        if shared and cell in self._cells:
            return self._cells[cell]

        def wire(rate: float | Capacity) -> Wire:
            return VaryingWire(rate, offset_s, shared) if isinstance(rate, Capacity) else Wire(rate, shared)

        wires = wire(n.up_bps), wire(n.down_bps)
        if shared:
            self._cells[cell] = wires
        return wires


def _constant(value: float | Capacity | StepFunction) -> float:
    assert isinstance(value, float | int)
    return value


def _handshake(up: ImpairedLink, down: ImpairedLink) -> Callable[[float], float]:
    """When a connection is open that a device begins to open: its round trips, what they carry in the last, and one second, then two
    and so on, for each that loses a packet. The wires are not held meanwhile.
    """
    t = up.transport

    def opened(begin_s: float) -> float:
        now_s = begin_s
        for left in reversed(range(t.handshake_rtts)):
            timeout_s = SYN_RTO_S
            while any(link.loss is not None and link.loss.lost_again(now_s, 1) for link in (up, down)):
                now_s += timeout_s
                timeout_s *= 2.0
            for link, carried_bytes in ((up, t.hello_bytes), (down, t.handshake_bytes)):
                now_s = link.wire.finish_s(now_s, 0.0 if left else 8.0 * carried_bytes)
                now_s += link.delay_s if link.delay_at is None else link.delay_at(now_s)
        return now_s

    return opened
