"""Read COCO panoptic: ``panoptic_val.json`` with segments, and ``panoptic_val/`` with a PNG of ids for each image.

Format: https://cocodataset.org/#format-data, "Panoptic Segmentation": the id of a pixel is R + 256 G + 65,536 B.
"""

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.coco_files import split_folder
from labelloop.service.datasets.coco_records import CocoCategory, CocoImage, coco_id
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.mask_files import PANOPTIC_PREFIX, read_png
from labelloop.service.datasets.model import Category, DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import image_size_or_zero, mask_in_box
from labelloop.service.datasets.text import decode_json

# Pixels of a PNG, as of an image: reading takes 10 bytes for each.
_MAX_PIXELS = 100_000_000

# Pixels whose ids are sorted at once.
_BLOCK_PIXELS = 1 << 22

# Segments of an image. A PNG that was stored with losses, or resized smoothly, has an id for nearly each pixel.
_MAX_SEGMENTS = 1 << 16

_STUFF = "classes of stuff (isthing 0): their segments are read as objects"


class _Segment(msgspec.Struct):
    id: Any = None
    category_id: Any = None
    iscrowd: Any = None

    def __post_init__(self) -> None:
        self.id, self.category_id = coco_id(self.id), coco_id(self.category_id)


class _Annotation(msgspec.Struct):
    image_id: Any = None
    file_name: Any = None
    segments_info: Any = None

    def __post_init__(self) -> None:
        self.image_id = coco_id(self.image_id)


class _PanopticFile(msgspec.Struct):
    images: list[Any] = []
    annotations: list[Any] = []
    categories: list[Any] = []


def panoptic_files(files: DatasetFiles) -> list[str]:
    """The JSON files of a folder and its direct subfolders that are named as COCO names its panoptic files."""
    names = (name for name in files.names if name.endswith(".json") and name.count("/") < 2)
    return [name for name in names if PurePosixPath(name).name.startswith(PANOPTIC_PREFIX)]


def is_panoptic(data: bytes) -> bool:
    """Whether a COCO file has segments."""
    return b'"segments_info"' in data


def read_panoptic(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the panoptic files of a folder, or one file.

    Args:
        files: The files of the data set, with the PNG files.
        images: Its image files.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no panoptic file, or one is damaged.
    """
    contents: dict[str, _PanopticFile] = {}
    for name in [file] if file else panoptic_files(files):
        data = files.read(name)
        try:
            contents[name] = decode_json(data, _PanopticFile)
        except MalformedData as error:
            raise unreadable_error(data, f"{files.location}/{name}", default=f"it is not COCO ({error})") from None
    if not any(content.images for content in contents.values()):
        raise DatasetError(files.location, "it has no COCO panoptic file", fix="Its name begins with panoptic.")
    categories: dict[int, CocoCategory] = {}
    stuff: set[int] = set()
    for content in contents.values():
        for entry in content.categories:
            category = msgspec.convert(entry, CocoCategory) if isinstance(entry, dict) else CocoCategory()
            if type(category.id) is int and isinstance(category.name, str) and category.name.strip():
                categories.setdefault(category.id, category)
                stuff |= {category.id} if entry.get("isthing") == 0 else set()

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, content in contents.items():
            yield from _read_file(content, name, files, images, categories)

    return DataSet(
        "coco-panoptic",
        read,
        tuple(dict.fromkeys(category.name.strip() for _, category in sorted(categories.items()))),
        counts={_STUFF: len(stuff)} if stuff else {},
        categories={
            category.name.strip(): Category(
                number, category.supercategory if isinstance(category.supercategory, str) else ""
            )
            for number, category in sorted(categories.items(), reverse=True)
        },
    )


def _read_file(
    content: _PanopticFile, file: str, files: DatasetFiles, images: ImageFiles, categories: Mapping[int, CocoCategory]
) -> Iterator[DatasetImage | DatasetProblem]:
    annotations: dict[Any, _Annotation] = {}
    for index, entry in enumerate(content.annotations):
        annotation = msgspec.convert(entry, _Annotation) if isinstance(entry, dict) else _Annotation()
        if type(annotation.image_id) not in {int, str} or not isinstance(annotation.segments_info, list):
            yield DatasetProblem(f"{file}: annotations[{index}]", "not an object with image_id and segments_info")
        elif annotation.image_id in annotations:
            reason = f"another annotation is of the same image, {annotation.image_id!r:.40}"
            yield DatasetProblem(f"{file}: annotations[{index}]", reason)
        else:
            annotations[annotation.image_id] = annotation
    listed: set[int | str] = set()
    folder = split_folder(file)
    for index, entry in enumerate(content.images):
        image = msgspec.convert(entry, CocoImage) if isinstance(entry, dict) else CocoImage()
        if type(image.id) not in {int, str} or not isinstance(image.file_name, str) or not image.file_name:
            yield DatasetProblem(f"{file}: images[{index}]", f"id or file_name is missing: {entry!r:.60}")
            continue
        if image.id in listed:
            yield DatasetProblem(f"{file}: images[{index}]", f"another image has the same id, {image.id!r:.40}")
            continue
        listed.add(image.id)
        name, prefixed = image.file_name, f"{folder}/{image.file_name}"
        file_name = prefixed if images.find(name) is None and images.find(prefixed) is not None else name
        address = image.coco_url if isinstance(image.coco_url, str) and "://" in image.coco_url else ""
        size = image_size_or_zero(image.width, image.height)
        result = DatasetImage(file_name, *size, url=address, split=split_of(folder))
        own = annotations.pop(image.id, None)
        if own is None:
            yield msgspec.structs.replace(result, labelled=False)
            continue
        where = f"{file}: {own.file_name!r:.60}"
        try:
            pixels = _segment_ids(own, file, files, size)
            boxes = _bounds_by_id(pixels)
        except (MalformedData, DatasetError) as error:
            yield DatasetProblem(where, error.reason if isinstance(error, DatasetError) else str(error))
            yield msgspec.structs.replace(result, unread=1)
            continue
        height, width = pixels.shape
        objects, unread = [], 0
        for item in _read_segments(own.segments_info, pixels, boxes, where, categories):
            if isinstance(item, DatasetProblem):
                unread += 1
                yield item
            else:
                objects.append(item)
        yield msgspec.structs.replace(result, width=width, height=height, objects=tuple(objects), unread=unread)
    for image_id in annotations:
        yield DatasetProblem(f"{file}: annotation of image {image_id!r:.40}", "its image is not in images")


def _segment_ids(annotation: _Annotation, file: str, files: DatasetFiles, size: tuple[int, int]) -> Any:
    """The segment id of each pixel, (height, width) int32."""
    name = annotation.file_name
    if not isinstance(name, str) or not name:
        raise MalformedData(f"its file_name is {name!r:.40}")
    stem = posixpath.splitext(file)[0]
    paths = (f"{stem}/{name}", f"{posixpath.dirname(file)}/{name}".lstrip("/"), name)
    path = next((path for path in paths if path in files.names), None)
    if path is None:
        raise MalformedData(f"there is no {stem}/{name}; put the folder of PNG files next to the JSON")
    colours = read_png(files.read(path), size, max_pixels=_MAX_PIXELS)
    if colours.ndim != 3:
        raise MalformedData("a PNG without colours, which encode the ids of segments")
    ids = colours[..., 2].astype(np.int32)  # in place from here on
    for channel in (1, 0):
        ids <<= 8
        ids |= colours[..., channel]
    return ids


def _bounds_by_id(pixels: Any) -> dict[int, tuple[slice, slice]]:
    """The rows and columns of each segment id, read in blocks of rows: sorting takes 30 bytes a pixel.

    Raises:
        MalformedData: There are too many ids for segments.
    """
    from scipy.ndimage import find_objects  # imported here: SciPy takes 30 MB

    bounds: dict[int, tuple[slice, slice]] = {}
    rows = max(1, _BLOCK_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        block = pixels[top : top + rows]
        ids, dense = np.unique(block, return_inverse=True)
        if max(len(ids), len(bounds)) > _MAX_SEGMENTS:
            raise MalformedData(
                f"its PNG has more than {_MAX_SEGMENTS:,} ids; was it resized smoothly or stored with losses?"
            )
        for id_, (y, x) in zip(ids.tolist(), find_objects(dense.reshape(block.shape) + 1), strict=True):
            below = slice(top + y.start, top + y.stop)
            above, across = bounds.get(id_, (below, x))
            left, right = min(across.start, x.start), max(across.stop, x.stop)
            bounds[id_] = slice(above.start, below.stop), slice(left, right)
    return dict(sorted(bounds.items()))


def _read_segments(
    listed: list[Any],
    pixels: Any,
    boxes: Mapping[int, tuple[slice, slice]],
    where: str,
    categories: Mapping[int, CocoCategory],
) -> Iterator[LabelledObject | DatasetProblem]:
    height, width = pixels.shape
    listed_ids: set[int] = set()
    for entry in listed:
        segment = msgspec.convert(entry, _Segment) if isinstance(entry, dict) else _Segment()
        category = categories.get(segment.category_id) if type(segment.category_id) is int else None
        item = f"{where}, segment {segment.id!r:.40}"
        box = boxes.get(segment.id) if type(segment.id) is int else None
        if category is None:
            yield DatasetProblem(item, f"its category {segment.category_id!r:.40} is not in categories")
        elif segment.id in listed_ids:
            yield DatasetProblem(item, "another segment of the image has the same id")
        elif box is None or not segment.id:
            yield DatasetProblem(item, "its PNG has no pixel of this id")
        else:
            own = pixels[box] == segment.id
            mask = mask_in_box(own, box[1].start, box[0].start, width, height)
            yield LabelledObject(mask, category.name.strip(), crowd=segment.iscrowd == 1)
            listed_ids.add(segment.id)
    segment_ids = {coco_id(entry.get("id")) for entry in listed if isinstance(entry, dict)}
    unlisted = [number for number in boxes if number and number not in segment_ids]
    if unlisted:
        yield DatasetProblem(f"{where}, id {unlisted[0]}", f"{len(unlisted)} ids of its PNG are not in segments_info")
