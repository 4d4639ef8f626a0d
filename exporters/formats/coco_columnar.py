"""Encode COCO annotations of a whole block from columns, byte-identical to `exporters.formats.coco`."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from exporters.columnar.columns import NOT_VECTORISED, Columns
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

_encode = msgspec.json.Encoder().encode
# Enclose text that is replaced later: the outline of a row, or the whole row.
_OUTLINE_MARK, _ROW_MARK = b"\x02", b"\x03"


def annotation_rows(
    columns: Columns, images: Sequence[int], categories: Ints, others: Mapping[int, bytes]
) -> list[bytes]:
    """Return the annotations of each image as JSON, comma-separated.

    Args:
        columns: the objects.
        images: the id of each image.
        categories: (rows,), the category id of each row.
        others: the annotations of the rows of kind `NOT_VECTORISED`.
    """
    metadata, rings = columns.metadata, columns.shapes.rings
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
    text = render_rows([*cells, b"}", *row, row_ends(columns.first, b",")], len(columns))
    text = _replace_marked(text, _OUTLINE_MARK, _outlines(columns))
    return split_parts(_replace_marked(text, _ROW_MARK, [others[row] for row in sorted(others)]), columns.first)


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
    rings = columns.shapes.rings
    if not len(rings.rows):
        return []
    sizes = np.repeat(columns.shapes.sizes[rings.rows], np.diff(rings.first), axis=0)
    x, y = decimals(to_units(np.minimum(np.maximum(rings.points, 0.0), sizes).T, 4), 4)
    return split_parts(render_rows([*x, b",", *y, row_ends(rings.first, b",")], len(rings.points)), rings.first)
