"""Copied work: annotators whose regions are near-identical, or whose errors are the same."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics.bootstrap import MIN_UNITS, Estimate, proportion_ci
from qc_webhooks.verdict.task_facts import UNCHANGED, TaskFacts

Floats = NDArray[np.float64]

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


# A region is near-identical when its edges differ by less than this share of what is usual between the two annotators
# and all others; a pair is reported above this share of near-identical regions.
_NEAR, _MIN_NEAR_SHARE = 0.25, 0.4
# Other people who drew the same objects, for the regions of two to be called nearly the same.
_MIN_OTHERS = 2
# Copied answers: share of the errors of two annotators that are the same, largest share of one kind of error, largest
# share of same errors among the others (with a lower limit, as few errors say little), and chance of a false alarm.
_MIN_SHARED, _MAX_ONE_KIND = 0.7, 0.75
_USUAL_SHARED, _FALSE_COPIER = (0.05, 0.25), 1e-4


@dataclass(frozen=True)
class CopiedWork:
    """Two annotators of whom one copies the other.

    Attributes:
        annotators: Both, ascending.
        copier: The one who nearly always submits later; None where neither does.
        n: Number of regions, or errors, that it is based on.
        what: What is the same, with its share.
        evidence: The figures in words.
    """

    annotators: tuple[int, int]
    copier: int | None
    n: int
    what: str
    evidence: str


def find_copiers(tasks: Sequence[TaskFacts]) -> tuple[CopiedWork, ...]:
    """Pairs of annotators whose regions are near-identical, or whose errors are the same."""
    copies: dict[tuple[int, int], CopiedWork] = {}
    for who, pairs in find_duplicates(tasks).items():
        for pair in pairs:
            key = min(who, pair.other), max(who, pair.other)
            share, usual = 100 * (pair.share.value or 0.0), 100 * pair.usual
            copies[key] = CopiedWork(
                key,
                pair.copied_by,
                pair.share.n,
                f"draws {share:.0f} % of the regions the same to the pixel",
                f"{usual:.1f} % among the others",
            )
    for work in (*_near_copies(tasks), *_shared_errors(tasks)):
        copies.setdefault(work.annotators, work)
    return tuple(copies[key] for key in sorted(copies))


# Fewest common tasks to say who submits later.
_MIN_COMMON_TASKS = 5


def _later(tasks: Iterable[TaskFacts], a: int, b: int) -> int | None:
    """The one of two annotators who nearly always submits after the other; None where neither does."""
    later: list[bool] = []
    for task in tasks:
        submitted_at = {item.annotator: item.submitted_at for item in task.blind if item.submitted_at > 0}
        if a in submitted_at and b in submitted_at and submitted_at[a] != submitted_at[b]:
            later.append(submitted_at[a] > submitted_at[b])
    if len(later) < _MIN_COMMON_TASKS:
        return None
    share = sum(later) / len(later)
    return a if share >= _COPIER_LATER_SHARE else b if share <= 1 - _COPIER_LATER_SHARE else None


@dataclass(frozen=True)
class EdgeOffsets:
    """Distances of two annotators' boxes of one object, of all pairs of boxes.

    Attributes:
        people: (smaller id, larger id) of each pair of boxes, ``(pairs, 2)``.
        mean: Mean distance of the four edges, in shares of the box's side, ``(pairs,)``.
        middle: Median distance of the four edges.
        drawn: Whether at least one of the two boxes is not an unchanged pre-label.
    """

    people: NDArray[np.intp]
    mean: Floats
    middle: Floats
    drawn: NDArray[np.bool_]

    def by_pair(self) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
        """(two annotators, their rows)."""
        if not len(self.people):
            return
        pairs, codes = np.unique(self.people, axis=0, return_inverse=True)
        order = np.argsort(codes.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(codes.reshape(-1), minlength=len(pairs)))
        for (a, b), start, end in zip(pairs.tolist(), [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            yield (a, b), order[start:end]


# Newest pairs of boxes that are compared.
_MAX_BOX_PAIRS = 200_000


def edge_offsets(tasks: Iterable[TaskFacts], *, control: str | None = None) -> EdgeOffsets:
    """Distances of the boxes of each object; of one control, or of all."""
    edges: list[tuple[float, float, float, float]] = []
    rows: list[tuple[int, int, int, int, bool]] = []
    for task in tasks:
        blind = {item.annotator for item in task.blind}
        for marked_object in task.objects:
            if control not in {None, marked_object.control}:
                continue
            start = len(edges)
            marks = sorted(
                (mark for mark in marked_object.marks if mark.edges is not None and mark.annotator in blind),
                key=lambda mark: mark.annotator,
            )
            edges += [mark.edges for mark in marks if mark.edges is not None]
            rows += [
                (
                    start + first,
                    start + second,
                    marks[first].annotator,
                    marks[second].annotator,
                    not marks[first].origin == marks[second].origin == UNCHANGED,
                )
                for first, second in combinations(range(len(marks)), 2)
            ]
        if len(rows) > _MAX_BOX_PAIRS:
            break
    if not rows:
        none = np.zeros(0)
        return EdgeOffsets(np.zeros((0, 2), dtype=np.intp), none, none, np.zeros(0, dtype=bool))
    table = np.array(rows, dtype=np.intp)
    boxes = np.array(edges)
    first, second = boxes[table[:, 0]], boxes[table[:, 1]]
    sides = np.maximum((first[:, 2:] - first[:, :2] + second[:, 2:] - second[:, :2]) / 2, 1.0)
    offsets = np.abs(first - second) / np.concatenate((sides, sides), axis=1)
    ranked = np.sort(offsets, axis=1)
    return EdgeOffsets(table[:, 2:4], offsets.mean(axis=1), (ranked[:, 1] + ranked[:, 2]) / 2, table[:, 4] > 0)


def _near_copies(tasks: Sequence[TaskFacts]) -> Iterator[CopiedWork]:
    measured = edge_offsets(tasks)
    offsets = {key: measured.mean[rows[measured.drawn[rows]]] for key, rows in measured.by_pair()}
    by_person: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key in offsets:
        for who in key:
            by_person[who].append(key)
    shares: dict[tuple[int, int], Estimate] = {}
    for (a, b), own in offsets.items():
        by_other: dict[int, list[Floats]] = defaultdict(list)
        for key in (*by_person[a], *by_person[b]):
            if key != (a, b):
                by_other[key[0] if key[1] in (a, b) else key[1]].append(offsets[key])
        others = [np.concatenate(parts) for parts in by_other.values()]
        # The most careful other person tells how alike careful drawing is; one alone may be careless.
        medians = [float(np.median(part)) for part in others if len(part) >= MIN_UNITS]
        if len(medians) >= _MIN_OTHERS:
            limit = _NEAR * min(medians)
            shares[a, b] = proportion_ci(int((own < limit).sum()), len(own))
    for key, share in shares.items():
        usual = [other.value for name, other in shares.items() if name != key and other.value is not None]
        middle = float(np.median(usual)) if usual else 0.0
        if share.low is not None and share.low > max(_MIN_NEAR_SHARE, MIN_RATIO_TO_OTHERS * middle):
            yield CopiedWork(key, _later(tasks, *key), share.n, f"draws {100 * (share.value or 0):.0f} % of the regions"
                             " nearly the same", f"{100 * middle:.1f} % among the others")  # fmt: skip


def _shared_errors(tasks: Sequence[TaskFacts]) -> Iterator[CopiedWork]:
    """Pairs whose errors about tasks are the same. An error differs from what most of the others (two or more) say."""
    from scipy.special import bdtrc

    same: Counter[tuple[int, int]] = Counter()
    either: Counter[tuple[int, int]] = Counter()
    kinds: dict[tuple[int, int], Counter[tuple[str, str]]] = defaultdict(Counter)
    for task in tasks:
        blind = {item.annotator for item in task.blind}
        for question in task.questions:
            votes = {who: " + ".join(answer) for who, answer in question.votes if who in blind}
            accepted = {who for who, origin in question.origin_by_annotator.items() if origin == UNCHANGED}
            if len(votes) < 4 or len(set(votes.values())) < 2:
                continue
            for a, b in combinations(sorted(votes), 2):
                if accepted.issuperset((a, b)):
                    continue  # both accepted the same pre-label: no sign of copying
                counts = Counter(answer for who, answer in votes.items() if who not in (a, b)).most_common(2)
                answer, count = counts[0]
                if count < 2 or (len(counts) > 1 and counts[1][1] == count):
                    continue
                wrong = votes[a] != answer, votes[b] != answer
                either[a, b] += any(wrong)
                if all(wrong) and votes[a] == votes[b]:
                    same[a, b] += 1
                    kinds[a, b][answer, votes[a]] += 1
    total_same, total_either = sum(same.values()), sum(either.values())
    for key, n in either.items():
        others = total_either - n
        usual = (total_same - same[key]) / others if others else 1.0
        if same[key] < _MIN_SHARED * n or usual > _USUAL_SHARED[1]:
            continue
        if float(bdtrc(same[key] - 1, n, max(usual, _USUAL_SHARED[0]))) > _FALSE_COPIER / len(either):
            continue
        if kinds[key].most_common(1)[0][1] > _MAX_ONE_KIND * same[key]:
            continue  # one kind of error: a view that both hold
        yield CopiedWork(key, _later(tasks, *key), n, f"makes {100 * same[key] / n:.0f} % of the errors the same",
                         f"{same[key]} of {n} errors, {100 * usual:.1f} % among the others")  # fmt: skip
