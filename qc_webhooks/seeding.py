"""Which annotators are to be measured now by a task whose ground truth is known, and by which task."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# Who has handed nothing in for so long is not waited for: others would be served the task in that one's place.
PRESENT = timedelta(hours=12)
# Tasks come between half and one and a half times the usual distance, so that nobody can count to the next one.
_NEAREST, _SPREAD = 0.5, 1.0


@dataclass(frozen=True)
class Wish:
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


@dataclass(frozen=True)
class Stream:
    """What an annotator did last.

    Attributes:
        annotator: The annotator's id.
        since: How many tasks came since the last one whose ground truth was known.
        measured: How many of those there were.
        last: The last one's id; 0: there was none.
    """

    annotator: int
    since: int
    measured: int = 0
    last: int = 0

    def is_due(self, share: float, first: int) -> bool:
        """Whether the next task is to be one whose ground truth is known.

        Args:
            share: How many of all tasks are to be such, above 0.
            first: So many come at the beginning.
        """
        return self.measured < first or self.since >= self.distance(share)

    def distance(self, share: float) -> int:
        """How many other tasks come between the last one and the next; drawn anew each time, and always the same."""
        digest = hashlib.sha256(f"seed:{self.annotator}:{self.last}:{self.measured}".encode()).digest()
        drawn = _NEAREST + _SPREAD * int.from_bytes(digest[:8], "big") / 2**64
        return max(1, round(drawn * (1 - share) / share))


def streams(work: Iterable[tuple[int, int, int]], known: Mapping[int, int]) -> tuple[Stream, ...]:
    """What everybody did last.

    Args:
        work: (annotator, task, annotation) of all annotations, the newest first, ground truths themselves left out.
        known: The tasks whose ground truth is known, and the annotation that it is: who annotated before it was
            there is not measured by it, or a dispute that a reviewer settled would count.
    """
    since: dict[int, int] = {}
    measured: dict[int, int] = {}
    last: dict[int, int] = {}
    for annotator, task, annotation in work:
        since.setdefault(annotator, 0)
        if task in known and annotation > known[task]:
            last.setdefault(annotator, task)
            measured[annotator] = measured.get(annotator, 0) + 1
        elif annotator not in last:
            since[annotator] += 1
    return tuple(Stream(who, count, measured.get(who, 0), last.get(who, 0)) for who, count in sorted(since.items()))


def seeds(known: Sequence[Known], due: Sequence[Stream], present: Iterable[int]) -> dict[int, int]:
    """The tasks that are to be served, and the overlap that each is to have for it.

    Label Studio serves a task to whoever asks first. So each who is due gets, of the tasks that are new to them, the
    one that fewest of the others could be served in their place; one that is open already before any other.

    Args:
        known: The tasks that may be served.
        due: Who is to be measured.
        present: Everybody who is at work.
    """
    everybody, waiting = set(present), {each.annotator for each in due}
    asked: dict[int, int] = {}
    for who in sorted(due, key=lambda each: (-each.since, each.annotator)):
        new = [task for task in known if who.annotator not in task.seen]
        if not new:
            continue
        chosen = min(
            new, key=lambda task: (not task.is_open, len(everybody - waiting - task.seen), task.annotators, task.task)
        )
        asked[chosen.task] = asked.get(chosen.task, chosen.annotators) + 1
    return asked


def long_ago(now: float) -> str:
    """The moment since which somebody must have worked to be at work, as Label Studio spells it."""
    return (datetime.fromtimestamp(now, tz=UTC) - PRESENT).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
