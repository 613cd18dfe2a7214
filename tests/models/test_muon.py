"""Muon: its update is nearly orthogonal, it trains, and the loop applies it only to the matrices inside layers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.train.loop import LoopSettings, groups_of, train
from models.train.muon import Muon, orthogonal
from models.transformer import Transformer, TransformerConfig


def test_updates_are_near_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
        assert values.shape == (min(shape),)
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_matrices_of_one_shape_are_turned_together_on_a_gpu_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    found = []
    for together in (False, True):
        if together:
            monkeypatch.setattr("models.train.muon.TOGETHER", ("cpu",))
        weights = [torch.ones(shape, requires_grad=True) for shape in [(6, 18)] * 3 + [(18, 6)] * 2]
        optimizer = Muon([{"params": weights, "orthogonal": True, "weight_decay": 0.1}], lr=0.1)
        generator.manual_seed(1)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        found.append(weights)
    for alone, other in zip(*found, strict=True):
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-6)


def test_it_fits_a_linear_map_beside_a_bias() -> None:
    torch.manual_seed(0)
    layer, wanted, x = nn.Linear(8, 6), torch.randn(6, 8), torch.randn(64, 8)
    target = x @ wanted.T + 1.0
    groups = [
        {"params": [layer.weight], "orthogonal": True, "weight_decay": 0.0},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = Muon(groups, lr=0.1)
    losses = []
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 200)
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_the_loop_gives_it_the_matrices_inside_layers() -> None:
    class Stage:
        model: nn.Module = Transformer(TransformerConfig(2, 2, 16, 24, 64, 8, 36, 4))

    plain, turned = (
        groups_of(Stage(), LoopSettings(steps=1, learning_rate=1.0, optimizer=kind)) for kind in ("adamw", "muon")
    )
    assert not any(group.get("orthogonal") for group in plain)
    (inner,) = (group["params"] for group in turned if group.get("orthogonal"))
    assert len(inner) == 2 * 5  # q k v, its output, and three of the feed-forward, in two layers
    count = sum(len(group["params"]) for group in turned)
    assert count == sum(len(group["params"]) for group in plain) == len(list(Stage.model.parameters()))


class Killed(BaseException):
    pass


class Layers:
    """A stage with parameters inside and outside of `layers`. It can be killed before a step."""

    def __init__(self, kill_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.ModuleDict({"layers": nn.Linear(6, 6), "head": nn.Linear(6, 1)})
        self.kill_at = kill_at

    def batch(self, step: int) -> Tensor:
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        if step == self.kill_at:
            raise Killed
        assert isinstance(self.model, nn.ModuleDict)
        return (self.model["head"](self.model["layers"](batch).tanh())[:, 0] - batch[:, 0]).square().mean(), {}


def test_resuming_after_a_kill_changes_no_bit(tmp_path: Path) -> None:
    settings = LoopSettings(steps=8, learning_rate=0.02, warmup_steps=1, optimizer="muon", checkpoint_every_s=0.0)
    whole = train(Layers(), settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train(Layers(kill_at=5), settings, tmp_path / "killed")
    resumed = train(Layers(), settings, tmp_path / "killed")
    assert all(torch.equal(resumed.averaged[key], tensor) for key, tensor in whole.averaged.items())
    saved = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert {"momentum"} in [set(state) for state in saved["optimizer"]["state"].values()]
