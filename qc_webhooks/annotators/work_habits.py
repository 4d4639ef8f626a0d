"""Work habits of each annotator: speed, near-identical regions shared with another annotator, untouched pre-labels."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics.bootstrap import MIN_UNITS, Estimate, proportion_ci
from qc_webhooks.verdict.task_facts import CORRECTED, MANUAL, UNCHANGED, TaskFacts

Floats = NDArray[np.float64]

# Time ratios are clipped to this factor: a task left open over lunch must not decide.
_MAX_RATIO = 10.0
# A task done in less than this share of the others' time is hasty.
HASTY_RATIO = 0.25
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Speed:
    """How fast an annotator works.

    Attributes:
        tasks: Tasks with a known time.
        seconds: Median time per task in seconds.
        seconds_a_region: Median time per region in seconds; None without regions.
        hours: Total time in hours.
        pace: Geometric mean of the time ratio to the others on the same tasks: 2 is half as fast.
        hasty: Share of tasks that took less than a quarter of the others' time.
    """

    tasks: int
    seconds: float
    seconds_a_region: float | None
    hours: float
    pace: Estimate
    hasty: Estimate


def measure_speed(tasks: Iterable[TaskFacts]) -> dict[int, Speed]:
    """Speed by annotator id, for annotators with at least one known time; reviewers' ground truths do not count."""
    seconds_by_annotator: dict[int, list[float]] = defaultdict(list)
    by_region: dict[int, list[float]] = defaultdict(list)
    ratios: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        timed = [annotation for annotation in task.blind if annotation.seconds]
        for annotation in timed:
            seconds = annotation.seconds or 0.0
            seconds_by_annotator[annotation.annotator].append(seconds)
            if annotation.regions:
                by_region[annotation.annotator].append(seconds / annotation.regions)
            others = [math.log(other.seconds or 1.0) for other in timed if other is not annotation]
            if others:
                ratios[annotation.annotator].append(math.log(seconds) - sum(others) / len(others))
    return {
        who: Speed(
            len(times),
            round(float(np.median(times)), 2),
            round(float(np.median(by_region[who])), 2) if by_region[who] else None,
            round(sum(times) / 3600, 3),
            _pace(np.array(ratios[who])),
            proportion_ci(sum(ratio < math.log(HASTY_RATIO) for ratio in ratios[who]), len(ratios[who])),
        )
        for who, times in sorted(seconds_by_annotator.items())
    }


def _pace(logs: Floats) -> Estimate:
    n = len(logs)
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    clipped = np.clip(logs, -math.log(_MAX_RATIO), math.log(_MAX_RATIO))
    middle, half = float(clipped.mean()), _NORMAL_95 * float(clipped.std(ddof=1)) / math.sqrt(n)
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), n)


# A pair is reported when the lower end of its interval exceeds both: a share that does not occur by chance, and a
# multiple of the share of all other pairs (a project of whole-image boxes has many equal regions).
MIN_DUPLICATE_SHARE, MIN_RATIO_TO_OTHERS = 0.1, 5.0
# The annotator who submitted later in at least this share of the tasks is named as the copier.
_COPIER_LATER_SHARE = 0.8


@dataclass(frozen=True)
class DuplicatePair:
    """Two annotators whose hand-drawn regions are near-identical too often.

    Attributes:
        other: The other annotator.
        share: Share of the objects marked by both where the two regions are equal to the pixel.
        usual: The same share over all other pairs.
        later: Share of these tasks in which this annotator submitted after the other.
        copied_by: The likely copier, who nearly always submits later; None where neither does.
    """

    other: int
    share: Estimate
    usual: float
    later: float
    copied_by: int | None


def find_duplicates(tasks: Iterable[TaskFacts]) -> dict[int, tuple[DuplicatePair, ...]]:
    """Suspicious pairs by annotator id; each pair is listed under both annotators."""
    pair_counts: dict[tuple[int, int], int] = defaultdict(int)
    duplicate_counts: dict[tuple[int, int], int] = defaultdict(int)
    later_flags: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for task in tasks:
        submitted_at = {annotation.annotator: annotation.submitted_at for annotation in task.blind}
        for pair in task.pairs:
            key = min(pair.a, pair.b), max(pair.a, pair.b)
            if not (key[0] in submitted_at and key[1] in submitted_at):
                continue  # a reviewer's ground truth, made from another annotator's regions
            pair_counts[key] += pair.common_regions
            duplicate_counts[key] += pair.identical_regions
            if pair.identical_regions:
                later_flags[key].append(submitted_at[key[0]] > submitted_at[key[1]])
    pairs_by_annotator: dict[int, list[DuplicatePair]] = defaultdict(list)
    total_pairs, total_duplicates = sum(pair_counts.values()), sum(duplicate_counts.values())
    for (a, b), n in pair_counts.items():
        rate = proportion_ci(duplicate_counts[a, b], n)
        others = total_pairs - n
        usual_share = (total_duplicates - duplicate_counts[a, b]) / others if others else 0.0
        if rate.low is None or rate.low < max(MIN_DUPLICATE_SHARE, MIN_RATIO_TO_OTHERS * usual_share):
            continue
        later = sum(later_flags[a, b]) / len(later_flags[a, b])
        copied_by = a if later >= _COPIER_LATER_SHARE else b if later <= 1 - _COPIER_LATER_SHARE else None
        pairs_by_annotator[a].append(DuplicatePair(b, rate, round(usual_share, 4), round(later, 3), copied_by))
        pairs_by_annotator[b].append(DuplicatePair(a, rate, round(usual_share, 4), round(1 - later, 3), copied_by))
    return {who: tuple(pairs) for who, pairs in pairs_by_annotator.items()}


# Careful annotators miss some corrections that others make. An annotator whose whole interval lies above this share
# accepts pre-labels without checking them.
MAX_UNCORRECTED_SHARE = 0.6


@dataclass(frozen=True)
class PrelabelBias:
    """How an annotator treats pre-labels (automation bias).

    Attributes:
        untouched: Share of the submitted pre-labels that are unchanged. High where the pre-labels are good.
        left: Share left unchanged of the pre-labels that most others corrected or removed.
    """

    untouched: Estimate
    left: Estimate

    @property
    def is_anchored(self) -> bool:
        """Whether pre-labels are accepted without a check."""
        return self.left.low is not None and self.left.low > MAX_UNCORRECTED_SHARE


def measure_prelabel_bias(tasks: Iterable[TaskFacts]) -> dict[int, PrelabelBias]:
    """Pre-label bias by annotator id, for annotators who submitted at least one pre-label."""
    prelabels: Counter[int] = Counter()
    untouched: Counter[int] = Counter()
    corrected_by_others: Counter[int] = Counter()
    left: Counter[int] = Counter()
    for task in tasks:
        blind = {annotation.annotator for annotation in task.blind}
        prelabelled = {
            mark.annotator for marked_object in task.objects for mark in marked_object.marks if mark.origin != MANUAL
        } & blind
        for marked_object in task.objects:
            origins = {mark.annotator: mark.origin for mark in marked_object.marks if mark.annotator in blind}
            for who, origin in origins.items():
                prelabels[who] += origin != MANUAL
                untouched[who] += origin == UNCHANGED
            if UNCHANGED not in origins.values() and CORRECTED not in origins.values():
                continue
            for who in prelabelled:
                is_corrected = _corrected_by_others(origins, who, prelabelled)
                if is_corrected and origins.get(who, CORRECTED) != MANUAL:
                    corrected_by_others[who] += 1
                    left[who] += origins.get(who) == UNCHANGED
    return {
        who: PrelabelBias(
            proportion_ci(untouched[who], prelabels[who]), proportion_ci(left[who], corrected_by_others[who])
        )
        for who in sorted(who for who, count in prelabels.items() if count)
    }


def _corrected_by_others(origins: dict[int, int], who: int, prelabelled: set[int]) -> bool:
    """Whether most others who worked from pre-labels corrected this one: changed its shape or label, or removed it."""
    others = [origins.get(other, CORRECTED) for other in prelabelled if other != who]
    informative = [origin for origin in others if origin != MANUAL]
    return 2 * sum(origin == CORRECTED for origin in informative) > len(informative) > 0
