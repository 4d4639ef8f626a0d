"""Layouts of YOLOX (https://arxiv.org/abs/2107.08430): raw grid, and grid decoded by the graph.

Both are [batch, anchors, 5 + classes] with one anchor per cell, as in YOLOv6; YOLOv5 has three. A raw centre is an
offset in cells; a decoded one lies near its own cell.
"""

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.logits import expit
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    Layout,
    OutputReader,
    best_class,
    class_count,
    cxcywh_to_xyxy,
    grid,
    grid_strides,
    image_size,
    in_unit_range,
    plain_spec,
    single_output,
)
from ml_backend.layouts.plausibility import Misfit

STRIDES = (8, 16, 32)
# Maximum distance in cells between a centre and its cell; trained heads stay within about two.
_NEAR = 4.0


def yolox_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Cells (n, 2) as x, y and strides (n, 1) of all anchors, strides ascending, in row-major order."""
    return grid(height, width, STRIDES)


def offsets(array: npt.NDArray[np.float32], cells: Floats, strides: Floats) -> tuple[float, float]:
    """Measure how far centres lie from their cells, to tell raw offsets from pixels.

    Args:
        array: (batch, n, 5 + classes) float32 output.
        cells: (n, 2) float32 cells as x, y.
        strides: (n, 1) float32 pixels.

    Returns:
        90th percentile of the distance in cells: of centres read as raw offsets, and read as pixels.
    """
    centres = array[..., :2]
    raw = float(np.percentile(np.abs(centres), 90))
    return raw, float(np.percentile(np.abs(centres / strides - cells - 0.5), 90))


def _grid_of(graph: Graph, outputs: Arrays) -> tuple[npt.NDArray[np.float32], tuple[int, ...]] | None:
    array = single_output(outputs, 3)
    strides = grid_strides(*image_size(graph), array.shape[1]) if array is not None and array.shape[2] >= 6 else None
    return (as_float32(array), strides) if array is not None and strides else None


def _form(graph: Graph, outputs: Arrays) -> tuple[str, str] | None:
    """Return ("raw" | "decoded", reason); None where it is neither."""
    grid_output = _grid_of(graph, outputs)
    if grid_output is None or graph.metadata.get("task", "detect") != "detect":
        return None
    array, strides = grid_output
    if class_count(graph) not in {None, array.shape[2] - 5}:
        return None
    if not in_unit_range(array[..., 4:]):
        _refuse_logits(array, strides, image_size(graph))
        return None
    if np.all(array[..., 4] == 1):
        return None  # YOLOv6 has no objectness
    raw, pixels = offsets(array, *grid(*image_size(graph), strides))
    where = f"one grid of {array.shape[1]} anchors at strides {', '.join(map(str, strides))}"
    if raw <= min(_NEAR, pixels):
        return "raw", f"{where}, centres as offsets in cells ({raw:.1f} at most, nine in ten)"
    if pixels <= _NEAR:
        return "decoded", f"{where}, centres in pixels, near their own cells"
    return None


def _refuse_logits(array: npt.NDArray[np.float32], strides: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raise Misfit for a raw grid without its sigmoid: such exports differ in what they do to pixels."""
    raw, _ = offsets(array, *grid(*size, strides))
    likely = expit(array[..., 4])  # NanoDet's rows, of the same shape, have no column that is small everywhere
    if raw <= _NEAR and float(likely.mean()) < 0.1 and float(expit(array[..., 5:]).mean()) < 0.5:
        raise Misfit(
            "its objectness and scores are logits, and exports without the sigmoid differ in range and normalisation "
            "of pixels: a layout file has to say which"
        )


def _recogniser(form: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, outputs: Arrays) -> str | None:
        match = _form(graph, outputs)
        return match[1] if match and match[0] == form else None

    return recognise


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    array, strides = _checked(graph, outputs)
    spec = plain_spec(graph, color="BGR")
    name = next(iter(outputs))
    return OutputReader(
        spec, array.shape[2] - 5, lambda arrays, floor: decode_raw(arrays[name], spec, strides, floor), (name,)
    )


def _read_decoded(graph: Graph, outputs: Arrays) -> OutputReader:
    array, _ = _checked(graph, outputs)
    name = next(iter(outputs))
    return OutputReader(
        plain_spec(graph, color="BGR"),
        array.shape[2] - 5,
        lambda arrays, floor: decode_pixels(arrays[name], floor),
        (name,),
    )


def _checked(graph: Graph, outputs: Arrays) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    grid_output = _grid_of(graph, outputs)
    if grid_output is None:
        raise ValueError("it has no single output [batch, anchors, 5 + classes] with one anchor per cell")
    return grid_output


def decode_raw(
    array: npt.NDArray[np.float32], spec: InputSpec, strides: tuple[int, ...], floor: float
) -> list[Detections]:
    """Decode YOLOX's raw grid (https://arxiv.org/abs/2107.08430, section 2).

    Centre = (offset + cell) x stride, side = exp(raw) x stride, score = objectness x class score.

    Args:
        array: (batch, n, 5 + classes) float32.
        spec: Input format of the network.
        strides: Of the levels.
        floor: Minimum score.
    """
    cells, steps = grid(spec.height, spec.width, strides)
    detections = []
    for raw in as_float32(array):
        likely = np.flatnonzero(raw[:, 4] >= floor)
        row = raw[likely]
        centre = (row[:, :2] + cells[likely]) * steps[likely]
        side = np.exp(np.minimum(row[:, 2:4], 20)) * steps[likely]  # e^20: no overflow, and beyond any image
        boxes = cxcywh_to_xyxy(np.concatenate([centre, side], axis=1))
        detections.append(best_class(boxes, row[:, 4:5] * row[:, 5:], floor))
    return detections


def decode_pixels(array: npt.NDArray[np.float32], floor: float) -> list[Detections]:
    """Decode rows with boxes in pixels: YOLOX decoded by the graph, YOLOv5, v6 and v7.

    Args:
        array: (batch, n, 5 + classes) float32: centre x, centre y, width, height, objectness, class scores.
        floor: Minimum score.
    """
    detections = []
    for row in as_float32(array):
        likely = row[row[:, 4] >= floor]
        detections.append(best_class(cxcywh_to_xyxy(likely[:, :4]), likely[:, 4:5] * likely[:, 5:], floor))
    return detections


YOLOX = Layout(_recogniser("raw"), _read)
YOLOX_DECODED = Layout(_recogniser("decoded"), _read_decoded)
