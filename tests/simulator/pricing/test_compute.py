"""Compute times against values computed by hand and published speeds, and lookups in measured tables.

Longer than other files, because rooflines and profiles share an interface and its tests.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator.core.errors import ComputeError
from simulator.pricing import catalogue
from simulator.pricing.build import PairShapes, build_costs
from simulator.pricing.catalogue import ModelShape
from simulator.pricing.compare import compare_with_roofline, errors_by_phase, fit_roofline
from simulator.pricing.costs import Costs, Work
from simulator.pricing.op_counts import (
    OpCount,
    interval_samples_op_count,
    phi_op_count,
    text_encoder_op_count,
    vq_decoder_op_count,
)
from simulator.pricing.own import OwnModel
from simulator.pricing.profile import MeasuredCosts, PassTable, Profile
from simulator.pricing.roofline import RooflineCosts
from simulator.protocol.messages import Widths
from simulator.protocol.ops import COMPUTE_KINDS


@dataclass(frozen=True)
class Side:
    model: str
    hardware: str
    runtime: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Choice:
    device: Side
    cloud: Side


def shape(**changes: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "title": "small",
        "n_layer": 2,
        "n_head": 2,
        "dim": 8,
        "ffn_hidden": 16,
        "vocab_size": 32,
        "caption_slots": 4,
        "caption_dim": 6,
        "image_tokens": 256,
        "image_pixels": 128 * 128,
        "source": "made up for tests",
        "evidence": "assumed",
        "op_counts": {"phi": OpCount(flops=100, parameters=50, kernels=4)},
    }
    return ModelShape(**{**fields, **changes})


def roofline(model: str, hardware: str, runtime: str) -> RooflineCosts:
    entry = catalogue.model(model)
    return RooflineCosts(entry, entry.op_counts, catalogue.hardware(hardware), catalogue.runtime(runtime))


PAIR = PairShapes(cloud=shape(), device=shape(n_layer=1, interhead=True))
SHAPES = {"cloud": PAIR.cloud, "device": PAIR.device}


def no_profile() -> Profile:
    raise AssertionError("no measured time was asked for")


# --- roofline


def test_shape_counts() -> None:
    small = shape()
    assert small.layer_parameters == 4 * 64 + 3 * 8 * 16 + 16
    assert small.head_parameters == 32 * 8
    assert shape(interhead=True).head_parameters == 2 * 32 * 8
    assert small.pass_parameters == 2 * small.layer_parameters + 8 + 256
    assert small.parameters == small.pass_parameters + 256 + 6 * 8 + 64 + 4 * 6
    assert small.kv_bytes_per_position == 2 * 2 * 8 * 2


def test_one_token_of_llamagen_xl_is_bound_by_memory() -> None:
    """36 layers of 20,318,720 weights, the norm and the head: 752,446,720 weights, 1.505 GB per pass."""
    costs = roofline("llamagen-xl", "a100", "cuda-graphs")
    work = Work.of_pass(rows=2, new=1, kv=219)
    read = 2 * (752_446_720 + 2 * 1280) + 2 * 220 * 184_320
    assert costs.pass_seconds(work) == pytest.approx((36 * 10 + 6) * 3e-6 + read / (0.8 * 2039e9), rel=1e-12)
    assert 2 * catalogue.model("llamagen-xl").parameters == pytest.approx(1.55e9, rel=0.005)


def test_a_large_prefill_is_bound_by_arithmetic() -> None:
    costs = roofline("llamagen-xl", "l4", "cuda-graphs")
    work = Work.of_pass(rows=32, new=120, kv=0)
    assert work == (32, 32 * 120, 32 * 120, 32 * 120 * 121 // 2, 32)
    flops = 2 * 32 * 120 * 36 * 20_318_720 + 2 * 32 * 20_971_520 + 4 * 36 * 1280 * 32 * 120 * 121 // 2
    assert costs.pass_seconds(work) == pytest.approx(366 * 3e-6 + flops / (0.5 * 121e12), rel=1e-12)


def test_an_adaptive_norm_is_projected_once_for_a_row() -> None:
    """The last scale of VAR-d30 with guidance: 256 positions per row, and 6 D x D matrices per layer applied to the class only."""
    costs = roofline("var-d30", "jetson-orin-nano-8", "cuda-graphs")
    work = Work.of_pass(rows=2, new=256, kv=424, logits=256)
    layers = 512 * 30 * (12 * 1920**2 + 2 * 1920) + 2 * 30 * 6 * 1920**2 + 512 * 1920 * 4096
    flops = 2 * layers + 4 * 30 * 1920 * work.attended
    machine = catalogue.hardware("jetson-orin-nano-8")
    launches = (
        costs.pass_seconds(Work(0, 0, 0, 0, 0)) - 2 * catalogue.model("var-d30").pass_parameters / machine.bytes_per_s
    )
    assert costs.pass_seconds(work) - launches == pytest.approx(flops / machine.flop_per_s, rel=1e-9)


def test_eager_steps_cost_the_host_unless_the_roof_is_higher() -> None:
    work = Work.of_pass(rows=2, new=1, kv=120)
    assert roofline("llamagen-xl", "a100", "eager").pass_seconds(work) == pytest.approx(36 * 894e-6 + 2550e-6)
    nano = roofline("llamagen-xl", "jetson-orin-nano-8", "eager").pass_seconds(work)
    assert nano == pytest.approx((2 * (752_446_720 + 2 * 1280) + 2 * 121 * 184_320) / (0.65 * 68e9))


@pytest.mark.parametrize(("layers", "seconds"), [(12, 7.80), (24, 13.72), (36, 19.76), (48, 26.38)])
def test_eager_gives_back_the_times_that_llamagen_publishes(layers: int, seconds: float) -> None:
    """LlamaGen's serving README: 576 steps of 8 images with guidance (16 rows) on an A100, within 3 %."""
    xl = catalogue.model("llamagen-xl").model_copy(update={"n_layer": layers})
    costs = RooflineCosts(xl, {}, catalogue.hardware("a100"), catalogue.runtime("eager"))
    assert 576 * costs.pass_seconds(Work.of_pass(1, 1, 288)._replace(rows=16, logits=16)) == pytest.approx(
        seconds, rel=0.03
    )


def test_cuda_graphs_come_near_the_speed_that_gpt_fast_publishes() -> None:
    """gpt-fast: Llama-2-7B at batch 1 on an A100, 104.9 tokens/s compiled, within 10 %."""
    llama = shape(n_layer=32, n_head=32, dim=4096, ffn_hidden=11008, vocab_size=32000)
    costs = RooflineCosts(llama, {}, catalogue.hardware("a100"), catalogue.runtime("cuda-graphs"))
    assert 1 / costs.pass_seconds(Work.of_pass(1, 1, 100)) == pytest.approx(104.9, rel=0.10)


def test_device_step_against_the_cloud_step_is_what_the_papers_speed_ups_imply() -> None:
    """CIAR's stage I table implies a device token of 0.097 cloud steps, with both models on the same kind of hardware."""
    work = Work.of_pass(2, 1, 120)
    device, cloud = (roofline(name, "a100", "eager") for name in ("llamagen-xl-1layer", "llamagen-xl"))
    assert device.pass_seconds(work) / cloud.pass_seconds(work) == pytest.approx(0.097, abs=0.005)


def test_other_work_is_bound_by_memory_arithmetic_or_launches() -> None:
    graphs = roofline("llamagen-xl", "snapdragon-8-gen-3", "cuda-graphs")
    decoder = catalogue.model("llamagen-xl").op_counts["image_decoder"]
    assert graphs.compute_seconds("image_decoder") == pytest.approx(
        decoder.kernels * 20e-6 + decoder.flops / (0.25 * 5.5e12)
    )
    assert graphs.compute_seconds("phi") == pytest.approx(4 * 20e-6 + 2 * 9_043_968 / (0.65 * 76.8e9))
    assert roofline("llamagen-xl", "h200", "eager").compute_seconds("phi") == pytest.approx(4 * 16e-6)
    with pytest.raises(ComputeError, match="small has no operation count of image_decoder; known: phi"):
        RooflineCosts(
            shape(), shape().op_counts, catalogue.hardware("a100"), catalogue.runtime("eager")
        ).compute_seconds("image_decoder")


def test_a_roofline_is_a_cost() -> None:
    costs: Costs = roofline("llamagen-xl", "a100", "eager")
    assert costs.power_w == 400
    assert not costs.extrapolated


def test_the_operation_counts_of_the_catalogue_are_the_computed_ones() -> None:
    op_counts = catalogue.model("llamagen-xl").op_counts
    assert op_counts["image_decoder"] == vq_decoder_op_count(16)
    assert op_counts["phi"] == phi_op_count(1280, 16384, 256)
    assert op_counts["interval_samples"] == interval_samples_op_count(16384)
    assert op_counts["caption_encoder"] == text_encoder_op_count(120, 24, 2048, 2048, 5120, vocab_size=32128)
    assert 9.0e6 < op_counts["phi"].parameters < 9.1e6
    assert op_counts["caption_encoder"].unread == (32128 - 120) * 2048
    assert op_counts["caption_encoder"].parameters + (32128 - 120) * 2048 == pytest.approx(1.2e9, rel=0.03)


def test_the_smallest_decoder_is_counted_right() -> None:
    """One level of 32 channels at 2 x 2, one code channel, one ResBlock, counted by hand."""
    op_count = vq_decoder_op_count(2, ch=32, ch_mult=(1,), z_channels=1, codebook_dim=1, num_res_blocks=0)
    conv3 = 32 * 32 * 9
    res, attention = 2 * conv3, 4 * 32 * 32
    weights = 1 + 9 * 32 + 3 * res + 2 * attention + 9 * 32 * 3
    assert op_count.flops == 2 * 4 * weights + 2 * 4 * 2**4 * 32
    biases_and_norms = 1 + 32 + 3 * (2 * 32 + 4 * 32) + 2 * (4 * 32 + 2 * 32) + 3 + 2 * 32
    assert op_count.parameters == weights + biases_and_norms


@pytest.mark.parametrize(
    "settings", [{}, {"ch": 32, "ch_mult": (1, 2), "z_channels": 64, "num_res_blocks": 1, "patch": 4}]
)
def test_decoder_weights_are_those_of_the_real_model(settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from models.vq import VQConfig, VQModel

    mult = settings.get("ch_mult", VQConfig.decoder_ch_mult)
    renamed = {**settings, "encoder_ch_mult": mult, "decoder_ch_mult": mult}
    renamed.pop("ch_mult", None)
    with torch.device("meta"):
        model = VQModel(VQConfig(**renamed))
    parts = (model.decoder, model.post_quant_conv)
    assert vq_decoder_op_count(16, **settings).parameters == sum(p.numel() for part in parts for p in part.parameters())


# --- measured


def grid(seconds: Any, **axes: Any) -> PassTable:
    return PassTable(**{"rows": [1, 2], "new_tokens": [1, 5], "kv_tokens": [0, 100], "seconds": seconds, **axes})


def linear(rows: float, new: float, kv: float) -> float:
    return 0.001 * rows + 0.01 * new + 0.0001 * kv + 0.0002 * rows * new + 0.5


LINEAR = grid([[[linear(r, n, k) for k in (0, 100)] for n in (1, 5)] for r in (1, 2)])


def profile(table: PassTable = LINEAR, **compute: float) -> Profile:
    return Profile(
        model="scenes",
        hardware="test machine",
        threads=2,
        torch="2.13.0",
        passes={"device": table, "cloud": table},
        compute_seconds=compute,
    )


@pytest.mark.parametrize(("rows", "new", "kv"), [(1, 1, 0), (2, 5, 100), (1, 3, 25), (2, 2, 50), (2, 4, 99)])
def test_tables_are_exact_for_what_is_linear_in_each_axis(rows: int, new: int, kv: int) -> None:
    costs = MeasuredCosts(profile(), "cloud")
    assert costs.pass_seconds(Work.of_pass(rows, new, kv)) == pytest.approx(linear(rows, new, kv), rel=1e-12)
    assert not costs.extrapolated


def test_beyond_the_table_times_go_on_linearly_and_say_so() -> None:
    costs = MeasuredCosts(profile(), "cloud")
    assert costs.pass_seconds(Work.of_pass(4, 7, 300)) == pytest.approx(linear(4, 7, 300), rel=1e-12)
    assert costs.extrapolated


def test_verifications_of_fewer_positions_than_were_measured_lie_between_a_pass_and_the_smallest_tree() -> None:
    """The last drafts of an image are shorter: every run with drafts on measured hardware warned of extrapolated times."""
    trees = grid([[[linear(r, n, k) for k in (0, 100)] for n in (4, 9)] for r in (1, 2)], new_tokens=[4, 9])
    costs = MeasuredCosts(profile().model_copy(update={"verify": {"cloud": trees}}), "cloud")
    for new in (2, 3, 4, 9):
        assert costs.pass_seconds(Work.of_pass(2, new, 50, new)) == pytest.approx(linear(2, new, 50), rel=1e-12)
    assert not costs.extrapolated
    other = trees.model_copy(update={"kv_tokens": [0, 200]})  # measured elsewhere: nothing to put in front
    costs = MeasuredCosts(profile().model_copy(update={"verify": {"cloud": other}}), "cloud")
    costs.pass_seconds(Work.of_pass(2, 2, 50, 2))
    assert costs.extrapolated


def test_extrapolation_never_goes_below_the_least_measured_time() -> None:
    falling = grid([[[0.5, 0.4], [0.5, 0.4]], [[0.5, 0.4], [0.5, 0.4]]])
    assert MeasuredCosts(profile(falling), "cloud").pass_seconds(Work.of_pass(1, 1, 10_000)) == 0.4


def test_a_batch_of_unequal_rows_is_asked_for_at_its_mean() -> None:
    costs = MeasuredCosts(profile(), "device")
    one, other = Work.of_pass(1, 1, 20), Work.of_pass(1, 3, 60)
    both = Work(*(a + b for a, b in zip(one, other, strict=True)))
    assert costs.pass_seconds(both) == pytest.approx(linear(2, 2, 40), rel=1e-12)


def test_a_file_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile().write(path)
    data = json.loads(path.read_text())
    data["passes"]["cloud"]["seconds"][0][1][1] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ComputeError) as caught:
        Profile.read(path)
    hole = "no time for 1 rows of 5 new and 100 cached tokens"
    assert str(caught.value) == f"{path}: passes.cloud: {hole}; measure it again with ciar-sim profile"


def test_a_roofline_stands_beside_every_measured_pass() -> None:
    """On hardware with 1 GFLOP/s and 1 GB/s without overheads, small passes are bound by reading the weights, two bytes each."""
    figures = {"fp16_tflops": 1e-3, "bandwidth_gb_s": 1.0, "kernel_overhead_us": 0.0}
    figures |= {"bandwidth_efficiency": 1.0, "compute_efficiency": 1.0}
    machine = catalogue.hardware("a100").model_copy(update=figures)
    cells = compare_with_roofline(profile(), SHAPES, machine)
    assert len(cells) == 2 * 8
    first = cells[8]
    assert (first.role, first.rows, first.new_tokens, first.kv_tokens) == ("cloud", 1, 1, 0)
    read = 2 * (PAIR.cloud.pass_parameters + 8) + PAIR.cloud.kv_bytes_per_position
    assert first.roofline_s == pytest.approx(read / 1e9)
    assert first.ratio == pytest.approx(read / 1e9 / linear(1, 1, 0))


def of_roofline(costs: dict[str, RooflineCosts], off: float = 0.0) -> Profile:
    """Return a profile with the times of rooflines; every other time is longer by the share `off`. Pairs of rows share a head."""
    axes: dict[str, list[int]] = {"rows": [1, 8, 64], "new_tokens": [1, 16, 120], "kv_tokens": [0, 400]}

    def table(role: str, all_logits: bool) -> PassTable:
        seconds = [
            [
                [
                    costs[role].pass_seconds(
                        Work.of_pass(r, n, k)._replace(logits=max(r // 2, 1) * (n if all_logits else 1))
                    )
                    * (1 + off * ((i + j) % 2))
                    for i, k in enumerate(axes["kv_tokens"])
                ]
                for j, n in enumerate(axes["new_tokens"])
            ]
            for r in axes["rows"]
        ]
        return PassTable(**axes, seconds=seconds)

    passes = {role: table(role, False) for role in costs}
    fields: dict[str, Any] = {"model": "m", "hardware": "h", "threads": 1, "torch": "2", "compute_seconds": {}}
    return Profile(**fields, passes=passes, verify={"cloud": table("cloud", True)})


@pytest.mark.parametrize("runtime", ["cuda-graphs", "serial"])
def test_a_fit_finds_the_machine_that_made_the_times(runtime: str) -> None:
    """Each model has times of its own machine, as if the caches held the weights of some; the fit to each alone finds that machine."""
    shapes = {"cloud": catalogue.model("llamagen-xl"), "device": catalogue.model("llamagen-xl-1layer")}
    shapes["drafter"] = catalogue.drafter_of(shapes["cloud"])
    machines = {"cloud": "rtx-3090", "device": "rtx-3090", "drafter": "l4"}
    costs = {
        role: RooflineCosts(shape, {}, catalogue.hardware(machines[role]), catalogue.runtime(runtime))
        for role, shape in shapes.items()
    }
    profile = of_roofline(costs)
    found = fit_roofline(profile, shapes)
    assert found.runtime == runtime
    # A drafter that takes other times than the machine's is no part of the fit to both models together.
    for own, name in ((found.hardware, "rtx-3090"), *((found.by_role[role], name) for role, name in machines.items())):
        machine = catalogue.hardware(name)
        assert own.bytes_per_s == pytest.approx(machine.bytes_per_s, rel=0.01)
        assert own.flop_per_s == pytest.approx(machine.flop_per_s, rel=0.01)
        assert own.kernel_overhead_us == pytest.approx(machine.kernel_overhead_us, rel=0.05)
    assert max(errors_by_phase(compare_with_roofline(profile, shapes, found.by_role, runtime)).values()) < 0.01


def test_errors_of_a_fit_are_told_by_model_and_phase() -> None:
    shapes = {"cloud": catalogue.model("llamagen-xl"), "device": catalogue.model("llamagen-xl-1layer")}
    graphs = catalogue.runtime("cuda-graphs")
    costs = {role: RooflineCosts(one, {}, catalogue.hardware("l4"), graphs) for role, one in shapes.items()}
    noisy = of_roofline(costs, off=0.2)
    errors = errors_by_phase(compare_with_roofline(noisy, shapes, catalogue.hardware("l4")))
    assert [phase for role, phase in errors if role == "cloud"] == ["prefill", "decode", "more tokens", "verify"]
    assert [phase for role, phase in errors if role == "device"] == ["prefill", "decode", "more tokens"]
    assert 0 < max(errors.values()) <= 1 - 1 / 1.2 + 1e-9  # every other pass takes 1.2 times as long


def test_a_fit_of_launches_alone_has_finite_figures() -> None:
    same = grid([[[0.001] * 2] * 2] * 2)
    found = fit_roofline(profile(same), SHAPES).hardware
    figures = (found.bytes_per_s, found.flop_per_s, found.kernel_overhead_us)
    assert all(0 < one < math.inf for one in figures)


def test_a_serial_pass_is_the_sum_of_memory_and_arithmetic() -> None:
    serial, graphs = (roofline("llamagen-xl", "l4", name) for name in ("serial", "cuda-graphs"))
    small, large = Work.of_pass(1, 1, 0), Work.of_pass(128, 120, 0)
    for work in (small, large):
        assert graphs.pass_seconds(work) < serial.pass_seconds(work) < 2 * graphs.pass_seconds(work)


def test_the_interval_passes_over_all_codes_on_a_processor_only() -> None:
    work, more = (Work.of_pass(2, 4, 0, logits) for logits in (1, 4))
    for name, passes in (("serial", 30), ("cuda-graphs", 0)):
        device, plain = (
            RooflineCosts(one, {}, catalogue.hardware("l4"), catalogue.runtime(name))
            for one in (PAIR.device, PAIR.device.model_copy(update={"interhead": False, "head_rows": 2 * 32}))
        )
        extra = [device.pass_seconds(one) - plain.pass_seconds(one) for one in (work, more)]
        assert extra == pytest.approx([2 * one.logits * 32 * passes / (0.8 * 300e9) for one in (work, more)], abs=1e-15)


def test_a_verification_is_looked_up_among_those_of_drafts() -> None:
    costs = {"cloud": RooflineCosts(PAIR.cloud, {}, catalogue.hardware("l4"), catalogue.runtime("cuda-graphs"))}
    measured = MeasuredCosts(of_roofline(costs), "cloud")
    for logits in (1, 16):
        work = Work.of_pass(8, 16, 400, logits)
        assert measured.pass_seconds(work) == pytest.approx(costs["cloud"].pass_seconds(work))


def test_a_single_point_holds_everywhere_but_is_extrapolated() -> None:
    costs = MeasuredCosts(profile(grid([[[0.25]]], rows=[1], new_tokens=[1], kv_tokens=[0])), "cloud")
    assert costs.pass_seconds(Work.of_pass(1, 1, 0)) == 0.25
    assert not costs.extrapolated
    assert costs.pass_seconds(Work.of_pass(2, 1, 5)) == 0.25
    assert costs.extrapolated


def test_what_was_not_measured_is_an_error() -> None:
    costs = MeasuredCosts(profile(phi=0.002), "device")
    assert costs.compute_seconds("phi") == 0.002
    assert math.isnan(costs.power_w)
    with pytest.raises(
        ComputeError, match="the profile of scenes has no time of image_decoder; measure the profile again"
    ):
        costs.compute_seconds("image_decoder")
    with pytest.raises(ComputeError, match="holds no passes of drafter; held: device, cloud"):
        MeasuredCosts(profile(), "drafter")


def test_profiles_are_files(tmp_path: Path) -> None:
    path = tmp_path / "profiles" / "p.json"
    profile(phi=0.002).write(path)
    assert Profile.read(path) == profile(phi=0.002)
    first = path.read_bytes()
    profile(phi=0.002).write(path)
    assert path.read_bytes() == first
    with pytest.raises(ComputeError, match="cannot be read: No such file"):
        Profile.read(tmp_path / "none.json")
    path.write_text('{"format": 2}')
    with pytest.raises(ComputeError, match="measure it again with ciar-sim profile"):
        Profile.read(path)


@pytest.mark.parametrize(
    ("seconds", "axes"),
    [
        ([[[1.0]]], {}),
        ([[[1.0]]], {"rows": [1], "new_tokens": [1], "kv_tokens": []}),
        ([[[0.0]]], {"rows": [1], "new_tokens": [1], "kv_tokens": [0]}),
        ([[[math.nan]]], {"rows": [1], "new_tokens": [1], "kv_tokens": [0]}),
        ([[[None]]], {"rows": [1], "new_tokens": [1], "kv_tokens": [0]}),
        (LINEAR.seconds, {"rows": [2, 1]}),
    ],
)
def test_tables_that_are_not_grids_are_refused(seconds: Any, axes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        grid(seconds, **axes)


# --- choosing


def test_as_if_prices_passes_and_messages_at_the_larger_shape() -> None:
    choice = Choice(Side("llamagen-xl-1layer", "snapdragon-8-gen-3", "eager"), Side("llamagen-xl", "a100", "eager"))
    device, cloud, pricing = build_costs(choice, PAIR, no_profile)
    assert pricing.caption_slots == 120
    assert pricing.widths == Widths(dim=1280, vocab_size=16384, caption_dim=2048, image_pixels=65536, caption_slots=120)
    assert device.pass_seconds(Work.of_pass(2, 1, 120)) == pytest.approx(3.444e-3)
    assert cloud.provenance["origin"] == "roofline"
    assert cloud.provenance["hardware"] == "a100"
    assert cloud.provenance["figures"]["layer_us"] == 894
    assert all(cloud.provenance["sources"].values())


def test_the_pair_on_catalogue_hardware_keeps_its_own_shape() -> None:
    choice = Choice(Side("pair", "jetson-orin", "cuda-graphs"), Side("pair", "h200", "cuda-graphs"))
    device, cloud, pricing = build_costs(choice, PAIR, no_profile)
    assert pricing.caption_slots == 4
    assert pricing.widths == Widths(dim=8, vocab_size=32, caption_dim=6, image_pixels=128 * 128, caption_slots=4)
    assert isinstance(device, RooflineCosts)
    assert device.shape is PAIR.device
    assert device.provenance["hardware"] == "jetson-agx-orin-64"
    assert cloud.compute_seconds("phi") == pytest.approx(4 * 3e-6, rel=0.01)


def test_local_hardware_asks_for_the_profile_once() -> None:
    calls: list[int] = []

    def measure() -> Profile:
        calls.append(1)
        return profile(phi=0.001)

    device, cloud, _ = build_costs(Choice(Side("pair", "local"), Side("pair", "local")), PAIR, measure)
    assert len(calls) == 1
    assert device.provenance["origin"] == cloud.provenance["origin"] == "measured"


def test_a_profile_serves_the_model_it_was_measured_on_and_no_other(tmp_path: Path) -> None:
    stored, pair = tmp_path / "p.json", tmp_path / "pair.json"
    profile().model_copy(update={"model": "llamagen-xl"}).write(stored)
    profile().model_copy(update={"weights": "0f"}).write(pair)
    choice = Choice(
        Side("llamagen-xl-1layer", "local", profile=str(stored)), Side("llamagen-xl", "local", profile=str(stored))
    )
    device, cloud, pricing = build_costs(choice, PAIR, no_profile)
    assert (device.provenance["origin"], cloud.provenance["model"]) == ("measured", "llamagen-xl")
    assert pricing.widths.dim == 1280
    for model, path in (("llamagen-l-256", stored), ("llamagen-xl", pair), ("pair", stored)):
        side = Side(model, "local", profile=str(path))
        with pytest.raises(ComputeError, match=f"does not cover {model}; measure one with ciar-sim profile --"):
            build_costs(Choice(Side("pair", "a100"), side), PAIR, no_profile)


@pytest.mark.parametrize(
    ("measured", "roles", "model", "on_device", "in_cloud"),
    [
        ("llamagen-xl", ("drafter",), "llamagen-xl", "drafter", "drafter"),
        ("anole-7b", ("drafter", "cloud_drafter"), "anole-7b", "drafter", "cloud_drafter"),
        ("llamagen-xl", (), "llamagen-xl", None, None),
        ("llamagen-b-256", ("drafter",), "llamagen-xl", None, None),
        ("llamagen-xl", ("drafter",), OwnModel(layers=2, width=64), None, None),
    ],
)
def test_a_measured_drafter_is_that_of_the_clouds_model_or_unknown(
    tmp_path: Path, measured: str, roles: Sequence[str], model: Any, on_device: str | None, in_cloud: str | None
) -> None:
    tables = {role: grid([[[float(i)] * 2] * 2] * 2) for i, role in enumerate(("device", "cloud", *roles), start=1)}
    stored = profile().model_copy(update={"model": measured, "passes": tables})
    stored.write(tmp_path / "p.json")
    one = Side(f"{measured}-1layer", "local", profile=str(tmp_path / "p.json"))
    same = model == measured
    choice = Choice(one, Side(model, "local", profile=one.profile) if same else Side(model, "a100"))
    shapes = (
        PairShapes(cloud=shape(image_tokens=1024), device=shape(image_tokens=1024)) if "anole" in measured else PAIR
    )
    *_, pricing = build_costs(choice, shapes, no_profile)
    for costs, role in ((pricing.device_drafter, on_device), (pricing.drafter, in_cloud if same else None)):
        assert getattr(costs, "table", None) == (None if role is None else tables[role])


def test_a_side_with_a_stored_profile_is_priced_by_it(tmp_path: Path) -> None:
    stored = tmp_path / "phone.json"
    profile(phi=0.25).write(stored)
    sides = Side("pair", "local", profile=str(stored)), Side("pair", "local")
    device, cloud, _ = build_costs(Choice(*sides), PAIR, lambda: profile(phi=0.5))
    assert (device.compute_seconds("phi"), cloud.compute_seconds("phi")) == (0.25, 0.5)


def test_image_tokens_must_match() -> None:
    pair = PairShapes(cloud=shape(image_tokens=64), device=shape(n_layer=1, image_tokens=64))
    choice = Choice(Side("llamagen-xl-1layer", "a100"), Side("llamagen-xl", "a100"))
    with pytest.raises(
        ComputeError, match="llamagen-xl-1layer makes 256 image tokens, the pair 64; they must be equal"
    ):
        build_costs(choice, pair, no_profile)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ComputeError, match="hardware a1000 is not known; did you mean a100"):
        build_costs(Choice(Side("pair", "a1000"), Side("pair", "a100")), PAIR, no_profile)


def test_every_kind_has_a_time_at_every_size() -> None:
    for name in catalogue.names("models"):
        for hardware in catalogue.names("hardware"):
            for runtime in catalogue.names("runtimes"):
                costs = roofline(name, hardware, runtime)
                assert all(0 < costs.compute_seconds(kind) < 200 for kind in COMPUTE_KINDS)
