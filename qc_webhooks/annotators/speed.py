"""How fast each annotator works, against what others took for the very same tasks."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics.bootstrap import ENOUGH, Estimate
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import Facts

Floats = NDArray[np.float64]

# A task left open over lunch must not decide: times count as at most so many times longer or shorter than the others'.
_MOST_RATIO = 10.0
# Less than this share of what the others took is hasty.
HASTY = 0.25
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Speed:
    """How fast an annotator works.

    Attributes:
        tasks: Tasks of which the time is known.
        seconds: Median time for a task, seconds.
        seconds_a_region: Median time for a region, seconds; None without regions.
        hours: Time spent in all, hours.
        pace: Time taken as a multiple of what the others took for the same tasks (geometric mean): 2 is half as fast.
        hasty: Share of the tasks that took less than a quarter of what the others took.
    """

    tasks: int
    seconds: float
    seconds_a_region: float | None
    hours: float
    pace: Estimate
    hasty: Estimate


def speeds(tasks: Iterable[Facts]) -> dict[int, Speed]:
    """The speed of everybody of whom at least one time is known; reviewers' ground truths are left out."""
    taken: dict[int, list[float]] = defaultdict(list)
    by_region: dict[int, list[float]] = defaultdict(list)
    ratios: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        known = [turn for turn in task.blind if turn.seconds]
        for turn in known:
            seconds = turn.seconds or 0.0
            taken[turn.annotator].append(seconds)
            if turn.regions:
                by_region[turn.annotator].append(seconds / turn.regions)
            others = [math.log(other.seconds or 1.0) for other in known if other is not turn]
            if others:
                ratios[turn.annotator].append(math.log(seconds) - sum(others) / len(others))
    return {
        who: Speed(
            len(times),
            round(float(np.median(times)), 2),
            round(float(np.median(by_region[who])), 2) if by_region[who] else None,
            round(sum(times) / 3600, 3),
            _pace(np.array(ratios[who])),
            proportion_ci(sum(ratio < math.log(HASTY) for ratio in ratios[who]), len(ratios[who])),
        )
        for who, times in sorted(taken.items())
    }


def _pace(logs: Floats) -> Estimate:
    n = len(logs)
    if n < ENOUGH:
        return Estimate.lacking(n)
    clipped = np.clip(logs, -math.log(_MOST_RATIO), math.log(_MOST_RATIO))
    middle, half = float(clipped.mean()), _NORMAL_95 * float(clipped.std(ddof=1)) / math.sqrt(n)
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), n)
