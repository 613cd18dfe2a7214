"""Prefix sharing: of sessions that begin with the same cloud passes one makes them, the others copy their results and the KV cache.

Draws are keyed by seed, caption, position and purpose, so the tokens that the cloud makes before the device takes part are the same
whatever the device's settings: under every threshold, for every longer prefix, and in base. Sessions of one prompt, seed and decoding
only differ in how many of them they want.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from models.kv_cache import CachedRows
from models.methods.session import Step
from simulator.protocol.families import families, opening_tokens
from simulator.protocol.recording import SessionSpec


@dataclass
class Opening:
    """Shared cloud passes of the sessions of one prompt, seed and decoding.

    Attributes:
        length: Passes that are shared: those of all sessions but the longest.
        expected: Sessions that have yet to take them over.
        slot: Of the session that makes them, once it has begun.
        done: Whether they are made, or given up with `length` 0.
        steps: Their results so far.
        rows: The cloud's cache after the last of them, once they are done.
    """

    length: int
    expected: int
    slot: int | None = None
    done: bool = False
    steps: list[Step] = field(default_factory=list)
    rows: CachedRows | None = None

    def add(self, step: Step) -> None:
        """Keep the result of the next pass, without the batch that it is a part of."""
        states = None if step.states is None else step.states.clone()
        self.steps.append(replace(step, logits=step.logits.clone(), hidden=step.hidden.clone(), states=states))

    def finish(self, rows: CachedRows) -> None:
        """All passes are made. rows: the cache after them."""
        self.rows, self.done = rows, True

    def give_up(self) -> None:
        """The session that leads does something else: every other one makes its own passes."""
        self.length, self.done = 0, True
        self.steps.clear()

    def take(self, length: int) -> tuple[list[Step], CachedRows | None]:
        """Results of the first passes, at most `length`, and the cache after them; the last session to take them leaves nothing behind."""
        taken = self.steps[:length], self.rows
        self.expected -= 1
        if not self.expected:
            self.steps, self.rows = [], None
        return taken


@dataclass(frozen=True)
class Planned:
    """A session to record.

    Attributes:
        spec: The session.
        length: Cloud passes that it begins with.
        opening: Those shared with other sessions, None where there are none.
    """

    spec: SessionSpec
    length: int
    opening: Opening | None

    @property
    def ready(self) -> bool:
        """Whether it can begin: it waits for nobody, or what it shares is made. Of those that share, a long one comes first."""
        opening = self.opening
        if opening is None or opening.done:
            return True
        return self.length >= opening.length if opening.slot is None else self.length <= len(opening.steps)


def plan(specs: Sequence[SessionSpec], image_tokens: int, at_once: int) -> list[Planned]:
    """Sessions in the order to record them in.

    It is the given one, but for sessions of which more than `at_once` different beginnings are under way: they come in groups of so
    many, which bounds what openings keep.
    """
    lengths = [opening_tokens(spec, image_tokens) for spec in specs]
    placed = []
    for number, members in enumerate(families(specs, image_tokens)):
        opening = None
        if len(members) > 1:
            opening = Opening(sorted(lengths[index] for index in members)[-2], len(members) - 1)
        placed += [(number // at_once, index, Planned(specs[index], lengths[index], opening)) for index in members]
    return [planned for _, _, planned in sorted(placed, key=lambda one: one[:2])]
