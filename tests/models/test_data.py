"""Images and captions from folders: both layouts, the split, the vocabulary, the cache, refusals, and training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import ExifTags, Image, ImageOps

from ciar_sim.cli.main import main
from models.images import rgb_of
from models.pair import load_pair
from models.text import UNKNOWN, WordEncoder
from models.train import data as data_module
from models.train.data import DataConfig, Item, data_tokens, is_held_out, load_data, read_image, shuffled, vocabulary
from models.vq import VQConfig, VQModel, load_vq, save_vq
from simulator.core.errors import DataError, PromptError
from simulator.core.rng import stream
from tests.models import toy

pytestmark = pytest.mark.usefixtures("undrawn")

NARROW: dict[str, Any] = {
    "codebook_size": 64,
    "ch": 32,
    "encoder_ch_mult": [1, 1],
    "decoder_ch_mult": [1, 1],
    "z_channels": 32,
    "num_res_blocks": 1,
    "patch": 4,
}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def image(path: Path, name: str, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = stream(0, "test.image", path.name).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray((np.array(COLOURS[name]) * 0.8 + noise).astype(np.uint8)).save(path)


def captioned(count: int) -> list[tuple[str, str]]:
    return [(f"{index:02d}.png", f"a {list(COLOURS)[index % 3]} wall, image{index}") for index in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name, caption in captioned(12):
        image(root / name, caption.split()[1])
    (root / "captions.csv").write_text(
        "file,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in captioned(12))
    )
    (root / "captions.jsonl").write_text(
        "".join(json.dumps({"file": n, "caption": c}) + "\n" for n, c in captioned(12))
    )
    return root


def coco(root: Path) -> dict[str, Any]:
    for name, caption in captioned(12):
        image(root / "images" / name, caption.split()[1])
    images = [{"id": 100 + index, "file_name": name} for index, (name, _) in enumerate(captioned(12))]
    captions = [
        {"image_id": 100 + index, "caption": text}
        for index, (_, c) in enumerate(captioned(12))
        for text in (c, f"again {c}")
    ]
    (root / "annotations").mkdir()
    return {"images": images, "annotations": captions}


def test_both_files_of_a_folder_say_the_same(folder: Path) -> None:
    tables, lines = (
        load_data(DataConfig(folder=str(folder), captions=f"captions.{form}", held_out=0.3))
        for form in ("csv", "jsonl")
    )
    assert [(i.name, i.caption) for i in tables.train] == [(i.name, i.caption) for i in lines.train]
    assert sorted(i.name for i in [*tables.train, *tables.held_out]) == [name for name, _ in captioned(12)]
    assert tables.train[0].caption.startswith("a ")


def test_coco_gives_every_caption_and_keeps_a_image_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    found = coco(tmp_path)
    (tmp_path / "annotations" / "captions_val.json").write_text(json.dumps(found))
    data = load_data(DataConfig(coco=str(tmp_path), held_out=0.3))
    assert len(data.train) + len(data.held_out) == 24
    assert not {item.name for item in data.train} & {item.name for item in data.held_out}


def test_the_split_hangs_on_the_name_alone_and_keeps_its_share() -> None:
    names = [f"{index}.jpg" for index in range(4000)]
    held = {name for name in names if is_held_out(name, 0.1)}
    assert abs(len(held) - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)
    assert held <= {name for name in names if is_held_out(name, 0.2)}


def test_a_image_is_cut_to_its_central_square(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = (10, 200, 90)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_image(Item(tmp_path / "wide.png", "wide.png", "x", "here"), 16)
    assert found.shape == (16, 16, 3)
    assert found.dtype == np.uint8
    assert (found == (10, 200, 90)).all()
    Image.fromarray(wide[..., 0]).save(tmp_path / "gray.png")
    assert read_image(Item(tmp_path / "gray.png", "gray.png", "x", "here"), 8).shape == (8, 8, 3)


def test_pictures_of_any_kind_show_what_a_viewer_shows(tmp_path: Path) -> None:
    def read(picture: Image.Image, name: str) -> list[int]:
        picture.save(tmp_path / name)
        found: list[int] = read_image(Item(tmp_path / name, name, "x", "here"), 1)[0, 0].tolist()
        return found

    assert read(Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), "deep.png") == [128] * 3
    assert read(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "clear.png") == [255] * 3
    assert read(Image.new("LA", (4, 4), (0, 51)), "pale.png") == [204] * 3
    assert read(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "print.tif") == [255, 0, 0]
    still, other = Image.new("RGB", (4, 4), (0, 0, 255)), Image.new("RGB", (4, 4))
    still.save(tmp_path / "moving.webp", save_all=True, append_images=[other], lossless=True)
    assert read_image(Item(tmp_path / "moving.webp", "", "x", "here"), 1)[0, 0].tolist() == [0, 0, 255]
    for mode in ("F", "I"):
        with pytest.raises(
            DataError, match=r"here: .*real\.tif cannot be decoded: pixels of 32 bits \(.\) have no known"
        ):
            read(Image.new(mode, (4, 4), 1), "real.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_of_phones_stand_upright(tmp_path: Path, orientation: int) -> None:
    """Pillow turns the image for the expected pixels. `load_photos` and `evaluate pictures --real` read with the same function."""
    corner = np.zeros((8, 12, 3), np.uint8)
    corner[:4, :4] = (255, 0, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("turned.png", "turned.jpg", "turned.webp"):
        Image.fromarray(corner).save(tmp_path / name, exif=exif, quality=100)
        with Image.open(tmp_path / name) as picture, Image.open(tmp_path / name) as again:
            expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
            found = np.asarray(rgb_of(again))
        assert found.shape == ((12, 8, 3) if orientation > 4 else (8, 12, 3))
        assert np.array_equal(found, expected)


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (12, 8), (9, 9, 9)).save(tmp_path / "good.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x0f")
    with Image.open(tmp_path / "good.png") as picture:
        assert rgb_of(picture).size == (12, 8)


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_caption_ends_at_the_end_of_its_line_alone(folder: Path, character: str) -> None:
    text = (folder / "captions.csv").read_text().replace("wall, image3", f"wall{character}, image3")
    (folder / "captions.csv").write_text(text)
    data = load_data(DataConfig(folder=str(folder), held_out=0.3))
    assert f"wall{character}, image3" in " ".join(item.caption for item in [*data.train, *data.held_out])


def items(*captions: str) -> list[Item]:
    return [Item(Path("x"), str(index), caption, f"captions.csv:{index + 2}") for index, caption in enumerate(captions)]


def test_the_vocabulary_keeps_the_frequent_words() -> None:
    source = items("a cat, a dog.", "A cat and a bird")
    assert vocabulary(source, 2, "replace") == [UNKNOWN, "a", "cat"]
    assert vocabulary(source, 10, "error") == ["a", "and", "bird", "cat", "dog"]
    with pytest.raises(
        DataError, match=r"captions.csv:2: 'dog' is not among the 3 words of the vocabulary \(5 words in all\)"
    ):
        vocabulary(source, 3, "error")  # ties are sorted: a, cat, and


def test_unknown_words_share_one_vector_or_are_refused() -> None:
    taking, refusing = WordEncoder.build([UNKNOWN, "a", "cat"]), WordEncoder.build(["a", "cat"])
    assert torch.equal(taking.encode("a zebra"), taking.encode("a quagga"))
    assert not torch.equal(taking.encode("a zebra"), taking.encode("a cat"))
    assert WordEncoder.from_state(taking.state()).split("a zebra") == ["a", UNKNOWN]
    with pytest.raises(PromptError, match="unknown word 'zebra'"):
        refusing.encode("a zebra")


def test_an_epoch_reads_every_item_once() -> None:
    source = items(*map(str, range(10)))
    read = [item.caption for step in range(5) for item in shuffled(source, 7, step * 4, 4)]
    assert sorted(read[:10]) == sorted(read[10:]) == sorted(item.caption for item in source)
    assert read[:10] != read[10:]


def test_tokens_are_kept_by_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tmp_path / "tokenizer.safetensors"
    torch.manual_seed(0)
    save_vq(tokenizer, VQModel(VQConfig.from_mapping(NARROW)), {})
    data = load_data(DataConfig(folder=str(folder), image_size=32, held_out=0.3))
    monkeypatch.setattr(data_module, "PART_IMAGES", 4)
    first, _ = data_tokens(tokenizer, data.train, 32, tmp_path / "tokens")
    assert first.shape == (len(data.train), 16)
    alone = load_vq(tokenizer).encode_codes(data_module.images(data.train[:1], 32))
    assert first[0].tolist() == alone[0].tolist()
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "load_vq", lambda path: pytest.fail("nothing is to be computed again"))
        again, _ = data_tokens(tokenizer, data.train, 32, tmp_path / "tokens")
        assert np.array_equal(first, again)
    kept = set((tmp_path / "tokens").rglob("*.npy"))
    image(data.train[0].path, "blue", (64, 64))
    data_tokens(tokenizer, data.train, 32, tmp_path / "tokens")
    assert len(set((tmp_path / "tokens").rglob("*.npy")) - kept) == 1  # the part with the changed image


def test_long_captions_lose_their_end(folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.safetensors"
    save_vq(tokenizer, VQModel(VQConfig.from_mapping(NARROW)), {})
    item = Item(folder / "00.png", "00.png", "word " * 50, "here")
    assert data_tokens(tokenizer, [item], 32, tmp_path)[1] == [" ".join(["word"] * 32)]


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


BROKEN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no captions": ("none.csv", lambda root: None, r"none.csv: no such file"),
    "other file": ("a.txt", write("a.txt", "x"), r"a.txt: the captions file must be .csv, .jsonl or .ndjson"),
    "header": ("a.csv", write("a.csv", "name,text\n"), r"a.csv:1: the columns must be file,caption, found name,text"),
    "columns": ("a.csv", write("a.csv", "file,caption\n00.png,a, b\n"), r"a.csv:2: 3 columns, must be 2"),
    "missing": ("a.csv", write("a.csv", "file,caption\n00.png,a\n99.png,b\n"), r"a.csv:3: .*99.png: no such file"),
    "empty": (
        "a.csv",
        write("a.csv", "file,caption\n00.png,a\n01.png,.\n"),
        r"a.csv:3: the caption of 01.png is empty",
    ),
    "duplicate": (
        "a.csv",
        write("a.csv", "file,caption\n00.png,a\n00.png,b\n"),
        r"a.csv:3: duplicate: 00.png is already at .*a.csv:2",
    ),
    "outside": ("a.csv", write("a.csv", "file,caption\n../00.png,a\n"), r"a.csv:2: ../00.png leaves the folder"),
    "no image": ("a.csv", write("a.csv", "file,caption\na.csv,a\n"), r"a.csv:2: .*a.csv is not a readable image"),
    "bad line": ("a.jsonl", write("a.jsonl", '{"file": "00.png", "caption": "a"}\n{oops\n'), r"a.jsonl:2: not JSON"),
    "key twice": (
        "a.jsonl",
        write("a.jsonl", '{"file": "00.png", "caption": "a", "caption": "b"}\n'),
        r"a.jsonl:1: not JSON: the key caption occurs twice",
    ),
    "open quote": (
        "a.csv",
        write("a.csv", 'file,caption\n00.png,"a\n01.png,b\n02.png,c\n'),
        r"a.csv:2: unexpected end of data",
    ),
    "row of two lines": (
        "a.csv",
        write("a.csv", 'file,caption\n00.png,"a\nb"\n03.tif,"c\nd"\n'),
        r"a.csv:4: .*03.tif: no such file",
    ),
    "no key": (
        "a.jsonl",
        write("a.jsonl", '{"file": "00.png"}\n'),
        r"a.jsonl:1: must be an object with the texts file and caption",
    ),
    "nothing": ("a.csv", write("a.csv", "file,caption\n"), r"of 0 captions none is held out"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_with_file_and_line(case: str, folder: Path) -> None:
    captions, damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(folder=str(folder), captions=captions, held_out=0.3))


def test_a_truncated_image_is_named_when_it_is_read(folder: Path) -> None:
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    data = load_data(DataConfig(folder=str(folder), held_out=0.3))
    (item,) = (item for item in [*data.train, *data.held_out] if item.name == "03.png")
    with pytest.raises(DataError, match=r"captions.csv:5: .*03.png cannot be decoded"):
        read_image(item, 32)


def test_broken_coco_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no captions_"):
        load_data(DataConfig(coco=str(tmp_path)))
    found = coco(tmp_path)
    path = tmp_path / "annotations" / "captions_train.json"
    for key, value, message in (
        (
            "annotations",
            [{"image_id": 7, "caption": "a"}],
            r"captions_train.json: annotations\[0\]: no image has the id 7",
        ),
        ("images", [found["images"][0]] * 2, r"images\[1\]: duplicate: id 100"),
        ("images", [{"id": 1}], "not COCO's captions"),
    ):
        path.write_text(json.dumps({**found, key: value}))
        with pytest.raises(DataError, match=message):
            load_data(DataConfig(coco=str(tmp_path)))
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_data(DataConfig(coco=str(tmp_path)))


def training() -> dict[str, Any]:
    data = {"folder": "images", "image_size": 32, "held_out": 0.3, "words": 8}
    return {"data": data, **toy.stages({"model": NARROW, "continuous_steps": 1, "restart_until_step": 0})}


def test_every_stage_trains_on_a_folder_and_the_pair_knows_its_words(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(training()))
    result = CliRunner().invoke(
        main, ["train", str(config), "--out", str(tmp_path / "run"), "--export", str(tmp_path / "pair")]
    )
    assert result.exit_code == 0, result.output
    pair = load_pair(tmp_path / "pair")
    assert pair.manifest.image_size == 32
    assert pair.drafter is not None
    assert UNKNOWN in pair.text.words
    assert {"a", "wall", "red"} <= set(pair.text.words)
    assert len(pair.text.words) == 9
    assert pair.text.split("A red zebra.") == ["a", "red", UNKNOWN]


def test_a_broken_data_section_ends_with_code_2(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    cloud = {**training()["cloud"], "scenes": {"train": 4}}
    for settings, message in (
        ({**training(), "data": {**training()["data"], "folder": "nowhere"}}, "nowhere/captions.csv: no such file"),
        (
            {**training(), "tokenizer": {**training()["tokenizer"], "scenes_seed": 1}},
            "tokenizer.scenes_seed applies to scenes only",
        ),
        ({"data": training()["data"], "cloud": cloud}, "both are given"),
    ):
        config.write_text(yaml.safe_dump(settings))
        result = CliRunner().invoke(main, ["train", str(config), "--out", str(tmp_path / "run")])
        assert result.exit_code == 2, result.output
        assert message in result.output
