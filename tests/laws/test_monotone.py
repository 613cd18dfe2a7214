"""Latency never falls when round trip, loss or load rise, or bandwidth falls. The package says where this holds in the mean only."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import Network
from simulator.network.transport import TRANSPORTS
from simulator.pricing.program import SessionProgram
from tests.laws import law
from tests.laws.draw import any_networks, at_once, networks, programs, scaled, sequential
from tests.simulator import build

SESSIONS = st.lists(programs(), min_size=1, max_size=4)
SEEDS = st.integers(0, 10_000)
ROUNDING_S = 1e-9  # times up to 4e4 s have an error of 1e-11 s each


def never_lower(before: np.ndarray, after: np.ndarray) -> None:
    assert np.all(after >= before - ROUNDING_S)
    assert after.mean() >= before.mean() - ROUNDING_S


def never_lower_in_the_mean(before: np.ndarray, after: np.ndarray) -> None:
    """Allow five standard errors: with independent draws, a false alarm in three million."""
    error_s = np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    assert after.mean() >= before.mean() - 5.0 * error_s - ROUNDING_S


# ---- every request of a sequential run


@law(40)
@given(SESSIONS, networks(), SEEDS, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_a_longer_round_trip(
    sessions: list[SessionProgram], network: Network, seed: int, up_s: float, down_s: float
) -> None:
    assert isinstance(network.up_delay_s, float)
    assert isinstance(network.down_delay_s, float)
    longer = replace(network, up_delay_s=network.up_delay_s + up_s, down_delay_s=network.down_delay_s + down_s)
    never_lower(sequential(sessions, network, seed), sequential(sessions, longer, seed))


@law(40)
@given(SESSIONS, networks(), SEEDS, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_less_bandwidth(sessions: list[SessionProgram], network: Network, seed: int, up: float, down: float) -> None:
    less = replace(network, up_bps=scaled(network.up_bps, up), down_bps=scaled(network.down_bps, down))
    never_lower(sequential(sessions, network, seed), sequential(sessions, less, seed))


@law(40)
@given(SESSIONS, networks(loss=False), SEEDS, st.floats(0.001, 0.4), st.floats(0.0, 0.4))
def test_loss_where_none_was(
    sessions: list[SessionProgram], network: Network, seed: int, up: float, down: float
) -> None:
    network = replace(network, distribution="normal", up_buffer_bytes=1e12)  # the general link in both simulations
    lossy = replace(network, up_loss=up, down_loss=down)
    never_lower(sequential(sessions, network, seed), sequential(sessions, lossy, seed))


# ---- every request under load


def one_call(rows: int) -> SessionProgram:
    """Return a program of one pass on the device and one in the cloud, which takes 1/64 s per row."""
    return build.program(
        [build.forward(), *build.call(0)], [[build.forward("cloud", rows=rows), build.reply()]], cloud_costs=QUEUE
    )


QUEUE = build.UniformCosts(pass_s=0.0, row_s=1 / 64)
ROWS = st.lists(st.integers(1, 8), min_size=2, max_size=12)
TIMES = st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12).map(sorted)


@law(40)
@given(ROWS, TIMES, st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 8)), max_size=8))
def test_more_requests_on_a_queue_of_single_calls(
    rows: list[int], times: list[float], more: list[tuple[float, int]]
) -> None:
    """First come, first served, one at a time (Lindley's recursion): an additional request delays those after it."""
    own = [(t, row, True) for t, row in zip(times, rows, strict=False)]
    both = sorted([*own, *((t, row, False) for t, row in more)], key=lambda one: (one[0], not one[2]))

    def latency(requests: list[tuple[float, int, bool]]) -> np.ndarray:
        sessions = [one_call(row) for _, row, _ in requests]
        at = np.array([t for t, _, _ in requests])
        found = at_once(sessions, at, build.NETWORK, 0, max_batch=1, cloud=QUEUE).columns["latency_s"]
        return found[[mine for _, _, mine in requests]]

    never_lower(latency(own), latency(both))


@law(40)
@given(ROWS, TIMES, st.floats(0.0, 1.0))
def test_requests_that_come_faster(rows: list[int], times: list[float], factor: float) -> None:
    sessions, at = [one_call(row) for row in rows], np.array(times)
    slow, fast = (
        at_once(sessions, t, build.NETWORK, 0, max_batch=1, cloud=QUEUE).columns["latency_s"] for t in (at, at * factor)
    )
    never_lower(slow, fast)


# ---- the mean


@law(4)
@given(programs(least_calls=1, sizes=8000), networks(), SEEDS, st.floats(0.0, 0.3), st.floats(1.3, 4.0))
def test_more_loss_in_the_mean(
    session: SessionProgram, network: Network, seed: int, loss: float, factor: float
) -> None:
    more = min(loss * factor + 0.01, 0.6)
    at = np.arange(150) * 1e5
    less_lossy, lossy = (
        at_once([session], at, replace(network, up_loss=p, down_loss=p), seed).columns["latency_s"]
        for p in (loss, more)
    )
    never_lower_in_the_mean(less_lossy, lossy)


@law(4)
@given(programs(least_calls=1, sizes=8000), any_networks(), SEEDS, st.floats(2.0, 5.0))
def test_a_longer_round_trip_under_everything_in_the_mean(
    session: SessionProgram, network: Network, seed: int, factor: float
) -> None:
    """Without windows that halve by time: if the timeout exceeds the pause between messages, even the mean may fall."""
    assert isinstance(network.up_delay_s, float)
    assert isinstance(network.down_delay_s, float)
    network = replace(network, transport=replace(network.transport, idle_restart=False))
    longer = replace(network, up_delay_s=network.up_delay_s * factor, down_delay_s=network.down_delay_s * factor)
    at = np.arange(90) * 1e5
    short, long = (at_once([session], at, n, seed).columns["latency_s"] for n in (network, longer))
    never_lower_in_the_mean(short, long)


@law(4)
@given(
    st.lists(programs(least_calls=1, sizes=2000), min_size=1, max_size=3),
    SEEDS,
    st.floats(0.5, 20.0),
    st.integers(1, 8),
    st.integers(1, 2),
)
def test_more_load_on_batches_in_the_mean(
    sessions: list[SessionProgram], seed: int, rate: float, max_batch: int, replicas: int
) -> None:
    at = np.cumsum(stream(seed, "law").standard_exponential(150)) / rate
    calm, busy = (
        at_once(sessions, t, build.NETWORK, seed, max_batch=max_batch, replicas=replicas).columns["latency_s"]
        for t in (at, at / 3.0)
    )
    never_lower_in_the_mean(calm, busy)


def test_a_window_is_why_some_laws_hold_in_the_mean_only() -> None:
    """At a round trip just long enough that the window is not halved, there are fewer flights and the transfer ends earlier."""
    session = build.program([*build.call(0, 80_000), *build.call(1, 80_000)], [[build.reply()], [build.reply()]])
    pause = build.program([build.forward()] * 56 + [*build.call(0, 80_000)], [[build.reply()]])
    requests = build.arrivals((0.0, 0, 0), (2.0, 0, 1))

    def second(rtt_s: float) -> float:
        network = Network(1e9, 1e9, rtt_s / 2, rtt_s / 2, transport=TRANSPORTS["tcp"])
        return float(build.case([session, pause], requests, network=network).columns["latency_s"][1])

    # The timeout is rtt + 0.2 s. The pause between the last message of the first request and the message of the second is 2.21875 s
    # minus the latency of the first.
    latencies = np.array([second(rtt_s) for rtt_s in np.arange(0.3, 0.7, 0.001)])
    assert np.any(np.diff(latencies) < -0.1)
