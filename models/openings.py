"""Prefix sharing: sessions that begin with the same cloud passes run them once and copy the results and the KV cache.

Draws are keyed by seed, caption, position and purpose. So the tokens that the cloud decides before the device takes part do not depend
on the device's settings: they are the same for every threshold, for every longer prefix, and in `base`. Sessions with the same prompt,
seed and decoding differ only in how many of these tokens they use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from models.kv_cache import CachedRows
from models.methods.session import Step
from simulator.protocol.families import families, opening_tokens
from simulator.protocol.recording import SessionSpec


@dataclass
class Opening:
    """The shared first cloud passes of the sessions with one prompt, seed and decoding.

    Attributes:
        length: Number of shared passes: the second largest number of first passes among the sessions.
        expected: Sessions that have not copied the results yet.
        slot: Slot of the session that runs the passes, once it has begun.
        done: Whether all passes are run, or abandoned with `length` 0.
        steps: Results so far.
        rows: The cloud's cache rows after the last pass, once all are run.
    """

    length: int
    expected: int
    slot: int | None = None
    done: bool = False
    steps: list[Step] = field(default_factory=list)
    rows: CachedRows | None = None

    def add(self, step: Step) -> None:
        """Store the result of the next pass; tensors are cloned, so that the batch's memory is freed."""
        states = None if step.states is None else step.states.clone()
        self.steps.append(replace(step, logits=step.logits.clone(), hidden=step.hidden.clone(), states=states))

    def finish(self, rows: CachedRows) -> None:
        """Mark all passes as run. rows: the cloud's cache rows after them."""
        self.rows, self.done = rows, True

    def give_up(self) -> None:
        """Abandon sharing, because the session that runs the passes diverged from them: every other session runs its own."""
        self.length, self.done = 0, True
        self.steps.clear()

    def take(self, length: int) -> tuple[list[Step], CachedRows | None]:
        """Return the results of at most `length` first passes, and the cache rows if all passes are run.

        The last expected session's call frees both.
        """
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
        length: Number of cloud passes that it begins with.
        opening: The passes shared with other sessions; None if no other session shares them.
    """

    spec: SessionSpec
    length: int
    opening: Opening | None

    @property
    def ready(self) -> bool:
        """Whether it can begin: it shares nothing, or the passes that it copies are run. The first to begin has to run all of them."""
        opening = self.opening
        if opening is None or opening.done:
            return True
        return self.length >= opening.length if opening.slot is None else self.length <= len(opening.steps)


def plan(specs: Sequence[SessionSpec], image_tokens: int, at_once: int) -> list[Planned]:
    """Return the sessions in the order in which to record them.

    Sessions that begin with the same passes form a family. Families are recorded in groups of `at_once`, which bounds the memory of
    their openings. Within a group, sessions keep the given order.
    """
    lengths = [opening_tokens(spec, image_tokens) for spec in specs]
    placed = []
    for number, members in enumerate(families(specs, image_tokens)):
        opening = None
        if len(members) > 1:
            opening = Opening(sorted(lengths[index] for index in members)[-2], len(members) - 1)
        placed += [(number // at_once, index, Planned(specs[index], lengths[index], opening)) for index in members]
    return [planned for _, _, planned in sorted(placed, key=lambda one: one[:2])]
