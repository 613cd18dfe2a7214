"""The codec, the element counts, and the re-pricing of messages at another model's widths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import MessageError
from simulator.messages import (
    MESSAGE_TYPES,
    SCALED,
    Message,
    Picture,
    Start,
    Started,
    Tokens,
    Verify,
    Widths,
    decode,
    encode,
    pack_floats,
    pack_ids,
    repriced_bytes,
    unpack_floats,
    unpack_ids,
)

SMALL = Widths(dim=16, vocab_size=64, caption_dim=24, image_pixels=32 * 32)
LARGE = Widths(dim=1280, vocab_size=16384, caption_dim=2048, image_pixels=256 * 256)


def start() -> Start:
    decoding = {"guidance": 3.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pick": "sampled"}
    return Start(caption="a red cube", count=15, decoding=decoding, seed=7, want_caption=True, deliver="ids")


def at_width(pending: int, caption_words: int, widths: Widths) -> list[Message]:
    """The messages of a CIAR session as they would be encoded by a model of these widths."""
    features = pack_floats(np.zeros((pending, widths.dim)))
    rows = pack_floats(np.ones((caption_words, widths.caption_dim)))
    return [
        start(),
        Started(ids=pack_ids(range(15)), caption_rows=rows),
        Verify(ids=pack_ids([3] * pending), features=features, candidate=pack_ids([9])),
        Tokens(pack_ids([5])),
    ]


def test_every_message_survives_the_wire() -> None:
    for message in [*at_width(3, 4, SMALL), Picture(b"png")]:
        assert decode(encode(message)) == message
    assert {type(m) for m in [*at_width(1, 1, SMALL), Picture(b"")]} == set(MESSAGE_TYPES)


def test_ciar_upload_holds_what_the_method_card_says() -> None:
    """n ids, n feature vectors of 2 D bytes and one candidate id."""
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


def test_pictures_scale_with_their_pixels() -> None:
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
    assert np.array_equal(unpack_floats(pack_floats(values), 2), np.array([[np.float16(0.1), -2.0], [65504, -65504]], np.float32))


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
    with pytest.raises(MessageError, match="multiple of 4"):
        unpack_floats(b"abcdef", 2)
