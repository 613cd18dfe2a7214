"""What crosses the network: one msgspec struct per message, one codec for every driver.

A message's payload is `len(encode(message))`; framing belongs to the transport. Ids travel as a uint16 blob, floats as fp16,
pictures as PNG bytes. Fields named in `SCALED` grow with the width, vocabulary or picture size of the model, so a run priced *as
if* the models were larger re-prices exactly these (`repriced_bytes`); everything else costs what it costs here.
"""

from typing import Any, ClassVar

import msgspec
import numpy as np

from simulator.errors import MessageError

ELEMENT_KINDS = ("ids", "scalars", "feature_vectors", "vocabulary_rows", "caption_rows", "image_bytes")
SCALED = ("feature_vectors", "vocabulary_rows", "caption_rows", "image_bytes")


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of all messages. `elements` maps a blob field to what it holds: (element kind of `ELEMENT_KINDS`)."""

    elements: ClassVar[dict[str, str]] = {}

    def counts(self, widths: "Widths") -> dict[str, int]:
        """How many elements of each kind the message holds (ids, vectors, rows; `image_bytes` in bytes)."""
        counts = dict.fromkeys(ELEMENT_KINDS, 0)
        for name, kind in self.elements.items():
            counts[kind] += len(getattr(self, name)) // widths.bytes_of(kind)
        return counts


class Widths(msgspec.Struct, frozen=True):
    """Sizes that decide what one element of each kind weighs on the wire: D, V, caption feature width, pixels of the picture."""

    dim: int
    vocab_size: int
    caption_dim: int
    image_pixels: int

    def bytes_of(self, kind: str) -> int:
        """Bytes of one element: 16-bit ids and floats; `image_bytes` are counted as they are."""
        return {
            "ids": 2,
            "scalars": 2,
            "feature_vectors": 2 * self.dim,
            "vocabulary_rows": 2 * self.vocab_size,
            "caption_rows": 2 * self.caption_dim,
            "image_bytes": 1,
        }[kind]


class Start(Message, frozen=True):
    """Opens a session in the cloud. caption: what to draw. count: image tokens the cloud is asked to make now.
    decoding: the cloud's share of the decoding settings (`Decoding` in `simulator/methods.py`) as a plain mapping.
    seed: names the session's random draws. want_caption: whether the caption rows travel back."""

    caption: str
    count: int
    decoding: dict[str, Any]
    seed: int
    want_caption: bool = False
    deliver: str = "ids"


class Started(Message, frozen=True):
    """Answer to `Start`: the tokens made (uint16 ids) and, if asked for, the valid caption rows (fp16 [n, caption_dim])."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "caption_rows": "caption_rows"}
    ids: bytes = b""
    caption_rows: bytes = b""


class Tokens(Message, frozen=True):
    """Decided token ids (uint16): a streamed part, or the reply to `Verify`."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids"}
    ids: bytes


class Picture(Message, frozen=True):
    """The finished picture as PNG bytes, for `deliver: image`."""

    elements: ClassVar[dict[str, str]] = {"png": "image_bytes"}
    png: bytes


class Verify(Message, frozen=True):
    """CIAR's upload: pending token ids accepted on the device since the last contact, one interval feature f^I (fp16 [D]) for
    each, and the device's candidate for the uncertain position."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "features": "feature_vectors", "candidate": "ids"}
    ids: bytes
    features: bytes
    candidate: bytes


MESSAGE_TYPES: tuple[type[Message], ...] = (Start, Started, Tokens, Picture, Verify)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Start | Started | Tokens | Picture | Verify)


def encode(message: Message) -> bytes:
    """The bytes that travel; `len()` of them is the payload."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """The inverse of `encode`. Raises MessageError where the bytes are no known message."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        allowed = ", ".join(kind.__name__ for kind in MESSAGE_TYPES)
        raise MessageError(f"message of {len(data)} bytes does not decode: {error}; allowed: {allowed}") from None


def pack_ids(ids: Any) -> bytes:
    """Token ids (< 65536) as little-endian uint16. Raises MessageError outside that range."""
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    if array.size and not (array.min() >= 0 and array.max() < 65536):
        raise MessageError(f"token ids must be in [0, 65536), got {array.min()}..{array.max()}")
    return array.astype("<u2").tobytes()


def unpack_ids(blob: bytes) -> list[int]:
    if len(blob) % 2:
        raise MessageError(f"an id blob has an even length, got {len(blob)} bytes")
    return [int(i) for i in np.frombuffer(blob, dtype="<u2")]


def pack_floats(values: np.ndarray) -> bytes:
    """Floats as little-endian fp16, saturating at its largest finite value."""
    data: bytes = np.clip(values, -65504.0, 65504.0).astype("<f2").tobytes()
    return data


def unpack_floats(blob: bytes, width: int) -> np.ndarray:
    """float32 [n, width]. Raises MessageError where the blob does not hold whole rows."""
    if len(blob) % (2 * width):
        raise MessageError(f"a blob of fp16 rows of width {width} has a multiple of {2 * width} bytes, got {len(blob)}")
    return np.frombuffer(blob, dtype="<f2").reshape(-1, width).astype(np.float32)


def _blob_bytes(n: int) -> int:
    """Length of a msgpack bin of n bytes (header 2, 3 or 5 bytes)."""
    return n + (2 if n < 1 << 8 else 3 if n < 1 << 16 else 5)


def repriced_bytes(payload_bytes: int, counts: dict[str, int], pair: Widths, as_if: Widths) -> int:
    """Payload of the same message at another model's widths: each scaled blob is swapped for one of that model's size.

    counts: elements per kind as `Message.counts` gives them. At `as_if == pair` the result is `payload_bytes` itself. A kind
    stands in at most one blob of a message, which `tests/simulator/test_messages.py` checks for every type.
    """
    for kind in SCALED:
        n = counts[kind]
        if n == 0:
            continue
        here = n * pair.bytes_of(kind)
        there = n * as_if.bytes_of(kind)
        if kind == "image_bytes":
            there = round(n * as_if.image_pixels / pair.image_pixels)
        payload_bytes += _blob_bytes(there) - _blob_bytes(here)
    return payload_bytes
