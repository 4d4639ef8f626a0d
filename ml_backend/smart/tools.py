"""Owns `SmartTools`: the way from an annotator's prompt to the shapes that Label Studio suggests.

An error, or an answer without shapes, would leave the prompt behind as a region of its own; so whatever happens, a box
is answered at least by itself.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import Geometry, Polygon, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig
from labelloop.labeling.studio.regions import to_results
from labelloop.labeling.studio.task import Result
from labelloop.service.errors import Busy, LabelloopError
from labelloop.service.media import MediaError, Photo
from labelloop.service.memory_budget import MemoryBudget
from labelloop.service.settings import Settings
from ml_backend.predict.protocol import Prediction
from ml_backend.smart.controls import outlets
from ml_backend.smart.embedding_cache import SingleFlightLRU
from ml_backend.smart.prompts import Asked, Prompt, read_prompts, results_of

if TYPE_CHECKING:
    from ml_backend.smart.crop_mask import InstanceMask
    from ml_backend.smart.segmenters import Segmenter

log = structlog.get_logger(__name__)

KEPT = 4
"""Photos a worker keeps at hand, those used last."""

MOST_SIDE = 2560
"""Pixels of the longer side at which a photo is kept: at most 20 MB each."""

MOST_PROMPTS = 8
"""Objects of one request: those drawn last, so that a pile of left-over prompts costs nobody minutes."""

ID_PREFIX = "smart-"
"""Begins the id of every region that a smart tool made: Label Studio stores accepted ones as drawn by hand."""


class Photos(Protocol):
    """Where photos come from: `labelloop.service.media.Media`."""

    def photo(self, url: str, *, task_id: int | None = None, max_side: int | None = None) -> Photo:
        """The decoded photo."""


@dataclass(frozen=True, eq=False)
class _Look:
    """A photo as the segmenter sees it. Size: of the original, and of the image that was looked at."""

    seen: Any
    width: int
    height: int
    columns: int
    rows: int


MASK_BYTES = 3
"""Bytes a pixel of the photo while a mask is made: 300 MB for 100 megapixels."""

DRAWING_BYTES = 512 << 20
"""Memory for masks where photos come from something else than `Media`."""


class SmartTools:
    """Answers prompts. One a worker; any number of threads may ask at once."""

    def __init__(self, photos: Photos, *, settings: Settings | None = None) -> None:
        """Imports and loads nothing before the first prompt.

        Args:
            photos: Where photos come from.
            settings: Name the segmenter's files where it has any; None: there are none.
        """
        self._photos = photos
        self._settings = settings
        self._name = "sam" if settings is not None and settings.smart_encoder is not None else "outline"
        self._looks: SingleFlightLRU[_Look] = SingleFlightLRU(KEPT)
        self._segmenter: Segmenter | None = None
        self._lock = threading.Lock()
        # Masks are made in the memory that photos are decoded in.
        self._memory: MemoryBudget = getattr(photos, "budget", None) or MemoryBudget(DRAWING_BYTES)

    def answer(self, task: dict[str, Any], config: LabelConfig, context: Any) -> Prediction:
        """Suggestions for one prompt; never an error.

        Args:
            task: As Label Studio sends it.
            config: The project's label config.
            context: `params.context` of the request.
        """
        results = results_of(context)
        if not results:
            return self._prediction([])
        try:
            look = self._look(task, config, Result(results[-1]))
        except MediaError as error:
            log.warning("smart_photo_skipped", task=task.get("id"), code=error.code, reason=str(error))
            look = None
        except LabelloopError as error:  # a segmenter's file is missing or broken: its message says all
            log.error(  # noqa: TRY400
                "smart_tool_failed", segmenter=self._name, code=error.code, reason=str(error)
            )
            look = None
        except Exception:
            log.exception("smart_photo_failed", task=task.get("id"))
            look = None
        size = (look.width, look.height) if look else _stated(results)
        asked = read_prompts(results, width=size[0], height=size[1]) if size else None
        if asked is None:
            return self._prediction([])
        results = []
        for prompt in asked.prompts[-MOST_PROMPTS:]:
            cutout = self._cut(look, prompt) if look else None
            results += self._draw(asked, prompt, cutout, config)
        return self._prediction(results)

    def _draw(
        self, asked: Asked, prompt: Prompt, cutout: InstanceMask | None, config: LabelConfig
    ) -> list[dict[str, Any]]:
        """The results of one object; a box alone where there is no memory for its mask now."""
        pixels = asked.last.width * asked.last.height if cutout is not None else 0
        try:
            with self._memory.lease(min(MASK_BYTES * pixels, self._memory.limit)):
                return _drawn(asked, prompt, cutout, config)
        except Busy as error:
            log.warning("smart_mask_left_out", reason=error.message)
            return _drawn(asked, prompt, None, config)

    def _prediction(self, results: list[dict[str, Any]]) -> Prediction:
        scores = [float(one["score"]) for one in results if "score" in one]
        return Prediction(results, max(scores, default=0.0), f"smart-{self._name}")

    def _look(self, task: dict[str, Any], config: LabelConfig, last: Result) -> _Look | None:
        data = task.get("data")
        found = data.get(config.data_key(last.to_name)) if isinstance(data, dict) else None
        place = last.item_index or 0
        url = found[place] if isinstance(found, list) and 0 <= place < len(found) else found
        if not isinstance(url, str) or not url.strip():
            return None
        task_id = task.get("id")

        def look() -> _Look:
            photo = self._photos.photo(url, task_id=task_id if isinstance(task_id, int) else None, max_side=MOST_SIDE)
            rows, columns = photo.image.shape[:2]
            # A copy: what is kept for long must not hold the memory that decoding waits for.
            return _Look(self._tool().look(photo.image.copy()), photo.width, photo.height, columns, rows)

        return self._looks.get(url, look)

    def _tool(self) -> Segmenter:
        with self._lock:
            if self._segmenter is None:
                from ml_backend.smart.segmenters import SEGMENTERS  # OpenCV is loaded where smart tools are used

                self._segmenter = SEGMENTERS[self._name](self._settings or Settings())
            return self._segmenter

    def _cut(self, look: _Look, prompt: Prompt) -> InstanceMask | None:
        across, down = look.columns / look.width, look.rows / look.height
        try:
            cutout = self._tool().segment(look.seen, _scaled(prompt, across, down))
        except Exception:  # an error would leave the prompt behind as a region
            log.exception("smart_tool_failed")
            return None
        return cutout.scaled(1 / across, 1 / down) if cutout is not None else None


def _scaled(prompt: Prompt, across: float, down: float) -> Prompt:
    box = prompt.box
    if box is not None:  # both scales are the same but for rounding, so a turned box stays one
        box = Rectangle(box.x * across, box.y * down, box.width * across, box.height * down, box.rotation)
    return replace(
        prompt,
        box=box,
        positives=tuple((x * across, y * down) for x, y in prompt.positives),
        negatives=tuple((x * across, y * down) for x, y in prompt.negatives),
    )


def _stated(results: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    last = Result(results[-1])
    width, height = last.original_width, last.original_height
    return (width, height) if width is not None and height is not None else None


def _drawn(asked: Asked, prompt: Prompt, cutout: InstanceMask | None, config: LabelConfig) -> list[dict[str, Any]]:
    """The results of one object, on each control that shows it."""
    written: list[dict[str, Any]] = []
    for control in outlets(config, asked.last):
        kind = control.type if control is not None else asked.last.type
        geometry = _shape(kind, prompt, cutout, asked.last)
        if geometry is None:
            continue
        region = _region(asked.last, geometry, kind, control, score=round(cutout.score, 4) if cutout else 0.0)
        try:
            written += to_results(region, config=config)
        except LabelingError as error:
            log.warning("smart_answer_left_out", type=kind, reason=str(error))
    turned = asked.last.result[0].raw.get("image_rotation") or 0
    return [{**one, "image_rotation": turned} for one in written]


def _region(last: Region, geometry: Geometry, kind: str, control: Control | None, *, score: float) -> Region:
    return Region(
        geometry,
        last.labels,
        ID_PREFIX + secrets.token_hex(5),  # an id seen before would overwrite the region that has it
        control.name if control is not None else last.control,
        last.to_name,
        kind,
        score,
        last.item_index,
        last.width,
        last.height,
    )


def _shape(kind: str, prompt: Prompt, cutout: InstanceMask | None, last: Region) -> Geometry | None:
    """The object in the form that a control draws; where nothing was found, a box is itself."""
    if kind in {"rectanglelabels", "rectangle"}:
        turn = prompt.box.rotation if prompt.box is not None else 0.0
        tight = cutout.box(turn) if cutout is not None else None
        return tight if tight is not None and tight.width >= 1 and tight.height >= 1 else prompt.box
    if cutout is None:
        return _corners(prompt.box) if kind in {"polygonlabels", "polygon"} and prompt.box is not None else None
    if kind in {"polygonlabels", "polygon"}:
        return cutout.polygon()
    if kind in {"ellipselabels", "ellipse"}:
        return cutout.ellipse()
    return cutout.mask(last.width, last.height)


def _corners(box: Rectangle) -> Polygon:
    return Polygon(box.corners)
