"""Parse the smart-tool prompts that Label Studio sends.

Label Studio 1.23.2 sends all smart regions of one label drawn since the last accepted suggestion, oldest first, as
`params.context.result`; a click carries `is_positive`, false with Alt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.geometry.shapes import KeyPoint, Point, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import ModelPrediction
from ml_backend.segmentation.prompt import Prompt

# IoU from which a later box redraws the same object.
SAME_BOX = 0.5


@dataclass(frozen=True)
class SmartRequest:
    """All prompts of one request.

    Attributes:
        last: The last drawn prompt: the answer has its control, labels and image.
        prompts: One per object.
    """

    last: Region
    prompts: tuple[Prompt, ...]


def results_on_last_image(context: Any) -> list[dict[str, Any]]:
    """Results of a request's context on the same image as the last one; empty without results."""
    raw = context.get("result") if isinstance(context, dict) else None
    results = [result for result in raw if isinstance(result, dict)] if isinstance(raw, list) else []
    if not results:
        return []
    last = Result(results[-1])
    return [result for result in results if _image_key(Result(result)) == _image_key(last)]


def read_prompts(results: Sequence[dict[str, Any]], *, width: int, height: int) -> SmartRequest | None:
    """Parse prompts; malformed results are skipped.

    Args:
        results: As Label Studio sends them, all on one image.
        width: Of the image, pixels.
        height: Of the image, pixels.

    Returns:
        None without a box or a positive click.
    """
    size = {"original_width": width, "original_height": height}
    reading = read_annotation(ModelPrediction(results=tuple(Result({**item, **size}) for item in results)))
    if not reading.regions:
        return None
    last = reading.regions[-1]
    boxes: list[Rectangle] = []
    clicks: dict[bool, list[Point]] = {True: [], False: []}
    for region in reading.regions:
        if region.labels != last.labels:
            continue  # left-over prompts of another label do not belong to this object
        if isinstance(region.geometry, KeyPoint):
            positive = region.result[0].raw.get("is_positive") is not False
            clicks[positive].append((region.geometry.x, region.geometry.y))
        else:
            box = _box_of(region)
            boxes = [item for item in boxes if _iou(item, box) < SAME_BOX] + [box]
    prompts = _prompts(boxes, clicks[True], clicks[False])
    return SmartRequest(last, prompts) if prompts else None


def _prompts(boxes: list[Rectangle], positives: list[Point], negatives: list[Point]) -> tuple[Prompt, ...]:
    """One prompt per box, with the clicks in it; clicks without boxes form one prompt."""
    if not boxes:
        return (Prompt(None, tuple(positives), tuple(negatives)),) if positives else ()
    return tuple(
        Prompt(
            box,
            tuple(point for point in positives if _contains(box, point)),
            tuple(point for point in negatives if _contains(box, point)),
        )
        for box in boxes
    )


def _box_of(region: Region) -> Rectangle:
    if isinstance(region.geometry, Rectangle):
        return region.geometry
    left, top, right, bottom = region.geometry.bounds
    return Rectangle(left, top, right - left, bottom - top)


def _contains(box: Rectangle, point: Point) -> bool:
    left, top, right, bottom = box.bounds
    return left <= point[0] <= right and top <= point[1] <= bottom


def _iou(box: Rectangle, other: Rectangle) -> float:
    a, b = box.bounds, other.bounds
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _image_key(result: Result) -> tuple[str, int]:
    return result.to_name, result.item_index or 0
