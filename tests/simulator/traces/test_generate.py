"""Generated traces have the requested parameters. The shipped traces are those of the commands in the README."""

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ciar_sim.cli.main import main
from simulator.core.errors import TraceError
from simulator.core.rng import stream
from simulator.traces.generate import KINDS, LEO_STEPS_S, Kind, LogRate, Outages, ar1, generate, generate_as, outages
from simulator.traces.own import own_text
from simulator.traces.summary import summary
from tests.simulator.traces.examples import ROOT

# Bounds are 4 standard errors of a long trace: they fail by chance at one of 16,000 seeds.

LONG_S = 40_000


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.leo])
def test_generated_rates_have_the_parameters_asked_for(kind: str) -> None:
    trace, parameters = generate(kind, 1, LONG_S), KINDS[kind]
    share = 0.0 if parameters.outages is None else parameters.outages.share
    for way, asked in ((trace.down, parameters.down), (trace.up, parameters.up)):
        assert way.rate is not None
        rate = way.rate.rate_bps / 1e6
        assert rate.mean() == pytest.approx(asked.mean_mbps, abs=5e-4)  # whole kbit/s
        up, phi, sd = rate > 0, asked.autocorrelation, asked.sd_ln(share)
        logs = np.log(np.where(up, rate, 1.0))
        z = (logs - logs[up].mean()) / sd
        n = int(up.sum())
        # A Gaussian AR(1) has Var(sample variance) = 2 (1 + phi^2) / (1 - phi^2) / n and Var(phi estimate) = (1 - phi^2) / n.
        # Outages reduce the number of pairs by a factor below 1.5.
        assert abs((z[up] ** 2).mean() - 1) < 4 * math.sqrt(1.5 * 2 * (1 + phi**2) / (1 - phi**2) / n)
        pairs = up[1:] & up[:-1]
        estimate = (z[1:] * z[:-1])[pairs].mean() / (z[up] ** 2).mean()
        assert abs(estimate - phi) < 4 * math.sqrt(1.5 * (1 - phi**2) / n) + 4 / math.sqrt(n) * (share > 0)
        # E[x^2] gives cv. z_t has correlation phi^k, so the integrated autocorrelation time bounds Var(mean of exp(2 s z)).
        times = 1.5 * (1 + phi) / (1 - phi)
        relative = math.sqrt(times * (math.exp(4 * sd**2) - 1) / n)
        if parameters.outages is not None:  # E[x^2] of the scaled rate goes with 1 / (1 - share)
            memory = 1 - 1 / parameters.outages.run_s / (1 - share)
            relative += math.sqrt(share / (1 - share) * (1 + memory) / (1 - memory) / LONG_S)
        assert abs((rate**2).mean() / asked.mean_mbps**2 / (1 + asked.cv**2) - 1) < 4 * relative


@pytest.mark.parametrize(("share", "run_s"), [(0.05, 1.5), (0.23, 4.6), (0.10, 15.0)])
def test_outages_have_the_share_and_the_length_asked_for(share: float, run_s: float) -> None:
    out = outages(Outages(share, run_s), LONG_S, stream(3, "test"))
    ends, begins = 1 / run_s, share / (1 - share) / run_s
    memory = 1 - ends - begins
    assert abs(out.mean() - share) < 4 * math.sqrt(share * (1 - share) * (1 + memory) / (1 - memory) / LONG_S)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], out.astype(int), [0]]))))[::2]
    assert abs(runs.mean() - run_s) < 4 * math.sqrt(run_s * (run_s - 1) / len(runs))


def test_the_autoregression_alone() -> None:
    z = ar1(0.9, LONG_S, stream(1, "test"))
    assert abs((z[1:] * z[:-1]).mean() / (z**2).mean() - 0.9) < 4 * math.sqrt((1 - 0.81) / LONG_S)
    firsts = np.array([ar1(0.9, 2, stream(i, "test")) for i in range(2000)])
    assert np.abs(firsts.std(axis=0) - 1).max() < 4 / math.sqrt(2 * 2000)  # stationary from the first value


def test_a_leo_link_steps_every_fifteen_seconds() -> None:
    trace = generate("leo", 2, 3600)
    down, delay_s = trace.down.rate, trace.down.delay_s
    assert down is not None
    assert delay_s is not None
    stops = down.times_s[down.rate_bps == 0]
    assert len(stops) == 4 * 60
    assert set(stops % 60) == set(LEO_STEPS_S)
    holds_s = down.times_s[np.flatnonzero(down.rate_bps == 0) + 1] - stops
    assert holds_s.min() >= 0.05 - 1e-9
    assert holds_s.max() <= 0.2 + 1e-9
    assert np.array_equal(delay_s.times_s[1:], down.times_s[np.flatnonzero(down.rate_bps == 0) + 1])
    assert len(np.unique(down.rate_bps)) > 200
    assert summary(trace)["down_mbps"]["mean"] == pytest.approx(100, rel=1e-4)
    assert abs(summary(trace)["rtt_ms"]["mean"] - 45) < 4 * 20 / math.sqrt(12 * 241)


def test_generators_depend_on_seed_and_arguments_alone() -> None:
    assert own_text(generate("lte", 1, 60)) == own_text(generate("lte", 1, 60))
    assert own_text(generate("lte", 1, 60)) != own_text(generate("lte", 2, 60))
    assert generate("lte", 1, 59.5).duration_s == 59.5


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Kind(LogRate(-1, 0.5, 0.5), LogRate(1, 0.5, 0.5), None, ""), "mean_mbps"),
        (Kind(LogRate(1, 0.5, 1.0), LogRate(1, 0.5, 0.5), None, ""), "autocorrelation"),
        (Kind(LogRate(1, 0.1, 0.5), LogRate(1, 0.1, 0.5), Outages(0.5, 3.0), ""), "cv must be >= 1"),
        (Kind(LogRate(1, 2, 0.5), LogRate(1, 2, 0.5), Outages(0.5, 0.5), ""), "run_s"),
        (Kind(LogRate(1, 2, 0.5), LogRate(1, 2, 0.5), Outages(1.0, 5), ""), "share"),
    ],
)
def test_parameters_out_of_range(kind: Kind, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        generate_as(kind, "own", 0, 60)


SHIPPED = re.findall(r"^ciar-sim traces generate .*$", (ROOT / "traces" / "README.md").read_text(), re.MULTILINE)


def test_the_shipped_traces_are_those_the_readme_generates(tmp_path: Path) -> None:
    made = set()
    for command in SHIPPED:
        arguments = shlex.split(command)[1:]
        place = arguments.index("--out") + 1
        shipped = ROOT / arguments[place]
        arguments[place] = str(tmp_path / shipped.name)
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes(), shipped.name
        assert shipped.stat().st_size < 50_000
        made.add(shipped.name)
    assert made == {path.name for path in (ROOT / "traces").glob("*.csv")}
