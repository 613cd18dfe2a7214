"""All tensors of decoding are on the pair's device: recordings on a simulated GPU, for builds of torch without CUDA.

`Gpu` simulates a second device. Tensors created on it or moved to it are `GpuTensor`s, which report gpu:0 and compute on the CPU.
Like CUDA tensors, they refuse operations with CPU tensors and conversion to numpy.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.tiny_pair import make_tiny_pair
from models.pair import load_pair
from models.recording import load_models, recorder_of
from models.sampling import guide
from models.train.cloud import CloudConfig, CloudStage
from models.train.cloud import evaluate as evaluate_cloud
from models.train.device import DeviceConfig, DeviceStage
from models.train.device import evaluate as evaluate_device
from models.train.drafter import DrafterConfig, DrafterStage
from models.train.drafter import evaluate as evaluate_drafter
from models.train.loop import moved, train
from models.train.patches import set_patch_codes
from models.train.phi import PhiConfig, PhiStage
from models.train.phi import evaluate as evaluate_phi
from models.train.sequences import Batch
from models.train.tokens import SceneTokens
from models.vq import VQConfig, VQModel
from simulator.core.rng import stream
from simulator.protocol.pairs import TransformerConfig
from simulator.protocol.recording import Recording

from . import toy, var_files
from .test_methods import METHODS_UNDER_TEST, record, spec
from .test_var import asked, named

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no hook for devices written in Python", allow_module_level=True)
backend_registration._setup_privateuseone_for_python_backend("gpu")  # torch's hook for devices in Python
torch.gpu.get_amp_supported_dtype = list  # type: ignore[attr-defined]  # checkpointing in the process asks for it
GPU = torch.device("gpu", 0)
aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._to_copy.default, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.to.dtype}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}  # indices may be on the CPU


class GpuTensor(torch.Tensor):
    """A tensor on the simulated GPU. `held` is its content on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "GpuTensor":
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:  # CUDA allows it; torch refuses it and numpy() for every subclass
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended GPU")


class Gpu(TorchDispatchMode):
    """The simulated GPU, active inside the context."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten._has_compatible_shallow_copy_type.default:
            return type(args[0]) is type(args[1])  # a moved module gets new parameters
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, GpuTensor)]
        asked = kwargs.get("device", next((x for x in args if isinstance(x, torch.device)), None))
        if func in INDEXING and isinstance(args[0], GpuTensor):
            tensors = [args[0], *args[2:3]]
        if here and func not in ACROSS and any(x.dim() > 0 and not isinstance(x, GpuTensor) for x in tensors):
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, found gpu:0 and cpu")
        on_gpu = isinstance(args[0], GpuTensor) if func is aten.copy_.default else bool(here)
        if asked is not None:
            on_gpu = torch.device(asked).type == "gpu"
        owners = {id(x.held): x for x in here}

        def inside(x: Any) -> Any:
            return x.held if isinstance(x, GpuTensor) else torch.device("cpu") if isinstance(x, torch.device) else x

        def outside(x: Any) -> Any:
            if not on_gpu or not isinstance(x, torch.Tensor):
                return x
            with torch.inference_mode(False):  # a view of a weight must not be an inference tensor
                return owners[id(x)] if id(x) in owners else GpuTensor(x)

        return tree_map(outside, func(*tree_map(inside, args), **tree_map(inside, kwargs)))


@contextmanager
def pretended_gpu() -> Iterator[None]:
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so torch.tensor(..., device=...) uses the mode
    try:
        with Gpu():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@pytest.fixture
def gpu() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.mark.usefixtures("gpu")
def test_the_pretended_gpu_refuses_what_cuda_refuses() -> None:
    there, here = torch.ones(2, 3, device="gpu"), torch.ones(3)
    assert there.device == GPU
    for wrong in (
        lambda: there + here,
        lambda: guide(there, there, torch.ones(2)) @ here,
        lambda: torch.cat([there[0], here]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()
    assert (there + torch.tensor(1.0)).cpu().numpy().tolist() == [[2.0] * 3] * 2
    assert there[torch.tensor([0])].sum().item() == 3.0
    there[0] = torch.tensor([5.0, 6.0, 7.0]).to("gpu")
    assert there.tolist() == [[5.0, 6.0, 7.0], [1.0] * 3]


@pytest.mark.usefixtures("gpu")
def test_codes_of_patches_are_those_of_the_cpu() -> None:
    shape = VQConfig(
        codebook_size=16,
        codebook_dim=14,
        ch=32,
        encoder_ch_mult=(),
        decoder_ch_mult=(1,),
        z_channels=32,
        num_res_blocks=0,
        patch=2,
    )
    images = torch.from_numpy(stream(0, "test.placement").uniform(-1, 1, (8, 3, 8, 8))).float()
    found = []
    for model_there, images_there in (("cpu", "cpu"), ("gpu", "cpu"), ("gpu", "gpu")):
        model = VQModel(shape).to(model_there)
        set_patch_codes(model, images.to(images_there), stream(0, "test.placement", 1))
        assert model.quantize.embedding.weight.device.type == model_there
        found.append([weight.cpu() for weight in (model.quantize.embedding.weight, model.quant_conv.weight)])
    assert all(torch.equal(one, other) for rows in found[1:] for one, other in zip(found[0], rows, strict=True))


NAMES = [name for name, _ in METHODS_UNDER_TEST]
# The simulated GPU is slow, so the cases are every variant of ciar and the first of every other method, alternately sampled and greedy.
CASES = [
    (*case, "greedy" if index % 2 else "sampled")
    for index, case in enumerate(METHODS_UNDER_TEST)
    if case[0] == "ciar" or case[0] not in NAMES[:index]
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Recording, Recording]]:
    """Return the recordings of every case on the CPU and the simulated GPU.

    All cases are in one batch, since the simulated GPU's time does not depend on the batch size.
    """
    folder = tmp_path_factory.mktemp("pairs") / "four-tokens"
    make_tiny_pair(folder, grid=2)
    cpu = load_pair(folder, dtype=torch.float64)
    specs = [spec(cpu, name, settings, cloud=cloud, device=cloud) for name, settings, cloud in CASES]
    with pretended_gpu():
        there = load_pair(folder, "gpu", dtype=torch.float64)
        assert next(there.cloud.parameters()).device == GPU
        made = record(there, *specs, max_batch=len(specs))
    return list(zip(record(cpu, *specs, max_batch=len(specs)), made, strict=True))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "-".join((CASES[number][0], CASES[number][2])))
def test_recordings_on_a_gpu_are_those_of_the_cpu(recordings: list[tuple[Recording, Recording]], number: int) -> None:
    one, two = recordings[number]
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.ops, two.ops)
    assert np.allclose(one.scores, two.scores, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("gpu")
def test_models_that_predict_scale_by_scale_decode_where_they_lie(tmp_path: Path) -> None:
    models = load_models(named(var_files.write(tmp_path / "var")), "gpu")
    ((_, recording),) = recorder_of(models).record([asked("code", {"prefix_rate": 0.134})])
    assert len(recording.tokens) == 680


class Drawn:
    """Sequences of random tokens, captions and layouts, on the CPU as those that stages read."""

    def __init__(self, shape: TransformerConfig) -> None:
        self.shape = shape
        rng = stream(0, "test.placement.sequences")
        self.codebook = torch.from_numpy(rng.standard_normal((shape.vocab_size, 4))).float()
        self.seed = 0
        self.train = SceneTokens(rng.integers(shape.vocab_size, size=(8, shape.tokens)).astype(np.uint16), [])

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        rng, shape = stream(0, "test.placement.batch", step), self.shape
        return Batch(
            torch.from_numpy(rng.integers(shape.vocab_size, size=(size, shape.tokens))),
            torch.from_numpy(rng.standard_normal((size, shape.caption_slots, shape.caption_dim))).float(),
            torch.ones(size, shape.caption_slots, dtype=torch.bool),
            torch.arange(size) % 2 == 1,
            torch.from_numpy(rng.integers(2, size=(size, 3, shape.tokens))),
        )

    def held_out_batches(
        self, size: int, most: int | None = None, beside: torch.nn.Module | None = None
    ) -> Iterator[Batch]:
        assert beside is not None  # all metrics are measured where the models lie
        yield moved(self.batch("held-out", 0, 2, 0.0), next(beside.parameters()).device)


@pytest.mark.usefixtures("gpu", "undrawn")
def test_stages_train_where_their_model_lies(tmp_path: Path) -> None:
    training = {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 1}
    common: dict[str, Any] = {"batch_images": 2, "scenes": {"train": 8}, "training": training}
    turned: dict[str, Any] = {**common, "training": {**training, "optimizer": "muon"}}
    shape = {**toy.SHAPE, "n_layer": 2, "n_head": 3, "dim": 48, "caption_slots": 4, "caption_dim": 18, "grid": 2}
    more = {
        "caption_heads": True,
        "dropout": 0.1,
        "layout_weight": 0.1,
        "layout_layer": 1,
        "class_weight": 0.1,
        "classes": 4,
    }
    config = CloudConfig.model_validate({**turned, **more, "pasted": 0.5, "onset_weight": 2.0, "model": shape})
    data: Any = Drawn(config.model)
    guided = {"positions": 2, "guidance": 1.5}

    def trained(stage: Any) -> Any:
        result = train(stage, stage.config.training, tmp_path / type(stage).__name__, device="gpu")
        assert result.finished
        assert all(value.device.type == "cpu" for value in result.averaged.values())
        return stage.model

    cloud = trained(CloudStage(config, data))
    device = trained(DeviceStage(DeviceConfig.model_validate({**turned, **guided, "token_steps": 1}), cloud, data))
    phi = trained(PhiStage(PhiConfig.model_validate({**common, **guided, "bottleneck": 8}), cloud, device, data))
    drafter = trained(DrafterStage(DrafterConfig.model_validate({**common, "positions": 2}), cloud, data))
    near, far, added, drafts = (model.to("gpu").eval() for model in (device, cloud, phi, drafter))
    assert math.isfinite(evaluate_cloud(far, data)["nats_per_token"])
    assert math.isfinite(evaluate_device(near, far, data, 1.5, gated=True)["gated"]["sampled"]["kl_nats"])
    assert math.isfinite(evaluate_phi(added, far, near, data, 1.5)["in_place_kl_nats"])
    assert math.isfinite(evaluate_drafter(drafts, far, data)["distance"])
