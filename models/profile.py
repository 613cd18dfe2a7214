"""Measures what the pair's own passes take here, as a `Profile` that the simulator prices with (`hardware: local`).

A timed pass is what decoding runs: embed the new tokens, step through the layers against the cache, head on the last position,
guidance, and picking a token; on the device also the interval and its scores. Medians of a few repetitions after a warm-up.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.interval import inter_fuse, uncertainty
from models.pair import Pair
from models.sampling import filter_probs, greedy, guide, sample
from models.transformer import KVCache, Transformer
from models.vq import to_uint8
from simulator.compute import PassTable, Profile

ROWS = (1, 2, 8, 32)
NEW_TOKENS = (1, 4, 16, 96)
_REPEATS = 9
_CELL_S = 0.06  # a cell stops repeating after this long
_SLOW_S = 0.1  # a first run beyond this stands as it is, without a warm-up


def measure_profile(pair: Pair, progress: Callable[[str], None] | None = None) -> Profile:
    """Times of the pair's passes and other work on its `torch_device`, at the number of threads torch uses now.

    progress: told each part before it starts. Takes some 10 s on two cores for the embedded pair.
    """
    tell = progress or (lambda part: None)
    passes = {}
    with torch.inference_mode():
        for role, model in (("device", pair.device.transformer), ("cloud", pair.cloud)):
            tell(f"{role} passes")
            passes[role] = _pass_table(pair, role, model)
        tell("caption encoder, phi, image decoder")
        compute = _compute_seconds(pair)
    return Profile(
        model=pair.manifest.name,
        weights=pair.manifest.weights_hash,
        hardware=hardware_name(pair.torch_device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=str(pair.dtype).removeprefix("torch."),
        passes=passes,
        compute_seconds=compute,
    )


def hardware_name(torch_device: torch.device) -> str:
    """What the tensors of a device are computed on, in words."""
    if torch_device.type == "cuda":
        return torch.cuda.get_device_name(torch_device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _pass_table(pair: Pair, role: str, model: Transformer) -> PassTable:
    cached = (0, model.config.positions // 2, model.config.positions - 1)
    longest = cached[-1] + NEW_TOKENS[-1]
    wide = _longer(model, longest)
    cache = KVCache(wide.config, ROWS[-1], pair.torch_device, pair.dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (ROWS[-1], NEW_TOKENS[-1]), generator=generator).to(pair.torch_device)

    def cell(rows: int, new: int, kv: int) -> float:
        return _median_seconds(pair, lambda: _one_pass(pair, role, wide, cache, ids[:rows, :new], kv))

    cell(1, 1, 0)  # threads, kernels and memory come to life
    seconds: list[list[list[float | None]]] = [[[cell(r, n, kv) for kv in cached] for n in NEW_TOKENS] for r in ROWS]
    return PassTable(rows=list(ROWS), new_tokens=list(NEW_TOKENS), kv_tokens=list(cached), seconds=seconds)


def _longer(model: Transformer, positions: int) -> Transformer:
    """The same weights on a larger grid, so that every cell of the table fits; time depends on shapes alone."""
    grid = math.ceil(math.sqrt(positions - model.config.caption_slots))
    with torch.device("meta"):
        wide = Transformer(replace(model.config, grid=max(grid, model.config.grid)))
    wide.load_state_dict(model.state_dict(), assign=True)
    return wide.eval()


def _one_pass(pair: Pair, role: str, model: Transformer, cache: KVCache, ids: Tensor, kv: int) -> None:
    """One batched pass as the decoders run it; rows are pairs of a conditional and an unconditional one where there are two."""
    rows, new = ids.shape
    embeds = model.embed_tokens(ids)
    hidden = model.step(cache, torch.arange(rows), torch.full((rows,), kv), embeds, torch.full((rows,), new))[:, -1]
    logits = model.logits(hidden)
    first, scale = (logits, 1.0) if rows == 1 else (logits[0::2], 3.0)
    guided = guide(first, logits[-len(first) :], scale)
    if role == "device":
        conditional = hidden if rows == 1 else hidden[0::2]
        lower, upper = inter_fuse(guided, pair.device.radius(conditional))
        uncertainty(lower, upper).u_tilde.tolist()
        greedy(guided).tolist()
        return
    one, off = torch.ones(len(guided)), torch.zeros(len(guided), dtype=torch.long)
    probs = filter_probs(guided, one, off, one)
    sample(probs, torch.full((len(guided),), 0.5, dtype=torch.float64, device=probs.device)).tolist()


def _compute_seconds(pair: Pair) -> dict[str, float]:
    config = pair.cloud.config
    like = {"dtype": pair.dtype, "device": pair.torch_device}
    hidden, row = torch.zeros(1, config.dim, **like), torch.full((1, config.vocab_size), 1 / config.vocab_size, **like)
    codes = torch.zeros(1, config.tokens, dtype=torch.long, device=pair.torch_device)
    caption = " ".join(pair.text.words[:12])
    work: dict[str, Callable[[], object]] = {
        "caption_encoder": lambda: pair.text.encode(caption),
        "phi": lambda: pair.phi(hidden, row, row).float().cpu().numpy(),
        "image_decoder": lambda: to_uint8(pair.tokenizer.decode_codes(codes)).cpu().numpy(),
    }
    return {kind: _median_seconds(pair, run) for kind, run in work.items()}


def _median_seconds(pair: Pair, run: Callable[[], object]) -> float:
    """Median wall time of one run; a GPU has finished its work when the clock stops."""

    def once() -> float:
        started = time.perf_counter()
        run()
        if pair.torch_device.type == "cuda":
            torch.cuda.synchronize(pair.torch_device)
        return time.perf_counter() - started

    first = once()
    if first > _SLOW_S:
        return first
    times: list[float] = []
    while len(times) < 3 or (len(times) < _REPEATS and sum(times) < _CELL_S):
        times.append(once())
    return statistics.median(times)
