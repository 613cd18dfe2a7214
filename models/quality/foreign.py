"""Published quality metrics with their original networks: `fid`, `f1`, `clip`, `hpsv2`.

The weights are not shipped or downloaded. The user names local files: the TorchScript files of StyleGAN's metrics
(`inception-2015-12-05.pt`, `vgg16.pt`) and folders in transformers' CLIP format. Loading a TorchScript file runs its code: name only files
from a trusted source.
"""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.pretrained import load_pretrained, load_tokenizer
from models.quality.statistics import Gaussian, f1_interval, frechet_interval
from models.state import refuse_nonfinite, refuse_nonfinite_model
from simulator.core.errors import WeightsError, first_line
from simulator.core.rng import stream
from simulator.results.statistics import Interval

BATCH = 32
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's preprocessing, RGB in 0..1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class FeatureNet:
    """A TorchScript network called as net(images uint8 [B, 3, H, W], return_features=True) -> float [B, F].

    Inception: F = 2048; VGG-16, second fully connected layer: F = 4096. The networks resize the images.
    Source: the call in StyleGAN2-ADA's and StyleGAN3's metrics.
    """

    def __init__(self, path: Path, torch_device: str = "cpu") -> None:
        """Load a network; this runs the file's code. Raises WeightsError if the file is missing or not TorchScript."""
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated, but the published files use it.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.net: Any = torch.jit.load(str(path), map_location=torch_device).eval()
        except RuntimeError as error:
            raise WeightsError(f"{path}: not a TorchScript file: {first_line(error)}") from error
        refuse_nonfinite_model(self.net, path)
        self.path, self.torch_device = path, torch_device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return features float32 [N, F] of images uint8 [H, W, 3], all of one size. Raises WeightsError for a network of another kind."""
        rows = []
        for batch in _batches(images):
            try:
                found = self.net(batch.permute(0, 3, 1, 2).contiguous().to(self.torch_device), return_features=True)
            except RuntimeError as error:
                raise WeightsError(
                    f"{self.path}: cannot be called as a feature network: {str(error).splitlines()[-1]}"
                ) from error
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(batch):
                raise WeightsError(
                    f"{self.path}: gave {_described(found)} for {len(batch)} images, needed features [{len(batch)}, F]"
                )
            refuse_nonfinite({"its output": found}, self.path)
            rows.append(found.float().cpu().numpy())
        return np.concatenate(rows)


def fid(net: FeatureNet, images: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> Interval:
    """Return (value, low, high) of the Fréchet Inception distance of images to real ones, both uint8 [H, W, 3].

    Source: Heusel et al. 2017. Comparable with a published value only for the same number of images and the same real images.
    """
    return frechet_interval(Gaussian(net(real)), net(images), stream(0, "quality.fid"))


def f1(net: FeatureNet, images: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> Interval:
    """Return (value, low, high) of the harmonic mean of improved precision and recall, k = 3, in VGG-16's features.

    Uses as many real images as there are generated ones, the first of `real`, or all if there are fewer. Source: Kynkäänniemi et al. 2019.
    """
    return f1_interval(net(real[: len(images)]), net(images), stream(0, "quality.f1"))


class Clip(Protocol):
    """Result of `load_clip`: embeddings [B, D] of images and texts, not normalised. `size` is the pixels per side of an image."""

    size: int

    def images(self, pixels: Tensor) -> Tensor: ...

    def texts(self, texts: Sequence[str]) -> Tensor: ...


def load_clip(folder: Path) -> Clip:
    """Load CLIP, or HPSv2's fine-tuned CLIP, from a local folder in transformers' format.

    Raises:
        WeightsError: the folder holds something else, or transformers is not installed.
    """
    return _TransformersClip(folder)


@torch.inference_mode()
def clip_scores(model: Clip, images: Sequence[np.ndarray], captions: Sequence[str], prefix: str = "") -> np.ndarray:
    """Return the cosine of each image with its caption, float64 [N]. Their mean is `clip`, or `hpsv2` with HPSv2's weights.

    The shorter side of an image is resized to the model's size by bicubic interpolation; the image is then cropped to
    its centre and normalised as in CLIP. Source: CLIP score, Hessel et al. 2021 (here neither scaled by 2.5 or 100 nor
    clipped at 0); HPSv2, Wu et al. 2023.

    Args:
        model: CLIP model.
        images: N images, uint8 [H, W, 3], all of one size.
        captions: N captions.
        prefix: text before each caption; LlamaGen's evaluation uses "A photo depicts ".

    Raises:
        ValueError: the numbers of images and captions differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images need as many captions, got {len(captions)}")
    scores = []
    for number, batch in enumerate(_batches(images)):
        texts = [prefix + caption for caption in captions[number * BATCH :][: len(batch)]]
        picture = F.normalize(model.images(_clip_pixels(batch, model.size)).double(), dim=-1)
        scores.append((picture * F.normalize(model.texts(texts).double(), dim=-1)).sum(-1).cpu().numpy())
    return np.concatenate(scores)


def _clip_pixels(images: Tensor, size: int) -> Tensor:
    """Return CLIP's input float32 [B, 3, size, size] of images uint8 [B, H, W, 3]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    if shape != (height, width):
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    pixels = pixels[:, :, top : top + size, left : left + size]
    return (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def _batches(images: Sequence[np.ndarray]) -> Iterator[Tensor]:
    for first in range(0, len(images), BATCH):
        yield torch.from_numpy(np.stack(images[first : first + BATCH]))


def _described(found: Any) -> str:
    return f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


class _TransformersClip:
    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(
                f"{folder}: no such folder, or no config.json in it; must be CLIP in transformers' format"
            )
        try:
            transformers: Any = importlib.import_module("transformers")  # its type hints lack CLIP's tokenizer
        except ImportError as error:
            raise WeightsError(
                "clip and hpsv2 need transformers, which is not installed: pip install 'ciar-sim[clip]'"
            ) from error
        wrong = "not CLIP in transformers' format"
        self.model: Any = load_pretrained(transformers.CLIPModel, folder, wrong)
        vocabulary = int(self.model.config.text_config.vocab_size)
        self.tokenizer: Any = load_tokenizer(transformers.CLIPTokenizerFast, folder, wrong, vocabulary)
        self.size = int(self.model.config.vision_config.image_size)

    def images(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return found

    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        found: Tensor = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return found
