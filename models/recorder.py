"""The recorder: runs many sessions in lockstep, batches their waiting passes, and records what each one did.

Time is ignored. Every session advances until both its programs wait for a model; then the kind of work that most
sessions wait for runs for all of them in one batch, and so on. Meanwhile the batches of the other kinds fill up. Each
session gets the results it would get alone, up to floating point in other batch compositions. A decision close to a tie
may therefore differ: recordings count them (`models.methods.session.Decisions`).
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

# Order of the kinds of work for which equally many sessions wait. BATCHED: kinds that are cheaper per session in a batch.
ORDER = ("caption_encoder", "interval_samples", "phi", "device", "drafter", "cloud", "image_decoder")
# An image is decoded as soon as its tokens are there: then its session ends, is saved, and leaves its place to another one.
BATCHED = (*ROLES, "phi")


@dataclass
class _Program:
    """One running generator: the op that it waits for, and the value to resume it with."""

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
        self.inbox: deque[tuple[int, Message]] = deque()  # calls sent and not yet taken up by the cloud
        self.handles: list[Handle] = []
        self.replies: dict[int, Message] = {}
        self.awaiting = -1  # the call the device waits for
        self.kv = dict.fromkeys(ROLES, (False, 0))  # caption in the cache, image positions in the cache
        self.log: tuple[list[dict[str, int]], list[dict[str, int]]] = ([], [])
        self.image: np.ndarray | None = None
        # Tokens in the cloud's cache; None once it held interval features or a tree of drafts.
        self.fed: list[int] | None = []
        self.tree_start = 0  # image positions in the cache before the last tree of drafts
        self.leads: Opening | None = None  # passes that it makes for other sessions as well, until they are made
        self.given: deque[Step] = deque()  # results of its first cloud passes, made by another session
        self.picks: list[tuple[int, float, int]] = []  # per position: what the cloud picked, its nats, and its arg max
        self._draws: dict[str, np.ndarray] = {}  # uniform draws by role, indexed by image position

    @property
    def finished(self) -> bool:
        return self.device is None and self.cloud is None and not self.inbox

    def advance(self) -> None:
        """Run both programs until each waits for a model, for the other one, or is at its end."""
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
        elif not deadline:  # else the program continues with None; the cloud still answers, and the reply is dropped
            raise RecordingError(
                f"{self.spec.method}: call {handle.call} cannot miss a deadline; it is always waited for"
            )

    def _cross(self, side: int, kind: int, call: int, message: Message) -> Message:
        """Encode, count and decode a message: the other side gets values in wire precision."""
        data = encode(message)
        self.note(side, kind=kind, call=call, payload_bytes=len(data), **message.counts(self.widths))
        return decode(data)

    def note(self, side: int, **columns: int) -> None:
        self.log[side].append(columns)

    def request(self, program: _Program, op: Forward) -> PassRequest:
        """Log a forward pass, update the KV state, and return the request: where it starts and how its token is picked."""
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
        # The whole tree is logged; its root is read in any case, other nodes if they are asked for.
        if op.outputs == "some":
            assert op.tree is not None
            self.tree_start = start
            read = op.chain + 1
            return replace(request, op=replace(op, tokens=op.tokens[:read], tree=op.tree[:read]))
        return request

    def resume(self, program: _Program, result: Any) -> None:
        """Resume a program with the result that it waited for."""
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
        """Whether a pass of the cloud feeds what the ones before have picked, after the caption, and nothing else."""
        plain = op.outputs == "last" and op.features is None and op.tree is None and not op.gather and op.keep is None
        return plain and self.fed is not None and [*self.fed, *op.tokens] == [token for token, _, _ in self.picks]

    def _decoding(self, side: int, op: Forward, position: int) -> dict[str, Any]:
        """Guidance, filters and the draw of a pass, as known on the side that runs it."""
        if side == CLOUD:
            opening = self.cloud_state.opening
            assert opening is not None, "the cloud was asked before it was told how to decide"
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
        """The image's tokens; the cloud's where an image without ids was delivered."""
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
        state = self.device_state
        decisions = (state.decisions, self.cloud_state.decisions)
        count = len(self.tokens)
        ops = op_table(*self.log)
        never = set(self.spec.missed_calls) - set(ops["call"][ops["kind"] == AWAIT].tolist())
        if never:
            raise DivergedError(
                f"{self.spec.method}: the session that was to give up the reply to call {min(never)} never waited for it: before that it "
                "chose another token than the unbroken session, as near ties can in another batch; with --max-batch 1 and another --cache "
                "none does"
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
    """Makes recordings with one pair.

    Args:
        pair: the models.
        max_batch: most sessions in flight. Bounds memory: every model has a KV cache of two rows per session, each as
            long as a sequence and, for tree drafts, the largest tree. Also decides which sessions share a pass, so
            decisions close to a tie can change with it.
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
        """Recordings in the order in which sessions finish.

        Raises PromptError for a prompt the pair cannot encode, ScenarioError for settings that the pair cannot serve.
        """
        room = 0
        for spec in specs:  # refuse bad requests before any work is done
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
        """Start a session in a slot; what it shares with others is taken over, or it is the one that makes it."""
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
        """Do one kind of work for all sessions that wait for it: an unbatched kind first, else the most awaited one."""
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
    """Index of the first session that can begin, None where all wait for a shared opening."""
    return next((index for index, planned in enumerate(todo) if planned.ready), None)
