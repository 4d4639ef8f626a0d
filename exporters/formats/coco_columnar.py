"""COCO's annotations of usual objects, a block at once: what `exporters.formats.coco` says of one, to the byte."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from exporters.columnar.columns import NOT_VECTORISED, Columns
from exporters.columnar.text_table import Cell, Ints, decimals, ends, parts, sheet, split, texts, units, whole

_encode = msgspec.json.Encoder().encode
_OUTLINE, _ROW = b"\x02", b"\x03"
"""Around what is to be replaced: the outline of a row, a row."""


def annotations(columns: Columns, images: Sequence[int], categories: Ints, others: Mapping[int, bytes]) -> list[bytes]:
    """The annotations of each image as JSON, with commas between them.

    Args:
        columns: the objects of usual tasks.
        images: the number of each image.
        categories: the number of each row's category.
        others: the annotations of the rows of kind ``OTHER``.
    """
    said, rings = columns.said, columns.shapes.rings
    corners = units(columns.fits.boxes.T, 4)
    x0, y0, x1, y1, *sides = decimals(np.concatenate((corners, corners[2:] - corners[:2])), 4)
    [area] = decimals(units(np.where(columns.fits.kinds == NOT_VECTORISED, 0.0, columns.fits.areas), 4)[None], 4)
    outline, row = _marks(columns, rings.rows, _OUTLINE), _marks(columns, sorted(others), _ROW)
    lengths = np.diff(columns.first)
    cells: list[Cell] = [*row, b'{"id":', *whole(columns.ids)]
    cells += [b',"image_id":', *whole(np.repeat(np.array(images, np.int64), lengths))]
    cells += [b',"category_id":', *whole(categories)]
    cells += [b',"bbox":[', *_joined([x0, y0, *sides]), b'],"area":', *area]
    cells += [b',"segmentation":[[', *outline, *_joined([x0, y0, x1, y0, x1, y1, x0, y1]), *outline]
    cells += [b']],"iscrowd":0,"region_id":', texts(said.regions)]
    cells += [b',"annotation_id":', _of_images(columns.annotations, lengths)]
    cells += [b',"annotator":', _of_images(columns.annotators, lengths), *_scores(said.scores)]
    text = sheet([*cells, b"}", *row, ends(columns.first, b",")], len(columns))
    text = _replaced(text, _OUTLINE, _outlines(columns))
    return parts(_replaced(text, _ROW, [others[row] for row in sorted(others)]), columns.first)


def _marks(columns: Columns, rows: Sequence[int] | Ints, mark: bytes) -> list[Cell]:
    """A cell with a mark in some rows; none where there are none."""
    if not len(rows):
        return []
    cell = np.zeros(len(columns), "S1")
    cell[rows] = mark
    return [cell]


def _replaced(text: bytes, mark: bytes, by: Sequence[bytes]) -> bytes:
    """The text with other texts in the place of what stands between two marks."""
    if not by:
        return text
    pieces = list(split(text, mark))
    pieces[1::2] = by
    return b"".join(pieces)


def _scores(scores: Sequence[float | None]) -> list[Cell]:
    if scores.count(None) == len(scores):
        return []
    return [np.array([b"" if score is None else b',"score":%b' % _encode(score) for score in scores])]


def _joined(values: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Numbers with commas between them."""
    return [cell for number in values for cell in (b",", *number)][1:]


def _of_images(values: Sequence[int | None], lengths: Ints) -> Cell:
    """What is the same for all rows of an image, as JSON."""
    return np.repeat(np.array(_encode(values)[1:-1].split(b",")), lengths)


def _outlines(columns: Columns) -> list[bytes]:
    """The points of each ring, inside its image: ``x,y,x,y``."""
    rings = columns.shapes.rings
    if not len(rings.rows):
        return []
    sizes = np.repeat(columns.shapes.sizes[rings.rows], np.diff(rings.first), axis=0)
    x, y = decimals(units(np.minimum(np.maximum(rings.points, 0.0), sizes).T, 4), 4)
    return parts(sheet([*x, b",", *y, ends(rings.first, b",")], len(rings.points)), rings.first)
