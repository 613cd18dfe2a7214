"""The command line. It composes the rooms and imports each of them only when a command needs it."""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from simulator.errors import CiarSimError
from simulator.traces.cli import traces_group

EPILOG = "Start with: ciar-sim run scenarios/quickstart.yaml"


def default_cache() -> Path:
    """Where recordings and measured profiles are kept: $CIAR_SIM_CACHE, else ciar-sim/ in the user's cache folder."""
    import os

    own = os.environ.get("CIAR_SIM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ciar-sim"


def errors_in_one_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """A user's error is one line on stderr and exit code 2; anything else is a fault of the program and keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except CiarSimError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Stopped. What was recorded is kept: the same command goes on from there.", err=True)
            sys.exit(130)

    return wrapped


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("scenario", type=click.Path(path_type=Path)),
        click.option("--out", type=click.Path(path_type=Path), help="Run folder to write.  [default: runs/<name>]"),
        click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change one value of the scenario, e.g. seed=1."),
        click.option("--cache", type=click.Path(path_type=Path), help="Folder of recordings.  [default: the user's cache folder]"),
        click.option("--torch-device", default="auto", show_default=True, help="Where forward passes run: auto, cpu, cuda, cuda:1 ..."),
        click.option("--max-batch", type=click.IntRange(1), default=64, show_default=True, help="Sessions recorded at once."),
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that simulate; changes no result."),
        click.option("--quiet", is_flag=True, help="No progress and no table."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="ciar-sim")
def main() -> None:
    """Latency and quality of edge-cloud image generation.

    Real forward passes of a cloud model and its device companion, replayed over a simulated device, network and cloud.
    """


@main.command()
@run_options
@errors_in_one_line
def run(scenario: Path, **options: Any) -> None:
    """Run a SCENARIO file: every method under every swept value; write tables, plots and report.html."""
    _run(scenario, (), **options)


@main.command()
@run_options
@click.option("--axis", "axes", multiple=True, required=True, metavar="PATH=V1,V2,...", help="Values to sweep; repeat for a grid.")
@errors_in_one_line
def sweep(scenario: Path, axes: tuple[str, ...], **options: Any) -> None:
    """Run a SCENARIO over a grid given here, e.g. --axis network.rtt_ms=5,20,50 --axis methods.ciar.threshold=0.2,0.4.

    Axes are added to those of the scenario; one of the same path takes its place.
    """
    _run(scenario, axes, **options)


def _run(
    path: Path, axes: tuple[str, ...], out: Path | None, sets: tuple[str, ...], cache: Path | None, torch_device: str,
    max_batch: int, jobs: int, quiet: bool,
) -> None:  # fmt: skip
    from simulator.scenario import load_scenario, where_written

    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", torch_device):
        raise CiarSimError(f"--torch-device {torch_device}: allowed: auto, cpu, cuda, cuda:N")
    scenario = load_scenario(path, axes, sets)

    from reports.build import build_report
    from simulator.console import progress_bars, summary_lines
    from simulator.recording import CachedSource, RecordingCache
    from simulator.run import run_scenario

    cache = cache or default_cache()
    folder = out or Path("runs") / scenario.name
    with progress_bars(quiet) as progress:
        models = _Models(scenario.pair, torch_device, max_batch, cache, progress)
        try:
            outcome = run_scenario(
                scenario, folder, CachedSource(RecordingCache(cache), models.record), models.scenes, models.profile, build_report,
                progress, jobs, models.judge(),
            )  # fmt: skip
        except CiarSimError as error:
            if not error.place:
                raise
            raise type(error)(f"{where_written(error.place, path, axes, sets)}: {error}") from None
    if not quiet:
        click.echo(summary_lines(outcome.summary))
        click.echo(f"{outcome.folder / 'report.html'}")


class _Models:
    """The torch side of a run, loaded at the first thing that needs it."""

    def __init__(self, pair: str, torch_device: str, max_batch: int, cache: Path, progress: Any) -> None:
        self.name, self.torch_device, self.max_batch, self.cache, self.progress = pair, torch_device, max_batch, cache, progress
        self._pair: Any = None

    def pair(self) -> Any:
        if self._pair is None:
            from models.pair import load_pair

            self._pair = load_pair(self.name, resolve_torch_device(self.torch_device))
        return self._pair

    def record(self, specs: Any) -> Any:
        """Recordings of the given sessions, as `simulator.recording.CachedSource` wants them."""
        from models.recorder import Recorder

        def report(finished: int, sessions: int, decided: int, tokens: int) -> None:
            self.progress(f"recording {sessions} sessions", decided, tokens)

        return Recorder(self.pair(), self.max_batch, report).record(specs)

    @staticmethod
    def scenes(seed: int, count: int) -> list[str]:
        from models.scenes import captions

        return captions(seed, count)

    def judge(self) -> Any:
        """Reads the pictures of a run; loads torch only for pictures it has not met before. None without the scene network's weights."""
        from models.quality.judge import WEIGHTS, SceneJudge

        if not WEIGHTS.is_file():
            return None
        return SceneJudge(self.cache, progress=lambda done, total: self.progress("reading pictures", done, total))

    def profile(self) -> Any:
        """Compute times of the pair on this machine: measured once, then kept in the cache folder.

        A stored profile counts for equal weights, torch version, processor, cores, thread setting and --torch-device only; a damaged
        one is measured again.
        """
        import hashlib
        import os
        import platform

        from simulator.compute import Profile
        from simulator.errors import ComputeError
        from simulator.pairs import pair_manifest
        from simulator.recording import torch_version

        weights = pair_manifest(self.name).weights_hash
        machine = (platform.machine(), _processor(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS"))
        key = hashlib.sha256(repr((weights, torch_version(), machine, self.torch_device)).encode()).hexdigest()
        path = self.cache / "profiles" / f"{key[:32]}.json"
        if path.is_file():
            try:
                return Profile.read(path)
            except ComputeError:
                path.unlink()
        from models.profile import measure_profile

        profile = measure_profile(self.pair(), lambda done, total: self.progress("measuring compute times", done, total))
        profile.write(path)
        return profile


def _processor() -> str:
    """Name of this machine's processor, as far as the system tells."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def resolve_torch_device(name: str) -> str:
    """auto: the first CUDA device where there is one, else the CPU. Raises CiarSimError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CiarSimError(f"--torch-device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return name


@main.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@errors_in_one_line
def report(run_folder: Path) -> None:
    """Draw plots and report.html of a RUN_FOLDER again."""
    from reports.build import build_report

    click.echo(build_report(run_folder))


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of checkpoints and logs.  [default: train-runs/<config name>]")
@click.option("--stage", "stages", multiple=True, help="Train only this stage; repeat for more.  [default: all]")
@click.option("--export", type=click.Path(path_type=Path), help="Also assemble the trained pair into this folder.")
@click.option("--torch-device", default="auto", show_default=True, help="Where training runs: auto, cpu, cuda, cuda:1 ...")
@errors_in_one_line
def train(config: Path, out: Path | None, stages: tuple[str, ...], export: Path | None, torch_device: str) -> None:
    """Train a model pair from a CONFIG file, e.g. models/scenes.yaml. Stopped at any moment, the same command goes on."""
    from models.train.run import train_pair

    train_pair(config, out or Path("train-runs") / config.stem, stages, export, resolve_torch_device(torch_device))


@main.command()
@click.option("--pair", default="scenes", show_default=True, help="A shipped pair's name, or a pair's folder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("profile.json"), show_default=True, help="File to write.")
@click.option("--seconds", type=click.FloatRange(0), default=120.0, show_default=True, help="After this long what is left is timed once.")
@click.option("--compare-roofline", is_flag=True, help="Also measure peak and bandwidth, and print how far a roofline of them is off.")
@click.option("--torch-device", default="auto", show_default=True, help="What is measured: auto, cpu, cuda, cuda:1 ...")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@errors_in_one_line
def profile(pair: str, out: Path, seconds: float, compare_roofline: bool, torch_device: str, quiet: bool) -> None:
    """Time the pair's forward passes on this machine, over batch, new tokens and cached tokens, and store them.

    A scenario prices with the file by compute: {cloud: {model: pair, profile: FILE}}, the device likewise. Measure on an idle machine.
    """
    from models.pair import load_pair
    from models.profile import measure_hardware, measure_profile
    from simulator.compute import beside_roofline, pair_shapes
    from simulator.console import profile_lines, progress_bars, roofline_lines
    from simulator.pairs import pair_folder, pair_manifest

    manifest = pair_manifest(pair)
    with progress_bars(quiet) as progress:
        loaded = load_pair(pair, resolve_torch_device(torch_device))
        found = measure_profile(loaded, lambda done, total: progress("measuring compute times", done, total), seconds)
    found.write(out)
    if not quiet:
        click.echo(profile_lines(found))
    if compare_roofline:
        machine = measure_hardware(loaded.torch_device)
        click.echo(roofline_lines(beside_roofline(found, pair_shapes(pair_folder(pair), manifest), machine), machine))
    if not quiet:
        click.echo(f"{out}")


@main.group(no_args_is_help=True)
def evaluate() -> None:
    """Measure a model pair itself, apart from any network."""


@evaluate.command()
@click.option("--pair", default="scenes", show_default=True, help="A shipped pair's name, or a pair's folder.")
@click.option("--prompts", type=click.IntRange(2), default=64, show_default=True, help="Held-out prompts.")
@click.option("--seed", type=click.IntRange(0), default=3, show_default=True, help="Of the scenes and of every draw.")
@click.option("--on", type=click.Choice(["generated", "scenes"]), default="generated", show_default=True,
              help="Read sequences that the cloud decodes, or the tokens of real scenes.")
@click.option("--guidance", type=click.FloatRange(1, 100), help="Of both models.  [default: as scenarios decode]")
@click.option("--sampled-tokens", type=click.IntRange(0), default=64, show_default=True,
              help="Positions per prompt at which discrete k = 100 and 300 are asked; they are dear.")
@click.option("--ceiling", is_flag=True, help="Also train a head for the events themselves, on other prompts: what the device could know.")
@click.option("--timing/--no-timing", default=True, help="Time every measure.  [default: on]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/uncertainty"), show_default=True, help="Folder to write.")
@click.option("--torch-device", default="auto", show_default=True, help="Where the models run: auto, cpu, cuda, cuda:1 ...")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@errors_in_one_line
def uncertainty(pair: str, out: Path, torch_device: str, quiet: bool, **settings: Any) -> None:
    """How well each uncertainty score tells where the cloud would choose otherwise (docs/uncertainty.md)."""
    from models.evaluate.uncertainty import Settings, evaluate_uncertainty
    from models.pair import load_pair
    from reports.uncertainty import draw, markdown
    from simulator.console import progress_bars
    from simulator.results import csv_bytes, parquet_bytes

    with progress_bars(quiet) as progress:
        found = evaluate_uncertainty(load_pair(pair, resolve_torch_device(torch_device)), Settings(**settings), progress)
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
@click.option("--pair", default="scenes", show_default=True, help="A shipped pair's name, or a pair's folder.")
@click.option("--prompts", type=click.IntRange(1), default=64, show_default=True, help="Held-out captions.")
@click.option("--seed", type=click.IntRange(0), default=3, show_default=True, help="Of the scenes and of every draw.")
@click.option("--method", type=click.Choice(["base", "device-only"]), default="base", show_default=True, help="Who draws.")
@click.option("--guidance", type=click.FloatRange(1, 100), help="[default: as scenarios decode]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/samples"), show_default=True, help="Folder to write.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of recordings.  [default: as `run`]")
@click.option("--torch-device", default="auto", show_default=True, help="Where the models run: auto, cpu, cuda, cuda:1 ...")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@errors_in_one_line
def samples(
    pair: str, prompts: int, seed: int, method: str, guidance: float | None, out: Path, cache: Path | None, torch_device: str, quiet: bool
) -> None:
    """Pictures of held-out captions in one grid, and the share of the captions' claims that the scene network sees in them."""
    from models.evaluate.samples import draw_samples
    from simulator.console import progress_bars
    from simulator.pairs import pair_manifest
    from simulator.recording import CachedSource, RecordingCache
    from simulator.results import csv_bytes

    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        source = CachedSource(RecordingCache(cache), _Models(pair, torch_device, 64, cache, progress).record)
        found = draw_samples(source, pair_manifest(pair), prompts, seed, method, guidance)
    write_files(out, {"samples.png": found.png, "claims.csv": csv_bytes(found.claims), "claims-by-kind.csv": csv_bytes(found.by_kind)})
    if not quiet:
        click.echo(found.by_kind.to_string(index=False, float_format="%.1f"))
        click.echo(f"{out / 'samples.png'}")


@evaluate.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--inception", type=click.Path(path_type=Path), help="TorchScript file for fid. Loading it runs its code.")
@click.option("--vgg", type=click.Path(path_type=Path), help="TorchScript file for f1. Loading it runs its code.")
@click.option("--clip", type=click.Path(path_type=Path), help="Folder of CLIP in transformers' format, for clip.")
@click.option("--hpsv2", type=click.Path(path_type=Path), help="Folder of HPSv2's CLIP in transformers' format, for hpsv2.")
@click.option("--real", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Pictures to compare with.  [default: scenes]")
@click.option("--prefix", default="", help="Put before each caption for clip, e.g. 'A photo depicts '.")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change one value of the scenario, e.g. prompts.count=256.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/pictures"), show_default=True, help="Folder to write.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of recordings.  [default: as `run`]")
@click.option("--torch-device", default="auto", show_default=True, help="Where the models run: auto, cpu, cuda, cuda:1 ...")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@errors_in_one_line
def pictures(
    scenario: Path, sets: tuple[str, ...], out: Path, cache: Path | None, torch_device: str, quiet: bool, real: Path | None, prefix: str,
    **networks: Path | None,
) -> None:
    """Published metrics (fid, f1, clip, hpsv2) of a SCENARIO's pictures, by networks that you name (docs/quality.md)."""
    from models.evaluate.pictures import Networks, score_pictures
    from simulator.console import progress_bars
    from simulator.recording import CachedSource, RecordingCache
    from simulator.results import csv_bytes
    from simulator.scenario import load_scenario

    read = load_scenario(scenario, (), sets)
    cache = cache or default_cache()
    with progress_bars(quiet) as progress:
        models = _Models(read.pair, torch_device, 64, cache, progress)
        source = CachedSource(RecordingCache(cache), models.record)
        chosen = resolve_torch_device(torch_device)
        table = score_pictures(read, source, models.scenes, Networks(**networks), real, prefix, chosen, progress)
    write_files(out, {"pictures.csv": csv_bytes(table)})
    if not quiet:
        click.echo(table.to_string(index=False, float_format="%.4g"))
        click.echo(f"{out / 'pictures.csv'}")


def write_files(folder: Path, files: dict[str, bytes | None]) -> None:
    """Write files into a folder, each whole or not at all, and delete those that are None; others are left alone. Raises RunFolderError."""
    import os

    from simulator.errors import RunFolderError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
                continue
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)
    except OSError as error:
        raise RunFolderError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None


@main.command()
@errors_in_one_line
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    import json

    from simulator.scenario import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command("list")
@click.argument("what", type=click.Choice(["methods", "presets", "hardware", "pairs"]))
@errors_in_one_line
def list_(what: str) -> None:
    """Show what a scenario may name: methods with their settings, network presets, hardware, model pairs."""
    from simulator import console

    click.echo(console.listing(what))


main.add_command(traces_group(errors_in_one_line))
