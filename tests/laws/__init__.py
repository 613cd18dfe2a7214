"""Laws: properties that must hold in every scenario, tried on random ones.

    CIAR_SIM_LAWS=10 python -m pytest tests/laws     # ten times as many examples, about 5,000, drawn anew

`make test` tries about 500, the same ones every time.

Monotone laws compare two simulations of the same recordings with the same seeds, so that every message draws the same random numbers
in both. They hold for every single request if a message that starts later never arrives earlier. This is true for varying rates,
independent losses, framing, handshakes and normal jitter. In the following cases it is not, and the law holds only for means over many
requests:

- Two loss rates above 0 are compared: the drawn distances between losses differ.
- A timeout depends on the round trips measured so far: a later message may know one more of them, and be retransmitted earlier.
- Losses come in bursts, which end by time: a later packet may miss the burst.
- A congestion window grows with the data in flight, and is halved by time: a longer round trip can keep it larger.
- A buffer drops a message, which is retransmitted after timeouts: a later message may find room at once.
- A radio falls asleep by time: a later message may keep it awake for the next one.
- The jitter is lognormal, gamma or Pareto: the shape of the distribution changes with the mean.
- Calls of several sessions share a batch: one more session can change which calls are batched together.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

_TIMES = int(os.environ.get("CIAR_SIM_LAWS", "0"))


def law(examples: int, shrink: bool = True) -> Callable[[Any], Any]:
    """Return hypothesis settings for a law.

    Args:
        examples: Number of examples in `make test`. If `CIAR_SIM_LAWS` is set, that many times more, drawn anew.
        shrink: Whether to reduce a failing example; turned off where one example takes a second.
    """
    return settings(
        max_examples=examples * max(1, _TIMES),
        derandomize=not _TIMES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
