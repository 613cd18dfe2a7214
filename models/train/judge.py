"""Training of the photo network, which judges the images of a pair of photographs; its readings of real photographs are stored.

Training photographs are randomly shifted, blurred, tinted and noised, and half of them mirrored, so that the network reads smooth
tokenizer outputs as well as photographs.

    ciar-sim train models/photos.yaml --data DIR --stage judge
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from models.quality.judge_files import NETWORK, JudgeFiles
from models.quality.network import save_network
from models.quality.photo_network import PhotoNetwork, PhotoNetworkConfig, read_photos
from models.quality.photo_reading import CLAIMS, PhotoClaims
from models.train.data import DataConfig, Side
from models.train.inputs import JUDGE, digest_of_bytes, settings_of, weights_read, write_inputs
from models.train.loop import MOST_IMAGES, LoopSettings, TrainResult, train
from models.train.order import shuffled_indices
from models.train.photos import Photos, Row, load_photos
from models.train.scene_network import augment, round_trips
from models.train.sequences import write_metrics
from models.vq import from_uint8, load_vq
from simulator.core.errors import DataError, WeightsError
from simulator.core.part import Part, items
from simulator.core.rng import stream

MORE_CAPTIONS = 2048  # captions of training photographs, for prompts and calibration after the held-out captions
Width = Annotated[int, Field(gt=0, le=1024)]


class JudgeConfig(Part):
    """The mapping under `judge:` of a training file.

    Attributes:
        widths: channels of the network's three resolutions.
    """

    training: LoopSettings
    batch_images: int = Field(default=64, gt=0, le=MOST_IMAGES)
    widths: Annotated[tuple[Width, Width, Width], BeforeValidator(items)] = (48, 96, 128)


class JudgeStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: JudgeConfig, photos: Photos) -> None:
        rows = photos.rows["train"]
        self.config, self.images = config, photos.images["train"]
        kinds, colours = (tuple(sorted(set(texts))) for texts in ([r.kind for r in rows], [r.colour for r in rows]))
        self.shape = PhotoNetworkConfig(photos.image_size, kinds, colours, config.widths)
        self.labels = np.array([[kinds.index(row.kind), colours.index(row.colour)] for row in rows])  # [N, 2]
        torch.manual_seed(int(stream(config.training.seed, "train.judge.init").integers(2**62)))
        self.model = PhotoNetwork(self.shape)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the photographs of a step, about half of them mirrored, uint8 [B, S, S, 3], and labels (type, colour) int64 [B, 2]."""
        size, seed = self.config.batch_images, self.config.training.seed
        index = shuffled_indices(seed, "train.judge.order", step * size, size, len(self.images))
        images = np.array(self.images[index])
        mirrored = stream(seed, "train.judge.mirror", step).random(size) < 0.5
        images[mirrored] = images[mirrored, :, ::-1]
        return torch.from_numpy(images), torch.from_numpy(self.labels[index])

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(self.model.parameters()).device
        images, labels = (part.to(device) for part in batch)
        read = self.model(augment(from_uint8(images)))
        parts = {
            "type": F.cross_entropy(read.kind.float(), labels[:, 0]),
            "colour": F.cross_entropy(read.colour.float(), labels[:, 1]),
        }
        return parts["type"] + parts["colour"], {name: value.detach() for name, value in parts.items()}


def distinct(rows: Sequence[Row]) -> list[int]:
    """Return the index of the first row of each caption, in order."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.caption, index)
    return list(first.values())


def accuracy(claims: PhotoClaims, captions: Sequence[str], readings: np.ndarray) -> dict[str, float]:
    """Return the shares of captions whose type and whose colour are read, and their mean `align`.

    Captions without a known type and colour (`PhotoClaims.of`) do not count.
    """
    found = [(claims.of(caption), reading) for caption, reading in zip(captions, readings, strict=True)]
    right = np.array([(r["kind"] == c[0], r["colour"] == c[1]) for c, r in found if c is not None])  # [N, 2]
    return {**dict(zip(CLAIMS, right.mean(0).tolist(), strict=True)), "align": float(right.mean())}


def run(settings: JudgeConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the photo network; write the files of `models.quality.judge_files` and metrics.json to `out_dir`.

    Raises:
        WeightsError: the tokenizer's weights are missing.
        DataError: no held-out photograph has both a type and a colour that the network learns, so its accuracy cannot be measured.
    """
    assert source is not None  # a training file with this stage names photographs
    assert source.photos is not None
    weights = out_dir.parent / "tokenizer" / "tokenizer.safetensors"
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such file; stage judge needs the stage tokenizer before it")
    photos = load_photos(Path(source.photos), source.image_size, out_dir.parent / "pictures")
    stage = JudgeStage(settings, photos)
    claims = PhotoClaims(stage.shape.kinds, stage.shape.colours)
    if not any(claims.of(row.caption) for row in photos.rows["held-out"]):
        raise DataError(
            f"{source.photos}: no held-out photograph has both a type and a colour of a training photograph"
        )
    labels = "\n".join(f"{row.kind}; {row.colour}" for row in photos.rows["train"])
    inputs = {
        **settings_of(settings),
        "training images": photos.digest(),
        "training labels": digest_of_bytes([labels.encode()]),
    }
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device)
    network = PhotoNetwork(stage.shape).eval()
    network.load_state_dict(result.shipped)

    def images(side: Side, index: Sequence[int]) -> np.ndarray:
        return np.asarray(photos.images[side][np.array(index)])

    held_out, rows = photos.rows["held-out"], photos.rows["train"]
    # Shuffled, because small sets of images are compared with the first readings only, and the table is sorted by type.
    chosen = stream(settings.training.seed, "train.judge.held-out").permutation(distinct(held_out)).tolist()
    originals = images("held-out", chosen)
    # The same number of random training photographs, reduced to one per caption as well.
    order = stream(settings.training.seed, "train.judge.others").permutation(len(rows))
    drawn = order[: len(held_out)]
    others = [int(drawn[index]) for index in distinct([rows[at] for at in drawn])]
    tokenizer, real = load_vq(weights), images("train", others)
    readings = {
        "held-out": read_photos(network, originals),
        "reconstructed": read_photos(network, round_trips(tokenizer, originals)),
        "other": read_photos(network, real),
        "other-reconstructed": read_photos(network, round_trips(tokenizer, real)),
    }
    captions = [held_out[index].caption for index in chosen]
    more = dict.fromkeys(rows[at].caption for at in order)
    known = set(captions)
    captions += [caption for caption in more if caption not in known][:MORE_CAPTIONS]
    files = JudgeFiles(stage.shape.kinds, stage.shape.colours, tuple(captions), len(chosen), readings)
    files.write(out_dir)
    metrics: dict[str, Any] = {
        "held_out_photographs": len(chosen),
        **{name: accuracy(claims, captions[: len(chosen)], readings[name]) for name in ("held-out", "reconstructed")},
        "training": accuracy(claims, [rows[index].caption for index in others], readings["other"]),
    }
    save_network(out_dir / NETWORK, network, metrics)
    write_metrics(out_dir, metrics, result)
    if result.finished:
        write_inputs(out_dir, inputs | weights_read(out_dir.parent, JUDGE))
    return result
