"""Gain of pooling: sessions recorded together, compared with the same sessions one at a time (unpadded, batch 1).

    python -m benchmarks.recorder --sessions 64 --json

Prints seconds per session both ways and their ratio, per method. `pool` has one session of each method above it for every prompt, in one
pool. `grid` has base and ciar at two thresholds and four prefix rates, in one pool; it compares decoding the first tokens in every session
with decoding them once for all (`models/openings.py`). One at a time, only a few sessions run; figures are per session. With one CPU thread
the time is CPU time, which other programs hardly affect; with more threads, or on a GPU, it is wall time.
"""

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import click
import torch

from models.backend import Backend, PassRequest
from models.methods.session import Step
from models.openings import Planned
from models.pair import Pair, load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.recording import SessionSpec

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "device-only": ("device-only", {}),
    "ciar": ("ciar", {"threshold": 1.5}),
    "speculative": ("speculative", {}),
    "eagle2": ("eagle2", {}),
    "lantern": ("lantern", {}),
}
POOL, GRID = "pool", "grid"
THRESHOLDS, PREFIX_RATES = (0.9, 1.5), (0.0, 0.06, 0.15, 0.3)


def specs(pair: Pair, name: str, settings: dict[str, Any], count: int) -> list[SessionSpec]:
    full = METHODS[name].settings.model_validate(settings).model_dump()
    decoding = Decoding.model_validate({}).model_dump()
    weights = pair.manifest.weights_hash
    return [
        SessionSpec(weights, name, METHODS[name].revision, full, decoding, caption, seed=0)
        for caption in captions(0, count)
    ]


def seconds_per_session(pair: Pair, sessions: list[SessionSpec], max_batch: int) -> float:
    alone_on_cpu = pair.torch_device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone_on_cpu else time.perf_counter
    begin = clock()
    for _ in Recorder(pair, max_batch).record(sessions):
        pass
    return (clock() - begin) / len(sessions)


def grid_row(pair: Pair, prompts: int) -> dict[str, float]:
    """Return seconds per session and cloud passes of the grid, with first tokens decoded per session (apart) and once for all."""
    settings = [{"threshold": t, "prefix_rate": rho} for t, rho in itertools.product(THRESHOLDS, PREFIX_RATES)]
    few = specs(pair, "base", {}, prompts) + [one for each in settings for one in specs(pair, "ciar", each, prompts)]
    passes = 0
    forward = Backend.forward

    def counting(self: Backend, role: str, requests: Sequence[PassRequest]) -> list[Step]:
        nonlocal passes
        passes += len(requests) if role == "cloud" else 0
        return forward(self, role, requests)

    with mock.patch.object(Backend, "forward", counting):
        once = seconds_per_session(pair, few, len(few))
        made, passes = passes, 0
        with mock.patch("models.recorder.plan", lambda given, *_: [Planned(one, 0, None) for one in given]):
            apart = seconds_per_session(pair, few, len(few))
    return {"apart_s": apart, "once_s": once, "ratio": apart / once, "passes_apart": passes, "passes_once": made}


@click.command()
@click.option("--sessions", default=64, show_default=True, help="Recorded together.")
@click.option("--alone", default=3, show_default=True, help="Recorded one at a time.")
@click.option(
    "--only", type=click.Choice([*CASES, POOL, GRID]), multiple=True, help="Cases to run; all if none is named."
)
@click.option("--torch-device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(sessions: int, alone: int, only: tuple[str, ...], torch_device: str, as_json: bool) -> None:
    pair = load_pair("scenes", torch_device)
    seconds_per_session(pair, specs(pair, "base", {}, 1), 1)  # warm-up
    rows = {}
    for label in only or (*CASES, POOL, GRID):
        if label == GRID:
            rows[label] = grid_row(pair, max(sessions // (1 + len(THRESHOLDS) * len(PREFIX_RATES)), 1))
            continue
        if label == POOL:
            per_prompt = zip(
                *(specs(pair, *case, max(sessions // len(CASES), 1)) for case in CASES.values()), strict=True
            )
            few, one_by_one = [spec for group in per_prompt for spec in group], len(CASES)
        else:
            few, one_by_one = specs(pair, *CASES[label], sessions), alone
        single, pooled = seconds_per_session(pair, few[:one_by_one], 1), seconds_per_session(pair, few, sessions)
        rows[label] = {"alone_s": single, "pooled_s": pooled, "ratio": single / pooled}
    if as_json:
        click.echo(json.dumps({"sessions": sessions, "threads": torch.get_num_threads(), "methods": rows}))
        return
    for label, row in rows.items():
        if label == GRID:
            click.echo(
                f"{label:14} apart {row['apart_s']:.3f} s, once {row['once_s']:.3f} s a session: {row['ratio']:.2f}x; "
                f"cloud passes {row['passes_apart']} and {row['passes_once']}"
            )
            continue
        click.echo(
            f"{label:14} alone {row['alone_s']:.3f} s, pooled {row['pooled_s']:.3f} s a session: {row['ratio']:.1f}x"
        )


if __name__ == "__main__":
    main()
