"""Reads the names, shapes, types and byte positions of the tensors in a checkpoint file, without running pickled code.

A PyTorch checkpoint pickles a mapping whose tensors refer to storages: raw numbers outside the pickle. The unpickler here knows the few
functions that build a tensor from a storage. Every other class or function becomes an `Inert` placeholder. A training checkpoint that
contains `argparse.Namespace` or an optimizer can thus be read, and none of its code runs.

Torch is not imported: checking a scenario needs only the shapes. `models.state.read_state` reads the numbers.

Longer than other files, because the forms of a checkpoint share the unpickler and the refusals.
"""

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from safetensors import SafetensorError, safe_open

from simulator.core.errors import WeightsError, first_line

ValueT = TypeVar("ValueT")

# Keys under which a training checkpoint stores its state dict, in the order in which LlamaGen's scripts try them.
CONTAINERS = ("model", "module", "state_dict", "ema")
# Parts that wrappers insert into a key.
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
LISTED = 4  # most keys listed in an error message
# First bytes of other file formats.
OTHER_FORMATS = (
    (b"version https://git-lfs", "a pointer of Git LFS; the file itself was not fetched"),
    (b"GGUF", "a GGUF file; needed the weights as PyTorch or safetensors"),
    (b"\x89HDF", "an HDF5 file; needed the weights as PyTorch or safetensors"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files written by torch before version 1.6
ITEM_BYTES = {
    "complex128": 16,
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "qint8", "quint8", "float8_e4m3fn", "float8_e5m2"), 1),
}
STORAGES = {
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "FloatStorage": "float32",
    "IntStorage": "int32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "uint8",
}
SAFE_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "U64": "uint64",
    "I32": "int32",
    "U32": "uint32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Storage:
    """Raw numbers in a file: `count` numbers of type `dtype` under `key`."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: sizes of its dimensions.
        dtype: torch's name of its type.
        storage: where its numbers are; None in a safetensors file.
        offset: position of its first number in the storage, in numbers.
        stride: step between neighbours per dimension, in numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] = ()


class Inert(dict[Any, Any]):
    """Placeholder for an object of an unknown class. It keeps the items of a mapping and does nothing else."""

    origin = "object"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key of a mapping in the file
        return id(self)


class _Builder:
    """A function of the checkpoint format that the unpickler may call."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


@dataclass(frozen=True)
class _Type:
    """A torch type: of a storage or of numbers."""

    dtype: str


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise pickle.UnpicklingError("a tensor of no possible size")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.count:
        raise pickle.UnpicklingError("a tensor beyond its storage")
    return StoredTensor(tuple(size), storage.dtype, storage, offset, tuple(stride))


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage) or not isinstance(dtype, _Type):
        raise pickle.UnpicklingError("a tensor without a storage")
    count = storage.count * ITEM_BYTES[storage.dtype] // ITEM_BYTES[dtype.dtype]
    return _tensor(Storage(storage.key, dtype.dtype, count), offset, size, stride)


def _subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Return the tensor that a buffer or another tensor subclass wraps."""
    return function(*args) if isinstance(function, _Builder) else Inert()


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Builder(_typed_tensor),
    ("torch._tensor", "_rebuild_from_type_v2"): _Builder(_subclass),
    ("torch._utils", "_rebuild_parameter"): _Builder(lambda tensor, *rest: tensor),
    ("torch._utils", "_rebuild_parameter_with_state"): _Builder(lambda tensor, *rest: tensor),
    **{("torch", name): _Type(dtype) for name, dtype in STORAGES.items()},
    **{("torch.storage", name): _Type(dtype) for name, dtype in STORAGES.items()},
    **{("torch", dtype): _Type(dtype) for dtype in ITEM_BYTES},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler of a checkpoint; `storages` collects the storages that the file refers to, by key."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name)) or type("Inert", (Inert,), {"origin": f"{module}.{name}"[:100]})

    def persistent_load(self, saved: Any) -> Any:
        match saved:
            case ("storage", _Type(dtype), key, _, int(count), *rest) if rest in ([], [None]):
                return self.storages.setdefault(str(key), Storage(str(key), dtype, count))
        raise pickle.UnpicklingError("a reference to something other than a storage")


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of a file and, for a PyTorch file, the location of each storage's bytes.

    Attributes:
        path: the file.
        tensors: the tensors by key, after `unwrapped`.
        names: the file's own keys, by key after `unwrapped`.
        members: by storage key, the name of its archive member, or its byte position in a file that is no archive.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    names: Mapping[str, str]
    members: Mapping[str, str | int]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {key: tensor.shape for key, tensor in self.tensors.items()}

    def storages(self) -> Iterator[tuple[Storage, bytearray]]:
        """Yield each storage that the tensors refer to once, with its bytes. Raises WeightsError if the file is damaged or too short."""
        wanted = {tensor.storage.key: tensor.storage for tensor in self.tensors.values() if tensor.storage is not None}
        with self.path.open("rb") as file:
            archive = zipfile.ZipFile(file) if zipfile.is_zipfile(file) else None
            for key, storage in wanted.items():
                size, place = storage.count * ITEM_BYTES[storage.dtype], self.members.get(key)
                try:
                    if archive is not None and isinstance(place, str):
                        with archive.open(place) as member:
                            content = bytearray(member.read(size))
                    elif isinstance(place, int):
                        file.seek(place)
                        content = bytearray(file.read(size))
                    else:
                        content = bytearray()
                except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
                    raise WeightsError(f"{self.path}: not readable as weights: {error}") from error
                if len(content) != size:
                    raise WeightsError(
                        f"{self.path}: not readable as weights: storage {key} has {len(content)} of {size} bytes"
                    )
                yield storage, content


def read_checkpoint(path: Path | str, containers: Sequence[str] = CONTAINERS) -> Checkpoint:
    """Read the state dict of a `.safetensors` file or a PyTorch checkpoint, without its numbers. No code in the file runs.

    Args:
        path: The file.
        containers: Keys that may hold the state dict; the first one that does wins; `a.b` is b within a. If none does, the mapping with
            the most tensors is the state dict; mappings of optimizers are left out.

    Raises:
        WeightsError: The file is missing or damaged, or holds no tensors under string keys; the message says what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: {'a folder, needed a file' if path.is_dir() else 'no such file'}")
    members: dict[str, str | int] = {}
    if path.suffix == ".safetensors":
        content: Any = _safe_header(path)
    else:
        try:
            with path.open("rb") as file:
                content, members = (_from_archive if zipfile.is_zipfile(file) else _from_stream)(file)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except RecursionError:
            raise WeightsError(f"{path}: not readable as weights: nested too deeply") from None
        except Exception as error:  # a damaged pickle raises many types
            raise WeightsError(f"{path}: not readable as weights: {reason(path, error)}") from error
    found = next((held for name in containers if _tensors(held := _within(content, name))), None)
    tensors = _tensors(found) if found is not None else _largest(content, path)
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors ({_described(content, containers)})")
    names: dict[str, str] = {}
    for key in tensors:
        if (own := unwrapped(key)) in names:
            raise WeightsError(f"{path}: holds {own} twice, as {names[own]} and as {key}")
        names[own] = key
    return Checkpoint(path, {own: tensors[key] for own, key in names.items()}, names, members)


def reason(path: Path, error: BaseException) -> str:
    """Return why a file is not readable as weights: the format that its first bytes show, else the first line of the error."""
    said = first_line(error)[:200]
    try:
        with path.open("rb") as file:
            head = file.read(512)
            size = file.seek(0, 2)
    except OSError as refused:  # safetensors reports a file without permission as missing
        return refused.strerror or said
    own = path.suffix == ".safetensors"
    if head.startswith(b"PK\x03\x04") and (own or not zipfile.is_zipfile(path)):
        return "a PyTorch checkpoint under another name; name it .pt" if own else "an archive that is cut short"
    if head[8:10] == b'{"':
        if not own:
            return "safetensors under another name; name it .safetensors"
        expected = _safe_size(path)
        if expected is None or size < expected:
            return f"a file that is cut short, of {size} bytes"
        if size > expected:
            return f"a file of {size} bytes, {size - expected} more than its header describes"
    for begin, what in OTHER_FORMATS:
        if head.startswith(begin):
            return what
    text = head.decode("utf-8-sig", "replace").strip()
    if text.startswith("<"):
        return "a page of HTML or XML"
    if text and text.isprintable():
        return f"text: {text[:60]!r}"
    return said if head else "an empty file"


def _safe_size(path: Path) -> int | None:
    """Return the size of a safetensors file by its header; None if the header is not complete."""
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        if begin > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(begin - 8))
            ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
            return begin + max(map(int, ends), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return path.stat().st_size  # another error than the size


def unwrapped(key: str) -> str:
    """Remove from a key what DistributedDataParallel, FullyShardedDataParallel, torch.compile and checkpointing wrappers add to it."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def model_within(state: Mapping[str, ValueT], marks: Sequence[str]) -> Mapping[str, ValueT]:
    """Return the part of a state dict that belongs to the model, without its prefix (`model.`, `gpt.`).

    The state dict is returned unchanged if it holds a mark without a prefix, or if the marks do not have exactly one prefix.

    Args:
        state: values by key.
        marks: keys that only the model has.
    """
    names = {key.removesuffix(mark) for key in state for mark in marks if key == mark or key.endswith(f".{mark}")}
    if "" in names or len(names) != 1:
        return state
    (name,) = names
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


def joined(parts: Mapping[Path, Mapping[str, ValueT]]) -> dict[str, ValueT]:
    """Return the values of a checkpoint's files by key. Raises WeightsError if two files have the same key."""
    found: dict[str, ValueT] = {}
    for path, part in parts.items():
        if twice := [key for key in part if key in found]:
            first = next(other for other, its in parts.items() if twice[0] in its)
            raise WeightsError(f"{path}: holds {few(twice)}, as {first.name} does; a key must be in one file")
        found |= part
    return found


def few(keys: Sequence[str]) -> str:
    """Return a list of the first keys, and how many more there are."""
    return ", ".join(keys[:LISTED]) + (f" and {len(keys) - LISTED} more" if len(keys) > LISTED else "")


def _within(content: Any, name: str) -> Any:
    """Return the content under a key; dots separate nested keys. None if it is not there."""
    for key in name.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _tensors(content: Any) -> dict[str, StoredTensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, StoredTensor)}


def _largest(content: Any, path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the mapping with the most tensors, at most four levels deep. Raises WeightsError if several have as many."""
    held = {name: tensors for name, inner in _mappings(content, "") if (tensors := _tensors(inner))}
    most = max(map(len, held.values()), default=0)
    found = [name for name, tensors in held.items() if len(tensors) == most]
    if len(found) > 1:
        raise WeightsError(f"{path}: holds several state dicts, under {few(found)}; needed a file with one")
    return held[found[0]] if found else {}


def _mappings(content: Any, name: str, levels: int = 4) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        yield name, content
        for key, inner in content.items() if levels > 1 else ():
            if "optim" not in str(key).lower():
                yield from _mappings(inner, f"{name}.{key}" if name else str(key), levels - 1)


def _described(content: Any, containers: Sequence[str]) -> str:
    if isinstance(content, Inert):
        return (
            f"a pickled {content.origin}, whose code is not run; needed a state dict, as model.state_dict() returns it"
        )
    if not isinstance(content, Mapping):
        return (
            f"a {'tensor' if isinstance(content, StoredTensor) else type(content).__name__}, needed a dict of tensors"
        )
    keys = [str(key)[:40] for key in content]
    kinds = [value if isinstance(value, type) else type(value) for value in content.values()]
    pickled = sorted({kind.origin for kind in kinds if issubclass(kind, Inert)})
    inside = f"; of it {few(pickled)} is code, which is not run" if pickled else ""
    return (
        f"looked under {', '.join(containers)} and at the top, found the keys {few(keys) or 'of an empty dict'}{inside}"
    )


def _safe_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # it is not a mapping
            return {
                key: StoredTensor(tuple(one.get_shape()), SAFE_TYPES.get(one.get_dtype(), one.get_dtype()))
                for key, one in slices.items()
            }
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not readable as weights: {reason(path, error)}") from error


def _from_archive(file: IO[bytes]) -> tuple[Any, dict[str, str | int]]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    pickled = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
    if pickled is None:
        raise WeightsError("not readable as weights: an archive without data.pkl, not one that torch.save writes")
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError("not readable as weights: its numbers are big-endian")
    with archive.open(pickled) as member:
        content = _Unpickler(member).load()
    return content, {name.removeprefix(f"{root}data/"): name for name in names if name.startswith(f"{root}data/")}


def _from_stream(file: IO[bytes]) -> tuple[Any, dict[str, str | int]]:
    """Read a file of torch before 1.6: magic, protocol, system, content, storage keys, then each storage's count and numbers."""
    file.seek(0)
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise WeightsError("not readable as weights: not a file that torch.save writes")
    _, _ = (_Unpickler(file).load() for _ in range(2))
    unpickler = _Unpickler(file)
    content = unpickler.load()
    keys = _Unpickler(file).load()
    places: dict[str, str | int] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        if key not in unpickler.storages or count < 0:
            raise WeightsError(f"not readable as weights: no tensor refers to the storage {key[:40]}")
        file.seek(count * ITEM_BYTES[unpickler.storages[key].dtype], 1)
    return content, places
