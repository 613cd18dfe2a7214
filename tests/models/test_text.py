"""The caption encoder: rows, padding and refusals."""

import pytest
import torch
from safetensors.torch import load, save

from models.scenes import WORDS, captions
from models.text import WordEncoder, left_pad
from simulator.core.errors import PromptError

CAPTION = "a large red sphere at the top left on a plain gray background"


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    return WordEncoder.build(WORDS)


def test_a_row_holds_its_word_and_four_to_either_side(encoder: WordEncoder) -> None:
    rows = encoder.encode(CAPTION)
    assert rows.shape == (13, 144)
    assert rows.dtype == torch.float32
    assert encoder.caption_dim == 144
    words = CAPTION.split()
    blocks = rows.view(13, 9, 16)
    for t in range(13):
        for offset in range(-4, 5):
            block = blocks[t, offset + 4]
            if 0 <= t + offset < 13:
                assert torch.equal(block, encoder.vectors[WORDS.index(words[t + offset])])
            else:
                assert not block.any()


def test_word_vectors_are_unit_length_and_fixed_by_the_word(encoder: WordEncoder) -> None:
    torch.testing.assert_close(encoder.vectors.norm(dim=1), torch.ones(len(WORDS)))
    fewer = WordEncoder.build(["red", "a"])
    assert torch.equal(fewer.vectors[0], encoder.vectors[WORDS.index("red")])


def test_every_scene_caption_can_be_encoded(encoder: WordEncoder) -> None:
    for caption in captions(0, 100):
        padded, mask = left_pad(encoder.encode(caption))
        assert padded.shape == (32, 144)
        assert int(mask.sum()) == len(caption.split())


def test_case_commas_and_full_stops_do_not_matter(encoder: WordEncoder) -> None:
    assert torch.equal(
        encoder.encode("A large red sphere, at the top left, on a plain gray background."), encoder.encode(CAPTION)
    )


def test_an_unknown_word_is_named_with_the_nearest(encoder: WordEncoder) -> None:
    with pytest.raises(
        PromptError, match=r"unknown word 'spere'; nearest known word: sphere; known words: a, .*yellow"
    ):
        encoder.encode("a red spere")
    with pytest.raises(PromptError, match="unknown word '猫'"):
        encoder.encode("猫")


def test_empty_and_overlong_captions_are_refused(encoder: WordEncoder) -> None:
    with pytest.raises(PromptError, match="empty"):
        encoder.encode(" . ")
    assert encoder.encode("a " * 32).shape == (32, 144)
    with pytest.raises(PromptError, match="33 words, at most 32"):
        encoder.encode("a " * 33)


def test_padding_puts_the_valid_rows_last() -> None:
    rows = torch.arange(1.0, 7.0).view(3, 2)
    padded, mask = left_pad(rows, 5)
    assert torch.equal(padded[2:], rows)
    assert not padded[:2].any()
    assert mask.tolist() == [False, False, True, True, True]
    with pytest.raises(PromptError, match="at most 2"):
        left_pad(rows, 2)


def test_the_encoder_survives_a_file(encoder: WordEncoder) -> None:
    back = WordEncoder.from_state(load(save(encoder.state())))
    assert back.words == encoder.words
    assert torch.equal(back.encode(CAPTION), encoder.encode(CAPTION))
