"""COCO instances: ``annotations/instances_{train,val,test}.json``, with outlines, masks and provenance.

Format: https://cocodataset.org/#format-data. Numbers are rounded to 1/10,000 of a pixel.
"""

import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec
import numpy as np

from exporters.columnar.block import Block
from exporters.columnar.columns import Columns
from exporters.columnar.text_table import round_half_up
from exporters.formats.base import (
    ATTRIBUTES,
    FLAGS,
    IMAGE_FIELDS,
    NO_AREA,
    NOTES,
    OUTLINE_CHANGES,
    EncodedBlock,
    ItemFormat,
    OutputTree,
    Record,
    columnar_numbers,
    duplicates,
    shape_name,
)
from exporters.formats.coco_columnar import (
    ColumnarAssignment,
    annotation_rows,
    assign_points,
    merge_attributes,
    written_boxes,
)
from exporters.model.clipping import is_axis_aligned, outline_rings, visible_outline
from exporters.model.keypoints import GIVEN_TO_ONLY_OBJECT, ORPHAN_KEYPOINT, KeypointAssignment, KeypointXYV
from exporters.model.outlines import single_ring
from exporters.model.records import Image, Item, Object
from labelloop.labeling.errors import MaskTooLarge
from labelloop.labeling.geometry.shapes import KeyPoint, Mask

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_HOLES = "outline with holes -> mask"
_HOLES_BRIDGED = "outline with holes of a very large image -> polygon, holes joined by bridges"
_HOLES_SMALL = "outline with holes smaller than a pixel -> polygon, holes joined by bridges"
# Digits after the point, in pixels.
_DIGITS = 4
# Bytes of a list in memory.
_WAITING_BYTES = 1 << 17
# Imported fields that are stored separately from the image object.
_SOURCE_FIELDS = ("license", "info")
NO_SKELETON = "a key point, and no label config that tells the order of key points"


class _CocoRecord(msgspec.Struct, frozen=True, gc=False):
    """A record: an image object of COCO and its annotations, as they are in the file.

    ``source`` holds the image's ``license`` and the ``info`` of its imported data set.
    """

    image: msgspec.Raw
    annotations: msgspec.Raw
    source: dict[str, Any] = {}


def duplicate_key(annotation: Mapping[str, Any]) -> bytes:
    """Return a key that is equal for annotations of one image that differ only in their ids."""
    return _encode({key: value for key, value in annotation.items() if key not in {"id", "region_id"}})


class Coco(ItemFormat):
    """Writes one file per split.

    Each object has its box, area and outline: four corners for a rectangle (rotated or not), the points of a polygon,
    and run lengths for a mask, so that a mask with holes stays one annotation. If the label config has key points,
    every category names them and every annotation lists them (COCO keypoints), with zeros for those not drawn. In
    addition to the keys of the format an annotation has ``region_id``, ``annotation_id``, ``annotator``, ``score``,
    ``attributes`` and ``meta``, an image ``task_id``. A crowd has ``iscrowd`` 1 and uncompressed run lengths, as in
    COCO's own files. Fields of an imported image, its license and its data set's ``info`` are written back.
    """

    name: ClassVar[str] = "coco"
    supported_metadata: ClassVar[frozenset[str]] = frozenset({FLAGS, ATTRIBUTES, NOTES, IMAGE_FIELDS})
    # Whether category ids come from `FormatContext.categories` instead of the class map.
    original_ids: ClassVar[bool] = True
    implicit_conversions: tuple[str, str, str, str] = OUTLINE_CHANGES

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image and its objects; shapes without an area are rejected, except key points of an object."""
        skeleton = self.context.skeleton
        assignment = skeleton.assign(item.objects) if skeleton else KeypointAssignment({})
        converted[GIVEN_TO_ONLY_OBJECT] += assignment.inferred
        dropped = list(assignment.refused)
        records: list[dict[str, Any]] = []
        encoded_objects = []
        for obj in item.objects:
            if obj.box is not None:
                record = self._annotation(obj, item.image, converted)
                if skeleton:
                    record |= _keypoints(assignment.by_object[obj.id])
                encoded_objects.append(obj)
                records.append(record)
            elif not isinstance(obj.geometry, KeyPoint):
                dropped.append((obj, NO_AREA))
            elif not skeleton:
                dropped.append((obj, ORPHAN_KEYPOINT if not obj.parent else NO_SKELETON))
        keys = [duplicate_key(obj) for obj in records]
        unique: dict[bytes, dict[str, Any]] = {}
        for key, record in zip(keys, records, strict=True):
            unique.setdefault(key, record)
        dropped += duplicates(encoded_objects, keys)
        return _record(
            _head(item.image, item.coco_fields), _encode(list(unique.values()))[1:-1], _source(item.coco_fields)
        ), dropped

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        images = [block.images[index] for index in block.columnar]
        skeleton = self.context.skeleton
        assignment = assign_points(columns, skeleton) if skeleton else ColumnarAssignment((), _with_points(columns))
        texts = assignment.texts
        others: dict[int, bytes] = {}
        for row, obj in columns.others.items():
            number = bisect_right(columns.first, row) - 1
            converted: Counter[str] = Counter()
            text = _encode(self._annotation(obj, images[number], converted))
            others[row] = b"%b,%b}" % (text[:-1], texts[row]) if texts else text
            encoded.converted.extend((block.columnar[number], change, times) for change, times in converted.items())
        encoded.converted.extend(
            (block.columnar[number], GIVEN_TO_ONLY_OBJECT, times) for number, times in assignment.inferred
        )
        names = columns.classes if self.original_ids else ()
        ids = [self.context.categories.id(name, number) for number, name in enumerate(names, 1)]
        numbers = np.array([0, *ids], np.int64)[columns.class_ids] if ids else columns.class_ids
        rows_by_image = annotation_rows(columns, [image.id for image in images], numbers, others, texts)
        heads = _encode_lines([_image_fields(image) for image in images]).split(b"\n")
        for number, (index, rows) in enumerate(zip(block.columnar, rows_by_image, strict=True)):
            coco_fields = block.coco_fields.get(index)
            head = _head(images[number], coco_fields) if coco_fields else heads[number]
            encoded.records[index] = _record(head, rows, _source(coco_fields) if coco_fields else b"")
        for number in sorted(columns.duplicate_images(_DIGITS) | assignment.undecided):
            index = block.columnar[number]
            item = Item(images[number], columns.objects(number), coco_fields=block.coco_fields.get(index, {}))
            converted = Counter()
            encoded.records[index], rejected = self.item(item, converted)
            if number in assignment.undecided and converted[GIVEN_TO_ONLY_OBJECT]:
                encoded.converted.append((index, GIVEN_TO_ONLY_OBJECT, converted[GIVEN_TO_ONLY_OBJECT]))
            # what else it converts is counted above
            encoded.refused.extend((index, obj, reason) for obj, reason in rejected)
        return columnar_numbers(block, encoded, *written_boxes(columns))

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Join images, annotations and categories of each split into one file."""
        skeleton, coco_categories = self.context.skeleton, self.context.categories
        points = {"keypoints": skeleton.names, "skeleton": skeleton.edges} if skeleton else {}
        categories = _encode(
            [
                {
                    "id": coco_categories.id(name, number),
                    "name": name,
                    "supercategory": coco_categories.supercategories.get(name, ""),
                }
                | points
                for number, name in enumerate(self.context.classes, 1)
            ]
        )
        decode = msgspec.json.Decoder(_CocoRecord).decode
        with ExitStack() as stack:
            writers = {
                split: _SplitFileWriter(
                    stack.enter_context(output.open(f"annotations/instances_{split}.json")), scratch
                )
                for split in self.context.splits
                for scratch in [stack.enter_context(output.scratch())]
            }
            for record in records:
                writers[record.split].add(decode(record.body))
            for writer in writers.values():
                writer.close(categories)

    def _annotation(self, obj: Object, image: Image, converted: Counter[str]) -> dict[str, Any]:
        assert obj.box is not None
        x_min, y_min, x_max, y_max = obj.box
        x_min, y_min, x_max, y_max = _round(x_min), _round(y_min), _round(x_max), _round(y_max)
        category_id = self.context.categories.id(obj.label, obj.class_id) if self.original_ids else obj.class_id
        record: dict[str, Any] = {
            "id": obj.id,
            "image_id": image.id,
            "category_id": category_id,
            "bbox": (x_min, y_min, _round(x_max - x_min), _round(y_max - y_min)),
            "area": _round(obj.area),
            "segmentation": None,
            "iscrowd": int(obj.crowd),
            "region_id": obj.region,
            "annotation_id": obj.annotation,
            "annotator": obj.annotator,
        }
        if obj.crowd:
            record["segmentation"] = _crowd(obj, image, converted)
        elif is_axis_aligned(obj.geometry):
            converted["rectangle -> polygon"] += 1
            record["segmentation"] = ((x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max),)
        else:
            record["segmentation"] = _segmentation(obj, image, converted)
        if obj.score is not None:
            record["score"] = obj.score
        if attributes := merge_attributes(obj.remarks, obj.attributes):
            record["attributes"] = attributes
        if obj.annotators:
            record["annotators"] = obj.annotators
        remarks = obj.remarks
        if remarks.meta:
            record["meta"] = remarks.meta
        return {key: value for key, value in remarks.fields.items() if key not in record} | record


class _SplitFileWriter:
    """Writes the file of a split in constant memory: images directly, annotations by way of a scratch file."""

    def __init__(self, out: BinaryIO, scratch: BinaryIO) -> None:
        self._images, self._annotations = _ListWriter(out), _ListWriter(scratch)
        self._out, self._scratch = out, scratch
        self._licenses: dict[bytes, int] = {}
        self._infos: dict[bytes, None] = {}
        out.write(b'{"images":[')

    def add(self, record: _CocoRecord) -> None:
        image, annotations, source = bytes(record.image), bytes(record.annotations), record.source
        if source and isinstance(license := source.get("license"), dict):  # noqa: A001 - COCO's own name
            image = b'%b,"license":%d}' % (image[:-1], self._license(license))
        if source and isinstance(info := source.get("info"), dict):
            self._infos[_encode(info)] = None
        self._images.add(image)
        if len(annotations) > len(b"[]"):
            self._annotations.add(annotations[1:-1])

    def close(self, categories: bytes) -> None:
        self._images.flush()
        self._annotations.flush()
        self._out.write(b'],\n"annotations":[')
        self._scratch.seek(0)
        shutil.copyfileobj(self._scratch, self._out, 1 << 20)
        licenses = [msgspec.json.decode(text) | {"id": number} for text, number in self._licenses.items()]
        parts = {
            b"categories": categories,
            b"info": self._info(),
            b"licenses": _encode(sorted(licenses, key=lambda entry: int(entry["id"]))),
        }
        self._out.write(b"]" + b"".join(b',\n"%b":%b' % part for part in parts.items()) + b"}\n")

    def _license(self, license_fields: dict[str, Any]) -> int:
        """Return the id of a license: its own unless another license has it."""
        text = _encode(license_fields)
        if text not in self._licenses:
            own_id, used_ids = license_fields.get("id"), self._licenses.values()
            is_free = type(own_id) is int and own_id not in used_ids
            self._licenses[text] = own_id if is_free and own_id is not None else max(used_ids, default=0) + 1
        return self._licenses[text]

    def _info(self) -> bytes:
        """Return the ``info`` of the imported data set; several are listed under ``sources``."""
        if len(self._infos) == 1:
            return next(iter(self._infos))
        sources = {"sources": [msgspec.Raw(text) for text in self._infos]} if self._infos else {}
        return _encode({"description": "exported by labelloop"} | sources)


class _ListWriter:
    """Writes the items of a JSON list, each on a line of its own."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._before = b"\n"
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, item: bytes) -> None:
        self._waiting.append(item)
        self._size += len(item)
        if self._size >= _WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._out.write(self._before + b",\n".join(self._waiting))
            self._before = b",\n"
            self._waiting, self._size = [], 0


def _crowd(obj: Object, image: Image, converted: Counter[str]) -> list[list[float]] | dict[str, Any]:
    """Return the uncompressed run lengths of a crowd; its outline if the image is too large for a mask."""
    shape = obj.geometry
    try:
        mask = shape if isinstance(shape, Mask) else Mask.from_outline(visible_outline(obj), image.width, image.height)
    except MaskTooLarge:
        return _segmentation(obj, image, converted)
    if not mask.area:  # smaller than a pixel
        return _segmentation(obj, image, converted)
    if not isinstance(shape, Mask):
        converted[f"crowd: {shape_name(obj)} -> mask"] += 1
    return {"size": [mask.height, mask.width], "counts": mask.counts}


def _segmentation(obj: Object, image: Image, converted: Counter[str]) -> list[list[float]] | dict[str, Any]:
    shape = obj.geometry
    if isinstance(shape, Mask):
        return _rle(shape)
    outline = outline_rings(obj, image.width, image.height)
    if outline is None:
        try:
            mask = Mask.from_outline(visible_outline(obj), image.width, image.height)
        except MaskTooLarge:
            mask = None
        if mask is not None and mask.area:
            converted[_HOLES] += 1
            return _rle(mask)
        converted[_HOLES_BRIDGED if mask is None else _HOLES_SMALL] += 1
        outline = [single_ring(obj, image.width, image.height)[0]]
    if (name := shape_name(obj)) != "polygon":
        converted[f"{name} -> polygon"] += 1
    return [round_half_up(np.array(ring), _DIGITS).ravel().tolist() for ring in outline]


def _round(number: float) -> float:
    """Round a non-negative number to four digits, as ``round(number, 4)`` at a quarter of the cost."""
    return int(number * 10_000 + 0.5) / 10_000


class _CocoImage(msgspec.Struct, gc=False):
    """An image object of COCO, in the order of its keys."""

    id: int
    file_name: str
    width: int
    height: int
    coco_url: str
    task_id: int
    item_index: int


def _image_fields(image: Image) -> _CocoImage:
    return _CocoImage(image.id, image.file_name, image.width, image.height, image.url, image.task, image.item_index)


def _head(image: Image, coco_fields: Mapping[str, Any]) -> bytes:
    """Return the image object, with the fields of the imported image; an imported ``coco_url`` is preserved."""
    fields = _image_fields(image)
    if not coco_fields:
        return _encode(fields)
    extra = {
        key: value for key, value in coco_fields.items() if key not in {*_SOURCE_FIELDS, *_CocoImage.__struct_fields__}
    }
    url = coco_fields.get("coco_url")
    return _encode({**msgspec.structs.asdict(fields), **extra, **({"coco_url": url} if isinstance(url, str) else {})})


def _source(coco_fields: Mapping[str, Any]) -> bytes:
    fields = {key: coco_fields[key] for key in _SOURCE_FIELDS if key in coco_fields}
    return _encode(fields) if fields else b""


def _record(image: bytes, rows: bytes, source: bytes) -> bytes:
    more = (b',"source":', source) if source else ()
    return b"".join((b'{"image":', image, b',"annotations":[', rows, b"]", *more, b"}"))


def _rle(mask: Mask) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.rle.decode("ascii")}


def _with_points(columns: Columns) -> set[int]:
    """Return the images with key points."""
    return set(np.flatnonzero(np.diff(columns.points.first)).tolist()) if columns.points else set()


def _keypoints(keypoints: Sequence[KeypointXYV]) -> dict[str, Any]:
    return {
        "keypoints": [number for x, y, visibility in keypoints for number in (_round(x), _round(y), visibility)],
        "num_keypoints": sum(visibility > 0 for *_, visibility in keypoints),
    }
