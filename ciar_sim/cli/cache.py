"""`ciar-sim cache`."""

from pathlib import Path

import click

from ciar_sim.cli.common import FiniteRange, default_cache, errors_in_one_line
from simulator.core.errors import CiarSimError, counted, reason


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="The folder.  [default: the user's cache folder]")
@click.option(
    "--prune", is_flag=True, help="Delete the least recently used files until the folder holds at most --max-gb."
)
@click.option(
    "--max-gb", type=FiniteRange(0, 1e6), default=10, show_default=True, metavar="GB", help="Size that --prune leaves."
)
@errors_in_one_line
def cache(cache: Path | None, prune: bool, max_gb: float) -> None:
    """Show the size of the cache folder, or reduce it. Every file in it can be created again."""
    from simulator.core.cache import cache_use
    from simulator.core.cache import prune as prune_files

    folder = cache or default_cache()
    if folder.exists() and not folder.is_dir():
        raise CiarSimError(f"{folder}: is not a folder")
    try:
        if prune:
            deleted = prune_files(folder, max_gb * 1e9)
            click.echo(f"{folder}: deleted {counted(deleted.files, 'file')}, {deleted.bytes / 1e6:.1f} MB")
        for name, use in cache_use(folder).items():
            click.echo(f"{folder / name}: {counted(use.files, 'file')}, {use.bytes / 1e6:.1f} MB")
    except (OSError, ValueError) as error:
        raise CiarSimError(f"{getattr(error, 'filename', None) or folder}: {reason(error)}") from None
