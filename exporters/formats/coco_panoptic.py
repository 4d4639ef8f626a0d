"""COCO panoptic: ``annotations/panoptic_{split}.json``, and a PNG for each image whose colours are segment ids.

Format: https://cocodataset.org/#format-data, "Panoptic Segmentation", and https://github.com/cocodataset/panopticapi:
the id of a segment is R + 256 G + 65,536 B, 0 is no segment, and a pixel has one segment. A label with ``isthing="0"``
in the label config is stuff: its regions are one segment of the image. See `exporters.formats.label_maps` for overlaps.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec
import numpy as np

from exporters.formats.base import LEFT_OUT, NO_AREA, ItemFormat, OutputTree, Record
from exporters.formats.label_maps import LEFT_OUT_LARGE, TOO_LARGE, LabelMap, encode_png, paint
from exporters.formats.semantic_png import is_ignored
from exporters.formats.voc import colormap
from exporters.model.records import Item, Object
from labelloop.labeling.geometry.raster import MAX_PIXELS

_encode = msgspec.json.Encoder().encode
_VOID = "region labelled void: no segment"
_MERGED = "regions of one stuff class merged"


class _Page(msgspec.Struct, frozen=True, gc=False):
    """A record: an image object and an annotation of COCO, and the PNG in base64."""

    image: msgspec.Raw
    annotation: msgspec.Raw
    stem: str
    png: str


class CocoPanoptic(ItemFormat):
    """Writes one JSON file per split and one PNG per image, also for an image without objects."""

    name: ClassVar[str] = "coco-panoptic"
    file_per_image: ClassVar[bool] = True

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode the segments of an image; shapes without an area, and void regions, are rejected."""
        image = item.image
        dropped = [(obj, NO_AREA) for obj in item.objects if obj.box is None]
        dropped += [(obj, _VOID) for obj in item.objects if obj.box is not None and is_ignored(obj.label)]
        objects = [obj for obj in item.objects if obj.box is not None and not is_ignored(obj.label)]
        if image.width * image.height > MAX_PIXELS:
            converted[LEFT_OUT_LARGE] += 1
            return LEFT_OUT, [*dropped, *((obj, TOO_LARGE) for obj in objects)]
        painted = paint(item, objects)
        segments, colours = self._segments(painted, converted)
        converted["object -> mask"] += len(objects) - len(painted.refused)
        head = {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
        annotation = {"image_id": image.id, "file_name": f"{image.stem}.png", "segments_info": segments}
        png = base64.b64encode(encode_png(colours)).decode()
        about = {"coco_url": image.url, "task_id": image.task}
        return (
            _encode(_Page(msgspec.Raw(_encode(head | about)), msgspec.Raw(_encode(annotation)), image.stem, png)),
            [*dropped, *painted.refused],
        )

    def _segments(self, painted: LabelMap, converted: Counter[str]) -> tuple[list[dict[str, Any]], Any]:
        """Return the segments of an image, and the colour of each pixel: (height, width, 3) uint8."""
        numbers: dict[Any, int] = {}  # segment -> its number, from 1
        number_of = [0]
        objects_of: dict[int, Object] = {}
        refused = {obj.id for obj, _ in painted.refused}
        for obj in painted.objects:
            segment = obj.label if obj.label in self.context.categories.stuff else obj.id
            if obj.id in refused:
                number_of.append(0)
                continue
            converted[_MERGED] += segment in numbers
            number = numbers.setdefault(segment, len(numbers) + 1)
            objects_of.setdefault(number, obj)
            number_of.append(number)
        pixels = np.array(number_of, np.int32)[painted.pixels]
        palette = colormap(len(numbers) + 1)
        boxes = _boxes(pixels)
        areas = np.bincount(pixels.ravel(), minlength=len(numbers) + 1)
        segments = [
            {
                "id": int(palette[number] @ np.array([1, 256, 65_536])),
                "category_id": self.context.categories.id(obj.label, obj.class_id),
                "area": int(areas[number]),
                "bbox": boxes[number - 1],
                "iscrowd": int(obj.crowd),
            }
            for number, obj in objects_of.items()
        ]
        return segments, palette[pixels]

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the PNG files, and the JSON file of each split."""
        decode = msgspec.json.Decoder(_Page).decode
        colours = colormap(len(self.context.classes) + 1).tolist()
        categories = [
            {
                "id": self.context.categories.id(name, number),
                "name": name,
                "supercategory": self.context.categories.supercategories.get(name, ""),
                "isthing": int(name not in self.context.categories.stuff),
                "color": colours[number],
            }
            for number, name in enumerate(self.context.classes, 1)
            if not is_ignored(name)
        ]
        with ExitStack() as stack:
            files: dict[str, tuple[BinaryIO, BinaryIO]] = {}
            for split in self.context.splits:
                out = stack.enter_context(output.open(f"annotations/panoptic_{split}.json"))
                files[split] = out, stack.enter_context(output.scratch())
                out.write(b'{"images":[')
            written: Counter[str] = Counter()
            for record in records:
                page, (out, annotations) = decode(record.body), files[record.split]
                output.write(f"annotations/panoptic_{record.split}/{page.stem}.png", base64.b64decode(page.png))
                separator = b",\n" if written[record.split] else b"\n"
                out.write(separator + bytes(page.image))
                annotations.write(separator + bytes(page.annotation))
                written[record.split] += 1
            for out, annotations in files.values():
                out.write(b'],\n"annotations":[')
                annotations.seek(0)
                while chunk := annotations.read(1 << 20):
                    out.write(chunk)
                info = {"description": "exported by labelloop"}
                out.write(b'],\n"categories":%b,\n"info":%b}\n' % (_encode(categories), _encode(info)))


def _boxes(pixels: Any) -> list[list[int]]:
    """Return x, y, width and height of the pixels of each number from 1."""
    from scipy.ndimage import find_objects  # imported here: SciPy takes 30 MB

    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in find_objects(pixels)]
    return [[left, top, right - left, bottom - top] for top, left, bottom, right in boxes]
