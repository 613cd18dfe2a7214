"""EAGLE-2 and LANTERN: output distributions, caches, messages, costs and refusals."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.backend import Backend, PassRequest
from models.kv_cache import KVCache
from models.methods.eagle2 import DraftTest, OwnTest, normalised, verify
from models.methods.lantern import Relaxation, neighbours, static_parents
from models.methods.session import Step
from models.pair import Pair, load_pair
from models.recorder import Recorder
from models.tree import Growth, Tree, layout
from simulator.core.errors import RecordingError, ScenarioError, WeightsError
from simulator.experiment.scenario import Scenario
from simulator.pricing import catalogue
from simulator.pricing.build import PairShapes, build_costs, pair_shapes
from simulator.pricing.costs import Pricing, Work
from simulator.pricing.program import CALL_ITEMS, ITEM_KIND, ITEM_SECONDS, OTHER, compile_colocated, compile_session
from simulator.pricing.roofline import RooflineCosts
from simulator.protocol import pairs
from simulator.protocol.methods import METHODS, STATIC_TREES
from simulator.protocol.ops import ROLES, Forward
from simulator.protocol.recording import CLOUD, FORWARD, FROM_DEVICE, REPLY, SEND, Recording
from tests.models.caches import assert_cache_is_that_of_its_tokens, last_backend, prefill
from tests.models.law import ForgetfulTest, chi_square_p_value
from tests.models.test_methods import PROMPTS, record, spec
from tests.models.test_speculative import FALSE_ALARMS, TOKENS, Floats, V, chains, law_of_sequences
from tests.walks import answered

SMALL = {"total_tokens": 12, "depth": 3, "top_k": 4}


def passes(recording: Recording, role: str) -> np.ndarray:
    return recording.ops[(recording.ops["kind"] == FORWARD) & (recording.ops["what"] == ROLES.index(role))]


# --- the distribution


def drafted_tree(q: Floats, position: int, root: int) -> Tree:
    """Return a tree of two levels after a root, grown from the Markov drafter q [T, V, V], which differs much from the target."""
    growth = Growth(2)
    growth.begin(torch.from_numpy(np.log(q[position, root])))
    beam = [growth.tokens[node] for node in growth.beam]
    growth.grow(torch.from_numpy(np.log(q[min(position + 1, TOKENS), beam])))
    return growth.best(root, 6)


def decode_trees(p: Floats, q: Floats, runs: int, test: Any) -> np.ndarray:
    """Return token sequences [runs, T] decoded with draft trees. The method's own `verify` tests the trees."""
    rng = np.random.default_rng(2)
    trees = {(t, x): drafted_tree(q, t, x) for t in range(TOKENS) for x in range(V)}
    tests: dict[tuple[int, int], DraftTest] = {key: test(tree) for key, tree in trees.items()}
    paths = {key: tree.paths(ordered=True) for key, tree in trees.items()}
    found = np.zeros((runs, TOKENS), np.int64)
    for run in range(runs):
        uniform = iter(rng.random(64).tolist())
        tokens = [int((next(uniform) >= p[0, 0].cumsum()).sum())]
        while len(tokens) < TOKENS:
            key, first = (len(tokens), tokens[-1]), len(tokens)
            tree = trees[key]
            depths = layout(tuple(tree.parents))[0].tolist()
            search = verify(paths[key], lambda depth, sibling: next(uniform), tests[key])  # noqa: B023
            nodes, law = answered(search, lambda node: p[min(first + depths[node], TOKENS), tree.tokens[node]])  # noqa: B023
            cumulative = law.cumsum()
            following = int((next(uniform) * cumulative[-1] >= cumulative).sum())
            tokens += [tree.tokens[node] for node in nodes[1:]] + [following]
        found[run] = tokens[:TOKENS]
    return found


RUNS = 6_000


def test_the_law_of_the_first_four_tokens_is_the_targets() -> None:
    p, q = chains(0)
    found = decode_trees(p, q, RUNS, OwnTest)
    assert chi_square_p_value(found, law_of_sequences(p)) > FALSE_ALARMS


def test_a_wrong_rule_is_found_out() -> None:
    p, q = chains(0)
    found = decode_trees(p, q, RUNS, ForgetfulTest)
    assert chi_square_p_value(found, law_of_sequences(p)) < FALSE_ALARMS


def test_a_law_left_empty_becomes_uniform() -> None:
    assert np.array_equal(normalised(np.array([0.0, 0.0])), [0.5, 0.5])


# --- greedy, and the caches


@pytest.mark.parametrize("name", ["eagle2", "lantern", "lantern-static"])
@pytest.mark.parametrize("drafter", ["device", "cloud"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_equals_base_token_for_token(tiny_pair: Pair, name: str, drafter: str, guidance: float) -> None:
    decoding: dict[str, Any] = {"cloud": "greedy", "guidance": guidance}
    settings: dict[str, Any] = {"drafter": drafter, **({"k": 0} if name != "eagle2" else {})}
    one, base = record(tiny_pair, spec(tiny_pair, name, settings, **decoding), spec(tiny_pair, "base", {}, **decoding))
    assert np.array_equal(one.tokens, base.tokens)
    # The untrained drafter gets few drafts accepted.
    assert one.cloud_passes() < len(base.tokens) or name == "lantern-static"


def test_a_tree_far_past_the_images_end_is_cut(tiny_pair: Pair) -> None:
    """Trees of depth 9 exceed the end of the 16-token image. Only the image's tokens are kept."""
    settings = {"total_tokens": 200, "depth": 9, "top_k": 8}
    deep, base = record(
        tiny_pair, spec(tiny_pair, "eagle2", settings, cloud="greedy"), spec(tiny_pair, "base", {}, cloud="greedy")
    )
    assert np.array_equal(deep.tokens, base.tokens)
    assert passes(deep, "cloud")["new_tokens"].max() == 200


@pytest.mark.parametrize("name", ["eagle2", "lantern-static"])
@pytest.mark.parametrize("cloud", ["greedy", "sampled"])
def test_the_caches_hold_what_a_fresh_prefill_would(
    tiny_pair: Pair, name: str, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caches are checked after gathers and dropped trees. The drafter is in the cloud, where features are not rounded."""
    settings = {"drafter": "cloud", **(SMALL if name == "eagle2" else {"k": 3, "delta": 0.3})}
    one = spec(tiny_pair, name, settings, PROMPTS[1], cloud=cloud)
    with last_backend(monkeypatch) as backends:
        (recording,) = [made for _, made in Recorder(tiny_pair, max_batch=1).record([one])]
    assert_cache_is_that_of_its_tokens(tiny_pair, backends[-1], recording, PROMPTS[1], "cloud")
    assert_drafter_cache(tiny_pair, backends[-1], recording, PROMPTS[1])


def assert_drafter_cache(pair: Pair, backend: Backend, recording: Recording, prompt: str) -> None:
    """Compare the committed part of the drafter's cache with a prefill from the cloud's features of the final tokens."""
    assert pair.drafter is not None
    depth = 3 if "depth" in recording.meta["spec"]["settings"] else 4
    mine = passes(recording, "drafter")
    held = int(mine["kv_tokens"][-depth:].min())  # before the last round's tree
    tokens = recording.tokens[: held + 1].tolist()
    _, features = prefill(pair, pair.cloud, tokens[:-1], prompt)  # [2, slots + held, D]
    slots = pair.manifest.caption_slots
    ids = torch.tensor([0] * (slots - 1) + tokens)
    with torch.inference_mode():
        x = pair.drafter.inputs(pair.cloud.embed_tokens(ids).expand(2, -1, -1), features)
        fresh = KVCache(pair.drafter.config, 2, dtype=pair.dtype)
        pair.drafter.step(fresh, torch.arange(2), torch.zeros(2, dtype=torch.long), x, torch.full((2,), len(ids)))
    got = backend.caches["drafter"]
    for one, two in ((got.k, fresh.k), (got.v, fresh.v)):
        torch.testing.assert_close(one[:, :2, :, : slots + held], two[:, :, :, : slots + held], atol=1e-10, rtol=0)


# --- computed nodes of a tree


@torch.inference_mode()
def test_a_node_asked_for_is_that_of_the_pass_over_the_whole_tree(tiny_pair: Pair) -> None:
    """The node's logits do not depend on other branches in the cache."""
    tokens, parents = [3, 9, 11, 5, 7, 2], [-1, 0, 0, 1, 2, 1]
    backend = Backend(tiny_pair, 2, spare=len(tokens))
    backend.caches["cloud"].v.fill_(1e3)

    def step(slot: int, held: int, op: Forward) -> Step:
        return backend.forward("cloud", [PassRequest(slot, op, held, 3.0, 1.0, 0, 1.0, None)])[0]

    for slot in range(2):
        step(slot, 0, Forward("cloud", [1, 2], caption=tiny_pair.text.encode(PROMPTS[0]).numpy()))
    whole = step(0, 2, Forward("cloud", tokens, tree=parents, outputs="all"))
    for node in (0, 2, 1, 4, 5):
        op = Forward("cloud", tokens[node : node + 1], tree=parents[: node + 1], outputs="some", revisit=node > 0)
        one = step(1, 2 + node, op)
        torch.testing.assert_close(one.logits, whole.logits[node], atol=1e-10, rtol=0)
        assert one.states is not None
        assert whole.states is not None
        torch.testing.assert_close(one.states[:, 0], whole.states[:, node], atol=1e-10, rtol=0)


def test_only_what_a_verification_comes_to_is_computed(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = 0
    forward = Backend.forward

    def counting(self: Backend, role: str, requests: Sequence[PassRequest]) -> list[Step]:
        nonlocal fed
        fed += sum(request.op.new_positions for request in requests if role == "cloud")
        return forward(self, role, requests)

    monkeypatch.setattr(Backend, "forward", counting)
    (one,) = record(tiny_pair, spec(tiny_pair, "eagle2", SMALL))
    assert passes(one, "cloud")["new_tokens"].sum() > 5 * len(one.tokens)
    assert len(one.tokens) - 1 <= fed <= len(one.tokens) + 2  # and nodes of the last tree past the end


# --- the wire


def test_a_round_with_the_drafter_on_the_device_ships_what_the_table_says(tiny_pair: Pair) -> None:
    (one,) = record(tiny_pair, spec(tiny_pair, "eagle2", SMALL))
    ops = one.ops
    rounds = len(passes(one, "cloud")) - 1
    up = ops[(ops["kind"] == SEND) & (ops["call"] > 0)]
    assert (up["ids"] == 11).all()
    assert (up["indices"] == 11).all()
    down = ops[ops["kind"] == REPLY]
    assert (down["ids"][0], down["prompt_features"][0]) == (1, 2)
    accepted = np.array([int(n) for n in down["feature_vectors"][1:-1]]) // 2 - 1  # rows * (a + 1) vectors
    assert (accepted >= 0).all()
    assert one.tokens[: 1 + (accepted + 1).sum()].size == 1 + (accepted + 1).sum()
    assert down["feature_vectors"][-1] == 0  # nothing is drafted after the last token
    assert (one.decided_by == FROM_DEVICE).sum() >= accepted.sum()
    # In a round the drafter makes one pass over the decided tokens and one per expansion, the cloud one over the tree.
    drafter = passes(one, "drafter")
    assert len(drafter) == rounds * 4
    assert drafter["caption"].tolist() == [1] + [0] * (len(drafter) - 1)
    assert drafter["new_tokens"][0] == 0  # the first token is in the last caption slot
    assert (passes(one, "cloud")["new_tokens"][1:] == 12).all()


def test_with_the_drafter_in_the_cloud_only_tokens_travel(tiny_pair: Pair) -> None:
    (one,) = record(tiny_pair, spec(tiny_pair, "eagle2", {**SMALL, "drafter": "cloud"}))
    assert one.calls() == 1
    assert one.ops["ids"].sum() == len(one.tokens)
    assert not one.ops["feature_vectors"].any()
    assert not one.ops["prompt_features"].any()
    assert (passes(one, "drafter")["side"] == CLOUD).all()


def test_a_static_tree_ships_ids_weights_and_laws(tiny_pair: Pair) -> None:
    sampled, greedy = record(
        tiny_pair,
        *(spec(tiny_pair, "lantern-static", {"k": 4, "delta": 0.2}, cloud=cloud) for cloud in ("sampled", "greedy")),
    )
    for one, scalars, rows in ((sampled, 57, 25), (greedy, 0, 0)):
        up = one.ops[(one.ops["kind"] == SEND) & (one.ops["call"] > 0)]
        assert (up["ids"] == 57).all()
        assert (up["scalars"] == scalars).all()
        assert (up["vocabulary_rows"] == rows).all()
        assert not up["indices"].any()


def test_static_trees_have_the_published_sizes() -> None:
    for name, levels, inner in (("57-nodes", [5, 13, 16, 14, 9], 25), ("25-nodes", [4, 8, 8, 3, 2], None)):
        parents = static_parents(STATIC_TREES[name])
        depths = layout(tuple(parents))[0].tolist()
        assert [depths.count(depth) for depth in range(1, 6)] == levels
        if inner is not None:
            assert len(set(parents[1:])) == inner
    assert METHODS["lantern-static"].settings.model_validate({}).draft_slots == 58


# --- lantern


@pytest.mark.parametrize("cloud", ["sampled", "greedy"])
@pytest.mark.parametrize("drafter", ["device", "cloud"])
def test_lantern_without_neighbours_is_eagle2(tiny_pair: Pair, cloud: str, drafter: str) -> None:
    settings = {**SMALL, "drafter": drafter}
    specs = [
        spec(tiny_pair, name, {**settings, **extra}, prompt, cloud=cloud)
        for prompt in PROMPTS
        for name, extra in (("eagle2", {}), ("lantern", {"k": 0}))
    ]
    for eagle2, lantern in zip(*(record(tiny_pair, *specs)[start::2] for start in (0, 1)), strict=True):
        assert np.array_equal(eagle2.tokens, lantern.tokens)
        assert np.array_equal(eagle2.ops, lantern.ops)


def test_relaxing_accepts_more(tiny_pair: Pair) -> None:
    def cloud_passes(settings: dict[str, Any]) -> int:
        specs = [spec(tiny_pair, "lantern", {**SMALL, **settings}, PROMPTS[0], seed) for seed in range(6)]
        return sum(recording.cloud_passes() for recording in record(tiny_pair, *specs))

    assert cloud_passes({"k": 40, "delta": 0.9}) < cloud_passes({"k": 0})


def test_the_mass_stays_within_its_bound() -> None:
    rng = np.random.default_rng(0)
    table = neighbours(torch.from_numpy(rng.standard_normal((30, 4))), 29).astype(np.int64)
    assert all(set(row) == set(range(30)) - {code} for code, row in enumerate(table))
    p = rng.dirichlet(np.ones(30))
    for k in (1, 5, 29):
        for bound in (0.0, 0.05, 0.3, 1.0):
            for x in range(30):
                mass, struck = Relaxation(table, k, delta=bound).relaxed_accept(p, x)
                assert p[x] <= mass <= p[x] + bound + 1e-12
                assert len(struck) in (0, min(k + 1, 29))
                mass, _ = Relaxation(table, k, lambda_=1 + bound).relaxed_accept(p, x)
                assert mass <= (1 + bound) * p[x] + 1e-12


# --- what it costs


class OneEach:
    """Costs of one second for every forward pass. `asked` records the work of each."""

    power_w, extrapolated = float("nan"), False

    def __init__(self) -> None:
        self.asked: list[Work] = []

    def pass_seconds(self, work: Work) -> float:
        self.asked.append(work)
        return 1.0

    def compute_seconds(self, kind: str) -> float:
        return 0.0


def test_drafter_passes_are_priced_where_they_run(tiny_pair: Pair) -> None:
    here, there = record(
        tiny_pair, *(spec(tiny_pair, "eagle2", {**SMALL, "drafter": side}) for side in ("device", "cloud"))
    )
    device, cloud, drafter = OneEach(), OneEach(), OneEach()
    # A drafter has its own costs, not those of the device's model.
    own = OneEach()
    program = compile_session(here, device, cloud, Pricing(120, here.widths, drafter, own))
    assert (device.asked, drafter.asked) == ([], [])
    assert program.device_s == len(own.asked) == len(passes(here, "drafter"))
    # The caption slots of the cloud's model, with the first token in the last one.
    assert own.asked[0] == Work.of_pass(2, 120, 0)
    assert len(cloud.asked) == here.cloud_passes()
    opening, *trees = passes(here, "cloud")
    assert (opening["logits_all"], opening["hidden"], cloud.asked[0]) == (1, 0, Work.of_pass(2, 120, 0))
    for tree, work in zip(trees, cloud.asked[1:], strict=True):  # logits at every node, no other branch visible
        causal = Work.of_pass(2, int(tree["new_tokens"]), 120 + int(tree["kv_tokens"]))
        assert work.logits == work.tokens == 2 * SMALL["total_tokens"]
        assert work.attended == causal.attended - 2 * tree["hidden"] < causal.attended
    assert compile_session(there, device, OneEach(), Pricing(120, there.widths, drafter)).device_s == 0
    assert len(drafter.asked) == len(passes(there, "drafter"))
    for one in (here, there):
        with pytest.raises(RecordingError, match="the costs of a drafter are unknown"):
            compile_session(one, device, cloud, Pricing(120, one.widths))
    # Colocated with the cloud's model, it is priced like a drafter in the cloud, without times on the device.
    companion = OneEach()
    together = compile_colocated(here, device, companion, cloud, Pricing(120, here.widths, drafter))
    assert companion.asked == []
    items = [item for item in together.calls[0][CALL_ITEMS] if item[ITEM_KIND] == OTHER and item[ITEM_SECONDS] == 1.0]
    assert len(items) == len(passes(here, "drafter"))


def test_a_drafters_pass_reads_all_its_weights_and_the_models_output_matrix(
    tiny_pair: Pair, tiny_pair_folder: Path
) -> None:
    assert tiny_pair.drafter is not None
    shapes = pair_shapes(tiny_pair_folder)
    own = sum(parameter.numel() for parameter in tiny_pair.drafter.parameters())
    output = tiny_pair.cloud.output.weight.numel()
    assert catalogue.drafter_of(shapes.cloud).pass_parameters == own + output
    # Chameleon's output matrix has rows for text too. A device needs only those of image codes.
    anole = catalogue.model("anole-7b")
    rows = [catalogue.drafter_of(anole, all_rows=every).head_parameters for every in (True, False)]
    assert rows == [65536 * 4096, 8192 * 4096]
    xl = PairShapes(cloud=catalogue.model("llamagen-xl"), device=catalogue.model("llamagen-xl-1layer"))
    sides = {"device": {"model": "llamagen-xl-1layer"}, "cloud": {"model": "llamagen-xl", "hardware": "a100"}}
    scenario = Scenario.model_validate({"name": "t", "methods": ["base"], "compute": sides})
    *_, pricing = build_costs(scenario.compute, xl, pytest.fail)
    for costs, machine in ((pricing.drafter, "A100"), (pricing.device_drafter, "Snapdragon")):
        assert isinstance(costs, RooflineCosts)
        assert machine in costs.hardware.title
        assert costs.shape.pass_parameters == 20_318_720 + 2 * 1280**2 + 16384 * 1280


# --- refusals


@pytest.fixture
def without_drafter(tiny_pair_folder: Path, tmp_path: Path) -> Pair:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_pair_folder, folder)
    (folder / pairs.DRAFTER).unlink()
    manifest = pairs.pair_manifest(folder)
    files = tuple(file for file in manifest.files if file.name != pairs.DRAFTER)
    (folder / pairs.MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    return load_pair(folder, dtype=torch.float64)


@pytest.mark.parametrize("name", ["eagle2", "lantern", "lantern-static"])
def test_a_pair_without_a_drafter_is_refused(without_drafter: Pair, name: str) -> None:
    assert without_drafter.drafter is None
    with pytest.raises(WeightsError, match=r"the pair tiny has no drafter, .*; train the stage drafter"):
        record(without_drafter, spec(without_drafter, name, {}))
    assert len(record(without_drafter, spec(without_drafter, "base", {}))[0].tokens) == 16


@pytest.mark.parametrize("name", ["lantern", "lantern-static"])
def test_more_neighbours_than_codes_are_refused(tiny_pair: Pair, name: str) -> None:
    with pytest.raises(ScenarioError, match="k must be below the 64 codes of the pair tiny, got 64"):
        record(tiny_pair, spec(tiny_pair, name, {"k": 64}))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lantern", {"delta": 0.1, "lambda_": 5.0}, "the bound is absolute or relative"),
        ("lantern-static", {"delta": 0.1, "lambda_": 5.0}, "the bound is absolute or relative"),
        ("lantern", {"delta": 1.5}, "less than or equal to 1"),
        ("lantern", {"lambda_": 0.5}, "greater than or equal to 1"),
        (
            "eagle2",
            {"depth": 1, "top_k": 2, "total_tokens": 8},
            "must be <= 7, the nodes that depth 1 and top_k 2 yield, got 8",
        ),
        ("eagle2", {"depth": 10}, "less than or equal to 9"),
        ("eagle2", {"total_tokens": 257}, "less than or equal to 256"),
        ("speculative", {"gamma": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        METHODS[name].settings.model_validate(settings)


def test_only_one_bound_is_in_force() -> None:
    for given, absolute in (({}, 0.1), ({"delta": 0.3}, 0.3), ({"lambda_": 5.0}, None)):
        settings = METHODS["lantern"].settings.model_validate(given)
        assert getattr(settings, "absolute_bound") == absolute  # noqa: B009
