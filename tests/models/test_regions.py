"""Agreement, entropy and calls by region of photographs on a white background."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.regions import draw
from benchmarks.tiny_pair import make_tiny_pair
from models.evaluate import regions
from models.evaluate.ground import white_codes
from models.sampling import greedy
from models.text import left_pad
from simulator.core.rng import stream

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "a large red cube on the left on a plain blue background"


def test_border_is_where_an_object_meets_the_ground_or_the_image_s_edge() -> None:
    grid = np.full((7, 7), 9)
    grid[2:7, 1:6] = 3  # an object cut by the lower edge
    grid[4, 3] = 8  # another white code inside it
    found = regions.regions_of(grid.reshape(1, -1), np.array([8, 9])).reshape(7, 7)
    assert np.array_equal(found == 0, grid > 3)
    assert regions.REGIONS[found[6, 3]] == "border"
    assert regions.REGIONS[found[5, 4]] == "border"  # next to the hole
    assert (found[2:7, 1:6] == 1).sum() == 0
    grid[4, 3] = 3
    found = regions.regions_of(grid.reshape(1, -1), np.array([8, 9])).reshape(7, 7)
    assert np.argwhere(found == 1).tolist() == [[y, x] for y in (3, 4, 5) for x in (2, 3, 4)]


def test_a_finished_pair_is_read_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.evaluate.ceiling.STEPS", 20)
    monkeypatch.setattr("models.evaluate.ceiling.CHECK_EVERY", 10)
    pair = make_tiny_pair(tmp_path / "pair", grid=8)
    white = white_codes(pair.tokenizer, pair.manifest.image_size)
    tokens = torch.from_numpy(stream(0, "test.regions").integers(64, size=(12, 64)))
    tokens[:, :32] = int(white[0])
    rows, mask = left_pad(pair.text.encode(CAPTION))
    parts = [(some, rows.expand(3, -1, -1), mask.expand(3, -1)) for some in tokens.split(3)]
    ceiling = regions.train_ceiling(pair.device, pair.cloud, parts[:2])
    found = regions.by_region(regions.columns_of(pair.device, pair.cloud, parts[2:], ceiling=ceiling), white)
    json.dumps(found, allow_nan=False)
    shares = {name: part["share_pct"] for name, part in found.items()}
    assert shares["all"] == 100
    assert sum(shares.values()) == pytest.approx(200)
    for key in ("agreement_pct", "acceptance_pct", "cloud_entropy_nats", "nats"):
        mean = sum(shares[name] * found[name][key] for name in regions.REGIONS if name in found) / 100
        assert mean == pytest.approx(found["all"][key], rel=1e-5)
    for score, calls in found["all"]["calls_pct"].items():
        assert calls == pytest.approx(regions.CALL_PCT, abs=3), score  # of 384 tokens
    assert set(found["all"]["auroc"]["differs"]) == set(found["all"]["calls_pct"])


def test_both_events_are_those_of_the_distributions(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path / "pair", grid=8, device_noise=0.5)
    rows, mask = torch.zeros(16, 32, 144), torch.ones(16, 32, dtype=torch.bool)
    tokens = torch.from_numpy(stream(1, "test.regions").integers(64, size=(16, 64)))
    found = regions.columns_of(pair.device, pair.cloud, [(tokens, rows, mask)])
    with torch.inference_mode():
        p, q = (model(tokens[:, :-1], rows, mask)[0] for model in (pair.cloud, pair.device.transformer))
    assert np.array_equal(found["differs"], (greedy(p) != greedy(q)).numpy())
    tv = 0.5 * (p.softmax(-1) - q.softmax(-1)).abs().sum(-1)
    assert found["tv"] == pytest.approx(tv.numpy(), abs=1e-5)
    rejected, expected = found["rejected"].mean(), float(tv.mean())
    assert abs(rejected - expected) < 4 * (0.25 / tokens.numel()) ** 0.5  # at most four standard errors


def test_the_picture_has_the_figures_of_the_training() -> None:
    measured = json.loads((ROOT / "models" / "weights" / "photos" / "metrics.json").read_text())["device"]["regions"]
    agree, entropy, calls = draw(measured).axes
    drawn = [[bar.get_height() for bar in panel.patches] for panel in (agree, entropy, calls)]
    rows = [measured[name] for name in regions.REGIONS]
    assert drawn[0] == [row[key] for key in ("agreement_pct", "acceptance_pct") for row in rows]
    assert drawn[1] == [row["cloud_entropy_nats"] for row in rows]
    assert drawn[2] == [row["calls_pct"][score] for score in ("quantile.u_tilde", "quantile.lower_top") for row in rows]
