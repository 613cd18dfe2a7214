"""Finds the setting that leads to a wanted rate of cloud calls, on prompts of its own (`threshold: {call_pct: 30}`).

Every token decided here or there changes all later tokens and their scores, so the rate at a threshold is known only by recording
sessions at it. The scores seen on the way tell where to look next.

Where each image keeps to a share (`even`, or a budget that is given) nothing is searched: the share follows from the rate, and the
scores of a few sessions say what the first tokens are compared with. Else the search goes on a few prompts until the rate is near
enough for so few, and ends on all of them.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.protocol.recording import SCORES, Recording
from simulator.protocol.thresholds import WARM_UP

# Percentage points at which a search ends; what one token decides, decides later ones, so rates jump.
TOLERANCE_PCT = 0.5
WORST_PCT = 5.0  # a rate further off than this is refused
ROUNDS = 8
NEVER = 1e30  # a threshold that no score reaches; finite, so that it can follow the scores
START_PROMPTS, FEW_PROMPTS, PROMPTS = 8, 16, 64  # for a start alone, for the way, for the end

Mode = Literal["const", "ema", "running", "budget", "even", "own"]


@dataclass(frozen=True)
class Asked:
    """What a calibration is to find.

    Attributes:
        who: The method, for messages.
        mode: How its threshold changes over an image; "own": a threshold of another package's rule.
        call_pct: Wanted cloud calls in percent; None: what `budget` leads to.
        prefix_share: Share of tokens that the cloud makes whatever the threshold.
        budget: Given share of scored tokens for the cloud.
        prompts: Captions; None: the default for the mode.
        values: What decides in place of a session's scores where a constant threshold would compare these with itself.
    """

    who: str
    mode: Mode
    call_pct: float | None
    prefix_share: float = 0.0
    budget: float | None = None
    prompts: int | None = None
    values: Callable[[np.ndarray], np.ndarray] = lambda scores: scores

    @property
    def searched(self) -> bool:
        """Whether sessions must show what a setting leads to."""
        return self.mode != "even" and self.budget is None

    @property
    def most_prompts(self) -> int:
        """Captions that the calibration may use."""
        return self.prompts or (PROMPTS if self.searched else START_PROMPTS)

    @property
    def share(self) -> float:
        """Wanted share of the scored tokens for the cloud, where no position is decided twice."""
        if self.budget is not None:
            return self.budget
        assert self.call_pct is not None
        return float(f"{(self.call_pct / 100.0 - self.prefix_share) / (1.0 - self.prefix_share):.6g}")

    def check(self) -> None:
        """Raises ScenarioError where the prefix alone takes more calls."""
        prefix_pct = 100.0 * self.prefix_share
        if self.call_pct is not None and self.call_pct < prefix_pct:
            raise ScenarioError(
                f"{self.who}: threshold.call_pct must be at least the prefix's {prefix_pct:g} %, got {self.call_pct:g}"
            )


class Trial(NamedTuple):
    """Settings to record the first `prompts` captions with."""

    settings: dict[str, Any]
    prompts: int


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        settings: The settings.
        call_pct: Mean cloud calls of the calibration prompts, percent.
        call_pct_se: Its standard error over them; NaN for one.
        prompts: Their number.
        rounds: Settings tried.
    """

    settings: dict[str, Any]
    call_pct: float
    call_pct_se: float
    prompts: int
    rounds: int


def calibrate(asked: Asked) -> Generator[Trial, Sequence[Recording], Calibrated]:
    """Yields settings to try, takes the sessions at each, and returns those nearest to the wanted rate.

    A generator, so that whoever drives several of them can record all their sessions of a round together.

    Raises:
        ScenarioError: The prefix alone takes more calls, or nothing tried comes within WORST_PCT.
    """
    asked.check()
    share, most = asked.share, asked.most_prompts
    few = min(FEW_PROMPTS, most)
    even = {"threshold": NEVER, "threshold_mode": "even", "budget": share}
    seen = yield Trial({"threshold": NEVER} if asked.mode == "own" else even, few)
    if not asked.searched:
        return _found({"budget": share, "threshold": _start(seen, share), "threshold_mode": asked.mode}, seen, 1)
    return (yield from _search(asked, seen, few))


def _search(asked: Asked, seen: Sequence[Recording], few: int) -> Generator[Trial, Sequence[Recording], Calibrated]:
    """Searches a level: the threshold, or for `budget` one minus the share; the higher it is, the fewer calls."""
    assert asked.call_pct is not None
    target, share, most, by_share = asked.call_pct, asked.share, asked.most_prompts, asked.mode == "budget"
    start = _start(seen, share)
    level = _short(1.0 - share if by_share else _quantile(asked, seen, share))
    tried: list[tuple[float, Calibrated]] = []  # on as many prompts as now
    count = few
    for rounds in range(2, ROUNDS + 2):
        settings: dict[str, Any] = {} if asked.mode == "own" else {"threshold_mode": asked.mode}
        settings |= {"budget": _short(1.0 - level), "threshold": start} if by_share else {"threshold": level}
        seen = yield Trial(settings, count)
        tried.append((level, _found(settings, seen, rounds)))
        level, best = min(tried, key=lambda one: abs(one[1].call_pct - target))
        off, error = abs(best.call_pct - target), best.call_pct_se
        following = None if off <= TOLERANCE_PCT else _next(asked, tried, seen)
        if count < most and (following is None or off <= error) and not error <= TOLERANCE_PCT / 2:
            tried, count = [], most  # it is as near as so few prompts can tell
        elif following is None or any(following == known for known, _ in tried):
            break
        else:
            level = following
    if not abs(best.call_pct - target) <= WORST_PCT:
        raise ScenarioError(
            f"{asked.who}: no {'budget' if by_share else 'threshold'} leads to {target:g} % cloud calls; "
            f"the nearest found leads to {best.call_pct:.1f} %"
        )
    return best


def _next(asked: Asked, tried: list[tuple[float, Calibrated]], seen: Sequence[Recording]) -> float | None:
    """The level to try after the last one; None where what was tried leaves none."""
    assert asked.call_pct is not None
    target = asked.call_pct
    level, last = tried[-1]
    low = max(((at, one.call_pct) for at, one in tried if one.call_pct > target), default=None)  # asks too often
    high = min(((at, one.call_pct) for at, one in tried if one.call_pct <= target), default=None)
    if low is not None and high is not None:
        if low[0] >= high[0]:
            return None  # the rate does not fall from here on
        part = (low[1] - target) / (low[1] - high[1])
        if len(tried) > 1 and (tried[-2][1].call_pct > target) == (last.call_pct > target):
            part = 0.5  # twice on one side: the line between the ends is bent
        return _short(low[0] + (high[0] - low[0]) * min(max(part, 0.1), 0.9))
    prefix_pct = 100.0 * asked.prefix_share
    more = (target - prefix_pct) / (last.call_pct - prefix_pct) if last.call_pct > prefix_pct else 2.0
    if asked.mode == "budget":
        guess = 1.0 - min((1.0 - level) * more, 1.0)
    else:
        values = _values(asked, seen)
        guess = _quantile(asked, seen, float(np.mean(values >= level)) * more if len(values) else math.nan)
    rising = last.call_pct > target
    if not (guess > level if rising else guess < level):  # the scores do not say; nor does a method that records none
        guess = level / 4.0 if not rising else (1.0 + level) / 2.0 if asked.mode == "budget" else 4.0 * level
    return _short(guess)


def _gates(session: Recording) -> np.ndarray:
    """The scores of a session's positions that have one, in order; float [n]."""
    scores = session.scores[:, SCORES.index("gate")]
    found: np.ndarray = scores[~np.isnan(scores)]
    return found


def _values(asked: Asked, seen: Sequence[Recording]) -> np.ndarray:
    return np.concatenate([asked.values(_gates(session)) for session in seen])


def _quantile(asked: Asked, seen: Sequence[Recording], share: float) -> float:
    """The threshold that this share of the sessions' scores is at or above; 1 where they have none."""
    values = _values(asked, seen)
    if not len(values) or math.isnan(share):
        return 1.0
    return float(np.quantile(values, min(max(1.0 - share, 0.0), 1.0)))


def _start(seen: Sequence[Recording], share: float) -> float:
    """The same of the first scores of each session, which are compared before an image has scores of its own."""
    first = np.concatenate([_gates(session)[:WARM_UP] for session in seen])
    return _short(float(np.quantile(first, 1.0 - share))) if len(first) else 0.0


def _short(value: float) -> float:
    """To four digits, as it is written in a scenario."""
    return float(f"{value:.4g}")


def _found(settings: dict[str, Any], seen: Sequence[Recording], rounds: int) -> Calibrated:
    rates = np.array([session.cloud_call_pct() for session in seen])
    error = float(rates.std(ddof=1) / math.sqrt(len(rates))) if len(rates) > 1 else math.nan
    return Calibrated(settings, float(rates.mean()), error, len(rates), rounds)
