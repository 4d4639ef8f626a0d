"""COCO instances: ``annotations/instances_{train,val,test}.json``, with outlines, masks and provenance.

Format: https://cocodataset.org/#format-data. Numbers are rounded to 1/10,000 of a pixel.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec
import numpy as np

from exporters.columnar.block import Block
from exporters.formats.base import (
    ABOUT,
    ATTRIBUTES,
    FLAGS,
    NO_AREA,
    NOTES,
    Encoded,
    ItemFormat,
    Job,
    Place,
    Record,
    repeated,
    shape_name,
)
from exporters.formats.coco_columnar import annotations
from exporters.model.clipping import is_upright, rings, visible
from exporters.model.keypoints import ALONE, ONLY_ONE, Joined, Placed
from exporters.model.outlines import one_ring
from exporters.model.records import Image, Item, Object
from labelloop.labeling.errors import TooLarge
from labelloop.labeling.geometry.shapes import KeyPoint, Mask
from labelloop.labeling.studio.region_attributes import CROWD, POSE
from labelloop.labeling.studio.region_attributes import FLAGS as REMARKED

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_HOLES = "outline with holes -> mask"
_HOLES_BRIDGED = "outline with holes of a very large image -> polygon, holes joined by bridges"
_HOLES_SMALL = "outline with holes smaller than a pixel -> polygon, holes joined by bridges"
_DIGITS = 4
"""Of a pixel, after the point."""
_KEPT_OUT = ("license", "info")
"""What an import kept of an image that does not stand in the image itself."""
NO_SKELETON = "a key point, and no label config that tells the order of key points"


class _Body(msgspec.Struct, frozen=True, gc=False):
    """A record: an image of COCO and its annotations, as they stand in the file, and what is known of its source.

    ``source`` has its ``license`` and the ``info`` of the data set that it came with.
    """

    image: msgspec.Raw
    annotations: msgspec.Raw
    source: dict[str, Any] = {}


def twin_key(annotation: Mapping[str, Any]) -> bytes:
    """What two annotations of one image that say the same have in common: all but their own names."""
    return _encode({key: value for key, value in annotation.items() if key not in {"id", "region_id"}})


class Coco(ItemFormat):
    """Lays out one file a split.

    Each object has its box, its area and its outline: four corners for a rectangle (turned or not), the points of a
    polygon, run lengths for a mask, so that a mask stays one annotation with its holes. Where the label config has key
    points, every category names them and every annotation has its own (COCO keypoints), zeros where it has none. Beyond
    the format's own keys an annotation carries ``region_id``, ``annotation_id``, ``annotator``, ``score``,
    ``attributes`` and ``meta``, an image its ``task_id``. A crowd has ``iscrowd`` 1 and run lengths as COCO's own files
    have them, as a list. What an import kept of an image, its license and the data set's ``info`` is written back.
    """

    name: ClassVar[str] = "coco"
    places: ClassVar[frozenset[str]] = frozenset({FLAGS, ATTRIBUTES, NOTES, ABOUT})
    own_ids: ClassVar[bool] = True
    """Whether categories have their numbers of `Job.categories`, not those of the class map."""
    implicit_conversions: tuple[str, str, str] = ("rectangle -> polygon", "rotated rectangle -> polygon", "")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.skeleton:  # images go one by one, and what is done to their objects is counted there
            self.implicit_conversions = ("", "", "")

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image and its objects; shapes without an area are given back, but for key points of an object."""
        skeleton = self.job.skeleton
        joined = skeleton.join(item.objects) if skeleton else Joined({})
        converted[ONLY_ONE] += joined.given
        dropped = list(joined.refused)
        records: list[dict[str, Any]] = []
        held = []
        for each in item.objects:
            if each.box is not None:
                record = self._annotation(each, item.image, converted)
                if skeleton:
                    record |= _keypoints(joined.places[each.id])
                held.append(each)
                records.append(record)
            elif not isinstance(each.geometry, KeyPoint):
                dropped.append((each, NO_AREA))
            elif not skeleton:
                dropped.append((each, ALONE if not each.parent else NO_SKELETON))
        keys = [twin_key(each) for each in records]
        once: dict[bytes, dict[str, Any]] = {}
        for key, record in zip(keys, records, strict=True):
            once.setdefault(key, record)
        dropped += repeated(held, keys)
        return _record(_head(item.image, item.about), _encode(list(once.values()))[1:-1], _source(item.about)), dropped

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`. Key points need the objects of an image together: then images go one by one."""
        columns = block.columns
        if columns is None or self.job.skeleton:
            return super().encode(block)
        encoded = self.encode_some(block.items.items(), len(block))
        images = [block.images[place] for place in block.usual]
        others: dict[int, bytes] = {}
        for row, each in columns.others.items():
            number = bisect_right(columns.first, row) - 1
            converted: Counter[str] = Counter()
            others[row] = _encode(self._annotation(each, images[number], converted))
            encoded.converted.extend((block.usual[number], change, times) for change, times in converted.items())
        names = columns.classes if self.own_ids else ()
        ids = [self.job.categories.id(name, number) for number, name in enumerate(names, 1)]
        numbers = np.array([0, *ids], np.int64)[columns.class_ids] if ids else columns.class_ids
        found = annotations(columns, [image.id for image in images], numbers, others)
        heads = _encode_lines([_told(image) for image in images]).split(b"\n")
        for number, (place, rows) in enumerate(zip(block.usual, found, strict=True)):
            about = block.about.get(place)
            head = _head(images[number], about) if about else heads[number]
            encoded.records[place] = _record(head, rows, _source(about) if about else b"")
        for number in sorted(columns.twins(_DIGITS)):
            place = block.usual[number]
            item = Item(images[number], columns.objects(number), about=block.about.get(place, {}))
            encoded.records[place], lost = self.item(item, Counter())  # what it converts is counted above
            encoded.refused.extend((place, each, reason) for each, reason in lost)
        return encoded

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Join images, annotations and categories of each split to one file."""
        skeleton, told = self.job.skeleton, self.job.categories
        points = {"keypoints": skeleton.names, "skeleton": skeleton.edges} if skeleton else {}
        categories = _encode(
            [
                {"id": told.id(name, number), "name": name, "supercategory": told.supercategories.get(name, "")}
                | points
                for number, name in enumerate(self.job.classes, 1)
            ]
        )
        decode = msgspec.json.Decoder(_Body).decode
        with ExitStack() as opened:
            sheets = {
                split: _Sheet(opened.enter_context(place.open(f"annotations/instances_{split}.json")), scratch)
                for split in self.job.splits
                for scratch in [opened.enter_context(place.scratch())]
            }
            for record in records:
                body = decode(record.body)
                sheets[record.split].add(bytes(body.image), bytes(body.annotations), body.source)
            for sheet in sheets.values():
                sheet.close(categories)

    def _annotation(self, each: Object, image: Image, converted: Counter[str]) -> dict[str, Any]:
        assert each.box is not None
        x_min, y_min, x_max, y_max = each.box
        x_min, y_min, x_max, y_max = _rounded(x_min), _rounded(y_min), _rounded(x_max), _rounded(y_max)
        number = self.job.categories.id(each.label, each.class_id) if self.own_ids else each.class_id
        record: dict[str, Any] = {
            "id": each.id,
            "image_id": image.id,
            "category_id": number,
            "bbox": (x_min, y_min, _rounded(x_max - x_min), _rounded(y_max - y_min)),
            "area": _rounded(each.area),
            "segmentation": None,
            "iscrowd": int(each.crowd),
            "region_id": each.region,
            "annotation_id": each.annotation,
            "annotator": each.annotator,
        }
        if each.crowd:
            record["segmentation"] = _crowd(each, image, converted)
        elif is_upright(each.geometry):
            converted["rectangle -> polygon"] += 1
            record["segmentation"] = ((x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max),)
        else:
            record["segmentation"] = _segmentation(each, image, converted)
        if each.score is not None:
            record["score"] = each.score
        if attributes := _attributes(each):
            record["attributes"] = attributes
        if each.annotators:
            record["annotators"] = each.annotators
        said = each.remarks
        if said.meta:
            record["meta"] = said.meta
        return {key: value for key, value in said.fields.items() if key not in record} | record


class _Sheet:
    """The file of a split being written: images go into it at once, annotations wait on the disk, memory stays flat."""

    def __init__(self, out: BinaryIO, scratch: BinaryIO) -> None:
        self._out, self._annotations = out, scratch
        self._images = self._objects = b"\n"
        self._licenses: dict[bytes, int] = {}
        self._infos: dict[bytes, None] = {}
        out.write(b'{"images":[')

    def add(self, image: bytes, annotations: bytes, source: Mapping[str, Any]) -> None:
        if isinstance(license := source.get("license"), dict):  # noqa: A001 - COCO's own name
            image = b'%b,"license":%d}' % (image[:-1], self._license(license))
        if isinstance(info := source.get("info"), dict):
            self._infos[_encode(info)] = None
        self._out.write(self._images + image)
        self._images = b",\n"
        if len(annotations) > len(b"[]"):
            self._annotations.write(self._objects + annotations[1:-1])
            self._objects = b",\n"

    def close(self, categories: bytes) -> None:
        self._out.write(b'],\n"annotations":[')
        self._annotations.seek(0)
        while chunk := self._annotations.read(1 << 20):
            self._out.write(chunk)
        licenses = [msgspec.json.decode(text) | {"id": number} for text, number in self._licenses.items()]
        parts = {
            b"categories": categories,
            b"info": self._info(),
            b"licenses": _encode(sorted(licenses, key=lambda each: int(each["id"]))),
        }
        self._out.write(b"]" + b"".join(b',\n"%b":%b' % part for part in parts.items()) + b"}\n")

    def _license(self, told: dict[str, Any]) -> int:
        """The number of a license: its own where no other has it."""
        text = _encode(told)
        if text not in self._licenses:
            own, taken = told.get("id"), self._licenses.values()
            free = type(own) is int and own not in taken
            self._licenses[text] = own if free and own is not None else max(taken, default=0) + 1
        return self._licenses[text]

    def _info(self) -> bytes:
        """That of the data set that was imported; of several, each of them under ``sources``."""
        if len(self._infos) == 1:
            return next(iter(self._infos))
        sources = {"sources": [msgspec.Raw(text) for text in self._infos]} if self._infos else {}
        return _encode({"description": "exported by labelloop"} | sources)


def _attributes(each: Object) -> dict[str, Any]:
    """What is said of an object: attributes that came with it, its flags, and what was answered about it."""
    said = each.remarks
    flags = {flag: True for flag in REMARKED if flag in said.flags and flag != CROWD}
    pose = {POSE: said.pose} if said.pose else {}
    return {**said.attributes, **flags, **pose, **each.attributes}


def _crowd(each: Object, image: Image, converted: Counter[str]) -> list[list[float]] | dict[str, Any]:
    """The run lengths of a crowd, as a list; the outline of one on a very large image."""
    shape = each.geometry
    try:
        mask = shape if isinstance(shape, Mask) else Mask.covering(visible(each), image.width, image.height)
    except TooLarge:
        return _segmentation(each, image, converted)
    if not mask.area:  # smaller than a pixel
        return _segmentation(each, image, converted)
    if not isinstance(shape, Mask):
        converted[f"crowd: {shape_name(each)} -> mask"] += 1
    return {"size": [mask.height, mask.width], "counts": mask.counts}


def _segmentation(each: Object, image: Image, converted: Counter[str]) -> list[list[float]] | dict[str, Any]:
    shape = each.geometry
    if isinstance(shape, Mask):
        return _rle(shape)
    outline = rings(each, image.width, image.height)
    if outline is None:
        try:
            mask = Mask.covering(visible(each), image.width, image.height)
        except TooLarge:
            mask = None
        if mask is not None and mask.area:
            converted[_HOLES] += 1
            return _rle(mask)
        converted[_HOLES_BRIDGED if mask is None else _HOLES_SMALL] += 1
        outline = [one_ring(each, image.width, image.height)[0]]
    if (name := shape_name(each)) != "polygon":
        converted[f"{name} -> polygon"] += 1
    return [[_rounded(number) for point in ring for number in point] for ring in outline]


def _rounded(number: float) -> float:
    """A number of pixels, from 0, to 1/10,000: as ``round(number, 4)``, at a quarter of its cost."""
    return int(number * 10_000 + 0.5) / 10_000


class _Image(msgspec.Struct, gc=False):
    """An image as it stands in the file."""

    id: int
    file_name: str
    width: int
    height: int
    coco_url: str
    task_id: int
    item_index: int


def _told(image: Image) -> _Image:
    return _Image(image.id, image.file_name, image.width, image.height, image.url, image.task, image.item_index)


def _head(image: Image, about: Mapping[str, Any]) -> bytes:
    """An image as it stands in the file, with the fields that it came with; where it lies is the source's word."""
    own = _told(image)
    if not about:
        return _encode(own)
    kept = {key: value for key, value in about.items() if key not in {*_KEPT_OUT, *_Image.__struct_fields__}}
    url = about.get("coco_url")
    return _encode({**msgspec.structs.asdict(own), **kept, **({"coco_url": url} if isinstance(url, str) else {})})


def _source(about: Mapping[str, Any]) -> bytes:
    found = {key: about[key] for key in _KEPT_OUT if key in about}
    return _encode(found) if found else b""


def _record(image: bytes, rows: bytes, source: bytes) -> bytes:
    more = (b',"source":', source) if source else ()
    return b"".join((b'{"image":', image, b',"annotations":[', rows, b"]", *more, b"}"))


def _rle(mask: Mask) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.rle.decode("ascii")}


def _keypoints(places: Sequence[Placed]) -> dict[str, Any]:
    return {
        "keypoints": [number for x, y, seen in places for number in (round(x, 4), round(y, 4), seen)],
        "num_keypoints": sum(seen > 0 for *_, seen in places),
    }
