"""The report of an import: counts of images, tasks and objects, and the items that were left out."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from labelloop.service.datasets import DatasetProblem

LabelsAs = Literal["annotations", "predictions"]


class ImportReport(msgspec.Struct, frozen=True):
    """The result of an import. Its field names are the keys of `--json`.

    Attributes:
        project: The project's id; 0 if the project was deleted again.
        format: The format of the data set, a key of `READERS`.
        labels_as: Whether the labels became annotations or predictions.
        photos: Images of the data set: new tasks, existing tasks, and those among the problems.
        tasks_made: New tasks.
        tasks_there: Images that had a task already.
        added: New annotations or predictions.
        there: Images whose annotation or prediction existed already.
        regions: Objects in the new annotations or predictions.
        empty: New annotations or predictions without objects.
        unlabelled: Images imported without an annotation or prediction, since the data set has no readable labels.
        problems: Items that were left out, with the reason.
        notes: Assumptions and changes, with their counts.
        stopped: Whether the import was stopped before the end.
    """

    project: int
    format: str
    labels_as: LabelsAs
    photos: int
    tasks_made: int
    tasks_there: int
    added: int
    there: int
    regions: int
    problems: Sequence[DatasetProblem]
    notes: Mapping[str, int] = {}
    stopped: bool = False
    empty: int = 0
    unlabelled: int = 0

    @property
    def failed_share(self) -> float:
        """The share of failed items in all images and objects, 0 to 1."""
        return sum(problem.failed for problem in self.problems) / max(1, self.photos + self.regions)
