"""Read Pascal VOC: one XML file per image with boxes or rotated boxes, and optional instance masks.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html. Pixel coordinates
start at 1 and maxima are inclusive. Many data sets in VOC format start at 0 instead, detected by a minimum of 0.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Geometry, Mask, Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.region_attributes import ObjectAttributes
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import mask_from_array, rectangle
from labelloop.service.datasets.text import decode_lines, parse_float
from labelloop.service.datasets.voc_xml import (
    EDGES,
    NotAnAnnotation,
    VocAnnotation,
    VocObject,
    annotation_files,
    element_text,
    image_set_files,
    read_annotation,
    read_image_set,
)

_CLASS_LISTS = ("labels.txt", "classes.txt", "names.txt")
# Written by CVAT, Datumaro and labelloop exports.
_LABEL_MAP = "labelmap.txt"
_FLAGS = ("difficult", "truncated", "occluded")
_OBJECT_TAGS = frozenset(
    {*_FLAGS, "name", "pose", "bndbox", "robndbox", "attributes", "type", "id", "deleted", "verified"}
)
_NO_POSE = frozenset({"", "unspecified", "unknown"})
_IMAGE_TAGS = frozenset({"folder", "filename", "path", "size", "segmented", "object"})
_EMPTY_VALUES = frozenset({"", "unknown", "unspecified"})
_EXPORT_DATABASE = "labelloop"
_VOID = 255
# Pixels: larger values are errors.
_MAX_COORDINATE = 1e7


def read_voc(files: DatasetFiles, images: ImageFiles) -> DataSet:
    """Read XML files at any depth, and masks from ``SegmentationObject/`` if that folder exists.

    Args:
        files: The files of the data set.
        images: Its image files; an unreadable XML file belongs to the image of the same name.

    Raises:
        DatasetError: There are no XML files, or they are not Pascal VOC.
    """
    names = annotation_files(files)
    if not names:
        raise DatasetError(files.location, "it has no XML files")
    masks = {
        PurePosixPath(name).stem: name
        for name in files.names
        if "SegmentationObject" in PurePosixPath(name).parent.parts and name.lower().endswith(".png")
    }
    labels: set[str] = set()
    zero_based = False
    unread_object_tags: Counter[str] = Counter()
    unread_image_tags: Counter[str] = Counter()
    other_roots: set[str] = set()
    for name in names:
        try:
            annotation = read_annotation(files, name)
        except NotAnAnnotation as other:
            other_roots.add(other.tag)
            continue
        except MalformedData:
            other_roots.add("")
            continue  # reported when the image is read
        objects = annotation.objects
        unread_image_tags.update(
            {child.tag for child in annotation.root if child.tag not in _IMAGE_TAGS and _has_content(child)}
        )
        labels.update(obj.name for obj in objects)
        object_tags = (child.tag for obj in objects for child in obj.element)
        unread_object_tags.update(tag for tag in object_tags if tag not in _OBJECT_TAGS)
        zero_based |= any(obj.edge(edge) in {"0", "0.0"} for obj in objects for edge in EDGES[:2])
    if other_roots and "" not in other_roots and not labels:
        what = "XML of CVAT" if other_roots == {"annotations"} else f"XML of another kind (<{min(other_roots)}>)"
        raise DatasetError(
            files.location, f"it is {what}, not Pascal VOC", fix="Export COCO, Pascal VOC or YOLO instead."
        )
    origin = 0.0 if zero_based else 1.0
    splits = _splits(files)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name in names:
            stem = PurePosixPath(name).stem
            try:
                annotation = read_annotation(files, name)
            except MalformedData as error:
                yield DatasetProblem(name, str(error))
                if image_name := images.find(stem):
                    yield DatasetImage(image_name, split=splits.get(stem, ""), unread=1)
                continue
            for item in _read_image(annotation, name, origin, files, masks):
                if isinstance(item, DatasetProblem):
                    yield item
                    continue
                by_filename = item.name != stem and images.find(item.name)
                image_name = item.name if by_filename else images.find(stem) or item.name
                yield msgspec.structs.replace(item, name=image_name, split=splits.get(stem, ""))

    origin_note = (
        "pixel coordinates start at 0 (a box starts at 0)" if zero_based else "pixel coordinates start at 1, as in VOC"
    )
    ordered = dict.fromkeys((*_class_list(files), *sorted(labels - {""})))
    object_notes = (f"<{tag}> of objects, not imported: {number}" for tag, number in sorted(unread_object_tags.items()))
    image_notes = (f"<{tag}> of images, not imported: {number}" for tag, number in sorted(unread_image_tags.items()))
    return DataSet("voc", read, tuple(ordered), notes=(origin_note, *object_notes, *image_notes))


def _has_content(element: Any) -> bool:
    """Whether an element has content other than what a labelloop export writes."""
    if not isinstance(element.tag, str) or element_text(element, "database") == _EXPORT_DATABASE:
        return False
    return any((descendant.text or "").strip().casefold() not in _EMPTY_VALUES for descendant in element.iter())


def _splits(files: DatasetFiles) -> dict[str, str]:
    """Image name -> split, from the lists in ``ImageSets/Main``."""
    splits: dict[str, str] = {}
    for name in image_set_files(files):
        if split := split_of(PurePosixPath(name).stem):
            try:
                splits |= dict.fromkeys(read_image_set(files, name), split)
            except MalformedData as error:
                raise DatasetError(f"{files.location}/{name}", str(error)) from None
    return splits


def _class_list(files: DatasetFiles) -> list[str]:
    """The classes in the order of a class list file; empty if there is none."""
    for name in (*_CLASS_LISTS, _LABEL_MAP):
        if name in files.names:
            lines = _lines(files, name)
            if name == _LABEL_MAP:  # label:color_rgb:parts:actions
                lines = [line.rsplit(":", 3)[0] for line in lines if not line.startswith("#")]
                lines = [line for line in lines if line != "background"]
            return [line for line in lines if line]
    return []


def _lines(files: DatasetFiles, name: str) -> list[str]:
    try:
        return decode_lines(files.read(name))
    except MalformedData as error:
        raise DatasetError(f"{files.location}/{name}", str(error)) from None


def _read_image(
    annotation: VocAnnotation, name: str, origin: float, files: DatasetFiles, masks: dict[str, str]
) -> Iterator[DatasetImage | DatasetProblem]:
    stem = PurePosixPath(name).stem
    filename = annotation.filename or stem
    width, height = _size(annotation)
    instances = None
    if stem in masks:
        try:
            instances = _instance_indices(files, masks[stem])
        except MalformedData as error:
            yield DatasetProblem(masks[stem], f"{error}; boxes are used instead of masks")
    objects = annotation.objects
    labelled: list[LabelledObject] = []
    shape_elements = [element for element in annotation.root.iter() if _is_shape(element)]
    in_objects = {id(shape) for obj in objects for shape in obj.element.iter()}
    unread = sum(id(element) not in in_objects for element in shape_elements)
    if unread:
        yield DatasetProblem(name, f"{unread} of its boxes are outside an <object> of the <annotation>")
    for number, obj in enumerate(objects, start=1):
        try:
            shape = _shape(obj, origin)
            if instances is not None and (instances == number).any():
                shape = _mask(instances == number, width, height)
            labelled.append(LabelledObject(shape, _label(obj), remarks=_remarks(obj.element)))
        except MalformedData as error:
            yield DatasetProblem(f"{name}, object {number}", str(error))
    unread += len(objects) - len(labelled)
    yield DatasetImage(filename, width, height, tuple(labelled), unread=unread)


def _is_shape(element: Any) -> bool:
    """Whether the element is a box, or an object with another tag such as ``<Object>``."""
    tag = element.tag.casefold() if isinstance(element.tag, str) else ""
    return tag in {"bndbox", "robndbox"} or (tag == "object" and element.tag != tag)


def _shape(obj: VocObject, origin: float) -> Geometry:
    rotated = obj.element.find("robndbox")
    if rotated is not None:  # roLabelImg: centre, size and clockwise angle in radians
        cx, cy, width, height, angle = (
            _number(element_text(rotated, field), field) for field in ("cx", "cy", "w", "h", "angle")
        )
        rectangle(0, 0, width, height)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = cx - (width * cos - height * sin) / 2, cy - (width * sin + height * cos) / 2
        return Rectangle(x, y, width, height, math.degrees(angle) % 360)
    if obj.element.find("bndbox") is None:
        raise MalformedData("it has no bndbox")
    left, top, right, bottom = (_number(text, f"bndbox/{edge}") for edge, text in zip(EDGES, obj.edges, strict=True))
    return rectangle(left - origin, top - origin, right - left + origin, bottom - top + origin)


def _remarks(obj: Any) -> ObjectAttributes:
    """The flags, pose and CVAT attributes of an object."""
    flags = frozenset(flag for flag in _FLAGS if element_text(obj, flag).casefold() in {"1", "1.0", "true"})
    pose = element_text(obj, "pose")
    attributes: dict[str, Any] = {}
    for attribute in obj.findall("attributes/attribute"):
        if name := element_text(attribute, "name"):
            value = _attribute_value(element_text(attribute, "value"))
            previous = attributes.get(name)
            values = previous if isinstance(previous, list) else [previous]
            attributes[name] = [*values, value] if name in attributes else value
    return ObjectAttributes(flags, "" if pose.casefold() in _NO_POSE else pose, attributes)


def _attribute_value(text: str) -> Any:
    """A boolean or a number if the text is one, else the text."""
    try:
        value = msgspec.json.decode(text.lower() if text.casefold() in {"true", "false"} else text)
    except msgspec.DecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _label(obj: VocObject) -> str:
    if not obj.name:
        raise MalformedData("it has no name")
    return obj.name


def _mask(pixels: NDArray[np.bool_], width: int, height: int) -> Mask:
    if pixels.shape != (height, width):
        raise MalformedData(f"a mask of {pixels.shape[1]} x {pixels.shape[0]} on an image of {width} x {height}")
    return mask_from_array(pixels)


def _size(annotation: VocAnnotation) -> tuple[int, int]:
    try:
        width, height = (int(_number(text, "size")) for text in annotation.size)
    except MalformedData:
        return 0, 0
    return (width, height) if width > 0 and height > 0 else (0, 0)


def _instance_indices(files: DatasetFiles, name: str) -> NDArray[np.uint8]:
    """The palette index of each pixel, uint8 (height, width): the number of the object in the XML, from 1.

    Raises:
        MalformedData: The mask cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, DatasetError) as error:
        raise MalformedData(f"its mask cannot be read ({error})") from None
    if mode not in {"P", "L"}:
        raise MalformedData(f"its mask has mode {mode}, not a palette")
    return np.where(pixels == _VOID, 0, pixels).astype(np.uint8)


def _number(text: str, path: str) -> float:
    try:
        return parse_float(text, _MAX_COORDINATE)
    except MalformedData as error:
        raise MalformedData(f"{path} is {text!r:.40}, {error}") from None
