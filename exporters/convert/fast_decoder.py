"""Tasks as Label Studio usually writes them, read in blocks: one image, boxes and polygons with one label each.

What is usual is said by types, which msgspec checks while it decodes; a task that is anything else is read by
`labelloop.labeling` and `exporters.convert.task_assembler`, which know all there is. Both give the same data set, to
the byte.
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
from exporters.convert.annotation_policy import TOGETHER, unsettled
from exporters.convert.options import Rules
from exporters.convert.task_images import guess
from exporters.model.class_map import ClassMap
from exporters.model.clipping import Fitted
from exporters.model.file_names import image_about, original_name
from exporters.model.records import IMAGE_SLOT, OBJECTS_A_TASK
from exporters.structures.arrays import pack
from labelloop.labeling.studio.config import LabelConfig

_AT_ONCE = 16
_NAN = float("nan")
_Coordinate = Annotated[float, Meta(gt=-1e9, lt=1e9)]
_Length = Annotated[float, Meta(gt=0, lt=1e9)]
_Pixels = Annotated[int, Meta(gt=0, lt=100_000)]
_Nothing = Annotated[dict[str, Any], Meta(max_length=0)]
_Id = Annotated[str, Meta(min_length=1, max_length=200)]
"""Of a region. Like the pixels so short that a format can lay objects out in cells of fixed width."""


class Value(msgspec.Struct, gc=False):
    """The value of a result: a rectangle's, which has no ``points``, or a polygon's."""

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
    """A usual task: its image, the rows of its objects, and by which rule its annotation counts."""

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
    about: Mapping[str, Any] = {}


class FastBatch(msgspec.Struct, frozen=True):
    """The usual tasks of a block and the rows of their objects.

    ``of[i]`` is the draft of entry ``i``; ``None`` where that is not a usual task. ``asked`` says of the rows of kind
    ``OTHER`` how they fit, or why they do not. ``class_ids`` are the numbers of the rows' labels, 0 for one that is no
    class yet.
    """

    of: list[FastTask | None]
    shapes: Shapes | None = None
    fits: ClippedShapes | None = None
    asked: Mapping[int, Fitted | str] = {}
    said: RegionMetadata = RegionMetadata()
    class_ids: NDArray[np.int64] = np.empty(0, np.int64)


class FastTaskDecoder:
    """Reads blocks of tasks by the rules of an export, whose classes are numbered so far as ``classes`` says."""

    def __init__(self, rules: Rules, classes: ClassMap) -> None:
        self._rules, self._classes = rules, classes
        self._keys = [tag.value for tag in rules.config.images] if rules.config else None
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(_task_type(rules.config)).decode
        self._chosen_by: dict[tuple[bool, int | None], str] = {}

    def read(self, texts: Sequence[bytes | None]) -> FastBatch:
        """The usual tasks of a block: ``None`` stands for what need not be looked at."""
        block = _Block(self._classes)
        for first in range(0, len(texts), _AT_ONCE):
            block.add([self._one(text) if text is not None else None for text in texts[first : first + _AT_ONCE]])
        return block.drafts()

    def _one(self, text: bytes) -> "_DecodedTask | None":
        """A task and its one annotation that counts; None where there is anything to ask."""
        try:
            task = self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if len(task.annotations) != 1 or unsettled(task):
            return None
        (annotation,) = task.annotations
        if annotation.was_cancelled or not 0 < len(annotation.result) < OBJECTS_A_TASK:
            return None
        keys = self._keys if self._keys is not None else guess(task.data)
        url = task.data.get(keys[0]) if len(keys) == 1 else None
        if type(url) is not str or not url or (task.meta and original_name(task.meta, url)):
            return None
        rule = self._rule(annotation)
        return _DecodedTask(task.id, keys[0], url, annotation, rule, image_about(task.meta)) if rule else None

    def _rule(self, annotation: Any) -> str:
        """The rule by which a task's only annotation counts by itself; empty where it does not.

        Of a single annotation no policy looks at more than who made it and whether it is the ground truth.
        """
        kind = annotation.ground_truth, annotation.completed_by
        rule = self._chosen_by.get(kind)
        if rule is None:
            chosen, rule = self._rules.policy((annotation,))
            rule = self._chosen_by[kind] = rule if len(chosen) == 1 and rule != TOGETHER else ""
        return rule


class _DecodedTask(msgspec.Struct, gc=False):
    """A task that is usual as far as types say it."""

    task: int
    key: str
    url: str
    annotation: Any
    rule: str
    about: Mapping[str, Any]


class _Block:
    """The columns of a block's usual tasks, filled by a few tasks at a time, which are let go at once.

    What was just decoded lies in the processor's cache; a block of it would not.
    """

    def __init__(self, classes: ClassMap) -> None:
        self._classes = classes
        self._of: list[FastTask | None] = []
        self._fields = [bytearray() for _ in range(5)]  # x, y, width, height, rotation
        self._sizes = [bytearray(), bytearray()]
        self._points, self._counts = bytearray(), bytearray()
        self._ring, self._polygon, self._labelled = bytearray(), bytearray(), bytearray()
        self._told_apart = bytearray()
        self._said = RegionMetadata([], [])
        self._class_ids = bytearray()
        self._rows = 0

    def add(self, found: Sequence[_DecodedTask | None]) -> None:
        """Take some tasks: ``None`` for one that is not usual."""
        annotations = [each.annotation for each in found if each]
        results = list(chain.from_iterable([each.result for each in annotations]))
        values = [each.value for each in results]
        points = [each.points for each in values]
        drawn = [each for each in points if each]
        labels = [each.polygonlabels if each.points else each.rectanglelabels for each in values]
        names = [each[0] if each else "" for each in labels]
        self._points += pack(list(chain.from_iterable(chain.from_iterable(drawn))))
        self._counts += pack(list(map(len, drawn)), "q")
        x, y, width, height, rotation = self._fields
        x += pack([each.x for each in values])
        y += pack([each.y for each in values])
        width += pack([each.width for each in values])
        height += pack([each.height for each in values])
        rotation += pack([each.rotation for each in values])
        image_width, image_height = self._sizes
        image_width += pack([each.original_width for each in results], "I")
        image_height += pack([each.original_height for each in results], "I")
        self._ring += bytes(map(bool, points))
        self._polygon += bytes([each.type == "polygonlabels" for each in results])
        self._labelled += bytes(map(bool, map(str.strip, names)))
        self._class_ids += pack(list(self._classes.ids(names)), "q")
        self._said.scores.extend([each.score for each in results])
        self._said.regions.extend([each.id for each in results])
        self._place(found)

    def _place(self, found: Sequence[_DecodedTask | None]) -> None:
        """Say where the rows of each task are, which are those of the tasks before it and then its own."""
        regions, last = self._said.regions, self._rows
        for each in found:
            if each is None:
                self._of.append(None)
                continue
            annotation, result = each.annotation, each.annotation.result
            first, last = last, last + len(result)
            self._told_apart.append(len(set(regions[first:last])) == len(result))  # results of one id are one region
            width, height = result[0].original_width, result[0].original_height
            rows, who = (first, last), (annotation.id, annotation.completed_by)
            self._of.append(FastTask(each.task, each.key, each.url, each.rule, *rows, width, height, *who, each.about))
        self._rows = last

    def drafts(self) -> FastBatch:
        """Which of the tasks are usual in what types cannot say as well, and the columns."""
        if not self._told_apart:
            return FastBatch(self._of)
        drafts = [each for each in self._of if each]
        first = np.array([each.first for each in drafts])
        lengths = np.array([each.last for each in drafts]) - first
        x, y, width, height, rotation = (np.frombuffer(field) for field in self._fields)
        ring, polygon = np.frombuffer(self._ring, np.bool_), np.frombuffer(self._polygon, np.bool_)
        fine = np.frombuffer(self._labelled, np.bool_) & (ring == polygon)
        fine &= ring | ~np.isnan(x + y + width + height)
        sizes = [np.frombuffer(size, np.uint32) for size in self._sizes]
        for size in sizes:
            fine &= size == np.repeat(size[first], lengths)  # one image has one size
        good = np.logical_and.reduceat(fine, first) & np.frombuffer(self._told_apart, np.bool_)
        if not good.all():
            usual = iter(good.tolist())
            self._of = [each if each and next(usual) else None for each in self._of]
        points = np.frombuffer(self._points).reshape(-1, 2)
        shapes = percent_to_pixels(
            np.stack((x, y, width, height, rotation)).T,
            points,
            np.frombuffer(self._counts, np.int64),
            ring,
            np.stack(sizes).astype(np.float64).T,
        )
        fits = clip_batch(shapes)
        others = np.flatnonzero((fits.kinds == NOT_VECTORISED) & np.repeat(good, lengths))
        asked = clip_remaining(shapes, others.tolist())
        return FastBatch(self._of, shapes, fits, asked, self._said, np.frombuffer(self._class_ids, np.int64))


def _task_type(config: LabelConfig | None) -> Any:
    """The type of a usual task; with a label config its results come from the config's controls."""
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
