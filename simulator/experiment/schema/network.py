"""`network:` of a scenario: a preset of the catalogue, a link by its figures, or one whose rates follow a trace.

Longer than other files: the kinds of network share most of their keys, and each says which of these it refuses.
"""

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Tag, ValidationInfo, field_validator, model_validator

from simulator.core.errors import TraceError, reason
from simulator.core.part import Part, folder_of, fork, found_text, items
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.schema.mobile import Mobile
from simulator.experiment.schema.rate import CONSTANT, Variation, gaps_of
from simulator.network.impairments import MAX_JITTER
from simulator.network.radio import RadioFigures
from simulator.pricing import catalogue
from simulator.traces.choice import TraceChoice
from simulator.traces.trace import Trace
from simulator.traces.units import Way, told

PRESET_KM = 500.0  # distance to the cloud in the round trip of a preset
MS_PER_1000_KM = 22.0  # round trip per distance; light in fibre takes 9.8: see `catalogue/networks.yaml`
TransportName = Literal["ideal", "tcp", "grpc", "quic", "sctp"]
Distribution = Literal["normal", "lognormal", "gamma", "pareto"]


def _not_absurd(rate_mbps: float) -> float:
    if rate_mbps < 1e-3:
        refuse(f"must be >= 0.001 (1 kbit/s), got {rate_mbps}")
    return rate_mbps


Rate = Annotated[float, Field(gt=0, le=1e7), AfterValidator(_not_absurd)]
RttMs = Annotated[float, Field(ge=0, le=600_000)]
LossPct = Annotated[float, Field(ge=0, le=90)]

# Other names of presets, for hints.
OTHER_NAMES = {"4g": "lte", "wlan": "wifi", "ethernet": "lan", "fiber": "fibre", "starlink": "leo"}


class PresetNetwork(Mobile):
    """A preset of the network catalogue, optionally with changed figures.

    Attributes:
        preset: One of `ciar-sim list presets`.
        transport: ideal (payload bytes, no connection or window), tcp, grpc (TCP, TLS, HTTP/2), quic or sctp (a channel of WebRTC).
        devices_per_cell: Devices that share one link.
        rtt_ms: Mean unloaded round trip instead of the preset's; jitter does not change it.
        jitter_ms: Standard deviation of the one-way delay.
        jitter_distribution: Distribution of the one-way delay.
        jitter_on: mean, or top: jitter only adds delay, and rtt_ms is the least round trip.
        loss_pct: Packets lost each way, in percent.
        loss_burst_packets: Mean length of a burst of losses.
        distance_km: Distance to the cloud beyond the 500 km of a preset; adds to rtt_ms.
        up_mbps: Mean rate of the uplink instead of the preset's; constant if the preset follows a generated trace. None, here and in
            the other fields of the explicit form, keeps the preset's figure.
        down_mbps: The same of the downlink.
        rate: How the rates vary about their means: constant, or scheduling gaps by name or figures; None: as the preset does.
        radio: A radio of the catalogue, or none.
    """

    preset: str
    distance_km: float = Field(default=0.0, ge=0, le=40_000)
    transport: TransportName = "grpc"
    devices_per_cell: int = Field(default=1, ge=1, le=1_000_000)
    rtt_ms: RttMs | None = None
    up_mbps: Rate | None = None
    down_mbps: Rate | None = None
    jitter_ms: float | None = Field(default=None, ge=0, le=60_000)
    jitter_distribution: Distribution | None = None
    jitter_on: Literal["mean", "top"] = "mean"
    loss_pct: LossPct | None = None
    loss_burst_packets: float | None = Field(default=None, ge=1, le=1e6)
    rate: Variation | None = None
    radio: str | None = None

    @field_validator("preset")
    @classmethod
    def _exists(cls, preset: str) -> str:
        name, known = catalogue.canonical("networks", preset), catalogue.names("networks")
        if name not in known:
            file = "." in preset or "/" in preset
            hint = (
                f"; for a trace: network: {{trace: {preset}}}"
                if file
                else did_you_mean(OTHER_NAMES.get(preset.lower(), preset), known)
            )
            refuse(f"is not a known preset, got {found_text(preset)}{hint}")
        return name

    @field_validator("radio")
    @classmethod
    def _radio_exists(cls, radio: str | None) -> str | None:
        return radio if radio == "none" else _radio(radio)

    @model_validator(mode="after")
    def _acts(self) -> Self:
        """Refuse figures that conflict or have no effect."""
        preset = catalogue.network(self.preset)
        if self.jitter_distribution is not None and self.jitter_ms is None and not preset.jitter_ms:
            refuse(f"has no effect: {self.preset} has no jitter; give jitter_ms, too", "jitter_distribution")
        if self.loss_burst_packets is not None and self.loss_pct is None and not preset.loss_pct:
            refuse(f"has no effect: {self.preset} loses no packets; give loss_pct, too", "loss_burst_packets")
        if self.radio == "none" and preset.radio is None:
            refuse(f"has no effect: {self.preset} has no radio", "radio")
        if self.rate == CONSTANT and preset.gaps is None and preset.generated is None:
            refuse(f"has no effect: rates of {self.preset} are constant", "rate")
        if self.jitter_on == "top" and not self._own("jitter_ms", preset):
            refuse(f"has no effect: {self.preset} has no jitter; give jitter_ms, too", "jitter_on")
        if self.model_fields_set & {"rtt_ms", "jitter_ms"} and self.jitter_on == "mean":
            _check_jitter(self._own("jitter_ms", preset), self._rtt_ms(preset) / 2, "jitter_ms")
        if self.model_fields_set & {"loss_pct", "loss_burst_packets"}:
            _check_burst(self._own("loss_pct", preset), self._own("loss_burst_packets", preset))
        return self

    def _own(self, key: str, preset: catalogue.NetworkPreset) -> Any:
        """Return the figure given here, else the preset's."""
        given = getattr(self, key)
        return getattr(preset, key) if given is None else given

    def _rtt_ms(self, preset: catalogue.NetworkPreset) -> float:
        return float(self._own("rtt_ms", preset)) + MS_PER_1000_KM * self.distance_km / 1000.0

    def radio_row(self) -> catalogue.RadioPreset | None:
        radio = self._own("radio", catalogue.network(self.preset))
        return None if radio in (None, "none") else catalogue.radio(radio)

    @property
    def usual_access_s(self) -> float:
        """Mean wait for the uplink that the preset's round trip includes, in seconds: that of its own radio, with which it was measured."""
        radio = catalogue.network(self.preset).radio
        row = None if radio is None else catalogue.radio(radio)
        if row is None or row.sr_period_ms is None:
            return 0.0
        return RadioFigures(sr_period_s=row.sr_period_ms * 1e-3, sr_grant_s=row.sr_grant_ms * 1e-3).mean_access_s

    def figures(self) -> LinkFigures:
        p = catalogue.network(self.preset)

        def rate(key: str) -> float | None:
            follows = p.generated and self.rate is None and getattr(self, key) is None
            return None if follows else self._own(key, p) * 1e6

        radio = self._own("radio", p)
        rtt_s = self._rtt_ms(p) * 1e-3
        if self.uplink is not None and self.rtt_ms is None:  # the preset's round trip includes the usual scheduling
            rtt_s = max(0.0, rtt_s - self.usual_access_s)
        return LinkFigures(
            down_bps=rate("down_mbps"),
            up_bps=rate("up_mbps"),
            rtt_s=rtt_s,
            jitter_s=self._own("jitter_ms", p) * 1e-3,
            jitter_distribution=self._own("jitter_distribution", p),
            jitter_on_top=self.jitter_on == "top",
            loss=self._own("loss_pct", p) / 100.0,
            loss_burst_packets=self._own("loss_burst_packets", p),
            gaps=gaps_of(p.gaps if self.rate is None else self.rate),
            generated=p.generated,
            transport=self.transport,
            radio=None if radio == "none" else radio,
            devices_per_cell=self.devices_per_cell,
            **self.queue(),
            **self.cell(),
        )


def _radio(radio: str | None) -> str | None:
    known = catalogue.names("radios")
    if radio is not None and radio not in known:
        refuse(f"is not a known radio, got {found_text(radio)}{did_you_mean(radio, known)}")
    return radio


def _check_jitter(jitter_ms: float, delay_ms: float, key: str, samples_ms: tuple[float, ...] = ()) -> None:
    """Refuse jitter for which no delay distribution with this mean exists. Jitter keeps the mean, so a mean of 0 cannot vary."""
    if (any(samples_ms) or jitter_ms) and not delay_ms:
        refuse("needs a delay > 0: rtt_ms is 0, or the trace says so", key)
    if jitter_ms > MAX_JITTER * delay_ms:
        refuse(f"must be at most {MAX_JITTER:g} times the mean one-way delay ({delay_ms:g} ms), got {jitter_ms:g}", key)


def _check_burst(loss_pct: float | None, burst_packets: float | None) -> None:
    least = 0.0 if loss_pct is None else loss_pct / (100.0 - loss_pct)
    if burst_packets is not None and burst_packets < least:
        refuse(
            f"must be >= {least:g} for a loss_pct of {loss_pct:g}, got {burst_packets:g}",
            "loss_burst_packets",
        )


class _Line(Mobile):
    """Common keys of explicit networks and traces. Their values are used as given, without additions.

    Attributes:
        transport: ideal (payload bytes, no connection or window), tcp, grpc (TCP, TLS, HTTP/2), quic or sctp (a channel of WebRTC).
        rtt_ms: mean unloaded round trip; jitter does not change it.
        jitter_ms: standard deviation of the one-way delay; for a normal distribution before its truncation at 0.
        jitter_distribution: distribution of the one-way delay.
        jitter_samples_ms: measured deviations from the mean, instead of a distribution.
        jitter_on: mean, or top: jitter only adds delay, and rtt_ms is the least round trip.
        loss_pct: packets lost each way, in percent.
        loss_burst_packets: mean length of a burst of losses; null for independent ones.
        radio: one of the catalogue's radios.
        devices_per_cell: devices that share one link.
    """

    rtt_ms: RttMs | None = None
    jitter_ms: float = Field(default=0.0, ge=0, le=60_000)
    jitter_distribution: Distribution = "normal"
    jitter_samples_ms: Annotated[
        tuple[Annotated[float, Field(ge=-60_000, le=60_000)], ...], BeforeValidator(items)
    ] = ()
    jitter_on: Literal["mean", "top"] = "mean"
    loss_pct: LossPct | None = None
    loss_burst_packets: float | None = Field(default=None, ge=1, le=1e6)
    transport: TransportName = "ideal"
    radio: str | None = None
    devices_per_cell: int = Field(default=1, ge=1, le=1_000_000)

    @field_validator("radio")
    @classmethod
    def _exists(cls, radio: str | None) -> str | None:
        return _radio(radio)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.jitter_samples_ms and (self.jitter_ms or self.jitter_distribution != "normal"):
            refuse(
                "conflicts with jitter_ms or jitter_distribution: jitter is given twice; give one of them",
                "jitter_samples_ms",
            )
        if self.jitter_on == "top" and not (self.jitter_ms or any(self.jitter_samples_ms)):
            refuse("does nothing without jitter_ms or jitter_samples_ms, which are missing", "jitter_on")
        if self.rtt_ms is not None:
            self._jitter_fits(self.rtt_ms / 2)
        _check_burst(self.loss_pct, self.loss_burst_packets)
        return self

    def _jitter_fits(self, delay_ms: float) -> None:
        if self.jitter_on == "top":
            return
        key = "jitter_samples_ms" if self.jitter_samples_ms else "jitter_ms"
        _check_jitter(self.jitter_ms, delay_ms, key, self.jitter_samples_ms)

    def radio_row(self) -> catalogue.RadioPreset | None:
        return None if self.radio is None else catalogue.radio(self.radio)

    def line(self, up_mbps: float | None, down_mbps: float | None, **more: Any) -> LinkFigures:
        up_bps, down_bps = (None if mbps is None else mbps * 1e6 for mbps in (up_mbps, down_mbps))
        loss = None if self.loss_pct is None else self.loss_pct / 100.0
        return LinkFigures(
            down_bps=down_bps,
            up_bps=up_bps,
            rtt_s=None if self.rtt_ms is None else self.rtt_ms * 1e-3,
            jitter_s=self.jitter_ms * 1e-3,
            jitter_distribution=self.jitter_distribution,
            jitter_samples_s=tuple(1e-3 * ms for ms in self.jitter_samples_ms),
            jitter_on_top=self.jitter_on == "top",
            loss=loss,
            loss_burst_packets=self.loss_burst_packets,
            transport=self.transport,
            radio=self.radio,
            devices_per_cell=self.devices_per_cell,
            **self.queue(),
            **self.cell(),
            **more,
        )


class ExplicitNetwork(_Line):
    """A link by its figures.

    Attributes:
        up_mbps: Rate of the uplink, a mean where `rate` varies it.
        down_mbps: The same of the downlink.
        outage_every_s: Time from the start of one outage to the start of the next.
        outage_ms: Length of an outage, during which nothing passes.
        rate: How the rates vary about up_mbps and down_mbps.
    """

    rtt_ms: RttMs
    loss_pct: LossPct = 0.0
    up_mbps: Rate
    down_mbps: Rate
    rate: Variation = CONSTANT
    outage_every_s: float | None = Field(default=None, ge=1e-3, le=1e6)
    outage_ms: float = Field(default=0.0, ge=0, le=1e9)

    @model_validator(mode="after")
    def _outage(self) -> Self:
        if self.outage_ms and self.rate != CONSTANT:
            refuse("needs rate: constant: scheduling gaps are outages of their own", "outage_ms")
        if self.outage_ms and self.outage_every_s is None:
            refuse("needs outage_every_s, which is missing", "outage_ms")
        if self.outage_every_s is not None and self.outage_ms >= 1e3 * self.outage_every_s:
            refuse(f"must be < outage_every_s ({self.outage_every_s:g} s), got {self.outage_ms:g}", "outage_ms")
        return self

    def figures(self) -> LinkFigures:
        return self.line(
            self.up_mbps,
            self.down_mbps,
            outage_every_s=self.outage_every_s,
            outage_s=self.outage_ms * 1e-3,
            gaps=gaps_of(self.rate),
        )


class TraceNetwork(_Line):
    """A link that follows a trace file, which repeats. Each device (or cell) starts at a different time in it.

    The constants up_mbps, down_mbps, rtt_ms and loss_pct replace the values of the file; rates and the round trip must be given if the
    file has none, and loss is then 0.

    Attributes:
        up_mbps: A constant rate instead of that of the file.
        down_mbps: The same of the downlink.
        trace: a file, a list of files that form one trace, or {down: FILE, up: FILE}.
        unit: units of times and rates, if a file does not state them.
        window_s: two times, the part of the trace to use, counted from its start.
        time_scale: multiplies all times of the trace.
        resample_s: each device follows the trace in blocks, drawn at random without end: their mean length in seconds.
    """

    trace: str | tuple[str, ...] | dict[Way, str]
    unit: str | None = None
    window_s: Annotated[tuple[float, float] | None, BeforeValidator(items)] = None
    time_scale: float = Field(default=1.0, ge=1e-6, le=1e6)
    resample_s: float | None = Field(default=None, ge=1e-3, le=1e6)
    up_mbps: Rate | None = None
    down_mbps: Rate | None = None

    @field_validator("trace", mode="before")
    @classmethod
    def _paths(cls, trace: Any, info: ValidationInfo) -> Any:
        def path_of(file: Any) -> str:
            if not isinstance(file, str) or "\0" in file:
                refuse(f"must be the path of a file, got {found_text(file)}")
            path = Path(os.path.realpath(folder_of(info) / file))
            try:
                there = path.is_file()
            except OSError as error:  # a name that is too long, a folder that cannot be entered
                refuse(f"is not a usable path, got {found_text(file)}: {reason(error)}")
            if not there:
                what = "is a folder" if os.path.isdir(path) else "is not there"
                refuse(f"must be the path of a file, got {found_text(file)}, which {what}")
            return str(path)

        if isinstance(trace, dict):
            if set(trace) != {"down", "up"}:
                refuse(
                    f"must be a file, a list of files or {{down: FILE, up: FILE}}, got {', '.join(map(str, trace)) or 'an empty mapping'}"
                )
            return {way: path_of(trace[way]) for way in ("down", "up")}
        if isinstance(trace, list | tuple):
            if not trace:
                refuse("must be a file, a list of files or {down: FILE, up: FILE}, got an empty list")
            return tuple(path_of(file) for file in trace)
        return path_of(trace)

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, unit: str | None) -> str | None:
        try:
            told(unit=unit)
        except TraceError as error:
            refuse(str(error))
        return unit

    def choice(self) -> TraceChoice:
        if isinstance(self.trace, dict):
            files, directions = tuple(self.trace.values()), tuple(self.trace)
        else:
            files, directions = (self.trace,) if isinstance(self.trace, str) else self.trace, ()
        return TraceChoice(files, directions, self.unit, self.window_s, self.time_scale)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        try:
            trace = link_trace(self.choice())
        except TraceError as error:
            refuse(f"cannot be used: {error}", "trace")
        for key, given, rate in (
            ("up_mbps", self.up_mbps, trace.up.rate),
            ("down_mbps", self.down_mbps, trace.down.rate),
        ):
            if given is None and rate is None:
                refuse("is missing: the trace has no rate in this direction", key)
        if trace.up.trains is not None or trace.down.trains is not None:
            others = {
                "devices_per_cell": self.devices_per_cell > 1,
                "cross_traffic": self.cross_traffic,
                "wifi": self.wifi,  # its bursts hold back messages that would have started trains of their own
            }
            if shared := next((key for key, given in others.items() if given), None):
                refuse("does not go with packet trains, which are those of a queue that is idle", shared)
        for way, name in ((trace.up, "up"), (trace.down, "down")):
            if way.trains is not None and self.resample_s is not None:
                refuse("does not go with packet trains, which depend on what was sent before", "resample_s")
            if way.trains is not None and self.handover is not None:
                refuse("does not go with packet trains, which were measured with the handovers that came", "handover")
            if way.size_delays_s is not None and way.trains is None:
                refuse(
                    f"has delays by size without packet trains for the {name}link; give its light-pdo file too", "trace"
                )
        delays = [way.delay_s for way in (trace.up, trace.down) if way.delay_s is not None]
        if self.rtt_ms is None and len(delays) < 2:
            refuse(
                f"is missing: the trace has {'no delays' if not delays else 'delays of one direction only'}", "rtt_ms"
            )
        if self.rtt_ms is None:
            self._jitter_fits(1e3 * min(one.mean() for one in delays))
        losses = [way.loss.mean() for way in (trace.up, trace.down) if way.loss is not None]
        if self.loss_pct is None and max(losses, default=0.0) > 0.9:
            refuse(
                f"loses {100.0 * max(losses):g} % of packets; allowed: 90 % on average, or loss_pct beside it", "trace"
            )
        if self.loss_pct is None and losses and self.loss_burst_packets is not None:
            refuse("goes with loss_pct only: packets of a trace are lost one by one", "loss_burst_packets")
        return self

    def figures(self) -> LinkFigures:
        return self.line(self.up_mbps, self.down_mbps, trace=self.choice(), resample_s=self.resample_s)


def link_trace(choice: TraceChoice) -> Trace:
    """Read a trace. The result is cached until a file changes. Raises TraceError."""
    try:
        states = [Path(file).stat() for file in choice.files]
    except OSError as error:
        raise TraceError(f"{error.filename}: cannot be read: {reason(error)}") from None
    return _link_trace(choice, tuple((state.st_mtime_ns, state.st_size) for state in states))


@lru_cache(maxsize=64)
def _link_trace(choice: TraceChoice, _states: tuple[tuple[int, int], ...]) -> Trace:
    return choice.read()


class MultipathNetwork(Part):
    """Several paths at once: each message takes the path that delivers it first (`simulator.network.paths`).

    Attributes:
        paths: One network per path.
    """

    paths: Annotated[tuple["OnePath", ...], BeforeValidator(items)]

    @field_validator("paths")
    @classmethod
    def _several(cls, paths: tuple["OnePath", ...]) -> tuple["OnePath", ...]:
        if not 2 <= len(paths) <= 4:
            refuse(f"must be 2 to 4 networks, got {len(paths)}")
        for index, path in enumerate(paths):
            if path.sharing != "fcfs":
                refuse("must be fcfs beside other paths", index, "sharing")
        return paths

    def figures(self) -> LinkFigures:
        first, *others = (path.figures() for path in self.paths)
        return replace(first, also=tuple(others))


def paths_of(network: "AnyNetwork") -> "tuple[PresetNetwork | TraceNetwork | ExplicitNetwork, ...]":
    """Return the paths of a network: one, unless it is multipath."""
    return network.paths if isinstance(network, MultipathNetwork) else (network,)


def behind(network: "AnyNetwork", way_s: float) -> LinkFigures:
    """Return the link to a cloud at a round trip of `way_s` behind the access network.

    The round trip of a preset includes the distance `PRESET_KM`. `way_s` replaces that part, but at most the whole round trip.
    """
    if isinstance(network, MultipathNetwork):
        first, *others = (behind(path, way_s) for path in network.paths)
        return replace(first, also=tuple(others))
    link = network.figures()
    if link.rtt_s is None:
        return replace(link, way_s=way_s)
    access_s = link.rtt_s
    if isinstance(network, PresetNetwork):
        access_s = max(0.0, access_s - MS_PER_1000_KM * PRESET_KM * 1e-6)
    return replace(link, rtt_s=access_s + way_s)


NEEDED = ", ".join(name for name, field in ExplicitNetwork.model_fields.items() if field.is_required())


def _one_form(data: Any) -> Any:
    if isinstance(data, str):
        return {"preset": data}
    if isinstance(data, dict):
        if "paths" in data:
            refuse("cannot be in a path: give all of them in one list", "paths")
        preset, explicit, trace = (list(form.model_fields) for form in (PresetNetwork, ExplicitNetwork, TraceNetwork))
        for key in data:
            if key not in [*preset, *explicit, *trace]:
                known = dict.fromkeys(["preset", "trace", "paths", *NEEDED.split(", "), *explicit, *preset])
                refuse(f"is not a known key{did_you_mean(key, known)}", key)
        if "preset" in data:
            if other := next((key for key in data if key not in preset), None):
                more = ", ".join(own for own in preset if own != "preset")
                refuse(f"does not go with preset, which takes {more}; without preset give trace, or {NEEDED}", other)
        elif "distance_km" in data:
            refuse("goes with preset only; give rtt_ms its value", "distance_km")
        elif "trace" in data and (other := next((key for key in data if key not in trace), None)):
            refuse("goes without trace only: rates and outages of a trace are its own", other)
        elif "trace" not in data and (other := next((key for key in data if key not in explicit), None)):
            refuse("goes with trace only: it says how the file of a trace is used", other)
    return data


def _one_or_several(data: Any) -> Any:
    if isinstance(data, dict) and "paths" in data:
        for key in data:
            if key != "paths":
                refuse("conflicts with paths: give it in each of them", key)
        return data
    return _one_form(data)


OnePath = Annotated[
    Annotated[PresetNetwork, Tag("<preset>")]
    | Annotated[TraceNetwork, Tag("<trace>")]
    | Annotated[ExplicitNetwork, Tag("<explicit>")],
    fork({"preset": "<preset>", "trace": "<trace>"}, "<explicit>"),
    BeforeValidator(_one_form),
]
MultipathNetwork.model_rebuild()
AnyNetwork = PresetNetwork | TraceNetwork | ExplicitNetwork | MultipathNetwork
ScenarioNetwork = Annotated[
    Annotated[PresetNetwork, Tag("<preset>")]
    | Annotated[TraceNetwork, Tag("<trace>")]
    | Annotated[MultipathNetwork, Tag("<paths>")]
    | Annotated[ExplicitNetwork, Tag("<explicit>")],
    fork({"preset": "<preset>", "trace": "<trace>", "paths": "<paths>"}, "<explicit>"),
    BeforeValidator(_one_or_several),
]
