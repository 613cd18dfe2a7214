"""The uncertainty scores of the gated methods on distributions with known scores."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from models.interval import inter_fuse, sampled_bounds, uncertainty
from models.methods.scores import (
    PassScore,
    RandomScore,
    SampledIntervals,
    WindowedCorr,
    all_scores,
    entropy,
    make_score,
    softmax_corr,
)
from models.methods.session import DeviceState, Step
from simulator.protocol.methods import METHODS, GatedSettings
from simulator.protocol.ops import INTERVAL_SAMPLES, Compute, Op
from simulator.protocol.recording import SCORES


def step(logits: list[float], radius: float = 0.5) -> Step:
    centre = torch.tensor(logits, dtype=torch.float64)
    r = torch.full_like(centre, radius)
    lower, upper = inter_fuse(centre, r)
    return Step(int(centre.argmax()), centre, torch.zeros(2), all_scores(centre, lower, upper).numpy(), lower, upper, r)


def state(seed: int = 0) -> DeviceState:
    return DeviceState(image_tokens=4000, caption_dim=4, caption="a red cube", seed=seed)


def value(ops: Generator[Op, Any, float]) -> float:
    """Run a score to its end, with computations as in the backend, and return its value."""
    answer = None
    while True:
        try:
            op = ops.send(answer)
        except StopIteration as stop:
            return float(stop.value)
        assert isinstance(op, Compute)
        asked, noise = op.payload
        answer = sampled_bounds(asked.logits, asked.radius, torch.from_numpy(noise))


def test_entropy_and_maximum_probability_by_hand() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert float(entropy(logits)) == pytest.approx(1.75 * math.log(2))
    found = step(logits.tolist())
    assert found.score("entropy") == pytest.approx(1.75 / 2)
    assert found.score("mid_top") == pytest.approx(0.5)
    assert math.isnan(found.score("gate"))
    flat, certain = step([3.0] * 8), step([0.0] * 7 + [1e4])
    assert flat.score("entropy") == pytest.approx(1.0)
    assert flat.score("mid_top") == pytest.approx(7 / 8)
    assert certain.score("entropy") == 0.0
    assert certain.score("mid_top") == 0.0


def test_interval_scores_are_those_of_the_interval() -> None:
    found = step([1.0, 0.0, -1.0, 2.5])
    assert found.lower is not None
    assert found.upper is not None
    wanted = uncertainty(found.lower, found.upper)
    for name, column in (
        ("u", wanted.u_tilde),
        ("u_raw", wanted.u),
        ("omega", wanted.omega),
        ("lower_top", wanted.lower_top),
    ):
        assert value(PassScore(name).of(found, 0)) == pytest.approx(float(column), rel=1e-6)
    assert len(SCORES) == len(found.scores if found.scores is not None else [])


def test_a_single_token_cannot_be_ranked_by_softmax_corr() -> None:
    for seed in range(20):
        p = (4 * torch.randn(1, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(-1)
        assert softmax_corr(p) == pytest.approx(1 / 8)


def test_softmax_corr_is_the_cosine_with_the_uniform_diagonal() -> None:
    p = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(-1)
    c, r = p.T @ p / 5, torch.eye(9, dtype=torch.float64) / 9
    assert softmax_corr(p) == pytest.approx(float((c * r).sum() / (c.norm() * r.norm())))
    assert softmax_corr(torch.eye(9)) == pytest.approx(1.0)  # every class is certain equally often


def test_the_window_holds_the_last_sixteen() -> None:
    score, found = WindowedCorr(), 0.0
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for position, row in enumerate(logits):
        found = value(score.of(step(row.tolist()), position))
        if position == 0:
            assert found == pytest.approx(1 - 1 / math.sqrt(6))
    assert found == pytest.approx(1 - softmax_corr(logits[-16:].softmax(-1)))


def test_draws_belong_to_seed_purpose_and_position() -> None:
    one, two = RandomScore(state(), "random"), RandomScore(state(), "softmax-corr")
    nothing = step([0.0, 1.0])
    values = [value(one.of(nothing, position)) for position in range(4000)]
    assert value(RandomScore(state(), "random").of(nothing, 7)) == values[7]
    assert value(two.of(nothing, 7)) != values[7]
    assert value(RandomScore(state(1), "random").of(nothing, 7)) != values[7]
    # 4000 tokens at a rate of 0.324: 3.3 standard deviations, a false alarm at one of 1000 seeds.
    assert abs(np.mean(np.array(values) >= 1 - 0.324) - 0.324) < 0.0245


def test_sampled_bounds_lie_in_the_box_and_widen_with_k() -> None:
    found = step((2 * torch.randn(256, generator=torch.Generator().manual_seed(3))).tolist(), radius=0.7)
    few, many = (value(SampledIntervals(state(), k).of(found, 5)) for k in (100, 300))
    assert 0 < few < many  # the 300 samples include the 100
    assert value(SampledIntervals(state(), 100).of(found, 5)) == few
    assert value(SampledIntervals(state(), 100).of(found, 6)) != few
    assert found.radius is not None
    lower, upper = sampled_bounds(found.logits, found.radius, torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 256))
    mid = found.logits.softmax(-1)
    # A shift of all logits does not change the probabilities.
    torch.testing.assert_close(torch.stack([lower, upper]), torch.stack([mid, mid]))
    certain = step([1.0, 2.0, 3.0], radius=0.0)
    assert value(SampledIntervals(state(), INTERVAL_SAMPLES).of(certain, 0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("ciar", {"score": "lower-top"}, PassScore),
        ("entropy-lens", {}, PassScore),
        ("softmax-corr", {}, PassScore),
        ("softmax-corr", {"reading": "literal"}, RandomScore),
        ("softmax-corr", {"reading": "window"}, WindowedCorr),
        ("random", {}, RandomScore),
        ("discrete", {"k": 300}, SampledIntervals),
    ],
)
def test_settings_choose_the_score(name: str, settings: dict[str, Any], kind: type) -> None:
    parsed = METHODS[name].settings.model_validate(settings)
    assert isinstance(parsed, GatedSettings)
    score = make_score(parsed, state())
    assert isinstance(score, kind)
    if isinstance(score, PassScore):
        assert score.name in SCORES
