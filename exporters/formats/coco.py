"""COCO instances: ``annotations/instances_{train,val,test}.json``, streamed, with outlines, masks and provenance.

Format: https://cocodataset.org/#format-data. Numbers are rounded to 1/10,000 of a pixel.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from exporters.dataset import Image, Item, Object
from exporters.formats.writer import NO_AREA, Job, shape_name
from exporters.keypoints import ALONE, ONLY_ONE, Joined, Placed
from exporters.shapes import is_upright, rings, visible
from labelloop.labeling.geometry import KeyPoint, Mask
from labelloop.labeling.raster import rasterise

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_HOLES = "outline with holes -> mask"
NO_SKELETON = "a key point, and no label config that tells the order of key points"


class CocoWriter:
    """Writes one file a split.

    Each object has its box, its area and its outline: four corners for a rectangle (turned or not), the points of a
    polygon, run lengths for a mask, so that a mask stays one annotation with its holes. Where the label config has key
    points, every category names them and every annotation has its own (COCO keypoints), zeros where it has none. Beyond
    the format's own keys an annotation carries ``region_id``, ``annotation_id``, ``annotator``, ``score`` and
    ``attributes``, an image its ``task_id``.
    """

    image_folder: ClassVar[str] = "images/{split}"

    def __init__(self, job: Job) -> None:
        self.converted: Counter[str] = Counter()
        self._job = job
        self._parts = {split: _Parts(job.scratch, split) for split in job.splits}

    def write(self, item: Item) -> Sequence[tuple[Object, str]]:
        """Write an image and its objects; shapes without an area are given back, but for key points of an object."""
        parts = self._parts[item.image.split]
        parts.image(_encode(_image(item.image)))
        joined = self._job.skeleton.join(item.objects) if self._job.skeleton else Joined({})
        self.converted[ONLY_ONE] += joined.given
        dropped = list(joined.refused)
        records = []
        for each in item.objects:
            if each.box is not None:
                record = self._annotation(each, item.image)
                if self._job.skeleton:
                    record |= _keypoints(joined.places[each.id])
                records.append(record)
            elif not isinstance(each.geometry, KeyPoint):
                dropped.append((each, NO_AREA))
            elif not self._job.skeleton:
                dropped.append((each, ALONE if not each.parent else NO_SKELETON))
        if records:
            parts.annotations(_encode_lines(records))
        return dropped

    def close(self) -> None:
        """Join images, annotations and categories of each split to one file."""
        skeleton = self._job.skeleton
        points = {"keypoints": skeleton.names, "skeleton": []} if skeleton else {}
        categories = _encode(
            [
                {"id": number, "name": name, "supercategory": ""} | points
                for number, name in enumerate(self._job.classes.names, 1)
            ]
        )
        for split, parts in self._parts.items():
            self._job.sink.write_file(f"annotations/instances_{split}.json", parts.join(categories))

    def _annotation(self, each: Object, image: Image) -> dict[str, Any]:
        assert each.box is not None
        x_min, y_min, x_max, y_max = each.box
        x_min, y_min, x_max, y_max = rounded(x_min), rounded(y_min), rounded(x_max), rounded(y_max)
        record: dict[str, Any] = {
            "id": each.id,
            "image_id": image.id,
            "category_id": each.class_id,
            "bbox": (x_min, y_min, rounded(x_max - x_min), rounded(y_max - y_min)),
            "area": rounded(each.area),
            "segmentation": None,
            "iscrowd": 0,
            "region_id": each.region,
            "annotation_id": each.annotation,
            "annotator": each.annotator,
        }
        if is_upright(each.geometry):
            self.converted["rectangle -> polygon"] += 1
            record["segmentation"] = ((x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max),)
        else:
            record["segmentation"] = self._segmentation(each, image)
        if each.score is not None:
            record["score"] = each.score
        if each.attributes:
            record["attributes"] = each.attributes
        return record

    def _segmentation(self, each: Object, image: Image) -> list[list[float]] | dict[str, Any]:
        shape = each.geometry
        if isinstance(shape, Mask):
            return _rle(shape)
        outline = rings(each, image.width, image.height)
        if outline is None:
            self.converted[_HOLES] += 1
            return _rle(Mask.of(rasterise(visible(each), image.width, image.height)))
        if (name := shape_name(each)) != "polygon":
            self.converted[f"{name} -> polygon"] += 1
        return [[rounded(number) for point in ring for number in point] for ring in outline]


def rounded(number: float) -> float:
    """A number of pixels, from 0, to 1/10,000: as ``round(number, 4)``, at a quarter of its cost."""
    return int(number * 10_000 + 0.5) / 10_000


class _Parts:
    """The images and the annotations of one split on the disk, until they are joined: memory stays flat."""

    def __init__(self, scratch: Path, split: str) -> None:
        self._images = (scratch / f"coco-{split}-images").open("wb+")
        self._annotations = (scratch / f"coco-{split}-annotations").open("wb+")
        self._path = scratch / f"instances_{split}.json"

    def image(self, record: bytes) -> None:
        self._images.write((b",\n" if self._images.tell() else b"") + record)

    def annotations(self, lines: bytes) -> None:
        # a line break inside a text is escaped, so each one here ends a record
        self._annotations.write((b",\n" if self._annotations.tell() else b"") + lines[:-1].replace(b"\n", b",\n"))

    def join(self, categories: bytes) -> Path:
        with self._path.open("wb") as out:
            out.write(b'{"info":{"description":"exported by labelloop"},"licenses":[],\n"images":[\n')
            for name, part in ((b'],\n"annotations":[\n', self._images), (b"],\n", self._annotations)):
                part.seek(0)
                while chunk := part.read(1 << 20):
                    out.write(chunk)
                part.close()
                out.write(name)
            out.write(b'"categories":' + categories + b"}\n")
        return self._path


def _image(image: Image) -> dict[str, Any]:
    return {
        "id": image.id,
        "file_name": image.file_name,
        "width": image.width,
        "height": image.height,
        "coco_url": image.url,
        "task_id": image.task,
        "item_index": image.item_index,
    }


def _rle(mask: Mask) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.rle.decode("ascii")}


def _keypoints(places: Sequence[Placed]) -> dict[str, Any]:
    return {
        "keypoints": [number for x, y, seen in places for number in (round(x, 4), round(y, 4), seen)],
        "num_keypoints": sum(seen > 0 for *_, seen in places),
    }
