"""Decoding speed of LlamaGen's files: the recorder at batch 32 and at batch 1, against plain generation loops with the same weights.

    python -m benchmarks.decoding --json

Writes a random checkpoint in LlamaGen's layout, loads it as `pair: {cloud: llamagen-xl-stage1}`, and decodes images guided and sampled:

* `reference`: a loop like the released one, one image after another: two rows, a static cache that every step reads in full, with a mask;
* `plain`: the same, reading only the filled part of the cache;
* `batch 1`, `batch N`: the recorder with sessions one at a time and N in flight. An image has one pixel per token, so the time is that of
  the tokens.

Targets: batch 32 decodes at least 3 times the reference's images per second, and batch 1 is no slower than the plain loop. The benchmark
fails unless all ways decode the same greedy tokens. With one CPU thread it measures CPU time. Rounds alternate; the fastest of each counts.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import rope_table
from models.pair import Pair, load_pair
from models.recorder import Recorder
from models.text import left_pad
from models.transformer import Block, Transformer
from models.vq import VQConfig, VQModel
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import PairSpec, TransformerConfig
from simulator.protocol.recording import Recording, SessionSpec

GUIDANCE = 7.5
CAPTION_ROWS = 20  # rows that a caption fills; the others are padding
BATCHED_AT_LEAST, ALONE_AT_LEAST = 3.0, 1.0


def write_checkpoint(folder: Path, config: TransformerConfig, captions: list[str]) -> None:
    """Write random weights in the official layout, and random caption features in the format of LlamaGen's script."""
    torch.manual_seed(0)
    model = Transformer(config)
    for key, parameter in model.named_parameters():
        if not key.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in key else 1.5 * parameter.shape[-1] ** -0.5)
    torch.save({"model": model.state_dict()}, folder / "t2i_XL_stage1_256.pt")
    torch.save(
        {"model": VQModel(VQConfig(config.vocab_size, 8, 32, (1,), (1,), 32, 1)).state_dict()},
        folder / "vq_ds16_t2i.pt",
    )
    features = folder / "text" / "list"
    features.mkdir(parents=True)
    lines = [json.dumps({"text": caption}) for caption in captions]
    (folder / "text" / "list.jsonl").write_text("\n".join(lines) + "\n")
    for index in range(len(captions)):
        np.save(features / f"{index}.npy", torch.randn(1, CAPTION_ROWS, config.caption_dim).numpy())


class Loop:
    """A bare generation loop, one image at a time.

    Args:
        pair: Pair whose cloud model and image tokenizer run.
        whole: Whether every step reads the whole cache with a mask, as the released loop does, or only its filled part.
    """

    def __init__(self, pair: Pair, whole: bool) -> None:
        self.pair, self.whole = pair, whole
        self.model, self.config = pair.cloud, pair.cloud.config
        self.rotation = rope_table(self.config).float()  # [S, hd/2, 2]
        shape = (self.config.n_layer, 2, self.config.n_head, self.config.positions, self.config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def image(self, caption: str, sampled: bool = True) -> list[int]:
        """Return the tokens of an image; decode its pixels too."""
        slots, total = self.config.caption_slots, self.config.positions
        rows, valid = left_pad(self.pair.text.encode(caption), slots)
        seen = torch.tril(torch.ones(total, total, dtype=torch.bool))
        seen[:, :slots] &= valid
        seen |= torch.eye(total, dtype=torch.bool)
        null = self.model.null_caption(1)[0]
        x = self.model.embed_caption(torch.stack([rows, null]))  # [2, slots, D]
        tokens: list[int] = []
        first = 0
        while len(tokens) < self.config.tokens:
            logits = self.model.output(self.hidden(x, first, seen)[:, -1])  # [2, V]
            mixed = logits[1] + (logits[0] - logits[1]) * GUIDANCE
            chosen = torch.multinomial(mixed.softmax(-1), 1) if sampled else mixed.argmax(-1, keepdim=True)
            first += x.shape[1]
            tokens.append(int(chosen))
            x = self.model.tok_embeddings(chosen).expand(2, 1, -1)
        self.pair.tokenizer.to_bytes(self.pair.tokenizer.decode_codes(torch.tensor([tokens]))).numpy()
        return tokens

    def hidden(self, x: Tensor, first: int, seen: Tensor) -> Tensor:
        """Return hidden states [2, n, D] of the new positions from `first` on.

        Args:
            x: Embeddings [2, n, D].
            seen: bool [S, S], the positions that each position attends to.
        """
        new, heads = x.shape[1], self.config.n_head
        end = self.config.positions if self.whole else first + new
        mask, turn = seen[first : first + new, :end], self.rotation[first : first + new].unsqueeze(1)  # [n, 1, hd/2, 2]
        for layer, module in enumerate(self.model.layers):
            block = cast(Block, module)
            q, k, v = (
                part.unflatten(-1, (heads, -1))
                for part in block.attention.wqkv(block.attention_norm(x)).chunk(3, dim=-1)
            )  # each [2, n, H, hd]
            self.keys[layer, :, :, first : first + new] = rotated(k, turn).transpose(1, 2)
            self.values[layer, :, :, first : first + new] = v.transpose(1, 2)
            seen_keys, seen_values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
            y = F.scaled_dot_product_attention(rotated(q, turn).transpose(1, 2), seen_keys, seen_values, attn_mask=mask)
            x = x + block.attention.wo(y.transpose(1, 2).flatten(2))
            normed, ffn = block.ffn_norm(x), block.feed_forward
            x = x + ffn.w2(F.silu(ffn.w1(normed)) * ffn.w3(normed))
        final: Tensor = self.model.norm(x)
        return final


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x [2, n, H, hd] by the cosines and sines in `turn` [n, 1, hd/2, 2]."""
    pairs = x.view(*x.shape[:-1], -1, 2)
    even, odd, cos, sin = pairs[..., 0], pairs[..., 1], turn[..., 0], turn[..., 1]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def recorded(pair: Pair, captions: list[str], batch: int, cloud: str = "sampled") -> list[Recording]:
    """Record sessions of base, in the order in which they finish."""
    settings = METHODS["base"].settings.model_validate({"deliver": "ids"}).model_dump()
    decoding = Decoding.model_validate({"guidance": GUIDANCE, "cloud": cloud}).model_dump()
    specs = [
        SessionSpec(pair.manifest.weights_hash, "base", METHODS["base"].revision, settings, decoding, caption, seed=0)
        for caption in captions
    ]
    return [recording for _, recording in Recorder(pair, batch).record(specs)]


def seconds_of(run: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    run()
    return clock() - begin


def measured(pair: Pair, captions: list[str], batch: int, rounds: int) -> dict[str, float]:
    """Return the seconds per image of each way."""
    reference, plain, few = Loop(pair, True), Loop(pair, False), captions[:1]
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "reference": (lambda: [reference.image(caption) for caption in few], 1),
        "plain": (lambda: [plain.image(caption) for caption in few], 1),
        "batch 1": (lambda: recorded(pair, few, 1), 1),
        f"batch {batch}": (lambda: recorded(pair, captions, batch), len(captions)),
    }
    found = {name: float("inf") for name in ways}
    for _ in range(rounds):
        for name, (run, images) in ways.items():
            found[name] = min(found[name], seconds_of(run) / images)
    return found


@click.command()
@click.option("--layers", default=12, show_default=True)
@click.option("--width", default=256, show_default=True, help="D; a head has 64 channels.")
@click.option("--codes", default=16384, show_default=True)
@click.option("--grid", default=16, show_default=True, help="Tokens a side.")
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(layers: int, width: int, codes: int, grid: int, batch: int, rounds: int, as_json: bool) -> None:
    hidden = 256 * -(-int(8 * width / 3) // 256)  # LlamaGen's rule
    config = TransformerConfig(layers, width // 64, width, hidden, codes, 120, 2048, grid)
    captions = [f"caption {index}" for index in range(batch)]
    with TemporaryDirectory() as made, torch.inference_mode():
        write_checkpoint(Path(made), config, captions)
        spec = PairSpec(
            cloud="llamagen-xl-stage1",
            weights=made,
            text=str(Path(made) / "text"),
            image_size=grid,
            heads=config.n_head,
        )
        pair = load_pair(spec)
        wanted = Loop(pair, True).image(captions[0], sampled=False)
        for tokens in (
            Loop(pair, False).image(captions[0], sampled=False),
            recorded(pair, captions[:1], 1, "greedy")[0].tokens.tolist(),
        ):
            if tokens != wanted:
                raise click.ClickException("the loops do not decode the same greedy tokens")
        seconds = measured(pair, captions, batch, rounds)
    ratios = {
        f"batch {batch} over reference": seconds["reference"] / seconds[f"batch {batch}"],
        "batch 1 over plain": seconds["plain"] / seconds["batch 1"],
    }
    rows: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "codes": codes,
        "tokens": config.tokens,
        "threads": torch.get_num_threads(),
        "seconds_per_image": seconds,
        "ratios": ratios,
        "asked": {f"batch {batch} over reference": BATCHED_AT_LEAST, "batch 1 over plain": ALONE_AT_LEAST},
    }
    if as_json:
        click.echo(json.dumps(rows))
        return
    for name, one in seconds.items():
        click.echo(f"{name:10} {one:.3f} s an image, {config.tokens / one:.1f} tokens/s")
    for name, ratio in ratios.items():
        click.echo(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
