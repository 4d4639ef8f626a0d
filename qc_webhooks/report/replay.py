"""What-if: the past under other thresholds. Every task's pairwise agreements as arrays, replayed in a few milliseconds.

A replay walks through a task's annotators in the order in which they submitted, as the live service did: as many as
the policy asks for at first, then one more while there is no majority, up to the maximum. Where the replay asks for an
annotator whom nobody asked, the record ends and the task counts as ``open``: what that one would have said is not
known, and is not made up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.verdict.task_facts import Facts

# Of more annotators than these the first ones are replayed.
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
        review: Tasks that would have gone to a reviewer: disputed by the most annotators who are asked, not judged, or
            sent there by the policy although nobody disagrees.
        open: Tasks for which one more annotator would have been asked than there was.
        waiting: Tasks with fewer annotators than are asked at first.
        labels: Annotations that these took, those asked for in vain included.
        seconds: Time that the annotations of the record among them took; None where no time is known.
        unsettled: Tasks without a majority among the most annotators who are asked.
        not_judged: Tasks that cannot be judged.
    """

    tasks: int
    first: int
    agreed: dict[int, int]
    review: int
    open: int
    waiting: int
    labels: int
    seconds: float | None
    unsettled: int = 0
    not_judged: int = 0

    @property
    def settled(self) -> int:
        """Tasks on which annotators agreed."""
        return sum(self.agreed.values())

    @property
    def disputes(self) -> int:
        """Tasks whose first annotators did not agree."""
        return self.unsettled + self.open + sum(tasks for count, tasks in self.agreed.items() if count > self.first)


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
            turns = [turn for turn in task.turns if not turn.truth]
            who = [turn.annotator for turn in turns]
            scores = {frozenset((pair.a, pair.b)): pair for pair in task.pairs}
            first = who[:MOST_ANNOTATORS]
            found = [
                scores.get(frozenset((first[one], first[other]))) if other < len(first) else None
                for one, other in _PAIRS
            ]
            counts.append(len(who))
            overall.append([nan if pair is None else pair.overall for pair in found])
            lowest.append([nan if pair is None else min(pair.overall, *pair.controls.values(), 1.0) for pair in found])
            times = [turn.seconds if turn.seconds is not None else nan for turn in turns[:MOST_ANNOTATORS]]
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

    @cached_property
    def _overall_majorities(self) -> dict[int, NDArray[np.float32]]:
        return _majorities(self.overall)

    @cached_property
    def _lowest_majorities(self) -> dict[int, NDArray[np.float32]]:
        return _majorities(self.lowest)

    @cached_property
    def _known(self) -> dict[int, NDArray[np.bool_]]:
        """Number of annotators -> whether each two of the first so many were compared, ``(tasks,)``."""
        found: dict[int, NDArray[np.bool_]] = {}
        for count in range(2, MOST_ANNOTATORS + 1):
            places = [_PAIRS.index(pair) for pair in combinations(range(count), 2)]
            found[count] = np.isfinite(self.overall[:, places]).sum(axis=1) == len(places)
        return found

    @cached_property
    def _time(self) -> tuple[bool, NDArray[np.float32]]:
        """Whether any time is known; and the time of the first so many annotators of each task, ``(tasks, 6)``."""
        added = np.cumsum(np.nan_to_num(self.seconds), axis=1, dtype=np.float32)
        none = np.zeros((len(self.seconds), 1), dtype=np.float32)
        return bool(np.isfinite(self.seconds).any()), np.concatenate((none, added), axis=1)

    def run(
        self,
        *,
        agreement: float,
        annotators: int,
        max_annotators: int,
        every_control: bool = True,
        review_not_judged: bool = True,
    ) -> Replayed:
        """The past under these settings of the policy (see ``Policy``)."""
        majorities = self._lowest_majorities if every_control else self._overall_majorities
        most = min(max(max_annotators, annotators), MOST_ANNOTATORS)
        there = self.annotators
        undecided = there >= annotators
        waiting = int((there < annotators).sum())
        taken: NDArray[np.int16] = np.minimum(there, annotators).astype(np.int16)
        agreed: dict[int, int] = {}
        open_ = labels = not_judged = 0
        for count in range(annotators, most + 1):
            short = undecided & (there < count)
            open_ += int(short.sum())
            labels += int(short.sum())  # asked for, and not in the record
            undecided = undecided & ~short
            taken[undecided] = count
            done = undecided & (majorities[count] >= agreement - _ROUNDING)
            agreed[count] = int(done.sum())
            undecided = undecided & ~done
            gaps = undecided & ~self._known[count]  # what is not known may be an agreement: nobody else is asked
            not_judged += int(gaps.sum())
            undecided = undecided & ~gaps
        unsettled = int(undecided.sum())
        review = unsettled + not_judged * review_not_judged
        labels += int(taken.sum())
        known, until = self._time
        seconds = float(until[np.arange(len(there)), taken].sum()) if known else None
        return Replayed(len(there), annotators, agreed, review, open_, waiting, labels, seconds, unsettled, not_judged)


def _majorities(scores: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """Number of annotators -> up to which threshold most of the first so many agree with each other, ``(tasks,)``.

    Most of them agree when all pairs of some group of more than half do (the rule of ``verdict``): the threshold is
    the best group's worst pair.
    """
    known = np.nan_to_num(scores, nan=-1.0)
    found = {}
    for count in range(2, MOST_ANNOTATORS + 1):
        size = max(2, count // 2 + 1)
        worst = [
            known[:, [_PAIRS.index(pair) for pair in combinations(group, 2)]].min(axis=1)
            for group in combinations(range(count), size)
        ]
        found[count] = np.max(worst, axis=0) if len(known) else np.zeros(0, dtype=np.float32)
    return found
