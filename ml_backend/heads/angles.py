"""Learn the rotation of boxes and ellipses: from an upright box to the rotated one inside it.

Three descriptors of a rotated box are linear in frozen features of its crop (ridge regression): the elongation times
the doubled angle (0 where both sides are equal), the fourfold angle (the same for all rotations by 90 degrees), and the
logarithm of the aspect ratio. The rotation and the aspect ratio that agree best with them and with the upright box are
taken; the upright box then gives the size.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import corners_of
from ml_backend.heads.base import FitInput, HeadExample, HeadKind, HeadResult, ImagePrediction, Pixels
from ml_backend.heads.crop_features import CHANNELS, CropFrame, crop_backbone
from ml_backend.heads.example_cache import ExampleCache
from ml_backend.heads.keypoints import backbone_checksum

Floats = npt.NDArray[np.float64]

FORMAT = 1

# Side of the crops in pixels, and cells per side that the feature maps are averaged over.
SIDE, CELLS = 96, 4

# Bins of the histogram of gradient directions over 180 degrees.
BINS = 18

# Objects that are fitted on, the newest, and rotated copies of each.
MAX_OBJECTS, COPIES = 100, 8

# Rotated objects of a class from which its rotation is learned, and their minimum share of the class.
MIN_OBJECTS, MIN_ROTATED = 3, 0.1

# Ridge penalties, relative to the mean squared length of the features.
PENALTIES = (0.03, 0.3, 1.0)

# By this the feature maps are scaled down against the gradients.
MAPS_SCALE = 3.0

FOLDS = 5

# Standard deviation of the logarithm of an upright box's aspect ratio, as a detector draws it.
HULL_DEVIATION = 0.1

# Rotations and aspect ratios that are compared.
ROTATIONS = np.arange(0.0, 180.0, 2.0)
ASPECTS = np.exp(np.linspace(0.0, np.log(12.0), 36))

# Width in degrees of the kernel of the prior over rotations, and the weight of the uniform prior.
PRIOR_WIDTH, UNIFORM = 6.0, 0.3

# Degrees from upright below which a box counts as upright.
UPRIGHT = 0.5

# Detections of an image that are rotated, the most certain first, and their minimum score.
MAX_ROTATED, MIN_SCORE = 100, 0.1

# Memory for features: 0.1 MB per object with its copies.
CACHE_BYTES = 32 * 2**20

# Held-out objects from which these decide; with fewer, cross-validation does.
MIN_JUDGED = 20

# Mean gain of IoU over upright boxes from which rotated ones are served.
MIN_GAIN = 0.01


# Features of labelled objects and their copies, so that a run computes those of new images alone.
_CACHE: ExampleCache[npt.NDArray[np.float32]] = ExampleCache(CACHE_BYTES, size_of=lambda rows: rows.nbytes)


@dataclass(frozen=True, eq=False)
class AnglesHead:
    """Learned rotation of a project's boxes.

    Attributes:
        classes: Labels that are rotated, case-folded; objects of other classes stay upright.
        weights: (d + 1, 5) float32 ridge weights of the descriptors over raw features; the last row is the bias.
        deviations: (3,) float64 standard deviations of elongation, fourfold angle and log aspect ratio.
        prior: (len(ROTATIONS),) float64 log probability of each rotation.
        drawn: (360,) float64 how often each rotation, in whole degrees, is drawn: the way that the project turns boxes.
        tasks: Tasks that it was fitted on, ascending.
        iou: Mean IoU in the cross-validation.
        backbone: Checksum of the model whose first blocks give the features.
    """

    classes: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    deviations: Floats
    prior: Floats
    drawn: Floats
    tasks: tuple[int, ...]
    iou: float
    backbone: str

    def to_bytes(self) -> bytes:
        """Serialize as .npz."""
        meta = {
            "format": FORMAT, "classes": self.classes, "tasks": self.tasks, "iou": self.iou, "backbone": self.backbone,
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez(
            buffer,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            weights=self.weights,
            deviations=self.deviations,
            prior=self.prior,
            drawn=self.drawn,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> AnglesHead:
        """Restore a head.

        Raises:
            ValueError: The bytes are damaged, of another format, or made with another backbone.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                meta = json.loads(stored["meta"].tobytes())
                number = int(meta["format"])
                head = cls(
                    classes=tuple(str(name) for name in meta["classes"]),
                    weights=stored["weights"],
                    deviations=stored["deviations"],
                    prior=stored["prior"],
                    drawn=stored["drawn"],
                    tasks=tuple(int(task) for task in meta["tasks"]),
                    iou=float(meta["iou"]),
                    backbone=str(meta["backbone"]),
                )
        except Exception as error:  # zipfile, json and numpy raise errors of many kinds
            raise ValueError(f"rotations cannot be read: {type(error).__name__}") from error
        if number != FORMAT:
            raise ValueError(f"rotations of format {number}; this release reads {FORMAT}")
        if head.backbone != backbone_checksum():
            raise ValueError("rotations were learned on features of another release")
        shapes = head.weights.shape, head.deviations.shape, head.prior.shape, head.drawn.shape
        if shapes != ((FEATURES + 1, 5), (3,), ROTATIONS.shape, (360,)) or not np.isfinite(head.weights).all():
            raise ValueError("rotations have damaged arrays")
        return head

    def rotate(self, features: npt.NDArray[np.float32], boxes: Floats) -> Floats:
        """Rotate boxes: (n, 5) float64 centre x, centre y, width, height, degrees clockwise in [0, 360).

        Args:
            features: (n, FEATURES) of the boxes' crops.
            boxes: (n, 4) upright boxes in pixels.
        """
        described = features @ self.weights[:-1] + self.weights[-1]
        rotated = fit_boxes(boxes, described.astype(np.float64), self.deviations, self.prior)
        return as_drawn(rotated, self.drawn)


FEATURES = CELLS * CELLS * CHANNELS + BINS + 4


def descriptors(rotated: Floats) -> Floats:
    """Describe rotated boxes (n, 5): (n, 5) elongation times the doubled angle, fourfold angle, log aspect ratio."""
    wide, high = np.maximum(rotated[:, 2], 1e-6), np.maximum(rotated[:, 3], 1e-6)
    angle = np.deg2rad(rotated[:, 4])
    elongation = (wide**2 - high**2) / (wide**2 + high**2)
    return np.stack(
        [
            elongation * np.cos(2 * angle),
            elongation * np.sin(2 * angle),
            np.cos(4 * angle),
            np.sin(4 * angle),
            np.abs(np.log(wide / high)),
        ],
        axis=1,
    )


def hulls(rotated: Floats) -> Floats:
    """Upright boxes (n, 4) around rotated boxes (n, 5)."""
    angle = np.deg2rad(rotated[:, 4])
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    half = np.stack([rotated[:, 2] * cos + rotated[:, 3] * sin, rotated[:, 2] * sin + rotated[:, 3] * cos], 1) / 2
    return np.concatenate([rotated[:, :2] - half, rotated[:, :2] + half], axis=1)


def fit_boxes(boxes: Floats, described: Floats, deviations: Floats, prior: Floats) -> Floats:
    """The rotated boxes (n, 5), inside upright boxes (n, 4), that agree best with predicted descriptors (n, 5).

    Width is the longer side, the rotation in [0, 180) degrees.
    """
    angle = np.deg2rad(ROTATIONS)[:, None]
    elongation = ((ASPECTS**2 - 1) / (ASPECTS**2 + 1))[None]
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    across, down = ASPECTS * cos + sin, ASPECTS * sin + cos  # of a box with the height 1
    ratio = np.log(across / down)
    fourfold = np.stack([np.cos(4 * angle[:, 0]), np.sin(4 * angle[:, 0])], -1)
    base = -0.5 * (1 / deviations**2)
    upright = ROTATIONS % 90 == 0
    result = np.empty((len(boxes), 5))
    for index, (box, (x2, y2, x4, y4, log_aspect)) in enumerate(zip(boxes, described, strict=True)):
        wide, high = max(box[2] - box[0], 1e-3), max(box[3] - box[1], 1e-3)
        doubled = (elongation * np.cos(2 * angle) - x2) ** 2 + (elongation * np.sin(2 * angle) - y2) ** 2
        four = (fourfold[:, 0] - x4) ** 2 + (fourfold[:, 1] - y4) ** 2
        aspect = (np.log(ASPECTS) - max(log_aspect, 0.0)) ** 2
        hull = (ratio - np.log(wide / high)) ** 2
        score = base[0] * doubled + base[2] * aspect[None] - 0.5 * hull / HULL_DEVIATION**2
        score += (base[1] * four + prior)[:, None]
        mass = np.exp(score - score.max()).sum(1)
        score[upright if mass[upright].sum() < mass[~upright].sum() else ~upright] = -np.inf
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        height = (wide * high / (across[row, column] * down[row, column])) ** 0.5
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        result[index] = (*centre, height * ASPECTS[column], height, ROTATIONS[row])
        if ROTATIONS[row] % 90 == 0:  # the upright box itself
            result[index] = (*centre, max(wide, high), min(wide, high), 0.0 if wide >= high else 90.0)
    return result


def as_drawn(rotated: Floats, drawn: Floats) -> Floats:
    """Of the four ways to write each rotated box (n, 5), the one whose rotation the project uses most."""
    result = rotated.copy()
    for row in result:
        ways = [(row[4] + 90 * turn) % 360 for turn in range(4)]
        best = int(np.argmax([drawn[int(way) % 360] for way in ways]))
        if best % 2:
            row[2], row[3] = row[3], row[2]
        row[4] = ways[best]
    return result


def rotated_iou(first: Floats, second: Floats) -> Floats:
    """IoU (n,) of rotated boxes (n, 5) with their counterparts, from exact polygon intersections."""
    import shapely

    outlines = [shapely.polygons(corners_of(_radians(boxes))) for boxes in (first, second)]
    shared = shapely.area(shapely.intersection(*outlines))
    union = shapely.area(outlines[0]) + shapely.area(outlines[1]) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float64)


@dataclass(frozen=True, eq=False)
class _Objects:
    """Objects with their features: of the unrotated object, and of all its copies.

    Attributes:
        rotated: (n, 5) drawn boxes, degrees.
        features: (n, FEATURES) float32 of the upright boxes around them.
        copies: (n, COPIES, FEATURES) float32 of rotated copies of the image.
        copied: (n, COPIES, 5) the copies' boxes.
        tasks: (n,) int64.
    """

    rotated: Floats
    features: npt.NDArray[np.float32]
    copies: npt.NDArray[np.float32]
    copied: Floats
    tasks: npt.NDArray[np.int64]


def fit_angles(inputs: FitInput) -> HeadResult | None:
    """Fit the rotation of the classes that are drawn rotated, and judge it by rotated IoU; None without any.

    Ellipses take their rotation from their masks, so a project without rectangles learns none here.
    """
    if not inputs.config.controls_of("RectangleLabels", "Labels"):
        return None
    classes = rotated_classes(inputs.examples)
    if not classes:
        if not any(any(example.rotated) for example in inputs.examples):
            return None
        reason = f"Rotation was not learned: no class has {MIN_OBJECTS} rotated objects on two tasks."
        return HeadResult(None, "rotated IoU", None, None, False, reason, "nothing")
    objects = _objects_of(inputs.examples, classes, copies=COPIES)
    folds = _folds(objects.tasks)
    trials: list[tuple[float, float, Floats, Floats]] = []
    for penalty in PENALTIES:
        described = np.zeros((len(folds), 5))
        predicted = np.zeros((len(folds), 5))
        for fold in range(int(folds.max()) + 1):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            weights = _ridge(objects, train, penalty)
            described[test] = objects.features[test] @ weights[:-1] + weights[-1]
        deviations = _deviations(described, objects.rotated)
        for fold in range(int(folds.max()) + 1):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            prior = rotation_prior(objects.rotated[train])
            predicted[test] = fit_boxes(hulls(objects.rotated[test]), described[test], deviations, prior)
        overlaps = rotated_iou(predicted, objects.rotated)
        trials.append((float(overlaps.mean()), penalty, deviations, overlaps))
    value, penalty, deviations, overlaps = max(trials, key=lambda trial: trial[0])
    everything = np.arange(len(folds))
    head = AnglesHead(
        tuple(sorted({name.casefold() for name in classes})),
        _ridge(objects, everything, penalty).astype(np.float32),
        deviations,
        rotation_prior(objects.rotated),
        drawn_rotations(objects.rotated),
        tuple(sorted({int(task) for task in objects.tasks})),
        value,
        backbone_checksum(),
    )
    return _judged(inputs, head, objects, overlaps, classes)


def apply_angles(head: AnglesHead, prediction: ImagePrediction) -> ImagePrediction:
    """Rotate the boxes of the classes that are drawn rotated."""
    detections = prediction.detections
    if not len(detections) or detections.rotated is not None:
        return prediction
    wanted = [
        index
        for index, (class_, score) in enumerate(
            zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)
        )
        if score >= MIN_SCORE and prediction.names[class_].casefold() in head.classes
    ][:MAX_ROTATED]
    boxes = detections.boxes.astype(np.float64)
    size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    rotated = np.concatenate([centre, size, np.zeros((len(boxes), 1))], axis=1)
    if wanted:
        frames = [CropFrame.around(boxes[index].tolist()) for index in wanted]
        features = crop_descriptions(frames, prediction.pixels(), prediction.width)
        rotated[wanted] = head.rotate(features, boxes[wanted])
    return replace(prediction, detections=replace(detections, rotated=_radians(rotated)))


def rotated_classes(examples: Sequence[HeadExample]) -> tuple[str, ...]:
    """Labels of which enough objects are drawn rotated."""
    total: Counter[str] = Counter()
    rotated: Counter[str] = Counter()
    tasks: dict[str, set[int]] = {}
    for example in examples:
        for label, box in zip(example.labels, example.rotated or [()] * len(example.labels), strict=True):
            total[label] += 1
            if box:
                rotated[label] += 1
                tasks.setdefault(label, set()).add(example.task)
    return tuple(
        sorted(
            label
            for label, count in rotated.items()
            if count >= max(MIN_OBJECTS, MIN_ROTATED * total[label]) and len(tasks[label]) > 1
        )
    )


def crop_descriptions(frames: Sequence[CropFrame], pixels: Pixels, width: int) -> npt.NDArray[np.float32]:
    """Features (n, FEATURES) float32 of crops of an image that is `width` pixels wide, from its reduced pixels."""
    factor = pixels.shape[1] / width if width else 1.0
    crops = [frame.scaled(factor).render(pixels, SIDE) for frame in frames]
    maps = crop_backbone(SIDE).features(crops).astype(np.float32)
    grid = SIDE // 4
    cell = grid // CELLS
    pooled = maps.reshape(len(crops), CELLS, cell, CELLS, cell, CHANNELS).mean((2, 4)).reshape(len(crops), -1)
    return np.concatenate([pooled, np.stack([_gradients(crop) for crop in crops])], axis=1)


def _gradients(crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(BINS + 4,) float32: histogram of gradient directions, and their doubled and fourfold mean directions."""
    grey: Any = cv2.GaussianBlur(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength = np.hypot(x, y)
    strength = strength / (strength.mean() + 1e-3)
    angle = np.arctan2(y, x)
    bins = (angle / np.pi * BINS).round().astype(int) % BINS
    histogram = np.bincount(bins.ravel(), strength.ravel(), BINS) / strength.size
    means = [(strength * turn(k * angle)).mean() for k in (2, 4) for turn in (np.cos, np.sin)]
    return np.asarray(np.concatenate([histogram, means]), np.float32)


def rotation_prior(rotated: Floats) -> Floats:
    """Log probability of each of `ROTATIONS` of the longer side, from drawn boxes (n, 5).

    Upright boxes are exactly upright, so their share belongs to 0 and 90 degrees alone.
    """
    angles = np.where(rotated[:, 2] >= rotated[:, 3], rotated[:, 4], rotated[:, 4] + 90) % 180
    upright = np.abs((angles + 45) % 90 - 45) < UPRIGHT
    distance = np.abs((ROTATIONS[:, None] - angles[None, ~upright] + 90) % 180 - 90)
    density = np.exp(-0.5 * (distance / PRIOR_WIDTH) ** 2).sum(1)
    density = (1 - UNIFORM) * density / max(density.sum(), 1e-9) + UNIFORM / len(ROTATIONS)
    share = upright.mean() if len(angles) else 0.0
    prior = (1 - share) * density / density.sum()
    for degrees in (0, 90):
        near = np.abs((angles[upright] - degrees + 90) % 180 - 90) < 45
        prior[int(np.searchsorted(ROTATIONS, degrees))] += share * (near.sum() + 0.5) / (upright.sum() + 1)
    return np.asarray(np.log(np.maximum(prior, 1e-9)), np.float64)


def drawn_rotations(rotated: Floats) -> Floats:
    """(360,) smoothed count of each rotation in whole degrees."""
    distance = np.abs((np.arange(360)[:, None] - rotated[None, :, 4] + 180) % 360 - 180)
    return np.asarray(np.exp(-0.5 * (distance / 15.0) ** 2).sum(1), np.float64)


def _objects_of(examples: Sequence[HeadExample], classes: Sequence[str], *, copies: int) -> _Objects:
    """Return the newest objects of some classes with their features."""
    rotated: list[Floats] = []
    features, copied_features, copied = [], [], []
    tasks: list[int] = []
    for example in reversed(examples):
        boxes = drawn_boxes(example, classes)[: MAX_OBJECTS - len(tasks)]
        if not len(boxes):
            continue
        frames, turned = [], []
        rng = np.random.default_rng(int(example.key[:8], 16))  # the same copies in each run
        for box in boxes:
            frames.append(CropFrame.around(hulls(box[None])[0].tolist()))
            for copy in range(copies):
                turn = copy * 360 / copies + rng.uniform(-180, 180) / max(copies, 1)
                other = np.array([*box[:4], (box[4] - turn) % 360])
                frame = CropFrame.around(hulls(other[None])[0].tolist())
                shift = rng.normal(0, 0.03, 2) * frame.side
                side = frame.side * float(np.exp(rng.normal(0, 0.06)))
                frames.append(CropFrame(frame.cx + float(shift[0]), frame.cy + float(shift[1]), side, turn))
                turned.append(other)
        key = f"{example.key} {len(frames)} {copies} {','.join(classes)}"
        rows = _CACHE.get(key, partial(_described, frames, example)).reshape(len(boxes), copies + 1, -1)
        rotated += list(boxes)
        features.append(rows[:, 0])
        copied_features.append(rows[:, 1:])
        copied.append(np.array(turned).reshape(len(boxes), copies, 5))
        tasks += [example.task] * len(boxes)
        if len(tasks) >= MAX_OBJECTS:
            break
    if not tasks:
        empty = np.zeros((0, FEATURES), np.float32)
        return _Objects(np.zeros((0, 5)), empty, empty.reshape(0, copies, FEATURES) if copies else empty,
                        np.zeros((0, copies, 5)), np.zeros(0, np.int64))  # fmt: skip
    return _Objects(
        np.stack(rotated),
        np.concatenate(features),
        np.concatenate(copied_features),
        np.concatenate(copied),
        np.array(tasks, np.int64),
    )


def _described(frames: Sequence[CropFrame], example: HeadExample) -> npt.NDArray[np.float32]:
    return crop_descriptions(frames, example.pixels(), example.width)


def drawn_boxes(example: HeadExample, classes: Sequence[str]) -> Floats:
    """Boxes (n, 5) of some classes as they are drawn, upright ones with a rotation of 0 degrees."""
    boxes = []
    turned = example.rotated or [()] * len(example.labels)
    for label, bounds, box in zip(example.labels, example.boxes.astype(np.float64), turned, strict=True):
        size = bounds[2:] - bounds[:2]
        if label in classes and size.min() >= 2:
            boxes.append(np.array(box) if box else np.array([*((bounds[:2] + bounds[2:]) / 2), *size, 0.0]))
    return np.stack(boxes) if boxes else np.zeros((0, 5))


def _ridge(objects: _Objects, indices: npt.NDArray[Any], penalty: float) -> Floats:
    """Ridge regression of the descriptors on all copies of some objects: (FEATURES + 1, 5) over raw features."""
    rows = np.concatenate([objects.features[indices][:, None], objects.copies[indices]], axis=1)
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    boxes = np.concatenate([objects.rotated[indices][:, None], objects.copied[indices]], axis=1).reshape(-1, 5)
    truth = descriptors(boxes)
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    # Each block of features is one unit; the gradients weigh more, since they turn with the object.
    scale[: -(BINS + 4)] *= MAPS_SCALE * (CELLS * CELLS * CHANNELS) ** 0.5
    scale[-(BINS + 4) :] *= (BINS + 4) ** 0.5
    rows = (rows - mean) / scale
    centre = truth.mean(0)
    gram = rows @ rows.T
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram)
    weights = rows.T @ np.linalg.solve(gram, truth - centre) / scale[:, None]
    return np.concatenate([weights, (centre - mean @ weights)[None]])


def _deviations(described: Floats, rotated: Floats) -> Floats:
    """Standard deviations (3,) of out-of-fold descriptors."""
    error = (described - descriptors(rotated)) ** 2
    return np.maximum([error[:, :2].mean() ** 0.5, error[:, 2:4].mean() ** 0.5, error[:, 4].mean() ** 0.5], 0.05)


def _upright(objects: _Objects) -> Floats:
    """The upright boxes around objects, as rotated boxes (n, 5)."""
    boxes = hulls(objects.rotated)
    return np.concatenate(
        [(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], np.zeros((len(boxes), 1))], axis=1
    )


def _judged(
    inputs: FitInput, head: AnglesHead, objects: _Objects, overlaps: Floats, classes: Sequence[str]
) -> HeadResult:
    """Compare a head with the served one, and with upright boxes."""
    parent = inputs.parent if isinstance(inputs.parent, AnglesHead) else None
    value, served, count, judged_by = float(overlaps.mean()), None, len(overlaps), "cross-validation"
    base = float(rotated_iou(_upright(objects), objects.rotated).mean())
    held_out = _objects_of(inputs.held_out, classes, copies=0)
    if len(held_out.tasks) >= MIN_JUDGED:
        judged_by, count = "held-out", len(held_out.tasks)
        base = float(rotated_iou(_upright(held_out), held_out.rotated).mean())
        overlaps = _overlaps(head, held_out)
        value = float(overlaps.mean())
        served = float(_overlaps(parent, held_out).mean()) if parent else None
    elif parent is not None:
        new = ~np.isin(objects.tasks, parent.tasks)
        if new.sum() >= MIN_JUDGED:
            rival = _overlaps(parent, objects)[new]
            value, served, count = float(overlaps[new].mean()), float(rival.mean()), int(new.sum())
        else:
            served = parent.iou
    summary = f"Rotated IoU {value:.2f} on {count} objects; upright boxes have {base:.2f}"
    chance = float(overlaps.std()) / max(count, 1) ** 0.5
    if value < base + MIN_GAIN:
        return HeadResult(head, "rotated IoU", value, served, False, f"{summary}: they stay upright.", judged_by)
    if served is not None and value < served - inputs.tolerance - chance:
        reason = f"{summary}; the served rotation has {served:.2f}."
        return HeadResult(head, "rotated IoU", value, served, False, reason, judged_by)
    return HeadResult(head, "rotated IoU", value, served, True, f"{summary}.", judged_by)


def _overlaps(head: AnglesHead, objects: _Objects) -> Floats:
    return rotated_iou(head.rotate(objects.features, hulls(objects.rotated)), objects.rotated)


def _radians(rotated: Floats) -> npt.NDArray[np.float32]:
    return np.asarray(np.concatenate([rotated[:, :4], np.deg2rad(rotated[:, 4:])], axis=1), np.float32)


def _folds(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(n,) fold of each object: tasks are dealt out in turn."""
    _, numbers = np.unique(groups, return_inverse=True)
    count = int(numbers.max()) + 1
    order = np.random.default_rng(0).permutation(count)
    return np.asarray(order[numbers] % min(FOLDS, count), np.int64)


KIND = HeadKind("angles", AnglesHead.from_bytes, fit_angles, apply_angles, needs_pixels=True)
