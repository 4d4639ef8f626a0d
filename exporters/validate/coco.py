"""Check COCO files.

Format: https://cocodataset.org/#format-data. No common loader reports id 0, duplicate categories or boxes outside the
image; COCOeval returns a wrong AP for id 0.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard

import msgspec

from exporters.formats.coco import duplicate_key
from exporters.validate.file_checks import check_class_names, check_image_file
from exporters.validate.issues import IssueReport
from labelloop.labeling.splits import split_of
from labelloop.service.datasets import DatasetSource, ImageFiles
from labelloop.service.datasets.coco_files import candidate_files, may_be_coco, split_folder
from labelloop.service.datasets.coco_records import CocoAnnotation, CocoCategory, CocoImage, is_ring, keypoint_triples
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.shapes import decode_rle, is_number
from labelloop.service.datasets.text import decode_json

# Pixels beyond the image edge that count as rounding.
TOLERANCE = 0.01
# File name of an image -> the COCO file that lists it.
FileIndex = dict[str, str]


def check_coco_files(source: DatasetSource, prefix: str, report: IssueReport) -> None:
    """Check the COCO files of a data set, and its image files if it has any."""
    listed: FileIndex = {}
    for name in [source.file] if source.file else candidate_files(source.files):
        data = source.files.read(name)
        if source.file or may_be_coco(data):
            check_coco_json(data, prefix + name, listed, report, images=_ImageLookup(source.images, name))


class _Annotation(CocoAnnotation):
    """An annotation with the fields that an import derives from the geometry."""

    area: Any = None
    num_keypoints: Any = None


class _ImageLookup:
    """Finds the image files of one COCO file, which may be in the folder of its split."""

    def __init__(self, files: ImageFiles, coco_file: str) -> None:
        self._split = split_folder(coco_file)
        self.files = files

    def find(self, file: str) -> str | None:
        """The image file of a ``file_name``; a file in the folder of another split does not count."""
        path = self.files.find(f"{self._split}/{file}") or self.files.find(file)
        splits = {split for part in PurePosixPath(path or "").parts[:-1] if (split := split_of(part))}
        own = split_of(self._split)
        return None if own and splits and own not in splits else path


def check_coco_json(data: bytes, name: str, listed: FileIndex, report: IssueReport, *, images: _ImageLookup) -> None:
    """Check one COCO file.

    Args:
        data: Content of the file.
        name: Name of the file in the report.
        listed: Images of previously checked files (other splits), to find duplicates; this file's images are added.
        report: Receives the issues.
        images: Finds the image files.
    """
    report.checked["COCO files"] += 1
    try:
        content = decode_json(data)
    except MalformedData as error:
        report.add("coco-unreadable", name, detail=str(error))
        return
    keys = ("images", "annotations", "categories")
    lists = [content.get(key) for key in keys] if isinstance(content, dict) else [None]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        report.add("coco-unreadable", name, detail="images, annotations and categories must be lists of objects")
        return
    sizes = _check_images(lists[0] or [], name, listed, report, images)
    categories = _check_categories(lists[2] or [], name, report)
    ids: set[int] = set()
    first_rows: dict[bytes, str] = {}
    for index, entry in enumerate(lists[1] or []):
        report.checked["annotations"] += 1
        annotation = msgspec.convert(entry, _Annotation)
        annotation_id = annotation.id
        duplicate_id = _is_integer(annotation_id) and annotation_id in ids
        has_id = _is_integer(annotation_id) and not duplicate_id
        where = f"annotation id {annotation_id}" if has_id else f"annotations[{index}]"
        if not _is_integer(annotation_id) or annotation_id < 1 or duplicate_id:
            detail = f"id {annotation_id!r:.40}{' is used twice' if duplicate_id else ''}"
            report.add("coco-annotation-id", name, where, detail)
        else:
            ids.add(annotation_id)
        for kind, detail in _annotation_issues(annotation, sizes, categories):
            report.add(kind, name, where, detail)
        first = first_rows.setdefault(_digest(duplicate_key(entry)), where)
        if first != where:
            report.add("coco-twice", name, where, f"it duplicates {first}")


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def _check_images(
    images: list[dict[str, Any]], name: str, listed: FileIndex, report: IssueReport, lookup: _ImageLookup
) -> dict[Any, tuple[float, float] | None]:
    """Check the images; returns (width, height) by image id, None if invalid."""
    sizes: dict[Any, tuple[float, float] | None] = {}
    for index, entry in enumerate(images):
        report.checked["images"] += 1
        image = msgspec.convert(entry, CocoImage)
        image_id, file = image.id, image.file_name
        where = f"image id {image_id}" if _is_integer(image_id) else f"images[{index}]"
        if not _is_integer(image_id):
            report.add("coco-image-id", name, where, f"id is {image_id!r}")
        elif image_id in sizes:
            report.add("coco-image-id", name, where, f"images[{index}] has the id of an earlier image")
        if not isinstance(file, str) or not file:
            report.add("coco-image-name", name, where, f"file_name is {file!r}")
        elif file in listed:
            report.add("coco-image-name", name, where, f"{file!r} is already listed in {listed[file]}")
        else:
            listed[file] = name
            if file.startswith("/") or ".." in file.replace("\\", "/").split("/"):
                report.add("coco-image-name", name, where, f"{file!r} is outside the images folder")
        width, height = image.width, image.height
        size = (width, height) if is_number(width) and is_number(height) and width > 0 and height > 0 else None
        if lookup.files.names and isinstance(file, str) and file:
            image_file = lookup.find(file)
            if image_file is not None:
                check_image_file(lookup.files, image_file, name, where, size=size, report=report)
            else:
                report.add("coco-image-missing", name, where, f"{file!r} is not among the image files")
        if size is None:
            report.add("coco-image-size", name, where, f"width {width!r}, height {height!r}")
        if _is_integer(image_id):
            sizes.setdefault(image_id, size)
    return sizes


def _check_categories(categories: list[dict[str, Any]], name: str, report: IssueReport) -> dict[Any, int]:
    """Check the categories; returns the number of keypoints by category id."""
    keypoint_counts: dict[Any, int] = {}
    names: set[str] = set()
    for index, entry in enumerate(categories):
        category = msgspec.convert(entry, CocoCategory)
        category_id, label = category.id, category.name
        where = f"categories[{index}]"
        if not _is_integer(category_id):
            report.add("coco-category-twice", name, where, f"id is {category_id!r}")
            continue
        if category_id in keypoint_counts:
            report.add("coco-category-twice", name, where, f"id {category_id} is another category's")
        if not isinstance(label, str) or label in names:
            report.add("coco-category-twice", name, where, f"name {label!r} is another category's, or not text")
        else:
            names.add(label)
        keypoints = category.keypoints
        keypoint_counts.setdefault(category_id, len(keypoints) if isinstance(keypoints, list) else 0)
    check_class_names(sorted(names), name, "categories", report)
    return keypoint_counts


def _annotation_issues(
    annotation: _Annotation, sizes: Mapping[Any, tuple[float, float] | None], categories: Mapping[Any, int]
) -> Iterator[tuple[str, str]]:
    """The issues of an annotation, except for its id: (kind, detail)."""
    image, category = annotation.image_id, annotation.category_id
    size = sizes.get(image) if _is_integer(image) else None
    if not _is_integer(image) or image not in sizes:
        yield "coco-orphan", f"image_id is {image!r}"
    if not _is_integer(category) or category not in categories:
        yield "coco-category", f"category_id is {category!r}"
    yield from _box_issues(annotation.bbox, size)
    missing = [key for key in ("area", "iscrowd") if not is_number(getattr(annotation, key))]
    if missing or annotation.area <= 0:
        yield "coco-field", f"{' and '.join(missing) or 'area'} is missing or not positive"
    elif _is_box(box := annotation.bbox) and min(box[2:]) > 0 and annotation.area > 1.01 * box[2] * box[3] + 1:
        yield "coco-field", f"area is {annotation.area}, larger than its box"
    if (error := _segmentation_error(annotation.segmentation, size)) is not None:
        yield "coco-outline", error
    names = categories.get(category, 0) if _is_integer(category) else 0
    points = annotation.keypoints
    if points is msgspec.UNSET:
        points = [] if names else None
    if points is None:
        return
    if not (
        isinstance(points, list) and all(map(is_number, points)) and len(points) == 3 * (names or len(points) // 3)
    ):
        count = len(points) if isinstance(points, list) else points
        yield "coco-keypoints", f"{count!r} numbers for {names} keypoints"
    elif annotation.num_keypoints != sum(visibility > 0 for _, _, visibility in keypoint_triples(points)):
        yield "coco-keypoints", f"num_keypoints is {annotation.num_keypoints!r}"
    else:
        yield from _keypoint_issues(points, size)


def _keypoint_issues(points: list[float], size: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    for x, y, visibility in keypoint_triples(points):
        if visibility not in {0, 1, 2}:
            yield "coco-keypoints", f"visibility {visibility!r} is not 0, 1 or 2"
        elif visibility and size and not (-1 <= x <= size[0] + 1 and -1 <= y <= size[1] + 1):
            yield "coco-keypoints", f"a keypoint at {x:g}, {y:g} on an image of {size[0]} x {size[1]}"


def _box_issues(box: object, size: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    if not _is_box(box):
        yield "coco-box", f"bbox is {box!r:.80}"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "coco-box", f"bbox is {width} x {height}"
    elif min(x, y) < -TOLERANCE or (size and (x + width > size[0] + TOLERANCE or y + height > size[1] + TOLERANCE)):
        on = f" on an image of {size[0]} x {size[1]}" if size else ""
        yield "coco-box-outside", f"bbox is {box}{on}"


def _is_box(box: object) -> TypeGuard[list[float]]:
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def _segmentation_error(segmentation: object, size: tuple[float, float] | None) -> str | None:
    """The error of a segmentation; None if it is missing, empty, or valid polygons or RLE."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, dict):
        stated = segmentation.get("size")
        if size and stated != [size[1], size[0]]:
            return f"an RLE of size {stated!r} on an image of height {size[1]}, width {size[0]}"
        if not size:
            return None if segmentation.get("counts") else "an RLE without counts"
        try:
            decode_rle(segmentation, int(size[0]), int(size[1]))
        except MalformedData as error:
            return str(error)
        return None
    if not isinstance(segmentation, list):
        return f"{segmentation!r:.40} is not a segmentation"
    for ring in segmentation:
        if not isinstance(ring, list) or not all(is_number(value) for value in ring):
            return "a polygon that is not a list of numbers"
        if not is_ring(ring):
            return f"a polygon of {len(ring)} numbers"
        if size and not all(-1 <= n <= edge + 1 for start, edge in enumerate(size) for n in ring[start::2]):
            return f"points outside its image of {size[0]} x {size[1]}"
    return None


def _is_integer(value: object) -> TypeGuard[int]:
    return type(value) is int
