"""Propose a layout file for an unknown graph, from its outputs on one image.

Hypotheses on the outputs and on the pixels are decoded and ranked by how plausible their detections are: boxes lie in
the image, few rows score high, high-scoring neighbours overlap, and the detections stay with the objects when the image
is mirrored or shrunk. The last two need no knowledge of the classes, and a wrong decoding fails them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ml_backend.detection.detections import Detections, cross_iou, non_max_suppression
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import RgbImage, prepare
from ml_backend.errors import ModelBroken
from ml_backend.inference.session import Engine
from ml_backend.layouts import LAYOUTS
from ml_backend.layouts.anchors import ANCHORS
from ml_backend.layouts.base import STRIDE_SETS, in_unit_range
from ml_backend.layouts.declared import Mismatch, anchor_grid, declared_reader, input_spec
from ml_backend.layouts.faces import RETINAFACE_ANCHORS, ULTRAFACE_ANCHORS, YOLOV5_FACE_ANCHORS
from ml_backend.layouts.layout_file import (
    Anchors,
    Boxes,
    Classes,
    Input,
    Keypoints,
    LayoutFile,
    Objectness,
    Scores,
    Suppression,
    problems,
)
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.raw_heads import FASTESTV2_ANCHORS

# Readings of the outputs that are tried with every preprocessing.
KEPT = 60

# Candidates whose detections on the mirrored and the shrunk image are compared, and candidates shown.
COMPARED, SHOWN = 36, 4

# Longest search in seconds; what was found until then is ranked.
LIMIT_S = 120.0

# Rows examined per hypothesis, best first, and detections compared.
EXAMINED, BEST = 200, 10

# Lowest best score of an image that shows what the model knows.
LOWEST = 0.02

# Share of the best score above which a row scores at all.
MANY = 0.2

# Factor of the shrunk image.
SHRINK = 0.6

# Minimum plausibility of a proposal worth writing, and the lead below which the next candidate is as good.
PLAUSIBLE, CLOSE = 0.35, 0.05

_IMAGENET: dict[str, Any] = {"range": "0..1", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Ranges of pixels that public models take, most common first.
_COLORS: tuple[Literal["RGB", "BGR"], ...] = ("RGB", "BGR")
_ACTIVATIONS: tuple[Literal["none", "sigmoid"], ...] = ("none", "sigmoid")
PIXELS: tuple[Mapping[str, Any], ...] = (
    {"range": "0..1"}, {"range": "0..255"}, _IMAGENET, {"range": "-1..1"},
    {"range": "0..255", "mean": (104.0, 117.0, 123.0)},
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A proposed layout file and the detections it gives.

    Attributes:
        file: The layout.
        plausibility: 0..1.
        parts: What it is made of, by name, 0..1 each.
        detections: On the image, in its pixels, best first.
    """

    file: LayoutFile
    plausibility: float
    parts: Mapping[str, float]
    detections: Detections

    def describe(self) -> str:
        """Describe the hypothesis in one line."""
        boxes, scores, pixels = self.file.boxes, self.file.scores, self.file.input
        assert boxes is not None
        assert scores is not None
        assert pixels is not None
        unit = "" if boxes.format not in {"corners", "centre", "corner-size", "distances"} else f" in {boxes.unit}"
        order = ", y first" if boxes.order == "yx" else ""
        with_objectness = " x objectness" if self.file.objectness else ""
        activation = "" if scores.activation == "none" else f" after {scores.activation}"
        normalised = "" if pixels.std == (1.0, 1.0, 1.0) and pixels.mean == (0.0, 0.0, 0.0) else " normalised"
        return (
            f"boxes {boxes.format}{unit}{order}; scores{activation}{with_objectness}; "
            f"pixels {pixels.color} {pixels.range}{normalised}"
        )


@dataclass(frozen=True)
class _Source:
    """Outputs read as rows: one output, or one a level."""

    output: str | tuple[str, ...]
    axes: Any  # one of `layout_file.Axes`
    rows: int
    width: int
    whole: bool = False
    maps: bool = False


@dataclass
class _Search:
    """Outputs on the image and its variants, per preprocessing."""

    engine: Engine
    image: RgbImage
    side: tuple[int, int] | None
    deadline: float
    seen: dict[tuple[str, str], Arrays] = field(default_factory=dict)
    place: Fit | None = None

    def fit(self, file: LayoutFile) -> Fit:
        """Place of the image in the input, the same for every candidate."""
        assert file.input is not None
        if self.place is None:
            self.place = prepare(self.image, input_spec(file.input, self.engine.graph)).fit
        return self.place

    def outputs(self, pixels: Input, variant: str) -> Arrays | None:
        """Outputs on a variant of the image: "plain", "mirrored" or "shrunk"; None where the engine fails."""
        key = (repr(pixels), variant)
        if key not in self.seen:
            spec = input_spec(pixels, self.engine.graph)
            try:
                self.seen[key] = self.engine.run([prepare(_variant(self.image, variant), spec).tensor])
            except ModelBroken:
                return None
        return self.seen[key]


def suggest(path: Path, image: RgbImage, *, size: tuple[int, int] | None = None) -> list[Candidate]:
    """Propose layouts of a model, most plausible first.

    Args:
        path: The ONNX file.
        image: (h, w, 3) uint8 RGB with objects that the model knows.
        size: (height, width) of the input in pixels where the graph leaves it open; None: 640 x 640.

    Raises:
        ModelBroken: The model cannot be opened or run.
    """
    engine = Engine(path)
    side = _side(engine.graph, size)
    search = _Search(engine, image, side, time.monotonic() + LIMIT_S)
    first = search.outputs(_input(side, "RGB", PIXELS[0]), "plain")
    if first is None:
        raise ModelBroken(path=path, reason="it does not run on this image")
    structures = list(_unique(_structures(engine.graph, first, side)))
    preprocessings = list(_preprocessings(side))
    rated = _rated(search, structures, [pixels for pixels in preprocessings if _is_usual(pixels)])
    # Only readings that are plausible with usual pixels are tried with all.
    likely = list(_unique(msgspec.structs.replace(one.file, input=None) for one in rated))[:KEPT]
    rated += _rated(search, likely, [pixels for pixels in preprocessings if not _is_usual(pixels)])
    rated.sort(key=lambda one: -one.plausibility)
    compared = [_compare(search, candidate) for candidate in _diverse(rated, COMPARED)]
    compared.sort(key=lambda one: -one.plausibility)
    return _distinct(compared)[: 2 * SHOWN]


def _rated(search: _Search, structures: Sequence[LayoutFile], preprocessings: Sequence[Input]) -> list[Candidate]:
    """Rate every reading with every preprocessing, best first."""
    candidates = []
    for pixels in preprocessings:
        outputs = search.outputs(pixels, "plain")
        if outputs is None:
            continue
        for structure in structures:
            if time.monotonic() > search.deadline:
                break
            candidate = _evaluate(search, msgspec.structs.replace(structure, input=pixels), outputs)
            if candidate is not None:
                candidates.append(candidate)
    return sorted(candidates, key=lambda one: -one.plausibility)


def _is_usual(pixels: Input) -> bool:
    plain = (pixels.mean, pixels.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return (plain and pixels.color == "RGB" and pixels.range != "-1..1") or pixels.mean[0] > 100


def _input(side: tuple[int, int] | None, color: Literal["RGB", "BGR"], pixels: Mapping[str, Any]) -> Input:
    mean, std = pixels.get("mean", (0.0, 0.0, 0.0)), pixels.get("std", (1.0, 1.0, 1.0))
    return Input(
        size=side,
        color=color,
        range=pixels["range"],
        mean=mean if color == "RGB" or mean[0] > 100 else mean[::-1],
        std=std if color == "RGB" else std[::-1],
        letterbox="top-left",
        pad=114,
    )


def _preprocessings(side: tuple[int, int] | None) -> Iterator[Input]:
    for pixels in PIXELS:
        for color in _COLORS:
            if pixels.get("mean", (0,))[0] > 100 and color == "RGB":
                continue  # Caffe's mean is of BGR
            yield _input(side, color, pixels)


def _side(graph: Graph, size: tuple[int, int] | None) -> tuple[int, int] | None:
    sides = graph.image.shape[-3:] if graph.image else (None, None, None)
    fixed = sides[:2] if graph.channels_last else sides[1:]
    if None not in fixed:
        return None
    return size or (fixed[0] or 640, fixed[1] or 640)


def _variant(image: RgbImage, variant: str) -> RgbImage:
    if variant == "mirrored":
        return np.ascontiguousarray(image[:, ::-1])
    if variant == "shrunk":
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize((max(1, round(width * SHRINK)), max(1, round(height * SHRINK))))
        canvas = np.full_like(image, 114)
        canvas[: small.height, : small.width] = np.asarray(small)
        return canvas
    return image


# --- Hypotheses on the outputs ----------------------------------------------------------------------------------------


def _structures(graph: Graph, outputs: Arrays, side: tuple[int, int] | None) -> Iterator[LayoutFile]:
    """Declarations of known families with a doubt, then every reading of the shapes."""
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
        grids = list(_grids(boxes.rows, height, width, maps=boxes.maps))
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
        single += [
            _Source(name, axes, rows, columns, whole, maps="H" in axes)
            for axes, rows, columns in _views(array.shape)
            if rows
        ]
    yield from (source for source in single if not source.maps or source.rows)
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
                    yield _Source(names, axes, sum(cells) * per_cell, columns, maps=group[0].maps)


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


def _grids(rows: int, height: int, width: int, *, maps: bool) -> list[Anchors]:
    """Anchors that give this number of rows."""
    del maps
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


def _unique(files: Iterator[LayoutFile]) -> Iterator[LayoutFile]:
    known_files: set[bytes] = set()
    for file in files:
        key = msgspec.json.encode(file)
        if key not in known_files:
            known_files.add(key)
            yield file


# --- Plausibility -----------------------------------------------------------------------------------------------------


def _decode(file: LayoutFile, search: _Search, outputs: Arrays) -> Detections | None:
    """The best rows of a hypothesis, in pixels of the input; None where it does not fit."""
    if any(True for _ in problems(file)):
        return None
    try:
        with np.errstate(all="ignore"):
            reader = declared_reader(file, search.engine.graph, outputs)
            detections = reader.decode(outputs, 0.0)[0]
    except (Mismatch, ValueError, IndexError, KeyError):
        return None
    scores = detections.scores
    if not len(scores) or not np.isfinite(scores).all() or not np.isfinite(detections.boxes).all():
        return None
    if not LOWEST <= scores.max() <= 1.01:
        return None
    return detections


def _evaluate(search: _Search, file: LayoutFile, outputs: Arrays) -> Candidate | None:
    """Rate a hypothesis on the plain image."""
    detections = _decode(file, search, outputs)
    if detections is None:
        return None
    dense = file.suppression is None
    # Most places show no object: few rows of a dense head score at all.
    sparse = (
        float(np.clip(1.25 - (detections.scores > MANY * detections.scores.max()).mean() / 0.2, 0, 1)) if dense else 1.0
    )
    if not sparse:
        return None
    detections = detections[np.argsort(-detections.scores, kind="stable")[:EXAMINED]]
    fit = search.fit(file)
    inside = _inside(detections, fit.width * fit.scale_x, fit.height * fit.scale_y)
    cluster = _cluster(detections) if dense else 1.0
    best = non_max_suppression(detections, iou=0.5, max_boxes=BEST)
    strength = float(best.scores[:3].mean())
    parts = {"inside": inside, "sparse": sparse, "overlap": cluster, "score": strength}
    plausibility = inside * sparse * cluster * strength**0.5
    if plausibility < 0.02:
        return None
    return Candidate(file, plausibility, parts, best.to_image(fit))


def _inside(found: Detections, width: float, height: float) -> float:
    """Share of boxes of usual shape that lie in the image, weighted by their scores."""
    boxes = found.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    clipped = np.clip(boxes, 0, [width, height, width, height])
    visible_area = np.prod(np.clip(clipped[:, 2:] - clipped[:, :2], 0, None), axis=1)
    area = np.prod(np.clip(sides, 0, None), axis=1)
    share = np.divide(visible_area, area, out=np.zeros_like(visible_area), where=area > 0)
    shape = (sides.min(axis=1) > 2) & (sides.max(axis=1) < 12 * np.maximum(sides.min(axis=1), 1e-6))
    small = area < 1.05 * width * height
    return float(((share > 0.8) & shape & small) @ found.scores / found.scores.sum())


def _cluster(found: Detections) -> float:
    """How much rows of high scores overlap another such row: neighbours see one object."""
    strong = found[found.scores >= 0.5 * found.scores.max()]
    if len(strong) < 2:
        return 0.6
    overlaps = cross_iou(strong.boxes, strong.boxes)
    np.fill_diagonal(overlaps, 0)
    same = strong.classes[:, None] == strong.classes[None, :]
    return float(0.2 + 0.8 * np.clip((overlaps * same).max(axis=1).mean() / 0.8, 0, 1))


def _diverse(found: Sequence[Candidate], most: int) -> list[Candidate]:
    """The best candidates, a few per structure and per preprocessing."""
    selected: list[Candidate] = []
    structures: dict[bytes, int] = {}
    for candidate in found:
        key = msgspec.json.encode(msgspec.structs.replace(candidate.file, input=None))
        if structures.get(key, 0) >= 9:  # one for each preprocessing
            continue
        structures[key] = structures.get(key, 0) + 1
        selected.append(candidate)
        if len(selected) == most:
            break
    return selected


def _compare(search: _Search, candidate: Candidate) -> Candidate:
    """Rate a candidate by its detections on the mirrored and the shrunk image too."""
    file = candidate.file
    agreements = {}
    for variant in ("mirrored", "shrunk"):
        if time.monotonic() > search.deadline:
            break
        outputs = search.outputs(file.input, variant) if file.input else None
        detections = _decode(file, search, outputs) if outputs is not None else None
        if detections is None or file.input is None:
            agreements[variant] = 0.0
            continue
        fit = search.fit(file)
        detections = detections[np.argsort(-detections.scores, kind="stable")[:EXAMINED]]
        detections = non_max_suppression(detections, iou=0.5, max_boxes=3 * BEST).to_image(fit)
        agreements[variant] = _agreement(candidate.detections, _mapped_back(detections, variant, search.image))
    parts = {**candidate.parts, **agreements}
    # The lower one counts more: a wrong unit often passes one of both.
    values = list(agreements.values()) or [0.0]
    agreement = 0.7 * min(values) + 0.3 * float(np.mean(values))
    plausibility = candidate.plausibility * (0.1 + 0.9 * agreement)
    return Candidate(file, float(np.clip(plausibility, 0, 1)), parts, candidate.detections)


def _mapped_back(found: Detections, variant: str, image: RgbImage) -> Detections:
    boxes = found.boxes.copy()
    if variant == "mirrored":
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    else:
        boxes /= np.float32(SHRINK)
    return Detections(boxes, found.scores, found.classes)


def _agreement(first: Detections, second: Detections) -> float:
    """Mean IoU of the best detections with their like on the variant, weighted by score."""
    strong = first[first.scores >= 0.4 * first.scores.max()] if len(first) else first
    if not len(strong) or not len(second):
        return 0.0
    overlaps = cross_iou(strong.boxes, second.boxes) * (strong.classes[:, None] == second.classes[None, :])
    score_ratio = np.minimum(1, second.scores[None, :] / strong.scores[:, None])
    return float((overlaps * np.sqrt(score_ratio)).max(axis=1) @ strong.scores / strong.scores.sum())


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without candidates whose detections are those of a better one with the same pixels."""
    distinct: list[Candidate] = []
    for candidate in candidates:
        same = any(
            other.file.input == candidate.file.input
            and len(other.detections) == len(candidate.detections)
            and np.allclose(other.detections.boxes, candidate.detections.boxes, atol=1)
            and np.allclose(other.detections.scores, candidate.detections.scores, atol=0.02)
            for other in distinct
        )
        if not same:
            distinct.append(candidate)
    return distinct


def draw_candidates(image: RgbImage, candidates: Sequence[Candidate], *, side: int = 480) -> Image.Image:
    """Draw the candidates side by side, each with its rank and plausibility."""
    factor = side / max(image.shape[:2])
    width, height = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    photo = Image.fromarray(image).resize((width, height))
    font = ImageFont.load_default(13)
    columns = min(2, max(1, len(candidates)))
    rows = -(-len(candidates) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + 44)), "white")
    for index, candidate in enumerate(candidates):
        tile = photo.copy()
        pen = ImageDraw.Draw(tile)
        strong = candidate.detections.scores >= 0.4 * candidate.detections.scores.max(initial=0)
        drawn = candidate.detections[strong]
        for box, score, number in zip(drawn.boxes * factor, drawn.scores, drawn.classes, strict=True):
            pen.rectangle([float(value) for value in box], outline="#e6194b", width=2)
            pen.text((float(box[0]) + 3, float(box[1]) + 1), f"{number} {score:.2f}", fill="#e6194b", font=font)
        left, top = index % columns * (width + 8), index // columns * (height + 44)
        sheet.paste(tile, (left, top + 36))
        first, _, second = candidate.describe().partition("; ")
        title = f"{index + 1}: {candidate.plausibility:.2f}  {first}\n{second}"
        ImageDraw.Draw(sheet).text((left + 2, top + 2), title, fill="black", font=font)
    return sheet
