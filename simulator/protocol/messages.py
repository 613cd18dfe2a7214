"""The messages of the network: one msgspec struct per message, one codec for every driver.

A message's payload is `len(encode(message))`; framing belongs to the transport. Ids are sent as a uint16 blob, floats as fp16, images
as PNG bytes. Fields named in `SCALED` grow with the width, vocabulary or image size of the model, so a run priced *as if* the models
were larger re-prices exactly these (`repriced_bytes`); all other fields keep their size.
"""

from typing import Any, ClassVar

import msgspec
import numpy as np

from simulator.core.errors import MessageError

ELEMENT_KINDS = (
    "ids",
    "indices",
    "scalars",
    "feature_vectors",
    "int8_vectors",
    "vocabulary_rows",
    "caption_rows",
    "prompt_features",
    "image_bytes",
)
SCALED = ("feature_vectors", "int8_vectors", "vocabulary_rows", "caption_rows", "prompt_features", "image_bytes")


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of all messages. `elements` maps a blob field to the kind of its elements (one of `ELEMENT_KINDS`)."""

    elements: ClassVar[dict[str, str]] = {}

    def counts(self, widths: "Widths") -> dict[str, int]:
        """Return the number of elements of each kind in the message (ids, vectors, rows; `image_bytes` in bytes)."""
        counts = dict.fromkeys(ELEMENT_KINDS, 0)
        for name, kind in self.elements.items():
            counts[kind] += len(getattr(self, name)) // widths.bytes_of(kind)
        return counts


class Widths(msgspec.Struct, frozen=True):
    """Sizes that determine the bytes of one element of each kind.

    Attributes:
        dim: D, width of the hidden states.
        vocab_size: V, image codes.
        caption_dim: width of the caption features.
        image_pixels: pixels of the image.
        caption_slots: caption positions before the image.
    """

    dim: int
    vocab_size: int
    caption_dim: int
    image_pixels: int
    caption_slots: int

    def bytes_of(self, kind: str) -> int:
        """Return the bytes of one element: 16-bit ids and floats, one-byte indices, single image bytes.

        An element of `prompt_features` is a feature of width D at every caption slot; one of `int8_vectors` is D bytes and an fp16 scale.
        """
        return {
            "ids": 2,
            "indices": 1,
            "scalars": 2,
            "feature_vectors": 2 * self.dim,
            "int8_vectors": 2 + self.dim,
            "vocabulary_rows": 2 * self.vocab_size,
            "caption_rows": 2 * self.caption_dim,
            "prompt_features": 2 * self.dim * self.caption_slots,
            "image_bytes": 1,
        }[kind]


class Start(Message, frozen=True):
    """Opens a session in the cloud.

    Attributes:
        caption: the prompt.
        count: number of image tokens that the cloud is asked to decode now.
        decoding: decoding settings of the cloud, `Decoding.told`.
        seed: seed of the session's random draws.
        want_caption: whether the caption rows are sent back.
        deliver: "stream": each id as it is decided; "ids": all at the end; "image": a PNG.
    """

    caption: str
    count: int
    decoding: dict[str, Any]
    seed: int
    want_caption: bool = False
    deliver: str = "ids"


class Started(Message, frozen=True):
    """Reply to `Start`: the decoded tokens (uint16 ids) and, if requested, the valid caption rows (fp16 [n, caption_dim])."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "caption_rows": "caption_rows"}
    ids: bytes = b""
    caption_rows: bytes = b""


class Tokens(Message, frozen=True):
    """Decided token ids (uint16): a streamed part, or the reply to `Verify`."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids"}
    ids: bytes


class Picture(Message, frozen=True):
    """The finished image as PNG bytes, for `deliver: image`."""

    elements: ClassVar[dict[str, str]] = {"png": "image_bytes"}
    png: bytes


class Verify(Message, frozen=True):
    """A gated method's upload. Without a candidate the cloud only stores the tokens, and the reply is empty.

    Attributes:
        ids: pending tokens, which the device accepted since the last message (uint16).
        features: one interval feature f^I per pending token, fp16 [n, D], or none at all.
        candidate: the device's token for the uncertain position (uint16).
    """

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "features": "feature_vectors", "candidate": "ids"}
    ids: bytes
    features: bytes
    candidate: bytes


class Upload(Message, frozen=True):
    """`Verify` with the fields that its variants add.

    Attributes:
        coarse: the features as int8 with a scale each (`pack_int8`); `features` is then empty.
        probs: fp16 weights of the distribution that the candidate was drawn from, for the ids of `support`; if `support` is empty, only
            the candidate's, and the row follows on request.
    """

    elements: ClassVar[dict[str, str]] = {
        "ids": "ids",
        "features": "feature_vectors",
        "coarse": "int8_vectors",
        "candidate": "ids",
        "probs": "scalars",
        "support": "ids",
    }
    ids: bytes
    features: bytes = b""
    coarse: bytes = b""
    candidate: bytes = b""
    probs: bytes = b""
    support: bytes = b""


class Row(Message, frozen=True):
    """The weights of the distribution that a rejected candidate was drawn from, fp16 [V]: sent after an empty `Tokens` or `Verdict`
    requested it."""

    elements: ClassVar[dict[str, str]] = {"probs": "vocabulary_rows"}
    probs: bytes


class Revised(Message, frozen=True):
    """The cloud replaces the device's token at `position` by `ids`; all pending tokens after it are discarded."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids"}
    position: int
    ids: bytes


class Drafts(Message, frozen=True):
    """Drafted ids that the cloud verifies in one pass.

    The residual of a rejected draft needs the distribution that it was drawn from: all of it (`rows`), its non-zero entries (`sizes`,
    `support`, `support_weights`), or neither, in which case the cloud requests the row.

    Attributes:
        weights: fp16 [n], the weight that each draft was drawn with; empty if drafting is greedy.
        rows: fp16 [n, V], all weights of every draft's distribution.
        sizes: uint16 [n], number of non-zero entries of each draft's distribution.
        support: ids of these entries.
        support_weights: fp16, their weights.
    """

    elements: ClassVar[dict[str, str]] = {
        "ids": "ids",
        "weights": "scalars",
        "rows": "vocabulary_rows",
        "support": "ids",
        "support_weights": "scalars",
        "sizes": "ids",
    }
    ids: bytes
    weights: bytes = b""
    rows: bytes = b""
    support: bytes = b""
    support_weights: bytes = b""
    sizes: bytes = b""


class Verdict(Message, frozen=True):
    """The number of accepted drafts, and the token that follows them (`ids`); empty if the rejected draft's `Row` is requested."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids"}
    accepted: int
    ids: bytes = b""


class Opened(Message, frozen=True):
    """Reply to `Start` for a drafter on the device: the first token, and the cloud model's features at the caption positions, fp16
    [rows, caption_slots, D]."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "features": "prompt_features"}
    ids: bytes
    features: bytes


class OpenedPrompt(Message, frozen=True):
    """`Opened` for a drafter that reads the prompt's tokens: with the valid caption rows, fp16 [n, caption_dim], and the features at
    their positions only, fp16 [rows, n, D]."""

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "features": "feature_vectors", "caption_rows": "caption_rows"}
    ids: bytes
    features: bytes
    caption_rows: bytes


class DraftTree(Message, frozen=True):
    """A tree of drafts without its root, which is the newest decided token.

    Attributes:
        ids: the drafts.
        parents: each draft's parent, one byte; 0 is the root. Empty if both sides know the shape of the tree.
        weights: fp16 [n], for such a tree the weight that each draft was drawn with.
        rows: fp16 [inner nodes, V], for such a tree the distributions that the inner nodes' children were drawn from.
    """

    elements: ClassVar[dict[str, str]] = {
        "ids": "ids",
        "parents": "indices",
        "weights": "scalars",
        "rows": "vocabulary_rows",
    }
    ids: bytes
    parents: bytes = b""
    weights: bytes = b""
    rows: bytes = b""


class TreeAfter(Message, frozen=True):
    """A `DraftTree` with the tokens that were decided without the cloud since the last one.

    Attributes:
        decided: ids of these tokens; the last of them is the tree's root.
        ids: the drafts.
        parents: each draft's parent, one byte; 0 is the root.
    """

    elements: ClassVar[dict[str, str]] = {"decided": "ids", "ids": "ids", "parents": "indices"}
    decided: bytes
    ids: bytes
    parents: bytes


class Path(Message, frozen=True):
    """The accepted part of a tree: `accepted` nodes after the root along root-to-leaf path number `path`, then the token in `ids`.

    features: fp16 [rows, accepted + 1, D], the cloud model's at root and accepted nodes; empty after the image's last token.
    """

    elements: ClassVar[dict[str, str]] = {"ids": "ids", "features": "feature_vectors"}
    path: int
    accepted: int
    ids: bytes
    features: bytes = b""


MESSAGE_TYPES: tuple[type[Message], ...] = (
    Start,
    Started,
    Tokens,
    Picture,
    Verify,
    Upload,
    Row,
    Revised,
    Drafts,
    Verdict,
    Opened,
    DraftTree,
    Path,
    TreeAfter,
    OpenedPrompt,
)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(
    Start
    | Started
    | Tokens
    | Picture
    | Verify
    | Upload
    | Row
    | Revised
    | Drafts
    | Verdict
    | Opened
    | OpenedPrompt
    | DraftTree
    | Path
    | TreeAfter
)


def encode(message: Message) -> bytes:
    """Return the message as bytes; their number is the payload."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in the bytes of `encode`. Raises MessageError if they are not a known message."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        allowed = ", ".join(kind.__name__ for kind in MESSAGE_TYPES)
        raise MessageError(f"message of {len(data)} bytes does not decode: {error}; allowed: {allowed}") from None


def pack_ids(ids: Any) -> bytes:
    """Pack token ids (< 65536) as little-endian uint16. Raises MessageError outside that range."""
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    if array.size and not (array.min() >= 0 and array.max() < 65536):
        raise MessageError(f"token ids must be in [0, 65536), got {array.min()}..{array.max()}")
    return array.astype("<u2").tobytes()


def unpack_ids(blob: bytes) -> list[int]:
    """Return the token ids of `pack_ids`. Raises MessageError for an odd number of bytes."""
    if len(blob) % 2:
        raise MessageError(f"an id blob has an even length, got {len(blob)} bytes")
    return [int(i) for i in np.frombuffer(blob, dtype="<u2")]


def pack_floats(values: np.ndarray) -> bytes:
    """Pack floats as little-endian fp16, clipped to its largest finite value."""
    data: bytes = np.clip(values, -65504.0, 65504.0).astype("<f2").tobytes()
    return data


def unpack_floats(blob: bytes, width: int) -> np.ndarray:
    """Return float32 [n, width] from `pack_floats`. Raises MessageError if the blob does not consist of whole rows."""
    if len(blob) % (2 * width):
        raise MessageError(f"a blob of fp16 rows of width {width} has a multiple of {2 * width} bytes, got {len(blob)}")
    return np.frombuffer(blob, dtype="<f2").reshape(-1, width).astype(np.float32)


def pack_int8(vectors: np.ndarray) -> bytes:
    """Pack vectors [n, D] as n times an fp16 scale (largest magnitude / 127) and D int8."""
    largest = np.abs(vectors).max(axis=1, initial=0.0)  # [n]
    scale = np.clip(largest / 127, 0.0, 65504.0).astype("<f2")
    divisor = np.where(scale > 0, scale, 1).astype(np.float32)
    steps = np.clip(np.rint(vectors / divisor[:, None]), -127, 127).astype(np.int8)  # [n, D]
    return np.concatenate([scale[:, None].view(np.uint8), steps.view(np.uint8)], axis=1).tobytes()


def unpack_int8(blob: bytes, width: int) -> np.ndarray:
    """Return float32 [n, width] from `pack_int8`. Raises MessageError if the blob does not consist of whole vectors."""
    if len(blob) % (2 + width):
        raise MessageError(
            f"a blob of int8 vectors of width {width} has a multiple of {2 + width} bytes, got {len(blob)}"
        )
    rows = np.frombuffer(blob, np.uint8).reshape(-1, 2 + width)
    scale = np.ascontiguousarray(rows[:, :2]).view("<f2").astype(np.float32)  # [n, 1]
    return scale * rows[:, 2:].view(np.int8).astype(np.float32)


def _blob_bytes(n: int) -> int:
    """Return the length of a msgpack bin of n bytes (header of 2, 3 or 5 bytes)."""
    return n + (2 if n < 1 << 8 else 3 if n < 1 << 16 else 5)


def repriced_bytes(payload_bytes: int, counts: dict[str, int], pair: Widths, as_if: Widths) -> int:
    """Return the payload of a message at another model's widths: each scaled blob is replaced by one of that model's size.

    At `as_if == pair` the result is `payload_bytes`. A kind of `SCALED` occurs in at most one blob of a message
    (`tests/simulator/protocol/test_messages.py` checks every type).

    Args:
        payload_bytes: Payload at the widths of the pair.
        counts: Elements by kind, from `Message.counts`.
        pair: Widths of the pair.
        as_if: Widths of the other model.
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
