"""Seconds of work: one interface for measured and roofline times."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simulator.protocol.messages import Widths


class Work(NamedTuple):
    """A batch of forward passes as sums over its rows (a row is one sequence; guidance makes two of a session).

    Attributes:
        rows: Sequences.
        tokens: New positions.
        kv_tokens: Cached positions read, new ones included.
        attended: Query-key pairs.
        logits: Positions whose logits are computed.
    """

    rows: int
    tokens: int
    kv_tokens: int
    attended: int
    logits: int

    @classmethod
    def of_pass(cls, rows: int, new: int, kv: int, logits: int = 1, hidden: int = 0) -> "Work":
        """One session's pass, with causal attention.

        Args:
            rows: Its sequences.
            new: Positions that each row feeds.
            kv: Positions that each row has in the cache before.
            logits: Positions of a row whose logits are computed.
            hidden: Query-key pairs of a row that a tree of drafts leaves out.
        """
        pairs = new * kv + new * (new + 1) // 2 - hidden
        return cls(rows, rows * new, rows * (kv + new), rows * pairs, rows * logits)


class Costs(Protocol):
    """Times of one model on one piece of hardware.

    Attributes:
        power_w: Drawn while computing, NaN where unknown.
        extrapolated: Whether any time so far lay outside the measured range.
    """

    @property
    def power_w(self) -> float: ...

    @property
    def extrapolated(self) -> bool: ...

    def pass_seconds(self, work: Work) -> float:
        """Seconds of one batched forward pass (never below the launch overhead of the runtime)."""
        ...

    def compute_seconds(self, kind: str) -> float:
        """Seconds of one `Compute` of the given kind (`ops.COMPUTE_KINDS`), batch 1."""
        ...


@dataclass(frozen=True)
class Pricing:
    """Shape at which recorded passes and messages are priced: the pair's own, or that of the models it stands for.

    Attributes:
        caption_slots: Caption positions that a prefill feeds.
        widths: Of messages.
        drafter: A feature-level drafter on the cloud's hardware, None where it is not known.
        device_drafter: The same on the device's hardware; None: it costs as much as the device's model, whose times were measured.
    """

    caption_slots: int
    widths: Widths
    drafter: Costs | None = None
    device_drafter: Costs | None = None
