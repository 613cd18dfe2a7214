"""No dead setting: every key of a scenario, changed where it should matter, changes a run's results.

`setting_rows.SETTINGS` has a row per key. The tests fail for a key without a row, and for a row that changes neither requests nor
summary.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.tiny_pair import make_tiny_pair
from models.pair import load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.experiment.loading import load_scenario
from simulator.experiment.run import run_scenario
from simulator.experiment.scenario import json_schema
from simulator.experiment.schema.cloud import Serving
from simulator.pricing.profile import Profile
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.results.files import ROWS
from simulator.results.tables import CaseRecords, request_blocks, summary_table
from tests.ciar_sim.setting_rows import ANOTHER, BASE, BUSY, LONGER, ONE_CAPTION, SETTINGS, put

pytestmark = pytest.mark.usefixtures("short_gaps")

GRID = 2  # an image has 2 x 2 tokens


def schema_keys() -> list[str]:
    schema = json_schema()
    sections = {"Scenario": schema, **schema["$defs"]}
    return [f"{name}.{key}" for name, section in sections.items() for key in section.get("properties", {})]


def rounded(value: Any) -> Any:
    """Return a number with six digits: what is recorded in another batch differs in the eighth, whatever the settings."""
    return f"{value:.6g}" if isinstance(value, float) else value


Results = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """Yield a function that gives a digest of a scenario's requests and summary. Equal scenarios run once.

    Images have few tokens, because recording takes most of a run. No folder is written, because that takes half of the rest.
    """
    folder = tmp_path_factory.mktemp("settings")
    make_tiny_pair(folder / "pair", grid=GRID)
    (folder / "captions.txt").write_text(ONE_CAPTION + "\n")
    (folder / "others.txt").write_text(ANOTHER + "\n")
    (folder / "both.txt").write_text(f"{ONE_CAPTION}\n{ANOTHER}\n")
    (folder / "link.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,8,2,40\n1,4,1,60\n2,8,2,40\n")
    (folder / "other.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,1,1,90\n1,2,2,90\n2,1,1,90\n")
    (folder / "arrivals.csv").write_text("requested_s\n0.5\n0.7\n2.5\n")
    (folder / "later.csv").write_text("requested_s\n1.5\n1.7\n3.5\n")
    (folder / "plain.txt").write_text("0 8\n1 4\n2 8\n")
    (folder / "arrivals.jsonl").write_text(
        "".join(f'{{"timestamp": {t}, "input_length": 1, "output_length": 1}}\n' for t in (0, 1, 3))
    )
    for name, seconds in (("profile.json", 1e-3), ("slow.json", 5e-3)):
        table = {"rows": [1, 64], "new_tokens": [1, 32], "kv_tokens": [0, 64], "seconds": [[[seconds] * 2] * 2] * 2}
        Profile.model_validate(
            {
                "model": "tiny",
                "hardware": "test",
                "threads": 1,
                "torch": "2",
                "passes": {"device": table, "cloud": table},
                "compute_seconds": dict.fromkeys(
                    ("caption_encoder", "phi", "image_decoder", "interval_samples"), seconds
                ),
            }
        ).write(folder / name)
    cache = RecordingCache(folder / "cache")
    sources: dict[str, CachedSource] = {}  # by the folder of the pair
    known: dict[str, str] = {}

    def digest(data: dict[str, Any]) -> str:
        data = {"pair": str(folder / "pair"), **data}
        text = json.dumps(data, sort_keys=True)  # JSON is YAML
        if data["pair"] not in sources:
            sources[data["pair"]] = CachedSource(cache, Recorder(load_pair(Path(data["pair"])), 8).record)
        if text not in known:
            path = folder / "scenario.yaml"
            path.write_text(text)
            run_scenario(
                load_scenario(path),
                folder / "out",
                sources[data["pair"]],
                captions,
                lambda: Profile.read(folder / "profile.json"),
            )
            known[text] = digests.pop()
        return known[text]

    digests: list[str] = []

    def write_run(_: Path, *, cases: Sequence[CaseRecords], **__: Any) -> pd.DataFrame:
        (requests,) = request_blocks(cases, ROWS)
        summary = summary_table(cases)
        columns = [(name, list(map(rounded, column.tolist()))) for name, column in requests.items()]
        figures = [(name, list(map(rounded, summary[name].array.tolist()))) for name in summary]
        digests.append(hashlib.sha256(repr((columns, figures)).encode()).hexdigest())
        return summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.experiment.run.write_run", write_run)
        patch.setattr("simulator.experiment.run.resolved_yaml", lambda _: "")
        yield digest


def test_every_key_of_the_schema_has_a_row() -> None:
    missing, unknown = set(schema_keys()) - set(SETTINGS), set(SETTINGS) - set(schema_keys())
    assert not missing, f"SETTINGS of tests/ciar_sim/setting_rows.py needs a row for {', '.join(sorted(missing))}"
    assert not unknown, f"SETTINGS of tests/ciar_sim/setting_rows.py has rows of no key: {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("key", [key for key, row in SETTINGS.items() if isinstance(row, tuple)])
def test_a_changed_setting_changes_the_results(key: str, results: Results, tiny_pair_folder: Path) -> None:
    row = SETTINGS[key]
    assert isinstance(row, tuple)
    before = copy.deepcopy(BASE) | ({"pair": str(tiny_pair_folder)} if key in LONGER else {})
    put(before, row[0])
    after = copy.deepcopy(before)
    put(after, row[1])
    assert results(after) != results(before), f"{key} changed nothing: {row[1]}"


def test_another_pair_is_another_result(results: Results, tmp_path: Path) -> None:
    make_tiny_pair(tmp_path / "other", seed=1, grid=GRID)
    assert results({**BASE, "pair": str(tmp_path / "other")}) != results(BASE)


def test_a_tier_is_a_cloud_at_a_place(results: Results) -> None:
    """A tier 20 ms behind the link gives the same results as a cloud without tiers on a link with 20 ms more."""
    serving = {
        "replicas": 2,
        "max_batch": 2,
        "queue": "shortest-first",
        "routing": "round-robin",
        "max_sessions": 3,
        "max_waiting": 5,
        "kv_memory_gb": 1.5e-3,
        "kv_full": "evict",
        "crashes": [{"replica": 1, "at_s": 0.3, "down_s": 0.2}],
        "autoscale": {"max_replicas": 3, "sessions_per_replica": 1.0, "start_up_s": 0.01},
        "background": {"utilisation": 0.3},
        "price_usd_per_gpu_hour": 2.0,
    }
    plain, tiered = copy.deepcopy(BASE), copy.deepcopy(BASE)
    put(plain, {**BUSY, "cloud": serving, "compute.cloud.hardware": "jetson-orin-nano-8", "network.rtt_ms": 60})
    here = {**serving, "rtt_ms": 20, "hardware": "jetson-orin-nano-8"}
    put(tiered, {**BUSY, "cloud": {"tier": "here", "tiers": {"here": here, "there": {"rtt_ms": 1}}}})
    assert set(serving) == set(Serving.model_fields)
    assert results(plain) == results(tiered) != results(BASE)


def test_a_sweep_makes_cases(results: Results) -> None:
    assert results({**BASE, "sweep": {"network.rtt_ms": [40, 80]}}) != results(BASE)
