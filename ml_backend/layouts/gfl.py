"""Layouts with distances as distributions: NanoDet, NanoDet-Plus and PicoDet.

Each side of a box is the mean of a distribution over 0..m strides (Generalized Focal Loss, Li et al. 2020,
https://arxiv.org/abs/2006.04388), measured from the centre of the anchor's cell; NanoDet-Plus measures from its corner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.logits import expit
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    best_class,
    class_count,
    grid,
    grid_strides,
    image_size,
    in_unit_range,
    level_sizes,
    plain_spec,
    single_output,
    softmax,
)  # fmt: skip

# Default number of bins per side: 0..7 strides, as in NanoDet's and PicoDet's configurations.
BINS = 8

# Minimum number of bins: outputs with one value per side are plain distances, as in FCOS.
MIN_BINS = 2

# Maximum number of bins per side: 16 of most heads, doubled.
MAX_BINS = 33

_NANODET: Any = {"color": "BGR", "pad": 0, "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)}
# Number of levels -> their strides.
STRIDES: Mapping[int, tuple[int, ...]] = {3: (8, 16, 32), 4: (8, 16, 32, 64)}


@dataclass(frozen=True)
class _Levels:
    """Output names per level, finest first, and the number of classes."""

    scores: tuple[str, ...]
    distances: tuple[str, ...]
    classes: int


def _levels(graph: Graph, outputs: Arrays) -> _Levels | None:
    """Pair the outputs, in any order: a level's outputs share its number of rows, all distances share their width."""
    strides = STRIDES.get(len(outputs) // 2)
    if (
        strides is None
        or len(outputs) != 2 * len(strides)
        or {array.ndim for array in outputs.values()} not in ({2}, {3})
    ):
        return None  # fmt: skip
    rows = [high * wide for high, wide in level_sizes(*image_size(graph), strides)]
    pairs = []
    for count in rows:
        pair = [(name, array) for name, array in outputs.items() if array.shape[-2] == count]
        if len(pair) != 2:
            return None
        pairs.append(pair)
    widths = {array.shape[-1] for array in outputs.values()}
    if len(widths) != 2 and widths != {4 * BINS}:
        return None
    names = class_count(graph)
    distance = next((width for width in sorted(widths) if width == 4 * BINS and width != names), None)
    if distance is None:
        distance = next((width for width in sorted(widths) if width % 4 == 0 and width != names), None)
    if len(widths) == 1:  # as many classes as box values: the probabilities lie in 0..1
        pairs = [sorted(pair, key=lambda output: not in_unit_range(output[1])) for pair in pairs]
    elif distance is None or distance < MIN_BINS * 4:
        return None
    else:
        pairs = [sorted(pair, key=lambda output: output[1].shape[-1] == distance) for pair in pairs]
    classes = {pair[0][1].shape[-1] for pair in pairs}
    if len(classes) != 1:
        return None
    return _Levels(tuple(pair[0][0] for pair in pairs), tuple(pair[1][0] for pair in pairs), classes.pop())


def boxes_of(distances: Floats, cells: Floats, steps: Floats, corner: float) -> Floats:
    """Decode box sides as means of distributions (https://arxiv.org/abs/2006.04388).

    Args:
        distances: (n, 4 x bins) float32 logits of the distances left, top, right, bottom, in strides.
        cells: (n, 2) float32 cells as x, y.
        steps: (n, 1) float32 strides in pixels.
        corner: Offset of the anchor point in its cell: 0.5 for the centre, 0 for the corner.

    Returns:
        (n, 4) float32 x_min, y_min, x_max, y_max in input pixels.
    """
    bins = distances.shape[1] // 4
    mean = softmax(distances.reshape(-1, 4, bins)) @ np.arange(bins, dtype=np.float32)
    centre = (cells + corner) * steps
    return np.concatenate([centre - mean[:, :2] * steps, centre + mean[:, 2:] * steps], axis=1).astype(np.float32)


def _decode(
    scores: npt.NDArray[Any],
    distances: npt.NDArray[Any],
    spec: InputSpec,
    strides: tuple[int, ...],
    *,
    floor: float,
    corner: float,
    is_logit: bool,
) -> list[Detections]:  # fmt: skip
    cells, steps = grid(spec.height, spec.width, strides)
    detections = []
    for score, distance in zip(as_float32(scores), as_float32(distances), strict=True):
        probabilities = expit(score) if is_logit else score
        likely = np.flatnonzero(probabilities.max(axis=1) >= floor)
        boxes = boxes_of(distance[likely], cells[likely], steps[likely], corner)
        detections.append(best_class(boxes, probabilities[likely], floor))
    return detections


def _recogniser(count: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, outputs: Arrays) -> str | None:
        if len(outputs) != 2 * count or _levels(graph, outputs) is None:
            return None
        return f"{count} outputs of class scores and {count} of distances, paired by their rows"

    return recognise


def _reader(options: Any):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def read(graph: Graph, outputs: Arrays) -> OutputReader:
        levels = _levels(graph, outputs)
        if levels is None:
            raise ValueError("it has no pairs of class scores and distances [batch, anchors, n], a pair a level")
        spec = plain_spec(graph, **options)
        strides = STRIDES[len(levels.scores)]
        is_logit = not all(in_unit_range(outputs[name]) for name in levels.scores)

        def decode(arrays: Arrays, floor: float) -> list[Detections]:
            scores, distances = (
                np.concatenate([arrays[name] for name in names], axis=-2) for names in (levels.scores, levels.distances)
            )
            if scores.ndim == 2:  # a graph of one image, without a batch axis
                scores, distances = scores[None], distances[None]
            return _decode(scores, distances, spec, strides, floor=floor, corner=0.5, is_logit=is_logit)

        names = (*levels.scores, *levels.distances)
        return OutputReader(spec, levels.classes, decode, names, single_image=outputs[names[0]].ndim == 2)

    return read


def _split_single(graph: Graph, outputs: Arrays) -> tuple[int, int] | None:
    """(classes, bins) of a single output [batch, anchors, classes + 4 x bins]; None where it is none.

    Class scores are probabilities and bins are logits, so the first column outside of 0..1 is the first bin.
    """
    array = single_output(outputs, 3)
    if array is None or array.shape[2] <= 4 * MIN_BINS:
        return None
    names = class_count(graph)
    columns = as_float32(array).reshape(-1, array.shape[2])
    outside = np.flatnonzero((columns.min(axis=0) < -1e-3) | (columns.max(axis=0) > 1 + 1e-3))
    classes = int(outside[0]) if len(outside) else -1
    if classes < 1 or (array.shape[2] - classes) % 4 or names not in {None, classes}:
        return None
    bins = (array.shape[2] - classes) // 4
    return (classes, bins) if MIN_BINS <= bins <= MAX_BINS else None


def _recognise_single(graph: Graph, outputs: Arrays) -> str | None:
    split, array = _split_single(graph, outputs), single_output(outputs, 3)
    if split is None or array is None:
        return None
    if grid_strides(*image_size(graph), array.shape[1]) not in set(STRIDES.values()):
        return None
    classes, bins = split
    # YOLOX has the same shape; there, the values from the fifth on are probabilities. Bins are logits, all of them.
    if in_unit_range(array[..., classes:]) or in_unit_range(array[..., -4:]):
        return None
    return f"one output of {classes} class scores and 4 x {bins} distance values for {array.shape[1]} anchors"


def _read_single(graph: Graph, outputs: Arrays) -> OutputReader:
    array = single_output(outputs, 3)
    strides = grid_strides(*image_size(graph), array.shape[1]) if array is not None else None
    classes, _ = _split_single(graph, outputs) or ((array.shape[2] - 4 * BINS if array is not None else 0), BINS)
    if array is None or strides is None or classes < 1:
        raise ValueError(f"it has no single output [batch, anchors, classes + 4 x bins], such as classes + {4 * BINS}")
    name = next(iter(outputs))
    spec = plain_spec(graph, **_NANODET)
    is_logit = not in_unit_range(array[..., :classes])
    corner = 0.0 if len(strides) == 4 else 0.5

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        both = arrays[name]
        scores, distances = both[..., :classes], both[..., classes:]
        return _decode(scores, distances, spec, strides, floor=floor, corner=corner, is_logit=is_logit)

    return OutputReader(spec, classes, decode, (name,))


NANODET = Layout(_recogniser(3), _reader(_NANODET))
NANODET_SINGLE = Layout(_recognise_single, _read_single)
PICODET = Layout(_recogniser(4), _reader({"placement": "stretch", **IMAGENET}))
