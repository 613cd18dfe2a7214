"""Excerpts: a time window of a trace, and a trace played faster or slower."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from simulator.traces.excerpt import excerpt, excerpt_of_arrivals, times_in_window
from simulator.traces.read import read_arrivals, read_trace
from simulator.traces.series import RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Direction, Trace
from tests.simulator.traces.examples import MOONCAKE, OWN, assert_refused, call, file

TRACE = Trace(
    "made",
    Direction(
        RateSeries(np.arange(5.0), np.array([1e6, 2e6, 3e6, 4e6, 5e6]), 5.0),
        StepSeries(np.array([0.0, 1.0]), np.array([0.01, 0.02]), 2.0),  # repeated
    ),
    Direction(),
)


def value(series: RateSeries | StepSeries | None, time_s: float) -> float:
    assert series is not None
    held = series.rate_bps if isinstance(series, RateSeries) else series.values
    return float(held[np.searchsorted(series.times_s, time_s % series.duration_s, side="right") - 1])


@given(st.floats(0, 4.9), st.floats(0.01, 5), st.floats(1e-3, 1e3), st.floats(0, 0.999))
def test_a_window_holds_what_the_trace_holds_there(begin_s: float, length_s: float, scale: float, at: float) -> None:
    end_s = min(begin_s + length_s, 5.0)
    part = excerpt(TRACE, (begin_s, end_s), scale)
    assert part.duration_s == pytest.approx((end_s - begin_s) * scale)
    time_s = begin_s + at * (end_s - begin_s)
    if abs(time_s - round(time_s)) < 1e-6:
        return  # rounding decides which side of a step the time is on
    inside_s = (time_s - begin_s) * scale
    assert value(part.down.rate, inside_s) == value(TRACE.down.rate, time_s)
    assert value(part.down.delay_s, inside_s) == value(TRACE.down.delay_s, time_s)


def test_nothing_asked_for_is_the_same_trace() -> None:
    assert excerpt(TRACE) is TRACE


def test_arrivals_in_a_window_twice_as_fast(tmp_path: Path) -> None:
    arrivals = read_arrivals(file(tmp_path, MOONCAKE.replace("}", "}\n", 1)))
    part = excerpt_of_arrivals(arrivals, (0.0, 4.5), 0.5)
    with pytest.raises(TraceError, match="two requests at different times"):
        excerpt_of_arrivals(arrivals, (0.0, 4.0))
    whole = excerpt_of_arrivals(arrivals, None, 0.5)
    assert whole.requested_s.tolist() == [0.0, 0.0, 2.0]
    assert part.duration_s == 2.0


@pytest.mark.parametrize("window_s", [(-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (0.0, 5.1), (float("nan"), 2.0)])
def test_windows_that_are_none(window_s: tuple[float, float]) -> None:
    with pytest.raises(TraceError, match="window_s must be two rising times from 0 to 5 s"):
        excerpt(TRACE, window_s)


@pytest.mark.parametrize("window_s", [(-1.0, 2.0), (3.0, 2.0), (float("nan"), 2.0)])
def test_windows_that_are_none_of_arrivals(window_s: tuple[float, float]) -> None:
    """Arrivals have no end, so the error names no upper limit."""
    requested_s = np.array([0.0, 1.0, 2.0])
    for refused in (
        lambda: excerpt_of_arrivals(Arrivals("mooncake-jsonl", requested_s), window_s),
        lambda: times_in_window(requested_s, window_s, 1.0),
    ):
        with pytest.raises(TraceError, match="window_s must be two rising times >= 0 s, got"):
            refused()


def test_on_the_command_line(tmp_path: Path) -> None:
    path, out = file(tmp_path, OWN), tmp_path / "out.csv"
    assert call("import", path, "--out", out, "--window-s", 1, 3, "--time-scale", 2).exit_code == 0
    assert [line for line in out.read_text().splitlines() if not line.startswith("#")][1].startswith("0,8,0,60")
    assert read_trace([out]).duration_s == 4.0
    assert_refused(call("show", path, "--json", "--time-scale", 0), "time_scale must be 1e-06 to 1e+06, got 0")
    assert_refused(call("show", path, "--json", "--window-s", 4, 9), f"{path}: window_s must be")
