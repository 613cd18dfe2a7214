"""The cloud stage: initialisation, loss weights, and pasted images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models import scenes
from models.text import WordEncoder, left_pad
from models.train.cloud import CloudConfig, CloudStage, miscaptioned, pasted
from models.train.code_classes import CodeClasses, code_classes
from models.train.layout import LayoutHead, layout_of, onset_of
from models.train.loop import LoopSettings
from models.train.sequences import Batch, nats_per_token
from models.train.starts import COUNT_SCORE, start_first_layer, start_from_captions
from models.train.tokens import SceneTokens
from models.transformer import Transformer
from simulator.protocol.pairs import TransformerConfig

TEXT = WordEncoder.build(scenes.WORDS)
SHAPE = TransformerConfig(
    n_layer=1, n_head=2, dim=16, ffn_hidden=24, vocab_size=64, caption_slots=32, caption_dim=144, grid=4
)
CAPTIONS = [
    "a small red cube at the top left on a plain gray background",
    "a large blue ring at the bottom on a dotted teal background",
]


def some_batch(grid: int = 4) -> Batch:
    padded = [left_pad(TEXT.encode(caption)) for caption in CAPTIONS]
    tokens = torch.randint(64, (2, grid * grid), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens,
        torch.stack([rows for rows, _ in padded]),
        torch.stack([mask for _, mask in padded]),
        torch.zeros(2, dtype=torch.bool),
        torch.stack([layout_of(caption, grid).flatten(1) for caption in CAPTIONS]),
    )


@pytest.mark.parametrize(
    ("images", "kept", "captions_of"),
    [
        ([0, 1, 2], [0, 1, 2], [2, 0, 1]),
        ([0, 0, 1, 1, 1], [0, 1, 2, 3, 4], [4, 4, 1, 1, 1]),  # captions of one image are adjacent, as in COCO
        ([0], [], []),
        ([3, 3], [], []),
    ],
)
def test_another_caption_is_that_of_another_image(images: list[int], kept: list[int], captions_of: list[int]) -> None:
    count = len(images)
    tokens = torch.tensor(images).unsqueeze(1).repeat(1, 16)
    caption = torch.arange(count).view(-1, 1, 1).expand(count, 32, 144).float()
    mask, null = torch.ones(count, 32, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    other = miscaptioned(Batch(tokens, caption, mask, null, torch.zeros(count, 3, 16, dtype=torch.long)))
    assert other.tokens[:, 0].tolist() == [images[row] for row in kept]
    assert other.caption[:, 0, 0].tolist() == captions_of


def test_layout_at_named_places() -> None:
    # Centres of the 4 x 4 cells are at 16, 48, 80 and 112 px. (31, 31) is 21.2 px from its nearest four, (64, 97) 22.7 px.
    top_left, bottom = (layout_of(caption, 4) for caption in CAPTIONS)
    assert top_left[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert bottom[0].nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    words = [scenes.SHAPES, tuple(scenes.COLORS), tuple(scenes.SIZES)]
    for layout, row, column, said in (
        (top_left, 0, 0, ["cube", "red", "small"]),
        (bottom, 2, 1, ["ring", "blue", "large"]),
    ):
        assert [known[number - 1] for known, number in zip(words, layout[:, row, column].tolist(), strict=True)] == said
    assert not layout_of("a photo of a cat", 4).any()


def test_between_two_places_the_nearer_object_counts() -> None:
    both = "a small red cube at the left and a large blue ring in the center on a plain gray background"
    for phrases in (
        both,
        "a large blue ring in the center and a small red cube at the left on a plain gray background",
    ):
        shape = layout_of(phrases, 16)[0, 8]  # cells of 8 px, centres in row 68; places in columns 31 and 64
        assert [scenes.SHAPES[number - 1] for number in shape[[1, 3, 5, 6, 8, 10]].tolist()] == ["cube"] * 3 + [
            "ring"
        ] * 3
        assert shape[[0, 12]].tolist() == [0, 0]


def test_an_object_s_onset_is_its_first_two_rows() -> None:
    stacked = "a small red cube at the top and a small red cube in the center and a large blue ring at the left on a plain gray background"
    layout = layout_of(stacked, 16)
    onset = onset_of(layout.flatten(1).unsqueeze(0)).view(16, 16)
    assert onset[:, 8].nonzero().flatten().tolist() == [
        1,
        2,
    ]  # centres from 12 px; the equal object below has no onset of its own
    assert onset[:, 3].nonzero().flatten().tolist() == [5, 6]  # the place is at 64 px, its cells from 44 px
    assert not (onset & (layout[0] == 0)).any()


def test_every_object_lies_in_its_named_cells() -> None:
    for index in range(50):
        scene = scenes.scene(7, index)
        cells = np.kron(layout_of(scene.caption, 16)[0].numpy() > 0, np.ones((8, 8), bool))
        objects = scenes.region_map(scene) == scenes.OBJECT
        assert (objects & cells).sum() > 0.95 * objects.sum()  # the rest: cells whose centre is too far


def test_the_loss_weighs_named_places_unless_the_caption_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CloudConfig(
        model=SHAPE, training=LoopSettings(steps=1, learning_rate=1.0), object_weight=3.0, onset_weight=2.0
    )
    stage = CloudStage(config, data=None)  # type: ignore[arg-type]
    assert isinstance(stage.model, Transformer)
    torch.nn.init.normal_(stage.model.output.weight)  # initialised at zero, where every token costs log V
    batch = some_batch()
    logits, _ = stage.model(batch.tokens[:, :-1], batch.caption, batch.mask)
    each = -logits.log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)  # [B, T]
    weight = torch.where(batch.layout[:, 0] > 0, 3.0, 1.0)
    weight[0, [0, 1]] = weight[1, [9, 10]] = 6.0  # the first row of cells of each object
    shown, _ = stage.loss(batch, 0)
    torch.testing.assert_close(shown, (each * weight).sum() / weight.sum())
    hidden = replace(batch, null=torch.ones(2, dtype=torch.bool))
    plain = nats_per_token(stage.model, hidden.tokens, hidden.caption_for(stage.model), hidden.mask)
    torch.testing.assert_close(stage.loss(hidden, 0)[0], plain)


def test_the_layout_is_asked_for_after_its_layer_where_captions_are_shown() -> None:
    config = CloudConfig(
        model=replace(SHAPE, n_layer=2),
        training=LoopSettings(steps=1, learning_rate=1.0),
        layout_weight=0.5,
        layout_layer=1,
        onset_weight=2.0,
    )
    stage = CloudStage(config, data=None)  # type: ignore[arg-type]
    assert isinstance(stage.model, Transformer)
    batch = replace(some_batch(), null=torch.tensor([True, False]))
    loss, values = stage.loss(batch, 0)
    kept: list[torch.Tensor] = []
    stage.model.hidden(batch.tokens[:, :-1], batch.caption, batch.mask, states=kept)
    state = kept[0][1, config.model.caption_slots - 1 :]  # [T, D]; only the second caption is shown
    normed = state / state.square().mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).sqrt()
    scores = (normed @ stage.layout.rows.T).split((7, 9, 3), -1)  # none and shapes, colors, sizes
    missed = (
        torch.stack([-x.log_softmax(-1).gather(1, batch.layout[1, i, :, None]) for i, x in enumerate(scores)])
        .sum(0)
        .flatten()
    )  # [T]
    # The mean is over both images.
    torch.testing.assert_close(values["layout"], (missed.sum() + missed[[9, 10]].sum()) / (2 * 16 + 2))
    torch.testing.assert_close(loss, values["nats"] + 0.5 * values["layout"])
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [
        sum(float(p.grad.abs().sum()) for p in layer.parameters() if p.grad is not None) for layer in stage.model.layers
    ]
    assert grads[0] > 0  # logits start at zero, so only the layout loss has a gradient
    assert grads[1] == 0


def test_states_that_hold_the_layout_lose_nothing() -> None:
    head = LayoutHead(256, np.random.default_rng(0))
    layout = torch.stack([layout_of(caption, 16).flatten(1) for caption in CAPTIONS])  # [B, 3, T]
    offsets = torch.tensor([0, 7, 16])
    chosen = head.rows[layout + offsets.view(1, 3, 1)].sum(1)  # [B, T, D]
    assert head(chosen, layout).max() < 0.01
    assert head(chosen.roll(1, 0), layout).max() > 10


def test_codes_that_stand_beside_the_same_codes_are_of_one_class() -> None:
    # Each image consists of codes of one of three kinds, so v, v + 3, v + 6, ... are near synonyms.
    rng = np.random.default_rng(0)
    codes = np.stack([image % 3 + 3 * rng.integers(0, 20, 64) for image in range(600)])
    classes = code_classes(codes, 61, 4, np.random.default_rng(1))  # the last code is unused: its own class
    assert classes.dtype == torch.int64
    found = [set(classes[kind:60:3].tolist()) for kind in range(3)]
    assert all(len(one) == 1 for one in found)
    assert len(set.union(*found)) == 3
    again = code_classes(codes, 61, 4, np.random.default_rng(1))
    assert torch.equal(classes, again)


def test_the_chance_of_a_class_is_the_sum_of_its_codes_chances() -> None:
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)) * 20
    tokens = torch.tensor([[0, 1, 2, 3, 4], [5, 5, 0, 1, 3]])
    of_code = torch.tensor([0, 0, 0, 1, 1, 2])
    chance = logits.softmax(-1)
    summed = torch.stack([chance[..., of_code == kind].sum(-1) for kind in range(3)], -1)  # [B, T, classes]
    expected = -summed.gather(-1, of_code[tokens].unsqueeze(-1)).squeeze(-1).log()
    torch.testing.assert_close(CodeClasses(of_code)(logits, tokens), expected, rtol=1e-4, atol=1e-5)


def test_the_class_loss_counts_every_position_alike() -> None:
    class Data:
        train = SceneTokens(np.random.default_rng(0).integers(0, 64, (50, 16)).astype(np.uint16), [])

    config = CloudConfig(
        model=SHAPE, training=LoopSettings(steps=1, learning_rate=1.0), object_weight=3.0, class_weight=0.5, classes=5
    )
    stage = CloudStage(config, data=Data())  # type: ignore[arg-type]
    assert isinstance(stage.model, Transformer)
    assert stage.classes is not None
    torch.nn.init.normal_(stage.model.output.weight)
    batch = some_batch()
    loss, values = stage.loss(batch, 0)
    logits, _ = stage.model(batch.tokens[:, :-1], batch.caption, batch.mask)
    torch.testing.assert_close(values["class"], stage.classes(logits, batch.tokens).mean())
    torch.testing.assert_close(loss, values["nats"] + 0.5 * values["class"])


def test_pasted_images_hold_rectangles_of_the_next_one_and_are_asked_for_their_own() -> None:
    tokens = torch.arange(4).repeat_interleave(64).view(4, 64)  # each image consists of its number
    torch.manual_seed(0)
    shares = []
    for _ in range(50):
        found = pasted(tokens, torch.tensor([True, False, True, True]))
        foreign = found != tokens
        assert not foreign[1].any()
        for image in (0, 2, 3):
            assert set(found[image][foreign[image]].tolist()) == {(image + 1) % 4}
            cells = foreign[image].view(8, 8)
            assert 3 <= int(cells.any(0).sum()) <= 8
            assert 3 <= int(cells.any(1).sum()) <= 8
            shares.append(float(cells.float().mean()))
    assert 0.2 < np.mean(shares) < 0.45  # two rectangles of 3 or 4 cells a side: at most 32 of 64
    assert max(shares) <= 0.5


def test_a_model_is_fed_pasted_images_only_where_their_caption_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CloudConfig(model=SHAPE, training=LoopSettings(steps=1, learning_rate=1.0), pasted=1.0)
    stage = CloudStage(config, data=None)  # type: ignore[arg-type]
    assert isinstance(stage.model, Transformer)
    fed: list[torch.Tensor] = []
    whole = stage.model.hidden
    monkeypatch.setattr(
        stage.model, "hidden", lambda tokens, *rest, **more: fed.append(tokens) or whole(tokens, *rest, **more)
    )
    batch = replace(some_batch(), null=torch.tensor([True, False]))
    torch.manual_seed(0)
    stage.loss(batch, 0)
    assert torch.equal(fed[0][0], batch.tokens[0, :-1])
    assert not torch.equal(fed[0][1], batch.tokens[1, :-1])
    plain = CloudStage(config.model_copy(update={"pasted": 0.0}), data=None)  # type: ignore[arg-type]
    monkeypatch.setattr(plain, "model", stage.model)
    plain.loss(batch, 0)
    assert torch.equal(fed[1], batch.tokens[:, :-1])


def colour_at_a_place_read_off_the_mean(projected: Any) -> float:
    """Return the accuracy of a ridge regression from the mean of the caption's rows to the colour at the left, red or blue."""
    rng = np.random.default_rng(0)
    rows, labels = [], []
    for _ in range(400):
        colors = rng.permutation(["red", "blue"])
        phrases = [f"a small {colors[0]} cube at the left", f"a small {colors[1]} cube at the right"]
        caption = " and ".join(phrases[i] for i in rng.permutation(2)) + " on a plain gray background"
        rows.append(projected(TEXT.encode(caption)).mean(0).numpy())
        labels.append(colors[0] == "red")
    x, y = np.c_[np.array(rows, dtype=float), np.ones(400)], 2.0 * np.array(labels) - 1.0
    weights = np.linalg.solve(x[:200].T @ x[:200] + 1e-3 * np.eye(x.shape[1]), x[:200].T @ y[:200])
    return float((np.sign(x[200:] @ weights) == y[200:]).mean())


def test_a_started_caption_projection_keeps_products_of_words_and_llamagens_start_does_not() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SHAPE, dim=64))
    project = torch.inference_mode()(model.cls_embedding.cap_proj)
    batch = some_batch()
    assert project(batch.caption[batch.mask]).std() < 0.05
    before = colour_at_a_place_read_off_the_mean(project)
    start_from_captions(model, batch, np.random.default_rng(0))
    rows = batch.caption[batch.mask]
    assert 0.8 < (rows @ model.cls_embedding.cap_proj.fc1.weight.T).std() < 1.2
    after = colour_at_a_place_read_off_the_mean(project)
    assert before < 0.9 < after


def test_the_first_layer_starts_counting_rows_and_columns_and_reading_the_caption() -> None:
    grid, heads = 8, 4
    config = TransformerConfig(
        n_layer=1, n_head=heads, dim=256, ffn_hidden=24, vocab_size=64, caption_slots=32, caption_dim=144, grid=grid
    )
    torch.manual_seed(0)
    model = Transformer(config).eval()
    start_first_layer(model)
    batch = some_batch(grid)
    attention = model.layers[0].get_submodule("attention")
    values, mixed = [], []
    attention.get_submodule("wqkv").register_forward_hook(lambda module, given, out: values.append(out))  # [B, n, 3 D]
    attention.get_submodule("wo").register_forward_hook(lambda module, given, out: mixed.append(given[0]))  # [B, n, D]
    with torch.inference_mode():
        model(batch.tokens, batch.caption, batch.mask)
    found = mixed[0][:, config.caption_slots :].unflatten(-1, (heads, -1))  # [B, T, H, hd]
    row, column = np.divmod(np.arange(grid * grid), grid)
    for head, own in ((0, column), (1, row)):
        seen = torch.from_numpy(own + 1) * np.exp(COUNT_SCORE)  # n e^s
        for image in range(2):
            share = found[image, : len(own), head, 0] / 16.0
            expected = seen / (seen + batch.mask[image].sum())
            assert (share - expected).abs().max() < 0.1  # scores vary with the norms of embeddings
    rows = values[0].unflatten(-1, (3, heads, -1))[:, : config.caption_slots, 2]  # [B, slots, H, hd]
    for head in (2, 3):
        for image in range(2):
            caption = rows[image, batch.mask[image], head].mean(0)
            torch.testing.assert_close(
                found[image, :, head], caption.expand_as(found[image, :, head]), rtol=0, atol=0.05
            )
            assert caption.std() > 0.2
