"""LlamaGen's caption encoders: a T5 from a folder, features that it computed before, or class labels.

Source: LlamaGen, `language/t5.py`: captions are cleaned twice and tokenised to at most 120 tokens with the end token; the encoder's last
hidden states of the valid tokens are the caption's rows. `language/extract_t5_feature.py` defines the layout of features on disk.
"""

import difflib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backbones.captions import clean
from models.backbones.llamagen_files import ENCODERS, t5_config
from models.pretrained import load_pretrained, load_tokenizer
from simulator.core.errors import PromptError, WeightsError, first_line, reason
from simulator.core.files import read_file

REMEMBERED = 4096  # captions whose rows are cached; every method of a run encodes the same captions
WRONG = "no usable T5"
TRUNCATION = 120  # tokens, end token included


class ClassLabels:
    """The caption encoder of a class-conditional model: a caption is a label, one row with one number."""

    sample = "0"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def encode(self, caption: str) -> Tensor:
        """Return the label, float32 [1, 1]. Raises PromptError if the prompt is not a class label."""
        if not re.fullmatch(r"[0-9]{1,6}", caption.strip()) or int(caption) >= self.classes:
            raise PromptError(f"the prompt {caption[:60]!r} is not a class label; allowed: 0 to {self.classes - 1}")
        return torch.tensor([[float(int(caption))]])


class T5Encoder:
    """A T5 encoder of the transformers library with its tokenizer, from a local folder. Nothing is downloaded.

    Args:
        folder: folder with `config.json`, the weights and the tokenizer's files.
        slots: most rows of a caption.
        torch_device: where it runs.
        dtype: type of its weights.

    Raises:
        WeightsError: transformers is not installed, or the folder is not usable.
    """

    sample = "a photo of a red bus parked near the river"

    def __init__(self, folder: Path, slots: int, torch_device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.slots, self.torch_device = folder, slots, torch_device
        model = load_encoder(folder, dtype)
        vocabulary = int(model.config.vocab_size)
        self.tokenizer = load_tokenizer(load_transformers(folder).AutoTokenizer, folder, WRONG, vocabulary)
        self.model = model.to(torch_device)
        self._kept: dict[str, Tensor] = {}

    def encode(self, caption: str) -> Tensor:
        """Return the caption's rows, float32 [n, D], n <= slots. Raises PromptError if the cleaned caption is empty."""
        if caption not in self._kept:
            text = clean(clean(caption))
            if not text:
                raise PromptError(f"the caption {caption[:60]!r} is empty once cleaned as LlamaGen cleans captions")
            found = self.tokenizer(
                [text],
                max_length=min(self.slots, TRUNCATION),
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            )
            rows = self.rows(found["input_ids"], found["attention_mask"])[0]
            if len(self._kept) >= REMEMBERED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[caption] = rows.float().cpu()
        return self._kept[caption]

    @torch.inference_mode()
    def rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states [B, n, D] of token ids int [B, n]; mask: int [B, n], 1 for valid tokens."""
        states: Tensor = self.model(
            input_ids=ids.to(self.torch_device), attention_mask=mask.to(self.torch_device)
        ).last_hidden_state
        return states


class FeatureFolder:
    """Features that LlamaGen's script extracted: `<list>/<line>.npy`, with the captions in `<list>.jsonl`.

    Args:
        folder: folder with both.
        slots: most rows of a caption.
        caption_dim: width of a row.
    """

    def __init__(self, folder: Path, slots: int, caption_dim: int) -> None:
        self.folder, self.slots, self.caption_dim = folder, slots, caption_dim

    @property
    def sample(self) -> str:
        """The first caption with features."""
        return next(iter(self.places))

    @cached_property
    def places(self) -> dict[str, Path]:
        """File of each caption's features. Raises WeightsError if no caption of a list has features."""
        found = {caption: path for path, caption in captions_of_lists(self.folder) if path.is_file()}
        if not found:
            raise WeightsError(
                f"{self.folder}: no line of its lists (LIST.jsonl) has features (LIST/0.npy, LIST/1.npy, ...)"
            )
        return found

    def encode(self, caption: str) -> Tensor:
        """Return the caption's rows, float32 [n, D], n <= slots.

        Raises:
            PromptError: the folder has no features of the caption.
            WeightsError: the features are damaged.
        """
        path = self.places.get(caption)
        if path is None:
            near = difflib.get_close_matches(caption, self.places, n=1, cutoff=0.0)
            hint = f"; the nearest caption with features: {near[0][:80]!r}" if near else ""
            raise PromptError(f"{self.folder} holds no features of {caption[:80]!r}{hint}")
        try:
            with path.open("rb") as file:
                found = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise WeightsError(f"{path}: not readable as features: {first_line(error)[:200]}") from None
        if found.dtype.kind not in "fiu":
            raise WeightsError(f"{path}: not readable as features: of type {found.dtype}, needed real numbers")
        if found.ndim != 3 or len(found) != 1 or found.shape[1] == 0 or found.shape[2] != self.caption_dim:
            raise WeightsError(f"{path}: features of shape {list(found.shape)}, needed [1, rows, {self.caption_dim}]")
        with np.errstate(over="ignore"):
            rows = found[0, : self.slots].astype(np.float32)
        if not np.isfinite(rows).all():
            raise WeightsError(f"{path}: features are not finite in float32")
        return torch.from_numpy(rows)


def captions_of_lists(folder: Path) -> list[tuple[Path, str]]:
    """Return, for every line of a folder's lists, the path of its features and its caption. Raises WeightsError."""
    found = []
    for path in sorted(path for path in folder.glob("*.jsonl") if path.is_file()):
        try:
            content = read_file(path)
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None
        for index, line in enumerate(content.splitlines()):
            try:
                text: Any = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise WeightsError(f"{path}:{index + 1}: a line must be a JSON object with text") from None
            # Of several captions, LlamaGen's script uses the first by default.
            caption = text[0] if isinstance(text, list) and text else text
            if not isinstance(caption, str):
                raise WeightsError(f"{path}:{index + 1}: text must be a caption or a list of captions")
            found.append((folder / path.name.partition(".")[0] / f"{index}.npy", caption))
    return found


def load_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """Load the T5 encoder of a folder, in `eval()` mode.

    Raises:
        WeightsError: the folder is damaged, weights are missing or not finite, or a library is not installed.
    """
    transformers = load_transformers(folder)
    kind = ENCODERS.get(str(t5_config(folder).get("model_type")), ENCODERS["t5"])
    return load_pretrained(getattr(transformers, kind), folder, WRONG, dtype=dtype)


def load_transformers(folder: Path) -> Any:
    """Import and return the transformers library. Raises WeightsError if it, or a library for cleaning captions, is not installed."""
    try:
        import bs4  # noqa: F401  # see models.backbones.captions
        import ftfy  # noqa: F401
        import transformers
    except ImportError as error:
        raise WeightsError(f"{folder}: needs the library {error.name}: pip install 'ciar-sim[backbones]'") from None
    return transformers
