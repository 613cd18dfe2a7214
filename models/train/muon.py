"""Muon, an optimiser that orthogonalises the momentum of the matrices in a transformer's layers; AdamW for all other parameters.

Source: Jordan et al. 2024, "Muon" (Newton-Schulz iteration and its coefficients); Liu et al. 2025, "Muon is scalable for LLM training"
(scale of the update, so that Muon and AdamW share one learning rate). The iteration runs in the parameters' precision, not in bfloat16,
which brings no speed-up on a CPU.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
TOGETHER: tuple[str, ...] = ("cuda",)  # types of devices on which all matrices of one shape are turned together
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
                for matrices in _together([matrix for matrix in group["params"] if matrix.grad is not None]):
                    self._turn(matrices, group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state on resuming. AdamW converts the state of its groups, so orthogonal groups are hidden from it."""
        groups = state["param_groups"]
        super().__setstate__({**state, "param_groups": [group for group in groups if not group.get("orthogonal")]})  # type: ignore[no-untyped-call]
        self.param_groups = groups

    @torch.no_grad()
    def _turn(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        towards = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        updates = list(orthogonal(torch.stack(towards))) if len(towards) > 1 else [orthogonal(towards[0])]
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, updates, alpha=-group["lr"] * SIZE * max(matrices[0].shape) ** 0.5)


def _together(matrices: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Yield the matrices that are turned together: on a GPU all of one shape, in one launch instead of many; else each alone.

    A CPU gains nothing, and rounds products of stacked matrices in another order.
    """
    shapes: dict[Any, list[Tensor]] = {}
    for index, matrix in enumerate(matrices):
        shared = matrix.device.type in TOGETHER
        shapes.setdefault((matrix.shape, matrix.dtype) if shared else index, []).append(matrix)
    return shapes.values()


def orthogonal(matrix: Tensor) -> Tensor:
    """Return an approximation of the nearest matrix with orthonormal rows (or columns) to float [M, N], or to each of [B, M, N].

    Most singular values of the result are within 0.7 .. 1.2.
    """
    first, second, third = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    size = matrix.norm() if matrix.dim() == 2 else torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    found: Tensor = (matrix.mT if tall else matrix) / (size + 1e-7)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = first * found + (second * square + third * square @ square) @ found
    return found.mT if tall else found
