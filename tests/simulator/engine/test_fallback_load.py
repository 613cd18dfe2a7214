"""Fallbacks under random loads: parts add up, every request is answered, deadlines bound the latency."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cloud.rules import CloudRules, Crash
from simulator.engine.clock import Alarm
from simulator.engine.fallback import Fallback
from simulator.engine.impatience import DeadlineSession
from simulator.engine.workload import Requests
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink, Link
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity
from simulator.pricing.program import SessionProgram
from simulator.protocol.recording import AWAIT
from simulator.results.columns import PARTS
from tests.simulator.build import (
    Op,
    UniformCosts,
    compute,
    forward,
    program,
    reply,
    send,
    wait,
)
from tests.simulator.engine.fallback_cases import equal, run

# --- under any load


def session(chance: np.random.Generator) -> tuple[SessionProgram, dict[int, SessionProgram]]:
    """Return a session with optional and required awaits, and its branches."""
    count = int(chance.integers(1, 5))
    device: list[Op] = []
    unsent, open_calls = 0, list[int]()
    while unsent < count or open_calls:
        what = chance.choice(["pass", "send", "call", "wait"])
        if what == "pass":
            device.append(forward())
        if what in ("send", "call") and unsent < count:
            device.append(send(unsent, int(chance.integers(1, 5000))))
            open_calls.append(unsent)
            unsent += 1
        if what in ("wait", "call") and open_calls:
            number = open_calls.pop()
            if what == "call" or chance.random() < 0.5:
                device.append(wait(number, optional=chance.random() < 0.7))
    device.append(compute("image_decoder"))
    works = [forward("cloud", rows=1), forward("cloud"), compute("caption_encoder")]
    cloud = [[*chance.choice(works, chance.integers(0, 4)), reply(int(chance.integers(1, 3000)))] for _ in range(count)]  # type: ignore[arg-type]
    costs = (UniformCosts(0.0123), UniformCosts(pass_s=0.0101, row_s=0.00317))
    branches = {}
    for index, row in enumerate(device):
        if row["kind"] == AWAIT and row["what"]:
            sent = 1 + max(x["call"] for x in device[: index + 1])
            alone = [*device[: index + 1], *[forward()] * int(chance.integers(0, 6)), compute("image_decoder")]
            branches[row["call"]] = program(alone, cloud[:sent], True, *costs)
    return program(device, cloud, True, *costs), branches


@st.composite
def late_cases(draw: st.DrawFn) -> dict[str, Any]:
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    fleet = int(chance.integers(1, 5))
    sessions = [session(chance) for _ in range(chance.integers(1, 4))]
    n = int(chance.integers(1, 13))
    times = np.cumsum(chance.exponential(draw(st.sampled_from([0.01, 0.1, 1.0])), n))
    rate = float(chance.uniform(1e5, 1e7))
    radio = RadioFigures(0.1, 0.5, 0.05, 0.04, 0.3, 1000.0, 0.01, 2.0, 1.0, 0.5, 1e-6, 1e-6)
    tunnel: dict[str, Any] = {
        "up_bps": Capacity.with_outages(rate, 3.0, 1.5),
        "down_bps": Capacity.with_outages(rate, 3.0, 1.5),
    }
    changes: list[dict[str, Any]] = [
        {},
        tunnel,
        {**tunnel, "transport": TRANSPORTS["grpc"]},
        {**tunnel, "devices_per_cell": 2},
        {"radio": radio},
        {**tunnel, "radio": radio, "transport": TRANSPORTS["tcp"]},
        {"transport": TRANSPORTS["grpc"], "up_loss": 0.05, "down_loss": 0.05},
    ]
    network = Network(rate, 2 * rate, 0.02, 0.03, draw(st.sampled_from([0.0, 0.004])), 0.0)
    crashes = [Crash(0, float(at_s), 0.4) for at_s in chance.uniform(0.0, times[-1] + 0.3, draw(st.integers(0, 2)))]
    rules = CloudRules(
        max_sessions=draw(st.sampled_from([None, 1, 2])),
        max_waiting=draw(st.sampled_from([None, None, 0, 2])),
        crashes=tuple(crashes),
        kv_tokens=draw(st.sampled_from([math.inf, 1e6])),
        evict=draw(st.booleans()),
    )
    return {
        "programs": [whole for whole, _ in sessions],
        "branches": {
            (number, at): branch for number, (_, branches) in enumerate(sessions) for at, branch in branches.items()
        },
        "requests": Requests(times, chance.integers(0, fleet, n), chance.integers(0, len(sessions), n)),
        "rule": Fallback(draw(st.sampled_from([0.01, 0.05, 0.2, 1.0])), draw(st.integers(1, 4)), draw(st.booleans())),
        "network": replace(network, **draw(st.sampled_from(changes))),
        "devices": fleet,
        "replicas": draw(st.integers(1, 2)),
        "max_batch": draw(st.integers(1, 4)),
        "cloud": UniformCosts(pass_s=0.0101, row_s=0.00317),
        "rules": rules,
    }


@contextmanager
def counted() -> Iterator[tuple[dict[str, int], list[Any]]]:
    """Yield the payload bytes sent on the links, by direction, and the links."""
    sent: dict[str, int] = {"up": 0, "down": 0}
    links: list[Any] = []
    way: dict[int, str] = {}
    given = AccessNetwork.links

    def links_of(self: AccessNetwork, device: int) -> Any:
        up, down, radio = given(self, device)
        way[id(up)], way[id(down)] = "up", "down"
        links.extend([up, down])
        return up, down, radio

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccessNetwork, "links", links_of)
        for kind in (Link, ImpairedLink):
            whole = kind.send

            def send_counted(self: Any, now_s: float, size_bytes: int, whole: Any = whole) -> float:
                sent[way[id(self)]] += size_bytes
                return float(whole(self, now_s, size_bytes))

            patch.setattr(kind, "send", send_counted)
        yield sent, links


@given(late_cases())
def test_under_any_load_parts_add_up_and_every_request_is_answered(inputs: dict[str, Any]) -> None:
    with counted() as (sent, links):
        result = run(**inputs)
    columns = result.columns
    assert result.missing == ()
    assert result.unfinished == 0
    assert len(columns["request"]) + result.refused == len(inputs["requests"])
    assert np.all(np.abs(sum(columns[part] for part in PARTS) - columns["latency_s"]) <= 1e-9)
    assert all(np.all(columns[part] >= -1e-9) for part in PARTS)
    if not inputs["rules"].crashes and not result.refused:  # no column has the bytes that are sent again after a crash
        assert (columns["bytes_up"].sum(), columns["bytes_down"].sum()) == (sent["up"], sent["down"])
        assert columns["cloud_gpu_s"].sum() == pytest.approx(sum(result.cloud_busy_s))
    rule = inputs["rule"]
    assert np.all((columns["timed_out_call"] == -1) | rule.gives_up)
    assert rule.attempts > 1 or not columns["retries"].any()
    assert all(link.dropped_bits <= link.sent_bits * (1 + 1e-12) for link in links if isinstance(link, ImpairedLink))


@settings(max_examples=40, deadline=None)
@given(late_cases())
def test_a_deadline_that_is_never_reached_changes_nothing(inputs: dict[str, Any]) -> None:
    patient, bound = run(**{**inputs, "rule": None}), run(**{**inputs, "rule": Fallback(1e6)})
    assert equal(bound, patient)
    assert not bound.columns["retries"].any()


@settings(max_examples=40, deadline=None)
@given(late_cases())
def test_no_request_takes_longer_than_its_deadlines_allow(inputs: dict[str, Any]) -> None:
    """If every await is optional and requests do not overlap, a request computes and waits at most one deadline per await."""
    programs = [replace(whole, optional=frozenset(range(len(whole.calls)))) for whole in inputs["programs"]]
    requests = inputs["requests"]
    alone = Requests(np.arange(len(requests)) * 1e4, requests.device, requests.prompt)
    rule = Fallback(inputs["rule"].deadline_s)
    columns = run(**{**inputs, "programs": programs, "requests": alone, "rule": rule, "rules": CloudRules()}).columns
    awaits = np.array([sum(step[3] >= 0 for step in programs[prompt].steps) for prompt in columns["prompt"]])
    # A branch makes at most 5 more passes.
    computed_s = np.array([programs[prompt].device_s for prompt in columns["prompt"]]) + 5 * 0.0123
    assert np.all(columns["latency_s"] <= computed_s + awaits * rule.deadline_s + 1e-9)


def test_a_request_that_overtakes_another_is_taken_up_after_it() -> None:
    """If another session of the device opens a connection in between, request 2 can arrive (2 s) before request 1 (5 s)."""
    session = DeadlineSession.__new__(DeadlineSession)
    session.prepare(frozenset())
    session.landed, session.answered, session.awaiting = 1, 0, -1  # the cloud is still busy with call 0
    session.in_flight = {1: Alarm((), session, 5.0), 2: Alarm((), session, 2.0), 3: Alarm((), session, 9.0)}
    session.land(2.0)
    assert (session.landed, sorted(session.in_flight)) == (1, [1, 2, 3])
    session.land(5.0)
    assert (session.landed, sorted(session.in_flight)) == (3, [3])
    session.land_again(9.0, 3)
    assert (session.landed, sorted(session.in_flight)) == (4, [])
