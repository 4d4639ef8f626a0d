"""Owns the layouts of YOLOX (https://arxiv.org/abs/2107.08430): the raw grid, and the grid decoded by the graph.

Both are [batch, anchors, 5 + classes] with one anchor a cell, and so is YOLOv6; YOLOv5 has three. A raw centre is an
offset in cells; a decoded one lies near its own cell. That tells them apart.
"""

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    Layout,
    Reader,
    best_class,
    from_centre,
    grid,
    grid_strides,
    image_size,
    is_share,
    only,
    plain_spec,
)

STRIDES = (8, 16, 32)
_NEAR = 4.0
"""Cells that a centre may lie from its own: a trained head stays within two or so."""


def yolox_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Top-left cell (n, 2) as x, y and stride (n, 1) of each anchor, strides from fine to coarse, rows first."""
    return grid(height, width, STRIDES)


def offsets(array: npt.NDArray[np.float32], cells: Floats, strides: Floats) -> tuple[float, float]:
    """How far centres lie from their cells, in cells, nine in ten: read as raw offsets, and as pixels."""
    centres = array[..., :2]
    raw = float(np.percentile(np.abs(centres), 90))
    return raw, float(np.percentile(np.abs(centres / strides - cells - 0.5), 90))


def _grid_of(graph: Graph, seen: Arrays) -> tuple[npt.NDArray[np.float32], tuple[int, ...]] | None:
    array = only(seen, 3)
    strides = grid_strides(*image_size(graph), array.shape[1]) if array is not None and array.shape[2] >= 6 else None
    return (as_float32(array), strides) if array is not None and strides else None


def _form(graph: Graph, seen: Arrays) -> tuple[str, str] | None:
    """("raw" | "decoded", why); None where it is neither."""
    found = _grid_of(graph, seen)
    if found is None or graph.metadata.get("task", "detect") != "detect":
        return None
    array, strides = found
    if np.all(array[..., 4] == 1) or not is_share(array[..., 4:]):
        return None  # YOLOv6 has no objectness; NanoDet's rows end in distances
    raw, pixels = offsets(array, *grid(*image_size(graph), strides))
    where = f"one grid of {array.shape[1]} anchors at strides {', '.join(map(str, strides))}"
    if raw <= min(_NEAR, pixels):
        return "raw", f"{where}, centres as offsets in cells ({raw:.1f} at most, nine in ten)"
    if pixels <= _NEAR:
        return "decoded", f"{where}, centres in pixels, near their own cells"
    return None


def _recogniser(form: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, seen: Arrays) -> str | None:
        found = _form(graph, seen)
        return found[1] if found and found[0] == form else None

    return recognise


def _read(graph: Graph, seen: Arrays) -> Reader:
    array, strides = _checked(graph, seen)
    spec = plain_spec(graph, color="BGR")
    name = next(iter(seen))
    return Reader(
        spec, array.shape[2] - 5, lambda arrays, floor: decode_raw(arrays[name], spec, strides, floor), (name,)
    )


def _read_decoded(graph: Graph, seen: Arrays) -> Reader:
    array, _ = _checked(graph, seen)
    name = next(iter(seen))
    return Reader(
        plain_spec(graph, color="BGR"),
        array.shape[2] - 5,
        lambda arrays, floor: decode_pixels(arrays[name], floor),
        (name,),
    )


def _checked(graph: Graph, seen: Arrays) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    found = _grid_of(graph, seen)
    if found is None:
        raise ValueError("it has no single output [batch, anchors, 5 + classes] with one anchor a cell")
    return found


def decode_raw(
    array: npt.NDArray[np.float32], spec: InputSpec, strides: tuple[int, ...], floor: float
) -> list[Detections]:
    """Centre = (offset + cell) x stride, side = exp(raw) x stride, score = objectness x class score (section 2)."""
    cells, steps = grid(spec.height, spec.width, strides)
    found = []
    for raw in as_float32(array):
        likely = np.flatnonzero(raw[:, 4] >= floor)
        row = raw[likely]
        centre = (row[:, :2] + cells[likely]) * steps[likely]
        side = np.exp(np.minimum(row[:, 2:4], 20)) * steps[likely]  # e^20: no overflow, far beyond any photo
        boxes = from_centre(np.concatenate([centre, side], axis=1))
        found.append(best_class(boxes, row[:, 4:5] * row[:, 5:], floor))
    return found


def decode_pixels(array: npt.NDArray[np.float32], floor: float) -> list[Detections]:
    """Rows of centre x, centre y, width, height in pixels, objectness, class scores: YOLOX decoded, YOLOv5, v6, v7."""
    found = []
    for row in as_float32(array):
        likely = row[row[:, 4] >= floor]
        found.append(best_class(from_centre(likely[:, :4]), likely[:, 4:5] * likely[:, 5:], floor))
    return found


YOLOX = Layout(_recogniser("raw"), _read)
YOLOX_DECODED = Layout(_recogniser("decoded"), _read_decoded)
