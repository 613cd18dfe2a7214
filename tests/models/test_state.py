"""Weight files of every kind: non-finite values, impossible sizes and other shapes are refused in one line."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciar_sim.cli.main import main
from models import pair as pairs
from models.backbones.llamagen import load_llamagen
from models.eagle import EagleDrafter, drafter_config
from models.pair import load_pair
from models.phi import IntervalProjection
from models.quality import foreign
from models.quality.network import SceneNetwork, load_scene_network, save_network
from models.state import build, save_state
from models.transformer import Transformer
from models.vq import VQConfig, VQModel, load_llamagen_vq, load_vq, save_vq
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import LARGEST, TransformerConfig, file_hash, pair_manifest

SHAPE = TransformerConfig(1, 2, 16, 24, 32, 5, 6, 4)
VQ = VQConfig(64, 8, 32, (1, 1), (1, 1), 32, 1)


def spoil(path: Path, key: str, value: float) -> None:
    """Overwrite the first value of a tensor in a weight file."""
    if path.suffix != ".safetensors":
        state = torch.load(path, weights_only=True)
        state[key].view(-1)[0] = value
        torch.save(state, path)
        return
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    state[key].view(-1)[0] = value
    save_file(state, path, metadata=metadata)


def relist(folder: Path) -> None:
    """Rewrite the manifest to match the current files."""
    manifest = json.loads((folder / "pair.json").read_text())
    for file in manifest["files"]:
        path = folder / file["name"]
        file |= {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    (folder / "pair.json").write_text(json.dumps(manifest))


@pytest.fixture
def tiny(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair_folder, tmp_path / "tiny"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("cloud-00001-of-00001", "layers.1.attention_norm.weight"),
        ("device", "radii.quantile.weight"),
        ("phi", "fc2.bias"),
        ("drafter", "layers.0.self_attn.k_proj.weight"),
        ("tokenizer", "quantize.embedding.weight"),
        ("text", "vectors"),
    ],
)
def test_a_pair_with_weights_that_are_not_finite_is_refused(tiny: Path, file: str, key: str, value: float) -> None:
    spoil(tiny / f"{file}.safetensors", key, value)
    relist(tiny)
    with pytest.raises(WeightsError, match=rf"{file}\.safetensors: {key} is not finite: 1 of \d+ values"):
        load_pair(tiny)


def test_the_command_line_says_so_in_one_line(tiny: Path, tmp_path: Path) -> None:
    spoil(tiny / "device.safetensors", "transformer.norm.weight", math.nan)
    relist(tiny)
    out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--quiet"]
    found = CliRunner().invoke(main, ["evaluate", "samples", "--pair", str(tiny), "--prompts", "1", *out])
    assert found.exit_code == 2
    assert found.output.startswith("Error: ")
    assert "device.safetensors: transformer.norm.weight is not finite" in found.output
    assert len(found.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


Loader = Callable[[Path], object]


@pytest.mark.parametrize("file", ["cloud-00001-of-00001", "device", "phi", "drafter", "tokenizer"])
def test_a_pair_with_a_key_that_no_model_has_is_refused(tiny: Path, file: str) -> None:
    path = tiny / f"{file}.safetensors"
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({**load_file(path), "layers.9.surplus": torch.zeros(2)}, path, metadata=metadata)
    relist(tiny)
    with pytest.raises(WeightsError, match=rf"{file}\.safetensors: layers\.9\.surplus with shape \[2\] has no place"):
        load_pair(tiny)


def test_word_vectors_of_whole_numbers_are_refused(tiny: Path) -> None:
    state = load_file(tiny / "text.safetensors")
    save_file({**state, "vectors": state["vectors"].long()}, tiny / "text.safetensors")
    relist(tiny)
    with pytest.raises(
        WeightsError, match=r"text\.safetensors: .*vectors has type torch\.int64, needed torch\.float32"
    ):
        load_pair(tiny)


def phi_file(path: Path) -> None:
    pairs.save_model(path, IntervalProjection(16, 32, 4))


@pytest.mark.parametrize(
    ("write", "load", "suffix", "key"),
    [
        (lambda path: torch.save(Transformer(SHAPE).state_dict(), path), load_llamagen, ".pt", "norm.weight"),
        (lambda path: pairs.save_model(path, Transformer(SHAPE)), pairs.load_transformer, "", "output.weight"),
        (phi_file, pairs.load_phi, "", "fc1.weight"),
        (
            lambda path: pairs.save_model(path, EagleDrafter(drafter_config(SHAPE))),
            lambda path: pairs.load_drafter(path, SHAPE),
            "",
            "fc.bias",
        ),
        (lambda path: save_vq(path, VQModel(VQ), {}), load_vq, "", "quant_conv.bias"),
        (
            lambda path: torch.save(VQModel(VQ).state_dict(), path),
            lambda path: load_llamagen_vq(path, VQ),
            ".pt",
            "decoder.conv_in.weight",
        ),
        (
            lambda path: save_network(path, SceneNetwork(), {}),
            load_scene_network,
            "",
            "place_head.bias",
        ),
    ],
)
def test_every_loader_refuses_what_is_not_finite(
    tmp_path: Path, write: Callable[[Path], object], load: Loader, suffix: str, key: str
) -> None:
    path = tmp_path / f"w{suffix or '.safetensors'}"
    write(path)
    spoil(path, key, math.nan)
    with pytest.raises(WeightsError, match=rf"w\.(pt|safetensors): {key} is not finite"):
        load(path)


def test_weights_that_a_narrow_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = Transformer(SHAPE)
    with torch.no_grad():
        model.norm.weight[3] = 1e5  # finite in float32, not in float16
    torch.save(model.state_dict(), tmp_path / "wide.pt")
    assert load_llamagen(tmp_path / "wide.pt", grid=4, n_head=2).config == SHAPE
    with pytest.raises(WeightsError, match=r"wide\.pt in torch\.float16: norm\.weight is not finite"):
        load_llamagen(tmp_path / "wide.pt", grid=4, n_head=2, dtype=torch.float16)
    with pytest.raises(WeightsError, match=r"new\.safetensors: norm\.weight is not finite"):
        save_state(tmp_path / "new.safetensors", model.state_dict())
    assert not (tmp_path / "new.safetensors").exists()


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean(dim=[2, 3]) * self.gain


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_network_of_other_people_is_refused_likewise(tmp_path: Path) -> None:
    network, path = Weighted(), tmp_path / "net.pt"
    torch.jit.script(network).save(str(path))
    assert foreign.FeatureNet(path).torch_device == "cpu"  # an infinite mask is allowed
    with torch.no_grad():
        network.gain[1] = math.nan
    torch.jit.script(network).save(str(path))
    with pytest.raises(WeightsError, match=r"net\.pt: gain is not finite"):
        foreign.FeatureNet(path)


# --- sizes


sizes = st.sampled_from(sorted(LARGEST))
numbers = st.one_of(st.integers(-3, 0), st.integers(min_value=2**20 + 1), st.integers(max_value=-1))


@given(name=sizes, value=numbers)
def test_a_size_that_cannot_be_is_refused_with_its_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be 1 to \d+, got "):
        dataclasses.replace(SHAPE, **{name: value})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["", "cloud", "device"]),
    name=st.sampled_from([*sorted(LARGEST), "image_size", "phi_bottleneck", "codebook_size", "format", "rope_base"]),
    value=st.one_of(numbers, st.floats(), st.text(max_size=3), st.none(), st.booleans(), st.lists(st.none())),
)
def test_a_manifest_with_any_value_is_read_or_refused(tiny: Path, place: str, name: str, value: Any) -> None:
    manifest = json.loads((tiny / "pair.json").read_text())
    (manifest[place] if place else manifest)[name] = value
    path = tiny / "other.json"
    path.write_text(json.dumps(manifest))
    folder = tiny / "other"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "pair.json")
    message = ""
    try:
        pair_manifest(folder)
    except WeightsError as error:
        message = str(error)
    assert not message or "pair.json: " in message
    assert len(message) < 400


@pytest.mark.parametrize("changes", [{"n_head": 0}, {"n_layer": -1}, {"dim": 10**60}, {"grid": 300}])
def test_sizes_of_a_manifest_are_named(tiny: Path, changes: dict[str, int]) -> None:
    manifest = json.loads((tiny / "pair.json").read_text())
    manifest["cloud"] |= changes
    (tiny / "pair.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"pair\.json: .*cloud"):
        pair_manifest(tiny)


def test_a_configuration_larger_than_its_file_allocates_nothing(tiny: Path) -> None:
    manifest = json.loads((tiny / "pair.json").read_text())
    manifest["cloud"] |= {"ffn_hidden": 2**20, "n_layer": 100}  # 400 GB of weights
    (tiny / "pair.json").write_text(json.dumps(manifest))
    with pytest.raises(
        WeightsError, match=r"cloud-00001-of-00001\.safetensors: .*layers\.0\.feed_forward\.w1\.weight has shape"
    ):
        load_pair(tiny)


def test_a_file_of_a_future_size_is_named(tmp_path: Path) -> None:
    save_vq(tmp_path / "vq.safetensors", VQModel(VQ), {})
    state = load_file(tmp_path / "vq.safetensors")
    config = {**dataclasses.asdict(VQ), "num_res_blocks": 10**9}
    save_file(state, tmp_path / "vq.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"vq\.safetensors: .*num_res_blocks must be 1 to 64, got 1000000000"):
        load_vq(tmp_path / "vq.safetensors")


def test_built_modules_hold_the_state_in_float32() -> None:
    state = {key: value.half() for key, value in Transformer(SHAPE).state_dict().items()}
    model = build(lambda: Transformer(SHAPE), state, "w")
    assert not model.training
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())
