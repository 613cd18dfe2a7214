"""A recording: the operations of one session (one image for one prompt), without any time.

Ops are columns (numpy structured array, `OP_DTYPE`), device ops in program order, then cloud ops grouped by call in order. Dependencies
follow from `side`, `kind` and `call`: a device op waits for the previous one; the ops of call c wait for its SEND to arrive and for
earlier calls; an AWAIT of call c waits for its REPLY. The cache is content-addressed: a recording's file name is the hash of everything
that determines it, so it can be deleted at any time.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from simulator.core.errors import RecordingError
from simulator.protocol.messages import ELEMENT_KINDS, Widths
from simulator.protocol.ops import COMPUTE_KINDS, ROLES

FORMAT = 4

DEVICE, CLOUD = 0, 1  # OP side
FORWARD, COMPUTE, SEND, AWAIT, EMIT, REPLY = range(6)  # OP kind
# Who decided a token; fallback: the device alone, once a deadline was missed.
FROM_CLOUD, FROM_DEVICE, FROM_FALLBACK = range(3)
# Columns of `Recording.scores`; "u" is U~ (assumption A2); "gate" is the score that the method compares with its threshold, if it has one.
SCORES = ("u", "u_raw", "omega", "sigma", "lower_top", "entropy", "mid_top", "gate")

OP_DTYPE = np.dtype(
    [
        ("side", "u1"),
        ("kind", "u1"),
        # FORWARD: index into ROLES; COMPUTE: index into COMPUTE_KINDS; AWAIT: 1 if the reply may be given up; other kinds: 0.
        ("what", "u1"),
        ("call", "<i4"),  # call the op belongs to, -1 for none
        ("rows", "u1"),  # sequences in the pass: 2 with guidance
        ("caption", "u1"),  # 1: the pass feeds the caption slots
        ("new_tokens", "<u2"),  # image positions fed
        ("kv_caption", "u1"),  # 1: the caption slots are already in the KV cache
        ("kv_tokens", "<u2"),  # image positions in the KV cache before the pass
        ("decides", "u1"),  # 1: the pass decides a token
        ("logits_all", "u1"),  # 1: logits of all new positions are computed; 0: of the last one
        ("hidden", "<u4"),  # causal query-key pairs per row that the mask of a draft tree excludes
        ("payload_bytes", "<i4"),  # of the message sent (SEND, EMIT, REPLY)
        *[(kind, "<i4") for kind in ELEMENT_KINDS],  # elements of the message
    ]
)
assert max(len(ROLES), len(COMPUTE_KINDS)) < 256


@dataclass(frozen=True)
class SessionSpec:
    """Everything that determines a session's recording.

    Attributes:
        weights: Hash of the pair's weights.
        method: Name of the method.
        revision: Revision of the method's program; a change of its behaviour increases it.
        settings: Settings of the method, a plain JSON mapping.
        decoding: Decoding settings of the scenario, a plain JSON mapping.
        prompt: The caption.
        seed: Seed of this session's draws.
        dtype: Data type of the forward passes.
        missed_calls: The calls whose reply missed its deadline, in order.
    """

    weights: str
    method: str
    revision: int
    settings: dict[str, Any]
    decoding: dict[str, Any]
    prompt: str
    seed: int
    dtype: str = "float32"
    missed_calls: tuple[int, ...] = ()

    def key(self) -> str:
        """sha256 (hex) over the canonical JSON of all fields, the recording format and the torch version."""
        fields = {**self.__dict__, "outcomes": self.missed_calls, "format": FORMAT, "torch": torch_version()}
        del fields["missed_calls"]  # hashed under its first name, so that older caches stay valid
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def torch_version() -> str:
    """Version of the installed torch without importing it; "none" if it is absent. Cached, because every key needs it and finding it
    reads a file."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "none"


@dataclass
class Recording:
    """One session: its ops and its results.

    Attributes:
        ops: OP_DTYPE [n].
        tokens: uint16 [T].
        decided_by: uint8 [T]: FROM_CLOUD, FROM_DEVICE or FROM_FALLBACK.
        scores: float32 [T, len(SCORES)], NaN if the device gave no score.
        image: uint8 [H, W, 3].
        nll: float32 [T], nats of each token under the guided cloud model given the tokens before it.
        argmax: uint16 [T], the cloud's most likely token at each position.
        widths: The pair's message widths.
        meta: Further data, such as `decisions` and `near_ties`; plain JSON.
    """

    ops: np.ndarray
    tokens: np.ndarray
    decided_by: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    nll: np.ndarray
    argmax: np.ndarray
    widths: Widths
    meta: dict[str, Any] = field(default_factory=dict)

    def calls(self) -> int:
        """Number of requests that the device sent."""
        return int(np.count_nonzero(self.ops["kind"] == SEND))

    def device_passes(self) -> int:
        """Forward passes on the device, of its model or of a drafter."""
        return int(np.count_nonzero((self.ops["kind"] == FORWARD) & (self.ops["side"] == DEVICE)))

    def cloud_passes(self) -> int:
        """Cloud forward passes that decide tokens: the numerator of `cloud_call_pct`."""
        ops = self.ops
        forward = (ops["kind"] == FORWARD) & (ops["what"] == ROLES.index("cloud"))
        return int(np.count_nonzero(forward & (ops["decides"] == 1)))

    def cloud_call_pct(self) -> float:
        """Cloud passes that decide tokens per image token, in percent: the paper's "Cloud Call"."""
        return 100.0 * self.cloud_passes() / len(self.tokens)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        header = {"format": FORMAT, "widths": {f: getattr(self.widths, f) for f in self.widths.__struct_fields__}}
        text = json.dumps({**header, "meta": self.meta}, sort_keys=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(buffer, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Recording":
        """Raises RecordingError if the bytes are not a complete recording of this format."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                header = json.loads(_array(file.read("header.npy")).tobytes())
                arrays = {name: _array(file.read(f"{name}.npy")) for name in _ARRAYS}
            if header["format"] != FORMAT or arrays["ops"].dtype != OP_DTYPE:
                raise ValueError(f"format {header['format']}, this program reads {FORMAT}")
            return cls(**arrays, widths=Widths(**header["widths"]), meta=header["meta"])
        # numpy and zipfile raise many types of errors for damaged files.
        except Exception as error:
            raise RecordingError(f"not a recording: {error}") from None


def op_table(device: Sequence[Mapping[str, int]], cloud: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Return OP_DTYPE [n] from the columns of each op: first the device's in program order, then the cloud's by call."""
    ops = np.zeros(len(device) + len(cloud), OP_DTYPE)
    ops["call"] = -1
    ops["side"][len(device) :] = CLOUD
    for index, row in enumerate([*device, *sorted(cloud, key=lambda row: row["call"])]):
        for column, value in row.items():
            ops[column][index] = value
    return ops


_NPY = b"\x93NUMPY\x01\x00"  # magic of version 1.0; the length of the header follows as uint16


def _array(data: bytes) -> np.ndarray:
    """Return the array in an npy file, with cached headers: np.load spends most of its time parsing them."""
    start = len(_NPY) + 2
    if not data.startswith(_NPY) or len(data) < start:
        raise ValueError("holds an array of another format")
    end = start + int.from_bytes(data[start - 2 : start], "little")
    shape, fortran, dtype = _head(data[start - 2 : end])
    return np.ndarray(shape, dtype, data, end, order="F" if fortran else "C").copy(order="K")


@lru_cache(4096)
def _head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(head))
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    return shape, fortran, dtype


_ARRAYS = ("ops", "tokens", "decided_by", "scores", "image", "nll", "argmax")
