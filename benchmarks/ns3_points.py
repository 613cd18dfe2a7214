"""Transfer times of single messages under CUBIC and BBR in ns-3: reference points for `simulator.network.congestion`.

    python -m benchmarks.ns3_points --ns3 FOLDER
    python -m benchmarks.ns3_points --compare

The first command computes the points, the second compares them with the model. FOLDER has the content of the package `ns3` from PyPI
(3.44; `pip install --no-deps --target FOLDER ns3`), against which `ns3_transfer.cc` is compiled. Without the option an installed ns3 is
used; if there is none, the command does nothing. ns-3 is GPL-2.0 and not a dependency of this project.

Some points form a grid. Others are drawn at random from the same ranges and held out: no rule of the model was chosen by looking at them.
Each is the mean over `SEEDS` patterns of loss. The model is given the same patterns (`losses`), so the difference has little noise.
"""

import csv
import importlib.util
import itertools
import math
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from benchmarks.ns3_ways import ns3_sender
from simulator.core.rng import stream
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Wire

FILE = Path(__file__).parent.parent / "tests" / "simulator" / "network" / "ns3_points.csv"
CONTROLS = {"cubic": "TcpCubic", "bbr": "TcpBbr"}
SEEDS = 400
DRAWN = 14

LIBRARIES = ("core", "network", "internet", "point-to-point", "traffic-control")


class Point(NamedTuple):
    """A transfer.

    Attributes:
        kept_back: Whether it was drawn at random and held out, not chosen.
    """

    control: str
    kept_back: bool
    message_bytes: int
    mbps: float
    rtt_ms: float
    loss_pct: float


def points() -> Iterator[Point]:
    sizes = ((14_480, 1.0), (100_000, 1.0), (100_000, 5.0), (256_000, 0.1), (256_000, 1.0), (256_000, 5.0))
    lines = ((50.0, 20.0), (10.0, 60.0), (30.0, 150.0))
    for control in CONTROLS:
        for (size, loss), (mbps, rtt_ms) in itertools.product(sizes, lines):
            yield Point(control, False, size, mbps, rtt_ms, loss)
    drawn = stream(1, "benchmarks.ns3").random((DRAWN, 4))
    for control in CONTROLS:
        for size, rate, rtt, loss in drawn.tolist():
            yield Point(
                control,
                True,
                round(math.exp(math.log(4e3) + size * math.log(64.0))),
                float(f"{100.0**rate:.3g}"),
                float(f"{10.0 * 30.0**rtt:.3g}"),
                float(f"{0.1 * 50.0**loss:.3g}"),
            )


def compiled(ns3: Path, folder: Path) -> Path:
    """Compile `ns3_transfer.cc` against ns-3 and return the program's path."""
    program, libraries = folder / "transfer", ns3 / "lib64"
    source = Path(__file__).parent / "ns3_transfer.cc"
    linked = [f"-lns3.44-{name}" for name in LIBRARIES]
    command = ["g++", "-std=c++20", "-O1", f"-I{ns3 / 'include'}", str(source), "-o", str(program)]
    subprocess.run([*command, f"-L{libraries}", f"-Wl,-rpath,{libraries}", *linked], check=True)
    return program


def measured(program: Path, point: Point) -> tuple[float, float]:
    """Return the mean transfer time and its standard error, both in s."""
    line = (CONTROLS[point.control], point.message_bytes, 1e6 * point.mbps, point.rtt_ms / 2e3, point.loss_pct / 100)
    text = "".join(f"{' '.join(map(str, line))} {seed}\n" for seed in range(SEEDS))
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    found = np.array(done.stdout.split(), np.float64)
    if len(found) != SEEDS or found.min() < 0.0:
        raise RuntimeError(f"ns-3 did not finish all transfers of {point}")
    return float(found.mean()), float(found.std() / math.sqrt(SEEDS))


def losses(share: float, seed: int, packets: int) -> np.ndarray:
    """Return bool [packets]: which of the packets sent are lost, by the same hash as in `ns3_transfer.cc`."""
    with np.errstate(over="ignore"):
        x: np.ndarray = np.arange(packets, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        x = x + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    lost: np.ndarray = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53 < share
    return lost


class Given:
    """Losses given per packet sent, in order; a `simulator.network.impairments.Losses`."""

    def __init__(self, packets: Iterable[bool]) -> None:
        self.packets = iter(packets)

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        return [n for n in range(packets) if next(self.packets, False)]

    def lost_again(self, now_s: float, packets: int) -> int:
        return len(self.lost(now_s, packets))


def modelled_s(point: Point) -> float:
    """Return the model's mean transfer time in s over the same losses, with the behaviour of ns-3 (`benchmarks.ns3_ways`)."""
    return sum(transfer_s(point, seed) for seed in range(SEEDS)) / SEEDS


def transfer_s(point: Point, seed: int) -> float:
    """Return the model's time in s of one transfer of a point."""
    rtt_s = 1e-3 * point.rtt_ms
    transport = replace(TRANSPORTS["tcp"], congestion=point.control, stack="plain")
    lost = Given(losses(0.01 * point.loss_pct, seed, 4000).tolist())
    link = ImpairedLink(Wire(1e6 * point.mbps), rtt_s / 2, rtt_s, transport, loss=lost)
    link._sender = ns3_sender(transport, rtt_s)
    return link.send(0.0, point.message_bytes)


def read(path: Path) -> Iterator[tuple[Point, float, float]]:
    """Yield the points of a file with their means and standard errors in s."""
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = (float(row[name]) for name in Point._fields[3:])
            point = Point(row["control"], row["kept_back"] == "1", int(row["message_bytes"]), *figures)
            yield point, float(row["mean_s"]), float(row["error_s"])


@click.command()
@click.option("--ns3", type=click.Path(path_type=Path, exists=True), help="Folder with the package ns3.")
@click.option("--compare", is_flag=True, help="Compare the points that there are with the model.")
@click.option("--out", type=click.Path(path_type=Path), default=FILE, show_default=True)
def main(ns3: Path | None, compare: bool, out: Path) -> None:
    if compare:
        for point, mean_s, _ in read(out):
            figures = " ".join(f"{figure:g}".rjust(7) for figure in point[2:])
            half = "kept back" if point.kept_back else "grid"
            click.echo(f"{point.control:5} {half:9} {figures}  {mean_s:.4g} s  {modelled_s(point) / mean_s - 1.0:+.1%}")
        return
    if ns3 is None:
        found = importlib.util.find_spec("ns3")
        if found is None or not found.submodule_search_locations:
            click.echo(
                "skipped: ns3 is not installed; pip install --no-deps --target FOLDER ns3, then --ns3 FOLDER/ns3"
            )
            return
        ns3 = Path(found.submodule_search_locations[0])
    with tempfile.TemporaryDirectory() as folder, out.open("w", newline="", encoding="utf-8") as file:
        program = compiled(ns3.resolve(), Path(folder))
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*Point._fields, "mean_s", "error_s"])
        for point in points():
            mean_s, error_s = measured(program, point)
            table.writerow([point.control, int(point.kept_back), *point[2:], f"{mean_s:.6g}", f"{error_s:.3g}"])
            file.flush()


if __name__ == "__main__":
    main()
