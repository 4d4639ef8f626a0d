"""GEOMETRIES: the shape of each of Label Studio's result types, and the conversion from and to its value.

The only module that handles percent: values are in percent of the image's width and height, shapes are in pixels. A new
geometry is a class in `geometry` and one line in this table.
"""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from labelloop.labeling.errors import MalformedValue
from labelloop.labeling.geometry.brush_codec import decode_intervals, encode_rle
from labelloop.labeling.geometry.png_codec import decode_data_url, encode_data_url
from labelloop.labeling.geometry.shapes import (
    Ellipse,
    Geometry,
    KeyPoint,
    Mask,
    Point,
    Polygon,
    Rectangle,
    Vector,
    Vertex,
)

Value = Mapping[str, Any]

_MAX_NUMBER = 1e9  # percent or degrees; larger values come from broken exporters and overflow floats


class ValueCodec(msgspec.Struct, frozen=True):
    """Reads and writes one kind of value.

    Attributes:
        geometry: The class of the shape.
        read: ``(value, image width, image height)`` to a shape; raises `MalformedValue`.
        write: ``(shape, image width, image height)`` to the value's fields, without labels.
        key: The field of the value that only this shape has; identifies the shape if the type does not.
    """

    geometry: type[Any]
    read: Callable[[Value, int, int], Geometry]
    write: Callable[[Any, int, int], dict[str, Any]]
    key: str


def parse_number(value: object, field: str) -> float:
    """Parse a number, within plausible limits, as a float.

    Raises:
        MalformedValue: It is missing, not a number, or out of range.
    """
    if type(value) is float or type(value) is int:
        if -_MAX_NUMBER < value < _MAX_NUMBER:  # False for NaN
            return float(value)
        raise MalformedValue(field, f"{value!r:.40} is out of range")
    if value is None:
        raise MalformedValue(field, "is missing")
    raise MalformedValue(field, f"expected a number, found {value!r:.40}")


def _read_rectangle(value: Value, image_width: int, image_height: int) -> Rectangle:
    get = value.get
    x, y = parse_number(get("x"), "x") * image_width / 100, parse_number(get("y"), "y") * image_height / 100
    width = parse_number(get("width"), "width") * image_width / 100
    height = parse_number(get("height"), "height") * image_height / 100
    rotation = parse_number(get("rotation") or 0.0, "rotation")
    if width > 0 and height > 0:
        return Rectangle(x, y, width, height, rotation)
    if not width or not height:
        raise MalformedValue("height" if width else "width", "is 0: a rectangle without area")
    # A negative size means that it was drawn leftwards or upwards: normalise to the opposite corner.
    angle = math.radians(rotation)
    if width < 0:
        x, y, width = x + width * math.cos(angle), y + width * math.sin(angle), -width
    if height < 0:
        x, y, height = x - height * math.sin(angle), y + height * math.cos(angle), -height
    return Rectangle(x, y, width, height, rotation)


def _write_rectangle(shape: Rectangle, image_width: int, image_height: int) -> dict[str, Any]:
    return {
        "x": shape.x * 100 / image_width,
        "y": shape.y * 100 / image_height,
        "width": shape.width * 100 / image_width,
        "height": shape.height * 100 / image_height,
        "rotation": shape.rotation,
    }


def _read_ellipse(value: Value, image_width: int, image_height: int) -> Ellipse:
    get = value.get
    rx = abs(parse_number(get("radiusX"), "radiusX")) * image_width / 100
    ry = abs(parse_number(get("radiusY"), "radiusY")) * image_height / 100
    if not rx or not ry:
        raise MalformedValue("radiusY" if rx else "radiusX", "is 0: an ellipse without area")
    return Ellipse(
        parse_number(get("x"), "x") * image_width / 100,
        parse_number(get("y"), "y") * image_height / 100,
        rx,
        ry,
        parse_number(get("rotation") or 0.0, "rotation"),
    )


def _write_ellipse(shape: Ellipse, image_width: int, image_height: int) -> dict[str, Any]:
    return {
        "x": shape.cx * 100 / image_width,
        "y": shape.cy * 100 / image_height,
        "radiusX": shape.rx * 100 / image_width,
        "radiusY": shape.ry * 100 / image_height,
        "rotation": shape.rotation,
    }


def _read_polygon(value: Value, image_width: int, image_height: int) -> Polygon:
    points = _list(value, "points")
    if len(points) < 3:
        raise MalformedValue("points", f"{len(points)} points are too few for a polygon")
    read = []
    for index, point in enumerate(points):
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise MalformedValue(f"points[{index}]", f"expected [x, y], found {point!r:.40}")
        x, y = parse_number(point[0], f"points[{index}]"), parse_number(point[1], f"points[{index}]")
        read.append((x * image_width / 100, y * image_height / 100))
    return Polygon(tuple(read))


def _write_polygon(shape: Polygon, image_width: int, image_height: int) -> dict[str, Any]:
    points = [[x * 100 / image_width, y * 100 / image_height] for x, y in shape.points]
    return {"points": points, "closed": True}


def _read_keypoint(value: Value, image_width: int, image_height: int) -> KeyPoint:
    get = value.get
    return KeyPoint(
        parse_number(get("x"), "x") * image_width / 100,
        parse_number(get("y"), "y") * image_height / 100,
        parse_number(get("width") or 0.0, "width") * image_width / 100,
    )


def _write_keypoint(shape: KeyPoint, image_width: int, image_height: int) -> dict[str, Any]:
    return {
        "x": shape.x * 100 / image_width,
        "y": shape.y * 100 / image_height,
        "width": shape.width * 100 / image_width,
    }


def _read_brush(value: Value, image_width: int, image_height: int) -> Mask:
    intervals = decode_intervals(_list(value, "rle"), image_width, image_height)
    return Mask.from_intervals(*intervals, image_width, image_height)


def _write_brush(shape: Mask, image_width: int, image_height: int) -> dict[str, Any]:
    return {"format": "rle", "rle": encode_rle(shape.mask(image_width, image_height))}


def _read_bitmask(value: Value, image_width: int, image_height: int) -> Mask:
    pixels = decode_data_url(value.get("imageDataURL"))
    if pixels.shape != (image_height, image_width):
        height, width = pixels.shape
        raise MalformedValue("imageDataURL", f"{width} x {height} pixels on an image of {image_width} x {image_height}")
    return Mask.from_array(pixels)


def _write_bitmask(shape: Mask, image_width: int, image_height: int) -> dict[str, Any]:
    return {"imageDataURL": encode_data_url(shape.mask(image_width, image_height))}


def _read_vector(value: Value, image_width: int, image_height: int) -> Vector:
    vertices = _list(value, "vertices")
    if not vertices:
        raise MalformedValue("vertices", "is empty")
    read = []
    for index, vertex in enumerate(vertices):
        if not isinstance(vertex, dict):
            raise MalformedValue(f"vertices[{index}]", f"expected an object, found {vertex!r:.40}")
        x, y = _point(vertex, f"vertices[{index}]", image_width, image_height)
        name, previous = vertex.get("id"), vertex.get("prevPointId")
        read.append(
            Vertex(
                x,
                y,
                id=name if isinstance(name, str) else "",
                previous=previous if isinstance(previous, str) else None,
                before=_handle(vertex, "controlPoint1", index, image_width, image_height),
                after=_handle(vertex, "controlPoint2", index, image_width, image_height),
                bezier=bool(vertex.get("isBezier")),
            )
        )
    return Vector(tuple(read), closed=bool(value.get("closed")))


def _handle(vertex: Value, key: str, index: int, image_width: int, image_height: int) -> Point | None:
    handle = vertex.get(key)
    if handle is None:
        return None
    if not isinstance(handle, dict):
        raise MalformedValue(f"vertices[{index}].{key}", f"expected an object, found {handle!r:.40}")
    return _point(handle, f"vertices[{index}].{key}", image_width, image_height)


def _point(value: Value, field: str, image_width: int, image_height: int) -> Point:
    x, y = parse_number(value.get("x"), f"{field}.x"), parse_number(value.get("y"), f"{field}.y")
    return x * image_width / 100, y * image_height / 100


def _write_vector(shape: Vector, image_width: int, image_height: int) -> dict[str, Any]:
    def percent(point: Point) -> dict[str, float]:
        return {"x": point[0] * 100 / image_width, "y": point[1] * 100 / image_height}

    vertices = []
    for index, vertex in enumerate(shape.vertices):
        written: dict[str, Any] = {
            **percent((vertex.x, vertex.y)),
            "id": vertex.id or f"v{index}",
            "prevPointId": vertex.previous,
            "isBezier": vertex.bezier,
        }
        if vertex.before is not None:
            written["controlPoint1"] = percent(vertex.before)
        if vertex.after is not None:
            written["controlPoint2"] = percent(vertex.after)
        vertices.append(written)
    return {"vertices": vertices, "closed": shape.closed}


def _list(value: Value, field: str) -> list[Any]:
    items = value.get(field)
    if isinstance(items, list):
        return items
    raise MalformedValue(field, "is missing" if items is None else f"expected an array, found {items!r:.40}")


_RECTANGLE = ValueCodec(Rectangle, _read_rectangle, _write_rectangle, "height")
_ELLIPSE = ValueCodec(Ellipse, _read_ellipse, _write_ellipse, "radiusX")
_POLYGON = ValueCodec(Polygon, _read_polygon, _write_polygon, "points")
_KEYPOINT = ValueCodec(KeyPoint, _read_keypoint, _write_keypoint, "x")
_BRUSH = ValueCodec(Mask, _read_brush, _write_brush, "rle")
_BITMASK = ValueCodec(Mask, _read_bitmask, _write_bitmask, "imageDataURL")
_VECTOR = ValueCodec(Vector, _read_vector, _write_vector, "vertices")

GEOMETRIES: Mapping[str, ValueCodec] = {
    "rectanglelabels": _RECTANGLE,
    "rectangle": _RECTANGLE,
    "polygonlabels": _POLYGON,
    "polygon": _POLYGON,
    "brushlabels": _BRUSH,
    "brush": _BRUSH,
    "magicwand": _BRUSH,
    "bitmasklabels": _BITMASK,
    "bitmask": _BITMASK,
    "ellipselabels": _ELLIPSE,
    "ellipse": _ELLIPSE,
    "keypointlabels": _KEYPOINT,
    "keypoint": _KEYPOINT,
    "vectorlabels": _VECTOR,
    "vector": _VECTOR,
}

# Result type -> the field of the value with the answer.
ANSWERS: Mapping[str, str] = {
    "choices": "choices",
    "taxonomy": "taxonomy",
    "rating": "rating",
    "number": "number",
    "textarea": "text",
    "datetime": "datetime",
}


def codec_for_value(value: Value) -> ValueCodec | None:
    """The codec by the fields of a value, for results whose type names no shape; None if there is none."""
    for shape in (_RECTANGLE, _ELLIPSE, _POLYGON, _BRUSH, _BITMASK, _VECTOR, _KEYPOINT):
        if shape.key in value:
            return shape
    return None


def parse_labels(value: Value, result_type: str) -> tuple[str, ...]:
    """The labels in a value: in the field named like its type, or in ``labels``.

    Raises:
        MalformedValue: They are not strings.
    """
    field = result_type if result_type in value else "labels"
    names = value.get(field)
    if names is None:
        return ()
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, list):
        raise MalformedValue(field, f"expected an array of labels, found {names!r:.40}")
    for label in names:
        if type(label) is not str:
            raise MalformedValue(field, f"expected a label, found {label!r:.40}")
    return tuple(names)


def parse_answer(value: Value, result_type: str) -> tuple[Any, ...]:
    """The answer in a value: choices and texts unchanged, paths of taxonomies and nested choices joined with ``/``.

    Raises:
        MalformedValue: It is missing, or its type does not match the control.
    """
    field = ANSWERS[result_type]
    raw = value.get(field)
    if raw is None:
        raise MalformedValue(field, "is missing")
    if result_type in {"rating", "number"}:
        parse_number(raw, field)
        return (raw,)
    items = raw if isinstance(raw, list) else [raw]
    return tuple(_path(item, field) for item in items)


def select_answers(value: Value, result_type: str, texts: AbstractSet[str]) -> dict[str, Any]:
    """The value with only those of its answers whose text, see `parse_answer`, is in ``texts``."""
    field = ANSWERS[result_type]
    raw = value.get(field)
    items = raw if isinstance(raw, list) else [raw]
    return {**value, field: [item for item in items if _path(item, field) in texts]}


def _path(item: object, field: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and all(isinstance(part, str) for part in item):
        return "/".join(item)
    raise MalformedValue(field, f"expected a text, found {item!r:.40}")
