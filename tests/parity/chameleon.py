"""Parity of Anole: transformers' layout, guided decoding through the cache, and the image tokenizer in its original layout."""

import json
import re
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones.huggingface import load_decoder, load_vqgan
from models.backbones.huggingface_files import describe, tied, weight_files
from models.kv_cache import KVCache
from models.llama import LlamaDecoder
from models.sampling import guide
from models.state import read_state
from simulator.protocol.llama import digits
from tests.parity.checks import Tally, check, rounding, stem
from tests.parity.core import IMAGES

LOGITS, PROBS = 1e-4, 1e-6


@check("anole_*_io*.safetensors", reads=("{}_hf/*", "{}_info.json", "{}_vqgan.ckpt", "{}_vqgan.yaml"))
def anole(file: Path, tally: Tally) -> None:
    """Compare Anole's decoder and image tokenizer. Scales, prompts and sizes come from the tensors and from `_info.json`."""
    io, name = load_file(file), file.parent / stem(file.name)
    folder, ids = Path(f"{name}_hf"), json.loads(Path(f"{name}_info.json").read_text())["ids"]
    described = describe("anole-7b", folder)
    model, codes = load_decoder(folder, described), torch.tensor(described.codes)
    key = "model.embed_tokens.weight" if tied(folder) else "lm_head.weight"
    head = next(tensors[key] for path in weight_files(folder) if key in (tensors := read_state(path))).float()
    before, after = described.prompt.before, described.prompt.after
    tally.equal("tokens around a caption", (before, after), ((ids["bos"],), (ids["sep"], ids["boi"])))
    tally.equal("tokens of the unconditional row", described.config.null_tokens, (ids["bos"], ids["boi"]))

    tally.case()  # any tokens, text and image, in one pass
    inputs, exact = io["forward_ids"], deepcopy(model).double()
    hidden, true = (
        one.hidden(torch.zeros(len(inputs), 0, dtype=torch.long), rows_of(inputs), None) for one in (model, exact)
    )
    logits, true_logits = hidden @ head.T, true @ head.double().T
    tally.close("hidden states", hidden, io["forward_hidden"], LOGITS, exact=true)
    tally.close("logits", logits, io["forward_logits_unmasked"], LOGITS, exact=true_logits)
    own = io["forward_logits_unmasked"][..., codes]
    tally.close("logits of image tokens", model.logits(hidden), own, LOGITS, exact=exact.logits(true))
    if "forward_logits_hf" in io:  # the logits that the class returns, in which image tokens are masked
        text = torch.ones(len(head), dtype=torch.bool).index_fill(0, codes, False)
        wanted = io["forward_logits_hf"][..., text]
        tally.close("logits of text tokens", logits[..., text], wanted, LOGITS, exact=true_logits[..., text])

    prompts = [io["prompt_cond"], io["prompt_uncond"]]
    for key in sorted(key for key in io if key.startswith("greedy_cfg")):
        scale, raw = float(key.removeprefix("greedy_cfg")), io[key.replace("greedy", "raw_logits")]
        tally.case()  # guided decoding through the cache
        caption, mask = rows_of(prompts[0][None]), torch.ones(1, len(prompts[0]), dtype=torch.bool)
        null, valid = model.unconditional(caption, mask)
        tally.equal("prompt mask", torch.cat([mask, valid]), io["attention_mask"].bool())
        kept = valid[0]
        tally.equal("unconditional prompt", tokens_of(null)[0][kept], prompts[1][kept])
        both, seen, greedy = torch.cat([caption, null]), torch.cat([mask, valid]), io[key]
        places = (codes == greedy.long().unsqueeze(-1)).int().argmax(-1)  # codes of the tokens
        tally.equal(f"image tokens {scale:g}", codes[places], greedy.long())
        found, true = (decode(one, both, seen, scale, len(raw), places)[1] for one in (model, exact))
        tally.close(f"step logits {scale:g}", found, raw[..., codes], LOGITS, exact=true)
        guided, true_guided = (guide(one[:, 0], one[:, 1], scale) for one in (found, true))
        # Guidance multiplies the errors of the raw logits by 2 s - 1.
        more = max(1.0, 2 * scale - 1)
        tally.picked(f"greedy tokens {scale:g}", guided, places, 2 * max(LOGITS * more, rounding(guided, true_guided)))
        wanted = guide(raw[:, 0, codes], raw[:, 1, codes], scale).softmax(-1)
        tally.close(f"probabilities {scale:g}", guided.softmax(-1), wanted, PROBS * more, exact=true_guided.softmax(-1))
        whole, true_whole = (teacher(one, caption, null, mask, valid, places) for one in (model, exact))
        tally.close(f"teacher-forced logits {scale:g}", whole, raw[..., codes], LOGITS, exact=true_whole)

    tally.case()  # images to codes
    tokenizer = load_vqgan(Path(f"{name}_vqgan.ckpt"))
    found = tokenizer.encode_codes(io["image"].float())
    tally.equal("image codes", found, io["image_codes"])
    tally.equal("image tokens", codes[found], io["image_bpe_tokens"].long())
    tally.case()  # codes to images
    sides = [side // tokenizer.config.downsample for side in io["decoded"].shape[-2:]]
    decoded = tokenizer.decode_codes(io["codes"].view(len(io["codes"]), *sides))
    tally.close("images", decoded, io["decoded"], IMAGES)
    off = (tokenizer.to_bytes(decoded).int() - io["decoded_uint8_hwc"].int()).abs()
    tally.equal("bytes of the images are within one", bool((off <= 1).all()), True)
    said = Path(f"{name}_vqgan.yaml").read_text()
    for key, value in (("ch", tokenizer.config.ch), ("n_embed", tokenizer.config.codebook_size)):
        tally.equal(f"{key} of the yaml", [str(value)], re.findall(rf"^\s*{key}: (\d+)", said, re.MULTILINE))


def rows_of(tokens: Tensor) -> Tensor:
    """Return text tokens [B, n] as prompt rows [B, n, 2]."""
    return torch.tensor([[digits(int(token)) for token in row] for row in tokens]).float()


def tokens_of(rows: Tensor) -> Tensor:
    return (rows[..., 0] * 256 + rows[..., 1]).long()


def decode(
    model: LlamaDecoder, rows: Tensor, mask: Tensor, scale: float, steps: int, fed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the first greedy codes [steps] of a conditional and an unconditional row, and their raw logits [steps, 2, V].

    fed: Codes [steps] that are fed instead of the model's own; None: its own.
    """
    cache = KVCache(model.config, 2, dtype=next(model.parameters()).dtype)
    slots = model.config.caption_slots
    pad = slots - rows.shape[1]
    embeds = model.embed_caption(torch.nn.functional.pad(rows, (0, 0, pad, 0)))
    cache.caption_mask[:] = torch.nn.functional.pad(mask, (pad, 0))
    start, both = torch.zeros(2, dtype=torch.long), torch.arange(2)
    tokens, raw = [], []
    for step in range(steps):
        new = torch.full((2,), embeds.shape[1])
        logits = model.logits(model.step(cache, both, start, embeds, new)[:, -1])
        start = start + new
        raw.append(logits)
        tokens.append(guide(logits[:1], logits[1:], scale).argmax(-1))
        last = tokens[-1] if fed is None else fed[step : step + 1]
        embeds = model.embed_tokens(last.repeat(2)).unsqueeze(1)
    return torch.cat(tokens), torch.stack(raw)


def teacher(model: LlamaDecoder, caption: Tensor, null: Tensor, mask: Tensor, valid: Tensor, tokens: Tensor) -> Tensor:
    """Return the teacher-forced raw logits [steps, 2, V], from one pass per row."""
    pad = model.config.caption_slots - caption.shape[1]
    found = []
    for rows, seen in ((caption, mask), (null, valid)):
        padded = torch.nn.functional.pad(rows, (0, 0, pad, 0)), torch.nn.functional.pad(seen, (pad, 0))
        found.append(model(tokens[None, :-1], *padded)[0][0])
    return torch.stack(found, dim=1)
