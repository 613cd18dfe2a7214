"""Hardware and models outside the catalogue, given by their figures, and the memory that a device needs."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from simulator.core.part import Part
from simulator.pricing import catalogue
from simulator.pricing.catalogue import FP16_BYTES, PHI_BOTTLENECK, Hardware, ModelShape
from simulator.pricing.op_counts import interval_samples_op_count, phi_op_count, vq_decoder_op_count
from simulator.pricing.roofline import RooflineCosts

FFN_MULTIPLE = 256  # LlamaGen rounds its feed-forward width up to a multiple of this
HEAD_WIDTH = 64
PIXELS_PER_TOKEN = 256  # VQ-16 gives 16 x 16 pixels for each token
Role = Literal["device", "cloud", "drafter", "cloud_drafter"]
DECODER_CHANNELS = 128  # channels of VQ-16's largest maps, which have the resolution of the image


def _without_default(schema: dict[str, Any]) -> None:
    """Omit the default from a JSON schema, because it differs between device and cloud."""
    schema.pop("default", None)


class ReachedFigures(Part):
    """Figures that one model's passes reach, in place of the accelerator's; those that are omitted are the accelerator's.

    A small model whose weights stay in the processor's caches reaches a higher bandwidth than a large one.

    Attributes:
        fp16_tflops: Rate of matrix products reached, at an efficiency of the accelerator's.
        bandwidth_gb_s: Bandwidth, likewise.
        kernel_overhead_us: Time to launch one kernel.
    """

    fp16_tflops: float | None = Field(default=None, gt=0, le=1e6)
    bandwidth_gb_s: float | None = Field(default=None, gt=0, le=1e6)
    kernel_overhead_us: float | None = Field(default=None, ge=0, le=1e6)

    def figures(self) -> dict[str, float]:
        """Return the figures that are given."""
        return self.model_dump(exclude_none=True)


class OwnHardware(Part):
    """An accelerator given by its figures. The class gives efficiencies and kernel overhead if they are omitted.

    Attributes:
        title: Name in tables.
        kind: `class` in the file: the class whose efficiencies it has; by default phone on the device, datacentre in the cloud.
        fp16_tflops: Peak of dense fp16 matrix products.
        bandwidth_gb_s: Peak memory bandwidth.
        memory_gb: Memory for weights, caches and everything else.
        power_w: Power drawn while computing.
        bandwidth_efficiency: Share of the peak bandwidth that a pass reaches.
        compute_efficiency: Share of the peak rate that a pass reaches.
        kernel_overhead_us: Time to launch one kernel.
        by_role: What the passes of single models reach, by role as in a profile: device, cloud, drafter, and cloud_drafter for a drafter in
            the cloud if it differs. `ciar-sim profile --fit` writes them; they hold for models of the measured sizes.
    """

    title: str = Field(default="own hardware", min_length=1, max_length=60)
    kind: Literal["datacentre", "desktop", "apple", "jetson", "phone"] = Field(
        default="phone", alias="class", json_schema_extra=_without_default
    )
    fp16_tflops: float = Field(gt=0, le=1e6)
    bandwidth_gb_s: float = Field(gt=0, le=1e6)
    memory_gb: float = Field(gt=0, le=1e6)
    power_w: float = Field(gt=0, le=1e6)
    bandwidth_efficiency: float | None = Field(default=None, gt=0, le=1)
    compute_efficiency: float | None = Field(default=None, gt=0, le=1)
    kernel_overhead_us: float | None = Field(default=None, ge=0, le=1e6)

    by_role: dict[Role, ReachedFigures] = Field(default_factory=dict)

    def entry(self, role: Role) -> Hardware:
        """Return it as a row of the catalogue, with the figures that a model of this role reaches."""
        figures = self.model_dump(by_alias=True, exclude_none=True, exclude={"by_role"})
        reached = self.by_role.get(role)
        if reached is None and role == "cloud_drafter":
            reached = self.by_role.get("drafter")
        own = reached.figures() if reached else {}
        return catalogue.hardware_of(
            {**figures, **own, "evidence": "assumed", "source": "figures given in the scenario"}
        )

    def __str__(self) -> str:
        """Return all figures with all their digits: `CostTable` uses this text as a key."""
        units = (("fp16_tflops", "TFLOP/s"), ("bandwidth_gb_s", "GB/s"), ("memory_gb", "GB"), ("power_w", "W"))
        figures = [f"{getattr(self, name):.15g} {unit}" for name, unit in units]
        more = [
            f"{name} {value:.15g}"
            for name in ("bandwidth_efficiency", "compute_efficiency", "kernel_overhead_us")
            if (value := getattr(self, name)) is not None
        ]
        roles = [
            f"{role}: {', '.join(f'{name} {value:.15g}' for name, value in reached.figures().items())}"
            for role, reached in sorted(self.by_role.items())
        ]
        return f"{self.title} ({'; '.join([', '.join([self.kind, *figures, *more]), *roles])})"


class OwnModel(Part):
    """A decoder of LlamaGen's architecture, given by its shape; the pair's passes are priced at it.

    Attributes:
        title: Name in tables.
        layers: Number of layers.
        width: Width of the residual stream.
        ffn: Width of the feed-forward part; by default 8/3 of width, rounded up to a multiple of 256.
        vocabulary: Number of different image tokens.
        caption_slots: Positions of the caption.
        caption_width: Width of its features.
        image_tokens: Tokens of an image; equal to the pair's.
        image_pixels: Pixels of an image; by default 256 per token, as from LlamaGen's image decoder.
    """

    title: str = Field(default="own model", min_length=1, max_length=60)
    layers: int = Field(ge=1, le=10_000)
    width: int = Field(ge=1, le=1_000_000)
    ffn: int | None = Field(default=None, ge=1, le=10_000_000)
    vocabulary: int = Field(default=16384, ge=2, le=10_000_000)
    caption_slots: int = Field(default=120, ge=1, le=100_000)
    caption_width: int = Field(default=2048, ge=1, le=1_000_000)
    image_tokens: int = Field(default=256, ge=1, le=1_000_000)
    image_pixels: int | None = Field(default=None, ge=1, le=10**9)

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward part."""
        return self.ffn or FFN_MULTIPLE * math.ceil(8 * self.width / 3 / FFN_MULTIPLE)

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.image_pixels or PIXELS_PER_TOKEN * self.image_tokens

    def shape(self, interhead: bool) -> ModelShape:
        """Return it as a row of the catalogue. interhead: whether it is a device model, whose head gives centre and radius."""
        published = catalogue.model("llamagen-xl")
        return ModelShape(
            title=self.title,
            n_layer=self.layers,
            n_head=max(1, self.width // HEAD_WIDTH),  # affects no time
            dim=self.width,
            ffn_hidden=self.ffn_width,
            vocab_size=self.vocabulary,
            caption_slots=self.caption_slots,
            caption_dim=self.caption_width,
            image_tokens=self.image_tokens,
            image_pixels=self.pixels,
            interhead=interhead,
            evidence="assumed",
            source="shape given in the scenario; caption encoder, image decoder and phi as LlamaGen's",
            op_counts={
                "caption_encoder": published.op_counts["caption_encoder"],
                "phi": phi_op_count(self.width, self.vocabulary, PHI_BOTTLENECK),
                "image_decoder": vq_decoder_op_count(math.isqrt(self.image_tokens)),
                "interval_samples": interval_samples_op_count(self.vocabulary),
            },
        )

    def __str__(self) -> str:
        shape = f"{self.layers} layers, width {self.width}, FFN {self.ffn_width}, {self.vocabulary} codes"
        rest = f"{self.caption_slots} slots of {self.caption_width}, {self.image_tokens} tokens, {self.pixels} pixels"
        return f"{self.title} ({shape}, {rest})"


def shape_of(model: str | OwnModel, interhead: bool = False) -> ModelShape:
    """Return the shape of a model of the catalogue or of the scenario's own. Raises ComputeError if the catalogue has no such model."""
    return catalogue.model(model) if isinstance(model, str) else model.shape(interhead)


def device_memory(
    costs: RooflineCosts, rows: int, decodes: bool, encodes: bool, drafter: ModelShape | None = None
) -> Mapping[str, float]:
    """Return the bytes that a device needs for one image: weights, KV cache, image decoder, caption encoder.

    Args:
        costs: Model and hardware of the device.
        rows: Rows of a pass: 2 with guidance.
        decodes: Whether the device's model runs; if not, the device only decodes the image.
        encodes: Whether the device encodes the caption.
        drafter: Shape of the drafter that runs in place of the device's model, without phi; or None.
    """
    shape = costs.shape
    model = drafter or shape
    # The decoder's weights, and the input and output maps of a convolution.
    decoder = costs.op_counts["image_decoder"].parameters + 2 * DECODER_CHANNELS * shape.image_pixels
    encoder = costs.op_counts["caption_encoder"]
    positions = rows * (model.caption_slots + model.image_tokens)
    phi = costs.op_counts["phi"].parameters if drafter is None and "phi" in costs.op_counts else 0
    return {
        "weights": float(FP16_BYTES * (model.parameters + phi) * decodes),
        "kv_cache": float(positions * model.kv_bytes_per_position * decodes),
        "image_decoder": float(FP16_BYTES * decoder),
        "caption_encoder": float(FP16_BYTES * (encoder.parameters + encoder.unread) * encodes),
    }
