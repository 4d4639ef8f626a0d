"""YOLO as Ultralytics reads it: ``labels/{train,val,test}/*.txt``, ``data.yaml`` and a list of images a split.

Formats: https://docs.ultralytics.com/datasets/. Rows are in shares of the image, classes count from 0. What a row says
of an object is the one thing in which detect, segment, OBB and pose differ, so rows of one data set never mix.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from exporters.dataset import Box, Image, Item, Object
from exporters.formats.writer import NO_AREA, Job, shape_name
from exporters.shapes import is_upright


class YoloDetectWriter:
    """YOLO detect: every shape is its box, ``class x_centre y_centre width height``.

    Writes one text file an image, empty for an image without objects.
    """

    image_folder: ClassVar[str] = "images/{split}"
    name: ClassVar[str] = "yolo-detect"

    def __init__(self, job: Job) -> None:
        self.converted: Counter[str] = Counter()
        self._job = job
        self._lists = {
            split: (job.scratch / f"{self.name}-{split}").open("w+", encoding="utf-8", newline="\n")
            for split in job.splits
        }

    def write(self, item: Item) -> Sequence[tuple[Object, str]]:
        """Write an image's rows; what has none is given back."""
        image = item.image
        rows, dropped = [], []
        for each in item.objects:
            if each.box is None:
                dropped.append((each, NO_AREA))
                continue
            rows.append(f"{each.class_id - 1} {self._row(each, each.box, image)}\n")
        self._save(image, rows)
        return dropped

    def close(self) -> None:
        """Write the lists of images and ``data.yaml``, whose class numbers are the class map's less one."""
        for split, file in self._lists.items():
            file.close()
            self._job.sink.write_file(f"{split}.txt", self._job.scratch / f"{self.name}-{split}")
        names = self._job.classes.names
        lines = [f"{split}: images/{split}" for split in self._job.splits]
        lines += [*self._sheet(), f"nc: {len(names)}", "names:"]
        # JSON strings are YAML strings, so that no label is taken for a number, a boolean or a comment.
        lines += [f"  {number}: {quoted(name)}" for number, name in enumerate(names)]
        self._job.sink.write("data.yaml", ("\n".join(lines) + "\n").encode())

    def _save(self, image: Image, rows: Sequence[str]) -> None:
        self._job.sink.write(f"labels/{image.split}/{image.stem}.txt", "".join(rows).encode())
        self._lists[image.split].write(f"./images/{image.split}/{image.file_name}\n")

    def _row(self, each: Object, box: Box, image: Image) -> str:
        if not is_upright(each.geometry):
            self.converted[f"{shape_name(each)} -> box"] += 1
        return shares(box, image.width, image.height)

    def _sheet(self) -> list[str]:
        """Lines of ``data.yaml`` that only this kind of data set has."""
        return []


def shares(box: Box, width: int, height: int) -> str:
    """A box as YOLO writes it: its centre and size in shares of the image."""
    x_min, y_min, x_max, y_max = box
    return (
        f"{(x_min + x_max) / 2 / width:.8f} {(y_min + y_max) / 2 / height:.8f} "
        f"{(x_max - x_min) / width:.8f} {(y_max - y_min) / height:.8f}"
    )


def quoted(name: str) -> str:
    """A text as YAML has it, whatever is in it."""
    return msgspec.json.encode(name).decode()
