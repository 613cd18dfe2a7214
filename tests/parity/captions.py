"""Parity of LlamaGen's caption path: cleaning of captions, and the encoder with its padding."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.backbones.captions import clean
from models.backbones.t5 import load_encoder
from models.text import left_pad
from tests.parity.checks import Tally, check, stem

STATES = 2e-4  # the tolerance of the golden README


@check("t5_*cleaning*.json")
def cleaning(file: Path, tally: Tally) -> None:
    """Compare captions after one and after two passes of the cleaning."""
    for case in json.loads(file.read_text()):
        tally.case()
        once = clean(case["raw"])
        tally.equal("cleaned once", once, case["clean_once"])
        tally.equal("cleaned twice", clean(once), case["clean_twice"])


@check("t5_*_io*.safetensors", reads=("{}_hf/*",))
def encoder(file: Path, tally: Tally) -> None:
    """Compare hidden states of token ids, and the rows of valid tokens moved to the end, as the decoder expects them."""
    io, folder = load_file(file), file.parent / f"{stem(file.name)}_hf"
    model = load_encoder(folder, torch.float32)
    ids, mask = io["input_ids"], io["attention_mask"]
    tally.case()
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    tally.close("last hidden state", states, io["last_hidden_state"], STATES)
    for rows, valid, wanted, seen in zip(
        states, mask.bool(), io["left_padded_masked"], io["left_mask"].bool(), strict=True
    ):
        tally.case()
        padded, found = left_pad(rows[valid], len(rows))
        tally.equal("mask", found, seen)
        tally.close("left-padded rows", padded, wanted, STATES)
