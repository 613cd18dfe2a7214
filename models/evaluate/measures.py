"""Uncertainty scores that the evaluation compares, and their computation outside a session."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.interval import sampled_bounds
from models.methods import DeviceState
from models.methods.scores import Margin, PassScore, Score, make_score
from models.methods.session import Step
from simulator.protocol.methods import METHODS, GatedSettings
from simulator.protocol.ops import Compute


@dataclass(frozen=True)
class Measure:
    """One uncertainty score.

    Attributes:
        name: column and row name.
        method: gated method that uses it, empty if none.
        label: name in plots and tables.
        make: builds the score for a session.
        bounds: name of the radius matrix that it uses.
        sampled: whether it is expensive and therefore computed at some positions only.
    """

    name: str
    method: str
    label: str
    make: Callable[[DeviceState], Score]
    bounds: str
    sampled: bool = False


def measures(bounds: Sequence[str]) -> list[Measure]:
    """Return all measures for a device with these radius matrices, the default first; without any, those that need no interval."""

    def of(method: str, **settings: Any) -> Callable[[DeviceState], Score]:
        parsed = METHODS[method].settings.model_validate(settings)
        assert isinstance(parsed, GatedSettings)
        return lambda state: make_score(parsed, state)

    found = []
    for name in bounds:
        more, said = ("", "") if name == bounds[0] else (f"[{name}]", f" [{name}]")
        found += [
            Measure(f"u{more}", "ciar", f"Inter-Head U~{said}", of("ciar", score="u"), name),
            Measure(f"u-raw{more}", "", f"Inter-Head U as printed{said}", lambda state: PassScore("u_raw"), name),
            Measure(f"omega{more}", "ciar", f"Inter-Head Omega{said}", of("ciar", score="omega"), name),
            Measure(
                f"lower-top{more}", "ciar", f"Inter-Head 1 - lower bound{said}", of("ciar", score="lower-top"), name
            ),
        ]
    own = bounds[0] if bounds else ""
    discrete = [
        Measure(f"discrete-{k}", "discrete", f"discrete, k = {k}", of("discrete", k=k), own, sampled=True)
        for k in (100, 300)
    ]
    return [
        *found,
        Measure("entropy", "entropy-lens", "entropy (Entropy-Lens)", of("entropy-lens"), own),
        Measure("max-prob", "softmax-corr", "1 - max p (SoftmaxCorr)", of("softmax-corr"), own),
        Measure("margin", "", "1 - margin of the top two", lambda state: Margin(), own),
        Measure(
            "softmax-corr-window", "softmax-corr", "SoftmaxCorr, last 16", of("softmax-corr", reading="window"), own
        ),
        Measure(
            "softmax-corr-literal", "softmax-corr", "SoftmaxCorr, one token", of("softmax-corr", reading="literal"), own
        ),
        *(discrete if bounds else ()),
        Measure("random", "random", "random", of("random"), own),
    ]


def answered(score: Score, step: Step, position: int) -> float:
    """Return a score's value, doing the computations that it yields in the same way as the backend."""
    program, answer = score.of(step, position), None
    while True:
        try:
            op = program.send(answer)
        except StopIteration as stop:
            return float(stop.value)
        assert isinstance(op, Compute)
        assert op.kind == "interval_samples"
        asked, noise = op.payload
        answer = sampled_bounds(asked.logits, asked.radius, torch.from_numpy(noise))
