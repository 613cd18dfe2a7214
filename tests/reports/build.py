"""Invented run folders and summary rows for the tests of reports."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.regime_plot import RegimeMap
from simulator.core.rng import stream
from simulator.results.columns import REQUEST_COLUMNS, SAMPLED
from simulator.results.folder import RunImage, write_run
from simulator.results.tables import CaseRecords

PROVENANCE = {
    "name": "synthetic",
    "as_if": "latency as if llamagen-xl on a100; acceptance and quality of the scenes pair",
    "compute": {"cloud": "roofline: data sheet", "device": "published: <figure> & text"},
    "notes": ["heat of the device"],
    "git_commit": "0123abc",
}


def case(
    method: str, seconds: float, swept: dict[str, Any], nll: float = 4.0, n: int = 12, name: str = ""
) -> CaseRecords:
    """Return a case with latencies within 5 % of `seconds`, half of each in the uplink and half in computing on the device."""
    latency = seconds * stream(0, "test", method, str(swept)).uniform(0.95, 1.05, n)
    columns = {name: np.zeros(n) for name in REQUEST_COLUMNS}
    columns |= {
        "request": np.arange(n),
        "prompt": np.arange(n) % 4,
        "image": np.arange(n) % 4,
        "requested_s": 10.0 * np.arange(n),
    }
    columns |= {"latency_s": latency, "uplink_s": latency / 2, "device_compute_s": latency / 2}
    columns |= {"done_s": columns["requested_s"] + latency, "cloud_call_pct": np.full(n, 20.0)}
    shift = np.array([-0.1, 0.1, -0.05, 0.05])
    by_prompt = nll + shift + stream(0, "nll", method).uniform(-0.05, 0.05, 4)
    quality = {
        "image": np.arange(4),
        "cloud_nll": by_prompt,
        "cloud_greedy_pct": 40 + shift,
        "base_greedy_pct": 30 + shift,
    }
    return CaseRecords(method, name or method.split(" ")[0], swept, columns, quality)


CASES = [
    case("base", 8.0, {"network.preset": "wifi"}),
    case("ciar threshold=0.5", 4.0, {"network.preset": "wifi"}, nll=2.0),
    case("code prefix_rate=0.3", 6.0, {"network.preset": "wifi"}, nll=3.98),
    case("base", 8.0, {"network.preset": "lte"}),
    case("ciar threshold=0.5", 8.0, {"network.preset": "lte"}),
    case("code prefix_rate=0.3", 16.0, {"network.preset": "lte"}),
]
SWEEP = [
    case(
        method,
        seconds + slope * rtt,
        {"network.rtt_ms": rtt, **({"methods.ciar.threshold": 0.3} if method == "ciar" else {})},
    )
    for rtt in (10, 50, 200)
    for method, seconds, slope in (("base", 8.0, 0.0), ("ciar", 4.0, 0.05))
]
IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
IMAGES = [
    *[RunImage(m, p, f'prompt {p} & "more"', "image", IMAGE) for m in ("base", "ciar threshold=0.5") for p in range(5)],
    *[
        RunImage("ciar threshold=0.5", p, f"prompt {p}", "uncertainty", np.array([[0.1, np.nan], [0.3, 0.4]]))
        for p in range(5)
    ],
    *[
        RunImage("ciar threshold=0.5", p, f"prompt {p}", "decided", np.array([[0.0, 0.0], [1.0, 1.0]]))
        for p in range(5)
    ],
]


def write(folder: Path, cases: list[CaseRecords], **more: Any) -> Path:
    arguments: dict[str, Any] = {
        "scenario_yaml": "name: synthetic  # <b>\n",
        "provenance": PROVENANCE,
        "images": IMAGES,
    }
    write_run(folder, **{**arguments, "cases": cases, **more})
    return folder


def rows(*values: tuple[str, float, float, float], n: int = 9) -> pd.DataFrame:
    """Return cases from (label, mean latency, its half-width, speed-up); the interval of the speed-up is +- 1 %."""
    frame = pd.DataFrame(values, columns=["label", "latency_mean_s", "half", "speedup"])
    frame["method"], frame["distinct_images"] = frame["label"], n
    frame["latency_mean_lo_s"] = frame["latency_mean_s"] - frame["half"]
    frame["latency_mean_hi_s"] = frame["latency_mean_s"] + frame["half"]
    frame["speedup_lo"], frame["speedup_hi"] = frame["speedup"] * 0.99, frame["speedup"] * 1.01
    frame["method_name"], frame["images"] = frame["label"], n
    later = frame["latency_mean_s"] - frame["latency_mean_s"].min()
    frame["latency_minus_fastest_lo_s"], frame["latency_minus_fastest_hi_s"] = (
        later - frame["half"],
        later + frame["half"],
    )
    frame["cloud_nll_minus_base"] = frame["cloud_nll_minus_base_lo"] = math.nan
    for column in ("align_minus_base", "align_minus_base_lo", "align_minus_base_hi"):
        frame[column] = math.nan
    return frame.assign(cloud_nll=math.nan, cloud_nll_lo=math.nan, cloud_nll_hi=math.nan)


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def _carried(method: str, network: str, rate: float, devices: Any) -> dict[str, Any]:
    endless = math.isinf(rate)
    found = "inf" if endless else rate
    ends = {"rate_lo_per_s": found, "rate_hi_per_s": None} if endless or not rate else {}
    ends = ends or {"rate_lo_per_s": rate - 0.01, "rate_hi_per_s": rate + 0.01}
    return {"method": method, "network.preset": network, "rate_per_s": found, **ends, "devices": devices}


def _candidate(method: str, network: str, seconds: float, loss: float, floor: str) -> dict[str, Any]:
    half = 0.0 if method == "base" else 2.0
    ends = {"loss_pct": loss, "loss_lo_pct": loss - half, "loss_hi_pct": loss + half}
    return {
        "network.preset": network,
        "method": method,
        "latency_mean_s": seconds,
        **ends,
        "floor": floor,
        "in_time": True,
    }


_NAMES = {name: name for name in ("base", "ciar", "lantern", "device-only")}
ANSWERS: dict[str, dict[str, Any]] = {  # in the format of `ciar-sim capacity --out` and `ciar-sim recommend --out`
    "capacity": {
        "decision": "capacity",
        "names": _NAMES,
        "slo_p95_s": 20.0,
        "table": [
            _carried("base", "wifi", 0.41, 32),
            _carried("ciar", "wifi", 0.52, 41),
            _carried("lantern", "wifi", math.inf, "inf"),
            _carried("device-only", "wifi", 0.0, 0),
        ],
    },
    "recommend": {
        "decision": "recommend",
        "names": _NAMES,
        "metric": "align_scenes",
        "max_loss_pct": 5.0,
        "verified": [
            {"network.preset": "wifi", "method": "ciar", "held": True},
            {"network.preset": "lte", "method": "ciar", "held": False},
        ],
        "table": [
            _candidate(method, network, seconds * slower, loss, floor)
            for network, slower in (("wifi", 1.0), ("lte", 1.5))
            for method, seconds, loss, floor in (
                ("base", 9.5, 0.0, "keeps"),
                ("ciar", 6.0, 3.0, "keeps"),
                ("lantern", 8.0, 4.5, "unclear"),
                ("device-only", 3.2, 22.5, "fails"),
            )
        ],
    },
}


SETTINGS = [(t, rate) for t in (0.1, 0.5, 1.0) for rate in (0.0, 0.2)]
# Kind of plot -> name of a run that it can draw.
OF_KIND = {
    "latency-quality": "settings",
    "heat-maps": "settings",
    "speed-up": "rtt",
    "sweep": "rtt",
    "latency-cdf": "rtt",
    "breakdown": "rtt",
    "load": "load",
    "queue": "load",
    "speed-up-table": "rtt",
    "uncertainty": "rtt",
    "images": "rtt",
}


def write_kinds(folder: Path) -> dict[str, Path]:
    """Write the run folders of `OF_KIND`; return them by name."""
    of_settings = [case("base", 8.0, {})] + [
        case("ciar", 9.0 - 6 * t, {"methods.ciar.threshold": t, "methods.ciar.prefix_rate": rate}, nll=4.0 + t)
        for t, rate in SETTINGS
    ]
    samples = dict.fromkeys(SAMPLED, np.arange(5)) | {"time_s": 2.0 * np.arange(5)}
    loads = [
        replace(
            case(method, seconds / (1 - rate / cap), {"workload.arrivals.poisson_per_s": rate}),
            **{"samples": samples, "duration_s": 100.0, "slos_s": (20.0,)},
        )
        for rate in (0.05, 0.1, 0.2)
        for method, seconds, cap in (("base", 8.0, 0.3), ("ciar", 4.0, 0.21))
    ]
    slo = "name: load\nworkload: {slo_s: 20}\n"
    return {
        "settings": write(folder / "settings", of_settings, images=()),
        "rtt": write(folder / "rtt", SWEEP),
        "load": write(folder / "load", loads, images=(), scenario_yaml=slo),
    }


def write_maps(folder: Path) -> tuple[Path, Path]:
    """Write the folders of regime maps over one condition and over two, in the format of `ciar-sim regime`."""
    rtts, rates = (5.0, 20.0, 80.0), (1.0, 10.0)
    x, y = "network.rtt_ms", "network.up_mbps"
    places = []
    for name, ups in (("line", (None,)), ("plane", rates)):
        rows = [({y: up} if up else {}) | {x: rtt} for up in ups for rtt in rtts]
        cells = pd.DataFrame([{**row, "winner": "base" if row[x] > 10 else "ciar", "sure": row[x] > 5} for row in rows])
        latency = pd.DataFrame(
            [
                {**row, "method": method, "latency_s": 4.0 + row[x] * slope, "floor_kept": True}
                for row in rows
                for method, slope in (("base", 0.01), ("ciar", 0.03))
            ]
        )
        even = pd.DataFrame(
            [
                ({y: up} if up else {}) | {x: 12.0, "low": 8.0, "high": 15.0, "below": "ciar", "above": "base"}
                for up in ups
            ]
        )
        names = {"base": "base", "ciar": "ciar"}
        drawn = RegimeMap(cells, even, latency, x, y if ups == rates else None, True, False, names, "Quality floor.")
        (folder / name).mkdir(parents=True)
        for file, content in drawn.files().items():
            (folder / name / file).write_bytes(content)
        places.append(folder / name)
    return places[0], places[1]
