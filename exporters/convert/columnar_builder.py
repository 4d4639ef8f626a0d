"""The objects of a block's usual tasks, gathered into columns: those that fit are numbered, the others are said why."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.columns import NOT_VECTORISED, Columns, take
from exporters.convert.fast_decoder import FastBatch, FastTask
from exporters.model.clipping import Fitted
from exporters.model.records import OBJECTS_A_TASK, Object
from exporters.structures.arrays import offsets, pack

Dropped = tuple[str, int | None, str]
"""(region, annotation, reason)."""


class RegionOutcomes(msgspec.Struct, frozen=True):
    """What became of the regions of some usual tasks, by the places of the tasks.

    Attributes:
        counts: How many upright rectangles, turned rectangles and polygons of a task fit as a matter of columns, and
            how many of those were clipped.
        others: How each region fits that is no matter of columns; for tasks that have such.
        dropped: Those that do not fit; likewise.
    """

    counts: list[list[int]]
    others: dict[int, list[Fitted]]
    dropped: dict[int, list[Dropped]]


def build_columns(
    drafts: FastBatch, taken: Sequence[FastTask], classes: Sequence[str]
) -> tuple[Columns, RegionOutcomes]:
    """The objects of the drafts that were taken, in their order, and what became of their regions.

    Args:
        drafts: those of a block.
        taken: some of them, in their order; all their labels are classes.
        classes: the names of the classes, in the order of their numbers.
    """
    assert drafts.shapes is not None
    assert drafts.fits is not None
    first = np.frombuffer(pack([draft.first for draft in taken], "q"), np.int64)
    lengths = np.frombuffer(pack([draft.last for draft in taken], "q"), np.int64) - first
    tasks = np.frombuffer(pack([draft.task for draft in taken], "q"), np.int64)
    begins = np.cumsum(lengths) - lengths
    rows = np.repeat(first - begins, lengths) + np.arange(lengths.sum())
    owners = np.repeat(np.arange(len(taken)), lengths)
    asked = {row: drafts.asked[row] for row in rows[drafts.fits.kinds[rows] == NOT_VECTORISED].tolist()}
    unfit = [row for row, answer in asked.items() if isinstance(answer, str)]
    if unfit:
        stay = ~np.isin(rows, unfit)
        rows, owners = rows[stay], owners[stay]
    first_row = offsets(np.bincount(owners, minlength=len(taken)))
    ids = tasks[owners] * OBJECTS_A_TASK + np.arange(1, len(rows) + 1) - first_row[owners]
    shapes, fits, said, class_ids = drafts.shapes, drafts.fits, drafts.said, drafts.class_ids
    if len(rows) < len(class_ids):
        shapes, fits = take(shapes, fits, rows)
        said, class_ids = said.some(rows.tolist()), class_ids[rows]
    columns = Columns(
        first_row.tolist(),
        [draft.annotation for draft in taken],
        [draft.annotator for draft in taken],
        shapes,
        fits,
        said,
        ids,
        class_ids,
        classes,
    )
    fates = RegionOutcomes(_counts(columns, owners, len(taken)), {}, {})
    others: dict[int, Object] = {}
    if asked:
        fits = msgspec.structs.replace(fits, boxes=fits.boxes.copy(), clipped=fits.clipped.copy())
    for row, answer in asked.items():
        if isinstance(answer, str):
            owner = int(np.searchsorted(first, row, side="right")) - 1
            lost = drafts.said.regions[row], taken[owner].annotation, answer
            fates.dropped.setdefault(owner, []).append(lost)
        else:
            place = int(np.searchsorted(rows, row))
            owner = int(owners[place])
            each = others[place] = columns.object(owner, place, answer)
            fits.boxes[place], fits.clipped[place] = each.box, each.clipped
            fates.others.setdefault(owner, []).append(answer)
    return msgspec.structs.replace(columns, fits=fits, others=others), fates


def _counts(columns: Columns, owners: NDArray[np.int64], tasks: int) -> list[list[int]]:
    kinds, clipped = columns.fits.kinds, columns.fits.clipped & (columns.fits.kinds != NOT_VECTORISED)
    counts = np.bincount(owners * (NOT_VECTORISED + 1) + kinds, minlength=tasks * (NOT_VECTORISED + 1)).reshape(
        tasks, -1
    )
    counts[:, NOT_VECTORISED] = np.bincount(owners[clipped], minlength=tasks)
    found: list[list[int]] = counts.tolist()
    return found
