"""Draft trees and the feature-level drafter. Their reference outputs are in tests/parity/."""

import pytest
import torch

from models.eagle import EagleDrafter, from_checkpoint, to_checkpoint
from models.kv_cache import KVCache
from models.tree import Growth, Tree, accepted_children, top
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import TransformerConfig


@torch.inference_mode()
def test_the_drafter_through_its_cache_equals_teacher_forcing() -> None:
    config = TransformerConfig(1, 2, 16, 24, 32, 5, 6, 4)
    drafter = EagleDrafter(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    embedded, features = torch.randn(2, 2, config.positions, 16, generator=generator, dtype=torch.float64)
    expected = drafter(embedded, features)
    cache = KVCache(config, 2, dtype=torch.float64)
    x = drafter.inputs(embedded, features)
    for first, last in ((0, 5), (5, 6), (6, config.positions)):
        n_new = torch.full((2,), last - first)
        got = drafter.step(cache, torch.arange(2), torch.full((2,), first), x[:, first:last], n_new)
        torch.testing.assert_close(got, expected[:, first:last], atol=1e-12, rtol=0)


def test_checkpoints_round_trip_and_name_what_is_wrong() -> None:
    config = TransformerConfig(1, 2, 16, 24, 32, 5, 6, 4)
    drafter = EagleDrafter(config)
    state = to_checkpoint(drafter)
    again = from_checkpoint(state, config, "f")
    for key, value in drafter.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    key = "layers.0.self_attn.k_proj.weight"
    with pytest.raises(WeightsError, match=rf"f: {key} has shape \[8, 16\], needed \[16, 16\]"):
        from_checkpoint({**state, key: state[key][:8]}, config, "f")
    value = key.replace("k_proj", "v_proj")
    shared = from_checkpoint({**state, key: state[key][:8], value: state[value][8:]}, config, "f")  # by both heads
    _, *both = shared.attention.wqkv.weight.chunk(3)
    for found, given in zip(both, (state[key][:8], state[value][8:]), strict=True):
        assert torch.equal(found, torch.cat([given, given]))
    del state[key]
    with pytest.raises(WeightsError, match=f"f: {key} is missing"):
        from_checkpoint(state, config, "f")


def test_ties_go_to_the_lower_index_and_keep_the_tree_closed() -> None:
    assert top(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 2]
    assert top(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 3, 2]
    assert top(torch.full((5,), -torch.inf), 3).tolist() == [0, 1, 2]
    certain = torch.full((4, 9), -torch.inf)  # a child has its parent's score, or -inf
    certain[:, 5] = 0.0
    growth = Growth(4)
    growth.begin(certain[0])
    for _ in range(3):
        growth.grow(certain)
    tree = growth.best(0, 12)
    assert tree.tokens[1] == 5
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert len(tree) == 12


def test_paths_and_children() -> None:
    tree = Tree([9, 1, 2, 3, 4, 5], [-1, 0, 0, 1, 1, 0])
    assert tree.paths(ordered=False) == [[0, 2], [0, 1, 3], [0, 1, 4], [0, 5]]
    assert tree.paths(ordered=True) == [[0, 1, 3], [0, 1, 4], [0, 2], [0, 5]]
    paths = tree.paths(ordered=True)
    assert accepted_children(paths, [0]) == [1, 2, 5]
    assert accepted_children(paths, [0, 1]) == [3, 4]
    assert accepted_children(paths, [0, 2]) == []
