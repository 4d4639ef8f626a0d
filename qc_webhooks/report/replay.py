"""What-if: replays past tasks under other thresholds, from the pairwise agreements of all tasks as arrays.

A replay adds a task's annotators in the order of submission, as the live service does: the policy's initial number,
then one more while there is no majority, up to the maximum. A task that needs one more annotator than it has counts as
``open``; no answer is invented.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.verdict.task_facts import TaskFacts

# Maximum number of annotators per task in a replay, the first ones.
MAX_ANNOTATORS = 5
_PAIRS = tuple(combinations(range(MAX_ANNOTATORS), 2))
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ReplayResult:
    """Outcome of a replay.

    Attributes:
        tasks: Number of tasks.
        first: Initial number of annotators.
        agreed: Number of annotators needed -> tasks on which they agreed.
        review: Tasks for a reviewer: disputed at the maximum number of annotators, not judged, or sent to review by the
            policy although all agree.
        open: Tasks that need one more annotator than they have.
        waiting: Tasks with fewer annotators than the initial number.
        labels: Annotations needed, including the missing ones of open tasks.
        seconds: Total time of the existing annotations among them, seconds; None without known times.
        unsettled: Tasks without a majority at the maximum number of annotators.
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
    def agreed_tasks(self) -> int:
        """Number of tasks on which annotators agreed."""
        return sum(self.agreed.values())

    @property
    def disputes(self) -> int:
        """Number of tasks whose initial annotators did not agree."""
        return self.unsettled + self.open + sum(tasks for count, tasks in self.agreed.items() if count > self.first)


@dataclass(frozen=True)
class Replay:
    """Arrays of a project for replays.

    Attributes:
        annotators: Number of annotators of each task without reviewers, ``(tasks,)``.
        overall: Overall agreement of each pair of the first five annotators, ``(tasks, 10)``, 0 to 1; -1 if they
            dispute an object; NaN without one.
        lowest: Minimum of the overall agreement and the agreement per control, ``(tasks, 10)``.
        seconds: Time of each of the first five annotators, ``(tasks, 5)``, seconds; NaN where unknown.
    """

    annotators: NDArray[np.int16]
    overall: NDArray[np.float32]
    lowest: NDArray[np.float32]
    seconds: NDArray[np.float32]

    @classmethod
    def of(cls, tasks: Iterable[TaskFacts]) -> "Replay":
        """Build from the facts of all tasks."""
        counts: list[int] = []
        overall: list[list[float]] = []
        lowest: list[list[float]] = []
        seconds: list[list[float]] = []
        nan = float("nan")
        for task in tasks:
            turns = [annotation for annotation in task.annotations if not annotation.ground_truth]
            annotators = [annotation.annotator for annotation in turns]
            scores = {frozenset((pair.a, pair.b)): pair for pair in task.pairs}
            replayed = annotators[:MAX_ANNOTATORS]
            pairs = [
                scores.get(frozenset((replayed[first], replayed[second]))) if second < len(replayed) else None
                for first, second in _PAIRS
            ]
            counts.append(len(annotators))
            thresholds = [(nan, nan) if pair is None else pair.agreement_threshold for pair in pairs]
            overall.append([mean for _, mean in thresholds])
            lowest.append([lowest_control for lowest_control, _ in thresholds])
            times = [
                annotation.seconds if annotation.seconds is not None else nan for annotation in turns[:MAX_ANNOTATORS]
            ]
            seconds.append(times + [nan] * (MAX_ANNOTATORS - len(times)))
        return cls(
            np.array(counts, dtype=np.int16),
            np.array(overall, dtype=np.float32).reshape(-1, len(_PAIRS)),
            np.array(lowest, dtype=np.float32).reshape(-1, len(_PAIRS)),
            np.array(seconds, dtype=np.float32).reshape(-1, MAX_ANNOTATORS),
        )

    @classmethod
    def read(cls, packed: bytes) -> "Replay":
        """Unpack bytes made by ``pack``."""
        with np.load(BytesIO(packed), allow_pickle=False) as arrays:
            return cls(arrays["annotators"], arrays["overall"], arrays["lowest"], arrays["seconds"])

    def pack(self) -> bytes:
        """Pack into bytes for the database."""
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
    def _compared(self) -> dict[int, NDArray[np.bool_]]:
        """Number of annotators -> whether all pairs of the first ones were compared, ``(tasks,)``."""
        compared: dict[int, NDArray[np.bool_]] = {}
        for count in range(2, MAX_ANNOTATORS + 1):
            columns = [_PAIRS.index(pair) for pair in combinations(range(count), 2)]
            compared[count] = np.isfinite(self.overall[:, columns]).sum(axis=1) == len(columns)
        return compared

    @cached_property
    def _cumulative_seconds(self) -> tuple[bool, NDArray[np.float32]]:
        """Whether any time is known, and the cumulative seconds of the first 0 to 5 annotators, ``(tasks, 6)``."""
        cumulative = np.cumsum(np.nan_to_num(self.seconds), axis=1, dtype=np.float32)
        zeros = np.zeros((len(self.seconds), 1), dtype=np.float32)
        return bool(np.isfinite(self.seconds).any()), np.concatenate((zeros, cumulative), axis=1)

    def run(
        self,
        *,
        agreement: float,
        annotators: int,
        max_annotators: int,
        every_control: bool = True,
        review_not_judged: bool = True,
    ) -> ReplayResult:
        """Replay all tasks under these settings of the policy (see ``Policy``)."""
        majorities = self._lowest_majorities if every_control else self._overall_majorities
        maximum = min(max(max_annotators, annotators), MAX_ANNOTATORS)
        submitted = self.annotators
        undecided = submitted >= annotators
        waiting = int((submitted < annotators).sum())
        used: NDArray[np.int16] = np.minimum(submitted, annotators).astype(np.int16)
        agreed: dict[int, int] = {}
        open_tasks = labels = not_judged = 0
        for count in range(annotators, maximum + 1):
            lacking = undecided & (submitted < count)
            open_tasks += int(lacking.sum())
            labels += int(lacking.sum())  # needed, but missing
            undecided = undecided & ~lacking
            used[undecided] = count
            done = undecided & (majorities[count] >= agreement - _ROUNDING)
            agreed[count] = int(done.sum())
            undecided = undecided & ~done
            not_compared = (
                undecided & ~self._compared[count]
            )  # a missing comparison may be an agreement: no further annotator is asked
            not_judged += int(not_compared.sum())
            undecided = undecided & ~not_compared
        unsettled = int(undecided.sum())
        review = unsettled + not_judged * review_not_judged
        labels += int(used.sum())
        has_times, cumulative = self._cumulative_seconds
        seconds = float(cumulative[np.arange(len(submitted)), used].sum()) if has_times else None
        return ReplayResult(
            len(submitted), annotators, agreed, review, open_tasks, waiting, labels, seconds, unsettled, not_judged
        )


def _majorities(scores: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """Number of annotators -> highest threshold at which a majority of the first ones agree, ``(tasks,)``.

    A majority agrees when all pairs of some group of more than half do (the rule of ``verdict``), so the threshold is
    the maximum over the groups of their lowest pair.

    Args:
        scores: Agreement of each pair, ``(tasks, 10)``, 0 to 1; NaN without one.
    """
    filled = np.nan_to_num(scores, nan=-1.0)
    majorities = {}
    for count in range(2, MAX_ANNOTATORS + 1):
        size = max(2, count // 2 + 1)
        worst_pair = [
            filled[:, [_PAIRS.index(pair) for pair in combinations(group, 2)]].min(axis=1)
            for group in combinations(range(count), size)
        ]
        majorities[count] = np.max(worst_pair, axis=0) if len(filled) else np.zeros(0, dtype=np.float32)
    return majorities
