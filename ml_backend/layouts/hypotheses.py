"""Hypotheses on the outputs of an unknown graph: every layout file that the shapes of its outputs allow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts import LAYOUTS
from ml_backend.layouts.anchors import ANCHORS
from ml_backend.layouts.base import STRIDE_SETS, in_unit_range
from ml_backend.layouts.declared import anchor_grid
from ml_backend.layouts.faces import RETINAFACE_ANCHORS, ULTRAFACE_ANCHORS, YOLOV5_FACE_ANCHORS
from ml_backend.layouts.layout_file import (
    Anchors,
    Boxes,
    Classes,
    Keypoints,
    LayoutFile,
    Objectness,
    Scores,
    Suppression,
)
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.raw_heads import FASTESTV2_ANCHORS

_ACTIVATIONS: tuple[Literal["none", "sigmoid"], ...] = ("none", "sigmoid")


@dataclass(frozen=True)
class _Source:
    """Outputs read as rows: one output, or one a level."""

    output: str | tuple[str, ...]
    axes: Any  # one of `layout_file.Axes`
    rows: int
    width: int
    whole: bool = False


def hypotheses(graph: Graph, outputs: Arrays, side: tuple[int, int] | None) -> Iterator[LayoutFile]:
    """Declarations of families that match but for one doubt, then every reading of the shapes.

    Args:
        graph: The model.
        outputs: Its outputs on one image, by name.
        side: (height, width) of the input in pixels; None: the graph fixes it.
    """
    for layout in LAYOUTS.values():
        try:
            layout.recognise(graph, outputs)
        except Misfit as error:
            declared = getattr(error, "declared", None)
            if declared is not None:
                yield declared[0]
        except (ValueError, KeyError, IndexError):
            continue
    height, width = side or _graph_side(graph)
    sources = list(_sources(outputs, height, width))
    for boxes in sources:
        others = [other for other in sources if other.rows == boxes.rows and _disjoint(other, boxes)]
        grids = list(_grids(boxes.rows, height, width))
        yield from _combined(boxes, grids)
        yield from _separate(boxes, others, grids, outputs)


def _graph_side(graph: Graph) -> tuple[int, int]:
    sides = graph.image.shape[-3:] if graph.image else (None, None, None)
    height, width = sides[:2] if graph.channels_last else sides[1:]
    return height or 640, width or 640


def _names(source: _Source) -> set[str]:
    return {source.output} if isinstance(source.output, str) else set(source.output)


def _disjoint(one: _Source, other: _Source) -> bool:
    return not _names(one) & _names(other)


def _sources(outputs: Arrays, height: int, width: int) -> Iterator[_Source]:
    """Each output, and each set of outputs that are the levels of one quantity, as rows."""
    single: list[_Source] = []
    for name, array in outputs.items():
        whole = bool(np.issubdtype(array.dtype, np.integer))
        if not whole and array.size and array.ndim <= 2:
            values = as_float32(array)
            whole = bool(np.all(values == np.round(values))) and float(values.max(initial=0)) > 1
        single += [_Source(name, axes, rows, columns, whole) for axes, rows, columns in _views(array.shape) if rows]
    yield from single
    by_kind: dict[tuple[str, int], list[_Source]] = {}
    for source in single:
        by_kind.setdefault((source.axes, source.width), []).append(source)
    for (axes, columns), group in by_kind.items():
        for strides in STRIDE_SETS:
            cells = [-(-height // stride) * -(-width // stride) for stride in strides]
            for per_cell in (1, 2, 3):
                members = [[source for source in group if source.rows == count * per_cell] for count in cells]
                if len(strides) > 1 and all(len(member) == 1 for member in members):
                    names = tuple(str(member[0].output) for member in members)
                    yield _Source(names, axes, sum(cells) * per_cell, columns)


def _views(shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(axes, rows, columns) in which an array can be rows."""
    if len(shape) == 1:
        yield "N", shape[0], 1
    elif len(shape) == 2:
        yield "NC", shape[0], shape[1]
        if shape[0] == 1:
            yield "BN", shape[1], 1
    elif len(shape) == 3:
        if shape[2] <= 1200:
            yield "BNC", shape[1], shape[2]
        if shape[1] < shape[2] and 4 <= shape[1] <= 1200:
            yield "BCN", shape[2], shape[1]
    elif len(shape) == 4:
        if shape[1] <= 1200 and shape[1] != shape[2]:
            yield "BCHW", shape[2] * shape[3], shape[1]
        if shape[3] <= 1200 and shape[2] == shape[1]:
            yield "BHWC", shape[1] * shape[2], shape[3]
    elif len(shape) == 5 and shape[1] <= 9:
        yield "BAHWC", shape[1] * shape[2] * shape[3], shape[4]


def _grids(rows: int, height: int, width: int) -> list[Anchors]:
    """Anchors that give this number of rows."""
    grids = [
        ULTRAFACE_ANCHORS,
        RETINAFACE_ANCHORS,
        Anchors(strides=(8, 16, 32), sizes=((24, 48), (96, 192), (384, 768))),
        Anchors(strides=(8, 16), per_cell=(2, 6)),
        Anchors(strides=(16, 32), per_cell=(2, 6)),
        YOLOV5_FACE_ANCHORS,
    ]
    for strides in (*STRIDE_SETS, (4,), (8,), (16,), (32,)):
        grids += [Anchors(strides=strides, per_cell=(count,) * len(strides)) for count in (1, 2, 3)]
    grids += [
        Anchors(strides=(8, 16, 32, 64)[: len(levels)], sizes=tuple(map(_pairs, levels)), order=order)
        for levels in (ANCHORS[3], ANCHORS[4], _YOLOV7_ANCHORS)
        for order in ("cells", "anchors")
    ]  # fmt: skip
    grids.append(Anchors(strides=(16, 32), sizes=FASTESTV2_ANCHORS))
    fitting = []
    for anchors in grids:
        counts = anchor_grid(anchors, height, width).counts
        # One row an anchor, or one a cell whose anchors share the channels.
        if rows in {sum(cells * per_cell for cells, per_cell in counts), sum(cells for cells, _ in counts)}:
            fitting.append(anchors)
    return fitting


_YOLOV7_ANCHORS = (
    (12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401),
)  # fmt: skip


def _pairs(sides: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(sides[at]), float(sides[at + 1])) for at in range(0, len(sides), 2))


def _box_readings(
    output: str | tuple[str, ...], columns: tuple[int, int], axes: str, grids: Sequence[Anchors], *, bins: int = 1
) -> Iterator[tuple[Boxes, Anchors | None]]:
    """Every encoding that four (x bins) columns can have."""
    common: dict[str, Any] = {"output": output, "columns": columns, "axes": axes}
    if bins == 1:
        readings: Any = itertools.product(
            ("corners", "centre", "corner-size"), ("pixels", "normalised"), ("xy", "yx")
        )  # fmt: skip
        for form, unit, order in readings:
            yield Boxes(**common, format=form, unit=unit, order=order), None
    for anchors in grids:
        places = (0.5, 0.0) if not anchors.sizes or anchors.offset == 0 else (anchors.offset,)
        for offset in places:
            moved = msgspec.structs.replace(anchors, offset=offset)
            if not anchors.sizes:
                units: tuple[Literal["strides", "pixels"], ...] = ("strides",) if bins > 1 else ("strides", "pixels")
                for unit in units:
                    yield Boxes(**common, format="distances", unit=unit, bins=bins), moved
        if bins > 1:
            continue
        if not anchors.sizes:
            yield Boxes(**common, format="yolox"), anchors
            yield Boxes(**common, format="mediapipe"), anchors
            yield Boxes(**common, format="fastestdet"), anchors
        else:
            yield Boxes(**common, format="ssd"), msgspec.structs.replace(anchors, offset=0.5)
            for activation in ("none", "sigmoid"):
                yield Boxes(**common, format="yolov5", activation=activation), anchors
                yield Boxes(**common, format="yolov3", activation=activation), anchors


def _combined(source: _Source, grids: Sequence[Anchors]) -> Iterator[LayoutFile]:
    """Readings of one output (or one a level) that has everything."""
    width, output, axes = source.width, source.output, source.axes
    common: dict[str, Any] = {"output": output, "axes": axes}
    if width in {6, 7} and isinstance(output, str) and source.rows <= 1000:
        for box, score, number in {6: ((0, 4, 5), (2, 1, 0)), 7: ((1, 6, 5), (3, 2, 1), (0, 4, 5), (0, 5, 6))}[width]:
            for boxes, _ in _box_readings(output, (box, box + 4), axes, ()):
                yield LayoutFile(
                    boxes=boxes,
                    scores=Scores(**common, columns=(score, score + 1)),
                    classes=Classes(output=output, column=number, axes=axes),
                    suppression=Suppression(done=True),
                )
    yield from _shared_scores(source, grids)
    bins = [(1, 4)] + [(count, 4 * count) for count in (8, 16) if width > 4 * count]
    for count, wide in bins:
        places = [(0, wide, width)] + ([(width - wide, 0, width - wide)] if width > wide else [])
        for box, first, end in places:
            if end - first < 1:
                continue
            for boxes, anchors in _box_readings(output, (box, box + wide), axes, grids, bins=count):
                for activation in _ACTIVATIONS:
                    yield LayoutFile(
                        anchors=anchors,
                        boxes=boxes,
                        scores=Scores(**common, columns=(first, end), activation=activation),
                    )
                    if end - first >= 2 and box == 0:
                        yield LayoutFile(
                            anchors=anchors,
                            boxes=boxes,
                            scores=Scores(**common, columns=(first + 1, end), activation=activation),
                            objectness=Objectness(**common, columns=(first, first + 1), activation=activation),
                        )


def _shared_scores(source: _Source, grids: Sequence[Anchors]) -> Iterator[LayoutFile]:
    """Boxes and objectnesses of three anchors, then scores that they share (Yolo-FastestV2)."""
    common: dict[str, Any] = {"output": source.output, "axes": source.axes}
    if source.width < 16:
        return
    for anchors in grids:
        if any(len(level) != 3 for level in anchors.sizes) or not anchors.sizes:
            continue
        for activation in _ACTIVATIONS:
            yield LayoutFile(
                anchors=anchors,
                boxes=Boxes(**common, columns=(0, 12), format="yolov5", activation=activation),
                objectness=Objectness(**common, columns=(12, 15), activation=activation),
                scores=Scores(**common, columns=(15, source.width), activation=activation, shared=True),
            )


def _separate(
    boxes_source: _Source, others: Sequence[_Source], grids: Sequence[Anchors], outputs: Arrays
) -> Iterator[LayoutFile]:
    """Readings of boxes and scores in outputs of their own, with or without class numbers or an objectness."""
    wide = boxes_source.width
    bins = [1] if wide >= 4 else []
    bins += [count for count in (3, 8, 16) if wide == 4 * count]
    for count in bins:
        for boxes, anchors in _box_readings(
            boxes_source.output, (0, 4 * count), boxes_source.axes, grids, bins=count
        ):  # fmt: skip
            for scores in others:
                if scores.whole:
                    continue
                rest = [other for other in others if _disjoint(other, scores) and other.width == 1]
                plain = LayoutFile(anchors=anchors, boxes=boxes, keypoints=_points_of(boxes, wide))
                yield from _with_scores(plain, scores, rest, outputs)
    if wide == 12:
        yield from _separate_shared(boxes_source, others, grids)
    if wide == 5:  # a box and its score, and an output of class numbers
        for boxes, _ in _box_readings(boxes_source.output, (0, 4), boxes_source.axes, ()):
            for numbers in others:
                if numbers.width == 1 and isinstance(numbers.output, str):
                    yield LayoutFile(
                        boxes=boxes,
                        scores=Scores(output=boxes_source.output, columns=(4, 5), axes=boxes_source.axes),
                        classes=Classes(output=numbers.output, axes=numbers.axes),
                        suppression=Suppression(done=True),
                    )


def _separate_shared(source: _Source, others: Sequence[_Source], grids: Sequence[Anchors]) -> Iterator[LayoutFile]:
    """Boxes of three anchors, three objectnesses, and scores that the anchors share, each in an output of its own."""
    for anchors in grids:
        if not anchors.sizes or any(len(level) != 3 for level in anchors.sizes):
            continue
        for presence, scores in itertools.permutations(others, 2):
            if presence.width != 3 or not _disjoint(presence, scores):
                continue
            readings: Any = itertools.product(_ACTIVATIONS, ("none", "sigmoid", "softmax"))
            for activation, of_scores in readings:
                yield LayoutFile(
                    anchors=anchors,
                    boxes=Boxes(output=source.output, axes=source.axes, format="yolov5", activation=activation),
                    objectness=Objectness(output=presence.output, axes=presence.axes, activation=activation),
                    scores=Scores(output=scores.output, axes=scores.axes, activation=of_scores, shared=True),
                )


def _with_scores(
    boxes: LayoutFile, scores: _Source, rest: Sequence[_Source], outputs: Arrays
) -> Iterator[LayoutFile]:  # fmt: skip
    common: dict[str, Any] = {"output": scores.output, "axes": scores.axes}
    readings: Any = (
        ("none", "none"), ("sigmoid", "none"), ("softmax", "first"), ("softmax", "last"), ("none", "first"),
        ("none", "last"),
    )  # fmt: skip
    for activation, background in readings:
        if background != "none" and scores.width < 2:
            continue
        if activation == "none" and not all(in_unit_range(outputs[name]) for name in _names(scores)):
            continue
        table = Scores(**common, activation=activation, background=background)
        plain = msgspec.structs.replace(boxes, scores=table)
        yield plain
        if background != "none":
            continue
        for other in rest:
            if other.whole and scores.width == 1 and isinstance(other.output, str):
                for first in (0, 1):
                    classes = Classes(output=other.output, axes=other.axes, first=first)
                    yield msgspec.structs.replace(plain, classes=classes, suppression=Suppression(done=True))
            elif not other.whole:
                presence = Objectness(output=other.output, axes=other.axes, activation=activation)
                yield msgspec.structs.replace(plain, objectness=presence)


def _points_of(boxes: Boxes, wide: int) -> Keypoints | None:
    """Keypoints behind the box in the same rows."""
    if wide <= 4 or (wide - 4) % 2 or boxes.bins > 1 or boxes.format not in {"mediapipe", "ssd"}:
        return None
    form: Literal["mediapipe", "ssd"] = "mediapipe" if boxes.format == "mediapipe" else "ssd"
    return Keypoints(output=boxes.output, columns=(4, wide), axes=boxes.axes, format=form)


def unique(files: Iterable[LayoutFile]) -> Iterator[LayoutFile]:
    """The layout files without repetitions, in order."""
    known_files: set[bytes] = set()
    for file in files:
        key = msgspec.json.encode(file)
        if key not in known_files:
            known_files.add(key)
            yield file
