"""Measurements of `ciar-sim profile`: a pair, or a model of the catalogue at its true shape."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ciar_sim.cli.common import pair_of
from simulator.core.errors import ComputeError, reason
from simulator.pricing import catalogue
from simulator.pricing.catalogue import ModelShape
from simulator.pricing.compare import FittedRoofline, role_shapes
from simulator.pricing.own import ReachedFigures
from simulator.pricing.profile import Profile


def measure(
    pair: str,
    model: str | None,
    dtype: str,
    runtime: Any,
    batch: int,
    torch_device: str,
    progress: Callable[[int, int], None],
    budget_s: float,
) -> Profile:
    """Measure the profile of a model, or of a pair if `model` is None. The arguments are the options of the command.

    Raises:
        ComputeError: The runtime needs a CUDA device.
    """
    import torch

    from models.profile import measure_model, sizes_of
    from models.recording import load_models, profile_of
    from models.var.profile import measure_scale_model

    if runtime == "cuda-graphs" and not torch_device.startswith("cuda"):
        raise ComputeError(f"--runtime cuda-graphs needs a CUDA device, got {torch_device}")
    if model is None:
        return profile_of(load_models(pair_of(pair), torch_device), progress, budget_s)
    device, kind = torch.device(torch_device), getattr(torch, dtype)
    timed = measure_scale_model if catalogue.model(model).by_scales else measure_model
    return timed(model, device, kind, sizes_of(model, batch), progress, budget_s, runtime)


def shapes_of(pair: str, model: str | None) -> Mapping[str, ModelShape]:
    """Return the shapes of the models that `measure` measures, by role."""
    from simulator.pricing.build import pair_shapes

    if model is None:
        shapes = pair_shapes(pair_of(pair))
        return role_shapes(shapes.cloud, shapes.device, shapes.drafter_ffn)
    shape = catalogue.model(model)
    return role_shapes(shape, shape if shape.by_scales else catalogue.model(catalogue.one_layer(model)))


def fitted_yaml(found: FittedRoofline, path: Path) -> None:
    """Write fitted figures as a hardware file. Memory and power cannot be measured; the user must fill them in.

    Raises:
        ComputeError: The file cannot be written.
    """
    from simulator.core import yamlfile
    from simulator.core.files import write_atomically

    fit = found.hardware
    figures = {
        "title": fit.title[:60],
        "class": "desktop",
        "fp16_tflops": fit.fp16_tflops,
        "bandwidth_gb_s": fit.bandwidth_gb_s,
        "memory_gb": 8,
        "power_w": 30,
        "bandwidth_efficiency": 1.0,
        "compute_efficiency": 1.0,
        "kernel_overhead_us": fit.kernel_overhead_us,
        "by_role": {
            role: {name: getattr(machine, name) for name in ReachedFigures.model_fields}
            for role, machine in found.by_role.items()
        },
    }
    text = f"# Fitted to a measured profile, for runtime: {found.runtime}. memory_gb and power_w are not measured: fill them in.\n"
    try:
        write_atomically(path, (text + yamlfile.dump(figures)).encode())
    except OSError as error:
        raise ComputeError(f"{path}: cannot be written: {reason(error)}") from None
