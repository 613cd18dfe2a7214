"""The message codec, element counts, and re-pricing of messages at the widths of another model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import MessageError
from simulator.protocol.messages import (
    MESSAGE_TYPES,
    SCALED,
    Drafts,
    DraftTree,
    Message,
    Opened,
    OpenedPrompt,
    Path,
    Picture,
    Revised,
    Row,
    Start,
    Started,
    Tokens,
    TreeAfter,
    Upload,
    Verdict,
    Verify,
    Widths,
    decode,
    encode,
    pack_floats,
    pack_ids,
    pack_int8,
    repriced_bytes,
    unpack_floats,
    unpack_ids,
    unpack_int8,
)

SMALL = Widths(dim=16, vocab_size=64, caption_dim=24, image_pixels=32 * 32, caption_slots=32)
LARGE = Widths(dim=1280, vocab_size=16384, caption_dim=2048, image_pixels=256 * 256, caption_slots=120)


def start() -> Start:
    decoding = {"guidance": 3.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pick": "sampled"}
    return Start(caption="a red cube", count=15, decoding=decoding, seed=7, want_caption=True, deliver="ids")


def at_width(pending: int, caption_words: int, widths: Widths) -> list[Message]:
    """Return the messages of a CIAR session of a model with these widths."""
    features = pack_floats(np.zeros((pending, widths.dim)))
    rows = pack_floats(np.ones((caption_words, widths.caption_dim)))
    return [
        start(),
        Started(ids=pack_ids(range(15)), caption_rows=rows),
        Verify(ids=pack_ids([3] * pending), features=features, candidate=pack_ids([9])),
        Tokens(pack_ids([5])),
        Upload(
            pack_ids([3] * pending),
            b"",
            pack_int8(np.ones((pending, widths.dim))),
            pack_ids([9]),
            pack_floats(np.array([0.5])),
        ),
        Upload(pack_ids([3] * pending), features, b"", pack_ids([9]), pack_floats(np.ones(3)), pack_ids([7, 8, 9])),
        Row(pack_floats(np.ones(widths.vocab_size))),
        Revised(4, pack_ids([5])),
    ]


def drafting(widths: Widths) -> list[Message]:
    """Return the messages of the drafting methods."""
    return [
        Drafts(pack_ids(range(5)), pack_floats(np.ones(5)), rows=pack_floats(np.ones((5, widths.vocab_size)))),
        Drafts(
            pack_ids([1, 2]),
            pack_floats(np.ones(2)),
            b"",
            pack_ids([1, 2, 3]),
            pack_floats(np.ones(3)),
            pack_ids([1, 2]),
        ),
        Verdict(3, pack_ids([9])),
        Opened(pack_ids([1]), pack_floats(np.ones((2 * widths.caption_slots, widths.dim)))),
        OpenedPrompt(
            pack_ids([1]), pack_floats(np.ones((2 * 5, widths.dim))), pack_floats(np.ones((5, widths.caption_dim)))
        ),
        DraftTree(pack_ids(range(58)), bytes(58)),
        DraftTree(pack_ids(range(57)), b"", pack_floats(np.ones(57)), pack_floats(np.ones((25, widths.vocab_size)))),
        TreeAfter(pack_ids(range(3)), pack_ids(range(58)), bytes(58)),
        Path(12, 2, pack_ids([7]), pack_floats(np.ones((2 * 3, widths.dim)))),
    ]


def test_every_message_survives_the_wire() -> None:
    for message in [*at_width(3, 4, SMALL), *drafting(SMALL), Picture(b"png")]:
        assert decode(encode(message)) == message
    assert {type(m) for m in [*at_width(1, 1, SMALL), *drafting(SMALL), Picture(b"")]} == set(MESSAGE_TYPES)


def test_ciar_upload_holds_what_the_method_card_says() -> None:
    """It has n ids, n feature vectors of 2 D bytes and one candidate id."""
    message = at_width(5, 4, SMALL)[2]
    counts = message.counts(SMALL)
    assert (counts["ids"], counts["feature_vectors"]) == (5 + 1, 5)
    content = 2 * counts["ids"] + 2 * SMALL.dim * counts["feature_vectors"]
    assert content < len(encode(message)) <= content + 16  # the rest is the type's name and three blob headers


@given(pending=st.integers(0, 40), words=st.integers(0, 32))
def test_as_if_pricing_equals_the_encoding_a_larger_model_would_send(pending: int, words: int) -> None:
    for here, there in zip(at_width(pending, words, SMALL), at_width(pending, words, LARGE), strict=True):
        counts = here.counts(SMALL)
        assert repriced_bytes(len(encode(here)), counts, SMALL, LARGE) == len(encode(there))
        assert repriced_bytes(len(encode(here)), counts, SMALL, SMALL) == len(encode(here))


def test_as_if_pricing_of_drafts_equals_the_encoding_a_larger_model_would_send() -> None:
    for here, there in zip(drafting(SMALL), drafting(LARGE), strict=True):
        assert repriced_bytes(len(encode(here)), here.counts(SMALL), SMALL, LARGE) == len(encode(there))


@pytest.mark.parametrize(
    ("kind", "index", "content"),
    [  # LlamaGen-XL: 16-bit floats, 2-byte ids, 1-byte small integers
        (Drafts, 0, 20 + 5 * 32_768),
        (DraftTree, 0, 174),
        (DraftTree, 1, 228 + 25 * 32_768),
        (Path, 0, 4 + 5_120 * 3),
        (Verdict, 0, 3),
        (Opened, 0, 2 + 2 * 307_200),
        (Row, 0, 32_768),
    ],
)
def test_drafts_weigh_what_their_elements_do(kind: type[Message], index: int, content: int) -> None:
    message = [one for one in [*at_width(0, 1, LARGE), *drafting(LARGE)] if isinstance(one, kind)][index]
    counts = message.counts(LARGE)
    small = 2 if kind is Path else 1 if kind is Verdict else 0  # integers outside blobs
    assert sum(n * LARGE.bytes_of(kind_of) for kind_of, n in counts.items()) + small == content
    assert content < len(encode(message)) <= content + 40  # the type's name and the blobs' headers


def test_int8_vectors_are_counted_with_their_scale() -> None:
    message = at_width(5, 4, SMALL)[4]
    counts = message.counts(SMALL)
    assert (counts["ids"], counts["int8_vectors"], counts["scalars"]) == (5 + 1, 5, 1)
    content = 2 * counts["ids"] + (SMALL.dim + 2) * counts["int8_vectors"] + 2 * counts["scalars"]
    assert content < len(encode(message)) <= content + 20


def test_int8_vectors_round_trip_within_half_a_step() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    vectors[1] = 0.0
    vectors[2] *= 1e-6  # so small that the scale is a subnormal fp16
    vectors[3] *= 1e9  # beyond the largest scale: saturates
    blob = pack_int8(vectors)
    found = unpack_int8(blob, 16)
    assert len(blob) == 4 * (16 + 2)
    assert np.abs(found[0] - vectors[0]).max() <= 0.51 * np.abs(vectors[0]).max() / 127
    assert not found[1].any()
    assert np.abs(found[2]).max() <= 2 * np.abs(vectors[2]).max()
    assert np.abs(found[3]).max() == 127 * 65504
    assert unpack_int8(pack_int8(np.zeros((0, 16))), 16).shape == (0, 16)


def test_images_scale_with_their_pixels() -> None:
    message = Picture(bytes(1000))
    priced = repriced_bytes(len(encode(message)), message.counts(SMALL), SMALL, LARGE)
    assert priced == len(encode(Picture(bytes(1000 * 64))))


def test_a_scaled_kind_stands_in_one_blob_of_a_message() -> None:
    for kind in MESSAGE_TYPES:
        held = [element for element in kind.elements.values() if element in SCALED]
        assert len(held) == len(set(held)), kind


def test_ids_and_floats_round_trip() -> None:
    assert unpack_ids(pack_ids([0, 5, 65535])) == [0, 5, 65535]
    values = np.array([[0.1, -2.0], [1e6, -1e6]])
    assert np.array_equal(
        unpack_floats(pack_floats(values), 2), np.array([[np.float16(0.1), -2.0], [65504, -65504]], np.float32)
    )


@pytest.mark.parametrize("data", [b"", b"\x93", b"\x91\xa5Nope!", encode(Tokens(b""))[:-1], b"\x92\xa6Tokens\x01"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="does not decode"):
        decode(data)


def test_impossible_ids_and_blobs_are_refused() -> None:
    for ids in ([-1], [65536]):
        with pytest.raises(MessageError, match="65536"):
            pack_ids(ids)
    with pytest.raises(MessageError, match="even"):
        unpack_ids(b"abc")
    with pytest.raises(MessageError, match="multiple of 18"):
        unpack_int8(bytes(17), 16)
    with pytest.raises(MessageError, match="multiple of 4"):
        unpack_floats(b"abcdef", 2)
