"""A link in base units, to which every form of `network:` is converted."""

from dataclasses import asdict, dataclass
from typing import Any

from simulator.traces.choice import TraceChoice
from simulator.traces.gaps import Gaps


@dataclass(frozen=True)
class LinkFigures:
    """A link in base units: bit/s, seconds, shares. Fields as in `simulator.network.access.Network`, equal
    both ways where it names none.

    Attributes:
        outage_every_s: From the begin of one outage to the next, None for no outages.
        outage_s: Length of an outage, in which nothing passes.
        buffer_s: The buffer, at the mean rate of its direction.
        up_cross: Cross traffic of the uplink: "greedy", "video", or mean seconds busy and quiet; None for none.
        down_cross: The same of the downlink.
        wifi: Stations and tail of a `simulator.network.wifi.Hop`, None for none.
        radio: Of the catalogue, None for none.
        handover: Mean time between handovers and their mean length, None for none.
        uplink: sr_period_s, sr_grant_s, slot_s and configured_s of `simulator.network.radio.RadioFigures`; None: inside the round trip.
        operators: Share, inactivity timer, DRX timer and DRX cycle of each, None for the radio's own; empty for one radio.
        gaps: Scheduling gaps, with down_bps and up_bps as mean rates; None for none.
        generated: Kind of a generated trace that tells rates, and how the round trip varies about rtt_s; None for none.
        fair: Whether devices of a cell share it side by side.
        fading_snr_db: Of their channels, None for no fading.
        also: Other paths beside this one, empty for one path.
        way_s: Round trip behind the link, in addition to rtt_s or to that of a trace.
        trace: Files that tell each of down_bps, up_bps, rtt_s and loss that is None; None for no file.
    """

    down_bps: float | None
    up_bps: float | None
    rtt_s: float | None
    jitter_s: float = 0.0
    jitter_distribution: str = "normal"
    jitter_samples_s: tuple[float, ...] = ()
    jitter_on_top: bool = False
    loss: float | None = 0.0
    loss_burst_packets: float | None = None
    outage_every_s: float | None = None
    outage_s: float = 0.0
    buffer_bytes: float | None = None
    buffer_s: float | None = None
    up_cross: str | tuple[float, float] | None = None
    down_cross: str | tuple[float, float] | None = None
    aqm: str = "none"
    wifi: tuple[int, float] | None = None
    transport: str = "ideal"
    handshake: str = "full"
    congestion: str = ""
    flow_bytes: int = 0
    idle_timeout_s: float | None = None
    radio: str | None = None
    devices_per_cell: int = 1
    handover: tuple[float, float] | None = None
    uplink: tuple[float, float, float, float] | None = None
    operators: tuple[tuple[float, float | None, float | None, float | None], ...] = ()
    gaps: Gaps | None = None
    generated: str | None = None
    trace: TraceChoice | None = None
    fair: bool = False
    fading_snr_db: float | None = None
    also: "tuple[LinkFigures, ...]" = ()
    way_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        gaps = None if self.gaps is None else self.gaps.model_dump()
        return {**asdict(self), "gaps": gaps, "also": [one.plain() for one in self.also]}
