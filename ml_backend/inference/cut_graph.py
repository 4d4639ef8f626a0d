"""Open the height and width of a graph's input, so that letterboxed images run without most of their padding.

Exporters fix the size of the input in three places: in the declared shapes, in constants with a value for each cell of
the grid (centres, strides), and in the target shapes of reshapes. The first is opened, the second gathered by the cells
inside the rectangle, the third left to the runtime (-1). Whatever else depends on the size makes a run on a rectangle
fail or give other values; `is_same` finds out, and the graph is used unchanged.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ml_backend.detection.cut import CUT, ROWS, CutGrid, cells_inside
from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import grid_strides

# Largest file in bytes that is parsed for it.
MAX_BYTES = 1 << 28

# Share of a side of the input by which boxes of most cells may differ on the rectangle, and difference of their scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 0.01


def cut_graph(path: Path, graph: Graph, outputs: Arrays, spec: InputSpec) -> tuple[bytes, CutGrid] | str:
    """Open the size of a graph's input, which has padding (`has_padding`).

    Args:
        path: Its file.
        graph: Its inputs and outputs.
        outputs: Of a trial run on the whole input.
        spec: Its input format.

    Returns:
        (the changed graph, its grid), or why it cannot be changed.
    """
    if graph.image is None or not graph.batched:
        return "its input has no batch axis"
    sides = {side for array in outputs.values() for side in array.shape[1:]}
    cells, strides = next(
        (
            (side, found)
            for side in sorted(sides, reverse=True)
            if (found := grid_strides(spec.height, spec.width, side))
        ),
        (0, ()),
    )
    if not strides:
        return "its outputs do not have a row for each cell of a grid"
    if path.stat().st_size > MAX_BYTES or path.with_name(f"{path.name}.data").is_file():
        return f"its weights are in a file of their own, or larger than {MAX_BYTES >> 20} MiB"
    model = onnx.load(path)
    _open_input(model.graph, graph)
    levels = {-(-spec.height // stride) * -(-spec.width // stride) for stride in strides}
    _infer_sizes(model.graph, {cells, *levels} - {1})
    has_rows = _gather_cells(model.graph, cells)
    shapes = {tensor.name: tensor.shape for tensor in graph.outputs}
    grid = CutGrid(spec.height, spec.width, strides, has_rows, shapes)
    model.metadata_props.append(onnx.StringStringEntryProto(key=CUT, value=grid.dump()))
    return model.SerializeToString(), grid


def has_padding(spec: InputSpec) -> bool:
    """Whether images are shown with their aspect ratio, so that padding fills the rest of the input."""
    return spec.placement in {"top-left", "centre"}


def is_same(
    grid: CutGrid,
    run: Callable[[npt.NDArray[Any]], list[Detections]],
    whole: npt.NDArray[Any],
    *,
    channels_last: bool,
) -> bool:
    """Whether a graph gives the cells of a rectangle the boxes and scores that they have in the whole input.

    Args:
        grid: Of the graph.
        run: Runs one input of any size, and decodes it.
        whole: A whole input with a pattern.
        channels_last: Order of its axes.
    """
    step = max(grid.strides)
    expected = _by_cell(run(whole))
    for height, width in ((grid.height - step, grid.width), (grid.height, grid.width - 2 * step)):
        if min(height, width) < step:
            return False
        part = whole[:height, :width] if channels_last else whole[:, :height, :width]
        found = _by_cell(run(np.ascontiguousarray(part)))
        cells = cells_inside(grid, height, width)
        if expected is None or found is None or len(found[1]) != len(cells):
            return False
        boxes, scores = expected[0][cells], expected[1][cells]
        if np.median(np.abs(found[0] - boxes)) > BOX_TOLERANCE * max(grid.height, grid.width):
            return False
        if np.median(np.abs(found[1] - scores)) > SCORE_TOLERANCE:
            return False
    return True


def pattern(spec: InputSpec) -> npt.NDArray[np.uint8]:
    """An image with edges and colours all over, (h, w, 3) uint8."""
    y, x = np.mgrid[: spec.height, : spec.width]
    waves = [np.sin(x / (5 + 3 * c)) * np.cos(y / (7 + 4 * c)) + np.sin((x + y) / (31 - 6 * c)) for c in range(3)]
    return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def _by_cell(found: list[Detections]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """(boxes, scores) of one image in the order of the cells; None where detections are not one per cell."""
    [detections] = found
    if detections.rows is None or len(np.unique(detections.rows)) != len(detections.rows):
        return None
    if len(detections.rows) and detections.rows.max() >= len(detections.rows):
        return None
    order = np.argsort(detections.rows)
    return detections.boxes[order], detections.scores[order]


def _open_input(graph: onnx.GraphProto, described: Graph) -> None:
    assert described.image is not None
    first = 1 if described.channels_last else 2
    image = next(tensor for tensor in graph.input if tensor.name == described.image.name)
    for axis, name in ((first, "cut_height"), (first + 1, "cut_width")):
        image.type.tensor_type.shape.dim[axis].dim_param = name
    del graph.value_info[:]
    for output in graph.output:
        for dimension in output.type.tensor_type.shape.dim:
            dimension.Clear()


def _infer_sizes(graph: onnx.GraphProto, sizes: set[int]) -> None:
    """Let reshapes find out the number of cells themselves."""
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in _constants(graph):
        if tensor[0] not in targets:
            continue
        values = numpy_helper.to_array(tensor[1])
        if values.ndim == 1 and -1 not in values and sum(int(value) in sizes for value in values) == 1:
            inferred = np.where(np.isin(values, list(sizes)), -1, values).astype(values.dtype)
            name = tensor[1].name
            tensor[1].CopyFrom(numpy_helper.from_array(inferred, name))


def _gather_cells(graph: onnx.GraphProto, cells: int) -> bool:
    """Gather constants with a value for each cell by `ROWS`; returns whether there are any."""
    gathers, names = [], {}
    for name, tensor in _constants(graph):
        if list(tensor.dims).count(cells) == 1 and len(tensor.dims) <= 3:
            names[name] = f"{name}.cut"
            gathers.append(helper.make_node("Gather", [name, ROWS], [names[name]], axis=list(tensor.dims).index(cells)))
    if not gathers:
        return False
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    constants = [node for node in graph.node if node.op_type == "Constant"]
    others = [node for node in graph.node if node.op_type != "Constant"]
    del graph.node[:]
    graph.node.extend([*constants, *gathers, *others])
    graph.input.append(helper.make_tensor_value_info(ROWS, onnx.TensorProto.INT64, ["cut_cells"]))
    return True


def _constants(graph: onnx.GraphProto) -> list[tuple[str, onnx.TensorProto]]:
    """(name, tensor) of the initializers and of constant nodes."""
    of_nodes = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return [*((tensor.name, tensor) for tensor in graph.initializer), *of_nodes]
