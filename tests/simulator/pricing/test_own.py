"""Hardware and models given by figures: equal to the catalogue's, read from a file or the scenario, and checked against the memory."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ciar_sim
from simulator.core.errors import CiarSimError
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.pricing import catalogue
from simulator.pricing.build import build_costs, pair_shapes
from simulator.pricing.own import OwnHardware, OwnModel, ReachedFigures, device_memory
from simulator.pricing.roofline import RooflineCosts

PHONE = {"class": "phone", "fp16_tflops": 5.5, "bandwidth_gb_s": 76.8, "memory_gb": 16, "power_w": 7}
XL = {"layers": 36, "width": 1280, "ffn": 3584}


def test_the_figures_of_a_row_give_that_row() -> None:
    own, row = OwnHardware.model_validate(PHONE).entry("device"), catalogue.hardware("snapdragon-8-gen-3")
    for name in ("bytes_per_s", "flop_per_s", "kernel_overhead_s", "memory_gb", "power_w"):
        assert getattr(own, name) == getattr(row, name)
    faster = OwnHardware.model_validate({**PHONE, "bandwidth_efficiency": 0.9, "kernel_overhead_us": 1}).entry("cloud")
    assert faster.bytes_per_s == pytest.approx(76.8e9 * 0.9)
    assert faster.kernel_overhead_s == 1e-6


@pytest.mark.parametrize(
    ("role", "bandwidth", "kernel_us"),
    [("device", 76.8, 20), ("cloud", 76.8, 5), ("drafter", 100, 20), ("cloud_drafter", 100, 20)],
)
def test_a_model_has_the_figures_that_it_reaches(role: Any, bandwidth: float, kernel_us: float) -> None:
    reached = {"drafter": {"bandwidth_gb_s": 100}, "cloud": {"kernel_overhead_us": 5}}
    own = OwnHardware.model_validate({**PHONE, "by_role": reached})
    assert (own.entry(role).bandwidth_gb_s, own.entry(role).kernel_overhead_us) == (bandwidth, kernel_us)
    other = own.model_copy(update={"by_role": {**own.by_role, "cloud_drafter": ReachedFigures(fp16_tflops=1)}})
    assert other.entry("cloud_drafter").bandwidth_gb_s == 76.8
    assert len({str(own), str(other), str(OwnHardware.model_validate(PHONE))}) == 3


def test_every_model_is_priced_at_the_figures_of_its_role() -> None:
    reached = {
        role: {"bandwidth_gb_s": at} for at, role in enumerate(("device", "cloud", "drafter", "cloud_drafter"), 1)
    }
    side = {"model": "pair", "hardware": {**PHONE, "by_role": reached}}
    scenario = Scenario.model_validate({"name": "t", "methods": ["base"], "compute": {"device": side, "cloud": side}})
    device, cloud, pricing = build_costs(scenario.compute, pair_shapes("scenes"), pytest.fail)
    found = [one.hardware.bandwidth_gb_s for one in (device, cloud, pricing.device_drafter, pricing.drafter)]
    assert found == [1, 2, 3, 4]


def test_the_shape_of_a_published_model_gives_that_model() -> None:
    own, row = OwnModel.model_validate(XL).shape(interhead=False), catalogue.model("llamagen-xl")
    assert own.parameters == row.parameters
    assert own.kv_bytes_per_position == row.kv_bytes_per_position
    assert own.op_counts == row.op_counts
    assert OwnModel(layers=1, width=1280).ffn_width == 3584  # the default is LlamaGen's rule
    for name in ("llamagen-xl", "llamagen-xl-stage2"):  # and so is that of the pixels
        row = catalogue.model(name)
        large = OwnModel(layers=1, width=1280, image_tokens=row.image_tokens)
        assert large.shape(interhead=False).image_pixels == row.image_pixels
        assert f"{row.image_pixels} pixels" in str(large)
    assert (
        OwnModel(layers=1, width=1280).shape(interhead=True).parameters
        == catalogue.model("llamagen-xl-1layer").parameters
    )


def test_memory_of_a_device_is_weights_cache_and_decoder() -> None:
    """One layer of LlamaGen-XL: 20.3 M weights, 62.9 M of embedding and Inter-Head, 4.5 M of the caption; KV of 2 x 376 positions."""
    costs = RooflineCosts(
        catalogue.model("llamagen-xl-1layer"),
        catalogue.model("llamagen-xl-1layer").op_counts,
        catalogue.hardware("snapdragon-8-gen-3"),
        catalogue.runtime("eager"),
    )
    held = device_memory(costs, rows=2, decodes=True, encodes=True)
    assert held["weights"] == 2 * (costs.shape.parameters + 9_043_968)
    assert held["kv_cache"] == 2 * (120 + 256) * 2 * 1280 * 2
    assert held["caption_encoder"] == pytest.approx(2.45e9, rel=0.01)  # flan-t5-xl's 1.22 B weights, embedding included
    drafter = catalogue.drafter_of(
        catalogue.model("llamagen-xl")
    )  # no Inter-Head, caption projection or phi, but a matrix of D x 2D
    drafting = device_memory(costs, rows=2, decodes=True, encodes=True, drafter=drafter)
    assert drafting["weights"] == 2 * (20_318_720 + 2 * 1280**2 + 2 * 16384 * 1280)
    assert {**drafting, "weights": held["weights"]} == held
    alone = device_memory(costs, rows=2, decodes=False, encodes=False)
    assert alone["weights"] == alone["kv_cache"] == alone["caption_encoder"] == 0
    assert alone["image_decoder"] == held["image_decoder"] > 2 * 42_452_099


@pytest.fixture
def scenario(tiny_pair_folder: Path) -> dict[str, Any]:
    shape = {"width": 256, "image_tokens": 16}
    return {
        "name": "own",
        "pair": str(tiny_pair_folder),
        "prompts": {"source": "scenes", "count": 1},
        "methods": ["base", "device-only"],
        "compute": {
            "device": {"model": {**shape, "layers": 2}, "hardware": PHONE},
            "cloud": {"model": {**shape, "layers": 9, "title": "mine"}, "hardware": "a100"},
        },
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_figures_in_a_file_are_those_in_the_scenario(scenario: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "my-phone.yaml").write_text(
        "class: phone\nfp16_tflops: 5.5\nbandwidth_gb_s: 76.8\nmemory_gb: 16\npower_w: 7\n"
    )
    (tmp_path / "mine.yaml").write_text("model: {layers: 9, width: 256, image_tokens: 16}\n")
    path = tmp_path / "own.yaml"
    device = {**scenario["compute"]["device"], "hardware": "my-phone.yaml"}
    compute = {"device": device, "cloud": {"model": "mine.yaml", "hardware": "a100"}}
    path.write_text(yaml.safe_dump({**scenario, "compute": compute}))
    loaded = load_scenario(path)
    hardware, model = loaded.compute.device.hardware, loaded.compute.cloud.model
    assert hardware == OwnHardware.model_validate({**PHONE, "title": "my-phone"})
    assert model == OwnModel(layers=9, width=256, image_tokens=16, title="mine")
    (tmp_path / "again.yaml").write_text(resolved_yaml(loaded))  # figures instead of file names
    assert load_scenario(tmp_path / "again.yaml") == loaded


FONE = "# mine\nhardware:\n  fp16_tflops: 5.5\n  bandwidth_gb_s: 76.8\n  memory_gb: 16\n  power_w: 7\n  class: fone\n"

ROLE = "class: phone\nfp16_tflops: 5.5\nbandwidth_gb_s: 76.8\nmemory_gb: 16\npower_w: 7\nby_role:\n"


@pytest.mark.parametrize(
    ("side", "key", "text", "said"),
    [
        (
            "device",
            "hardware",
            "class: phone\nbandwith: 3\n",
            "mine.yaml:2: bandwith is not a known key; did you mean bandwidth_gb_s?",
        ),
        ("device", "hardware", FONE, "mine.yaml:7: hardware.class must be "),
        (
            "device",
            "hardware",
            f"{ROLE}  cluod: {{}}\n",
            "mine.yaml:7: by_role.cluod must be device, cloud, drafter or ",
        ),
        ("device", "hardware", "class: phone\n", "mine.yaml:1: fp16_tflops is missing (and 3 more problems)"),
        ("cloud", "model", "layers: 9\nwidth: wide\n", "mine.yaml:2: width must be a whole number, got 'wide' (text)"),
    ],
)
def test_a_mistake_in_a_file_of_figures_is_told_by_that_file_and_its_line(
    scenario: dict[str, Any], tmp_path: Path, side: str, key: str, text: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    path = tmp_path / "own.yaml"
    compute = {**scenario["compute"], side: {**scenario["compute"][side], key: "mine.yaml"}}
    path.write_text(yaml.safe_dump({**scenario, "compute": compute}))
    with pytest.raises(
        CiarSimError, match=rf"own.yaml:\d+: compute.{side}.{key} {re.escape(str(tmp_path))}/{re.escape(said)}"
    ):
        load_scenario(path)


@pytest.mark.parametrize("given", [{}, {"class": "jetson"}])
def test_figures_without_a_class_are_a_phone_on_the_device_and_a_gpu_in_the_cloud(
    scenario: dict[str, Any], tmp_path: Path, given: dict[str, Any]
) -> None:
    figures = {key: value for key, value in PHONE.items() if key != "class"} | given
    compute = {side: {**scenario["compute"][side], "hardware": figures} for side in ("device", "cloud")}
    cloud = {"tier": "edge", "tiers": {"edge": {"distance_km": 20, "hardware": figures}}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**scenario, "compute": compute, "cloud": cloud}))
    loaded = load_scenario(path)
    found = [loaded.compute.device.hardware, loaded.compute.cloud.hardware, loaded.cloud.tiers["edge"].hardware]
    assert [one.kind for one in found if isinstance(one, OwnHardware)] == (
        [given["class"]] * 3 if given else ["phone", "datacentre", "datacentre"]
    )
    (tmp_path / "again.yaml").write_text(resolved_yaml(loaded))
    assert load_scenario(tmp_path / "again.yaml") == loaded


@pytest.mark.usefixtures("undrawn")
def test_what_does_not_fit_fails_alone_and_says_so(scenario: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    small = {"compute.device.hardware": {**PHONE, "memory_gb": 0.12}}
    result = ciar_sim.run(scenario, sets=small, out=tmp_path / "out", cache=cache)
    assert list(result.summary["method"]) == ["base"]  # base only decodes the image
    assert len(result.failed) == 1
    assert "device-only does not fit the device: it needs" in result.failed[0]
    assert "and own hardware has 0.12 GB" in result.failed[0]
    with pytest.raises(CiarSimError, match="does not fit the device") as raised:
        ciar_sim.run({**scenario, "methods": ["device-only"]}, sets=small, out=tmp_path / "none", cache=cache)
    assert "\n" not in str(raised.value)
    fits = ciar_sim.run(scenario, out=tmp_path / "fits", cache=cache)
    assert len(fits.summary) == 2
    assert "9 layers, width 256" in (tmp_path / "fits" / "provenance.json").read_text()


def test_other_numbers_of_tokens_are_refused(scenario: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CiarSimError, match="makes 64 image tokens, the pair 16"):
        ciar_sim.run(scenario, sets={"compute.cloud.model.image_tokens": 64}, out=tmp_path / "out", cache=cache)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("device", {"hardware": {"fp16_tflops": 1}}, "bandwidth_gb_s"),
        ("device", {"hardware": {**PHONE, "ram": 3}}, "ram"),
        ("device", {"hardware": "nowhere.yaml"}, "nowhere.yaml"),
        ("cloud", {"model": {"layers": 3}}, "width"),
        ("cloud", {"model": {"layers": 0, "width": 4}}, "layers"),
        ("cloud", {"model": "llamagen-xxl"}, "llamagen-xl"),
        ("cloud", {"hardware": "A1000"}, "a100"),
    ],
)
def test_a_mistake_is_one_line(scenario: dict[str, Any], place: str, value: dict[str, Any], message: str) -> None:
    sides = {**scenario["compute"], place: {**scenario["compute"][place], **value}}
    with pytest.raises(CiarSimError, match=message) as raised:
        load_scenario({**scenario, "compute": sides})
    assert "\n" not in str(raised.value)
