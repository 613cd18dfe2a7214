"""Computing time per token of each uncertainty score."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from models.evaluate.measures import answered, measures
from models.interval import inter_fuse, uncertainty
from models.methods import DeviceState
from models.methods.scores import entropy, margin
from models.methods.session import Step
from simulator.core.rng import stream
from simulator.protocol.recording import SCORES


@torch.inference_mode()
def time_measures(dim: int, sizes: Sequence[int] = (4096, 16384), repeats: int = 30) -> pd.DataFrame:
    """Measure milliseconds per token, one token at a time on the CPU, from given centre logits: median and quartiles.

    With one thread this is CPU time, which other programs hardly affect, else wall time. The row `radius` is the second
    matrix product of the Inter-Head, which its scores need in addition.

    Args:
        dim: width of the hidden state.
        sizes: codebook sizes.
        repeats: timed calls per score; a sixth of them for the discrete scores.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    rows = []
    for size in sizes:
        rng = stream(0, "evaluate.timing", size)
        logits = torch.from_numpy(3 * rng.standard_normal(size).astype(np.float32))
        radius = torch.from_numpy(rng.uniform(0.2, 1.2, size).astype(np.float32))
        matrix, hidden = torch.randn(size, dim), torch.randn(dim)
        step = Step(0, logits, hidden, np.zeros(len(SCORES), np.float32), radius=radius)
        state = DeviceState(256, 1, caption="timing")
        interval = {"u": "u_tilde", "u-raw": "u", "omega": "omega", "lower-top": "lower_top"}
        work: dict[str, Callable[[], Any]] = {
            "radius": partial(_radius, matrix, hidden),
            **{name: partial(_interval_score, logits, radius, field) for name, field in interval.items()},
            "entropy": partial(entropy, logits),
            "max-prob": partial(_max_prob, logits),
            "margin": partial(margin, logits),
        }
        for measure in measures(("",)):
            if measure.name not in work:
                work[measure.name] = partial(answered, measure.make(state), step, 0)
        for name, call in work.items():
            count = max(3, repeats // 6) if name.startswith("discrete") else repeats
            for _ in range(3 if name.startswith("discrete") else 20):  # warm-up; fills SoftmaxCorr's window
                call()
            taken = []
            for _ in range(count):
                begin = clock()
                call()
                taken.append(1e3 * (clock() - begin))
            low, _, high = statistics.quantiles(taken, n=4)
            rows.append(
                {
                    "measure": name,
                    "vocab_size": size,
                    "ms_per_token": statistics.median(taken),
                    "ms_q25": low,
                    "ms_q75": high,
                    "threads": torch.get_num_threads(),
                }
            )
    return pd.DataFrame(rows)


def _radius(matrix: Tensor, hidden: Tensor) -> Tensor:
    return F.softplus(F.linear(hidden, matrix))


def _interval_score(centre: Tensor, radius: Tensor, field: str) -> float:
    return float(getattr(uncertainty(*inter_fuse(centre, radius)), field))


def _max_prob(logits: Tensor) -> Tensor:
    return 1 - logits.softmax(-1).amax(-1)
