"""Muon, an optimiser that orthogonalises the momentum of the matrices in a transformer's layers; AdamW for all other parameters.

Source: Jordan et al. 2024, "Muon" (Newton-Schulz iteration and its coefficients); Liu et al. 2025, "Muon is scalable for LLM training"
(scale of the update, so that Muon and AdamW share one learning rate). The iteration runs in the parameters' precision, not in bfloat16,
which brings no speed-up on a CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
SIZE = 0.2  # root mean square of an update's entries at learning rate 1, similar to AdamW's


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with `orthogonal: True`, which hold matrices; AdamW for the other groups."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step with the current gradients; `closure` is not called."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("orthogonal")]
        super().step()
        self.param_groups = groups
        for group in groups:
            if group.get("orthogonal"):
                for matrix in group["params"]:
                    self._turn(matrix, group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state on resuming. AdamW converts the state of its groups, so orthogonal groups are hidden from it."""
        groups = state["param_groups"]
        super().__setstate__({**state, "param_groups": [group for group in groups if not group.get("orthogonal")]})  # type: ignore[no-untyped-call]
        self.param_groups = groups

    @torch.no_grad()
    def _turn(self, matrix: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[matrix], matrix.grad
        if gradient is None:
            return
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonal(gradient.lerp(momentum, MOMENTUM))  # Nesterov's
        matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(
            update, alpha=-group["lr"] * SIZE * max(matrix.shape) ** 0.5
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """Return an approximation of the nearest matrix with orthonormal rows (or columns) to float [M, N].

    Most singular values of the result are within 0.7 .. 1.2.
    """
    first, second, third = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found: Tensor = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = found @ found.T
        found = first * found + (second * square + third * square @ square) @ found
    return found.T if tall else found
