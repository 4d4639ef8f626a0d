"""Ultralytics NDJSON: one file that a trainer fetches and that names each photo by its address.

Format: ``convert_ndjson_to_yolo``, https://docs.ultralytics.com/reference/data/converter/: a line for the data set,
then one for each image with its rows. ``yolo train data=https://.../dataset.ndjson`` fetches the photos and trains.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec

from exporters.formats.base import Place, Record
from exporters.formats.yolo import YoloDetect
from exporters.formats.yolo_polygons import YoloObb, YoloSegment
from exporters.formats.yolo_pose import YoloPose
from exporters.model.records import Image
from labelloop.labeling.splits import SPLITS

_encode = msgspec.json.Encoder().encode
FILE = "dataset.ndjson"


class _Line(msgspec.Struct, frozen=True, gc=False):
    """A record: an image with its rows as YOLO's text has them."""

    file: str
    url: str
    width: int
    height: int
    rows: str


class _Ndjson:
    """What the four tasks share: the rows are YOLO's, laid out in one file instead of one an image.

    Photos with an http address are fetched by the trainer from there. Where one has none (``s3://``, an upload) the
    file says ``"path": "."``: the trainer takes them from ``images/`` beside the file, where ``dataset pull`` lays
    them. A split that Ultralytics does not know (tasks kept apart) is a file of its own.
    """

    needs_size: ClassVar[bool] = True  # each image says its own
    publish_plain: ClassVar[bool] = True
    task: ClassVar[str]
    rows: ClassVar[str]

    def _page(self, image: Image, rows: Sequence[str]) -> bytes:
        """The record of an image with these rows."""
        return _encode(_Line(image.file_name, image.url, image.width, image.height, "".join(rows)))

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write ``dataset.ndjson``; images wait on the disk until it is known whether each one has an address."""
        decode = msgspec.json.Decoder(_Line).decode
        with ExitStack() as opened:
            waiting: dict[str, BinaryIO] = {FILE: opened.enter_context(place.scratch())}
            everywhere = dict.fromkeys(waiting, True)
            for record in records:
                each = decode(record.body)
                known = record.split in SPLITS
                name = FILE if known else f"{record.split}.ndjson"
                if name not in waiting:
                    waiting[name], everywhere[name] = opened.enter_context(place.scratch()), True
                everywhere[name] &= each.url.startswith(("http://", "https://"))
                waiting[name].write(self._line(each, record.split if known else "test"))
            for name, lines in waiting.items():
                with place.open(name) as out:
                    out.write(_encode(self._head(fetched=everywhere[name])) + b"\n")
                    lines.seek(0)
                    while chunk := lines.read(1 << 20):
                        out.write(chunk)

    def _line(self, each: _Line, split: str) -> bytes:
        rows = ",".join(f"[{','.join(row.split())}]" for row in each.rows.splitlines())
        told = {"type": "image", "file": each.file, "url": each.url, "width": each.width, "height": each.height}
        annotations = msgspec.Raw(f'{{"{self.rows}":[{rows}]}}'.encode())
        return _encode(told | {"split": split, "annotations": annotations}) + b"\n"

    def _head(self, *, fetched: bool) -> dict[str, Any]:
        names = self.job.classes  # type: ignore[attr-defined]
        head = {
            "type": "dataset",
            "task": self.task,
            "name": "labelloop",
            "class_names": {str(number): name for number, name in enumerate(names)},
        }
        return head | dict(self._more()) | ({} if fetched else {"path": "."})

    def _more(self) -> Iterator[tuple[str, Any]]:
        """What only this task tells of the data set."""
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
    """Ultralytics NDJSON of turned boxes."""

    name: ClassVar[str] = "ndjson-obb"
    task: ClassVar[str] = "obb"
    rows: ClassVar[str] = "obb"


class NdjsonPose(_Ndjson, YoloPose):
    """Ultralytics NDJSON of boxes with key points."""

    name: ClassVar[str] = "ndjson-pose"
    task: ClassVar[str] = "pose"
    rows: ClassVar[str] = "pose"

    def _more(self) -> Iterator[tuple[str, Any]]:
        names, flip = self._skeleton.names, self._skeleton.flip
        yield "kpt_shape", [len(names), 3]
        yield "kpt_names", {str(number): names for number in range(len(self.job.classes))}
        if flip is not None:
            yield "flip_idx", flip
