"""Statistical recordings: what sessions ask of device, cloud and link, made from published rates of cloud calls instead of forward passes.

They price a published table at the true size of its models. No token is decoded: tokens are 0, the image is black, and every score and
quality is NaN; `Recording.meta["statistical"]` names the source. A pair is statistical or has weights, never both
(`PairManifest.statistics`), so no run mixes the two kinds.

What is drawn, from a stream of the session's own:

* P, the cloud passes that decide tokens: the published percentage of T, rounded up or down so that its mean over sessions is exact.
* A gated method: the P - m tokens after the prefix of m that the cloud decides, a uniform subset of the positions.
* A tree of drafts: after the first token, P - 1 rounds of 1 to depth + 2 tokens that add up to T - 1; which round accepts how many
  drafts is a uniform choice among the places that the trees have. Trees are combs: top_k chains below the root.

A model that predicts scale by scale (VAR) decides a whole scale in a pass, which feeds as many positions. It serves `base`, `device-only`
and `code`, whose prefix is whole scales: CoDe as its authors have it. Two things are priced a little off there: attention within a scale
counts half its pairs, as if it were causal, and the pass after a hand-over reads out the positions before its own scale too.

Everything else (order of the ops, positions fed and cached, message bytes) is what the methods' programs yield, and a test rebuilds
recorded sessions of a real pair from their own statistics.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from simulator.core.errors import RecordingError, ScenarioError
from simulator.core.rng import stream
from simulator.protocol.messages import (
    DraftTree,
    Message,
    Opened,
    Path,
    Start,
    Started,
    Tokens,
    Upload,
    Verify,
    Widths,
    encode,
    pack_ids,
)
from simulator.protocol.methods import (
    METHODS,
    BaseSettings,
    CiarSettings,
    CodeSettings,
    Decoding,
    DeviceOnlySettings,
    DiscreteSettings,
    GatedSettings,
    MethodSettings,
    TreeSettings,
    prefix_length,
)
from simulator.protocol.ops import COMPUTE_KINDS, INTERVAL_SAMPLES, ROLES, Forward
from simulator.protocol.pairs import PairManifest
from simulator.protocol.recording import (
    AWAIT,
    CLOUD,
    COMPUTE,
    DEVICE,
    EMIT,
    FORWARD,
    FROM_CLOUD,
    FROM_DEVICE,
    REPLY,
    SCORES,
    SEND,
    Recording,
    SessionSpec,
    op_table,
)

FREE = ("base", "device-only", "code")  # whose passes follow from their settings


@dataclass(frozen=True)
class Outline:
    """What the ops of a session follow from, beside its settings.

    Attributes:
        caption_rows: Rows of the caption that are sent to the device.
        uploads: Positions after the prefix that the cloud decides, of a gated method.
        accepted: Accepted drafts of each round, of a tree method; the last round has no further token where they end the image.
    """

    caption_rows: int
    uploads: Sequence[int] = ()
    accepted: Sequence[int] = ()


def check_statistical(name: str, settings: MethodSettings, manifest: PairManifest) -> None:
    """Raises ScenarioError where the pair's statistics say nothing about a method with these settings."""
    known = manifest.statistics
    assert known is not None
    if name not in FREE and name not in known.cloud_call_pct and not known.scales:
        there = ", ".join([*FREE, *known.cloud_call_pct])
        raise ScenarioError(
            f"the statistics of {manifest.name} have no rate of cloud calls for {name}; they have: {there}"
        )
    if known.scales and name not in FREE:
        raise ScenarioError(
            f"{name}: decides token by token, {manifest.name} predicts scale by scale; allowed: {', '.join(FREE)}"
        )
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
        ScenarioError: The statistics do not cover the method, or its rate is none that the method can have.
        RecordingError: The session would give up a reply, whose effect on calls nobody published.
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
    widths = Widths(
        manifest.cloud.dim, manifest.codebook_size, manifest.caption_dim, manifest.image_size**2, manifest.caption_slots
    )
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
        meta={"spec": {**spec.__dict__, "missed_calls": [], "outcomes": []}, "statistical": known.source},
    )


def draw_outline(spec: SessionSpec, settings: MethodSettings, manifest: PairManifest) -> Outline:
    """The session's own draw of what its published rate leaves open. Raises ScenarioError for a rate the method cannot have."""
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
    places = np.repeat(np.arange(rounds), most)  # of every draft that could be accepted
    return Outline(caption_rows, accepted=np.bincount(rng.permutation(places)[:extra], minlength=rounds).tolist())


def decided_by(settings: MethodSettings, outline: Outline, count: int, scales: Sequence[int] = ()) -> np.ndarray:
    """uint8 [T]: who decided each token."""
    if isinstance(settings, BaseSettings):
        return np.full(count, FROM_CLOUD, np.uint8)
    if isinstance(settings, TreeSettings):
        after = [who for accepted in outline.accepted for who in [FROM_DEVICE] * accepted + [FROM_CLOUD]]
        found = ([FROM_CLOUD] * count if settings.drafter == "cloud" else [FROM_CLOUD, *after])[:count]
        return np.array(found, np.uint8)
    result = np.full(count, FROM_DEVICE, np.uint8)
    result[: _prefix(settings, _sizes(count, scales))] = FROM_CLOUD
    result[list(outline.uploads)] = FROM_CLOUD
    return result


def session_ops(
    settings: MethodSettings,
    decoding: Decoding,
    outline: Outline,
    caption: str,
    seed: int,
    count: int,
    widths: Widths,
    scales: Sequence[int] = (),
) -> np.ndarray:
    """The ops (OP_DTYPE) of the session of `count` tokens that has this outline. scales: see `Statistics`."""
    log = _Log(decoding, caption, seed, _sizes(count, scales), widths)
    if isinstance(settings, TreeSettings):
        _tree(log, settings, outline)
    elif isinstance(settings, BaseSettings):
        _base(log, settings)
    elif (
        decoding.text_encoder == "device"
        and _prefix(settings, log.sizes) == 0
        and not isinstance(settings, GatedSettings)
    ):
        log.compute(DEVICE, "caption_encoder")  # the cloud is not asked at all
        _decode(log, settings, outline)
    else:
        _open(log, _prefix(settings, log.sizes), outline)
        _decode(log, settings, outline)
    log.compute(DEVICE, "image_decoder")
    return op_table(log.device, log.cloud)


def _sizes(count: int, scales: Sequence[int]) -> list[int]:
    """Tokens that each pass decides of an image that one model decodes."""
    return [side * side for side in scales] or [1] * count


def _prefix(settings: MethodSettings, sizes: Sequence[int]) -> int:
    """Tokens that the cloud makes first: whole scales, where there are several."""
    if not isinstance(settings, CodeSettings | GatedSettings):
        return 0
    asked = prefix_length(settings.prefix_rate, sum(sizes))
    return max((end for end in accumulate(sizes) if end <= asked), default=0)


class _Log:
    """Ops of one session, and how much each model's cache holds."""

    def __init__(self, decoding: Decoding, caption: str, seed: int, sizes: Sequence[int], widths: Widths) -> None:
        self.decoding, self.caption, self.seed, self.sizes, self.widths = decoding, caption, seed, sizes, widths
        self.count = sum(sizes)
        self.rows = 2 if decoding.guidance > 1 else 1
        self.device: list[dict[str, int]] = []
        self.cloud: list[dict[str, int]] = []
        self.calls = 0
        # Image positions in the cache, by role; a role that is not there holds no caption.
        self.held: dict[str, int] = {}

    def _note(self, side: int, **columns: int) -> None:
        (self.device if side == DEVICE else self.cloud).append(columns)

    def forward(self, side: int, op: Forward, keep: int | None = None, call: int = -1, hidden: int = 0) -> None:
        first = op.role not in self.held
        start = self.held.get(op.role, 0) if keep is None else keep
        self._note(
            side,
            kind=FORWARD,
            what=ROLES.index(op.role),
            call=call,
            rows=self.rows,
            caption=int(first),
            new_tokens=op.new_positions,
            kv_caption=int(not first),
            kv_tokens=start,
            decides=int(op.decides),
            logits_all=int(op.outputs == "all"),
            hidden=hidden,
        )
        self.held[op.role] = start + op.new_positions

    def alone(self, side: int, role: str, first: int, last: int, call: int = -1) -> Iterator[int]:
        """The passes in which a model decides tokens `first` to `last` by itself, each over what its cache lacks; how many each decides.

        A scale's own positions are fed in the pass that decides them; the first one stands at the caption's.
        """
        end = 0
        for size in self.sizes:
            end += size
            if first < end <= last:
                fed = end - 1 - self.held.get(role, 0)
                self.forward(side, Forward(role, [0] * fed, outputs="all" if size > 1 else "last"), call=call)
                yield size

    def compute(self, side: int, kind: str, call: int = -1) -> None:
        self._note(side, kind=COMPUTE, what=COMPUTE_KINDS.index(kind), call=call)

    def send(self, message: Message, deadline: bool | None = None) -> int:
        """The number of the call. deadline: whether its reply may be given up; None: it is not waited for here."""
        call, self.calls = self.calls, self.calls + 1
        self._cross(DEVICE, SEND, call, message)
        if deadline is not None:
            self._note(DEVICE, kind=AWAIT, what=int(deadline), call=call)
        return call

    def answer(self, call: int, message: Message, kind: int = REPLY) -> None:
        self._cross(CLOUD, kind, call, message)

    def _cross(self, side: int, kind: int, call: int, message: Message) -> None:
        counts = message.counts(self.widths)
        self._note(side, kind=kind, call=call, payload_bytes=len(encode(message)), **counts)

    def start(self, count: int, want_caption: bool, deliver: str = "ids") -> Start:
        d = self.decoding
        settings: dict[str, Any] = {"guidance": d.guidance, "temperature": d.temperature}
        settings |= {"top_k": d.top_k, "top_p": d.top_p, "pick": d.cloud}
        return Start(self.caption, count, settings, self.seed, want_caption, deliver)


def _ids(count: int) -> bytes:
    return pack_ids([0] * count)


def _prefill(log: _Log, call: int, count: int) -> None:
    """The cloud encodes the caption and makes the first `count` tokens."""
    log.compute(CLOUD, "caption_encoder", call)
    for _ in log.alone(CLOUD, "cloud", 0, count, call):
        pass


def _base(log: _Log, settings: BaseSettings) -> None:
    call = log.send(log.start(log.count, False, settings.deliver), deadline=False)
    if settings.deliver == "ids":
        _prefill(log, call, log.count)
        log.answer(call, Started(ids=_ids(log.count)))
        return
    log.compute(CLOUD, "caption_encoder", call)
    made = 0
    for size in log.alone(CLOUD, "cloud", 0, log.count, call):
        made += size
        log.answer(call, Tokens(_ids(size)), EMIT if made < log.count else REPLY)


def _open(log: _Log, prefix: int, outline: Outline) -> None:
    """The session's first message, the cloud's prefix, and the caption on the device."""
    here = log.decoding.text_encoder == "device"
    waits = not here or prefix > 0
    call = log.send(log.start(prefix, want_caption=not here), deadline=here if waits else None)
    _prefill(log, call, prefix)
    rows = b"" if here else bytes(2 * log.widths.caption_dim * outline.caption_rows)
    log.answer(call, Started(ids=_ids(prefix), caption_rows=rows))
    if here:
        log.compute(DEVICE, "caption_encoder")


def _decode(log: _Log, settings: MethodSettings, outline: Outline) -> None:
    """Token by token on the device; the outline's uploads are decided by the cloud, in one pass over what it has not seen."""
    prefix, uploads, pending = _prefix(settings, log.sizes), set(outline.uploads), 0
    samples = settings.k // INTERVAL_SAMPLES if isinstance(settings, DiscreteSettings) else 0
    phi = isinstance(settings, CiarSettings) and settings.features != "off"
    if not uploads and not phi and not samples:
        for _ in log.alone(DEVICE, "device", prefix, log.count):
            pass
        return
    for position in range(prefix, log.count):
        log.forward(DEVICE, Forward("device", [0] * (position - log.held.get("device", 0))))
        for _ in range(samples):
            log.compute(DEVICE, "interval_samples")
        if position not in uploads:
            pending += 1
            if phi:
                log.compute(DEVICE, "phi")
            continue
        call = log.send(_verify(settings, pending, log.widths), deadline=True)
        log.forward(CLOUD, Forward("cloud", [0] * (position - log.held.get("cloud", 0))), call=call)
        log.answer(call, Tokens(_ids(1)))
        pending = 0


def _verify(settings: MethodSettings, pending: int, widths: Widths) -> Message:
    features = settings.features if isinstance(settings, CiarSettings) else "off"
    if features == "int8" and pending:
        return Upload(_ids(pending), coarse=bytes(pending * (2 + widths.dim)), candidate=_ids(1))
    size = 0 if features == "off" else 2 * widths.dim * pending
    return Verify(_ids(pending), bytes(size), _ids(1))


def _tree(log: _Log, settings: TreeSettings, outline: Outline) -> None:
    """Rounds of a drafted tree, verified in one pass; the drafter on the device, or in the cloud within one call."""
    on_device = settings.drafter == "device"
    start = log.start(1, False) if on_device else log.start(log.count, False, "stream")
    call = log.send(start, deadline=False)
    log.compute(CLOUD, "caption_encoder", call)
    log.forward(CLOUD, Forward("cloud", outputs="all"), call=call)
    if on_device:
        log.answer(call, Opened(_ids(1), bytes(log.rows * log.widths.bytes_of("prompt_features"))))
    comb = _comb(settings.total_tokens, settings.top_k)
    verified = Forward("cloud", [0] * settings.total_tokens, tree=comb)
    made, fresh, drafted = 1, 1, 0  # tokens; those that the drafter has not seen; positions in its cache
    for accepted in outline.accepted:
        if not on_device:
            log.answer(call, Tokens(_ids(fresh)), EMIT)
        side = DEVICE if on_device else CLOUD
        own = -1 if on_device else call
        first = drafted == 0 and "drafter" not in log.held
        log.forward(side, Forward("drafter", [0] * fresh, caption=first or None, decides=False), drafted, own)
        drafted += fresh - first
        for level in range(1, settings.depth + 1):
            beam = Forward("drafter", [0] * settings.top_k, outputs="all", decides=False)
            log.forward(side, beam, call=own, hidden=_beam_hidden(level, settings.top_k))
        if on_device:
            message = DraftTree(_ids(settings.total_tokens - 1), bytes(comb[1:]))
            call = log.send(message, deadline=False)
        op = Forward("cloud", [0] * settings.total_tokens, outputs="all")
        log.forward(CLOUD, op, keep=made - 1, call=call, hidden=verified.hidden)
        fresh = min(accepted + 1, log.count - made)
        made += fresh
        if on_device:
            size = 0 if made == log.count else 2 * log.widths.dim * log.rows * (accepted + 1)
            log.answer(call, Path(0, accepted, _ids(fresh - accepted), bytes(size)))
    if not on_device:
        log.answer(call, Tokens(_ids(fresh)))


@cache
def _beam_hidden(level: int, teeth: int) -> int:
    """Query-key pairs that the drafter's pass over the comb's nodes of a level leaves out, see `Forward.hidden`."""
    parents = _comb(1 + level * teeth, teeth)[1:]
    return Forward("drafter", [0] * teeth, tree=[parent - 1 for parent in parents]).hidden  # -1: the committed sequence


def _comb(nodes: int, teeth: int) -> list[int]:
    """Parents of a tree of that many nodes: chains below the root, whose own parent is -1."""
    return [-1, *(max(node - teeth, 0) for node in range(1, nodes))]
