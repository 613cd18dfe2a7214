"""Draw agreement, entropy and cloud calls of a pair by region of the image, from the figures that its training measured.

python -m benchmarks.regions models/weights/photos docs/images/photos-regions.png
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.evaluate.ground import REGIONS
from models.evaluate.regions import CALL_PCT
from reports.figure import PAGE, finish, new_figure, render, styled
from simulator.core.files import write_atomically

SCORES = {"U": "quantile.u_tilde", "lower-top": "quantile.lower_top"}  # names of METHODS and of `metrics.json`
COLOURS = ("#0f4c81", "#bcd7ee")


def draw(regions: Mapping[str, Any]) -> Figure:
    """Draw the mapping `device.regions` of a pair's `metrics.json`."""
    rows = [regions[name] for name in REGIONS]
    names = [f"{name}\n({row['share_pct']:.0f} %)" for name, row in zip(REGIONS, rows, strict=True)]
    figure = new_figure(10.0, 3.2)
    agree, entropy, calls = figure.subplots(1, 3)
    likely, accepted = ([row[key] for row in rows] for key in ("agreement_pct", "acceptance_pct"))
    _bars(agree, names, {"same most likely token": likely, "sampled token accepted": accepted})
    agree.set_title("Device and cloud agree, %")
    _bars(entropy, names, {"": [row["cloud_entropy_nats"] for row in rows]})
    entropy.set_title("Entropy of the cloud, nats")
    _bars(calls, names, {f"by {name}": [row["calls_pct"][score] for row in rows] for name, score in SCORES.items()})
    calls.set_title(f"Cloud calls, % ({CALL_PCT:g} % over all)")
    finish(figure, PAGE, notes=["In brackets: the share of a region in all tokens of held-out images."])
    return figure


def _bars(ax: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Draw a bar per region and series, with its value above it."""
    width = 0.8 / len(series)
    for place, (label, values) in enumerate(series.items()):
        at = [region + (place - 0.5 * (len(series) - 1)) * width for region in range(len(names))]
        drawn = ax.bar(at, values, 0.94 * width, color=COLOURS[place], label=label)
        ax.bar_label(drawn, fmt=lambda value: f"{value:.0f}" if value >= 10 else f"{value:.2g}", padding=2, fontsize=8)
    ax.set_xticks(range(len(names)), names)
    ax.grid(visible=False, axis="x")
    if len(series) > 1:  # shares in percent
        ax.set(ylim=(0, 128), yticks=range(0, 101, 20))  # room for the legend
        ax.legend(loc="upper left", handlelength=1.0, borderaxespad=0.0, labelspacing=0.2)


@click.command()
@click.argument("pair", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
def main(pair: Path, picture: Path) -> None:
    measured = json.loads((pair / "metrics.json").read_text())
    if "regions" not in measured.get("device", {}):
        raise click.ClickException(f"{pair / 'metrics.json'} has no figures by region")
    with styled():
        write_atomically(picture, render(draw(measured["device"]["regions"]), "png"))


if __name__ == "__main__":
    main()
