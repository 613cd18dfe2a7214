"""`ciar-sim evaluate uncertainty|samples|pictures`."""

from pathlib import Path
from typing import Any

import click

from ciar_sim.cli.common import (
    FiniteRange,
    cache_option,
    default_cache,
    errors_in_one_line,
    pair_of,
    quiet_option,
    refuse_unusable,
    resolve_torch_device,
    sets_option,
    torch_device_option,
    write_files,
)
from ciar_sim.cli.models import Models

pair_option = click.option(
    "--pair", default="scenes", show_default=True, help="A shipped pair's name, or a pair's folder."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=3, show_default=True, help="Of the captions and of every draw."
)


@click.group(no_args_is_help=True)
def evaluate() -> None:
    """Measure a model pair itself, apart from any network."""


def _refuse_other(pair: str) -> None:
    """Raises ScenarioError where --pair names two pairs, or a published model by a YAML file: none has captions of its own, nor a judge."""
    from simulator.core.errors import ScenarioError

    if pair.endswith((".yaml", ".yml")):
        raise ScenarioError(
            f"--pair: {pair} is a file; allowed: a shipped pair's name, or a pair's folder. A published model has neither captions of its "
            "own nor a judge; ciar-sim evaluate pictures SCENARIO measures its images, and a run records the scores of every token"
        )
    pair_of(pair)


@evaluate.command()
@pair_option
@click.option("--prompts", type=click.IntRange(2, 100_000), default=64, show_default=True, help="Held-out prompts.")
@seed_option
@click.option(
    "--on",
    type=click.Choice(["generated", "scenes"]),
    default="generated",
    show_default=True,
    help="Read sequences that the cloud decodes, or the tokens of real scenes, which a pair of scenes has.",
)
@click.option("--guidance", type=FiniteRange(1, 100), help="Of both models.  [default: as scenarios decode]")
@click.option(
    "--sampled-tokens",
    type=click.IntRange(0, 10**9),
    default=64,
    show_default=True,
    help="Positions per prompt at which discrete k = 100 and 300 are asked, and at most 8 tokens compared in pixels; both are expensive.",
)
@click.option(
    "--ceiling",
    is_flag=True,
    help="Also train a head for the events themselves, on other prompts: what the device could know.",
)
@click.option("--timing/--no-timing", default=True, help="Time every measure.  [default: on]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/uncertainty"),
    show_default=True,
    help="Folder to write.",
)
@torch_device_option
@quiet_option
@errors_in_one_line
def uncertainty(pair: str, out: Path, torch_device: str, quiet: bool, **settings: Any) -> None:
    """How well each uncertainty score tells where the cloud would choose otherwise (docs/uncertainty.md)."""
    from ciar_sim.cli.console import progress_bars
    from models.evaluate.reading import Settings
    from models.evaluate.uncertainty import evaluate_uncertainty
    from models.pair import load_pair
    from models.quality.judges import captions_of
    from reports.uncertainty import draw, markdown
    from simulator.results.files import csv_bytes, parquet_bytes

    _refuse_other(pair)
    refuse_unusable(out)
    with progress_bars(quiet) as progress:
        loaded = load_pair(pair, resolve_torch_device(torch_device))
        captions = None if loaded.manifest.subject == "scenes" else captions_of(pair)
        found = evaluate_uncertainty(loaded, Settings(**settings), progress, captions)
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
@click.option("--prompts", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Held-out captions.")
@seed_option
@click.option(
    "--method", type=click.Choice(["base", "device-only"]), default="base", show_default=True, help="Who draws."
)
@click.option("--guidance", type=FiniteRange(1, 100), help="[default: as scenarios decode]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/samples"), show_default=True, help="Folder to write."
)
@cache_option
@torch_device_option
@quiet_option
@errors_in_one_line
def samples(
    pair: str,
    prompts: int,
    seed: int,
    method: str,
    guidance: float | None,
    out: Path,
    cache: Path | None,
    torch_device: str,
    quiet: bool,
) -> None:
    """Images of held-out captions in one grid, the share of the captions' claims that the pair's judge sees in them, and, from 128 images
    on, how far they are from real ones; of photographs beside what real ones attain."""
    from ciar_sim.cli.console import progress_bars
    from models.evaluate.samples import draw_samples
    from simulator.protocol.cache import CachedSource, RecordingCache
    from simulator.results.files import csv_bytes

    _refuse_other(pair)
    refuse_unusable(out)
    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        source = CachedSource(RecordingCache(cache), Models(pair, torch_device, 64, cache, progress).record)
        found = draw_samples(source, pair, cache, prompts, seed, method, guidance)
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
        click.echo(claims if len(found.by_kind) else "no judge reads images of this size: no claims are counted")
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
@click.option("--prefix", default="", help="Put before each caption for clip, e.g. 'A photo depicts '.")
@sets_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/pictures"), show_default=True, help="Folder to write."
)
@cache_option
@torch_device_option
@quiet_option
@errors_in_one_line
def pictures(
    scenario: Path,
    sets: tuple[str, ...],
    out: Path,
    cache: Path | None,
    torch_device: str,
    quiet: bool,
    real: Path | None,
    prefix: str,
    **networks: Path | None,
) -> None:
    """Published metrics (fid, f1, clip, hpsv2) of a SCENARIO's images, by networks that you name (docs/quality.md)."""
    from ciar_sim.cli.console import progress_bars
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
    read = load_scenario(scenario, (), sets)
    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        models = Models(read.pair, torch_device, 64, cache, progress)
        source = CachedSource(RecordingCache(cache), models.record)
        chosen = resolve_torch_device(torch_device)
        table = score_images(read, source, models.captions, Networks(**networks), real, prefix, chosen, progress)
    write_files(out, {"pictures.csv": csv_bytes(table)})
    if not quiet:
        click.echo(table.to_string(index=False, float_format="%.4g"))
        click.echo(f"{out / 'pictures.csv'}")
