"""Decode common Label Studio tasks in blocks, straight into columns: one image, boxes and polygons with one label each.

The common form is declared as types, which msgspec validates while it decodes. Any other task is read by
`labelloop.labeling` and `exporters.convert.task_assembler`, which handle everything. Both ways give the same data set,
to the byte.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from exporters.columnar.columns import (
    NOT_VECTORISED,
    ClippedShapes,
    RegionMetadata,
    Shapes,
    clip_batch,
    clip_remaining,
    percent_to_pixels,
)
from exporters.convert.annotation_policy import CONSENSUS, unsettled_status
from exporters.convert.options import ConversionOptions
from exporters.convert.task_images import guess_image_key
from exporters.model.class_map import ClassMap
from exporters.model.clipping import ClippedShape
from exporters.model.file_names import imported_coco_fields, original_name
from exporters.model.records import IMAGE_SLOT, OBJECTS_A_TASK
from exporters.structures.arrays import pack
from labelloop.labeling.studio.config import LabelConfig

# Tasks decoded at a time.
_AT_ONCE = 16
_NAN = float("nan")
_Coordinate = Annotated[float, Meta(gt=-1e9, lt=1e9)]
_Length = Annotated[float, Meta(gt=0, lt=1e9)]
_Pixels = Annotated[int, Meta(gt=0, lt=100_000)]
_Nothing = Annotated[dict[str, Any], Meta(max_length=0)]
# A region id. Bounded, like the pixels, so that formats can use fixed-width cells.
_Id = Annotated[str, Meta(min_length=1, max_length=200)]


class Value(msgspec.Struct, gc=False):
    """The value of a result: of a rectangle, without ``points``, or of a polygon."""

    x: _Coordinate = _NAN
    y: _Coordinate = _NAN
    width: _Length = _NAN
    height: _Length = _NAN
    rotation: _Coordinate = 0.0
    points: Annotated[list[tuple[_Coordinate, _Coordinate]], Meta(min_length=3)] | None = None
    rectanglelabels: tuple[str] | None = None
    polygonlabels: tuple[str] | None = None


class _Task(msgspec.Struct, gc=False):
    id: Annotated[int, Meta(gt=0, lt=IMAGE_SLOT)]
    data: dict[str, Any]
    annotations: Any
    meta: dict[str, Any] | None = None


class FastTask(msgspec.Struct, gc=False):
    """A task in the common form: its image, the rows of its objects, and the rule that selected its annotation."""

    task: int
    key: str
    url: str
    rule: str
    first: int
    last: int
    width: int
    height: int
    annotation: int | None
    annotator: int | None
    coco_fields: Mapping[str, Any] = {}


class FastBatch(msgspec.Struct, frozen=True):
    """The common tasks of a block and the columns of their objects.

    Attributes:
        tasks: One entry per task of the block; ``None`` for a task that needs the general decoder.
        shapes: The shapes as drawn.
        clipped: The shapes clipped to their images.
        remaining: The rows of kind `NOT_VECTORISED`: their clipped shape, or the reason why it is rejected.
        metadata: Region ids and scores.
        class_ids: (rows,), the class numbers; 0 for a label without a number.
    """

    tasks: list[FastTask | None]
    shapes: Shapes | None = None
    clipped: ClippedShapes | None = None
    remaining: Mapping[int, ClippedShape | str] = {}
    metadata: RegionMetadata = RegionMetadata()
    class_ids: NDArray[np.int64] = np.empty(0, np.int64)


class FastTaskDecoder:
    """Decodes blocks of tasks by the options of an export."""

    def __init__(self, rules: ConversionOptions, classes: ClassMap) -> None:
        self._rules, self._classes = rules, classes
        self._keys = [tag.value for tag in rules.config.images] if rules.config else None
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(_task_type(rules.config)).decode
        self._rules_by_kind: dict[tuple[bool, int | None], str] = {}

    def decode(self, texts: Sequence[bytes | None]) -> FastBatch:
        """Decode the tasks of a block; ``None`` stands for a task to be skipped."""
        block = _Block(self._classes)
        for first in range(0, len(texts), _AT_ONCE):
            block.add(
                [self._decode_task(text) if text is not None else None for text in texts[first : first + _AT_ONCE]]
            )
        return block.finish()

    def _decode_task(self, text: bytes) -> "_DecodedTask | None":
        """Return a task and its selected annotation; None if it needs the general decoder."""
        try:
            task = self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if len(task.annotations) != 1 or unsettled_status(task):
            return None
        (annotation,) = task.annotations
        if annotation.was_cancelled or not 0 < len(annotation.result) < OBJECTS_A_TASK:
            return None
        keys = self._keys if self._keys is not None else guess_image_key(task.data)
        url = task.data.get(keys[0]) if len(keys) == 1 else None
        if type(url) is not str or not url or (task.meta and original_name(task.meta, url)):
            return None
        rule = self._rule(annotation)
        return _DecodedTask(task.id, keys[0], url, annotation, rule, imported_coco_fields(task.meta)) if rule else None

    def _rule(self, annotation: Any) -> str:
        """Return the rule that selects the only annotation of a task; empty if none does.

        For a single annotation, policies look only at its annotator and whether it is the ground truth.
        """
        kind = annotation.ground_truth, annotation.completed_by
        rule = self._rules_by_kind.get(kind)
        if rule is None:
            chosen, rule = self._rules.policy((annotation,))
            rule = self._rules_by_kind[kind] = rule if len(chosen) == 1 and rule != CONSENSUS else ""
        return rule


class _DecodedTask(msgspec.Struct, gc=False):
    """A task that has the common form as far as types can check it."""

    task: int
    key: str
    url: str
    annotation: Any
    rule: str
    coco_fields: Mapping[str, Any]


class _Block:
    """The columns of a block's common tasks, filled a few tasks at a time, which are then released.

    A few decoded tasks fit in the processor's cache; a whole block does not.
    """

    def __init__(self, classes: ClassMap) -> None:
        self._classes = classes
        self._tasks: list[FastTask | None] = []
        self._fields = [bytearray() for _ in range(5)]  # x, y, width, height, rotation
        self._sizes = [bytearray(), bytearray()]
        self._points, self._counts = bytearray(), bytearray()
        self._ring, self._polygon, self._labelled = bytearray(), bytearray(), bytearray()
        self._unique_ids = bytearray()
        self._metadata = RegionMetadata([], [])
        self._class_ids = bytearray()
        self._rows = 0

    def add(self, tasks: Sequence[_DecodedTask | None]) -> None:
        """Add the columns of some tasks; ``None`` stands for a task that needs the general decoder."""
        annotations = [task.annotation for task in tasks if task]
        results = list(chain.from_iterable([annotation.result for annotation in annotations]))
        values = [result.value for result in results]
        points = [value.points for value in values]
        polygons = [ring for ring in points if ring]
        labels = [value.polygonlabels if value.points else value.rectanglelabels for value in values]
        names = [label[0] if label else "" for label in labels]
        self._points += pack(list(chain.from_iterable(chain.from_iterable(polygons))))
        self._counts += pack(list(map(len, polygons)), "q")
        x, y, width, height, rotation = self._fields
        x += pack([value.x for value in values])
        y += pack([value.y for value in values])
        width += pack([value.width for value in values])
        height += pack([value.height for value in values])
        rotation += pack([value.rotation for value in values])
        image_width, image_height = self._sizes
        image_width += pack([result.original_width for result in results], "I")
        image_height += pack([result.original_height for result in results], "I")
        self._ring += bytes(map(bool, points))
        self._polygon += bytes([result.type == "polygonlabels" for result in results])
        self._labelled += bytes(map(bool, map(str.strip, names)))
        self._class_ids += pack(list(self._classes.ids(names)), "q")
        self._metadata.scores.extend([result.score for result in results])
        self._metadata.regions.extend([result.id for result in results])
        self._add_tasks(tasks)

    def _add_tasks(self, tasks: Sequence[_DecodedTask | None]) -> None:
        """Record the rows of each task, which follow those of the tasks before it."""
        regions, last = self._metadata.regions, self._rows
        for task in tasks:
            if task is None:
                self._tasks.append(None)
                continue
            annotation, result = task.annotation, task.annotation.result
            first, last = last, last + len(result)
            self._unique_ids.append(len(set(regions[first:last])) == len(result))  # results with one id are one region
            width, height = result[0].original_width, result[0].original_height
            rows, ids = (first, last), (annotation.id, annotation.completed_by)
            self._tasks.append(
                FastTask(task.task, task.key, task.url, task.rule, *rows, width, height, *ids, task.coco_fields)
            )
        self._rows = last

    def finish(self) -> FastBatch:
        """Check what types cannot, and return the tasks and their columns."""
        if not self._unique_ids:
            return FastBatch(self._tasks)
        tasks = [task for task in self._tasks if task]
        first = np.array([task.first for task in tasks])
        lengths = np.array([task.last for task in tasks]) - first
        x, y, width, height, rotation = (np.frombuffer(field) for field in self._fields)
        ring, polygon = np.frombuffer(self._ring, np.bool_), np.frombuffer(self._polygon, np.bool_)
        valid_rows = np.frombuffer(self._labelled, np.bool_) & (ring == polygon)
        valid_rows &= ring | ~np.isnan(x + y + width + height)
        sizes = [np.frombuffer(size, np.uint32) for size in self._sizes]
        for size in sizes:
            valid_rows &= size == np.repeat(size[first], lengths)  # one image has one size
        valid_tasks = np.logical_and.reduceat(valid_rows, first) & np.frombuffer(self._unique_ids, np.bool_)
        if not valid_tasks.all():
            validity = iter(valid_tasks.tolist())
            self._tasks = [task if task and next(validity) else None for task in self._tasks]
        points = np.frombuffer(self._points).reshape(-1, 2)
        shapes = percent_to_pixels(
            np.stack((x, y, width, height, rotation)).T,
            points,
            np.frombuffer(self._counts, np.int64),
            ring,
            np.stack(sizes).astype(np.float64).T,
        )
        clipped = clip_batch(shapes)
        undecided = np.flatnonzero((clipped.kinds == NOT_VECTORISED) & np.repeat(valid_tasks, lengths))
        remaining = clip_remaining(shapes, undecided.tolist())
        return FastBatch(
            self._tasks, shapes, clipped, remaining, self._metadata, np.frombuffer(self._class_ids, np.int64)
        )


def _task_type(config: LabelConfig | None) -> Any:
    """Build the type of a common task; with a label config its results have the config's controls."""
    control: Any = Literal[tuple(config.controls)] if config and config.controls else str
    result = msgspec.defstruct(
        "Result",
        [
            ("type", Literal["rectanglelabels", "polygonlabels"]),
            ("value", Value),
            ("id", _Id),
            ("from_name", control),
            ("original_width", _Pixels),
            ("original_height", _Pixels),
            ("item_index", Literal[0] | None, None),
            ("score", _Coordinate | None, None),
            ("meta", _Nothing | None, None),
        ],
        gc=False,
    )
    annotation = msgspec.defstruct(
        "Annotation",
        [
            ("result", cast(Any, list)[result]),
            ("id", int | None, None),
            ("completed_by", int | None, None),
            ("was_cancelled", bool, False),
            ("ground_truth", bool, False),
            ("created_at", str, ""),
            ("updated_at", str, ""),
        ],
        gc=False,
    )
    return msgspec.defstruct("Task", [("annotations", cast(Any, list)[annotation])], bases=(_Task,), gc=False)
