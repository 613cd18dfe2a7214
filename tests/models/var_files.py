"""Tiny random checkpoints of VAR with 680 positions. Keys and shapes follow the released files and are written out here."""

from pathlib import Path

import torch
from torch import Tensor

from simulator.protocol.var import SCALES

CODES, CLASSES, WIDTH, CH = 24, 10, 6, 32
PIXELS = 2 * SCALES[-1]  # the tiny image decoder has two levels


def transformer(
    depth: int, dim: int, heads: int, seed: int, codes: int = CODES, large: bool = False
) -> dict[str, Tensor]:
    """Return a state dict as in `var_d16.pth`, with its tables; if `large`, as in `var_d36.pth` for 512 pixels."""
    scales = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) if large else (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 0.2) -> Tensor:
        return std * torch.randn(shape, generator=generator)

    levels = torch.arange(10).repeat_interleave(torch.tensor([side * side for side in scales]))
    state = {
        "pos_start": normal(1, 1, dim),
        "pos_1LC": normal(1, len(levels), dim),
        "lvl_1L": levels[None],
        "attn_bias_for_masking": torch.where(levels[:, None] >= levels, 0.0, -torch.inf)[None, None],
        "word_embed.weight": normal(dim, WIDTH),
        "word_embed.bias": normal(dim),
        "class_emb.weight": normal(CLASSES + 1, dim, std=1.0),
        "lvl_embed.weight": normal(len(SCALES), dim),
        "head_nm.ada_lin.1.weight": normal(2 * dim, dim, std=0.2),
        "head_nm.ada_lin.1.bias": normal(2 * dim, std=0.2),
        "head.weight": normal(codes, dim, std=0.3),
        "head.bias": normal(codes),
    }
    for block in (f"blocks.{index}." for index in range(depth)):
        state |= {
            f"{block}attn.scale_mul_1H11": torch.full((1, heads, 1, 1), 4.0).log() + normal(1, heads, 1, 1),
            f"{block}attn.q_bias": normal(dim),
            f"{block}attn.v_bias": normal(dim),
            f"{block}attn.zero_k_bias": torch.zeros(dim),
            f"{block}attn.mat_qkv.weight": normal(3 * dim, dim),
            f"{block}attn.proj.weight": normal(dim, dim),
            f"{block}attn.proj.bias": normal(dim),
            f"{block}ffn.fc1.weight": normal(4 * dim, dim),
            f"{block}ffn.fc1.bias": normal(4 * dim),
            f"{block}ffn.fc2.weight": normal(dim, 4 * dim),
            f"{block}ffn.fc2.bias": normal(dim),
        }
        if large:
            state[f"{block}ada_gss"] = normal(1, 1, 6, dim)
        else:
            state |= {f"{block}ada_lin.1.weight": normal(6 * dim, dim), f"{block}ada_lin.1.bias": normal(6 * dim)}
    if large:
        state |= {"shared_ada_lin.1.weight": normal(6 * dim, dim), "shared_ada_lin.1.bias": normal(6 * dim)}
    return state


def tokenizer(seed: int = 1, codes: int = CODES, phis: int = 4) -> dict[str, Tensor]:
    """Return a state dict as in `vae_ch160v4096z32.pth`, with only the first and last layers of the encoder."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(key: str, inputs: int, outputs: int, size: int = 3) -> None:
        state[f"{key}.weight"] = torch.randn((outputs, inputs, size, size), generator=generator) / (inputs**0.5 * size)
        state[f"{key}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    def norm(key: str) -> None:
        state[f"{key}.weight"] = 1 + 0.1 * torch.randn(CH, generator=generator)
        state[f"{key}.bias"] = 0.1 * torch.randn(CH, generator=generator)

    def res(key: str) -> None:
        for number in (1, 2):
            norm(f"{key}.norm{number}")
            conv(f"{key}.conv{number}", CH, CH)

    def attention(key: str) -> None:
        norm(f"{key}.norm")
        conv(f"{key}.qkv", CH, 3 * CH, 1)
        conv(f"{key}.proj_out", CH, CH, 1)

    state["quantize.embedding.weight"] = torch.randn((codes, WIDTH), generator=generator)
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(len(SCALES), codes)
    for index in range(phis):
        conv(f"quantize.quant_resi.qresi_ls.{index}", WIDTH, WIDTH)
    conv("encoder.conv_in", 3, CH)
    conv("encoder.conv_out", CH, WIDTH)
    conv("quant_conv", WIDTH, WIDTH)
    conv("post_quant_conv", WIDTH, WIDTH)
    conv("decoder.conv_in", WIDTH, CH)
    for name in ("block_1", "block_2"):
        res(f"decoder.mid.{name}")
    attention("decoder.mid.attn_1")
    for level in range(2):
        for block in range(2):
            res(f"decoder.up.{level}.block.{block}")
            if level == 1:
                attention(f"decoder.up.1.attn.{block}")
    conv("decoder.up.1.upsample.conv", CH, CH)
    norm("decoder.norm_out")
    conv("decoder.conv_out", CH, 3)
    return state


CLOUD = {"depth": 2, "dim": 16, "heads": 2}
DEVICE = {"depth": 1, "dim": 8, "heads": 1}


def write(folder: Path) -> Path:
    """Write the files of VAR-d30, and in `device` those of VAR-d16. Return the folder."""
    (folder / "device").mkdir(parents=True)
    torch.save(transformer(seed=0, **CLOUD), folder / "var_d30.pth")
    torch.save(transformer(seed=2, **DEVICE), folder / "device" / "var_d16.pth")
    torch.save(tokenizer(), folder / "vae_ch160v4096z32.pth")
    return folder
