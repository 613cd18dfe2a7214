"""A training file is checked completely before training. An error is one line with file, line, the value and what is allowed."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ciar_sim.cli.main import main
from models.train.data import DataConfig
from models.train.run import read_training_file
from models.vq import VQConfig, VQModel, save_vq

ROOT = Path(__file__).parents[2]
GOOD = """\
tokenizer:
  model: {codebook_size: 64, ch: 32, encoder_ch_mult: [1, 1], decoder_ch_mult: [1, 1], z_channels: 32, num_res_blocks: 1, patch: 16}
  training: {steps: 300, learning_rate: 1e-3}
cloud:
  model: {n_layer: 2, n_head: 2, dim: 16, ffn_hidden: 24, vocab_size: 64, grid: 4, caption_slots: 32, caption_dim: 144}
  scenes: {train: 8, held_out: 4}
  training: {steps: 2, learning_rate: 1e-3}
  then:
    - training: {steps: 3}
device:
  scenes: {train: 8}
  bounds: [quantile, inter-dro]
  training: {steps: 2, learning_rate: 1e-3}
phi:
  scenes: {train: 8}
  replaced: {low: 0.2, high: 0.5}
  training: {steps: 2, learning_rate: 1e-3}
"""

OWN_IMAGES = """\
data: {folder: a, image_size: 64}
cloud:
  model: {n_layer: 2, n_head: 2, dim: 16, ffn_hidden: 24, vocab_size: 64, grid: 4, caption_slots: 32, caption_dim: 144}
  training: {steps: 2, learning_rate: 1e-3}
  then:
    -
      {training: {steps: 3}}
"""


def refused(tmp_path: Path, text: str, *options: str) -> str:
    """Return the error of `ciar-sim train` about the file. Training must not have begun."""
    config = tmp_path / "own.yaml"
    config.write_text(text)
    result = CliRunner().invoke(main, ["train", str(config), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "run").exists()
    (line,) = result.output.splitlines()
    return line.removeprefix(f"Error: {config}")


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    """A training or pair folder that cannot be written is refused at once, not after hours."""
    (tmp_path / "file").write_text("a user's own")
    taken = tmp_path / "file" / "x"
    for options in (
        ["--out", str(tmp_path / "file")],
        ["--out", str(taken)],
        ["--export", str(taken)],
        ["--export", str(tmp_path)],
    ):
        assert ": cannot write the " in f": {refused(tmp_path, GOOD, *options).removeprefix('Error: ')}"
    assert (tmp_path / "file").read_text() == "a user's own"


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(GOOD)
    file = read_training_file(tmp_path / "own.yaml")
    assert list(file.stages) == ["tokenizer", "cloud", "device", "phi"]
    assert [r.training.steps for r in file.stages["cloud"].rounds()] == [2, 3]
    assert file.stages["tokenizer"].model.encoder_ch_mult == (1, 1)
    (tmp_path / "own.yaml").write_text(OWN_IMAGES)
    assert read_training_file(tmp_path / "own.yaml").data == DataConfig(folder=str(tmp_path / "a"), image_size=64)


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        (
            "phi:\n",
            "phy:\n",
            ":14: phy is not a known key; did you mean phi? allowed: data, tokenizer, cloud, device, phi, drafter",
        ),
        (
            "  bounds:",
            "  bound:",
            ":12: device.bound is not a known key; did you mean bounds? allowed: training, scenes, ",
        ),
        (
            "ffn_hidden: 24",
            "ffn: 24",
            ":5: cloud.model.ffn is not a known key; allowed: n_layer, n_head, dim, ffn_hidden, ",
        ),
        (
            "{steps: 300, learning_rate: 1e-3}\ncloud",
            "{steps: 300}\ncloud",
            ":3: tokenizer.training.learning_rate is missing",
        ),
        (
            "{steps: 3}",
            "{stepps: 3}",
            ":9: cloud.then[0].training.stepps is not a known key; did you mean steps? allowed: steps, ",
        ),
        (
            "training: {steps: 300,",
            "training: {optimizer: muon, steps: 300,",
            ":3: tokenizer.training.optimizer must be adamw; muon is for the stages cloud and device",
        ),
        (
            "training: {steps: 300,",
            "training: {steps: 200,",
            ":1: tokenizer.continuous_steps must be below training.steps (200), got 200",
        ),
        (
            "  bounds: [quantile, inter-dro]",
            "  token_steps: 2",
            ":12: device.token_steps must be below training.steps (2), got 2",
        ),
        ("- training: {steps: 3}", "- model: {dim: 8}", ":9: cloud.then[0].model cannot be changed by a later round"),
        ("    - training: {steps: 3}", "    steps: 3", ":8: cloud.then must be a list, got a mapping"),
        ("    - training: {steps: 3}", "    - pasted: 1.5", ":9: cloud.then[0].pasted must be <= 1, got 1.5"),
        ("    - training: {steps: 3}", "    - class_weight: -1", ":9: cloud.then[0].class_weight must be >= 0, got -1"),
        (
            "    - training: {steps: 3}",
            "    - {class_weight: 1, classes: 65}",
            ":9: cloud.then[0].classes must be 2 to 64, the model's codes",
        ),
        (
            "    - training: {steps: 3}",
            "    - layout_weight: 1",
            ":9: cloud.then[0].layout_layer must be 1 to 2, the model's layers, got 3",
        ),
        (
            "  then:",
            "  caption_heads: true\n  then:",
            ":8: cloud.caption_heads needs 3 heads of 16 channels at least, got 2 of 8",
        ),
        ("dim: 16", "dim: 20", ":5: cloud.model dim 20 must be a multiple of 4 * n_head (8): two rotary axes of pairs"),
        ("dim: 16", "dim: true", ":5: cloud.model.dim must be a whole number, got true"),
        (
            "patch: 16",
            "patch: 48",
            ":2: tokenizer.model shrinks images by 96, which does not divide their 128 pixels",
        ),
        ("vocab_size: 64", "vocab_size: 32", ":5: cloud.model.vocab_size must be 64, the tokenizer's, got 32"),
        ("grid: 4", "grid: 8", ":5: cloud.model.grid must be 4, the tokenizer's, got 8"),
        (
            "  then:",
            "  object_wieght: 2\n  then:",
            ":8: cloud.object_wieght is not a known key; did you mean object_weight?",
        ),
        ("  bounds: [quantile, inter-dro]", "  guidance: 0.5", ":12: device.guidance must be >= 1, got 0.5"),
        (
            "[quantile, inter-dro]",
            "[inter-dro, quantile]",
            ":12: device.bounds must begin with quantile, which decoding uses by default",
        ),
        (
            "[quantile, inter-dro]",
            "[quantile, interdro]",
            ":12: device.bounds[1] is not a variant of the loss, got interdro; did you mean",
        ),
        ("{low: 0.2, high: 0.5}", "{low: 0.6, high: 0.5}", ":16: phi.replaced.high must be >= low (0.6), got 0.5"),
        (
            "{steps: 300, learning_rate: 1e-3}\ncloud",
            "{steps: 0, learning_rate: 1e-3}\ncloud",
            ":3: tokenizer.training.steps must be > 0, got 0",
        ),
        ("{steps: 3}", "{amp: fp8}", ":9: cloud.then[0].training.amp must be none or bf16, got 'fp8' (text)"),
        ("{steps: 3}", "{betas: [0.9]}", ":9: cloud.then[0].training.betas"),
        (
            "{steps: 3}",
            "{learning_rate: .nan}",
            ":9: cloud.then[0].training.learning_rate must be a finite number, got .nan",
        ),
        (
            "  scenes: {train: 8, held_out: 4}\n",
            "",
            ":4: cloud.scenes or the file's data must be given, not both: both are missing",
        ),
        (
            "tokenizer:\n",
            "data: {folder: a}\ntokenizer:\n",
            ":7: cloud.scenes or the file's data must be given, not both: both are given",
        ),
        (
            GOOD,
            OWN_IMAGES.replace("steps: 3}", "steps: 3}, scenes: {train: 4}"),
            ":7: cloud.then[0].scenes or the file's data must be given, not both",
        ),
        (GOOD, "data: {folder: a, coco: b}\n", ":1: data needs one of folder, coco, photos, got folder and coco"),
        (GOOD, "data: {captions: a.csv}\n", ":1: data needs one of folder, coco, photos, got none"),
        (
            "encoder_ch_mult: [1, 1], decoder_ch_mult: [1, 1]",
            "encoder_ch_mult: [], decoder_ch_mult: [1]",
            ":2: tokenizer.model.codebook_dim must be 770 for patches of 16 pixels a side",
        ),
        (
            "decoder_ch_mult: [1, 1]",
            "decoder_ch_mult: [1, 1, 2]",
            ":2: tokenizer.model decoder_ch_mult must have as many factors as encoder_ch_mult, 2, got 3",
        ),
        (
            "encoder_ch_mult: [1, 1]",
            "codebook_dim: 770, encoder_ch_mult: []",
            ":2: tokenizer.model decoder_ch_mult must have one factor without an encoder, got 2",
        ),
        (GOOD, "data: {photos: a, words: 9}\n", ":1: data.words does not apply to photos, whose table defines it"),
        (GOOD, "data: {folder: a, size: 3}\n", ":1: data.size is not a known key; did you mean"),
        (GOOD, "data: {folder: a, held_out: 1.5}\n", ":1: data.held_out must be < 1, got 1.5"),
        (GOOD, "data: {folder: a, words: 0}\n", ":1: data.words must be > 0, got 0"),
        (
            GOOD,
            "data: {folder: a, unknown_words: drop}\n",
            ":1: data.unknown_words must be replace or error, got 'drop' (text)",
        ),
        ("n_layer: 2", "n_layer: 0", ":5: cloud.model n_layer must be 1 to 1024, got 0"),
        ("n_head: 2", "n_head: 0", ":5: cloud.model n_head must be 1 to 1024, got 0"),
        ("dim: 16", "dim: -16", ":5: cloud.model dim must be 1 to 65536, got -16"),
        ("ch: 32", "ch: -32", ":2: tokenizer.model ch must be 1 to "),
        ("codebook_size: 64", "codebook_size: 65537", ":2: tokenizer.model codebook_size must be 1 to 65536"),
        ("{steps: 3}", f"{{steps: {10**60}}}", ":9: cloud.then[0].training.steps must be <= 1e+08, got 1000"),
        ("{steps: 3}", f"{{seed: {2**63}}}", ":9: cloud.then[0].training.seed must be < 9.22337e+18, got 9223"),
        ("{train: 8, held_out: 4}", "{train: -8}", ":6: cloud.scenes.train must be > 0, got -8"),
        ("{train: 8, held_out: 4}", f"{{train: {10**60}}}", ":6: cloud.scenes.train must be <= 1e+08, got 1000"),
        ("  then:", f"  batch_images: {10**9}\n  then:", ":8: cloud.batch_images must be <= 4096, got 1000000000"),
        ("  replaced:", "  bottleneck: 0\n  replaced:", ":16: phi.bottleneck must be > 0, got 0"),
        ("  replaced:", f"  positions: {10**30}\n  replaced:", ":16: phi.positions must be <= 65536, got 1000"),
        (
            "n_layer: 2, n_head: 2, dim: 16",
            "n_layer: 1024, n_head: 1, dim: 65536",
            ": cloud needs at least 3.5",
        ),
        (GOOD, "data: here\n", ":1: data must be a mapping, got 'here' (text)"),
        (GOOD, "- cloud\n", ":1: a training file must be a mapping of stages, got a list"),
        ("  replaced:", "  replaced: {low: 0.1\n  x:", ":17: is not YAML:"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, written: str, instead: str, said: str) -> None:
    assert GOOD.count(written) == 1
    assert refused(tmp_path, GOOD.replace(written, instead)).startswith(said)


def test_a_stage_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    said = ": has no stage drafter; allowed: tokenizer, cloud, device, phi"
    assert refused(tmp_path, GOOD, "--stage", "drafter") == said


def test_a_stage_without_those_before_it_is_refused(tmp_path: Path) -> None:
    alone = GOOD[GOOD.index("cloud:") : GOOD.index("device:")]
    assert "tokenizer.safetensors: no such file; stage cloud needs the stages before it" in refused(tmp_path, alone)


def test_a_size_that_only_the_trained_tokenizer_tells_is_refused(tmp_path: Path) -> None:
    """A file without the tokenizer stage can be checked only against the trained tokenizer. This happens before tokens are computed."""
    shape = VQConfig(
        codebook_size=32,
        ch=32,
        encoder_ch_mult=(1, 1),
        decoder_ch_mult=(1, 1),
        z_channels=32,
        num_res_blocks=1,
        patch=16,
    )
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    tokenizer = tmp_path / "run" / "tokenizer" / "tokenizer.safetensors"
    save_vq(tokenizer, VQModel(shape), {})
    config = tmp_path / "own.yaml"
    config.write_text(GOOD[GOOD.index("cloud:") : GOOD.index("device:")])
    result = CliRunner().invoke(main, ["train", str(config), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert (
        result.output.splitlines()[-1]
        == f"Error: {config}: cloud.model.vocab_size is 64, the tokenizer in {tokenizer} has 32 codes"
    )
    assert not (tmp_path / "run" / "tokens").exists()
    assert not (tmp_path / "run" / "cloud").exists()


def test_the_shipped_file_has_every_stage() -> None:
    file = read_training_file(ROOT / "models" / "scenes.yaml")
    assert list(file.stages) == ["tokenizer", "cloud", "device", "phi", "drafter", "scene-network"]
    assert sum(r.training.steps for r in file.stages["cloud"].rounds()) == 16_700
