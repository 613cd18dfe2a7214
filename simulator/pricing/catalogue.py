"""The catalogue: accelerators, runtimes, model sizes, network presets and radios, each with its source.

The tables are `simulator/pricing/catalogue/*.yaml` and are read once. The error for an unknown name suggests the nearest one.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from simulator.core import yamlfile
from simulator.core.errors import CiarSimError, ComputeError, ScenarioError
from simulator.core.settings import Settings
from simulator.pricing.op_counts import (
    OpCount,
    interval_samples_op_count,
    phi_op_count,
    text_encoder_op_count,
    vq_decoder_op_count,
)

FOLDER = Path(__file__).parent / "catalogue"
FP16_BYTES = 2
ONE_LAYER = "-1layer"  # suffix of the name of a model's device form
PHI_BOTTLENECK = 256  # of CIAR's feature projection (assumption A8)
Evidence = Literal["measured", "datasheet", "derived", "assumed"]
EntryT = TypeVar("EntryT", bound="Entry")


class Entry(Settings):
    """The common fields of every row: the source of its figures, and the evidence for the weakest of them."""

    source: str = Field(min_length=3)
    evidence: Evidence


class Hardware(Entry):
    """An accelerator: peaks of the data sheet, and the efficiencies, the shares of the peaks that a program reaches."""

    title: str
    kind: str = Field(alias="class")
    fp16_tflops: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    power_w: float = Field(gt=0)
    bandwidth_efficiency: float = Field(gt=0, le=1)
    compute_efficiency: float = Field(gt=0, le=1)
    kernel_overhead_us: float = Field(ge=0)
    efficiency_source: str
    aliases: list[str] = Field(default_factory=list)

    @property
    def bytes_per_s(self) -> float:
        """Memory bandwidth that a pass reaches, bytes per second."""
        return self.bandwidth_gb_s * 1e9 * self.bandwidth_efficiency

    @property
    def flop_per_s(self) -> float:
        """Rate of fp16 matrix products that a pass reaches, flops per second."""
        return self.fp16_tflops * 1e12 * self.compute_efficiency

    @property
    def kernel_overhead_s(self) -> float:
        return self.kernel_overhead_us * 1e-6


class Runtime(Entry):
    """Launch overheads of a runtime, in addition to the roofline. A comment in `hardware.yaml` explains the three kinds.

    Attributes:
        interval_passes: Passes over the codes' values that the Inter-Head's interval takes at every position with logits.
    """

    kind: Literal["host", "kernels", "serial"]
    layer_us: float = Field(default=0.0, ge=0)
    step_us: float = Field(default=0.0, ge=0)
    kernel_us: float = Field(default=0.0, ge=0)
    kernels_per_layer: int = Field(default=0, ge=0)
    kernels_per_step: int = Field(default=0, ge=0)
    interval_passes: int = Field(default=0, ge=0)


class NetworkPreset(Entry):
    """A preset of an access network.

    Attributes:
        jitter_ms: Standard deviation of the one-way delay.
        gaps: Name of a fit of scheduling gaps (`simulator.traces.gaps`), which make the rates vary about down_mbps and up_mbps.
        generated: Kind of generated trace (`simulator.traces.generate`) that gives the link's rates and steps of its round trip.
        radio: Name in the table of radios; None for none.
    """

    title: str
    down_mbps: float = Field(gt=0)
    up_mbps: float = Field(gt=0)
    rtt_ms: float = Field(ge=0)
    jitter_ms: float = Field(ge=0)
    jitter_distribution: str = "normal"
    loss_pct: float = Field(default=0.0, ge=0, lt=100)
    loss_burst_packets: float | None = Field(default=None, ge=1)
    gaps: str | None = None
    generated: str | None = None
    radio: str | None = None
    aliases: list[str] = Field(default_factory=list)


class RadioTimers(Settings):
    """Timers of one operator that differ from those of the radio. share: its share of devices; equal shares if none is given."""

    share: float | None = Field(default=None, gt=0, le=1)
    inactivity_s: float | None = Field(default=None, gt=0, le=1e6)
    drx_after_ms: float | None = Field(default=None, gt=0, le=1e6)
    drx_cycle_ms: float | None = Field(default=None, gt=0, le=1e6)


class RadioPreset(Entry):
    """Timers, cycles and powers of a radio: see `simulator.network.radio.RadioFigures`. Powers are milliwatts above the idle device.

    Attributes:
        sr_period_ms: Period of uplink scheduling requests; the round trips of all presets of the radio include their wait.
        sr_grant_ms: Time from a scheduling request until its grant can be used; the round trips include it, too.
        handover_km: Distance travelled between two handovers; None for a radio without handovers.
        handover_gap_ms: Mean time without transmission in a handover.
        operators: Timers chosen by operators.
    """

    promotion_ms: float = Field(default=0.0, ge=0)
    fach_promotion_ms: float = Field(default=0.0, ge=0)
    inactivity_s: float = Field(gt=0)
    drx_after_ms: float | None = Field(default=None, gt=0)
    drx_cycle_ms: float = Field(default=0.0, ge=0)
    paging_cycle_ms: float = Field(default=0.0, ge=0)
    grant_bytes: float | None = Field(default=None, gt=0)
    grant_ms: float = Field(default=0.0, ge=0)
    sr_period_ms: float | None = Field(default=None, gt=0)
    sr_grant_ms: float = Field(default=0.0, ge=0)
    handover_km: float | None = Field(default=None, gt=0)
    handover_gap_ms: float = Field(default=0.0, ge=0)
    operators: list[RadioTimers] = Field(default_factory=list)
    promotion_mw: float = Field(default=0.0, ge=0)
    active_mw: float = Field(ge=0)
    drx_mw: float = Field(ge=0)
    up_nj_per_bit: float = Field(ge=0)
    down_nj_per_bit: float = Field(ge=0)


class ModelShape(Entry):
    """The shape of one decoder, and the operation counts of work other than its passes.

    Attributes:
        title: Name in tables.
        n_layer: Layers.
        n_head: Attention heads.
        kv_heads: Heads with their own keys and values, shared by the other heads; None: all.
        dim: D, width of the residual stream.
        ffn_hidden: Width of the feed-forward part.
        vocab_size: V, image codes; decides the width of messages.
        caption_slots: Caption positions, before those of the image.
        caption_dim: Values of 2 bytes per caption row in a message: the width of the features, or 1 for token ids.
        image_tokens: T, tokens of an image.
        image_pixels: Pixels of the whole image.
        interhead: The head has two V x D matrices (centre and radius) instead of one.
        head_rows: Rows of the head that a pass reads, if not V: of a vocabulary of text and images, masked afterwards; or V plus D for a
            hidden layer before the output matrix.
        ffn_matrices: Matrices D x ffn_hidden of a layer's feed-forward part: 3 for SwiGLU, 2 for a plain one.
        modulation: Vectors of width D that a layer projects from its condition (6 for an adaptive layer norm).
        fused: Whether it is EAGLE's drafter: a matrix D x 2D with a bias fuses a token's embedding and a feature before the only layer,
            which has one norm; there is no final norm.
        caption_parameters: Weights that embed the caption, if they are not LlamaGen's projection and null caption.
        text_encoder: Arguments of `text_encoder_op_count`; empty if captions are looked up in the decoder's embedding.
        image_decoder: Arguments of `vq_decoder_op_count`.
        op_counts: Operation counts of other work, by kind of `Compute`.
        aliases: Other names.
    """

    title: str
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    dim: int = Field(ge=1)
    ffn_hidden: int = Field(ge=1)
    vocab_size: int = Field(ge=2)
    caption_slots: int = Field(ge=1)
    caption_dim: int = Field(ge=1)
    image_tokens: int = Field(ge=1)
    image_pixels: int = Field(ge=1)
    interhead: bool = False
    head_rows: int | None = Field(default=None, ge=1)
    ffn_matrices: int = Field(default=3, ge=1)
    modulation: int = Field(default=0, ge=0)
    fused: bool = False
    caption_parameters: int | None = Field(default=None, ge=0)
    text_encoder: dict[str, int] = Field(default_factory=dict)
    image_decoder: dict[str, Any] = Field(default_factory=dict)
    op_counts: dict[str, OpCount] = Field(default_factory=dict)
    aliases: list[str] = Field(default_factory=list)

    @property
    def by_scales(self) -> bool:
        """Whether a pass predicts a whole token map, as in VAR: only its models have two matrices in the feed-forward part."""
        return self.ffn_matrices == 2

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: q, k, v and output matrices, feed-forward part, modulation, two norms. Of a fused drafter: the fusing
        matrix, its bias and one norm as well."""
        squares = 2 + self.modulation + 2 * self.fused
        shared = 2 * self.dim * self.kv_width
        return squares * self.dim**2 + shared + self.ffn_matrices * self.dim * self.ffn_hidden + 2 * self.dim

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values, of one position in one layer."""
        return self.dim * (self.kv_heads or self.n_head) // self.n_head

    @property
    def modulation_parameters(self) -> int:
        """Weights of all layers that a pass applies to the condition of a row instead of its positions."""
        return self.n_layer * self.modulation * self.dim**2

    @property
    def head_parameters(self) -> int:
        radius = self.vocab_size if self.interhead else 0
        return ((self.head_rows or self.vocab_size) + radius) * self.dim

    @property
    def pass_parameters(self) -> int:
        """Weights that one pass reads at any batch size: layers, final norm, head. (The rows of the embedding are counted per token.)"""
        norm = 0 if self.fused else self.dim
        return self.n_layer * self.layer_parameters + norm + self.head_parameters

    @property
    def parameters(self) -> int:
        """All weights: those of a pass, the embedding, the caption projection and the null caption."""
        caption = self.caption_parameters
        if caption is None:
            caption = self.caption_dim * self.dim + self.dim**2 + self.caption_slots * self.caption_dim
        return self.pass_parameters + self.vocab_size * self.dim + caption

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of the fp16 keys and values of one position of one row, over all layers."""
        return 2 * self.n_layer * self.kv_width * FP16_BYTES


def hardware(name: str) -> Hardware:
    """Return an accelerator by name or alias. Raises ComputeError if there is none."""
    return _pick(_hardware(), name, "hardware", ComputeError)


def runtime(name: str) -> Runtime:
    """Return a runtime by name. Raises ComputeError if there is none."""
    return _pick(_runtimes(), name, "runtime", ComputeError)


def model(name: str) -> ModelShape:
    """Return a model by name or alias. Raises ComputeError if there is none."""
    return _pick(_models(), name, "model", ComputeError)


def network(name: str) -> NetworkPreset:
    """Return a network preset by name or alias. Raises ScenarioError if there is none."""
    return _pick(_networks(), name, "network preset", ScenarioError)


def radio(name: str) -> RadioPreset:
    """Return a radio by name. Raises ScenarioError if there is none."""
    return _pick(_radios(), name, "radio", ScenarioError)


def canonical(table: str, name: str) -> str:
    """Return the name that an alias stands for; unknown names are returned unchanged. table: "hardware", "models" or "networks"."""
    tables: dict[str, Callable[[], Mapping[str, Entry]]] = {
        "hardware": _hardware,
        "models": _models,
        "networks": _networks,
    }
    known = tables[table]()
    return name if name in known else _aliases(known).get(name, name)


def drafter_of(cloud: ModelShape, ffn_hidden: int | None = None, all_rows: bool = True) -> ModelShape:
    """Return the shape of EAGLE's feature-level drafter for a model: the fusing matrix, one layer of the model's widths, an output matrix.

    Args:
        cloud: The model that it drafts for.
        ffn_hidden: Width of the drafter's feed-forward part; None: that of the model.
        all_rows: Whether it reads all rows of the output matrix that the model reads; if not, only those of image codes.
    """
    own = {"n_layer": 1, "interhead": False, "fused": True, "ffn_hidden": ffn_hidden or cloud.ffn_hidden}
    # It reads the cloud's features of the caption and, of a prompt of text tokens, the tokens' embeddings.
    of_tokens = cloud.caption_parameters is not None and cloud.caption_slots > 1
    captions = {"caption_parameters": cloud.caption_parameters if of_tokens else 0}
    rows = {} if all_rows else {"head_rows": None}
    return cloud.model_copy(update={**own, **captions, **rows, "title": f"a drafter for {cloud.title}"})


def one_layer(name: str) -> str:
    """Return the name of a model's device form."""
    return name if name.endswith(ONE_LAYER) else name + ONE_LAYER


def names(table: str) -> tuple[str, ...]:
    """Return the names in "hardware", "runtimes", "models", "networks" or "radios", in the order of the file, without aliases."""
    tables: dict[str, Mapping[str, Entry]] = {
        "hardware": _hardware(),
        "runtimes": _runtimes(),
        "models": _models(),
        "networks": _networks(),
        "radios": _radios(),
    }
    return tuple(tables[table])


def _pick(table: Mapping[str, EntryT], name: str, what: str, error: type[CiarSimError]) -> EntryT:
    found = table.get(name)
    if found is None and (found := table.get(_aliases(table).get(name, ""))) is None:
        raise error(f"{what} {name} is not known{yamlfile.did_you_mean(name, table)}")
    return found


def _aliases(table: Mapping[str, Any]) -> dict[str, str]:
    return {alias: name for name, entry in table.items() for alias in getattr(entry, "aliases", ())}


def _build(kind: type[EntryT], rows: Mapping[str, Any], path: Path) -> dict[str, EntryT]:
    built: dict[str, EntryT] = {}
    for name, row in rows.items():
        try:
            built[name] = kind.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise ComputeError(f"{path}: {name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return built


@cache
def _file(name: str) -> Any:
    return yamlfile.read(FOLDER / name, shipped=True).data


@cache
def _hardware() -> dict[str, Hardware]:
    rows = {name: _with_efficiencies(row) for name, row in _file("hardware.yaml")["hardware"].items()}
    return _build(Hardware, rows, FOLDER / "hardware.yaml")


def hardware_of(row: Mapping[str, Any]) -> Hardware:
    """Build an accelerator that is not in the table; the class gives efficiencies and kernel overhead if the row omits them."""
    return Hardware.model_validate(_with_efficiencies(row))


def measured_hardware(
    title: str, flop_per_s: float, bytes_per_s: float, kernel_s: float, source: str, efficiency_source: str
) -> Hardware:
    """Build an accelerator from measured figures: efficiencies are 1, memory and power are NaN.

    Args:
        title: Name in tables.
        flop_per_s: Rate of matrix products reached.
        bytes_per_s: Bandwidth reached, counting 2 bytes per value as rooflines do; for values of 4 bytes, half the bytes copied.
        kernel_s: Seconds to launch a kernel.
        source: Where the figures come from.
        efficiency_source: Why the efficiencies are 1.
    """
    return Hardware.model_construct(
        title=title,
        kind="measured",
        fp16_tflops=flop_per_s / 1e12,
        bandwidth_gb_s=bytes_per_s / 1e9,
        memory_gb=math.nan,
        power_w=math.nan,
        bandwidth_efficiency=1.0,
        compute_efficiency=1.0,
        kernel_overhead_us=kernel_s * 1e6,
        efficiency_source=efficiency_source,
        source=source,
        evidence="measured",
        aliases=[],
    )


def _with_efficiencies(row: Mapping[str, Any]) -> dict[str, Any]:
    group = _file("hardware.yaml")["classes"][row["class"]]
    own = {key: group[key] for key in ("bandwidth_efficiency", "compute_efficiency", "kernel_overhead_us")}
    return {**own, "efficiency_source": f"{group['source']} ({group['evidence']})", **row}


@cache
def _runtimes() -> dict[str, Runtime]:
    return _build(Runtime, _file("hardware.yaml")["runtimes"], FOLDER / "hardware.yaml")


@cache
def _models() -> dict[str, ModelShape]:
    rows: dict[str, Any] = {}
    written = _file("models.yaml")["models"]
    for name, row in written.items():
        like = written[row["like"]] if "like" in row else {}
        rows[name] = _with_op_counts({**like, **row})
        if rows[name].get("ffn_matrices", 3) == 3:  # CIAR's device decodes token by token, VAR's models do not
            rows[one_layer(name)] = _device_form(rows[name])
    return _build(ModelShape, rows, FOLDER / "models.yaml")


def _with_op_counts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the operation counts of caption encoder, phi, image decoder and interval samples to a row."""
    shape = {key: value for key, value in row.items() if key != "like"}
    slots, encoder = row["caption_slots"], row.get("text_encoder")
    caption = text_encoder_op_count(slots, **encoder) if encoder else OpCount(flops=0, parameters=0, kernels=1)
    shape["op_counts"] = {
        "caption_encoder": caption,
        "phi": phi_op_count(row["dim"], row["vocab_size"], PHI_BOTTLENECK),
        "image_decoder": vq_decoder_op_count(**row["image_decoder"]),
        "interval_samples": interval_samples_op_count(row["vocab_size"]),
    }
    return shape


def _device_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return CIAR's device model for a row: one layer, an Inter-Head over the image codes, everything else the same."""
    kept = {key: value for key, value in row.items() if key not in ("aliases", "head_rows")}
    return {
        **kept,
        "title": f"{row['title']}, with one layer and an Inter-Head",
        "n_layer": 1,
        "interhead": True,
        "evidence": "derived",
        "source": "CIAR's device model: the same architecture with one layer and a head of 2V outputs",
    }


@cache
def _networks() -> dict[str, NetworkPreset]:
    return _build(NetworkPreset, _file("networks.yaml")["networks"], FOLDER / "networks.yaml")


@cache
def _radios() -> dict[str, RadioPreset]:
    return _build(RadioPreset, _file("networks.yaml")["radios"], FOLDER / "networks.yaml")
