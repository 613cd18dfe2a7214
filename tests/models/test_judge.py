"""The judge of photographs: its network, the claims of captions, its files, prompts from them, and the columns of a run."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import ciar_sim
from benchmarks.card import CARD, write_card
from ciar_sim.cli.main import main
from models.pair import export_pair
from models.quality.judge_files import JUDGE, draw_captions, judge_contents, read_captions, read_judge
from models.quality.judges import PhotoJudge, SceneJudge, captions_of, judge_of
from models.quality.network import save_network
from models.quality.photo_network import (
    PhotoNetwork,
    PhotoNetworkConfig,
    load_photo_network,
    read_photos,
)
from models.quality.photo_reading import PhotoClaims
from models.quality.scorer import Scorer
from models.train import judge
from models.train.data import DataConfig
from models.train.inputs import READS, refuse_outdated
from models.vq import load_vq, save_vq
from simulator.core.errors import CiarSimError, DataError, WeightsError
from simulator.core.rng import stream
from simulator.experiment.assumptions import familiar_captions
from simulator.experiment.scenario import Scenario
from simulator.protocol.pairs import SHIPPED, pair_manifest
from tests.models.photo_pairs import KINDS, settings, table, train
from tests.models.test_photos import write

pytestmark = pytest.mark.usefixtures("undrawn")

SCENARIO = """\
name: photographs
pair: {pair}
prompts: {prompts}
methods: [base, device-only]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("photos"))


def config(size: int = 16) -> PhotoNetworkConfig:
    return PhotoNetworkConfig(size, ("casual shoes", "tshirts"), ("navy blue", "blue"), (8, 8, 8))


@pytest.mark.parametrize(
    ("caption", "claimed"),
    [
        ("a navy blue tshirts for casual men polo", (1, 0)),
        ("A blue casual shoes for smart casual", (0, 1)),
        ("a blue tshirts", (1, 1)),
        ("a blue", None),
        ("blue tshirts for casual", None),
        ("a green tshirts for casual", None),
        ("a blue tshirts printed", None),
    ],
)
def test_a_caption_claims_a_type_and_a_colour(caption: str, claimed: tuple[int, int] | None) -> None:
    assert PhotoClaims(config().kinds, config().colours).of(caption) == claimed


def test_a_reading_does_not_depend_on_its_neighbours_and_comes_back_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PhotoNetwork(config()).eval()
    images = stream(0, "test.judge").integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    together = read_photos(model, images)
    assert together[2].tobytes() == read_photos(model, images[2:])[0].tobytes()
    assert together["features"].std() > 0
    save_network(tmp_path / "a.safetensors", model, {})
    again = load_photo_network(tmp_path / "a.safetensors")
    assert again.config == model.config
    assert np.allclose(read_photos(again, images)["features"], together["features"], atol=1e-2)
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"b.safetensors: not a model of this project"):
        load_photo_network(tmp_path / "b.safetensors")


def test_the_stage_learns_types_and_colours_and_keeps_what_it_reads_in_real_images(pair: Path) -> None:
    found = json.loads((pair.parent / "run" / JUDGE / "metrics.json").read_text())
    assert found["held-out"]["colour"] > 0.9  # red and navy blue are easy to distinguish
    files = read_judge(pair / JUDGE)
    assert files.kinds == ("casual shoes", "tshirts")
    assert files.colours == ("navy blue", "red")
    assert found["held_out_photographs"] == files.held_out == len(files.readings["reconstructed"])
    assert len(set(files.captions)) == len(files.captions) > files.held_out
    judge = judge_of(pair)
    assert isinstance(judge, PhotoJudge)
    reading = files.readings["held-out"]
    right = [judge.right(caption, one) for caption, one in zip(files.captions, reading, strict=False)]
    assert np.mean([r["colour"][0] for r in right if r]) == found["held-out"]["colour"]
    assert pair_manifest(pair).subject == "photos"


def test_labels_and_tokenizer_of_a_judge_are_its_inputs(pair: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", write(tmp_path / "in", table(80))
    shutil.copytree(pair.parent / "run", run)
    data, given = DataConfig(photos=str(folder), image_size=16), judge.JudgeConfig.model_validate(settings()["judge"])
    weights = run / "tokenizer" / "tokenizer.safetensors"
    model = load_vq(weights)
    model.decoder.conv_out.bias.data += 0.5
    save_vq(weights, model, {})
    with pytest.raises(
        WeightsError, match="judge: holds readings of images of another tokenizer than the current one; run"
    ):
        refuse_outdated(run, tuple(READS))
    before = np.load(run / JUDGE / "other-reconstructed.npy")
    judge.run(given, data, run / JUDGE)
    refuse_outdated(run, tuple(READS))
    assert (np.load(run / JUDGE / "other-reconstructed.npy")["features"] != before["features"]).any()
    rows = table(80)
    rows[0][4] = KINDS[1]  # the same photographs and types, and one of another type
    write(folder, rows)
    with pytest.raises(WeightsError, match=r"checkpoint.pt: made with another training labels"):
        judge.run(given, data, run / JUDGE)


def test_a_judge_without_the_newer_readings_is_read_and_exported(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / JUDGE
    shutil.copytree(pair / JUDGE, folder)
    (folder / "other-reconstructed.npy").unlink()
    assert sorted(judge_contents(folder)) == sorted(path.name for path in folder.iterdir())
    (folder / "metrics.json").unlink()
    with pytest.raises(WeightsError, match=r"metrics.json: cannot be read"):
        judge_contents(folder)


def test_held_out_photographs_without_a_known_type_are_refused_before_training(tmp_path: Path) -> None:
    rows = [[*row[:4], "Hats" if row[1] == "held-out" else row[4], *row[5:]] for row in table(8)]
    folder = write(tmp_path / "in", rows)
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "tokenizer.safetensors").touch()
    data, out = DataConfig(photos=str(folder), image_size=16), tmp_path / "run" / "judge"
    with pytest.raises(DataError, match="no held-out photograph has both a type and a colour of a training photograph"):
        judge.run(judge.JudgeConfig.model_validate(settings()["judge"]), data, out)
    assert not out.exists()


def test_a_pair_without_a_judge_has_no_captions_of_its_own(pair: Path, tmp_path: Path) -> None:
    weights = pair_manifest(pair).weights_hash
    manifest = json.loads((pair / "pair.json").read_text())
    for path in pair.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pair.json").write_text(json.dumps({**manifest, "subject": "other"}))
    assert pair_manifest(tmp_path).weights_hash == weights  # the subject does not affect tokens
    assert judge_of(tmp_path) is None
    assert captions_of(tmp_path)(0, 5) == []
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO.format(pair=tmp_path, prompts="{count: 2}"))
    with pytest.raises(
        CiarSimError, match=r"s.yaml:3: prompts must be a list or a file: the pair's models draw no captions"
    ):
        ciar_sim.run(scenario)
    (tmp_path / "pair.json").write_text(json.dumps({**manifest, "subject": "cats"}))
    with pytest.raises(WeightsError, match="subject must be scenes or photos or other, got 'cats'"):
        pair_manifest(tmp_path)
    assert isinstance(judge_of("scenes"), SceneJudge)


def test_a_new_export_keeps_the_model_card(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path / "pair")
    (tmp_path / "pair" / "MODEL_CARD.md").write_text("# Card\n")
    export_pair(pair.parent / "run", tmp_path / "pair", "photos")
    assert (tmp_path / "pair" / "MODEL_CARD.md").read_text() == "# Card\n"
    assert (tmp_path / "pair" / JUDGE / "captions.txt").read_bytes() == (pair / JUDGE / "captions.txt").read_bytes()


def test_prompts_are_held_out_captions_first_and_all_different() -> None:
    captions = [f"a caption {n}" for n in range(30)]
    one, other = draw_captions(captions, 20, 0, 25), draw_captions(captions, 20, 1, 25)
    assert sorted(one[:20], key=captions.index) == captions[:20]
    assert one != other
    assert draw_captions(captions, 20, 0, 5) == one[:5]
    assert len(set(draw_captions(captions, 20, 0, 99))) == 30


def test_captions_that_training_or_the_comparison_knows_are_noted(pair: Path) -> None:
    judge = PhotoJudge(pair, 32)
    _, held_out = read_captions(pair / JUDGE)
    assert judge.familiar(0, 0, held_out) is None
    known = f"3 of {held_out + 1} captions are of training photographs, because only {held_out} are of held-out ones"
    assert judge.familiar(0, 2, held_out + 1) == known
    assert judge.familiar(0, held_out + 5, 4) == known.replace(f"3 of {held_out + 1}", "4 of 4")
    told = {seed: SceneJudge().familiar(seed, 0, 1) for seed in (0, 1, 2, 3, 4)}
    trained = "scenes of this seed were used in training"
    assert told == {
        0: None,
        1: trained,
        2: trained,
        3: "scenes of this seed are what the images are compared with",
        4: None,
    }

    written = {"name": "drawn", "methods": ["base"]}
    scenarios = [Scenario.model_validate({**written, "prompts": {"seed": seed}}) for seed in (0, 1, 1, 3)]
    notes = familiar_captions(scenarios, SceneJudge())  # type: ignore[arg-type]
    assert [note.partition(":")[0] for note in notes] == ["prompts.seed 1", "prompts.seed 3"]


def test_an_evaluation_draws_no_caption_of_a_training_photograph(pair: Path) -> None:
    captions, held_out = read_captions(pair / JUDGE)
    assert 0 < held_out < len(captions) == len(captions_of(pair)(0, 9999))
    assert sorted(captions_of(pair, held_out_only=True)(0, 9999)) == sorted(captions[:held_out])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions.txt", b"a\na\n", "captions.txt: must hold captions, one per line and all different"),
        ("judge.json", b"[1]", "judge.json: must hold a mapping, found list"),
        ("judge.json", b'{"kinds": ["a"], "colours": ["b"], "held_out": 99999}', "judge.json: held_out must be 1 to"),
        ("judge.json", b'{"kinds": [], "colours": ["b"], "held_out": 1}', "judge.json: kinds must be a list of texts"),
        ("held-out.npy", b"", "held-out.npy: damaged"),
        ("other.npy", None, "other.npy: cannot be read: No such file"),
    ],
)
def test_damaged_files_are_named(pair: Path, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    for path in (pair / JUDGE).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_judge(tmp_path)


def test_a_run_has_the_columns_of_photographs_and_a_report(pair: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO.format(pair=pair, prompts="{count: 5}"))
    result = ciar_sim.run(scenario, out=tmp_path / "run", cache=tmp_path / "cache")
    assert {"align_photos", "align_photos_lo", "fd_photos", "f1_photos_hi"} <= set(result.summary)
    assert not [name for name in result.summary if name.endswith("_scenes")]
    assert result.summary["align_photos"].between(0, 1).all()
    assert result.summary["fd_photos"].isna().all()  # five images are too few
    captions, held_out = read_captions(pair / JUDGE)
    assert set(result.requests["prompt"]) == set(range(5))
    provenance = json.loads((result.folder / "provenance.json").read_text())
    assert provenance["quality"]["reference"] == f"{held_out} held-out photographs, one for each of their captions"
    assert "fd_photos" in provenance["columns"]
    assert "fd_scenes" not in provenance["columns"]
    assert "source: photos" in (result.folder / "scenario.yaml").read_text()
    page = result.report.read_text()
    assert "align_photos" in page
    assert "align_scenes" not in page
    assert not [note for note in provenance["notes"] if "prompts.seed" in note]
    assert captions[0].startswith("a ")


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("{source: scenes}", "s.yaml:3: prompts.source must be photos, whose words the pair knows, got scenes"),
        ("{count: 9999}", "s.yaml:3: prompts.count: 9999 captions wanted, but [0-9]+ photos of seed 0 hold only"),
        ("{list: [a red spaceship for casual]}", "s.yaml:3: .*unknown word 'spaceship'"),
        ("{file: own.txt}", "own.txt:2: .*unknown word 'hat'"),
    ],
)
def test_prompts_that_the_pair_cannot_draw_are_refused_with_their_place(
    pair: Path, tmp_path: Path, prompts: str, said: str
) -> None:
    (tmp_path / "own.txt").write_text("a red tshirts for casual\na red hat for casual\n")
    (tmp_path / "s.yaml").write_text(SCENARIO.format(pair=pair, prompts=prompts))
    with pytest.raises(CiarSimError, match=said):
        ciar_sim.run(tmp_path / "s.yaml", out=tmp_path / "run", cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_samples_stand_beside_what_photographs_attain(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Scorer.__init__

    def few(self: Scorer, *arguments: object, **more: object) -> None:
        init(self, *arguments, **more)  # type: ignore[arg-type]
        self.fewest = 8

    monkeypatch.setattr(Scorer, "__init__", few)
    command = ["evaluate", "samples", "--pair", str(pair), "--prompts", "10", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 0, result.output
    assert "alignment over that of photographs of these captions: " in result.output
    figures = pd.read_csv(tmp_path / "out" / "figures.csv").set_index("images of")
    assert list(figures.index) == [
        "generated",
        "photographs of these captions",
        "these through the tokenizer",
        "other photographs",
        "other photographs through the tokenizer",
    ]
    fd, align = figures["fd_photos"], figures["align_photos"]
    assert fd.loc["generated"] > fd.loc["other photographs through the tokenizer"] > 0
    for own in (
        "photographs of these captions",
        "these through the tokenizer",
    ):  # they show the reference's photographs
        assert math.isnan(fd.loc[own])
        assert align.loc[own] > 0
    claims = pd.read_csv(tmp_path / "out" / "claims-by-kind.csv").set_index("claim")
    assert list(claims.index) == ["all", "type", "colour"]
    assert claims.loc["all", "right_pct"] == pytest.approx(100 * figures.loc["generated", "align_photos"])


def test_the_card_takes_the_figures_of_the_pair(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path / "pair")
    template = (SHIPPED / "photos" / CARD).read_text()
    (tmp_path / "pair" / CARD).write_text(template)
    for _ in range(2):  # figures are replaced, not added
        write_card(tmp_path / "pair")
    found = (tmp_path / "pair" / CARD).read_text()
    assert found.count("## What was attained") == 1
    assert "16 x 16 pixels as 4 x 4 tokens of a codebook of 64" in found
    assert re.search(r"\| judge.held-out \| [01]\.?\d* \| [01]\.?\d* \| [01]\.?\d* \|", found)
    assert found.startswith("# The photos pair\n")
    (tmp_path / "pair" / CARD).write_text("# Card\n")
    with pytest.raises(CiarSimError, match="needs the lines <!-- figures"):
        write_card(tmp_path / "pair")
