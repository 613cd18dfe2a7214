"""Scheduling gaps: the generator against closed forms, its fit to packet-delivery traces, and the delay of messages."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.gaps import main as compared
from ciar_sim.cli.main import main
from simulator.core.errors import TraceError
from simulator.experiment.fleet import network_of
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, VaryingWire
from simulator.traces.gaps import GAP_SHARES, GapLevel, Gaps, _waits, as_yaml, fit, fitted, generate
from simulator.traces.read import read
from simulator.traces.series import RateSeries
from simulator.traces.trace import Direction, Trace
from tests.simulator.experiment.scenario_files import HEAD, load
from tests.simulator.traces.examples import REAL, file

PLAIN = GapLevel(gaps_per_s=4.0, gaps_ms=(100.0,) * 6, rates=(1.0,) * 6)


def gaps_of(series: RateSeries) -> np.ndarray:
    """Return the lengths in s of the gaps of 10 ms or more."""
    ends_s = np.append(series.times_s[1:], series.duration_s)
    up = series.rate_bps > 0.0
    lengths: np.ndarray = series.times_s[up][1:] - ends_s[up][:-1]
    return lengths[lengths >= 0.01 - 1e-9]


def both(level: GapLevel) -> Gaps:
    return Gaps(slow_s=5.0, slow_share=0.5, down=(level,), up=(level,))


@pytest.mark.parametrize("name", fitted())
def test_the_mean_rate_is_the_one_asked_for(name: str) -> None:
    for series, mean_bps in zip(generate(fitted()[name].gaps, 27e6, 10.6e6, 3, 600.0), (27e6, 10.6e6), strict=True):
        assert series.mean_bps() == pytest.approx(mean_bps, rel=1e-9)
        assert series.rate_bps.min() == 0.0


def test_gaps_of_one_length_are_an_alternating_renewal_process() -> None:
    """Runs of mean length 1 / h and gaps of length g give h / (1 + h g) gaps a second. Runs have (1 + h g) times the mean rate."""
    rate = generate(both(PLAIN), 1e6, 1e6, 0, 20_000.0)[0]
    lengths_s = gaps_of(rate)
    # The standard error of the number of some 57,000 gaps is below 0.4 %: a cycle's deviation is below its mean.
    assert len(lengths_s) / rate.duration_s == pytest.approx(4.0 / 1.4, rel=0.01)
    assert np.mean(np.abs(lengths_s - 0.1) < 2e-4) > 0.999  # a run below 0.1 ms joins two
    assert np.unique(rate.rate_bps[rate.rate_bps > 0.0]) == pytest.approx(1.4e6, rel=0.01)


def test_lengths_of_gaps_have_their_shares_of_the_time() -> None:
    lengths_ms = (20.0, 30.0, 50.0, 90.0, 200.0, 400.0)
    rate = generate(both(GapLevel(gaps_per_s=4.0, gaps_ms=lengths_ms, rates=(1.0,) * 6)), 1e6, 1e6, 0, 20_000.0)[1]
    found_s = gaps_of(rate)
    for length_ms, share in zip(lengths_ms, GAP_SHARES, strict=True):
        near = np.abs(found_s - 1e-3 * length_ms) < 1e-3
        assert found_s[near].sum() / found_s.sum() == pytest.approx(share, rel=0.08)
    # The wait of a message that meets a gap is proportional to the sum of squares.
    squares = (GAP_SHARES * np.array(lengths_ms)).sum() * 1e-3
    assert (found_s**2).sum() / found_s.sum() == pytest.approx(squares, rel=0.03)


def test_equal_arguments_give_equal_traces_and_directions_differ() -> None:
    model = fitted()["lte-gaps"].gaps
    one, same, other = (generate(model, 1e6, 1e6, seed, 60.0) for seed in (5, 5, 6))
    assert np.array_equal(one[0].times_s, same[0].times_s)
    assert len({len(series.times_s) for series in (*one, *other)}) == 4


def test_a_fit_finds_the_gaps_that_a_trace_was_made_with() -> None:
    often, rare = (PLAIN.model_copy(update={"gaps_per_s": per_s}) for per_s in (10.0, 6.0))
    made = Gaps(slow_s=5.0, slow_share=0.0, down=(often,), up=(rare,))
    down, up = generate(made, 8e6, 4e6, 1, 1500.0)
    found = fit(Trace("", Direction(down), Direction(up)), levels=1)
    assert found.slow_share == pytest.approx(0.0, abs=0.1)
    for level, asked in ((found.down[0], 10.0), (found.up[0], 6.0)):
        assert level.gaps_per_s == pytest.approx(asked, rel=0.08)
        # The longest may be two gaps without a run in between.
        assert level.gaps_ms[:5] == pytest.approx((100.0,) * 5, rel=0.05)
        assert level.rates == pytest.approx((1.0 + 0.1 * asked,) * 6, rel=0.05)


def bursts(ends_s: np.ndarray, duration_s: float) -> RateSeries:
    """Return a series that carries nothing except 10 kbit in the 1/1024 s before each end. Its times are exact."""
    times_s = np.append(0.0, np.column_stack([ends_s - 2.0**-10, ends_s]).ravel())
    rates = np.append(0.0, np.tile([10_240_000.0, 0.0], len(ends_s)))
    return RateSeries(times_s[times_s < duration_s], rates[times_s < duration_s], duration_s)


def fit_both(down: RateSeries, up: RateSeries) -> Gaps:
    return fit(Trace("", Direction(down), Direction(up)), levels=2)


def test_a_fit_ends_with_the_shorter_direction() -> None:
    ends_s = np.arange(1, 641) / 16.0
    short, long = bursts(ends_s, 40.0), bursts(np.append(ends_s, 40.5 + 0.25 * np.arange(160)), 80.0)
    assert fit_both(short, long) == fit_both(long, short) == fit_both(short, short)


def test_more_gaps_than_milliseconds_of_runs_are_fitted() -> None:
    """Every other second has one run of a millisecond and two gaps: one begins with the second."""
    ends_s = np.concatenate([np.append(s + np.arange(1, 17) / 16.0, s + 1.5) for s in range(0, 40, 2)])
    assert fit_both(*[bursts(ends_s, 40.0)] * 2).down[1].gaps_per_s == 1000.0


def test_probes_that_end_with_the_trace_do_not_wait_for_its_next_pass() -> None:
    """The trace begins with an outage of 10 s and ends with two packets, after an outage of almost a second."""
    series = RateSeries([0.0, 10.0, 29.0, 30.0 - 2.0**-6], [0.0, 1e6, 0.0, 2.0**6 * 24_000.0], 30.0)
    with np.errstate(all="raise"):
        found_s = _waits(series, 30)[29]
    waits_s = 1.0 - (np.arange(100) + 0.5) / 100.0
    # Two probes begin within the packets, and the others end with the trace.
    waits_s[98:] += 10.0 + (24_000.0 - waits_s[98:] * 2.0**6 * 24_000.0) / 1e6
    assert found_s == pytest.approx(waits_s.mean(), rel=1e-9)


@pytest.mark.skipif(not (REAL / "mahimahi").exists(), reason="no folder of real traces beside the checkout")
@pytest.mark.parametrize(
    ("name", "file_name", "levels"),
    [
        ("lte-gaps", "Verizon-LTE-short", 4),
        ("lte-driving-gaps", "ATT-LTE-driving-2016", 4),
        ("umts-gaps", "TMobile-UMTS-driving", 6),
    ],
)
def test_shipped_fits_are_those_of_the_published_traces(name: str, file_name: str, levels: int) -> None:
    trace = read([REAL / "mahimahi" / f"{file_name}.{way}" for way in ("down", "up")])
    assert isinstance(trace, Trace)
    entry = fitted()[name]
    assert fit(trace, levels) == entry.gaps
    assert trace.down.rate is not None
    assert trace.up.rate is not None
    assert (trace.down.rate.mean_bps(), trace.up.rate.mean_bps()) == pytest.approx(
        (1e6 * entry.down_mbps, 1e6 * entry.up_mbps), rel=0.005
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gaps_ms": (1.0,)}, "must be 6 lengths, or none where gaps_per_s is 0, got 1"),
        ({"gaps_per_s": 900.0, "gaps_ms": (1.0,) * 6}, "makes more than 200 gaps a second of these lengths"),
        ({"rates": (1.0,)}, "must be 6 rates, got 1"),
    ],
)
def test_a_level_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GapLevel.model_validate({**PLAIN.model_dump(), **change})
    with pytest.raises(ValidationError, match=r"must have as many levels as down \(1\), got 2"):
        Gaps(slow_s=5.0, slow_share=0.5, down=(PLAIN,), up=(PLAIN, PLAIN))
    with pytest.raises(ValidationError, match="carries nothing at any level"):
        both(PLAIN.model_copy(update={"rates": (0.0,) * 6}))


@pytest.mark.parametrize(
    ("down", "up", "message"),
    [
        (RateSeries([0.0], [1e6], 60.0), None, "has no uplink rate; needed: packet-delivery traces of both directions"),
        (
            RateSeries([0.0], [1e6], 60.0),
            RateSeries([0.0], [1e6], 60.0),
            "the downlink has 1 rates in 60 s; needed: 30 s",
        ),
        (RateSeries([0.0], [1e6], 5.0), RateSeries([0.0], [1e6], 5.0), "the downlink has 1 rates in 5 s; needed: 30 s"),
        (
            *[bursts(np.append(np.arange(1, 12_001), 29_601 + np.arange(12_000)) / 16.0, 2700.0)] * 2,
            "has a gap of 1100 s; allowed: up to 1000 s",
        ),
    ],
)
def test_what_is_no_packet_delivery_trace_of_both_directions_is_refused(
    down: RateSeries, up: RateSeries | None, message: str
) -> None:
    with pytest.raises(TraceError) as error:
        fit(Trace("", Direction(down), Direction(up)))
    assert str(error.value).startswith(message)


def test_what_the_command_prints_goes_into_a_scenario(tmp_path: Path) -> None:
    made = generate(both(PLAIN), 6e6, 3e6, 2, 40.0)
    paths = []
    for way, series in zip(("down", "up"), made, strict=True):
        wire = VaryingWire(Capacity(series.times_s, series.rate_bps, series.duration_s))
        ends_s = itertools.accumulate(
            range(20_000), lambda now_s, _, wire=wire: wire.finish_s(now_s, 12_000.0), initial=0.0
        )
        paths.append(file(tmp_path, "".join(f"{int(1e3 * s) + 1}\n" for s in ends_s if s < 40.0), f"x.{way}"))
    printed = CliRunner().invoke(main, ["traces", "fit", *map(str, paths), "--levels", "1"])
    assert printed.exit_code == 0, printed.output
    section = "".join(f"  {line}\n" for line in printed.output.splitlines())
    network = network_of(load(tmp_path, f"{HEAD}network:\n  rtt_ms: 60\n{section}").network.figures(), 0)
    assert isinstance(network.up_bps, Capacity)
    assert isinstance(network.down_bps, Capacity)
    assert (network.down_bps.mean_bps, network.up_bps.mean_bps) == pytest.approx((6e6, 3e6), rel=0.02)
    share = sum(end_s - begin_s for begin_s, end_s in network.up_bps.outages_s) / network.up_bps.duration_s
    assert share == pytest.approx(0.4 / 1.4, rel=0.15)
    refused = CliRunner().invoke(main, ["traces", "fit", str(paths[0])])
    assert refused.exit_code == 2
    assert "x.down: has no uplink rate; needed: packet-delivery traces" in refused.output


def test_figures_are_printed_as_they_are_kept() -> None:
    model = fitted()["umts-gaps"].gaps
    assert sum(line.lstrip().startswith("- {") for line in as_yaml(model).splitlines()) == 12
    assert "slow_s: 8" in as_yaml(model)


RATES = st.lists(st.sampled_from([0.0, 1e6, 3e6, 8e6]), min_size=4, max_size=30)
MESSAGES = st.lists(st.tuples(st.floats(0.0, 0.7), st.integers(1, 9000)), min_size=1, max_size=12)


@given(RATES, st.integers(0, 29), st.integers(1, 10), MESSAGES, st.floats(0.0, 3.0))
def test_longer_gaps_make_no_message_earlier_and_lose_no_bits(
    rates: list[float], begin: int, length: int, messages: list[tuple[float, int]], offset_s: float
) -> None:
    """The transport has no timers: a retransmission at the end of a longer gap may arrive earlier by chance."""
    rates = [8e6, *rates, 8e6]
    longer = [0.0 if 0 < i < len(rates) - 1 and begin <= i < begin + length else rate for i, rate in enumerate(rates)]
    arrivals = []
    for these in (rates, longer):
        wire = VaryingWire(Capacity(np.arange(len(these)) * 0.05, these, len(these) * 0.05), offset_s)
        link = ImpairedLink(wire, 0.03, 0.06, TRANSPORTS["ideal"])
        now_s, found = 0.0, []
        for wait_s, size_bytes in messages:
            now_s += wait_s
            begin_s = max(now_s, wire.free_s)
            found.append(link.send(now_s, size_bytes))
            assert wire.bits(begin_s, wire.free_s) == pytest.approx(8.0 * size_bytes, rel=1e-6, abs=1e-3)
        assert found == sorted(found)
        arrivals.append(found)
    assert all(late >= soon - 1e-9 for soon, late in zip(*arrivals, strict=True))


def test_a_generator_is_compared_with_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace is a series of such a generator as packets. A session takes about as long on the fitted generator and
    on the trace resampled."""
    monkeypatch.setattr("benchmarks.gaps.LONG_S", 200.0)
    files = []
    for way, rate in zip(("down", "up"), generate(both(PLAIN), 3e6, 3e6, 0, 200.0), strict=True):
        carried = np.append(0.0, np.cumsum(rate.rate_bps * np.diff(np.append(rate.times_s, 200.0))))
        packets_s = np.interp(np.arange(1, 50_000) * 12_000.0, carried, np.append(rate.times_s, 200.0))
        files.append(str(file(tmp_path, "".join(f"{ms}\n" for ms in (1e3 * packets_s).astype(int)), f"link.{way}")))
    few = {"levels": 1, "places": 40, "seeds": 2, "short": 2, "sequences": 40, "resample-s": 60}
    result = CliRunner().invoke(compared, [*files, *(f"--{name}={value}" for name, value in few.items())])
    assert result.exit_code == 0, result.output
    errors = [float(part) for part in re.findall(r"\(([-+][0-9.]+) %\)", result.output)]
    assert len(errors) == 4  # mean and 95th percentile, resampled and generated
    assert np.abs(errors).max() < 10.0
    assert result.output.count("in nine of ten series") == 2
