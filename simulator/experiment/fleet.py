"""The kinds of devices of a case: their compute, networks and thermal throttling."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from simulator.engine.thermal import Throttling
from simulator.engine.workload import device_counts
from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.cloud import Tier
from simulator.experiment.schema.compute import CloudCompute, Compute
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.schema.network import link_trace
from simulator.experiment.schema.workload import FleetKind
from simulator.network.access import Network
from simulator.network.cross import AQMS, GREEDY, Traffic
from simulator.network.handover import Handovers
from simulator.network.radio import RadioFigures
from simulator.network.trains import TrainCapacity
from simulator.network.transport import TRANSPORTS, opened_by
from simulator.network.wifi import Hop
from simulator.network.wire import Capacity, StepFunction
from simulator.pricing import catalogue
from simulator.traces.cellular_readers import TRAIN_BYTES
from simulator.traces.gaps import Gaps
from simulator.traces.gaps import generate as with_gaps
from simulator.traces.generate import KINDS
from simulator.traces.generate import generate as generated_trace
from simulator.traces.series import StepSeries
from simulator.traces.trace import Direction, Trace


def kinds_of(scenario: Scenario) -> Sequence[FleetKind | None]:
    """Return the kinds of devices in the fleet. None is the only kind of a workload without `fleet:`."""
    return scenario.workload.fleet or (None,)


def computes_of(scenario: Scenario) -> list[Compute]:
    """Return the `compute` section of each kind of device."""
    own = scenario.compute

    def of(kind: FleetKind | None, tier: str | None) -> Compute:
        choice = own
        if kind is not None and kind.hardware is not None:
            side = own.device.model_copy(
                update={"hardware": kind.hardware, "runtime": own.device.runtime or "eager", "profile": None}
            )
            choice = choice.model_copy(update={"device": side})
        if tier is not None:
            choice = choice.model_copy(update={"cloud": _cloud_at(scenario.cloud.tiers[tier], own.cloud)})
        return choice

    return [of(kind, tier) for kind, tier in zip(kinds_of(scenario), scenario.tiers, strict=True)]


def _cloud_at(tier: Tier, own: CloudCompute) -> CloudCompute:
    """Return the cloud's side of `compute` on the hardware of a tier."""
    if tier.hardware is None:
        return own if tier.runtime is None else own.model_copy(update={"runtime": tier.runtime})
    runtime = tier.runtime or own.runtime or "eager"
    return own.model_copy(update={"hardware": tier.hardware, "runtime": runtime, "profile": None})


def slos_of(scenario: Scenario) -> list[float]:
    """Return the latency objective of each kind in seconds: its own, else the workload's; infinite without one."""
    common_s = scenario.workload.slo_s
    given = [kind.slo_s if kind and kind.slo_s is not None else common_s for kind in kinds_of(scenario)]
    return [math.inf if slo_s is None else slo_s for slo_s in given]


def counts_of(scenario: Scenario) -> list[int]:
    """Return the number of devices of each kind. Devices are numbered kind after kind."""
    shares = [kind.share if kind else 1.0 for kind in kinds_of(scenario)]
    return list(device_counts(shares, scenario.workload.devices))


def throttling_of(choice: Compute) -> Throttling | None:
    """Return the thermal throttling of devices, or None."""
    given = choice.device.throttling
    return None if given is None else Throttling([(step.after_s, step.speed) for step in given.steps], given.cooling)


def colocated_compute(choice: Compute) -> Compute:
    """Return the `compute` section with the device's model on the cloud's hardware."""
    cloud = choice.cloud
    side = choice.device.model_copy(
        update={"hardware": cloud.hardware, "runtime": cloud.runtime, "profile": cloud.profile}
    )
    return choice.model_copy(update={"device": side})


# Duration of the generated trace of a preset. Every device starts at a different time in it.
GENERATED_S = 6 * 3600.0
# Duration of rates with scheduling gaps, which have many more steps per second.
GAPS_S = 2 * 3600.0


def network_of(link: LinkFigures, seed: int) -> Network:
    """Return the network in the form that the engine takes. seed: seed of generated traces."""
    radio = _radio_of(link)
    trace, own_rtt_s = _trace_of(link, seed)

    def delay(told: StepSeries | None) -> float | StepFunction:
        if told is None or (link.generated is None and link.rtt_s is not None):
            return (link.rtt_s or 0.0) / 2
        more_s = link.way_s if link.rtt_s is None else link.rtt_s - own_rtt_s
        return StepFunction(told.times_s, _moved(told, more_s / 2), told.duration_s)

    def loss(told: StepSeries | None) -> float | StepFunction:
        if link.loss is not None or told is None:
            return link.loss or 0.0
        return StepFunction(told.times_s, told.values, told.duration_s)

    if link.gaps is None:
        up_bps, down_bps = _rate(link, link.up_bps, trace.up), _rate(link, link.down_bps, trace.down)
    else:
        assert link.up_bps is not None, "gaps without a mean rate"
        assert link.down_bps is not None, "gaps without a mean rate"
        up_bps, down_bps = _capacities(link.gaps, link.up_bps, link.down_bps, seed, GAPS_S)
    transport = opened_by(TRANSPORTS[link.transport], link.handshake)
    if link.congestion or link.flow_bytes:
        transport = replace(transport, congestion=link.congestion, flow_bytes=link.flow_bytes)
    wifi = None if link.wifi is None else Hop(*link.wifi)
    handovers = None if link.handover is None else Handovers(*link.handover)
    up_share, down_share = (
        (1.0 if wifi is None else wifi.before(_mean_bps(bps)).share)
        * (1.0 if handovers is None else 1.0 - handovers.share)
        for bps in (up_bps, down_bps)
    )
    return Network(
        up_bps=up_bps,
        down_bps=down_bps,
        up_delay_s=delay(trace.up.delay_s),
        down_delay_s=delay(trace.down.delay_s),
        up_jitter_s=link.jitter_s,
        down_jitter_s=link.jitter_s,
        distribution=link.jitter_distribution,
        jitter_samples_s=link.jitter_samples_s,
        jitter_on_top=link.jitter_on_top,
        up_loss=loss(trace.up.loss),
        down_loss=loss(trace.down.loss),
        burst_packets=link.loss_burst_packets,
        up_buffer_bytes=_buffer_bytes(link, up_bps),
        down_buffer_bytes=_buffer_bytes(link, down_bps),
        up_cross=_cross(link.up_cross, up_share * _mean_bps(up_bps)),
        down_cross=_cross(link.down_cross, down_share * _mean_bps(down_bps)),
        aqm=AQMS[link.aqm],
        wifi=wifi,
        transport=transport,
        handovers=handovers,
        idle_timeout_s=math.inf if link.idle_timeout_s is None else link.idle_timeout_s,
        radio=radio,
        operators=_operators_of(link, radio),
        devices_per_cell=link.devices_per_cell,
        fair=link.fair,
        fading_snr_db=link.fading_snr_db,
        block_s=link.resample_s,
        also=tuple(network_of(one, seed) for one in link.also),
    )


def _moved(told: StepSeries, more_s: float) -> np.ndarray:
    """Return delays that are longer by `more_s`. If some would be below 0, their deviations from the mean shrink until none is."""
    moved = told.values + more_s
    least_s, mean_s = float(moved.min()), max(0.0, told.mean() + more_s)
    if least_s < 0.0:
        moved = np.maximum(0.0, mean_s + (moved - (told.mean() + more_s)) * mean_s / (told.mean() + more_s - least_s))
    return moved


def _trace_of(link: LinkFigures, seed: int) -> tuple[Trace, float]:
    """Return the link's trace (empty without one), and the mean round trip in seconds that its delays contain."""
    if link.trace is not None:
        return link_trace(link.trace), 0.0
    if link.generated is None:
        return Trace("", Direction(), Direction()), 0.0
    leo = KINDS[link.generated].leo
    return generated_trace(link.generated, seed, GENERATED_S), 0.0 if leo is None else 1e-3 * leo.rtt_ms


def _rate(link: LinkFigures, bps: float | None, told: Direction) -> float | Capacity:
    """Return the rate of a direction in bit/s: constant, constant with outages, or that of its trace."""
    if bps is not None:
        if link.outage_every_s is None or not link.outage_s:
            return bps
        return Capacity.with_outages(bps, link.outage_every_s, link.outage_s)
    rate, trains, base = told.rate, told.trains, told.delay_s
    assert rate is not None, "a link with neither rate nor trace"
    capacity = Capacity(rate.times_s, rate.rate_bps, rate.duration_s)
    if trains is None or base is None:
        return capacity
    first_s = StepFunction(base.times_s, base.values, base.duration_s)
    sizes = told.size_delays_s or ()
    return TrainCapacity(capacity, trains.times_s, trains.offsets_s, trains.duration_s, first_s, sizes, TRAIN_BYTES)


def _mean_bps(rate: float | Capacity) -> float:
    return rate.mean_bps if isinstance(rate, Capacity) else rate


def _buffer_bytes(link: LinkFigures, rate: float | Capacity) -> float:
    """Return the size of the buffer before a wire of this rate; infinite for no limit."""
    if link.buffer_s is not None:
        return 0.125 * link.buffer_s * _mean_bps(rate)
    return math.inf if link.buffer_bytes is None else link.buffer_bytes


def _cross(flow: str | tuple[float, float] | None, rate_bps: float) -> Traffic | None:
    """Return the cross traffic at a wire with this mean rate, or None."""
    match flow:
        case None:
            return None
        case "greedy":
            return GREEDY
        case "video":
            return Traffic.video(rate_bps)
        case (busy_s, quiet_s):
            return Traffic(busy_s, quiet_s)
    raise AssertionError(flow)


def _radio_of(link: LinkFigures) -> RadioFigures | None:
    """Return the radio of the catalogue with the link's uplink scheduling, one of them alone, or None if the link has neither."""
    if link.radio is None and link.uplink is None:
        return None
    sr_period_s, sr_grant_s, slot_s, configured_s = link.uplink or (0.0, 0.0, 0.0, 0.0)
    uplink = RadioFigures(sr_period_s=sr_period_s, sr_grant_s=sr_grant_s, slot_s=slot_s, configured_s=configured_s)
    if link.radio is None:
        return uplink
    r = catalogue.radio(link.radio)
    return replace(
        uplink,
        promotion_s=r.promotion_ms * 1e-3,
        fach_promotion_s=r.fach_promotion_ms * 1e-3,
        inactivity_s=r.inactivity_s,
        drx_after_s=math.inf if r.drx_after_ms is None else r.drx_after_ms * 1e-3,
        drx_cycle_s=r.drx_cycle_ms * 1e-3,
        paging_cycle_s=r.paging_cycle_ms * 1e-3,
        grant_bytes=math.inf if r.grant_bytes is None else r.grant_bytes,
        grant_s=r.grant_ms * 1e-3,
        promotion_w=r.promotion_mw * 1e-3,
        active_w=r.active_mw * 1e-3,
        drx_w=r.drx_mw * 1e-3,
        up_j_per_byte=8e-9 * r.up_nj_per_bit,
        down_j_per_byte=8e-9 * r.down_nj_per_bit,
    )


def _operators_of(link: LinkFigures, radio: RadioFigures | None) -> tuple[tuple[float, RadioFigures], ...]:
    """Return the share of each operator, and the radio with its timers."""
    found = []
    for share, *timers in link.operators:
        assert radio is not None, "operators without a radio"
        names = ("inactivity_s", "drx_after_s", "drx_cycle_s")
        own = {name: seconds for name, seconds in zip(names, timers, strict=True) if seconds is not None}
        found.append((share, replace(radio, **own)))
    return tuple(found)


@lru_cache(maxsize=8)
def _capacities(gaps: Gaps, up_bps: float, down_bps: float, seed: int, duration_s: float) -> tuple[Capacity, Capacity]:
    """Generate the capacities up and down. They are cached for the cases of a sweep because generation takes a third of a second."""
    down, up = with_gaps(gaps, down_bps, up_bps, seed, duration_s)
    return Capacity(up.times_s, up.rate_bps, duration_s), Capacity(down.times_s, down.rate_bps, duration_s)
