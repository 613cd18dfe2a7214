"""Third-party metrics on tiny networks with the original call signatures."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciar_sim.cli.main import main
from models.quality import foreign
from models.quality.statistics import Gaussian, frechet_distance, precision_recall_f1
from simulator.core.errors import WeightsError
from simulator.core.rng import stream

# The tests create TorchScript files, which is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Colours(nn.Module):
    """A network that returns mean and contrast of each colour: features [B, 6] of uint8 [B, 3, H, W]."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.float()
        means, contrasts = x.mean(dim=[2, 3]), x.std(dim=[2, 3])
        if return_features:
            return torch.cat([means, contrasts], dim=1)
        return means


class NoFeatures(nn.Module):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float()


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.jit.script(Colours()).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt"


def images(seed: int, count: int, spread: float = 30.0) -> list[np.ndarray]:
    rng = stream(seed, "test.images")
    middles = 128 + spread * rng.standard_normal((count, 1, 1, 3))
    return list((middles + 20 * rng.standard_normal((count, 16, 12, 3))).clip(0, 255).astype(np.uint8))


def features(some: list[np.ndarray]) -> np.ndarray:
    x = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float()
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1).numpy()


def test_fid_and_f1_are_the_statistics_of_the_network_s_features(net: Path) -> None:
    made, real = images(0, 40, 20.0), images(1, 60)
    network = foreign.FeatureNet(net)
    assert np.allclose(network(made), features(made), atol=1e-3)  # more than one batch
    value, low, high = foreign.fid(network, made, real)
    assert value == pytest.approx(frechet_distance(Gaussian(features(real)), Gaussian(features(made))), rel=1e-4)
    assert 0 <= low < value < high
    value, low, high = foreign.f1(network, made, real)
    assert value == pytest.approx(precision_recall_f1(features(real[:40]), features(made))[2])
    assert 0 <= low <= value <= high <= 1


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        foreign.FeatureNet(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        foreign.FeatureNet(tmp_path / "text.pt")
    torch.jit.script(NoFeatures()).save(str(tmp_path / "pixels.pt"))
    with pytest.raises(WeightsError, match=r"gave a tensor \[2, 3, 16, 12\] for 2 images, needed features \[2, F\]"):
        foreign.FeatureNet(tmp_path / "pixels.pt")(images(0, 2))
    torch.jit.script(nn.Flatten()).save(str(tmp_path / "plain.pt"))
    with pytest.raises(WeightsError, match="cannot be called as a feature network"):
        foreign.FeatureNet(tmp_path / "plain.pt")(images(0, 2))


class TinyClip:
    """A CLIP model that embeds images as their mean colour and texts by the words red, green and blue."""

    size = 8

    def __init__(self) -> None:
        self.seen: list[str] = []

    def images(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[1:] == (3, 8, 8)
        std, mean = (torch.tensor(values) for values in (foreign.CLIP_STD, foreign.CLIP_MEAN))
        return pixels.mean((2, 3)) * std + mean

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.seen += texts
        return torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts])


def test_clip_scores_are_cosines_of_each_image_with_its_caption() -> None:
    images = [np.full((16, 24, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (60, 80, 0))] * 12
    model = TinyClip()
    found = foreign.clip_scores(
        model, images, ["a red ball", "a blue ball", "a green ball"] * 12, prefix="A photo depicts "
    )
    assert found == pytest.approx(np.array([1.0, 0.0, 0.8] * 12), abs=1e-6)
    assert model.seen[0] == "A photo depicts a red ball"
    assert len(model.seen) == 36
    with pytest.raises(ValueError, match="as many captions"):
        foreign.clip_scores(model, images, ["one"])


def test_clip_takes_the_middle_of_a_wide_image() -> None:
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16, 0] = 255
    assert foreign.clip_scores(TinyClip(), [image], ["red"]) == pytest.approx(1.0)


def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json in it"):
        foreign.load_clip(tmp_path)


def test_a_damaged_clip_is_refused_with_its_reason(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    for change, message in (
        ({"text_projection.weight": None}, "its weights do not fit its config.json; missing: text_projection.weight"),
        (
            {"text_projection.weight": torch.ones(2, 2)},
            r"of another shape: text_projection.weight, needed \[8, 16\]",
        ),
        ({"text_projection.weight": torch.full((8, 16), torch.nan)}, "text_projection.weight is not finite"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "model.safetensors: not readable as weights: a pointer of Git LFS",
        ),
        (b"half of it", "model.safetensors: not readable as weights"),
        # Without the files, transformers makes a tokenizer without words, or none, depending on its version.
        (("vocab.json", "merges.txt"), "not CLIP in transformers' format: its tokenizer"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clip_folder, folder)
        if isinstance(change, dict):
            state = load_file(folder / "model.safetensors") | change
            kept = {key: value for key, value in state.items() if value is not None}
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        elif isinstance(change, bytes):
            (folder / "model.safetensors").write_bytes(change)
        else:
            for name in change:
                (folder / name).unlink()
        with pytest.raises(WeightsError, match=message):
            foreign.load_clip(folder)


def test_without_transformers_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"pip install 'ciar-sim\[clip\]'"):
        foreign.load_clip(tmp_path)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny CLIP in the format of transformers, with a tokenizer of letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(vocabulary), "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**shape, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_scores_of_a_transformers_clip_are_its_own(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizerFast

    images = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8) for seed in range(3)]
    captions = ["a red cube", "b", "long " * 100]  # the last is cut at 77 tokens
    found = foreign.clip_scores(foreign.load_clip(clip_folder), images, captions)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizerFast.from_pretrained(clip_folder)(
        captions, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model(**tokens, pixel_values=foreign._clip_pixels(torch.from_numpy(np.stack(images)), 32))
    assert found == pytest.approx((out.image_embeds * out.text_embeds).sum(-1).numpy(), abs=1e-6)


SCENARIO = """\
name: images
pair: {pair}
prompts: {{source: scenes, count: 12}}
methods: [base, device-only]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
sweep: {{network.preset: [wifi, lte]}}
"""


def test_images_of_a_scenario_are_scored_once_per_method(
    tmp_path: Path, tiny_pair_folder: Path, net: Path, clip_folder: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.format(pair=tiny_pair_folder))
    (tmp_path / "real").mkdir()
    for index, image in enumerate(images(3, 20)):
        Image.fromarray(image).save(tmp_path / "real" / f"{index:02}.png")
    scenario, real, out = str(tmp_path / "s.yaml"), str(tmp_path / "real"), tmp_path / "out"
    common = ["evaluate", "pictures", scenario, "--cache", str(tmp_path / "cache"), "--out", str(out), "--quiet"]
    given = [
        "--inception",
        str(net),
        "--vgg",
        str(net),
        "--clip",
        str(clip_folder),
        "--hpsv2",
        str(clip_folder),
        "--real",
        real,
    ]
    result = CliRunner().invoke(main, [*common, *given])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "pictures.csv")
    assert table["method"].tolist() == ["base", "device-only"]  # the network sweep changes no image
    assert table["images"].tolist() == [12, 12]
    assert (table["fid_lo"] <= table["fid"]).all()
    assert (table["clip"] == table["hpsv2"]).all()  # the same network and no prefix
    assert ((table["f1"] >= 0) & (table["f1"] <= 1)).all()
    for arguments, message in (
        ([], "name at least one network"),
        (["--vgg", str(net)], "name their folder by --real"),
        (
            ["--vgg", str(net), "--real", real, "--set", "prompts.count=9"],
            "base: fid and f1 need at least 10 images, prompts are 9",
        ),
        (["--vgg", str(tmp_path / "none.pt"), "--real", real], "none.pt: no such file"),
        (["--vgg", str(net), "--real", str(tmp_path / "cache")], "0 images"),
    ):
        result = CliRunner().invoke(main, [*common, *arguments])
        assert result.exit_code == 2, result.output
        assert message in result.output
    statistical = CliRunner().invoke(
        main, ["evaluate", "pictures", "code-var", "--clip", str(clip_folder), *common[3:]]
    )
    assert "the pair paper-code makes no images: its sessions come from published figures" in statistical.output
    Image.fromarray(images(0, 1)[0][:8]).save(real + "/99.png")
    assert (
        "99.png: 12 x 8 pixels, the folder's first image has 12 x 16"
        in CliRunner().invoke(main, [*common, *given]).output
    )
