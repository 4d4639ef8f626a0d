"""Whether an annotator's agreement with the others changed over time, told apart from changes of the others.

Two annotators agree as well as both of them work: when one drifts, everybody paired with them seems to drift a little.
So every agreement is taken as

    common + effect(one, that time) + effect(other, that time)

with an effect for every stretch of each annotator's tasks, and the effects are estimated together: Bayesian linear
regression with a prior on the effects (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3.1).
Agreements within one task share its difficulty, so the noise is inflated by the design effect of tasks as clusters
(Kish, "Survey Sampling", 1965, section 5.4). What cannot be told apart (two who always worked together) keeps the
prior's uncertainty and is not reported.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.verdict.task_facts import Facts

Floats = NDArray[np.float64]

# Stretches an annotator's tasks are cut into, and the fewest tasks in one.
STRETCHES, FEWEST = 8, 15
# How far the effects of annotators lie apart before anything is known (standard deviation of an agreement).
_PRIOR = 0.15
# A change this unlikely by chance (two-sided, over all places where it could be) and at least this large is reported.
CHANCE, LEAST_CHANGE = 0.002, 0.05
_NORMAL_95 = 1.959964
_MOST_PAIRS = 200_000


@dataclass(frozen=True)
class Drift:
    """A change of an annotator's agreement with the others.

    Attributes:
        since: From when on, seconds since 1970.
        before: Agreement with an average other annotator before.
        after: And since.
        low: The change, lower end of its 95 % interval.
        high: Upper end.
        tasks: Tasks that were looked at.
    """

    since: float
    before: float
    after: float
    low: float
    high: float
    tasks: int


def drifts(tasks: Sequence[Facts]) -> dict[int, Drift]:
    """Everybody whose agreement with the others changed; who is not in it did not drift, or too little is known."""
    when: dict[int, list[float]] = defaultdict(list)
    used = _latest(sorted((task for task in tasks if task.pairs and task.at > 0), key=lambda task: task.at))
    for task in used:
        for turn in task.blind:
            when[turn.annotator].append(task.at)
    cuts = {who: _cuts(times) for who, times in when.items()}
    places: dict[tuple[int, int], int] = {}
    for who, starts in cuts.items():
        for stretch in range(len(starts)):
            places[who, stretch] = len(places)
    if len(places) == len(cuts):  # nobody has two stretches
        return {}
    rows = [
        (number, places[pair.a, _stretch(cuts[pair.a], task.at)], places[pair.b, _stretch(cuts[pair.b], task.at)], pair)
        for number, task in enumerate(used)
        for pair in task.pairs
        if pair.a in cuts and pair.b in cuts
    ]
    if not rows:
        return {}
    clusters, one, other = (np.array([row[place] for row in rows], dtype=np.intp) for place in range(3))
    scores = np.array([row[3].overall for row in rows])
    common, mean, covariance = _fit(clusters, one, other, scores, len(places))
    found = {}
    for who, starts in cuts.items():
        mine = [places[who, stretch] for stretch in range(len(starts))]
        change = _change(mean[mine], covariance[np.ix_(mine, mine)], common)
        if change is not None:
            at, before, after, low, high = change
            found[who] = Drift(starts[at], before, after, low, high, len(when[who]))
    return found


def _latest(tasks: Sequence[Facts]) -> Sequence[Facts]:
    """The newest tasks with as many pairs as can be reckoned with."""
    count = 0
    for place in range(len(tasks) - 1, -1, -1):
        count += len(tasks[place].pairs)
        if count > _MOST_PAIRS:
            return tasks[place + 1 :]
    return tasks


def _cuts(times: Sequence[float]) -> tuple[float, ...]:
    """When each stretch begins; equally many tasks in each."""
    ordered = sorted(times)
    stretches = max(1, min(STRETCHES, len(ordered) // FEWEST))
    return tuple(dict.fromkeys(ordered[len(ordered) * stretch // stretches] for stretch in range(stretches)))


def _stretch(starts: Sequence[float], at: float) -> int:
    return max(bisect_right(starts, at) - 1, 0)


def _fit(
    clusters: NDArray[np.intp], one: NDArray[np.intp], other: NDArray[np.intp], scores: Floats, n: int
) -> tuple[float, Floats, Floats]:
    """The common agreement, and the effects with their covariance."""
    common = float(scores.mean())
    left = scores - common
    gram: Floats = np.zeros((n, n))
    for first, second in ((one, one), (other, other), (one, other), (other, one)):
        np.add.at(gram, (first, second), 1.0)
    right = np.bincount(one, left, n) + np.bincount(other, left, n)
    noise = max(float(left.var()), 1e-6)
    mean: Floats = np.zeros(n)
    covariance: Floats = np.eye(n)
    for _ in range(3):
        covariance = np.asarray(np.linalg.inv(gram / noise + np.eye(n) / _PRIOR**2), dtype=np.float64)
        mean = np.asarray(covariance @ right / noise, dtype=np.float64)
        residual = left - mean[one] - mean[other]
        # The design effect: how much more the sums of a task's residuals vary than independent ones would.
        total = float((residual**2).sum())
        together = np.bincount(clusters, residual)
        inflation = max(float((together**2).sum()) / total, 1.0) if total > 0 else 1.0
        noise = max(total / max(len(left) - 1, 1) * inflation, 1e-6)
    return common, mean, covariance


def _change(effects: Floats, covariance: Floats, common: float) -> tuple[int, float, float, float, float] | None:
    """(stretch, before, after, low, high) of the clearest change; None where there is none to speak of."""
    from scipy.special import ndtri

    n, best = len(effects), (0.0, 0, 0.0, 0.0)
    for cut in range(1, n):
        contrast: Floats = np.concatenate((np.full(cut, -1 / cut), np.full(n - cut, 1 / (n - cut))))
        change, spread = float(contrast @ effects), math.sqrt(float(contrast @ covariance @ contrast))
        if abs(change / spread) > abs(best[0]):
            best = change / spread, cut, change, spread
    z, cut, change, spread = best
    if n < 2 or abs(z) < float(-ndtri(CHANCE / 2 / (n - 1))) or abs(change) < LEAST_CHANGE:
        return None
    before, after = common + float(effects[:cut].mean()), common + float(effects[cut:].mean())
    low, high = change - _NORMAL_95 * spread, change + _NORMAL_95 * spread
    return cut, round(min(before, 1.0), 4), round(min(after, 1.0), 4), round(low, 4), round(high, 4)
