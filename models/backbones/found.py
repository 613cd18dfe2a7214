"""What every backbone's files tell of a pair alike: its manifest, and the sizes of its image decoder. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.protocol.pairs import FORMAT, PairManifest, PairSpec, TransformerConfig, list_parts

DECODER_SIZES = ("ch", "z_channels", "codebook_dim", "num_res_blocks")  # by the same name in `models.vq.VQConfig`


def manifest_of(
    spec: PairSpec,
    cloud: TransformerConfig,
    image_size: int,
    files: Mapping[str, tuple[Path, ...]],
    device: Mapping[str, Any],
    guidance: float | None = None,
) -> PairManifest:
    """The manifest of a pair of downloaded files.

    Args:
        spec: The pair as it was named.
        cloud: Shape of the cloud model.
        image_size: Pixels per side.
        files: The files of each part.
        device: What the manifest says of the device: `device`, `phi_bottleneck`, `bounds`; empty where there is none.
        guidance: Of its models; None: as published for the backbone.
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
    """The arguments of `simulator.pricing.op_counts.vq_decoder_op_count`, from those of `models.vq.VQConfig`."""
    return {"latent_side": grid, "ch_mult": vq["decoder_ch_mult"], **{name: vq[name] for name in DECODER_SIZES}}
