"""Owns what annotators did to pre-labels: boxes accepted, moved, relabelled, added and deleted. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from labelloop.labeling.geometry.overlap import box_pairs, match_pairs
from ml_backend.learning.annotations import LabelledImage

SAME_IOU = 0.98
"""A drawn box that overlaps its pre-label by so much was not touched; less than 1, for both went through percent."""

MOVED_IOU = 0.3
"""One that overlaps it by less is no longer the same object: the pre-label was deleted and another box drawn."""


class Edits(msgspec.Struct, frozen=True):
    """Boxes by what became of them.

    Attributes:
        accepted: Pre-labels that were submitted as they were.
        moved: Those whose box was corrected.
        relabelled: Those that got another class, moved or not.
        added: Boxes that were drawn where there was no pre-label.
        deleted: Pre-labels that were removed.
    """

    accepted: int = 0
    moved: int = 0
    relabelled: int = 0
    added: int = 0
    deleted: int = 0

    @property
    def shown(self) -> int:
        """Pre-labels that the annotator began with."""
        return self.accepted + self.moved + self.relabelled + self.deleted

    @property
    def drawn(self) -> int:
        """Boxes that were submitted."""
        return self.accepted + self.moved + self.relabelled + self.added

    @property
    def made(self) -> int:
        """Things that the annotator had to do: each corrected, drawn or removed box is one."""
        return self.moved + self.relabelled + self.added + self.deleted

    def __add__(self, other: Edits) -> Edits:
        """Both together."""
        return Edits(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


def edits_of(
    shown: Sequence[LabelledImage], drawn: Sequence[LabelledImage], *, same: float = SAME_IOU, moved: float = MOVED_IOU
) -> Edits:
    """What was done to the pre-labels of one task.

    Boxes are paired one to one by overlap, first within their class; what is left may have got another class.

    Args:
        shown: The pre-labels the annotator began with, by photo.
        drawn: What was submitted, by photo; photos meet by their address.
        same: Overlap from which a pre-label counts as accepted.
        moved: Overlap from which it counts as moved.
    """
    return sum(edits_by_class(shown, drawn, same=same, moved=moved).values(), Edits())


def edits_by_class(
    shown: Sequence[LabelledImage], drawn: Sequence[LabelledImage], *, same: float = SAME_IOU, moved: float = MOVED_IOU
) -> dict[str, Edits]:
    """The same by class; what was relabelled counts for the class that was submitted."""
    before, after = {one.url: one for one in shown}, {one.url: one for one in drawn}
    found: dict[str, Edits] = {}
    for url in sorted(before.keys() | after.keys()):
        for label, one in _of_photo(
            before.get(url, LabelledImage(url)), after.get(url, LabelledImage(url)), same, moved
        ):
            found[label] = found.get(label, Edits()) + one
    return found


def together(parts: Iterable[Mapping[str, Edits]]) -> dict[str, Edits]:
    """Edits of many tasks by class."""
    found: dict[str, Edits] = {}
    for part in parts:
        for label, one in part.items():
            found[label] = found.get(label, Edits()) + one
    return found


def _of_photo(shown: LabelledImage, drawn: LabelledImage, same: float, moved: float) -> Iterable[tuple[str, Edits]]:
    if not shown.boxes:
        yield from ((label, Edits(added=1)) for label in drawn.labels)
        return
    overlap = box_pairs(np.array(shown.boxes), np.array(drawn.boxes), least=moved)
    size = len(shown.boxes), len(drawn.boxes)
    alike = np.array(shown.labels, object)[overlap.rows] == np.array(drawn.labels, object)[overlap.columns]
    kept = match_pairs(overlap.where(alike), size, threshold=moved)
    rows, columns = ([pair[side] for pair in kept] for side in (0, 1))
    left = ~(alike | np.isin(overlap.rows, rows) | np.isin(overlap.columns, columns))
    renamed = match_pairs(overlap.where(left), size, threshold=moved)
    fits = overlap.at(np.array(rows, np.intp), np.array(columns, np.intp), len(drawn.boxes))
    for column, fit in zip(columns, fits.tolist(), strict=True):
        untouched = fit >= same
        yield drawn.labels[column], Edits(accepted=1) if untouched else Edits(moved=1)
    for _, column in renamed:
        yield drawn.labels[column], Edits(relabelled=1)
    pairs = [*kept, *renamed]
    for row in set(range(len(shown.boxes))) - {row for row, _ in pairs}:
        yield shown.labels[row], Edits(deleted=1)
    for column in set(range(len(drawn.boxes))) - {column for _, column in pairs}:
        yield drawn.labels[column], Edits(added=1)
