"""A pair on disk: its content, how it is found, and errors about damage."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tiny_pair import make_tiny_pair
from ciar_sim.cli.common import pair_of
from models.backbones.t5 import captions_of_lists
from models.checkpoint import reason
from models.device import BOUNDS
from models.pair import MAX_FILE_BYTES, _shards, load_pair
from models.sampling import guide
from models.text import left_pad
from simulator.core.errors import CiarSimError, WeightsError
from simulator.experiment.loading import load_scenario
from simulator.pricing.build import pair_shapes
from simulator.protocol import pairs
from simulator.protocol.pairs import file_hash, known_pairs, pair_manifest, verify_files


@pytest.fixture(scope="module")
def of_seed_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, seed=3)
    return folder


@pytest.fixture
def tiny(tmp_path: Path, of_seed_3: Path) -> Path:
    """Return a copy that the test may change."""
    return Path(shutil.copytree(of_seed_3, tmp_path / "tiny"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_pair_decodes(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = make_tiny_pair(tmp_path / "p", seed=1, dtype=dtype)
    manifest = pair.manifest
    assert (manifest.image_tokens, manifest.codebook_size, manifest.image_size, manifest.bounds) == (16, 64, 32, BOUNDS)
    rows, mask = left_pad(
        pair.text.encode("a large red cube at the left on a plain gray background"), manifest.caption_slots
    )
    tokens = torch.arange(16).unsqueeze(0)
    logits, _ = pair.cloud(tokens[:, :-1], rows.unsqueeze(0).to(dtype), mask.unsqueeze(0))
    _, hidden = pair.device.transformer(tokens[:, :-1], rows.unsqueeze(0).to(dtype), mask.unsqueeze(0))
    _, lower, upper = pair.device.interval(hidden, hidden)
    assert logits.dtype == lower.dtype == dtype
    assert pair.phi(hidden, lower, upper).shape == (1, 16, manifest.cloud.dim)
    assert pair.tokenizer.decode_codes(tokens).shape == (1, 3, 32, 32)


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    hashes = [make_tiny_pair(tmp_path / f"p{i}", seed).manifest.weights_hash for i, seed in enumerate((5, 5, 6))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_is_of_what_decides_images_and_of_nothing_else(tiny: Path) -> None:
    before = load_pair(tiny).manifest
    # Other files in the folder may change at any time.
    (tiny / "metrics.json").write_text('{"cloud": {"loss": 1.0}}')
    assert pairs.list_files(tiny) == before.files
    assert load_pair(tiny).manifest.weights_hash == before.weights_hash
    replace = msgspec.structs.replace
    assert (
        replace(before, name="other", files=(*before.files, pairs.PairFile("metrics.json", 1, "0"))).weights_hash
        == before.weights_hash
    )
    first, *rest = before.files
    for other in (
        replace(before, files=(replace(first, sha256="0" * 64), *rest)),
        replace(before, bounds=before.bounds[::-1]),  # decoding uses the first
        replace(before, cloud=dataclasses.replace(before.cloud, rope_base=500.0)),
    ):
        assert other.weights_hash != before.weights_hash


def test_guidance_takes_the_radius_of_the_conditional_row(tiny: Path) -> None:
    device = load_pair(tiny).device
    cond, uncond = torch.randn(2, 16), torch.randn(2, 16)
    centre, _lower, upper = device.interval(cond, guide(cond, uncond, 3.0))
    torch.testing.assert_close(centre, device.centre(uncond) + 3 * (device.centre(cond) - device.centre(uncond)))
    p = centre.double().softmax(-1)
    wanted = torch.sigmoid(torch.logit(p) + device.radius(cond).double())
    torch.testing.assert_close(upper.double(), wanted, atol=1e-6, rtol=1e-5)


def test_the_manifest_is_read_without_torch(tiny: Path) -> None:
    code = "import sys; from simulator.protocol.pairs import pair_manifest as read; print(read(sys.argv[1]).grid, 'torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["4", "False"]


def test_a_shipped_pair_goes_by_its_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHIPPED", tiny.parent)
    assert known_pairs() == ["tiny"]
    assert load_pair("tiny").manifest == pair_manifest(tiny)
    with pytest.raises(WeightsError, match=r"unknown model pair tony: did you mean tiny\? known: tiny"):
        pair_manifest("tony")
    with pytest.raises(
        WeightsError, match=r"holds no model pair; files of a published model are named by pair: {cloud"
    ):
        pair_manifest(tiny.parent / "elsewhere")


def test_a_name_is_a_shipped_pair_or_a_folder_never_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder next to the scenario, or in the current folder for --pair, may have the name of a shipped pair: the user must choose."""
    make_tiny_pair(tmp_path / "photos", seed=3)
    monkeypatch.chdir(tmp_path)
    assert pairs.pair_folder("photos") == pairs.SHIPPED / "photos"
    assert pair_of("./photos") == "./photos"
    assert pairs.pair_folder("./photos").samefile(tmp_path / "photos")
    (tmp_path / "pair.yaml").write_text("pair: photos\n")
    for ask in (
        lambda: pair_of("photos"),
        lambda: pair_of("pair.yaml"),
        lambda: load_scenario({"name": "t", "pair": "photos", "methods": ["base"]}),
    ):
        with pytest.raises(CiarSimError, match=r"photos names a shipped pair and the folder .*photos: write \./photos"):
            ask()
    scenario = load_scenario({"name": "t", "pair": "./photos", "prompts": {"list": ["a cat"]}, "methods": ["base"]})
    assert scenario.pair == str((tmp_path / "photos").resolve())
    monkeypatch.chdir(pairs.SHIPPED)  # here the folder is the shipped pair
    assert pair_of("photos") == "photos"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, r"device\.safetensors: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"device\.safetensors: \d+ bytes, expected \d+"),
        (Path.unlink, r"device\.safetensors: no such file"),
    ],
)
def test_a_damaged_file_is_named(tiny: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(tiny / "device.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_pair(tiny)


def relist(folder: Path, **changes: object) -> None:
    """Rewrite the manifest to match the current files, with some values changed."""
    manifest = json.loads((folder / "pair.json").read_text()) | changes
    manifest["files"] = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.glob("*.safetensors"))
    ]
    (folder / "pair.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("pair.json", pair_manifest),
        ("tokenizer.safetensors", pair_shapes),
        ("text.safetensors", lambda folder: verify_files(folder, pair_manifest(folder))),
        ("coco.jsonl", captions_of_lists),
    ],
)
def test_a_file_that_may_not_be_read_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Path], object]
) -> None:
    """`os.open` is patched instead of the file's mode, since root may read everything."""
    refused, system = tiny / name, os.open
    if not refused.exists():
        refused.write_text('{"text": "a"}\n')

    def refusing(path: Any, *more: Any, **options: Any) -> int:
        if Path(path) == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return system(path, *more, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(CiarSimError, match=rf"{re.escape(str(refused))}: .*Permission denied"):
        read(tiny)


def test_a_folder_of_weights_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(spec: pairs.PairSpec) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), spec.weights)

    monkeypatch.setattr(pairs, "function_of", lambda path: refusing)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(tmp_path))}: cannot be read: Permission denied"):
        pairs.find_pair(pairs.PairSpec(cloud="var-d16", weights=str(tmp_path)))
    assert (
        reason(tmp_path, FileNotFoundError("No such file")) == "Is a directory"
    )  # the system's word, not the library's


def test_a_missing_key_is_named(tiny: Path) -> None:
    state = load_file(tiny / "device.safetensors")
    del state["radii.quantile.weight"]
    save_file(state, tiny / "device.safetensors")
    relist(tiny)
    with pytest.raises(
        WeightsError, match=r"device\.safetensors: radii\.quantile\.weight is missing, needed \[64, 16\]"
    ):
        load_pair(tiny)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, "format 9, this version reads format 1"),
        ({"grid": 5}, "cloud.grid is 4, needed grid = 5"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"image_size": "32"}, r"Expected `int`, got `str` - at `\$.image_size`"),
    ],
)
def test_a_wrong_manifest_is_refused(tiny: Path, changes: dict[str, object], message: str) -> None:
    relist(tiny, **changes)
    with pytest.raises(WeightsError, match=message):
        pair_manifest(tiny)


def test_a_manifest_that_is_no_json_is_refused(tiny: Path) -> None:
    (tiny / "pair.json").write_text("{")
    with pytest.raises(WeightsError, match=r"pair\.json"):
        pair_manifest(tiny)


def test_a_file_name_cannot_leave_the_folder(tiny: Path) -> None:
    manifest = json.loads((tiny / "pair.json").read_text())
    manifest["files"][0]["name"] = "../outside"
    (tiny / "pair.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="leaves the folder"):
        load_pair(tiny)


@pytest.mark.parametrize("name", ["cloud-00001-of-00001", "device", "phi", "text", "tokenizer"])
def test_weights_that_no_hash_covers_are_refused(tiny: Path, name: str) -> None:
    """The listed hashes identify recordings, so recordings of other weights would pass for these."""
    manifest = json.loads((tiny / "pair.json").read_text())
    whole = manifest["files"]
    listed = [file for file in whole if file["name"] != f"{name}.safetensors"]
    for files, message in (
        (listed, rf"pair\.json: files must list {name}\.safetensors"),
        ([*whole, whole[0]], "files lists cloud-00001-of-00001.safetensors twice"),
        ([*whole, {**whole[0], "name": "a" * 5000}], "has more than 255 bytes"),
    ):
        (tiny / "pair.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(WeightsError, match=message):
            pair_manifest(tiny)


def test_replacing_a_pair_is_all_or_nothing(tiny: Path) -> None:
    before = pair_manifest(tiny).weights_hash
    make_tiny_pair(tiny, seed=4)
    assert pair_manifest(tiny).weights_hash != before
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


def test_shards_stay_below_the_limit() -> None:
    state = {f"k{i}": torch.zeros(2**20) for i in range(20)}  # 40 MiB in fp16
    shards = _shards(state, MAX_FILE_BYTES)
    assert [key for shard in shards for key in shard] == list(state)
    assert all(sum(2 * t.numel() for t in shard.values()) < MAX_FILE_BYTES for shard in shards)
    assert len(shards) == 3
