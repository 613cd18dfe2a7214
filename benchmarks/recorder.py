"""How much pooling gains: sessions recorded together against the same sessions one at a time (unpadded, batch 1), in one run.

    python -m benchmarks.recorder --sessions 64 --json

Prints sessions per second both ways and their ratio, per method. One-at-a-time runs a few sessions only and is scaled.
"""

import json
import time
from typing import Any

import click
import torch

from models.pair import Pair, load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.methods import METHODS, REVISIONS, Decoding
from simulator.recording import SessionSpec

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "device-only": ("device-only", {}),
    "ciar": ("ciar", {"threshold": 0.45}),
}


def specs(pair: Pair, name: str, settings: dict[str, Any], count: int) -> list[SessionSpec]:
    full = METHODS[name].model_validate(settings).model_dump()
    decoding = Decoding.model_validate({}).model_dump()
    weights = pair.manifest.weights_hash
    return [SessionSpec(weights, name, REVISIONS[name], full, decoding, caption, seed=0) for caption in captions(0, count)]


def seconds_per_session(pair: Pair, sessions: list[SessionSpec], max_batch: int) -> float:
    begin = time.perf_counter()
    for _ in Recorder(pair, max_batch).record(sessions):
        pass
    return (time.perf_counter() - begin) / len(sessions)


@click.command()
@click.option("--sessions", default=64, show_default=True, help="Recorded together.")
@click.option("--alone", default=3, show_default=True, help="Recorded one at a time.")
@click.option("--torch-device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(sessions: int, alone: int, torch_device: str, as_json: bool) -> None:
    pair = load_pair("scenes", torch_device)
    seconds_per_session(pair, specs(pair, "base", {}, 1), 1)  # warm-up
    rows = {}
    for label, (name, settings) in CASES.items():
        few = specs(pair, name, settings, sessions)
        single, pooled = seconds_per_session(pair, few[:alone], 1), seconds_per_session(pair, few, sessions)
        rows[label] = {"alone_s": single, "pooled_s": pooled, "ratio": single / pooled}
    if as_json:
        click.echo(json.dumps({"sessions": sessions, "threads": torch.get_num_threads(), "methods": rows}))
        return
    for label, row in rows.items():
        click.echo(f"{label:14} alone {row['alone_s']:.3f} s, pooled {row['pooled_s']:.3f} s a session: {row['ratio']:.1f}x")


if __name__ == "__main__":
    main()
