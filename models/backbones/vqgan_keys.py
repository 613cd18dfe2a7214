"""Keys of image tokenizers under VQGAN's original names (`down`, `up`, `mid.attn_1`) and under those of `models.vq`, in both directions."""

import re

MIDDLE = ("block_1", "attn_1", "block_2")  # names of the original VQGAN for the middle blocks 0, 1 and 2


def vq_key(key: str, levels: int, highest_first: bool) -> str:
    """Return our key of a tensor under VQGAN's original keys.

    Our decoder counts levels from the lowest resolution, the original VQGAN (highest_first) from the highest.
    """
    for index, name in enumerate(MIDDLE):
        key = key.replace(f".mid.{name}.", f".mid.{index}.")
    found = re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)", key)
    if found is None:
        return key
    side, level, kind, rest = found[1], int(found[2]), found[3], found[4]
    if side == "decoder.up" and highest_first:
        level = levels - 1 - level
    return f"{side.split('.')[0]}.conv_blocks.{level}.{'res' if kind == 'block' else kind}.{rest}"


def original_vq_key(key: str, levels: int, highest_first: bool) -> str:
    """Return VQGAN's original key of one of our tensors: the inverse of `vq_key`. Other keys are returned unchanged."""
    for index, name in enumerate(MIDDLE):
        key = key.replace(f".mid.{index}.", f".mid.{name}.")
    found = re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn|downsample|upsample)\.(.+)", key)
    if found is None:
        return key
    side, level, kind, rest = found[1], int(found[2]), found[3], found[4]
    if side == "decoder" and highest_first:
        level = levels - 1 - level
    group = "down" if side == "encoder" else "up"
    return f"{side}.{group}.{level}.{'block' if kind == 'res' else kind}.{rest}"
