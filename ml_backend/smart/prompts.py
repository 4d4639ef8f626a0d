"""Owns what an annotator asked a smart tool: the prompts that Label Studio sends, read into pixels.

Label Studio 1.23.2 sends every smart region of one label that was drawn since the last accepted suggestion, oldest
first, as `params.context.result`; a click carries `is_positive`, false with Alt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.geometry.shapes import KeyPoint, Point, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Prediction, Result

SAME_BOX = 0.5
"""Overlap (IoU) from which a later box is the same object, drawn again."""


@dataclass(frozen=True)
class Prompt:
    """What was said about one object, in pixels of the photo.

    Attributes:
        box: Around the object, loosely; upright or turned. None where there are clicks alone.
        positives: (x, y) of clicks on the object.
        negatives: (x, y) of clicks beside it.
    """

    box: Rectangle | None = None
    positives: tuple[Point, ...] = ()
    negatives: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Asked:
    """All prompts of one request.

    Attributes:
        last: The prompt drawn last: its control, labels and image are those of the answer.
        prompts: One an object.
    """

    last: Region
    prompts: tuple[Prompt, ...]


def results_of(context: Any) -> list[dict[str, Any]]:
    """The results in a request's context that lie on the same image as the last of them; none where it has none."""
    given = context.get("result") if isinstance(context, dict) else None
    results = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    if not results:
        return []
    last = Result(results[-1])
    return [one for one in results if _place(Result(one)) == _place(last)]


def read_prompts(results: Sequence[dict[str, Any]], *, width: int, height: int) -> Asked | None:
    """The prompts in these results; a malformed one costs itself alone.

    Args:
        results: As Label Studio sends them, all on one image.
        width: The photo's width in pixels.
        height: The photo's height in pixels.

    Returns:
        None where nothing says where the object is.
    """
    size = {"original_width": width, "original_height": height}
    reading = read_annotation(Prediction(results=tuple(Result({**one, **size}) for one in results)))
    if not reading.regions:
        return None
    last = reading.regions[-1]
    boxes: list[Rectangle] = []
    clicks: dict[bool, list[Point]] = {True: [], False: []}
    for region in reading.regions:
        if region.labels != last.labels:
            continue  # another label's prompts were left behind: they are not about this object
        if isinstance(region.geometry, KeyPoint):
            positive = region.result[0].raw.get("is_positive") is not False
            clicks[positive].append((region.geometry.x, region.geometry.y))
        else:
            box = _box_of(region)
            boxes = [one for one in boxes if _overlap(one, box) < SAME_BOX] + [box]
    prompts = _prompts(boxes, clicks[True], clicks[False])
    return Asked(last, prompts) if prompts else None


def _prompts(boxes: list[Rectangle], positives: list[Point], negatives: list[Point]) -> tuple[Prompt, ...]:
    """Boxes are objects, and clicks in them refine them; clicks without any box are one object together."""
    if not boxes:
        return (Prompt(None, tuple(positives), tuple(negatives)),) if positives else ()
    return tuple(
        Prompt(
            box,
            tuple(point for point in positives if _near(box, point)),
            tuple(point for point in negatives if _near(box, point)),
        )
        for box in boxes
    )


def _box_of(region: Region) -> Rectangle:
    if isinstance(region.geometry, Rectangle):
        return region.geometry
    left, top, right, bottom = region.geometry.bounds
    return Rectangle(left, top, right - left, bottom - top)


def _near(box: Rectangle, point: Point) -> bool:
    left, top, right, bottom = box.bounds
    return left <= point[0] <= right and top <= point[1] <= bottom


def _overlap(one: Rectangle, other: Rectangle) -> float:
    a, b = one.bounds, other.bounds
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _place(result: Result) -> tuple[str, int]:
    return result.to_name, result.item_index or 0
