"""Answer smart-tool prompts with suggested shapes for Label Studio.

On an error, or without shapes, Label Studio would keep the prompt as a region. So a box prompt is always answered, with
itself at least.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import Geometry, Polygon, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import Control, LabelConfig, data_value
from labelloop.labeling.studio.writing import to_results
from labelloop.service.errors import Busy, LabelloopError
from labelloop.service.media import MediaError
from labelloop.service.memory_budget import MemoryBudget
from labelloop.service.settings import Settings
from ml_backend.predict.protocol import TaskPrediction
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.segmentation.pixel_head import PixelHead
from ml_backend.segmentation.prompt import Prompt
from ml_backend.smart.controls import answering_controls
from ml_backend.smart.embedding_cache import SingleFlightLRU
from ml_backend.smart.prompts import SmartRequest, read_prompts, results_on_last_image

if TYPE_CHECKING:
    from ml_backend.predict.predictor import ImageSource
    from ml_backend.segmentation.crop_mask import InstanceMask

log = structlog.get_logger(__name__)

# Embeddings cached per worker, least recently used evicted.
CACHED_IMAGES = 4

# Longer side in pixels of a cached image: at most 20 MB each.
MAX_SIDE = 2560

# Objects per request, the last drawn ones: left-over prompts must not take minutes.
MAX_PROMPTS = 8

# Prefix of region ids from smart tools: Label Studio stores accepted ones as drawn by hand.
ID_PREFIX = "smart-"


@dataclass(frozen=True, eq=False)
class _EmbeddedImage:
    """An image's embedding, with the size of the original and of the embedded image."""

    embedding: Any
    width: int
    height: int
    columns: int
    rows: int


# Memory per image pixel while a mask is rendered: 300 MB for 100 megapixels.
MASK_BYTES = 3

# Note of a shape that comes back as it was drawn.
BUSY_NOTE = "The smart tool was busy: this is the shape as drawn. Draw it again in a moment, or finish it by hand."

# Memory for masks where images do not come from `Media`.
DRAWING_BYTES = 512 << 20


class SmartTools:
    """Answers prompts. One per worker; thread-safe."""

    def __init__(
        self, photos: ImageSource, *, settings: Settings | None = None, segmenter: BoxSegmenter | None = None
    ) -> None:
        """Import and load nothing before the first prompt.

        Args:
            photos: Source of the images.
            settings: Name the segmenter's files; None: the included network.
            segmenter: Loads the segmenter, for one that is shared with pre-labels; None: by the settings.
        """
        self._photos = photos
        self._shared = segmenter or BoxSegmenter(settings)
        self._name = self._shared.name
        self._embeddings: SingleFlightLRU[_EmbeddedImage] = SingleFlightLRU(CACHED_IMAGES)
        # Masks share the memory budget of image decoding.
        self._memory: MemoryBudget = getattr(photos, "budget", None) or MemoryBudget(DRAWING_BYTES)

    def answer(
        self,
        task: dict[str, Any],
        config: LabelConfig,
        context: Any,
        *,
        busy: str = "",
        head: PixelHead | None = None,
    ) -> TaskPrediction:
        """Suggest shapes for one request; never raises.

        Where the backend is busy, a box comes back as it was drawn, with a note that says so: an error would leave a
        prompt without its labels' shapes, and an empty answer would lose it.

        Args:
            task: As Label Studio sends it.
            config: The project's label config.
            context: `params.context` of the request.
            busy: Why no image is read and no network runs; empty: they are.
            head: The last layer of the segmenter that the project learned; None: as it ships.
        """
        results = results_on_last_image(context)
        if not results:
            return self._prediction([])
        image = None
        try:
            image = None if busy else self._embedded(task, config, Result(results[-1]))
        except Busy as error:
            busy = error.message
        except MediaError as error:
            log.warning("smart_photo_skipped", task=task.get("id"), code=error.code, reason=str(error))
        except LabelloopError as error:  # a segmenter's file is missing or broken: the message is complete
            log.error(  # noqa: TRY400
                "smart_tool_failed", segmenter=self._name, code=error.code, reason=str(error)
            )
        except Exception:
            log.exception("smart_photo_failed", task=task.get("id"))
        if busy:
            log.warning("smart_tool_busy", task=task.get("id"), reason=busy)
        size = (image.width, image.height) if image else _stated_size(results)
        request = read_prompts(results, width=size[0], height=size[1]) if size else None
        if request is None:
            return self._prediction([])
        results = []
        for prompt in request.prompts[-MAX_PROMPTS:]:
            mask = self._segment(image, prompt, head) if image else None
            results += self._draw(request, prompt, mask, config)
        return self._prediction([_with_note(result, BUSY_NOTE) for result in results] if busy else results)

    def _draw(
        self, request: SmartRequest, prompt: Prompt, mask: InstanceMask | None, config: LabelConfig
    ) -> list[dict[str, Any]]:
        """Results of one object; a box alone where there is no memory for its mask."""
        pixels = request.last.width * request.last.height if mask is not None else 0
        try:
            with self._memory.lease(min(MASK_BYTES * pixels, self._memory.limit)):
                return _results(request, prompt, mask, config)
        except Busy as error:
            log.warning("smart_mask_left_out", reason=error.message)
            return [_with_note(result, BUSY_NOTE) for result in _results(request, prompt, None, config)]

    def _prediction(self, results: list[dict[str, Any]]) -> TaskPrediction:
        scores = [float(result["score"]) for result in results if "score" in result]
        return TaskPrediction(results, max(scores, default=0.0), f"smart-{self._name}")

    def _embedded(self, task: dict[str, Any], config: LabelConfig, last: Result) -> _EmbeddedImage | None:
        """Embed the task's image, through the cache; None without an image URL."""
        data = task.get("data")
        value = data_value(data, config.data_key(last.to_name) or "") if isinstance(data, dict) else None
        index = last.item_index or 0
        url = value[index] if isinstance(value, list) and 0 <= index < len(value) else value
        if not isinstance(url, str) or not url.strip():
            return None
        task_id = task.get("id")

        def embed() -> _EmbeddedImage:
            decoded = self._photos.photo(url, task_id=task_id if isinstance(task_id, int) else None, max_side=MAX_SIDE)
            rows, columns = decoded.pixels.shape[:2]
            # A copy: cached embeddings must not hold the memory budget of decoding.
            return _EmbeddedImage(
                self._shared.open().embed(decoded.pixels.copy()), decoded.width, decoded.height, columns, rows
            )

        return self._embeddings.get(url, embed)

    def _segment(self, image: _EmbeddedImage, prompt: Prompt, head: PixelHead | None) -> InstanceMask | None:
        across, down = image.columns / image.width, image.rows / image.height
        try:
            mask = self._shared.open().segment(image.embedding, prompt.scaled(across, down), head)
        except Exception:  # an error would leave the prompt as a region
            log.exception("smart_tool_failed")
            return None
        return mask.scaled(1 / across, 1 / down) if mask is not None else None


def _stated_size(results: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    last = Result(results[-1])
    width, height = last.original_width, last.original_height
    return (width, height) if width is not None and height is not None else None


def _results(
    request: SmartRequest, prompt: Prompt, mask: InstanceMask | None, config: LabelConfig
) -> list[dict[str, Any]]:
    """Results of one object, on each control that draws it."""
    written: list[dict[str, Any]] = []
    for control, shape in answering_controls(config, request.last):
        kind = shape.type if shape is not None else request.last.type
        geometry = _shape(kind, prompt, mask, request.last)
        if geometry is None:
            continue
        region = _region(request.last, geometry, kind, control, score=round(mask.score, 4) if mask else 0.0)
        try:
            written += to_results(region, config=config)
        except LabelingError as error:
            log.warning("smart_answer_left_out", type=kind, reason=str(error))
    image_rotation = request.last.result[0].raw.get("image_rotation") or 0
    return [{**result, "image_rotation": image_rotation} for result in written]


def _region(prompt: Region, geometry: Geometry, kind: str, control: Control | None, *, score: float) -> Region:
    return Region(
        geometry,
        prompt.labels,
        ID_PREFIX + secrets.token_hex(5),  # a known id would overwrite its region
        control.name if control is not None else prompt.control,
        prompt.to_name,
        kind,
        score,
        prompt.item_index,
        prompt.width,
        prompt.height,
    )


def _with_note(result: dict[str, Any], note: str) -> dict[str, Any]:
    """The result with a note, which Label Studio shows in the region's details."""
    return {**result, "meta": {**(result.get("meta") or {}), "text": [note]}}


def _shape(kind: str, prompt: Prompt, mask: InstanceMask | None, last: Region) -> Geometry | None:
    """Convert to a control's shape; without a mask, a box is returned unchanged."""
    if kind in {"rectanglelabels", "rectangle"}:
        rotation = prompt.box.rotation if prompt.box is not None else 0.0
        tight = mask.box(rotation) if mask is not None else None
        return tight if tight is not None and tight.width >= 1 and tight.height >= 1 else prompt.box
    if mask is None:
        return _corners(prompt.box) if kind in {"polygonlabels", "polygon"} and prompt.box is not None else None
    if kind in {"polygonlabels", "polygon"}:
        return mask.polygon()
    if kind in {"ellipselabels", "ellipse"}:
        return mask.ellipse()
    return mask.mask(last.width, last.height)


def _corners(box: Rectangle) -> Polygon:
    return Polygon(box.corners)
