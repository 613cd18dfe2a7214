"""Measures the time of passes on this machine, for a pair or a catalogue model at its true shape, as a `Profile` for pricing.

A timed pass is what decoding runs: embed the new tokens, run the layers with the KV cache, apply the head to the last position, guide
and pick a token; on the device also compute the interval and its scores. A verification applies the head to every position of a draft
tree, as does a pass of EAGLE's drafter over the tree that it grows. The result is the median of a few repetitions after a warm-up; on a
CPU, the least such median of several rounds over all passes, because other work that shares memory and caches can only lengthen a pass,
and does so for seconds at a time. On a CPU with one thread the times are CPU time; otherwise they are wall-clock time.

Longer than other files, because what is timed and how it is timed belong together.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from models.device import DeviceModel
from models.eagle import EagleDrafter
from models.interval import inter_fuse, sampled_bounds, uncertainty
from models.kv_cache import CachedDecoder, KVCache
from models.llama import decoder
from models.pair import Pair
from models.phi import IntervalProjection
from models.sampling import filter_probs, greedy, guide, sample
from models.state import unallocated
from models.transformer import Transformer
from models.vq import VQConfig, VQModel
from simulator.core.errors import ComputeError
from simulator.core.rng import stream
from simulator.pricing import catalogue
from simulator.pricing.catalogue import FP16_BYTES, Hardware, ModelShape
from simulator.pricing.profile import DtypeName, PassTable, Profile
from simulator.protocol.llama import LlamaConfig
from simulator.protocol.ops import INTERVAL_SAMPLES
from simulator.protocol.pairs import TransformerConfig

ROWS = (1, 2, 8, 32)
NEW_TOKENS = (1, 4, 16, 64)
VERIFIED = (4, 16, 64)  # nodes of a tree
TEETH = 4  # chains of a timed tree
# A drafter's cache may end this far past the image: earlier levels of its tree, `depth` times `top_k` (by default 40).
DRAFTED = 64
ROUNDS = 9  # of a CPU; a GPU is not shared
# Of a cell in all rounds together: most repetitions, least repetitions, and the time after which it is not repeated any more.
_REPEATS = 15
_LEAST_REPEATS = 3
_CELL_S = 0.06
_WEIGHT_STD = 0.02
# Keys of the catalogue's image decoder that `VQConfig` has, too.
DECODER_SIZES = ("codebook_dim", "ch", "z_channels", "num_res_blocks")

Progress = Callable[[int, int], None]
RuntimeName = Literal["eager", "cuda-graphs"]


@dataclass(frozen=True)
class Sizes:
    """The grid of a profile.

    Attributes:
        rows: sequences in a pass; a session with guidance has two.
        new_tokens: new positions per sequence.
        verified: nodes per draft tree.
    """

    rows: tuple[int, ...] = ROWS
    new_tokens: tuple[int, ...] = NEW_TOKENS
    verified: tuple[int, ...] = VERIFIED


Tables = tuple[PassTable, PassTable | None]


class TimedModel(Protocol):
    """A model whose passes are timed."""

    def cells(self, sizes: Sizes) -> int:
        """Return how many passes `tables` times."""
        ...

    def tables(
        self, sizes: Sizes, clock: "Clock", torch_device: torch.device, dtype: torch.dtype, runtime: RuntimeName
    ) -> Tables:
        """Time the passes that apply the head to their last position, and those that apply it to every position.

        The second table is None if the model has no such passes.
        """
        ...


@dataclass(frozen=True)
class Timed:
    """A `Transformer` whose passes are timed.

    Attributes:
        model: The decoder.
        on_device: Whether it is the device model, which picks greedily and verifies nothing.
        radius: Radius half of the device's Inter-Head; None without one.
        drafter: EAGLE's drafter, which runs between the embedding and the output matrix of the model in place of its layers; or None.
    """

    model: Transformer
    on_device: bool = False
    radius: Callable[[Tensor], Tensor] | None = None
    drafter: EagleDrafter | None = None

    @property
    def decoder(self) -> CachedDecoder:
        """Return the module whose layers a pass runs."""
        return self.drafter or self.model

    @property
    def greedy(self) -> bool:
        """Return whether it picks tokens greedily."""
        return self.on_device or self.drafter is not None

    def inputs(self, ids: Tensor) -> Tensor:
        """Return the input of the layers, [rows, n, D], for tokens [rows, n]. A drafter's features are arbitrary: they affect no time."""
        embedded = self.model.embed_tokens(ids)
        return embedded if self.drafter is None else self.drafter.inputs(embedded, embedded)

    def cells(self, sizes: Sizes) -> int:
        """Return how many passes `tables` times."""
        return 2 * len(sizes.rows) * (len(sizes.new_tokens) + (0 if self.on_device else len(sizes.verified)))

    def tables(
        self, sizes: Sizes, clock: "Clock", torch_device: torch.device, dtype: torch.dtype, runtime: RuntimeName
    ) -> Tables:
        """See `TimedModel.tables`."""
        return _tables(self, torch_device, dtype, sizes, clock, runtime)

    def trees(self, rows: int, nodes: int) -> list[Sequence[int] | None] | None:
        """Return a draft tree for each row; None for a model with row tokens, which verifies only chains of drafts."""
        config = self.model.config
        return None if isinstance(config, LlamaConfig) and config.row_token >= 0 else [_comb(nodes)] * rows


def measure_profile(pair: Pair, progress: Progress | None = None, budget_s: float = 15.0) -> Profile:
    """Measure the pair's passes and other work on its `torch_device`, with torch's current number of threads.

    Other load on the machine can make the times longer.

    Args:
        pair: the pair to time.
        progress: called after each measurement with (measurements done, all measurements).
        budget_s: time after which the remaining work is timed once, without a warm-up.
    """
    device = pair.cloud_layer() if pair.device_model is None else pair.device_model.transformer
    radius = pair.device.radius if pair.manifest.bounds else None
    models = {"device": Timed(device, True, radius)}
    if pair.drafter is not None:
        models["drafter"] = Timed(pair.cloud, drafter=pair.drafter)
    models["cloud"] = Timed(pair.cloud)
    caption = pair.text.sample
    weight = next(pair.cloud.parameters())
    slots = pair.manifest.caption_slots  # one pass feeds all of them
    sizes = Sizes() if slots <= NEW_TOKENS[-1] else Sizes(new_tokens=(*NEW_TOKENS, slots))
    work = {
        "caption_encoder": lambda: pair.text.encode(caption),
        **_work(pair.projection, pair.tokenizer, pair.cloud.config, weight),
    }
    return measured(
        pair.manifest.name,
        pair.manifest.weights_hash,
        models,
        work,
        pair.torch_device,
        pair.dtype,
        sizes,
        progress,
        budget_s,
    )


def measure_model(
    name: str,
    torch_device: torch.device,
    dtype: torch.dtype = torch.float32,
    sizes: Sizes | None = None,
    progress: Progress | None = None,
    budget_s: float = 120.0,
    runtime: RuntimeName = "eager",
    shape: ModelShape | None = None,
) -> Profile:
    """Measure a catalogue model, its one-layer form and its drafter at their true shape; the weights are random, which affects no time.

    Args:
        name: Name in the catalogue. Chameleon's and Janus's layers are timed as LlamaGen layers of the same widths.
        torch_device: Where they run.
        dtype: Type of the weights.
        sizes: The grid; None: `sizes_of` the model for 16 sessions.
        progress: As in `measure_profile`.
        budget_s: As in `measure_profile`.
        runtime: eager, or cuda-graphs: passes, including the picking of a token, are captured once and replayed.
        shape: Shape of the model; None: the catalogue's.

    Raises:
        ComputeError: The catalogue has no such model, or its layers are not LlamaGen's.
    """
    shape = shape or catalogue.model(name)
    if shape.ffn_matrices != 3 or shape.modulation:
        raise ComputeError(f"model {name}: its layers are not LlamaGen's")
    config = config_of(shape)
    with torch.random.fork_rng(devices=[]), torch.device(torch_device):
        torch.manual_seed(0)
        full = None if shape.interhead else random_weights(Transformer(config), dtype)
        one = random_weights(DeviceModel(replace(config, n_layer=1, vocab_size=shape.vocab_size), ("quantile",)), dtype)
        drafter = random_weights(EagleDrafter(replace(config, n_layer=1)), dtype)
        phi = random_weights(IntervalProjection(config.dim, shape.vocab_size, catalogue.PHI_BOTTLENECK), dtype)
        sizes_of_decoder = {key: shape.image_decoder[key] for key in DECODER_SIZES if key in shape.image_decoder}
        attention = bool(shape.image_decoder.get("level_attention", True))
        tokenizer = VQModel(VQConfig(codebook_size=shape.vocab_size, **sizes_of_decoder), attention)
        tokenizer.eval().requires_grad_(False)
    models = {"device": Timed(one.transformer, True, one.radius), "drafter": Timed(one.transformer, drafter=drafter)}
    if full is not None:
        models["cloud"] = Timed(full)
        if shape.head_rows is not None:  # in the cloud it reads all rows of the output matrix
            models["cloud_drafter"] = Timed(full, drafter=drafter)
    sizes = sizes or sizes_of(name, 16)
    work = {
        "caption_encoder": _text_encoder(shape, torch_device, dtype),
        **_work(phi, tokenizer, one.config, next(phi.parameters())),
    }
    return measured(name, "", models, work, torch_device, dtype, sizes, progress, budget_s, runtime)


def sizes_of(name: str, sessions: int) -> Sizes:
    """Return the grid of a catalogue model's profile, up to a batch of so many sessions with guidance (two rows each).

    Its new positions include the model's caption slots.
    """
    rows = {1, 2 * sessions, *(2 * batch for batch in (1, 4, 16, 64) if batch < sessions)}
    usual = Sizes()
    slots = catalogue.model(name).caption_slots
    return replace(usual, rows=tuple(sorted(rows)), new_tokens=tuple(sorted({*usual.new_tokens, slots})))


def config_of(shape: ModelShape) -> TransformerConfig:
    """Return the shape of a LlamaGen decoder with a catalogue model's sizes; its square grid holds at least as many tokens."""
    grid = math.isqrt(shape.image_tokens - 1) + 1
    return TransformerConfig(
        shape.n_layer,
        shape.n_head,
        shape.dim,
        shape.ffn_hidden,
        shape.head_rows or shape.vocab_size,
        shape.caption_slots,
        shape.caption_dim,
        grid,
    )


ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def random_weights(module: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Give a module random weights of type `dtype`, also where LlamaGen's initial weights are zero (output matrix), and return it."""
    module.to(dtype).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, _WEIGHT_STD)
    return module


def _text_encoder(shape: ModelShape, torch_device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Return a run of a T5 encoder of the catalogue's size over all caption slots: one layer, applied as often as it has layers.

    A model without an encoder looks up token embeddings instead.
    """
    sizes = shape.text_encoder
    if not sizes:
        table = torch.zeros(1024, shape.dim, dtype=dtype, device=torch_device)
        ids = torch.zeros(shape.caption_slots, dtype=torch.long, device=torch_device)
        return lambda: table[ids].cpu()
    dim, inner, hidden = sizes["dim"], sizes["inner"], sizes["ffn_hidden"]

    def matrix(inputs: int, outputs: int) -> Tensor:
        return torch.full((outputs, inputs), _WEIGHT_STD, dtype=dtype, device=torch_device)

    q, k, v, out = matrix(dim, inner), matrix(dim, inner), matrix(dim, inner), matrix(inner, dim)
    gate, up, down = matrix(dim, hidden), matrix(dim, hidden), matrix(hidden, dim)
    heads, functional = inner // 64, torch.nn.functional

    def run() -> object:
        x = torch.ones(shape.caption_slots, dim, dtype=dtype, device=torch_device)
        for _ in range(sizes["n_layer"]):
            normed = functional.rms_norm(x, (dim,))
            own, keys, values = (
                functional.linear(normed, w).view(len(x), heads, -1).transpose(0, 1) for w in (q, k, v)
            )
            attended = functional.scaled_dot_product_attention(own, keys, values).transpose(0, 1).reshape(len(x), inner)
            x = x + functional.linear(attended, out)
            normed = functional.rms_norm(x, (dim,))
            x = x + functional.linear(
                functional.gelu(functional.linear(normed, gate)) * functional.linear(normed, up), down
            )
        return x.cpu()

    return run


def measured(
    name: str,
    weights: str,
    models: Mapping[str, TimedModel],
    work: Mapping[str, Callable[[], object]],
    torch_device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    progress: Progress | None,
    budget_s: float,
    runtime: RuntimeName = "eager",
) -> Profile:
    """Measure models by role, and other work by kind, and return the profile. A model with two roles is timed once.

    Args:
        name: name of the model in the profile.
        weights: hash of the weights, or "".
        models: the model of each role.
        work: a run of each kind of `Compute`.
        torch_device: where the models are.
        dtype: type of the weights.
        sizes: the grid.
        progress: as in `measure_profile`.
        budget_s: as in `measure_profile`.
        runtime: as in `measure_model`.
    """
    different = list(dict.fromkeys(models.values()))
    cells = sum(timed.cells(sizes) for timed in different) + len(work)
    rounds = ROUNDS if torch_device.type == "cpu" else 1
    clock = Clock(torch_device, cells, progress, budget_s, rounds)
    with torch.inference_mode():
        for _ in clock.rounds():
            found = {timed: timed.tables(sizes, clock, torch_device, dtype, runtime) for timed in different}
            compute = {kind: clock.typical_seconds(run) for kind, run in work.items()}
    tables = {role: found[timed] for role, timed in models.items()}
    return Profile(
        model=name,
        weights=weights,
        hardware=hardware_name(torch_device),
        device=torch_device.type,
        system=f"{platform.system()} {platform.machine()}",
        date=datetime.now(UTC).date().isoformat(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=cast(DtypeName, str(dtype).removeprefix("torch.")),
        runtime=runtime,
        passes={role: passes for role, (passes, _) in tables.items()},
        verify={role: verify for role, (_, verify) in tables.items() if verify is not None},
        compute_seconds=compute,
    )


def hardware_name(torch_device: torch.device) -> str:
    """Return the name of the GPU or CPU behind a torch device."""
    if torch_device.type == "cuda":
        return torch.cuda.get_device_name(torch_device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_hardware(torch_device: torch.device, dtype: torch.dtype = torch.float32) -> Hardware:
    """Measure a catalogue entry: FLOP/s of a matrix product, bandwidth of a copy, time of a tiny operation, all of values of this type.

    The matrices are 1024 x 1024 on a CPU (256 x 256 in half precision, which CPUs may have no fast product for) and 8192 x 8192 on a GPU.
    The copy reads and writes 2^25 values, on a GPU 2^28. The operation adds to a tensor of one number. The catalogue assumes 2 bytes per
    value, so of float32, which has 4, half of the measured bandwidth is entered. memory_gb and power_w are not measured: NaN.
    """
    clock = Clock(torch_device, 3, None)
    # On a GPU, launching and waiting takes some 10 us: the work must take far longer.
    side, count = (8192, 1 << 28) if torch_device.type == "cuda" else (1024 if dtype == torch.float32 else 256, 1 << 25)
    with torch.inference_mode():
        a, b, source, target, one = (
            torch.ones(shape, device=torch_device, dtype=dtype)
            for shape in ((side, side), (side, side), count, count, 1)
        )
        flop_per_s = 2 * side**3 / clock.typical_seconds(lambda: torch.mm(a, b))
        copy_s = clock.typical_seconds(lambda: target.copy_(source))
        values_per_s = 2 * count / copy_s  # read and written
        kernel_s = clock.typical_seconds(lambda: [one.add_(1.0) for _ in range(1000)]) / 1000
    return catalogue.measured_hardware(
        hardware_name(torch_device),
        flop_per_s,
        FP16_BYTES * values_per_s,
        kernel_s,
        source="measured on this machine",
        efficiency_source="measured figures are what is reached",
    )


class Clock:
    """Times work and reports progress. Once the budget is spent, work is timed only once.

    The same work is timed in every round, in the same order. Its time is the least of the rounds so far.

    Args:
        torch_device: Where the work runs.
        total: Number of measurements of a round.
        progress: As in `measure_profile`.
        budget_s: Time after which the rest of the first round is timed once, and later rounds are left out.
        rounds: Number of rounds.
    """

    def __init__(
        self,
        torch_device: torch.device,
        total: int,
        progress: Progress | None,
        budget_s: float = math.inf,
        rounds: int = 1,
    ) -> None:
        self.torch_device, self.total, self.progress, self.budget_s = torch_device, total * rounds, progress, budget_s
        alone = torch_device.type == "cpu" and torch.get_num_threads() == 1
        self.now_s = time.process_time if alone else time.perf_counter
        self.done = 0
        self.started_s = time.perf_counter()
        self._rounds = rounds
        self._least: list[float] = []  # seconds of every measurement of a round
        self._place = 0  # of the next measurement in its round

    def rounds(self) -> Iterator[None]:
        """Yield at the start of every round, until all are done or the budget is spent."""
        for number in range(self._rounds):
            if number == 0 or not self._spent():
                self._place = 0
                yield
        if self.progress is not None:
            self.progress(self.total, self.total)

    def typical_seconds(self, run: Callable[[], object]) -> float:
        """Return the median seconds of a few runs after a warm-up run; once the budget is spent, the seconds of one run."""
        place, self._place = self._place, self._place + 1
        if place == len(self._least):
            self._least.append(self._typical_seconds(run))
        elif not self._spent():
            # So long a pass has no use for what an earlier one left in caches.
            warm = self._least[place] > _CELL_S / self._rounds
            self._least[place] = min(self._least[place], self._typical_seconds(run, warm))
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return self._least[place]

    def _spent(self) -> bool:
        return time.perf_counter() - self.started_s >= self.budget_s

    def _typical_seconds(self, run: Callable[[], object], warm: bool = False) -> float:
        """Return the median seconds of this round's runs. warm: whether the first run counts."""
        first = self._once(run)
        times = [first] if warm else []
        most, least, cell_s = (x / self._rounds for x in (_REPEATS, _LEAST_REPEATS, _CELL_S))
        while not self._spent() and (len(times) < least or (len(times) < most and sum(times) < cell_s)):
            times.append(self._once(run))
        return statistics.median(times or [first])

    def _once(self, run: Callable[[], object]) -> float:
        """Return the seconds of one run, including the time until a GPU has finished."""
        begun_s, started_s = time.perf_counter(), self.now_s()
        run()
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        seconds = self.now_s() - started_s
        return seconds if seconds > 0.0 else time.perf_counter() - begun_s  # some CPU clocks have a coarse resolution


def _tables(
    timed: Timed, torch_device: torch.device, dtype: torch.dtype, sizes: Sizes, clock: Clock, runtime: RuntimeName
) -> tuple[PassTable, PassTable | None]:
    """Time passes that apply the head to the last position and, except for the device model, passes over trees, which apply it to all."""
    config = timed.decoder.config
    past = 0 if timed.drafter is None else DRAFTED
    cached = (0, config.positions - 1 + past)  # in between, the time of attention is linear
    longest = max(sizes.new_tokens + sizes.verified)
    longer = _longer(timed, cached[-1] + longest)
    most = sizes.rows[-1]
    cache = KVCache(longer.decoder.config, most, torch_device, dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(timed.model.config.vocab_size, (most, longest), generator=generator).to(torch_device)

    def cell(rows: int, new: int, kv: int, tree: bool) -> float:
        if runtime == "cuda-graphs":
            prepared = _prepared(longer, cache, ids[:rows, :new], kv, tree)
            return clock.typical_seconds(_captured(prepared) if torch_device.type == "cuda" else prepared)
        return clock.typical_seconds(lambda: _one_pass(longer, cache, ids[:rows, :new], kv, tree))

    for rows in (1, most):
        _one_pass(longer, cache, ids[:rows, :1], 0, False)  # warms up threads, kernels and memory

    def table(new_tokens: tuple[int, ...], tree: bool) -> PassTable:
        seconds = [[[cell(r, n, kv, tree) for kv in cached] for n in new_tokens] for r in sizes.rows]
        return PassTable(rows=list(sizes.rows), new_tokens=list(new_tokens), kv_tokens=list(cached), seconds=seconds)

    return table(sizes.new_tokens, False), None if timed.on_device else table(sizes.verified, True)


def _captured(run: Callable[[], Tensor]) -> Callable[[], object]:
    """Capture a pass into a CUDA graph. The returned function replays it in one launch and copies the picked tokens to the host."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    # Masks and indices of the pass may still be on their way: without waiting, the side stream would read garbage.
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # libraries must allocate their workspaces before the capture
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> object:
        graph.replay()
        return out.tolist()

    return replay


def _longer(timed: Timed, positions: int) -> Timed:
    """Return the same weights with a larger grid, so that every cell of the table fits; only shapes affect the time."""
    own = timed.decoder
    grid = math.ceil(math.sqrt(positions - own.config.caption_slots))
    config = replace(own.config, grid=max(grid, own.config.grid))
    with unallocated():
        drafter = timed.drafter and EagleDrafter(config, timed.drafter.embeddings is not None)
        wide = drafter or decoder(config, timed.model.classes)
    wide.load_state_dict(own.state_dict(), assign=True)
    wide.eval()
    return replace(timed, drafter=wide) if isinstance(wide, EagleDrafter) else replace(timed, model=wide)


def _comb(nodes: int) -> list[int]:
    """Return the parents of a draft tree of TEETH chains below its root."""
    return [-1, *(max(node - TEETH, 0) for node in range(1, nodes))]


def _one_pass(timed: Timed, cache: KVCache, ids: Tensor, kv: int, tree: bool) -> None:
    """Run one batched pass as decoding does. Several rows are pairs of a conditional and an unconditional row."""
    rows, new = ids.shape
    trees = timed.trees(rows, new) if tree else None
    hidden = timed.decoder.step(
        cache, torch.arange(rows), torch.full((rows,), kv), timed.inputs(ids), torch.full((rows,), new), trees
    )
    conditional, guided = _guided(timed.model, hidden if tree else hidden[:, -1])
    if timed.radius is not None:
        lower, upper = inter_fuse(guided, timed.radius(conditional))
        uncertainty(lower, upper).u_tilde.tolist()
    if timed.greedy or tree:
        greedy(guided).tolist()
    else:
        one, off = torch.ones(len(guided)), torch.zeros(len(guided), dtype=torch.long)
        probs = filter_probs(guided, one, off, one)
        sample(probs, torch.full((len(guided),), 0.5, dtype=torch.float64, device=probs.device)).tolist()


def _prepared(timed: Timed, cache: KVCache, ids: Tensor, kv: int, tree: bool) -> Callable[[], Tensor]:
    """Return the pass of `_one_pass` with the host's preparation done in advance, so that the rest can be captured.

    The returned function gives the picked tokens.
    """
    rows, new = ids.shape
    trees = timed.trees(rows, new) if tree else None
    start, count = torch.full((rows,), kv), torch.full((rows,), new)
    plan = timed.decoder.plan(cache, torch.arange(rows), start, timed.inputs(ids).flatten(0, 1), count, trees)
    uniform = torch.full((max(rows // 2, 1),), 0.5, dtype=torch.float64, device=ids.device)

    def run() -> Tensor:
        hidden = timed.decoder._run(timed.inputs(ids).view(1, rows * new, -1), plan)[0].view(rows, new, -1)
        conditional, guided = _guided(timed.model, hidden if tree else hidden[:, -1])
        if timed.radius is not None:
            lower, upper = inter_fuse(guided, timed.radius(conditional))
            return torch.stack([uncertainty(lower, upper).u_tilde.float(), greedy(guided).float()])
        return greedy(guided) if tree or timed.greedy else sample(guided.softmax(-1), uniform)

    return run


def _guided(model: Transformer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states of the conditional rows, and the guided logits; a single row has no guidance."""
    conditional, scale = (hidden, 1.0) if len(hidden) == 1 else (hidden[0::2], 3.0)
    return conditional, model.logits(guide(conditional, hidden[-len(conditional) :], scale))


def _work(
    phi: IntervalProjection | None, tokenizer: Any, config: TransformerConfig, weight: Tensor
) -> dict[str, Callable[[], object]]:
    """Return a run of each kind of `Compute` that needs no caption, with batch size 1. weight: any weight, for dtype and device."""
    hidden = torch.zeros(1, config.dim, dtype=weight.dtype, device=weight.device)
    row = torch.full((1, config.vocab_size), 1 / config.vocab_size, dtype=weight.dtype, device=weight.device)
    codes = torch.zeros(1, config.tokens, dtype=torch.long, device=weight.device)
    draws, shape = stream(0, "interval-samples"), (INTERVAL_SAMPLES, config.vocab_size)
    return {
        # Without phi, no method requests it.
        "phi": (lambda: None) if phi is None else (lambda: phi(hidden, row, row).float().cpu().numpy()),
        "image_decoder": lambda: tokenizer.to_bytes(tokenizer.decode_codes(codes)).cpu().numpy(),
        "interval_samples": lambda: sampled_bounds(row[0], row[0], torch.from_numpy(draws.uniform(-1, 1, shape)))[
            0
        ].cpu(),
    }
