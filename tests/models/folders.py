"""Tiny random checkpoints in the layouts of Anole, Lumina-mGPT and Janus-Pro."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.vq import VQConfig, VQModel

WIDTH, HEADS, FFN, LAYERS, TEXT = 32, 2, 48, 2, 200
WORDS = ("a", "photo", "of", "red", "bus", "dog", "the", "on", "grass", "blue", "two", "and")
CODES = 64
CODE = 4  # text token of Chameleon's first code


def write_tokenizer(folder: Path, words: dict[str, int]) -> None:
    """Write a `tokenizer.json` of whole words."""
    added = [
        {"id": token, "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for word, token in words.items()
        if word.startswith("<")
    ]
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    content |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def numbers(state: dict[str, list[int]], seed: int, scale: float = 0.3) -> dict[str, Tensor]:
    """Return random tensors of these shapes. Weights of norms are around one."""
    generator = torch.Generator().manual_seed(seed)
    found = {key: torch.randn(shape, generator=generator) * scale for key, shape in state.items()}
    return {key: value + 1 if "norm" in key and key.endswith("weight") else value for key, value in found.items()}


def blocks(prefix: str, qk_norm: bool, width: int = WIDTH) -> dict[str, list[int]]:
    shapes = {f"{prefix}embed_tokens.weight": [TEXT, width], f"{prefix}norm.weight": [width]}
    for layer in range(LAYERS):
        start = f"{prefix}layers.{layer}."
        shapes |= {f"{start}self_attn.{name}_proj.weight": [width, width] for name in "qkvo"}
        if qk_norm:
            heads = [HEADS, width // HEADS]
            shapes |= {f"{start}self_attn.{x}_norm.{kind}": heads for x in "qk" for kind in ("weight", "bias")}
        shapes |= {f"{start}mlp.{name}_proj.weight": [FFN, width] for name in ("gate", "up")}
        shapes[f"{start}mlp.down_proj.weight"] = [width, FFN]
        shapes |= {f"{start}{name}_layernorm.weight": [width] for name in ("input", "post_attention")}
    return shapes


def vqgan_state(seed: int, highest_first: bool, attention: bool) -> dict[str, Tensor]:
    """Return the state dict of a two-level image tokenizer under the keys of VQGAN's authors: 32 channels, `CODES` codes of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VQConfig(CODES, 8, 32, (1, 1), (1, 1), 32, 1)
        state = VQModel(config, attention=attention).state_dict()
    found = {}
    for key, tensor in state.items():
        for index, name in enumerate(("block_1", "attn_1", "block_2")):
            key = key.replace(f".mid.{index}.", f".mid.{name}.")
        if ".conv_blocks." in key:
            side, _, level, kind, *rest = key.split(".")
            at = 1 - int(level) if side == "decoder" and highest_first else int(level)
            group = "down" if side == "encoder" else "up"
            key = ".".join([side, group, str(at), "block" if kind == "res" else kind, *rest])
        found[key] = tensor.clone()
    return found


def chameleon(folder: Path, seed: int = 0, old_names: bool = False, pixels: int = 16) -> Path:
    """Write an Anole or Lumina-mGPT: shards with an index, `config.json`, `tokenizer.json`, `tokenizer/vqgan.ckpt`.

    Args:
        folder: created if it does not exist, and returned.
        seed: of the weights.
        old_names: whether to use the key names and head norms of transformers 4.
        pixels: image size as in the published configuration, from which Lumina's size tokens follow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        "<racm3:break>": 90,
        "<reserved08706>": 91,
        "<reserved08799>": 92,
    }
    words |= {f"<reserved{8800 + side // 32:05d}>": 93 + i for i, side in enumerate((512, 768, 1024))}
    words |= {word: 100 + index for index, word in enumerate(WORDS)}
    images = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(c)] for c in str(code))}Z": CODE + code for code in range(CODES)}
    write_tokenizer(folder, words)
    names = (
        ("ch", "ch_mult", "n_embed", "z_channels")
        if old_names
        else ("base_channels", "channel_multiplier", "num_embeddings", "latent_channels")
    )
    vq = dict(zip(names, (32, [1, 1], CODES, 32), strict=True)) | {
        "embed_dim": 8,
        "resolution": pixels,
        "num_res_blocks": 1,
    }
    config = {"model_type": "chameleon", "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": TEXT, "rope_theta": 10000.0}
    config |= {"rms_norm_eps": 1e-5, "vocabulary_map": words | images, "vq_config": vq, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    state = numbers(blocks("model.", qk_norm=True) | {"lm_head.weight": [TEXT, WIDTH]}, seed)
    keys = list(state)
    weight_map = {key: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, key in enumerate(keys)}
    for name in set(weight_map.values()):
        save_file({key: state[key] for key in keys if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "tokenizer").mkdir(exist_ok=True)
    torch.save({"state_dict": vqgan_state(seed, True, False)}, folder / "tokenizer" / "vqgan.ckpt")
    return folder


def drafter(folder: Path, seed: int = 7, ffn: int = 40) -> Path:
    """Write a drafter for Anole as LANTERN publishes it, with its own feed-forward width: `config.json` and `pytorch_model.bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"embed_tokens.weight": [TEXT, WIDTH], "fc.weight": [WIDTH, 2 * WIDTH], "fc.bias": [WIDTH]}
    own = {key: shape for key, shape in blocks("", qk_norm=True).items() if key.startswith("layers.0.")}
    own |= {f"layers.0.mlp.{name}_proj.weight": [ffn, WIDTH] for name in ("gate", "up")}
    own |= {"layers.0.mlp.down_proj.weight": [WIDTH, ffn]}
    (folder / "config.json").write_text(json.dumps({"model_type": "chameleon", "num_hidden_layers": 1}))
    torch.save(numbers(shapes | own, seed), folder / "pytorch_model.bin")
    return folder


def janus(folder: Path, seed: int = 0, width: int = WIDTH) -> Path:
    """Write a Janus-Pro as saved by `JanusForConditionalGeneration`. Equal seeds give equal image tokenizers at every width."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "<unk>": 0,
        "<｜begin▁of▁sentence｜>": 1,
        "<｜▁pad▁｜>": 2,
        "<begin_of_image>": 3,
        "<|User|>": 4,
        "<|Assistant|>": 5,
    }
    words |= {":": 6} | {word: 100 + index for index, word in enumerate(WORDS)}
    write_tokenizer(folder, words)
    text: dict[str, Any] = {"model_type": "llama", "hidden_size": width, "intermediate_size": FFN, "vocab_size": TEXT}
    text |= {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-6,
    }
    text |= {"max_position_embeddings": 512}
    vq: dict[str, Any] = {
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_embeddings": CODES,
        "latent_channels": 32,
    }
    vq |= {
        "embed_dim": 8,
        "num_res_blocks": 1,
        "image_token_embed_dim": width,
        "projection_dim": width,
        "num_patches": 8,
    }
    vision = {"image_size": 8, "patch_size": 2, "num_image_tokens": 16, "hidden_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "projection_dim": width}
    config = {"model_type": "janus", "text_config": text, "vq_config": vq, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = blocks("model.language_model.", False, width) | {"lm_head.weight": [TEXT, width]}
    shapes |= {"model.generation_embeddings.weight": [CODES, 8]}
    for name, sizes in (("proj_out", [width, width]), ("vision_head", [CODES, width])):
        shapes |= {f"model.generation_head.{name}.weight": sizes, f"model.generation_head.{name}.bias": sizes[:1]}
    for name, sizes in (("fc1", [width, 8]), ("hidden_layers.0", [width, width])):
        shapes |= {f"model.generation_aligner.{name}.weight": sizes, f"model.generation_aligner.{name}.bias": sizes[:1]}
    state = numbers(shapes, seed)
    state |= {f"model.vqmodel.{key}": tensor for key, tensor in vqgan_state(seed, False, True).items()}
    save_file(state, folder / "model.safetensors")
    return folder
