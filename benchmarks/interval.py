"""Cost of the Inter-Head in a device step: its two matrix products, InterFuse and the score, compared with k sampled distributions.

    python -m benchmarks.interval --json

A device step is one token of one image with guidance (two rows): the layer, the centre product of both rows, the radius product of the
conditional row, InterFuse and the score. Every round times all parts in turn (the sampled distributions only in every fifth round); ratios
are medians over rounds. The weights are random, because no part's time depends on their values. The shapes are a one-layer model of
LlamaGen-XL's width and that of the embedded pair. With one thread the time is CPU time, which other programs hardly affect; with more
threads it is wall time.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
import torch.nn.functional as F

from models.device import BOUNDS, DeviceModel
from models.evaluate.measures import answered
from models.interval import inter_fuse, uncertainty
from models.kv_cache import KVCache
from models.methods import DeviceState
from models.methods.scores import make_score
from models.methods.session import Step
from models.sampling import guide
from simulator.protocol.methods import DiscreteSettings
from simulator.protocol.pairs import TransformerConfig

# (name, width, heads, hidden width of the feed-forward, caption slots)
SHAPES = (("llamagen-xl", 1280, 20, 3584, 120), ("embedded pair", 256, 4, 768, 32))
SIZES = (4096, 16384)
CONTEXT = 128  # image tokens in the cache: the middle of 256
BAR = 0.15
WARM_UP = 5


def measure(config: TransformerConfig, rounds: int) -> dict[str, float]:
    """Return the median time in ms of every part of a step, and the ratios."""
    torch.manual_seed(0)
    device = DeviceModel(config, BOUNDS[:1]).eval().requires_grad_(False)
    for parameter in device.parameters():
        parameter.normal_(0, 0.02)
    cache = KVCache(config, rows=2)
    start = torch.full((2,), config.caption_slots + CONTEXT)
    token, one, rows = torch.zeros(2, 1, dtype=torch.long), torch.ones(2, dtype=torch.long), torch.arange(2)
    hidden = torch.randn(2, config.dim)
    centre, radius = 3 * torch.randn(config.vocab_size), torch.rand(config.vocab_size) + 0.2
    matrix = device.radii[BOUNDS[0]].weight
    assert isinstance(matrix, torch.Tensor)
    step, state = Step(0, centre, hidden[0], radius=radius), DeviceState(256, 1, caption="benchmark")

    def centre_product() -> torch.Tensor:
        logits = device.centre(hidden)
        return guide(logits[0], logits[1], 3.0)

    parts: dict[str, Callable[[], Any]] = {
        "layer": lambda: device.transformer.step(cache, rows, start, device.transformer.embed_tokens(token), one),
        "centre_product": centre_product,
        "radius_product": lambda: F.linear(hidden[0], matrix),
        "softplus": lambda: F.softplus(radius),
        "inter_fuse": lambda: inter_fuse(centre, radius),
        "fuse_and_score": lambda: float(uncertainty(*inter_fuse(centre, radius)).u_tilde),
    }
    for k in (100, 300):
        parts[f"discrete_{k}"] = partial(
            answered, make_score(DiscreteSettings.model_validate({"k": k}), state), step, 0
        )
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(WARM_UP + rounds):
        for name, part in parts.items():
            if name.startswith("discrete") and turn % 5:
                continue  # expensive, and stable
            begin = clock()
            part()
            if turn >= WARM_UP:
                taken[name].append(1e3 * (clock() - begin))
    found = {f"{name}_ms": statistics.median(values) for name, values in taken.items()}
    steps = [
        sum(values)
        for values in zip(*(taken[name] for name in ("layer", "centre_product", "radius_product")), strict=True)
    ]
    added = [a + b for a, b in zip(taken["softplus"], taken["fuse_and_score"], strict=True)]
    whole = [a + b for a, b in zip(steps, added, strict=True)]
    step_ms = statistics.median(whole)
    return {
        **found,
        "step_ms": step_ms,
        "added_share": statistics.median(a / s for a, s in zip(added, steps, strict=True)),
        "radius_product_share": statistics.median(a / s for a, s in zip(taken["radius_product"], whole, strict=True)),
        "discrete_100_steps": found["discrete_100_ms"] / step_ms,
        "discrete_300_steps": found["discrete_300_ms"] / step_ms,
    }


@click.command()
@click.option("--rounds", default=60, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of torch.")
@click.option("--json", "as_json", is_flag=True)
@torch.inference_mode()
def main(rounds: int, threads: int, as_json: bool) -> None:
    torch.set_num_threads(threads)
    rows = []
    for name, dim, heads, ffn, slots in SHAPES:
        for size in SIZES:
            config = TransformerConfig(1, heads, dim, ffn, size, slots, 16, 16)
            rows.append({"shape": name, "dim": dim, "vocab_size": size, **measure(config, rounds)})
    if as_json:
        click.echo(json.dumps({"threads": threads, "rounds": rounds, "bar": BAR, "rows": rows}))
        return
    for row in rows:
        added, product = row["added_share"], row["radius_product_share"]
        click.echo(
            f"{row['shape']:14} V {row['vocab_size']:6}: step {row['step_ms']:.2f} ms; softplus, InterFuse and score add "
            f"{added:.1%} to layer and products (bar {BAR:.0%}); radius product {product:.1%} of the step; "
            f"discrete k = 100: {row['discrete_100_steps']:.2f} steps, 300: {row['discrete_300_steps']:.2f}"
        )


if __name__ == "__main__":
    main()
