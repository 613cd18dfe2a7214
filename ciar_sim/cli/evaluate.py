"""`ciar-sim evaluate uncertainty|samples|pictures`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciar_sim.cli.common import (
    PAIR_HELP,
    Commands,
    FiniteRange,
    cache_option,
    default_cache,
    errors_in_one_line,
    max_batch_option,
    pair_of,
    prompts_of,
    quiet_option,
    refuse_unusable,
    resolve_torch_device,
    sets_option,
    torch_device_option,
    write_files,
)
from ciar_sim.cli.models import Models

if TYPE_CHECKING:
    from models.quality.judges import Captions
    from simulator.protocol.pairs import PairRef

pair_option = click.option("--pair", default="scenes", show_default=True, help=PAIR_HELP)
captions_option = click.option(
    "--captions",
    "captions_file",
    type=click.Path(path_type=Path),
    help="Take the first --prompts different captions of this file.  [default: the pair's own, or class labels]",
)
SEED = 3
SAMPLES_SEED = 4  # of samples of scenes, which are compared with real scenes of seed 3


def seed_option(default: int | None, said: str = "") -> Callable[[Any], Any]:
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=default,
        show_default=default is not None,
        help=f"Seed of the captions and of every draw.{said}",
    )


@click.group(cls=Commands, no_args_is_help=True)
def evaluate() -> None:
    """Evaluate a model pair itself, without any network."""


def _captions(pair: "PairRef", file: Path | None) -> "Captions":
    """Return the source of captions: distinct ones of a file, or the pair's held-out ones. Raises PromptError if there are none."""
    from models.quality.judges import captions_of
    from simulator.core.errors import PromptError
    from simulator.protocol.pairs import pair_manifest

    if file is not None:
        found = list(dict.fromkeys(prompt.text for prompt in prompts_of(file)))
        return lambda seed, count: found[:count]
    own, manifest = captions_of(pair, held_out_only=True), pair_manifest(pair)
    if not own(0, 1) and manifest.statistics is None:
        raise PromptError(f"--captions: a file of captions is needed; the pair {manifest.name} holds none of its own")
    return own


@evaluate.command()
@pair_option
@captions_option
@click.option("--prompts", type=click.IntRange(2, 100_000), default=64, show_default=True, help="Held-out prompts.")
@seed_option(SEED)
@click.option(
    "--on",
    type=click.Choice(["generated", "scenes"]),
    default="generated",
    show_default=True,
    help="Evaluate on sequences that the cloud decodes, or on the tokens of real scenes (pairs of scenes only).",
)
@click.option("--guidance", type=FiniteRange(1, 100), help="Guidance of both models.  [default: that of a scenario]")
@click.option(
    "--sampled-tokens",
    type=click.IntRange(0, 10**9),
    default=64,
    show_default=True,
    help="Positions per prompt at which discrete k = 100 and 300 are evaluated, and at most 8 tokens compared in pixels; both are slow.",
)
@click.option(
    "--ceiling",
    is_flag=True,
    help="Also train a head on the events themselves, with other prompts: an upper limit for scores from the device's states.",
)
@click.option("--timing/--no-timing", default=True, help="Time every score.  [default: on]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/uncertainty"),
    show_default=True,
    help="Folder to write.",
)
@torch_device_option
@max_batch_option
@quiet_option
@errors_in_one_line
def uncertainty(
    pair: str,
    captions_file: Path | None,
    out: Path,
    torch_device: str,
    max_batch: int,
    quiet: bool,
    **settings: Any,
) -> None:
    """Measure how well each uncertainty score predicts where the cloud would choose another token (docs/uncertainty.md)."""
    from ciar_sim.cli.console import progress_bars
    from models.evaluate.reading import Settings
    from models.evaluate.uncertainty import evaluate_uncertainty
    from models.recording import load_models
    from reports.uncertainty import draw, markdown
    from simulator.protocol.pairs import pair_manifest
    from simulator.results.files import csv_bytes, parquet_bytes

    named = pair_of(pair)
    refuse_unusable(out)
    own_scenes = captions_file is None and pair_manifest(named).subject == "scenes"
    captions = None if own_scenes else _captions(named, captions_file)
    with progress_bars(quiet) as progress:
        loaded = load_models(named, resolve_torch_device(torch_device))
        found = evaluate_uncertainty(loaded, Settings(max_batch=max_batch, **settings), progress, captions)
    text = markdown(found.summary, found.regions, found.timing, found.facts)
    files: dict[str, bytes | None] = {
        "tokens.parquet": parquet_bytes(found.tokens),
        "uncertainty.csv": csv_bytes(found.summary),
        "regions.csv": csv_bytes(found.regions),
        "timing.csv": None if found.timing is None else csv_bytes(found.timing),
        **draw(found.summary, found.risk, found.calibration, found.facts),
        "uncertainty.md": text.encode(),
    }
    write_files(out, files)
    if not quiet:
        click.echo(text)
        click.echo(f"{out}")


@evaluate.command()
@pair_option
@captions_option
@click.option("--prompts", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Held-out captions.")
@seed_option(None, f"  [default: {SEED}; of scenes {SAMPLES_SEED}]")
@click.option(
    "--method",
    type=click.Choice(["base", "device-only"]),
    default="base",
    show_default=True,
    help="Method that decodes the images.",
)
@click.option("--guidance", type=FiniteRange(1, 100), help="Guidance.  [default: that of a scenario]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/samples"), show_default=True, help="Folder to write."
)
@cache_option
@torch_device_option
@max_batch_option
@quiet_option
@errors_in_one_line
def samples(
    pair: str,
    captions_file: Path | None,
    prompts: int,
    seed: int | None,
    method: str,
    guidance: float | None,
    out: Path,
    cache: Path | None,
    torch_device: str,
    max_batch: int,
    quiet: bool,
) -> None:
    """Draw images of held-out captions in one grid, and print the share of the captions' claims that the pair's judge finds in them and,
    from 128 images on, their distance to real ones (for photographs also the values of real photographs)."""
    from ciar_sim.cli.console import progress_bars
    from models.evaluate.samples import draw_samples
    from models.quality.judges import use_of_seed
    from simulator.core.errors import CiarSimError
    from simulator.protocol.cache import CachedSource, RecordingCache
    from simulator.protocol.pairs import pair_manifest
    from simulator.results.files import csv_bytes

    named = pair_of(pair)
    refuse_unusable(out)
    captions = _captions(named, captions_file)
    of_scenes = captions_file is None and pair_manifest(named).subject == "scenes"
    if of_scenes and seed is not None and (use := use_of_seed(seed)):
        raise CiarSimError(f"--seed {seed}: {use}; choose another seed")
    seed = seed if seed is not None else SAMPLES_SEED if of_scenes else SEED
    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        source = CachedSource(RecordingCache(cache), Models(named, torch_device, max_batch, cache, progress).record)
        found = draw_samples(source, named, captions, cache, prompts, seed, method, guidance)
    write_files(
        out,
        {
            "samples.png": found.png,
            "claims.csv": csv_bytes(found.claims),
            "claims-by-kind.csv": csv_bytes(found.by_kind),
            "figures.csv": csv_bytes(found.figures) if len(found.figures) else None,
        },
    )
    if not quiet:
        claims = found.by_kind.to_string(index=False, float_format="%.1f")
        click.echo(claims if len(found.by_kind) else "this pair has no judge, so no claims are counted")
        if len(found.figures):
            click.echo(found.figures.to_string(index=False, float_format="%.3f", na_rep=""))
        if found.share_of_real == found.share_of_real:
            click.echo(f"alignment over that of photographs of these captions: {found.share_of_real:.3f}")
        click.echo(f"{out / 'samples.png'}")


@evaluate.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--inception", type=click.Path(path_type=Path), help="TorchScript file for fid. Loading it runs its code."
)
@click.option("--vgg", type=click.Path(path_type=Path), help="TorchScript file for f1. Loading it runs its code.")
@click.option("--clip", type=click.Path(path_type=Path), help="Folder of CLIP in transformers' format, for clip.")
@click.option(
    "--hpsv2", type=click.Path(path_type=Path), help="Folder of HPSv2's CLIP in transformers' format, for hpsv2."
)
@click.option(
    "--real",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Images to compare with.  [default: scenes]",
)
@click.option("--prefix", default="", help="Text before each caption for clip, e.g. 'A photo depicts '.")
@sets_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/pictures"), show_default=True, help="Folder to write."
)
@cache_option
@torch_device_option
@max_batch_option
@quiet_option
@errors_in_one_line
def pictures(
    scenario: Path,
    sets: tuple[str, ...],
    out: Path,
    cache: Path | None,
    torch_device: str,
    max_batch: int,
    quiet: bool,
    real: Path | None,
    prefix: str,
    **networks: Path | None,
) -> None:
    """Compute published metrics (fid, f1, clip, hpsv2) of the images of a SCENARIO (a file or a shipped one) with networks that you
    provide (docs/quality.md)."""
    from ciar_sim.cli.console import progress_bars
    from ciar_sim.shipped import scenario_path
    from models.evaluate.images import Networks, score_images
    from simulator.experiment.loading import load_scenario
    from simulator.protocol.cache import CachedSource, RecordingCache
    from simulator.results.files import csv_bytes

    for option, given, needs in (
        ("--prefix", prefix, ("clip",)),
        ("--real", real, ("inception", "vgg")),
    ):
        if given and not any(networks[name] for name in needs):
            raise click.UsageError(f"{option} goes with {' or '.join(f'--{name}' for name in needs)}")
    refuse_unusable(out)
    read = load_scenario(scenario_path(scenario), (), sets)
    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        models = Models(read.pair, torch_device, max_batch, cache, progress)
        source = CachedSource(RecordingCache(cache), models.record)
        chosen = resolve_torch_device(torch_device)
        named = Networks(**networks, real=real, prefix=prefix)
        table = score_images(read, source, models.captions, named, chosen, progress)
    write_files(out, {"pictures.csv": csv_bytes(table)})
    if not quiet:
        click.echo(table.to_string(index=False, float_format="%.4g"))
        click.echo(f"{out / 'pictures.csv'}")
