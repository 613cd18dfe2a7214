"""Builds the costs of a scenario (`costs.Costs`): rooflines from catalogue figures, or tables of measured times.

Roofline of one forward pass (a batch as sums over its rows, `costs.Work`), fp16 weights and cache:

    bytes   = 2 * (weights of layers, final norm and head)   read once, whatever the batch
            + 2 * tokens * D                                 rows of the embedding
            + kv_tokens * (2 * L * K * 2)                    keys and values; K: their width, D unless heads share them
            + 2 * logits * V * interval_passes               the Inter-Head's interval, on a processor (runtime serial) only
    flops   = 2 * tokens * (weights of the layers)           2 * rows for the projections of an adaptive norm, which see only the condition
            + 2 * logits * (weights of the head)             positions whose logits are computed
            + 4 * L * D * attended                           scores and weighted sums, per query-key pair
    roof    = max(bytes / effective bandwidth, flops / effective peak)
    seconds = max(L * layer_us + step_us, roof)              runtime eager: launches overlap with the work
            = (L * kernels_per_layer + kernels_per_step) * kernel_overhead + roof            runtime cuda-graphs
            = the same, with the sum of the two terms of roof instead of their maximum       runtime serial

Not counted, because small: the caption projection (0.5 % of LlamaGen-XL's weights, first pass only) and writing the logits.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from safetensors import SafetensorError, safe_open

from simulator.core.errors import ComputeError, error_context
from simulator.core.files import open_file
from simulator.core.settings import Settings
from simulator.pricing import catalogue
from simulator.pricing.catalogue import ModelShape
from simulator.pricing.costs import Pricing
from simulator.pricing.op_counts import (
    OpCount,
    interval_samples_op_count,
    phi_op_count,
    text_encoder_op_count,
    vq_decoder_op_count,
)
from simulator.pricing.own import OwnHardware, OwnModel, Role, shape_of
from simulator.pricing.profile import MeasuredCosts, Profile
from simulator.pricing.roofline import RooflineCosts
from simulator.protocol import pairs
from simulator.protocol.llama import LlamaConfig
from simulator.protocol.messages import Widths
from simulator.protocol.ops import COMPUTE_KINDS
from simulator.protocol.pairs import (
    MANIFEST,
    PairManifest,
    PairRef,
    PairSpec,
    find_pair,
    pair_folder,
    pair_manifest,
)
from simulator.protocol.var import FFN_MATRICES, VarConfig


class PairShapes(Settings):
    """Shapes of a model pair for pricing.

    Attributes:
        cloud: Shape of the cloud model, with the operation counts of the pair's caption encoder, phi, image decoder and interval samples.
        device: Shape of the device model, with the same operation counts.
        drafter_ffn: Width of the feed-forward part of the pair's drafter; None: that of the cloud model.
    """

    cloud: ModelShape
    device: ModelShape
    drafter_ffn: int | None = None


def pair_shapes(pair: PairRef) -> PairShapes:
    """Return the shapes of a pair; a statistical pair has no operation counts.

    Raises:
        ComputeError: The pair's tokenizer file does not contain its shape.
        WeightsError: There is no such pair, or its manifest is damaged.
    """
    if isinstance(pair, PairSpec):
        found = find_pair(pair)
        encoder = text_encoder_op_count(**found.encoder) if found.encoder else None
        shapes = _shapes(found.manifest, vq_decoder_op_count(**found.decoder), encoder)
        of_kv = found.facts.get("kv_heads", {})
        sides = {side: getattr(shapes, side).model_copy(update={"kv_heads": heads}) for side, heads in of_kv.items()}
        return shapes.model_copy(update={**sides, "drafter_ffn": found.facts.get("drafter_ffn")})
    folder, manifest = pair_folder(pair), pair_manifest(pair)
    if manifest.statistics is not None:
        return _both(manifest, {})
    path = folder / "tokenizer.safetensors"
    try:
        open_file(path).close()  # safetensors reports every refusal of the system as a missing file
        with safe_open(path, framework="np") as file:
            vq = json.loads(file.metadata()["config"])
        decoder = vq_decoder_op_count(
            manifest.grid,
            ch=vq["ch"],
            ch_mult=vq["decoder_ch_mult"],
            z_channels=vq["z_channels"],
            codebook_dim=vq["codebook_dim"],
            num_res_blocks=vq["num_res_blocks"],
            patch=vq["patch"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ComputeError(
            f"{path}: does not contain the tokenizer's shape ({type(error).__name__}: {error})"
        ) from None
    return _shapes(manifest, decoder, None)


def _shapes(manifest: PairManifest, decoder: OpCount, encoder: OpCount | None) -> PairShapes:
    """Return the shapes of a pair with operation counts. encoder: None if captions are looked up in an embedding."""
    rows = manifest.caption_slots * manifest.caption_dim
    op_counts = {
        "caption_encoder": encoder or OpCount(flops=0, parameters=rows, activation_values=rows, kernels=2),
        "phi": phi_op_count(manifest.cloud.dim, manifest.codebook_size, manifest.phi_bottleneck),
        "image_decoder": decoder,
        "interval_samples": interval_samples_op_count(manifest.codebook_size),
    }

    return _both(manifest, op_counts)


def _both(manifest: PairManifest, op_counts: dict[str, OpCount]) -> PairShapes:
    """Return the shapes of both models of a pair."""

    def shape(role: str, own: pairs.TransformerConfig, interhead: bool) -> ModelShape:
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
            head_rows=own.vocab_size + own.dim if isinstance(own, LlamaConfig) and own.head_layer else None,
            ffn_matrices=FFN_MATRICES if isinstance(own, VarConfig) else 3,
            modulation=own.projected if isinstance(own, VarConfig) else 0,
            caption_parameters=own.text_vocab * own.dim if isinstance(own, LlamaConfig) else None,
            op_counts=op_counts,
            source=f"{MANIFEST} of the pair",
            evidence="datasheet",
        )

    # Without a device model, the device runs at most a drafter, which has its own shape.
    device = shape("device", manifest.device or replace(manifest.cloud, n_layer=1), bool(manifest.bounds))
    return PairShapes(cloud=shape("cloud", manifest.cloud, False), device=device)


class ComputeSide(Protocol):
    """One side of a scenario's `compute`."""

    @property
    def model(self) -> str | OwnModel: ...
    @property
    def hardware(self) -> str | OwnHardware: ...
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
    """Build the costs of the device and of the cloud, and the shape at which messages and captions are priced.

    Args:
        choice: Models and hardware of both sides.
        pair: Shapes of the pair.
        profile: Returns the measured times of the pair on this machine. It is called at most once, and only if a side runs on `local`
            and names no profile.

    Returns:
        Device costs, cloud costs, and the pricing. The costs have a `provenance`: origin, model, hardware, figures and sources.

    Raises:
        ComputeError: A name is unknown, the numbers of image tokens differ, a stored profile cannot be read or is of another model.
    """
    measured: dict[str | None, Profile] = {}

    def build(role: Literal["device", "cloud"], side: ComputeSide) -> RooflineCosts | MeasuredCosts:
        if side.hardware == "local":
            if side.profile not in measured:
                measured[side.profile] = Profile.read(Path(side.profile)) if side.profile else profile()
            _check_profile(measured[side.profile], role, side.model)
        own = pair.device if role == "device" else pair.cloud
        shape = own if side.model == "pair" else shape_of(side.model, interhead=role == "device")
        if shape.image_tokens != own.image_tokens:
            raise ComputeError(
                f"compute.{role}.model {side.model} makes {shape.image_tokens} image tokens, the pair {own.image_tokens}; "
                "they must be equal; model: pair prices the pair at its own shape"
            )
        if side.hardware == "local":
            return _measured(measured[side.profile], role)
        return _roofline(side.model, shape, side.hardware, side.runtime or "eager", role)

    with error_context("compute", "device"):
        device = build("device", choice.device)
    with error_context("compute", "cloud"):
        cloud = build("cloud", choice.cloud)
    priced = pair.cloud if choice.cloud.model == "pair" else shape_of(choice.cloud.model)
    widths = Widths(priced.dim, priced.vocab_size, priced.caption_dim, priced.image_pixels, priced.caption_slots)
    ffn = pair.drafter_ffn if choice.cloud.model == "pair" else None

    def drafter(side: ComputeSide, in_cloud: bool) -> RooflineCosts | MeasuredCosts | None:
        if side.hardware == "local":
            return _measured_drafter(measured[side.profile], choice.cloud.model, in_cloud)
        shape = catalogue.drafter_of(priced, ffn, all_rows=in_cloud)
        role: Role = "cloud_drafter" if in_cloud else "drafter"
        return _roofline(f"drafter of {choice.cloud.model}", shape, side.hardware, side.runtime or "eager", role)

    in_cloud, on_device = drafter(choice.cloud, True), drafter(choice.device, False)
    return device, cloud, Pricing(priced.caption_slots, widths, in_cloud, on_device)


def _check_profile(profile: Profile, role: str, model: str | OwnModel) -> None:
    """Raise ComputeError if a profile was measured on another model.

    In the profile of a catalogue model the device role is its one-layer form, except for models that predict scale by scale.
    """
    named = not profile.weights and profile.model in catalogue.names("models")
    one = role == "device" and not (named and catalogue.model(profile.model).by_scales)
    forms = (profile.model, *([catalogue.one_layer(profile.model)] if one else []))
    if named if model == "pair" else not named or model not in forms:
        wanted = "ciar-sim profile --pair" if model == "pair" else f"ciar-sim profile --model {model} --random-weights"
        raise ComputeError(f"a profile of {profile.model} does not cover {model}; measure one with {wanted}")


def _measured_drafter(profile: Profile, model: str | OwnModel, in_cloud: bool) -> MeasuredCosts | None:
    """Return the measured costs of a cloud model's drafter; None if the profile has none, or is of another model."""
    if model != "pair" and (
        isinstance(model, OwnModel) or catalogue.one_layer(profile.model) != catalogue.one_layer(model)
    ):
        return None
    roles = ("cloud_drafter", "drafter") if in_cloud else ("drafter",)
    role = next((name for name in roles if name in profile.passes), None)
    return None if role is None else _measured(profile, role)


def _measured(profile: Profile, role: str) -> MeasuredCosts:
    costs = MeasuredCosts(profile, role)
    keys = ("model", "weights", "hardware", "device", "system", "threads", "torch", "dtype")
    costs.provenance = {"origin": "measured", "extrapolated": False, **{key: getattr(profile, key) for key in keys}}
    return costs


def _roofline(
    model: str | OwnModel, shape: ModelShape, hardware: str | OwnHardware, runtime: str, role: Role
) -> RooflineCosts:
    machine = catalogue.hardware(hardware) if isinstance(hardware, str) else hardware.entry(role)
    start = catalogue.runtime(runtime)
    op_counts = {kind: shape.op_counts[kind] for kind in COMPUTE_KINDS if kind in shape.op_counts}
    costs = RooflineCosts(shape, op_counts, machine, start)
    figures = machine.model_dump(exclude={"title", "aliases", "source", "evidence", "efficiency_source", "kind"})
    started = start.model_dump(exclude={"source", "evidence", "kind"}, exclude_defaults=True)
    costs.provenance = {
        "origin": "roofline",
        "model": str(model),
        "hardware": catalogue.canonical("hardware", str(hardware)),
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
