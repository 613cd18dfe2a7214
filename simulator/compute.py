"""What work costs in seconds: rooflines from catalogue figures, and tables of measured times; both are `costs.Costs`.

Roofline of one forward pass (a batch as sums over its rows, `costs.Work`), fp16 weights and cache:

    bytes   = 2 * (weights of layers, final norm and head)   read once, whatever the batch
            + 2 * tokens * D                                 rows of the embedding
            + kv_tokens * (2 * L * D * 2)                    keys and values
    flops   = 2 * tokens * (weights of the layers)
            + 2 * logits * (weights of the head)             the head sees the positions whose logits are wanted
            + 4 * L * D * attended                           scores and weighted sums, per query-key pair
    roof    = max(bytes / effective bandwidth, flops / effective peak)
    seconds = max(L * layer_us + step_us, roof)              runtime eager: the host launches alongside
            = (L * kernels_per_layer + kernels_per_step) * kernel_overhead + roof            runtime cuda-graphs

Left out as small: the caption projection (0.5 % of LlamaGen-XL's weights, first pass only) and the logits written.
"""

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from simulator import catalogue, pairs
from simulator.catalogue import FP16_BYTES, Effort, Hardware, ModelShape, Runtime
from simulator.costs import Pricing, Work
from simulator.errors import ComputeError, about
from simulator.messages import Widths
from simulator.methods import Settings
from simulator.ops import COMPUTE_KINDS, INTERVAL_SAMPLES
from simulator.pairs import MANIFEST, PairManifest
from simulator.recording import write_atomically

# --- roofline


@dataclass
class RooflineCosts:
    """Times of a model shape on an accelerator of the catalogue. Never `extrapolated`: a formula has no measured range."""

    shape: ModelShape
    efforts: dict[str, Effort]
    hardware: Hardware
    runtime: Runtime
    origin: str = "roofline"
    extrapolated: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What every pass asks for, worked out once: a large run asks a million times."""
        shape, start = self.shape, self.runtime
        self._weight_bytes = FP16_BYTES * shape.pass_parameters
        self._token_bytes = FP16_BYTES * shape.dim
        self._kv_bytes = shape.kv_bytes_per_position
        self._token_flops = 2 * shape.n_layer * shape.layer_parameters
        self._logit_flops = 2 * shape.head_parameters
        self._pair_flops = 4 * shape.n_layer * shape.dim
        self._bytes_per_s, self._flop_per_s = self.hardware.bytes_per_s, self.hardware.flop_per_s
        self._alongside = start.kind == "host"
        if self._alongside:
            self._launch_s = (shape.n_layer * start.layer_us + start.step_us) * 1e-6
        else:
            self._launch_s = (shape.n_layer * start.kernels_per_layer + start.kernels_per_step) * self.hardware.kernel_overhead_s

    @property
    def power_w(self) -> float:
        return self.hardware.power_w

    def pass_seconds(self, work: Work) -> float:
        """Seconds of one batched forward pass, by the formula at the top of this file."""
        _, tokens, kv_tokens, attended, logits = work
        read = self._weight_bytes + self._token_bytes * tokens + self._kv_bytes * kv_tokens
        flops = self._token_flops * tokens + self._logit_flops * logits + self._pair_flops * attended
        roof = max(read / self._bytes_per_s, flops / self._flop_per_s)
        return max(self._launch_s, roof) if self._alongside else self._launch_s + roof

    def compute_seconds(self, kind: str) -> float:
        """Seconds of one `Compute`. Raises ComputeError where the model's effort for it is not known."""
        effort = self.efforts.get(kind)
        if effort is None:
            known = ", ".join(self.efforts) or "none"
            raise ComputeError(f"no effort of {kind} is known for {self.shape.title}; known: {known}")
        read = FP16_BYTES * (effort.parameters + effort.activation_values)
        roof = max(read / self._bytes_per_s, effort.flops / self._flop_per_s)
        if self._alongside:
            return max(effort.kernels * self.runtime.kernel_us * 1e-6, roof)
        return effort.kernels * self.hardware.kernel_overhead_s + roof


# --- counted efforts


def vq_decoder_effort(
    latent_side: int,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
    z_channels: int = 256,
    codebook_dim: int = 8,
    num_res_blocks: int = 2,
    patch: int = 1,
) -> Effort:
    """Effort of one run of a VQGAN image decoder, counted convolution by convolution. Defaults: LlamaGen's VQ-16.

    Source: LlamaGen, image tokenizer: 1x1 to z_channels, 3x3 to the widest level, Res-Attn-Res, then the levels from the
    lowest resolution with one ResBlock more than the encoder's, attention on the lowest only, nearest x2 and 3x3 between
    levels, norm, 3x3 to RGB. 2 flops a multiply-add. Norms, activations and sums count by the values they read and write.
    """
    flops = parameters = values = kernels = 0

    def conv(inputs: int, outputs: int, size: int, side: int) -> None:
        nonlocal flops, parameters, values, kernels
        flops += 2 * side * side * inputs * outputs * size * size
        parameters += inputs * outputs * size * size + outputs
        values += side * side * (inputs + outputs)
        kernels += 1

    def pointwise(channels: int, side: int, count: int = 1, learned: bool = False) -> None:
        nonlocal parameters, values, kernels
        parameters += 2 * channels * learned
        values += 2 * side * side * channels * count
        kernels += count

    def norm_act(channels: int, side: int) -> None:
        pointwise(channels, side, learned=True)
        pointwise(channels, side)

    def res(inputs: int, outputs: int, side: int) -> None:
        norm_act(inputs, side)
        conv(inputs, outputs, 3, side)
        norm_act(outputs, side)
        conv(outputs, outputs, 3, side)
        if inputs != outputs:
            conv(inputs, outputs, 1, side)
        pointwise(outputs, side)  # the sum

    def attention(channels: int, side: int) -> None:
        nonlocal flops, values, kernels
        pointwise(channels, side, learned=True)
        for _ in range(4):  # q, k, v, output
            conv(channels, channels, 1, side)
        flops += 4 * side**4 * channels
        values += 4 * side * side * channels
        kernels += 1
        pointwise(channels, side)

    widths = [ch * mult for mult in reversed(ch_mult)]
    side, width = latent_side, widths[0]
    conv(codebook_dim, z_channels, 1, side)
    conv(z_channels, width, 3, side)
    res(width, width, side)
    attention(width, side)
    res(width, width, side)
    for level, outputs in enumerate(widths):
        for _ in range(num_res_blocks + 1):
            res(width, outputs, side)
            width = outputs
            if level == 0:
                attention(width, side)
        if level < len(widths) - 1:
            side *= 2
            pointwise(width, side)
            conv(width, width, 3, side)
    norm_act(width, side)
    conv(width, 3 * patch**2, 3, side)
    return Effort(flops=flops, parameters=parameters, activation_values=values, kernels=kernels)


def text_encoder_effort(positions: int, n_layer: int, dim: int, inner: int, ffn_hidden: int) -> Effort:
    """Effort of a T5 encoder with gated feed-forward over `positions` padded positions. inner: heads times their width.

    Flops: 2 a weight and position, 4 * inner a query-key pair and layer. Of the embedding only `positions` rows are read.
    Kernels: about 20 a layer (two norms of 3, q, k, v, scores, bias, softmax, values, output, 4 of the FFN, two sums).
    """
    weights = n_layer * (4 * dim * inner + 3 * dim * ffn_hidden + 2 * dim) + dim
    flops = 2 * positions * weights + 4 * n_layer * inner * positions**2
    return Effort(flops=flops, parameters=weights + positions * dim, kernels=20 * n_layer)


def phi_effort(dim: int, vocab_size: int, bottleneck: int) -> Effort:
    """Effort of CIAR's feature projection for one token: (D + 2V) x bottleneck, GELU, bottleneck x D (assumption A8)."""
    weights = (dim + 2 * vocab_size) * bottleneck + bottleneck * dim
    return Effort(flops=2 * weights, parameters=weights, kernels=4)


def interval_samples_effort(vocab_size: int) -> Effort:
    """Effort of drawing `INTERVAL_SAMPLES` distributions from an interval's box and taking their bounds.

    A row: noise (10 flops a draw), c + noise r, softmax, running minimum and maximum: about 20 flops and 8 values an entry.
    """
    entries = INTERVAL_SAMPLES * vocab_size
    return Effort(flops=20 * entries, parameters=0, activation_values=8 * entries, kernels=6)


# --- measured


PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PassTable(Settings):
    """Times of one model's passes on a grid. seconds[i][j][k] belongs to rows[i], new_tokens[j] and kv_tokens[k].

    new_tokens: new positions of a row. kv_tokens: positions of a row in the cache before the pass. A table with holes is refused.
    """

    rows: list[int] = Field(min_length=1)
    new_tokens: list[int] = Field(min_length=1)
    kv_tokens: list[int] = Field(min_length=1)
    seconds: list[list[list[PositiveSeconds]]]

    @model_validator(mode="before")
    @classmethod
    def _no_holes(cls, data: Any) -> Any:
        try:
            axes = [data[name] for name in ("rows", "new_tokens", "kv_tokens")]
            for i, j, k in itertools.product(*(range(len(axis)) for axis in axes)):
                if data["seconds"][i][j][k] is None:
                    raise ValueError(f"a hole, no time for {axes[0][i]} rows of {axes[1][j]} new and {axes[2][k]} cached tokens")
        except (TypeError, KeyError, IndexError):
            pass  # no grid at all, which is told field by field
        return data

    @model_validator(mode="after")
    def _whole(self) -> "PassTable":
        for name in ("rows", "new_tokens", "kv_tokens"):
            axis = getattr(self, name)
            if any(b <= a for a, b in itertools.pairwise(axis)):
                raise ValueError(f"{name} must increase, got {axis}")
        shape = (len(self.rows), len(self.new_tokens), len(self.kv_tokens))
        if len(self.seconds) != shape[0] or any(
            len(plane) != shape[1] or any(len(line) != shape[2] for line in plane) for plane in self.seconds
        ):
            raise ValueError(f"seconds must have the shape {shape} of its axes")
        return self


class Profile(Settings):
    """Measured times of a model pair on one machine.

    hardware: what it ran on, in words; device: cpu or cuda; system: operating system and architecture; date: of measuring, in UTC, on
    which nothing depends. dtype: of the weights. passes: by role. compute_seconds: by kind, batch 1.
    """

    format: Literal[1] = 1
    model: str
    weights: str = Field(default="", description="hash of the pair's weights")
    hardware: str
    device: str = ""
    system: str = ""
    date: str = ""
    threads: int = Field(ge=1)
    torch: str
    dtype: str = "float32"
    passes: dict[str, PassTable]
    compute_seconds: dict[str, PositiveSeconds]

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Raises ComputeError where the file is missing, no profile of this format, or has holes."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ComputeError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "file"
            said = first["msg"].removeprefix("Value error, ")
            raise ComputeError(f"{path}: {place}: {said}; measure it again with ciar-sim profile") from None

    def write(self, path: Path) -> None:
        """Raises ComputeError where the file cannot be written."""
        try:
            write_atomically(path, (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise ComputeError(f"{path}: cannot be written: {error.strerror or error}") from None


class MeasuredCosts:
    """Times from a profile: multilinear between measured points, linear beyond them (then `extrapolated` is set).

    A batch of unequal rows is asked for at its mean: new tokens and cached positions per row.
    """

    def __init__(self, profile: Profile, role: str) -> None:
        if role not in profile.passes:
            held = ", ".join(profile.passes) or "none"
            raise ComputeError(f"the profile of {profile.model} holds no passes of {role}; held: {held}")
        self.table = profile.passes[role]
        self.profile = profile
        machine = f"{profile.hardware}, {profile.threads} threads, torch {profile.torch}"
        self.origin = f"measured: {role} of {profile.model} on {machine}"
        self.power_w = float("nan")
        self.extrapolated = False
        self.provenance: dict[str, Any] = {}
        table = self.table
        self._axes = [[float(x) for x in axis] for axis in (table.rows, table.new_tokens, table.kv_tokens)]
        self._least = min(s for plane in table.seconds for line in plane for s in line)

    def pass_seconds(self, work: Work) -> float:
        """Seconds of one batched pass."""
        asked = (float(work.rows), work.tokens / work.rows, (work.kv_tokens - work.tokens) / work.rows)
        ends = [self._bracket(axis, x) for axis, x in zip(self._axes, asked, strict=True)]
        seconds = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = 1.0
            at: list[int] = []
            for (low, high, share), side in zip(ends, corner, strict=True):
                weight *= share if side else 1.0 - share
                at.append(high if side else low)
            i, j, k = at
            seconds += weight * self.table.seconds[i][j][k]
        return max(seconds, self._least)

    def compute_seconds(self, kind: str) -> float:
        """Seconds of one `Compute`. Raises ComputeError where it was not measured."""
        if kind not in self.profile.compute_seconds:
            raise ComputeError(f"the profile of {self.profile.model} has no time of {kind}; measure the profile again")
        return self.profile.compute_seconds[kind]

    def _bracket(self, axis: list[float], x: float) -> tuple[int, int, float]:
        """Indices of the two grid points around x, or nearest to it, and the second's share (beyond the grid outside [0, 1])."""
        if not axis[0] <= x <= axis[-1]:
            self.extrapolated = True
        if len(axis) == 1:
            return 0, 0, 0.0
        low = min(max(bisect_right(axis, x) - 1, 0), len(axis) - 2)
        return low, low + 1, (x - axis[low]) / (axis[low + 1] - axis[low])


# --- a roofline beside measured times


@dataclass(frozen=True)
class RooflineCell:
    """One measured pass beside its roofline. new_tokens, kv_tokens: of a row, new and cached before."""

    role: str
    rows: int
    new_tokens: int
    kv_tokens: int
    measured_s: float
    roofline_s: float

    @property
    def ratio(self) -> float:
        """Roofline over measured: 1 is exact, below 1 the roofline promises too much."""
        return self.roofline_s / self.measured_s


def beside_roofline(profile: Profile, pair: "PairShapes", machine: Hardware) -> list[RooflineCell]:
    """Every pass of a profile beside the roofline of the same pass, whose kernels are counted as for the runtime cuda-graphs."""
    cells = []
    for role, table in profile.passes.items():
        shape = pair.device if role == "device" else pair.cloud
        costs = RooflineCosts(shape, {}, machine, catalogue.runtime("cuda-graphs"))
        for i, j, k in itertools.product(*(range(len(axis)) for axis in (table.rows, table.new_tokens, table.kv_tokens))):
            at = (table.rows[i], table.new_tokens[j], table.kv_tokens[k])
            cells.append(RooflineCell(role, *at, table.seconds[i][j][k], costs.pass_seconds(Work.of_pass(*at))))
    return cells


# --- choosing


class PairShapes(Settings):
    """What pricing needs to know of a model pair; the efforts of both are its caption encoder, phi and image decoder."""

    cloud: ModelShape
    device: ModelShape


def pair_shapes(folder: Path, manifest: PairManifest) -> PairShapes:
    """The shapes of the pair in `folder`. Raises ComputeError where its tokenizer does not say its shape."""
    path = folder / "tokenizer.safetensors"
    try:
        with safe_open(path, framework="np") as file:
            vq = json.loads(file.metadata()["config"])
        decoder = vq_decoder_effort(
            manifest.grid,
            ch=vq["ch"],
            ch_mult=vq["decoder_ch_mult"],
            z_channels=vq["z_channels"],
            codebook_dim=vq["codebook_dim"],
            num_res_blocks=vq["num_res_blocks"],
            patch=vq["patch"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ComputeError(f"{path}: does not say the tokenizer's shape ({type(error).__name__}: {error})") from None
    rows = manifest.caption_slots * manifest.caption_dim
    efforts = {
        "caption_encoder": Effort(
            flops=0, parameters=rows, activation_values=rows, kernels=2
        ),  # word vectors are looked up
        "phi": phi_effort(manifest.cloud.dim, manifest.codebook_size, manifest.phi_bottleneck),
        "image_decoder": decoder,
        "interval_samples": interval_samples_effort(manifest.codebook_size),
    }

    def shape(role: str, own: pairs.ModelShape, interhead: bool) -> ModelShape:
        return ModelShape(
            title=f"{manifest.name} ({role})",
            n_layer=own.n_layer,
            n_head=own.n_head,
            dim=own.dim,
            ffn_hidden=own.ffn_hidden,
            vocab_size=own.vocab_size,
            caption_slots=own.caption_slots,
            caption_dim=own.caption_dim,
            image_tokens=manifest.image_tokens,
            image_pixels=manifest.image_size**2,
            interhead=interhead,
            efforts=efforts,
            source=f"{MANIFEST} of the pair",
            evidence="datasheet",
        )

    return PairShapes(cloud=shape("cloud", manifest.cloud, False), device=shape("device", manifest.device, True))


class ComputeSide(Protocol):
    """One side of a scenario's `compute`."""

    @property
    def model(self) -> str: ...
    @property
    def hardware(self) -> str: ...
    @property
    def runtime(self) -> str | None: ...
    @property
    def profile(self) -> str | None: ...


class ComputeChoice(Protocol):
    """A scenario's `compute`."""

    @property
    def device(self) -> ComputeSide: ...
    @property
    def cloud(self) -> ComputeSide: ...


def build_costs(
    choice: ComputeChoice, pair: PairShapes, profile: Callable[[], Profile]
) -> tuple[RooflineCosts | MeasuredCosts, RooflineCosts | MeasuredCosts, Pricing]:
    """Costs of the device and of the cloud, and the shape at which messages and captions are priced.

    profile: measured times of the pair on this machine; called (once at most) only where a side runs on `local` and names no profile.
    Each result carries `provenance`: origin, model, hardware, figures and sources. Raises ComputeError where a name is
    unknown, the numbers of image tokens differ, or a stored profile cannot be read.
    """
    measured: dict[str | None, Profile] = {}

    def build(role: str, side: ComputeSide) -> RooflineCosts | MeasuredCosts:
        if side.hardware == "local":
            if side.profile not in measured:
                measured[side.profile] = Profile.read(Path(side.profile)) if side.profile else profile()
            return _measured(measured[side.profile], role)
        own = pair.device if role == "device" else pair.cloud
        shape = own if side.model == "pair" else catalogue.model(side.model)
        if shape.image_tokens != own.image_tokens:
            raise ComputeError(
                f"compute.{role}.model {side.model} makes {shape.image_tokens} image tokens, the pair {own.image_tokens}; "
                "they must be equal"
            )
        return _roofline(side.model, shape, side.hardware, side.runtime or "eager")

    with about("compute", "device"):
        device = build("device", choice.device)
    with about("compute", "cloud"):
        cloud = build("cloud", choice.cloud)
    priced = pair.cloud if choice.cloud.model == "pair" else catalogue.model(choice.cloud.model)
    widths = Widths(priced.dim, priced.vocab_size, priced.caption_dim, priced.image_pixels, priced.caption_slots)
    beside = measured[choice.cloud.profile] if choice.cloud.hardware == "local" else None
    return device, cloud, Pricing(priced.caption_slots, widths, _drafter(choice.cloud, priced, beside))


def _drafter(side: ComputeSide, cloud: ModelShape, measured: Profile | None) -> RooflineCosts | MeasuredCosts | None:
    """A feature-level drafter in the cloud: one layer of the cloud model's shape and its head."""
    if measured is not None:
        return _measured(measured, "device") if "device" in measured.passes else None
    shape = cloud.model_copy(update={"n_layer": 1, "title": f"one layer of {cloud.title}"})
    return _roofline(side.model, shape, side.hardware, side.runtime or "eager")


def _measured(profile: Profile, role: str) -> MeasuredCosts:
    costs = MeasuredCosts(profile, role)
    keys = ("model", "weights", "hardware", "device", "system", "threads", "torch", "dtype")
    costs.provenance = {"origin": "measured", "extrapolated": False, **{key: getattr(profile, key) for key in keys}}
    return costs


def _roofline(model: str, shape: ModelShape, hardware: str, runtime: str) -> RooflineCosts:
    machine, start = catalogue.hardware(hardware), catalogue.runtime(runtime)
    efforts = {kind: shape.efforts[kind] for kind in COMPUTE_KINDS if kind in shape.efforts}
    costs = RooflineCosts(shape, efforts, machine, start, f"roofline: {shape.title} on {machine.title}, {runtime}")
    figures = machine.model_dump(exclude={"title", "aliases", "source", "evidence", "efficiency_source", "kind"})
    started = start.model_dump(exclude={"source", "evidence", "kind"}, exclude_defaults=True)
    costs.provenance = {
        "origin": "roofline",
        "model": model,
        "hardware": catalogue.canonical("hardware", hardware),
        "runtime": runtime,
        "figures": {**figures, **started, "pass_parameters": shape.pass_parameters},
        "sources": {
            "hardware": f"{machine.source} ({machine.evidence})",
            "efficiency": machine.efficiency_source,
            "runtime": f"{start.source} ({start.evidence})",
            "model": f"{shape.source} ({shape.evidence})",
        },
    }
    return costs
