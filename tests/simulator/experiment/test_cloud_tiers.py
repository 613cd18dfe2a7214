"""`cloud.tiers`: the distance of each tier, and the hardware and rules of its cloud."""

from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.experiment.fleet import computes_of, network_of
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.experiment.schema.network import MS_PER_1000_KM
from simulator.experiment.sweep import expand
from simulator.network.wire import StepFunction
from simulator.pricing import catalogue
from tests.simulator.experiment.scenario_files import HEAD, load

TIERS = """\
cloud:
  tier: edge
  tiers:
    edge: {distance_km: 20, hardware: l4, price_usd_per_gpu_hour: 0.8}
    region: {distance_km: 500, replicas: 2}
    continent: {rtt_ms: 60, hardware: h100, runtime: cuda-graphs, queue: shortest-first}
"""
SPREAD = """\
workload:
  devices: 4
  arrivals: {poisson_per_s: 1}
  duration_s: 9
  fleet:
    - {share: 0.5}
    - {share: 0.5, tier: continent, network: {rtt_ms: 10, up_mbps: 1, down_mbps: 1}}
"""


def made(folder: Path, more: str = "", tiers: str = TIERS) -> Scenario:
    return load(folder, HEAD + tiers + more)


def test_a_tier_takes_the_place_of_the_way_that_a_preset_has(tmp_path: Path) -> None:
    """The Wi-Fi preset has 20 ms to a cloud at 500 km, of which 11 ms are behind the access network."""
    wifi_ms = catalogue.network("wifi").rtt_ms
    at = {case.swept["cloud.tier"]: case.scenario for case in expand(made(tmp_path, SWEPT))}
    rtts = {tier: 1e3 * one.links[0].rtt_s for tier, one in at.items() if one.links[0].rtt_s}
    assert rtts == pytest.approx({"edge": wifi_ms - 11 + 0.44, "region": wifi_ms, "continent": wifi_ms - 11 + 60})
    assert MS_PER_1000_KM * 0.5 == 11


SWEPT = "network: wifi\nsweep: {cloud.tier: [edge, region, continent]}\n"


def test_a_sweep_sends_a_method_to_each_tier(tmp_path: Path) -> None:
    cases = expand(made(tmp_path, SWEPT))[:3]  # of the first method
    sides = [computes_of(case.scenario)[0].cloud for case in cases]
    assert [(side.hardware, side.runtime) for side in sides] == [
        ("l4", "eager"),
        ("a100", "eager"),
        ("h100", "cuda-graphs"),
    ]
    assert [list(case.scenario.servings) for case in cases] == [["edge"], ["region"], ["continent"]]
    assert [next(iter(case.scenario.servings.values())).replicas for case in cases] == [1, 2, 1]
    hardware = expand(made(tmp_path, "sweep: {cloud.tiers.edge.hardware: [l4, a100]}\n"))[:2]
    assert [computes_of(case.scenario)[0].cloud.hardware for case in hardware] == ["l4", "a100"]
    runtimes = expand(made(tmp_path, "sweep: {cloud.tiers.edge.runtime: [serial, eager]}\n"))[:2]
    assert [computes_of(case.scenario)[0].cloud.runtime for case in runtimes] == ["serial", "eager"]


NOWHERE = TIERS.replace("  tier: edge\n", "")
EACH_METHOD = (
    "name: t\nmethods: [{name: base, tier: region}, {name: ciar, tier: edge}, {name: ciar, tier: continent}]\n"
)


def test_each_method_has_a_tier_of_its_own(tmp_path: Path) -> None:
    """In one run, CIAR's calls go to the edge while base is served in the region."""
    cases = expand(load(tmp_path, EACH_METHOD + NOWHERE))
    assert [case.method.label for case in cases] == ["base", "ciar tier=edge", "ciar tier=continent"]
    assert [case.scenario.tiers for case in cases] == [["region"], ["edge"], ["continent"]]
    assert [computes_of(case.scenario)[0].cloud.hardware for case in cases] == ["a100", "l4", "h100"]
    assert cases[1].scenario.links[0] == expand(made(tmp_path))[0].scenario.links[0]
    swept = expand(made(tmp_path, "sweep: {methods.ciar.tier: [edge, region]}\n"))
    assert [(case.method.name, case.scenario.tiers) for case in swept] == [
        ("base", ["edge"]),
        ("ciar", ["edge"]),
        ("ciar", ["region"]),
    ]


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        (
            "[{name: base, tier: edgy}]",
            NOWHERE,
            "methods[0].tier must be a tier of the cloud, got 'edgy' (text); did you",
        ),
        ("[{name: base, tier: edge}]", "", "methods[0].tier needs cloud.tiers, which are missing"),
        (
            "[base, {name: ciar, tier: edge}]",
            NOWHERE,
            "cloud.tier is missing: one of edge, region, continent, or tier of",
        ),
        (
            "[{name: base, tier: edge}]",
            TIERS + SPREAD.replace("{share: 0.5}\n", "{share: 0.5, tier: edge}\n"),
            "methods[0].tier does nothing",
        ),
        (
            "[base, {name: ciar, tier: edge}]",
            TIERS + SWEPT,
            "sweep: cloud.tier does nothing to ciar, which has its own tier",
        ),
    ],
)
def test_a_tier_of_a_method_that_cannot_be_is_refused(tmp_path: Path, methods: str, more: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        expand(load(tmp_path, f"name: t\nmethods: {methods}\n{more}"))
    assert message in str(caught.value)


def test_kinds_of_devices_are_spread_over_tiers(tmp_path: Path) -> None:
    s = made(tmp_path, SPREAD)
    assert s.tiers == ["edge", "continent"]
    assert list(s.servings) == ["edge", "continent"]
    assert [choice.cloud.hardware for choice in computes_of(s)] == ["l4", "h100"]
    assert s.links[1].rtt_s == pytest.approx(0.07)  # 10 ms of the explicit link plus 60 ms to the tier
    again = tmp_path / "again"
    again.mkdir()
    (again / "t.yaml").write_text(resolved_yaml(s))
    assert load(again, (again / "t.yaml").read_text()) == s


def test_the_way_to_a_tier_is_behind_a_trace_too(tmp_path: Path) -> None:
    (tmp_path / "link.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,8,2,40\n1,4,1,60\n2,8,2,40\n")
    s = made(tmp_path, "network: {trace: link.csv}\n")
    network = network_of(s.links[0], 0)
    assert isinstance(network.up_delay_s, StepFunction)
    plain = load(tmp_path, HEAD + "network: {trace: link.csv}\n")
    there = network_of(plain.links[0], 0).up_delay_s
    assert isinstance(there, StepFunction)
    assert network.up_delay_s.mean == pytest.approx(there.mean + 0.00022)


REFUSED = {
    "no tier chosen": (
        TIERS.replace("  tier: edge\n", ""),
        "",
        "cloud.tier is missing: one of edge, region, continent, or",
    ),
    "another tier": (
        TIERS.replace("tier: edge", "tier: edgy"),
        "",
        "cloud.tier must be a tier of the cloud, got 'edgy' (text); did you mean edge?",
    ),
    "a tier without tiers": ("cloud: {tier: edge}\n", "", "cloud.tier needs tiers, which are missing"),
    "keys beside tiers": (
        TIERS.replace("tier: edge", "tier: edge\n  replicas: 3"),
        "",
        "cloud.replicas conflicts with tiers: give it in each tier",
    ),
    "no distance": (
        "cloud: {tier: a, tiers: {a: {replicas: 1}}}\n",
        "",
        "cloud.tiers.a needs distance_km or rtt_ms: how far it is",
    ),
    "two distances": (
        "cloud: {tier: a, tiers: {a: {rtt_ms: 1, distance_km: 1}}}\n",
        "",
        "cloud.tiers.a.distance_km conflicts with rtt_ms",
    ),
    "unknown hardware": (
        "cloud: {tier: a, tiers: {a: {rtt_ms: 1, hardware: l5}}}\n",
        "",
        "cloud.tiers.a.hardware is not known, got 'l5' (text); did you mean l4",
    ),
    "local hardware": (
        "cloud: {tier: a, tiers: {a: {rtt_ms: 1, hardware: local}}}\n",
        "",
        "cloud.tiers.a.hardware must be a name of the catalogue or figures",
    ),
    "a second distance": (
        TIERS,
        "network: {preset: lte, distance_km: 9}\n",
        "network.distance_km conflicts with cloud.tiers",
    ),
    "a kind's tier": (
        TIERS,
        SPREAD.replace("tier: continent", "tier: moon"),
        "workload.fleet[1].tier must be a tier of the cloud, got 'moon'",
    ),
    "a kind's tier without tiers": ("", SPREAD, "workload.fleet[1].tier needs cloud.tiers"),
    "no way for jitter": (
        "cloud: {tier: a, tiers: {a: {rtt_ms: 0}}}\n",
        "network: lan\n",
        "cloud.tiers.a leaves no round trip for the jitter",
    ),
    "priority of one kind": (
        TIERS.replace("shortest-first", "priority"),
        SPREAD,
        "cloud.tiers.continent.queue priority needs kinds of different priority",
    ),
    "a tier's own rules": (
        TIERS.replace("replicas: 2", "replicas: 2, crashes: [{replica: 2, at_s: 1, down_s: 1}]"),
        "",
        "cloud.tiers.region.crashes[0].replica must be below replicas",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tiers_that_cannot_be_are_refused(case: str, tmp_path: Path) -> None:
    tiers, more, says = REFUSED[case]
    with pytest.raises(ScenarioError) as caught:
        made(tmp_path, more, tiers)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
