"""Change of an annotator's agreement over time, separated from changes of the other annotators.

The agreement of two annotators depends on both: when one drifts, every annotator paired with them seems to drift.
Therefore each agreement is modelled as

common + effect(first, segment) + effect(second, segment)

with one effect per segment of each annotator's tasks. All effects are estimated jointly: Bayesian linear
regression with a prior on the effects (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3.1).
Agreements within one task share its difficulty, so the noise is inflated by the design effect of tasks as clusters
(Kish, "Survey Sampling", 1965, section 5.4). Effects that the data cannot separate (two annotators who always worked
together) keep the prior's uncertainty and are not reported.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

# Maximum number of segments per annotator, and minimum number of tasks per segment.
MAX_SEGMENTS, MIN_SEGMENT_TASKS = 8, 15
# Prior standard deviation of the effects, in units of agreement.
_PRIOR = 0.15
# Reported changes: two-sided p-value over all candidate change points below this, and at least this large.
SIGNIFICANCE, MIN_CHANGE = 0.002, 0.05
_NORMAL_95 = 1.959964
_MAX_PAIRS = 200_000


@dataclass(frozen=True)
class Drift:
    """A change of an annotator's agreement with the others.

    Attributes:
        since: Start of the change, seconds since 1970.
        before: Mean agreement with an average other annotator before the change, 0 to 1.
        after: The same after it.
        low: Lower end of the 95 % interval of the change.
        high: Upper end of it.
        tasks: Number of tasks of this annotator.
    """

    since: float
    before: float
    after: float
    low: float
    high: float
    tasks: int


def detect_drift(tasks: Sequence[TaskFacts]) -> dict[int, Drift]:
    """Drift by annotator id; annotators without a significant change or without enough tasks are absent."""
    times_by_annotator: dict[int, list[float]] = defaultdict(list)
    compared = _latest_within_limit(
        sorted(
            (task for task in tasks if task.pairs and task.last_annotated_at > 0),
            key=lambda task: task.last_annotated_at,
        )
    )
    for task in compared:
        for annotation in task.blind:
            times_by_annotator[annotation.annotator].append(task.last_annotated_at)
    segments = {who: _segment_starts(times) for who, times in times_by_annotator.items()}
    columns: dict[tuple[int, int], int] = {}
    for who, starts in segments.items():
        for segment in range(len(starts)):
            columns[who, segment] = len(columns)
    if len(columns) == len(segments):  # no annotator has two segments
        return {}
    rows = [
        (
            index,
            columns[pair.a, _segment_of(segments[pair.a], task.last_annotated_at)],
            columns[pair.b, _segment_of(segments[pair.b], task.last_annotated_at)],
            pair,
        )
        for index, task in enumerate(compared)
        for pair in task.pairs
        if pair.a in segments and pair.b in segments
    ]
    if not rows:
        return {}
    clusters, first, second = (np.array([row[column] for row in rows], dtype=np.intp) for column in range(3))
    scores = np.array([row[3].overall for row in rows])
    common, mean, covariance = _fit(clusters, first, second, scores, len(columns))
    drifts = {}
    for who, starts in segments.items():
        own = [columns[who, segment] for segment in range(len(starts))]
        change = _largest_change(mean[own], covariance[np.ix_(own, own)], common)
        if change is not None:
            at, before, after, low, high = change
            drifts[who] = Drift(starts[at], before, after, low, high, len(times_by_annotator[who]))
    return drifts


def _latest_within_limit(tasks: Sequence[TaskFacts]) -> Sequence[TaskFacts]:
    """The newest tasks that together have at most ``_MAX_PAIRS`` pairs."""
    count = 0
    for index in range(len(tasks) - 1, -1, -1):
        count += len(tasks[index].pairs)
        if count > _MAX_PAIRS:
            return tasks[index + 1 :]
    return tasks


def _segment_starts(times: Sequence[float]) -> tuple[float, ...]:
    """Start time of each segment; all segments hold equally many tasks."""
    ordered = sorted(times)
    count = max(1, min(MAX_SEGMENTS, len(ordered) // MIN_SEGMENT_TASKS))
    return tuple(dict.fromkeys(ordered[len(ordered) * segment // count] for segment in range(count)))


def _segment_of(starts: Sequence[float], at: float) -> int:
    return max(bisect_right(starts, at) - 1, 0)


def _fit(
    clusters: NDArray[np.intp], first_column: NDArray[np.intp], second_column: NDArray[np.intp], scores: Floats, n: int
) -> tuple[float, Floats, Floats]:
    """Fit the model.

    Args:
        clusters: Task index of each pair, ``(pairs,)``.
        first_column: Effect of the first annotator, ``(pairs,)``.
        second_column: Effect of the second annotator, ``(pairs,)``.
        scores: Agreement of each pair, ``(pairs,)``, 0 to 1.
        n: Number of effects.

    Returns:
        The common agreement, the effects ``(n,)`` and their covariance ``(n, n)``.
    """
    common = float(scores.mean())
    centred = scores - common
    gram: Floats = np.zeros((n, n))
    for first, second in (
        (first_column, first_column),
        (second_column, second_column),
        (first_column, second_column),
        (second_column, first_column),
    ):
        np.add.at(gram, (first, second), 1.0)
    moment = np.bincount(first_column, centred, n) + np.bincount(second_column, centred, n)
    noise = max(float(centred.var()), 1e-6)
    mean: Floats = np.zeros(n)
    covariance: Floats = np.eye(n)
    for _ in range(3):
        covariance = np.asarray(np.linalg.inv(gram / noise + np.eye(n) / _PRIOR**2), dtype=np.float64)
        mean = np.asarray(covariance @ moment / noise, dtype=np.float64)
        residual = centred - mean[first_column] - mean[second_column]
        # Design effect: variance of the per-task sums of residuals, relative to independent residuals.
        total = float((residual**2).sum())
        cluster_sums = np.bincount(clusters, residual)
        inflation = max(float((cluster_sums**2).sum()) / total, 1.0) if total > 0 else 1.0
        noise = max(total / max(len(centred) - 1, 1) * inflation, 1e-6)
    return common, mean, covariance


def _largest_change(
    effects: Floats, covariance: Floats, common: float
) -> tuple[int, float, float, float, float] | None:
    """(segment, before, after, low, high) of the most significant change; None where none is significant."""
    from scipy.special import ndtri

    n, best = len(effects), (0.0, 0, 0.0, 0.0)
    for cut in range(1, n):
        contrast: Floats = np.concatenate((np.full(cut, -1 / cut), np.full(n - cut, 1 / (n - cut))))
        change, spread = float(contrast @ effects), math.sqrt(float(contrast @ covariance @ contrast))
        if abs(change / spread) > abs(best[0]):
            best = change / spread, cut, change, spread
    z, cut, change, spread = best
    if n < 2 or abs(z) < float(-ndtri(SIGNIFICANCE / 2 / (n - 1))) or abs(change) < MIN_CHANGE:
        return None
    before, after = common + float(effects[:cut].mean()), common + float(effects[cut:].mean())
    low, high = change - _NORMAL_95 * spread, change + _NORMAL_95 * spread
    return cut, round(min(before, 1.0), 4), round(min(after, 1.0), 4), round(low, 4), round(high, 4)
