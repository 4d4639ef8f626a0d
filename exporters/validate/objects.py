"""Check any data set by what an import reads of it: its problems, image files, and objects.

Formats with rules of their own (COCO, YOLO, Pascal VOC, NDJSON) have their own checks.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from exporters.validate.file_checks import check_class_names, check_image_file
from exporters.validate.issues import IssueReport
from labelloop.labeling.geometry.shapes import Geometry, Rectangle
from labelloop.service.datasets import DataSet, DatasetImage, DatasetProblem, DatasetSource

# Pixels beyond the edge of the image that count as rounding.
TOLERANCE = 0.01


def check_objects(data: DataSet, source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check the images and objects of a data set, and its image files if it has any.

    Args:
        data: The data set.
        source: Its location.
        prefix: The folder of the data set in the location, for the report, with a slash at its end.
        report: Receives the issues.
    """
    where = prefix + (source.file or "")
    splits: dict[str, bool] = {}
    listed: set[str] = set()
    for item in data.images():
        if isinstance(item, DatasetProblem):
            report.add("label-unread", prefix + (source.file or item.item), source.file and item.item, item.reason)
            continue
        report.checked["images"] += 1
        report.checked["objects"] += len(item.objects)
        folder = str(PurePosixPath(item.name).parent)
        splits[folder] = splits.get(folder, False) or bool(item.objects)
        _check_image(item, source, where, report)
        found = source.images.find(item.name) or item.name
        if found in listed:
            report.add("image-twice", where or found, item.name)
        listed.add(found)
    check_class_names(data.labels, where or data.format, "classes", report)
    check_class_names(data.choices, where or data.format, "classes of images", report)
    if data.format == "imagefolder" and len(set(splits.values())) > 1:
        empty = [folder for folder, has_objects in splits.items() if not has_objects]
        for folder in empty:
            detail = "none of its images has an object"
            report.add("imagefolder-split", f"{prefix}{folder}/metadata.jsonl", detail=detail)


def _check_image(image: DatasetImage, source: DatasetSource, where: str, report: IssueReport) -> None:
    file = where or image.name
    size = (image.width, image.height) if image.width else None
    if source.images.names:
        found = source.images.find(image.name)
        if found is None:
            report.add("image-missing", file, image.name, "no image file, or several, have this name")
        else:
            check_image_file(source.images, found, file, image.name, size=size, report=report)
    first: dict[bytes, str] = {}
    for number, obj in enumerate(image.objects, start=1):
        position = f"{image.name}, object {number}" if where else f"object {number}"
        for kind, detail in _shape_issues(obj.geometry, size):
            report.add(kind, file, position, f"{obj.label!r:.40} {detail}")
        key = msgspec.json.encode([_plain(obj.geometry), obj.label, obj.keypoints])
        earlier = first.setdefault(key, position)
        if earlier != position:
            report.add("object-twice", file, position, f"it duplicates {earlier}")


def _shape_issues(shape: Geometry, size: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """The issues of a shape. The corners of a rotated box may be outside its image, its centre may not."""
    if size is None:
        return
    x_min, y_min, x_max, y_max = shape.bounds
    if isinstance(shape, Rectangle) and shape.rotation % 90:
        x_min = x_max = (x_min + x_max) / 2
        y_min = y_max = (y_min + y_max) / 2
    if min(x_min, y_min) < -TOLERANCE or x_max > size[0] + TOLERANCE or y_max > size[1] + TOLERANCE:
        edges = ", ".join(f"{edge:g}" for edge in shape.bounds)
        yield "object-outside", f"from {edges} on {size[0]} x {size[1]}"


def _plain(shape: Geometry) -> Mapping[str, Any]:
    return {"kind": type(shape).__name__} | msgspec.structs.asdict(shape)
