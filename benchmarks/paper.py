"""The CIAR paper's table, predicted: speed-ups of statistical sessions at true model costs, compared with the published ones, and over RTT.

    python -m benchmarks.paper                       # prints the tables
    python -m benchmarks.paper docs/paper-table.md   # writes them into the page, between their marks

One figure per backbone is calibrated: the device's memory bandwidth, so that CIAR's row matches the published one. Everything else follows
from the published rates of cloud calls, the models' shapes and the eager step of an A100 (scenarios/paper-*.yaml).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.results import with_tables
from ciar_sim.decide.bench import Bench, Resources
from simulator.core import yamlfile
from simulator.experiment.loading import load_with_source

STAGE_1, STAGE_2, ANOLE = "LlamaGen-XL stage I", "LlamaGen-XL stage II", "Anole"
SCENARIOS = {STAGE_1: "paper-llamagen-xl", ANOLE: "paper-anole"}
TOKENS = {STAGE_1: 256, STAGE_2: 1024, ANOLE: 1024}
FOLDER = Path(__file__).resolve().parents[1] / "scenarios"
BANDWIDTH = "compute.device.hardware.bandwidth_gb_s"
RTTS_MS = (0, 10, 30, 60, 100, 200)
ACCESS = {"up_mbps": 40, "down_mbps": 90}  # of the RTT tables: home Wi-Fi's rates
CLOUDS = {
    "A100, eager": ("a100", "eager"),
    "A100, CUDA graphs": ("a100", "cuda-graphs"),
    "H100, CUDA graphs": ("h100", "cuda-graphs"),
}
LEAST_SLOPE = 1e-6  # s per ms of RTT; below it a method has no more round trips than Base and no break-even
CAPTIONS = ["a brown dog running across a green field", "two people riding bicycles along a canal"]  # of an RTT table


@dataclass(frozen=True)
class Published:
    """A row of the paper: speed-ups over Base and cloud calls in percent. None where the table is illegible or has no figure."""

    backbone: str
    method: str  # label in the scenario, "" if it is not simulated
    title: str
    latency: float | None = None
    step: float | None = None
    call_pct: float | None = None
    note: str = ""


# CIAR: Interval-based Collaborative Decoding for Image Generation Acceleration (arXiv 2603.25463): main table, ablation of the scores. Of
# its second reading the block of Anole is assigned by its FIDs; rows that it repeats digit for digit are left out.
TABLE = (
    Published(STAGE_1, "base", "Base", 1.0, 1.0, 100.0),
    Published(STAGE_1, "", "EAGLE-2", note="no legible figures"),
    Published(STAGE_1, "lantern", "Lantern", 1.66, None, 50.11),
    Published(STAGE_1, "entropy-lens", "Entropy-Lens", 1.70, 2.05, 52.34),
    Published(STAGE_1, "code", "CoDe", 2.04, None, 30.0),
    Published(STAGE_1, "ciar", "CIAR", 2.53, 3.0, 30.44, "calibrates the device"),
    Published(STAGE_1, "random", "Random", 2.28, None, 36.46, "ablation"),
    Published(STAGE_1, "softmax-corr", "SoftmaxCorr", 2.27, None, 36.49, "ablation"),
    Published(STAGE_2, "base", "Base", 1.0, 1.0, 100.0),
    Published(STAGE_2, "", "EAGLE-2", None, 1.19, 84.55, "doubtful, no latency"),
    Published(STAGE_2, "", "Lantern, Entropy-Lens, CoDe", note="no legible figures"),
    Published(STAGE_2, "ciar", "CIAR", 2.13, None, 34.46, "device of stage I"),
    Published(ANOLE, "base", "Base", 1.0, 1.0, 100.0),
    Published(ANOLE, "eagle2", "EAGLE-2", 1.02, 1.09, 91.98),
    Published(ANOLE, "lantern", "Lantern", 1.25, 1.81, 50.35),
    Published(ANOLE, "entropy-lens", "Entropy-Lens", 1.57, 2.53, 39.86),
    Published(ANOLE, "code", "CoDe", 1.55, 2.89, 30.0),
    Published(ANOLE, "ciar", "CIAR", 1.87, 3.29, 29.88, "calibrates the device"),
)
TREES, GATED = ("eagle2", "lantern"), ("entropy-lens", "random", "softmax-corr", "ciar")


def decode_s(
    scenario: str, cache_folder: Path | None, changes: Mapping[str, Any] = {}
) -> dict[tuple[str, float], float]:
    """Return the mean decode time in s by (method, swept RTT in ms; 0 without one).

    Args:
        changes: Values of the scenario to replace, by dotted path.
    """
    data = yamlfile.read(FOLDER / f"{scenario}.yaml").data
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = data
        for key in parents:
            part = part.setdefault(key, {})
        part[last] = value
    bench = Bench(load_with_source(data, ()), Resources(cache=cache_folder))
    prepared = bench.prepare(bench.cases())
    found = prepared.measure()
    return {
        (one.case.method.label, float(one.case.swept.get("network.rtt_ms", 0))): float(one.columns["decode_s"].mean())
        for one in found.values()
    }


def speedups(seconds: Mapping[tuple[str, float], float]) -> dict[str, float]:
    """Return Base's decode time divided by each method's, without a swept RTT."""
    return {method: seconds["base", 0.0] / own for (method, _), own in seconds.items()}


def calibrated(backbone: str, cache_folder: Path | None) -> float:
    """Return the device's bandwidth in GB/s at which CIAR's speed-up over Base equals the published one.

    The device is memory-bound, so its time is linear in 1 / bandwidth, and two runs determine the line.
    """
    wanted = next(row.latency for row in TABLE if (row.backbone, row.method) == (backbone, "ciar"))
    assert wanted is not None
    low, high = 40.0, 80.0
    slow, fast = (decode_s(SCENARIOS[backbone], cache_folder, {BANDWIDTH: value}) for value in (low, high))
    slope = (slow["ciar", 0.0] - fast["ciar", 0.0]) / (1 / low - 1 / high)
    rest = slow["ciar", 0.0] - slope / low
    return slope / (slow["base", 0.0] / wanted - rest)


class Prediction:
    """The figures of the tables, computed once."""

    def __init__(self, cache_folder: Path | None = None) -> None:
        self.cache_folder = cache_folder
        self.bandwidth = {backbone: calibrated(backbone, cache_folder) for backbone in SCENARIOS}
        self.seconds = {
            backbone: decode_s(name, cache_folder, {BANDWIDTH: self.bandwidth[backbone]})
            for backbone, name in SCENARIOS.items()
        }
        second = {"pair": "paper-llamagen-xl-stage2", "methods": ["base", {"name": "ciar", "threshold": 0.3}]}
        second |= {"compute.device.model": "llamagen-xl-stage2-1layer", "compute.cloud.model": "llamagen-xl-stage2"}
        self.seconds[STAGE_2] = decode_s(
            SCENARIOS[STAGE_1], cache_folder, {**second, BANDWIDTH: self.bandwidth[STAGE_1]}
        )

    def error(self, row: Published) -> float | None:
        """Return predicted / published speed-up - 1; None if either is missing."""
        if row.latency is None or not row.method:
            return None
        return speedups(self.seconds[row.backbone])[row.method] / row.latency - 1

    def predicted_table(self) -> str:
        lines = [
            "| backbone | method | cloud calls % | published | predicted | off by | published steps | 100 / calls | |",
            "|---|---|--:|--:|--:|--:|--:|--:|---|",
        ]
        for row in TABLE:
            error = self.error(row)
            found = "-" if not row.method else f"{speedups(self.seconds[row.backbone])[row.method]:.2f}"
            steps = "-" if row.call_pct is None else f"{100 / row.call_pct:.2f}"
            lines.append(
                f"| {row.backbone} | {row.title} | {_shown(row.call_pct)} | {_shown(row.latency)} | {found} | "
                f"{'-' if error is None else f'{100 * error:+.1f} %'} | {_shown(row.step)} | {steps} | {row.note} |"
            )
        return "\n".join(lines)

    def device_table(self) -> str:
        lines = [
            "| backbone | Base's step ms | device's token ms | of a cloud step | device's bandwidth GB/s |",
            "|---|--:|--:|--:|--:|",
        ]
        for backbone in SCENARIOS:
            step, token = self.steps(backbone)
            lines.append(
                f"| {backbone} | {1e3 * step:.1f} | {1e3 * token:.2f} | {token / step:.3f} | {self.bandwidth[backbone]:.1f} |"
            )
        return "\n".join(lines)

    def steps(self, backbone: str) -> tuple[float, float]:
        """Return the seconds of Base's step, and of a token on the device as derived from CoDe's row."""
        count = TOKENS[backbone]
        step = self.seconds[backbone]["base", 0.0] / count
        first = int(0.3 * count)
        return step, (self.seconds[backbone]["code", 0.0] - first * step) / (count - first)

    def implied_table(self) -> str:
        """Return a table of the cost of a device token or a round, in cloud steps, that the published rows of CoDe and the trees imply."""
        lines = ["| backbone | method | what | published implies | predicted | ratio |", "|---|---|---|--:|--:|--:|"]
        for row in TABLE:
            if row.latency is None or row.method not in ("code", *TREES):
                continue
            found = speedups(self.seconds[row.backbone])[row.method]
            assert row.call_pct is not None
            if row.method == "code":
                share = int(0.3 * TOKENS[row.backbone]) / TOKENS[row.backbone]
                what, said, own = (
                    "a token on the device",
                    (1 / row.latency - share) / (1 - share),
                    (1 / found - share) / (1 - share),
                )
            else:
                what, said, own = "a round", 100 / row.latency / row.call_pct, 100 / found / row.call_pct
            lines.append(f"| {row.backbone} | {row.title} | {what} | {said:.3f} | {own:.3f} | {said / own:.2f} |")
        return "\n".join(lines)

    def along(self, backbone: str, cloud: str) -> dict[tuple[str, float], float]:
        hardware, runtime = CLOUDS[cloud]
        trees = [{"name": name, **({"k": 1000} if name == "lantern" else {})} for name in self.trees(backbone)]
        gated = [{"name": "entropy-lens", "threshold": 0.5}, {"name": "ciar", "threshold": 0.3}]
        changes = {
            BANDWIDTH: self.bandwidth[backbone],
            "compute.cloud.hardware": hardware,
            "compute.cloud.runtime": runtime,
            "methods": ["base", *trees, {"name": "code", "prefix_rate": 0.3}, *gated],
            "prompts.list": CAPTIONS,
            **{f"network.{key}": value for key, value in ACCESS.items()},
            "sweep": {"network.rtt_ms": list(RTTS_MS)},
        }
        return decode_s(SCENARIOS[backbone], self.cache_folder, changes)

    def trees(self, backbone: str) -> list[str]:
        return [name for name in TREES if any((row.backbone, row.method) == (backbone, name) for row in TABLE)]

    def rtt_table(self, backbone: str) -> str:
        """Return a table of decode speed-ups over RTT, and the RTT at which each method breaks even with Base."""
        lines = [
            "| cloud | method | " + " | ".join(f"{rtt} ms" for rtt in RTTS_MS) + " | breaks even at |",
            "|---|---|" + "--:|" * (len(RTTS_MS) + 1),
        ]
        for cloud in CLOUDS:
            found = self.along(backbone, cloud)
            for method in dict.fromkeys(name for name, _ in found if name != "base"):
                gains = [found["base", float(rtt)] / found[method, float(rtt)] for rtt in RTTS_MS]
                cells = " | ".join(f"{gain:.2f}" for gain in gains)
                lines.append(f"| {cloud} | {method} | {cells} | {break_even(found, method)} |")
        return "\n".join(lines)

    def tables(self) -> dict[str, str]:
        return {
            "predicted": self.predicted_table(),
            "device": self.device_table(),
            "implied": self.implied_table(),
            "rtt-llamagen-xl": self.rtt_table(STAGE_1),
            "rtt-anole": self.rtt_table(ANOLE),
        }


def break_even(found: Mapping[tuple[str, float], float], method: str) -> str:
    """Return the RTT at which a method takes as long as Base. Both grow linearly with it, by a round trip per call."""
    first, last = float(RTTS_MS[0]), float(RTTS_MS[-1])
    gain = {rtt: found["base", rtt] - found[method, rtt] for rtt in (first, last)}
    if gain[first] <= 0:
        return "never"
    per_ms = (gain[first] - gain[last]) / (last - first)
    return f"{first + gain[first] / per_ms:.0f} ms" if per_ms > LEAST_SLOPE else "none: faster at any"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option(
    "--cache", "cache_folder", type=click.Path(path_type=Path), help="Folder of sessions.  [default: as ciar-sim run]"
)
def main(page: Path | None, cache_folder: Path | None) -> None:
    """Print the tables, or write them into PAGE."""
    tables = Prediction(cache_folder).tables()
    if page is None:
        for name, table in tables.items():
            click.echo(f"{name}\n\n{table}\n")
    else:
        page.write_text(with_tables(page.read_text(), tables))


if __name__ == "__main__":
    main()
