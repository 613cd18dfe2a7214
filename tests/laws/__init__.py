"""Laws: what must hold in every scenario, tried on random ones.

    CIAR_SIM_LAWS=10 python -m pytest tests/laws     # ten times as many examples, some 4,000, drawn anew

`make test` tries some 400, the same ones every time.

Monotone laws compare two simulations of the same recordings with the same seeds, so that every message draws the same random numbers
in both. They hold for every single request where a later start never lets a message arrive earlier. That is so for rates that vary,
for independent losses, framing, handshakes and normal jitter. It is not so, and the law holds for means over many requests only, where

- two loss rates above 0 are compared: they draw different lengths between losses;
- a timeout goes by the round trips measured so far: a later message may have seen one more, and is sent again earlier;
- losses come in bursts, which end by time: a later packet may escape the burst;
- a congestion window grows with what is in flight, and is halved by time: a longer round trip can keep it larger;
- a buffer drops a message that is tried again after timeouts: one that comes later may find room at once;
- a radio falls asleep by time: a later message may keep it awake for the next one;
- the jitter is lognormal, gamma or Pareto, whose draws change shape with the mean;
- several calls of several sessions share a batch: one more session can shift who is batched with whom.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

_TIMES = int(os.environ.get("CIAR_SIM_LAWS", "0"))


def law(examples: int, shrink: bool = True) -> Callable[[Any], Any]:
    """A hypothesis test of so many examples in `make test`; of `CIAR_SIM_LAWS` times as many, drawn anew, where that is set.

    shrink: whether a failing example is made smaller; not where an example takes a second.
    """
    return settings(
        max_examples=examples * max(1, _TIMES),
        derandomize=not _TIMES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
