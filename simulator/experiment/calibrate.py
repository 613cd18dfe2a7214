"""Calibration: find the setting that gives a target rate of cloud calls, on separate prompts (`threshold: {call_pct: 30}`).

Each decision between device and cloud changes all later tokens and their scores. The rate at a threshold is therefore known only after
sessions have been recorded at that threshold. The recorded scores suggest the next threshold to try.

There is no search if every image keeps to a share of calls (mode `even`, or a given budget). The share follows from the rate, and a few
sessions give the threshold for the first tokens of an image. All other modes search on a few prompts until the error is within the
standard error, and then on all prompts.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.protocol.recording import SCORES, Recording
from simulator.protocol.thresholds import WARM_UP

# A search ends at this error, in percentage points. One token changes all later ones, so rates are not continuous in the threshold.
TOLERANCE_PCT = 0.5
WORST_PCT = 5.0  # a larger error is refused
ROUNDS = 8
NEVER = 1e30  # a threshold that no score reaches; finite, so that it can follow the scores
START_PROMPTS, FEW_PROMPTS, PROMPTS = 8, 16, 64  # without a search, during a search, at its end

Mode = Literal["const", "ema", "running", "budget", "even", "own"]


@dataclass(frozen=True)
class Asked:
    """The target of a calibration.

    Attributes:
        who: The method, for messages.
        mode: How its threshold changes over an image; "own": the threshold of a method from another package.
        call_pct: Target of cloud calls in percent; None: the result of `budget`.
        prefix_share: Share of tokens that the cloud decides as prefix, at any threshold.
        budget: Given share of scored tokens for the cloud, or None.
        prompts: Number of captions; None: the default for the mode.
        values: Maps the scores of a session to the values that a constant threshold of the mode is compared with.
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
        """Whether the setting must be searched for by recording sessions."""
        return self.mode != "even" and self.budget is None

    @property
    def most_prompts(self) -> int:
        """Largest number of captions that the calibration uses."""
        return self.prompts or (PROMPTS if self.searched else START_PROMPTS)

    @property
    def most_sessions(self) -> int:
        """Largest number of sessions that the calibration records."""
        return min(FEW_PROMPTS, self.most_prompts) + (ROUNDS * self.most_prompts if self.searched else 0)

    @property
    def share(self) -> float:
        """Target share of the scored tokens for the cloud, assuming that no position is decided twice."""
        if self.budget is not None:
            return self.budget
        assert self.call_pct is not None
        return float(f"{(self.call_pct / 100.0 - self.prefix_share) / (1.0 - self.prefix_share):.6g}")

    def check(self) -> None:
        """Raise ScenarioError if the prefix alone has more calls than the target."""
        prefix_pct = 100.0 * self.prefix_share
        if self.call_pct is not None and self.call_pct < prefix_pct:
            raise ScenarioError(
                f"{self.who}: threshold.call_pct must be at least the prefix's {prefix_pct:g} %, got {self.call_pct:g}"
            )


class Trial(NamedTuple):
    """Settings, and the number of captions to record with them."""

    settings: dict[str, Any]
    prompts: int


@dataclass(frozen=True)
class Calibrated:
    """Result of a calibration.

    Attributes:
        settings: The settings found.
        call_pct: Mean cloud calls on the calibration prompts, in percent.
        call_pct_se: Standard error of call_pct over these prompts; NaN for one prompt.
        prompts: Number of these prompts.
        rounds: Number of settings tried.
    """

    settings: dict[str, Any]
    call_pct: float
    call_pct_se: float
    prompts: int
    rounds: int


def calibrate(asked: Asked) -> Generator[Trial, Sequence[Recording], Calibrated]:
    """Yield settings to try, receive the sessions recorded with them, and return the settings closest to the target.

    It is a generator so that the caller can run several calibrations and record all sessions of a round together.

    Raises:
        ScenarioError: The prefix alone has more calls than the target, or no setting tried is within WORST_PCT of it.
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
    """Search for a level: the threshold, or for mode `budget` 1 - share. A higher level gives fewer calls."""
    assert asked.call_pct is not None
    target, share, most, by_share = asked.call_pct, asked.share, asked.most_prompts, asked.mode == "budget"
    start = _start(seen, share)
    level = _short(1.0 - share if by_share else _quantile(asked, seen, share))
    tried: list[tuple[float, Calibrated]] = []  # with the current number of prompts
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
            tried, count = [], most  # the error is within what so few prompts can resolve
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
    """Return the next level to try, or None if there is none left."""
    assert asked.call_pct is not None
    target = asked.call_pct
    level, last = tried[-1]
    low = max(((at, one.call_pct) for at, one in tried if one.call_pct > target), default=None)  # too many calls
    high = min(((at, one.call_pct) for at, one in tried if one.call_pct <= target), default=None)
    if low is not None and high is not None:
        if low[0] >= high[0]:
            return None  # the rate does not fall with the level here
        part = (low[1] - target) / (low[1] - high[1])
        if len(tried) > 1 and (tried[-2][1].call_pct > target) == (last.call_pct > target):
            part = 0.5  # bisect: linear interpolation missed on the same side twice
        return _short(low[0] + (high[0] - low[0]) * min(max(part, 0.1), 0.9))
    prefix_pct = 100.0 * asked.prefix_share
    more = (target - prefix_pct) / (last.call_pct - prefix_pct) if last.call_pct > prefix_pct else 2.0
    if asked.mode == "budget":
        guess = 1.0 - min((1.0 - level) * more, 1.0)
    else:
        values = _values(asked, seen)
        guess = _quantile(asked, seen, float(np.mean(values >= level)) * more if len(values) else math.nan)
    rising = last.call_pct > target
    if not (guess > level if rising else guess < level):  # no guess from scores, which a method may not record
        guess = level / 4.0 if not rising else (1.0 + level) / 2.0 if asked.mode == "budget" else 4.0 * level
    return _short(guess)


def _gates(session: Recording) -> np.ndarray:
    """Return float [n], the gate scores of a session in order, without positions that have none."""
    scores = session.scores[:, SCORES.index("gate")]
    found: np.ndarray = scores[~np.isnan(scores)]
    return found


def _values(asked: Asked, seen: Sequence[Recording]) -> np.ndarray:
    return np.concatenate([asked.values(_gates(session)) for session in seen])


def _quantile(asked: Asked, seen: Sequence[Recording], share: float) -> float:
    """Return the threshold that a share of the sessions' values reaches; 1 if there are no values."""
    values = _values(asked, seen)
    if not len(values) or math.isnan(share):
        return 1.0
    return float(np.quantile(values, min(max(1.0 - share, 0.0), 1.0)))


def _start(seen: Sequence[Recording], share: float) -> float:
    """Return the threshold for the first `WARM_UP` scores of an image: the quantile of the first scores of all sessions."""
    first = np.concatenate([_gates(session)[:WARM_UP] for session in seen])
    return _short(float(np.quantile(first, 1.0 - share))) if len(first) else 0.0


def _short(value: float) -> float:
    """Round to four significant digits, for the scenario in the run folder."""
    return float(f"{value:.4g}")


def _found(settings: dict[str, Any], seen: Sequence[Recording], rounds: int) -> Calibrated:
    rates = np.array([session.cloud_call_pct() for session in seen])
    error = float(rates.std(ddof=1) / math.sqrt(len(rates))) if len(rates) > 1 else math.nan
    return Calibrated(settings, float(rates.mean()), error, len(rates), rounds)
