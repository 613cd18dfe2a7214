"""Readers of measurements of cellular links: CellReplay's packet trains and their offsets, and rates of NYU-METS.

Each reader takes a `Source` of its format and the user's `Told`. docs/traces.md explains the numbers.
"""

from dataclasses import replace

import numpy as np

from simulator.traces.series import MOST_BPS, RateSeries, StepSeries
from simulator.traces.source import Source
from simulator.traces.timing import one_way, way_of
from simulator.traces.trace import Direction, Trace, Trains
from simulator.traces.units import Told

TRAIN_BYTES = 1400  # size of a packet of CellReplay's recorder, and of a delivery opportunity of its files
BETWEEN = 10  # steps of the interpolation of the base delay between two trains
LEAST_TRAINS = 3  # CellReplay refuses fewer; the last only ends the trace
OFFSET_BYTES = 100  # step between the sizes of an offset file
RATE_UNITS = {"bits/sec": 1.0, "Kbits/sec": 1e3, "Mbits/sec": 1e6, "Gbits/sec": 1e9}  # of iPerf
MOST_OFFSET_MS = 1e4


# --- CellReplay -------------------------------------------------------------------------------------------------------------


def is_light_trains(source: Source) -> bool:
    """Return whether the first line is a time, a base delay and ascending offsets from 0: whole numbers separated by blanks."""
    cells = source.first_cells
    if len(cells) < 3 or "," in source.first or ";" in source.first or not all(cell.isdigit() for cell in cells):
        return False
    offsets = [int(cell[:19]) for cell in cells[2:]]
    return offsets[0] == 0 and offsets == sorted(offsets)


def read_light_trains(source: Source, said: Told) -> Trace:
    """Read one packet train per line (ms): send time, one-way delay of the first packet, and arrival of each packet after the first."""
    lines, rows = [], []
    for line, text in source.lines:
        cells = text.split()
        if len(cells) < 3:
            source.fail(
                f"holds {len(cells)} columns; allowed: a time, a delay and the offsets of one packet or more", line
            )
        lines.append(line)
        rows.append(cells)
    if len(rows) < LEAST_TRAINS:
        source.fail(f"holds {len(rows)} trains; allowed: {LEAST_TRAINS} or more")
    values = source.parse(rows, lines)
    ends = np.cumsum([len(row) for row in rows])
    trains = [np.asarray(train) for train in np.split(values, ends[:-1])]
    for line, train in zip(lines, trains, strict=True):
        if (train < 0).any() or (train != np.floor(train)).any():
            source.fail("must hold whole numbers of milliseconds >= 0", line)
        if train[2] != 0 or (np.diff(train[2:]) < 0).any():
            source.fail("offsets must ascend from 0", line)
    times_ms, delays_ms = (np.array([train[place] for train in trains]) for place in (0, 1))
    source.need_sorted(times_ms, lines)
    kept = np.append(True, np.diff(times_ms) > 0)  # of trains with equal times the first is used
    times_s, delays_s = (times_ms[kept] - times_ms[0]) / 1e3, delays_ms[kept] / 1e3
    if len(times_s) < LEAST_TRAINS:
        source.fail(f"holds {len(times_s)} different times; allowed: {LEAST_TRAINS} or more")
    duration_s = float(times_s[-1])
    offsets_s = tuple(tuple((train[2:] / 1e3).tolist()) for train, counts in zip(trains, kept, strict=True) if counts)
    # Each step has the interpolated delay of its middle.
    share = (np.arange(BETWEEN) + 0.5) / BETWEEN
    starts_s = (times_s[:-1, None] + np.diff(times_s)[:, None] * np.arange(BETWEEN) / BETWEEN).ravel()
    between_s = (delays_s[:-1, None] + np.diff(delays_s)[:, None] * share).ravel()
    part = Direction(
        delay_s=StepSeries(starts_s, between_s, duration_s), trains=Trains(times_s[:-1], offsets_s[:-1], duration_s)
    )
    return one_way("cellreplay-light", way_of(source, said), part)


def is_size_delays(source: Source) -> bool:
    """Return whether this is a file of sizes and delays. Only its name distinguishes it from times and rates."""
    return "latency-offset" in source.path.name and len(source.first_cells) == 2


def read_size_delays(source: Source, said: Told) -> Trace:
    """Read sizes in bytes (100, 200, ...) and the additional delay of a packet of each size (ms, may be negative)."""
    lines, values = source.columns(2)
    sizes, delays_ms = values.T
    source.need(
        sizes == OFFSET_BYTES * np.arange(1, len(sizes) + 1), lines, sizes, "sizes must be 100, 200, 300 and so on"
    )
    source.need(np.abs(delays_ms) <= MOST_OFFSET_MS, lines, delays_ms, f"delays must be within {MOST_OFFSET_MS:g} ms")
    table = tuple((int(size), float(delay) / 1e3) for size, delay in zip(sizes, delays_ms, strict=True))
    return one_way("cellreplay-offset", way_of(source, said), Direction(size_delays_s=table))


def with_trains(trace: Trace) -> Trace:
    """Set the size of delivery opportunities to `TRAIN_BYTES` in directions that have packet trains, as CellReplay does."""

    def scaled(way: Direction) -> Direction:
        if way.trains is None or way.rate is None or way.packets is None:
            return way
        return replace(way, rate=replace(way.rate, rate_bps=way.rate.rate_bps * (TRAIN_BYTES / 1500)))

    down, up = scaled(trace.down), scaled(trace.up)
    if down is trace.down and up is trace.up:
        return trace
    notes = (*trace.notes, f"with packet trains, an opportunity is to send {TRAIN_BYTES} bytes, as in CellReplay")
    return replace(trace, down=down, up=up, notes=notes)


# --- NYU-METS ---------------------------------------------------------------------------------------------------------------


def is_nyu_mets(source: Source) -> bool:
    cells = source.first_cells
    return len(cells) == 2 and cells[1] in RATE_UNITS


def read_nyu_mets(source: Source, said: Told) -> Trace:
    """Read one line per second: the rate that iPerf reported, and its unit."""
    rates_bps, lines = [], []
    for line, text in source.lines:
        cells = [cell.strip() for cell in text.replace(",", " ").split()]
        if len(cells) != 2 or cells[1] not in RATE_UNITS:
            source.fail(f"must hold a rate and its unit, {', '.join(RATE_UNITS)}", line)
        rates_bps.append([cells[0]])
        lines.append(line)
    rates = source.parse(rates_bps, lines) * [RATE_UNITS[text.replace(",", " ").split()[1]] for _, text in source.lines]
    source.need((rates >= 0) & (rates <= MOST_BPS), lines, rates, f"rate in bit/s must be 0 to {MOST_BPS:g}")
    series = RateSeries(np.arange(len(rates), dtype=np.float64), rates, float(len(rates)))
    return one_way("nyu-mets-csv", way_of(source, said), Direction(rate=series))
