"""Segment an object from a loose box or clicks, with the network included in labelloop.

A small network (`ml_backend/models/outline.onnx`, model card in `docs/reference/outline-model.md`) takes the box's
crop, its evidence maps and box features, and predicts logits per pixel. They are cut where the expected IoU is maximal.
Clicks enter the location prior, and are enforced on the result.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Point, Rectangle
from ml_backend.detection.logits import expit
from ml_backend.inference.session import open_session
from ml_backend.segmentation.crop import MIRRORED_SIDES, BoxCrop
from ml_backend.segmentation.crop_mask import InstanceMask
from ml_backend.segmentation.evidence_maps import SIDE, cielab, evidence_maps, inside_box, location_prior
from ml_backend.segmentation.prompt import Prompt

Floats = npt.NDArray[np.float32]

# Side in pixels of the network's crop.
NETWORK_SIDE = 96

# The network's logits are clipped to +-MAX_LOGIT, so that clicks can override them.
MAX_LOGIT = 5.0

# Guided filter: crop side in pixels, window radius in pixels, and regularisation.
FILTER_SIDE, REACH, FILTER_REGULARISATION = 160, 5, 0.002

# Standard deviation of a click's influence, in crop sides.
CLICK_REACH = 0.12

# Logits that a positive and a negative click add at their position.
POSITIVE_CLICK_LOGIT, NEGATIVE_CLICK_LOGIT = 4.0, -6.0

# Weight of the interpolation between positive and negative clicks: 0 halfway, full near either.
CLICK_INTERPOLATION = 5.0

# Box sizes tried for clicks without a box, relative to the image's longer side.
CLICK_FRAMES = (0.04, 0.11, 0.32, 0.64)

# Exponent of the preference for smaller objects: large ones, cut out of a wide frame, have more strong edges.
SMALL_OBJECT_EXPONENT = 0.3

# Parts below this share of the largest part are removed.
MIN_PART_SHARE = 0.15


def embedded_outline() -> Path:
    """Path of the network included in labelloop."""
    return Path(str(files("ml_backend").joinpath("models", "outline.onnx")))


class OutlineSegmenter:
    """The segmenter `outline`; stateless and deterministic."""

    name = "outline"

    def __init__(self, path: Path | None = None) -> None:
        """Open the network.

        Args:
            path: A network with the same inputs; None: the one included in labelloop.

        Raises:
            ModelError: It is missing or broken.
        """
        # Each request has a thread of its own; OpenCV's threads would only contend.
        cv2.setNumThreads(1)
        self._session = open_session(path or embedded_outline(), threads=1)

    def embed(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the image itself: crops depend on the box."""
        return image

    def segment(self, embedding: Any, prompt: Prompt) -> InstanceMask | None:
        """Segment the object; None where the prompt lies outside the image, or nothing is found."""
        image: npt.NDArray[np.uint8] = embedding
        height, width = image.shape[:2]
        boxes = [prompt.box] if prompt.box is not None else _frames(image, prompt.positives)
        views = [view for view in (BoxCrop(box, width, height) for box in boxes) if _overlaps_image(view)]
        if not views:
            return None
        crops = [view.render(image, NETWORK_SIDE) for view in views]
        logits = self._logits(views, crops, prompt)
        best = 0
        if len(views) > 1:  # several frames were tried around clicks
            outline_scores = [
                _outline_score(crop, _threshold(view, crop_logits, prompt)[0]) * view.box.width**-SMALL_OBJECT_EXPONENT
                for view, crop, crop_logits in zip(views, crops, logits, strict=True)
            ]
            best = int(np.argmax(outline_scores))
        view = views[best]
        level, score = _threshold(view, _guided_upsample(logits[best], view.render(image, FILTER_SIDE)), prompt)
        return InstanceMask(view.to_image(level), view.bounds, score) if (level > 0).any() else None

    def segment_boxes(self, embedding: Any, boxes: Sequence[Rectangle]) -> list[InstanceMask | None]:
        """Segment the object in each box, in one run of the network without flip augmentation."""
        image: npt.NDArray[np.uint8] = embedding
        height, width = image.shape[:2]
        views = [BoxCrop(box, width, height) for box in boxes]
        inside = [index for index, view in enumerate(views) if _overlaps_image(view)]
        masks: list[InstanceMask | None] = [None] * len(views)
        if not inside:
            return masks
        crops = [views[index].render(image, NETWORK_SIDE) for index in inside]
        prior = location_prior()
        feeds = {
            "view": np.stack([crop.transpose(2, 0, 1) for crop in crops]).astype(np.float32),
            "clues": np.stack([evidence_maps(crop, prior) for crop in crops]),
            "sides": np.stack([views[index].sides for index in inside]),
        }
        batch_logits = np.clip(self._session.run(["odds"], feeds)[0], -MAX_LOGIT, MAX_LOGIT)
        for index, logits in zip(inside, batch_logits, strict=True):
            view, prompt = views[index], Prompt(boxes[index])
            level, score = _threshold(view, _guided_upsample(logits, view.render(image, FILTER_SIDE)), prompt)
            if (level > 0).any():
                masks[index] = InstanceMask(view.to_image(level), view.bounds, score)
        return masks

    def _logits(self, views: Sequence[BoxCrop], crops: Sequence[npt.NDArray[np.uint8]], prompt: Prompt) -> Floats:
        """Predict logits (n, SIDE, SIDE) float32 that a pixel belongs to the object."""
        in_box, prior = inside_box(), location_prior()
        priors = [np.where(in_box, prior + _click_logits(view, prompt), prior) for view in views]
        pixels = np.stack([crop.transpose(2, 0, 1) for crop in crops]).astype(np.float32)
        evidence = np.stack(
            [evidence_maps(crop, prior_logits) for crop, prior_logits in zip(crops, priors, strict=True)]
        )
        sides = np.stack([view.sides for view in views])
        feeds = {
            "view": np.concatenate([pixels, pixels[..., ::-1]]),
            "clues": np.concatenate([evidence, evidence[..., ::-1]]),
            "sides": np.concatenate([sides, sides[:, MIRRORED_SIDES]]),
        }
        logits, mirrored = np.split(self._session.run(["odds"], feeds)[0], 2)
        mean = (logits + mirrored[..., ::-1]) / 2  # flip augmentation: both orientations in one batch
        clamped: Floats = np.clip(mean, -MAX_LOGIT, MAX_LOGIT) + np.stack(
            [_click_logits(view, prompt) for view in views]
        )
        return clamped


def _frames(image: npt.NDArray[np.uint8], points: tuple[Point, ...]) -> list[Rectangle]:
    """Square boxes around the clicks, extended by the clicks' spread."""
    xs, ys = zip(*points, strict=True)
    halves = [share * max(image.shape[:2]) / 2 for share in CLICK_FRAMES]
    return [
        Rectangle(min(xs) - half, min(ys) - half, max(xs) - min(xs) + 2 * half, max(ys) - min(ys) + 2 * half)
        for half in halves
    ]


def _overlaps_image(view: BoxCrop) -> bool:
    left, top, right, bottom = view.box.bounds
    return min(right, view.width) - max(left, 0) >= 1 and min(bottom, view.height) - max(top, 0) >= 1


def _threshold(view: BoxCrop, logits: Floats, prompt: Prompt) -> tuple[Floats, float]:
    """Threshold logits: (level (side, side) float32, positive inside the object; score in [0, 1])."""
    probabilities = expit(logits).astype(np.float32)
    level = probabilities - _best_threshold(probabilities)
    clicks = _clicks(view, prompt, len(logits))
    for column, row, positive in clicks:
        cv2.circle(level, (column, row), len(logits) // SIDE, 0.5 if positive else -0.5, -1)
    level = _clean(level, clicks).astype(np.float32)
    mask = level > 0
    return level, float(probabilities[mask].mean()) if mask.any() else 0.0


def _guided_upsample(logits: Floats, view: npt.NDArray[np.uint8]) -> Floats:
    """Upsample logits to the resolution of `view`, with edges where its colours change.

    Guided filter (He, Sun, Tang 2010, https://doi.org/10.1007/978-3-642-15549-9_1): the mean over the CIELAB channels
    as guides.
    """

    def mean(array: Any) -> Any:
        return cv2.boxFilter(array, -1, (2 * REACH + 1, 2 * REACH + 1))

    large: Any = cv2.resize(logits, (len(view), len(view)), interpolation=cv2.INTER_LINEAR)
    mean_logits, total = mean(large), np.zeros_like(large)
    for guide in np.moveaxis(cv2.cvtColor(view.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) / 100, 2, 0):
        mean_guide = mean(guide)
        slope = (mean(guide * large) - mean_guide * mean_logits) / (
            mean(guide * guide) - mean_guide**2 + FILTER_REGULARISATION
        )
        total += mean(slope) * guide + mean(mean_logits - slope * mean_guide)
    filtered: Floats = total / 3
    return filtered


def _clicks(view: BoxCrop, prompt: Prompt, side: int) -> list[tuple[int, int, bool]]:
    """(column, row, positive) of each click inside the view, at `side` pixels."""
    clicks = []
    for points, positive in ((prompt.positives, True), (prompt.negatives, False)):
        for across, down in (view.to_crop(*point) for point in points):
            if 0 <= across < 1 and 0 <= down < 1:
                clicks.append((int(across * side), int(down * side), positive))
    return clicks


def _click_logits(view: BoxCrop, prompt: Prompt) -> Floats:
    """Logits (SIDE, SIDE) float32 that the clicks add: around each, and interpolated between both kinds."""
    logits = np.zeros((SIDE, SIDE), np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    nearest = {True: np.full((SIDE, SIDE), np.inf), False: np.full((SIDE, SIDE), np.inf)}
    for column, row, positive in _clicks(view, prompt, SIDE):
        distance = np.hypot(rows - row, columns - column)
        nearest[positive] = np.minimum(nearest[positive], distance)
        logits += (POSITIVE_CLICK_LOGIT if positive else NEGATIVE_CLICK_LOGIT) * np.exp(
            -(distance**2) / (2 * (CLICK_REACH * SIDE) ** 2)
        ).astype(np.float32)
    hit, missed = nearest[True], nearest[False]
    if np.isfinite(hit).all() and np.isfinite(missed).all():
        logits += (CLICK_INTERPOLATION * (missed - hit) / (missed + hit + 1)).astype(np.float32)
    return logits


def _best_threshold(probabilities: Floats) -> float:
    """The probability threshold that maximises the expected IoU.

    With the pixels above a threshold as the mask, the expected intersection is the sum of their probabilities; the
    union is their number plus the probabilities below.
    """
    descending = np.sort(probabilities.ravel())[::-1].astype(np.float64)
    intersection = np.cumsum(descending)
    iou = intersection / (np.arange(1, descending.size + 1) + intersection[-1] - intersection)
    best = int(iou.argmax())
    below = descending[best + 1] if best + 1 < descending.size else 0.0
    return float((descending[best] + below) / 2)


def _clean(level: Floats, clicks: Sequence[tuple[int, int, bool]]) -> Floats:
    """Remove specks, and fill holes without a negative click."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((level > 0).astype(np.uint8), connectivity=8)
    if count > 1:
        clicked = {int(parts[row, column]) for column, row, positive in clicks if positive} - {0}
        areas = stats[:, cv2.CC_STAT_AREA]
        if clicked:  # keep the connected parts with a positive click
            selected = sorted(clicked)
        else:
            selected = [part for part in range(1, count) if areas[part] >= MIN_PART_SHARE * areas[1:].max()]
        level = np.where((level > 0) & ~np.isin(parts, selected), np.float32(-0.5), level)
    holes, spaces, _, _ = cv2.connectedComponentsWithStats((level <= 0).astype(np.uint8), connectivity=4)
    around = set(np.concatenate([spaces[0], spaces[-1], spaces[:, 0], spaces[:, -1]]).tolist())
    around |= {int(spaces[row, column]) for column, row, positive in clicks if not positive}
    closed = [space for space in range(1, holes) if space not in around]
    return np.where(np.isin(spaces, closed) & (level <= 0), np.float32(0.05), level)


def _outline_score(view: npt.NDArray[np.uint8], level: Floats) -> float:
    """Score how much a mask looks like a complete object: colour contrast across its edge, no cut at the frame."""
    mask: Any = (level > 0).astype(np.uint8)
    lab = cielab(view)
    inner, outer = mask - cv2.erode(mask, np.ones((3, 3))), cv2.dilate(mask, np.ones((5, 5))) - mask
    if not inner.any() or not outer.any():
        return 0.0
    local = [cv2.blur(lab * part[..., None], (7, 7)) / (cv2.blur(part.astype(np.float32), (7, 7))[..., None] + 1e-3)
             for part in (mask, 1 - mask)]  # fmt: skip
    contrast = np.linalg.norm(local[0] - local[1], axis=2)[inner > 0].mean()
    frame_pixels = cv2.dilate((~inside_box()).astype(np.uint8), np.ones((3, 3))) & mask
    return float(contrast * (1 - min(1.0, frame_pixels.sum() / inner.sum())))
