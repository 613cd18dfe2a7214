"""Parity of drafting: speculative sampling, EAGLE-2's trees and verification, its feature-level drafter, LANTERN."""

import json
import math
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones.parts import own_keys
from models.eagle import CAPTION_TOKEN, NORM_EPS, EagleDrafter, from_checkpoint
from models.kv_cache import KVCache
from models.methods import speculative
from models.methods.eagle2 import Drafted, DraftTest, OwnTest, is_best, verify, verify_greedy
from models.methods.lantern import ChosenTest, DrawnTest, Relaxation, neighbours
from models.sampling import guide, warp_probs
from models.state import read_state
from models.tree import Growth, Tree, layout
from simulator.protocol.pairs import TransformerConfig
from tests.parity.checks import Tally, check, stem
from tests.parity.core import cases, numbered
from tests.walks import answered


@check("speculative_sampling*.safetensors", reads=("{}_cases.json",))
def speculative_sampling(file: Path, tally: Tally) -> None:
    for case in cases(file):
        tally.case()
        one = case
        q, p = (
            one[f"{side}_logits"].softmax(-1).double().numpy() for side in ("draft", "target")
        )  # [g, V], [g + 1, V]
        x, r = one["draft_tokens"].numpy(), one["r"].double().numpy()
        at = np.arange(len(x))
        tally.close("ratio", p[at, x] / q[at, x], one["ratio_unclamped"], atol=1e-6, rtol=2e-5)
        accepted = int(speculative.accept(p[at, x], q[at, x], r))
        tally.equal("accepted", accepted, case["n_accepted"])
        probs = p[-1] if accepted == len(x) else speculative.residual(p[accepted], q[accepted])
        tally.close("next distribution", probs, one["next_distribution"], atol=1e-6)
        tally.close("residual", speculative.residual(p[:-1], q), one["residual_all_f64"], atol=1e-6)


# --- EAGLE-2


def padded(paths: list[list[int]]) -> Tensor:
    longest = max(map(len, paths))
    return torch.tensor([path + [-1] * (longest - len(path)) for path in paths])


def log_q(logits: Tensor, processor: dict[str, Any] | None) -> Tensor:
    """Return draft log-probabilities [n, V] as the reference's variant computes them."""
    if processor is None:
        return logits.log_softmax(-1)
    t, k, p = (torch.full((len(logits),), processor[name]) for name in "tkp")
    return warp_probs(logits, t, k.long(), p).log()


def compare_tree(tree: Tree, one: dict[str, Any], processor: dict[str, Any] | None, tally: Tally) -> None:
    """Compare a tree. With a processor the reference samples and sorts the paths; without one it keeps the order of the leaves."""
    depth, sees = layout(tuple(tree.parents))
    tally.equal("tree tokens", tree.tokens, one["draft_tokens"].tolist())
    tally.equal("tree mask", sees, one["tree_mask"].bool())
    tally.equal("tree positions", depth, one["tree_position_ids"])
    tally.equal("paths", padded(tree.paths(ordered=processor is not None)), one["retrieve_indices"])


@check("eagle2*.safetensors", reads=("{}_cases.json",))
def eagle2(file: Path, tally: Tally) -> None:
    io = load_file(file)
    listed = json.loads((file.parent / f"{stem(file.name)}_cases.json").read_text())
    for case in listed.get("tree", []):
        tally.case()
        grow(case, numbered(io, case["case"]), tally)
    for case in listed.get("posterior", []):
        tally.case()
        posterior(case, numbered(io, case["case"], "post."), tally)


def grow(case: dict[str, Any], one: dict[str, Tensor], tally: Tally) -> None:
    processor = case["processor"]

    def drafted(step: str) -> Tensor:
        logits = one[f"{step}_logits_cond"]
        if case["cfg_scale"] is not None:
            logits = guide(logits, one[f"{step}_logits_uncond"], case["cfg_scale"])
        return log_q(logits.reshape(-1, logits.shape[-1]), processor if case["variant"] == "cfg" else None)

    growth = Growth(case["top_k"])
    growth.begin(drafted("root")[0])
    for step in range(1, case["depth"] + 1):
        fed = growth.beam
        tally.equal("beam tokens", [growth.tokens[node] for node in fed], one[f"step{step}_input_tokens"].tolist())
        depth, sees = layout(tuple(growth.fed_parents))
        tally.equal("beam mask", sees[-len(fed) :], one[f"step{step}_beam_mask"].bool())
        # The drafter has committed one position fewer than the base model, because its inputs are shifted by one token.
        positions = case["prefix_len"] - 1 + depth[-len(fed) :]
        tally.equal("beam positions", positions, one[f"step{step}_position_ids"])
        growth.grow(drafted(f"step{step}"))
    compare_tree(growth.best(case["root_token"], case["total_token"]), one, processor, tally)


@check("eagle_drafter_*_io*.safetensors", reads=("{}.bin", "{}.json"))
def eagle_drafter(file: Path, tally: Tally) -> None:
    """Compare the drafter's outputs and trees over the reference's rounds, decoded through the cache."""
    name = file.parent / stem(file.name)
    info = json.loads(Path(f"{name}.json").read_text())
    config, state = info["config"], own_keys(read_state(f"{name}.bin"))
    embedding = state["embed_tokens.weight"].float()
    base = TransformerConfig(
        n_layer=1,
        n_head=config["num_attention_heads"],
        dim=config["hidden_size"],
        ffn_hidden=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        caption_slots=config["cls_token_num"] + 1,
        caption_dim=config["hidden_size"],  # the drafter has no caption projection
        grid=math.isqrt(config["block_size"]),
        rope_base=config.get("rope_base", 10000),
    )
    eps = float(config["rms_norm_eps"]) if "rms_norm_eps" in config else NORM_EPS
    drafter = from_checkpoint(state, base, f"{name}.bin", eps)
    io = load_file(file)
    head = io["lm_head"].float()
    exact, rows, spare = deepcopy(drafter).double(), len(io["round0.features"]), info["top_k"] * (info["depth"] + 1)
    cache, other = (KVCache(drafter.config, rows, dtype=dtype, spare=spare) for dtype in (torch.float32, torch.float64))
    held = 0
    for index in sorted({int(found[1]) for key in io if (found := re.match(r"round(\d+)\.", key))}):
        tally.case()
        one = numbered(io, index, "round")
        ids = one["input_ids"].tolist()
        assert ids[: base.caption_slots] == [CAPTION_TOKEN] * base.caption_slots
        fresh = ids[1:][held:]
        outputs = feed(drafter, cache, embedding[fresh], one["features"].float(), held, None)
        true = feed(exact, other, embedding[fresh].double(), one["features"].double(), held, None)
        tally.close("outputs", outputs, one["committed_out_hidden"], atol=2e-4, exact=true)
        held += len(fresh)

        def drafted(outputs: Tensor) -> Tensor:
            logits = outputs @ head.T  # [rows, n, V]
            guided = guide(logits[0], logits[1], info["cfg_scale"]) if len(logits) == 2 else logits[0]
            return log_q(guided, info["processor"])

        growth = Growth(info["top_k"])
        growth.begin(drafted(outputs[:, -1:])[0])
        outputs = outputs[:, -1:]
        for _ in range(info["depth"]):
            beam = growth.beam
            embedded = embedding[[growth.tokens[node] for node in beam]]
            start = held + len(growth.fed) - len(beam)
            outputs = feed(drafter, cache, embedded, outputs[:, growth.beam_rows], start, growth.fed_parents)
            growth.grow(drafted(outputs))
        compare_tree(growth.best(ids[-1], info["total_token"]), one, info["processor"], tally)


def feed(
    drafter: EagleDrafter, cache: KVCache, embedded: Tensor, features: Tensor, start: int, tree: list[int] | None
) -> Tensor:
    """Run one pass of all guidance rows: embeddings [n, D] and features [rows, n, D] to outputs [rows, n, D]."""
    rows = len(features)
    x = drafter.inputs(embedded.expand(rows, -1, -1), features)
    n_new = torch.full((rows,), len(embedded))
    return drafter.step(cache, torch.arange(rows), torch.full((rows,), start), x, n_new, [tree] * rows)


# --- verification


@dataclass(frozen=True)
class Shape:
    """A tree of the golden data.

    Attributes:
        tree: The tree.
        paths: Nodes of each path, in the order of the data.
        logits: The target's logits [N, V] after every node.
    """

    tree: Tree
    paths: list[list[int]]
    logits: Tensor


def of_paths(candidates: Tensor, logits: Tensor) -> Shape:
    """Build a shape from token paths int [P, depth] (padded with -1, the root first) and logits [P, depth, V] at their nodes."""
    nodes: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    rows: list[Tensor] = []
    paths: list[list[int]] = []
    for path, row in zip(candidates.tolist(), logits, strict=True):
        paths.append([])
        for depth, token in enumerate(token for token in path if token >= 0):
            prefix = tuple(path[: depth + 1])
            if prefix not in nodes:
                nodes[prefix] = len(tokens)
                tokens.append(token)
                parents.append(nodes[prefix[:-1]] if depth else -1)
                rows.append(row[depth])
            paths[-1].append(nodes[prefix])
    return Shape(Tree(tokens, parents), paths, torch.stack(rows))


def of_nodes(one: dict[str, Any], tokens: Tensor, parents: list[int]) -> Shape:
    """Build a shape from nodes in any order, the root first. Renumber them level by level, each level in the order of the data."""
    depths: dict[int, int] = {-1: -1}

    def depth(node: int) -> int:
        if node not in depths:
            depths[node] = depth(parents[node]) + 1
        return depths[node]

    order = sorted(range(len(parents)), key=depth)
    place = {-1: -1, **{node: index for index, node in enumerate(order)}}
    paths = [[place[node] for node in path if node >= 0] for path in one["retrieve_indices"].tolist()]
    tree = Tree([int(tokens[node]) for node in order], [place[parents[node]] for node in order])
    return Shape(tree, paths, one["node_logits"][order])


def walk(shape: Shape, case: dict[str, Any], r: Tensor, test: DraftTest) -> tuple[list[int], np.ndarray, list[float]]:
    """Verify a tree with the draws `r`, in order.

    Returns:
        Accepted nodes, next distribution [V], and the ratio with which each draw was compared.
    """
    one = torch.ones(1)
    drawn: list[float] = []
    watched = Watched(test)

    def probs(node: int) -> np.ndarray:
        logits = shape.logits[node : node + 1].double()
        k = (one * case.get("top_k", 0)).long()
        p: np.ndarray = warp_probs(logits, one * case.get("temperature", 1.0), k, one)[0].numpy()
        return p

    def following(depth: int, sibling: int) -> float:
        drawn.append(float(r[len(drawn)]))
        return drawn[-1]

    nodes, p = answered(verify(shape.paths, following, watched), probs)
    return nodes, p, watched.ratios


class Watched:
    """A draft test that keeps its ratios, in order."""

    def __init__(self, test: DraftTest) -> None:
        self.test = test
        self.rejected = test.rejected
        self.ratios: list[float] = []

    def ratio(self, p: np.ndarray, node: int) -> float:
        self.ratios.append(self.test.ratio(p, node))
        return self.ratios[-1]


def relaxation(case: dict[str, Any], table: Tensor) -> Relaxation:
    """Return the relaxation of a case. The reference's delta is an absolute bound up to 1 and a multiplicative one above."""
    delta = case["delta"]
    bound = {"delta": delta} if delta <= 1 else {"lambda_": delta}
    return Relaxation(table.numpy(), case["k"], **bound)


def number(paths: list[list[int]], nodes: list[int]) -> int:
    return next(index for index, path in enumerate(paths) if path[: len(nodes)] == nodes)


def posterior(case: dict[str, Any], one: dict[str, Tensor], tally: Tally) -> None:
    shape = of_paths(one["candidates"], one["logits"])
    if case["mode"] == "sample":
        nodes, p, ratios = walk(shape, case, one["r"], OwnTest(shape.tree))
        tally.equal("draws", len(ratios), case["n_r_used"])
        tally.close("ratios", ratios, one["accept_ratio"], atol=1e-6)
        tally.close("next distribution", p, one["sample.out"], atol=1e-6)
    else:
        nodes, _ = answered(verify_greedy(shape.tree, shape.paths), lambda node: shape.logits[node])
        tally.close("next logits", shape.logits[nodes[-1]], one["greedy.out"], atol=1e-6)
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best"])


@check("lantern*.safetensors", reads=("{}_cases.json",))
def lantern(file: Path, tally: Tally) -> None:
    io = load_file(file)
    listed = json.loads((file.parent / f"{stem(file.name)}_cases.json").read_text())
    for key in (key for key in io if re.fullmatch(r"(.*\.)?neighbours\d*", key)):
        tally.case()
        codebook = io[key.rpartition(".")[0] + "." * ("." in key) + "codebook"]
        tally.equal(f"nearest codes, {key}", neighbours(codebook, io[key].shape[1]).astype(int), io[key])
    table = io["neighbours"]
    for kind, run in (("single", single), ("tree", whole), ("greedy", greedy), ("static", static)):
        for case in listed.get(kind, []):
            tally.case()
            one: dict[str, Any] = dict(numbered(io, case["case"], "tree." if kind == "greedy" else f"{kind}."))
            if kind == "greedy":
                one["next_logits"] = numbered(io, case["case"], "greedy.")[f"{case['mode']}.next_logits"]
            if kind == "static":
                one["shape"] = listed["static_trees"][case["tree"]]
            run(case, one, table, tally)


def chosen(case: dict[str, Any], tree: Tree, table: Tensor) -> DraftTest:
    return OwnTest(tree) if case["mode"] == "eagle2" else ChosenTest(relaxation(case, table), tree)


def single(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    candidates = torch.stack([one["root"].expand(len(one["candidates"])), one["candidates"]], dim=1)  # [n, 2]
    shape = of_paths(candidates, one["logits_paths"])
    nodes, p, ratios = walk(shape, case, one["r"], chosen(case, shape.tree, table))
    tally.equal("tried", len(ratios), case["tried"])
    tally.close("ratios", ratios, one[f"{case['mode']}.accept_ratio"], atol=1e-6)
    tally.equal("accepted", len(nodes) - 1, case["accepted"])
    tally.close("next distribution", p, one[f"{case['mode']}.sample_p"], atol=1e-6)


def whole(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    shape = of_nodes(one, one["token"], one["parent"].tolist())
    nodes, p, ratios = walk(shape, case, one["r"], chosen(case, shape.tree, table))
    tally.equal("draws", len(ratios), case["n_r_used"])
    tally.close("ratios", ratios, one[f"{case['mode']}.accept_ratio"], atol=1e-6)
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best_path"])
    tally.equal("tokens", [shape.tree.tokens[node] for node in nodes], case["path_tokens"])
    tally.close("next distribution", p, one[f"{case['mode']}.sample_p"], atol=1e-6)


def greedy(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    shape = of_nodes(one, one["token"], one["parent"].tolist())
    logits = shape.logits * case["logit_scale"]
    accepts = relaxation(case, table).relaxed_best if case["mode"] == "lantern" else is_best
    nodes, _ = answered(verify_greedy(shape.tree, shape.paths, accepts), lambda node: logits[node])
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best_path"])
    tally.close("next logits", logits[nodes[-1]], one["next_logits"], atol=1e-6)


def static(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    """Compare LANTERN on a static tree. Candidate rows are the inner nodes in order; the child of rank i is draw i of its row."""
    names = [(), *map(tuple, one["shape"])]
    names.sort(key=lambda name: (len(name), name))
    parents = [names.index(name[:-1]) if name else -1 for name in names]
    inner = list(dict.fromkeys(parents[1:]))
    tally.equal("inner nodes", len(inner), len(one["draft_full_q_rows"]))
    draws, conditional = one["draft_tokens_rows"], one["draft_cond_probs_rows"].double()
    ids, weights = [int(one["tree_tokens"][0])], np.zeros(len(names))
    for node, name in list(enumerate(names))[1:]:
        row = inner.index(parents[node])
        ids.append(int(draws[row, name[-1]]))
        weights[node] = float(conditional[row, name[-1]])
    tally.equal("tree tokens", ids, one["tree_tokens"].tolist())
    shape = of_nodes(one, torch.tensor(ids), parents)
    relaxed = relaxation({**case, "k": case["k"] if case["mode"] == "lantern" else 0}, table)
    test = DrawnTest(relaxed, Drafted(shape.tree, weights, one["draft_full_q_rows"].double().numpy()))
    nodes, p, ratios = walk(shape, case, one["r"], test)
    tally.equal("draws", len(ratios), case["n_r_used"])
    tally.close("ratios", ratios, one[f"{case['mode']}.accept_ratio"], atol=1e-6, rtol=1e-5)
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best_path"])
    tally.equal("tokens", [ids[node] for node in nodes], case["path_tokens"])
    tally.close("next distribution", p, one[f"{case['mode']}.sample_p"], atol=1e-6)
