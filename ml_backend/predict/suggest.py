"""Propose a layout file for an unknown graph, from its outputs on one image.

Hypotheses on the outputs and on the pixels are decoded and ranked by how plausible their detections are: boxes lie in
the image, few rows score high, high-scoring neighbours overlap, and the detections stay with the objects when the image
is mirrored or shrunk. The last two need no knowledge of the classes, and a wrong decoding fails them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from PIL import Image

from ml_backend.detection.detections import Detections, cross_iou, non_max_suppression
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import Arrays, Graph
from ml_backend.detection.preprocess import RgbImage, prepare
from ml_backend.errors import ModelBroken
from ml_backend.inference.session import Engine
from ml_backend.layouts.declared import Mismatch, declared_reader, input_spec
from ml_backend.layouts.hypotheses import hypotheses, unique
from ml_backend.layouts.layout_file import Input, LayoutFile, problems

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
    structures = list(unique(hypotheses(engine.graph, first, side)))
    preprocessings = list(_preprocessings(side))
    rated = _rated(search, structures, [pixels for pixels in preprocessings if _is_usual(pixels)])
    # Only readings that are plausible with usual pixels are tried with all.
    likely = list(unique(msgspec.structs.replace(one.file, input=None) for one in rated))[:KEPT]
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
