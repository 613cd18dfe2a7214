"""Series: their rules and bins, and the round trip through the project's own CSV."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from simulator.core.errors import TraceError
from simulator.traces.own import own_text
from simulator.traces.read import read_trace
from simulator.traces.series import RateSeries, StepSeries
from simulator.traces.trace import Direction, Trace
from tests.simulator.traces.examples import file

SERIES = st.integers(1, 20).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(1, 5000).map(lambda ms: ms / 1e3)),
        arrays(np.float64, n, elements=st.integers(0, 10**6).map(lambda kbps: kbps * 1e3)),
    )
)


@settings(max_examples=25, deadline=None)
@given(SERIES, SERIES)
def test_own_csv_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> None:
    down, up = (
        RateSeries(np.append(0.0, np.cumsum(steps)[:-1]), rates, float(steps.sum())) for steps, rates in (one, other)
    )
    trace = Trace("ciar-sim-csv", Direction(down), Direction(up))
    path = file(tmp_path_factory.getbasetemp(), own_text(trace), "round.csv")
    again = read_trace([path])
    assert again.duration_s == pytest.approx(trace.duration_s)
    probes = (np.arange(200) + 0.4321) * trace.duration_s / 200
    for before, after in ((down, again.down.rate), (up, again.up.rate)):
        assert after is not None
        at = [s.rate_bps[np.searchsorted(s.times_s, probes % s.duration_s, side="right") - 1] for s in (before, after)]
        # Rounding decides on which side of a step a probe falls.
        near = np.abs(probes % before.duration_s - before.times_s[:, None]).min(axis=0) < 1e-6
        assert np.allclose(at[0][~near], at[1][~near])


@pytest.mark.parametrize(
    ("times_s", "rates", "duration_s", "named"),
    [
        ([], [], 1, "at least one"),
        ([1.0], [1.0], 2, "start at 0"),
        ([0, 2, 2], [1, 1, 1], 3, "must increase"),
        ([0, 1], [1.0], 2, "one length"),
        ([0, 1], [1, -1], 2, "rate_bps"),
        ([0, 1], [1, math.nan], 2, "rate_bps"),
        ([0, 1], [1, 1], 1.0, "duration_s"),
        ([0, 1], [1, 1], math.inf, "duration_s"),
        ([0], [2e12], 1, "1e+12"),
    ],
)
def test_a_series_keeps_its_rules(times_s: list[float], rates: list[float], duration_s: float, named: str) -> None:
    with pytest.raises(TraceError, match=re.escape(named)):
        RateSeries(np.array(times_s), np.array(rates), duration_s)


def test_bins_of_a_series() -> None:
    series = RateSeries(np.array([0.0, 0.5, 2.0]), np.array([4.0, 8.0, 2.0]), 2.5)
    assert series.binned().tolist() == [6.0, 8.0, 2.0]
    assert series.mean_bps() == (2 + 12 + 1) / 2.5
    assert RateSeries(np.array([0.0]), np.array([4.0]), 2.125).binned().tolist() == [4.0, 4.0]
    assert not series.rate_bps.flags.writeable
    with pytest.raises(TraceError, match="share"):
        Direction(loss=StepSeries(np.array([0.0]), np.array([1.5]), 1.0))
