"""Seconds of work: one interface for measured and roofline times."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simulator.protocol.messages import Widths


class Work(NamedTuple):
    """A batch of forward passes as sums over its rows (a row is one sequence; guidance makes two of a session).

    rows: sequences. tokens: new positions. kv_tokens: cached positions read, new ones included. attended: query-key pairs. logits:
    positions whose logits are computed.
    """

    rows: int
    tokens: int
    kv_tokens: int
    attended: int
    logits: int

    @classmethod
    def of_pass(cls, rows: int, new: int, kv: int, logits: int = 1, hidden: int = 0) -> "Work":
        """One session's pass: each of its rows feeds `new` positions after `kv` cached ones and computes logits at `logits` of them.

        Attention is causal, except for the `hidden` query-key pairs per row that a tree of drafts leaves out.
        """
        pairs = new * kv + new * (new + 1) // 2 - hidden
        return cls(rows, rows * new, rows * (kv + new), rows * pairs, rows * logits)


class Costs(Protocol):
    """Times of one model on one piece of hardware.

    power_w: drawn while computing, NaN where unknown. extrapolated: whether any time so far lay outside the measured range.
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

    caption_slots: caption positions a prefill feeds. widths: message widths. drafter: a one-layer drafter on the cloud's
    hardware, None where it is not known; on the device it costs as much as the device's model.
    """

    caption_slots: int
    widths: Widths
    drafter: Costs | None = None
