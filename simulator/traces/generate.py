"""Generators of network traces: log-normal AR(1) rates with outages, and LEO links that change in steps.

The rate is x_t = exp(mu + s z_t) with z_t = phi z_{t-1} + sqrt(1 - phi^2) e_t and e_t standard normal (a Gauss-Markov process), one
value a second. Outages follow an independent two-state Markov chain, with rate 0 in both directions. Each direction is scaled to the
requested mean over the trace; the other parameters hold to within sampling error.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from simulator.core.rng import stream
from simulator.core.yamlfile import did_you_mean
from simulator.traces import gaps
from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.trace import Direction, Trace

STEP_S = 1.0
LONGEST_S = 1e6
LEO_STEPS_S = (12.0, 27.0, 42.0, 57.0)  # seconds of every minute at which a LEO link changes


@dataclass(frozen=True)
class LogRate:
    """The rate of one direction.

    Attributes:
        mean_mbps: mean over all time, outages included.
        cv: coefficient of variation over all time, outages included.
        autocorrelation: of ln rate from one second to the next while the link is up (phi).
    """

    mean_mbps: float
    cv: float
    autocorrelation: float

    def sd_ln(self, outage_share: float = 0.0) -> float:
        """Return the standard deviation of ln rate while the link is up: s^2 = ln((1 + cv^2)(1 - share)).

        It follows from E[x] = (1 - share) m and E[x^2] = (1 - share) m^2 exp(s^2), with m the mean while the link is up.

        Raises:
            TraceError: the outages alone give a coefficient of variation above cv.
        """
        spread = (1.0 + self.cv**2) * (1.0 - outage_share)
        if spread < 1.0:
            least = math.sqrt(1.0 / (1.0 - outage_share) - 1.0)
            raise TraceError(f"cv must be >= {least:.3g} with outages {outage_share:.3g} of the time, got {self.cv:g}")
        return math.sqrt(math.log(spread))


@dataclass(frozen=True)
class Outages:
    """Outages of geometric length.

    Attributes:
        share: share of the time in outages, above 0 and below 1.
        run_s: mean length of one outage in seconds, at least 1 and at least share / (1 - share).
    """

    share: float
    run_s: float


@dataclass(frozen=True)
class Leo:
    """Round trip of a LEO link: drawn at each step, uniformly from rtt_ms - spread_ms to rtt_ms + spread_ms."""

    rtt_ms: float
    spread_ms: float


@dataclass(frozen=True)
class Kind:
    """A named set of parameters.

    Attributes:
        down: rates of the downlink.
        up: rates of the uplink.
        outages: outages of both directions at once; None for none.
        source: source of the figures.
        leo: round trip of a LEO link, which changes every 15 s; None for other links.
    """

    down: LogRate
    up: LogRate
    outages: Outages | None
    source: str
    leo: Leo | None = None


SPROUT = "mahimahi trace of Sprout (Winstein et al., NSDI 2013)"
KINDS: dict[str, Kind] = {
    "lte": Kind(LogRate(5.03, 0.64, 0.83), LogRate(5.95, 0.52, 0.74), None, f"Verizon LTE short, {SPROUT}"),
    "lte-driving": Kind(
        LogRate(4.56, 0.85, 0.62),
        LogRate(1.91, 0.88, 0.40),
        Outages(0.05, 1.5),
        "AT&T LTE driving 2016, a trace shipped with mahimahi (Netravali et al., USENIX ATC 2015)",
    ),
    "umts-driving": Kind(
        LogRate(1.38, 1.02, 0.89), LogRate(0.77, 0.65, 0.85), Outages(0.23, 4.6), f"T-Mobile UMTS driving, {SPROUT}"
    ),
    "mmwave-walking": Kind(
        LogRate(625.0, 0.78, 0.91),
        LogRate(217.0, 0.78, 0.91),
        Outages(0.12, 3.5),
        "downlink: Lumos5G walking (Narayanan et al., IMC 2020); mean of the uplink: Verizon mmWave of Narayanan et al., "
        "SIGCOMM 2021; that it varies like the downlink is assumed",
    ),
    "wifi-office": Kind(
        LogRate(30.0, 0.08, 0.2),
        LogRate(30.0, 0.08, 0.2),
        None,
        "office traces of Zhuge (Meng et al., SIGCOMM 2022); that the uplink is like the downlink is assumed",
    ),
    "wifi-restaurant": Kind(
        LogRate(20.0, 0.40, 0.77),
        LogRate(20.0, 0.40, 0.77),
        Outages(0.03, 3.0),
        "restaurant traces of Zhuge (Meng et al., SIGCOMM 2022); that the uplink is like the downlink is assumed",
    ),
    "train-with-tunnels": Kind(
        LogRate(5.03, 0.64, 0.83),
        LogRate(5.95, 0.52, 0.74),
        Outages(0.10, 15.0),
        "rates as `lte`; outages assumed: 400 m of tunnel at 100 km/h are 14.4 s",
    ),
    "leo": Kind(
        LogRate(100.0, 0.20, 0.0),
        LogRate(15.0, 0.20, 0.0),
        None,
        "means: Ookla on Starlink in the US 2021 to 2025; variation: a Starlink trace of LeoReplayer (LeoCC); seconds of the "
        "steps: Mohan et al., WWW 2024; the round trip of 45 +- 10 ms and holds of 50 to 200 ms are assumed",
        leo=Leo(45.0, 10.0),
    ),
    "leo-isl": Kind(
        LogRate(90.0, 0.39, 0.0),
        LogRate(15.0, 0.47, 0.0),
        None,
        "means and variation: Starlink from Lagos, over laser links (Starlink-Emulator, LENS); that all of the variation is between "
        "steps, its round trip of 155 +- 15 ms and the holds are assumed",
        leo=Leo(155.0, 15.0),
    ),
    "mmwave-blocked": Kind(
        LogRate(880.0, 0.37, 0.0),
        LogRate(176.0, 0.37, 0.0),
        Outages(0.12, 3.0),
        "1000 and 200 Mbit/s of one TCP connection in line of sight, Verizon mmWave (Narayanan et al., SIGCOMM 2021), and next to nothing "
        "for 10 to 15 % of the time, in runs of 2.6 to 4.2 s, of Lumos5G (IMC 2020)",
    ),
}
LEO_HOLD_S = (0.05, 0.2)


def generate(kind: str, seed: int, duration_s: float) -> Trace:
    """Generate a trace of a named kind, or of a fit of scheduling gaps.

    Equal arguments give equal traces. Rates are whole kbit/s; delays and holds are multiples of 0.1 ms.

    Raises:
        TraceError: the kind is unknown, or the duration is outside 10 s to 1e6 s.
    """
    if kind in gaps.fitted():
        fit = gaps.fitted()[kind]
        down, up = gaps.generate(fit.gaps, 1e6 * fit.down_mbps, 1e6 * fit.up_mbps, seed, duration_s)
        return Trace("ciar-sim-csv", Direction(down), Direction(up))
    if kind not in KINDS:
        known = [*KINDS, *gaps.fitted()]
        raise TraceError(f"{kind!r} is not a kind of generated trace{did_you_mean(kind, known)}")
    return generate_as(KINDS[kind], kind, seed, duration_s)


def generate_as(parameters: Kind, name: str, seed: int, duration_s: float) -> Trace:
    """Generate a trace from given parameters. `name` seeds the random streams. Raises TraceError for parameters out of range."""
    _check(parameters, duration_s)
    if parameters.leo is not None:
        return _leo(parameters, parameters.leo, name, seed, duration_s)
    steps = math.ceil(duration_s / STEP_S)
    up = np.ones(steps, dtype=bool)
    if parameters.outages is not None:
        up = ~outages(parameters.outages, steps, stream(seed, "trace.outages", name))
    share = 0.0 if parameters.outages is None else parameters.outages.share
    times_s = np.arange(steps, dtype=np.float64) * STEP_S
    rates = []
    for way, rate in (("down", parameters.down), ("up", parameters.up)):
        values = (
            np.exp(rate.sd_ln(share) * ar1(rate.autocorrelation, steps, stream(seed, "trace.rate", name, way))) * up
        )
        rates.append(_scaled(times_s, values, duration_s, rate.mean_mbps))
    return Trace("ciar-sim-csv", Direction(rates[0]), Direction(rates[1]))


def ar1(phi: float, steps: int, random: np.random.Generator) -> Floats:
    """Draw float64 [steps], a stationary Gauss-Markov process of mean 0, variance 1 and lag-1 autocorrelation phi."""
    noise = random.standard_normal(steps)
    noise[1:] *= math.sqrt(1.0 - phi**2)
    return np.array(list(accumulate(noise.tolist(), lambda z, e: phi * z + e)))


def outages(parameters: Outages, steps: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Draw bool [steps], whether each second is in an outage, from a stationary two-state chain. Outages end with probability 1 / run_s."""
    ends = STEP_S / parameters.run_s
    begins = ends * parameters.share / (1.0 - parameters.share)
    out = np.empty(steps, dtype=bool)
    state = bool(random.random() < parameters.share)
    for i, draw in enumerate(random.random(steps).tolist()):
        out[i] = state
        state = draw >= ends if state else draw < begins
    return out


def _leo(parameters: Kind, leo: Leo, name: str, seed: int, duration_s: float) -> Trace:
    """Generate a LEO link. At seconds 12, 27, 42 and 57 of a minute nothing passes for 50 to 200 ms; then rates and delay are redrawn."""
    minutes = np.arange(math.ceil(duration_s / 60.0)) * 60.0
    steps_s = (minutes[:, None] + np.array(LEO_STEPS_S)).ravel()
    steps_s = steps_s[steps_s < duration_s]
    holds_s = np.round(stream(seed, "trace.leo.hold", name).uniform(*LEO_HOLD_S, len(steps_s)), 4)
    starts_s = np.append(0.0, steps_s + holds_s)  # times from which the values drawn at each step apply
    kept = starts_s < duration_s
    rtt_ms = leo.rtt_ms + stream(seed, "trace.leo.delay", name).uniform(-leo.spread_ms, leo.spread_ms, len(starts_s))
    delay_s = StepSeries(starts_s[kept], np.round(rtt_ms[kept], 1) / 2e3, duration_s)
    times_s = np.sort(np.concatenate([starts_s[kept], steps_s]))
    directions = []
    for way, rate in (("down", parameters.down), ("up", parameters.up)):
        levels = np.exp(rate.sd_ln() * ar1(rate.autocorrelation, len(starts_s), stream(seed, "trace.rate", name, way)))
        values = np.where(np.isin(times_s, steps_s), 0.0, levels[np.searchsorted(starts_s, times_s, side="right") - 1])
        directions.append(Direction(_scaled(times_s, values, duration_s, rate.mean_mbps), delay_s))
    return Trace("ciar-sim-csv", directions[0], directions[1])


def _scaled(times_s: Floats, values: Floats, duration_s: float, mean_mbps: float) -> RateSeries:
    weights_s = np.diff(times_s, append=duration_s)
    mean = float(values @ weights_s) / duration_s
    if mean == 0.0:
        raise TraceError(f"the whole trace of {duration_s:g} s is one outage; take a longer duration or another seed")
    return RateSeries(times_s, np.round(values * (mean_mbps * 1e3 / mean)) * 1e3, duration_s)


def _check(parameters: Kind, duration_s: float) -> None:
    if not 10.0 <= duration_s <= LONGEST_S:
        raise TraceError(f"duration_s must be 10 to {LONGEST_S:g}, got {duration_s:g}")
    for rate in (parameters.down, parameters.up):
        for name, value, most in (("mean_mbps", rate.mean_mbps, 1e6), ("cv", rate.cv, 10.0)):
            if not 0.0 < value <= most:
                raise TraceError(f"{name} must be > 0 and <= {most:g}, got {value:g}")
        if not -1.0 < rate.autocorrelation < 1.0:
            raise TraceError(f"autocorrelation must be above -1 and below 1, got {rate.autocorrelation:g}")
    out = parameters.outages
    if out is None:
        return
    if not 0.0 < out.share < 1.0:
        raise TraceError(f"share of outages must be above 0 and below 1, got {out.share:g}")
    least_s = STEP_S * max(1.0, out.share / (1.0 - out.share))
    if not least_s <= out.run_s < math.inf:
        raise TraceError(f"run_s must be >= {least_s:g} s at this share of outages, got {out.run_s:g}")
