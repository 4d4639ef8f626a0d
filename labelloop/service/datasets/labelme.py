"""Read LabelMe JSON: one file for each image, with polygons, rectangles, circles, lines, points and masks.

Format: https://github.com/wkentaro/labelme. X-AnyLabeling's ``rotation``, ``points``, ``difficult`` and ``attributes``
are read too. Shapes of one label and one ``group_id`` are parts of one object, as in LabelMe's own COCO converter;
points of a group with a single object are its key points.
"""

import base64
import binascii
import io
import math
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
import shapely

from labelloop.labeling.errors import MaskTooLarge
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Point, Polygon
from labelloop.labeling.studio.region_attributes import ObjectAttributes
from labelloop.labeling.studio.sniff import HEAD_BYTES, json_kind
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, Keypoint, LabelledObject
from labelloop.service.datasets.shapes import (
    image_size_or_zero,
    mask_from_array,
    mask_in_box,
    open_line,
    parse_number,
    polygon,
    rectangle,
    rectangle_or_polygon,
)
from labelloop.service.datasets.text import decode_json

EMBEDDED = "its image file is missing, and the JSON holds a copy: `labelme_export_json` of LabelMe writes it as a file"
_GROUPS = "groups of shapes (one label, one group_id): read as one object with several parts"
_LONE_POINTS = "points without an object: read as key points of their own label"
_OTHER_JSON = "other JSON files: not read"
# Pixels of a mask; larger ones are errors.
_MAX_PIXELS = 1 << 28
_DIFFICULT = "difficult"


class _Document(msgspec.Struct):
    shapes: Any = None
    image_path: Any = msgspec.field(name="imagePath", default=None)
    image_data: msgspec.Raw = msgspec.field(name="imageData", default=msgspec.Raw(b"null"))
    width: Any = msgspec.field(name="imageWidth", default=None)
    height: Any = msgspec.field(name="imageHeight", default=None)
    flags: Any = None


class _Shape(msgspec.Struct):
    label: Any = None
    points: Any = None
    shape_type: Any = "polygon"
    group_id: Any = None
    flags: Any = None
    description: Any = None
    mask: Any = None
    score: Any = None
    difficult: Any = None
    attributes: Any = None


def is_labelme(data: bytes) -> bool:
    """Whether a JSON file, possibly truncated, has the keys of LabelMe."""
    return json_kind(data[:HEAD_BYTES]) == "labelme"


def read_labelme(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the LabelMe files of a folder and its subfolders, or one file.

    Args:
        files: The files of the data set.
        images: Its image files.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no LabelMe file.
    """
    names = [file] if file else [name for name in files.names if name.lower().endswith(".json")]
    labels: dict[str, None] = {}
    choices: dict[str, None] = {}
    counts: Counter[str] = Counter()
    errors: dict[str, str] = {}
    own: list[str] = []
    for name in names:
        data = files.read(name)
        try:
            document = _decode(data)
        except MalformedData as error:
            errors[name] = str(error)
            continue
        if not is_labelme(data) and not isinstance(document.shapes, list):
            counts[_OTHER_JSON] += 1
            continue
        own.append(name)
        choices.update(dict.fromkeys(_true_flags(document.flags)))
        for item in _read_image(document, name, images):
            if isinstance(item, DatasetImage):
                labels.update((obj.label, None) for obj in item.objects)
        counts += _counts(document)
    if not own:
        data = files.read(names[0]) if names else b""
        where = f"{files.location}/{names[0]}" if names else files.location
        raise unreadable_error(data, where, default=next(iter(errors.values()), "it has no LabelMe file"))

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, reason in errors.items():
            yield DatasetProblem(name, f"{reason}; save it again in LabelMe")
            if image := images.find(posixpath.splitext(name)[0]):
                yield DatasetImage(image, unread=1)
        for name in own:
            try:
                yield from _read_image(_decode(files.read(name)), name, images)
            except (DatasetError, MalformedData) as error:  # changed since
                yield DatasetProblem(name, str(error))

    return DataSet("labelme", read, tuple(sorted(labels)), choices=tuple(choices), counts=dict(counts))


def _decode(data: bytes) -> _Document:
    document = decode_json(data, _Document)
    assert isinstance(document, _Document)
    return document


def _counts(document: _Document) -> Counter[str]:
    """The assumptions about the groups of a file."""
    shapes = [_loose_shape(entry) for entry in document.shapes] if isinstance(document.shapes, list) else []
    owners = _owners(shapes)
    groups = Counter((shape.label, str(shape.group_id)) for shape in shapes if _is_part(shape))
    lone = sum(_is_point(shape) and str(shape.group_id) not in owners for shape in shapes)
    return Counter({_GROUPS: sum(number > 1 for number in groups.values()), _LONE_POINTS: lone})


def _loose_shape(entry: Any) -> _Shape:
    try:
        return _shape_of(entry)
    except MalformedData:
        return _Shape()


def _is_point(shape: _Shape) -> bool:
    return shape.shape_type in ("point", "points")


def _is_part(shape: _Shape) -> bool:
    """Whether a shape may be one of several parts of an object."""
    return shape.group_id is not None and (shape.shape_type or "polygon") in ("polygon", "mask")


def _owners(shapes: Sequence[_Shape]) -> frozenset[str]:
    """The groups with exactly one object, to which the points of the group belong."""
    objects = Counter(str(shape.group_id) for shape in shapes if shape.group_id is not None and not _is_point(shape))
    return frozenset(group for group, number in objects.items() if number == 1)


def _read_image(document: _Document, file: str, images: ImageFiles) -> Iterator[DatasetImage | DatasetProblem]:
    name = _image_name(document.image_path, file, images)
    width, height = image_size_or_zero(document.width, document.height)
    found = images.find(name)
    if not width and found is not None and not isinstance(size := images.size(found), str):
        width, height = size
    if found is None and len(bytes(document.image_data)) > len(b"null"):
        yield DatasetProblem(file, EMBEDDED)
    parsed: list[tuple[_Shape, list[Geometry], str]] = []
    problems = 0
    listed = document.shapes if isinstance(document.shapes, list) else [document.shapes]
    for index, entry in enumerate(listed):
        try:
            shape = _shape_of(entry)
            label = _label(shape.label)
            parsed.append((shape, _geometries(shape, width, height), label))
        except MalformedData as error:
            problems += 1
            yield DatasetProblem(f"{file}, shapes[{index}]", str(error))
    objects: list[LabelledObject] = []
    for members in _instances(parsed):
        try:
            objects += _objects(members, width, height)
        except MalformedData as error:
            problems += 1
            yield DatasetProblem(f"{file}, {members[0][2]!r:.40} of group {members[0][0].group_id!r:.20}", str(error))
    yield DatasetImage(
        name,
        width,
        height,
        _with_keypoints(objects, parsed),
        choices=tuple(_true_flags(document.flags)),
        unread=problems,
    )


def _shape_of(entry: Any) -> _Shape:
    try:
        return msgspec.convert(entry, _Shape)
    except msgspec.ValidationError:
        raise MalformedData(f"{entry!r:.60} is not a shape") from None


def _label(label: Any) -> str:
    label = str(label) if type(label) is int else label
    if not isinstance(label, str) or not label.strip():
        raise MalformedData(f"its label is {label!r:.40}, not text")
    return label.strip()


def _image_name(path: Any, file: str, images: ImageFiles) -> str:
    """The name of the image of a JSON file: ``imagePath`` is relative to the file, and may be of another machine."""
    folder, stem = posixpath.dirname(file), PurePosixPath(file).stem
    stated = path.replace("\\", "/") if isinstance(path, str) and path.strip() else ""
    joined = posixpath.normpath(posixpath.join(folder, stated)) if stated else posixpath.join(folder, stem)
    candidates = (joined, posixpath.join(folder, PurePosixPath(stated).name) if stated else "", f"{folder}/{stem}")
    found = (images.find(name.lstrip("/")) for name in candidates if name)
    return next(filter(None, found), "") or joined.removeprefix("../").replace("../", "").lstrip("/")


def _geometries(shape: _Shape, width: int, height: int) -> list[Geometry]:
    kind = shape.shape_type or "polygon"
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        raise MalformedData(f"a shape of the kind {kind!r:.40}, which no LabelMe has")
    if not isinstance(shape.points, list):
        raise MalformedData(f"its points are {shape.points!r:.40}, not a list")
    points = [_point(point) for point in shape.points]
    if kind == "mask":
        return [_mask(shape.mask, points, width, height)]
    return parse(points)


def _point(point: Any) -> Point:
    if not isinstance(point, list) or len(point) != 2:
        raise MalformedData(f"a point is {point!r:.40}, not [x, y]")
    return parse_number(point[0], "x"), parse_number(point[1], "y")


def _rectangle(points: Sequence[Point]) -> list[Geometry]:
    if len(points) == 4:
        return [rectangle_or_polygon(points)]
    if len(points) != 2:
        raise MalformedData(f"a rectangle of {len(points)} points, not of two corners")
    (x0, y0), (x1, y1) = points
    return [rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))]


def _circle(points: Sequence[Point]) -> list[Geometry]:
    if len(points) != 2 or not (radius := math.dist(*points)):
        raise MalformedData(f"a circle of {len(points)} points, not of its centre and a point on it")
    return [Ellipse(*points[0], radius, radius)]


def _mask(encoded: Any, points: Sequence[Point], width: int, height: int) -> Mask:
    """A mask: a PNG in base64, whose top left pixel is at the first point."""
    if not points or not width:
        raise MalformedData("a mask without its place" if width else "a mask, and its image's size is not known")
    try:
        png = base64.b64decode(encoded if isinstance(encoded, str) else b"", validate=True)
        pixels = _decode_png(png)
    except (binascii.Error, ValueError, OSError, SyntaxError, EOFError) as error:
        raise MalformedData(f"a mask that is no PNG in base64 ({error!s:.60})") from None
    left, top = min(x for x, _ in points), min(y for _, y in points)
    return mask_in_box(pixels, round(left), round(top), width, height)


def _decode_png(png: bytes) -> Any:
    from PIL.PngImagePlugin import PngImageFile

    with PngImageFile(io.BytesIO(png)) as image:  # Image.open has a lower limit, and an error of its own
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        pixels = np.asarray(image.convert("L") if image.mode not in {"1", "L"} else image)
    return pixels != 0


# Kind of shape -> the shapes of its points; the mask has a parser of its own.
_PARSERS: Mapping[str, Callable[[Sequence[Point]], list[Geometry]]] = {
    "polygon": lambda points: [polygon(points)],
    "rectangle": _rectangle,
    "rotation": lambda points: [rectangle_or_polygon(points, upright=False)],
    "oriented_rectangle": lambda points: [rectangle_or_polygon(points, upright=False)],
    "quadrilateral": lambda points: [rectangle_or_polygon(points, upright=False)],
    "circle": _circle,
    "line": lambda points: [open_line(points)],
    "linestrip": lambda points: [open_line(points)],
    "point": lambda points: [KeyPoint(*point) for point in points],
    "points": lambda points: [KeyPoint(*point) for point in points],
    "mask": lambda _: [],
}
_Parsed = tuple[_Shape, list[Geometry], str]


def _instances(parsed: Sequence[_Parsed]) -> list[list[_Parsed]]:
    """The shapes by object: polygons and masks of one label and group together, all others alone."""
    owners = _owners([shape for shape, _, _ in parsed])
    instances: dict[Any, list[_Parsed]] = {}
    for index, item in enumerate(parsed):
        shape, _, label = item
        if not (_is_point(shape) and str(shape.group_id) in owners):
            instances.setdefault((label, str(shape.group_id)) if _is_part(shape) else index, []).append(item)
    return list(instances.values())


def _objects(members: Sequence[_Parsed], width: int, height: int) -> list[LabelledObject]:
    shape, geometries, label = members[0]
    if len(members) > 1:
        if not width:
            raise MalformedData("an object of several parts, and its image's size is not known")
        geometries = [_union([geometry for _, parts, _ in members for geometry in parts], width, height)]
    score = None if shape.score is None else parse_number(shape.score, "score")
    return [LabelledObject(geometry, label, score, remarks=_remarks(shape)) for geometry in geometries]


def _union(parts: Sequence[Geometry], width: int, height: int) -> Geometry:
    outlines = [part.polygon() for part in parts]
    joined = shapely.union_all(outlines)
    if joined.geom_type == "Polygon" and not joined.interiors and not any(isinstance(part, Mask) for part in parts):
        return Polygon(tuple(joined.exterior.coords[:-1]))
    try:
        pixels = reduce(np.logical_or, (part.mask(width, height) for part in parts))
    except MaskTooLarge as error:
        raise MalformedData(str(error)) from None
    return mask_from_array(pixels)


def _with_keypoints(objects: Sequence[LabelledObject], parsed: Sequence[_Parsed]) -> tuple[LabelledObject, ...]:
    owners = _owners([shape for shape, _, _ in parsed])
    keypoints: dict[str, list[Keypoint]] = {}
    for shape, geometries, label in parsed:
        if _is_point(shape) and str(shape.group_id) in owners:
            hidden = isinstance(shape.flags, dict) and shape.flags.get("occluded") is True
            points = [geometry for geometry in geometries if isinstance(geometry, KeyPoint)]
            keypoints.setdefault(str(shape.group_id), []).extend(Keypoint(label, p.x, p.y, hidden) for p in points)
    groups = {id(geometries[0]): str(shape.group_id) for shape, geometries, _ in parsed if not _is_point(shape)}
    return tuple(
        msgspec.structs.replace(obj, keypoints=tuple(keypoints.get(groups.get(id(obj.geometry), ""), ())))
        for obj in objects
    )


def _remarks(shape: _Shape) -> ObjectAttributes:
    flags = shape.flags if isinstance(shape.flags, dict) else {}
    attributes = shape.attributes if isinstance(shape.attributes, dict) else {}
    text = shape.description.strip() if isinstance(shape.description, str) else ""
    return ObjectAttributes(
        flags=frozenset({_DIFFICULT} if shape.difficult is True else ()),
        attributes={str(name): value for name, value in (attributes | flags).items() if value is not False},
        meta={"text": [text]} if text else {},
    )


def _true_flags(flags: Any) -> list[str]:
    """The classes of the whole image: the flags that are set."""
    return [str(name) for name, value in flags.items() if value is True] if isinstance(flags, dict) else []
