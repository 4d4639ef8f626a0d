"""What an import did, for a person and for a program: the sums of photos and objects match."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from labelloop.service.datasets import Problem

As = Literal["annotations", "predictions"]


class Imported(msgspec.Struct, frozen=True):
    """The bill of an import.

    Attributes:
        project: The project's number.
        format: What the data set is, as `READERS` names it.
        labels_as: What its labels became.
        photos: Photos of the data set: those made into tasks, found as tasks, and those among the problems.
        tasks_made: Tasks that are new.
        tasks_there: Photos that were tasks already.
        added: Annotations or predictions that are new.
        there: Photos whose annotation or prediction was there already.
        regions: Objects in what was added.
        empty: Of what was added: those that say that nothing is on the photo.
        unlabelled: Photos that came in without an annotation or prediction: the data set says nothing of them, or
            nothing that could be read.
        problems: What was left out, each with its reason: failures, and what was not asked for.
        notes: What was assumed or changed, with how often.
        stopped: Whether it was stopped before the end.
    """

    project: int
    format: str
    labels_as: As
    photos: int
    tasks_made: int
    tasks_there: int
    added: int
    there: int
    regions: int
    problems: Sequence[Problem]
    notes: Mapping[str, int] = {}
    stopped: bool = False
    empty: int = 0
    unlabelled: int = 0

    @property
    def failed_share(self) -> float:
        """How much of the data set failed, of all photos and objects."""
        return sum(each.failed for each in self.problems) / max(1, self.photos + self.regions)
