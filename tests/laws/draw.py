"""Strategies that draw random session programs, networks and loads."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from simulator.engine.case import CaseResult
from simulator.network.access import Network
from simulator.network.cross import AQMS, GREEDY, Traffic
from simulator.network.handover import Handovers
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS, Transport
from simulator.network.wifi import Hop
from simulator.network.wire import Capacity
from simulator.pricing.program import SessionProgram
from tests.simulator import build
from tests.simulator.build import Op, UniformCosts

GAP_S = 1e4  # between the requests of a sequential run; longer than any request takes
LTE = RadioFigures(
    promotion_s=0.1,
    inactivity_s=10.0,
    drx_after_s=0.1,
    drx_cycle_s=0.3,
    paging_cycle_s=1.2,
    grant_bytes=500,
    grant_s=0.01,
)


def unwindowed(name: str) -> Transport:
    """Return a transport with its framing, handshake and timers, but no congestion window; timers need no first samples."""
    return replace(TRANSPORTS[name], initial_window=0, opening_samples=0)


@st.composite
def programs(draw: st.DrawFn, least_calls: int = 0, sizes: int = 60_000, **costs: Any) -> SessionProgram:
    """Draw a program with device passes, calls awaited at once or later, streamed replies, cloud passes and other work."""
    size = st.integers(1, sizes)
    device: list[Op] = []
    cloud: list[list[Op]] = []
    open_calls: list[int] = []
    for number in range(draw(st.integers(least_calls, 4))):
        device += [build.forward()] * draw(st.integers(0, 3))
        device.append(build.send(number, draw(size)))
        open_calls.append(number)
        if draw(st.booleans()):
            device += [build.forward()] * draw(st.integers(0, 1))
            device.append(build.wait(open_calls.pop(draw(st.integers(0, len(open_calls) - 1)))))
        group: list[Op] = [build.emit(draw(size))] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(0, 3))):
            group.append(draw(st.sampled_from([build.forward("cloud"), build.compute("caption_encoder")])))
            group += [build.emit(draw(size))] * draw(st.integers(0, 2))
        cloud.append([*group, build.reply(draw(size))])
    device += [build.wait(number) for number in open_calls]
    return build.program([*device, build.compute("image_decoder")], cloud, **costs)


rates = st.floats(1e4, 1e9)
delays = st.floats(1e-3, 1.0)
blocks = st.sampled_from([None, None, 0.3, 5.0])


@st.composite
def capacities(draw: st.DrawFn) -> float | Capacity:
    """Draw a rate in bit/s, constant or varying, never 0."""
    if draw(st.booleans()):
        return draw(rates)
    held = draw(st.lists(rates, min_size=2, max_size=4))
    return Capacity(np.arange(len(held)), held, len(held))


@st.composite
def networks(draw: st.DrawFn, loss: bool = True, jitter: bool = True) -> Network:
    """Draw a network on which the monotone laws hold for every request."""
    return Network(
        up_bps=draw(capacities()),
        down_bps=draw(capacities()),
        up_delay_s=draw(delays),
        down_delay_s=draw(delays),
        up_jitter_s=draw(st.floats(0.0, 0.05)) if jitter else 0.0,
        down_jitter_s=draw(st.floats(0.0, 0.05)) if jitter else 0.0,
        up_loss=draw(st.floats(0.0, 0.3)) if loss else 0.0,
        down_loss=draw(st.floats(0.0, 0.3)) if loss else 0.0,
        transport=unwindowed(draw(st.sampled_from(sorted(TRANSPORTS)))),
        block_s=draw(blocks),
    )


@st.composite
def any_networks(draw: st.DrawFn) -> Network:
    """Draw a network with any impairments."""
    loss = draw(st.floats(0.0, 0.4))
    return Network(
        up_bps=draw(capacities()),
        down_bps=draw(capacities()),
        up_delay_s=draw(delays),
        down_delay_s=draw(delays),
        up_jitter_s=draw(st.floats(1e-3, 0.05)),
        down_jitter_s=draw(st.floats(1e-3, 0.05)),
        distribution=draw(st.sampled_from(["normal", "lognormal", "gamma", "pareto"])),
        up_loss=loss,
        down_loss=loss,
        burst_packets=draw(st.sampled_from([None, 1.5, 8.0])),
        up_buffer_bytes=(buffer_bytes := draw(st.sampled_from([math.inf, 3e5]))),
        down_buffer_bytes=buffer_bytes,
        transport=replace(
            TRANSPORTS[(name := draw(st.sampled_from(sorted(TRANSPORTS))))],
            congestion=draw(st.sampled_from(["", "", "cubic", "bbr"])) if name != "ideal" else "",
            flow_bytes=draw(st.sampled_from([0, 0, 20_000])),
        ),
        idle_timeout_s=draw(st.sampled_from([math.inf, math.inf, 50.0])),
        radio=draw(st.sampled_from([None, LTE])),
        devices_per_cell=draw(st.sampled_from([1, 1, 3])),
        block_s=draw(blocks),
    )


@st.composite
def cells(draw: st.DrawFn) -> Network:
    """Draw a network with any impairments and one effect of a cell, a Wi-Fi hop, other traffic or a second path."""
    network = draw(any_networks())
    what = draw(st.sampled_from(["handover", "uplink", "paths", "fair", "wifi", "cross"]))
    if what == "wifi":
        return replace(network, wifi=Hop(draw(st.integers(0, 5)), draw(st.sampled_from([0.0, 0.1]))))
    if what == "cross":
        flow, aqm = (
            draw(st.sampled_from([GREEDY, Traffic(200.0, 300.0)])),
            draw(st.sampled_from(sorted(AQMS))),
        )
        wifi = draw(st.sampled_from([None, Hop(stations=2)]))
        return replace(
            network,
            up_cross=flow,
            down_cross=flow,
            aqm=AQMS[aqm],
            up_buffer_bytes=3e5,
            down_buffer_bytes=3e5,
            wifi=wifi,
        )
    if what == "handover":
        return replace(
            network, devices_per_cell=1, handovers=Handovers(draw(st.floats(0.2, 30.0)), draw(st.floats(0.01, 0.1)))
        )
    if what == "uplink":
        slotted = replace(LTE, sr_period_s=0.02, sr_grant_s=draw(st.floats(0.0, 0.02)), slot_s=0.005)
        return replace(
            network, radio=LTE, operators=((0.5, slotted), (0.5, replace(LTE, configured_s=0.01, inactivity_s=1.0)))
        )
    if what == "paths":
        return replace(network, also=(draw(any_networks()),))
    return replace(
        network,
        devices_per_cell=3,
        fair=True,
        fading_snr_db=draw(st.sampled_from([None, 5.0])),
        up_cross=draw(st.sampled_from([None, GREEDY, Traffic(200.0, 300.0)])),
        down_cross=draw(st.sampled_from([None, GREEDY])),
        up_buffer_bytes=math.inf,
        down_buffer_bytes=math.inf,
    )


def scaled(capacity: Any, factor: float) -> Any:
    """Return a capacity whose rate is `factor` times as high at every time."""
    if isinstance(capacity, Capacity):
        return Capacity(capacity.edges_s[:-1], np.array(capacity.rates_bps) * factor, capacity.duration_s)
    return capacity * factor


def sequential(sessions: list[SessionProgram], network: Network, seed: int) -> np.ndarray:
    """Return latency_s [n] of one request for each session, one after another, from two devices in turn."""
    requests = build.arrivals(*((n * GAP_S, n % 2, n) for n in range(len(sessions))))
    return build.case(sessions, requests, network=network, seed=seed).columns["latency_s"]


def at_once(
    sessions: list[SessionProgram], times_s: np.ndarray, network: Network, seed: int, **more: Any
) -> CaseResult:
    """Simulate requests at the given times, each from a device of its own, for the sessions in turn."""
    requests = build.arrivals(*((float(t), n, n % len(sessions)) for n, t in enumerate(times_s)))
    return build.case(sessions, requests, network=network, seed=seed, devices=len(times_s), **more)


def costs(pass_s: float, row_s: float = 0.0) -> UniformCosts:
    return UniformCosts(pass_s=pass_s, row_s=row_s, caption_encoder_s=pass_s, image_decoder_s=pass_s)
