"""A model pair: the models that decode together, on disk and in memory.

On disk (see simulator/protocol/pairs.py for the manifest): `pair.json`, text.safetensors (float32), tokenizer.safetensors,
cloud-0000i-of-0000n.safetensors, device.safetensors, phi.safetensors and optionally drafter.safetensors, in half precision. Every file
is smaller than 15 MiB.

    pair = load_pair("scenes")
    logits, hidden = pair.cloud(tokens, caption, mask)
"""

import json
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn

from models.checkpoint import joined
from models.device import DeviceModel
from models.eagle import EagleDrafter, from_checkpoint, to_checkpoint
from models.llama import decoder
from models.phi import IntervalProjection
from models.quality.judge_files import JUDGE, NETWORK, judge_contents
from models.scenes import WORDS
from models.state import build, read_config, read_state, refuse_nonfinite, save_state
from models.text import TextEncoder, WordEncoder
from models.transformer import Transformer
from models.vq import VQModel, load_vq
from simulator.core.errors import WeightsError, first_line
from simulator.core.files import replace_folder, temporary_sibling, why_unusable, write_atomically
from simulator.protocol.backbones import function_of
from simulator.protocol.llama import config_of
from simulator.protocol.pairs import (
    DRAFTER,
    FORMAT,
    GUIDANCE,
    MANIFEST,
    WEIGHTS,
    PairManifest,
    PairRef,
    PairSpec,
    TransformerConfig,
    find_pair,
    list_files,
    pair_folder,
    pair_manifest,
    verify_files,
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MAX_FILE_BYTES = 15 * 2**20
TEXT = "text.safetensors"
CARD = "MODEL_CARD.md"
FACTS = "metrics.json"  # metrics of each training stage


@dataclass(frozen=True)
class Pair:
    """A loaded pair, in `eval()` mode.

    Attributes:
        manifest: description of the pair.
        text: caption encoder.
        tokenizer: image tokenizer, in float32, or float64 if `dtype` is float64.
        cloud: the cloud model.
        device_model: the device model; None if the cloud decodes alone.
        projection: CIAR's phi; None if the pair has none.
        drafter: a feature-level drafter; None if the pair has none.
        torch_device: where the tensors are.
        dtype: of the weights.
    """

    manifest: PairManifest
    text: TextEncoder
    tokenizer: VQModel
    cloud: Transformer
    device_model: DeviceModel | None
    projection: IntervalProjection | None
    drafter: EagleDrafter | None
    torch_device: torch.device
    dtype: torch.dtype

    def prepared(self) -> "Pair":
        """Move the models to `torch_device` and `dtype`, in `eval()` mode and without gradients, and return the pair.

        Raises:
            WeightsError: a weight is not finite in `dtype`.
        """
        for module in (self.cloud, self.device_model, self.projection, self.drafter):
            if module is not None:
                module.to(self.torch_device, self.dtype).eval().requires_grad_(False)
                what = f"the pair {self.manifest.name}, {type(module).__name__} in {self.dtype}"
                refuse_nonfinite(module.state_dict(), what)
        wide = self.dtype if self.dtype == torch.float64 else torch.float32
        self.tokenizer.to(self.torch_device, wide).eval().requires_grad_(False)
        return self

    @property
    def device(self) -> DeviceModel:
        """The device model. Raises WeightsError if the pair has none."""
        if self.device_model is None:
            raise WeightsError(f"the pair {self.manifest.name} has no device model; name one with pair.device")
        return self.device_model

    def cloud_layer(self) -> Transformer:
        """Return the cloud model cut to its first layer, with shared weights. It has the shape of a one-layer drafter."""
        one = copy(self.cloud)
        one._modules = {**self.cloud._modules, "layers": self.cloud.layers[:1]}
        one.config = replace(self.cloud.config, n_layer=1)
        return one

    @property
    def phi(self) -> IntervalProjection:
        """CIAR's projection phi. Raises WeightsError if the pair has none."""
        if self.projection is None:
            raise WeightsError(f"the pair {self.manifest.name} has no projection phi")
        return self.projection


def load_pair(pair: PairRef, torch_device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Pair:
    """Load a shipped pair by name, the pair in a folder, or a published backbone with its files.

    Raises:
        WeightsError: the pair is unknown or predicts scale by scale; a file is missing or damaged (with the SHA-256 found and expected);
            a key is missing or has another shape.
    """
    if isinstance(pair, PairSpec):
        found = find_pair(pair)
        if found.manifest.scales:
            raise WeightsError(
                f"the pair {found.manifest.name} predicts scale by scale: a one-layer device, which decides token by token, serves none of "
                "its methods; for code and device-only, name a smaller released model of the same scales, such as var_d16.pth, "
                "with pair.device"
            )
        loaded: Pair = function_of(pair.backbone.load)(found, torch.device(torch_device), dtype)
        return loaded
    return _load_folder(pair, torch_device, dtype)


def _load_folder(name_or_path: str | Path, torch_device: str | torch.device, dtype: torch.dtype) -> Pair:
    folder, manifest = pair_folder(name_or_path), pair_manifest(name_or_path)
    if manifest.statistics is not None:
        raise WeightsError(f"{folder / MANIFEST}: holds published figures and no weights; it can be run, not loaded")
    verify_files(folder, manifest)
    shards = {folder / name: read_state(folder / name) for name in shards_of(manifest)}
    named = next(iter(shards)).name if len(shards) == 1 else "cloud-*.safetensors"
    cloud = build(lambda: Transformer(manifest.cloud), joined(shards), folder / named, exact=True)
    path = folder / "device.safetensors"
    shape = manifest.device
    assert shape is not None  # `pair_manifest` refuses a folder without a device
    device = build(lambda: DeviceModel(shape, manifest.bounds), read_state(path), path, exact=True)
    path = folder / "phi.safetensors"
    phi = build(
        lambda: IntervalProjection(manifest.cloud.dim, manifest.codebook_size, manifest.phi_bottleneck),
        read_state(path),
        path,
        exact=True,
    )
    drafter = load_drafter(folder / DRAFTER, cloud.config) if manifest.has_drafter else None
    tokenizer = load_vq(folder / "tokenizer.safetensors")
    size = manifest.grid * tokenizer.config.downsample
    if size != manifest.image_size:
        raise WeightsError(
            f"{folder / MANIFEST}: image_size {manifest.image_size}, but its tokenizer makes images of {size} pixels"
        )
    if tokenizer.config.codebook_size != manifest.codebook_size:
        found, needed = tokenizer.config.codebook_size, manifest.codebook_size
        raise WeightsError(f"{folder / 'tokenizer.safetensors'}: {found} codes, needed {needed}")
    text = load_text(folder / TEXT)
    if (text.slots, text.caption_dim) != (manifest.caption_slots, manifest.caption_dim):
        rows = f"{manifest.caption_slots} x {manifest.caption_dim}"
        raise WeightsError(f"{folder / TEXT}: caption rows of {text.slots} x {text.caption_dim}, needed {rows}")
    where = torch.device(torch_device)
    return Pair(manifest, text, tokenizer, cloud, device, phi, drafter, where, dtype).prepared()


def export_pair(train_dir: Path, out_dir: Path, name: str) -> PairManifest:
    """Write the pair of a training folder (tokenizer/, cloud/, device/, phi/, optionally drafter/ and judge/) to `out_dir`.

    A pair in `out_dir` is replaced in one step; its model card is kept. judge/ holds the judge of photographs.

    Raises:
        WeightsError: a stage's weights are missing or do not fit each other, or `out_dir` holds anything that is not part of a pair.
    """
    refuse_foreign(out_dir)
    codes = train_dir / "tokenizer" / "tokenizer.safetensors"
    tokenizer = load_vq(codes)
    cloud = load_transformer(train_dir / "cloud" / "cloud.safetensors")
    device = load_device(train_dir / "device" / "device.safetensors")
    phi = load_phi(train_dir / "phi" / "phi.safetensors")
    path = train_dir / "drafter" / DRAFTER
    drafter = load_drafter(path, cloud.config) if path.is_file() else None
    words = train_dir / "cloud" / TEXT  # exists if the captions are not those of scenes
    text = load_text(words) if words.is_file() else WordEncoder.build(WORDS)
    facts = {"tokenizer": read_config(codes, "facts")}
    for stage in ("cloud", "device", "phi", "drafter"):
        path = train_dir / stage / "metrics.json"
        try:
            facts[stage] = json.loads(path.read_bytes()) if path.is_file() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path}: not readable as metrics: {first_line(error)}") from None
    judge = train_dir / JUDGE
    subject, more = "other" if words.is_file() else "scenes", {}
    if (judge / NETWORK).is_file():
        subject, more = "photos", {f"{JUDGE}/{file}": content for file, content in judge_contents(judge).items()}
    card = out_dir / CARD
    if card.is_file():
        more[CARD] = card.read_bytes()
    return write_pair(out_dir, name, text, tokenizer, cloud, device, phi, drafter, facts, subject, more)


def refuse_foreign(folder: Path) -> None:
    """Raise WeightsError if writing a pair to the folder is impossible, or would delete files that are not part of a pair."""
    if why := why_unusable(folder):
        raise WeightsError(f"cannot write the pair {folder}: {why}")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    own = (MANIFEST, CARD, FACTS, JUDGE)
    foreign = [name for name in names if MANIFEST not in names or not (name in own or name.endswith(WEIGHTS))]
    if foreign:
        raise WeightsError(
            f"cannot write the pair {folder}: it holds {foreign[0]}, which is not part of a pair; name another folder"
        )


# --- single models, as training writes them


def save_model(path: Path, module: Transformer | DeviceModel | IntervalProjection | EagleDrafter) -> None:
    """Write weights as fp16 safetensors, atomically, with the configuration in the metadata.

    A drafter is written under its reference's keys, without configuration and without the embedding.

    Raises:
        WeightsError: a weight is not finite in fp16.
    """
    if isinstance(module, EagleDrafter):
        save_state(path, to_checkpoint(module))
        return
    save_state(path, module.state_dict(), {"config": json.dumps(_describe(module))})


def load_transformer(path: Path) -> Transformer:
    """Load a decoder that `save_model` wrote, float32, in `eval()` mode. Raises WeightsError."""
    return _load(path, "n_layer", lambda config: decoder(config_of(config)))


def load_device(path: Path) -> DeviceModel:
    """Load a device model that `save_model` wrote, float32, in `eval()` mode. Raises WeightsError."""

    def make(config: dict[str, Any]) -> DeviceModel:
        return DeviceModel(config_of(config["transformer"]), tuple(config["bounds"]))

    return _load(path, "bounds", make)


def load_drafter(path: Path, base: TransformerConfig) -> EagleDrafter:
    """Load a drafter for a base model of that shape from a file with the reference's keys, in `eval()` mode. Raises WeightsError."""
    return from_checkpoint(read_state(path), base, path)


def load_phi(path: Path) -> IntervalProjection:
    """Load a projection phi that `save_model` wrote, float32, in `eval()` mode. Raises WeightsError."""
    return _load(path, "bottleneck", lambda config: IntervalProjection(**config))


# --- parts


def _describe(module: Transformer | DeviceModel | IntervalProjection) -> dict[str, Any]:
    if isinstance(module, Transformer):
        return asdict(module.config)
    if isinstance(module, DeviceModel):
        return {"transformer": asdict(module.config), "bounds": list(module.radii)}
    bottleneck, dim = module.fc1.out_features, module.fc2.out_features
    return {"dim": dim, "vocab_size": (module.fc1.in_features - dim) // 2, "bottleneck": bottleneck}


def _load(path: Path, needed_key: str, make: Callable[[dict[str, Any]], ModuleT]) -> ModuleT:
    """Return the module that `make` builds from the file's configuration, with the file's weights."""
    config = read_config(path)
    if needed_key not in config:
        raise WeightsError(f"{path}: holds another kind of model: its configuration has no {needed_key}")
    state = read_state(path)
    try:
        return build(lambda: make(config), state, path)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: its configuration does not fit ({first_line(error)})") from error


def shards_of(manifest: PairManifest) -> list[str]:
    """Return the file names of the cloud model's shards, in order."""
    return sorted(file.name for file in manifest.files if file.name.startswith("cloud-"))


def load_text(path: Path) -> WordEncoder:
    """Read the caption encoder of a pair's folder. Raises WeightsError."""
    try:
        return WordEncoder.from_state(read_state(path))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a caption encoder ({type(error).__name__}: {error})") from error


def _shards(state: Mapping[str, Tensor], limit_bytes: int) -> list[dict[str, Tensor]]:
    """Split tensors, in order, into shards that stay below the limit in fp16, with 64 KiB reserved for the header."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        if size + 2 * tensor.numel() > limit_bytes - 65536 and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += 2 * tensor.numel()
    return shards


def write_pair(
    out_dir: Path,
    name: str,
    text: WordEncoder,
    tokenizer: VQModel,
    cloud: Transformer,
    device: DeviceModel,
    phi: IntervalProjection,
    drafter: EagleDrafter | None,
    facts: Mapping[str, Any],
    subject: str = "scenes",
    more: Mapping[str, bytes] | None = None,
) -> PairManifest:
    """Write a pair's folder and return its manifest.

    Args:
        out_dir: the folder; a pair in it is replaced in one step.
        name: name of the pair.
        text: caption encoder.
        tokenizer: image tokenizer.
        cloud: cloud model.
        device: device model.
        phi: interval projection.
        drafter: feature-level drafter, or None.
        facts: metrics of each training stage.
        subject: what the images show.
        more: further files by their path in the folder; they have no influence on tokens or images.

    Raises:
        WeightsError: a file would have 15 MiB or more, or the pair does not load.
    """
    with temporary_sibling(out_dir) as staging:
        folder = staging / "new"
        folder.mkdir()
        write_atomically(folder / TEXT, save(text.state()))  # float32: caption rows are compared across drivers
        # One metadata entry per file: safetensors writes several in random order, but equal pairs should have equal bytes.
        config = {"config": json.dumps(asdict(tokenizer.config))}
        save_state(folder / "tokenizer.safetensors", tokenizer.state_dict(), config)
        shards = _shards(cloud.state_dict(), MAX_FILE_BYTES)
        for i, shard in enumerate(shards, start=1):
            save_state(folder / f"cloud-{i:05d}-of-{len(shards):05d}.safetensors", shard)
        save_model(folder / "device.safetensors", device)
        save_model(folder / "phi.safetensors", phi)
        if drafter is not None:
            save_model(folder / DRAFTER, drafter)
        if facts:
            (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        shape = cloud.config
        manifest = PairManifest(
            format=FORMAT,
            name=name,
            image_size=shape.grid * tokenizer.config.downsample,
            grid=shape.grid,
            codebook_size=shape.vocab_size,
            caption_slots=shape.caption_slots,
            caption_dim=shape.caption_dim,
            cloud=shape,
            device=device.config,
            phi_bottleneck=phi.fc1.out_features,
            bounds=tuple(device.radii),
            files=list_files(folder),
            subject=subject,
            guidance=float(facts.get("device", {}).get("guidance", GUIDANCE)),
        )
        for file in manifest.files:
            if file.bytes >= MAX_FILE_BYTES:
                raise WeightsError(
                    f"{out_dir / file.name}: {file.bytes} bytes, files of a pair stay below {MAX_FILE_BYTES}"
                )
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        for name, content in (more or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        folder.chmod(0o755)
        for path in folder.rglob("*"):  # safetensors creates files that only the owner can read
            path.chmod(0o755 if path.is_dir() else 0o644)
        load_pair(folder)  # a pair that does not load must not replace anything
        replace_folder(staging, out_dir)
        return manifest
