"""A link in base units, to which every form of `network:` is converted."""

from dataclasses import asdict, dataclass
from typing import Any

from simulator.traces.choice import TraceChoice
from simulator.traces.gaps import Gaps


@dataclass(frozen=True)
class LinkFigures:
    """A link in base units: bit/s, seconds, shares.

    Other fields are those of `simulator.network.access.Network`. Fields without a direction apply to both directions.

    Attributes:
        outage_every_s: Time from the begin of one outage to the begin of the next; None for no outages.
        outage_s: Length of an outage, during which nothing passes.
        buffer_s: Size of the buffer as time at the mean rate of its direction.
        up_cross: Cross traffic of the uplink: "greedy", "video", or mean seconds busy and quiet; None for none.
        down_cross: The same of the downlink.
        wifi: Stations and tail of a `simulator.network.wifi.Hop`; None for none.
        radio: A radio of the catalogue; None for none.
        handover: Mean time between handovers and their mean length; None for none.
        uplink: sr_period_s, sr_grant_s, slot_s and configured_s of `simulator.network.radio.RadioFigures`; None: part of the round trip.
        operators: Share, inactivity timer, DRX timer and DRX cycle of each; a timer of None is the radio's. Empty for one radio.
        gaps: Scheduling gaps, with down_bps and up_bps as mean rates; None for none.
        generated: Kind of a generated trace, which gives the rates and the variation of the round trip about rtt_s; None for none.
        fair: Whether the devices of a cell are served at the same time (proportional fair), not one after another.
        fading_snr_db: Mean SNR of their fading channels; None for no fading.
        also: Further paths; empty for one path.
        way_s: Round trip behind the link, in addition to rtt_s or to that of a trace.
        trace: Files with the values of down_bps, up_bps, rtt_s and loss where these are None; None for no file.
        resample_s: Mean length of the blocks of the trace that each device follows in random order; None: the trace, which repeats.
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
    resample_s: float | None = None
    fair: bool = False
    fading_snr_db: float | None = None
    also: "tuple[LinkFigures, ...]" = ()
    way_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        gaps = None if self.gaps is None else self.gaps.model_dump()
        return {**asdict(self), "gaps": gaps, "also": [one.plain() for one in self.also]}
