"""The image tokenizer, its files and refusals. Reference outputs are in tests/parity/."""

from pathlib import Path

import pytest
import torch

from models.vq import VQConfig, VQModel, from_uint8, load_llamagen_vq, load_vq, save_vq, to_uint8
from simulator.core.errors import WeightsError

SMALL = VQConfig(
    codebook_size=64, ch=32, encoder_ch_mult=(1, 1), decoder_ch_mult=(1, 1), z_channels=32, num_res_blocks=1, patch=4
)


def saved(tmp_path: Path, state: dict[str, torch.Tensor], key: str | None = "model") -> Path:
    path = tmp_path / "weights.pt"
    torch.save({key: state} if key else state, path)
    return path


def test_the_default_shape_is_vq16() -> None:
    with torch.device("meta"):
        model = VQModel(VQConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model.config.downsample == 16
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["quantize.embedding.weight"] == (16384, 8)
    assert shapes["decoder.conv_blocks.0.attn.2.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.conv_blocks.0.res.0.conv1.weight"] == (512, 512, 3, 3)


def test_codes_decode_to_images_of_the_encoded_size() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        codes = model.encode_codes(images)
        decoded = model.decode_codes(codes)
    assert codes.shape == (2, 64)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < SMALL.codebook_size
    assert decoded.shape == images.shape
    assert torch.equal(decoded, model.decode_codes(codes.view(2, 8, 8)))


def test_gradients_reach_the_encoder_through_the_codes() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL)
    result = model.quantise(model.encode(torch.rand(1, 3, 64, 64)))
    (model.decode(result.quantised).square().mean() + result.codebook_loss).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_grid_that_is_not_square_must_be_given_as_one() -> None:
    with pytest.raises(ValueError, match="60 codes"):
        VQModel(SMALL).decode_codes(torch.zeros(1, 60, dtype=torch.long))


def test_bytes_become_images_and_come_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)


@pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
def test_a_checkpoint_is_found_under_any_usual_key(tmp_path: Path, key: str | None) -> None:
    state = VQModel(SMALL).state_dict()
    state["quantize.codebook_used"] = torch.zeros(65536)
    loaded = load_llamagen_vq(saved(tmp_path, state, key), SMALL)
    assert torch.equal(loaded.quant_conv.weight, state["quant_conv.weight"])


def test_missing_misshapen_and_unknown_keys_are_named(tmp_path: Path) -> None:
    state = VQModel(SMALL).state_dict()
    without = {key: tensor for key, tensor in state.items() if key != "decoder.mid.1.q.weight"}
    with pytest.raises(WeightsError, match=r"weights.pt: decoder.mid.1.q.weight is missing, needed \[32, 32, 1, 1\]"):
        load_llamagen_vq(saved(tmp_path, without), SMALL)
    with pytest.raises(WeightsError, match=r"quantize.embedding.weight has shape \[9, 8\], needed \[64, 8\]"):
        load_llamagen_vq(saved(tmp_path, {**state, "quantize.embedding.weight": torch.zeros(9, 8)}), SMALL)
    with pytest.raises(WeightsError, match="extra with shape"):
        load_llamagen_vq(saved(tmp_path, {**state, "extra": torch.zeros(1)}), SMALL)


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_llamagen_vq(tmp_path / "none.pt", SMALL)
    whole = saved(tmp_path, VQModel(SMALL).state_dict())
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"not a checkpoint of plain tensors|not readable as weights"):
        load_llamagen_vq(whole, SMALL)
    whole.write_bytes(b"a text file")
    with pytest.raises(WeightsError, match=r"not a checkpoint of plain tensors|not readable as weights"):
        load_llamagen_vq(whole, SMALL)
    torch.save({"model": [1, 2]}, whole)
    with pytest.raises(WeightsError, match=r"holds a list, needed a dict of tensors|holds no tensors"):
        load_llamagen_vq(whole, SMALL)


def test_a_saved_tokenizer_loads_with_its_config_as_fp16(tmp_path: Path) -> None:
    model, path = VQModel(SMALL), tmp_path / "tokenizer.safetensors"
    save_vq(path, model, {"psnr_db": 1.5})
    loaded = load_vq(path)
    assert loaded.config == SMALL
    assert torch.equal(loaded.quant_conv.weight, model.quant_conv.weight.half().float())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"not a model of this project|not readable as weights"):
        load_vq(path)
    with pytest.raises(WeightsError, match="no such file"):
        load_vq(tmp_path / "none.safetensors")
