"""Count annotators' edits of pre-labels: boxes accepted, moved, relabelled, added and deleted. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from labelloop.labeling.geometry.overlap import box_iou_pairs, match_pairs
from ml_backend.learning.annotations import LabelledImage

# IoU from which a box counts as unchanged; below 1, because both were rounded in percent coordinates.
SAME_IOU = 0.98

# IoU below which a box is another object: the pre-label was deleted and a new box added.
MOVED_IOU = 0.3


class PrelabelEdits(msgspec.Struct, frozen=True):
    """Numbers of boxes by kind of edit.

    Attributes:
        accepted: Pre-labels submitted unchanged.
        moved: Pre-labels whose box was changed.
        relabelled: Pre-labels whose class was changed, moved or not.
        added: Boxes drawn without a pre-label.
        deleted: Pre-labels that were deleted.
    """

    accepted: int = 0
    moved: int = 0
    relabelled: int = 0
    added: int = 0
    deleted: int = 0

    @property
    def prelabels(self) -> int:
        """Number of pre-labels."""
        return self.accepted + self.moved + self.relabelled + self.deleted

    @property
    def submitted(self) -> int:
        """Number of submitted boxes."""
        return self.accepted + self.moved + self.relabelled + self.added

    @property
    def total(self) -> int:
        """Number of edits: every changed, added or deleted box is one."""
        return self.moved + self.relabelled + self.added + self.deleted

    def __add__(self, other: PrelabelEdits) -> PrelabelEdits:
        """Add the numbers of two."""
        return PrelabelEdits(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


def edits_of(
    prelabels: Sequence[LabelledImage],
    drawn: Sequence[LabelledImage],
    *,
    same: float = SAME_IOU,
    moved: float = MOVED_IOU,
) -> PrelabelEdits:
    """Count the edits of one task's pre-labels.

    Boxes are matched one to one by IoU, first within their class, then across classes.

    Args:
        prelabels: The pre-labels, by image.
        drawn: The submitted boxes, by image; images are matched by URL.
        same: IoU from which a pre-label counts as accepted.
        moved: IoU from which it counts as moved.
    """
    return sum(edits_by_class(prelabels, drawn, same=same, moved=moved).values(), PrelabelEdits())


def edits_by_class(
    prelabels: Sequence[LabelledImage],
    drawn: Sequence[LabelledImage],
    *,
    same: float = SAME_IOU,
    moved: float = MOVED_IOU,
) -> dict[str, PrelabelEdits]:
    """Count the edits by class; a relabelled box counts for its submitted class.

    Answers about the image count too: a value is one box, and an answer of one value that was changed is relabelled.
    """
    before, after = {image.url: image for image in prelabels}, {image.url: image for image in drawn}
    by_class: dict[str, PrelabelEdits] = {}
    for url in sorted(before.keys() | after.keys()):
        for label, edits in _of_photo(
            before.get(url, LabelledImage(url)), after.get(url, LabelledImage(url)), same, moved
        ):
            by_class[label] = by_class.get(label, PrelabelEdits()) + edits
        for label, edits in _of_answers(before.get(url, LabelledImage(url)), after.get(url, LabelledImage(url))):
            by_class[label] = by_class.get(label, PrelabelEdits()) + edits
    return by_class


def merged_by_class(parts: Iterable[Mapping[str, PrelabelEdits]]) -> dict[str, PrelabelEdits]:
    """Return the sum of edits of several tasks, by class."""
    by_class: dict[str, PrelabelEdits] = {}
    for part in parts:
        for label, edits in part.items():
            by_class[label] = by_class.get(label, PrelabelEdits()) + edits
    return by_class


def _of_answers(prelabels: LabelledImage, drawn: LabelledImage) -> Iterator[tuple[str, PrelabelEdits]]:
    for control in dict.fromkeys((*prelabels.choices, *drawn.choices)):
        prelabelled, submitted = prelabels.choices.get(control, ()), drawn.choices.get(control, ())
        yield from ((value, PrelabelEdits(accepted=1)) for value in submitted if value in prelabelled)
        added = [value for value in submitted if value not in prelabelled]
        deleted = [value for value in prelabelled if value not in submitted]
        if len(added) == len(deleted) == 1:
            yield added[0], PrelabelEdits(relabelled=1)
            continue
        yield from ((value, PrelabelEdits(added=1)) for value in added)
        yield from ((value, PrelabelEdits(deleted=1)) for value in deleted)


def _of_photo(
    prelabels: LabelledImage, drawn: LabelledImage, same: float, moved: float
) -> Iterable[tuple[str, PrelabelEdits]]:
    if not prelabels.boxes:
        yield from ((label, PrelabelEdits(added=1)) for label in drawn.labels)
        return
    overlap = box_iou_pairs(np.array(prelabels.boxes), np.array(drawn.boxes), min_iou=moved)
    size = len(prelabels.boxes), len(drawn.boxes)
    alike = np.array(prelabels.labels, object)[overlap.rows] == np.array(drawn.labels, object)[overlap.columns]
    matched = match_pairs(overlap.where(alike), size, threshold=moved)
    rows, columns = ([pair[side] for pair in matched] for side in (0, 1))
    unmatched = ~(alike | np.isin(overlap.rows, rows) | np.isin(overlap.columns, columns))
    renamed = match_pairs(overlap.where(unmatched), size, threshold=moved)
    fits = overlap.values_at(np.array(rows, np.intp), np.array(columns, np.intp), len(drawn.boxes))
    for column, fit in zip(columns, fits.tolist(), strict=True):
        untouched = fit >= same
        yield drawn.labels[column], PrelabelEdits(accepted=1) if untouched else PrelabelEdits(moved=1)
    for _, column in renamed:
        yield drawn.labels[column], PrelabelEdits(relabelled=1)
    pairs = [*matched, *renamed]
    for row in set(range(len(prelabels.boxes))) - {row for row, _ in pairs}:
        yield prelabels.labels[row], PrelabelEdits(deleted=1)
    for column in set(range(len(drawn.boxes))) - {column for _, column in pairs}:
        yield drawn.labels[column], PrelabelEdits(added=1)
