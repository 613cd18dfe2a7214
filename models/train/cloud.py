"""Training of the embedded pair's cloud model by next-token cross-entropy, with a share of null captions.

Source: LlamaGen's text-to-image training (captions left padded and masked, null caption learned in feature space), at a
small size.

    ciar-sim train models/scenes.yaml --stage cloud
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor, nn

from models.pair import TEXT, save_model
from models.state import read_config
from models.train.code_classes import CodeClasses, code_classes
from models.train.data import DataConfig
from models.train.inputs import digest_of, settings_of, weights_read
from models.train.layout import LayoutHead, onset_of
from models.train.loop import Share, TrainResult, train
from models.train.rounds import round_folders
from models.train.sequences import Batch, Sequences, SequenceSettings, nats_per_token, write_metrics
from models.train.starts import start_first_layer, start_from_captions, start_from_codes
from models.transformer import Dropout, Transformer
from simulator.core.errors import ScenarioError
from simulator.core.files import write_atomically
from simulator.core.part import FromMapping, items
from simulator.core.problems import explain
from simulator.core.rng import stream
from simulator.core.settings import refuse
from simulator.protocol.pairs import TransformerConfig

PASTES = 2  # rectangles per image, see `pasted`
Losses = dict[str, Tensor]  # scalars by name


def pasted(tokens: Tensor, which: Tensor) -> Tensor:
    """Return tokens int [B, T] in which the images selected by `which` hold PASTES rectangles of the batch's next image.

    Positions and sizes (3 cells to half the image per side) are drawn from torch's generator.

    Args:
        tokens: int [B, T].
        which: bool [B].
    """
    grid = math.isqrt(tokens.shape[1])
    shape, line = (PASTES, len(tokens), 1), torch.arange(grid, device=tokens.device)

    def stretch() -> Tensor:  # bool [PASTES, B, grid]
        length = torch.randint(min(3, grid), max(grid // 2, 3) + 1, shape, device=tokens.device)
        first = (torch.rand(shape, device=tokens.device) * (grid - length + 1)).long()
        return (line >= first) & (line < first + length)

    cells = (stretch().unsqueeze(-1) & stretch().unsqueeze(-2)).any(0).flatten(1)  # [B, T]
    return torch.where(cells & which.unsqueeze(1), tokens.roll(-1, 0), tokens)


class CloudConfig(SequenceSettings):
    """The mapping under `cloud:` of a training file.

    Attributes:
        object_weight: weight of tokens at places that the caption names (`layout_of`) relative to the others. The words
            about objects decide about 15 of an image's 600 nats and are lost in the gradient noise at weight 1. A weight
            that depends on caption and position alone does not change the optimal distribution.
        onset_weight: further factor on each object's first rows (`onset_of`), in both losses: only the caption
            determines what is drawn there; below, the image does.
        layout_weight: weight of the loss on the states after layer `layout_layer` (`LayoutHead`).
        class_weight: weight of the cross-entropy of the token's class among `classes` (`code_classes`). A class's
            probability is the sum over its codes, so the optimum is the same, without the noise of which of several
            interchangeable codes occurred.
        pasted: share of captioned images whose input, not target, holds rectangles of another image (`pasted`). In real
            images the tokens agree with the caption; a model that has seen only these trusts its own errors more than
            the caption.
        caption_heads: initialise the first layer to count cells and read the caption, and the caption projection to be
            non-linear (`start_first_layer`, `start_from_captions`), instead of LlamaGen's small random weights.
        then: further rounds, each a mapping of the keys that change. A round starts from the averaged weights of the
            previous one and restarts the learning-rate schedule (warm restarts, Loshchilov & Hutter 2017).
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
        self.rounds()  # report errors in later rounds before the first one trains
        return self

    def rounds(self) -> "list[CloudConfig]":
        """Return the settings of each round: each mapping of `then` is merged into the settings of the previous round."""
        rounds = [self if not self.then else self.model_copy(update={"then": ()})]
        for index, change in enumerate(self.then):
            for key in ("model", "then"):
                if key in change:
                    refuse("cannot be changed by a later round", "then", index, key)
            last = dict(rounds[-1])
            parts = {
                key: {**dict(last[key] or {}), **change[key]}
                for key in ("training", "scenes")
                if isinstance(change.get(key), dict)
            }
            try:
                rounds.append(CloudConfig.model_validate({**last, **change, **parts}))
            except ValidationError as error:
                place, message = explain(error.errors()[0])
                refuse(message, "then", index, *place)
        return rounds


class CloudStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: CloudConfig, data: Sequences, start: Mapping[str, Tensor] | None = None) -> None:
        """Args: start: state dict to start from; None initialises fresh weights."""
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
        shown = ~batch.null.unsqueeze(1)  # [B, 1]; the weight must not depend on a caption that the model does not see
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


def losses_of(
    model: Transformer,
    head: LayoutHead,
    layer: int | None,
    classes: CodeClasses | None,
    batch: Batch,
    fed: Tensor,
    caption: Tensor,
    weight: Tensor,
    onset: Tensor,
) -> Losses:
    """Return the losses of a batch by name, scalars.

    Args:
        model: cloud model.
        head: layout head.
        layer: index of the layer that `head` reads; None omits its loss.
        classes: classes of codes; None omits their loss.
        batch: target tokens, null captions and layout.
        fed: input tokens int [B, T].
        caption: [B, caption_slots, caption_dim].
        weight: [B, T].
        onset: [B, T].

    Returns:
        `nats`: cross-entropy of the batch's tokens, averaged with `weight`.
        `layout`: loss of `head` on the states after `layer`, averaged with `onset`; 0 where the caption is null.
        `class`: cross-entropy of the tokens' classes.
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


@torch.inference_mode()
def evaluate(model: Transformer, data: Sequences) -> dict[str, float]:
    """Return nats per token on held-out sequences: with their captions, the null caption, and another sequence's caption.

    The last one, `nats_per_token_other_caption`, is absent if there is only one held-out image.
    """
    nats: dict[str, list[float]] = {}
    for batch in data.held_out_batches(16, beside=model):
        null = replace(batch, null=torch.ones_like(batch.null))
        cases = {
            "nats_per_token": batch,
            "nats_per_token_null": null,
            "nats_per_token_other_caption": miscaptioned(batch),
        }
        for name, case in cases.items():
            if len(case.tokens):
                mean = float(nats_per_token(model, case.tokens, case.caption_for(model), case.mask))
                nats.setdefault(name, []).extend([mean] * len(case.tokens))
    return {name: float(np.mean(values)) for name, values in nats.items()}


def miscaptioned(batch: Batch) -> Batch:
    """Return the batch with the caption of the nearest preceding sequence that has other tokens, cyclically.

    Sequences with the same tokens are captions of one image. Sequences without a sequence of other tokens in the batch are dropped.
    """
    index = torch.arange(len(batch.tokens), device=batch.tokens.device)
    differs = (batch.tokens.unsqueeze(1) != batch.tokens).any(-1)  # [B, B]
    distance = ((index.unsqueeze(1) - index) % len(index)).masked_fill(~differs, len(index))  # [B, B]
    kept, source = differs.any(1), distance.argmin(1)
    chosen = source[kept]
    return Batch(batch.tokens[kept], batch.caption[chosen], batch.mask[chosen], batch.null[kept], batch.layout[kept])


def run(config: CloudConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the cloud model; write cloud.safetensors and metrics.json to `out_dir`.

    The data are those of `source`, or scenes if it is None.

    Rounds before the last are kept in `out_dir/round-<n>`.

    Raises:
        ScenarioError: the tokenizer's sizes differ from the model's.
    """
    check_tokenizer(config.model, out_dir.parent / "tokenizer" / "tokenizer.safetensors")
    rounds = config.rounds()
    folders = round_folders(out_dir, len(rounds))
    start: Mapping[str, Tensor] | None = None
    steps, minutes = 0, 0.0
    for settings, folder in zip(rounds, folders, strict=True):
        data = Sequences(out_dir.parent, settings.scenes, source, settings.training.seed)
        check_shape(settings.model, data)
        inputs = {**settings_of(settings), **data.inputs(), **weights_read(out_dir.parent, "cloud")}
        if start is not None:
            inputs["round before"] = digest_of(start)
        stage = CloudStage(settings, data, start)
        result = train(stage, settings.training, folder, inputs=inputs, device=torch_device)
        start, steps, minutes = result.averaged, steps + result.steps, minutes + result.minutes
        if not result.finished:
            break
    result = replace(result, steps=steps, minutes=minutes)
    model = Transformer(settings.model).eval()
    model.load_state_dict(result.shipped)
    save_model(out_dir / "cloud.safetensors", model)
    if source is not None:
        write_atomically(out_dir / TEXT, save(data.text.state()))
    write_metrics(out_dir, evaluate(model.to(torch_device), data), result)
    return result


def check_tokenizer(config: TransformerConfig, path: Path) -> None:
    """Check the model's vocabulary size against a tokenizer file, if it exists, before images are encoded.

    Raises:
        ScenarioError: the sizes differ.
        WeightsError: the file is damaged.
    """
    if path.exists() and config.vocab_size != (codes := read_config(path).get("codebook_size")):
        raise ScenarioError(f"cloud.model.vocab_size is {config.vocab_size}, the tokenizer in {path} has {codes} codes")


def check_shape(config: TransformerConfig, data: Sequences) -> None:
    """Check the model's sizes against the tokens and captions. Raises ScenarioError."""
    wanted = {
        "vocab_size": len(data.codebook),
        "grid": math.isqrt(data.train.codes.shape[1]),
        "caption_slots": data.text.slots,
        "caption_dim": data.text.caption_dim,
    }
    for name, size in wanted.items():
        if getattr(config, name) != size:
            raise ScenarioError(f"cloud.model.{name} is {getattr(config, name)}, tokenizer and captions need {size}")
