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
PRESENT = timedelta(hours=12)
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
class Known:
    """A task with a ground truth.

    Attributes:
        task: Task id.
        annotators: Number of annotators, including the author of the ground truth.
        seen: Annotators who submitted or skipped it; Label Studio does not serve it to them again.
        wanted: The overlap last requested to measure annotators; None: none.
    """

    task: int
    annotators: int
    seen: frozenset[int]
    wanted: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is served now."""
        return self.wanted is not None and self.wanted > self.annotators

    @property
    def price(self) -> float:
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


def streams(
    work: Iterable[tuple[int, int, int, str]], known: Mapping[int, int], *, present: str, share: float
) -> tuple[AnnotatorQuota, ...]:
    """Compute every annotator's balance.

    Args:
        work: (annotator, task, annotation, time) of all annotations, oldest first, without ground truths.
        known: Task id -> annotation id of its ground truth. Annotations before it do not count as measured; otherwise
            disputes that a reviewer resolved would.
        present: Start of the activity window, as Label Studio writes timestamps.
        share: Share of ground-truth tasks in everyone's work, in (0, 1).
    """
    owed: dict[int, float] = {}
    measured: dict[int, int] = {}
    recent: dict[int, int] = {}
    for annotator, task, annotation, when in work:
        is_measured = task in known and annotation > known[task]
        balance = owed.get(annotator, 0.0) + (-1.0 if is_measured else share / (1 - share))
        owed[annotator] = min(max(balance, -_MOST_OWED), _MOST_OWED)
        measured[annotator] = measured.get(annotator, 0) + is_measured
        recent[annotator] = recent.get(annotator, 0) + (when >= present)
    return tuple(
        AnnotatorQuota(annotator, balance, measured[annotator], recent[annotator])
        for annotator, balance in sorted(owed.items())
    )


def tasks_to_serve(known: Sequence[Known], people: Sequence[AnnotatorQuota], *, first: int = 0) -> dict[int, int]:
    """Select the tasks to serve: task id -> overlap to set.

    Args:
        known: Tasks that may be served.
        people: The active annotators.
        first: Number of ground-truth tasks that a new annotator gets at the start.
    """
    at_work = {annotator.annotator: annotator for annotator in people}
    overlaps: dict[int, int] = {}
    covered: set[int] = set()
    for task in known:
        if task.is_open and at_work.keys() - task.seen:
            overlaps[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen
    for annotator in sorted(people, key=lambda quota: (quota.measured >= first, -quota.owed, quota.annotator)):
        candidates = [task for task in known if annotator.annotator not in task.seen and task.task not in overlaps]
        if annotator.annotator in covered or not candidates:
            continue
        # The fewer others have not seen a task, the more certainly it reaches this annotator.
        task = min(
            candidates,
            key=lambda candidate: (len(at_work.keys() - candidate.seen), candidate.annotators, candidate.task),
        )
        group = [at_work[annotator_id] for annotator_id in at_work.keys() - task.seen - covered]
        if annotator.measured < first or _is_due(group, task.price):
            overlaps[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen
    return overlaps


def _is_due(group: Sequence[AnnotatorQuota], price: float) -> bool:
    """Whether the group owes enough for one task, weighted by how many of them will request it while it is open."""
    fastest = max(1, *(quota.recent for quota in group))
    served = sum(quota.recent for quota in group) / fastest
    return sum(quota.owed for quota in group) >= served * price


def long_ago(now: float) -> str:
    """Start of the activity window, as Label Studio writes timestamps."""
    return (datetime.fromtimestamp(now, tz=UTC) - PRESENT).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
