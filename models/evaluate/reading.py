"""Teacher-forced outputs of both models: logits, events and scores at every position, and a table of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models import scenes
from models.backbones.var import VarPair
from models.device import DeviceModel
from models.evaluate import ground
from models.evaluate.ceiling import Ceiling
from models.evaluate.ground import regions_of, white_codes
from models.evaluate.measures import Measure, answered
from models.evaluate.pixels import pixel_changes
from models.evaluate.sequences import Progress, encoded, generated, token_regions
from models.interval import inter_fuse
from models.methods import DeviceState
from models.methods.scores import all_scores, entropy
from models.methods.session import Step
from models.pair import Pair
from models.recording import Models
from models.sampling import greedy, guide, sample
from models.text import left_pad
from models.transformer import Transformer
from models.var.reading import read_images
from simulator.core.rng import stream
from simulator.protocol.methods import Decoding

On = Literal["generated", "scenes"]
EVENTS = {
    "differs": "the cloud's most likely token is another",
    "tv": "total variation to the cloud above its median",
    "nll": "the cloud's nats for the device's token above their median",
}
REGIONS = {scenes.BACKGROUND: "background", scenes.OBJECT: "object", scenes.BORDER: "border"}
PIXEL_TOKENS = 8  # positions of a prompt at which tokens are compared in pixels; each costs up to four decoded images
_CHUNK = 4  # prompts per pass: limits memory to a few [4, T, V] float32


@dataclass(frozen=True)
class Settings:
    """Settings of the evaluation.

    Attributes:
        prompts: number of prompts.
        seed: seed of prompts and draws.
        on: source of the sequences, see `models.evaluate.uncertainty`.
        guidance: guidance scale of both models; None: the default of scenarios.
        sampled_tokens: positions per prompt at which the discrete scores are computed; each costs k rows of V.
        ceiling: whether the ceiling (`models.evaluate.ceiling`) is trained and evaluated.
        timing: whether the scores are timed.
        max_batch: sequences that the cloud decodes at once.
    """

    prompts: int = 64
    seed: int = 3
    on: On = "generated"
    guidance: float | None = None
    sampled_tokens: int = 64
    ceiling: bool = False
    timing: bool = True
    max_batch: int = 64

    def decoding(self, pair: Models) -> Decoding:
        """Return the decoding settings: scenarios' defaults, and `guidance` if it is set."""
        return Decoding.model_validate({"guidance": pair.manifest.guidance if self.guidance is None else self.guidance})


@dataclass(frozen=True)
class Prompts:
    """Captions to evaluate on, all different.

    Attributes:
        captions: the captions.
        scenes: index of each caption's scene; empty if they are not captions of scenes.
    """

    captions: list[str]
    scenes: list[int]


@dataclass(frozen=True)
class Reading:
    """Outputs of both models for B sequences.

    Attributes:
        cloud: guided logits of the cloud [B, T, V].
        plain: conditional logits of the cloud [B, T, V].
        device: guided logits of the device [B, T, V].
        hidden: conditional hidden states of the device [B, T, D]; with guidance, concatenated with the unconditional ones, [B, T, 2 D].
        radius: radius of the interval [B, T, V] by name of the radius matrix.
    """

    cloud: Tensor
    plain: Tensor
    device: Tensor
    hidden: Tensor
    radius: dict[str, Tensor]


def read(pair: Models, captions: Sequence[str], tokens: Tensor, scale: float) -> Reading:
    """Teacher-force tokens int [B, T] through cloud and device, at guidance `scale`."""
    if isinstance(pair, VarPair):
        assert pair.device is not None  # checked by the caller
        labels = [int(pair.text.encode(caption)[0, 0]) for caption in captions]
        codes = tokens.to(pair.torch_device)
        cloud, device = (
            read_images(model, pair.tokenizer, labels, codes, scale) for model in (pair.cloud, pair.device)
        )
        return Reading(cloud.logits, cloud.plain, device.logits, device.hidden, {})
    padded = [left_pad(pair.text.encode(caption), pair.manifest.caption_slots) for caption in captions]
    rows = torch.stack([row for row, _ in padded]).to(pair.torch_device)
    mask = torch.stack([valid for _, valid in padded]).to(pair.torch_device)
    return read_rows(pair.cloud, pair.device, tokens.to(pair.torch_device), rows, mask, scale)


def read_rows(
    cloud: Transformer, device: DeviceModel, tokens: Tensor, rows: Tensor, mask: Tensor, scale: float
) -> Reading:
    """Do the same as `read`, for caption rows [B, caption_slots, caption_dim] and their mask bool [B, caption_slots]."""
    guided, states, plain = [], [], []
    for model in (cloud, device.transformer):
        logits, hidden = model(tokens[:, :-1], rows, mask)
        plain.append(logits)
        if scale > 1:
            other, other_hidden = model(tokens[:, :-1], *model.unconditional(rows, mask))
            logits, hidden = guide(logits, other, scale), torch.cat([hidden, other_hidden], dim=-1)
        guided.append(logits)
        states.append(hidden)
    conditional = states[1][..., : device.config.dim]  # the radius follows from the conditional row (assumption A5)
    radius = {bounds: device.radius(conditional, bounds) for bounds in device.radii}
    return Reading(guided[0], plain[0], guided[1], states[1], radius)


def events(reading: Reading) -> dict[str, np.ndarray]:
    """Return per token [B, T]: both arg maxes, differs, tv, nll (nats), and the cloud's guided and unguided entropy (nats)."""
    p, q = reading.cloud.log_softmax(-1), reading.device.softmax(-1)
    token, best = greedy(reading.device), greedy(reading.cloud)
    columns = {
        "device_token": token,
        "cloud_token": best,
        "differs": token != best,
        "tv": 0.5 * (p.exp() - q).abs().sum(-1),
        "nll": -p.gather(-1, token.unsqueeze(-1)).squeeze(-1),
        "cloud_entropy_nats": entropy(reading.cloud),
        "cloud_entropy_unguided_nats": entropy(reading.plain),
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


def token_scores(
    reading: Reading, index: int, state: DeviceState, found: Sequence[Measure], sampled: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the values of all measures for sequence `index`, float64 [T] each.

    Expensive measures (`Measure.sampled`) are computed at the positions `sampled` only and are NaN elsewhere.
    """
    logits, hidden = reading.device[index], reading.hidden[index]
    steps: dict[str, list[Step]] = {}
    # Without an Inter-Head no measure reads the interval, so a radius of zero serves as a placeholder.
    for bounds, radius in (reading.radius or {"": torch.zeros_like(reading.device)}).items():
        lower, upper = inter_fuse(logits, radius[index])
        rows = all_scores(logits, lower, upper).cpu().numpy()
        steps[bounds] = [
            Step(0, logits[t], hidden[t], rows[t], lower[t], upper[t], radius[index, t]) for t in range(len(logits))
        ]
    columns = {}
    for measure in found:
        score = measure.make(state)
        values = np.full(len(logits), np.nan)
        for t in sampled if measure.sampled else range(len(logits)):
            values[t] = answered(score, steps[measure.bounds][t], int(t))
        columns[measure.name] = values
    return columns


def _readings(
    pair: Models, settings: Settings, prompts: Prompts, on: On, progress: Progress
) -> Iterator[tuple[int, list[str], Tensor, Reading]]:
    """Yield (index of the first prompt, captions, tokens, reading) for a few prompts at a time."""
    captions, decoding = prompts.captions, settings.decoding(pair)
    if on == "generated":
        tokens = generated(pair, settings.seed, captions, decoding, progress, settings.max_batch)
    else:
        for caption in captions:
            pair.text.encode(caption)  # refuse bad captions before any work is done
        assert isinstance(pair, Pair)  # only these pairs have scenes
        tokens = encoded(pair, settings.seed, prompts.scenes)
    for first in range(0, len(captions), _CHUNK):
        texts, some = captions[first : first + _CHUNK], tokens[first : first + _CHUNK]
        yield first, texts, some, read(pair, texts, some, decoding.guidance)


@torch.inference_mode()
def token_table(
    pair: Models,
    settings: Settings,
    prompts: Prompts,
    found: Sequence[Measure],
    on: On,
    head: Ceiling | None,
    progress: Progress,
) -> pd.DataFrame:
    """Return one row per token, in order of prompts and positions, with its events and scores.

    Some columns are computed only if `on` equals `settings.on`: the discrete scores, `pixel_rms` (difference in pixels between the device's
    and the cloud's token) and `pixel_rms_draws` (difference between two samples of the cloud). The last two are known at up to
    `PIXEL_TOKENS` positions of each prompt.
    """
    count = pair.manifest.image_tokens
    asked = min(settings.sampled_tokens, count) if on == settings.on else 0
    chosen = [measure for measure in found if asked or not measure.sampled]
    parts: list[pd.DataFrame] = []
    photos = pair.manifest.subject == "photos"  # these have a white background
    white = white_codes(pair.tokenizer, pair.manifest.image_size) if photos and isinstance(pair, Pair) else None
    decoding = settings.decoding(pair)
    for first, texts, tokens, reading in _readings(pair, settings, prompts, on, progress):
        columns = events(reading)
        ceilings = head.scores(reading.hidden, reading.device) if head is not None else {}
        for offset, caption in enumerate(texts):
            progress(f"scoring {on}", len(parts), len(prompts.captions))
            place = first + offset
            state = DeviceState(
                count, pair.manifest.caption_dim, caption=caption, decoding=decoding, seed=settings.seed
            )
            order = stream(settings.seed, "evaluate.sampled", place).permutation(count)
            sampled = np.sort(order[:asked])
            if on == "scenes":
                of = token_regions(scenes.scene(settings.seed, prompts.scenes[place]), pair.manifest.grid)
                region = [REGIONS[int(r)] for r in of]
            elif white is not None:
                region = [ground.REGIONS[r] for r in regions_of(tokens[offset : offset + 1].numpy(), white)[0]]
            else:  # objects in a generated image of a scene may be at other places than in the scene
                region = [""] * count
            own = {name: column[offset] for name, column in columns.items()}
            values: dict[str, Any] = {
                "prompt": place,
                "position": np.arange(count),
                "caption": caption,
                "region": region,
                **{
                    name: column.astype(np.float64 if column.dtype.kind == "f" else np.int64)
                    for name, column in own.items()
                },
                **token_scores(reading, offset, state, chosen, sampled),
                **{name: column[offset] for name, column in ceilings.items()},
                **_pixels(pair, settings.seed, place, tokens[offset], reading.cloud[offset], own, order[:asked]),
            }
            parts.append(pd.DataFrame(values))
    return pd.concat(parts, ignore_index=True)


def _pixels(
    pair: Models,
    seed: int,
    prompt: int,
    tokens: Tensor,
    logits: Tensor,
    events: dict[str, np.ndarray],
    order: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return `pixel_rms` and `pixel_rms_draws` of a sequence, float64 [T], NaN except at the first `PIXEL_TOKENS` positions of `order`.

    Args:
        pair: the models.
        seed: seed of the draws.
        prompt: number of the prompt, which also keys the draws.
        tokens: the sequence's tokens, int [T].
        logits: guided logits of the cloud, [T, V].
        events: the sequence's `events`, [T] each.
        order: positions in the order in which they are chosen.
    """
    at = order[:PIXEL_TOKENS]
    if not len(at) or isinstance(pair, VarPair):  # a token of a small scale changes the whole image
        return {}
    rng = stream(seed, "evaluate.pixels", prompt)
    drawn = [
        sample(logits[at].softmax(-1), torch.from_numpy(rng.random(len(at))).to(logits.device)).cpu() for _ in range(2)
    ]
    chosen = [torch.from_numpy(events[name][at]) for name in ("device_token", "cloud_token")]
    found = {}
    for name, (one, other) in (("pixel_rms", chosen), ("pixel_rms_draws", drawn)):
        found[name] = np.full(len(tokens), np.nan)
        found[name][at] = pixel_changes(pair.tokenizer, tokens.cpu(), at, one, other)
    return found


@torch.inference_mode()
def ceiling_data(
    pair: Models, settings: Settings, prompts: Prompts, progress: Progress
) -> list[tuple[np.ndarray, ...]]:
    """Return for each prompt the ceiling's inputs float32 [T, F] and its three targets as float32 [T]."""
    rows: list[tuple[np.ndarray, ...]] = []
    for _, texts, _, reading in _readings(pair, settings, prompts, settings.on, progress):
        inputs, columns = Ceiling.inputs(reading.hidden, reading.device).cpu().numpy(), events(reading)
        rows += [(inputs[i], *(columns[name][i].astype(np.float32) for name in EVENTS)) for i in range(len(texts))]
        progress("reading for the ceiling", len(rows), len(prompts.captions))
    return rows
