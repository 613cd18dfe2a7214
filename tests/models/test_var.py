"""VAR from its files: detection of each part, refusals, passes, the quantiser, and sessions that divide the scales.

Longer than other files, since its tests share a pair and its files.
"""

import argparse
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from ciar_sim.cli.main import main
from models.backbones.var import VarPair, load, load_var, load_var_tokenizer
from models.backbones.var_files import var_shape
from models.evaluate.reading import Settings
from models.evaluate.uncertainty import evaluate_uncertainty
from models.methods.scores import entropy
from models.pair import load_pair
from models.quality.judges import captions_of
from models.recording import load_models, recorder_of
from models.state import unallocated
from models.var.reading import read_images
from models.var.transformer import ScaleCache, VarTransformer
from models.vq import VQConfig
from simulator.core.errors import CiarSimError, PromptError, RecordingError, ScenarioError, WeightsError
from simulator.pricing import catalogue
from simulator.pricing.build import pair_shapes
from simulator.pricing.op_counts import vq_decoder_op_count
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import PairSpec, find_pair, pair_manifest
from simulator.protocol.recording import CLOUD, FROM_CLOUD, FROM_DEVICE, FROM_FALLBACK, REPLY, SCORES, Recording
from simulator.protocol.recording import SessionSpec as Spec
from simulator.protocol.statistical import record_statistical
from simulator.protocol.var import SCALES, SharedVarConfig, VarConfig
from tests.models import var_files as files

ENDS = list(accumulate(side * side for side in SCALES))
NOT_FINITE = "blocks.0.attn.proj.weight is not finite: 1 of 256 values are NaN or infinite"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write(tmp_path_factory.mktemp("var") / "var")


@pytest.fixture(scope="module")
def pair(folder: Path) -> VarPair:
    """Return the pair in float64, where the batch does not change tokens."""
    return load(find_pair(named(folder)), torch.device("cpu"), torch.float64)


def named(folder: Path, **more: Any) -> PairSpec:
    return PairSpec(**{"cloud": "var-d30", "weights": str(folder), "device": str(folder / "device"), **more})


def asked(name: str, settings: dict[str, Any] | None = None, prompt: str = "3", seed: int = 0, **decoding: Any) -> Spec:
    full = METHODS[name].settings.model_validate(settings or {})
    sampled = {"guidance": 4.0, "top_k": 20, "top_p": 0.95, "device": "sampled"}
    decoded = Decoding.model_validate({**sampled, **decoding}).model_dump()
    return Spec("w", name, METHODS[name].revision_of(full), full.model_dump(), decoded, prompt, seed)


def recorded(pair: VarPair, *specs: Spec, max_batch: int = 64) -> list[Recording]:
    found = {spec.key(): recording for spec, recording in recorder_of(pair, max_batch).record(specs)}
    return [found[spec.key()] for spec in specs]


def refused(spec: PairSpec) -> str:
    with pytest.raises(CiarSimError) as caught:
        load_models(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files


def test_shapes_decide_the_pair(folder: Path) -> None:
    manifest = pair_manifest(named(folder))
    assert manifest.cloud == VarConfig(2, 2, 16, 64, files.CODES, 1, 1, 16, norm_eps=1e-6)
    assert manifest.device == VarConfig(1, 1, 8, 32, files.CODES, 1, 1, 16, norm_eps=1e-6)
    assert (manifest.scales, manifest.image_tokens, manifest.image_size) == (SCALES, 680, files.PIXELS)
    assert (manifest.guidance, manifest.subject, manifest.bounds, manifest.has_drafter) == (4.0, "other", (), False)
    assert pair_manifest(named(folder, device=None)).device is None
    assert sorted(captions_of(named(folder))(0, 99)) == [str(label) for label in range(files.CLASSES)]


@pytest.mark.parametrize("form", ["model", "wrapped", "safetensors", "training"])
def test_every_form_of_the_files_gives_the_same_models(tmp_path: Path, form: str) -> None:
    var, vae = files.transformer(seed=0, **files.CLOUD), files.tokenizer()
    name = "m.safetensors" if form == "safetensors" else "m.pth"
    if form == "training":  # as written by VAR's trainer
        trainer = {"config": {}, "var_wo_ddp": var, "vae_local": vae, "var_opt": {"state": {}}}
        torch.save({"args": argparse.Namespace(depth=30), "trainer": trainer}, tmp_path / name)
    elif form == "safetensors":
        save_file(var, tmp_path / name)
        save_file(vae, tmp_path / "v.safetensors")
    else:
        torch.save(
            {"model": var} if form == "model" else {f"_orig_mod.{k}": v for k, v in var.items()}, tmp_path / name
        )
        torch.save({"ema": vae}, tmp_path / "v.pth")
    found = find_pair(named(tmp_path, device=None))
    assert found.files["cloud"] == (tmp_path / name,)
    loaded = load(found, torch.device("cpu"), torch.float32)
    ours, theirs = loaded.cloud.state_dict(), var
    assert ours.keys() == {key for key in theirs if not key.endswith(("lvl_1L", "masking", "zero_k_bias"))}
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert torch.equal(loaded.tokenizer.quantize.embedding.weight, vae["quantize.embedding.weight"])
    qkv = torch.cat([loaded.tokenizer.get_parameter(f"decoder.mid.1.{part}.bias") for part in "qkv"])
    assert torch.equal(qkv, vae["decoder.mid.attn_1.qkv.bias"])


def test_one_error_lists_everything_that_does_not_fit(tmp_path: Path) -> None:
    state = files.transformer(seed=0, **files.CLOUD)
    del state["head.bias"]
    state["blocks.1.attn.q_bias"] = torch.zeros(8)
    state["blocks.0.extra"] = torch.zeros(1)
    state["blocks.0.attn.proj.weight"][2, 3] = torch.inf
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CiarSimError) as caught:
        load_var(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path}/w.pth: head.bias is missing, needed [24]; blocks.1.attn.q_bias has shape [8], needed [16]; "
        f"blocks.0.extra with shape [1] has no place in this model; {NOT_FINITE}"
    )
    vae = files.tokenizer()
    vae["decoder.mid.attn_1.qkv.weight"] = torch.zeros(31, 32, 1, 1)
    torch.save(vae, tmp_path / "v.pth")
    config = VQConfig(files.CODES, files.WIDTH, 32, (1, 1), (1, 1), files.WIDTH, 1)
    with pytest.raises(CiarSimError, match=r"attn_1\.qkv\.weight has shape \[31, 32, 1, 1\], needed three equal parts"):
        load_var_tokenizer(tmp_path / "v.pth", config, SCALES, 4)
    vae["decoder.mid.attn_1.qkv.weight"] = torch.zeros(30, 32, 1, 1)
    del vae["decoder.up.0.block.1.norm1.bias"]
    torch.save(vae, tmp_path / "v.pth")
    wrong = r"decoder\.up\.0\.block\.1\.norm1\.bias is missing.*mid\.attn_1\.qkv\.weight \(its part q\) has shape \[10, 32, 1, 1\], needed"
    with pytest.raises(CiarSimError, match=wrong):
        load_var_tokenizer(tmp_path / "v.pth", config, SCALES, 4)


def test_files_that_make_no_pair_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    assert "pair.text is not used by var-d30: it takes class labels; leave it out" in refused(
        named(folder, text=str(folder))
    )
    assert "pair.heads is not used by var-d30: its files contain the number of heads" in refused(named(folder, heads=2))
    assert "makes images of 32 pixels, not of pair.image_size 256" in refused(named(folder, image_size=256))
    whole = files.transformer(seed=0, **files.CLOUD)

    def changed(**tensors: torch.Tensor) -> str:
        torch.save({**whole, **tensors}, tmp_path / "w.pth")
        return refused(named(folder, weights=str(tmp_path / "w.pth"), tokenizer=str(folder), device=None))

    shared = {"shared_ada_lin.1.weight": torch.zeros(96, 16)}
    assert re.search(
        r"shared_ada_lin\.1\.bias is missing, needed \[96\].*blocks\.1\.ada_lin\.1\.bias with shape \[96\] has no place",
        changed(**shared),
    )
    few = "700 positions, needed 680 of the scales 1, 2, 3, 4, 5, 6, 8, 10, 13, 16 or 2240 of the scales 1, 2, 3, 4, 6,"
    assert few in changed(pos_1LC=torch.zeros(1, 700, 16))
    assert "keys under blocks must be numbered, got blocks.x" in changed(**{"blocks.x.attn": torch.zeros(1)})
    assert "dim 16 must be a multiple of" in changed(**{"blocks.0.attn.scale_mul_1H11": torch.zeros(1, 3, 1, 1)})
    other = {"word_embed.weight": torch.zeros(16, 5)}
    assert f"{files.CODES} codes of width 6, needed {files.CODES} of width 5" in changed(**other)
    torch.save(files.transformer(seed=2, codes=20, **files.DEVICE), tmp_path / "d.pth")
    assert "20 codes of width 6, 10 classes and 680 positions, the cloud model has 24" in refused(
        named(folder, device=str(tmp_path / "d.pth"))
    )
    (tmp_path / "empty").mkdir()
    assert "holds no weights of var-d30; name its file with pair.weights" in refused(named(tmp_path / "empty"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "empty" / "other.pth")
    assert "holds no weights of var-d30; other.pth: none of its keys is VAR's (weight); name its file" in refused(
        named(tmp_path / "empty")
    )


def test_of_several_depths_in_a_folder_the_name_tells_or_the_user(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    shutil.move(own / "device" / "var_d16.pth", own / "var_d16.pth")
    for name in ("d16", "d30"):
        found = find_pair(named(own, cloud=f"var-{name}", device=str(own / "var_d16.pth")))
        assert [path.name for path in found.files["cloud"]] == [f"var_{name}.pth"]
    message = refused(named(own, device=str(own)))
    assert "several files for the device: var_d16.pth, var_d30.pth; name one with pair.device" in message


def test_a_pair_of_scales_is_run_by_its_own_methods(folder: Path, pair: VarPair) -> None:
    with pytest.raises(
        CiarSimError,
        match=r"the pair var-d30 predicts scale by scale: a one-layer device, .* name a smaller released model of the same scales",
    ):
        load_pair(named(folder))
    with pytest.raises(PromptError, match="not a class label; allowed: 0 to 9"):
        recorded(pair, asked("base", prompt="10"))
    for name in ("ciar", "speculative", "eagle2"):
        with pytest.raises(ScenarioError, match=f"{name}: decides token by token, var-d30 predicts scale by scale"):
            recorded(pair, asked(name))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("var-d16", VarConfig(16, 16, 1024, 4096, 4096, 1, 1, 16)),
        ("var-d36", SharedVarConfig(36, 36, 2304, 9216, 4096, 1, 1, 32)),
    ],
)
def test_prices_are_those_of_the_catalogue(folder: Path, name: str, config: VarConfig) -> None:
    with unallocated():
        state = VarTransformer(config, 1000, 32).state_dict()
    shape = catalogue.model(name)
    assert (shape.modulation, shape.image_pixels) == (config.projected, (16 * config.grid) ** 2)
    config, classes, width = var_shape({key: tuple(value.shape) for key, value in state.items()}, Path("w"))
    own = (config.n_layer, config.n_head, config.dim, config.ffn_hidden, config.vocab_size)
    assert own == (shape.n_layer, shape.n_head, shape.dim, shape.ffn_hidden, shape.vocab_size)
    assert (config.tokens, classes, width) == (shape.image_tokens, 1000, 32)
    assert sum(value.numel() for value in state.values()) == pytest.approx(shape.parameters, rel=0.01)
    tiny = pair_shapes(named(folder)).cloud
    assert (tiny.ffn_matrices, tiny.modulation) == (shape.ffn_matrices, 6)
    assert tiny.op_counts["image_decoder"] == vq_decoder_op_count(16, 32, (1, 1), 6, 6, 1)


# --- passes


def maps_of(pair: VarPair, codes: torch.Tensor) -> torch.Tensor:
    latents = pair.tokenizer.latents(codes)
    return torch.cat([pair.tokenizer.inputs(latents[scale - 1], scale) for scale in range(1, len(SCALES))], dim=1)


@torch.inference_mode()
def test_cached_steps_are_one_block_causal_pass(folder: Path) -> None:
    pair = load(find_pair(named(folder)), torch.device("cpu"), torch.float32)
    model, labels = pair.cloud, torch.tensor([3, files.CLASSES])
    maps = maps_of(pair, torch.randint(files.CODES, (2, 680), generator=torch.Generator().manual_seed(0)))
    condition = model.condition(labels)
    whole = model.step(condition, maps)  # [2, 680, D]
    for cuts in (ENDS, ENDS[3:]):  # scale by scale, and several scales in the first pass
        cache, fed, found = ScaleCache(model.config, 2, 680, torch.device("cpu"), torch.float32), 0, []
        for end in cuts:
            found.append(model.step(condition, maps[:, max(fed - 1, 0) : end - 1], fed, cache))
            fed = end
        assert (torch.cat(found, dim=1) - whole).abs().max() < 1e-4
    maps[:, ENDS[-2] - 1 :] += 1  # the inputs of the last scale
    again = model.step(condition, maps)
    assert torch.equal(again[:, : ENDS[-2]], whole[:, : ENDS[-2]])
    assert (again[:, ENDS[-2] :] - whole[:, ENDS[-2] :]).abs().amin(dim=(0, 2)).max() > 0
    maps[:, ENDS[-2] - 1] -= 1  # its first position, which the whole scale attends to
    assert (model.step(condition, maps)[:, -1] - again[:, -1]).abs().max() > 0


@torch.inference_mode()
def test_layers_may_share_the_projection_of_the_class(folder: Path, tmp_path: Path) -> None:
    """In VAR-d36 the shared projection plus a layer's own vectors equals a projection of the layer with other biases."""
    state = files.transformer(seed=0, **files.CLOUD, large=True)
    torch.save(state, tmp_path / "var_d36.pth")
    torch.save(files.tokenizer(), tmp_path / "v.pth")
    for part in ("weight", "bias"):
        common = state.pop(f"shared_ada_lin.1.{part}")
        for block in ("blocks.0.", "blocks.1."):
            own = state.pop(f"{block}ada_gss").flatten() if part == "bias" else 0
            state[f"{block}ada_lin.1.{part}"] = common + own
    torch.save(state, tmp_path / "same.pth")
    named_512 = PairSpec(cloud="var-d36", weights=str(tmp_path / "var_d36.pth"), tokenizer=str(tmp_path / "v.pth"))
    pair = load(find_pair(named_512), torch.device("cpu"), torch.float64)
    assert (pair.manifest.scales, pair.manifest.image_size) == ((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 64)
    assert pair_shapes(named_512).cloud.modulation == 0
    (base,) = recorded(pair, asked("base"))
    assert (base.cloud_passes(), len(base.tokens), base.image.shape) == (10, 2240, (64, 64, 3))
    same = load_var(tmp_path / "same.pth").double()
    maps = maps_of(pair, torch.from_numpy(base.tokens.astype(np.int64))[None])
    found, wanted = (model.step(model.condition(torch.tensor([3])), maps) for model in (pair.cloud, same))
    assert torch.allclose(found, wanted, atol=1e-4)  # biases are added in float32
    device = named_512.model_copy(update={"device": str(folder / "device")})
    assert "10 classes and 680 positions, the cloud model has 24 of width 6, 10 and 2240" in refused(device)


def test_guidance_grows_with_the_scale(pair: VarPair) -> None:
    strength = pair.cloud.strengths(4.0)
    assert [float(strength[end - 1]) for end in ENDS] == pytest.approx([1 + 4 * scale / 9 for scale in range(10)])
    assert [int(level) for level in pair.cloud.levels()[[0, 1, 4, 5, 423, 424, 679]]] == [0, 1, 1, 2, 8, 9, 9]
    base, unguided = recorded(pair, asked("base", cloud="greedy"), asked("base", cloud="greedy", guidance=1.0))
    assert base.tokens[0] == unguided.tokens[0]  # the first map has no guidance
    assert (base.tokens != unguided.tokens).any()
    assert set(base.ops["rows"][base.ops["new_tokens"] > 0]) == {2}
    assert set(unguided.ops["rows"][unguided.ops["new_tokens"] > 0]) == {1}


@torch.inference_mode()
def test_maps_add_up_to_what_the_decoder_gets(pair: VarPair) -> None:
    tokenizer = pair.tokenizer
    codes = torch.randint(files.CODES, (1, 680), generator=torch.Generator().manual_seed(1))
    parts = torch.split(codes, [side * side for side in SCALES], dim=1)
    residuals = [tokenizer.residual(part, scale) for scale, part in enumerate(parts)]
    latents = tokenizer.latents(codes)
    assert torch.allclose(sum(residuals), latents[-1], atol=1e-12)
    assert torch.equal(tokenizer.decode_codes(codes), tokenizer.decode(latents[-1]))
    assert latents[-1].shape == (1, files.WIDTH, 16, 16)
    assert [tokenizer.inputs(latents[0], scale).shape[1] for scale in range(10)] == [side * side for side in SCALES]
    # At the latent's own size nothing is resized. The smallest map is the mean of the latent.
    assert torch.equal(tokenizer.inputs(latents[0], 9).transpose(1, 2).reshape(latents[0].shape), latents[0])
    assert torch.allclose(tokenizer.inputs(latents[4], 0)[0, 0], latents[4].mean(dim=(0, 2, 3)))
    rows = tokenizer.quantize.embedding(parts[9]).transpose(1, 2).reshape(latents[0].shape)
    assert torch.allclose(residuals[9], (rows + tokenizer.quantize.phis[3](rows)) / 2)
    # Four convolutions for ten scales: the third and the eighth scale lie halfway between two.
    assert [tokenizer.phi_of(scale) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


# --- sessions


def test_each_scale_is_made_by_who_should_make_it(pair: VarPair) -> None:
    settings = [{"prefix_rate": rate} for rate in (0.002, 0.1, 0.375, 0.624)]
    base, device, *codes = recorded(
        pair, asked("base"), asked("device-only"), *(asked("code", one) for one in settings)
    )
    assert len(set(base.tokens.tolist())) > 5
    for end, code in zip((1, 55, 255, 424), codes, strict=True):
        assert code.tokens[:end].tolist() == base.tokens[:end].tolist()
        assert code.decided_by.tolist() == [FROM_CLOUD] * end + [FROM_DEVICE] * (680 - end)
        assert np.isfinite(code.scores[end:, SCORES.index("entropy")]).all()
        assert np.isnan(code.scores[:end]).all()
        assert np.isnan(code.scores[:, SCORES.index("u")]).all()
    assert len({one.image.tobytes() for one in (base, device, *codes)}) == 6
    (none,) = recorded(pair, asked("code", {"prefix_rate": 0.0}))
    assert none.tokens.tolist() == device.tokens.tolist()
    assert np.array_equal(none.image, device.image)
    assert base.cloud_passes() == 10
    assert codes[2].cloud_passes() == 8


def test_a_device_equal_to_the_cloud_finishes_any_prefix_as_base(pair: VarPair) -> None:
    twin = replace(pair, device=pair.cloud)
    greedy = {"cloud": "greedy", "device": "greedy"}
    rates = [{"prefix_rate": rate} for rate in (0.0, 0.05, 0.375, 0.624)]
    base, *codes = recorded(twin, asked("base", **greedy), *(asked("code", one, **greedy) for one in rates))
    for code in codes:
        assert code.tokens.tolist() == base.tokens.tolist()
        assert np.array_equal(code.image, base.image)
        np.testing.assert_allclose(code.nll, base.nll, atol=1e-5)  # teacher-forced, and recorded in passes
        assert np.array_equal(code.argmax, base.argmax)
    assert np.array_equal(base.argmax, base.tokens)


def test_sessions_do_not_depend_on_their_batch(pair: VarPair) -> None:
    specs = [
        *(asked("base", prompt=label) for label in ("3", "7")),
        asked("code", {"prefix_rate": 0.1}, "7"),
        asked("code", {"prefix_rate": 0.3}, "3", guidance=1.0),
        asked("device-only", prompt="3", seed=5),
        asked("device-only", prompt="3", device={"top_p": 0.5}, temperature=0.7),
    ]
    together = recorded(pair, *specs)
    for max_batch, order in ((1, specs), (3, specs[::-1])):
        found = dict(zip((one.key() for one in order), recorded(pair, *order, max_batch=max_batch), strict=True))
        for spec, one in zip(specs, together, strict=True):
            assert found[spec.key()].tokens.tolist() == one.tokens.tolist()
            assert np.array_equal(found[spec.key()].image, one.image)
    assert len({one.tokens.tobytes() for one in together}) == len(specs)


@pytest.mark.parametrize(
    ("name", "settings", "decoding"),
    [
        ("base", {}, {}),
        ("base", {"deliver": "ids"}, {"guidance": 1.0}),
        ("device-only", {}, {}),
        ("device-only", {}, {"text_encoder": "device"}),
        ("code", {"prefix_rate": 0.375}, {}),
        ("code", {"prefix_rate": 0.624}, {"text_encoder": "device"}),
        ("code", {"prefix_rate": 0.0}, {}),
    ],
)
def test_ops_are_those_of_a_statistical_session(
    pair: VarPair, name: str, settings: dict[str, Any], decoding: dict[str, Any]
) -> None:
    """A statistical session has the operations of a real one, so both are priced equally."""
    spec = asked(name, settings, **decoding)
    (real,) = recorded(pair, spec)
    priced = record_statistical(spec, pair_manifest("paper-code"))
    assert np.array_equal(real.ops, priced.ops)
    assert real.decided_by.tolist() == priced.decided_by.tolist()


def test_the_image_itself_can_be_delivered(pair: VarPair) -> None:
    one, streamed = recorded(pair, asked("base", {"deliver": "image"}), asked("base"))
    assert np.array_equal(one.image, streamed.image)
    (reply,) = one.ops[one.ops["kind"] == REPLY]
    assert 0 < reply["image_bytes"] < reply["payload_bytes"]
    assert one.ops["side"][-2] == CLOUD


def test_a_missed_reply_leaves_the_image_to_the_device(pair: VarPair) -> None:
    spec = asked("code", {"prefix_rate": 0.375}, text_encoder="device")
    missed, alone = recorded(pair, replace(spec, missed_calls=(0,)), asked("device-only"))
    assert missed.tokens.tolist() == alone.tokens.tolist()
    assert set(missed.decided_by) == {FROM_FALLBACK}
    assert missed.cloud_passes() == 0
    for other in (asked("base"), asked("code", {"prefix_rate": 0.375}), replace(spec, settings={"prefix_rate": 0.0})):
        with pytest.raises(RecordingError, match=r"calls \[0\] cannot miss a deadline"):
            recorded(pair, replace(other, missed_calls=(0,)))


# --- runs


def run(folder: Path, tmp_path: Path, methods: str, *more: str) -> Result:
    (tmp_path / "s.yaml").write_text(
        f"name: var\npair: {{cloud: var-d30, weights: {folder}, device: {folder / 'device'}}}\n"
        f"prompts: {{list: {json.dumps(['3', '7'])}}}\nmethods: {methods}\n"
        "decoding: {top_k: 20, top_p: 0.95, device: sampled}\n"
        "compute: {device: {model: pair, hardware: jetson-orin-nano-8}, cloud: {model: pair, hardware: a100}}\n"
    )
    out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *more]
    return CliRunner().invoke(main, ["run", str(tmp_path / "s.yaml"), *out])


@pytest.mark.usefixtures("undrawn")
def test_a_scenario_runs_from_the_files_to_a_report(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path, "[base, {name: code, prefix_rate: 0.375}, device-only]")
    assert done.exit_code == 0, done.output
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("method")
    assert (summary["latency_mean_s"] > 0).all()
    assert summary["cloud_nll"].notna().all()
    assert "statistical" not in summary.columns
    assert summary.loc["base", "cloud_call_pct"] == pytest.approx(1000 / 680)
    assert 0 < summary.loc["code", "base_greedy_pct"] < 100
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 6
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_a_pair_of_scales_cannot_do_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    refusal = run(folder, tmp_path, "[base, ciar]")
    assert refusal.exit_code == 2
    assert (
        "ciar: decides token by token, var-d30 predicts scale by scale; allowed: base, device-only, code"
        in " ".join(refusal.output.split())
    )
    trained = CliRunner().invoke(
        main, ["train", "device", "--pair", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "d")]
    )
    assert trained.exit_code == 2
    assert "serves none of its methods; for code and device-only, name a smaller released model" in trained.output


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_reading_of_an_image_finds_what_making_it_found(pair: VarPair, guidance: float) -> None:
    made = recorded(pair, *(asked(name, prompt="7", guidance=guidance) for name in ("base", "device-only")))
    assert pair.device is not None
    for recording, model in zip(made, (pair.cloud, pair.device), strict=True):
        codes = torch.from_numpy(recording.tokens.astype(np.int64))[None]
        with torch.inference_mode():
            logits = read_images(model, pair.tokenizer, [7], codes, guidance).logits[0]
        share = entropy(logits) / math.log(logits.shape[-1])
        if model is pair.cloud:
            nats = logits.logsumexp(-1) - logits.gather(-1, codes[0][:, None])[:, 0]
            assert nats.numpy() == pytest.approx(recording.nll, abs=1e-4)
        else:
            assert share.numpy() == pytest.approx(recording.scores[:, SCORES.index("entropy")], abs=1e-4)


def test_scores_of_a_pair_of_scales_are_ranked(pair: VarPair) -> None:
    found = evaluate_uncertainty(pair, Settings(prompts=2, timing=False), captions=lambda _, count: ["3", "7"][:count])
    assert len(found.tokens) == 2 * 680
    assert set(found.summary["measure"]) >= {"entropy", "max-prob", "margin", "random"}
    assert not any("Inter-Head" in label for label in found.summary["label"])
    assert found.regions["region"].tolist() == ["all"]
    with pytest.raises(WeightsError, match="the pair var-d30 has no device model; name one with"):
        evaluate_uncertainty(replace(pair, device=None), captions=lambda _, count: [])


def test_images_of_labels_are_drawn(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, "[]")
    asked_for = ["--pair", str(tmp_path / "s.yaml"), "--prompts", "2", "--out", str(tmp_path / "o"), "--method"]
    for method in ("base", "device-only"):
        drawn = CliRunner().invoke(main, ["evaluate", "samples", *asked_for, method, "--cache", str(tmp_path)])
        assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "o" / "samples.png") as image:
        assert image.size == (8 * (files.PIXELS + 2) - 2, files.PIXELS)
