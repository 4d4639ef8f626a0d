"""What can be wrong in a COCO file.

Format: https://cocodataset.org/#format-data. Which loader notices what: none notices id 0, double categories or boxes
outside the image; COCOeval gives a wrong AP for the first.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from exporters.formats.coco import twin_key
from exporters.validate.issues import Problems
from exporters.validate.names import check_classes
from exporters.validate.photos import check_photo
from labelloop.labeling.splits import split_of
from labelloop.service.datasets import Photos, Place
from labelloop.service.datasets.errors import Flawed
from labelloop.service.datasets.shapes import run_lengths
from labelloop.service.datasets.sheets import json_sheets, may_be_coco
from labelloop.service.datasets.text import json_of

TOLERANCE = 0.01
"""Pixels over the edge that are rounding."""

Names = dict[str, str]
"""File name of an image -> the file that lists it."""


def check_sheets(place: Place, prefix: str, problems: Problems) -> None:
    """Look the COCO files of a place through, and the photos where there are some."""
    seen: Names = {}
    for name in [place.file] if place.file else json_sheets(place.files):
        data = place.files.read(name)
        if place.file or may_be_coco(data):
            check_coco(data, prefix + name, seen, problems, images=_Images(place.photos, name))


class _Images:
    """The photos of one file, which a folder of its split may hold; none where they are not at hand."""

    def __init__(self, photos: Photos, sheet: str) -> None:
        path = PurePosixPath(sheet)
        split = path.stem.rpartition("_")[2]
        self._split = split if split_of(split) else path.parent.name
        self.photos = photos

    def find(self, file: str) -> str | None:
        """The photo of a ``file_name``; one in the folder of another split is none."""
        found = self.photos.find(f"{self._split}/{file}") or self.photos.find(file)
        splits = {split for part in PurePosixPath(found or "").parts[:-1] if (split := split_of(part))}
        own = split_of(self._split)
        return None if own and splits and own not in splits else found


def check_coco(data: bytes, name: str, seen: Names, problems: Problems, *, images: _Images) -> None:
    """Look one file through.

    Args:
        data: the file.
        name: its name in the problems.
        seen: images of the files before it (other splits), to find those that are in two; this file's are added.
        problems: where faults go.
        images: its images.
    """
    problems.looked_at["COCO files"] += 1
    try:
        sheet = json_of(data)
    except Flawed as flaw:
        problems.add("coco-unreadable", name, detail=str(flaw))
        return
    lists = [sheet.get(key) for key in ("images", "annotations", "categories")] if isinstance(sheet, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(item, dict) for item in each) for each in lists):
        problems.add("coco-unreadable", name, detail="images, annotations and categories must be lists of objects")
        return
    sizes = _images(lists[0] or [], name, seen, problems, images)
    categories = _categories(lists[2] or [], name, problems)
    ids: set[int] = set()
    seen_rows: dict[bytes, str] = {}
    for place, each in enumerate(lists[1] or []):
        problems.looked_at["annotations"] += 1
        number = each.get("id")
        where = f"annotation id {number}" if _whole(number) and number not in ids else f"annotations[{place}]"
        if not _whole(number) or number < 1 or number in ids:
            detail = f"id {number!r:.40}{' is used before' if _whole(number) and number in ids else ''}"
            problems.add("coco-annotation-id", name, where, detail)
        else:
            ids.add(number)
        for kind, detail in _annotation(each, sizes, categories):
            problems.add(kind, name, where, detail)
        first = seen_rows.setdefault(_digest(twin_key(each)), where)
        if first != where:
            problems.add("coco-twice", name, where, f"it says the same as {first}")


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def _images(
    images: list[dict[str, Any]], name: str, seen: Names, problems: Problems, shown: _Images
) -> dict[Any, tuple[float, float] | None]:
    sizes: dict[Any, tuple[float, float] | None] = {}
    for place, each in enumerate(images):
        problems.looked_at["images"] += 1
        number, file = each.get("id"), each.get("file_name")
        where = f"image id {number}" if _whole(number) else f"images[{place}]"
        if not _whole(number):
            problems.add("coco-image-id", name, where, f"id is {number!r}")
        elif number in sizes:
            problems.add("coco-image-id", name, where, f"images[{place}] has the id of an image before it")
        if not isinstance(file, str) or not file:
            problems.add("coco-image-name", name, where, f"file_name is {file!r}")
        elif file in seen:
            problems.add("coco-image-name", name, where, f"{file!r} is listed in {seen[file]} already")
        else:
            seen[file] = name
            if file.startswith("/") or ".." in file.replace("\\", "/").split("/"):
                problems.add("coco-image-name", name, where, f"{file!r} leads out of the images folder")
        width, height = each.get("width"), each.get("height")
        size = (width, height) if _number(width) and _number(height) and width > 0 and height > 0 else None
        if shown.photos.names and isinstance(file, str) and file:
            photo = shown.find(file)
            if photo is not None:
                check_photo(shown.photos, photo, name, where, size=size, problems=problems)
            else:
                problems.add("coco-image-missing", name, where, f"{file!r} is not among the photos")
        if size is None:
            problems.add("coco-image-size", name, where, f"width {width!r}, height {height!r}")
        if _whole(number):
            sizes.setdefault(number, size)
    return sizes


def _categories(categories: list[dict[str, Any]], name: str, problems: Problems) -> dict[Any, int]:
    """Category id -> how many key points it names."""
    found: dict[Any, int] = {}
    names: set[str] = set()
    for place, each in enumerate(categories):
        number, label = each.get("id"), each.get("name")
        where = f"categories[{place}]"
        if not _whole(number):
            problems.add("coco-category-twice", name, where, f"id is {number!r}")
            continue
        if number in found:
            problems.add("coco-category-twice", name, where, f"id {number} is another category's")
        if not isinstance(label, str) or label in names:
            problems.add("coco-category-twice", name, where, f"name {label!r} is another category's, or none")
        else:
            names.add(label)
        points = each.get("keypoints")
        found.setdefault(number, len(points) if isinstance(points, list) else 0)
    check_classes(sorted(names), name, "categories", problems)
    return found


def _annotation(
    each: Mapping[str, Any], sizes: Mapping[Any, tuple[float, float] | None], categories: Mapping[Any, int]
) -> Iterator[tuple[str, str]]:
    """The faults of an annotation besides its id: (flaw, what is there)."""
    image, category = each.get("image_id"), each.get("category_id")
    size = sizes.get(image) if _whole(image) else None
    if not _whole(image) or image not in sizes:
        yield "coco-orphan", f"image_id is {image!r}"
    if not _whole(category) or category not in categories:
        yield "coco-category", f"category_id is {category!r}"
    yield from _box(each.get("bbox"), size)
    missing = [key for key in ("area", "iscrowd") if not _number(each.get(key))]
    if missing or each["area"] <= 0:
        yield "coco-field", f"{' and '.join(missing) or 'area'} is not there, or not over 0"
    elif _is_box(box := each.get("bbox")) and min(box[2:]) > 0 and each["area"] > 1.01 * box[2] * box[3] + 1:
        yield "coco-field", f"area is {each['area']}, larger than its box"
    if (fault := _outline(each.get("segmentation"), size)) is not None:
        yield "coco-outline", fault
    names = categories.get(category, 0) if _whole(category) else 0
    points = each.get("keypoints", [] if names else None)
    if points is None:
        return
    if not (isinstance(points, list) and all(map(_number, points)) and len(points) == 3 * (names or len(points) // 3)):
        found = len(points) if isinstance(points, list) else points
        yield "coco-keypoints", f"{found!r} numbers for {names} key points"
    elif each.get("num_keypoints") != sum(seen > 0 for seen in points[2::3]):
        yield "coco-keypoints", f"num_keypoints is {each.get('num_keypoints')!r}"
    else:
        yield from _points(points, size)


def _points(points: list[float], size: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
    for x, y, seen in zip(points[::3], points[1::3], points[2::3], strict=True):
        if seen not in {0, 1, 2}:
            yield "coco-keypoints", f"visibility {seen!r} is not 0, 1 or 2"
        elif seen and size and not (-1 <= x <= size[0] + 1 and -1 <= y <= size[1] + 1):
            yield "coco-keypoints", f"a key point at {x:g}, {y:g} on an image of {size[0]} x {size[1]}"


def _box(box: object, size: tuple[float, float] | None) -> Iterator[tuple[str, str]]:
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
    return isinstance(box, list) and len(box) == 4 and all(map(_number, box))


def _outline(outline: object, size: tuple[float, float] | None) -> str | None:
    """What is wrong with a segmentation; none, an empty list and polygons or run lengths that fit are right."""
    if outline is None or outline == []:
        return None
    if isinstance(outline, dict):
        stated = outline.get("size")
        if size and stated != [size[1], size[0]]:
            return f"run lengths of size {stated!r} on an image of height {size[1]}, width {size[0]}"
        if not size:
            return None if outline.get("counts") else "run lengths without counts"
        try:
            run_lengths(outline, int(size[0]), int(size[1]))
        except Flawed as flaw:
            return str(flaw)
        return None
    if not isinstance(outline, list):
        return f"{outline!r:.40} is no outline"
    for ring in outline:
        if not isinstance(ring, list) or not all(_number(number) for number in ring):
            return "an outline that is no list of numbers"
        if len(ring) < 6 or len(ring) % 2:
            return f"an outline of {len(ring)} numbers"
        if size and not all(-1 <= n <= edge + 1 for start, edge in enumerate(size) for n in ring[start::2]):
            return f"points outside its image of {size[0]} x {size[1]}"
    return None


def _number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float)


def _whole(value: object) -> TypeGuard[int]:
    return type(value) is int
