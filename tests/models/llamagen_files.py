"""Tiny random LlamaGen checkpoints in the layout of the released files."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.eagle import EagleDrafter, drafter_config, to_checkpoint
from models.transformer import Transformer
from models.vq import VQConfig, VQModel
from simulator.protocol.pairs import TransformerConfig

CODES, CLASSES, DRAFTER_FFN = 64, 10, 40
T2I = TransformerConfig(2, 2, 16, 24, CODES, 8, 12, 4)
C2I = replace(T2I, caption_slots=1, caption_dim=1)
VQ16 = VQConfig(CODES, 8, 32, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1), 32, 1)
VQ8 = VQConfig(CODES, 8, 32, (1, 1, 1, 1), (1, 1, 1, 1), 32, 1)
CAPTIONS = ("A red bus by the river.", "Two dogs on a bench")


def decoder(config: TransformerConfig, seed: int, classes: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(config, classes=classes).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if not key.endswith("norm.weight"):
            parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    return model


def tokenizer(config: VQConfig = VQ16) -> VQModel:
    torch.manual_seed(1)
    return VQModel(config).eval().requires_grad_(False)


def write_t5(folder: Path, width: int = T2I.caption_dim) -> None:
    """Write a T5 encoder with random weights and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", *sorted(set(" ".join(CAPTIONS).lower().replace(".", " .").split()))]
    own = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(2)
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(words), feed_forward_proj="gated-gelu", **sizes)).save_pretrained(folder)


def write_features(folder: Path, width: int = T2I.caption_dim) -> None:
    """Write features of the captions as LlamaGen's script does: `coco.jsonl`, `coco/0.npy`, `coco/1.npy`.

    The first has one row more than there are caption slots.
    """
    (folder / "coco").mkdir(parents=True)
    lines = [json.dumps({"image_path": f"{index}.jpg", "text": [text, ""]}) for index, text in enumerate(CAPTIONS)]
    (folder / "coco.jsonl").write_text("\n".join(lines) + "\n")
    for index in range(len(CAPTIONS)):
        rows = np.random.default_rng(index).standard_normal((1, T2I.caption_slots + 1 - index, width))
        np.save(folder / "coco" / f"{index}.npy", rows.astype(np.float32))


def write_checkpoint(path: Path) -> None:
    """Write a text-to-image decoder as LlamaGen's training does, with optimizer and arguments."""
    training = {"optimizer": {"step": 3}, "steps": 7, "args": argparse.Namespace(image_size=256)}
    torch.save({"model": decoder(T2I, 0).state_dict(), **training}, path)


def write_t2i(folder: Path, write_text: Callable[[Path], None] = write_features) -> Path:
    """Write the files of a text-to-image model and return the folder. `write_text` writes caption features or a T5 to `features`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "t2i_XL_stage1_256.pt")
    used = {"quantize.codebook_used": torch.zeros(16)}
    torch.save({"model": {**tokenizer().state_dict(), **used}}, folder / "vq_ds16_t2i.pt")
    write_text(folder / "features")
    return folder


def write_c2i(folder: Path) -> Path:
    """Write two class-conditional models with one tokenizer, c2i L, and c2i B in `device`. Return the folder."""
    (folder / "device").mkdir(parents=True, exist_ok=True)
    torch.save({"model": decoder(C2I, 0, CLASSES).state_dict()}, folder / "c2i_L_256.pt")
    small = replace(C2I, n_layer=1, dim=8, n_head=1)
    torch.save(decoder(small, 3, CLASSES).state_dict(), folder / "device" / "c2i_B_256.pt")
    torch.save({"model": tokenizer().state_dict()}, folder / "vq_ds16_c2i.pt")
    return folder


def write_drafter(folder: Path) -> Path:
    """Write a one-layer drafter under LANTERN's keys, with its own feed-forward width and embeddings. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(4)
    state = to_checkpoint(EagleDrafter(drafter_config(T2I, DRAFTER_FFN), own_table=True))
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"hidden_size": T2I.dim}))
    return folder
