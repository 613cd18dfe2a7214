"""A fair cell: its users share the rate, with the scheduling gain of fading channels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import exp1

from simulator.core.rng import stream
from simulator.engine.clock import Clock
from simulator.engine.workload import Requests
from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import GREEDY, Traffic
from simulator.network.fair import FairCell, FairLink, Other, gain
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, Wire
from simulator.results.columns import PARTS
from tests.simulator import build

RATE = 8192.0  # 1024 B/s
ONE_SEGMENT = replace(TRANSPORTS["tcp"], flow_bytes=1448, handshake_rtts=0)
Message = tuple[float, int, float]  # time in s, user, bits


def ends(
    messages: list[Message], snr_db: float | None = None, wire: Wire | None = None, other: Other | None = None
) -> list[float]:
    """Return the time at which each message has been sent."""
    clock = Clock()
    cell = FairCell(wire or Wire(RATE), clock.at, snr_db, other)
    found = [math.nan] * len(messages)

    def start(number: int) -> None:
        at, user, bits = messages[number]
        cell.add(at, at, user, bits, lambda end_s: found.__setitem__(number, end_s))

    for number, (at, _, _) in enumerate(messages):
        clock.at(at, (lambda alarm: start(alarm.subject),), number)
    clock.run()
    assert cell.users == 0
    return found


@pytest.mark.parametrize("users", [1, 2, 5, 20])
def test_equal_users_get_equal_shares(users: int) -> None:
    """Each of n users gets rate / n, and rate * gain(n) / n with fading."""
    assert ends([(1.0, user, RATE) for user in range(users)]) == pytest.approx([1.0 + users] * users)
    fading = ends([(1.0, user, RATE) for user in range(users)], 10.0)
    assert fading == pytest.approx([1.0 + users / gain(users, 10.0)] * users, rel=1e-9)


def test_shares_change_as_users_come_and_go() -> None:
    """One user alone for a second, two users for two seconds, then the second alone. A user's own messages queue."""
    assert ends([(0.0, 0, 2 * RATE), (1.0, 1, 1.5 * RATE)]) == [3.0, 3.5]
    assert ends([(0.0, 0, RATE), (0.0, 0, RATE), (0.0, 1, RATE)]) == [2.0, 3.0, 2.0]
    assert ends([(0.0, 0, RATE), (5.0, 1, RATE)]) == [1.0, 6.0]


def test_a_varying_rate_is_shared_too() -> None:
    wire = Capacity([0.0, 1.0], [RATE, 0.0], 2.0).wire(0.0, True)
    assert ends([(0.0, 0, RATE), (0.0, 1, RATE)], wire=wire) == [3.0, 3.0]


@pytest.mark.parametrize("snr_db", [None, 10.0])
def test_other_traffic_is_one_more_user(snr_db: float | None) -> None:
    """A greedy flow is a user with an endless message, one with pauses is there in its busy turns."""
    messages = [(0.0, 0, 2 * RATE), (1.0, 1, RATE), (1.5, 0, 300.0), (9.0, 1, 100.0)]
    greedy = Other(GREEDY, stream(0, "turns"))
    assert ends(messages, snr_db, other=greedy) == pytest.approx(ends([*messages, (0.0, 9, 1e3 * RATE)], snr_db)[:4])
    turns = Other(Traffic(1.0, 1.0), stream(0, "turns"))
    turns._begins_busy, turns._ends_s = True, [1.0, 2.0, 9.0]
    both = gain(2, snr_db) / 2
    assert ends([(0.0, 0, (both + 0.5) * RATE), (2.5, 0, RATE)], snr_db, other=turns) == pytest.approx(
        [1.5, 2.5 + 1 / both]
    )


def test_other_traffic_is_busy_for_its_share_of_the_time() -> None:
    turns = Other(Traffic(2.0, 6.0), stream(0, "turns"))
    late = turns.at(40_000.0)  # in any order
    assert np.mean([turns.at(float(at))[0] for at in range(40_000)]) == pytest.approx(0.25, abs=0.02)
    assert turns.at(40_000.0) == late
    assert np.diff(turns._ends_s).mean() == pytest.approx(4.0, rel=0.05)
    with pytest.raises(ValueError, match="times that do not depend on its rate"):
        Other(Traffic.video(1e7), stream(0, "turns"))


def test_the_gain_is_the_known_sum() -> None:
    """At low SNR it is the harmonic numbers, otherwise exponential integrals by inclusion and exclusion."""
    harmonic = np.cumsum(1.0 / np.arange(1, 13))
    assert [gain(n, -40.0) for n in range(1, 13)] == pytest.approx(harmonic.tolist(), rel=0.01)
    for snr_db in (0.0, 10.0, 20.0):
        snr = 10.0 ** (snr_db / 10.0)
        best = [
            sum((-1) ** (k + 1) * math.comb(n, k) * math.exp(k / snr) * exp1(k / snr) for k in range(1, n + 1))
            for n in range(1, 13)
        ]
        assert [gain(n, snr_db) for n in range(1, 13)] == pytest.approx(
            [float(one / best[0]) for one in best], rel=1e-3
        )
    assert [gain(n) for n in range(1, 4)] == [1.0] * 3
    assert gain(10**6, 10.0) > gain(100, 10.0)  # a cell of any size


MESSAGES = st.lists(
    st.tuples(st.floats(0.0, 10.0), st.integers(0, 4), st.floats(1.0, 4 * RATE)), min_size=1, max_size=12
).map(sorted)


@given(MESSAGES, st.floats(0.0, 10.0), st.floats(1.0, 4 * RATE))
def test_work_is_conserved_order_kept_and_more_traffic_never_makes_a_message_earlier(
    messages: list[Message], at: float, bits: float
) -> None:
    found = ends(messages)
    free_s = 0.0
    for when, _, size in messages:  # busy as long as first come, first served
        free_s = max(free_s, when) + size / RATE
    assert max(found) == pytest.approx(free_s)
    for user in range(5):
        own = [end for end, (_, whose, _) in zip(found, messages, strict=True) if whose == user]
        assert own == sorted(own)
    assert all(end >= when + size / RATE - 1e-6 for end, (when, _, size) in zip(found, messages, strict=True))
    slower = [ends(messages, other=Other(flow, stream(1, "turns"))) for flow in (Traffic(1.0, 2.0), GREEDY)]
    for less, more in zip([found, slower[0]], slower, strict=True):
        assert all(late >= end - 1e-6 for late, end in zip(more, less, strict=True))
    beside = sorted([*messages, (at, 9, bits)])
    place = next(index for index, message in enumerate(beside) if message[1] == 9)
    more = ends(beside)
    del more[place]
    assert all(late >= end - 1e-6 for late, end in zip(more, found, strict=True))


def delivered(network: Network, sent: list[tuple[float, int]]) -> tuple[list[float], FairLink]:
    """Return the arrivals of device 0's uplink messages, and the link."""
    clock = Clock()
    up = AccessNetwork(network, 0, [0.0], [0.0], at=clock.at).links(0)[0]
    assert isinstance(up, FairLink)
    found: list[float] = []
    for at, size in sent:
        clock.at(at, (lambda alarm: up.submit(alarm.time_s, alarm.subject, found.append),), size)
    clock.run()
    return found, up


def first_come(network: Network, sent: list[tuple[float, int]]) -> list[float]:
    up = AccessNetwork(network, 0, [0.0], [0.0]).links(0)[0]
    return [up.send(at, size) for at, size in sent]


@pytest.mark.parametrize(
    "network",
    [
        Network(RATE, RATE, 0.5, 0.5, 0.25, 0.25, devices_per_cell=2),
        Network(RATE, RATE, 0.5, 0.5, up_loss=0.3, down_loss=0.3, transport=TRANSPORTS["tcp"], devices_per_cell=2),
        Network(1e6, 1e6, 0.5, 0.5, transport=TRANSPORTS["grpc"], devices_per_cell=2),
        Network(
            RATE,
            RATE,
            0.0,
            0.0,
            devices_per_cell=2,
            radio=RadioFigures(promotion_s=1.0, inactivity_s=3.0, drx_after_s=0.5, drx_cycle_s=0.5, sr_period_s=0.25),
        ),
        Network(  # the second message takes two more round trips, during which the radio is in use
            1e6,
            1e6,
            0.5,
            0.5,
            transport=ONE_SEGMENT,
            devices_per_cell=2,
            radio=RadioFigures(promotion_s=1.0, inactivity_s=14.0),
        ),
    ],
)
def test_a_device_alone_in_its_cell_does_not_notice_who_schedules_it(network: Network) -> None:
    sent = [(0.0, 400), (5.0, 4000), (20.0, 10), (30.0, 2000)]
    found, link = delivered(replace(network, fair=True), sent)
    assert found == pytest.approx(first_come(network, sent))
    queued = sorted([*sent, (5.5, 10), (5.6, 3000)])  # behind a message that waits for radio, connection or window
    assert first_come(network, queued) == pytest.approx(first_come(replace(network, devices_per_cell=1), queued))
    payload = sum(8.0 * network.transport.frame(size)[0] for _, size in sent)
    assert link.sent_bits - link.dropped_bits == pytest.approx(payload)


def test_a_message_waits_for_the_end_of_an_outage_as_without_a_cell() -> None:
    network = Network(Capacity.with_outages(RATE, 9.0, 3.0), RATE, 0.01, 0.01)
    sent = [(0.0, 400), (5.0, 4000), (5.5, 10), (6.0, 10), (20.0, 10), (30.0, 2000)]
    up = AccessNetwork(network, 0, [0.0], [0.0]).links(0)[0]
    assert delivered(replace(network, fair=True), sent)[0] == pytest.approx([up.send(at, size) for at, size in sent])


def test_messages_of_a_waking_radio_keep_their_order() -> None:
    radio = RadioFigures(promotion_s=1.0, inactivity_s=3.0)
    network = Network(RATE, RATE, 0.0, 0.0, devices_per_cell=2, radio=radio, fair=True)
    assert delivered(network, [(0.0, 1024), (0.5, 128)])[0] == [2.0, 2.125]


def run(network: Network, gap_s: float) -> dict[str, np.ndarray]:
    program = build.program(
        [build.forward(), *build.call(0, 512), build.forward(), *build.call(1, 1024)],
        [[build.emit(2048), build.forward("cloud"), build.reply(256)], [build.forward("cloud"), build.reply(256)]],
    )
    n = 6
    requests = Requests(gap_s * np.arange(n, dtype=np.float64), np.arange(n) % 3, np.zeros(n, np.int64))
    return build.case([program], requests, network=network, devices=3).columns


@pytest.mark.parametrize("gap_s", [64.0, 0.0])
def test_sessions_book_all_of_their_time(gap_s: float) -> None:
    """Sessions alone take as long as first come, first served. Sessions together slow one another down."""
    network = Network(RATE, RATE, 0.125, 0.125, devices_per_cell=3)
    fair, turns = run(replace(network, fair=True), gap_s), run(network, gap_s)
    assert sum(fair[name] for name in PARTS) == pytest.approx(fair["latency_s"])
    assert (fair["wait_s"] == 0.0).all()
    assert set(fair) == set(turns)
    if gap_s:
        for name, values in turns.items():
            assert fair[name] == pytest.approx(values), name
    else:
        assert fair["first_token_s"].min() > turns["first_token_s"].min()
        assert fair["latency_s"].max() <= 1.5 * turns["latency_s"].max()


def test_a_fair_cell_needs_what_it_needs() -> None:
    network = Network(RATE, RATE, 0.0, 0.0, devices_per_cell=2, fair=True)
    with pytest.raises(ValueError, match="fair cell needs a clock"):
        AccessNetwork(network, 0, [], [])
    with pytest.raises(RuntimeError, match="submit"):
        AccessNetwork(network, 0, [], [], at=Clock().at).links(0)[0].send(0.0, 1)
