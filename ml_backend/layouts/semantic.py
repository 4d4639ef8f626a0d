"""Layout of semantic segmentation: a class for every pixel, as logits, probabilities or class numbers.

Recognised by shape: (batch, classes, h, w) or (batch, h, w, classes) of numbers at 1, 1/2, 1/4 or 1/8 of the input's
size, as DeepLab, SegFormer, U-Net, BiSeNet and torchvision's export. One channel is the probability or the logit of a
single class, several channels after a sigmoid are classes that may overlap, and several outputs of two classes are
heads of one class each. Or whole numbers (batch, h, w), (batch, 1, h, w) or (batch, h, w, 1): the graph ends in an
argmax. Heat maps of other networks look alike, so the classes must be named; see `ml_backend.detection.class_names`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.detection.detections import Detections
from ml_backend.detection.fit import Fit
from ml_backend.detection.logits import expit
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import IMAGENET, Layout, OutputReader, image_size, in_unit_range, last_operator, plain_spec
from ml_backend.layouts.plausibility import Misfit

Floats = npt.NDArray[np.float32]

# Input pixels per pixel of the map. Coarser maps are feature or detection maps.
STRIDES = (1, 2, 4, 8)

# Classes of the largest public label sets (ADE20K 150, COCO-Stuff 182, Mapillary 124) with room.
MAX_CLASSES = 512

# Operators whose values are probabilities, and logits.
_PROBABILITIES, _LOGITS = frozenset({"Sigmoid", "Softmax"}), frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Regions below this share of the map are noise.
MIN_SHARE = 1e-4

# Pixels at which the classes are decided; larger images are decided at a reduced size and enlarged.
MAX_MAP_PIXELS = 1 << 25

# Rows of the image that are decided at once are chosen for this number of pixels.
BAND_PIXELS = 1 << 20

# The score of a class is the mean probability over every n-th row and column of its pixels.
SCORE_STEP = 4

# Connected parts drawn per class, the largest ones, and the smallest share of the image that is drawn.
MAX_PARTS, MIN_PART_SHARE = 50, 5e-4


class SemanticMap:
    """The classes of one image's pixels, decided at the image's resolution on first use."""

    def __init__(self, planes: Floats, classes: Sequence[int], size: tuple[int, int]) -> None:
        """Keep the planes.

        Args:
            planes: (k, h, w) float32, one per class that is present, over the network's whole input; the largest wins,
                and a single plane wins where it is positive.
            classes: Class number of each plane.
            size: (height, width) of the input in pixels.
        """
        self._planes = planes
        self.classes = tuple(classes)
        self.size = size
        self._decided: dict[Fit, npt.NDArray[np.uint16]] = {}

    def decided(self, fit: Fit) -> npt.NDArray[np.uint16]:
        """Index of the winning plane per pixel of the image (h, w) uint16, at most `MAX_MAP_PIXELS`; k: none."""
        if fit not in self._decided:
            self._decided = {fit: self._decide(fit)}
        return self._decided[fit]

    def _decide(self, fit: Fit) -> npt.NDArray[np.uint16]:
        shrink = min(1.0, (MAX_MAP_PIXELS / (fit.width * fit.height)) ** 0.5)
        width, height = max(1, round(fit.width * shrink)), max(1, round(fit.height * shrink))
        rows, columns = self._planes.shape[1:]
        across, down = columns / self.size[1], rows / self.size[0]
        left, top = fit.to_input_point(0, 0)
        right, bottom = fit.to_input_point(fit.width, fit.height)
        box = max(0.0, left * across), max(0.0, top * down), min(columns, right * across), min(rows, bottom * down)
        images = [Image.fromarray(np.ascontiguousarray(plane)) for plane in self._planes]
        winners = np.empty((height, width), np.uint16)
        step = max(1, BAND_PIXELS // width)
        for first in range(0, height, step):
            last = min(first + step, height)
            part = (
                box[0],
                box[1] + (box[3] - box[1]) * first / height,
                box[2],
                box[1] + (box[3] - box[1]) * last / height,
            )
            best = np.zeros((last - first, width), np.float32) if len(images) == 1 else None
            band = np.full((last - first, width), len(images) if best is not None else 0, np.uint16)
            for number, image in enumerate(images):
                drawn: Floats = np.asarray(image.resize((width, last - first), Image.Resampling.BILINEAR, box=part))
                if best is None:
                    best = drawn.copy()
                    continue
                wins = drawn > best
                band[wins] = number
                np.maximum(best, drawn, out=best)
            winners[first:last] = band
        return winners


@dataclass(frozen=True, eq=False)
class SemanticMask:
    """The region of one class, or one connected part of it.

    Attributes:
        map: Of the image, shared by its classes.
        plane: Index of the class's plane in `map`.
        fit: Position of the image in the input; None before `Detections.to_image`.
        part: x_min, y_min, x_max, y_max and the pixels of a part, in pixels of the decided map; None: the whole region.
    """

    map: SemanticMap
    plane: int
    fit: Fit | None = None
    part: tuple[tuple[int, int, int, int], npt.NDArray[np.bool_]] | None = field(default=None, repr=False)

    def on_image(self, fit: Fit) -> "SemanticMask":
        """The same region with the position of the image in the input."""
        return SemanticMask(self.map, self.plane, fit)

    def crop(
        self, side: int | None = None, *, enlarge: bool = False
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """Render the region; see `ml_backend.detection.masks.ObjectMask`."""
        if self.fit is None:
            raise ValueError("a mask is in pixels of the input until Detections.to_image is applied")
        winners = self.map.decided(self.fit)
        if self.part is not None:
            (left, top, right, bottom), pixels = self.part
        else:
            whole = winners == self.plane
            rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
            if not rows.size:
                return np.zeros((0, 0), np.bool_), (0.0, 0.0, 0.0, 0.0)
            left, top, right, bottom = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            pixels = whole[top:bottom, left:right]
        across, down = self.fit.width / winners.shape[1], self.fit.height / winners.shape[0]
        bounds = round(left * across), round(top * down), round(right * across), round(bottom * down)
        width, height = bounds[2] - bounds[0], bounds[3] - bounds[1]
        scale = side / max(width, height) if side else 1.0
        scale = scale if enlarge else min(1.0, scale)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size != pixels.shape[::-1]:
            grey = Image.fromarray(pixels.astype(np.uint8) * np.uint8(255))
            pixels = np.asarray(grey.resize(size, Image.Resampling.BILINEAR)) > 127
        return pixels, bounds

    def parts(self) -> Iterator["SemanticMask"]:
        """Yield the connected parts, the largest first, without specks."""
        import cv2

        assert self.fit is not None
        winners = self.map.decided(self.fit)
        region = (winners == self.plane).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
        areas = stats[1:count, cv2.CC_STAT_AREA]
        for number in (np.argsort(-areas, kind="stable")[:MAX_PARTS] + 1).tolist():
            left, top, width, height, area = stats[number].tolist()
            if area < MIN_PART_SHARE * winners.size:
                return
            pixels = labels[top : top + height, left : left + width] == number
            yield SemanticMask(self.map, self.plane, self.fit, ((left, top, left + width, top + height), pixels))


@dataclass(frozen=True)
class _Maps:
    """The maps among a graph's outputs.

    Attributes:
        names: Outputs that are decoded: one map, or several heads of two classes each.
        classes: Channels of a map; None for class numbers.
        sides: (height, width) of the maps.
        channels_last: Whether the channels come last.
    """

    names: tuple[str, ...]
    classes: int | None
    sides: tuple[int, int]
    channels_last: bool

    @property
    def is_multi_head(self) -> bool:
        """Whether each output is a head of its own: background and one class."""
        return len(self.names) > 1


def _recognise(graph: Graph, outputs: Arrays) -> str | None:
    maps = _maps_of(graph, outputs)
    if maps is None:
        return None
    if maps.classes == 3 and _is_image(outputs[maps.names[0]]):
        raise Misfit(f"the three channels of {maps.names[0]} look like colours in 0..255: it makes images")
    where = f"per pixel of {maps.sides[0]} x {maps.sides[1]}: semantic segmentation"
    if maps.is_multi_head:
        return f"{', '.join(maps.names)} have two classes each {where}, one class a head"
    if maps.classes is None:
        return f"{maps.names[0]} has a whole number {where}, class numbers"
    order = "last" if maps.channels_last else "first"
    apart = "independent classes" if last_operator(graph, maps.names[0]) == "Sigmoid" else "classes"
    what = "the probability of one class" if maps.classes == 1 else f"{maps.classes} {apart}, channels {order},"
    return f"{maps.names[0]} has {what} {where}"


def _is_image(array: npt.NDArray[Any]) -> bool:
    """Whether three channels are the colours of an image, as of style transfer: logits of classes are around 0."""
    values = as_float32(array)
    return bool(values.mean() > 30 and (values > -32).mean() > 0.99)


def _maps_of(graph: Graph, outputs: Arrays) -> _Maps | None:
    """The maps that are decoded; None where the outputs are something else.

    Raises:
        Misfit: Several maps of many classes, which may mean anything.
    """
    if graph.image is None or not outputs:
        return None
    size = image_size(graph)
    shapes = {name: _shape_of(array, size) for name, array in outputs.items()}
    first = next(iter(shapes.values()))
    if first is None or any(shape is None or shape[0] != first[0] for shape in shapes.values()):
        return None  # maps that differ are a detector's
    classes = first[0]
    if "out" in shapes or classes in {1, None} or len(shapes) == 1:
        # torchvision exports `out` and `aux`; deep supervision, as in U2-Net, repeats the map of one class.
        name = "out" if "out" in shapes else next(iter(shapes))
        shape = shapes[name]
        return None if shape is None else _Maps((name,), *shape)
    if len({shape[1] for shape in shapes.values() if shape is not None}) > 1:
        return None
    if classes != 2:
        raise Misfit(f"it has {len(shapes)} maps of {classes} classes, and one is supported (or heads of two classes)")
    return _Maps(tuple(shapes), *first)


def _shape_of(array: npt.NDArray[Any], size: tuple[int, int]) -> tuple[int | None, tuple[int, int], bool] | None:
    numbers = np.issubdtype(array.dtype, np.integer)
    if numbers and array.ndim == 4 and 1 in {array.shape[1], array.shape[3]}:
        array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
    if numbers and array.ndim == 3:
        sides = int(array.shape[1]), int(array.shape[2])
        return (None, sides, False) if _is_map(sides, size) else None
    if numbers or array.ndim != 4:
        return None
    first, last = array.shape[1:], (array.shape[3], *array.shape[1:3])
    for (classes, height, width), channels_last in ((first, False), (last, True)):
        if 1 <= classes <= MAX_CLASSES and _is_map((height, width), size):
            return int(classes), (int(height), int(width)), channels_last
    return None


def _is_map(sides: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map of (height, width) covers an input of that size at one of `STRIDES`."""
    return any(
        all(abs(side - full / stride) <= 1 for side, full in zip(sides, size, strict=True)) for stride in STRIDES
    )


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    maps = _maps_of(graph, outputs)
    if maps is None:
        raise ValueError("it has no map of classes of the input's size")
    spec = plain_spec(graph, placement="stretch", **IMAGENET)
    size = spec.height, spec.width
    operator = last_operator(graph, maps.names[0])

    def planes_of(array: npt.NDArray[Any]) -> Floats:
        values = as_float32(array)
        return values.transpose(0, 3, 1, 2) if maps.channels_last else values

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        first = arrays[maps.names[0]]
        if maps.classes is None:
            return [_from_numbers(numbers, size, floor) for numbers in first.reshape(len(first), *maps.sides)]
        if maps.is_multi_head:
            heads = [planes_of(arrays[name]) for name in maps.names]
            unit = _are_probabilities(operator, *heads)
            return [_from_heads([head[index] for head in heads], size, floor, unit=unit) for index in range(len(first))]
        unit = _are_probabilities(operator, first)
        if operator == "Sigmoid" or maps.classes == 1:
            return [_from_independent(planes, size, floor, unit=unit) for planes in planes_of(first)]
        return [_from_scores(planes, size, floor, unit=unit) for planes in planes_of(first)]

    return OutputReader(
        spec,
        len(maps.names) if maps.is_multi_head else maps.classes,
        decode,
        maps.names,
        provides=frozenset({"semantic"}),
        # Class numbers do not tell how many classes there are: their names list every number.
        background="none" if maps.is_multi_head or maps.classes in {1, None} else "first",
        suppress_iou=None,
        names=maps.names if maps.is_multi_head else (),
    )


def _are_probabilities(operator: str, *maps: npt.NDArray[Any]) -> bool:
    """Whether maps are probabilities, by the operator that computes them, else by their values.

    A convolution's values are logits, also where those of one image happen to lie in 0..1.
    """
    return operator in _PROBABILITIES or (operator not in _LOGITS and all(map(in_unit_range, maps)))


def _from_numbers(numbers: npt.NDArray[Any], size: tuple[int, int], floor: float) -> Detections:
    """Regions of a map (h, w) of class numbers; their score is 1."""
    present = [int(number) for number in np.unique(numbers) if number >= 0]
    planes = np.stack([(numbers == number) for number in present]).astype(np.float32)
    if len(present) == 1:  # a single plane wins where it is positive
        planes = np.concatenate([planes, np.full_like(planes, -1.0)])
        present.append(-1)
    return _detections(planes, present, numbers, np.ones(len(present), np.float32), size=size, floor=floor)


def _from_independent(planes: Floats, size: tuple[int, int], floor: float, *, unit: bool) -> Detections:
    """Regions of classes (classes, h, w) that may overlap: probabilities above 0.5, or logits above 0."""
    return _overlapping([
        (plane - np.float32(0.5), plane) if unit else (plane, expit(plane)) for plane in planes
    ], size, floor)  # fmt: skip


def _from_scores(planes: Floats, size: tuple[int, int], floor: float, *, unit: bool) -> Detections:
    """Regions of a map (classes, h, w) of logits or, with `unit`, of probabilities."""
    winners = planes.argmax(axis=0)
    present = np.unique(winners).tolist()
    sampled, chosen = planes[:, ::SCORE_STEP, ::SCORE_STEP], winners[::SCORE_STEP, ::SCORE_STEP]
    best = sampled.max(axis=0)
    # The best of the softmax; probabilities are taken as they are.
    probability = best if unit else 1 / np.exp(sampled - best).sum(axis=0)
    scores = [
        float(probability[chosen == number].mean())
        if (chosen == number).any()
        else _score(planes, winners == number, unit=unit)
        for number in present
    ]
    return _detections(planes[present], present, winners, np.array(scores, np.float32), size=size, floor=floor)


def _score(planes: Floats, region: npt.NDArray[np.bool_], *, unit: bool) -> float:
    """Mean probability of the best class in a region that is too small to be sampled."""
    values = planes[:, region]
    best = values.max(axis=0)
    return float((best if unit else 1 / np.exp(values - best).sum(axis=0)).mean())


def _from_heads(heads: Sequence[Floats], size: tuple[int, int], floor: float, *, unit: bool) -> Detections:
    """Regions of several heads (2, h, w), background and one class each."""
    return _overlapping([
        (plane - background, plane if unit else expit(plane - background)) for background, plane in heads
    ], size, floor)  # fmt: skip


def _overlapping(
    classes: Iterable[tuple[Floats, npt.NDArray[Any]]], size: tuple[int, int], floor: float
) -> Detections:  # fmt: skip
    """Regions of classes that are decided one by one, from the margin and the probability (h, w) of each."""
    parts = []
    for number, (margin, probability) in enumerate(classes):
        regions = _binary(margin, probability, size=size, floor=floor)
        parts.append(replace(regions, classes=np.full(len(regions), number, np.int64)))
    parts = [regions for regions in parts if len(regions)]
    return Detections.concatenate(parts) if parts else Detections.empty()


def _binary(margin: Floats, probability: npt.NDArray[Any], *, size: tuple[int, int], floor: float) -> Detections:
    """The region where `margin` (h, w) is positive, as class 0; its score is the mean probability."""
    inside = margin > 0
    score = float(probability[inside].mean()) if inside.any() else 0.0
    winners = np.where(inside, 0, -1)
    return _detections(margin[None], [0], winners, np.array([score], np.float32), size=size, floor=floor)


def _detections(
    planes: Floats,
    classes: Sequence[int],
    winners: npt.NDArray[Any],
    scores: Floats,
    *,
    size: tuple[int, int],
    floor: float,
) -> Detections:
    """One detection per class that has pixels, best first."""
    semantic = SemanticMap(np.ascontiguousarray(planes, np.float32), classes, size)
    down, across = size[0] / winners.shape[0], size[1] / winners.shape[1]
    rows: list[tuple[float, int, int, list[float]]] = []
    for plane, (number, score) in enumerate(zip(classes, scores.tolist(), strict=True)):
        region = winners == number
        if number < 0 or score < floor or region.sum() < MIN_SHARE * region.size:
            continue
        vertical, horizontal = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        box = [
            horizontal[0] * across, vertical[0] * down, (horizontal[-1] + 1) * across, (vertical[-1] + 1) * down,
        ]  # fmt: skip
        rows.append((score, plane, number, box))
    rows.sort(key=lambda row: -row[0])
    if not rows:
        return Detections.empty()
    return Detections(
        np.array([box for *_, box in rows], np.float32),
        np.array([score for score, *_ in rows], np.float32),
        np.array([number for _, _, number, _ in rows], np.int64),
        segments=tuple(SemanticMask(semantic, plane) for _, plane, _, _ in rows),
    )


SEMANTIC = Layout(_recognise, _read, pixels_vary=True)
