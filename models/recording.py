"""Loads, times and records any pair that can be run: those that predict token by token and those that predict scale by scale."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from models.backbones.huggingface import PromptEncoder
from models.backbones.t5 import ClassLabels, FeatureFolder
from models.backbones.var import VarPair
from models.pair import TEXT, Pair, load_pair, load_text
from models.profile import Progress, measure_profile
from models.recorder import Recorder
from models.text import TextEncoder
from models.var.profile import measure_scales
from models.var.recorder import ScaleRecorder
from simulator.core.errors import PromptError
from simulator.pricing.profile import Profile
from simulator.protocol.backbones import function_of
from simulator.protocol.pairs import FoundPair, PairRef, PairSpec, find_pair, pair_folder, pair_manifest, verify_files

Models = Pair | VarPair


def check_captions(pair: PairRef, captions: Iterable[str]) -> None:
    """Check what a recorder would refuse before any pass, without loading the models: the files of a pair, and captions.

    The captions of a pair with a T5, which is a model itself, are not checked.

    Raises:
        PromptError: The pair cannot encode a caption.
        WeightsError: A file is missing or damaged.
    """
    if isinstance(pair, PairSpec):
        encoder = _encoder(find_pair(pair))
    else:
        folder, manifest = pair_folder(pair), pair_manifest(pair)
        verify_files(folder, manifest)
        encoder = load_text(folder / TEXT)
    if encoder is None:
        return
    for caption in captions:
        try:
            encoder.encode(caption)
        except PromptError as error:
            error.prompt = caption
            raise


def _encoder(found: FoundPair) -> TextEncoder | None:
    """Return the caption encoder of a published model; None if it is a model itself."""
    if described := found.facts.get("described"):
        return PromptEncoder(Path(found.spec.weights), described.prompt, described.config.text_vocab)
    if found.facts.get("classes"):
        return ClassLabels(found.facts["classes"])
    if found.facts.get("features"):
        return FeatureFolder(found.facts["text"], found.manifest.caption_slots, found.manifest.caption_dim)
    return None


def load_models(pair: PairRef, torch_device: str = "cpu") -> Models:
    """Load the models of a pair in float32, also of one that predicts scale by scale. Raises WeightsError."""
    if isinstance(pair, PairSpec) and (found := find_pair(pair)).manifest.scales:
        loaded: VarPair = function_of(pair.backbone.load)(found, torch.device(torch_device), torch.float32)
        return loaded
    return load_pair(pair, torch_device)


def profile_of(models: Models, progress: Progress | None = None, budget_s: float = 15.0) -> Profile:
    """Measure the times of passes with these models. Arguments: see `models.profile.measure_profile`."""
    if isinstance(models, VarPair):
        return measure_scales(models, progress, budget_s)
    return measure_profile(models, progress, budget_s)


def recorder_of(
    models: Models, max_batch: int = 64, progress: Callable[[int, int, int, int], None] | None = None
) -> Recorder | ScaleRecorder:
    """Return the recorder for these models. Arguments: see `models.recorder.Recorder`."""
    if isinstance(models, VarPair):
        return ScaleRecorder(models, max_batch, progress)
    return Recorder(models, max_batch, progress)
