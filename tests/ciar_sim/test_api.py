"""The public package: runs from Python, shipped scenarios by name, and the default cache folder."""

import ast
import math
import os
import pickle
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

import ciar_sim
import simulator
from ciar_sim.arguments import check_number, check_resources, choice_of, options_of_axes, options_of_sets
from ciar_sim.cli.common import default_cache
from ciar_sim.cli.main import main
from ciar_sim.shipped import scenario_path, shipped_scenarios
from simulator.core import yamlfile
from simulator.core.errors import CiarSimError, ScenarioError
from simulator.experiment.options import Choice
from tests.conftest import without_drawing

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def scenario(tiny_pair_folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "pair": str(tiny_pair_folder),
        "prompts": {"source": "scenes", "count": 2},
        "methods": ["base", {"name": "code", "prefix_rate": 0.5}],
        "compute": {
            "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
            "cloud": {"model": "pair", "hardware": "a100"},
        },
        "network": {"preset": "wifi"},
    }


@pytest.fixture(scope="module")
def finished(tiny_pair_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one method and one prompt."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    hardware = {"device": "snapdragon-8-gen-3", "cloud": "a100"}
    compute = {side: {"model": "pair", "hardware": name} for side, name in hardware.items()}
    one = {"name": "one", "pair": str(tiny_pair_folder), "prompts": {"count": 1}, "methods": ["base"]}
    one["network"] = {
        "rtt_ms": 20,
        "up_mbps": 40,
        "down_mbps": 90,
    }  # without bursts of losses, of which a short run warns
    with without_drawing():
        return ciar_sim.run({**one, "compute": compute}, out=folder, cache=cache).folder


def test_a_mapping_gives_the_bytes_of_the_command_line_and_a_file(
    scenario: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(scenario, sort_keys=False))
    mapped = ciar_sim.run(scenario, out=tmp_path / "mapped", cache=cache)
    command = CliRunner().invoke(
        main, ["run", str(path), "--out", str(tmp_path / "command"), "--cache", str(cache), "--quiet"]
    )
    assert command.exit_code == 0, command.output
    for name in ("summary.csv", "requests.parquet", "scenario.yaml"):
        assert len({(tmp_path / run / name).read_bytes() for run in ("mapped", "command")}) == 1
    assert mapped.folder == tmp_path / "mapped"
    assert mapped.report.is_file()
    assert list(mapped.summary["method"]) == list(pd.read_csv(mapped.folder / "summary.csv")["method"])
    assert len(mapped.requests) == mapped.summary["images"].sum()
    assert {prompt for _, prompt in mapped.images} == {0, 1}
    for image in mapped.images.values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_a_finished_run_is_opened_as_it_was_returned(scenario: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    scenario["methods"] = ["base", {"name": "ciar", "threshold": 0.35, "label": "NaN"}]
    axes = {"network.preset": ["wifi", "lte"], "methods.NaN.score": ["u", "omega"]}
    sets = {"prompts.count": 1}
    made = ciar_sim.sweep(scenario, axes, sets=sets, out=tmp_path / "run", cache=cache)
    opened = ciar_sim.open_run(str(tmp_path / "run"))
    pd.testing.assert_frame_equal(opened.summary, made.summary)
    pd.testing.assert_frame_equal(opened.requests, made.requests)
    assert opened.images.keys() == made.images.keys()
    assert (opened.folder, opened.warnings, opened.failed) == (made.folder, made.warnings, made.failed)
    assert (opened.quality, opened.pareto) == (made.quality, None)
    assert opened.plot == made.plot


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("provenance.json", None, "run is not a run folder: it has no provenance.json"),
        ("provenance.json", "{", "provenance.json cannot be read"),
        ("summary.csv", "case,method\n0,base\n", "summary.csv cannot be read: no column method_name"),
        ("requests.parquet", "PAR1", "requests.parquet cannot be read"),
        ("scenario.yaml", "a: b: c", "scenario.yaml:1: is not YAML"),
        ("unfinished.json", "{}", "run is unfinished: `ciar-sim report .*run` says what is missing"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused_in_one_line(
    finished: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if content is None or name == "unfinished.json":
        (folder / "provenance.json").unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(CiarSimError, match=message) as raised:
        ciar_sim.open_run(folder)
    assert "\n" not in str(raised.value)


def test_images_that_are_gone_are_one_line(finished: Path, tmp_path: Path) -> None:
    opened = ciar_sim.open_run(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(opened.folder / "images")
    with pytest.raises(CiarSimError, match=r"run/images cannot be read: No such file or directory$"):
        _ = opened.images


def test_a_sweep_adds_axes_and_sets_change_values(scenario: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    stages = set()
    # All requests arrive in the warm-up, so there is nothing to plot: plotting takes most of a run's time.
    workload = {"devices": 1, "arrivals": {"poisson_per_s": 1}, "duration_s": 3, "warmup_s": 2.99}
    result = ciar_sim.sweep(
        {**scenario, "workload": workload},
        {"network.preset": ["wifi", "lte"], "methods.code.prefix_rate": [0.25, 0.5]},
        sets={"prompts.count": 1},
        out=tmp_path / "out",
        cache=cache,
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert len(result.summary) == 2 * (1 + 2)
    assert set(result.summary["network.preset"]) == {"wifi", "lte"}
    assert {prompt for _, prompt in result.images} == {0}
    assert stages >= {"simulating", "writing"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"preset": "wify"}}, "did you mean wifi"),
        ({"seed": Path("x")}, "seed must be a whole number, got .x. .text."),
        ({"methods": ["base", {"name": "code", "prefix_rate": 2}]}, "prefix_rate"),
        ({"pair": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_mistake_in_a_mapping_is_one_line(
    scenario: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CiarSimError, match=message) as raised:
        ciar_sim.run({**scenario, **change}, out=tmp_path / "out", cache=tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"sets": {"seed": object()}},
        {"axes": {"network.preset": "wifi"}},
        {"axes": {"network.rtt_ms": [object()]}},
        {"torch_device": "tpu"},
        {"sets": {"nonsense": 1}},
    ],
)
def test_a_mistake_in_an_option_is_one_line(scenario: dict[str, Any], tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(CiarSimError) as raised:
        ciar_sim.run(scenario, out=tmp_path / "out", cache=tmp_path, **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_shipped_scenarios_are_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_scenarios() == sorted(path.stem for path in ROOT.glob("scenarios/*.yaml"))
    for name in shipped_scenarios():
        scenario = simulator.load_scenario(scenario_path(name))  # with the traces it names
        assert scenario.name == name
    (tmp_path / "quickstart").write_text("name: mine")
    assert scenario_path("quickstart") == Path("quickstart")  # a file of that name comes first
    assert scenario_path("no-such.yaml") == Path("no-such.yaml")
    with pytest.raises(ScenarioError, match="did you mean outage"):
        scenario_path("outaged")
    listed = CliRunner().invoke(main, ["list", "scenarios"])
    assert listed.exit_code == 0
    assert "threshold-prefix-sweep" in listed.output


def test_the_cache_folder_is_where_it_always_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CIAR_SIM_CACHE", raising=False)
    if os.name == "posix" and os.uname().sysname == "Linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache() == tmp_path / "ciar-sim"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_cache() == Path.home() / ".cache" / "ciar-sim"
    monkeypatch.setenv("CIAR_SIM_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


@pytest.mark.parametrize("package", [ciar_sim, simulator])
def test_the_public_names_are_those_of_the_stub(package: Any) -> None:
    stub = Path(package.__file__).with_suffix(".pyi")
    listed = [name.name for node in ast.parse(stub.read_text()).body for name in node.names]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    with pytest.raises(AttributeError):
        package.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        ("run", {"jobs": 0}, "jobs: must be a whole number from 1 on, got 0"),
        ("run", {"max_batch": 2.5}, "max_batch: must be a whole number from 1 on, got 2.5"),
        ("run", {"record_jobs": -1}, "record_jobs: must be a whole number from 1 on, got -1"),
        ("run", {"case_timeout_s": math.nan}, "case_timeout_s: must be a number above 0 to 6e.07, got nan"),
        ("run", {"timeline": "2"}, "timeline: must be a whole number from 0 to 10000, got '2'"),
        ("run", {"torch_device": 0}, "torch_device: must be text like auto, cpu, cuda or cuda:1, got 0"),
        ("run", {"progress": 5}, "progress: must be a function"),
        ("run", {"out": "a\0b"}, "out 'a.x00b': holds a NUL character"),
        ("run", {"cache": "a\ud800"}, "cache 'a.ud800': holds a character"),
        ("run", {"out": 3}, "out: must be a path, got 3"),
        ("run", {"sets": ["seed=1"]}, "sets: must be a mapping like"),
        ("run", {"axes": {1: [2]}}, "axes: must be a mapping like"),
        ("run", {"axes": {"seed": 5}}, "seed: axes take a list of values, or a range, got 5"),
        ("run", {"scenario": [1]}, "scenario: must be a file, the name of a shipped scenario, or a mapping, got .1"),
        ("run", {"scenario": "name: x\nmethods: [base]"}, "scenario: holds several lines"),
        ("recommend", {"max_loss_pct": math.nan}, "max_loss_pct: must be a number from 0 on, got nan"),
        ("recommend", {"slo_p95_s": -1}, "slo_p95_s: must be a number above 0 to 1e.06, got -1"),
        ("recommend", {"max_batch": True}, "max_batch: must be a whole number from 1 on, got True"),
        ("capacity", {"slo_p95_s": "5s"}, "slo_p95_s: must be a number above 0 to 1e.06, got '5s'"),
        ("capacity", {"slo_p95_s": 1, "requests": 0}, "requests: must be a whole number from 20 to 1e.07, got 0"),
        (
            "capacity",
            {"slo_p95_s": 1, "precision_pct": math.inf},
            "precision_pct: must be a number from 0.1 to 50, got inf",
        ),
        ("regime", {"x": {"seed": [1]}}, "x: must be text like network.rtt_ms=1:300:log"),
        ("regime", {"x": "seed=1,2", "max_loss_pct": -1}, "max_loss_pct: must be a number from 0 on, got -1"),
    ],
)
def test_an_argument_of_python_is_refused_as_the_option_is(
    scenario: dict[str, Any], function: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(CiarSimError, match=f"^{named}") as raised:
        getattr(ciar_sim, function)(**{"scenario": scenario, **arguments})
    assert "\n" not in str(raised.value)


def test_results_are_shown_in_a_line_kept_and_told_apart(finished: Path) -> None:
    result, again = ciar_sim.open_run(finished), ciar_sim.open_run(finished)
    assert repr(result) == f"Result({str(finished)!r}: 1 case)"
    assert result != again  # results compare by identity, because == of tables is a table
    assert len({result, again}) == 2
    decision = ciar_sim.compare(result, again)
    assert repr(decision).startswith(f"{decision.sentence}\n")
    for one in (result, decision):
        assert repr(pickle.loads(pickle.dumps(one))) == repr(one)
    with pytest.raises(CiarSimError, match=r"runs: must be run folders or results, each an argument of its own, got"):
        ciar_sim.compare([result, again])  # type: ignore[arg-type]
    with pytest.raises(CiarSimError, match=r"width: must be a number from 1\.5 to 40, got nan"):
        result.plot.figure("breakdown", width=math.nan)
    with pytest.raises(
        CiarSimError, match="--by seed: goes with latency-quality, sweep, speed-up and load, not with breakdown"
    ):
        result.plot.figure("breakdown", by="seed")
    with pytest.raises(CiarSimError, match="--methods 'ciar': this run has no such method"):
        result.plot.figure("breakdown", methods="ciar")  # one is named without a list
    for options, message in (
        ({"methods": 3}, "methods: must be a text or a list of texts, got 3"),
        ({"where": {"a": 1}}, "where: must be a text or a list of texts, got {'a': 1}"),
    ):
        with pytest.raises(CiarSimError, match=message):
            result.plot.figure("breakdown", **options)
    for axes, metric, message in (
        ([1, 2], None, "ax: must be axes of matplotlib, got list; of several axes choose one"),
        (None, "method_name", "metric method_name: not a column of numbers"),
    ):
        with pytest.raises(CiarSimError, match=message):
            result.plot.latency_quality(axes, metric=metric)


def test_numbers_of_numpy_are_numbers() -> None:
    assert options_of_sets({"seed": np.int64(3), "cloud.replicas": np.float32(2)}) == [
        "seed=3",
        "cloud.replicas=2.0",
    ]
    assert options_of_axes({"network.rtt_ms": np.linspace(5, 15, 2)}) == ["network.rtt_ms=5.0, 15.0"]
    for number in (check_number("timeline", np.int64(1), 0, whole=True), check_resources(jobs=np.int8(1))["jobs"]):
        assert type(number) is int  # JSON has no other
    assert choice_of([("a", "b"), ["c", "d"]], np.int16(3), np.uint8(40)) == Choice(["a,b", "c,d"], 3, "40")


def test_a_mapping_holds_what_python_programs_hold() -> None:
    """Scenarios, `sets` and `axes` accept numpy numbers, tuples and paths. The error about another type names its place."""
    data = {
        "name": np.str_("x"),
        "methods": ("base", {"name": "ciar", "threshold": np.float64(0.5)}),
        "network": {"trace": ROOT / "traces" / "leo.csv", "rtt_ms": np.int32(20)},
    }
    scenario = simulator.load_scenario(
        data, sets=options_of_sets({"network.trace": ROOT / "traces" / "umts-driving.csv"})
    )
    assert str(scenario.network.trace).endswith("umts-driving.csv")
    assert scenario.methods[1].threshold == 0.5
    for value, found in (
        (Decimal(1), "of type Decimal"),
        ({1, 2}, "of type set"),
        ({3: 4}, "a key must be text, got 3"),
    ):
        with pytest.raises(CiarSimError, match=rf"scenario: methods\[1\]\.threshold(:| is) {found}"):
            simulator.load_scenario({**data, "methods": ["base", {"name": "ciar", "threshold": value}]})
    endless: dict[str, Any] = {}
    endless["name"] = endless
    with pytest.raises(CiarSimError, match="nested deeper"):
        simulator.load_scenario(endless)


@pytest.mark.parametrize("text", ["\U0001f642", "a\u2028b", "a\x85b", "a\ufeffb", '"\\x', "a: b # c"])
def test_every_text_of_sets_and_axes_is_read_back(text: str) -> None:
    for option in (*options_of_sets({"k": text}), *options_of_axes({"k": [text]})):
        assert yamlfile.parse(f"[{option.partition('=')[2]}]", "option").data == [text]


@pytest.mark.parametrize(("value", "written"), [(math.nan, ".nan"), ([-math.inf, {"a": 1.5}], '[-.inf, {"a": 1.5}]')])
def test_numbers_that_json_lacks_are_numbers(value: Any, written: str) -> None:
    assert options_of_sets({"k": value}) == [f"k={written}"]


@pytest.mark.parametrize("zips", ["a,b", ("a", "b"), [["a", 3]], [{"a", "b"}], 3])
def test_zips_are_groups_of_paths(zips: Any) -> None:
    with pytest.raises(CiarSimError, match=r'^zips: must be groups of paths like \[\["network'):
        choice_of(zips, None, None)
    for random, tune in ((2.5, None), (True, None), (None, 2.5)):
        with pytest.raises(CiarSimError, match="must be a whole number from 1 on"):
            choice_of((), random, tune)
