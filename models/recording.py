"""Loads, times and records any pair that can be run: those that predict token by token and those that predict scale by scale."""

from collections.abc import Callable

import torch

from models.backbones.var import VarPair
from models.pair import Pair, load_pair
from models.profile import Progress, measure_profile
from models.recorder import Recorder
from models.var.profile import measure_scales
from models.var.recorder import ScaleRecorder
from simulator.pricing.profile import Profile
from simulator.protocol.backbones import function_of
from simulator.protocol.pairs import PairRef, PairSpec, find_pair

Models = Pair | VarPair


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
