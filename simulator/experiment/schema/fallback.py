"""`fallback:` of a scenario: what a device does whose reply is late."""

from typing import Literal

from pydantic import Field, model_validator

from simulator.core.part import Part
from simulator.core.settings import refuse
from simulator.engine.fallback import Fallback


class FallbackPolicy(Part):
    """What a device does when a reply that it could do without is late; for all other replies it waits.

    wait: waits as long as it takes. device: stops waiting after `deadline_ms` and finishes the image alone. retry: asks again on a new
    connection, each time with a longer wait, `attempts` times in all; `then` says what follows the last.

    Attributes:
        policy: wait, device or retry.
    """

    policy: Literal["wait", "device", "retry"] = "wait"
    deadline_ms: float | None = Field(
        default=None, gt=0, le=1e9, description="time from the start of a wait; required by device and retry"
    )
    attempts: int = Field(
        default=5, ge=2, le=1000, description="retry: how often a request is sent, including the first time"
    )
    then: Literal["device", "wait"] = Field(default="device", description="retry: what follows the last attempt")

    @model_validator(mode="after")
    def _timed(self) -> "FallbackPolicy":
        if self.policy != "wait" and self.deadline_ms is None:
            refuse(f"is missing: policy {self.policy} needs to know how long to wait", "deadline_ms")
        return self

    def rule(self) -> Fallback | None:
        """Return the policy in seconds, or None for waiting."""
        if self.policy == "wait":
            return None
        assert self.deadline_ms is not None
        if self.policy == "device":
            return Fallback(self.deadline_ms * 1e-3)
        return Fallback(self.deadline_ms * 1e-3, self.attempts, self.then == "device")
