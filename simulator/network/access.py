"""The network of a case in base units, and the links of its devices."""

import math
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from simulator.core.rng import stream
from simulator.network.closing import ClosingLink
from simulator.network.cross import AQMS, Aqm, CrossQueue, QueueDrops, Traffic
from simulator.network.fair import At, FairCell, FairLink, Other
from simulator.network.handover import Handovers, Interruptions, PausingWire
from simulator.network.impairments import Jitter, Loss, Losses, VaryingLoss
from simulator.network.link import ImpairedLink, Link
from simulator.network.paths import PathsLink, Radios
from simulator.network.radio import Radio, RadioFigures
from simulator.network.resampled import Blocks, Onward
from simulator.network.transport import MAX_TRIES, TRANSPORTS, Transport, backoff
from simulator.network.wifi import Hop, HopWire
from simulator.network.wire import Capacity, StepFunction, Wire, mean_of

AnyLink = Link | ImpairedLink | PathsLink
Course = Onward | Blocks
Way = tuple[Wire, CrossQueue | None]  # one direction of a device or cell


@dataclass(frozen=True)
class Network:
    """The links of all devices. Varying quantities repeat over time, and each device (or cell) starts at its own random time in them.

    Attributes:
        up_bps: bits per second of the uplink, constant or varying.
        down_bps: the same for the downlink.
        up_delay_s: mean one-way delay of the uplink, constant or varying.
        down_delay_s: the same for the downlink.
        up_jitter_s: standard deviation of the one-way delay of the uplink.
        down_jitter_s: the same for the downlink.
        distribution: distribution of the delay, one of `impairments.DISTRIBUTIONS`.
        jitter_samples_s: measured deviations instead of a distribution.
        jitter_on_top: whether jitter only adds to the delays, which are then minima instead of means.
        up_loss: share of packets lost on the uplink, constant or varying.
        down_loss: the same for the downlink.
        burst_packets: mean length of a burst of losses; None: independent losses. Not with varying loss.
        up_buffer_bytes: size of the queue before the wire of the uplink.
        down_buffer_bytes: the same for the downlink.
        up_cross: cross traffic on the uplink, None for none.
        down_cross: the same for the downlink.
        aqm: management of the queue that cross traffic shares with the messages.
        wifi: Wi-Fi hop before the wire, None for none.
        transport: framing, timers and window.
        handovers: handovers of each device, None for none; not with devices_per_cell, because a device that moves leaves its cell.
        idle_timeout_s: silence that ends a connection.
        radio: radio of each device, None for none.
        operators: (share, radio): each device draws its radio from these by their shares, instead of `radio`; empty for one radio.
        devices_per_cell: number of devices that share one wire each way, first come, first served.
        fair: whether they share it in parallel instead (`simulator.network.fair`). The arrival of a message is then not known when it
            is sent.
        fading_snr_db: mean signal-to-noise ratio of fading channels in a fair cell; None for no fading.
        block_s: mean length of the blocks in which each device follows the varying quantities (`simulator.network.resampled`); None: from
            one place on.
        also: further paths (`simulator.network.paths`).
    """

    up_bps: float | Capacity
    down_bps: float | Capacity
    up_delay_s: float | StepFunction
    down_delay_s: float | StepFunction
    up_jitter_s: float = 0.0
    down_jitter_s: float = 0.0
    distribution: str = "normal"
    jitter_samples_s: tuple[float, ...] = ()
    jitter_on_top: bool = False
    up_loss: float | StepFunction = 0.0
    down_loss: float | StepFunction = 0.0
    burst_packets: float | None = None
    up_buffer_bytes: float = math.inf
    down_buffer_bytes: float = math.inf
    up_cross: Traffic | None = None
    down_cross: Traffic | None = None
    aqm: Aqm = AQMS["none"]
    wifi: Hop | None = None
    transport: Transport = TRANSPORTS["ideal"]
    handovers: Handovers | None = None
    idle_timeout_s: float = math.inf
    radio: RadioFigures | None = None
    operators: tuple[tuple[float, RadioFigures], ...] = ()
    devices_per_cell: int = 1
    fair: bool = False
    fading_snr_db: float | None = None
    block_s: float | None = None
    also: "tuple[Network, ...]" = ()

    @property
    def plain(self) -> bool:
        """Whether `Link` can represent it: any rate, delay and jitter, and every other field at its default."""
        covered = Network(
            self.up_bps, self.down_bps, self.up_delay_s, self.down_delay_s, self.up_jitter_s, self.down_jitter_s
        )
        return self == covered and not self.varying

    @property
    def shared(self) -> bool:
        """Whether devices share a wire, on any path."""
        return self.devices_per_cell > 1 or any(one.shared for one in self.also)

    @property
    def jitters(self) -> tuple[Jitter, Jitter]:
        """Jitter of the uplink and of the downlink."""
        up, down = (
            Jitter(sd_s, self.distribution, self.jitter_samples_s, self.jitter_on_top)
            for sd_s in (self.up_jitter_s, self.down_jitter_s)
        )
        return up, down

    @property
    def rtt_s(self) -> float:
        """Sum of both mean delays, without jitter that only adds to them."""
        return mean_of(self.up_delay_s) + mean_of(self.down_delay_s)

    @property
    def varying(self) -> list[Capacity | StepFunction]:
        """The quantities that vary over time."""
        parts = (self.up_bps, self.down_bps, self.up_delay_s, self.down_delay_s, self.up_loss, self.down_loss)
        return [part for part in parts if isinstance(part, Capacity | StepFunction)]


class AccessNetwork:
    """Creates the links of devices."""

    def __init__(
        self,
        network: Network,
        seed: int,
        joules: MutableSequence[float],
        static_joules: MutableSequence[float],
        first: int = 0,
        path: int = 0,
        at: At | None = None,
    ) -> None:
        """Raises ValueError if devices_per_cell is below 1 or combined with handovers, or bursts with a varying loss.

        Args:
            seed: seed of all random draws.
            joules: receives the energy of radios, by request, as in `Radio`.
            static_joules: the same for its static part.
            first: number of the first device, which is in the first cell.
            path: number of the path; each path has its own draws.
            at: schedules a callback; needed for a fair cell.
        """
        if network.devices_per_cell < 1:
            raise ValueError(f"devices_per_cell must be >= 1, got {network.devices_per_cell}")
        if network.devices_per_cell > 1 and network.handovers is not None:
            raise ValueError("handovers go with devices_per_cell 1: a device that moves leaves its cell")
        if network.fair and (at is None or network.also or network.wifi):
            raise ValueError("a fair cell needs a clock, and goes with one path, without Wi-Fi")
        if network.burst_packets is not None and any(
            isinstance(loss, StepFunction) for loss in (network.up_loss, network.down_loss)
        ):
            raise ValueError("burst_packets goes with a constant loss: packets of a varying one are lost independently")
        self.network = network
        self.seed = seed
        self.joules = joules
        self.static_joules = static_joules
        self.first = first
        self.radios: list[Radio] = []
        self._path = path
        self._at = at
        self._fair_cells: dict[int, tuple[FairCell, FairCell]] = {}
        self._also = [
            AccessNetwork(one, seed, joules, static_joules, first, number)
            for number, one in enumerate(network.also, start=1)
        ]
        self._plain = network.plain
        self._cells: dict[int, tuple[Way, Way]] = {}

    def links(self, device: int) -> tuple[AnyLink, AnyLink, Radio | Radios | None]:
        """Create uplink, downlink and radio of a device. Call it once per device."""
        up, down, radio = self._own_links(device)
        if not self._also:
            return up, down, radio
        others = [access._own_links(device) for access in self._also]
        ups, downs, radios = zip((up, down, radio), *others, strict=True)
        awake = [one for one in radios if one is not None]
        self.radios += awake if radio is None else awake[1:]
        return PathsLink(ups), PathsLink(downs), Radios(awake) if awake else None

    def _stream(self, name: str, *numbers: int) -> np.random.Generator:
        """Return the random stream of a device or cell on this path."""
        return stream(self.seed, f"path.{self._path}.{name}" if self._path else name, *numbers)

    def _own_links(self, device: int) -> tuple[Link | ImpairedLink, Link | ImpairedLink, Radio | None]:
        n = self.network
        if self._plain:
            return self._plain_link("up", device), self._plain_link("down", device), None
        cell = -(-self.first // n.devices_per_cell) + (device - self.first) // n.devices_per_cell
        course = self._course(cell)
        up_way, down_way = self._ways(cell, course)
        radio = None
        figures = self._radio_figures(device)
        if figures is not None:
            radio = Radio(figures, self._stream("radio", device), self.joules, self.static_joules)
            self.radios.append(radio)
        queued_s = sum(queue.mean_s for _, queue in (up_way, down_way) if queue is not None)
        if n.wifi is not None:
            queued_s += 2.0 * n.wifi.mean_wait_s
        fair = self._fair_cell(cell, up_way[0], down_way[0])
        up = self._link("up", device, up_way, course, queued_s, radio, fair and fair[0])
        down = self._link("down", device, down_way, course, queued_s, radio, fair and fair[1])
        if n.transport.handshake_rtts:
            up.opened_by(_handshake(up, down, radio, bool(self._path or self._also)))
        if isinstance(up, ClosingLink) and isinstance(down, ClosingLink):
            up.other = down
        return up, down, radio

    def _course(self, cell: int) -> Course:
        """Return the way through the varying quantities, which is common to both directions and to all quantities."""
        n = self.network
        period_s = max((one.duration_s for one in n.varying), default=0.0)
        if n.block_s is not None and period_s:
            return Blocks(n.block_s, period_s, partial(self._stream, "link.blocks", cell))
        return Onward(float(self._stream("link.offset", cell).random()) * period_s)

    def _fair_cell(self, cell: int, up: Wire, down: Wire) -> tuple[FairCell, FairCell] | None:
        """Return the cells of uplink and downlink; None if cells are not fair."""
        n = self.network
        if not n.fair:
            return None
        assert self._at is not None
        if cell not in self._fair_cells:
            at = self._at

            def fair(name: str, wire: Wire, cross: Traffic | None) -> FairCell:
                other = None if cross is None else Other(cross, self._stream(f"link.{name}.cross", cell))
                return FairCell(wire, at, n.fading_snr_db, other)

            self._fair_cells[cell] = (fair("up", up, n.up_cross), fair("down", down, n.down_cross))
        return self._fair_cells[cell]

    def _radio_figures(self, device: int) -> RadioFigures | None:
        """Return the radio of a device: that of the operator that it draws, if there are several."""
        operators = self.network.operators
        if not operators:
            return self.network.radio
        left = float(self._stream("radio.operator", device).random()) * sum(share for share, _ in operators)
        for share, figures in operators:
            left -= share
            if left < 0.0:
                return figures
        return operators[-1][1]

    def _plain_link(self, way: str, device: int) -> Link:
        n = self.network
        rate, delay, jitter_s = (
            (n.up_bps, n.up_delay_s, n.up_jitter_s) if way == "up" else (n.down_bps, n.down_delay_s, n.down_jitter_s)
        )
        jitter = self._stream(f"link.{way}.jitter", device) if jitter_s else None
        return Link(_constant(rate), _constant(delay), jitter_s, jitter)

    def _link(
        self,
        way: str,
        device: int,
        ends: Way,
        course: Course,
        queued_s: float,
        radio: Radio | None,
        cell: FairCell | None,
    ) -> ImpairedLink:
        n = self.network
        wire, queue = ends
        delay, share = (n.up_delay_s, n.up_loss) if way == "up" else (n.down_delay_s, n.down_loss)
        delay_s = mean_of(delay)
        jitters = n.jitters
        jitter = jitters[0] if way == "up" else jitters[1]
        varies = jitter.sd_s > 0.0 or bool(jitter.samples_s)
        draw = jitter.draws(delay_s, self._stream(f"link.{way}.jitter", device)) if varies else None
        loss: Losses | None = None
        if isinstance(share, StepFunction):
            loss = VaryingLoss(course.value(share), self._stream(f"link.{way}.loss", device))
        elif share:
            loss = Loss(share, self._stream(f"link.{way}.loss", device), n.burst_packets)
        if queue is not None and queue.drops:
            loss = QueueDrops(queue, loss, self._stream(f"link.{way}.drops", device))
        if n.fair:
            kind: Callable[..., ImpairedLink] = FairLink
        else:
            kind = ImpairedLink if n.idle_timeout_s == math.inf else partial(ClosingLink, timeout_s=n.idle_timeout_s)
        link = kind(
            wire,
            delay_s,
            n.rtt_s + queued_s + sum(one.added_s for one in jitters),
            n.transport,
            # The mean deviation of a normal variable is sqrt(2 / pi) times its standard deviation.
            rttvar_s=math.sqrt(2.0 / math.pi) * math.hypot(*(one.deviation_s for one in jitters)),
            draw=draw,
            delay_at=course.value(delay) if isinstance(delay, StepFunction) else None,
            reach_s=jitter.reach_s(delay_s) if varies else 0.0,
            loss=loss,
            buffer_bytes=n.up_buffer_bytes if way == "up" else n.down_buffer_bytes,
            gate=None if radio is None else radio.up if way == "up" else radio.down,
            queue=queue,
        )
        return link.in_cell(cell, device) if isinstance(link, FairLink) and cell is not None else link

    def _ways(self, cell: int, course: Course) -> tuple[Way, Way]:
        """Return the wires up and down with their cross traffic, of the device or of its cell."""
        n = self.network
        shared = n.devices_per_cell > 1
        if shared and cell in self._cells:
            return self._cells[cell]

        gaps = None if n.handovers is None else Interruptions(n.handovers, partial(self._stream, "handover", cell))

        def way(name: str, rate: float | Capacity, cross: Traffic | None, buffer_bytes: float) -> Way:
            wire = course.wire(rate, shared) if isinstance(rate, Capacity) else Wire(rate, shared)
            if gaps is not None:
                wire = PausingWire(wire, gaps)
            if n.wifi is not None:
                wire = HopWire(wire, n.wifi, self._stream(f"link.{name}.wifi", cell))
            if cross is None or n.fair:  # in a fair cell it has its own queue
                return wire, None
            turns = self._stream(f"link.{name}.cross", cell)
            return wire, CrossQueue(cross, wire, 8.0 * buffer_bytes, n.aqm, n.rtt_s, turns)

        ways = (
            way("up", n.up_bps, n.up_cross, n.up_buffer_bytes),
            way("down", n.down_bps, n.down_cross, n.down_buffer_bytes),
        )
        if shared:
            self._cells[cell] = ways
        return ways


def _constant(value: float | Capacity | StepFunction) -> float:
    assert isinstance(value, float | int)
    return value


def _handshake(up: ImpairedLink, down: ImpairedLink, radio: Radio | None, multipath: bool) -> Callable[[float], float]:
    """Return a function from the time at which a device begins to open a connection to the time at which it is open (infinity: never).

    A handshake takes the transport's round trips, with hello and certificates in the last one, and a timeout (`backoff`) for each loss
    in a round trip. On a scheduled uplink each packet of the device waits for an opportunity, because its buffer is empty: the packet
    answers one that has just arrived. The first packet has waited already. A hello may need a second grant. A handshake does not occupy
    the wires.

    Args:
        up: uplink.
        down: downlink.
        radio: radio of the device; None for none.
        multipath: whether there are other paths, so that a reply may have to be sent before this connection is open.
    """
    t = up.transport

    def opened(begin_s: float) -> float:
        now_s = begin_s
        for left in reversed(range(t.handshake_rtts)):
            timeout_s = t.opening_rto_s(up.rtt_s, left)
            timeouts_s = backoff(timeout_s)
            for _ in range(MAX_TRIES):
                if not any(link.loss is not None and link.loss.lost_again(now_s, 1) for link in (up, down)):
                    break
                now_s += next(timeouts_s)
            else:
                return math.inf
            if radio is not None and now_s > begin_s:
                now_s = radio.up.turn_s(now_s)
            hello_bytes, handshake_bytes = (0, 0) if left else (t.hello_bytes, t.handshake_bytes)
            now_s = up.opening_s(now_s, hello_bytes, timeout_s)
            if radio is not None:
                now_s += radio.up.more_s(hello_bytes)
            now_s = down.opening_s(now_s, handshake_bytes, timeout_s)
        if multipath:
            down.open_s = now_s
        return now_s

    return opened
