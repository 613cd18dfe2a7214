"""The loader of official checkpoints: layouts it takes, and what it says about files it cannot take."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.backbones import load_llamagen
from models.transformer import Transformer
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import TransformerConfig

CONFIG = TransformerConfig(
    n_layer=2, n_head=2, dim=16, ffn_hidden=24, vocab_size=32, caption_slots=5, caption_dim=6, grid=4
)


def saved(path: Path, container: str | None) -> Path:
    state = Transformer(CONFIG).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if container is None else {container: state, "steps": 7, "args": OrderedDict()}, path)
    return path


@pytest.mark.parametrize("container", ["model", "module", "state_dict", None, "safetensors"])
def test_every_container_gives_the_same_model(tmp_path: Path, container: str | None) -> None:
    path = tmp_path / ("w.safetensors" if container == "safetensors" else "w.pt")
    model = load_llamagen(saved(path, container), grid=4, n_head=2)
    assert model.config == CONFIG
    assert not model.training


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


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Path}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="not a checkpoint of plain tensors"):
        load_llamagen(tmp_path / "evil.pt")
