"""Backbones in the layout of transformers as pairs: methods on the recorder, and scenarios up to the report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from ciar_sim.cli.main import main
from models.backend import Backend, PassRequest
from models.evaluate.reading import Settings
from models.evaluate.timing import time_measures
from models.evaluate.uncertainty import evaluate_uncertainty
from models.methods.session import Step
from models.pair import Pair, load_device, load_pair
from models.profile import measure_profile
from models.quality.likelihood import score_tokens
from models.sampling import guide
from models.text import left_pad
from models.train.distil import DistilSettings, distil
from reports.uncertainty import markdown
from simulator.core.errors import CiarSimError, WeightsError
from simulator.pricing.build import pair_shapes
from simulator.pricing.catalogue import drafter_of
from simulator.pricing.costs import Work
from simulator.pricing.profile import MeasuredCosts
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.ops import Forward
from simulator.protocol.pairs import PairSpec, find_pair, pair_manifest
from simulator.protocol.recording import REPLY
from tests.models import folders
from tests.models.test_methods import record, spec

PROMPTS = ("a photo of the red bus", "two dogs", "a dog on the grass and the blue bus")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PairSpec]:
    """Return a pair of every kind. For Anole and Lumina-mGPT the device has the same weights as the cloud."""
    root = tmp_path_factory.mktemp("backbones")
    chameleon = folders.chameleon(root / "chameleon", pixels=8)
    big, small = folders.janus(root / "big", width=32), folders.janus(root / "small", width=16)
    return {
        "anole-7b": PairSpec(cloud="anole-7b", weights=str(chameleon), device=str(chameleon)),
        "lumina-mgpt-768": PairSpec(cloud="lumina-mgpt-768", weights=str(chameleon), device=str(chameleon)),
        "janus-pro-7b": PairSpec(cloud="janus-pro-7b", weights=str(big), device=str(small)),
    }


def greedy(pair: Pair, caption: str, guidance: float) -> list[int]:
    """Return greedy tokens, each from a pass over all previous ones without a cache."""
    rows, mask = (one.unsqueeze(0) for one in left_pad(pair.text.encode(caption), pair.manifest.caption_slots))
    halves = [(rows, mask), pair.cloud.unconditional(rows, mask)]
    tokens: list[int] = []
    for _ in range(pair.manifest.image_tokens):
        ids = torch.tensor([tokens], dtype=torch.long)
        own, null = (pair.cloud(ids, *half)[0][0, -1] for half in halves)
        tokens.append(int(guide(own, null, guidance).argmax()))
    return tokens


@pytest.mark.parametrize("name", ["anole-7b", "lumina-mgpt-768", "janus-pro-7b"])
@torch.inference_mode()
def test_methods_run_batched_and_decode_what_single_passes_decode(specs: dict[str, PairSpec], name: str) -> None:
    pair = load_pair(specs[name], dtype=torch.float64)
    scale = pair.manifest.guidance
    greedily = {"guidance": scale, "cloud": "greedy", "device": "greedy"}
    base = [spec(pair, "base", {}, prompt, **greedily) for prompt in PROMPTS]
    drafted = [spec(pair, "speculative", {}, prompt, **greedily) for prompt in PROMPTS[:2]]
    found = record(pair, *base, *drafted, spec(pair, "code", {"prefix_rate": 0.5}, PROMPTS[0], **greedily))
    assert found[0].tokens.tolist() == greedy(pair, PROMPTS[0], scale)
    assert [one.tokens.tolist() for one in found[3:5]] == [one.tokens.tolist() for one in found[:2]]  # lossless
    (nll, best), *_ = score_tokens(pair, [(base[0], found[0].tokens.tolist())])
    assert np.array_equal(best, found[0].tokens)
    np.testing.assert_allclose(nll, found[0].nll, atol=1e-5)
    assert found[0].image.shape == (pair.manifest.image_size, pair.manifest.image_size, 3)
    wanted = pair.tokenizer.to_bytes(pair.tokenizer.decode_codes(torch.tensor([found[0].tokens.tolist()])))[0]
    assert np.array_equal(found[0].image, wanted.numpy())


TREE = "total_tokens: 6, depth: 2, top_k: 3"
DRAWN = f"{{name: eagle2, {TREE}}}, {{name: lantern, {TREE}, k: 8}}, {{name: vvs, {TREE}, k: 8}}"
DECODED = "{name: speculative, gamma: 3}, random"  # calibrating random needs no captions


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "methods"),
    [("anole-7b", DECODED), ("lumina-mgpt-768", DECODED), ("janus-pro-7b", DECODED), ("anole-7b", DRAWN)],
)
def test_a_scenario_runs_from_official_files_to_a_report(
    specs: dict[str, PairSpec], drafted: PairSpec, name: str, methods: str, tmp_path: Path
) -> None:
    one = drafted if methods == DRAWN else specs[name]
    (tmp_path / "s.yaml").write_text(
        f"name: t\npair: {{cloud: {name}, weights: {one.weights}, device: {one.device}}}\n"
        f"prompts: {{list: {json.dumps(PROMPTS[:2])}}}\n"
        f"methods: [base, {methods}]\n"
    )
    arguments = ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    assert len(table) == 2 * (1 + methods.count("name:") + methods.count("random"))
    assert np.isfinite(table["latency_s"]).all()
    assert (tmp_path / "out" / "report.html").is_file()
    compute = yaml.safe_load((tmp_path / "out" / "scenario.yaml").read_text())["compute"]
    assert {side: (of["model"], of["hardware"]) for side, of in compute.items()} == {
        "device": ("pair", "snapdragon-8-gen-3"),
        "cloud": ("pair", "a100"),
    }


# --- drafters


@pytest.fixture(scope="module")
def drafted(specs: dict[str, PairSpec], tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    """Return Anole with a drafter in LANTERN's layout."""
    return specs["anole-7b"].model_copy(update={"device": str(folders.drafter(tmp_path_factory.mktemp("drafter")))})


def outputs(
    state: dict[str, Tensor], tokens: list[int], features: Tensor, positions: list[int], sees: Tensor
) -> Tensor:
    """Return a drafter's outputs [n, D] under LANTERN's keys: one layer of Chameleon over fc([E(token); feature]), in one pass.

    Args:
        state: the weights.
        tokens: n tokens of the text vocabulary.
        features: [n, D].
        positions: n rotary positions.
        sees: bool [n, n], the positions that each one attends to.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * state[f"layers.0.{name}_layernorm.weight"]

    def heads(x: Tensor, name: str) -> Tensor:
        """Return [heads, n, hd]: projected, normalised per head and rotated, channel j with channel j + hd / 2."""
        y = (x @ state[f"layers.0.self_attn.{name}_proj.weight"].T).view(len(x), folders.HEADS, -1)
        if name == "v":
            return y.transpose(0, 1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * state[f"layers.0.self_attn.{name}_norm.weight"] + state[f"layers.0.self_attn.{name}_norm.bias"]
        half = y.shape[-1] // 2
        angle = torch.outer(torch.tensor(positions).float(), 10000 ** (-torch.arange(half) / half)).unsqueeze(1)
        a, b = y[..., :half], y[..., half:]
        turned = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
        return torch.cat(turned, dim=-1).transpose(0, 1)

    x = torch.cat([state["embed_tokens.weight"][tokens], features], dim=-1) @ state["fc.weight"].T + state["fc.bias"]
    q, k, v = (heads(norm(x, "input"), name) for name in "qkv")
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~sees, -math.inf)
    h = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ state["layers.0.self_attn.o_proj.weight"].T
    y = norm(h, "post_attention")
    gate, up, down = (state[f"layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return h + (torch.nn.functional.silu(y @ gate.T) * (y @ up.T)) @ down.T


@torch.inference_mode()
def test_a_drafter_of_anole_is_one_layer_of_chameleon(drafted: PairSpec) -> None:
    """Two sessions with prompts of different lengths and their unconditional rows: the caption, a tree, and the committed tokens after
    it, against `outputs`, to 1e-4 in float32."""
    pair = load_pair(drafted)
    state = torch.load(Path(str(drafted.device)) / "pytorch_model.bin")
    files = sorted(Path(drafted.weights).glob("model-*.safetensors"))
    head = next(tensors["lm_head.weight"] for file in files if "lm_head.weight" in (tensors := load_file(file)))
    head = head[folders.CODE : folders.CODE + folders.CODES]
    rows = [pair.text.encode(prompt) for prompt in PROMPTS[:2]]
    texts = [(256 * row[:, 0] + row[:, 1]).long().tolist() for row in rows]
    generator = torch.Generator().manual_seed(1)
    first = [torch.randn(2, len(text), folders.WIDTH, generator=generator) for text in texts]
    later = torch.randn(2, 3, folders.WIDTH, generator=generator)
    backend, scale = Backend(pair, 3, spare=8), 3.0

    def fed(*ops: Forward) -> list[Step]:
        """Run one pass of both sessions, in slots 1 and 2."""
        return backend.forward(
            "drafter", [PassRequest(1 + i, op, 0, scale, 1.0, 0, 1.0, None) for i, op in enumerate(ops)]
        )

    def wanted(session: int, codes: list[int], depths: list[int], sees: Tensor) -> Tensor:
        """Return the outputs [2, m, D] at m codes, the first of which stands at the prompt's last position."""
        text, n = texts[session], len(texts[session])
        found = []
        for row, (prompt, padding) in enumerate(((text, 0), ([1] * (n - 2) + text[:1] + text[-1:], n - 2))):
            visible = torch.ones(n + len(depths), n + len(depths)).tril().bool()
            visible[n:, n:] = sees
            visible[:, :padding] = False
            visible |= torch.eye(len(visible)).bool()  # what a padded position sees is never read
            positions = [max(0, position - padding) for position in [*range(n), *(n + depth for depth in depths)]]
            given = torch.cat([first[session][row], later[row, : len(depths)]])
            tokens = prompt[1:] + [folders.CODE + code for code in codes]
            found.append(outputs(state, tokens, given, positions, visible)[n - 1 :])
        return torch.stack(found)

    captions = [
        Forward("drafter", [5], caption=given, prompt=row.numpy()) for given, row in zip(first, rows, strict=True)
    ]
    for session, step in enumerate(fed(*captions)):
        alone = wanted(session, [5], [], torch.ones(0, 0).bool())
        torch.testing.assert_close(step.states, alone, atol=1e-4, rtol=0)
        torch.testing.assert_close(step.logits, guide(*(alone[:, 0] @ head.T), scale), atol=5e-4, rtol=0)
    tree = Forward("drafter", [8, 9, 3], features=later, tree=[-1, -1, 0], outputs="all")
    sees = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    for session, step in enumerate(fed(tree, tree)):
        torch.testing.assert_close(
            step.states, wanted(session, [5, 8, 9, 3], [0, 0, 1], sees)[:, 1:], atol=1e-4, rtol=0
        )
    chain = Forward("drafter", [9, 2], features=later[:, :2], outputs="all")
    for session, step in enumerate(fed(chain, chain)):
        expected = wanted(session, [5, 9, 2], [0, 1], torch.ones(2, 2).tril().bool())[:, 1:]
        torch.testing.assert_close(step.states, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_drafter_of_anole_drafts_losslessly_on_either_side(drafted: PairSpec) -> None:
    pair = load_pair(drafted, dtype=torch.float64)
    assert (pair.manifest.has_drafter, pair.manifest.device) == (True, None)
    greedily = {"guidance": 3.0, "cloud": "greedy"}
    tree = {"total_tokens": 6, "depth": 2, "top_k": 3}
    methods = {"base": {}, "eagle2": tree, "lantern": {**tree, "k": 8}, "lantern-static": {"k": 8}}
    methods["vvs"] = {**tree, "k": 8, "interval": 2}
    for prompt in PROMPTS[:2]:
        asked = [spec(pair, name, settings, prompt, **greedily) for name, settings in methods.items()]
        asked += [
            spec(pair, name, {**settings, "drafter": "cloud"}, prompt, **greedily)
            for name, settings in methods.items()
            if name != "base"
        ]
        found = record(pair, *asked)
        assert found[1].tokens.tolist() == found[5].tokens.tolist() == found[0].tokens.tolist()
        for one in found:
            assert one.image.shape == (8, 8, 3)
        n = len(pair.text.encode(prompt))
        (reply,) = found[1].ops[(found[1].ops["kind"] == REPLY) & (found[1].ops["caption_rows"] > 0)]
        assert (reply["caption_rows"], reply["feature_vectors"], reply["ids"]) == (n, 2 * n, 1)
    shapes = pair_shapes(drafted)
    assert shapes.drafter_ffn == 40
    # Memory on the device: the weights of a pass, the embedding of the codes and that of the prompt's tokens.
    drafter = drafter_of(shapes.cloud, shapes.drafter_ffn)
    assert drafter.parameters == drafter.pass_parameters + (folders.CODES + folders.TEXT) * folders.WIDTH


def test_what_does_not_fit_a_drafter_of_anole_is_listed_at_once(drafted: PairSpec, tmp_path: Path) -> None:
    state = torch.load(Path(str(drafted.device)) / "pytorch_model.bin")
    del state["layers.0.self_attn.q_norm.bias"]
    state["layers.0.self_attn.q_proj.bias"] = torch.zeros(folders.WIDTH)
    state["embed_tokens.weight"] = state["embed_tokens.weight"][:99]
    state["fc.bias"][3] = math.nan
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as caught:
        load_pair(drafted.model_copy(update={"device": str(tmp_path)}))
    assert str(caught.value).endswith(
        "pytorch_model.bin: layers.0.self_attn.q_norm.bias is missing, needed [2, 16]; "
        "embed_tokens.weight has shape [99, 32], needed [200, 32]; "
        "layers.0.self_attn.q_proj.bias with shape [32] has no place in this model; "
        "fc.bias is not finite: 1 of 32 values are NaN or infinite"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [("lumina-mgpt-768", "reads a row token after every row"), ("janus-pro-7b", "no drafter in a known")],
)
def test_a_backbone_without_drafters_says_why(
    specs: dict[str, PairSpec], drafted: PairSpec, name: str, reason: str
) -> None:
    with pytest.raises(WeightsError, match=f"pytorch_model.bin: a drafter, but {name} takes none: .*{reason}"):
        pair_manifest(specs[name].model_copy(update={"device": drafted.device}))
    with pytest.raises(
        WeightsError, match=f"has no drafter, which this method drafts with; none is supported: .*{reason}"
    ):
        METHODS["eagle2"].settings().check(Decoding.model_validate({}), pair_manifest(specs[name]))


# --- profiles


@pytest.mark.parametrize("name", ["anole-7b", "lumina-mgpt-768"])
def test_a_profile_holds_a_prompt_in_one_pass_and_drafts_verified(specs: dict[str, PairSpec], name: str) -> None:
    """Models with row tokens verify drafts in a chain, others in a tree."""
    pair = load_pair(specs[name])
    profile = measure_profile(pair, budget_s=0.0)
    costs = MeasuredCosts(profile, "cloud")
    assert pair.manifest.caption_slots == 128
    for work in (Work.of_pass(2, 128, 0), Work.of_pass(2, 16, pair.cloud.config.positions - 16, logits=16)):
        assert 0 < costs.pass_seconds(work) < math.inf
    assert not costs.extrapolated


def test_scores_of_a_device_without_an_inter_head_are_ranked(
    specs: dict[str, PairSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.evaluate.uncertainty.time_measures", lambda dim: time_measures(dim, (64,), 6))
    pair = load_pair(specs["janus-pro-7b"], dtype=torch.float64)
    found = evaluate_uncertainty(pair, Settings(prompts=2, sampled_tokens=2), captions=lambda _, n: list(PROMPTS[:n]))
    assert {"entropy", "max-prob", "margin", "random"} < set(found.summary["measure"])
    assert found.timing is not None
    assert set(found.timing["measure"]) == set(found.summary["measure"])  # no interval measures in either
    assert not found.summary["measure"].str.contains("u|discrete|omega", regex=True).any()
    assert (list(found.regions["region"]), len(found.tokens)) == (["all"], 2 * 16)
    text = markdown(found.summary, found.regions, found.timing, found.facts)
    assert "## All tokens" in text
    assert "| U~ |" not in text
    with pytest.raises(CiarSimError, match="4 different captions are needed, found 3"):
        evaluate_uncertainty(pair, Settings(prompts=4), captions=lambda _, n: list(PROMPTS[:n]))
    with pytest.raises(WeightsError, match="has no device model"):
        evaluate_uncertainty(replace(pair, device_model=None), captions=lambda _, n: [])


@pytest.mark.parametrize("name", ["lumina-mgpt-768", "janus-pro-7b"])
def test_a_device_distilled_from_the_cloud_gates_it(specs: dict[str, PairSpec], name: str, tmp_path: Path) -> None:
    alone = load_pair(specs[name].model_copy(update={"device": None}))
    settings = DistilSettings(images=32, steps=2, phi_steps=1, batch_images=2, positions=4, guidance=2.0)
    distil(alone, PROMPTS, settings, tmp_path)
    pair = load_pair(specs[name].model_copy(update={"device": str(tmp_path)}), dtype=torch.float64)
    assert (
        pair.device.config
        == replace(alone.manifest.cloud, n_layer=1)
        == load_device(tmp_path / "device.safetensors").config
    )
    assert pair.manifest.bounds == tuple(pair.device.radii)
    found = record(pair, spec(pair, "ciar", {"threshold": 0.35}, PROMPTS[0]))[0]
    assert len(found.tokens) == pair.manifest.image_tokens


def test_a_pair_is_known_by_its_files_and_loads_no_torch(specs: dict[str, PairSpec]) -> None:
    manifest = pair_manifest(specs["janus-pro-7b"])
    assert (manifest.image_size, manifest.grid, manifest.guidance, manifest.subject) == (8, 4, 5.0, "other")
    assert manifest.device is not None
    assert (manifest.cloud.dim, manifest.device.dim) == (32, 16)
    assert len({pair_manifest(one).weights_hash for one in specs.values()}) == 3
    shapes = pair_shapes(specs["janus-pro-7b"])
    for shape in (shapes.cloud, shapes.device):  # Janus has a layer before the output matrix
        layers = shape.n_layer * (4 * shape.dim**2 + 3 * shape.dim * shape.ffn_hidden + 2 * shape.dim)
        assert shape.pass_parameters == layers + shape.dim + shape.dim**2 + shape.dim * manifest.codebook_size
    anole = pair_shapes(specs["anole-7b"]).cloud
    assert anole.head_rows is None
    # Memory: the weights of the passes, the embedding of the codes and that of the text.
    assert anole.parameters == anole.pass_parameters + (folders.CODES + folders.TEXT) * folders.WIDTH
    assert find_pair(specs["anole-7b"]).decoder["latent_side"] == 4


def test_pairs_that_do_not_belong_together_are_refused(specs: dict[str, PairSpec], tmp_path: Path) -> None:
    other = folders.janus(tmp_path / "other", seed=9, width=16)
    with pytest.raises(WeightsError, match="its image tokenizer is not that of"):
        load_pair(specs["janus-pro-7b"].model_copy(update={"device": str(other)}))
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["zebra"] = 150
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(WeightsError, match="its text tokens, image codes or size are not those of"):
        pair_manifest(specs["janus-pro-7b"].model_copy(update={"device": str(other)}))
    with pytest.raises(WeightsError, match=r"makes images of 8 pixels, not of pair\.image_size 512"):
        pair_manifest(specs["anole-7b"].model_copy(update={"image_size": 512}))
    with pytest.raises(
        WeightsError, match=r"holds no config\.json and tokenizer\.json of a smaller anole-7b, no .* and no dr"
    ):
        pair_manifest(specs["anole-7b"].model_copy(update={"device": str(tmp_path)}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "chameleon"}')
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "foreign" / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"and no drafter; pytorch_model\.bin: none of its keys is a device of anole-7b's"
    ):
        pair_manifest(specs["anole-7b"].model_copy(update={"device": str(tmp_path / "foreign")}))
    folder = folders.chameleon(tmp_path / "anole", pixels=8)
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    for name in (5, None, "", "a" * 5000, "../other/model.safetensors", str(other / "model.safetensors")):
        index.write_text(json.dumps({"weight_map": {**json.loads(whole)["weight_map"], "lm_head.weight": name}}))
        with pytest.raises(
            WeightsError, match=r"index\.json: (must name files of this folder|names files that are not)"
        ):
            pair_manifest(PairSpec(cloud="anole-7b", weights=str(folder)))
    index.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"index\.json: not readable as an index of weights"):
        pair_manifest(PairSpec(cloud="anole-7b", weights=str(folder)))
    index.write_text(whole)
    path = folder / "model-00001-of-00002.safetensors"
    state = load_file(path) | {"model.vqmodel.quantize.embedding.weight": torch.zeros(64, 8)}
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"vqgan\.ckpt: its codebook is not that of the model in"):
        load_pair(PairSpec(cloud="anole-7b", weights=str(folder)))
