"""Parity of drafting: speculative sampling, EAGLE-2's trees and verification, the feature-level drafter, LANTERN."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.eagle import CAPTION_TOKEN, EagleDrafter, from_checkpoint
from models.kv_cache import KVCache
from models.methods import speculative
from models.methods.eagle2 import Drafted, Trial, is_best, own_trial, verify, verify_greedy
from models.methods.lantern import Relaxation, neighbours
from models.sampling import guide, warp_probs
from models.state import read_state
from models.tree import Growth, Tree, layout
from simulator.protocol.pairs import TransformerConfig
from tests.parity.checks import Tally, check


@check("speculative_sampling.safetensors", reads=("speculative_sampling_cases.json",))
def speculative_sampling(folder: Path, tally: Tally) -> None:
    io = load_file(folder / "speculative_sampling.safetensors")
    for case in json.loads((folder / "speculative_sampling_cases.json").read_text()):
        tally.case()
        one = {key.partition(".")[2]: value for key, value in io.items() if key.startswith(f"{case['case']:02d}.")}
        q, p = (
            one[f"{side}_logits"].softmax(-1).double().numpy() for side in ("draft", "target")
        )  # [g, V], [g + 1, V]
        x, r = one["draft_tokens"].numpy(), one["r"].double().numpy()
        at = np.arange(len(x))
        tally.close("ratio", p[at, x] / q[at, x], one["ratio_unclamped"], atol=1e-6, rtol=2e-5)
        accepted = int(speculative.accept(p[at, x], q[at, x], r))
        tally.equal("accepted", accepted, case["n_accepted"])
        law = p[-1] if accepted == len(x) else speculative.residual(p[accepted], q[accepted])
        tally.close("next distribution", law, one["next_distribution"], atol=1e-6)
        tally.close("residual", speculative.residual(p[:-1], q), one["residual_all_f64"], atol=1e-6)


# --- EAGLE-2


def padded(paths: list[list[int]]) -> Tensor:
    longest = max(map(len, paths))
    return torch.tensor([path + [-1] * (longest - len(path)) for path in paths])


def log_q(logits: Tensor, processor: dict[str, Any] | None) -> Tensor:
    """Draft log-probabilities [n, V] as the reference's variant makes them."""
    if processor is None:
        return logits.log_softmax(-1)
    t, k, p = (torch.full((len(logits),), processor[name]) for name in "tkp")
    return warp_probs(logits, t, k.long(), p).log()


def compare_tree(tree: Tree, io: dict[str, Tensor], prefix: str, ordered: bool, tally: Tally) -> None:
    depth, sees = layout(tuple(tree.parents))
    tally.equal("tree tokens", tree.tokens, io[f"{prefix}.draft_tokens"].tolist())
    tally.equal("tree mask", sees, io[f"{prefix}.tree_mask"].bool())
    tally.equal("tree positions", depth, io[f"{prefix}.tree_position_ids"])
    tally.equal("paths", padded(tree.paths(ordered)), io[f"{prefix}.retrieve_indices"])


@check("eagle2.safetensors", reads=("eagle2_cases.json",))
def eagle2(folder: Path, tally: Tally) -> None:
    io = load_file(folder / "eagle2.safetensors")
    cases = json.loads((folder / "eagle2_cases.json").read_text())
    for case in cases["tree"]:
        tally.case()
        grow(case, io, tally)
    posterior(folder, tally)


def grow(case: dict[str, Any], io: dict[str, Tensor], tally: Tally) -> None:
    name, processor = f"{case['case']:03d}", case["processor"]

    def drafted(step: str) -> Tensor:
        logits = io[f"{name}.{step}_logits_cond"]
        if case["cfg_scale"] is not None:
            logits = guide(logits, io[f"{name}.{step}_logits_uncond"], case["cfg_scale"])
        return log_q(logits.reshape(-1, logits.shape[-1]), processor if case["variant"] == "cfg" else None)

    growth = Growth(case["top_k"])
    growth.begin(drafted("root")[0])
    for step in range(1, case["depth"] + 1):
        fed = growth.beam
        tally.equal(
            "beam tokens", [growth.tokens[node] for node in fed], io[f"{name}.step{step}_input_tokens"].tolist()
        )
        depth, sees = layout(tuple(growth.fed_parents))
        tally.equal("beam mask", sees[-len(fed) :], io[f"{name}.step{step}_beam_mask"].bool())
        # The drafter's committed positions are one less than the base model's: its inputs are shifted by a token.
        positions = case["prefix_len"] - 1 + depth[-len(fed) :]
        tally.equal("beam positions", positions, io[f"{name}.step{step}_position_ids"])
        growth.grow(drafted(f"step{step}"))
    compare_tree(growth.best(case["root_token"], case["total_token"]), io, name, processor is not None, tally)


@check("eagle_drafter_tiny_io.safetensors", reads=("eagle_drafter_tiny.bin", "eagle_drafter_tiny.json"))
def eagle_drafter(folder: Path, tally: Tally) -> None:
    """The reference's three rounds through the cache."""
    info = json.loads((folder / "eagle_drafter_tiny.json").read_text())
    config, state = info["config"], read_state(folder / "eagle_drafter_tiny.bin")
    base = TransformerConfig(
        n_layer=1,
        n_head=config["num_attention_heads"],
        dim=config["hidden_size"],
        ffn_hidden=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        caption_slots=config["cls_token_num"] + 1,
        caption_dim=64,
        grid=round(config["block_size"] ** 0.5),
    )
    drafter = from_checkpoint(state, base, "eagle_drafter_tiny.bin")
    io = load_file(folder / "eagle_drafter_tiny_io.safetensors")
    cache = KVCache(drafter.config, 2, spare=64)
    held = 0
    for index in range(len(info["rounds"])):
        tally.case()
        name = f"round{index}"
        ids = io[f"{name}.input_ids"].tolist()
        assert ids[: base.caption_slots] == [CAPTION_TOKEN] * base.caption_slots
        fresh = ids[1:][held:]
        outputs = feed(drafter, cache, state["embed_tokens.weight"][fresh], io[f"{name}.features"], held, None)
        tally.close("outputs", outputs, io[f"{name}.committed_out_hidden"], atol=2e-4)
        held += len(fresh)

        def drafted(outputs: Tensor) -> Tensor:
            logits = outputs @ io["lm_head"].T  # [2, n, V]
            return log_q(guide(logits[0], logits[1], info["cfg_scale"]), info["processor"])

        growth = Growth(info["top_k"])
        growth.begin(drafted(outputs[:, -1:])[0])
        outputs = outputs[:, -1:]
        for _ in range(info["depth"]):
            beam = growth.beam
            embedded = state["embed_tokens.weight"][[growth.tokens[node] for node in beam]]
            start = held + len(growth.fed) - len(beam)
            outputs = feed(drafter, cache, embedded, outputs[:, growth.beam_rows], start, growth.fed_parents)
            growth.grow(drafted(outputs))
        compare_tree(growth.best(ids[-1], info["total_token"]), io, name, True, tally)


def feed(
    drafter: EagleDrafter, cache: KVCache, embedded: Tensor, features: Tensor, start: int, tree: list[int] | None
) -> Tensor:
    """One pass of both guidance rows: embeddings [n, D] and features [2, n, D] to outputs [2, n, D]."""
    x = drafter.inputs(embedded.expand(2, -1, -1), features)
    return drafter.step(
        cache, torch.arange(2), torch.full((2,), start), x, torch.full((2,), len(embedded)), [tree, tree]
    )


# --- verification


Compared = Callable[[np.ndarray, int], float]


@dataclass(frozen=True)
class Shape:
    """A tree of the data, its paths in the data's order, and the target's logits [N, V] behind every node."""

    tree: Tree
    paths: list[list[int]]
    logits: Tensor


def of_paths(candidates: Tensor, logits: Tensor) -> Shape:
    """From token paths int [P, depth] (-1 padded, the root first) and logits [P, depth, V] at their nodes."""
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
    paths = [[node for node in path if node >= 0] for path in one["retrieve_indices"].tolist()]
    return Shape(Tree(tokens.tolist(), parents), paths, one["node_logits"])


def walk(
    shape: Shape, case: dict[str, Any], r: Tensor, trial: Trial, compared: Compared
) -> tuple[list[int], np.ndarray, list[float]]:
    """Accepted nodes, next distribution, and what each draw was compared with; the draws are consumed in order."""
    one = torch.ones(1)
    drawn: list[float] = []
    ratios: list[float] = []

    def law(node: int) -> np.ndarray:
        logits = shape.logits[node : node + 1].double()
        p: np.ndarray = warp_probs(
            logits, one * case.get("temperature", 1.0), (one * case.get("top_k", 0)).long(), one
        )[0].numpy()
        return p

    def following(depth: int, sibling: int) -> float:
        drawn.append(float(r[len(drawn)]))
        return drawn[-1]

    def watched(p: np.ndarray, node: int, draw: float) -> np.ndarray | None:
        ratios.append(compared(p, node))
        return trial(p, node, draw)

    nodes, p = verify(shape.paths, law, following, watched)
    return nodes, p, ratios


def relaxation(case: dict[str, Any], table: Tensor) -> Relaxation:
    """The reference's delta means an absolute bound up to 1, and the relative one above it."""
    delta = case["delta"]
    bound = {"delta": delta} if delta <= 1 else {"lambda_": delta}
    return Relaxation(table.numpy(), case["k"], **bound)


def number(paths: list[list[int]], nodes: list[int]) -> int:
    return next(index for index, path in enumerate(paths) if path[: len(nodes)] == nodes)


def posterior(folder: Path, tally: Tally) -> None:
    io = load_file(folder / "eagle2.safetensors")
    for case in json.loads((folder / "eagle2_cases.json").read_text())["posterior"]:
        tally.case()
        name = f"post.{case['case']:03d}"
        shape = of_paths(io[f"{name}.candidates"], io[f"{name}.logits"])
        if case["mode"] == "sample":
            nodes, p, ratios = walk(
                shape, case, io[f"{name}.r"], *chosen({"mode": "eagle2"}, shape.tree, torch.zeros(0))
            )
            tally.equal("draws", len(ratios), case["n_r_used"])
            tally.close("ratios", ratios, io[f"{name}.accept_ratio"], atol=1e-6)
            tally.close("next distribution", p, io[f"{name}.sample.out"], atol=1e-6)
        else:
            nodes, _ = verify_greedy(shape.tree, shape.paths, shape.logits)
            tally.close("next logits", shape.logits[nodes[-1]], io[f"{name}.greedy.out"], atol=1e-6)
        tally.equal("accepted", len(nodes) - 1, case["accept_length"])
        tally.equal("path", number(shape.paths, nodes), case["best"])


@check("lantern.safetensors", reads=("lantern_cases.json",))
def lantern(folder: Path, tally: Tally) -> None:
    io = load_file(folder / "lantern.safetensors")
    cases = json.loads((folder / "lantern_cases.json").read_text())
    tally.case()
    tally.equal("neighbours", neighbours(io["codebook"], 63).astype(int), io["neighbours"])
    tally.equal(
        "neighbours of the large codebook", neighbours(io["big.codebook"], 32).astype(int), io["big.neighbours32"]
    )
    table = io["neighbours"]
    for kind, run in (("single", single), ("tree", whole), ("greedy", greedy), ("static", static)):
        for case in cases[kind]:
            tally.case()
            prefix = f"{'tree' if kind == 'greedy' else kind}.{case['case']:03d}."
            one = {key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)}
            if kind == "greedy":
                one["next_logits"] = io[f"greedy.{case['case']:03d}.{case['mode']}.next_logits"]
            if kind == "static":
                one["shape"] = cases["static_trees"][case["tree"]]
            run(case, one, table, tally)


def chosen(case: dict[str, Any], tree: Tree, table: Tensor) -> tuple[Trial, Compared]:
    if case["mode"] == "eagle2":
        return own_trial(tree), lambda p, node: float(p[tree.tokens[node]])
    relaxed = relaxation(case, table)
    return relaxed.chosen_trial(tree), lambda p, node: relaxed.relaxed_accept(p, tree.tokens[node])[0]


def single(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    candidates = torch.stack([one["root"].expand(len(one["candidates"])), one["candidates"]], dim=1)  # [n, 2]
    shape = of_paths(candidates, one["logits_paths"])
    nodes, p, ratios = walk(shape, case, one["r"], *chosen(case, shape.tree, table))
    tally.equal("tried", len(ratios), case["tried"])
    tally.close("ratios", ratios, one[f"{case['mode']}.accept_ratio"], atol=1e-6)
    tally.equal("accepted", len(nodes) - 1, case["accepted"])
    tally.close("next distribution", p, one[f"{case['mode']}.sample_p"], atol=1e-6)


def whole(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    shape = of_nodes(one, one["token"], one["parent"].tolist())
    nodes, p, ratios = walk(shape, case, one["r"], *chosen(case, shape.tree, table))
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
    nodes, _ = verify_greedy(shape.tree, shape.paths, logits, accepts)
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best_path"])
    tally.close("next logits", logits[nodes[-1]], one["next_logits"], atol=1e-6)


def static(case: dict[str, Any], one: dict[str, Any], table: Tensor, tally: Tally) -> None:
    """Candidate rows are the inner nodes in order; a child of rank i is its row's draw i."""
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
    trial = relaxed.drawn_trial(Drafted(shape.tree, weights, one["draft_full_q_rows"].double().numpy()))
    nodes, p, ratios = walk(
        shape, case, one["r"], trial, lambda p, node: relaxed.relaxed_accept(p, ids[node])[0] / weights[node]
    )
    tally.equal("draws", len(ratios), case["n_r_used"])
    tally.close("ratios", ratios, one[f"{case['mode']}.accept_ratio"], atol=1e-6, rtol=1e-5)
    tally.equal("accepted", len(nodes) - 1, case["accept_length"])
    tally.equal("path", number(shape.paths, nodes), case["best_path"])
    tally.equal("tokens", [ids[node] for node in nodes], case["path_tokens"])
    tally.close("next distribution", p, one[f"{case['mode']}.sample_p"], atol=1e-6)
