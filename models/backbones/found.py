"""Builds a pair's manifest and the sizes of its image decoder, for all backbones alike. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.protocol.pairs import FORMAT, PairManifest, PairSpec, TransformerConfig, list_parts

DECODER_SIZES = ("ch", "z_channels", "codebook_dim", "num_res_blocks")  # have the same names in `models.vq.VQConfig`


def manifest_of(
    spec: PairSpec,
    cloud: TransformerConfig,
    image_size: int,
    files: Mapping[str, tuple[Path, ...]],
    device: Mapping[str, Any],
    guidance: float | None = None,
) -> PairManifest:
    """Return the manifest of a pair of downloaded files.

    Args:
        spec: The pair as specified in the scenario.
        cloud: Shape of the cloud model.
        image_size: Pixels per side.
        files: The files of each part.
        device: The manifest's fields about the device: `device`, `phi_bottleneck`, `bounds`; empty without a device.
        guidance: Guidance scale; None: the one published for the backbone.
    """
    return PairManifest(
        format=FORMAT,
        name=spec.cloud,
        image_size=image_size,
        grid=cloud.grid,
        codebook_size=cloud.vocab_size,
        caption_slots=cloud.caption_slots,
        caption_dim=cloud.caption_dim,
        cloud=cloud,
        files=list_parts(files),
        subject="other",
        guidance=spec.backbone.guidance if guidance is None else guidance,
        backbone=spec.cloud,
        **device,
    )


def decoder_sizes(vq: Mapping[str, Any], grid: int) -> dict[str, Any]:
    """Return the arguments of `simulator.pricing.op_counts.vq_decoder_op_count`, from those of `models.vq.VQConfig`."""
    return {"latent_side": grid, "ch_mult": vq["decoder_ch_mult"], **{name: vq[name] for name in DECODER_SIZES}}
