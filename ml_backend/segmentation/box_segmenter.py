"""`BoxSegmenter`: masks of the objects in a detector's boxes, in batches, within limits."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import structlog

from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.service.errors import LabelloopError
from labelloop.service.memory_budget import never_abandoned
from labelloop.service.settings import Settings
from ml_backend.segmentation.pixel_head import PixelHead
from ml_backend.segmentation.prompt import scaled_box

if TYPE_CHECKING:
    from ml_backend.segmentation.crop_mask import InstanceMask
    from ml_backend.segmentation.segmenters import Segmenter

log = structlog.get_logger(__name__)

# Objects segmented per image, the most certain first.
MAX_OBJECTS = 100

# Longer side in pixels of the image that is segmented: boxes of a larger image are cut from a reduced decode.
SEGMENT_SIDE = 1280

# Boxes per batch: the deadline is checked in between.
BATCH = 8

# Share of its size by which a detector's box is enlarged on each side: the segmenter expects loose boxes.
MARGIN = 0.05

# Boxes with a shorter side below this, in pixels, have no detail to segment; masks below this share of their box are
# failures. Both become the mask of the box.
MIN_SIDE, MIN_SHARE = 3.0, 0.05


@dataclass(frozen=True)
class BoxMasks:
    """Masks of boxes, and why some are missing.

    Attributes:
        masks: One per box; None where the box was not segmented.
        reason: Why masks are missing; empty where none is.
    """

    masks: "tuple[InstanceMask | None, ...]"
    reason: str = ""

    @property
    def missing(self) -> int:
        """Number of boxes without a mask."""
        return sum(mask is None for mask in self.masks)


class BoxSegmenter:
    """Segments boxes with the segmenter of smart tools. One per process; thread-safe."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Import and load nothing before the first box.

        Args:
            settings: Name the segmenter's files; None: the network included in labelloop.
        """
        self._settings = settings
        self.name = "sam" if settings is not None and settings.smart_encoder is not None else "outline"
        self._segmenter: Segmenter | None = None
        self._lock = threading.Lock()

    def open(self) -> "Segmenter":
        """Return the segmenter, loaded once.

        Raises:
            LabelloopError: Its files are missing or broken.
        """
        with self._lock:
            if self._segmenter is None:
                from ml_backend.segmentation.segmenters import SEGMENTERS  # loads OpenCV on first use

                self._segmenter = SEGMENTERS[self.name](self._settings or Settings())
            return self._segmenter

    def masks(
        self,
        pixels: npt.NDArray[np.uint8],
        boxes: Sequence[Rectangle],
        *,
        size: tuple[int, int],
        is_over: Callable[[], bool] = never_abandoned,
        head: PixelHead | None = None,
    ) -> BoxMasks:
        """Segment the object in each box.

        A box that is tiny, or in which nothing is found, gets the mask of the box.

        Args:
            pixels: (h, w, 3) uint8 RGB; may be a reduced decode of the image.
            boxes: In pixels of the original image, upright or rotated, the most certain first.
            size: (width, height) of the original image.
            is_over: Polled between batches; True leaves out the boxes that remain.
            head: The project's own last layer of the network; None: as it ships.
        """
        if not boxes:
            return BoxMasks(())
        across, down = pixels.shape[1] / size[0], pixels.shape[0] / size[1]
        masks: list[InstanceMask | None] = []
        reason = f"at most {MAX_OBJECTS} objects of an image are segmented" if len(boxes) > MAX_OBJECTS else ""
        try:
            segmenter = self.open()
            embedding = segmenter.embed(pixels)
            for start in range(0, min(len(boxes), MAX_OBJECTS), BATCH):
                if is_over():
                    reason = "the time for this request ran out"
                    break
                batch = boxes[start : min(start + BATCH, MAX_OBJECTS)]
                prompts = [scaled_box(_loose(box), across, down) for box in batch]
                for box, mask in zip(batch, segmenter.segment_boxes(embedding, prompts, head), strict=True):
                    masks.append(_checked(mask.scaled(1 / across, 1 / down) if mask else None, box, size))
        except LabelloopError as error:  # a segmenter's file is missing or broken: the message is complete
            log.error("box_masks_failed", segmenter=self.name, reason=error.message)  # noqa: TRY400
            reason = f"the segmenter {self.name} failed: {error.message}"
        except Exception as error:  # boxes are worth more than an error
            log.exception("box_masks_failed", segmenter=self.name)
            reason = f"the segmenter {self.name} failed: {type(error).__name__}"
        return BoxMasks((*masks, *[None] * (len(boxes) - len(masks))), reason)


def _loose(box: Rectangle) -> Rectangle:
    """The box, enlarged by `MARGIN` around its centre."""
    angle = np.deg2rad(box.rotation)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    across, down = MARGIN * box.width, MARGIN * box.height
    return Rectangle(
        box.x - cos * across + sin * down,
        box.y - sin * across - cos * down,
        box.width + 2 * across,
        box.height + 2 * down,
        box.rotation,
    )


def _checked(mask: "InstanceMask | None", box: Rectangle, size: tuple[int, int]) -> "InstanceMask | None":
    """The mask, or that of the box where there is nothing of the object in it; None outside the image."""
    tiny = min(box.width, box.height) < MIN_SIDE
    if mask is not None and not tiny:
        left, top, right, bottom = mask.bounds
        covered = float((mask.level > 0).mean()) * (right - left) * (bottom - top)
        if covered >= MIN_SHARE * box.area:
            return mask
    return _box_mask(box, size)


def _box_mask(box: Rectangle, size: tuple[int, int]) -> "InstanceMask | None":
    from ml_backend.segmentation.crop_mask import InstanceMask

    left, top, right, bottom = box.bounds
    x_min, y_min = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x_max, y_max = min(size[0], int(np.ceil(right))), min(size[1], int(np.ceil(bottom)))
    if x_max <= x_min or y_max <= y_min:
        return None
    level: Any = np.ones((2, 2), np.float32)
    return InstanceMask(level, (x_min, y_min, x_max, y_max), 0.0)
