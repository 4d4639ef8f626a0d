"""Decode the outputs of a graph as a `LayoutFile` declares them; layouts of several families are declared so too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.logits import expit
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import WHOLE_NUMBERS, OutputReader, cxcywh_to_xyxy, image_size, input_sides, softmax
from ml_backend.layouts.layout_file import DEFAULT_AXES, Anchors, Boxes, Input, Keypoints, LayoutFile

# Largest exponent of a decoded side: e^20 strides lie beyond any image, and nothing overflows.
MAX_EXPONENT = 20.0


class Mismatch(ValueError):
    """A declaration does not fit the graph.

    Attributes:
        key: The key of the layout file, such as `boxes.output`.
        reason: What is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key} {reason}")
        self.key = key
        self.reason = reason


@dataclass(frozen=True)
class AnchorGrid:
    """The anchor of every row.

    Attributes:
        cells: (n, 2) float32 column and row of the cell.
        strides: (n, 1) float32 pixels.
        sizes: (n, 2) float32 width and height in pixels; zeros where the layout has none.
        offsets: (n, 2) float32 place of the anchor point in its cell, in cells.
        counts: Cells and anchors of a cell, per level.
    """

    cells: Floats
    strides: Floats
    sizes: Floats
    offsets: Floats
    counts: tuple[tuple[int, int], ...]

    @property
    def points(self) -> Floats:
        """Anchor points (n, 2) in pixels of the input."""
        return np.asarray((self.cells + self.offsets) * self.strides, np.float32)

    def __getitem__(self, keep: npt.NDArray[Any]) -> AnchorGrid:
        """Select rows."""
        return AnchorGrid(self.cells[keep], self.strides[keep], self.sizes[keep], self.offsets[keep], self.counts)


def anchor_grid(anchors: Anchors, height: int, width: int) -> AnchorGrid:
    """Lay the anchors over an input, level by level, cell by cell in row-major order, the anchors of a cell last."""
    cells, strides, sizes, counts = [], [], [], []
    for level, stride in enumerate(anchors.strides):
        own = _anchors_of_level(anchors, level)
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = np.mgrid[:rows, :columns]
        grid = np.stack([x, y], axis=-1).reshape(-1, 2)
        by_cell = anchors.order == "cells"
        cells.append(np.repeat(grid, len(own), axis=0) if by_cell else np.tile(grid, (len(own), 1)))
        strides.append(np.full((rows * columns * len(own), 1), stride))
        sizes.append(np.tile(own, (rows * columns, 1)) if by_cell else np.repeat(own, rows * columns, axis=0))
        counts.append((rows * columns, len(own)))
    places = np.concatenate(sizes).astype(np.float32)
    return AnchorGrid(
        np.concatenate(cells).astype(np.float32),
        np.concatenate(strides).astype(np.float32),
        places[:, :2],
        places[:, 2:],
        tuple(counts),
    )


def _anchors_of_level(anchors: Anchors, level: int) -> npt.NDArray[np.float32]:
    """Width, height, and place in the cell of each anchor: (k, 4)."""
    offset = (anchors.offset, anchors.offset)
    if not anchors.sizes:
        return np.array([[0, 0, *offset]] * (anchors.per_cell[level] if anchors.per_cell else 1), np.float32)
    rows = []
    for size in anchors.sizes[level]:
        sides = size if isinstance(size, tuple) else (size, size)
        rows.append(sides if len(sides) == 4 else (*sides, *offset))
    return np.array(rows, np.float32).reshape(-1, 4)


def input_spec(table: Input, graph: Graph) -> InputSpec:
    """Input format of a declaration.

    Raises:
        Mismatch: The declared size is not that of the graph, or neither has one.
    """
    sides = graph.image.shape[-3:] if graph.image else (None, None, None)
    fixed = sides[:2] if graph.channels_last else sides[1:]
    if table.size is None and None in fixed and "imgsz" not in graph.metadata:
        raise Mismatch("input.size", "is missing, and the graph takes any: give [height, width] in pixels")
    height, width = table.size or image_size(graph)
    for side, declared, name in zip(fixed, (height, width), ("height", "width"), strict=True):
        if side is not None and side != declared:
            raise Mismatch("input.size", f"has the {name} {declared}, and the graph takes {side}; leave it out")
    if graph.channels not in {1, 3} or (table.color == "GRAY" and graph.channels == 3):
        raise Mismatch("input.color", f"is {table.color}, and the graph's input has {graph.channels} channels")
    whole = graph.image is not None and graph.image.dtype in WHOLE_NUMBERS
    if whole and (table.range == "-1..1" or any(table.mean) or set(table.std) != {1.0}):
        raise Mismatch("input.range", "is not 0..255 without mean and std, and the graph takes whole numbers")
    scale, shift = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, 1.0)}[table.range]
    scale = 1.0 if whole else scale
    red, green, blue = (value + shift for value in table.mean)
    return InputSpec(
        height=height,
        width=width,
        layout="NHWC" if graph.channels_last else "NCHW",
        color="GRAY" if graph.channels == 1 else table.color,
        placement=table.letterbox,
        pad=table.pad,
        scale=scale,
        mean=(red, green, blue),
        std=table.std,
        dtype=graph.image.dtype if graph.image else "float32",
    )


def with_input(graph: Graph, table: Input) -> Graph:
    """The graph with an `[input]` as its metadata, which known layouts read."""
    words: dict[str, Any] = {
        "color": table.color,
        "range": table.range,
        "mean": table.mean,
        "std": table.std,
        "letterbox": f"{table.letterbox}, pad {table.pad}",
    }
    size = {} if table.size is None else {"imgsz": json.dumps(table.size)}
    if table.size is not None:
        words["size"] = table.size
    return replace(graph, metadata={**graph.metadata, **size, "input": json.dumps(words)})


@dataclass(frozen=True)
class _Rows:
    """One quantity: reads (batch, n, columns) float32 from the outputs."""

    key: str
    names: tuple[str, ...]
    axes: str
    columns: tuple[int, int] | None
    counts: tuple[tuple[int, int], ...]
    shared: bool = False
    peaks: bool = False

    def __call__(self, arrays: Arrays) -> Floats:
        parts = [
            self._level(arrays[name], self.counts if len(self.names) == 1 else self.counts[index : index + 1])
            for index, name in enumerate(self.names)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _level(self, array: npt.NDArray[Any], counts: tuple[tuple[int, int], ...]) -> Floats:
        values = as_float32(array)
        axes = self.axes or DEFAULT_AXES.get(values.ndim, "")
        rank = len(axes.replace("(AC)", "C"))
        if not axes or rank != values.ndim:
            raise Mismatch(f"{self.key}.axes", f"is {axes or 'missing'}, and the output is {list(array.shape)}")
        per_cell = counts[0][1] if counts else 1
        if axes == "BAHWC":
            values = values.transpose(0, 2, 3, 1, 4)
            per_cell = values.shape[3]
            return self._cut(values).reshape(len(values), values.shape[1] * values.shape[2] * per_cell, -1)
        if axes in {"BCHW", "B(AC)HW"}:
            values = values.transpose(0, 2, 3, 1)
        if axes in {"BCHW", "B(AC)HW", "BHWC", "BHW(AC)"}:
            batch, rows, columns, channels = values.shape
            if "(" in axes:
                if channels % per_cell:
                    raise Mismatch("anchors.per_cell", f"is {per_cell}, and {self.key} has {channels} channels")
                return self._cut(values.reshape(batch, rows * columns * per_cell, channels // per_cell))
            values = self._cut(values)
            if self.peaks:
                values = _peaks(values)
            return self._per_anchor(values.reshape(batch, rows * columns, -1), counts)
        if axes == "BCN":
            values = values.transpose(0, 2, 1)
        if axes == "N":
            values = values[None, :, None]
        if axes == "BN":
            values = values[:, :, None]
        if axes == "NC":
            values = values[None]
        return self._per_anchor(self._cut(values), counts)

    def _cut(self, values: Floats) -> Floats:
        if self.columns is None:
            return values
        if self.columns[1] > values.shape[-1]:
            raise Mismatch(f"{self.key}.columns", f"ends at {self.columns[1]}, and there are {values.shape[-1]}")
        return values[..., self.columns[0] : self.columns[1]]

    def _per_anchor(self, values: Floats, counts: tuple[tuple[int, int], ...]) -> Floats:
        """Give each anchor of a cell its own row, where the rows are cells."""
        if not counts or all(per_cell == 1 for _, per_cell in counts):
            return values
        batch, rows, columns = values.shape
        if rows != sum(cells for cells, _ in counts):
            return values
        per_cell = counts[0][1]
        if any(count != per_cell for _, count in counts):
            raise Mismatch("anchors.sizes", f"differ in number, and {self.key} has one row a cell")
        if self.shared:
            return np.repeat(values, per_cell, axis=1)
        if columns % per_cell:
            raise Mismatch(f"{self.key}.columns", f"are {columns}, which {per_cell} anchors of a cell cannot share")
        return values.reshape(batch, rows * per_cell, columns // per_cell)


def _peaks(values: Floats) -> Floats:
    """Keep the maxima of 3 x 3 cells (https://arxiv.org/abs/1904.07850): (b, h, w, c); others become very unlikely."""
    from scipy.ndimage import maximum_filter

    highest = maximum_filter(values, size=(1, 3, 3, 1), mode="nearest")
    low = 0.0 if values.size and values.min() >= 0 else -1e9
    return np.asarray(np.where(values == highest, values, np.float32(low)), np.float32)


def _names(output: str | tuple[str, ...]) -> tuple[str, ...]:
    return output if isinstance(output, tuple) else (output,)


def _rows(file: LayoutFile, key: str, counts: tuple[tuple[int, int], ...], outputs: Arrays) -> _Rows | None:
    table = getattr(file, key)
    if table is None:
        return None
    for name in _names(table.output):
        if name not in outputs:
            raise Mismatch(f"{key}.output", f"names {name!r}, and the graph has {', '.join(outputs)}")
    return _Rows(
        key, _names(table.output), table.axes, table.columns, counts,
        shared=getattr(table, "shared", False), peaks=getattr(table, "peaks", False),
    )  # fmt: skip


def decode_boxes(boxes: Boxes, raw: Floats, grid: AnchorGrid | None, spec: InputSpec) -> Floats:
    """Decode raw box values of rows into x_min, y_min, x_max, y_max in pixels of the input.

    Args:
        boxes: Their encoding.
        raw: (n, 4 x bins) float32.
        grid: The anchors of these rows.
        spec: Input format of the network.

    Returns:
        (n, 4) float32.
    """
    if boxes.order == "yx":
        raw = raw.reshape(len(raw), 2, 2, raw.shape[1] // 4)[:, :, ::-1].reshape(raw.shape)
    scale = input_sides(spec) if boxes.unit == "normalised" else np.ones(4, np.float32)
    if boxes.format == "corners":
        return np.asarray(raw * scale, np.float32)
    if boxes.format == "centre":
        return cxcywh_to_xyxy(raw * scale)
    if boxes.format == "corner-size":
        low, side = raw[:, :2] * scale[:2], raw[:, 2:] * scale[2:]
        return np.asarray(np.concatenate([low, low + side], axis=1), np.float32)
    assert grid is not None  # checked by `problems`
    if boxes.format == "distances":
        if boxes.bins > 1:  # mean of a distribution: https://arxiv.org/abs/2006.04388
            raw = softmax(raw.reshape(-1, 4, boxes.bins)) @ np.arange(boxes.bins, dtype=np.float32)
        far = raw * (grid.strides if boxes.unit == "strides" else scale)
        points = grid.points
        return np.asarray(np.concatenate([points - far[:, :2], points + far[:, 2:]], axis=1), np.float32)
    return cxcywh_to_xyxy(np.concatenate(_CENTRED[boxes.format](boxes, raw, grid, spec), axis=1))


def _exp(values: Floats) -> Floats:
    return np.asarray(np.exp(np.minimum(values, MAX_EXPONENT)), np.float32)


def _sigmoid(boxes: Boxes, values: Floats) -> Floats:
    return values if boxes.activation == "none" else expit(values)


_Decoder = Callable[[Boxes, Floats, AnchorGrid, InputSpec], tuple[Floats, Floats]]
# Format -> (centres, sides) in pixels of the input.
_CENTRED: dict[str, _Decoder] = {
    # SSD, https://arxiv.org/abs/1512.02325
    "ssd": lambda boxes, raw, grid, _spec: (
        grid.points + raw[:, :2] * boxes.variances[0] * grid.sizes, grid.sizes * _exp(raw[:, 2:] * boxes.variances[1]),
    ),
    # BlazeFace, https://arxiv.org/abs/1907.05047: plain pixels from the anchor point
    "mediapipe": lambda _boxes, raw, grid, _spec: (grid.points + raw[:, :2], raw[:, 2:]),
    # YOLOX, https://arxiv.org/abs/2107.08430; the point of its cell is the corner
    "yolox": lambda _boxes, raw, grid, _spec: (
        (grid.cells + raw[:, :2]) * grid.strides, _exp(raw[:, 2:]) * grid.strides,
    ),
    # YOLOv3, https://arxiv.org/abs/1804.02767
    "yolov3": lambda boxes, raw, grid, _spec: (
        (grid.cells + _sigmoid(boxes, raw[:, :2])) * grid.strides, _exp(raw[:, 2:]) * grid.sizes,
    ),
    "yolov5": lambda boxes, raw, grid, _spec: (
        (2 * _sigmoid(boxes, raw[:, :2]) - 0.5 + grid.cells) * grid.strides,
        (2 * _sigmoid(boxes, raw[:, 2:])) ** 2 * grid.sizes,
    ),
    # CenterNet, https://arxiv.org/abs/1904.07850
    "centernet": lambda boxes, raw, grid, _spec: (
        grid.points + raw[:, :2] * grid.strides, (_exp(raw[:, 2:]) if boxes.exponential else raw[:, 2:]) * grid.strides,
    ),
    "fastestdet": lambda _boxes, raw, grid, spec: (
        (grid.cells + np.tanh(raw[:, :2])) * grid.strides, expit(raw[:, 2:]) * input_sides(spec)[:2],
    ),
}  # fmt: skip


_PointDecoder = Callable[[Floats, AnchorGrid, float], Floats]
# Format -> points (n, k, 2) in pixels of the input.
_POINTS: dict[str, _PointDecoder] = {
    "strides": lambda raw, grid, _variance: grid.points[:, None] + raw * grid.strides[:, None],
    "ssd": lambda raw, grid, variance: grid.points[:, None] + raw * variance * grid.sizes[:, None],
    "mediapipe": lambda raw, grid, _variance: grid.points[:, None] + raw,
    "yolov5-face": lambda raw, grid, _variance: (grid.cells * grid.strides)[:, None] + raw * grid.sizes[:, None],
    "yolov8-pose": lambda raw, grid, _variance: (grid.cells[:, None] + 2 * raw) * grid.strides[:, None],
}


def decode_points(table: Keypoints, raw: Floats, grid: AnchorGrid | None, spec: InputSpec, variance: float) -> Floats:
    """Decode keypoints of rows: (n, k x values) -> (n, k, 3) float32 x, y in pixels of the input and confidence."""
    points = raw.reshape(len(raw), raw.shape[1] // table.values, table.values)
    position, rest = points[..., :2], points[..., 2:]
    if table.format == "normalised":
        position = position * input_sides(spec)[:2]
    elif grid is not None and table.format != "pixels":
        position = _POINTS[table.format](position, grid, variance)
    if table.values == 2:
        rest = np.ones((*position.shape[:2], 1), np.float32)
    elif table.activation == "sigmoid":
        rest = expit(rest)
    return np.concatenate([position, rest], axis=2).astype(np.float32)


@dataclass(frozen=True)
class _Declared:
    """A declaration bound to a graph."""

    file: LayoutFile
    spec: InputSpec
    grid: AnchorGrid | None
    boxes: _Rows
    sides: _Rows | None
    scores: _Rows
    objectness: _Rows | None
    classes: _Rows | None
    keypoints: _Rows | None
    weights: _Rows | None

    def __call__(self, arrays: Arrays, floor: float) -> list[Detections]:
        scores = self.scores(arrays)
        presence = self.objectness(arrays)[..., 0] if self.objectness else None
        numbers = self.classes(arrays)[..., 0] if self.classes else None
        boxes = self.boxes(arrays)
        if self.sides is not None:
            boxes = np.concatenate([boxes, self.sides(arrays)], axis=2)
        points = self.keypoints(arrays) if self.keypoints else None
        weights = self.weights(arrays) if self.weights else None
        detections = []
        for image in range(len(scores)):
            best, classes = self._scored(
                scores[image], None if presence is None else presence[image],
                None if numbers is None else numbers[image],
            )  # fmt: skip
            keep = np.flatnonzero((best >= floor) & (classes >= 0) & self._valid(arrays, image, len(best)))
            grid = self.grid[keep] if self.grid is not None else None
            image_boxes = decode_boxes(self.file.boxes, boxes[image][keep], grid, self.spec)  # type: ignore[arg-type]
            detections.append(
                Detections(
                    image_boxes, best[keep].astype(np.float32), classes[keep].astype(np.int64),
                    keypoints=self._points(points[image][keep], grid) if points is not None else None,
                    segments=self._segments(arrays, image, keep, image_boxes, weights),
                )
            )  # fmt: skip
        return detections

    def _scored(self, scores: Floats, presence: Floats | None, numbers: Floats | None) -> tuple[Any, Any]:
        """Best score (n,) and its class (n,); the class is -1 where a row is background."""
        table, file = self.file.scores, self.file
        assert table is not None
        if table.activation == "softmax":
            scores = softmax(scores)
        columns = slice(1 if table.background == "first" else 0, -1 if table.background == "last" else None)
        scores = scores[:, columns]
        classes: npt.NDArray[Any] = scores.argmax(axis=1)
        best: npt.NDArray[Any] = scores[np.arange(len(scores)), classes]
        if table.activation == "sigmoid":
            best = expit(best)
        if numbers is not None and file.classes is not None:
            classes = np.rint(numbers).astype(np.int64) - file.classes.first
        if presence is not None and file.objectness is not None:
            present = expit(presence) if file.objectness.activation == "sigmoid" else presence
            first, second = {
                "multiply": (1.0, 1.0), "geometric-mean": (0.5, 0.5), "powers": file.objectness.weights,
            }[file.objectness.combine]  # fmt: skip
            best = best * present if (first, second) == (1.0, 1.0) else (
                np.maximum(present, 0) ** first * np.maximum(best, 0) ** second
            )  # fmt: skip
        return best, classes

    def _valid(self, arrays: Arrays, image: int, rows: int) -> npt.NDArray[np.bool_]:
        if self.file.count is None:
            return np.ones(rows, np.bool_)
        return np.arange(rows) < int(arrays[self.file.count.output].reshape(-1)[image])

    def _points(self, raw: Floats, grid: AnchorGrid | None) -> Floats:
        assert self.file.keypoints is not None
        assert self.file.boxes is not None
        return decode_points(self.file.keypoints, raw, grid, self.spec, self.file.boxes.variances[0])

    def _segments(
        self, arrays: Arrays, image: int, keep: npt.NDArray[np.int64], boxes: Floats, weights: Floats | None
    ) -> tuple[Segment, ...] | None:
        table = self.file.masks
        if table is None:
            return None
        size = (self.spec.height, self.spec.width)
        frames = [(box[0], box[1], box[2], box[3]) for box in boxes.tolist()]
        rows = zip(keep.tolist(), frames, strict=True)
        if weights is not None:
            planes = as_float32(arrays[table.prototypes])[image]
            return tuple(Segment(planes, weights[image][row], table.threshold, frame, size) for row, frame in rows)
        masks = arrays[table.output]
        masks = masks[image] if masks.ndim == 4 and masks.shape[1] != 1 else masks.reshape(-1, *masks.shape[-2:])
        return tuple(Segment(as_float32(masks[row]), None, table.threshold, frame, size) for row, frame in rows)


def declared_reader(
    file: LayoutFile, graph: Graph, outputs: Arrays, spec: InputSpec | None = None
) -> OutputReader:  # fmt: skip
    """Bind a declaration to a graph.

    Args:
        file: The declaration, without `layout`.
        graph: The graph.
        outputs: Those of the trial run, of the declared input size.
        spec: Input format instead of the declared one.

    Raises:
        Mismatch: It does not fit the graph; the error names the key.
    """
    assert file.boxes is not None
    assert file.scores is not None
    assert file.input is not None
    spec = spec or input_spec(file.input, graph)
    grid = anchor_grid(file.anchors, spec.height, spec.width) if file.anchors else None
    counts = grid.counts if grid else ()
    boxes, scores = _rows(file, "boxes", counts, outputs), _rows(file, "scores", counts, outputs)
    assert boxes is not None
    assert scores is not None
    declared = _Declared(
        file=file,
        spec=spec,
        grid=grid,
        boxes=boxes,
        sides=_second(file, counts, outputs),
        scores=scores,
        objectness=_rows(file, "objectness", counts, outputs),
        classes=_class_rows(file, counts, outputs),
        keypoints=_rows(file, "keypoints", counts, outputs),
        weights=_rows(file, "masks", (), outputs) if file.masks and file.masks.prototypes else None,
    )
    classes, points = _check(declared, outputs)
    names = [
        *boxes.names, *scores.names, *(file.boxes.sizes,),
        *(name for rows in (declared.objectness, declared.classes, declared.keypoints) if rows for name in rows.names),
        *((file.masks.output, file.masks.prototypes) if file.masks else ()),
        *((file.count.output,) if file.count else ()),
    ]  # fmt: skip
    suppression = file.suppression
    provides = {"boxes"} | ({"masks"} if file.masks else set()) | ({"keypoints"} if points else set())
    return OutputReader(
        spec,
        classes,
        declared,
        tuple(dict.fromkeys(name for name in names if name)),
        provides=frozenset(provides),
        suppress_iou=None if suppression and suppression.done else (suppression.iou if suppression else 0.45),
        single_image=not all(_is_batched(rows, outputs) for rows in (boxes, scores)),
        keypoints=points,
        keypoint_names=file.keypoints.names if file.keypoints else (),
    )


def _is_batched(rows: _Rows, outputs: Arrays) -> bool:
    axes = rows.axes or DEFAULT_AXES.get(outputs[rows.names[0]].ndim, "")
    return axes.startswith("B")


def _second(file: LayoutFile, counts: tuple[tuple[int, int], ...], outputs: Arrays) -> _Rows | None:
    assert file.boxes is not None
    if not file.boxes.sizes:
        return None
    if file.boxes.sizes not in outputs:
        raise Mismatch("boxes.sizes", f"names {file.boxes.sizes!r}, and the graph has {', '.join(outputs)}")
    return _Rows("boxes", (file.boxes.sizes,), file.boxes.axes, None, counts)


def _class_rows(file: LayoutFile, counts: tuple[tuple[int, int], ...], outputs: Arrays) -> _Rows | None:
    table = file.classes
    if table is None or not table.output:
        return None
    if table.output not in outputs:
        raise Mismatch("classes.output", f"names {table.output!r}, and the graph has {', '.join(outputs)}")
    axes = table.axes
    if not axes and outputs[table.output].ndim == 2 and table.column is None:
        axes = "BN"  # class numbers: one a row, with a batch axis
    columns = None if table.column is None else (table.column, table.column + 1)
    return _Rows("classes", (table.output,), axes, columns, counts)


def _check(declared: _Declared, outputs: Arrays) -> tuple[int | None, int]:
    """Check rows and columns against the trial run; returns the number of classes and of keypoints."""
    file = declared.file
    assert file.boxes is not None
    assert file.scores is not None
    with np.errstate(all="ignore"):
        shapes = {
            rows.key if rows is not declared.sides else "boxes.sizes": rows(outputs).shape
            for rows in (
                declared.boxes, declared.sides, declared.scores, declared.objectness, declared.classes,
                declared.keypoints, declared.weights,
            )
            if rows is not None
        }  # fmt: skip
    count = shapes["boxes"][1]
    anchors = len(declared.grid.cells) if declared.grid else count
    if count != anchors:
        size = f"{declared.spec.width} x {declared.spec.height}"
        raise Mismatch("anchors", f"give {anchors} rows at {size} pixels, and the boxes have {count}")
    for key, shape in shapes.items():
        if shape[1] != count:
            raise Mismatch(f"{key}.output", f"has {shape[1]} rows, and the boxes have {count}")
    wide = 4 * file.boxes.bins
    width = shapes["boxes"][2] + (shapes["boxes.sizes"][2] if declared.sides else 0)
    if width != wide:
        raise Mismatch("boxes.columns", f"are {width} values a row, and {file.boxes.format} needs {wide}")
    if file.objectness and shapes["objectness"][2] != 1:
        raise Mismatch("objectness.columns", f"are {shapes['objectness'][2]} values a row; it is one")
    points = 0
    if file.keypoints:
        if shapes["keypoints"][2] % file.keypoints.values:
            raise Mismatch("keypoints.columns", f"are {shapes['keypoints'][2]}, no multiple of `values`")
        points = shapes["keypoints"][2] // file.keypoints.values
    if file.masks:
        _check_masks(declared, outputs, shapes)
    if file.count and file.count.output not in outputs:
        raise Mismatch("count.output", f"names {file.count.output!r}, and the graph has {', '.join(outputs)}")
    classes = shapes["scores"][2] - (file.scores.background != "none")
    if classes < 1:
        raise Mismatch("scores.columns", "are the background only")
    if declared.classes is not None:
        if shapes["scores"][2] != 1:
            raise Mismatch("scores.columns", f"are {shapes['scores'][2]}; with `classes.output` it is one")
        return None, points
    return classes, points


def _check_masks(declared: _Declared, outputs: Arrays, shapes: dict[str, tuple[int, ...]]) -> None:
    table = declared.file.masks
    assert table is not None
    for key, name in (("masks.output", table.output), ("masks.prototypes", table.prototypes)):
        if name and name not in outputs:
            raise Mismatch(key, f"names {name!r}, and the graph has {', '.join(outputs)}")
    if table.prototypes:
        planes = outputs[table.prototypes]
        if planes.ndim != 4 or planes.shape[1] != shapes["masks"][2]:
            raise Mismatch(
                "masks.prototypes", f"is {list(planes.shape)}, and there are {shapes['masks'][2]} coefficients"
            )
    elif outputs[table.output].ndim not in {3, 4}:
        raise Mismatch("masks.output", f"is {list(outputs[table.output].shape)}; it must be [batch, n, height, width]")
