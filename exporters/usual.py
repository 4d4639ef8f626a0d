"""Tasks as Label Studio usually writes them, read in blocks: one image, boxes and polygons with one label each.

What is usual is said by types, which msgspec checks while it decodes; a task that is anything else is read by
`labelloop.labeling` and `exporters.assemble`, which know all there is. Both give the same data set, to the byte.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from exporters.assemble import Rules
from exporters.choose import TOGETHER, is_disputed
from exporters.columns import Fits, Said, Shapes, draw, fit
from exporters.dataset import IMAGE_SLOT, OBJECTS_A_TASK
from exporters.images import guess
from labelloop.labeling.config import LabelConfig

_NAN = float("nan")
_Coordinate = Annotated[float, Meta(gt=-1e9, lt=1e9)]
_Length = Annotated[float, Meta(gt=0, lt=1e9)]
_Pixels = Annotated[int, Meta(gt=0)]


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


class Draft(msgspec.Struct, gc=False):
    """A usual task: its image, the rows of its objects, and by which rule its annotation counts."""

    task: int
    key: str
    url: str
    rule: str
    first: int
    last: int
    width: int
    height: int


class Drafts(msgspec.Struct, frozen=True):
    """The usual tasks of a block and the rows of their objects.

    ``of[i]`` is the draft of entry ``i``; ``None`` where that is not a usual task.
    """

    of: list[Draft | None]
    shapes: Shapes | None = None
    fits: Fits | None = None
    said: Said = Said()


class Usual:
    """Reads blocks of tasks by the rules of an export."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._keys = [tag.value for tag in rules.config.images] if rules.config else None
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(_task_type(rules.config)).decode

    def read(self, texts: Sequence[bytes | None]) -> Drafts:
        """The usual tasks of a block: ``None`` stands for what need not be looked at."""
        found = [self._one(text) if text is not None else None for text in texts]
        return _Block(found).drafts() if any(found) else Drafts([None] * len(found))

    def _one(self, text: bytes) -> "_Found | None":
        """A task and its one annotation that counts; None where there is anything to ask."""
        try:
            task = self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if len(task.annotations) != 1 or is_disputed(task):
            return None
        (annotation,) = task.annotations
        if annotation.was_cancelled or not 0 < len(annotation.result) < OBJECTS_A_TASK:
            return None
        keys = self._keys if self._keys is not None else guess(task.data)
        url = task.data.get(keys[0]) if len(keys) == 1 else None
        if type(url) is not str or not url:
            return None
        chosen, rule = self._rules.policy((annotation,))
        return _Found(task.id, keys[0], url, annotation, rule) if len(chosen) == 1 and rule != TOGETHER else None


class _Found(msgspec.Struct, gc=False):
    """A task that is usual as far as types say it."""

    task: int
    key: str
    url: str
    annotation: Any
    rule: str


class _Block:
    """The columns of a block's usual tasks."""

    def __init__(self, found: list[_Found | None]) -> None:
        self._found = found

    def drafts(self) -> Drafts:
        """Which of them are usual in what types cannot say as well, and their columns."""
        tasks = [each for each in self._found if each]
        results = list(chain.from_iterable(each.annotation.result for each in tasks))
        lengths = np.array([len(each.annotation.result) for each in tasks])
        first = np.concatenate(([0], np.cumsum(lengths)))
        values = [each.value for each in results]
        points = [each.points for each in values]
        ring = _flags([each is not None for each in points])
        labels = [each.rectanglelabels if each.points is None else each.polygonlabels for each in values]
        fields = (
            [each.x for each in values],
            [each.y for each in values],
            [each.width for each in values],
            [each.height for each in values],
            [each.rotation for each in values],
        )
        boxes = np.array(list(chain.from_iterable(fields))).reshape(5, -1).T
        sizes = np.array([[each.original_width for each in results], [each.original_height for each in results]]).T
        fine = _flags([each.type == "polygonlabels" for each in results]) == ring
        fine &= _flags([each is not None for each in labels])
        fine &= ring | ~np.isnan(boxes[:, :4]).any(axis=1)
        fine &= (sizes == np.repeat(sizes[first[:-1]], lengths, axis=0)).all(axis=1)  # one image has one size
        good = np.logical_and.reduceat(fine, first[:-1]) & self._told_apart(tasks)
        drawn = [each for each in points if each is not None]
        flat = np.array(list(chain.from_iterable(chain.from_iterable(drawn)))).reshape(-1, 2)
        shapes = draw(boxes, flat, [len(each) for each in drawn], ring, sizes.astype(np.float64))
        of: list[Draft | None] = []
        spans = iter(
            zip(good.tolist(), first[:-1].tolist(), first[1:].tolist(), sizes[first[:-1]].tolist(), strict=True)
        )
        for each in self._found:
            if each is None:
                of.append(None)
                continue
            usual, start, stop, (width, height) = next(spans)
            of.append(Draft(each.task, each.key, each.url, each.rule, start, stop, width, height) if usual else None)
        return Drafts(
            of,
            shapes,
            fit(shapes),
            Said(
                [each[0] if each else "" for each in labels],
                [each.id for each in results],
                list(chain.from_iterable([each.annotation.id] * len(each.annotation.result) for each in tasks)),
                list(
                    chain.from_iterable([each.annotation.completed_by] * len(each.annotation.result) for each in tasks)
                ),
                [each.score for each in results],
            ),
        )

    @staticmethod
    def _told_apart(tasks: list[_Found]) -> NDArray[np.bool_]:
        """Whether the regions of a task have ids of their own: results of one id are one region."""
        return _flags(
            [len({each.id for each in task.annotation.result}) == len(task.annotation.result) for task in tasks]
        )


def _flags(values: list[bool]) -> NDArray[np.bool_]:
    return np.frombuffer(bytes(values), np.bool_)


def _task_type(config: LabelConfig | None) -> Any:
    """The type of a usual task; with a label config its results come from the config's controls."""
    control: Any = Literal[tuple(config.controls)] if config and config.controls else str
    result = msgspec.defstruct(
        "Result",
        [
            ("type", Literal["rectanglelabels", "polygonlabels"]),
            ("value", Value),
            ("id", Annotated[str, Meta(min_length=1)]),
            ("from_name", control),
            ("to_name", str),
            ("original_width", _Pixels),
            ("original_height", _Pixels),
            ("item_index", Literal[0] | None, None),
            ("score", _Coordinate | None, None),
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
