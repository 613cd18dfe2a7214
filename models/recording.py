"""The models of any pair that can be run, the recorder that serves them, and the times of their passes."""

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
    """The models of a pair, of one that predicts scale by scale too, in float32. Raises WeightsError."""
    if isinstance(pair, PairSpec) and (found := find_pair(pair)).manifest.scales:
        loaded: VarPair = function_of(pair.backbone.load)(found, torch.device(torch_device), torch.float32)
        return loaded
    return load_pair(pair, torch_device)


def profile_of(models: Models, progress: Progress | None = None, budget_s: float = 15.0) -> Profile:
    """Times of passes with these models. Arguments: see `models.profile.measure_profile`."""
    if isinstance(models, VarPair):
        return measure_scales(models, progress, budget_s)
    return measure_profile(models, progress, budget_s)


def recorder_of(
    models: Models, max_batch: int = 64, progress: Callable[[int, int, int, int], None] | None = None
) -> Recorder | ScaleRecorder:
    """What makes recordings with these models. Arguments: see `models.recorder.Recorder`."""
    if isinstance(models, VarPair):
        return ScaleRecorder(models, max_batch, progress)
    return Recorder(models, max_batch, progress)
