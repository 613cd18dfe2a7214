"""The common interface of measured and roofline compute times."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simulator.protocol.messages import Widths


class Work(NamedTuple):
    """A batched forward pass as sums over its rows. A row is one sequence; with guidance a session has two.

    Attributes:
        rows: Rows.
        tokens: New positions.
        kv_tokens: Positions in the cache, new ones included.
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
        """Return the work of one session's pass, with causal attention.

        Args:
            rows: Rows of the pass.
            new: New positions per row.
            kv: Cached positions per row before the pass.
            logits: Positions per row whose logits are computed.
            hidden: Causal query-key pairs per row that the mask of a draft tree excludes.
        """
        pairs = new * kv + new * (new + 1) // 2 - hidden
        return cls(rows, rows * new, rows * (kv + new), rows * pairs, rows * logits)


class Costs(Protocol):
    """Compute times of one model on one piece of hardware.

    Attributes:
        power_w: Power drawn while computing; NaN if unknown.
        extrapolated: Whether any time returned so far lies outside the measured range.
    """

    @property
    def power_w(self) -> float: ...

    @property
    def extrapolated(self) -> bool: ...

    def pass_seconds(self, work: Work) -> float:
        """Return the seconds of one batched forward pass."""
        ...

    def compute_seconds(self, kind: str) -> float:
        """Return the seconds of one `Compute` of the given kind (`ops.COMPUTE_KINDS`) at batch size 1."""
        ...


@dataclass(frozen=True)
class Pricing:
    """The shape at which recorded passes and messages are priced: the pair's own, or that of another model (as if).

    Attributes:
        caption_slots: Caption positions in a prefill.
        widths: Widths of the parts of messages.
        drafter: Costs of a feature-level drafter on the cloud's hardware; None if a measured profile has no times of it.
        device_drafter: The same on the device's hardware.
    """

    caption_slots: int
    widths: Widths
    drafter: Costs | None = None
    device_drafter: Costs | None = None
