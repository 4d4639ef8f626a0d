"""YOLO detect as Ultralytics reads it: ``labels/{train,val,test}/*.txt``, ``data.yaml`` and a list of images a split.

Format: https://docs.ultralytics.com/datasets/detect/: a row ``class x_centre y_centre width height``, in shares of the
image, classes from 0.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from exporters.dataset import Box, Item, Object
from exporters.formats.writer import NO_AREA, Job, shape_name
from exporters.shapes import is_upright


class YoloDetectWriter:
    """Writes one text file an image, empty for an image without objects; every shape is its box, so rows never mix."""

    image_folder: ClassVar[str] = "images/{split}"

    def __init__(self, job: Job) -> None:
        self.converted: Counter[str] = Counter()
        self._job = job
        self._lists = {
            split: (job.scratch / f"yolo-detect-{split}").open("w+", encoding="utf-8", newline="\n")
            for split in job.splits
        }

    def write(self, item: Item) -> Sequence[tuple[Object, str]]:
        """Write an image's boxes; shapes without an area are given back."""
        image = item.image
        rows, dropped = [], []
        for each in item.objects:
            if each.box is None:
                dropped.append((each, NO_AREA))
                continue
            if not is_upright(each.geometry):
                self.converted[f"{shape_name(each)} -> box"] += 1
            rows.append(f"{each.class_id - 1} {_shares(each.box, image.width, image.height)}\n")
        self._job.sink.write(f"labels/{image.split}/{image.stem}.txt", "".join(rows).encode())
        self._lists[image.split].write(f"./images/{image.split}/{image.file_name}\n")
        return dropped

    def close(self) -> None:
        """Write the lists of images and ``data.yaml``, whose class numbers are the class map's less one."""
        for split, file in self._lists.items():
            file.close()
            self._job.sink.write_file(f"{split}.txt", self._job.scratch / f"yolo-detect-{split}")
        names = self._job.classes.names
        lines = [f"{split}: images/{split}" for split in self._job.splits]
        lines += [f"nc: {len(names)}", "names:"]
        # JSON strings are YAML strings, so that no label is taken for a number, a boolean or a comment.
        lines += [f"  {number}: {msgspec.json.encode(name).decode()}" for number, name in enumerate(names)]
        self._job.sink.write("data.yaml", ("\n".join(lines) + "\n").encode())


def _shares(box: Box, width: int, height: int) -> str:
    x_min, y_min, x_max, y_max = box
    return (
        f"{(x_min + x_max) / 2 / width:.8f} {(y_min + y_max) / 2 / height:.8f} "
        f"{(x_max - x_min) / width:.8f} {(y_max - y_min) / height:.8f}"
    )
