"""Units of time and rate of files that do not state them: given by the user, inferred from the numbers, or requested by an error."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.core.errors import TraceError
from simulator.traces.series import Floats
from simulator.traces.source import Source

Way = Literal["down", "up"]

TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # per second: division rounds least
RATE_UNITS = {  # bit/s per unit
    "bit/s": 1.0,
    "kbit/s": 1e3,
    "Mbit/s": 1e6,
    "Gbit/s": 1e9,
    "B/s": 8.0,
    "kB/s": 8e3,
    "MB/s": 8e6,
}
_ALIASES = {"bps": "bit/s", "kbps": "kbit/s", "Mbps": "Mbit/s", "Gbps": "Gbit/s"}

UNIX_S = (946_684_800.0, 4_102_444_800.0)  # years 2000 to 2100: a number in this range is taken as a Unix time
STEP_S = (0.9e-3, 15.0)  # plausible median step; published bandwidth traces have 0.2 to 5 s
MOST_TIME = 1e20  # a Unix time in nanoseconds is 2e18
LENGTH_S = 12 * 3600.0  # longer than any published bandwidth trace
RATE_MBPS = (0.01, 1500.0)  # medians of published traces: 0.3 (3G) to 1200 (mmWave)
PEAK_MBPS = 1e5


@dataclass(frozen=True)
class Told:
    """What the user states about a file that may not state it itself. None means not stated.

    Attributes:
        direction: direction of the rates; by default that of the file's name, else the downlink.
        time_unit: a key of `TIME_UNITS`.
        rate_unit: a key of `RATE_UNITS`.
    """

    direction: Way | None = None
    time_unit: str | None = None
    rate_unit: str | None = None


NOTHING_TOLD = Told()


def told(direction: Way | None = None, unit: str | None = None) -> Told:
    """Parse the text of a `unit:` key or `--unit` option, such as "ms", "kbit/s" or "ms kbit/s".

    Raises:
        TraceError: a word is not a unit, or two are of one kind.
    """
    if unit is None:
        return Told(direction)
    found: dict[str, str] = {}
    words = [_ALIASES.get(word, word) for word in re.split(r"[\s,]+", unit.strip())]
    for word in words:
        kind = "time_unit" if word in TIME_UNITS else "rate_unit"
        if word not in {**TIME_UNITS, **RATE_UNITS} or kind in found:
            raise TraceError(
                f"unit {unit[:40]!r}: allowed: one of {', '.join(TIME_UNITS)} for times, one of {', '.join(RATE_UNITS)} "
                "for rates, or one of each, e.g. 'ms kbit/s'"
            )
        found[kind] = word
    return Told(direction, **found)


@dataclass(frozen=True)
class Unit:
    """A unit of time or rate. A value in seconds or bit/s is value * factor / divisor.

    Attributes:
        note: which unit it is, and how that is known.
        factor: factor of the conversion.
        divisor: divisor of the conversion.
    """

    note: str
    factor: float = 1.0
    divisor: float = 1.0

    def base(self, values: Floats) -> Floats:
        """Convert values to seconds or bit/s."""
        return values * self.factor / self.divisor


def _time(unit: str, how: str) -> Unit:
    return Unit(f"times in {unit}{how}", divisor=TIME_UNITS[unit])


def ask_for_unit(source: Source, what: str, found: str, units: dict[str, float]) -> TraceError:
    """Return the error for an unknown unit.

    Args:
        source: the file.
        what: the quantity whose unit is unknown.
        found: the evidence in the file.
        units: the units that the user may state.
    """
    return TraceError(
        f"{source.path}: the unit of {what} is not stated and cannot be inferred: {found}; "
        f"state it with `unit:` in the scenario or `--unit`; allowed: {', '.join(units)}"
    )


def unix_unit(times: Floats) -> str | None:
    """Return the unit in which the first time is a Unix time between 2000 and 2100, or None."""
    first = float(times[0])
    return next((unit for unit, per_s in TIME_UNITS.items() if UNIX_S[0] <= first / per_s <= UNIX_S[1]), None)


def unit_of_steps(source: Source, said: Told, times: Floats, usual: str, least_s: float = STEP_S[0]) -> Unit:
    """Return the unit of the times of a bandwidth trace.

    Args:
        source: the file, named in errors.
        said: what the user states; a stated unit takes precedence.
        times: float64 [n], never decreasing, with at least two different values.
        usual: the unit by the format's convention, used if it is plausible.
        least_s: the shortest plausible median step in seconds.

    Raises:
        TraceError: the user does not state the unit, and the conventional one makes the trace implausible.
    """
    if said.time_unit is not None:
        return _time(said.time_unit, ", as given")
    steps = np.diff(times)
    step, length = float(np.median(steps[steps > 0])), float(times[-1] - times[0])
    unix = unix_unit(times)
    if unix is not None and STEP_S[0] <= step / TIME_UNITS[unix] <= 3600.0:
        return _time(unix, ": they are Unix times")
    per_s = TIME_UNITS[usual]
    if least_s <= step / per_s <= STEP_S[1] and length / per_s <= LENGTH_S:
        return _time(usual, f", assumed: the format's convention, and a plausible median step of {step:g}")
    raise ask_for_unit(source, "time", f"the median step is {step:.6g} and the whole length {length:.6g}", TIME_UNITS)


def unit_of_rates(source: Source, said: Told, rates: Floats) -> Unit:
    """Return the unit of rates that are by convention in Mbit/s. Arguments and errors are those of `unit_of_steps`."""
    if said.rate_unit is not None:
        return Unit(f"rates in {said.rate_unit}, as given", RATE_UNITS[said.rate_unit])
    positive = rates[rates > 0]
    median, peak = (float(np.median(positive)), float(positive.max())) if positive.size else (1.0, 1.0)
    if RATE_MBPS[0] <= median <= RATE_MBPS[1] and peak <= PEAK_MBPS:
        return Unit(f"rates in Mbit/s, assumed: the format's convention, and a plausible median of {median:g}", 1e6)
    raise ask_for_unit(source, "rates", f"the median rate is {median:.6g} and the highest {peak:.6g}", RATE_UNITS)


def unit_of_arrivals(
    source: Source,
    said: Told,
    times: Floats,
    stated: str | None,
    why: str,
    evidence: Callable[[], str | None],
    *,
    named: bool = False,
) -> Unit:
    """Return the unit of request times.

    Args:
        source: the file, named in errors.
        said: what the user states; a stated unit takes precedence.
        times: float64 [n], as in the file, never decreasing.
        stated: the unit that the layout states, or None.
        why: how the layout states it, for the note.
        evidence: returns the unit inferred from the numbers, or None; called only if neither the user nor the layout states it.
        named: whether a column or key names the unit, which then takes precedence over the test for Unix times.

    Raises:
        TraceError: the unit is unknown.
    """
    if said.time_unit is not None:
        return _time(said.time_unit, ", as given")
    unix = unix_unit(times)
    if unix is not None and not named:
        return _time(unix, ": they are Unix times")
    if stated is not None:
        return _time(stated, f": {why}")
    shown = evidence()
    if shown is None:
        raise ask_for_unit(source, "time", why, TIME_UNITS)
    return _time(shown, f", inferred: {why}")
