"""Trains the embedded pair's cloud model: next-token cross-entropy on scenes' tokens, a share of captions replaced by
the null one.

Source: LlamaGen's text-to-image training (captions left padded and masked, null caption learned in feature space), at a
small size. This file also holds what all sequence stages share: batches of tokens with captions (`Sequences`).

    ciar-sim train models/scenes.yaml --stage cloud
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from safetensors.torch import save_file
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from models import scenes
from models.pair import TEXT, save_model
from models.quality.reading import COLORS, PLACES, SHAPES, SIZES, claims_of
from models.sampling import guide
from models.scenes import WORDS
from models.text import WordEncoder, left_pad
from models.train.data import DataConfig, data_tokens, load_data
from models.train.loop import LoopSettings, Share, TrainResult, train
from models.train.tokens import SceneTokens, scene_tokens
from models.transformer import Attention, Dropout, Transformer, TransformerConfig, at_least_float32
from models.vq import load_vq
from simulator.errors import ScenarioError
from simulator.methods import refuse
from simulator.rng import stream
from simulator.schema.base import FromMapping, Part, items
from simulator.schema.messages import explain

PASTES = 2  # rectangles in a picture, see `pasted`
CLASS_DIMS = 16  # of the space in which `code_classes` clusters
LAYOUT_GAIN = 2.0  # length of a class's direction, against hidden states of root mean square 1
SHARED_LEVEL = 10.0  # of the embeddings' constant channel, against the others' root mean square
COUNT_SCORE, READ_SCORE = 0.8, -8.0  # see `start_first_layer`
OBJECT_REACH_PX = 26.0  # a large object's radius and how far its centre may stand off its place, on the scenes' 128 pixels


@dataclass(frozen=True)
class Batch:
    """Token sequences with their captions. tokens: int64 [B, T]. caption: float32 [B, caption_slots, caption_dim], left
    padded.

    mask: bool [B, caption_slots], True where a caption row is valid. null: bool [B], True where training hides the
    caption. layout: int64 [B, 3, T], the object that the caption puts at each cell, see `layout_of`.
    """

    tokens: Tensor
    caption: Tensor
    mask: Tensor
    null: Tensor
    layout: Tensor

    def caption_for(self, model: Transformer) -> Tensor:
        """The captions as `model` should see them: its own null caption where `null` says so, under the same mask."""
        return torch.where(self.null[:, None, None], model.null_caption(len(self.null)).to(self.caption), self.caption)


class Scenes(Part):
    """Which scenes a stage reads: the first `train` of one seed, and the first `held_out` of another."""

    train: int = Field(gt=0)
    held_out: int = Field(default=256, gt=0)
    train_seed: int = Field(default=1, ge=0)
    held_out_seed: int = Field(default=2, ge=0)


class Sequences:
    """Scenes, or pictures of a data set, as tokens and captions, in batches keyed by (seed, stage, step).

    folder: a training folder; its tokenizer/tokenizer.safetensors makes the tokens, its tokens/ keeps them. pictures: read in place of
    scenes, where given.
    """

    def __init__(self, folder: Path, scenes: Scenes | None, pictures: DataConfig | None, seed: int) -> None:
        tokenizer, cache = folder / "tokenizer" / "tokenizer.safetensors", folder / "tokens"
        if pictures is None:
            assert scenes is not None  # a training file names one of both
            self.train = scene_tokens(tokenizer, scenes.train_seed, scenes.train, cache)
            self.held_out = scene_tokens(tokenizer, scenes.held_out_seed, scenes.held_out, cache)
            self.text = WordEncoder.build(WORDS)
        else:
            data = load_data(pictures)
            self.text = data.text
            self.train = SceneTokens(*data_tokens(tokenizer, data.train, data.image_size, cache))
            self.held_out = SceneTokens(*data_tokens(tokenizer, data.held_out, data.image_size, cache))
        self.codebook = load_vq(tokenizer).quantize.rows().detach()  # float32 [V, C], unit rows
        self.seed = seed

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        """Sequences step * size onwards of an endless shuffled reading of the training scenes."""
        count = len(self.train.codes)
        epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), count)
        orders = {int(e): stream(self.seed, f"train.{stage}.order", int(e)).permutation(count) for e in np.unique(epoch)}
        index = np.array([orders[int(e)][at] for e, at in zip(epoch, place, strict=True)])
        null = stream(self.seed, f"train.{stage}.null", step).random(size) < null_captions
        return self._gather(self.train, index, null)

    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """Every held-out scene once, in order, captions shown."""
        for first in range(0, len(self.held_out.codes), size):
            index = np.arange(first, min(first + size, len(self.held_out.codes)))
            yield self._gather(self.held_out, index, np.zeros(len(index), dtype=bool))

    def _gather(self, source: SceneTokens, index: np.ndarray, null: np.ndarray) -> Batch:
        padded = [left_pad(self.text.encode(source.captions[i]), self.text.slots) for i in index]
        tokens = torch.from_numpy(source.codes[index].astype(np.int64))  # [B, T]
        caption = torch.stack([rows for rows, _ in padded])  # [B, slots, caption_dim]
        mask = torch.stack([valid for _, valid in padded])  # [B, slots]
        grid = math.isqrt(tokens.shape[1])
        layout = torch.stack([layout_of(source.captions[i], grid).flatten(1) for i in index])  # [B, 3, T]
        return Batch(tokens, caption, mask, torch.from_numpy(null), layout)


def layout_of(caption: str, grid: int) -> Tensor:
    """int64 [3, grid, grid]: shape, color and size of the object that the caption puts at each cell, 0 for none.

    An object is at the cells whose centre is within 26 pixels of the place that the caption names, the nearest object where two are.
    All are 0 where the caption is not of the form that scenes have.
    """
    claims = claims_of(caption)
    centre_px = (torch.arange(grid) + 0.5) * (scenes.IMAGE_SIZE / grid)
    nearest = torch.full((grid, grid), OBJECT_REACH_PX**2)
    layout = torch.zeros(3, grid, grid, dtype=torch.int64)
    for place, shape, color, size in claims.objects if claims is not None else ():
        column_px, row_px = scenes.PLACES[PLACES[place]]
        distance = (centre_px - row_px).square().unsqueeze(1) + (centre_px - column_px).square()  # [grid, grid]
        layout[:, distance <= nearest] = torch.tensor([shape, color + 1, size + 1]).unsqueeze(1)  # shape 0 is "nothing"
        nearest = torch.minimum(nearest, distance)
    return layout


def onset_of(layout: Tensor) -> Tensor:
    """bool [B, T]: the first cells of each object of a layout int64 [B, 3, T], those with another or none two rows (of 16) above."""
    rows = max(math.isqrt(layout.shape[-1]) // 8, 1)
    above = F.pad(layout, (rows * math.isqrt(layout.shape[-1]), 0))[..., : layout.shape[-1]]
    return (layout[:, 0] > 0) & (layout != above).any(1)


def code_classes(codes: np.ndarray, vocab_size: int, count: int, rng: np.random.Generator) -> Tensor:
    """int64 [V]: sorts a codebook into `count` classes of codes that stand beside the same codes in pictures int [N, T].

    Spectral clustering (Ng, Jordan & Weiss 2001) of how often two codes are neighbours in a row or a column. Codes of one class are
    each other's near synonyms: patches of one kind of background, of one colour of objects.
    """
    grid = math.isqrt(codes.shape[1])
    cells = codes.reshape(-1, grid, grid).astype(np.int64)
    pairs = [(cells[:, :, :-1], cells[:, :, 1:]), (cells[:, :-1], cells[:, 1:])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    beside = coo_matrix((np.ones(len(one)), (one, other)), (vocab_size, vocab_size)).tocsr()
    beside = beside + beside.T
    scale = diags((np.asarray(beside.sum(1)).ravel() + 1.0) ** -0.5)
    values, vectors = eigsh(scale @ beside @ scale, k=min(CLASS_DIMS, vocab_size - 1), which="LA", v0=np.ones(vocab_size))
    points = vectors * values  # directions that chance alone would make count little
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    _, classes = kmeans2(points, count, minit="++", rng=rng)
    return torch.from_numpy(classes.astype(np.int64))


def pasted(tokens: Tensor, which: Tensor) -> Tensor:
    """Tokens int [B, T] with PASTES rectangles of the batch's next picture in each picture that `which`, bool [B], names.

    Places and sizes (3 cells to half the picture a side) are drawn from torch's generator.
    """
    grid = math.isqrt(tokens.shape[1])
    shape, line = (PASTES, len(tokens), 1), torch.arange(grid, device=tokens.device)

    def stretch() -> Tensor:  # bool [PASTES, B, grid]
        length = torch.randint(min(3, grid), max(grid // 2, 3) + 1, shape, device=tokens.device)
        first = (torch.rand(shape, device=tokens.device) * (grid - length + 1)).long()
        return (line >= first) & (line < first + length)

    cells = (stretch().unsqueeze(-1) & stretch().unsqueeze(-2)).any(0).flatten(1)  # [B, T]
    return torch.where(cells & which.unsqueeze(1), tokens.roll(-1, 0), tokens)


class LayoutHead(nn.Module):
    """Asks hidden states for the layout of the caption (`layout_of`), so that training shows an early layer what to look up.

    A deeply supervised layer (Lee et al. 2015), without weights of its own: the classes are fixed random directions.
    """

    rows: Tensor

    def __init__(self, dim: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.sizes = [len(SHAPES), 1 + len(COLORS), 1 + len(SIZES)]
        rows = rng.standard_normal((sum(self.sizes), dim)) * (LAYOUT_GAIN / dim**0.5)
        self.register_buffer("rows", torch.from_numpy(rows).float())

    def forward(self, state: Tensor, layout: Tensor) -> Tensor:
        """Cross-entropies of int [B, 3, T] from states [B, T, D], summed over shape, color and size: float32 [B, T]."""
        normed = F.rms_norm(state.float(), state.shape[-1:])
        scores = torch.split(F.linear(normed, self.rows).float(), self.sizes, dim=-1)
        each = [F.cross_entropy(x.transpose(1, 2), layout[:, i], reduction="none") for i, x in enumerate(scores)]
        return torch.stack(each).sum(0)


class CodeClasses(nn.Module):
    """Asks logits for the class of the next token only. of_code: int64 [V], see `code_classes`."""

    of_code: Tensor

    def __init__(self, of_code: Tensor) -> None:
        super().__init__()
        self.register_buffer("of_code", of_code)

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """-log of the chance that logits [B, T, V] give to the class of int [B, T]: float32 [B, T]."""
        other = self.of_code != self.of_code[tokens].unsqueeze(-1)  # [B, T, V]
        return logits.logsumexp(-1) - logits.masked_fill(other, float("-inf")).logsumexp(-1)


Losses = dict[str, Tensor]


class SequenceSettings(Part):
    """What the mappings of all stages that read sequences hold.

    scenes: what is read, unless the file's `data` says so. null_captions: share of the captions that are replaced by the null caption.
    compile: let torch.compile fuse the step (needs a C++ compiler).
    """

    training: LoopSettings
    scenes: Scenes | None = None
    batch_images: int = Field(default=16, gt=0)
    null_captions: float = Field(default=0.1, ge=0, le=1)
    compile: bool = False


class CloudConfig(SequenceSettings):
    """The mapping under `cloud:` of a training file.

    object_weight: of the tokens at places that the caption names (`layout_of`) against the others. The caption's words about objects
    are some 15 nats of a picture's 600, and drown in the gradient's noise at weight 1. A weight that depends on caption and position
    alone leaves the best distribution as it is. onset_weight: a further factor on each object's first rows (`onset_of`), in both losses:
    what is drawn there only the caption tells, while below it the image does. layout_weight: of the loss that asks the states after
    layer `layout_layer` for the caption's layout (`LayoutHead`). class_weight: of a further cross-entropy, at every position alike, of
    the token's class among `classes` (`code_classes`): the chance of a class is the sum of its codes', so it is lowest for the same
    distribution, but holds no noise of which near synonym came. pasted: share of the pictures shown with their caption in which what
    the model is fed, not what it is asked for, holds rectangles of another picture (`pasted`): in real pictures what is drawn agrees
    with the caption, and a model that has seen only these believes its own slips more than the caption. caption_heads: start the first
    layer by counting cells and reading the caption, and the caption's projection curved (`start_first_layer`, `start_from_captions`), in
    place of LlamaGen's small random weights.

    then: further rounds, each a mapping of the keys that change. A round starts from the averaged weights of the one before, with a
    learning rate that rises and falls again (warm restarts, Loshchilov & Hutter 2017).
    """

    model: Annotated[TransformerConfig, FromMapping()]
    dropout: Share = 0.0
    object_weight: float = Field(default=1.0, ge=0)
    onset_weight: float = Field(default=1.0, ge=0)
    layout_weight: float = Field(default=0.0, ge=0)
    layout_layer: int = Field(default=3, ge=1)
    class_weight: float = Field(default=0.0, ge=0)
    classes: int = Field(default=64, ge=2)
    pasted: float = Field(default=0.0, ge=0, le=1)
    caption_heads: bool = False
    then: Annotated[tuple[dict[str, Any], ...], BeforeValidator(items)] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> "CloudConfig":
        if self.layout_weight > 0 and self.layout_layer > self.model.n_layer:
            refuse(f"must be 1 to {self.model.n_layer}, the model's layers, got {self.layout_layer}", "layout_layer")
        if self.class_weight > 0 and self.classes > self.model.vocab_size:
            refuse(f"must be 2 to {self.model.vocab_size}, the model's codes, got {self.classes}", "classes")
        heads, width = self.model.n_head, self.model.head_dim
        if self.caption_heads and (heads < 3 or width < 16):
            refuse(f"needs 3 heads of 16 channels at least, got {heads} of {width}", "caption_heads")
        self.rounds()  # a later one's mistakes are told before the first one trains
        return self

    def rounds(self) -> "list[CloudConfig]":
        """The settings of each round: these, then those with each mapping of `then` over the ones before it."""
        rounds = [self if not self.then else self.model_copy(update={"then": ()})]
        for index, change in enumerate(self.then):
            for key in ("model", "then"):
                if key in change:
                    refuse("cannot be changed by a later round", "then", index, key)
            last = dict(rounds[-1])
            parts = {key: {**dict(last[key] or {}), **change[key]} for key in ("training", "scenes") if isinstance(change.get(key), dict)}
            try:
                rounds.append(CloudConfig.model_validate({**last, **change, **parts}))
            except ValidationError as error:
                place, message = explain(error.errors()[0])
                refuse(message, "then", index, *place)
        return rounds


class CloudStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: CloudConfig, data: Sequences, start: Mapping[str, Tensor] | None = None) -> None:
        """start: the state dict to start from in place of fresh weights."""
        self.config, self.data, self.start = config, data, start
        torch.manual_seed(int(stream(config.training.seed, "train.cloud.init").integers(2**62)))
        share = config.dropout
        self.model: nn.Module = Transformer(config.model, Dropout(token=share, residual=share, ffn=share))
        self.layout = LayoutHead(config.model.dim, stream(config.training.seed, "train.cloud.layout"))
        self.classes: CodeClasses | None = None
        if config.class_weight > 0:
            rng = stream(config.training.seed, "train.cloud.classes")
            self.classes = CodeClasses(code_classes(data.train.codes, config.model.vocab_size, config.classes, rng))
        self.losses: Callable[..., Losses] = torch.compile(losses_of) if config.compile else losses_of

    def begin(self) -> None:
        assert isinstance(self.model, Transformer)
        if self.start is not None:
            self.model.load_state_dict(self.start)
            return
        start_from_codes(self.model, self.data.codebook, stream(self.config.training.seed, "train.cloud.codes"))
        if self.config.caption_heads:
            start_first_layer(self.model)
            start_from_captions(self.model, self.batch(0), stream(self.config.training.seed, "train.cloud.captions"))

    def batch(self, step: int) -> Batch:
        return self.data.batch("cloud", step, self.config.batch_images, self.config.null_captions)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        assert isinstance(self.model, Transformer)
        shown = ~batch.null.unsqueeze(1)  # [B, 1]; a weight that the model cannot know of would be a bias
        onset = 1.0 + (self.config.onset_weight - 1.0) * (shown & onset_of(batch.layout))  # [B, T]
        weight = onset * (1.0 + (self.config.object_weight - 1.0) * (shown & (batch.layout[:, 0] > 0)))  # [B, T]
        layer = self.config.layout_layer - 1 if self.config.layout_weight > 0 else None
        fed = batch.tokens
        if self.config.pasted > 0:
            fed = pasted(fed, ~batch.null & (torch.rand(len(fed), device=fed.device) < self.config.pasted))
        caption = batch.caption_for(self.model)
        losses = self.losses(self.model, self.layout, layer, self.classes, batch, fed, caption, weight, onset)
        weights = {"nats": 1.0, "layout": self.config.layout_weight, "class": self.config.class_weight}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}


@torch.no_grad()
def start_from_codes(model: Transformer, codebook: Tensor, rng: np.random.Generator) -> None:
    """Starts embeddings and logits as smooth functions on the codebook, float [V, C] of unit rows: close codes, close rows.

    Random Fourier features of the code vectors (Rahimi & Recht 2007), Gaussian kernel of width 1/2, so that neighbours
    (about 0.2 apart) are nearly alike and others independent. Without it the model has to learn that most of the
    codebook's entries are each other's near synonyms from their co-occurrence alone.
    """
    for table in (model.tok_embeddings.weight, model.output.weight):  # both [V, D]
        width = table.shape[1]
        directions = torch.from_numpy(2.0 * rng.standard_normal((codebook.shape[1], width))).to(table)
        phases = torch.from_numpy(rng.uniform(0.0, 2 * np.pi, width)).to(table)
        table.copy_(0.02 * 2**0.5 * torch.cos(codebook.to(table) @ directions + phases))


@torch.no_grad()
def start_first_layer(model: Transformer) -> None:
    """Starts the first layer's heads as what a caption's places need: two count rows and columns, the others read the caption.

    Rotary positions tell offsets only. Where a token stands can be told from how many tokens are to be seen, against the caption,
    whose keys are zero; and what the caption says is shared out among ever more keys as the image grows, unless a head shuts the
    image out. Both can be learned, but a thousand steps left a model of this size with columns known to within three cells, and
    with no trace of an object's colour in the middle of the image.

    One channel of all embeddings is set to one value, so that queries and keys which read it alone score offsets only. The counters
    score an offset D along their axis by 9 (cos D + cos f1 D + cos f2 D) + flat, with the axis's three fastest frequencies and its
    slowest for the flat part: COUNT_SCORE at D = 0 and, with heads of 64, at least 6 less at 1 to 15. The n tokens of a token's own
    row (head 0), or column (head 1), then get n e^s / (n e^s + caption rows) of the attention, and the value is that channel, so
    that the share comes out. The readers score every key of the image READ_SCORE; their values and outputs start at unit gain.
    Needs three heads of 16 channels at least.
    """
    heads, width = model.config.n_head, model.config.head_dim
    per_axis = width // 4  # rotary pairs
    table = model.tok_embeddings.weight  # [V, D]
    table[:, 0] = SHARED_LEVEL * table[:, 1:].square().mean().sqrt()
    normed = SHARED_LEVEL / ((SHARED_LEVEL**2 + table.shape[1] - 1) / table.shape[1]) ** 0.5  # that channel behind RMSNorm
    attention = model.layers[0].get_submodule("attention")
    assert isinstance(attention, Attention)
    q, k, v = attention.wqkv.weight.view(3, heads, width, -1)  # each [H, hd, D]
    q.zero_()
    k.zero_()
    for head in range(heads):
        axis = per_axis * (head % 2)
        sharp = [(axis + pair, 9.0) for pair in range(3)] if head < 2 else []
        flat = COUNT_SCORE - 27.0 if head < 2 else READ_SCORE
        for pair, score in (*sharp, (axis + per_axis - 1, flat)):
            size = (abs(score) * width**0.5) ** 0.5 / normed
            q[head, 2 * pair, 0] = size
            k[head, 2 * pair, 0] = math.copysign(size, score)
    v[:2].zero_()
    v[:2, 0, 0] = 16.0 / normed  # as large as what the readers find
    gain = model.config.dim**-0.5 / 0.02
    v[2:] *= gain
    attention.wo.weight[:, 2 * width :] *= gain


@torch.no_grad()
def start_from_captions(model: Transformer, batch: Batch, rng: np.random.Generator) -> None:
    """Starts the caption projection where its GELU is curved: inputs and outputs of unit scale on this batch's rows.

    Caption keys are zero (`rope_table`), so image tokens see the plain mean of the caption's rows, and only products of
    words within a row (place and colour, place and shape) say which object stands where. LlamaGen's 0.02, meant for T5's
    wide features, leaves the GELU all but linear on rows this narrow, and the mean then holds no such product: a ridge
    regression reads an object's colour off the mean of random projections for 59 % of places if they are linear, for 97 %
    if they are not.
    """
    rows = batch.caption[batch.mask]  # [rows, caption_dim]
    projection = model.cls_embedding.cap_proj
    for linear, scale in ((projection.fc1, rows.norm(dim=1).mean()), (projection.fc2, projection.fc2.in_features**0.5)):
        linear.weight.copy_(torch.from_numpy(rng.standard_normal(tuple(linear.weight.shape))) / scale)


def losses_of(
    model: Transformer, head: LayoutHead, layer: int | None, classes: CodeClasses | None, batch: Batch, fed: Tensor, caption: Tensor,
    weight: Tensor, onset: Tensor,
) -> Losses:  # fmt: skip
    """The losses of a batch, scalars.

    nats: cross-entropy of its tokens given those of `fed` [B, T] before them and `caption` [B, caption_slots, caption_dim], its mean
    weighted by `weight` [B, T]. layout: what `head` misses of the layout in the states after layer `layer`, where captions are shown, its
    mean weighted by `onset` [B, T]; left out if `layer` is None. class: cross-entropy of the tokens' classes; left out if `classes` is
    None.
    """
    states: list[Tensor] = []
    first = model.config.caption_slots - 1  # the row that predicts token 0
    logits = model.logits(model.hidden(fed[:, :-1], caption, batch.mask, states=states)[:, first:])  # [B, T, V]
    nats = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none")  # [B * T]
    losses = {"nats": (nats * weight.flatten()).sum() / weight.sum()}
    if layer is not None:
        missed = head(states[layer][:, first:], batch.layout) * onset  # [B, T]
        losses["layout"] = (missed * ~batch.null.unsqueeze(1)).sum() / onset.sum()
    if classes is not None:
        losses["class"] = classes(logits, batch.tokens).mean()
    return losses


def own_and_guided(model: Transformer, batch: Batch, tokens: Tensor, guidance: float = 1.0,
                   added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states that predict each token of int [B, T], given those before it: as they are, and guided. Each [B, T, D].

    added: [B, T, D], put beside the tokens' embeddings. The head is linear, so guidance of hidden states is guidance of logits.
    """
    before = None if added is None else added[:, :-1]

    def given(caption: Tensor) -> Tensor:
        return model.hidden(tokens[:, :-1], caption, batch.mask, before)[:, model.config.caption_slots - 1 :]

    own = given(batch.caption_for(model))
    if guidance == 1:
        return own, own
    null = given(model.null_caption(len(tokens)).to(batch.caption))
    return own, guide(at_least_float32(own), at_least_float32(null), guidance)


def nats_per_token(model: Transformer, tokens: Tensor, caption: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of tokens int [B, T] given captions [B, caption_slots, caption_dim] and their mask, a scalar."""
    logits, _ = model(tokens[:, :-1], caption, mask)  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@torch.inference_mode()
def evaluate(model: Transformer, data: Sequences) -> dict[str, float]:
    """Nats per token on held-out scenes: with their captions, with the null caption, and with another scene's
    caption."""
    rows: list[tuple[float, ...]] = []
    for batch in data.held_out_batches(16):
        null = replace(batch, null=torch.ones_like(batch.null))
        other = replace(batch, caption=batch.caption.roll(1, 0), mask=batch.mask.roll(1, 0))
        cases = ((case.tokens, case.caption_for(model), case.mask) for case in (batch, null, other))
        rows += [tuple(float(nats_per_token(model, *case)) for case in cases)] * len(batch.tokens)
    names = ("nats_per_token", "nats_per_token_null", "nats_per_token_other_caption")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def run(config: CloudConfig, pictures: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Trains on `pictures`, or on scenes, into `out_dir`, or resumes; writes cloud.safetensors and metrics.json. Rounds before the last
    go into `out_dir/round-<n>`. Raises ScenarioError where the tokenizer has other sizes than the model."""
    rounds = config.rounds()
    folders = [*(out_dir / f"round-{number}" for number in range(1, len(rounds))), out_dir]
    start: Mapping[str, Tensor] | None = None
    steps, minutes = 0, 0.0
    for settings, folder in zip(rounds, folders, strict=True):
        data = Sequences(out_dir.parent, settings.scenes, pictures, settings.training.seed)
        check_shape(settings.model, data)
        result = train(CloudStage(settings, data, start), settings.training, folder, device=torch_device)
        start, steps, minutes = result.averaged, steps + result.steps, minutes + result.minutes
        if not result.finished:
            break
    result = replace(result, steps=steps, minutes=minutes)
    model = Transformer(settings.model).eval()
    # What is measured is what is shipped: the averaged weights, rounded to fp16.
    model.load_state_dict({key: value.half().float() for key, value in result.averaged.items()})
    save_model(out_dir / "cloud.safetensors", model)
    if pictures is not None:
        save_file(data.text.state(), out_dir / TEXT)
    write_metrics(out_dir, evaluate(model, data), result)
    return result


def check_shape(config: TransformerConfig, data: Sequences) -> None:
    """Raises ScenarioError where the model's sizes are not those of the tokens and the captions."""
    wanted = {
        "vocab_size": len(data.codebook), "grid": math.isqrt(data.train.codes.shape[1]),
        "caption_slots": data.text.slots, "caption_dim": data.text.caption_dim,
    }  # fmt: skip
    for name, size in wanted.items():
        if getattr(config, name) != size:
            raise ScenarioError(f"cloud.model.{name} is {getattr(config, name)}, tokenizer and captions need {size}")


def write_metrics(out_dir: Path, metrics: Mapping[str, Any], result: TrainResult) -> None:
    """metrics.json beside the weights: how good they are and what they took."""
    values = {**metrics, "steps": result.steps, "minutes": round(result.minutes, 1)}
    (out_dir / "metrics.json").write_text(json.dumps(values, indent=1) + "\n")
