"""Encode COCO annotations of a whole block from columns, byte-identical to `exporters.formats.coco`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.columns import NOT_VECTORISED, Columns, RegionNotes
from exporters.columnar.text_table import (
    Cell,
    Ints,
    decimals,
    integers,
    json_texts,
    render_rows,
    row_ends,
    split_marks,
    split_parts,
    to_units,
)
from exporters.model.keypoints import Skeleton
from labelloop.labeling.studio.region_attributes import CROWD, FLAGS, NO_OBJECT_ATTRIBUTES, POSE, ObjectAttributes

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
# Enclose text that is replaced later: the outline of a row, the whole row, its notes, its key points.
_OUTLINE_MARK, _ROW_MARK, _NOTES_MARK, _POINTS_MARK = b"\x02", b"\x03", b"\x04", b"\x05"
# The digits of a coordinate, as in `exporters.formats.coco`.
_DIGITS = 4


class ColumnarAssignment(msgspec.Struct, frozen=True):
    """The key points of a block, assigned to the objects of their images.

    Attributes:
        texts: The key points of each row as JSON, without braces; empty without a skeleton.
        undecided: The images whose key points need `Skeleton.assign`: some belong to no object, or to one twice.
        inferred: (image, number) of key points without a parent that were assigned to the image's only object.
    """

    texts: Sequence[bytes]
    undecided: AbstractSet[int] = frozenset()
    inferred: Sequence[tuple[int, int]] = ()


def assign_points(columns: Columns, skeleton: Skeleton) -> ColumnarAssignment:
    """Assign the key points of each image to its objects: see `Skeleton.assign`."""
    count = len(skeleton.names)
    xy, visibility = np.zeros((len(columns), count, 2)), np.zeros((len(columns), count), np.int64)
    undecided: set[int] = set()
    inferred: Counter[int] = Counter()
    if points := columns.points:
        index_of = {name: index for index, name in enumerate(skeleton.names)}
        rows: list[int] = []
        for image, (first, last) in enumerate(zip(points.first, points.first[1:], strict=False)):
            if first == last:
                continue
            start, stop = columns.first[image], columns.first[image + 1]
            row_of = dict(zip(columns.metadata.regions[start:stop], range(start, stop), strict=True))
            parents = points.parents[first:last]
            if stop - start == 1 and not any(parents):
                inferred[image] = last - first
                rows += [start] * (last - first)
            else:
                rows += [row_of.get(parent, -1) for parent in parents]
        owners, names = np.array(rows), np.array([index_of.get(label, -1) for label in points.labels])
        image_of = np.repeat(np.arange(len(points.first) - 1), np.diff(points.first))
        keys = owners * count + names
        order = np.argsort(keys)
        wrong = (owners < 0) | (names < 0)
        wrong[order[1:]] |= keys[order[1:]] == keys[order[:-1]]
        undecided = set(image_of[wrong].tolist())
        xy[owners[~wrong], names[~wrong]] = points.xy[~wrong]
        visibility[owners[~wrong], names[~wrong]] = np.where(points.hidden, 1, 2)[~wrong]
    kept = [(image, times) for image, times in inferred.items() if image not in undecided]
    return ColumnarAssignment(_point_texts(xy, visibility), undecided, kept)


def _point_texts(xy: NDArray[np.float64], visibility: Ints) -> list[bytes]:
    """Return the key points of each object as JSON: (rows, points, 2), (rows, points)."""
    objects, count = visibility.shape
    if not objects:
        return []
    x, y = decimals(to_units(xy.reshape(-1, 2).T, _DIGITS), _DIGITS)
    cells: list[Cell] = [*x, b",", *y, b",", *integers(visibility.ravel())]
    first = np.arange(objects + 1) * count
    lists = split_parts(render_rows([*cells, row_ends(first, b",")], objects * count), first)
    numbers = (visibility > 0).sum(axis=1).tolist()
    return [b'"keypoints":[%b],"num_keypoints":%d' % pair for pair in zip(lists, numbers, strict=True)]


def merge_attributes(remarks: ObjectAttributes, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an object: imported ones, its flags, and per-region answers."""
    flags = {flag: True for flag in FLAGS if flag in remarks.flags and flag != CROWD}
    pose = {POSE: remarks.pose} if remarks.pose else {}
    return {**remarks.attributes, **flags, **pose, **answers}


def annotation_rows(
    columns: Columns,
    images: Sequence[int],
    categories: Ints,
    others: Mapping[int, bytes],
    points: Sequence[bytes] = (),
) -> list[bytes]:
    """Return the annotations of each image as JSON, comma-separated.

    Args:
        columns: the objects.
        images: the id of each image.
        categories: (rows,), the category id of each row.
        others: the annotations of the rows of kind `NOT_VECTORISED`.
        points: the key points of each row; empty without a skeleton.
    """
    metadata, rings = columns.metadata, columns.clipped.rings
    corners = to_units(columns.clipped.boxes.T, 4)
    x0, y0, x1, y1, *sides = decimals(np.concatenate((corners, corners[2:] - corners[:2])), 4)
    [area] = decimals(
        to_units(np.where(columns.clipped.kinds == NOT_VECTORISED, 0.0, columns.clipped.areas), 4)[None], 4
    )
    outline, row = _mark_cells(columns, rings.rows, _OUTLINE_MARK), _mark_cells(columns, sorted(others), _ROW_MARK)
    lengths = np.diff(columns.first)
    cells: list[Cell] = [*row, b'{"id":', *integers(columns.ids)]
    cells += [b',"image_id":', *integers(np.repeat(np.array(images, np.int64), lengths))]
    cells += [b',"category_id":', *integers(categories)]
    cells += [b',"bbox":[', *_comma_separated([x0, y0, *sides]), b'],"area":', *area]
    cells += [b',"segmentation":[[', *outline, *_comma_separated([x0, y0, x1, y0, x1, y1, x0, y1]), *outline]
    cells += [b']],"iscrowd":0,"region_id":', json_texts(metadata.regions)]
    cells += [b',"annotation_id":', _repeat_per_image(columns.annotations, lengths)]
    cells += [b',"annotator":', _repeat_per_image(columns.annotators, lengths), *_score_cells(metadata.scores)]
    noted = [row for row, notes in enumerate(metadata.notes) if notes is not None]
    cells += _mark_cells(columns, noted, _NOTES_MARK) * 2
    cells += [b",", _POINTS_MARK, _POINTS_MARK] if points else []
    text = render_rows([*cells, b"}", *row, row_ends(columns.first, b",")], len(columns))
    text = _replace_marked(text, _OUTLINE_MARK, _outlines(columns))
    text = _replace_marked(text, _NOTES_MARK, _notes([metadata.noted(row) for row in noted]))
    text = _replace_marked(text, _POINTS_MARK, points)
    return split_parts(_replace_marked(text, _ROW_MARK, [others[row] for row in sorted(others)]), columns.first)


def written_boxes(columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the boxes, (rows, 4), and the areas, (rows,), as a reader finds them in the annotations."""
    corners = to_units(columns.clipped.boxes, _DIGITS)
    low = corners[:, :2] / 10.0**_DIGITS
    high = low + (corners[:, 2:] - corners[:, :2]) / 10.0**_DIGITS
    areas = columns.clipped.areas.copy()
    for row, obj in columns.others.items():
        areas[row] = obj.area
    return np.hstack((low, high)), to_units(areas, _DIGITS) / 10.0**_DIGITS


def _mark_cells(columns: Columns, rows: Sequence[int] | Ints, mark: bytes) -> list[Cell]:
    """Return a cell with a mark in some rows; no cell if there are no rows."""
    if not len(rows):
        return []
    cell = np.zeros(len(columns), "S1")
    cell[rows] = mark
    return [cell]


def _replace_marked(text: bytes, mark: bytes, replacements: Sequence[bytes]) -> bytes:
    """Replace the text between each pair of marks."""
    if not replacements:
        return text
    pieces = list(split_marks(text, mark))
    pieces[1::2] = replacements
    return b"".join(pieces)


def _notes(notes: Sequence[RegionNotes]) -> list[bytes]:
    """Return the attributes and the ``meta`` of some rows, as they follow the other keys of an annotation."""
    attributes = [
        note.attributes if note.remarks is NO_OBJECT_ATTRIBUTES else merge_attributes(note.remarks, note.attributes)
        for note in notes
    ]
    texts = [b',"attributes":' + text if text != b"{}" else b"" for text in _encode_lines(attributes).split(b"\n")[:-1]]
    for index, note in enumerate(notes):
        if note.remarks.meta:
            texts[index] += b',"meta":' + _encode(note.remarks.meta)
    return texts


def _score_cells(scores: Sequence[float | None]) -> list[Cell]:
    if scores.count(None) == len(scores):
        return []
    return [np.array([b"" if score is None else b',"score":%b' % _encode(score) for score in scores])]


def _comma_separated(values: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Return the cells of comma-separated numbers."""
    return [cell for number in values for cell in (b",", *number)][1:]


def _repeat_per_image(values: Sequence[int | None], lengths: Ints) -> Cell:
    """Return a cell that repeats a value of each image, as JSON, in all of its rows."""
    return np.repeat(np.array(_encode(values)[1:-1].split(b",")), lengths)


def _outlines(columns: Columns) -> list[bytes]:
    """Return the points of each ring, clamped to its image: ``x,y,x,y``."""
    rings = columns.clipped.rings
    if not len(rings.rows):
        return []
    sizes = np.repeat(columns.shapes.sizes[rings.rows], np.diff(rings.first), axis=0)
    x, y = decimals(to_units(np.minimum(np.maximum(rings.points, 0.0), sizes).T, 4), 4)
    return split_parts(render_rows([*x, b",", *y, row_ends(rings.first, b",")], len(rings.points)), rings.first)
