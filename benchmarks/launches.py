"""Estimate the seconds of a training of photographs on a GPU that is not at hand: kernels, floating-point operations and batches per step.

    python -m benchmarks.launches models/photos.yaml            # the file as it is
    python -m benchmarks.launches models/photos.yaml --larger   # with the cloud that the file names for a GPU

A step of every stage, and a few decoded tokens of the rollouts, run on the CPU at the file's sizes, on random sequences, without
torch.compile. What is counted are ATen operations that read or write memory: on a GPU each is a kernel that the host launches, unless
compiled, so the counts are upper bounds. A stage is estimated as the longest of launching, computing and preparing batches, which overlap.
The time to prepare the photographs is not part of it.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.device import DeviceModel
from models.evaluate.regions import CHUNK, columns_of
from models.text import WordEncoder
from models.train import muon
from models.train.cloud import CloudStage
from models.train.device import DeviceStage, rows_of
from models.train.drafter import DrafterStage
from models.train.judge import JudgeStage
from models.train.loop import LoopSettings, Stage, _Training
from models.train.photos import Photos, Row
from models.train.rollouts import PART_SEQUENCES, decode
from models.train.run import read_training_file
from models.train.sequences import MOST_HELD_OUT, Sequences
from models.train.tokenizer import TokenizerStage
from models.train.tokens import SceneTokens
from models.transformer import Transformer
from simulator.core.rng import stream

# Operations that only describe memory, or run on the host.
# fmt: off
UNLAUNCHED = frozenset((
    "view", "_unsafe_view", "transpose", "slice", "select", "unsqueeze", "expand", "t", "alias", "detach",
    "split", "split_with_sizes", "permute", "squeeze", "unbind", "as_strided", "_local_scalar_dense",
    "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh",
    "is_same_size",
))
# fmt: on
LARGER: dict[str, Any] = {"n_layer": 8, "dim": 256, "ffn_hidden": 768}
LARGER_STEPS, LARGER_IMAGES = 16_000, 16
PICTURES = 600  # random images or sequences, more than a batch
TOKENS = (4, 8)  # sides of the grids whose rollouts are counted; the counts are linear in the tokens


@dataclass(frozen=True)
class Part:
    """What one part of a training does again and again.

    Attributes:
        name: Name of the part.
        times: How often.
        launches: Kernels of one time.
        flops: Floating-point operations of one time, products of matrices and convolutions only.
        batch_s: Seconds to prepare its batch on the CPU.
    """

    name: str
    times: int
    launches: float
    flops: float
    batch_s: float = 0.0


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that would be kernels on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in UNLAUNCHED
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> tuple[int, float]:
    """Return the launches and the floating-point operations of a run, which runs twice."""
    with Launches() as seen:
        run()
    with FlopCounterMode(display=False) as operations:
        run()
    return seen.count, float(operations.get_total_flops())


def step_of(name: str, stage: Stage, settings: LoopSettings, steps: int, first: int = 0) -> Part:
    """Return the part of so many steps of a stage like step `first`."""
    with tempfile.TemporaryDirectory() as folder:
        training = _Training(stage, settings, Path(folder), {}, "cpu", Console(quiet=True))
        batch = stage.batch(first)

        def advance() -> None:
            training.step = first
            training.advance(batch)

        advance()  # the optimiser makes its state in the first step
        launches, flops = counted(advance)
    times = []
    for step in range(first + 1, first + 6):
        begun_s = time.process_time()
        stage.batch(step)
        times.append(time.process_time() - begun_s)
    return Part(name, steps, launches, flops, statistics.median(times))


def random_sequences(tokens: int, codes: int, slots: int, width: int) -> Sequences:
    """Return sequences of random codes; a caption's features have `width` numbers, as many as the vocabulary has words."""
    rng = np.random.default_rng(0)
    words = [f"word{index}" for index in range(width)]
    made = object.__new__(Sequences)
    captions = [" ".join(rng.choice(words, 6)) for _ in range(PICTURES)]
    made.train = made.held_out = SceneTokens(rng.integers(0, codes, (PICTURES, tokens)).astype(np.uint16), captions)
    made.text = WordEncoder.build(words, slots)
    made.codebook = torch.nn.functional.normalize(torch.randn(codes, 50), dim=1)
    made.seed = 0
    return made


def random_photos(size: int) -> Photos:
    """Return random photographs of two types and two colours."""
    rows = [Row(f"{i}.jpg", f"a word{i % 2} word{i % 3}", "", f"word{i % 2}", f"word{i % 3}") for i in range(PICTURES)]
    images = np.random.default_rng(0).integers(0, 256, (2 * PICTURES, size, size, 3), dtype=np.uint8)
    return Photos(rows, rows, images)


def parts_of(path: Path, larger: bool) -> Iterator[Part]:
    """Yield the parts of a training file of photographs."""
    muon.TOGETHER = ("cuda", "cpu")  # as on a GPU
    file = read_training_file(path)
    stages: dict[str, Any] = dict(file.stages)
    assert file.data is not None
    photos = random_photos(file.data.image_size)
    tokenizer, cloud, device, drafter, judge = (
        stages[name] for name in ("tokenizer", "cloud", "device", "drafter", "judge")
    )
    steps = sum(one.training.steps for one in cloud.rounds())
    model, images = cloud.model, cloud.batch_images
    if larger:
        model, images, steps = replace(model, **LARGER), LARGER_IMAGES, LARGER_STEPS
    cloud = cloud.model_copy(update={"compile": False, "then": (), "model": model, "batch_images": images})
    with unbegun(TokenizerStage):
        yield step_of("tokenizer", TokenizerStage(tokenizer, photos), tokenizer.training, tokenizer.training.steps)

    def sequences(grid: int) -> Sequences:
        return random_sequences(grid**2, model.vocab_size, model.caption_slots, model.caption_dim)

    data = sequences(model.grid)
    with unbegun(CloudStage):
        stage = CloudStage(cloud, data)
        yield step_of("cloud", stage, cloud.training, steps)
    assert isinstance(stage.model, Transformer)
    far = stage.model.eval()
    plain = device.model_copy(update={"compile": False, "on_policy": None})
    first, policy = device.token_steps, device.on_policy
    yield step_of("device, tokens", DeviceStage(plain, far, data), device.training, first)
    more = device.training.steps - first + (policy.steps if policy else 0)
    yield step_of("device, distillation", DeviceStage(plain, far, data), device.training, more, first)
    near = DeviceModel(replace(model, n_layer=1), device.bounds).eval().requires_grad_(False)
    if policy is not None:
        yield decoded(sequences, model, device, -(-policy.sequences // PART_SEQUENCES))
    batch = next(iter(data.held_out_batches(CHUNK, CHUNK)))
    with torch.inference_mode():
        launches, flops = counted(lambda: columns_of(near, far, [rows_of(batch, far)], device.guidance))
    yield Part("device, metrics", MOST_HELD_OUT // CHUNK, launches, flops)
    plain = drafter.model_copy(update={"compile": False})
    yield step_of("drafter", DrafterStage(plain, far, data), drafter.training, drafter.training.steps)
    yield step_of("judge", JudgeStage(judge, photos), judge.training, judge.training.steps)


def decoded(sequences: Callable[[int], Sequences], model: Any, device: Any, parts: int) -> Part:
    """Return the rollouts, and the two decodings of the metrics: tokens decoded by both models for PART_SEQUENCES captions."""
    found = []
    for grid in TOKENS:
        short = replace(model, grid=grid)
        near, far = DeviceModel(replace(short, n_layer=1), device.bounds).eval(), Transformer(short).eval()
        near, far = near.requires_grad_(False), far.requires_grad_(False)
        batch = sequences(grid).batch("rollouts", 0, PART_SEQUENCES, 0.0)
        draws = stream(0, "launches").random(batch.tokens.shape)
        run = lambda: decode(near, far, batch, 0.4, True, draws, device.guidance)  # noqa: B023, E731
        found.append(counted(run))
    (few, few_flops), (many, many_flops) = found
    tokens = TOKENS[1] ** 2 - TOKENS[0] ** 2
    return Part(
        "rollouts, tokens", (parts + 2) * model.tokens, (many - few) / tokens, (many_flops - few_flops) / tokens
    )


@contextmanager
def unbegun(stage: Any) -> Iterator[None]:
    """Leave out what a stage does once before its first step."""
    begin = stage.begin
    stage.begin = lambda self: None
    try:
        yield
    finally:
        stage.begin = begin


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--larger", is_flag=True, help="With the cloud of 8 layers of width 256, in 16,000 steps of 16 images.")
@click.option("--launch-us", type=float, default=10.0, show_default=True, help="Host's time for a launch.")
@click.option("--tflops", type=float, default=20.0, show_default=True, help="Rate of float32 products that is reached.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(file: Path, larger: bool, launch_us: float, tflops: float, as_json: bool) -> None:
    """Print launches, operations and seconds of every part of a training, and what bounds it."""
    rows: list[dict[str, Any]] = []
    for part in parts_of(file, larger):
        seconds = {
            "launches": part.times * part.launches * launch_us * 1e-6,
            "arithmetic": part.times * part.flops / (tflops * 1e12),
            "batches": part.times * part.batch_s,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        rows.append({"part": part.name, "times": part.times, "per_time": part.launches, "flops": part.flops})
        rows[-1] |= {**seconds, "bound": bound, "seconds": seconds[bound]}
        if not as_json:
            each = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            click.echo(
                f"{part.name}: {part.times:,} x {part.launches:.0f} launches, {part.flops:.2g} FLOP: {each}; {bound}"
            )
    total = sum(row["seconds"] for row in rows)
    click.echo(json.dumps({"parts": rows, "seconds": total}) if as_json else f"in all {total:.0f} s")


if __name__ == "__main__":
    main()
