"""Which tasks with a known ground truth are to be served now, so that everybody is measured by the policy's share.

Label Studio serves an open task with a ground truth before all others, and to everybody who asks until the first one
hands it in. Who works twice as fast asks twice as often, so everybody meets it in proportion to what they do; but one
opening measures several people. So a task is opened when those whom it is new to have together done as many other
tasks as their share asks of so many people.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# Who has handed nothing in for so long is not at work.
PRESENT = timedelta(hours=12)
# Between half a task and one and a half must be owed, so that nobody can count to the next one.
_LEAST, _SPREAD = 0.5, 1.0
# More is never owed, or taken for paid: who worked long before the setting was made is not measured day in, day out.
_MOST_OWED = 2.5


@dataclass(frozen=True)
class RequestedOverlap:
    """How a task with a ground truth is to be served.

    Attributes:
        overlap: The overlap that it is to have; None: it is to be served to nobody.
        revision: The number of the wish; each change of it has a new one.
    """

    overlap: int | None = None
    revision: int = 0


@dataclass(frozen=True)
class Known:
    """A task whose ground truth is known.

    Attributes:
        task: The task's id.
        annotators: How many annotated it, whoever made the ground truth included.
        seen: Who annotated or skipped it; Label Studio serves it to none of them again.
        wanted: The overlap that it was last given so that somebody annotates it; None: nobody is to.
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
        """How much must be owed to each who will meet it; drawn by its number, and always the same."""
        digest = hashlib.sha256(f"seed:{self.task}:{self.annotators}".encode()).digest()
        return _LEAST + _SPREAD * int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class AnnotatorQuota:
    """What an annotator did.

    Attributes:
        annotator: The annotator's id.
        owed: How many tasks with a ground truth the share owes to them by now; below 0 where they had more.
        measured: How many they had.
        recent: How many tasks of both kinds were handed in lately; 0: the annotator is not at work.
    """

    annotator: int
    owed: float
    measured: int = 0
    recent: int = 1


def streams(
    work: Iterable[tuple[int, int, int, str]], known: Mapping[int, int], *, present: str, share: float
) -> tuple[AnnotatorQuota, ...]:
    """What everybody did.

    Args:
        work: (annotator, task, annotation, when) of all annotations, the oldest first, ground truths left out.
        known: The tasks whose ground truth is known, and the annotation that it is: who annotated before it was
            there is not measured by it, or a dispute that a reviewer settled would count.
        present: Since when one must have worked to be at work, as Label Studio spells it.
        share: How much of everybody's work is to be such tasks, above 0.
    """
    owed: dict[int, float] = {}
    measured: dict[int, int] = {}
    recent: dict[int, int] = {}
    for annotator, task, annotation, when in work:
        is_measured = task in known and annotation > known[task]
        now = owed.get(annotator, 0.0) + (-1.0 if is_measured else share / (1 - share))
        owed[annotator] = min(max(now, -_MOST_OWED), _MOST_OWED)
        measured[annotator] = measured.get(annotator, 0) + is_measured
        recent[annotator] = recent.get(annotator, 0) + (when >= present)
    return tuple(AnnotatorQuota(who, account, measured[who], recent[who]) for who, account in sorted(owed.items()))


def tasks_to_serve(known: Sequence[Known], people: Sequence[AnnotatorQuota], *, first: int = 0) -> dict[int, int]:
    """The tasks that are to be served, and the overlap that each is to have for it.

    Args:
        known: The tasks that may be served.
        people: Everybody who is at work.
        first: So many come at the beginning to somebody new.
    """
    at_work = {each.annotator: each for each in people}
    asked: dict[int, int] = {}
    covered: set[int] = set()
    for task in known:
        if task.is_open and at_work.keys() - task.seen:
            asked[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen
    for who in sorted(people, key=lambda each: (each.measured >= first, -each.owed, each.annotator)):
        new = [task for task in known if who.annotator not in task.seen and task.task not in asked]
        if who.annotator in covered or not new:
            continue
        # The fewer others a task is new to, the surer it reaches the one it is meant for.
        task = min(new, key=lambda each: (len(at_work.keys() - each.seen), each.annotators, each.task))
        group = [at_work[each] for each in at_work.keys() - task.seen - covered]
        if who.measured < first or _is_due(group, task.price):
            asked[task.task] = task.annotators + 1
            covered |= at_work.keys() - task.seen
    return asked


def _is_due(group: Sequence[AnnotatorQuota], price: float) -> bool:
    """Whether these are owed enough together: so much each, of as many as will ask while the task is open."""
    fastest = max(1, *(each.recent for each in group))
    served = sum(each.recent for each in group) / fastest
    return sum(each.owed for each in group) >= served * price


def long_ago(now: float) -> str:
    """The moment since which somebody must have worked to be at work, as Label Studio spells it."""
    return (datetime.fromtimestamp(now, tz=UTC) - PRESENT).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
