"""What a pair's cloud model draws: images of held-out captions in one grid, and which of a caption's claims are seen in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models import scenes
from models.images import png_bytes
from models.quality.network import load_scene_network, read_images
from models.quality.reading import agreement, claim_names, claims_of
from models.quality.scorer import WEIGHTS
from simulator.protocol.cache import RecordingSource
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import SessionSpec

COLUMNS = 8
GAP_PIXELS = 2


@dataclass(frozen=True)
class Samples:
    """png: the grid, row by row. claims: a row per claim of a caption: prompt, caption, claim, right. by_kind: their shares by kind."""

    png: bytes
    claims: pd.DataFrame
    by_kind: pd.DataFrame


def draw_samples(
    source: RecordingSource, manifest: PairManifest, prompts: int, seed: int, method: str, guidance: float | None
) -> Samples:
    """`prompts` captions of the scenes of `seed`, decoded by `method` at its defaults, the cloud sampling.

    claims is empty for a pair whose images are no scenes of 128 x 128 pixels.
    """
    captions = list(dict.fromkeys(scenes.captions(seed, prompts)))
    decoding = Decoding.model_validate({} if guidance is None else {"guidance": guidance})
    settings = METHODS[method].settings.model_validate({})
    settings.check(decoding, manifest)
    specs = [
        SessionSpec(
            weights=manifest.weights_hash,
            method=method,
            revision=METHODS[method].revision,
            settings=settings.model_dump(),
            decoding=decoding.model_dump(),
            prompt=caption,
            seed=seed,
        )
        for caption in captions
    ]
    images = [recording.image for recording in source.recordings(specs)]
    rows: list[tuple[int, str, str, bool]] = []
    if images[0].shape == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3):
        readings = read_images(load_scene_network(WEIGHTS), np.stack(images))
        for prompt, (caption, reading) in enumerate(zip(captions, readings, strict=True)):
            claims = claims_of(caption)
            assert claims is not None, caption
            seen = zip(claim_names(claims), agreement(claims, reading), strict=True)
            rows += [(prompt, caption, kind, bool(right)) for kind, right in seen]
    table = pd.DataFrame(rows, columns=["prompt", "caption", "claim", "right"])
    groups = [("all", table), *table.groupby("claim", sort=False)] if len(table) else []
    by_kind = pd.DataFrame(
        [(kind, len(group), 100.0 * float(group["right"].mean())) for kind, group in groups],
        columns=["claim", "claims", "right_pct"],
    )
    return Samples(png_bytes(grid(images)), table, by_kind)


def grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8: images [H, W, 3] of one size side by side, COLUMNS to a row, on white."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // COLUMNS)
    page = np.full(
        (rows * (height + GAP_PIXELS) - GAP_PIXELS, COLUMNS * (width + GAP_PIXELS) - GAP_PIXELS, 3), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // COLUMNS * (height + GAP_PIXELS), index % COLUMNS * (width + GAP_PIXELS)
        page[top : top + height, left : left + width] = image
    return page
