"""Finds the threshold that leads to a wanted rate of cloud calls, on prompts of its own (`threshold: {call_pct: 30}`).

Every token decided here or there changes all later tokens and their scores, so the rate at a threshold is known only by recording
sessions at it. The scores seen on the way tell where to look next: the quantile that would have sent the wanted share up.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.protocol.recording import SCORES, Recording

TOLERANCE_PCT = (
    1.0  # percentage points at which the search ends; what one token decides, decides later ones, so rates jump
)
ROUNDS = 8
WORST_PCT = 2.0  # a rate further off than this is refused


@dataclass(frozen=True)
class Calibrated:
    """threshold: found. call_pct: mean cloud calls of the calibration prompts at it, percent. rounds: thresholds tried."""

    threshold: float
    call_pct: float
    rounds: int


def calibrate(target_pct: float, prefix_rate: float, what: str) -> Generator[float, Sequence[Recording], Calibrated]:
    """Yields thresholds to try, takes the sessions of the calibration prompts at each, and returns the one nearest to `target_pct`.

    A generator, so that whoever drives several of them can record all their sessions of a round together.
    prefix_rate: share of tokens the cloud makes anyway. what: the method, for messages.
    Raises ScenarioError where the prefix alone takes more calls, or where no threshold comes within WORST_PCT.
    """
    if target_pct < 100.0 * prefix_rate:
        raise ScenarioError(
            f"{what}: threshold.call_pct must be at least the prefix's {100.0 * prefix_rate:g} %, got {target_pct:g}"
        )
    below, above = 0.0, math.inf  # thresholds known to ask too often, and too rarely
    threshold, best = math.inf, Calibrated(math.inf, math.nan, 0)
    for rounds in range(1, ROUNDS + 1):
        recordings = yield threshold
        found_pct = float(np.mean([recording.cloud_call_pct() for recording in recordings]))
        if not abs(found_pct - target_pct) >= abs(best.call_pct - target_pct):
            best = Calibrated(threshold, found_pct, rounds)
        if abs(found_pct - target_pct) <= TOLERANCE_PCT:
            break
        if found_pct > target_pct:
            below = max(below, threshold)
        else:
            above = min(above, threshold)
        threshold = _next(threshold, below, above, recordings, (target_pct / 100.0 - prefix_rate) / (1.0 - prefix_rate))
        if threshold in (below, above):
            break
    if not abs(best.call_pct - target_pct) <= WORST_PCT:
        raise ScenarioError(
            f"{what}: no threshold leads to {target_pct:g} % cloud calls; "
            f"the nearest found, {best.threshold:.4g}, leads to {best.call_pct:.1f} %"
        )
    return best


def _next(tried: float, below: float, above: float, recordings: Sequence[Recording], share: float) -> float:
    """The quantile of the scores just seen, or where that was tried already, the middle of what is left."""
    scores = np.concatenate([recording.scores[:, SCORES.index("gate")] for recording in recordings])
    scores = scores[~np.isnan(scores)]
    guess = float(f"{np.quantile(scores, 1.0 - share):.4g}") if len(scores) else math.nan
    if below < guess < above and guess != tried:
        return guess
    middle = (
        math.sqrt(below * above)
        if below > 0.0 and math.isfinite(above)
        else (2.0 * below if below > 0.0 else above / 2.0)
    )
    return float(f"{middle:.4g}")
