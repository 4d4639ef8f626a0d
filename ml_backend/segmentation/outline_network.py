"""Segment an object from a loose box or clicks, with the network included in labelloop.

A small network (`ml_backend/models/outline.onnx`, model card in `docs/reference/outline-model.md`) takes the crop of a
box and prompt maps, and predicts logits per pixel and how good they are. Clicks without a box are tried in frames of
several sizes; the one that promises the best mask is kept, and its mask segmented again as a box. Clicks are enforced
on the result.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Point, Rectangle
from labelloop.service.system import available_cores
from ml_backend.detection.logits import expit
from ml_backend.inference.session import open_session
from ml_backend.segmentation.crop import CONTEXT, BoxCrop
from ml_backend.segmentation.crop_mask import InstanceMask
from ml_backend.segmentation.pixel_head import CropBatch, PixelHead, report_unused
from ml_backend.segmentation.prompt import Prompt
from ml_backend.segmentation.prompt_maps import prompt_maps

Floats = npt.NDArray[np.float32]

# Threads of one run: the detector that ran before on the same request had as many.
SEGMENT_THREADS = 2

# Side in pixels of the network's crop, and of the masks.
NETWORK_SIDE = 112

# The network's logits are clipped to +-MAX_LOGIT, so that clicks can override them.
MAX_LOGIT = 6.0

# Guided filter: window radius in pixels of the crop, and regularisation.
REACH, FILTER_REGULARISATION = 5, 0.002

# Sides of the frames tried around clicks without a box, relative to the image's longer side.
CLICK_FRAMES = (0.042, 0.085, 0.17, 0.34, 0.7, 1.4)

# Exponent of the preference for smaller frames: what a wide frame shows well is often not what was clicked.
SMALL_FRAME_EXPONENT = 0.05

# Share of its sides by which the box of a clicked object is enlarged before it is segmented again.
CLICKED_MARGIN = 0.08

# Standard deviation of a click's influence, in crop sides, and the logits that clicks add at their position.
CLICK_REACH = 0.04
POSITIVE_CLICK_LOGIT, NEGATIVE_CLICK_LOGIT = 4.0, -6.0

# The network ignores a negative click where this share of the ring around it, radii in crop sides, stays in the mask.
IGNORED_SHARE, RING = 0.9, (0.05, 0.1)

# Then its logits are at most IGNORED_LOGIT, and what is nearer to negative clicks than to positive ones loses up to
# CLICK_INTERPOLATION.
IGNORED_LOGIT, CLICK_INTERPOLATION = 2.5, 10.0

# Radius in pixels of the crop within which a click decides.
CLICK_RADIUS = 2

# Parts below this share of the largest part are removed.
MIN_PART_SHARE = 0.15


def embedded_outline() -> Path:
    """Path of the network included in labelloop."""
    return Path(str(files("ml_backend").joinpath("models", "outline.onnx")))


class OutlineSegmenter:
    """The segmenter `outline`; stateless and deterministic.

    Attributes:
        name: "outline".
        network: The first 16 digits of the file's SHA-256.
    """

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
        path = path or embedded_outline()
        self._session = open_session(path, threads=min(SEGMENT_THREADS, available_cores()))
        self.network = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def embed(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the image itself: crops depend on the box."""
        return image

    def segment(self, embedding: Any, prompt: Prompt, head: PixelHead | None = None) -> InstanceMask | None:
        """Segment the object; None where the prompt lies outside the image, or nothing is found."""
        image: npt.NDArray[np.uint8] = embedding
        if prompt.box is not None:
            return self._segment(image, [prompt.box], prompt, head)[0]
        frames = _frames(image, prompt.positives)
        views = [view for view in _views(image, frames) if _overlaps_image(view)]
        if not views:
            return None
        batch, quality = self._run(image, views, prompt)
        widths = np.array([view.box.width for view in views])
        best = int(np.argmax(quality * widths**-SMALL_FRAME_EXPONENT))
        mask = _instance(batch, best, float(quality[best]), prompt)
        box = mask.box() if mask is not None else None
        if box is None or min(box.width, box.height) < 2:
            return mask
        across, down = CLICKED_MARGIN * box.width, CLICKED_MARGIN * box.height
        loose = Rectangle(box.x - across, box.y - down, box.width + 2 * across, box.height + 2 * down)
        return self._segment(image, [loose], prompt, head)[0] or mask

    def segment_boxes(
        self, embedding: Any, boxes: Sequence[Rectangle], head: PixelHead | None = None
    ) -> list[InstanceMask | None]:
        """Segment the object in each box, in one run of the network."""
        image: npt.NDArray[np.uint8] = embedding
        return self._segment(image, boxes, Prompt(), head)

    def forward(self, image: npt.NDArray[np.uint8], boxes: Sequence[Rectangle]) -> CropBatch:
        """What the network gives for each box, which must touch the image: logits and features."""
        return self._run(image, _views(image, boxes), Prompt(), has_box=True, features=True)[0]

    def _segment(
        self, image: npt.NDArray[np.uint8], boxes: Sequence[Rectangle], prompt: Prompt, head: PixelHead | None
    ) -> list[InstanceMask | None]:
        """Segment the object in each box, with the same clicks."""
        views = _views(image, boxes)
        inside = [index for index, view in enumerate(views) if _overlaps_image(view)]
        masks: list[InstanceMask | None] = [None] * len(views)
        if not inside:
            return masks
        if head is not None and head.network != self.network:
            report_unused(
                head, f"it was fitted on another network than {self.network}; the next training run refits it"
            )
            head = None
        selected = [views[index] for index in inside]
        batch, quality = self._run(image, selected, prompt, has_box=True, features=head is not None)
        if head is not None:
            batch = CropBatch(batch.views, batch.crops, head.logits(batch), batch.features)
        for row, index in enumerate(inside):
            masks[index] = _instance(batch, row, float(quality[row]), prompt)
        return masks

    def _run(
        self,
        image: npt.NDArray[np.uint8],
        views: Sequence[BoxCrop],
        prompt: Prompt,
        *,
        has_box: bool = False,
        features: bool = False,
    ) -> tuple[CropBatch, Floats]:
        """Run the network on crops: logits, features if asked for, and predicted IoU (n,)."""
        crops = np.stack([view.render(image, NETWORK_SIDE) for view in views])
        maps = [prompt_maps(view, prompt.positives, prompt.negatives, has_box=has_box) for view in views]
        feeds = {"view": np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32), "prompt": np.stack(maps)}
        wanted = ["odds", "quality", "features"] if features else ["odds", "quality"]
        logits, quality, *more = self._session.run(wanted, feeds)
        nothing = np.zeros((len(views), 0, *logits.shape[1:]), np.float32)
        return CropBatch(views, crops, logits, more[0] if more else nothing), quality


def _views(image: npt.NDArray[np.uint8], boxes: Sequence[Rectangle]) -> list[BoxCrop]:
    height, width = image.shape[:2]
    return [BoxCrop(box, width, height) for box in boxes]


def _frames(image: npt.NDArray[np.uint8], points: tuple[Point, ...]) -> list[Rectangle]:
    """Square boxes around the clicks, extended by the clicks' spread."""
    xs, ys = zip(*points, strict=True)
    halves = [share * max(image.shape[:2]) / CONTEXT / 2 for share in CLICK_FRAMES]
    return [
        Rectangle(min(xs) - half, min(ys) - half, max(xs) - min(xs) + 2 * half, max(ys) - min(ys) + 2 * half)
        for half in halves
    ]


def _overlaps_image(view: BoxCrop) -> bool:
    left, top, right, bottom = view.box.bounds
    return min(right, view.width) - max(left, 0) >= 1 and min(bottom, view.height) - max(top, 0) >= 1


def _instance(batch: CropBatch, row: int, score: float, prompt: Prompt) -> InstanceMask | None:
    """The mask of one crop; None where nothing is found."""
    view, crop = batch.views[row], batch.crops[row]
    clicks = _clicks(view, prompt, len(crop))
    logits = _guided_upsample(np.clip(batch.logits[row], -MAX_LOGIT, MAX_LOGIT), crop)
    logits = _with_clicks(logits, clicks)
    level = expit(logits).astype(np.float32) - np.float32(0.5)
    for column, line, positive in clicks:
        cv2.circle(level, (column, line), CLICK_RADIUS, 0.5 if positive else -0.5, -1)
    level = _clean(level, clicks)
    return InstanceMask(view.to_image(level), view.bounds, score) if (level > 0).any() else None


def _guided_upsample(logits: Floats, crop: npt.NDArray[np.uint8]) -> Floats:
    """Upsample logits to the resolution of `crop`, with edges where its colours change.

    Guided filter (He, Sun, Tang 2010, https://doi.org/10.1007/978-3-642-15549-9_1): the mean over the CIELAB channels
    as guides.
    """

    def mean(array: Any) -> Any:
        return cv2.boxFilter(array, -1, (2 * REACH + 1, 2 * REACH + 1))

    large: Any = cv2.resize(logits, (len(crop), len(crop)), interpolation=cv2.INTER_LINEAR)
    mean_logits, total = mean(large), np.zeros_like(large)
    for guide in np.moveaxis(cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) / 100, 2, 0):
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


def _with_clicks(logits: Floats, clicks: Sequence[tuple[int, int, bool]]) -> Floats:
    """Logits (side, side) float32 corrected by clicks: the network has seen them, but may hold on to its opinion."""
    if not clicks:
        return logits
    places = np.arange(len(logits), dtype=np.float32)
    added = np.zeros_like(logits)
    nearest = {positive: np.full(logits.shape, np.inf, np.float32) for positive in (True, False)}
    ignored = False
    for column, row, positive in clicks:
        distance = np.hypot((places - row)[:, None], places - column) / len(logits)
        nearest[positive] = np.minimum(nearest[positive], distance)
        strength = POSITIVE_CLICK_LOGIT if positive else NEGATIVE_CLICK_LOGIT
        added += strength * np.exp(-(distance**2) / (2 * CLICK_REACH**2))
        ring = logits[(distance > RING[0]) & (distance < RING[1])]
        ignored = ignored or (not positive and bool((ring > 0).mean() > IGNORED_SHARE))
    hit, missed = nearest[True], nearest[False]
    if ignored and np.isfinite(hit).all():
        logits = np.minimum(logits, IGNORED_LOGIT)
        added += np.minimum(CLICK_INTERPOLATION * (missed - hit) / (missed + hit + 0.02), 0)
    corrected: Floats = logits + added
    return corrected


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
