"""The last layer of the segmentation network, refitted on the masks that people submit.

The network is frozen. Its logits are corrected by a regularised logistic regression over its last features, and over
position, contrast, texture and colour in the crop (`mask_features`): with no evidence the correction is 0, and the
network stays as it ships. One head serves smart tools and pre-labels.
"""

import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Rectangle
from ml_backend.detection.logits import expit
from ml_backend.heads.base import FitInput, HeadExample, HeadKind, HeadResult, ImagePrediction
from ml_backend.heads.example_cache import ExampleCache
from ml_backend.heads.mask_features import (
    APPEARANCE,
    COLOUR,
    CONTRAST,
    LOCAL_MAPS,
    MAX_LOGIT,
    POSITION,
    TEXTURE,
    inside_box,
    local_maps,
)
from ml_backend.segmentation.crop import CONTEXT, BoxCrop
from ml_backend.segmentation.outline_network import OutlineSegmenter
from ml_backend.segmentation.pixel_head import CropBatch
from ml_backend.training.mask_codec import crop_bounds, decode_mask
from ml_backend.training.parallel import single_threaded_blas

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FORMAT = 1

# Most objects that are fitted on, in all and per image, and most images that are decoded, the newest first.
MAX_OBJECTS, MAX_OBJECTS_PER_IMAGE, MAX_IMAGES = 300, 8, 120

# Bytes of samples kept in memory for the next run.
CACHE_BYTES = 96 << 20

# The boxes of one object: shares by which it is enlarged, least and most; drawn loosely, by a detector, very loosely.
LOOSENESS = ((0.1, 0.2), (-0.1, 0.1), (0.0, 0.4))

# Pixels sampled in each box; rows fitted on at most.
SAMPLED_PIXELS, MAX_ROWS = 192, 30_000

# Objects with a shorter side in pixels below this are not learned from.
MIN_SIDE = 6.0

# Weight of one box of one object in pixels, against penalties of 1 a standardised weight.
BOX_WEIGHT = 30.0

# Standardised features are clipped to +-MAX_FEATURE.
MAX_FEATURE = 2.0

# L2 penalty of the bias; Newton steps per fit; relative gain below which it stops.
BIAS_PENALTY, MAX_STEPS, MIN_RELATIVE_GAIN = 0.1, 10, 1e-3

# Tried in addition to the fitted bias, and the mean IoU that each unit costs.
CUTS, CUT_COST = tuple(np.linspace(-1, 1, 21).round(1).tolist()), 0.005

# Folds of the cross-validation by task, and fewest objects for it.
FOLDS, MIN_OBJECTS = 3, 4

# Mean IoU by which a recipe must beat the preceding one, and by which the best must beat the network as it ships.
MARGIN, MIN_GAIN = 0.003, 0.003

# Objects whose masks are drawn to judge a refit, in all folds, and of one image.
MAX_JUDGED, MAX_JUDGED_PER_IMAGE = 48, 4

# Held-out objects and tasks from which they judge instead of the cross-validation.
MIN_HELD_OUT_OBJECTS, MIN_HELD_OUT_TASKS = 12, 4


@dataclass(frozen=True)
class MaskFeatures:
    """Which features a correction reads: "logit", "features" (of the network), and groups of `mask_features`.

    Attributes:
        groups: Names of the groups.
        penalty: L2 penalty of standardised weights.
    """

    groups: tuple[str, ...]
    penalty: float = 30.0


LAST_LAYER = MaskFeatures(("logit", "features"))
WITH_APPEARANCE = MaskFeatures(("logit", "features", "position", "appearance"))
LOCAL = MaskFeatures(("logit", "position", "appearance"))
EVERYTHING = MaskFeatures(("logit", "features", "position", "appearance", "contrast", "texture", "colour"), 100.0)

# Name -> recipes whose corrections are averaged; tried in this order, which is a prior.
CANDIDATES: Mapping[str, tuple[MaskFeatures, ...]] = {
    "last layer": (LAST_LAYER,),
    "last layer, position, appearance": (WITH_APPEARANCE,),
    "position, appearance": (LOCAL,),
    "mean of three": (WITH_APPEARANCE, LOCAL, EVERYTHING),
    "all features": (EVERYTHING,),
}
SHIPPED = "network as shipped"


@dataclass(frozen=True, eq=False)
class MasksHead:
    """A correction of the network's logits; `PixelHead` of the segmenter.

    Features are, in this order: the network's logit, its `c` features, and `LOCAL_MAPS` local ones; d = 1 + c +
    LOCAL_MAPS.

    Attributes:
        network: Checksum of the network that it corrects.
        mean: (d,) float32 of the features.
        spread: (d,) float32 standard deviation of the features.
        weights: (d,) float32 over standardised, clipped features.
        bias: Added to the logits.
        recipe: How it was fitted; a name of `CANDIDATES` or `SHIPPED`.
        objects: Number of masks that it was fitted on.
        tasks: Number of their tasks.
    """

    network: str
    mean: Floats
    spread: Floats
    weights: Floats
    bias: float
    recipe: str = SHIPPED
    objects: int = 0
    tasks: int = 0

    @property
    def is_shipped(self) -> bool:
        """Whether it changes nothing."""
        return not self.bias and not self.weights.any()

    def logits(self, batch: CropBatch) -> Floats:
        """Return the corrected logits (n, s, s) float32."""
        if self.is_shipped:
            return batch.logits
        if 1 + batch.features.shape[1] + LOCAL_MAPS != len(self.weights):
            raise ValueError(f"the head reads {len(self.weights)} features; the network gives others")
        clipped = np.clip(batch.logits, -MAX_LOGIT, MAX_LOGIT)
        corrected = clipped + np.float32(self.bias)
        for features, part in self._parts(batch):
            weights = self.weights[part]
            if weights.any():
                maps = features()
                scaled = (maps - self.mean[part, None, None]) / self.spread[part, None, None]
                corrected = corrected + np.tensordot(
                    np.clip(scaled, -MAX_FEATURE, MAX_FEATURE), weights, axes=([1], [0])
                )
        return np.asarray(corrected, np.float32)

    def _parts(self, batch: CropBatch) -> Iterator[tuple[Any, slice]]:
        count = batch.features.shape[1]
        yield lambda: _scaled_logits(batch.logits)[:, None], slice(0, 1)
        yield lambda: batch.features, slice(1, 1 + count)
        yield lambda: local_maps(batch.crops, batch.logits), slice(1 + count, None)

    def to_bytes(self) -> bytes:
        """Serialize it as `.npz`."""
        about = {
            "format": FORMAT, "network": self.network, "bias": self.bias, "recipe": self.recipe,
            "objects": self.objects, "tasks": self.tasks,
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez(
            buffer,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            mean=self.mean, spread=self.spread, weights=self.weights,
        )  # fmt: skip
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "MasksHead":
        """Restore a head.

        Raises:
            ValueError: The bytes are damaged or of an unknown format.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                mean, spread, weights = (np.asarray(arrays[name], np.float32) for name in ("mean", "spread", "weights"))
        except Exception as error:  # numpy and zipfile raise errors of many kinds on damaged bytes
            raise ValueError(f"no mask head: {type(error).__name__}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError("the mask head has an unknown format")
        if not (mean.ndim == 1 and mean.shape == spread.shape == weights.shape):
            raise ValueError("the mask head has arrays of different lengths")
        if not (np.isfinite(mean).all() and np.isfinite(weights).all() and (spread > 0).all()):
            raise ValueError("the mask head has values that are no numbers")
        return cls(
            str(about["network"]), mean, spread, weights, float(about["bias"]), str(about["recipe"]),
            int(about["objects"]), int(about["tasks"]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class PixelSamples:
    """Pixels sampled in the boxes of m objects, `LOOSENESS` boxes each; b = len(LOOSENESS).

    Attributes:
        features: (m, b, p, d) float16, see `MasksHead`.
        logits: (m, b, p) float32 of the network.
        truth: (m, b, p) float32, share of the pixel that belongs to the object.
        tasks: (m,) int64 task of each object.
    """

    features: npt.NDArray[np.float16]
    logits: Floats
    truth: Floats
    tasks: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.tasks)

    def take(self, objects: npt.NDArray[Any]) -> "PixelSamples":
        """Select objects by index or mask."""
        return PixelSamples(self.features[objects], self.logits[objects], self.truth[objects], self.tasks[objects])


def _size(samples: PixelSamples | None) -> int:
    return samples.features.nbytes + samples.logits.nbytes + samples.truth.nbytes if samples is not None else 64


# Samples by network and image: a submit samples its own image alone.
_SAMPLES: ExampleCache[PixelSamples | None] = ExampleCache(CACHE_BYTES, size_of=_size)

# IoUs of the masks that the network draws as it ships, by network and image.
_DRAWN: ExampleCache[list[float]] = ExampleCache(1 << 20, size_of=lambda ious: 100 + 8 * len(ious))


def fit_masks(given: FitInput) -> HeadResult | None:
    """Refit the included segmentation network's last layer on masks, and judge it.

    Candidates are chosen by mask IoU from loose boxes, cross-validated by task. Where enough held-out tasks have masks,
    those decide; otherwise the cross-validation does.

    Returns:
        None where no training task has a mask.
    """
    if not any(any(example.masks) for example in given.examples):
        return None
    segmenter = OutlineSegmenter()
    with single_threaded_blas():
        samples = sample_pixels(segmenter, given.examples)
        if samples is None:
            return _refused("no mask is large enough to learn from")
        return _fit_and_judge(given, segmenter, samples)


def _fit_and_judge(given: FitInput, segmenter: OutlineSegmenter, samples: PixelSamples) -> HeadResult:
    tasks, count = len(set(samples.tasks.tolist())), len(samples)
    shipped = mask_ious(samples, samples.logits)
    if count < MIN_OBJECTS:
        return _refused(
            f"{count} mask{'s' if count > 1 else ''} on {tasks} task{'s' if tasks > 1 else ''}: from {MIN_OBJECTS} on"
            " the segmenter's last layer is refitted",
            parent=float(shipped.mean()),
        )
    out_of_fold = cross_validate(samples)
    name, gain = SHIPPED, 0.0
    for candidate, ious in out_of_fold.items():
        candidate_gain = float((ious - shipped).mean())
        if candidate_gain > gain + (MARGIN if name != SHIPPED else 0):
            name, gain = candidate, candidate_gain
    head = fit_head(samples, name, network=segmenter.network)
    parent = given.parent if isinstance(given.parent, MasksHead) and given.parent.network == segmenter.network else None
    if _judges(given.held_out):
        held_out = drawn_ious(segmenter, given.held_out, [parent, head])
        before, value = (float(mean) for mean in held_out.mean(axis=1))
        passed = value >= before - min(given.tolerance, 0.01)
        verdict = "at least as good as" if passed else "worse than"
        reason = f"{name}: mask IoU {value:.3f} on {held_out.shape[1]} held-out objects, {verdict} {before:.3f} now"
        return HeadResult(head, "mask IoU", value, before, passed, reason, "held-out")
    if name == SHIPPED:
        value = before = float(shipped.mean())
        reason = f"no refit of {len(out_of_fold)} beats the included network (mask IoU {before:.3f}, cross-validated)"
        return HeadResult(head if parent is not None else None, "mask IoU", value, before, parent is not None, reason)
    # The choice is made on pixels of the network's grid; whether it may be served, on masks as they are drawn.
    before_ious, ious = _cross_validated_drawings(given.examples, segmenter, samples, name)
    value, before = float(ious.mean()), float(before_ious.mean())
    # Standard error; with few tasks it is itself uncertain, and objects of one task resemble each other.
    noise = float((ious - before_ious).std(ddof=1)) / math.sqrt(len(ious)) * (1 + 2 / max(1, tasks - 1))
    needed = max(MIN_GAIN, noise)
    passed = value - before >= needed
    judged = f"{len(ious)} objects of {tasks} task{'s' if tasks > 1 else ''}"
    reason = f"{name}: mask IoU {value:.3f} on {judged}, cross-validated, {before:.3f} without"
    if not passed:
        reason += f"; a gain of {needed:.3f} is needed to be more than chance"
    return HeadResult(head, "mask IoU", value, before, passed, reason)


def _refused(reason: str, *, parent: float | None = None) -> HeadResult:
    return HeadResult(None, "mask IoU", None, parent, passed=False, reason=reason, judged_by="nothing")


def _judges(held_out: Sequence[HeadExample]) -> bool:
    """Whether the held-out images have enough objects, of enough tasks; drawing fewer would be in vain."""
    counts = [
        (example.task, min(len(_usable(example)), MAX_JUDGED_PER_IMAGE)) for example in held_out if any(example.masks)
    ]
    tasks = {task for task, objects in counts if objects}
    return sum(objects for _, objects in counts) >= MIN_HELD_OUT_OBJECTS and len(tasks) >= MIN_HELD_OUT_TASKS


def drawn_ious(
    segmenter: OutlineSegmenter,
    examples: Sequence[HeadExample],
    heads: Sequence[MasksHead | None],
    *,
    most: int = MAX_JUDGED,
) -> Doubles:
    """IoU of masks as they are drawn, in pixels of the image, from a loose box of each object; (heads, objects).

    Of the newest images, some `most` objects, the same for every head.
    """
    parts: list[list[list[float]]] = []
    count = 0
    for example in [one for one in examples if any(one.masks)][::-1]:
        if count >= most:
            break
        of_heads = [_drawn_by(segmenter, example, head) for head in heads]
        parts.append(of_heads)
        count += len(of_heads[0])
    return np.concatenate([np.zeros((len(heads), 0)), *map(np.array, parts)], axis=1)


def _drawn_by(segmenter: OutlineSegmenter, example: HeadExample, head: MasksHead | None) -> list[float]:
    if head is None:
        return _DRAWN.get(f"{segmenter.network} {example.key}", partial(_draw, segmenter, example, None))
    return _draw(segmenter, example, head)


def _draw(segmenter: OutlineSegmenter, example: HeadExample, head: MasksHead | None) -> list[float]:
    """IoU of the masks of some objects of an image."""
    objects = _usable(example)[:MAX_JUDGED_PER_IMAGE]
    if not objects:
        return []
    image = example.pixels()
    height, width = image.shape[:2]
    scale = np.array([width / example.width, height / example.height] * 2)
    chance = Random(_seed(example))  # noqa: S311
    boxes = [_loosened(example.boxes[index] * scale, width, height, chance, LOOSENESS[0]) for index in objects]
    ious = []
    for index, mask in zip(objects, segmenter.segment_boxes(image, boxes, head), strict=True):
        x_min, y_min, x_max, y_max = (float(side) for side in example.boxes[index])
        bounds = np.array(crop_bounds((x_min, y_min, x_max, y_max), example.width, example.height)) * scale
        left, top, right, bottom = (round(side) for side in bounds)
        truth = np.zeros((height, width), np.bool_)
        part = truth[top:bottom, left:right]
        if part.size:
            part[:] = decode_mask(example.masks[index], bottom - top, right - left)[: part.shape[0], : part.shape[1]]
        ious.append(_iou(mask.mask(width, height).array() if mask else None, truth))
    return ious


def _iou(mask: npt.NDArray[np.bool_] | None, truth: npt.NDArray[np.bool_]) -> float:
    return 0.0 if mask is None else float((mask & truth).sum() / max(1, (mask | truth).sum()))


def _cross_validated_drawings(
    examples: Sequence[HeadExample], segmenter: OutlineSegmenter, samples: PixelSamples, name: str
) -> tuple[Doubles, Doubles]:
    """IoUs of drawn masks by the network as it ships, and by a recipe that was fitted on other tasks.

    Where all objects are of one task, it was fitted on other objects.
    """
    parts = []
    for fitted, judged in _fold_examples(examples, segmenter, samples):
        head = fit_head(fitted, name, network=segmenter.network)
        parts.append(drawn_ious(segmenter, judged, [None, head], most=MAX_JUDGED // FOLDS))
    before, after = np.concatenate(parts, axis=1)
    return before, after


def _fold_examples(
    examples: Sequence[HeadExample], segmenter: OutlineSegmenter, samples: PixelSamples
) -> Iterator[tuple[PixelSamples, list[HeadExample]]]:
    """(samples to fit on, images to judge by) of each fold."""
    if len(set(samples.tasks.tolist())) > 1:
        fold = _folds(samples.tasks)
        for number in range(int(fold.max()) + 1):
            tasks = set(samples.tasks[fold == number].tolist())
            yield samples.take(fold != number), [one for one in examples if one.task in tasks]
        return
    images = [example for example in examples if any(example.masks)]
    objects = [(place, index) for place, example in enumerate(images) for index in _usable(example)]
    for number in range(FOLDS):
        held = frozenset(objects[number::FOLDS])
        others = sample_pixels(segmenter, _with_masks(images, frozenset(objects) - held))
        if others is not None:
            yield others, _with_masks(images, held)


def _with_masks(images: Sequence[HeadExample], objects: frozenset[tuple[int, int]]) -> list[HeadExample]:
    """Images with the masks of some objects, given as (image, object)."""
    return [
        replace(image, masks=tuple(mask if (place, index) in objects else "" for index, mask in enumerate(image.masks)))
        for place, image in enumerate(images)
    ]


def _folds(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The fold of each object: objects of one group are in one."""
    names = np.random.default_rng(0).permutation(np.unique(groups))
    folds = min(FOLDS, len(names))
    fold_of = {name: index % folds for index, name in enumerate(names.tolist())}
    return np.array([fold_of[group] for group in groups.tolist()])


def sample_pixels(segmenter: OutlineSegmenter, examples: Sequence[HeadExample]) -> PixelSamples | None:
    """Run the network on loose boxes of objects with masks, and sample pixels in each; None without a usable mask.

    Args:
        segmenter: The network.
        examples: Labelled images, oldest first; the newest are taken where there are too many.
    """
    parts: list[PixelSamples] = []
    count = 0
    images = [example for example in examples if any(example.masks)][::-1][:MAX_IMAGES]
    for example in images:
        part = _SAMPLES.get(f"{segmenter.network} {example.key}", partial(_sample_image, segmenter, example))
        if part is not None:
            # The same drawing may have been sampled for another task, such as that of a copied project.
            parts.append(replace(part, tasks=np.full(len(part), example.task, np.int64)))
            count += len(part)
        if count >= MAX_OBJECTS:
            break
    if not parts:
        return None
    return PixelSamples(
        np.concatenate([part.features for part in parts]), np.concatenate([part.logits for part in parts]),
        np.concatenate([part.truth for part in parts]), np.concatenate([part.tasks for part in parts]),
    )  # fmt: skip


def _usable(example: HeadExample) -> list[int]:
    """A sample of the objects of an image that have a mask."""
    usable = [
        index
        for index, (mask, box) in enumerate(zip(example.masks, example.boxes, strict=True))
        if mask and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE
    ]
    return sorted(Random(_seed(example)).sample(usable, min(MAX_OBJECTS_PER_IMAGE, len(usable))))  # noqa: S311


def _sample_image(segmenter: OutlineSegmenter, example: HeadExample) -> PixelSamples | None:
    """Sample the pixels of an image's objects; None without a usable mask."""
    objects = _usable(example)
    if not objects:
        return None
    image = example.pixels()
    scale = np.array([image.shape[1] / example.width, image.shape[0] / example.height] * 2)
    chance = Random(_seed(example))  # noqa: S311
    numbers = np.random.default_rng(_seed(example))
    rows: list[tuple[npt.NDArray[np.float16], Floats, Floats]] = []
    for index in objects:
        tight = example.boxes[index] * scale
        x_min, y_min, x_max, y_max = map(float, example.boxes[index])
        bounds = np.array(crop_bounds((x_min, y_min, x_max, y_max), example.width, example.height), float) * scale
        boxes = [_loosened(tight, image.shape[1], image.shape[0], chance, limits) for limits in LOOSENESS]
        batch = segmenter.forward(image, boxes)
        side = batch.logits.shape[-1]
        maps = np.concatenate(
            [_scaled_logits(batch.logits)[:, None], batch.features, local_maps(batch.crops, batch.logits)], axis=1
        )
        mask = decode_mask(example.masks[index])
        sampled = []
        for view, logits, features in zip(batch.views, batch.logits, maps, strict=True):
            usable = np.flatnonzero(inside_box(side) & _inside_image(view, side))
            if not len(usable):
                break
            at = numbers.choice(usable, SAMPLED_PIXELS, replace=len(usable) < SAMPLED_PIXELS)
            truth = object_share(view, mask, bounds, side)
            sampled.append((features.reshape(len(features), -1)[:, at].T, logits.ravel()[at], truth.ravel()[at]))
        if len(sampled) == len(LOOSENESS) and any(truth.any() for _, _, truth in sampled):
            stacked = [np.stack(arrays) for arrays in zip(*sampled, strict=True)]
            rows.append((np.clip(stacked[0], -6e4, 6e4).astype(np.float16), stacked[1], stacked[2]))
    if not rows:
        return None
    features, all_logits, all_truth = (np.stack(arrays) for arrays in zip(*rows, strict=True))
    return PixelSamples(features, all_logits, all_truth, np.full(len(rows), example.task, np.int64))


def _seed(example: HeadExample) -> int:
    return zlib.crc32(example.url.encode())


def _loosened(box: npt.NDArray[Any], width: int, height: int, chance: Random, limits: tuple[float, float]) -> Rectangle:
    """A box enlarged by a share of its sides, split at random between left and right, top and bottom."""
    left, top, right, bottom = map(float, box)
    across, down = chance.uniform(*limits) * (right - left), chance.uniform(*limits) * (bottom - top)
    x, y = chance.random(), chance.random()
    x_min, y_min = max(0.0, left - across * x), max(0.0, top - down * y)
    x_max, y_max = min(float(width), right + across * (1 - x)), min(float(height), bottom + down * (1 - y))
    return Rectangle(x_min, y_min, max(1.0, x_max - x_min), max(1.0, y_max - y_min))


def object_share(view: BoxCrop, mask: npt.NDArray[np.bool_], bounds: npt.NDArray[Any], side: int) -> Floats:
    """Render an object's mask in a crop: (side, side) float32, the share of each pixel that belongs to the object.

    Args:
        view: An upright crop.
        mask: (rows, columns) bool of the region `bounds`.
        bounds: x_min, y_min, x_max, y_max of the mask in the pixels of the view's image.
        side: Pixels.
    """
    rows, columns = mask.shape
    fine = 3 * side
    wide, high = max(view.box.width, 2.0) * CONTEXT, max(view.box.height, 2.0) * CONTEXT
    left = view.box.x + view.box.width / 2 - wide / 2
    top = view.box.y + view.box.height / 2 - high / 2
    per_x, per_y = columns / max(bounds[2] - bounds[0], 1e-6), rows / max(bounds[3] - bounds[1], 1e-6)
    matrix = np.array([[wide / fine * per_x, 0, (left - bounds[0]) * per_x],
                       [0, high / fine * per_y, (top - bounds[1]) * per_y]])  # fmt: skip
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV's pixel centres are integers
    # One pixel of frame, so that the mask ends where its box does and not half a pixel later.
    padded = np.pad(mask.astype(np.float32), 1)
    matrix[:, 2] += 1
    drawn: Any = cv2.warpAffine(padded, matrix, (fine, fine), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    share: Any = cv2.resize((drawn >= 0.5).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(share, np.float32)


def _inside_image(view: BoxCrop, side: int) -> npt.NDArray[np.bool_]:
    """Mask (side, side) of the crop's pixels whose centre is on the image."""
    wide, high = max(view.box.width, 2.0) * CONTEXT, max(view.box.height, 2.0) * CONTEXT
    at = (np.arange(side) + 0.5) / side - 0.5
    x = view.box.x + view.box.width / 2 + at * wide
    y = view.box.y + view.box.height / 2 + at * high
    return ((y >= 0) & (y < view.height))[:, None] & ((x >= 0) & (x < view.width))[None]


def _scaled_logits(logits: Floats) -> Floats:
    return np.asarray(np.clip(logits, -MAX_LOGIT, MAX_LOGIT) / np.float32(4), np.float32)


def fit_head(samples: PixelSamples, name: str, *, network: str) -> MasksHead:
    """Fit a candidate by name; `SHIPPED` gives a head that changes nothing."""
    count = samples.features.shape[-1]
    mean, spread = _scale(samples)
    weights, bias = _fit(samples, name, mean, spread) if name != SHIPPED else (np.zeros(count), 0.0)
    return MasksHead(
        network, mean, spread, weights.astype(np.float32), bias, name, len(samples), len(set(samples.tasks.tolist()))
    )


def cross_validate(samples: PixelSamples) -> dict[str, Doubles]:
    """Return the IoU (m,) of each object's mask by candidates that were fitted on other tasks.

    Where all objects are of one task, folds are made of objects.
    """
    groups = samples.tasks if len(set(samples.tasks.tolist())) > 1 else np.arange(len(samples))
    fold = _folds(groups)
    ious: dict[str, Doubles] = {name: np.zeros(len(samples)) for name in CANDIDATES}
    for number in range(int(fold.max()) + 1):
        fitted, judged = samples.take(fold != number), samples.take(fold == number)
        mean, spread = _scale(fitted)
        table = _Table(fitted, mean, spread)
        rows = standardised(judged.features, mean, spread)
        for name, recipes in CANDIDATES.items():
            weights, bias = table.fit(recipes)
            logits = np.clip(judged.logits, -MAX_LOGIT, MAX_LOGIT) + rows @ weights.astype(np.float32) + bias
            ious[name][fold == number] = mask_ious(judged, logits)
    return ious


def mask_ious(samples: PixelSamples, logits: Floats) -> Doubles:
    """IoU (m,) of each object's mask, the pixels with positive logits, as the mean over its boxes.

    Args:
        samples: Of m objects.
        logits: (m, b, p) of the same pixels.
    """
    predicted, truth = logits > 0, samples.truth >= 0.5
    by_box = (predicted & truth).sum(axis=2) / np.maximum((predicted | truth).sum(axis=2), 1)
    return np.asarray(by_box.mean(axis=1), np.float64)


def _scale(samples: PixelSamples) -> tuple[Floats, Floats]:
    every = samples.features.reshape(-1, samples.features.shape[-1])
    rows = every[:: max(1, len(every) // MAX_ROWS)].astype(np.float32)
    return rows.mean(0), rows.std(0) + np.float32(1e-3)


def standardised(features: npt.NDArray[np.float16], mean: Floats, spread: Floats) -> Floats:
    """Features (..., c) float32 over their spread around their mean, (c,) each, cut at `MAX_FEATURE`."""
    return np.clip((features.astype(np.float32) - mean) / spread, -MAX_FEATURE, MAX_FEATURE)


def _fit(samples: PixelSamples, name: str, mean: Floats, spread: Floats) -> tuple[Doubles, float]:
    return _Table(samples, mean, spread).fit(CANDIDATES[name])


class _Table:
    """Rows that recipes are fitted on."""

    def __init__(self, samples: PixelSamples, mean: Floats, spread: Floats) -> None:
        boxes, pixels = samples.logits.shape[0] * samples.logits.shape[1], samples.logits.shape[2]
        self._boxes = boxes
        per_box = max(16, min(pixels, MAX_ROWS // max(1, boxes)))  # pixels are in random order
        part = np.s_[:, :, :per_box]
        self._count = samples.features.shape[-1]
        rows = standardised(samples.features[part].reshape(-1, self._count), mean, spread)
        self._rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
        self._offset = np.clip(samples.logits[part], -MAX_LOGIT, MAX_LOGIT).ravel().astype(np.float64)
        self._truth = samples.truth[part].ravel().astype(np.float64)
        self._weight = BOX_WEIGHT / per_box
        self._fitted: dict[MaskFeatures, Doubles] = {}

    def fit(self, recipes: Sequence[MaskFeatures]) -> tuple[Doubles, float]:
        """Fit each recipe; the mean of their weights (d,), and of their biases."""
        rows = np.mean([self._fit_one(recipe) for recipe in recipes], axis=0)
        bias = float(rows[-1])
        logits = self._offset + self._rows[:, :-1] @ rows[:-1].astype(np.float32) + bias
        return rows[:-1], bias + self._cut(logits)

    def _cut(self, logits: Doubles) -> float:
        """What is added to the logits for the highest mean IoU: the log loss has its cut at half the pixels."""
        truth = self._truth.reshape(self._boxes, -1) >= 0.5
        by_box = logits.reshape(self._boxes, -1)
        ious = [((by_box > -cut) & truth).sum(1) / np.maximum(((by_box > -cut) | truth).sum(1), 1) for cut in CUTS]
        means = np.mean(ious, axis=1) - CUT_COST * np.abs(CUTS)
        return float(CUTS[int(np.argmax(means))])

    def _fit_one(self, recipe: MaskFeatures) -> Doubles:
        if recipe not in self._fitted:
            columns = np.append(_columns(recipe, self._count), self._count)
            penalty = np.full(len(columns), recipe.penalty)
            penalty[-1] = BIAS_PENALTY
            row = np.zeros(self._count + 1)
            row[columns] = _newton(
                np.ascontiguousarray(self._rows[:, columns]), self._truth, self._offset, self._weight, penalty
            )
            self._fitted[recipe] = row
        return self._fitted[recipe]


def _columns(recipe: MaskFeatures, count: int) -> npt.NDArray[np.int64]:
    features = count - 1 - LOCAL_MAPS
    sizes = {
        "logit": 1,
        "features": features,
        "position": POSITION,
        "appearance": APPEARANCE,
        "contrast": CONTRAST,
        "texture": TEXTURE,
        "colour": COLOUR,
    }
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    return np.concatenate([np.arange(starts[group], starts[group] + sizes[group]) for group in recipe.groups])


def _newton(rows: Floats, truth: Doubles, offset: Doubles, weight: float, penalty: Doubles) -> Doubles:
    """Minimise weight x log loss of (offset + rows @ w) + penalty / 2 x w^2, by damped Newton steps from w = 0.

    Args:
        rows: (n, k) float32, the last column 1.
        truth: (n,) targets in [0, 1].
        offset: (n,) logits.
        weight: Of each row.
        penalty: (k,).

    Returns:
        (k,) float64.
    """
    from scipy.linalg import cho_factor, cho_solve  # only training needs it

    def loss(w: Doubles, logits: Doubles) -> float:
        return float(weight * (np.logaddexp(0, logits) - truth * logits).sum() + 0.5 * penalty @ w**2)

    w = np.zeros(rows.shape[1])
    logits = offset
    value = loss(w, logits)
    for _ in range(MAX_STEPS):
        probability = expit(logits)
        gradient = rows.T @ (weight * (probability - truth)).astype(np.float32) + penalty * w
        weighted = np.sqrt(weight * probability * (1 - probability)).astype(np.float32)[:, None] * rows
        hessian = (weighted.T @ weighted).astype(np.float64)
        hessian[np.diag_indices_from(hessian)] += penalty
        step = cho_solve(cho_factor(hessian, check_finite=False), gradient, check_finite=False)
        size = 1.0
        while True:
            candidate = w - size * step
            new_logits = offset + rows @ candidate.astype(np.float32)
            new_value = loss(candidate, new_logits)
            if new_value <= value or size < 1e-3:
                break
            size /= 2
        if new_value > value:
            break
        gain, w, logits, value = value - new_value, candidate, new_logits, new_value
        if gain < MIN_RELATIVE_GAIN * value:
            break
    return w


def apply_masks(head: MasksHead, prediction: ImagePrediction) -> ImagePrediction:
    """Return the prediction itself: the segmenter applies the head as it draws masks."""
    del head
    return replace(prediction)


KIND = HeadKind("masks", MasksHead.from_bytes, fit_masks, apply_masks)
