"""The output distribution of whole decoding programs, device side, cloud side and messages, by counting many runs.

    python -m tests.models.law --runs 50000

runs every lossless method on a pair of four tokens and compares the frequency of each image with its probability under the cloud
model, computed by enumerating all images. Then it runs methods with a wrong rule, which must fail.

Forward passes are real, but each distinct pass is run once. The passes of a session form a path from the empty cache, and a session
on a known path gets the stored step. A new pass starts from a copy of the KV cache at the end of its path, including roll-backs and
trees.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2

from benchmarks.tiny_pair import make_tiny_pair
from models import backend
from models.backend import Backend, PassRequest
from models.methods import eagle2, make_method, session, speculative
from models.methods.session import Step
from models.pair import Pair
from models.recorder import LiveSession
from models.sampling import filter_probs, guide
from models.text import left_pad
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.ops import ROLES, Compute, Forward
from simulator.protocol.recording import SessionSpec

PROMPT = "a small red cube in the center"
GRID, CODES = 2, 5  # images of four tokens, a codebook of five codes
DEVICE_NOISE = 1.0  # makes the drafters differ much from the target
DECODING = {"guidance": 1.5, "temperature": 1.2, "top_k": 4, "top_p": 0.97}
SLOTS = 4096  # maximum number of distinct paths

# name, settings
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "speculative, all": ("speculative", {"gamma": 2, "residual": "all"}),
    "speculative, two-phase": ("speculative", {"gamma": 2, "residual": "two-phase"}),
    "speculative, top-k": ("speculative", {"gamma": 2, "residual": "top-k"}),
    "eagle2": ("eagle2", {"total_tokens": 7, "depth": 2, "top_k": 2}),
    "eagle2, drafter in the cloud": ("eagle2", {"total_tokens": 7, "depth": 2, "top_k": 2, "drafter": "cloud"}),
}


def lossy_residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the target's distribution, a wrong rule: it ignores that a draft was rejected."""
    return p


class ForgetfulTest(eagle2.OwnTest):
    """A wrong rule: a rejected draft keeps its probability."""

    def rejected(self, p: np.ndarray, node: int) -> np.ndarray:
        return p


# case of LOSSLESS, module and name of the replaced rule, its replacement
WRONG: dict[str, tuple[str, Any, str, Any]] = {
    "speculative without a residual": ("speculative, two-phase", speculative, "residual", lossy_residual),
    "eagle2 that forgets rejections": ("eagle2", eagle2, "OwnTest", ForgetfulTest),
}


class Passes:
    """Forward passes by the path that leads to them. A node is a slot of the backend that holds the cache after a pass; 0 is empty."""

    def __init__(self, pair: Pair, spare: int) -> None:
        self.pair = pair
        self.backend = Backend(pair, SLOTS, spare)
        self.caption = pair.text.encode(PROMPT).numpy()
        self.known: dict[tuple[Any, ...], tuple[int, Step]] = {}

    def step(self, node: int, request: PassRequest) -> tuple[int, Step]:
        """Return the node after the pass and its step, with the token that this session draws."""
        op = request.op
        key = (node, op.role, *(_hashable(getattr(op, name)) for name in op.__dataclass_fields__))
        if key not in self.known:
            new = len(self.known) + 1
            cache = self.backend.caches[op.role]
            for store in (cache.k, cache.v, cache.caption_mask.unsqueeze(0), cache.caption_weight.unsqueeze(0)):
                store[:, 2 * new : 2 * new + 2] = store[:, 2 * node : 2 * node + 2]
            self.known[key] = new, self.backend.forward(op.role, [replace(request, slot=new)])[0]
        found, step = self.known[key]
        if request.u is None:
            return found, step
        (token,), (margin,) = self.backend._pick([request], step.logits.unsqueeze(0))
        return found, replace(step, token=token, margin=margin)

    def compute(self, op: Compute) -> Any:
        """Return the caption rows. The image is not rendered, since no test reads it."""
        return self.caption if op.kind == "caption_encoder" else None


def _remembering(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the function of tensors with a cache for equal arguments."""
    known: dict[tuple[bytes, ...], torch.Tensor] = {}

    def remembered(*arguments: torch.Tensor) -> torch.Tensor:
        key = tuple(argument.numpy().tobytes() for argument in arguments)
        if key not in known:
            known[key] = function(*arguments)
        return known[key]

    return remembered


def _hashable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else tuple(value) if isinstance(value, list) else value


@torch.inference_mode()
@mock.patch.object(backend, "filter_probs", _remembering(filter_probs))
@mock.patch.object(session, "filter_probs", _remembering(filter_probs))
def images(pair: Pair, name: str, settings: dict[str, Any], runs: int) -> NDArray[np.int64]:
    """Return the tokens [runs, T] of whole sessions that differ only in their seed."""
    full = METHODS[name].settings.model_validate(settings)
    decoding = Decoding.model_validate(DECODING)
    full.check(decoding, pair.manifest)
    passes = Passes(pair, full.draft_slots)
    found = np.zeros((runs, pair.manifest.image_tokens), np.int64)
    first = SessionSpec(
        "", name, METHODS[name].revision, full.model_dump(), decoding.model_dump(), PROMPT, 0, "float64"
    )
    for seed in range(runs):
        run = LiveSession(replace(first, seed=seed), make_method(name, first.settings, pair), pair, 0)
        nodes = dict.fromkeys(ROLES, 0)
        run.advance()
        while not run.finished:
            for program in (run.device, run.cloud):
                if program is None or program.waits is None:
                    continue
                op, program.waits = program.waits, None
                if isinstance(op, Forward):
                    nodes[op.role], program.value = passes.step(nodes[op.role], run.request(program, op))
                else:
                    program.value = passes.compute(op)
            run.advance()
        found[seed] = run.tokens
    return found


@torch.inference_mode()
def law_of_images(pair: Pair) -> NDArray[np.float64]:
    """Return the probability [V ** T] of every image under the cloud model, teacher-forced without a cache.

    The first token is the most significant digit of the index.
    """
    codes, count = pair.manifest.codebook_size, pair.manifest.image_tokens
    tokens = torch.cartesian_prod(*[torch.arange(codes)] * count)  # [V ** T, T]
    rows, mask = left_pad(pair.text.encode(PROMPT), pair.manifest.caption_slots)
    every = (len(tokens), -1, -1)
    cond = pair.cloud(tokens[:, :-1], rows.expand(every), mask.expand(every[:2]))[0]  # [V ** T, T, V]
    uncond = pair.cloud(tokens[:, :-1], pair.cloud.null_caption(len(tokens)), mask.expand(every[:2]))[0]
    d = Decoding.model_validate(DECODING)
    logits = guide(cond, uncond, d.guidance).flatten(0, 1)
    settings = (torch.full((len(logits),), value) for value in (d.temperature, d.top_k, d.top_p))
    laws = filter_probs(logits, *settings).unflatten(0, tokens.shape)  # [V ** T, T, V]
    probability: NDArray[np.float64] = laws.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).prod(-1).numpy()
    return probability


def chi_square_p_value(tokens: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    """Return the p-value of the chi-square test of sequences [runs, T] against their law [V ** T]."""
    codes = round(len(law) ** (1 / tokens.shape[1]))
    code = (tokens * codes ** np.arange(tokens.shape[1] - 1, -1, -1)).sum(-1)
    seen, expected = np.bincount(code, minlength=len(law)), law * len(tokens)
    if seen[law == 0].any():
        return 0.0
    rare = expected < 8  # pooled into one cell: the approximation is poor for small expectations
    seen, expected = np.append(seen[~rare], seen[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    held = expected > 0
    return float(chi2.sf(((seen - expected)[held] ** 2 / expected[held]).sum(), held.sum() - 1))


def p_value(pair: Pair, case: str, runs: int) -> float:
    """Return the p-value of a case of LOSSLESS or WRONG."""
    if case in LOSSLESS:
        return chi_square_p_value(images(pair, *LOSSLESS[case], runs), law_of_images(pair))
    right, module, rule, wrong = WRONG[case]
    with mock.patch.object(module, rule, wrong):
        return p_value(pair, right, runs)


def make_pair(folder: Path) -> Pair:
    """Make the pair on which this module runs."""
    return make_tiny_pair(folder, 0, torch.float64, grid=GRID, codebook_size=CODES, device_noise=DEVICE_NOISE)


@click.command()
@click.option("--runs", default=50_000, show_default=True, help="Images a case.")
def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder) / "pair")
    law = law_of_images(pair)
    click.echo(
        f"{runs} images a case; {np.count_nonzero(law * runs >= 8)} of {len(law)} images are counted apart, the rest together"
    )
    for case in (*LOSSLESS, *WRONG):
        begin = time.process_time()
        click.echo(f"{case:32} p = {p_value(pair, case, runs):.3g}   ({time.process_time() - begin:.0f} s)")


if __name__ == "__main__":
    main()
