"""No dead option: every option and argument of every command changes what the command prints or writes, or is refused by name.

`OPTIONS` has a row per option, `command --option`: the arguments before, and those that are added; or the name of another test that shows
the option's effect, where that needs more, such as a training or a foreign network. The test fails for an option without a row.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.tiny_pair import make_tiny_pair
from ciar_sim.cli.main import main

pytestmark = pytest.mark.usefixtures("undrawn", "short_gaps")

ROOT = Path(__file__).resolve().parents[2]
ANSWERED = """\
name: options
pair: {pair}
prompts: {{source: scenes, count: 2}}
methods: [base, device-only]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
"""
# All requests arrive in the warm-up, so there is nothing to plot: plotting takes most of a run's time.
SCENARIO = (
    f"{ANSWERED}workload: {{{{devices: 1, arrivals: {{{{poisson_per_s: 1}}}}, duration_s: 3, warmup_s: 2.99}}}}\n"
)
RUN = ["run", "{scenario}", "--out", "{out}", "--cache", "{cache}"]
SWEEP = ["sweep", "{scenario}", "--axis", "network.preset=lte", "--out", "{out}", "--cache", "{cache}"]
SCORES = [
    "evaluate",
    "uncertainty",
    "--pair",
    "{pair}",
    "--prompts",
    "2",
    "--sampled-tokens",
    "0",
    "--no-timing",
    "--out",
    "{out}",
]
SAMPLES = ["evaluate", "samples", "--pair", "{pair}", "--prompts", "2", "--out", "{out}", "--cache", "{cache}"]
PROFILE = ["profile", "--pair", "{pair}", "--seconds", "0", "--out", "{out}.json"]
SHOW = ["traces", "show", "{trace}", "--json"]
IMPORT = ["traces", "import", "{trace}", "--out", "{out}.csv"]
FIT = ["traces", "fit", "{packets}"]
GENERATE = ["traces", "generate", "lte", "--out", "{out}.csv", "--duration-s", "20"]
CACHE = ["cache", "--cache", "{cache}"]
RUNS = {
    "--out": ["--out", "{out}2"],
    "--set": ["--set", "seed=1"],
    "--cache": ["--cache", "{out}-cache"],
    "--torch-device": ["--torch-device", "cuda:77"],
    "--columns": ["--columns", "calls"],
    "--case-timeout": ["--case-timeout", "1e-9"],
    "--timeline": ["--timeline", "1"],
    "--dry-run": ["--dry-run"],
    "--quiet": ["--quiet"],
}
RECOMMEND = ["recommend", "{answered}", "--cache", "{cache}"]
REGIME = ["regime", "{answered}", "--x", "network.distance_km=1,900", "--out", "{out}", "--cache", "{cache}"]
JOBS = "tests/ciar_sim/test_cli.py::test_same_bytes_whatever_the_process_the_jobs_and_the_hash_seed"
BATCH = "tests/models/test_methods.py::test_batch_size_changes_no_token_in_float64"
EXPORT = "tests/ciar_sim/decide/test_export.py::test_the_accept_trace_adds_up_to_the_images"
DECIDE = {"recommend": RECOMMEND, "regime": REGIME}
MAP = "tests/ciar_sim/decide/test_regime.py::test_the_map_is_drawn_and_says_so_in_words"
CARRIES = "tests/ciar_sim/decide/test_capacity.py::test_the_command_says_what_each_method_carries"
TRUE_SHAPE = "tests/models/test_profile.py::test_the_command_times_a_model_of_the_catalogue_with_random_weights"
FOREIGN = "tests/models/test_quality_foreign.py::test_images_of_a_scenario_are_scored_once_per_method"

Row = tuple[list[str], list[str]] | str
OPTIONS: dict[str, Row] = {
    "ciar-sim --version": ([], ["--version"]),
    "run scenario": (["run"], ["{scenario}", "--out", "{out}", "--cache", "{cache}"]),
    "sweep scenario": (["sweep", "--axis", "seed=1"], ["{scenario}", "--out", "{out}", "--cache", "{cache}"]),
    **{f"run {option}": (RUN, more) for option, more in RUNS.items()},
    **{
        f"sweep {option}": "tests/ciar_sim/test_cli.py::test_sweep_adds_axes"
        for option in ("--out", "--set", "--cache", "--quiet")
    },
    **{
        f"sweep {option}": (SWEEP, RUNS[option])
        for option in ("--torch-device", "--columns", "--case-timeout", "--timeline", "--dry-run")
    },
    **{
        f"{command} {option}": f"tests/simulator/experiment/test_workers.py::{shown_by}"
        for command in ("run", "sweep")
        for option, shown_by in (
            ("--dask", "test_a_sweep_on_a_cluster_survives_the_death_of_a_worker"),
            ("--dask-local", "test_a_cluster_is_started_for_a_run"),
        )
    },
    "run --force": "tests/ciar_sim/test_sweeps.py::test_a_run_of_another_scenario_is_replaced_by_force_only",
    "sweep --force": "tests/ciar_sim/test_sweeps.py::test_a_run_of_another_scenario_is_replaced_by_force_only",
    "sweep --tune": ([*SWEEP, "--axis", "methods.base.deliver=stream,ids"], ["--tune", "2"]),
    "sweep --axis": (SWEEP, ["--axis", "cloud.max_batch=1,2"]),
    "sweep --zip": ([*SWEEP, "--axis", "seed=1,2", "--axis", "prompts.seed=1,2"], ["--zip", "seed,prompts.seed"]),
    "sweep --random": ([*SWEEP, "--axis", "seed=1,2"], ["--random", "1"]),
    "run --max-batch": "tests/models/test_methods.py::test_batch_size_changes_no_token_in_float64",
    "sweep --max-batch": "tests/models/test_methods.py::test_batch_size_changes_no_token_in_float64",
    "run --jobs": "tests/ciar_sim/test_cli.py::test_same_bytes_whatever_the_process_the_jobs_and_the_hash_seed",
    "sweep --jobs": "tests/ciar_sim/test_cli.py::test_same_bytes_whatever_the_process_the_jobs_and_the_hash_seed",
    **{
        f"{command} --record-jobs": "tests/ciar_sim/test_recording.py::test_processes_make_the_recordings_of_one"
        for command in ("run", "sweep")
    },
    "report run_folders": (["report"], ["{scenario}"]),
    "report --out": (["report", "{scenario}"], ["--out", "{out}"]),
    "report --columns": (["report", "{scenario}"], ["--columns", "none"]),
    "plot run_folder": (["plot"], ["{scenario}", "images"]),
    "plot kind": (["plot", "{scenario}"], ["images"]),
    **{
        f"plot --{name}": "tests/reports/test_kinds.py::test_the_command_writes_one_file"
        for name in ("format", "size", "no-titles", "out")
    },
    "plot --methods": "tests/reports/test_kinds.py::test_methods_and_panels_are_those_asked_for",
    "plot --where": "tests/reports/test_kinds.py::test_swept_values_are_those_asked_for",
    "plot --by": "tests/reports/test_kinds.py::test_one_axis_divides_the_panels_and_its_panels_hold_the_other_conditions",
    "train file config": (["train"], ["{scenario}"]),
    "train file --out": "tests/models/test_training_file.py::test_a_stage_without_those_before_it_is_refused",
    "train file --stage": "tests/models/test_training_file.py::test_a_stage_that_the_file_lacks_is_refused",
    "train file --data": "tests/models/test_photos.py::test_data_is_refused_where_scenes_are_read",
    "train file --export": "tests/models/test_data.py::test_every_stage_trains_on_a_folder_and_the_pair_knows_its_words",
    "train file --torch-device": (["train", "{scenario}"], ["--torch-device", "cuda:77"]),
    **{
        f"train device --{name}": "tests/ciar_sim/test_backbones.py::test_official_files_train_record_simulate_and_report"
        for name in ("pair", "prompts", "out", "images", "steps", "phi-steps", "batch-images")
    },
    "train device --guidance": "tests/ciar_sim/test_backbones.py::test_distilling_goes_on_where_it_was_stopped",
    "train device --max-batch": BATCH,
    "train device --top-k": "tests/ciar_sim/test_backbones.py::test_distilling_goes_on_where_it_was_stopped",
    "train device --torch-device": (["train", "device", "--pair", "{pair}"], ["--torch-device", "cuda:77"]),
    "train device --quiet": "tests/ciar_sim/test_backbones.py::test_distilling_goes_on_where_it_was_stopped",
    "profile --pair": (PROFILE, ["--pair", "{out}-none"]),
    "profile --model": TRUE_SHAPE,
    "profile --random-weights": (PROFILE, ["--random-weights"]),
    "profile --dtype": TRUE_SHAPE,
    "profile --runtime": TRUE_SHAPE,
    "profile --batch": TRUE_SHAPE,
    "profile --fit": TRUE_SHAPE,
    "profile --out": (PROFILE, ["--out", "{out}2.json"]),
    "profile --seconds": "tests/models/test_profile.py::test_a_median_is_taken_after_a_warm_up_until_the_budget_is_spent",
    "profile --compare-roofline": "tests/models/test_profile.py::test_measured_hardware_prices_a_pass",
    "profile --torch-device": (PROFILE, ["--torch-device", "cuda:77"]),
    "profile --quiet": (PROFILE, ["--quiet"]),
    "evaluate uncertainty --pair": (SCORES, ["--pair", "{out}-none"]),
    **{
        f"evaluate {command} --captions": (arguments, ["--captions", "{out}-none"])
        for command, arguments in {"uncertainty": SCORES, "samples": SAMPLES}.items()
    },
    **{f"evaluate {command} --max-batch": BATCH for command in ("uncertainty", "samples", "pictures")},
    "evaluate uncertainty --prompts": "tests/models/test_uncertainty.py::test_the_command_writes_tables_and_images",
    "evaluate uncertainty --seed": (SCORES, ["--seed", "5"]),
    "evaluate uncertainty --on": (SCORES, ["--on", "scenes"]),
    "evaluate uncertainty --guidance": (SCORES, ["--guidance", "1.5"]),
    "evaluate uncertainty --sampled-tokens": (SCORES, ["--sampled-tokens", "2"]),
    "evaluate uncertainty --ceiling": "tests/models/test_uncertainty.py::test_the_ceiling_learns_what_can_be_known",
    "evaluate uncertainty --timing": "tests/models/test_uncertainty.py::test_times_name_every_measure_and_size",
    "evaluate uncertainty --out": "tests/models/test_uncertainty.py::test_the_command_writes_tables_and_images",
    "evaluate uncertainty --torch-device": (SCORES, ["--torch-device", "cuda:77"]),
    "evaluate uncertainty --quiet": "tests/models/test_uncertainty.py::test_the_command_writes_tables_and_images",
    "evaluate samples --pair": (SAMPLES, ["--pair", "{out}-none"]),
    "evaluate samples --prompts": (SAMPLES, ["--prompts", "3"]),
    "evaluate samples --seed": (SAMPLES, ["--seed", "5"]),
    "evaluate samples --method": (SAMPLES, ["--method", "device-only"]),
    "evaluate samples --guidance": (SAMPLES, ["--guidance", "9"]),
    "evaluate samples --out": (SAMPLES, ["--out", "{out}2"]),
    "evaluate samples --cache": (SAMPLES, ["--cache", "{out}-cache"]),
    "evaluate samples --torch-device": (SAMPLES, ["--torch-device", "cuda:77"]),
    "evaluate samples --quiet": (SAMPLES, ["--quiet"]),
    "evaluate pictures scenario": (["evaluate", "pictures"], ["{scenario}"]),
    **{
        f"evaluate pictures --{name}": FOREIGN
        for name in ("inception", "vgg", "clip", "hpsv2", "real", "prefix", "set", "out", "cache")
    },
    "evaluate pictures --torch-device": (["evaluate", "pictures", "{scenario}"], ["--torch-device", "cuda:77"]),
    "evaluate pictures --quiet": FOREIGN,
    "compare runs": "tests/ciar_sim/decide/test_compare.py::test_a_longer_way_is_slower_by_its_calls_and_draws_the_same_images",
    "compare --out": "tests/ciar_sim/decide/test_compare.py::test_of_many_differences_the_largest_are_shown_and_all_are_written",
    "compare --json": "tests/ciar_sim/decide/test_compare.py::test_the_same_run_does_not_differ_and_other_images_are_not_paired",
    **{
        f"{command} {option}": shown_by
        for command in ("recommend", "regime", "capacity")
        for option, shown_by in (("--jobs", JOBS), ("--max-batch", BATCH))
    },
    **{
        f"{command} --torch-device": (arguments, ["--torch-device", "cuda:77"]) for command, arguments in DECIDE.items()
    },
    **{f"{command} --cache": (arguments, ["--cache", "{out}-cache"]) for command, arguments in DECIDE.items()},
    "recommend scenario": (["recommend", "--cache", "{cache}"], ["{answered}"]),
    "recommend --max-loss": (RECOMMEND, ["--max-loss", "0"]),
    "recommend --metric": (RECOMMEND, ["--metric", "beauty"]),
    "recommend --slo-p95": (RECOMMEND, ["--slo-p95", "1ms"]),
    "recommend --axis": (RECOMMEND, ["--axis", "network.preset=lte"]),
    "recommend --set": (RECOMMEND, ["--set", "network.preset=lte"]),
    "recommend --json": (RECOMMEND, ["--json"]),
    "recommend --out": (RECOMMEND, ["--out", "{out}.json"]),
    "capacity --out": CARRIES,
    "regime scenario": (
        ["regime", "--x", "network.distance_km=1,900", "--out", "{out}", "--cache", "{cache}"],
        ["{answered}"],
    ),
    "regime --x": (REGIME, ["--x", "network.distance_km=1,800"]),
    "regime --max-loss": (REGIME, ["--max-loss", "100%"]),
    "regime --set": (REGIME, ["--set", "network.preset=lte"]),
    **{f"regime --{name}": MAP for name in ("y", "metric", "out", "json")},
    "capacity --set": (["capacity", "{answered}", "--slo-p95", "1s"], ["--set", "workload.devices=3"]),
    "capacity --torch-device": "tests/ciar_sim/decide/test_capacity.py::test_a_device_that_is_not_there_is_one_line",
    **{
        f"capacity {name}": CARRIES
        for name in ("scenario", "--slo-p95", "--requests", "--precision", "--cache", "--json")
    },
    **{f"export {name}": EXPORT for name in ("run_or_scenario", "--as", "--cache")},
    "export --set": "tests/ciar_sim/decide/test_export_scenario.py::test_netem_has_the_figures_of_each_way",
    **{
        f"export --{name}": "tests/ciar_sim/decide/test_export_scenario.py::test_messages_add_up_to_the_run"
        for name in ("method", "request")
    },
    "export --out": "tests/ciar_sim/decide/test_export.py::test_tables",
    "list what": (["list"], ["presets"]),
    "traces import files": (["traces", "import", "--out", "{out}.csv"], ["{trace}"]),
    "traces import --direction": (IMPORT, ["--direction", "up"]),
    "traces import --unit": (IMPORT, ["--unit", "kbit/s"]),
    "traces import --window-s": (IMPORT, ["--window-s", "1", "2"]),
    "traces import --time-scale": (IMPORT, ["--time-scale", "2"]),
    "traces import --out": (IMPORT, ["--out", "{out}2.csv"]),
    "traces show files": (["traces", "show"], ["{trace}", "--json"]),
    "traces show --direction": (SHOW, ["--direction", "up"]),
    "traces show --unit": (SHOW, ["--unit", "kbit/s"]),
    "traces show --window-s": (SHOW, ["--window-s", "1", "2"]),
    "traces show --time-scale": (SHOW, ["--time-scale", "2"]),
    "traces show --out": (SHOW, ["--out", "{out}.png"]),
    "traces show --json": (["traces", "show", "{trace}", "--out", "{out}.png"], ["--json"]),
    "traces fit files": (["traces", "fit"], ["{packets}"]),
    "traces fit --direction": (FIT, ["--direction", "up"]),
    "traces fit --unit": (FIT, ["--unit", "s"]),
    "traces fit --window-s": (FIT, ["--window-s", "0", "31"]),
    "traces fit --time-scale": (FIT, ["--time-scale", "2"]),
    "traces fit --levels": (FIT, ["--levels", "2"]),
    "traces generate kind": (["traces", "generate", "--out", "{out}.csv", "--duration-s", "20"], ["lte"]),
    "traces generate --out": (GENERATE, ["--out", "{out}2.csv"]),
    "traces generate --seed": (GENERATE, ["--seed", "1"]),
    "traces generate --duration-s": (GENERATE, ["--duration-s", "30"]),
    "cache --cache": (CACHE, ["--cache", "{out}-cache"]),
    "cache --prune": (CACHE, ["--prune", "--max-gb", "0"]),
    "cache --max-gb": ([*CACHE, "--prune", "--max-gb", "1"], ["--max-gb", "0"]),
}


def options(command: click.Command, name: str = "") -> Iterator[str]:
    """Yield `command --option` and `command argument` of a command and of all its subcommands."""
    for parameter in command.params:
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        yield f"{name or 'ciar-sim'} {shown}"
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from options(one, f"{name} {below}".strip())


Observe = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair of four tokens, because recording takes most of a run."""
    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, grid=2)
    return folder


@pytest.fixture(scope="module")
def observe(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Observe:
    """Return a function that gives a digest of what a command prints and writes, in folders of its own. Equal calls run once."""
    known: dict[str, str] = {}

    def one(arguments: list[str]) -> str:
        key = " ".join(arguments)
        if key not in known:
            known[key] = seen_of(arguments, tmp_path_factory.mktemp("option"))
        return known[key]

    def seen_of(arguments: list[str], folder: Path) -> str:
        places = {name: folder / name for name in ("scenario", "out", "cache", "trace")} | {"pair": pair}
        places["scenario"] = folder / "scenario.yaml"
        places["scenario"].write_text(SCENARIO.format(pair=pair))
        places["answered"] = folder / "answered.yaml"
        places["answered"].write_text(ANSWERED.format(pair=pair))
        places["packets"] = folder / "packets.csv"
        rows = "".join(f"{0.01 * n:.2f},{8 * (n % 7 > n // 1000)},{4 * (n % 5 > 1)}\n" for n in range(4000))
        places["packets"].write_text("time_s,down_mbps,up_mbps\n" + rows)
        places["trace"].write_text("0 8\n1 4\n2 8\n3 2\n")
        (folder / "cache" / "recordings" / "00").mkdir(parents=True)
        (folder / "cache" / "recordings" / "00" / f"{'0' * 64}.npz").write_bytes(bytes(100))
        result = CliRunner().invoke(main, [argument.format(**places) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "speed.json")
        said = result.output.replace(str(folder), "")
        seen = [f"{result.exit_code}", re.sub(r"\d+\.\d+ ms", "", said)]
        seen += [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        return "\n".join(seen)

    return one


def test_help_says_what_every_command_and_option_does() -> None:
    """Groups list the whole first sentence of each command, where click would cut it off."""
    commands = [(click.Context(main), main)]
    for context, command in commands:
        assert command.help, context.command_path
        assert not [one.opts for one in command.params if isinstance(one, click.Option) and not one.help]
        if isinstance(command, click.Group):
            listed = " ".join(command.get_help(context).split())
            for name, one in command.commands.items():
                assert " ".join((one.help or "").partition("\n\n")[0].split()) in listed, name
                commands.append((click.Context(one, context, info_name=name), one))


def test_every_option_has_a_row() -> None:
    assert sorted(OPTIONS) == sorted(options(main))


@pytest.mark.parametrize("option", [option for option, row in OPTIONS.items() if not isinstance(row, str)])
def test_an_option_changes_what_is_printed_or_written(option: str, observe: Observe) -> None:
    row = OPTIONS[option]
    assert not isinstance(row, str)
    before, more = row
    assert observe([*before, *more]) != observe(before), f"{option} changed nothing"


@pytest.mark.parametrize("shown_by", sorted({row for row in OPTIONS.values() if isinstance(row, str)}))
def test_the_test_that_shows_an_option_exists(shown_by: str) -> None:
    file, _, name = shown_by.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
