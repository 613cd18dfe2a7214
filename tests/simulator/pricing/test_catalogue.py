"""The catalogue: every entry has a source, names are unique, and unknown ones are refused with the nearest."""

import pytest

from simulator.core import yamlfile
from simulator.core.errors import ComputeError, ScenarioError
from simulator.network.impairments import DISTRIBUTIONS
from simulator.pricing import catalogue
from simulator.protocol.ops import COMPUTE_KINDS
from simulator.traces.gaps import fitted
from simulator.traces.generate import KINDS

EVIDENCE = {"measured", "datasheet", "derived", "assumed"}


@pytest.mark.parametrize("table", ["hardware", "runtimes", "models", "networks", "radios"])
def test_every_entry_has_a_source_and_says_how_good_it_is(table: str) -> None:
    pick = {
        "hardware": catalogue.hardware,
        "runtimes": catalogue.runtime,
        "models": catalogue.model,
        "networks": catalogue.network,
        "radios": catalogue.radio,
    }
    assert catalogue.names(table)
    for name in catalogue.names(table):
        entry = pick[table](name)
        assert len(entry.source) > 10, name
        assert entry.evidence in EVIDENCE, name


def test_hardware_classes_have_sources() -> None:
    for name, group in yamlfile.read(catalogue.FOLDER / "hardware.yaml").data["classes"].items():
        assert group["source"], name
        assert group["evidence"] in EVIDENCE, name
    assert "aiconfigurator" in catalogue.hardware("a100").efficiency_source


@pytest.mark.parametrize("table", ["hardware", "networks"])
def test_aliases_are_unique_and_no_names_of_their_own(table: str) -> None:
    names = list(catalogue.names(table))
    pick = catalogue.hardware if table == "hardware" else catalogue.network
    aliases = [alias for name in names for alias in pick(name).aliases]
    assert len(set(names + aliases)) == len(names) + len(aliases)


def test_an_alias_gives_the_same_entry() -> None:
    assert catalogue.hardware("jetson-orin") is catalogue.hardware("jetson-agx-orin-64")
    assert catalogue.canonical("hardware", "jetson-orin") == "jetson-agx-orin-64"
    assert catalogue.network("wifi-home") is catalogue.network("wifi")
    assert catalogue.canonical("networks", "nothing") == "nothing"


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ComputeError, match=r"^hardware a10o is not known; did you mean a10\? allowed: b200, h200, "):
        catalogue.hardware("a10o")
    with pytest.raises(ComputeError, match=r"^model lamagen-xl is not known; did you mean llamagen-xl\? allowed: "):
        catalogue.model("lamagen-xl")
    with pytest.raises(ComputeError, match=r"^runtime cuda-graph is not known; did you mean cuda-graphs\? allowed: "):
        catalogue.runtime("cuda-graph")
    with pytest.raises(
        ScenarioError, match=r"^network preset lte_good is not known; did you mean lte-good\? allowed: "
    ):
        catalogue.network("lte_good")


def test_the_presets_asked_for_exist_and_are_plausible() -> None:
    wanted = {
        "3g",
        "3g-hspa-plus",
        "lte",
        "lte-good",
        "5g-sub6",
        "5g-mmwave",
        "wifi",
        "wifi-public",
        "cable",
        "fibre",
        "leo",
        "leo-isl",
        "geo",
        "lan",
        "datacentre",
    }
    assert set(catalogue.names("networks")) == wanted
    for name in wanted:
        preset = catalogue.network(name)
        assert preset.up_mbps <= preset.down_mbps
        assert preset.jitter_ms <= preset.rtt_ms
        assert preset.jitter_distribution in DISTRIBUTIONS
        assert preset.radio is None or catalogue.radio(preset.radio).inactivity_s > 0.0
        assert preset.gaps is None or (preset.gaps in fitted() and preset.generated is None)
        leo = None if preset.generated is None else KINDS[preset.generated].leo
        assert leo is None or leo.rtt_ms == preset.rtt_ms
    assert catalogue.network("geo").rtt_ms > catalogue.network("leo").rtt_ms > catalogue.network("fibre").rtt_ms


def test_figures_in_base_units() -> None:
    a100 = catalogue.hardware("a100")
    assert a100.bytes_per_s == pytest.approx(2039e9 * 0.8)
    assert a100.flop_per_s == pytest.approx(156e12)
    assert a100.kernel_overhead_s == pytest.approx(3e-6)


def test_llamagen_has_the_published_sizes() -> None:
    xl = catalogue.model("llamagen-xl")
    assert xl.layer_parameters == 20_318_720
    assert xl.parameters == 777_923_840  # published as 775M
    assert xl.kv_bytes_per_position == 184_320
    assert xl.image_tokens == 256
    one = catalogue.model("llamagen-xl-1layer")
    assert one.parameters == 20_971_520 + 20_318_720 + 41_943_040 + 4_259_840 + 245_760 + 1_280
    assert set(one.op_counts) == set(xl.op_counts) == set(COMPUTE_KINDS)


# Published numbers of weights in millions, and image tokens, from the model tables of LlamaGen and VAR, and Chameleon-7B.
PUBLISHED = {
    "llamagen-b-256": (111, 256),
    "llamagen-l-384": (343, 576),
    "llamagen-xl-384": (775, 576),
    "llamagen-xxl-384": (1400, 576),
    "llamagen-3b-384": (3100, 576),
    "llamagen-xl-stage2": (775, 1024),
    "anole-7b": (7000, 1024),
    "lumina-mgpt-768": (7000, 2304),
    "var-d16": (310, 680),
    "var-d30": (2000, 680),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_numbers_of_weights(name: str) -> None:
    millions, tokens = PUBLISHED[name]
    found = catalogue.model(name)
    assert found.parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert found.image_tokens == tokens


def test_janus_reads_its_language_model_and_its_image_head() -> None:
    """A pass reads a Llama decoder of 24 layers with 51.4 M weights each, and the two matrices of the image head."""
    found = catalogue.model("janus-pro-1b")
    assert found.pass_parameters == 24 * (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048) + 2048 + 2048 * (16384 + 2048)
    assert found.image_tokens == 24 * 24


def test_every_model_that_decodes_token_by_token_has_a_device_form_of_one_layer() -> None:
    for name in catalogue.names("models"):
        full = catalogue.model(name)
        if name.endswith(catalogue.ONE_LAYER):
            continue
        if full.by_scales:  # CIAR's device decodes token by token
            with pytest.raises(ComputeError, match="is not known; did you mean"):
                catalogue.model(catalogue.one_layer(name))
            continue
        device = catalogue.model(catalogue.one_layer(name))
        assert device.pass_parameters == full.layer_parameters + full.dim * (2 * full.vocab_size + 1)
        assert (device.image_tokens, device.op_counts) == (full.image_tokens, full.op_counts)
        assert set(full.op_counts) == set(COMPUTE_KINDS)
    assert catalogue.model("llamagen-xl-stage1") is catalogue.model("llamagen-xl")


def test_a_larger_grid_costs_the_image_decoder_more() -> None:
    sides = ("llamagen-xl", "llamagen-xl-384", "llamagen-xl-stage2")
    flops = [catalogue.model(name).op_counts["image_decoder"].flops for name in sides]
    assert flops == sorted(flops)
    assert flops[2] / flops[0] == pytest.approx(4, rel=0.01)  # everything but attention is proportional to the pixels
