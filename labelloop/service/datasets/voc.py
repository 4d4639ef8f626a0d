"""Pascal VOC: one XML a photo, with boxes or turned boxes, and masks beside them.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html. Its pixels count from 1 and its
maxima are included. Many sets that call themselves VOC count from 0 instead, which a minimum of 0 gives away.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Geometry, Mask, Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.region_attributes import Remarks
from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.files import Files, Photos
from labelloop.service.datasets.model import DataSet, LabelledObject, LabelledPhoto, Problem
from labelloop.service.datasets.shapes import box, pixels_mask
from labelloop.service.datasets.text import lines_of

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_CLASS_LISTS = ("labels.txt", "classes.txt", "names.txt")
_LABEL_MAP = "labelmap.txt"
"""As CVAT, datumaro and our own exports write it."""
_FLAGS = ("difficult", "truncated", "occluded")
_READ = frozenset({*_FLAGS, "name", "pose", "bndbox", "robndbox", "attributes", "type", "id", "deleted", "verified"})
_NO_POSE = frozenset({"", "unspecified", "unknown"})
_OF_PHOTO = frozenset({"folder", "filename", "path", "size", "segmented", "object"})
_SAYS_NOTHING = frozenset({"", "unknown", "unspecified"})
_OURS = "labelloop"
_VOID = 255


def read_voc(files: Files, photos: Photos) -> DataSet:
    """A folder of XML files, at any depth; masks are taken from ``SegmentationObject/`` where that is there.

    Args:
        files: The data set's files.
        photos: Its photos: a file that cannot be read is still of the photo of its name.

    Raises:
        DatasetError: There is no XML file in it.
    """
    names = [name for name in files.names if name.lower().endswith(".xml")]
    if not names:
        raise DatasetError(files.place, "there is no XML file in it")
    masks = {
        PurePosixPath(name).stem: name
        for name in files.names
        if "SegmentationObject" in PurePosixPath(name).parent.parts and name.lower().endswith(".png")
    }
    labels: set[str] = set()
    from_zero = False
    unread: Counter[str] = Counter()
    of_photos: Counter[str] = Counter()
    others: set[str] = set()
    for name in names:
        try:
            page = parse_voc(files, name)
        except NoAnnotation as other:
            others.add(other.tag)
            continue
        except Flawed:
            others.add("")
            continue  # told when its photo is read
        objects = page.findall("object")
        of_photos.update({child.tag for child in page if child.tag not in _OF_PHOTO and _says(child)})
        labels.update(_text(each, "name") for each in objects)
        unread.update(child.tag for each in objects for child in each if child.tag not in _READ)
        from_zero |= any(_text(each, f"bndbox/{edge}") in {"0", "0.0"} for each in objects for edge in _EDGES[:2])
    if others and "" not in others and not labels:
        what = "XML of CVAT" if others == {"annotations"} else f"XML of another kind (<{min(others)}>)"
        raise DatasetError(files.place, f"it is {what}, not Pascal VOC", fix="Export COCO, Pascal VOC or YOLO instead.")
    first = 0.0 if from_zero else 1.0
    splits = _splits(files)

    def read() -> Iterator[LabelledPhoto | Problem]:
        for name in names:
            stem = PurePosixPath(name).stem
            try:
                page = parse_voc(files, name)
            except Flawed as flaw:
                yield Problem(name, str(flaw))
                if photo := photos.find(stem):
                    yield LabelledPhoto(photo, split=splits.get(stem, ""), unread=1)
                continue
            for each in _photo(page, name, first, files, masks):
                if isinstance(each, Problem):
                    yield each
                    continue
                told = each.name != stem and photos.find(each.name)
                known = each.name if told else photos.find(stem) or each.name
                yield msgspec.structs.replace(each, name=known, split=splits.get(stem, ""))

    told = "its pixels count from 0 (a box begins at 0)" if from_zero else "its pixels count from 1, as VOC's do"
    ordered = dict.fromkeys((*_listed(files), *sorted(labels - {""})))
    lost = (f"<{tag}> of objects, not imported: {number}" for tag, number in sorted(unread.items()))
    of_photo = (f"<{tag}> of photos, not imported: {number}" for tag, number in sorted(of_photos.items()))
    return DataSet("voc", read, tuple(ordered), notes=(told, *lost, *of_photo))


def _says(element: Any) -> bool:
    """Whether an element of a photo tells something that our own export did not write."""
    if not isinstance(element.tag, str) or _text(element, "database") == _OURS:
        return False
    return any((each.text or "").strip().casefold() not in _SAYS_NOTHING for each in element.iter())


def _splits(files: Files) -> dict[str, str]:
    """The split of each photo that the lists of the development kit name."""
    found: dict[str, str] = {}
    for name in files.names:
        path = PurePosixPath(name)
        if path.parts[-3:-1] == ("ImageSets", "Main") and (split := split_of(path.stem)):
            found |= {line.split()[0]: split for line in _lines(files, name)}
    return found


def _listed(files: Files) -> list[str]:
    """The classes in their order, where a file tells it."""
    for name in (*_CLASS_LISTS, _LABEL_MAP):
        if name in files.names:
            lines = _lines(files, name)
            if name == _LABEL_MAP:  # label:color_rgb:parts:actions
                lines = [line.rsplit(":", 3)[0] for line in lines if not line.startswith("#")]
                lines = [line for line in lines if line != "background"]
            return [line for line in lines if line]
    return []


def _lines(files: Files, name: str) -> list[str]:
    try:
        return lines_of(files.read(name))
    except Flawed as flaw:
        raise DatasetError(f"{files.place}/{name}", str(flaw)) from None


class NoAnnotation(Flawed):
    """An XML file is of another kind: its outermost element is another one."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"a <{tag}>, not an <annotation>")
        self.tag = tag


def parse_voc(files: Files, name: str) -> Any:
    """The ``<annotation>`` of a file. Raises `Flawed`: it cannot be read, or is another kind of XML."""
    try:
        page = fromstring(files.read(name))
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise Flawed(f"no XML that can be read: {error or type(error).__name__}") from None
    except DatasetError as error:
        raise Flawed(error.reason) from None
    if page.tag != "annotation":
        raise NoAnnotation(str(page.tag))
    return page


def _photo(
    page: Any, name: str, first: float, files: Files, masks: dict[str, str]
) -> Iterator[LabelledPhoto | Problem]:
    stem = PurePosixPath(name).stem
    photo = _text(page, "filename") or stem
    width, height = _size(page)
    pixels = None
    if stem in masks:
        try:
            pixels = _instances(files, masks[stem])
        except Flawed as flaw:
            yield Problem(masks[stem], f"{flaw}; boxes are taken instead of masks")
    objects = page.findall("object")
    drawn: list[LabelledObject] = []
    strays = [each for each in page.iter() if _is_shape(each)]
    known = {id(shape) for each in objects for shape in each.iter()}
    unread = sum(id(each) not in known for each in strays)
    if unread:
        yield Problem(name, f"{unread} of its boxes are in no <object> of the <annotation>")
    for place, each in enumerate(objects, start=1):
        try:
            shape = _shape(each, first)
            if pixels is not None and (pixels == place).any():
                shape = _mask(pixels == place, width, height)
            drawn.append(LabelledObject(shape, _label(each), remarks=_remarks(each)))
        except Flawed as flaw:
            yield Problem(f"{name}, object {place}", str(flaw))
    unread += len(objects) - len(drawn)
    yield LabelledPhoto(photo, width, height, tuple(drawn), unread=unread)


def _is_shape(element: Any) -> bool:
    """Whether it is a box, or an object under another name: ``<Object>``."""
    tag = element.tag.casefold() if isinstance(element.tag, str) else ""
    return tag in {"bndbox", "robndbox"} or (tag == "object" and element.tag != tag)


def _shape(each: Any, first: float) -> Geometry:
    turned = each.find("robndbox")
    if turned is not None:  # roLabelImg: a centre, sizes and an angle in radians, clockwise
        cx, cy, width, height, angle = (_number(turned, field) for field in ("cx", "cy", "w", "h", "angle"))
        box(0, 0, width, height)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = cx - (width * cos - height * sin) / 2, cy - (width * sin + height * cos) / 2
        return Rectangle(x, y, width, height, math.degrees(angle) % 360)
    if each.find("bndbox") is None:
        raise Flawed("it has no bndbox")
    left, top, right, bottom = (_number(each, f"bndbox/{edge}") for edge in _EDGES)
    return box(left - first, top - first, right - left + first, bottom - top + first)


def _remarks(each: Any) -> Remarks:
    """The flags, the pose and CVAT's attributes of an object."""
    flags = frozenset(flag for flag in _FLAGS if _text(each, flag).casefold() in {"1", "1.0", "true"})
    pose = _text(each, "pose")
    attributes: dict[str, Any] = {}
    for one in each.findall("attributes/attribute"):
        if name := _text(one, "name"):
            value = _value(_text(one, "value"))
            there = attributes.get(name)
            more = there if isinstance(there, list) else [there]
            attributes[name] = [*more, value] if name in attributes else value
    return Remarks(flags, "" if pose.casefold() in _NO_POSE else pose, attributes)


def _value(text: str) -> Any:
    """A yes, a no or a number as such; else the text."""
    try:
        value = msgspec.json.decode(text.lower() if text.casefold() in {"true", "false"} else text)
    except msgspec.DecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _label(each: Any) -> str:
    label = _text(each, "name")
    if not label:
        raise Flawed("it has no name")
    return label


def _mask(pixels: NDArray[np.bool_], width: int, height: int) -> Mask:
    if pixels.shape != (height, width):
        raise Flawed(f"a mask of {pixels.shape[1]} x {pixels.shape[0]} on a photo of {width} x {height}")
    return pixels_mask(pixels)


def _size(page: Any) -> tuple[int, int]:
    try:
        width, height = int(_number(page, "size/width")), int(_number(page, "size/height"))
    except Flawed:
        return 0, 0
    return (width, height) if width > 0 and height > 0 else (0, 0)


def _instances(files: Files, name: str) -> NDArray[np.uint8]:
    """The palette's index of each pixel: the object's place in the XML, from 1. Raises `Flawed`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, DatasetError) as error:
        raise Flawed(f"its mask cannot be read ({error})") from None
    if mode not in {"P", "L"}:
        raise Flawed(f"its mask has the colours {mode}, not a palette")
    return np.where(pixels == _VOID, 0, pixels).astype(np.uint8)


def _text(element: Any, path: str) -> str:
    return str(element.findtext(path) or "").strip()


def _number(element: Any, path: str) -> float:
    text = _text(element, path)
    try:
        value = float(text)
    except ValueError:
        raise Flawed(f"{path} is {text!r:.40}, not a number") from None
    if not abs(value) < 1e7:
        raise Flawed(f"{path} is {text!r:.40}, out of range")
    return value
