"""Read "CVAT for images 1.1": an XML file with the images, their shapes and tags.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. A rotation is in degrees clockwise about the
centre of a box or ellipse. A mask is run lengths, row by row, of the pixels of a box; the first run is background.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Point, Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.region_attributes import ObjectAttributes
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, open_binary
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, Keypoint, LabelledObject
from labelloop.service.datasets.shapes import (
    image_size_or_zero,
    mask_in_box,
    open_line,
    parse_number,
    polygon,
    rectangle,
)
from labelloop.service.datasets.text import parse_float

_MAX_COORDINATE = 1e7
_MAX_PIXELS = 1 << 28
_VIDEO_FIX = 'Export it from CVAT as "CVAT for images 1.1" instead of "CVAT for video 1.1".'
_DAMAGED_FIX = "Export it from CVAT again, or repeat the download."
_SKELETONS = "skeletons: read as the box of their points, with key points"
_POINT_SETS = "points: read as key points of their own label"
_NOT_KEPT = {"group_id": "groups of shapes: not kept", "z_order": "orders of depth (z_order): not kept"}
_TAG_ATTRIBUTES = "attributes of tags: not kept"


def is_cvat(head: bytes) -> bool:
    """Whether the first bytes of a file are XML of CVAT."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"<") and (b"<annotations>" in text[:_HEAD_BYTES] or b"<annotations " in text[:_HEAD_BYTES])


def cvat_files(files: DatasetFiles) -> list[str]:
    """The XML files of CVAT among the files of a folder, if one of the first is; VOC has one for each image."""
    names = [name for name in files.names if name.lower().endswith(".xml")]
    names.sort(key=lambda name: not name.lower().endswith("annotations.xml"))
    if not any(is_cvat(files.start(name, _HEAD_BYTES)) for name in names[:_SNIFFED]):
        return []
    return sorted(name for name in names if is_cvat(files.start(name, _HEAD_BYTES)))


_HEAD_BYTES = 4096
# XML files that are read to recognise the format.
_SNIFFED = 5


class _Summary(msgspec.Struct):
    """What a first pass over the files finds."""

    labels: dict[str, None] = {}
    tags: dict[str, None] = {}
    drawn: set[str] = set()
    keypoints: dict[str, None] = {}
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    errors: dict[str, DatasetError] = {}
    images: int = 0


def read_cvat(files: DatasetFiles, file: str = "") -> DataSet:
    """Read the CVAT files of a folder, or one file.

    Args:
        files: The files of the data set.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no CVAT file, none of them can be read to its end, or they are of a video.
    """
    names = [file] if file else cvat_files(files)
    summary = _Summary()
    for name in names:
        try:
            _summarise(files, name, summary)
        except DatasetError as error:
            summary.errors[name] = error
    readable = [name for name in names if name not in summary.errors]
    if not readable:
        raise next(iter(summary.errors.values()), DatasetError(files.location, "it has no XML of CVAT"))
    if not summary.images:
        raise DatasetError(f"{files.location}/{readable[0]}", "it is XML of CVAT without an image", fix=_VIDEO_FIX)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, error in summary.errors.items():
            yield DatasetProblem(name, f"{error.reason}; nothing of it is read. {error.fix}")
        for name in readable:
            for element in _images(files, name, None):
                yield from _read_image(element, name)

    only_tags = summary.tags.keys() - summary.drawn
    labels = [label for label in summary.labels if label not in only_tags]
    return DataSet(
        "cvat",
        read,
        tuple(dict.fromkeys((*labels, *sorted(summary.drawn - set(labels))))),
        tuple(summary.keypoints),
        choices=tuple(dict.fromkeys((*(label for label in summary.labels if label in summary.tags), *summary.tags))),
        counts={note: number for note, number in summary.counts.items() if number},
    )


def _summarise(files: DatasetFiles, name: str, summary: _Summary) -> None:
    for element in _images(files, name, summary):
        summary.images += 1
        for shape in element:
            label = (shape.get("label") or "").strip()
            if shape.tag == "tag":
                summary.tags[label] = None
                summary.counts[_TAG_ATTRIBUTES] += len(shape)
            elif shape.tag in _PARSERS or shape.tag == "skeleton":
                summary.drawn.add(label) if label else None
                for key, note in _NOT_KEPT.items():
                    summary.counts[note] += shape.get(key, "0") != "0"
                summary.counts[_SKELETONS] += shape.tag == "skeleton"
                summary.counts[_POINT_SETS] += shape.tag == "points"
                if shape.tag == "skeleton":
                    summary.keypoints.update((point.get("label", ""), None) for point in shape.iter("points"))


def _images(files: DatasetFiles, name: str, summary: _Summary | None) -> Iterator[Any]:
    """Yield the ``<image>`` elements of a file, one in memory at a time; fill in the labels of the ``<meta>``.

    Raises:
        DatasetError: The file is damaged or truncated, or of another kind.
    """
    where = f"{files.location}/{name}"
    root: Any = None
    with closing(open_binary(files, name)) as stream:
        try:
            for event, element in iterparse(stream, ("start", "end")):
                if event == "start":
                    if root is None:
                        root = element
                        if root.tag != "annotations":
                            raise DatasetError(where, f"its root element is <{root.tag}>, not <annotations>")
                    elif element.tag == "track":
                        raise DatasetError(where, "it has the tracks of a video, not images", fix=_VIDEO_FIX)
                elif element.tag == "meta":
                    if summary is not None:
                        _read_labels(element, summary)
                    root.clear()
                elif element.tag == "image":
                    yield element
                    root.clear()
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            reason = f"it is damaged or truncated: {error!s:.200}"
            if isinstance(error, DefusedXmlException):
                reason = f"its XML defines entities, which no export of CVAT does ({type(error).__name__})"
            raise DatasetError(where, reason, fix=_DAMAGED_FIX) from None


def _read_labels(meta: Any, summary: _Summary) -> None:
    """Add the labels of the project in their order, without those of the points of skeletons."""
    for label in meta.iter("label"):
        name = (label.findtext("name") or "").strip()
        if name and not (label.findtext("parent") or "").strip():
            summary.labels[name] = None
            if (label.findtext("type") or "").strip() == "tag":
                summary.tags[name] = None


def _read_image(element: Any, file: str) -> Iterator[DatasetImage | DatasetProblem]:
    name = (element.get("name") or "").replace("\\", "/")
    where = f"{file}, {name or 'image ' + str(element.get('id'))}"
    if not name:
        yield DatasetProblem(where, "an image without a name")
        return
    size = image_size_or_zero(*(_integer(element.get(key)) for key in ("width", "height")))
    objects: list[LabelledObject] = []
    choices: list[str] = []
    unread = 0
    for number, shape in enumerate(element, start=1):
        try:
            if shape.tag == "tag":
                choices.append(_label(shape))
            else:
                objects += _objects(shape, size)
        except MalformedData as error:
            unread += 1
            yield DatasetProblem(f"{where}, <{shape.tag}> {number}", str(error))
    split = split_of((element.get("subset") or "").casefold())
    yield DatasetImage(name, *size, tuple(objects), tuple(dict.fromkeys(choices)), split=split, unread=unread)


def _objects(shape: Any, size: tuple[int, int]) -> list[LabelledObject]:
    label, remarks = _label(shape), _remarks(shape)
    if shape.tag == "skeleton":
        return [_skeleton(shape, label, remarks)]
    parse = _PARSERS.get(shape.tag)
    if parse is None:
        raise MalformedData(
            "Label Studio has no shape for it; draw it as a box in CVAT" if shape.tag == "cuboid" else "no known shape"
        )
    return [LabelledObject(geometry, label, remarks=remarks) for geometry in parse(shape, size)]


def _label(shape: Any) -> str:
    label = (shape.get("label") or "").strip()
    if not label:
        raise MalformedData("it has no label")
    return label


def _remarks(shape: Any) -> ObjectAttributes:
    attributes: dict[str, Any] = {}
    for attribute in shape.findall("attribute"):
        if name := (attribute.get("name") or "").strip():
            text = (attribute.text or "").strip()
            attributes[name] = {"true": True, "false": False}.get(text, text)
    occluded = {"occluded"} if shape.get("occluded") == "1" else set()
    return ObjectAttributes(flags=frozenset(occluded), attributes=attributes)


def _skeleton(shape: Any, label: str, remarks: ObjectAttributes) -> LabelledObject:
    keypoints = []
    for point in shape.findall("points"):
        if point.get("outside") != "1":
            ((x, y),) = _points(point)[:1]
            keypoints.append(Keypoint(_label(point), x, y, point.get("occluded") == "1"))
    if len(keypoints) < 2:
        raise MalformedData(f"a skeleton of {len(keypoints)} visible points has no box")
    xs, ys = [point.x for point in keypoints], [point.y for point in keypoints]
    box = rectangle(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    return LabelledObject(box, label, keypoints=tuple(keypoints), remarks=remarks)


def _box(shape: Any, size: tuple[int, int]) -> Sequence[Geometry]:
    del size
    x_min, y_min, x_max, y_max = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    upright = rectangle(x_min, y_min, x_max - x_min, y_max - y_min)
    rotation = _number(shape, "rotation", "0") % 360
    if not rotation:
        return [upright]
    angle = math.radians(rotation)
    cx, cy, x, y = (x_min + x_max) / 2, (y_min + y_max) / 2, -upright.width / 2, -upright.height / 2
    corner = cx + x * math.cos(angle) - y * math.sin(angle), cy + x * math.sin(angle) + y * math.cos(angle)
    return [Rectangle(*corner, upright.width, upright.height, rotation)]


def _ellipse(shape: Any, size: tuple[int, int]) -> Sequence[Geometry]:
    del size
    cx, cy, rx, ry = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    if rx <= 0 or ry <= 0:
        raise MalformedData(f"an ellipse with the radii {rx:g} and {ry:g}")
    return [Ellipse(cx, cy, rx, ry, _number(shape, "rotation", "0") % 360)]


def _mask(shape: Any, size: tuple[int, int]) -> Sequence[Geometry]:
    left, top, width, height = (_integer(shape.get(key)) for key in ("left", "top", "width", "height"))
    if left is None or top is None or not width or not height or not all(size):
        raise MalformedData("a mask without left, top, width and height, or on an image of unknown size")
    if not 0 < width * height <= _MAX_PIXELS or width < 0:
        raise MalformedData(f"a mask of {width} x {height} pixels")
    lengths = [_integer(text) for text in (shape.get("rle") or "").split(",")]
    if any(length is None or length < 0 for length in lengths) or sum(filter(None, lengths)) != width * height:
        raise MalformedData(f"its run lengths do not add up to {width} x {height} pixels")
    runs = np.arange(len(lengths)) % 2 == 1
    pixels = np.repeat(runs, np.array(lengths, np.int64)).reshape(height, width)
    return [mask_in_box(pixels, left, top, *size)]


def _points(shape: Any) -> list[Point]:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise MalformedData(f"its points are {shape.get('points')!r:.40}, not x,y;x,y")
    return [(_coordinate(x, "x"), _coordinate(y, "y")) for x, y in pairs]


# Tag -> the shapes of an element on an image of a size.
_PARSERS: Mapping[str, Callable[[Any, tuple[int, int]], Sequence[Geometry]]] = {
    "box": _box,
    "polygon": lambda shape, _: [polygon(_points(shape))],
    "polyline": lambda shape, _: [open_line(_points(shape))],
    "points": lambda shape, _: [KeyPoint(*point) for point in _points(shape)],
    "ellipse": _ellipse,
    "mask": _mask,
}


def _number(shape: Any, key: str, default: str = "") -> float:
    return _coordinate(shape.get(key, default), key)


def _coordinate(text: str, what: str) -> float:
    try:
        return parse_number(parse_float(text, _MAX_COORDINATE), what)
    except MalformedData as error:
        raise MalformedData(f"its {what} is {text!r:.40}: {error}") from None


def _integer(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 12 else None
