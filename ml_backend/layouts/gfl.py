"""Owns the layouts with distances as distributions: NanoDet, NanoDet-Plus and PicoDet.

Each side of a box is the mean of a distribution over 0..m strides (Li et al. 2020, https://arxiv.org/abs/2006.04388),
measured from the middle of the anchor's cell. (NanoDet-Plus measures from the cell's corner.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    Reader,
    best_class,
    grid,
    grid_strides,
    image_size,
    is_share,
    level_sizes,
    named,
    only,
    plain_spec,
    sigmoid,
    softmax,
)  # fmt: skip

BINS = 8
"""Numbers a side where nothing tells otherwise: 0..7 strides, as NanoDet and PicoDet are configured."""

LEAST_BINS = 2
"""Of one number a side there is no distribution: such outputs are distances themselves, as FCOS has them."""

_NANODET: Any = {"color": "BGR", "pad": 0, "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)}
STRIDES: Mapping[int, tuple[int, ...]] = {3: (8, 16, 32), 4: (8, 16, 32, 64)}
"""Levels -> the stride of each."""


@dataclass(frozen=True)
class _Levels:
    """Names of the outputs, level by level from fine to coarse, and how many classes they have."""

    scores: tuple[str, ...]
    distances: tuple[str, ...]
    classes: int


def _levels(graph: Graph, seen: Arrays) -> _Levels | None:
    """Outputs in any order put in pairs: those of a level have its number of rows, distances the width they share."""
    strides = STRIDES.get(len(seen) // 2)
    if strides is None or len(seen) != 2 * len(strides) or any(array.ndim != 3 for array in seen.values()):
        return None
    rows = [high * wide for high, wide in level_sizes(*image_size(graph), strides)]
    pairs = []
    for count in rows:
        pair = [(name, array) for name, array in seen.items() if array.shape[1] == count]
        if len(pair) != 2:
            return None
        pairs.append(pair)
    widths = {array.shape[2] for array in seen.values()}
    if len(widths) != 2 and widths != {4 * BINS}:
        return None
    told = named(graph)
    distance = next((width for width in sorted(widths) if width == 4 * BINS and width != told), None)
    if distance is None:
        distance = next((width for width in sorted(widths) if width % 4 == 0 and width != told), None)
    if len(widths) == 1:  # as many classes as numbers of a box: probabilities are what lies in 0..1
        pairs = [sorted(pair, key=lambda one: not is_share(one[1])) for pair in pairs]
    elif distance is None or distance < LEAST_BINS * 4:
        return None
    else:
        pairs = [sorted(pair, key=lambda one: one[1].shape[2] == distance) for pair in pairs]
    classes = {pair[0][1].shape[2] for pair in pairs}
    if len(classes) != 1:
        return None
    return _Levels(tuple(pair[0][0] for pair in pairs), tuple(pair[1][0] for pair in pairs), classes.pop())


def boxes_of(distances: Floats, cells: Floats, steps: Floats, corner: float) -> Floats:
    """(n, 4 x bins) -> (n, 4): the mean of each distribution is left, top, right, bottom of the anchor, in strides."""
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
    squash: bool,
) -> list[Detections]:  # fmt: skip
    cells, steps = grid(spec.height, spec.width, strides)
    found = []
    for score, distance in zip(as_float32(scores), as_float32(distances), strict=True):
        shares = sigmoid(score) if squash else score
        likely = np.flatnonzero(shares.max(axis=1) >= floor)
        boxes = boxes_of(distance[likely], cells[likely], steps[likely], corner)
        found.append(best_class(boxes, shares[likely], floor))
    return found


def _recogniser(count: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, seen: Arrays) -> str | None:
        if len(seen) != 2 * count or _levels(graph, seen) is None:
            return None
        return f"{count} outputs of class scores and {count} of distances, paired by their rows"

    return recognise


def _reader(options: Any):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def read(graph: Graph, seen: Arrays) -> Reader:
        levels = _levels(graph, seen)
        if levels is None:
            raise ValueError("it has no pairs of class scores and distances [batch, anchors, n], a pair a level")
        spec = plain_spec(graph, **options)
        strides = STRIDES[len(levels.scores)]
        squash = not all(is_share(seen[name]) for name in levels.scores)

        def decode(arrays: Arrays, floor: float) -> list[Detections]:
            scores = np.concatenate([arrays[name] for name in levels.scores], axis=1)
            distances = np.concatenate([arrays[name] for name in levels.distances], axis=1)
            return _decode(scores, distances, spec, strides, floor=floor, corner=0.5, squash=squash)

        return Reader(spec, levels.classes, decode, (*levels.scores, *levels.distances))

    return read


def _recognise_single(graph: Graph, seen: Arrays) -> str | None:
    array = only(seen, 3)
    if array is None or array.shape[2] <= 4 * BINS:
        return None
    classes = array.shape[2] - 4 * BINS
    size, told = image_size(graph), named(graph)
    if grid_strides(*size, array.shape[1]) not in set(STRIDES.values()) or told not in {None, classes}:
        return None
    # YOLOX has the same shape with more classes, but all of them, and nothing else from the fifth on, are shares.
    if not is_share(array[..., :classes]) or is_share(array[..., classes:]):
        return None
    return f"one output of {classes} class scores and 4 x {BINS} numbers of distances for {array.shape[1]} anchors"


def _read_single(graph: Graph, seen: Arrays) -> Reader:
    array = only(seen, 3)
    strides = grid_strides(*image_size(graph), array.shape[1]) if array is not None else None
    if array is None or strides is None or array.shape[2] <= 4 * BINS:
        raise ValueError(f"it has no single output [batch, anchors, classes + {4 * BINS}]")
    name, classes = next(iter(seen)), array.shape[2] - 4 * BINS
    spec = plain_spec(graph, **_NANODET)
    squash = not is_share(array[..., :classes])
    corner = 0.0 if len(strides) == 4 else 0.5

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        both = arrays[name]
        scores, distances = both[..., :classes], both[..., classes:]
        return _decode(scores, distances, spec, strides, floor=floor, corner=corner, squash=squash)

    return Reader(spec, classes, decode, (name,))


NANODET = Layout(_recogniser(3), _reader(_NANODET))
NANODET_SINGLE = Layout(_recognise_single, _read_single)
PICODET = Layout(_recogniser(4), _reader({"placement": "stretch", **IMAGENET}))
