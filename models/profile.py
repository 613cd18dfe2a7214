"""Measures what the pair's own passes take here, as a `Profile` that the simulator prices with (`hardware: local`).

A timed pass is what decoding runs: embed the new tokens, step through the layers against the cache, head on the last position,
guidance, and picking a token; on the device also the interval and its scores. After a warm-up, the median of a few repetitions.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from models.interval import inter_fuse, sampled_bounds, uncertainty
from models.kv_cache import KVCache
from models.llama import decoder
from models.pair import Pair
from models.sampling import filter_probs, greedy, guide, sample
from models.transformer import Transformer
from simulator.core.rng import stream
from simulator.pricing.catalogue import Hardware
from simulator.pricing.profile import PassTable, Profile
from simulator.protocol.ops import COMPUTE_KINDS, INTERVAL_SAMPLES

ROWS = (1, 2, 8, 32)
NEW_TOKENS = (1, 4, 16, 64)
_REPEATS = 15
_LEAST_REPEATS = 3
_CELL_S = 0.06  # a cell stops repeating after this long


def measure_profile(pair: Pair, progress: Callable[[int, int], None] | None = None, budget_s: float = 15.0) -> Profile:
    """Times of the pair's passes and other work on its `torch_device`, at the number of threads torch uses now.

    progress: told after each measured time how many are done, of how many. budget_s: what is left after this long is timed once,
    without a warm-up. On a busy machine the times are those of a busy machine.
    """
    device = pair.cloud_layer() if pair.device_model is None else pair.device_model.transformer
    models = {"device": device, "cloud": pair.cloud}
    clock = _Clock(
        pair.torch_device, len(models) * len(ROWS) * len(NEW_TOKENS) * 2 + len(COMPUTE_KINDS), progress, budget_s
    )
    with torch.inference_mode():
        passes = {role: _pass_table(pair, role, model, clock) for role, model in models.items()}
        compute = _compute_seconds(pair, clock)
    return Profile(
        model=pair.manifest.name,
        weights=pair.manifest.weights_hash,
        hardware=hardware_name(pair.torch_device),
        device=pair.torch_device.type,
        system=f"{platform.system()} {platform.machine()}",
        date=datetime.now(UTC).date().isoformat(),
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


def measure_hardware(torch_device: torch.device) -> Hardware:
    """A catalogue entry made of three measured figures: the rate of float32 matrix products (1024 x 1024), the bandwidth of copying
    256 MB, and the time of an operation on one number.

    The catalogue counts values of 2 bytes; those measured here have 4, so the bandwidth stands at half. memory_gb and power_w are not
    measured: NaN.
    """
    clock = _Clock(torch_device, 3, None)
    side, count = 1024, 1 << 25
    with torch.inference_mode():
        a, b = torch.ones(side, side, device=torch_device), torch.ones(side, side, device=torch_device)
        source, target = torch.ones(count, device=torch_device), torch.empty(count, device=torch_device)
        one = torch.ones(1, device=torch_device)
        flop_per_s = 2 * side**3 / clock.typical_seconds(lambda: torch.mm(a, b))
        bytes_per_s = 2 * 4 * count / clock.typical_seconds(lambda: target.copy_(source))  # read and written
        kernel_s = clock.typical_seconds(lambda: [one.add_(1.0) for _ in range(1000)]) / 1000
    return Hardware.model_construct(
        title=hardware_name(torch_device),
        kind="measured",
        fp16_tflops=flop_per_s / 1e12,
        bandwidth_gb_s=bytes_per_s / 2 / 1e9,
        memory_gb=math.nan,
        power_w=math.nan,
        bandwidth_efficiency=1.0,
        compute_efficiency=1.0,
        kernel_overhead_us=kernel_s * 1e6,
        efficiency_source="measured figures are what is reached",
        source="measured on this machine",
        evidence="measured",
        aliases=[],
    )


class _Clock:
    """Times work, less carefully once its budget is spent, and tells how far it is."""

    def __init__(
        self,
        torch_device: torch.device,
        total: int,
        progress: Callable[[int, int], None] | None,
        budget_s: float = math.inf,
    ) -> None:
        self.torch_device, self.total, self.progress, self.budget_s = torch_device, total, progress, budget_s
        self.done = 0
        self.started_s = time.perf_counter()

    def typical_seconds(self, run: Callable[[], object]) -> float:
        seconds = self._typical_seconds(run)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return seconds

    def _typical_seconds(self, run: Callable[[], object]) -> float:
        first = self._once(run)
        times: list[float] = []
        while time.perf_counter() - self.started_s < self.budget_s and (
            len(times) < _LEAST_REPEATS or (len(times) < _REPEATS and sum(times) < _CELL_S)
        ):
            times.append(self._once(run))
        return statistics.median(times or [first])

    def _once(self, run: Callable[[], object]) -> float:
        """Wall time of one run; a GPU has finished its work when the clock stops."""
        started_s = time.perf_counter()
        run()
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        return time.perf_counter() - started_s


def _pass_table(pair: Pair, role: str, model: Transformer, clock: _Clock) -> PassTable:
    cached = (0, model.config.positions - 1)  # in between, attention grows linearly
    wide = _longer(model, cached[-1] + NEW_TOKENS[-1])
    cache = KVCache(wide.config, ROWS[-1], pair.torch_device, pair.dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (ROWS[-1], NEW_TOKENS[-1]), generator=generator).to(pair.torch_device)

    def cell(rows: int, new: int, kv: int) -> float:
        return clock.typical_seconds(lambda: _one_pass(pair, role, wide, cache, ids[:rows, :new], kv))

    for rows in (1, ROWS[-1]):
        _one_pass(pair, role, wide, cache, ids[:rows, :1], 0)  # threads, kernels and memory come to life
    seconds = [[[cell(r, n, kv) for kv in cached] for n in NEW_TOKENS] for r in ROWS]
    return PassTable(rows=list(ROWS), new_tokens=list(NEW_TOKENS), kv_tokens=list(cached), seconds=seconds)


def _longer(model: Transformer, positions: int) -> Transformer:
    """The same weights on a larger grid, so that every cell of the table fits; time depends on shapes alone."""
    grid = math.ceil(math.sqrt(positions - model.config.caption_slots))
    with torch.device("meta"):
        wide = decoder(replace(model.config, grid=max(grid, model.config.grid)), model.classes)
    wide.load_state_dict(model.state_dict(), assign=True)
    return wide.eval()


def _one_pass(pair: Pair, role: str, model: Transformer, cache: KVCache, ids: Tensor, kv: int) -> None:
    """One batched pass as the decoders run it; rows are pairs of a conditional and an unconditional one where there are two."""
    rows, new = ids.shape
    embeds = model.embed_tokens(ids)
    hidden = model.step(cache, torch.arange(rows), torch.full((rows,), kv), embeds, torch.full((rows,), new))[:, -1]
    conditional, scale = (hidden, 1.0) if rows == 1 else (hidden[0::2], 3.0)
    guided = model.logits(guide(conditional, hidden[-len(conditional) :], scale))
    if role == "device":
        if pair.manifest.bounds:
            lower, upper = inter_fuse(guided, pair.device.radius(conditional))
            uncertainty(lower, upper).u_tilde.tolist()
        greedy(guided).tolist()
        return
    one, off = torch.ones(len(guided)), torch.zeros(len(guided), dtype=torch.long)
    probs = filter_probs(guided, one, off, one)
    sample(probs, torch.full((len(guided),), 0.5, dtype=torch.float64, device=probs.device)).tolist()


def _compute_seconds(pair: Pair, clock: _Clock) -> dict[str, float]:
    config = pair.cloud.config
    hidden = torch.zeros(1, config.dim, dtype=pair.dtype, device=pair.torch_device)
    row = torch.full((1, config.vocab_size), 1 / config.vocab_size, dtype=pair.dtype, device=pair.torch_device)
    codes = torch.zeros(1, config.tokens, dtype=torch.long, device=pair.torch_device)
    caption = pair.text.sample
    draws, shape = stream(0, "interval-samples"), (INTERVAL_SAMPLES, config.vocab_size)
    work: dict[str, Callable[[], object]] = {
        "caption_encoder": lambda: pair.text.encode(caption),
        "phi": lambda: pair.phi(hidden, row, row).float().cpu().numpy(),
        "image_decoder": lambda: pair.tokenizer.to_bytes(pair.tokenizer.decode_codes(codes)).cpu().numpy(),
        "interval_samples": lambda: sampled_bounds(row[0], row[0], torch.from_numpy(draws.uniform(-1, 1, shape)))[
            0
        ].cpu(),
    }
    if pair.projection is None:
        work["phi"] = lambda: None  # no method of such a pair runs it
    return {kind: clock.typical_seconds(run) for kind, run in work.items()}
