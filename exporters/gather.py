"""The objects of a block's usual tasks, gathered into columns: those that fit are numbered, the others are said why."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.classes import ClassMap
from exporters.columns import OTHER, RING, TURNED, UPRIGHT, Columns, take
from exporters.dataset import OBJECTS_A_TASK, Object
from exporters.shapes import CLIPPED, Fitted, Unfit, fit
from exporters.usual import Draft, Drafts


class Fate(msgspec.Struct):
    """What became of the regions of a usual task.

    Attributes:
        kinds: How many upright rectangles, turned rectangles and polygons fit as a matter of columns.
        clipped: How many of those were clipped.
        labels: The labels of the regions that are in the data set.
        others: How each region fits that `exporters.shapes.fit` had to be asked about.
        dropped: (region, annotation, reason) of each that does not fit.
    """

    kinds: tuple[int, ...]
    clipped: int
    labels: Sequence[str]
    others: list[Fitted]
    dropped: list[tuple[str, int | None, str]]


def gather(drafts: Drafts, taken: Sequence[Draft], classes: ClassMap) -> tuple[Columns, list[Fate]]:
    """The objects of the drafts that were taken, in their order, and each one's fate."""
    assert drafts.shapes is not None
    assert drafts.fits is not None
    first = np.array([draft.first for draft in taken])
    lengths = np.array([draft.last for draft in taken]) - first
    begins = np.cumsum(lengths) - lengths
    rows = np.repeat(first - begins, lengths) + np.arange(lengths.sum())
    owners = np.repeat(np.arange(len(taken)), lengths)
    asked = {row: _ask(drafts, row) for row in rows[drafts.fits.kinds[rows] == OTHER].tolist()}
    unfit = [row for row, answer in asked.items() if isinstance(answer, str)]
    if unfit:
        stay = ~np.isin(rows, unfit)
        rows, owners = rows[stay], owners[stay]
    starts = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(taken)))))
    numbers = np.array([draft.task for draft in taken])
    ids = numbers[owners] * OBJECTS_A_TASK + np.arange(1, len(rows) + 1) - starts[owners]
    shapes, fits, said = drafts.shapes, drafts.fits, drafts.said
    if len(rows) < len(said.labels):
        shapes, fits = take(shapes, fits, rows)
        said = said.some(rows.tolist())
    class_ids = np.fromiter(classes.ids(said.labels), np.int64, len(rows))
    columns = Columns(starts.tolist(), shapes, fits, said, ids, class_ids, {})
    fates = _fates(columns, owners, len(taken))
    others: dict[int, Object] = {}
    if asked:
        fits = msgspec.structs.replace(fits, boxes=fits.boxes.copy(), clipped=fits.clipped.copy())
    for row, answer in asked.items():
        if isinstance(answer, str):
            owner = int(np.searchsorted(first, row, side="right")) - 1
            fates[owner].dropped.append((drafts.said.regions[row], drafts.said.annotations[row], answer))
        else:
            place = int(np.searchsorted(rows, row))
            each = others[place] = _object(columns, place, answer)
            fits.boxes[place], fits.clipped[place] = each.box, each.clipped
            fates[owners[place]].others.append(answer)
    return msgspec.structs.replace(columns, fits=fits, others=others), fates


def _ask(drafts: Drafts, row: int) -> Fitted | str:
    assert drafts.shapes is not None
    width, height = drafts.shapes.sizes[row].tolist()
    try:
        return fit(drafts.shapes.geometry(row), int(width), int(height))
    except Unfit as unfit:
        return str(unfit)


def _object(columns: Columns, row: int, fitted: Fitted) -> Object:
    number = int(columns.ids[row])
    return Object(
        number,
        int(columns.class_ids[row]),
        columns.said.labels[row],
        columns.shapes.geometry(row),
        fitted.box,
        fitted.area,
        number,
        CLIPPED in fitted.repairs,
        fitted.outline,
        columns.said.regions[row],
        annotation=columns.said.annotations[row],
        annotator=columns.said.annotators[row],
        score=columns.said.scores[row],
    )


def _fates(columns: Columns, owners: NDArray[np.int64], tasks: int) -> list[Fate]:
    kinds = columns.fits.kinds
    counts = np.stack([np.bincount(owners[kinds == kind], minlength=tasks) for kind in (UPRIGHT, TURNED, RING)], axis=1)
    clipped = np.bincount(owners[columns.fits.clipped & (kinds != OTHER)], minlength=tasks)
    return [
        Fate((upright, turned, ring), cut, columns.said.labels[start:stop], [], [])
        for (upright, turned, ring), cut, start, stop in zip(
            counts.tolist(), clipped.tolist(), columns.first[:-1], columns.first[1:], strict=True
        )
    ]
