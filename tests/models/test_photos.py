"""Photographs in tars with a table: preparation, captions, refusals, the cache, and training."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from benchmarks.launches import parts_of
from ciar_sim.cli.main import main
from models.pair import load_pair
from models.train import photos
from models.train.patches import set_patch_codes
from models.train.photos import CAPTION_WORDS, COLUMNS, caption_of, load_photos
from models.train.run import read_training_file
from models.vq import VQConfig, VQModel
from simulator.core.errors import DataError, PromptError
from simulator.core.rng import stream
from tests.models import toy

pytestmark = pytest.mark.usefixtures("undrawn")

COLOURS = {"Red": (220, 30, 30), "Navy Blue": (10, 20, 90)}
Table = list[list[str]]


def table(count: int) -> Table:
    sides, colours = (*3 * ["train"], "held-out"), list(COLOURS)
    return [
        [str(10 + n), sides[n % 4], "Apparel", "Topwear", "Tshirts", colours[n % 2], "Casual", f"Acme {n}"]
        for n in range(count)
    ]


def jpeg(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (60, 80)) -> bytes:
    noise = stream(0, "test.photo", seed).integers(-8, 8, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write(root: Path, rows: Table, files: dict[str, bytes] | None = None) -> Path:
    """Write the table and two tars, and return the folder. The tars hold `files`, or an image for every row by default."""
    root.mkdir(exist_ok=True)
    (root / "captions.csv").write_text("".join(",".join(row) + "\n" for row in [list(COLUMNS), *rows]))
    found = {f"{row[0]}.jpg": jpeg(COLOURS[row[5]], int(row[0])) for row in rows} if files is None else files
    for part in range(2):
        with tarfile.open(root / f"photos-{part}.tar", "w") as archive:
            for name in list(found)[part::2]:
                entry = tarfile.TarInfo(name)
                entry.size = len(found[name])
                archive.addfile(entry, io.BytesIO(found[name]))
    return root


def test_captions_come_from_the_columns() -> None:
    assert caption_of("Navy Blue", "Tshirts", "Smart Casual", "Acme Men's Navy Blue Polo T-Shirt, Printed") == (
        "a navy blue tshirts for smart casual men polo t-shirt printed"
    )
    longest = caption_of("Red", "Ties and Cufflinks", "Casual", " ".join(sorted(photos.TITLE_WORDS)))
    assert len(longest.split()) == CAPTION_WORDS


def test_images_stand_in_the_middle_of_white(tmp_path: Path) -> None:
    data = load_photos(write(tmp_path / "in", table(8)), 16, tmp_path / "kept")
    images = torch.cat(list(data.held_out_images(16)))  # rows 3 and 7
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    shown = (images.permute(0, 2, 3, 1) + 1) * 127.5  # [2, 16, 16, 3]
    assert float(shown[:, :, [0, 15]].min()) > 245  # 60 x 80 in 80 x 80: an eighth of white on either side
    assert (shown[:, 2:14, 4:12].mean((0, 1, 2)) - torch.tensor(COLOURS["Navy Blue"])).abs().max() < 6


def test_held_out_images_are_spread_over_a_sorted_table(tmp_path: Path) -> None:
    # Red, then navy blue, as the shipped pair's table is sorted by type. A quarter is held out.
    rows = sorted(table(80), key=lambda row: row[5])
    rows = [[row[0], "held-out" if index % 4 == 3 else "train", *row[2:]] for index, row in enumerate(rows)]
    data = load_photos(write(tmp_path / "in", rows), 16, tmp_path / "kept")
    parts = list(data.held_out_images(18))
    assert [len(part) for part in parts] == [16, 2]
    red = (torch.cat(parts)[:, 0, 8, 8] > 0).float().mean()
    assert red == 0.5
    assert sum(len(part) for part in data.held_out_images(100)) == 20


def test_sides_words_and_shuffled_reading(tmp_path: Path) -> None:
    data = load_photos(write(tmp_path / "in", table(8)), 16, tmp_path / "kept")
    assert [row.name for row in data.rows["held-out"]] == ["13.jpg", "17.jpg"]
    assert data.text.words == ("a", "blue", "casual", "for", "navy", "red", "tshirts")
    assert data.text.slots == CAPTION_WORDS
    with pytest.raises(PromptError, match="unknown word 'green'"):
        data.text.encode("a green tshirts for casual")
    epoch = data.training_images(0, 0, 6)
    assert len(torch.unique(epoch.flatten(1), dim=0)) == 6
    assert torch.equal(data.training_images(0, 4, 1)[0], epoch[4])


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", table(8))
    first = load_photos(folder, 16, tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(photos, "_prepared", lambda *_: pytest.fail("nothing is to be decoded again"))
        again = load_photos(folder, 16, tmp_path / "kept")
    assert np.array_equal(first.images["train"], again.images["train"])
    assert first.images["train"].dtype == np.uint8
    write(folder, table(8), {f"{10 + n}.jpg": jpeg((0, 99, 0), n) for n in range(8)})
    load_photos(folder, 16, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (",".join(table(1)[0][:7]), "captions.csv:3: 7 columns, must be 8"),
        ("x1,train,A,T,Tops,Red,Casual,t", "captions.csv:3: id must be a number, got x1"),
        ("10,train,A,T,Tops,Red,Casual,t", "captions.csv:3: duplicate: 10 is already at .*captions.csv:2"),
        ("11,test,A,T,Tops,Red,Casual,t", "captions.csv:3: split must be train or held-out, got test"),
        ("11,train,A,T,Tops, ,Casual,t", "captions.csv:3: colour is empty"),
        ('11,train,A,T,Tops,Red,Casual,"t', "captions.csv:[35]: unexpected end of data"),
        ("99,train,A,T,Tops,Red,Casual,t", "captions.csv:3: 99.jpg is in none of the photos-\\*.tar"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    folder = write(tmp_path / "in", table(4))
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "captions.csv").write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(DataError, match=said):
        load_photos(folder, 16, tmp_path / "kept")


def test_bad_files_are_named(tmp_path: Path) -> None:
    folder, kept = write(tmp_path / "in", table(4)), tmp_path / "kept"
    with pytest.raises(DataError, match=r"nowhere/captions.csv: no such file"):
        load_photos(tmp_path / "nowhere", 16, kept)
    write(folder, table(4), {f"{10 + n}.jpg": b"no image" if n == 1 else jpeg((9, 9, 9), n) for n in range(4)})
    with pytest.raises(DataError, match=r"captions.csv:3: 11.jpg of .*photos-1.tar cannot be decoded"):
        load_photos(folder, 16, kept)
    assert not kept.exists()
    (folder / "photos-1.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(DataError, match=r"photos-1.tar: not a readable tar"):
        load_photos(folder, 16, kept)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"no photos-\*.tar there; the folder of the photographs is given with --data"):
        load_photos(folder, 16, kept)
    write(folder, table(3))
    with pytest.raises(DataError, match="of 3 rows none has the split held-out"):
        load_photos(folder, 16, kept)
    (folder / "captions.csv").write_text("id,split\n")
    with pytest.raises(DataError, match=r"captions.csv:1: the columns must be id,split,category"):
        load_photos(folder, 16, kept)


def test_patch_codes_are_the_nearest_centres() -> None:
    rng = stream(0, "test.patches")
    images = torch.from_numpy(rng.uniform(-1, 1, (24, 3, 16, 16))).float()
    images[:, :, :, 8:] = 1.0  # half of every image is white
    model = VQModel(
        VQConfig(
            codebook_size=32, codebook_dim=14, ch=32, encoder_ch_mult=(), decoder_ch_mult=(1,), z_channels=32, patch=2
        )
    )
    set_patch_codes(model, images, stream(0, "test.patches", 1))
    codes = model.encode_codes(images).detach()
    patches = torch.nn.functional.pixel_unshuffle(images, 2).permute(0, 2, 3, 1).reshape(-1, 12)
    assert len(torch.unique(codes[:, [4, 5, 6, 7, 12]])) == 1  # white is one code
    rows, weight, bias = model.quantize.embedding.weight, model.quant_conv.weight, model.quant_conv.bias
    assert bias is not None
    length = (-2 * rows[:, 12] / rows[:, :12].square().sum(1)).median()  # R of the module's docstring
    centres = (rows[:, :12] * length - bias[:12]) / weight[0, 0, 0, 0]
    assert (torch.cdist(patches, centres).argmin(1) == codes.flatten()).float().mean() > 0.99
    shown = torch.nn.functional.pixel_unshuffle(model.decode_codes(codes), 2).permute(0, 2, 3, 1).reshape(-1, 12)
    assert torch.allclose(shown, centres[codes.flatten()], atol=1e-3)
    assert (
        torch.cdist(patches, centres).amin(1).square().mean()
        < 0.8 * torch.cdist(patches, patches[:32]).amin(1).square().mean()
    )


def training() -> dict[str, Any]:
    vq = {
        "codebook_size": 64,
        "codebook_dim": 50,
        "ch": 32,
        "encoder_ch_mult": [],
        "decoder_ch_mult": [1],
        "z_channels": 32,
        "num_res_blocks": 0,
        "patch": 4,
    }
    stages = toy.stages({"model": vq}, caption_slots=CAPTION_WORDS)
    del stages["drafter"]  # the pair has no drafter
    return {"data": {"photos": "photos", "image_size": 16}, **stages}


def test_every_stage_trains_on_the_folder_that_data_names(tmp_path: Path) -> None:
    config, folder = tmp_path / "own.yaml", write(tmp_path / "elsewhere", table(8))
    config.write_text(yaml.safe_dump(training()))
    command = [
        "train",
        str(config),
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--export",
        str(tmp_path / "pair"),
    ]
    with toy.quick_evaluation():
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    pair = load_pair(tmp_path / "pair")
    assert pair.manifest.image_size == 16
    assert pair.text.words == ("a", "blue", "casual", "for", "navy", "red", "tshirts")
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 1


def test_launches_of_a_training_are_counted_at_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.launches.TOKENS", (2, 3))
    monkeypatch.setattr("models.train.muon.TOGETHER", ("cuda",))  # the count sets it
    stages = {**training(), "drafter": toy.stages({})["drafter"]}
    stages["device"] |= {"on_policy": {"sequences": 64, "steps": 3, "learning_rate": 1e-3}, "token_steps": 1}
    stages["judge"] = {"batch_images": 4, "training": stages["cloud"]["training"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(stages))
    parts = {part.name: part for part in parts_of(tmp_path / "own.yaml", larger=False)}
    assert {name: part.times for name, part in parts.items()} == {
        "tokenizer": 2,
        "cloud": 2,
        "device, tokens": 1,
        "device, distillation": 1 + 3,
        "rollouts, tokens": (1 + 2) * 16,
        "device, metrics": 128,
        "drafter": 2,
        "judge": 2,
    }
    assert all(part.launches > 20 and part.flops > 0 for part in parts.values())


def test_data_is_refused_where_scenes_are_read(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text("phi: {scenes: {train: 8}, training: {steps: 2, learning_rate: 1e-3}}\n")
    result = CliRunner().invoke(main, ["train", str(config), "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "own.yaml: reads scenes and no folder of images, so --data does not apply" in result.output


def test_the_shipped_file_is_good() -> None:
    file = read_training_file(Path(photos.__file__).parents[1] / "photos.yaml")
    assert file.data is not None
    assert file.tokenizer is not None
    assert file.data.image_size // file.tokenizer.model.downsample == 16
