"""Build the columns of objects from the tasks that the fast decoder read, and number the objects."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.columns import NOT_VECTORISED, POINT, Columns, PointColumns, count_kinds, take_rows
from exporters.convert.fast_decoder import FastBatch, FastTask
from exporters.model.clipping import ClippedShape
from exporters.model.records import OBJECTS_A_TASK, Object
from exporters.structures.arrays import offsets, pack

# (region id, annotation id, reason).
DroppedRegion = tuple[str, int | None, str]
_NO_COUNTS = (0, 0, 0)


class RegionOutcomes(msgspec.Struct, frozen=True):
    """The outcomes of the regions of some tasks, by the index of the task.

    Attributes:
        counts: Per task: upright rectangles, rotated rectangles, polygons and ellipses clipped in columns, how many
            were cut by the edge, and key points.
        noted: Per task: the regions with flags, with attributes and with notes; empty if no region has any.
        others: Per task: the shapes of the regions clipped one by one, if any.
        dropped: Per task: the rejected regions, if any.
        several: Per task: the number of regions with several labels, and their further labels by kind of row; empty if
            no region has several.
    """

    counts: list[list[int]]
    others: dict[int, list[ClippedShape]]
    dropped: dict[int, list[DroppedRegion]]
    noted: list[tuple[int, ...]] = []
    several: list[tuple[int, ...]] = []


def build_columns(
    batch: FastBatch, accepted: Sequence[FastTask], classes: Sequence[str]
) -> tuple[Columns, RegionOutcomes]:
    """Build the columns of the accepted tasks of a block, and the outcomes of their regions.

    Args:
        batch: the decoded tasks of the block.
        accepted: the tasks to build, in order; all their labels have class numbers.
        classes: the class names, in the order of their numbers.
    """
    assert batch.shapes is not None
    assert batch.clipped is not None
    first = np.frombuffer(pack([task.first for task in accepted], "q"), np.int64)
    lengths = np.frombuffer(pack([task.last for task in accepted], "q"), np.int64) - first
    tasks = np.frombuffer(pack([task.task for task in accepted], "q"), np.int64)
    begins = np.cumsum(lengths) - lengths
    rows = np.repeat(first - begins, lengths) + np.arange(lengths.sum())
    owners = np.repeat(np.arange(len(accepted)), lengths)
    remaining = {row: batch.remaining[row] for row in rows[batch.clipped.kinds[rows] == NOT_VECTORISED].tolist()}
    rejected_rows = [row for row, result in remaining.items() if isinstance(result, str)]
    if rejected_rows:
        is_kept = np.ones(len(batch.clipped.kinds), np.bool_)
        is_kept[rejected_rows] = False
        rows, owners = rows[is_kept[rows]], owners[is_kept[rows]]
    first_row = offsets(np.bincount(owners, minlength=len(accepted)))
    ids = tasks[owners] * OBJECTS_A_TASK + np.arange(1, len(rows) + 1) - first_row[owners]
    is_point = batch.clipped.kinds[rows] == POINT
    points = _point_columns(batch, rows[is_point], owners[is_point], ids[is_point], len(accepted))
    is_first = ~batch.repeats[rows]
    counts = _counts(batch, rows[is_first], owners[is_first], len(accepted))
    if points is not None:
        rows, owners, ids = rows[~is_point], owners[~is_point], ids[~is_point]
        first_row = offsets(np.bincount(owners, minlength=len(accepted)))
    shapes, clipped, metadata, class_ids = batch.shapes, batch.clipped, batch.metadata, batch.class_ids
    if len(rows) < len(class_ids):
        shapes, clipped = take_rows(shapes, clipped, rows)
        metadata, class_ids = metadata.take(rows.tolist()), class_ids[rows]
    columns = Columns(
        first_row.tolist(),
        [task.annotation for task in accepted],
        [task.annotator for task in accepted],
        shapes,
        clipped,
        metadata,
        ids,
        class_ids,
        classes,
        points=points,
        regions=_regions(batch.repeats[rows]),
    )
    outcomes = RegionOutcomes(counts, {}, {}, _noted(columns), _several(columns, owners, len(accepted)))
    others: dict[int, Object] = {}
    if remaining:
        clipped = msgspec.structs.replace(clipped, boxes=clipped.boxes.copy(), is_clipped=clipped.is_clipped.copy())
    for row, result in remaining.items():
        if isinstance(result, str):
            if batch.repeats[row]:
                continue
            owner = int(np.searchsorted(first, row, side="right")) - 1
            dropped_region = batch.metadata.regions[row], accepted[owner].annotation, result
            outcomes.dropped.setdefault(owner, []).append(dropped_region)
        else:
            new_row = int(np.searchsorted(rows, row))
            owner = int(owners[new_row])
            obj = others[new_row] = columns.object(owner, new_row, result)
            clipped.boxes[new_row], clipped.is_clipped[new_row] = obj.box, obj.clipped
            if batch.repeats[row]:
                continue
            outcomes.others.setdefault(owner, []).append(result)
    return msgspec.structs.replace(columns, clipped=clipped, others=others), outcomes


def _regions(repeats: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Return `Columns.regions` of rows that each repeat the region of the row before or not."""
    return np.maximum.accumulate(np.where(repeats, 0, np.arange(len(repeats)))) if repeats.any() else None


def _several(columns: Columns, owners: NDArray[np.int64], tasks: int) -> list[tuple[int, ...]]:
    """Return `RegionOutcomes.several`."""
    if columns.regions is None:
        return []
    further = ~columns.is_first
    regions = np.bincount(owners[np.unique(columns.regions[further])], minlength=tasks)
    kinds = count_kinds(owners[further], columns.clipped.kinds[further], tasks)
    return list(map(tuple, np.column_stack((regions, kinds)).tolist()))


def _point_columns(
    batch: FastBatch, rows: NDArray[np.int64], owners: NDArray[np.int64], ids: NDArray[np.int64], tasks: int
) -> PointColumns | None:
    """Return the key points at some rows; None if there are none."""
    if not len(rows):
        return None
    assert batch.shapes is not None
    listed = rows.tolist()
    return PointColumns(
        offsets(np.bincount(owners, minlength=tasks)).tolist(),
        batch.shapes.boxes[rows, :2],
        batch.shapes.boxes[rows, 2],
        ids,
        [batch.names[row] for row in listed],
        [batch.parents.get(row, "") for row in listed],
        [row in batch.hidden for row in listed],
        batch.metadata.take(listed),
    )


def _counts(batch: FastBatch, rows: NDArray[np.int64], owners: NDArray[np.int64], tasks: int) -> list[list[int]]:
    assert batch.clipped is not None
    kinds = batch.clipped.kinds[rows]
    is_clipped = batch.clipped.is_clipped[rows] & (kinds != NOT_VECTORISED)
    counts = count_kinds(owners, kinds, tasks)
    counts[:, NOT_VECTORISED] = np.bincount(owners[is_clipped], minlength=tasks)
    result: list[list[int]] = counts.tolist()
    return result


def _noted(columns: Columns) -> list[tuple[int, ...]]:
    """Count the objects of each image with flags, with attributes and with notes; empty if none has any."""
    if not columns.metadata.notes:
        return []
    counts = np.zeros((len(columns) + 1, 3), np.int64)
    counts[1:] = [_NO_COUNTS if notes is None else notes.counts for notes in columns.metadata.notes]
    counts[1:][~columns.is_first] = 0
    sums = np.cumsum(counts, axis=0)[np.array(columns.first)]
    return list(map(tuple, np.diff(sums, axis=0).tolist()))
