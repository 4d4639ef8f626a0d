"""Select ground-truth tasks to serve now, so that every annotator is measured on the policy's share of tasks.

Label Studio serves an open task with a ground truth before all others, to every annotator who requests a task until the
first submits it. A faster annotator requests more often and meets it in proportion to their work, but one opening
measures several annotators. So a task is opened once the annotators who have not seen it together owe enough.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# An annotator without a submission for longer is not active.
ACTIVE_WINDOW = timedelta(hours=12)
# A task is due when between 0.5 and 1.5 tasks are owed: annotators cannot predict the next one.
_LEAST, _SPREAD = 0.5, 1.0
# Bound of the balance in both directions: earlier work does not lead to long runs of measurement.
_MOST_OWED = 2.5


@dataclass(frozen=True)
class RequestedOverlap:
    """The overlap to set on a task with a ground truth.

    Attributes:
        overlap: The overlap; None: the task is not to be served.
        revision: Number of this request; increases with each change.
    """

    overlap: int | None = None
    revision: int = 0


@dataclass(frozen=True)
class GroundTruthTask:
    """A task with a ground truth.

    Attributes:
        task: Task id.
        annotators: Number of annotators, including the author of the ground truth.
        seen_by: Annotators who submitted or skipped it; Label Studio does not serve it to them again.
        requested_overlap: The overlap last requested to measure annotators; None: none.
    """

    task: int
    annotators: int
    seen_by: frozenset[int]
    requested_overlap: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is served now."""
        return self.requested_overlap is not None and self.requested_overlap > self.annotators

    @property
    def due_threshold(self) -> float:
        """Number of tasks owed per annotator before it is served; derived from a hash of its id, so it is stable."""
        digest = hashlib.sha256(f"seed:{self.task}:{self.annotators}".encode()).digest()
        return _LEAST + _SPREAD * int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class AnnotatorQuota:
    """An annotator's balance of ground-truth tasks.

    Attributes:
        annotator: User id.
        owed: Ground-truth tasks due according to the share; below 0 if more were annotated.
        measured: Ground-truth tasks annotated.
        recent: Tasks of both kinds submitted recently; 0: not active.
    """

    annotator: int
    owed: float
    measured: int = 0
    recent: int = 1


def annotator_quotas(
    work: Iterable[tuple[int, int, int, str]], ground_truths: Mapping[int, int], *, since: str, share: float
) -> tuple[AnnotatorQuota, ...]:
    """Compute every annotator's balance.

    Args:
        work: (annotator, task, annotation, time) of all annotations, oldest first, without ground truths.
        ground_truths: Task id -> annotation id of its ground truth. Annotations before it do not count as measured;
            otherwise disputes that a reviewer resolved would.
        since: Start of the activity window, as Label Studio writes timestamps.
        share: Share of ground-truth tasks in everyone's work, in (0, 1).
    """
    owed: dict[int, float] = {}
    measured: dict[int, int] = {}
    recent: dict[int, int] = {}
    for annotator, task, annotation, when in work:
        is_measured = task in ground_truths and annotation > ground_truths[task]
        balance = owed.get(annotator, 0.0) + (-1.0 if is_measured else share / (1 - share))
        owed[annotator] = min(max(balance, -_MOST_OWED), _MOST_OWED)
        measured[annotator] = measured.get(annotator, 0) + is_measured
        recent[annotator] = recent.get(annotator, 0) + (when >= since)
    return tuple(
        AnnotatorQuota(annotator, balance, measured[annotator], recent[annotator])
        for annotator, balance in sorted(owed.items())
    )


def tasks_to_serve(
    tasks: Sequence[GroundTruthTask], annotators: Sequence[AnnotatorQuota], *, first: int = 0
) -> dict[int, int]:
    """Select the tasks to serve: task id -> overlap to set.

    Args:
        tasks: Tasks that may be served.
        annotators: The active annotators.
        first: Number of ground-truth tasks that a new annotator gets at the start.
    """
    at_work = {annotator.annotator: annotator for annotator in annotators}
    overlaps: dict[int, int] = {}
    covered: set[int] = set()
    for task in tasks:
        if task.is_open and at_work.keys() - task.seen_by:
            overlaps[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen_by
    for annotator in sorted(annotators, key=lambda quota: (quota.measured >= first, -quota.owed, quota.annotator)):
        candidates = [task for task in tasks if annotator.annotator not in task.seen_by and task.task not in overlaps]
        if annotator.annotator in covered or not candidates:
            continue
        # The fewer others have not seen a task, the more certainly it reaches this annotator.
        task = min(
            candidates,
            key=lambda candidate: (len(at_work.keys() - candidate.seen_by), candidate.annotators, candidate.task),
        )
        group = [at_work[annotator_id] for annotator_id in at_work.keys() - task.seen_by - covered]
        if annotator.measured < first or _is_due(group, task.due_threshold):
            overlaps[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen_by
    return overlaps


def _is_due(group: Sequence[AnnotatorQuota], price: float) -> bool:
    """Whether the group owes enough for one task, weighted by how many of them will request it while it is open."""
    fastest = max(1, *(quota.recent for quota in group))
    served = sum(quota.recent for quota in group) / fastest
    return sum(quota.owed for quota in group) >= served * price


def active_since(now: float) -> str:
    """Start of the activity window, as Label Studio writes timestamps."""
    return (datetime.fromtimestamp(now, tz=UTC) - ACTIVE_WINDOW).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
