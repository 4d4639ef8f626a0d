"""Ultralytics NDJSON: one file that a trainer downloads, with the address of each image.

Format: ``convert_ndjson_to_yolo``, https://docs.ultralytics.com/reference/data/converter/: a line for the data set,
then one line per image with its rows. ``yolo train data=https://.../dataset.ndjson`` downloads the images and trains.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec

from exporters.formats.base import OutputTree, Record
from exporters.formats.yolo import YoloDetect
from exporters.formats.yolo_polygons import YoloObb, YoloSegment
from exporters.formats.yolo_pose import YoloPose
from exporters.model.records import Image
from labelloop.labeling.splits import SPLITS

_encode = msgspec.json.Encoder().encode
FILE = "dataset.ndjson"


class _Line(msgspec.Struct, frozen=True, gc=False):
    """A record: an image with its rows in YOLO text form."""

    file: str
    url: str
    width: int
    height: int
    rows: str


class _Ndjson:
    """The common part of the four tasks: YOLO rows in one file instead of one file per image.

    Images with an http address are downloaded by the trainer. If one has none (``s3://``, an upload), the file says
    ``"path": "."``: the trainer reads them from ``images/`` next to the file, where ``dataset pull`` puts them. A split
    unknown to Ultralytics (disputed tasks) is a file of its own.
    """

    needs_size: ClassVar[bool] = True  # each image says its own
    file_per_image: ClassVar[bool] = False
    task: ClassVar[str]
    rows: ClassVar[str]

    def _page(self, image: Image, rows: Sequence[str]) -> bytes:
        """Return the record of an image with these rows."""
        return _encode(_Line(image.file_name, image.url, image.width, image.height, "".join(rows)))

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write ``dataset.ndjson``; lines are buffered on the disk until all addresses are known."""
        decode = msgspec.json.Decoder(_Line).decode
        with ExitStack() as stack:
            waiting: dict[str, BinaryIO] = {FILE: stack.enter_context(output.scratch())}
            has_addresses = dict.fromkeys(waiting, True)
            for record in records:
                line = decode(record.body)
                is_standard = record.split in SPLITS
                name = FILE if is_standard else f"{record.split}.ndjson"
                if name not in waiting:
                    waiting[name], has_addresses[name] = stack.enter_context(output.scratch()), True
                has_addresses[name] &= line.url.startswith(("http://", "https://"))
                waiting[name].write(self._line(line, record.split if is_standard else "test"))
            for name, lines in waiting.items():
                with output.open(name) as out:
                    out.write(_encode(self._head(fetched=has_addresses[name])) + b"\n")
                    lines.seek(0)
                    while chunk := lines.read(1 << 20):
                        out.write(chunk)

    def _line(self, image: _Line, split: str) -> bytes:
        rows = ",".join(f"[{','.join(row.split())}]" for row in image.rows.splitlines())
        fields = {"type": "image", "file": image.file, "url": image.url, "width": image.width, "height": image.height}
        annotations = msgspec.Raw(f'{{"{self.rows}":[{rows}]}}'.encode())
        return _encode(fields | {"split": split, "annotations": annotations}) + b"\n"

    def _head(self, *, fetched: bool) -> dict[str, Any]:
        names = self.context.classes  # type: ignore[attr-defined]
        head = {
            "type": "dataset",
            "task": self.task,
            "name": "labelloop",
            "class_names": {str(number): name for number, name in enumerate(names)},
        }
        return head | dict(self._more()) | ({} if fetched else {"path": "."})

    def _more(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields of the data set line that only this task has."""
        return iter(())


class NdjsonDetect(_Ndjson, YoloDetect):
    """Ultralytics NDJSON of boxes."""

    name: ClassVar[str] = "ndjson-detect"
    task: ClassVar[str] = "detect"
    rows: ClassVar[str] = "boxes"


class NdjsonSegment(_Ndjson, YoloSegment):
    """Ultralytics NDJSON of outlines."""

    name: ClassVar[str] = "ndjson-segment"
    task: ClassVar[str] = "segment"
    rows: ClassVar[str] = "segments"


class NdjsonObb(_Ndjson, YoloObb):
    """Ultralytics NDJSON of rotated boxes."""

    name: ClassVar[str] = "ndjson-obb"
    task: ClassVar[str] = "obb"
    rows: ClassVar[str] = "obb"


class NdjsonPose(_Ndjson, YoloPose):
    """Ultralytics NDJSON of boxes with key points."""

    name: ClassVar[str] = "ndjson-pose"
    task: ClassVar[str] = "pose"
    rows: ClassVar[str] = "pose"

    def _more(self) -> Iterator[tuple[str, Any]]:
        names, flip = self._skeleton.names, self._skeleton.flip_indices
        yield "kpt_shape", [len(names), 3]
        yield "kpt_names", {str(number): names for number in range(len(self.context.classes))}
        if flip is not None:
            yield "flip_idx", flip
