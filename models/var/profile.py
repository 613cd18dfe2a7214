"""Measures the passes of a model that predicts scale by scale, as `models.profile` does for models that predict token by token.

A timed pass is what decoding runs: the embedding, every layer over the new positions with the cache, the head on all of them,
guidance, and a draw at each position. The first half of the rows is conditional, the second unconditional. A pass has at most a whole
image of new positions, as the device's first pass after a hand-over can have; the mask between its scales is left out. The vectors that
depend on the class are computed once per image and timed as the caption encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from models.backbones.var import VarPair
from models.profile import (
    DECODER_SIZES,
    ROWS,
    Clock,
    Progress,
    RuntimeName,
    Sizes,
    Tables,
    measured,
    random_weights,
)
from models.sampling import filter_probs, guide, sample
from models.var.tokenizer import VarTokenizer
from models.var.transformer import ScaleCache, VarTransformer
from models.vq import VQConfig
from simulator.core.errors import ComputeError
from simulator.pricing import catalogue
from simulator.pricing.catalogue import ModelShape
from simulator.pricing.profile import PassTable, Profile
from simulator.protocol.var import SharedVarConfig, VarConfig

CPU_ROWS = 8  # most rows of a pass on a CPU, where 32 rows of a whole image take minutes
CLASSES, PHIS = 1000, 4  # as in the released models and tokenizer
GUIDANCE = 3.0


@dataclass(frozen=True)
class TimedScales:
    """A model whose passes are timed, see `models.profile.TimedModel`."""

    model: VarTransformer

    def cells(self, sizes: Sizes) -> int:
        return 2 * len(sizes.rows) * (1 + len(self._more()))

    def tables(
        self, sizes: Sizes, clock: Clock, torch_device: torch.device, dtype: torch.dtype, runtime: RuntimeName
    ) -> Tables:
        """Time the passes of the first scale, and those of more positions; the head is applied to all positions.

        Raises:
            ComputeError: the runtime is not eager.
        """
        if runtime != "eager":
            raise ComputeError(
                f"--runtime {runtime}: not available for models that predict scale by scale; allowed: eager"
            )
        config = self.model.config
        cached = (0, config.tokens - config.scales[-1] ** 2)
        first: list[list[list[float]]] = []  # by rows, new positions and cached ones
        others: list[list[list[float]]] = []
        for rows in sizes.rows:
            run = self._passes(rows, cached[-1], torch_device, dtype)
            run(1, 0)  # warms up threads, kernels and memory
            first.append([[clock.typical_seconds(partial(run, 1, kv)) for kv in cached]])
            others.append([[clock.typical_seconds(partial(run, n, kv)) for kv in cached] for n in self._more()])

        def table(new_tokens: tuple[int, ...], seconds: list[list[list[float]]]) -> PassTable:
            return PassTable(
                rows=list(sizes.rows), new_tokens=list(new_tokens), kv_tokens=list(cached), seconds=seconds
            )

        return table((1,), first), table(self._more(), others)

    def _more(self) -> tuple[int, ...]:
        """Return the numbers of new positions of the other timed passes: those of some scales, of the largest, and of a whole image."""
        scales = self.model.config.scales
        return (*(side * side for side in (scales[1], scales[3], scales[6], scales[-1])), self.model.config.tokens)

    def _passes(
        self, rows: int, cached: int, torch_device: torch.device, dtype: torch.dtype
    ) -> Callable[[int, int], object]:
        """Return a function that runs a pass with the given numbers of new and of cached positions (at most `cached`), and draws codes."""
        model, config = self.model, self.model.config
        cache = ScaleCache(config, rows, cached + config.tokens, torch_device, dtype)
        width = model.word_embed.in_features
        maps = torch.randn(rows, config.tokens, width, generator=torch.Generator().manual_seed(0))
        maps = maps.to(torch_device, dtype)
        half = max(rows // 2, 1)
        labels = torch.tensor([0] * half + [model.classes] * (rows - half), device=torch_device)
        condition = model.condition(labels)

        def run(new: int, kv: int) -> object:
            levels = model.levels()[:new]
            hidden = model.word_embed(maps[:, :new]) + model.lvl_embed(levels) + model.pos_1LC[:, :new]
            for layer, (block, vectors) in enumerate(zip(model.blocks, condition.layers, strict=True)):
                hidden = block(hidden, vectors, layer, kv, cache, None)
            logits = model.logits(hidden, condition, slice(None))  # [R, n, V]
            guided = (logits if rows == 1 else guide(logits[:half], logits[half:], GUIDANCE)).flatten(0, 1)
            one, off = torch.ones(len(guided)), torch.zeros(len(guided), dtype=torch.long)
            probs = filter_probs(guided, one, off, one)
            return sample(probs, torch.full((len(guided),), 0.5, dtype=torch.float64, device=probs.device)).tolist()

        return run


def measure_scales(pair: VarPair, progress: Progress | None = None, budget_s: float = 15.0) -> Profile:
    """Measure a pair that predicts scale by scale, as `models.profile.measure_profile` does.

    Without a device model, the device's times are the cloud model's; no method uses them.
    """
    models = {"cloud": TimedScales(pair.cloud), "device": TimedScales(pair.device or pair.cloud)}
    name, weights, where = pair.manifest.name, pair.manifest.weights_hash, pair.torch_device
    work = _work(pair.cloud, pair.tokenizer)
    return measured(name, weights, models, work, where, pair.dtype, _sizes(where, ROWS), progress, budget_s)


def measure_scale_model(
    name: str,
    torch_device: torch.device,
    dtype: torch.dtype = torch.float32,
    sizes: Sizes | None = None,
    progress: Progress | None = None,
    budget_s: float = 120.0,
    runtime: RuntimeName = "eager",
    shape: ModelShape | None = None,
) -> Profile:
    """Measure a catalogue model that predicts scale by scale, as `models.profile.measure_model` does.

    The device's times are those of the same model.

    Raises:
        ComputeError: a one-layer form is requested, or the runtime is not eager.
    """
    shape = shape or catalogue.model(name)
    if shape.interhead:
        raise ComputeError(
            f"model {name}: a model that predicts scale by scale has no one-layer form; allowed: the model itself"
        )
    kind = VarConfig if shape.modulation else SharedVarConfig
    side = shape.image_decoder["latent_side"]
    config = kind(shape.n_layer, shape.n_head, shape.dim, shape.ffn_hidden, shape.vocab_size, 1, 1, side, norm_eps=1e-6)
    decoder = {key: shape.image_decoder[key] for key in DECODER_SIZES if key in shape.image_decoder}
    vq = VQConfig(codebook_size=shape.vocab_size, **decoder)
    with torch.random.fork_rng(devices=[]), torch.device(torch_device):
        torch.manual_seed(0)
        model = random_weights(VarTransformer(config, CLASSES, vq.codebook_dim), dtype)
        tokenizer = VarTokenizer(vq, config.scales, PHIS).eval().requires_grad_(False)
    models = {role: TimedScales(model) for role in ("device", "cloud")}
    rows = (sizes or Sizes()).rows
    where = _sizes(torch_device, rows)
    return measured(name, "", models, _work(model, tokenizer), torch_device, dtype, where, progress, budget_s, runtime)


def _sizes(torch_device: torch.device, rows: tuple[int, ...]) -> Sizes:
    most = CPU_ROWS if torch_device.type == "cpu" else rows[-1]
    return Sizes(rows=tuple(one for one in rows if one <= most))


def _work(model: VarTransformer, tokenizer: VarTokenizer) -> dict[str, Callable[[], object]]:
    """Return a run of each kind of `Compute`, with batch size 1."""
    weight = model.word_embed.weight
    labels = torch.tensor([0, model.classes], device=weight.device)
    codes = torch.zeros(1, model.config.tokens, dtype=torch.long, device=weight.device)
    return {
        "caption_encoder": lambda: model.condition(labels).start.float().cpu(),
        "image_decoder": lambda: tokenizer.decode_codes(codes).cpu().numpy(),
    }
