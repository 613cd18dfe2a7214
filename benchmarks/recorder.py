"""How much pooling gains: sessions recorded together against the same sessions one at a time (unpadded, batch 1), in one run.

    python -m benchmarks.recorder --sessions 64 --json

Prints seconds per session both ways and their ratio, per method; `pool` is a session of each of the methods above it for every prompt,
in one pool. One-at-a-time runs a few sessions only and is scaled. On one CPU thread seconds are those of the processor, which others'
work on the machine disturbs little; with more threads, or on a GPU, those of the clock.
"""

import json
import time
from typing import Any

import click
import torch

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
POOL = "pool"


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


@click.command()
@click.option("--sessions", default=64, show_default=True, help="Recorded together.")
@click.option("--alone", default=3, show_default=True, help="Recorded one at a time.")
@click.option("--only", type=click.Choice([*CASES, POOL]), multiple=True, help="Cases to run; all if none is named.")
@click.option("--torch-device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(sessions: int, alone: int, only: tuple[str, ...], torch_device: str, as_json: bool) -> None:
    pair = load_pair("scenes", torch_device)
    seconds_per_session(pair, specs(pair, "base", {}, 1), 1)  # warm-up
    rows = {}
    for label in only or (*CASES, POOL):
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
        click.echo(
            f"{label:14} alone {row['alone_s']:.3f} s, pooled {row['pooled_s']:.3f} s a session: {row['ratio']:.1f}x"
        )


if __name__ == "__main__":
    main()
