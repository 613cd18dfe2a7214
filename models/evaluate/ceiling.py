"""Empirical upper bound for uncertainty scores: a small network trained to predict the events, tested on other prompts.

Its inputs are the device's hidden states and largest log-probabilities, and nothing from the cloud. No method uses it:
it estimates how well any score of the same device can predict the events.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulator.core.rng import stream

CEILING = "ceiling"
TOP = 32  # largest log-probabilities in the input
WIDTH = 256
BATCH = 512
STEPS = 1200
CHECK_EVERY = 100


class Ceiling:
    """A network with one output per event: `differs`, `tv`, `nll`. Build it with `train`."""

    names = ("differs", "tv", "nll")

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        self.network, self.mean, self.std = network, mean, std

    @staticmethod
    def inputs(hidden: Tensor, logits: Tensor) -> Tensor:
        """Return the network's inputs float32 [..., F], from hidden states [..., H] and guided logits [..., V].

        They are the hidden states, the `TOP` largest log-probabilities, the largest probability and the entropy in nats.
        """
        log_p = logits.float().log_softmax(-1)
        top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1).values
        nats = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
        return torch.cat([hidden.float(), top.clamp_min(-20), top[..., :1].exp(), nats], dim=-1)

    @classmethod
    def train(
        cls, data: Sequence[tuple[np.ndarray, ...]], seed: int, progress: Callable[[str, int, int], None]
    ) -> "Ceiling":
        """Train on rows (inputs [T, F], differs, tv, nll [T] each), one per prompt.

        tv and nll become events by their medians over these prompts. The weights kept are those with the lowest loss on
        one prompt in eight, which is not trained on.

        Args:
            data: one row per prompt.
            seed: keys initial weights and batches.
            progress: called with (text, step, steps).
        """
        inputs = torch.from_numpy(np.stack([row[0] for row in data]))  # [G, T, F]
        values = torch.from_numpy(np.stack([np.stack(row[1:], axis=-1) for row in data]))  # [G, T, 3]
        middle = values.flatten(0, 1).median(0).values
        targets = torch.cat([values[..., :1], (values[..., 1:] > middle[1:]).float()], dim=-1)
        checks = max(1, len(data) // 8)
        mean, std = inputs[checks:].mean((0, 1)), inputs[checks:].std((0, 1)) + 1e-6
        scaled = (inputs - mean) / std
        check_x, check_y = scaled[:checks].flatten(0, 1), targets[:checks].flatten(0, 1)
        x, y = scaled[checks:].flatten(0, 1), targets[checks:].flatten(0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream(seed, "evaluate.ceiling.init").integers(2**62)))
            network = nn.Sequential(
                nn.Linear(x.shape[1], WIDTH),
                nn.GELU(),
                nn.Dropout(0.2),
                nn.Linear(WIDTH, WIDTH),
                nn.GELU(),
                nn.Dropout(0.2),
                nn.Linear(WIDTH, len(cls.names)),
            )
            optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
            best, kept = float("inf"), {key: value.clone() for key, value in network.state_dict().items()}
            for step in range(STEPS):
                rows = torch.from_numpy(stream(seed, "evaluate.ceiling.batch", step).integers(len(x), size=BATCH))
                for group in optimiser.param_groups:
                    group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / STEPS))
                optimiser.zero_grad(set_to_none=True)
                loss = F.binary_cross_entropy_with_logits(network(x[rows]), y[rows])
                torch.autograd.backward(loss)
                optimiser.step()
                if (step + 1) % CHECK_EVERY == 0:
                    progress("training the ceiling", step + 1, STEPS)
                    network.eval()
                    with torch.no_grad():
                        checked = float(F.binary_cross_entropy_with_logits(network(check_x), check_y))
                    network.train()
                    if checked < best:
                        best, kept = checked, {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(kept)
        return cls(network.eval(), mean, std)

    def scores(self, hidden: Tensor, logits: Tensor) -> dict[str, np.ndarray]:
        """Return the log-odds of each event, float [B, T], by name `ceiling.<event>`."""
        inputs = (self.inputs(hidden, logits).cpu() - self.mean) / self.std
        found = self.network(inputs)  # [B, T, 3]
        return {f"{CEILING}.{name}": found[..., index].detach().numpy() for index, name in enumerate(self.names)}
