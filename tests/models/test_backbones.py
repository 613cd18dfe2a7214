"""The loader of official checkpoints: accepted layouts, and errors about other files."""

import re
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.backbones import huggingface_files, llamagen_files, var_files
from models.backbones.llamagen import load_llamagen
from models.backbones.parts import WeightFile, bottleneck_of
from models.transformer import Transformer
from models.vq import VQConfig, VQModel, load_llamagen_vq
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import TransformerConfig

CONFIG = TransformerConfig(
    n_layer=2, n_head=2, dim=16, ffn_hidden=24, vocab_size=32, caption_slots=5, caption_dim=6, grid=4
)


def saved(path: Path, container: str | None) -> Path:
    torch.manual_seed(0)
    state = Transformer(CONFIG).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif container is None:
        torch.save(state, path)
    else:
        content: object = state
        for name in reversed(container.split(".")):
            content = {name: content}
        assert isinstance(content, dict)
        moments = {f"{key}.exp_avg{which}": value for key, value in state.items() for which in ("", "_sq")}
        torch.save({**content, "steps": 7, "args": OrderedDict(), "optimizer": moments, "rng": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize(
    "container",
    ["model", "module", "state_dict", "ema", None, "safetensors", "model_state_dict", "model.module", "app.model"],
)
def test_every_container_gives_the_same_model(tmp_path: Path, container: str | None) -> None:
    path = tmp_path / ("w.safetensors" if container == "safetensors" else "w.pt")
    model = load_llamagen(saved(path, container), grid=4, n_head=2)
    assert model.config == CONFIG
    assert not model.training
    torch.manual_seed(0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in Transformer(CONFIG).state_dict().items())


def test_several_state_dicts_of_one_size_are_named(tmp_path: Path) -> None:
    state = Transformer(CONFIG).state_dict()
    torch.save({"net": state, "net_ema": state}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: holds several state dicts, under net, net_ema; needed a file with"):
        load_llamagen(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_model_that_was_part_of_another_is_taken_out(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"w{suffix}", Transformer(CONFIG).state_dict()
    held = {f"model.gpt.{key}": value for key, value in state.items()} | {"loss.weight": torch.zeros(3)}
    if suffix == ".pt":
        torch.save({"state_dict": held, "epoch": 3}, path)
    else:
        save_file(held, path)
    model = load_llamagen(path, grid=4, n_head=2)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    tokenizer = VQModel(VQConfig(32, 4, 32, (1,), (1,), 32, 1))
    torch.save({f"vq.{key}": value for key, value in tokenizer.state_dict().items()}, tmp_path / "vq.pt")
    found = load_llamagen_vq(tmp_path / "vq.pt", tokenizer.config).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in tokenizer.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_rare_types_are_read_and_those_of_other_tensors_do_no_harm(tmp_path: Path, legacy: bool) -> None:
    state = {key: value.to(torch.float8_e4m3fn) for key, value in Transformer(CONFIG).state_dict().items()}
    state["norm.weight"] = torch.nn.Buffer(torch.ones(16))
    beside = {"z": torch.zeros(3, dtype=torch.complex64), "wide": torch.zeros(2, dtype=torch.uint16)}
    torch.save({**beside, "model": state}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    model = load_llamagen(tmp_path / "w.pt", grid=4, n_head=2)
    assert all(torch.equal(value, state[key].float()) for key, value in model.state_dict().items())
    del state["norm.weight"]
    save_file(
        {**state, "norm.weight": torch.full((16,), torch.nan).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors"
    )
    with pytest.raises(WeightsError, match=r"norm\.weight is not finite: 16 of 16"):
        load_llamagen(tmp_path / "w.safetensors", grid=4, n_head=2)


def test_heads_default_to_width_64(tmp_path: Path) -> None:
    config = TransformerConfig(1, 2, 128, 16, 8, 3, 4, 16)
    torch.save(Transformer(config).state_dict(), tmp_path / "w.pt")
    assert load_llamagen(tmp_path / "w.pt").config == config


def test_messages_name_file_key_and_shapes(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        load_llamagen(tmp_path / "none.pt")
    state = Transformer(CONFIG).state_dict()
    wrong = dict(state, **{"layers.1.attention.wo.weight": torch.zeros(16, 8)})
    torch.save({"model": wrong}, tmp_path / "shape.pt")
    with pytest.raises(
        WeightsError, match=r"shape\.pt: layers\.1\.attention\.wo\.weight has shape \[16, 8\], needed \[16, 16\]"
    ):
        load_llamagen(tmp_path / "shape.pt", n_head=2)
    named = dict(state, **{"layers.last_of_them.norm": torch.zeros(1), "layers.10.norm": torch.zeros(1)})
    torch.save({"model": named}, tmp_path / "named.pt")
    with pytest.raises(
        WeightsError, match=r"named\.pt: keys under layers must be numbered, got layers\.last_of_them\."
    ):
        load_llamagen(tmp_path / "named.pt", n_head=2)
    del state["norm.weight"]
    torch.save({"model": state}, tmp_path / "gap.pt")
    with pytest.raises(WeightsError, match=r"gap\.pt: norm\.weight is missing, needed \[16\]"):
        load_llamagen(tmp_path / "gap.pt", n_head=2)
    del state["tok_embeddings.weight"]
    torch.save({"model": state}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"tok_embeddings\.weight is missing: not a LlamaGen"):
        load_llamagen(tmp_path / "other.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"w{suffix}", "model")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(WeightsError, match=r"not (readable|a checkpoint)"):
        load_llamagen(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "a pointer of Git LFS; the file itself was not",
        ),
        (b"<!doctype html>", "a page of HTML or XML"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"\xef\xbb\xbf\n <html>", "a page of HTML or XML"),
        (b"Entry not found\n", "text: 'Entry not found'"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"\x89HDF\r\n", "an HDF5 file"),
    ],
)
def test_files_that_hold_no_weights_are_told_by_what_they_are(
    tmp_path: Path, suffix: str, content: bytes, found: str
) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\{suffix}: not readable as weights: {found}"):
        load_llamagen(tmp_path / f"w{suffix}")


def test_cut_and_misnamed_files_are_told_by_what_they_are(tmp_path: Path) -> None:
    whole = saved(tmp_path / "w.pt", None)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:-30])
    whole.rename(tmp_path / "torch.safetensors")
    for size in (60, -30):  # cut in the header, and in the data
        (tmp_path / f"cut{size}.safetensors").write_bytes(saved(tmp_path / "w.safetensors", None).read_bytes()[:size])
    (tmp_path / "w.safetensors").rename(tmp_path / "safe.bin")
    (tmp_path / "folder.pt").mkdir()
    for name, found in (
        ("cut.pt", "not readable as weights: an archive that is cut short"),
        ("cut60.safetensors", "not readable as weights: a file that is cut short, of 60 bytes"),
        ("cut-30.safetensors", "not readable as weights: a file that is cut short, of"),
        ("torch.safetensors", "not readable as weights: a PyTorch checkpoint under another name; name it .pt"),
        ("safe.bin", "not readable as weights: safetensors under another name; name it .safetensors"),
        ("folder.pt", "a folder, needed a file"),
    ):
        with pytest.raises(WeightsError, match=f"{name}: {found}"):
            load_llamagen(tmp_path / name)


class Evil:
    """An object that is pickled as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_not_run(tmp_path: Path, legacy: bool) -> None:
    state = Transformer(CONFIG).state_dict()
    carried = {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "args": Namespace(lr=1e-4),
        "evil": Evil(tmp_path / "ran"),
    }
    torch.save({"model": state, **carried}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    model = load_llamagen(tmp_path / "w.pt", grid=4, n_head=2)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(
        WeightsError, match=r"evil\.pt: holds no tensors .* found the keys model; of it \w+\.exec is code"
    ):
        load_llamagen(tmp_path / "evil.pt")
    torch.save(Transformer(CONFIG), tmp_path / "whole.pt")
    with pytest.raises(
        WeightsError, match=r"a pickled models\.transformer\.Transformer, whose code is not run; needed a state dict"
    ):
        load_llamagen(tmp_path / "whole.pt")
    assert not (tmp_path / "ran").exists()


def test_what_wrappers_add_to_keys_is_taken_off(tmp_path: Path) -> None:
    state = Transformer(CONFIG).state_dict()
    wrapped = {
        "module._orig_mod."
        + key.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace(
            "layers.1.", "layers.1._checkpoint_wrapped_module."
        ): value
        for key, value in state.items()
    }
    torch.save({"ema": {**wrapped, "module.freqs_cis": torch.zeros(3)}}, tmp_path / "w.pth")
    model = load_llamagen(tmp_path / "w.pth", grid=4, n_head=2)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # `ciar-sim train device` writes this prefix too, and an Inter-Head.
    torch.save({"model": {f"transformer.{key}": value for key, value in state.items()}}, tmp_path / "part.pt")
    model = load_llamagen(tmp_path / "part.pt", grid=4, n_head=2)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.save({**state, "module.norm.weight": state["norm.weight"]}, tmp_path / "twice.pt")
    with pytest.raises(WeightsError, match=r"holds norm\.weight twice, as norm\.weight and as module\.norm\.weight"):
        load_llamagen(tmp_path / "twice.pt")


def test_views_and_half_precision_are_read_as_they_are(tmp_path: Path) -> None:
    state = {key: value.bfloat16() for key, value in Transformer(CONFIG).state_dict().items()}
    whole = torch.randn(32, 16)
    state["tok_embeddings.weight"] = whole.t().contiguous().t()  # column-major storage
    state["output.weight"] = torch.nn.Parameter(torch.cat([whole, whole])[32:])  # half of a storage
    torch.save(state, tmp_path / "w.pt")
    model = load_llamagen(tmp_path / "w.pt", grid=4, n_head=2)
    assert torch.equal(model.tok_embeddings.weight, whole)
    assert torch.equal(model.output.weight, whole)
    assert torch.equal(
        model.layers[0].get_parameter("attention.wo.weight"), state["layers.0.attention.wo.weight"].float()
    )


def test_one_error_lists_everything_that_does_not_fit(tmp_path: Path) -> None:
    state = Transformer(CONFIG).state_dict()
    del state["norm.weight"]
    state["layers.1.attention.wo.weight"] = torch.zeros(16, 8)
    state["layers.0.attention.wo.weight"][2, 3] = torch.inf
    state["layers.0.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        load_llamagen(tmp_path / "w.pt", grid=4, n_head=2)
    assert str(caught.value) == (
        f"{tmp_path}/w.pt: norm.weight is missing, needed [16]; layers.1.attention.wo.weight has shape [16, 8], needed [16, 16]; "
        "layers.0.extra with shape [1] has no place in this model; "
        "layers.0.attention.wo.weight is not finite: 1 of 256 values are NaN or infinite"
    )


@pytest.mark.parametrize("shape", [(), (0, 3, 3, 3)])
@pytest.mark.parametrize(
    ("read", "key"),
    [
        (huggingface_files.vq_sizes, "encoder.conv_in.weight"),
        (llamagen_files.vq_sizes, "encoder.conv_in.weight"),
        (var_files.tokenizer_shape, "decoder.up.0.block.0.conv1.weight"),
        (lambda shapes, path: bottleneck_of(WeightFile(path, "phi", shapes)), "fc1.weight"),
    ],
)
def test_a_tensor_without_numbers_tells_no_size(read: Any, key: str, shape: tuple[int, ...]) -> None:
    wanted = re.escape(f"f.pt: {key} has shape {list(shape)}, needed sizes above 0")
    with pytest.raises(WeightsError, match=wanted):
        read({key: shape}, Path("f.pt"))
