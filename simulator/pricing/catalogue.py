"""The figures a scenario names: accelerators, runtimes, model sizes, network presets and radios, each with its source.

The tables are `simulator/pricing/catalogue/*.yaml`, read once. An unknown name is refused with the nearest one suggested.
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
ONE_LAYER = "-1layer"  # ends the name of a model's device form
PHI_BOTTLENECK = 256  # of CIAR's feature projection (assumption A8)
Evidence = Literal["measured", "datasheet", "derived", "assumed"]
EntryT = TypeVar("EntryT", bound="Entry")


class Entry(Settings):
    """Common fields of every row: the source of its figures, and the evidence for the weakest of them."""

    source: str = Field(min_length=3)
    evidence: Evidence


class Hardware(Entry):
    """An accelerator. Peaks are those of the data sheet; efficiencies are the shares of them that a program reaches."""

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
        """Memory bandwidth that a pass reaches."""
        return self.bandwidth_gb_s * 1e9 * self.bandwidth_efficiency

    @property
    def flop_per_s(self) -> float:
        """Rate of fp16 matrix products that a pass reaches."""
        return self.fp16_tflops * 1e12 * self.compute_efficiency

    @property
    def kernel_overhead_s(self) -> float:
        return self.kernel_overhead_us * 1e-6


class Runtime(Entry):
    """Launch overheads, in addition to the roofline. See the comment in `hardware.yaml` for the three kinds."""

    kind: Literal["host", "kernels", "serial"]
    layer_us: float = Field(default=0.0, ge=0)
    step_us: float = Field(default=0.0, ge=0)
    kernel_us: float = Field(default=0.0, ge=0)
    kernels_per_layer: int = Field(default=0, ge=0)
    kernels_per_step: int = Field(default=0, ge=0)


class NetworkPreset(Entry):
    """A preset of an access link.

    Attributes:
        jitter_ms: Standard deviation of the one-way delay.
        gaps: A fit of scheduling gaps (`simulator.traces.gaps`) by which rates vary about down_mbps and up_mbps.
        generated: A kind of generated trace (`simulator.traces.generate`) whose rates and steps of the round trip the link follows.
        radio: Of the table of radios, None for none.
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
    """Timers of one operator, where they are not those of the radio. share: of devices; equal shares where none is given."""

    share: float | None = Field(default=None, gt=0, le=1)
    inactivity_s: float | None = Field(default=None, gt=0, le=1e6)
    drx_after_ms: float | None = Field(default=None, gt=0, le=1e6)
    drx_cycle_ms: float | None = Field(default=None, gt=0, le=1e6)


class RadioPreset(Entry):
    """Timers, cycles and powers of a radio: see `simulator.network.radio.RadioFigures`. Powers in milliwatts above the idle device's.

    Attributes:
        sr_period_ms: Distance of scheduling requests of the uplink, which are inside the round trip of every preset of the radio.
        sr_grant_ms: From such a request to its grant, likewise.
        handover_km: Way between two handovers; None where the radio moves nowhere.
        handover_gap_ms: How long nothing passes in one.
        operators: Timers that operators choose.
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
    """Shape of one decoder, and the operation counts of the work other than its passes.

    Attributes:
        title: Name in tables.
        n_layer: Layers.
        n_head: Attention heads.
        kv_heads: Of them, those with keys and values of their own, which the others share; None: all.
        dim: D, width of the residual stream.
        ffn_hidden: Width of the feed-forward part.
        vocab_size: V, image codes; decides the width of messages.
        caption_slots: Positions that stand before the image.
        caption_dim: Values of 2 bytes in a caption row of a message: the width of its features, 1 for token ids.
        image_tokens: T, tokens of an image.
        image_pixels: Pixels of the whole image.
        interhead: The head has two V x D matrices (centre and radius) instead of one.
        head_rows: Rows of the head that a pass reads where they are not V: a text and image vocabulary, masked afterwards, or D more of
            a layer before the output matrix.
        ffn_matrices: Matrices D x ffn_hidden of a layer's feed-forward part: 3 of a SwiGLU, 2 of a plain one.
        modulation: Vectors of width D that a layer projects from its condition (6 of an adaptive layer norm).
        fused: EAGLE's drafter: a matrix D x 2D with a bias fuses a token's embedding and a feature ahead of the one layer, which has one
            norm; none follows.
        caption_parameters: Weights that embed the caption, where it is not LlamaGen's projection and null caption.
        text_encoder: Arguments of `text_encoder_op_count`; empty where captions are looked up in the decoder's embedding.
        image_decoder: Arguments of `vq_decoder_op_count`.
        op_counts: Work other than passes, by kind.
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
        """Whether a pass predicts a whole token map, as VAR's do: its models alone have two matrices in their feed-forward part."""
        return self.ffn_matrices == 2

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: q, k, v and output matrices, those of the feed-forward part, modulation, two norms; fused: the matrix
        ahead of it, its bias and one norm."""
        squares = 2 + self.modulation + 2 * self.fused
        shared = 2 * self.dim * self.kv_width
        return squares * self.dim**2 + shared + self.ffn_matrices * self.dim * self.ffn_hidden + 2 * self.dim

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values, of one position in one layer."""
        return self.dim * (self.kv_heads or self.n_head) // self.n_head

    @property
    def modulation_parameters(self) -> int:
        """Weights of all layers that a pass applies to the condition of a row, not to its positions."""
        return self.n_layer * self.modulation * self.dim**2

    @property
    def head_parameters(self) -> int:
        radius = self.vocab_size if self.interhead else 0
        return ((self.head_rows or self.vocab_size) + radius) * self.dim

    @property
    def pass_parameters(self) -> int:
        """Weights that one pass reads whatever its batch: layers, final norm, head. (Of the embedding it reads a few rows.)"""
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
        """fp16 keys and values of one position of one row, all layers."""
        return 2 * self.n_layer * self.kv_width * FP16_BYTES


def hardware(name: str) -> Hardware:
    """Raises ComputeError where the catalogue has no such accelerator."""
    return _pick(_hardware(), name, "hardware", ComputeError)


def runtime(name: str) -> Runtime:
    """Raises ComputeError where there is no such runtime."""
    return _pick(_runtimes(), name, "runtime", ComputeError)


def model(name: str) -> ModelShape:
    """Raises ComputeError where the catalogue has no such model."""
    return _pick(_models(), name, "model", ComputeError)


def network(name: str) -> NetworkPreset:
    """Raises ScenarioError where there is no such preset."""
    return _pick(_networks(), name, "network preset", ScenarioError)


def radio(name: str) -> RadioPreset:
    """Raises ScenarioError where there is no such radio."""
    return _pick(_radios(), name, "radio", ScenarioError)


def canonical(table: str, name: str) -> str:
    """The name an alias stands for; a name that is unknown comes back as it is. table: "hardware", "models" or "networks"."""
    tables: dict[str, Callable[[], Mapping[str, Entry]]] = {
        "hardware": _hardware,
        "models": _models,
        "networks": _networks,
    }
    known = tables[table]()
    return name if name in known else _aliases(known).get(name, name)


def drafter_of(cloud: ModelShape, ffn_hidden: int | None = None, all_rows: bool = True) -> ModelShape:
    """The shape of EAGLE's feature-level drafter for a model: one layer of its widths behind the fusing matrix, and its own output matrix.

    Args:
        cloud: The model that it drafts for.
        ffn_hidden: Of the drafter; None: the model's.
        all_rows: Whether it reads all rows of the output matrix that the model does, or those of image codes alone.
    """
    own = {"n_layer": 1, "interhead": False, "fused": True, "ffn_hidden": ffn_hidden or cloud.ffn_hidden}
    rows = {} if all_rows else {"head_rows": None}
    return cloud.model_copy(update={**own, **rows, "title": f"a drafter for {cloud.title}"})


def one_layer(name: str) -> str:
    """The name of a model's device form."""
    return name if name.endswith(ONE_LAYER) else name + ONE_LAYER


def names(table: str) -> tuple[str, ...]:
    """Names of "hardware", "runtimes", "models", "networks" or "radios", in the order of their file, without aliases."""
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
    """A row that is not in the table, with the efficiencies of its class where it gives none."""
    return Hardware.model_validate(_with_efficiencies(row))


def measured_hardware(
    title: str, flop_per_s: float, bytes_per_s: float, kernel_s: float, source: str, efficiency_source: str
) -> Hardware:
    """An entry of what a machine reaches: efficiencies are 1, memory and power are NaN.

    bytes_per_s: at values of 2 bytes, as the catalogue counts them; where those measured have 4, half of what is copied.
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
        rows[one_layer(name)] = _device_form(rows[name])
    return _build(ModelShape, rows, FOLDER / "models.yaml")


def _with_op_counts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with operation counts in place of the shapes of its text encoder and image decoder."""
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
    """CIAR's device model for a row: one layer, an Inter-Head over the image codes, everything else the same."""
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
