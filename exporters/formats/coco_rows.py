"""COCO's annotations of usual objects, a block at once: what `exporters.formats.coco` says of one, to the byte."""

from collections.abc import Sequence

import msgspec
import numpy as np

from exporters.columns import OTHER, Columns
from exporters.formats.sheet import END, Cell, Ints, decimal, lines, texts, units, whole

_encode = msgspec.json.Encoder().encode
_OUTLINE = b"\x02"


def annotation_rows(columns: Columns, images: Sequence[int]) -> list[bytes]:
    """The annotation of each row as JSON; those of kind ``OTHER`` are to be replaced.

    Args:
        columns: the objects of usual tasks.
        images: the number of each image.
    """
    said, rings = columns.said, columns.shapes.rings
    corners = [units(edge, 4) for edge in columns.fits.boxes.T]
    x0, y0, x1, y1 = (decimal(edge, 4) for edge in corners)
    sides = [decimal(high - low, 4) for low, high in zip(corners[:2], corners[2:], strict=True)]
    area = decimal(units(np.where(columns.fits.kinds == OTHER, 0.0, columns.fits.areas), 4), 4)
    mark = np.zeros(len(columns), "S1")
    mark[rings.rows] = _OUTLINE
    lengths = np.diff(columns.first)
    cells: list[Cell] = [b'{"id":', *whole(columns.ids)]
    cells += [b',"image_id":', *whole(np.repeat(np.array(images, np.int64), lengths))]
    cells += [b',"category_id":', *whole(columns.class_ids)]
    cells += [b',"bbox":[', *_joined([x0, y0, *sides]), b'],"area":', *area]
    cells += [b',"segmentation":[[', mark, *_joined([x0, y0, x1, y0, x1, y1, x0, y1]), mark]
    cells += [b']],"iscrowd":0,"region_id":', texts(said.regions)]
    cells += [b',"annotation_id":', _of_images(said.annotations, columns.first, lengths)]
    cells += [b',"annotator":', _of_images(said.annotators, columns.first, lengths), b"}" + END]
    rows = lines(cells, len(columns))
    for row, outline in zip(rings.rows.tolist(), _outlines(columns), strict=True):
        before, _, after = rows[row].split(_OUTLINE)
        rows[row] = b"%b%b%b" % (before, outline, after)
    if said.scores.count(None) < len(said.scores):
        for row, score in enumerate(said.scores):
            if score is not None:
                rows[row] = b'%b,"score":%b}' % (rows[row][:-1], _encode(score))
    return rows


def _joined(values: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Numbers with commas between them."""
    return [cell for number in values for cell in (b",", *number)][1:]


def _of_images(values: Sequence[int | None], first: Sequence[int], lengths: Ints) -> Cell:
    """What is the same for all rows of an image, as JSON."""
    own = [_encode(values[start]) if length else b"" for start, length in zip(first, lengths.tolist(), strict=False)]
    return np.repeat(np.array(own), lengths) if own else np.empty(0, "S1")


def _outlines(columns: Columns) -> list[bytes]:
    """The points of each ring, inside its image: ``x,y,x,y``."""
    rings = columns.shapes.rings
    if not len(rings.rows):
        return []
    sizes = np.repeat(columns.shapes.sizes[rings.rows], np.diff(rings.first), axis=0)
    x, y = (decimal(units(edge, 4), 4) for edge in np.minimum(np.maximum(rings.points, 0.0), sizes).T)
    between = np.full(len(rings.points), b",")
    between[rings.first[1:] - 1] = END
    return lines([*x, b",", *y, between], len(rings.points))
