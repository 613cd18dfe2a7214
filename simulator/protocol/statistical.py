"""Statistical recordings: the load of sessions on device, cloud and link, generated from published rates of cloud calls instead of
forward passes.

They price a published table at the true size of its models. No token is decoded: tokens are 0, the image is black, and every score and
quality is NaN; `Recording.meta["statistical"]` names the source. A pair is either statistical or has weights
(`PairManifest.statistics`), so no run mixes the two kinds.

Draws, from the session's own random stream:

* P, the cloud passes that decide tokens: the published percentage of T, rounded up or down so that its mean over sessions is exact.
* A gated method: the P - m tokens after the prefix of m that the cloud decides, a uniform subset of the positions.
* A tree of drafts: after the first token, P - 1 rounds of 1 to depth + 2 tokens that add up to T - 1; which round accepts how many
  drafts is a uniform choice among the places that the trees have. Trees are combs: top_k chains below the root.

Everything else (order of the ops, input and cached positions, message bytes) equals that of the methods' programs; a test rebuilds
recorded sessions of a real pair from their own statistics.
"""

import math

import numpy as np

from simulator.core.errors import RecordingError, ScenarioError
from simulator.core.rng import stream
from simulator.protocol.methods import (
    METHODS,
    BaseSettings,
    CiarSettings,
    CodeSettings,
    Decoding,
    DeviceOnlySettings,
    GatedSettings,
    MethodSettings,
    TreeSettings,
    prefix_length,
)
from simulator.protocol.outline import FREE, Outline, check_scales, decided_by, session_ops
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import SCORES, Recording, SessionSpec


def check_statistical(name: str, settings: MethodSettings, manifest: PairManifest) -> None:
    """Raises ScenarioError if the pair's statistics do not cover a method with these settings."""
    known = manifest.statistics
    assert known is not None
    if name not in FREE and name not in known.cloud_call_pct and not known.scales:
        there = ", ".join([*FREE, *known.cloud_call_pct])
        raise ScenarioError(
            f"the statistics of {manifest.name} have no rate of cloud calls for {name}; they have: {there}"
        )
    check_scales(name, manifest)
    if not isinstance(settings, BaseSettings | DeviceOnlySettings | CodeSettings | GatedSettings | TreeSettings):
        raise ScenarioError(
            f"no statistical sessions of {name}: its rounds follow from more than a rate of cloud calls"
        )
    if isinstance(settings, BaseSettings) and settings.deliver == "image":
        raise ScenarioError("base: deliver must be stream or ids with statistics, got image: there is no image")
    if isinstance(settings, CiarSettings):
        for key, wanted in (("upload", "lazy"), ("variant", "resample"), ("revise", 0.0)):
            if getattr(settings, key) != wanted:
                raise ScenarioError(f"ciar: {key} must be {wanted} with statistics, got {getattr(settings, key)}")


def record_statistical(spec: SessionSpec, manifest: PairManifest) -> Recording:
    """The session that a spec's method has at the pair's published rates.

    Raises:
        ScenarioError: The statistics do not cover the method, or its rate is impossible for the method.
        RecordingError: The session would give up a reply; no published figure covers the effect on calls.
    """
    known = manifest.statistics
    assert known is not None
    if spec.missed_calls:
        raise RecordingError(
            f"{manifest.name}: statistics do not say what follows a missed reply; use fallback.policy: wait"
        )
    settings = METHODS[spec.method].settings.model_validate(spec.settings)
    check_statistical(spec.method, settings, manifest)
    decoding, count = Decoding.model_validate(spec.decoding), manifest.image_tokens
    widths = manifest.widths
    outline = draw_outline(spec, settings, manifest)
    ops = session_ops(settings, decoding, outline, spec.prompt, spec.seed, count, widths, known.scales)
    size = manifest.image_size
    return Recording(
        ops=ops,
        tokens=np.zeros(count, np.uint16),
        decided_by=decided_by(settings, outline, count, known.scales),
        scores=np.full((count, len(SCORES)), np.nan, np.float32),
        image=np.zeros((size, size, 3), np.uint8),
        nll=np.full(count, np.nan, np.float32),
        argmax=np.zeros(count, np.uint16),
        widths=widths,
        meta={"spec": dict(spec.__dict__), "statistical": known.source},
    )


def draw_outline(spec: SessionSpec, settings: MethodSettings, manifest: PairManifest) -> Outline:
    """Draw the choices that the published rate leaves open. Raises ScenarioError for a rate that is impossible for the method."""
    count, slots = manifest.image_tokens, manifest.caption_slots
    caption_rows = min(len(spec.prompt.split()) + 1, slots)
    assert manifest.statistics is not None
    rate = manifest.statistics.cloud_call_pct.get(spec.method)
    if rate is None or not isinstance(settings, GatedSettings | TreeSettings):
        return Outline(caption_rows)
    rng = stream(spec.seed, "statistical", spec.method, spec.prompt)
    passes = math.floor(rate / 100 * count + rng.random())
    if isinstance(settings, GatedSettings):
        first = prefix_length(settings.prefix_rate, count)
        free, chosen = count - first, passes - first
        if not 0 <= chosen <= free:
            raise ScenarioError(
                f"{spec.method}: {rate:g} % of {count} tokens are fewer cloud passes than its prefix of {first}"
            )
        return Outline(caption_rows, uploads=sorted((first + rng.permutation(free)[:chosen]).tolist()))
    rounds, most = passes - 1, settings.depth + 1
    extra = count - 1 - rounds
    if not 0 <= extra <= rounds * most:
        raise ScenarioError(
            f"{spec.method}: {rate:g} % of {count} tokens are {passes} cloud passes, and trees of depth {settings.depth} "
            f"accept at most {most} drafts in each"
        )
    places = np.repeat(np.arange(rounds), most)  # the round of every draft that could be accepted
    return Outline(caption_rows, accepted=np.bincount(rng.permutation(places)[:extra], minlength=rounds).tolist())
