"""What-if: the past under other thresholds. Every task's pairwise agreements as arrays, replayed in a few milliseconds.

A replay walks through a task's annotators in the order in which they submitted, as the live service did: as many as
the policy asks for at first, then one more while there is no majority, up to the maximum. Where the replay asks for an
annotator whom nobody asked, the record ends and the task counts as ``open``: what that one would have said is not
known, and is not made up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.facts import Facts
from qc_webhooks.verdict import largest_group

# Of more annotators than these the first ones are replayed: 2 ** 10 patterns of who agrees with whom are looked up.
MOST_ANNOTATORS = 5
_PAIRS = tuple(combinations(range(MOST_ANNOTATORS), 2))
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Replayed:
    """What would have come of the past.

    Attributes:
        tasks: All tasks.
        first: How many annotators are asked at first.
        agreed: Number of annotators that it took -> tasks on which they agreed.
        review: Tasks that would have gone to a reviewer: no majority among the most annotators who are asked.
        open: Tasks for which one more annotator would have been asked than there was.
        waiting: Tasks with fewer annotators than are asked at first.
        labels: Annotations that these took, those asked for in vain included.
        seconds: Time that the annotations of the record among them took; None where no time is known.
    """

    tasks: int
    first: int
    agreed: dict[int, int]
    review: int
    open: int
    waiting: int
    labels: int
    seconds: float | None

    @property
    def settled(self) -> int:
        """Tasks on which annotators agreed."""
        return sum(self.agreed.values())

    @property
    def disputes(self) -> int:
        """Tasks whose first annotators did not agree."""
        return self.review + self.open + sum(tasks for count, tasks in self.agreed.items() if count > self.first)


@dataclass(frozen=True)
class Replay:
    """The record of a project.

    Attributes:
        annotators: How many annotated each task, reviewers not counted, of shape ``(tasks,)``.
        overall: Overall agreement of each two of the first five, of shape ``(tasks, 10)``; NaN where there are fewer.
        lowest: The lowest of that and of every control's.
        seconds: Time that each of the first five took, of shape ``(tasks, 5)``; NaN where it is not known.
    """

    annotators: NDArray[np.int16]
    overall: NDArray[np.float32]
    lowest: NDArray[np.float32]
    seconds: NDArray[np.float32]

    @classmethod
    def of(cls, tasks: Iterable[Facts]) -> "Replay":
        """From the facts of every task."""
        counts: list[int] = []
        overall: list[list[float]] = []
        lowest: list[list[float]] = []
        seconds: list[list[float]] = []
        nan = float("nan")
        for task in tasks:
            who = [turn.annotator for turn in task.blind]
            scores = {frozenset((pair.a, pair.b)): pair for pair in task.pairs}
            first = who[:MOST_ANNOTATORS]
            found = [
                scores.get(frozenset((first[one], first[other]))) if other < len(first) else None
                for one, other in _PAIRS
            ]
            counts.append(len(who))
            overall.append([nan if pair is None else pair.overall for pair in found])
            lowest.append([nan if pair is None else min(pair.overall, *pair.controls.values(), 1.0) for pair in found])
            times = [turn.seconds if turn.seconds is not None else nan for turn in task.blind[:MOST_ANNOTATORS]]
            seconds.append(times + [nan] * (MOST_ANNOTATORS - len(times)))
        return cls(
            np.array(counts, dtype=np.int16),
            np.array(overall, dtype=np.float32).reshape(-1, len(_PAIRS)),
            np.array(lowest, dtype=np.float32).reshape(-1, len(_PAIRS)),
            np.array(seconds, dtype=np.float32).reshape(-1, MOST_ANNOTATORS),
        )

    @classmethod
    def read(cls, packed: bytes) -> "Replay":
        """From what ``pack`` made."""
        with np.load(BytesIO(packed), allow_pickle=False) as arrays:
            return cls(arrays["annotators"], arrays["overall"], arrays["lowest"], arrays["seconds"])

    def pack(self) -> bytes:
        """As bytes for the database."""
        out = BytesIO()
        np.savez_compressed(
            out, annotators=self.annotators, overall=self.overall, lowest=self.lowest, seconds=self.seconds
        )
        return out.getvalue()

    def run(self, *, agreement: float, annotators: int, max_annotators: int, every_control: bool = True) -> Replayed:
        """The past under these settings of the policy (see ``Policy``)."""
        scores = self.lowest if every_control else self.overall
        agrees = np.nan_to_num(scores, nan=-1.0) >= agreement - _ROUNDING
        most = min(max(max_annotators, annotators), MOST_ANNOTATORS)
        there = self.annotators
        undecided = there >= annotators
        waiting = int((there < annotators).sum())
        taken: NDArray[np.int16] = np.minimum(there, annotators).astype(np.int16)
        agreed: dict[int, int] = {}
        open_ = review = labels = 0
        for count in range(annotators, most + 1):
            short = undecided & (there < count)
            open_ += int(short.sum())
            labels += int(short.sum())  # asked for, and not in the record
            undecided = undecided & ~short
            taken[undecided] = count
            done = undecided & _majority(agrees, count)
            agreed[count] = int(done.sum())
            undecided = undecided & ~done
        review = int(undecided.sum())
        labels += int(taken.sum())
        used = np.arange(MOST_ANNOTATORS) < taken[:, None]
        known = np.where(used, self.seconds, np.nan)
        seconds = float(np.nansum(known)) if np.isfinite(known).any() else None
        return Replayed(len(there), annotators, agreed, review, open_, waiting, labels, seconds)


def _majority(agrees: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """(tasks,): whether most of the first ``count`` annotators agree with each other."""
    columns = [place for place, pair in enumerate(_PAIRS) if pair[1] < count]
    patterns = agrees[:, columns] @ (1 << np.arange(len(columns)))
    return np.array(_majorities(count), dtype=bool)[patterns]


@cache
def _majorities(count: int) -> Sequence[bool]:
    """By pattern of who agrees with whom, whether there is a majority; the rule of ``verdict``."""
    pairs = [pair for pair in _PAIRS if pair[1] < count]
    found = []
    for pattern in range(1 << len(pairs)):
        friends: dict[int, set[int]] = {place: set() for place in range(count)}
        for bit, (one, other) in enumerate(pairs):
            if pattern >> bit & 1:
                friends[one].add(other)
                friends[other].add(one)
        group = len(largest_group(friends))
        found.append(group >= 2 and 2 * group > count)
    return tuple(found)
