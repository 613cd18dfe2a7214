"""Parts add up to the latency, which for one session alone matches a hand calculation; bytes, GPU time and energy are conserved; serial
and parallel runs give the same bytes."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from models.methods import speculative
from models.pair import Pair, load_pair
from models.recorder import Recorder
from simulator.core.rng import stream
from simulator.experiment.simulating import SimulationOptions
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.pricing.costs import Pricing
from simulator.pricing.program import SessionProgram, compile_session
from simulator.results.columns import PARTS
from tests.laws import law
from tests.laws.draw import GAP_S, any_networks, at_once, cells, costs, delays, programs, rates
from tests.models.test_methods import spec
from tests.simulator import build

SEEDS = st.integers(0, 10_000)
ULP = 2.0**-52


# ---- parts


def parts_sum(columns: dict[str, np.ndarray]) -> None:
    """Assert that the parts add up to the latency, to 1e-9 of it plus rounding: a sum of n times near t has an error of n t 2**-52."""
    total = sum(columns[name] for name in PARTS)
    error_s = np.abs(total - columns["latency_s"])
    assert np.all(error_s <= 1e-9 * columns["latency_s"] + 200 * ULP * np.abs(columns["done_s"]))
    for name in PARTS:
        assert np.all(columns[name] >= -200 * ULP * np.abs(columns["done_s"])), name


@law(40)
@given(
    st.lists(programs(), min_size=1, max_size=3),
    any_networks(),
    SEEDS,
    st.floats(0.0, 40.0),
    st.floats(0.0, 1e9),
    st.integers(1, 4),
)
def test_parts_sum_to_the_latency(
    sessions: list[SessionProgram], network: Network, seed: int, spread_s: float, start_s: float, max_batch: int
) -> None:
    at = start_s + np.sort(stream(seed, "law").random(10)) * spread_s
    parts_sum(at_once(sessions, at, network, seed, max_batch=max_batch).columns)


@law(40)
@given(st.lists(programs(), min_size=1, max_size=3), cells(), SEEDS, st.floats(0.0, 20.0), st.floats(0.0, 1e6))
def test_parts_sum_to_the_latency_in_a_cell(
    sessions: list[SessionProgram], network: Network, seed: int, spread_s: float, start_s: float
) -> None:
    at = start_s + np.sort(stream(seed, "law").random(7)) * spread_s
    parts_sum(at_once(sessions, at, network, seed).columns)


@law(40)
@given(
    st.data(),
    *[st.floats(-12.0, 6.0)] * 2,
    *[st.floats(-3.0, 15.0)] * 2,
    *[st.floats(-12.0, 6.0)] * 2,
    st.sampled_from(["ideal", "tcp"]),
)
def test_parts_sum_at_extreme_magnitudes(
    data: st.DataObject,
    device: float,
    cloud: float,
    up: float,
    down: float,
    delay_up: float,
    delay_down: float,
    name: str,
) -> None:
    """Passes from 1 ps to 11 days, rates from a bit in a quarter of an hour to a Pbit/s."""
    own, its = costs(10.0**device), costs(10.0**cloud)
    session = data.draw(programs(device_costs=own, cloud_costs=its))
    network = Network(10.0**up, 10.0**down, 10.0**delay_up, 10.0**delay_down, transport=TRANSPORTS[name])
    parts_sum(at_once([session], np.zeros(3), network, 0, device=own, cloud=its).columns)


# ---- one device alone


def by_hand(session: SessionProgram, network: Network) -> float:
    """Return the latency of a session whose device, links and replica are idle: the longest chain of dependent steps."""
    up_bps, down_bps, up_s, down_s = (
        float(x)  # type: ignore[arg-type]
        for x in (network.up_bps, network.down_bps, network.up_delay_s, network.down_delay_s)
    )
    now_s = up_free_s = down_free_s = cloud_free_s = 0.0
    replies: list[float] = []

    def down(ready_s: float, size_bytes: int) -> float:
        nonlocal down_free_s
        down_free_s = max(ready_s, down_free_s) + 8.0 * size_bytes / down_bps
        return down_free_s + down_s

    for seconds, _, sent, awaited in session.steps:
        now_s += seconds
        if sent >= 0:
            request_bytes, lead, items, (reply_bytes, _) = session.calls[sent]
            up_free_s = max(now_s, up_free_s) + 8.0 * request_bytes / up_bps
            cloud_free_s = max(cloud_free_s, up_free_s + up_s)
            for size_bytes, _ in lead:
                down(cloud_free_s, size_bytes)
            for item in items:
                cloud_free_s += item[5]
                for size_bytes, _ in item[7]:
                    down(cloud_free_s, size_bytes)
            replies.append(down(cloud_free_s, reply_bytes))
        if awaited >= 0:
            now_s = max(now_s, replies[awaited])
    return now_s


@law(60)
@given(st.lists(programs(), min_size=1, max_size=3), rates, rates, delays, delays, st.booleans())
def test_a_device_alone_is_the_sum_by_hand(
    sessions: list[SessionProgram], up_bps: float, down_bps: float, up_s: float, down_s: float, general: bool
) -> None:
    """With both link implementations: the fast one and the general one."""
    network = Network(up_bps, down_bps, up_s, down_s, up_buffer_bytes=1e12 if general else np.inf)
    requests = build.arrivals(*((n * GAP_S, 0, n) for n in range(len(sessions))))
    found = build.case(sessions, requests, network=network).columns["latency_s"]
    expected = [by_hand(session, network) for session in sessions]
    assert found == pytest.approx(expected, rel=1e-9, abs=8 * ULP * len(sessions) * GAP_S)


# ---- acceptance towards 0


@pytest.fixture(scope="module")
def pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder)


@pytest.mark.parametrize("gamma", [1, 3])
def test_with_no_draft_accepted_every_round_costs_its_drafts_a_round_trip_and_a_pass(pair: Pair, gamma: int) -> None:
    """Latency = start + sum over the T rounds of (drafts * pass + RTT + pass) + image decoder, at any costs and round trip."""
    settings = {"gamma": gamma, "residual": "all"}
    with mock.patch.object(speculative, "accept", lambda p, q, r: np.zeros(np.shape(p)[:-1], int)):
        ((_, recording),) = Recorder(pair, 1).record([spec(pair, "speculative", settings)])
    count = len(recording.tokens)
    drafts = [min(gamma, count - first - 1) for first in range(count)]

    @law(10)
    @given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), delays, delays)
    def holds(draft_s: float, pass_s: float, up_s: float, down_s: float) -> None:
        device, cloud = costs(draft_s), costs(pass_s)
        session = compile_session(recording, device, cloud, Pricing(build.WIDTHS.caption_slots, recording.widths))
        network = Network(np.inf, np.inf, up_s, down_s)
        found = build.case([session], build.arrivals((0.0, 0, 0)), network=network, device=device, cloud=cloud)
        rounds_s = sum(n * draft_s + up_s + down_s + pass_s for n in drafts)
        start_s = up_s + down_s + pass_s  # the caption encoder's `pass_s`
        assert found.columns["latency_s"][0] == pytest.approx(start_s + rounds_s + draft_s, rel=1e-9)

    holds()


# ---- conservation


@law(40)
@given(
    st.lists(programs(), min_size=1, max_size=3),
    any_networks(),
    SEEDS,
    st.floats(0.0, 10.0),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_bytes_gpu_seconds_and_energy_conserve(
    sessions: list[SessionProgram], network: Network, seed: int, spread_s: float, max_batch: int, replicas: int
) -> None:
    """Payload is what the programs send, whatever is lost and retransmitted; GPU time of the requests is that of the replicas."""
    network = replace(network, radio=None)
    at = np.sort(stream(seed, "law").random(10)) * spread_s
    result = at_once(sessions, at, network, seed, max_batch=max_batch, replicas=replicas)
    asked = [sessions[n % len(sessions)] for n in range(len(at))]
    columns = result.columns
    assert columns["bytes_up"].tolist() == [sum(call[0] for call in one.calls) for one in asked]
    assert columns["bytes_down"].tolist() == [
        sum(
            size
            for call in one.calls
            for size, _ in (*call[1], *(part for item in call[2] for part in item[7]), call[3])
        )
        for one in asked
    ]
    assert columns["cloud_gpu_s"].sum() == pytest.approx(sum(result.cloud_busy_s), rel=1e-9, abs=1e-12)
    seconds = np.array([sum(step[0] for step in one.steps) for one in asked])
    assert columns["device_energy_j"] == pytest.approx(build.DEVICE_COSTS.power_w * seconds, rel=1e-9)


@law(40)
@given(any_networks(), SEEDS, st.lists(st.integers(1, 60_000), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_a_link_delivers_every_bit_once_and_counts_repetitions_apart(
    network: Network, seed: int, sizes: list[int], gap_s: float
) -> None:
    network = replace(network, radio=None, up_buffer_bytes=1e5, down_buffer_bytes=1e5)
    link, _, _ = AccessNetwork(network, seed, [], []).links(0)
    assert isinstance(link, ImpairedLink)
    arrivals = [link.send(n * gap_s, size) for n, size in enumerate(sizes)]
    framed = sum(8 * network.transport.frame(size)[0] for size in sizes)
    assert link.sent_bits - link.dropped_bits == pytest.approx(framed, rel=1e-9)
    assert link.dropped_bits >= 0.0
    assert arrivals == sorted(arrivals)  # one stream, in order


# ---- serial and parallel

Runs = Callable[[dict[str, Any], int], str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path, run_undrawn: Callable[..., Any]) -> Runs:
    folder = tmp_path_factory.mktemp("jobs")

    def digest(data: dict[str, Any], jobs: int) -> str:
        path = folder / "scenario.yaml"
        path.write_text(yaml.safe_dump({"pair": str(tiny_pair_folder), **data}))
        out = folder / "out"
        run_undrawn(path, out, options=SimulationOptions(jobs))
        names = ("requests.parquet", "summary.csv", "queue.parquet", "timeline.json.gz")
        return hashlib.sha256(b"".join((out / name).read_bytes() for name in names)).hexdigest()

    return digest


@law(2, shrink=False)
@given(
    seed=SEEDS,
    methods=st.lists(
        st.sampled_from(["base", "device-only", "speculative", "code", "ciar"]), min_size=1, max_size=2, unique=True
    ),
    rtts=st.lists(st.integers(1, 300), min_size=2, max_size=3, unique=True),
    loss_pct=st.integers(0, 30),
    devices=st.integers(1, 4),
    transport=st.sampled_from(["ideal", "tcp", "quic"]),
)
def test_parallel_runs_give_the_same_bytes_as_serial_ones(
    run: Runs, seed: int, methods: list[str], rtts: list[int], loss_pct: int, devices: int, transport: str
) -> None:
    data = {
        "name": "jobs",
        "seed": seed,
        "prompts": {"source": "scenes", "count": 2},
        "methods": methods,
        "compute": {
            "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
            "cloud": {"model": "pair", "hardware": "a100"},
        },
        "network": {
            "rtt_ms": 40,
            "up_mbps": 5,
            "down_mbps": 20,
            "jitter_ms": 2,
            "loss_pct": loss_pct,
            "transport": transport,
        },
        "workload": {"devices": devices, "arrivals": {"poisson_per_s": 10}, "duration_s": 1},
        "sweep": {"network.rtt_ms": rtts},
    }
    assert run(data, 1) == run(data, 2)
