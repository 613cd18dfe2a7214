"""The regime map: break-evens against closed forms on coarse and fine grids, and the quality floor."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import ciar_sim
from ciar_sim.cli.main import main
from ciar_sim.decide.bench import Measured
from ciar_sim.decide.break_even import Line, break_evens
from ciar_sim.decide.regime import axis, in_words, why_nobody
from simulator.core.errors import CiarSimError
from simulator.network.access import Network
from tests.simulator.build import UniformCosts, arrivals, base, call, case, forward, program, reply


@pytest.mark.parametrize(
    ("text", "values", "log"),
    [
        ("a.b=1:100:3:log", (1.0, 10.0, 100.0), True),
        ("a.b=0:10:3", (0.0, 5.0, 10.0), False),
        ("a.b=5, 1,3", (1.0, 3.0, 5.0), False),
        ("workload.rate=1,2", (1.0, 2.0), False),
    ],
)
def test_axes(text: str, values: tuple[float, ...], log: bool) -> None:
    found = axis("--x", text, 9)
    assert found.values == pytest.approx(values)
    assert found.log == log
    assert found.path in ("a.b", "workload.arrivals.poisson_per_s")


@pytest.mark.parametrize(
    "text", ["a.b", "a.b=", "a.b=x,y", "a.b=5:1", "a.b=0:5:log", "a.b=1:5:1", "=1:2", "a=nan", "a=true,1"]
)
def test_an_axis_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CiarSimError, match="--x"):
        axis("--x", text, 9)


def line(x: list[float], latencies: dict[str, list[list[float]]]) -> Line:
    """Return a line of the map from the latencies of each request at each x, by candidate."""

    def cell(values: list[float]) -> Measured:
        return Measured(None, pd.Series(values), {}, 0, 0, 0, 0)  # type: ignore[arg-type]

    cells = {name: [cell(values) for values in rows] for name, rows in latencies.items()}
    return Line(None, np.array(x), cells, {name: np.ones(len(x), bool) for name in cells})


def test_a_third_method_that_wins_between_two_grid_points_is_found() -> None:
    """a = x, b = 4 - x / 2, c = 2 everywhere: c is lowest from 2 to 4, and the grid has no point there."""
    found = break_evens(
        line([0, 6], {"a": [[0.0, 0.0], [6.0, 6.0]], "b": [[4.0, 4.0], [1.0, 1.0]], "c": [[2.0, 2.0], [2.0, 2.0]]})
    )
    assert [(one.below, one.above) for one in found] == [("a", "c"), ("c", "b")]
    assert [one.at for one in found] == pytest.approx([2.0, 4.0])


def test_a_cell_without_a_winner_says_why() -> None:
    """Base's own loss is 0, so the floor is never the reason."""
    found = line([0, 4], {"base": [[5.0, 5.0], [5.0, 5.0]], "ciar": [[2.0, 2.0], [2.0, 2.0]]})
    failed = replace(found, cells={name: [None, cells[1]] for name, cells in found.cells.items()})
    reason = why_nobody(failed, failed.winners())
    assert in_words(failed.winners(), break_evens(failed), "network.rtt_ms", reason) == (
        "below RTT 2.00 ms (0 to 4.00) none (base failed), above it ciar"
    )
    assert in_words(["", ""], [], "network.rtt_ms", reason) == "base failed throughout, so no method wins"
    refused = line([0, 4], {"base": [[], []], "ciar": [[], []]})
    assert why_nobody(refused, refused.winners()) == "no request was answered"


def test_the_interval_of_a_break_even_is_that_of_the_difference_over_its_slope() -> None:
    """b - a is 3 - x with a spread of +-1 over two requests: the interval is 3 +- the half-width of Student's interval."""
    found = break_evens(line([0, 4], {"a": [[0.0, 0.0], [4.0, 4.0]], "b": [[2.0, 4.0], [2.0, 4.0]]}))
    assert len(found) == 1
    half = 12.706204736432095 * math.sqrt(2.0) / math.sqrt(2.0)  # t(1 df) s / sqrt(n)
    assert found[0].at == pytest.approx(3.0)
    assert found[0].high - found[0].at == pytest.approx(half)
    assert found[0].at - found[0].low == pytest.approx(half)


def test_where_latencies_bend_the_interval_holds_the_true_break_even() -> None:
    """a is constant, b = 1 / (1 - x), as for a queue. They are equal at 0.8; linear interpolation from 0.5 to 0.95 is far off."""
    grid = [0.0, 0.25, 0.5, 0.95]
    curves = {"a": [[5.0, 5.0]] * 4, "b": [[1 / (1 - x)] * 2 for x in grid]}
    (bent,) = break_evens(line(grid, curves))
    assert bent.at < 0.6
    assert bent.low == pytest.approx(bent.at)
    assert 0.8 <= bent.high <= 0.95
    (straight,) = break_evens(line([1, 2, 3, 4], {"a": [[x, x] for x in (1.0, 2.0, 3.0, 4.0)], "b": [[2.5, 2.5]] * 4}))
    assert straight.at == straight.low == straight.high == pytest.approx(2.5)


# ---- arXiv 2606.25091: a lossless method with one round trip per round is faster than the cloud alone only below a certain RTT


def rounds_program(accepted: list[int], drafts: int, costs: dict[str, Any]) -> Any:
    """Return a program with a round per entry: `drafts` passes on the device, a call with one cloud pass, its reply."""
    device = [op for number in range(len(accepted)) for op in [*[forward()] * drafts, *call(number, 1)]]
    return program(device, [[forward("cloud"), reply(1)] for _ in accepted], **costs)


@pytest.mark.parametrize(("acceptance", "window_ms"), [(0.5, 18), (0.6, 28), (0.7, 46), (0.8, 82)])
def test_the_window_of_round_trip_times_of_speculation(acceptance: float, window_ms: float) -> None:
    """Break-even RTT = max over K of E t_v - K t_d - t_v, with E = (1 - a^(K+1)) / (1 - a) tokens per round.

    t_v is 35.5 ms, t_d 4.5 ms. The number of rounds is drawn from accepted lengths with that mean; the break-even is interpolated on a grid
    of round trips, as in `regime`.
    """
    verify_s, draft_s, tokens = 0.0355, 0.0045, 400_000

    def gain(drafts: int) -> float:
        expected = (1 - acceptance ** (drafts + 1)) / (1 - acceptance)
        return expected * verify_s - drafts * draft_s - verify_s

    drafts = max(range(1, 40), key=gain)
    assert 1e3 * gain(drafts) == pytest.approx(window_ms, abs=0.6)  # the published figures are rounded to 1 ms

    rng = np.random.default_rng(1)
    accepted = np.minimum(rng.geometric(1 - acceptance, 300_000) - 1, drafts)
    rounds = int(np.searchsorted(np.cumsum(accepted + 1), tokens)) + 1
    costs = {
        "device_costs": UniformCosts(pass_s=draft_s, image_decoder_s=0.0, caption_encoder_s=0.0),
        "cloud_costs": UniformCosts(pass_s=verify_s, image_decoder_s=0.0, caption_encoder_s=0.0),
    }
    scale = 200  # simulate one token in 200 on both sides: the time per token does not depend on their number
    programs = {
        "speculative": rounds_program(list(range(rounds // scale)), drafts, costs),
        "base": base(tokens // scale, **costs),
    }
    grid_ms = [1.0, 4.0, 16.0, 64.0, 256.0]
    latencies: dict[str, list[list[float]]] = {name: [] for name in programs}
    for rtt_ms in grid_ms:
        link = Network(up_bps=1e12, down_bps=1e12, up_delay_s=rtt_ms / 2e3, down_delay_s=rtt_ms / 2e3)
        for name, one in programs.items():
            side = {"device": costs["device_costs"], "cloud": costs["cloud_costs"]}
            result = case([one], arrivals((0.0, 0, 0)), network=link, **side)
            latencies[name].append([float(result.columns["latency_s"][0])] * 2)
    found = break_evens(line(grid_ms, latencies))
    assert [(one.below, one.above) for one in found] == [("speculative", "base")]
    assert found[0].at == pytest.approx(1e3 * gain(drafts), rel=0.02)


FAST_LINK = {"rtt_ms": 1, "up_mbps": 1e5, "down_mbps": 1e5}
NO_FLOOR = 1e9  # the tiny pair's images are noise


@pytest.fixture
def quick_device(scenario: dict[str, Any]) -> dict[str, Any]:
    """A scenario whose device has no launch overhead, so that drafting pays at short round trips."""
    device = {"model": "pair", "hardware": "snapdragon-8-gen-3", "runtime": "cuda-graphs"}
    compute = {**scenario["compute"], "device": device}
    return {**scenario, "methods": ["base", "speculative"], "network": FAST_LINK, "compute": compute}


def test_the_break_even_is_that_of_the_closed_form(quick_device: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    """Latency = calls * RTT + computing, on a lossless link with negligible transmission time; both terms are means of a run."""
    rows = ciar_sim.run(quick_device, out=tmp_path / "run", cache=cache).summary.set_index("method")
    computing_s = rows[["encode_s", "device_compute_s", "cloud_compute_s", "image_decode_s"]].sum(axis=1)
    more_calls = rows.loc["speculative", "calls"] - rows.loc["base", "calls"]
    expected_ms = 1e3 * float((computing_s["base"] - computing_s["speculative"]) / more_calls)
    assert expected_ms > 0
    for grid in ("network.rtt_ms=0.1:30:3:log", "network.rtt_ms=0.1:30:29:log"):
        found = ciar_sim.regime(quick_device, grid, max_loss_pct=NO_FLOOR, cache=cache)
        assert list(found.more["break_evens"][["below", "above"]].itertuples(index=False, name=None)) == [
            ("speculative", "base")
        ]
        row = found.more["break_evens"].iloc[0]
        assert row["network.rtt_ms"] == pytest.approx(expected_ms, rel=0.02)
        assert row["low"] < expected_ms < row["high"]
        assert found.sentence.startswith(f"Below RTT {row['network.rtt_ms']:.3g} ms")


def test_a_sentence_that_begins_with_a_label_leaves_it_as_it_is(quick_device: dict[str, Any], cache: Path) -> None:
    found = ciar_sim.regime(quick_device, "network.rtt_ms=200,300", max_loss_pct=NO_FLOOR, cache=cache)
    assert found.sentence.startswith("base wins throughout")


def test_the_map_is_drawn_and_says_so_in_words(quick_device: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(quick_device))
    command = [
        "regime",
        str(path),
        "--x",
        "network.rtt_ms=0.1:30:5:log",
        "--y",
        "cloud.background=0.1,0.5",
        "--cache",
        str(cache),
    ]
    shown = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out"), "--metric", "cloud_nll"])
    assert shown.exit_code == 0, shown.output
    assert "Of the map" in shown.output
    cells = pd.read_csv(tmp_path / "out" / "regime.csv")
    assert len(cells) == 10
    # A method cannot win unless it is shown to keep the floor. A lossless one keeps it by construction.
    assert set(cells["winner"]) == {"base", "speculative"}
    assert (tmp_path / "out" / "regime.png").read_bytes()[:4] == b"\x89PNG"
    drawn = ["plot", str(tmp_path / "out"), "regime-map", "--out", str(tmp_path / "again.png")]
    assert CliRunner().invoke(main, drawn).exit_code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out" / "regime.png").read_bytes()
    narrow = CliRunner().invoke(main, [*drawn, "--size", "3.3in", "--no-titles"])
    assert "Quality floor: at most 5 % of cloud_nll lost against base." in narrow.output
    with Image.open(tmp_path / "again.png") as image:
        assert image.width == 3.3 * 300
    known = json.loads(CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out"), "--json"]).stdout)
    assert known["metric"] == "cloud_nll"
    assert len(known["table"]) == 10
    (tmp_path / "out" / "mine.txt").write_text("")
    refused = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "mine.txt" in refused.stderr
    for options, said in (
        (["--methods", "base"], "a map over two conditions shows who wins among all its methods"),
        (["--by", "cloud.background"], "a regime map has the axes that `ciar-sim regime` gave it"),
    ):
        refused = CliRunner().invoke(main, [*drawn, *options])
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr
    for damaged in ('{"x": 3}', "[" * 100_000):
        (tmp_path / "out" / "regime.json").write_text(damaged)
        refused = CliRunner().invoke(main, drawn)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "not a readable regime map" in refused.stderr
    refused = CliRunner().invoke(main, ["plot", str(tmp_path), "regime-map"])
    assert "not the folder of a regime map: regime.json is missing" in refused.stderr


def test_axes_that_change_the_images_have_a_floor_in_every_cell(quick_device: dict[str, Any], cache: Path) -> None:
    """The loss of the first cell was once reported for all cells. Over round trips the images are equal, so one row is enough."""
    found = ciar_sim.regime(quick_device, "seed=0,1", "network.rtt_ms=5,50", cache=cache)
    quality = found.more["quality"]
    names = list(found.facts["method_names"])
    assert list(quality.columns[:4]) == ["method", "network.rtt_ms", "seed", "loss_pct"]
    assert len(quality) == 4 * len(names)
    alone = {
        seed: ciar_sim.regime({**quick_device, "seed": seed}, "network.rtt_ms=5,50", cache=cache) for seed in (0, 1)
    }
    for seed, one in alone.items():
        its = one.more["quality"]
        assert list(its.columns[:2]) == ["method", "loss_pct"]
        for rtt in (5.0, 50.0):
            here = quality[(quality["seed"] == seed) & (quality["network.rtt_ms"] == rtt)]
            pd.testing.assert_frame_equal(here[list(its.columns)].reset_index(drop=True), its)
    unclear = quality[(quality["method"] == names[1]) & (quality["floor"] == "unclear")]
    told = [
        text for text in found.sentences if text.startswith(f"{names[1]} is left out of {len(unclear)} of 4 cells: ")
    ]
    assert len(told) == min(1, len(unclear))


def test_a_range_of_a_whole_number_has_whole_points(quick_device: dict[str, Any], cache: Path) -> None:
    """Points are whole numbers, as in a sweep; errors name the option."""
    found = ciar_sim.regime({**quick_device, "methods": ["base"]}, "cloud.replicas=1:3", cache=cache)
    assert list(found.table["cloud.replicas"]) == [1, 2, 3]
    for x, message in {
        "cloud.replicas=0:3:4": "cloud.replicas must be >= 1, got 0",
        "network.nothing=1,2": "network.nothing names nothing",
        "name=1,2": "name cannot be swept",
    }.items():
        with pytest.raises(CiarSimError, match=f"^--x {x}: {message}"):
            ciar_sim.regime(quick_device, x, cache=cache)


def test_a_swept_condition_is_given_one_value(quick_device: dict[str, Any], cache: Path) -> None:
    swept = {**quick_device, "sweep": {"network.up_mbps": [1.0, 1e5]}}
    options: dict[str, Any] = {"x": "network.rtt_ms=0.1,30", "max_loss_pct": NO_FLOOR, "cache": cache}
    found = ciar_sim.regime(swept, sets={"network.up_mbps": 1e5}, **options)
    expected = ciar_sim.regime(quick_device, **options)
    assert found.sentences == expected.sentences
    assert found.table.equals(expected.table)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"methods": ["code"]}, {}, "has none: add base"),
        ({"sweep": {"network.up_mbps": [1, 2]}}, {}, "network.up_mbps: is swept in addition"),
        ({}, {"metric": "beauty"}, "--metric beauty"),
        ({}, {"x": "methods.code.prefix_rate=0.1,0.2"}, "methods.code.prefix_rate: is of one method"),
        ({}, {"x": "network.rtt=1:2"}, "network.rtt"),
    ],
)
def test_what_makes_no_map_is_one_line(
    scenario: dict[str, Any], cache: Path, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CiarSimError, match=message) as raised:
        ciar_sim.regime({**scenario, **change}, **{"x": "network.rtt_ms=1,2", "cache": cache, **options})
    assert "\n" not in str(raised.value)
