"""`ciar-sim train` and `ciar-sim profile`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciar_sim.cli.common import (
    PAIR_HELP,
    Commands,
    FiniteRange,
    errors_in_one_line,
    pair_of,
    prompts_of,
    refuse_unusable,
    refuse_unwritable,
    resolve_torch_device,
    torch_device_option,
)

if TYPE_CHECKING:
    from models.pair import Pair


class _Training(Commands):
    """A group in which `train CONFIG` is an alias of `train file CONFIG`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else ["file", *args])


@click.group(cls=_Training, no_args_is_help=True, subcommand_metavar="CONFIG | device [OPTIONS]")
def train() -> None:
    """Train a model pair from a CONFIG file, or distil a device model for an existing pair."""


@train.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of checkpoints and logs.  [default: train-runs/<config name>]",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: that of the file's `data`]")
@click.option("--stage", "stages", multiple=True, help="Train only this stage; repeat for more.  [default: all]")
@click.option("--export", type=click.Path(path_type=Path), help="Also assemble the trained pair into this folder.")
@torch_device_option
@errors_in_one_line
def file(
    config: Path, out: Path | None, data: Path | None, stages: tuple[str, ...], export: Path | None, torch_device: str
) -> None:
    """Train a model pair from a CONFIG file, e.g. models/scenes.yaml. The same command continues an interrupted training."""
    from models.train.run import train_pair

    out = out or Path("train-runs") / config.stem
    train_pair(config, out, stages, export, resolve_torch_device(torch_device), data)


@train.command()
@click.option("--pair", required=True, help=PAIR_HELP)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="File of captions that the cloud decodes images for.  [default: every class of a class-conditional model]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("train-runs/device"),
    show_default=True,
    help="Folder to write.",
)
@click.option(
    "--images",
    type=click.IntRange(2, 10**7),
    default=2048,
    show_default=True,
    help="Images that the cloud decodes (once) for training.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 10**8),
    default=4000,
    show_default=True,
    help="Training steps of the device model.",
)
@click.option(
    "--phi-steps",
    type=click.IntRange(0, 10**8),
    default=400,
    show_default=True,
    help="Training steps of phi; with 0 it has no effect.",
)
@click.option(
    "--batch-images", type=click.IntRange(1, 4096), default=16, show_default=True, help="Images per training step."
)
@click.option("--guidance", type=FiniteRange(1, 100), help="Guidance of both models.  [default: the pair's]")
@click.option(
    "--top-k",
    type=click.IntRange(0, 65536),
    default=0,
    show_default=True,
    help="Top-k of the cloud's sampling; 0 is off.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Images that the cloud decodes at once; limits memory use.",
)
@torch_device_option
@click.option("--quiet", is_flag=True, help="Print no progress.")
@errors_in_one_line
def device(
    pair: str,
    prompts: Path | None,
    out: Path,
    guidance: float | None,
    max_batch: int,
    torch_device: str,
    quiet: bool,
    **settings: int,
) -> None:
    """Distil CIAR's one-layer device with its Inter-Head, and phi, from the cloud model of a pair.

    The same command continues an interrupted training. The folder is the `device:` of the pair. On a GPU, steps run in bfloat16.
    """
    from rich.console import Console

    from ciar_sim.cli.console import progress_bars
    from models.pair import load_pair
    from models.train.distil import DistilSettings, distil

    refuse_unusable(out)
    where = resolve_torch_device(torch_device)
    ref = pair_of(pair)
    loaded = load_pair(ref, where)
    own = {
        "guidance": loaded.manifest.guidance if guidance is None else guidance,
        "amp": "bf16" if where.startswith("cuda") else "none",
    }
    distilled = DistilSettings.model_validate({**settings, **own})
    captions = _captions(prompts, loaded)
    with progress_bars(quiet) as progress:
        told = partial(progress, "images of the cloud")
        distil(loaded, captions, distilled, out, where, told, Console(stderr=True, quiet=quiet), max_batch)
    if not quiet:
        click.echo(f"{out}")


def _captions(prompts: Path | None, pair: "Pair") -> list[str]:
    """Return the captions of a file, or every class label without a file. Raises PromptError."""
    from models.backbones.t5 import T5Encoder
    from simulator.core.errors import PromptError

    if prompts is None:
        if not pair.cloud.classes:
            raise PromptError("--prompts: a file of captions is needed")
        return [str(label) for label in range(pair.cloud.classes)]
    found = prompts_of(prompts)
    if not isinstance(pair.text, T5Encoder):  # T5 accepts every caption, and needs seconds for each
        for one in found:
            try:
                pair.text.encode(one.text)
            except PromptError as error:
                raise PromptError(f"{one.within(str(prompts))}: {error}") from None
    return [one.text for one in found]


@click.command()
@click.option("--pair", help=f"{PAIR_HELP}  [default: scenes, without --model]")
@click.option(
    "--model", help="A name of `ciar-sim list models`; it and its one-layer form are timed at their true shape."
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Required with --model: times do not depend on the weights, so none are loaded.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the weights of --model.  [default: float32]",
)
@click.option(
    "--runtime",
    type=click.Choice(["eager", "cuda-graphs"]),
    help="How passes of --model are launched; graphs need a CUDA device.  [default: eager]",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    help="Largest batch of --model, in sessions.  [default: 16]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("profile.json"), show_default=True, help="File to write."
)
@click.option(
    "--seconds",
    type=FiniteRange(0),
    default=120.0,
    show_default=True,
    help="Time budget; after it, each remaining shape is timed once.",
)
@click.option(
    "--compare-roofline",
    is_flag=True,
    help="Also measure peak and bandwidth, and print the errors of rooflines from them and from figures fitted to the passes.",
)
@click.option(
    "--fit",
    type=click.Path(path_type=Path),
    help="Write the fitted figures as hardware for a scenario (compute.device.hardware: FILE.yaml).",
)
@click.option(
    "--torch-device", default="auto", show_default=True, help="Device to measure: auto, cpu, cuda, cuda:1 ..."
)
@click.option("--quiet", is_flag=True, help="Print no progress and no table.")
@errors_in_one_line
def profile(
    pair: str | None,
    model: str | None,
    random_weights: bool,
    dtype: str | None,
    runtime: str | None,
    batch: int | None,
    out: Path,
    seconds: float,
    compare_roofline: bool,
    fit: Path | None,
    torch_device: str,
    quiet: bool,
) -> None:
    """Measure the times of forward passes on this machine, by batch, new tokens and cached tokens, and store them.

    A scenario uses the file with compute: {cloud: {model: pair, profile: FILE}}, and likewise for the device; write the name of a
    catalogue model instead of pair. Measure on an idle machine.
    """
    from ciar_sim.cli.console import profile_lines, progress_bars, roofline_lines
    from ciar_sim.cli.profiling import fitted_yaml, measure, shapes_of
    from simulator.pricing.compare import compare_with_roofline, fit_roofline

    if model is not None and pair is not None:
        raise click.UsageError("--pair and --model: give one of them")
    if (model is not None) != random_weights:
        raise click.UsageError("--model goes with --random-weights, and --random-weights with --model")
    for option, value in {"--dtype": dtype, "--runtime": runtime, "--batch": batch}.items():
        if model is None and value is not None:
            raise click.UsageError(f"{option} goes with --model: a pair is timed as it is")
    refuse_unwritable(out, "json")
    refuse_unwritable(fit, "yaml", "yml")
    device = resolve_torch_device(torch_device)
    with progress_bars(quiet) as progress:
        told = partial(progress, "measuring compute times")
        shape = (dtype or "float32", runtime or "eager", batch or 16)
        found = measure(pair or "scenes", model, *shape, device, told, seconds)
    found.write(out)
    if not quiet:
        click.echo(profile_lines(found))
    if compare_roofline or fit is not None:
        import torch

        from models.profile import measure_hardware

        shapes = shapes_of(pair or "scenes", model)
        fitted = fit_roofline(found, shapes)
        if fit is not None:
            fitted_yaml(fitted, fit)
        if compare_roofline:
            machine = measure_hardware(torch.device(device), getattr(torch, found.dtype))
            cells = {
                "measured": compare_with_roofline(found, shapes, machine),
                "together": compare_with_roofline(found, shapes, fitted.hardware, fitted.runtime),
                "alone": compare_with_roofline(found, shapes, fitted.by_role, fitted.runtime),
            }
            click.echo(roofline_lines(cells, machine, fitted))
    if not quiet:
        click.echo(f"{out}")
