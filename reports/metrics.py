"""The metrics of a run, each with one name and unit for tables, plots and sentences."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class Metric(NamedTuple):
    """A metric and how it is displayed.

    Attributes:
        name: column of the summary.
        title: displayed name.
        unit: displayed unit; empty for none.
        scale: factor from the column to the unit.
        relative: whether a ratio to the baseline is meaningful.
        if_any: whether it is shown only if some value is not 0.
        reading: which values are good, in one sentence; empty if the name says it.
        loss: column whose absolute value is the loss of quality; empty for none.
    """

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0
    relative: bool = False
    if_any: bool = False
    reading: str = ""
    loss: str = ""

    @property
    def heading(self) -> str:
        """Name and unit for the heading of a table or an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def upright(self) -> str:
        """Name and unit for a y axis, in two lines if they are long."""
        return f"{self.title}\n({self.unit})" if len(self.heading) > 16 and self.unit else self.heading


LATENCY = Metric("latency_mean_s", "latency", "s", relative=True)
P95 = Metric("latency_p95_s", "p95", "s", relative=True)
SPEEDUP = Metric("speedup", "speed-up", "× base")
CALLS = Metric("cloud_call_pct", "cloud calls", "%")
ENERGY = Metric("device_energy_j", "device energy", "J", relative=True)
COST = Metric("cost_usd", "cost", "$", relative=True)
GOODPUT = Metric("goodput_per_s", "goodput", "per s", relative=True)
BUSY = Metric("cloud_utilisation", "cloud busy", "%", scale=100.0)
CLOUD_NLL = Metric(
    "cloud_nll",
    "cloud_nll",
    "nats per token",
    reading="cloud_nll is two-sided: the farther from base's value on either side, the more the images differ from base's.",
    loss="cloud_nll_minus_base",
)
BEFORE_QUALITY = (
    LATENCY,
    P95,
    SPEEDUP,
    ENERGY,
    COST,
    CALLS,
    CLOUD_NLL,
)
AFTER_QUALITY = (
    Metric("images", "images"),
    Metric("latency_p50_s", "p50", "s", relative=True),
    Metric("latency_p99_s", "p99", "s", relative=True),
    Metric("first_token_s", "first token", "s", relative=True),
    Metric("decode_s", "decode", "s", relative=True),
    Metric("calls", "calls"),
    Metric("device_passes", "device passes"),
    Metric("cloud_passes", "cloud passes"),
    Metric("base_greedy_pct", "equal to base's greedy token", "%"),
    Metric("cloud_greedy_pct", "equal to cloud's arg max", "%"),
    Metric("distinct_images", "distinct images"),
    Metric("bytes_up", "up", "kB", 1e-3, relative=True),
    Metric("bytes_down", "down", "kB", 1e-3, relative=True),
    Metric("device_active_j", "active energy", "J", relative=True),
    Metric("device_static_j", "static energy", "J", relative=True),
    Metric("cloud_gpu_s", "cloud GPU", "s", relative=True),
    BUSY,
    Metric("under_way_mean", "in flight, mean"),
    Metric("cloud_waiting_mean", "waiting in the cloud, mean"),
    Metric("refused", "refused", if_any=True),
    Metric("unfinished", "unfinished", if_any=True),
    GOODPUT,
    Metric("threshold", "threshold in force"),
    Metric("budget", "budget in force"),
    Metric("retries", "retries", if_any=True),
    Metric("fallback_pct", "decided on the device after a missed deadline", "% of tokens", if_any=True),
    Metric("fallback_cloud_nll_cost", "change of cloud_nll by fallbacks", "nats per token", if_any=True),
)
WHOLE = ("images", "distinct_images", "refused", "unfinished")  # counts
# Prefixes of the quality metrics of a pair -> unit and scale. The rest of the name is what was measured (fd_scenes).
_OF_PAIR = {
    "align": ("%", 100.0),
    "fd": ("", 1.0),
    "f1": ("", 1.0),
    "fid": ("", 1.0),
    "clip": ("", 1.0),
    "hpsv2": ("", 1.0),
}


def metrics(summary: pd.DataFrame) -> list[Metric]:
    """Return the metrics that the cases of a run have, in the order of tables."""
    known = [*BEFORE_QUALITY, *quality_metrics(summary), *AFTER_QUALITY]
    there = [one for one in known if one.name in summary and summary[one.name].notna().any()]
    return [one for one in there if not one.if_any or (summary[one.name].fillna(0) != 0).any()]


def quality_metrics(summary: pd.DataFrame) -> list[Metric]:
    """Return the quality metrics of the pair that have a value: alignment first, then distances."""
    found = []
    for start, (unit, scale) in _OF_PAIR.items():
        for name in summary.columns:
            column = str(name)
            if column != start and (
                not column.startswith(f"{start}_") or column.endswith(("_lo", "_hi", "_minus_base"))
            ):
                continue
            if pd.api.types.is_numeric_dtype(summary[column]) and np.isfinite(summary[column]).any():
                reading = f"{column} is a distance to real images: lower is better, at equal numbers of images."
                is_distance = start in ("fd", "fid")
                found.append(
                    Metric(
                        column,
                        column,
                        unit,
                        scale,
                        relative=True,
                        reading=reading if is_distance else "",
                        loss=column if is_distance else "",
                    )
                )
    return found


def alignment(summary: pd.DataFrame) -> Metric | None:
    """Return the metric of the share of the caption's attributes found in the images, or None if no case has it."""
    return next((one for one in quality_metrics(summary) if one.name.startswith("align_")), None)


def quality_metric_of(summary: pd.DataFrame) -> Metric:
    """Return the distance to real images if every case that ran has it, else cloud_nll, which exists for any number of images."""
    ran = summary[np.isfinite(summary["latency_mean_s"])]
    distances = [one for one in quality_metrics(ran) if one.loss == one.name]
    return next((one for one in distances if np.isfinite(ran[one.name]).all()), CLOUD_NLL)
