"""The recorder: runs many sessions together, batches the passes that they wait for, and records what each session did.

Time is ignored. Every session advances until its programs wait for a model. Then the kind of work that most sessions wait for runs for
all of them in one batch, while the batches of the other kinds fill up. Each session gets the results that it would get alone, up to
floating-point differences between batch compositions. A near tie may therefore be decided differently; recordings count them
(`models.methods.session.Decisions`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.backend import Backend, PassRequest
from models.methods import CloudState, DeviceState, Method, make_method
from models.methods.session import Step
from models.openings import Opening, Planned, plan
from models.pair import Pair
from models.quality.likelihood import score_tokens
from simulator.core.errors import DivergedError, PromptError, RecordingError
from simulator.core.rng import draws
from simulator.protocol.messages import Message, decode, encode
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.ops import COMPUTE_KINDS, ROLES, Await, Call, Compute, Emit, Forward, Handle, Send
from simulator.protocol.recording import (
    AWAIT,
    CLOUD,
    COMPUTE,
    DEVICE,
    EMIT,
    FORWARD,
    FROM_CLOUD,
    REPLY,
    SCORES,
    SEND,
    Recording,
    SessionSpec,
    op_table,
)

# Order in which kinds of work run if equally many sessions wait for them.
ORDER = ("caption_encoder", "interval_samples", "phi", "device", "drafter", "cloud", "image_decoder")
# Kinds that cost less per session in a batch. The others run at once: a decoded image ends its session and frees its slot.
BATCHED = (*ROLES, "phi")


@dataclass
class _Program:
    """One running generator.

    Attributes:
        side: DEVICE or CLOUD.
        run: the generator.
        call: the call that a cloud program answers, -1 for the device.
        waits: the op that it waits for.
        value: the value to resume it with.
    """

    side: int
    run: Any
    call: int = -1
    waits: Forward | Compute | None = None
    value: Any = None


class LiveSession:
    """One session being recorded: two programs, the messages between them, and the log of their ops."""

    def __init__(self, spec: SessionSpec, method: Method, pair: Pair, slot: int) -> None:
        self.spec, self.method, self.slot = spec, method, slot
        manifest = pair.manifest
        self.widths = manifest.widths
        count, width = manifest.image_tokens, manifest.caption_dim
        decoding = Decoding.model_validate(spec.decoding)
        self.device_state = DeviceState(count, width, caption=spec.prompt, decoding=decoding, seed=spec.seed)
        self.cloud_state = CloudState(count, width)
        self.device: _Program | None = _Program(DEVICE, method.device(self.device_state))
        self.cloud: _Program | None = None
        self.inbox: deque[tuple[int, Message]] = deque()  # calls that the cloud has not begun to answer
        self.handles: list[Handle] = []
        self.replies: dict[int, Message] = {}
        self.awaiting = -1  # the call the device waits for
        self.kv = dict.fromkeys(ROLES, (False, 0))  # caption in the cache, image positions in the cache
        self.log: tuple[list[dict[str, int]], list[dict[str, int]]] = ([], [])
        self.image: np.ndarray | None = None
        # Tokens in the cloud's cache; None once it has held interval features or a draft tree.
        self.fed: list[int] | None = []
        self.tree_start = 0  # image positions in the cache before the last draft tree
        self.leads: Opening | None = None  # passes that it runs for other sessions too, until they are done
        self.given: deque[Step] = deque()  # results of its first cloud passes, run by another session
        self.picks: list[tuple[int, float, int]] = []  # per position: the cloud's token, its nats, its arg max
        self._draws: dict[str, np.ndarray] = {}  # uniform draws by role, indexed by image position

    @property
    def finished(self) -> bool:
        """Whether both programs have ended and no call is waiting."""
        return self.device is None and self.cloud is None and not self.inbox

    def advance(self) -> None:
        """Run both programs until each waits for a model or for the other one, or has ended."""
        moved = True
        while moved:
            moved = False
            if self.device is not None and self.device.waits is None and self.awaiting < 0:
                self._advance_device(self.device)
                moved = True
            if self.cloud is None and self.inbox:
                call, message = self.inbox.popleft()
                self.cloud = _Program(CLOUD, self.method.cloud(self.cloud_state, message), call)
            if self.cloud is not None and self.cloud.waits is None:
                self._advance_cloud(self.cloud)
                moved = True
            if self.given and self.cloud is not None and isinstance(self.cloud.waits, Forward):
                if self._opens(self.cloud.waits):
                    self.request(self.cloud, self.cloud.waits)
                    self._receive(self.cloud, self.given.popleft())
                    moved = True
                else:
                    self.given.clear()
            if self.awaiting in self.replies:
                assert self.device is not None
                self.device.value = self.replies.pop(self.awaiting)
                self.awaiting = -1
                moved = True

    def _advance_device(self, program: _Program) -> None:
        try:
            op = program.run.send(program.value)
        except StopIteration:
            self.device = None
            return
        program.value = None
        match op:
            case Forward() | Compute():
                program.waits = op
            case Send(message):
                program.value = self._send(message)
            case Call(message, deadline):
                self._await(self._send(message), deadline)
            case Await(handle, deadline):
                self._await(handle, deadline)
            case _:
                raise TypeError(f"{self.spec.method}: a device program may not yield {op!r}")

    def _advance_cloud(self, program: _Program) -> None:
        try:
            op = program.run.send(program.value)
        except StopIteration as stop:
            self.replies[program.call] = self._cross(CLOUD, REPLY, program.call, stop.value)
            self.cloud = None
            return
        program.value = None
        match op:
            case Forward() | Compute():
                program.waits = op
            case Emit(part):
                self.handles[program.call].parts.append(self._cross(CLOUD, EMIT, program.call, part))
            case _:
                raise TypeError(f"{self.spec.method}: a cloud program may not yield {op!r}")

    def _send(self, message: Message) -> Handle:
        handle = Handle(len(self.handles))
        self.handles.append(handle)
        self.inbox.append((handle.call, self._cross(DEVICE, SEND, handle.call, message)))
        return handle

    def _await(self, handle: Handle, deadline: bool) -> None:
        self.note(DEVICE, kind=AWAIT, what=int(deadline), call=handle.call)
        if handle.call not in self.spec.missed_calls:
            self.awaiting = handle.call
        elif not deadline:  # with one, the program continues with None, and the cloud's reply is dropped
            raise RecordingError(
                f"{self.spec.method}: call {handle.call} cannot miss a deadline; it is always waited for"
            )

    def _cross(self, side: int, kind: int, call: int, message: Message) -> Message:
        """Encode, log and decode a message: the other side gets values in wire precision."""
        data = encode(message)
        self.note(side, kind=kind, call=call, payload_bytes=len(data), **message.counts(self.widths))
        return decode(data)

    def note(self, side: int, **columns: int) -> None:
        """Log one op; columns: those of `OP_DTYPE`."""
        self.log[side].append(columns)

    def request(self, program: _Program, op: Forward) -> PassRequest:
        """Log a forward pass, update the KV state, and return the request: its start and how its token is picked."""
        if op.role == "cloud" and self.leads is not None and not self._opens(op):
            self.leads.give_up()
            self.leads = None
        if op.revisit:
            assert op.tree is not None
            start = self.tree_start + len(op.tree) - 1
            return PassRequest(self.slot, op, start, **self._decoding(program.side, op, start + 1))
        has_caption, held = self.kv[op.role]
        keep = held if op.keep is None else op.keep
        assert 0 <= keep <= held, f"{self.spec.method} keeps {keep} positions of a cache that holds {held}"
        assert all(0 <= source < held for source in op.gather), (
            f"{self.spec.method} gathers {op.gather} of a cache that holds {held}"
        )
        start = keep + len(op.gather)
        position = start + op.new_positions  # of the token this pass yields
        request = PassRequest(self.slot, op, start, **self._decoding(program.side, op, position))
        self.note(
            program.side,
            kind=FORWARD,
            what=ROLES.index(op.role),
            call=program.call,
            rows=request.rows,
            caption=int(op.caption is not None),
            new_tokens=op.new_positions,
            kv_caption=int(has_caption),
            kv_tokens=start,
            decides=int(op.decides and program.call not in self.spec.missed_calls),
            logits_all=int(op.outputs != "last"),
            hidden=op.hidden,
        )
        self.kv[op.role] = (has_caption or op.caption is not None, position)
        if op.role == "cloud":
            chain = self.fed is not None and op.features is None and op.tree is None and not op.gather
            self.fed = [*self.fed[:start], *op.tokens] if chain and self.fed is not None else None
        # The log has the whole tree. Only the chain and the root are computed now; other nodes when `revisit` requests them.
        if op.outputs == "some":
            assert op.tree is not None
            self.tree_start = start
            read = op.chain + 1
            return replace(request, op=replace(op, tokens=op.tokens[:read], tree=op.tree[:read]))
        return request

    def resume(self, program: _Program, result: Any) -> None:
        """Give a program the result that it waited for, and advance both programs."""
        self._receive(program, result)
        self.advance()

    def _receive(self, program: _Program, result: Any) -> None:
        if isinstance(program.waits, Forward) and program.waits.role == "cloud":
            if self.leads is not None:
                self.leads.add(result)
            if self.fed is not None:
                before = len(self.fed)
                unknown = [(-1, np.nan, -1)] * (before - len(self.picks))
                self.picks = [*self.picks[:before], *unknown, (result.token, result.nll, result.best)]
        program.value, program.waits = result, None

    def _opens(self, op: Forward) -> bool:
        """Whether a cloud pass feeds exactly the tokens that the previous passes picked, after the caption."""
        plain = op.outputs == "last" and op.features is None and op.tree is None and not op.gather and op.keep is None
        return plain and self.fed is not None and [*self.fed, *op.tokens] == [token for token, _, _ in self.picks]

    def _decoding(self, side: int, op: Forward, position: int) -> dict[str, Any]:
        """Return guidance, filters and the draw of a pass, as the side that runs it knows them."""
        if side == CLOUD:
            opening = self.cloud_state.opening
            assert opening is not None, "the cloud has no decoding settings before the session is opened"
            settings, seed, caption = dict(opening.decoding), opening.seed, opening.caption
            sampled = settings.pop("pick") == "sampled"
        else:
            d, seed, caption = self.device_state.decoding, self.spec.seed, self.spec.prompt
            sampled, top_p = d.local_sampling
            settings = {"guidance": d.guidance, "temperature": d.temperature, "top_k": d.top_k, "top_p": top_p}
        if op.role == "drafter" or op.outputs != "last" or not sampled:
            return {**settings, "u": None}
        if op.role not in self._draws:
            self._draws[op.role] = draws(seed, self.device_state.image_tokens + 1, "token", op.role, caption)
        return {**settings, "u": float(self._draws[op.role][position])}

    @property
    def tokens(self) -> list[int]:
        """The image's tokens; the cloud's if the image was delivered without ids."""
        return self.device_state.tokens or self.cloud_state.tokens

    @property
    def own_quality(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Result of `score_tokens` if the cloud picked every token in order without interval features; else None."""
        if self.fed != self.tokens[:-1] or [token for token, _, _ in self.picks] != self.tokens:
            return None
        return np.array([nats for _, nats, _ in self.picks], np.float32), np.array(
            [best for _, _, best in self.picks], np.uint16
        )

    def recording(self, quality: tuple[np.ndarray, np.ndarray]) -> Recording:
        """Return the recording of the finished session.

        Args:
            quality: result of `score_tokens` for its tokens.

        Raises:
            DivergedError: the session never waited for a call whose reply it was to give up.
        """
        state = self.device_state
        decisions = (state.decisions, self.cloud_state.decisions)
        count = len(self.tokens)
        ops = op_table(*self.log)
        never = set(self.spec.missed_calls) - set(ops["call"][ops["kind"] == AWAIT].tolist())
        if never:
            raise DivergedError(
                f"{self.spec.method}: the session that should give up the reply to call {min(never)} never waited for it, because an "
                "earlier near tie had another outcome than in the original session, which ran in another batch; --max-batch 1 with a new "
                "--cache avoids this"
            )
        assert self.image is not None
        return Recording(
            ops=ops,
            tokens=np.asarray(self.tokens, np.uint16),
            decided_by=np.asarray(state.decided_by or [FROM_CLOUD] * count, np.uint8),
            scores=np.stack(state.scores).astype(np.float32)
            if state.scores
            else np.full((count, len(SCORES)), np.nan, np.float32),
            image=self.image,
            nll=quality[0],
            argmax=quality[1],
            widths=self.widths,
            meta={
                "spec": dict(self.spec.__dict__),
                "decisions": sum(side.count for side in decisions),
                "near_ties": sum(side.near_ties for side in decisions),
            },
        )


@dataclass
class _Waiting:
    session: LiveSession
    program: _Program
    op: Any


class Recorder:
    """Records sessions with one pair.

    Args:
        pair: the models.
        max_batch: most sessions in flight. It bounds memory: every model has a KV cache of two rows per session, each as
            long as a sequence plus, for tree drafts, the largest tree. It also determines which sessions share a pass, so
            near ties can change with it.
        progress: called with (sessions finished, all sessions, tokens decided, all tokens).
    """

    def __init__(
        self, pair: Pair, max_batch: int = 64, progress: Callable[[int, int, int, int], None] | None = None
    ) -> None:
        self.pair = pair
        self.max_batch = max_batch
        self.progress = progress or (lambda done, sessions, decided, tokens: None)

    @torch.inference_mode()
    def record(self, specs: Sequence[SessionSpec]) -> Iterator[tuple[SessionSpec, Recording]]:
        """Yield recordings in the order in which sessions finish.

        Raises:
            PromptError: the pair cannot encode a prompt.
            ScenarioError: the pair cannot run a method with its settings.
            WeightsError: the pair lacks a model that a method needs.
            RecordingError: a call without a deadline is to miss it, or (DivergedError) is never made.
        """
        room = 0
        for spec in specs:  # refuse bad sessions before any work is done
            try:
                self.pair.text.encode(spec.prompt)
            except PromptError as error:
                error.prompt = spec.prompt
                raise
            settings = METHODS[spec.method].settings.model_validate(spec.settings)
            settings.check(Decoding.model_validate(spec.decoding), self.pair.manifest)
            room = max(room, settings.draft_slots)
            assert spec.revision == METHODS[spec.method].revision_of(settings)
        slots = min(self.max_batch, max(len(specs), 1))
        backend = Backend(self.pair, slots, spare=room)
        tokens = self.pair.manifest.image_tokens
        todo, free = plan(specs, tokens, slots), list(range(slots - 1, -1, -1))
        active: list[LiveSession] = []
        finished = 0
        while todo or active:
            while free and (index := _first_ready(todo)) is not None:
                active.append(self._begin(backend, todo.pop(index), free.pop()))
            done = [session for session in active if session.finished]
            if done:
                active = [session for session in active if not session.finished]
                scored = iter(score_tokens(self.pair, [(s.spec, s.tokens) for s in done if s.own_quality is None]))
                for session in done:
                    if session.leads is not None:
                        session.leads.give_up()
                    quality = session.own_quality or next(scored)
                    free.append(session.slot)
                    finished += 1
                    yield session.spec, session.recording(quality)
                free.sort(reverse=True)
                continue
            self._work(backend, active)
            in_flight = sum(max(len(s.device_state.tokens), len(s.cloud_state.tokens)) for s in active)
            self.progress(finished, len(specs), finished * tokens + in_flight, len(specs) * tokens)

    def _begin(self, backend: Backend, planned: Planned, slot: int) -> LiveSession:
        """Start a session in a slot. It copies the passes that it shares with others, or is the one that runs them."""
        session = LiveSession(
            planned.spec, make_method(planned.spec.method, planned.spec.settings, self.pair), self.pair, slot
        )
        opening = planned.opening
        if opening is not None:
            if opening.slot is None:
                opening.slot, session.leads = slot, opening
            else:
                steps, rows = opening.take(planned.length)
                session.given.extend(steps)
                if not opening.done:
                    rows = backend.opening_rows(opening.slot, planned.length)
                if rows is not None:
                    backend.open_with(slot, rows)
        session.advance()
        return session

    def _work(self, backend: Backend, active: list[LiveSession]) -> None:
        """Run one kind of work for all sessions that wait for it: an unbatched kind first, else the one most sessions wait for."""
        waiting: dict[str, list[_Waiting]] = {}
        for session in active:
            for program in (session.device, session.cloud):
                if program is not None and program.waits is not None:
                    op = program.waits
                    waiting.setdefault(op.role if isinstance(op, Forward) else op.kind, []).append(
                        _Waiting(session, program, op)
                    )
        kind = min(waiting, key=lambda kind: (kind in BATCHED, -len(waiting[kind]), ORDER.index(kind)))
        group = sorted(waiting[kind], key=lambda w: w.session.slot)
        if kind in ROLES:
            results: Sequence[Any] = backend.forward(kind, [w.session.request(w.program, w.op) for w in group])
        else:
            results = backend.compute(kind, [w.op.payload for w in group])
            for w, result in zip(group, results, strict=True):
                w.session.note(w.program.side, kind=COMPUTE, what=COMPUTE_KINDS.index(kind), call=w.program.call)
                if kind == "image_decoder":
                    w.session.image = result
        for w, result in zip(group, results, strict=True):
            w.session.resume(w.program, result)
            opening = w.session.leads
            if opening is not None and len(opening.steps) == opening.length:
                opening.finish(backend.opening_rows(w.session.slot, opening.length))
                w.session.leads = None


def _first_ready(todo: Sequence[Planned]) -> int | None:
    """Return the index of the first session that can begin; None if all wait for a shared opening."""
    return next((index for index, planned in enumerate(todo) if planned.ready), None)
