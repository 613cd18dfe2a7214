"""`ciar-sim train` and `ciar-sim profile`."""

from pathlib import Path

import click

from ciar_sim.cli.common import errors_in_one_line, resolve_torch_device


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of checkpoints and logs.  [default: train-runs/<config name>]",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: as the file's data says]")
@click.option("--stage", "stages", multiple=True, help="Train only this stage; repeat for more.  [default: all]")
@click.option("--export", type=click.Path(path_type=Path), help="Also assemble the trained pair into this folder.")
@click.option(
    "--torch-device", default="auto", show_default=True, help="Where training runs: auto, cpu, cuda, cuda:1 ..."
)
@errors_in_one_line
def train(
    config: Path, out: Path | None, data: Path | None, stages: tuple[str, ...], export: Path | None, torch_device: str
) -> None:
    """Train a model pair from a CONFIG file, e.g. models/scenes.yaml. Stopped at any moment, the same command goes on."""
    from models.train.run import train_pair

    out = out or Path("train-runs") / config.stem
    train_pair(config, out, stages, export, resolve_torch_device(torch_device), data)


@click.command()
@click.option("--pair", default="scenes", show_default=True, help="A shipped pair's name, or a pair's folder.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("profile.json"), show_default=True, help="File to write."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    help="After this long what is left is timed once.",
)
@click.option(
    "--compare-roofline",
    is_flag=True,
    help="Also measure peak and bandwidth, and print how far a roofline of them is off.",
)
@click.option("--torch-device", default="auto", show_default=True, help="What is measured: auto, cpu, cuda, cuda:1 ...")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@errors_in_one_line
def profile(pair: str, out: Path, seconds: float, compare_roofline: bool, torch_device: str, quiet: bool) -> None:
    """Time the pair's forward passes on this machine, over batch, new tokens and cached tokens, and store them.

    A scenario prices with the file by compute: {cloud: {model: pair, profile: FILE}}, the device likewise. Measure on an idle machine.
    """
    from ciar_sim.cli.console import profile_lines, progress_bars, roofline_lines
    from models.pair import load_pair
    from models.profile import measure_hardware, measure_profile
    from simulator.pricing.build import pair_shapes
    from simulator.pricing.compare import compare_with_roofline

    with progress_bars(quiet) as progress:
        loaded = load_pair(pair, resolve_torch_device(torch_device))
        found = measure_profile(loaded, lambda done, total: progress("measuring compute times", done, total), seconds)
    found.write(out)
    if not quiet:
        click.echo(profile_lines(found))
    if compare_roofline:
        machine = measure_hardware(loaded.torch_device)
        click.echo(roofline_lines(compare_with_roofline(found, pair_shapes(pair), machine), machine))
    if not quiet:
        click.echo(f"{out}")
