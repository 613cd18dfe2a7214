"""The ops of a session whose passes follow from an outline: its settings, and the choices that they leave open.

Statistical sessions (`simulator.protocol.statistical`) and those of models that predict scale by scale (`models.var.recorder`) are
built here. Sessions that decide token by token are recorded from the methods' programs; a test rebuilds such recordings from their
outlines.

A model that predicts scale by scale (VAR) decides a whole scale in a pass over as many positions. It supports `base`, `device-only` and
`code`, whose prefix is whole scales: CoDe as published. Two prices are slightly inaccurate there: attention within a scale counts half
its pairs, as if it were causal, and the pass after a hand-over also includes logits of the positions before its own scale.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.protocol.messages import (
    DraftTree,
    Message,
    Opened,
    Path,
    Picture,
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
    BaseSettings,
    CiarSettings,
    CodeSettings,
    Decoding,
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
    FROM_FALLBACK,
    REPLY,
    SEND,
    op_table,
)

FREE = ("base", "device-only", "code")  # methods whose passes follow from their settings alone


@dataclass(frozen=True)
class Outline:
    """The input from which the ops of a session follow, in addition to its settings.

    Attributes:
        caption_rows: Rows of the caption that are sent to the device.
        uploads: For a gated method, the positions after the prefix that the cloud decides.
        accepted: For a tree method, the accepted drafts of each round; the last round has no further token if they end the image.
        picture: For base with `deliver: image`, the PNG that the cloud sends.
        missed: For code, whether the reply to the first message missed its deadline, so that the device decodes the whole image.
    """

    caption_rows: int
    uploads: Sequence[int] = ()
    accepted: Sequence[int] = ()
    picture: bytes = b""
    missed: bool = False


def check_scales(name: str, manifest: PairManifest) -> None:
    """Raises ScenarioError for a method that a pair with scales does not support."""
    if manifest.scales and name not in FREE:
        raise ScenarioError(
            f"{name}: decides token by token, {manifest.name} predicts scale by scale; allowed: {', '.join(FREE)}"
        )


def decided_by(settings: MethodSettings, outline: Outline, count: int, scales: Sequence[int] = ()) -> np.ndarray:
    """Return the side that decided each token, uint8 [T]."""
    if isinstance(settings, BaseSettings):
        return np.full(count, FROM_CLOUD, np.uint8)
    if isinstance(settings, TreeSettings):
        after = [who for accepted in outline.accepted for who in [FROM_DEVICE] * accepted + [FROM_CLOUD]]
        found = ([FROM_CLOUD] * count if settings.drafter == "cloud" else [FROM_CLOUD, *after])[:count]
        return np.array(found, np.uint8)
    if outline.missed:
        return np.full(count, FROM_FALLBACK, np.uint8)
    result = np.full(count, FROM_DEVICE, np.uint8)
    result[: cloud_prefix(settings, count, scales)] = FROM_CLOUD
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
    """Return the ops (OP_DTYPE) of the session of `count` tokens with this outline. scales: see `Statistics`."""
    log = _Log(decoding, caption, seed, _sizes(count, scales), widths, missed=outline.missed)
    prefix = cloud_prefix(settings, count, scales)
    if isinstance(settings, TreeSettings):
        _tree(log, settings, outline)
    elif isinstance(settings, BaseSettings):
        _base(log, settings, outline)
    elif decoding.text_encoder == "device" and prefix == 0 and not isinstance(settings, GatedSettings):
        log.compute(DEVICE, "caption_encoder")  # there is no call
        _decode(log, settings, prefix, outline)
    else:
        _open(log, prefix, outline)
        _decode(log, settings, 0 if outline.missed else prefix, outline)
    if not (isinstance(settings, BaseSettings) and settings.deliver == "image"):
        log.compute(DEVICE, "image_decoder")
    return op_table(log.device, log.cloud)


def _sizes(count: int, scales: Sequence[int]) -> list[int]:
    """Return the number of tokens that each pass decides if one model decodes the whole image."""
    return [side * side for side in scales] or [1] * count


def cloud_prefix(settings: MethodSettings, count: int, scales: Sequence[int] = ()) -> int:
    """Return the number of tokens that the cloud decides before the device: whole scales, for a pair with scales."""
    if not isinstance(settings, CodeSettings | GatedSettings):
        return 0
    asked = prefix_length(settings.prefix_rate, count)
    return max((end for end in accumulate(_sizes(count, scales)) if end <= asked), default=0)


class _Log:
    """The ops of one session, and the number of positions in each model's cache."""

    def __init__(
        self,
        decoding: Decoding,
        caption: str,
        seed: int,
        sizes: Sequence[int],
        widths: Widths,
        missed: bool = False,
    ) -> None:
        self.decoding, self.caption, self.seed, self.sizes, self.widths = decoding, caption, seed, sizes, widths
        self.missed = missed
        self.count = sum(sizes)
        self.rows = 2 if decoding.guidance > 1 else 1
        self.device: list[dict[str, int]] = []
        self.cloud: list[dict[str, int]] = []
        self.calls = 0
        # Image positions in the cache, by role. A role without an entry has not fed the caption yet.
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
            decides=int(op.decides and not (self.missed and side == CLOUD)),
            logits_all=int(op.outputs == "all"),
            hidden=hidden,
        )
        self.held[op.role] = start + op.new_positions

    def alone(self, side: int, role: str, first: int, last: int, call: int = -1) -> Iterator[int]:
        """Add the passes in which one model decides tokens `first` to `last`, and yield how many tokens each decides.

        A pass feeds the positions that are not in the cache. The positions of a scale are fed in the pass that decides them; the first
        one has the position of the caption.
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
        """Add a message to the cloud, and return the number of its call.

        Args:
            message: The message.
            deadline: Whether the reply may be given up; None: the reply is not awaited.
        """
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
        return Start(self.caption, count, self.decoding.told, self.seed, want_caption, deliver)


def _ids(count: int) -> bytes:
    return pack_ids([0] * count)


def _prefill(log: _Log, call: int, count: int) -> None:
    """Add the caption encoder in the cloud, and the passes for the first `count` tokens."""
    log.compute(CLOUD, "caption_encoder", call)
    for _ in log.alone(CLOUD, "cloud", 0, count, call):
        pass


def _base(log: _Log, settings: BaseSettings, outline: Outline) -> None:
    call = log.send(log.start(log.count, False, settings.deliver), deadline=False)
    if settings.deliver != "stream":
        _prefill(log, call, log.count)
        if settings.deliver == "image":
            log.compute(CLOUD, "image_decoder", call)
        log.answer(call, Picture(outline.picture) if settings.deliver == "image" else Started(ids=_ids(log.count)))
        return
    log.compute(CLOUD, "caption_encoder", call)
    made = 0
    for size in log.alone(CLOUD, "cloud", 0, log.count, call):
        made += size
        log.answer(call, Tokens(_ids(size)), EMIT if made < log.count else REPLY)


def _open(log: _Log, prefix: int, outline: Outline) -> None:
    """Add the first message of a session, the cloud's prefix, and the caption on the device."""
    here = log.decoding.text_encoder == "device"
    waits = not here or prefix > 0
    call = log.send(log.start(prefix, want_caption=not here), deadline=here if waits else None)
    _prefill(log, call, prefix)
    rows = b"" if here else bytes(2 * log.widths.caption_dim * outline.caption_rows)
    log.answer(call, Started(ids=_ids(prefix), caption_rows=rows))
    if here:
        log.compute(DEVICE, "caption_encoder")


def _decode(log: _Log, settings: MethodSettings, prefix: int, outline: Outline) -> None:
    """Add the passes on the device after `prefix` tokens. The cloud decides the outline's uploads, each in one pass over all tokens that
    are not in its cache."""
    uploads, pending = set(outline.uploads), 0
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
    """Add the rounds of a tree method. The drafter is on the device, with a call per round, or in the cloud, within one call."""
    on_device = settings.drafter == "device"
    start = log.start(1, False) if on_device else log.start(log.count, False, "stream")
    call = log.send(start, deadline=False)
    log.compute(CLOUD, "caption_encoder", call)
    log.forward(CLOUD, Forward("cloud", outputs="all"), call=call)
    if on_device:
        log.answer(call, Opened(_ids(1), bytes(log.rows * log.widths.bytes_of("prompt_features"))))
    comb = _comb(settings.total_tokens, settings.top_k)
    verified = Forward("cloud", [0] * settings.total_tokens, tree=comb)
    made, fresh, drafted = 1, 1, 0  # tokens; tokens that the drafter has not seen; positions in the drafter's cache
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
    """Return the query-key pairs that are masked in the drafter's pass over a level of the comb, see `Forward.hidden`."""
    parents = _comb(1 + level * teeth, teeth)[1:]
    return Forward("drafter", [0] * teeth, tree=[parent - 1 for parent in parents]).hidden  # -1: the committed sequence


def _comb(nodes: int, teeth: int) -> list[int]:
    """Return the parents of a comb with this many nodes: `teeth` chains below the root, whose parent is -1."""
    return [-1, *(max(node - teeth, 0) for node in range(1, nodes))]
