"""CIAR's interval projection phi: it computes the interval feature that the device sends with each token it decided.

Source: CIAR section 3.3, f^I = phi(concat(f, P)), which the cloud adds to the token's embedding: E(x) + f^I. The layers
are assumption A8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class IntervalProjection(nn.Module):
    """Two layers with a bottleneck: fc2(gelu_tanh(fc1 concat(f, lower, upper))).

    fc2 is initialised to zero, so that an untrained phi does not change the cloud model (assumption A8).
    """

    def __init__(self, dim: int, vocab_size: int, bottleneck: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim + 2 * vocab_size, bottleneck)
        self.fc2 = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, hidden: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Return f^I [..., D] from the hidden state f [..., D] that produced a token and its interval [..., V] (assumption A7)."""
        dtype = self.fc1.weight.dtype
        x = torch.cat([hidden.to(dtype), lower.to(dtype), upper.to(dtype)], dim=-1)  # [..., D + 2V]
        projected: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return projected
