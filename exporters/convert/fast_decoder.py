"""Decode common Label Studio tasks in blocks, straight into columns.

A common task has one image, and any number of boxes, polygons, ellipses and key points. Each has any number of labels,
also from a control of its own, and answers: choices, texts, ratings, numbers. There may be answers about the image,
relations, and annotations that the policy does not select. The common form is declared as types, which msgspec
validates while it decodes. Any other task is read by `labelloop.labeling` and `exporters.convert.task_assembler`, which
handle everything. Both ways give the same data set, to the byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from exporters.columnar.columns import (
    NOT_VECTORISED,
    ClippedShapes,
    RegionMetadata,
    RegionNotes,
    Shapes,
    clip_batch,
    clip_remaining,
    percent_to_pixels,
)
from exporters.convert.annotation_policy import CONSENSUS, select_annotations, unsettled_status
from exporters.convert.image_placer import UNSIZED
from exporters.convert.options import ConversionOptions, image_class_control
from exporters.convert.region_converter import NO_LABEL, distinct_labels
from exporters.convert.tally import NOTHING, Tally, TaskLosses
from exporters.convert.task_assembler import image_classes, image_texts, other_results, refused_tally
from exporters.convert.task_images import data_size, guess_image_key
from exporters.model.class_map import ClassMap
from exporters.model.clipping import ClippedShape
from exporters.model.file_names import imported_coco_fields, original_name
from exporters.model.keypoints import HIDDEN
from exporters.model.records import IMAGE_SLOT, OBJECTS_A_TASK
from exporters.structures.arrays import pack
from labelloop.labeling.region import ParsedAnnotation
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.region_attributes import CROWD, POSE, flag_of, object_attributes
from labelloop.labeling.studio.task import Annotation, person_id
from labelloop.labeling.studio.values import ANSWERS, parse_answer

# Bytes of the tasks decoded at a time.
_AT_ONCE = 1 << 17
_NAN = float("nan")
_Coordinate = Annotated[float, Meta(gt=-1e9, lt=1e9)]
_Pixels = Annotated[int, Meta(gt=0, lt=100_000)]
_Answer = Annotated[int, Meta(gt=-1_000_000_000, lt=1_000_000_000)] | _Coordinate
_Texts = list[str | list[str]] | str
_Labels = tuple[str, ...] | UnsetType
# A region id. Bounded, like the pixels, so that formats can use fixed-width cells.
_Id = Annotated[str, Meta(max_length=200)]
# The result types of shapes, as rows of the columns: see `_Block`.
_RECTANGLE, _POLYGON, _POINT, _ELLIPSE = range(4)
_SHAPES = {
    "rectanglelabels": _RECTANGLE,
    "rectangle": _RECTANGLE,
    "polygonlabels": _POLYGON,
    "polygon": _POLYGON,
    "keypointlabels": _POINT,
    "keypoint": _POINT,
    "ellipselabels": _ELLIPSE,
    "ellipse": _ELLIPSE,
}
_LABELS, _RELATION = "labels", "relation"
_OTHERS = (_LABELS, _RELATION, "choices", "taxonomy", "textarea", "rating", "number")
_PATHS = ("choices", "taxonomy", "textarea")  # their answers may be paths: lists of texts
# The class number of a key point, which has none: it names a part of an object. Also that of a row without a label.
_NO_CLASS = -1
_NO_PREDICTIONS = msgspec.Raw(b"[]")


class Value(msgspec.Struct, gc=False, omit_defaults=True):
    """The value of a result: of a rectangle, a key point or an ellipse; of a polygon, with ``points``; or an answer.

    A value with one of the last fields needs the general decoder: it has labels in a field without ``labels`` in its
    name, or is the copy of another shape.
    """

    x: _Coordinate = _NAN
    y: _Coordinate = _NAN
    width: _Coordinate = _NAN
    height: _Coordinate = _NAN
    rotation: _Coordinate = 0.0
    points: Annotated[list[tuple[_Coordinate, _Coordinate]], Meta(min_length=3)] | None = None
    radiusX: _Coordinate = _NAN  # noqa: N815 - Label Studio's own name
    radiusY: _Coordinate = _NAN  # noqa: N815
    rectanglelabels: _Labels = UNSET
    polygonlabels: _Labels = UNSET
    keypointlabels: _Labels = UNSET
    ellipselabels: _Labels = UNSET
    labels: tuple[str, ...] | None = None
    choices: _Texts | None = None
    taxonomy: _Texts | None = None
    text: _Texts | None = None
    rating: _Answer | None = None
    number: _Answer | None = None
    rectangle: UnsetType = UNSET
    polygon: UnsetType = UNSET
    keypoint: UnsetType = UNSET
    ellipse: UnsetType = UNSET
    rle: UnsetType = UNSET
    imageDataURL: UnsetType = UNSET  # noqa: N815
    vertices: UnsetType = UNSET


class _Task(msgspec.Struct, gc=False):
    id: Annotated[int, Meta(gt=0, lt=IMAGE_SLOT)]
    data: dict[str, Any]
    annotations: Any
    meta: dict[str, Any] | None = None
    predictions: msgspec.Raw = _NO_PREDICTIONS


class FastTask(msgspec.Struct, gc=False):
    """A task in the common form: its image, the rows of its objects, and the rule that selected its annotation.

    Attributes:
        width: The width of its image; 0 if it is neither known nor needed.
        name: The original name of its image, where the address does not have it.
        data: Its data, which may decide its split.
        answers: `Item.choices` and `Item.texts`.
        tally: The annotations that were not selected, and the results that are about no region.
    """

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
    coco_fields: Mapping[str, Any]
    name: str
    data: Mapping[str, Any]
    answers: tuple[tuple[str, ...], tuple[str, ...]]
    tally: Tally


class FastBatch(msgspec.Struct, frozen=True):
    """The common tasks of a block and the columns of their objects.

    Attributes:
        tasks: One entry per task of the block; ``None`` for a task that needs the general decoder.
        shapes: The shapes as drawn.
        clipped: The shapes clipped to their images.
        remaining: The rows of kind `NOT_VECTORISED`: their clipped shape, or the reason why it is rejected.
        metadata: Region ids, scores and notes.
        class_ids: (rows,), the class numbers; 0 for a label without a number, negative for a key point or no label.
        repeats: (rows,), whether a row has a further label of the region of the row before.
        names: The name of each key point, by row.
        parents: The region of each key point that has one, by row.
        hidden: The rows of the key points that are marked as not visible.
    """

    tasks: list[FastTask | None]
    shapes: Shapes | None = None
    clipped: ClippedShapes | None = None
    remaining: Mapping[int, ClippedShape | str] = {}
    metadata: RegionMetadata = RegionMetadata()
    class_ids: NDArray[np.int64] = np.empty(0, np.int64)
    repeats: NDArray[np.bool_] = np.empty(0, np.bool_)
    names: Mapping[int, str] = {}
    parents: Mapping[int, str] = {}
    hidden: AbstractSet[int] = frozenset()


class FastTaskDecoder:
    """Decodes blocks of tasks by the options of an export."""

    def __init__(self, rules: ConversionOptions, classes: ClassMap, *, reads_headers: bool = False) -> None:
        self._rules, self._classes, self._reads_headers = rules, classes, reads_headers
        self._keys = [tag.value for tag in rules.config.images] if rules.config else None
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(_task_type(rules.config)).decode
        self._rules_by_kind: dict[tuple[bool, int | None], str] = {}
        self._class_control = image_class_control(rules.config)

    def decode(self, texts: Sequence[bytes | None]) -> FastBatch:
        """Decode the tasks of a block; ``None`` stands for a task to be skipped."""
        block = _Block(self._classes)
        for few in _parts(texts):
            block.add([self._decode_task(text) if text is not None else None for text in few])
        return block.finish()

    def _decode_task(self, text: bytes) -> "_DecodedTask | None":
        """Return a task and its selected annotation; None if it needs the general decoder."""
        try:
            task = self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if not task.annotations or unsettled_status(task):
            return None
        keys = self._keys if self._keys is not None else guess_image_key(task.data)
        url = data_value(task.data, keys[0]) if len(keys) == 1 else None
        if type(url) is not str or not url:
            return None
        selection = self._select(task)
        if selection is None:
            return None
        annotation, rule, tally = selection
        content = _read_results(annotation.result, self._rules.config)
        if content is None or len(content.shapes) >= OBJECTS_A_TASK:
            return None
        shapes, labels = content.shapes, content.labels
        size = (shapes[0].original_width, shapes[0].original_height) if shapes else self._stated_size(task)
        if size is None:
            is_answered = content.others is not None and bool(content.others.choice_results)
            may_be_known = self._reads_headers or task.predictions != _NO_PREDICTIONS
            if may_be_known or not self._rules.takes_unsized(is_answered=is_answered):
                return None
            size, tally = (0, 0), Tally.join(tally, Tally.count("notes", UNSIZED))
        repeats = b""
        if max(map(len, labels), default=0) > 1:
            if any(_SHAPES[shape.type] == _POINT for shape in shapes):
                return None
            shapes, labels, repeats = self._split_labels(shapes, labels)
            if len(shapes) >= OBJECTS_A_TASK:
                return None
        answers: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        if content.others:
            readings = [(annotation, content.others)]
            answers = (
                image_classes(readings, control=self._class_control, renamed=self._rules.renamed),
                image_texts(readings),
            )
            others = Tally(tuple(other_results(content.others))).counted()
            tally = Tally.join(tally, Tally(tuple(others.items())))  # a line for each type, however many there are
        return _DecodedTask(
            task, keys[0], url, size, annotation, rule, shapes, labels, content.answers, repeats, answers, tally
        )

    def _stated_size(self, task: Any) -> tuple[int, int] | None:
        """Return the size of the image of a task without shapes: see `ImageSizes.from_task`."""
        for annotation in task.annotations:
            for result in annotation.result:
                if result.original_width and result.original_height:
                    return result.original_width, result.original_height
        return data_size(task.data) if task.predictions == _NO_PREDICTIONS else None

    def _select(self, task: Any) -> tuple[Any, str, Tally] | None:
        """Return the only annotation that the policy selects, its rule, and the tally of the others; None for more."""
        annotations = task.annotations
        for annotation in annotations:
            if type(annotation.completed_by) is not int:
                annotation.completed_by = person_id(annotation.completed_by)
        if len(annotations) == 1 and annotations[0].id is not None:
            (annotation,) = annotations
            rule = "" if annotation.was_cancelled else self._rule(annotation)
            return (annotation, rule, NOTHING) if rule else None
        selection = select_annotations(task, self._rules.policy)
        if len(selection.chosen) != 1 or selection.rule == CONSENSUS:
            return None
        losses, tallies = TaskLosses(task.id, 0), []
        for refused, reason in selection.refused:
            content = _read_results(cast(Any, refused).result, self._rules.config)
            if content is None:
                return None
            tallies.append(refused_tally(self._rules.policy, refused, len(content.shapes), reason, losses))
        further = Tally.count("input", "annotation", times=len(annotations) - 1)
        return cast(Any, selection.chosen[0]), selection.rule, Tally.join(further, *tallies)

    def _split_labels(
        self, shapes: Sequence[Any], labels: Sequence[tuple[str, ...]]
    ) -> tuple[list[Any], list[tuple[str, ...]], bytes]:
        """Return a shape for each label of a region, their labels, and whether each repeats the shape before."""
        all_shapes: list[Any] = []
        all_labels: list[tuple[str, ...]] = []
        repeats = bytearray()
        for shape, named in zip(shapes, labels, strict=True):
            split = [named]
            if len(named) > 1:
                split = [(label,) for label in distinct_labels(named, self._classes)] or [()]
            all_shapes += [shape] * len(split)
            all_labels += split
            repeats += b"\0" + b"\1" * (len(split) - 1)
        return all_shapes, all_labels, bytes(repeats)

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


def _parts(texts: Sequence[bytes | None]) -> Iterator[list[bytes | None]]:
    """Yield the texts, a few at a time."""
    part: list[bytes | None] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text or b"")
        if size >= _AT_ONCE:
            yield part
            part, size = [], 0
    yield part


class _DecodedTask(msgspec.Struct, gc=False):
    """A task that has the common form as far as types can check it.

    Attributes:
        shapes: The result of each shape, once for each of its labels.
        labels: Its labels: one or none for each of ``shapes``.
        repeats: Whether each of ``shapes`` has a further label of the region before; empty if none has.
    """

    task: Any
    key: str
    url: str
    size: tuple[int, int]
    annotation: Any
    rule: str
    shapes: list[Any]
    labels: list[tuple[str, ...]]
    region_answers: "Mapping[str, _Answers]"
    repeats: bytes
    answers: tuple[tuple[str, ...], tuple[str, ...]]
    tally: Tally


class _Answers(msgspec.Struct, gc=False):
    """What the results of a region say besides its shape: those of other controls, and its ``meta``.

    Attributes:
        labels: The labels of a control of its own; None if the shape has them.
        score: The score of the first result that has one.
        notes: The answers and the notes.
    """

    labels: tuple[str, ...] | None
    score: float | None
    notes: RegionNotes | None


class _Content(msgspec.Struct, gc=False):
    """The results of an annotation.

    Attributes:
        shapes: The results of its shapes.
        labels: The labels of each shape.
        answers: What the other results say about a shape, by region.
        others: The results that are about no shape; None if there are none.
    """

    shapes: list[Any]
    labels: list[tuple[str, ...]]
    answers: "Mapping[str, _Answers]"
    others: ParsedAnnotation | None


_NO_ANSWERS: "Mapping[str, _Answers]" = {}


def _read_results(results: list[Any], config: LabelConfig | None) -> _Content | None:
    """Return the content of an annotation.

    None if a result needs the general decoder: see `labelloop.labeling.studio.reading`.
    """
    shapes, answers, others = results, _NO_ANSWERS, None
    if any([result.type in _OTHERS or result.meta for result in results]):  # noqa: C419 - half the time
        joined = _join_results(results)
        if joined is None:
            return None
        shapes, answers, apart = joined
        if apart:
            others = read_annotation(Annotation(results=tuple(map(_general_result, apart))), config=config)
            if others.regions or others.errors:
                return None
    ids = {shape.id for shape in shapes}
    if len(ids) < len(shapes) or "" in ids or "" in {shape.from_name for shape in shapes}:
        return None  # results with one id are one region
    labels = [_labels_of(shape) for shape in shapes]
    if answers:
        for index, shape in enumerate(shapes):
            own = answers.get(shape.id)
            if own is not None and own.labels is not None:
                labels[index] = own.labels
    return _Content(shapes, labels, answers, others)


def _labels_of(shape: Any) -> tuple[str, ...]:
    """Return the labels of a shape: see `labelloop.labeling.studio.values.parse_labels`."""
    own = getattr(shape.value, shape.type)
    return shape.value.labels or () if own is UNSET else own


def _general_result(result: Any) -> Result:
    """Return a result in the general form."""
    return Result(msgspec.to_builtins(result))


def _join_results(results: Sequence[Any]) -> "tuple[list[Any], dict[str, _Answers], list[Any]] | None":
    """Return the shapes of an annotation, what the other results say about them by region, and the results apart.

    None if an answer needs the general decoder.
    """
    shapes = [result for result in results if result.type in _SHAPES]
    attached: dict[str, list[Any]] = {shape.id: [] for shape in shapes}
    if len(attached) < len(shapes):
        return None
    apart = []
    for result in results:
        if result.type in _SHAPES:
            continue
        if result.type != _RELATION and result.id and result.id in attached:
            if not result.from_name:
                return None
            attached[result.id].append(result)
        elif result.type != _LABELS:
            apart.append(result)
        else:
            return None
    answers = {}
    for shape in shapes:
        others = attached[shape.id]
        if others or shape.meta:
            region = _region_answers(shape, others)
            if region is None:
                return None
            answers[shape.id] = region
    return shapes, answers, apart


def _region_answers(shape: Any, others: Sequence[Any]) -> "_Answers | None":
    """Return what the results of a region say; None if it needs the general decoder."""
    labels, score, meta = None, shape.score, shape.meta
    takes_labels = not _labels_of(shape)  # as long as no other control has labelled it
    attributes: dict[str, tuple[Any, ...]] = {}
    for other in others:
        kind, value = other.type, other.value
        if kind == _LABELS:
            if value.labels is None:
                return None
            if takes_labels:
                labels = value.labels
                takes_labels = not labels and other.from_name == shape.from_name
            else:
                attributes[other.from_name] = value.labels
        else:
            answer = getattr(value, ANSWERS[kind])
            if answer is None:
                return None
            given = tuple(answer) if type(answer) is list else (answer,)
            has_paths = kind in _PATHS and list in map(type, given)
            attributes[other.from_name] = parse_answer({ANSWERS[kind]: answer}, kind) if has_paths else given
        score = other.score if score is None else score
        meta = meta or other.meta
    if not (attributes or meta):
        return _Answers(labels, score, None)
    if meta or len(attributes) > 1 or others[-1].type != "choices":
        notes = _region_notes(meta, attributes)
    else:
        notes = _choice_notes(*attributes.popitem())
    if notes.remarks.fields or CROWD in notes.remarks.flags:
        return None
    return _Answers(labels, score, notes)


def _region_notes(meta: Mapping[str, Any] | None, attributes: Mapping[str, tuple[Any, ...]]) -> RegionNotes:
    if not meta and not _may_state_flags(attributes):
        return RegionNotes(attributes)
    return RegionNotes(attributes, object_attributes(meta, attributes))


@lru_cache(1024)
def _choice_notes(control: str, answers: tuple[Any, ...]) -> RegionNotes:
    """Return the notes of a region that has one choice and nothing else: few regions differ in them."""
    return _region_notes(None, {control: answers})


def _may_state_flags(attributes: Mapping[str, tuple[Any, ...]]) -> bool:
    """Whether answers may state the flags or the pose of an object: see `object_attributes`."""
    for control, answers in attributes.items():
        if _names_flag(control):
            return True
        for answer in answers:
            if type(answer) is str and flag_of(answer):
                return True
    return False


@lru_cache(1024)
def _names_flag(control: str) -> bool:
    return control.casefold() == POSE or flag_of(control) is not None


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
        self._ring, self._shapes, self._labelled = bytearray(), bytearray(), bytearray()
        self._repeats = bytearray()
        self._metadata = RegionMetadata([], [], [])
        self._class_ids = bytearray()
        self._names: dict[int, str] = {}
        self._parents: dict[int, str] = {}
        self._hidden: set[int] = set()
        self._rows = 0

    def add(self, tasks: Sequence[_DecodedTask | None]) -> None:
        """Add the columns of some tasks; ``None`` stands for a task that needs the general decoder."""
        results = list(chain.from_iterable([task.shapes for task in tasks if task]))
        values = [result.value for result in results]
        shapes = bytes([_SHAPES[result.type] for result in results])
        points = [value.points for value in values]
        polygons = [ring for ring in points if ring]
        labels = chain.from_iterable([task.labels for task in tasks if task])
        names = [label[0] if label else "" for label in labels]
        scores = [result.score for result in results]
        if any(task.region_answers for task in tasks if task):
            self._add_answers(tasks, scores)
        self._points += pack(list(chain.from_iterable(chain.from_iterable(polygons))))
        self._counts += pack(list(map(len, polygons)), "q")
        x, y, width, height, rotation = self._fields
        x += pack([value.x for value in values])
        y += pack([value.y for value in values])
        if _ELLIPSE in shapes:
            drawn = list(zip(values, shapes, strict=True))
            width += pack([value.radiusX if shape == _ELLIPSE else value.width for value, shape in drawn])
            height += pack([value.radiusY if shape == _ELLIPSE else value.height for value, shape in drawn])
        else:
            width += pack([value.width for value in values])
            height += pack([value.height for value in values])
        rotation += pack([value.rotation for value in values])
        image_width, image_height = self._sizes
        image_width += pack([result.original_width for result in results], "I")
        image_height += pack([result.original_height for result in results], "I")
        self._ring += bytes(map(bool, points))
        self._shapes += shapes
        labelled = bytes(map(bool, map(str.strip, names)))
        self._labelled += labelled
        class_ids = list(self._classes.ids(names))
        if not all(labelled):
            class_ids = [number if label else _NO_CLASS for number, label in zip(class_ids, labelled, strict=True)]
        if _POINT in shapes:
            points_at = [index for index, shape in enumerate(shapes) if shape == _POINT]
            for index in points_at:
                class_ids[index] = _NO_CLASS
            self._add_points(points_at, results, names)
        self._class_ids += pack(class_ids, "q")
        self._metadata.scores.extend(scores)
        self._metadata.regions.extend([result.id for result in results])
        self._add_tasks(tasks)

    def _add_answers(self, tasks: Sequence[_DecodedTask | None], scores: list[float | None]) -> None:
        """Record the answers of some tasks; replace the score of regions that have others."""
        row, notes = 0, self._metadata.notes
        notes += [None] * (self._rows - len(notes))
        for task in tasks:
            for shape in task.shapes if task else ():
                answer = task.region_answers.get(shape.id) if task else None
                if answer is not None:
                    scores[row] = answer.score
                notes.append(answer.notes if answer else None)
                row += 1

    def _add_points(self, indices: Sequence[int], results: Sequence[Any], names: Sequence[str]) -> None:
        """Record what only key points have; the indices are those of the results that follow the rows so far."""
        first = self._rows
        self._names.update({first + index: names[index] for index in indices})
        self._parents.update({first + index: results[index].parentID for index in indices if results[index].parentID})
        for index in indices if len(self._metadata.notes) > first else ():
            notes = self._metadata.notes[first + index]
            if notes and any(str(one).casefold() in HIDDEN for given in notes.attributes.values() for one in given):
                self._hidden.add(first + index)

    def _add_tasks(self, tasks: Sequence[_DecodedTask | None]) -> None:
        """Record the rows of each task, which follow those of the tasks before it."""
        last = self._rows
        for decoded in tasks:
            if decoded is None:
                self._tasks.append(None)
                continue
            task, annotation, shapes = decoded.task, decoded.annotation, decoded.shapes
            first, last = last, last + len(shapes)
            self._repeats += decoded.repeats or bytes(len(shapes))
            self._tasks.append(
                FastTask(
                    task.id,
                    decoded.key,
                    decoded.url,
                    decoded.rule,
                    first,
                    last,
                    *decoded.size,
                    annotation.id,
                    annotation.completed_by,
                    imported_coco_fields(task.meta),
                    original_name(task.meta, decoded.url) if task.meta else "",
                    task.data,
                    decoded.answers,
                    decoded.tally,
                )
            )
        self._rows = last

    def finish(self) -> FastBatch:
        """Check what types cannot, and return the tasks and their columns."""
        if not self._rows:
            return FastBatch(self._tasks)
        tasks = [task for task in self._tasks if task and task.first < task.last]
        first = np.array([task.first for task in tasks])
        lengths = np.array([task.last for task in tasks]) - first
        x, y, width, height, rotation = (np.frombuffer(field) for field in self._fields)
        ring, kinds = np.frombuffer(self._ring, np.bool_), np.frombuffer(self._shapes, np.uint8)
        point = kinds == _POINT
        labelled, ellipse = np.frombuffer(self._labelled, np.bool_), kinds == _ELLIPSE
        valid_rows = ring == (kinds == _POLYGON)
        valid_rows &= ring | point | ((width > 0) & (height > 0))
        valid_rows &= ring | ~np.isnan(x + y)
        width = np.where(point & np.isnan(width), 0.0, width)  # a marker without a diameter
        sizes = [np.frombuffer(size, np.uint32) for size in self._sizes]
        for size in sizes:
            valid_rows &= (size == np.repeat(size[first], lengths)) & (size > 0)  # one image has one size
        valid_tasks = np.logical_and.reduceat(valid_rows, first)
        if not valid_tasks.all():
            validity = iter(valid_tasks.tolist())
            self._tasks = [
                task if task and (task.first == task.last or next(validity)) else None for task in self._tasks
            ]
        points = np.frombuffer(self._points).reshape(-1, 2)
        shapes = percent_to_pixels(
            np.stack((x, y, width, height, rotation)).T,
            points,
            np.frombuffer(self._counts, np.int64),
            ring,
            np.stack(sizes).astype(np.float64).T,
            point=point,
            ellipse=ellipse,
        )
        clipped = clip_batch(shapes)
        clipped.kinds[~labelled] = NOT_VECTORISED
        undecided = np.flatnonzero((clipped.kinds == NOT_VECTORISED) & np.repeat(valid_tasks, lengths))
        remaining = {
            row: result if labelled[row] or isinstance(result, str) else NO_LABEL
            for row, result in clip_remaining(shapes, undecided.tolist()).items()
        }
        notes = self._metadata.notes
        if notes:
            notes += [None] * (self._rows - len(notes))
        return FastBatch(
            self._tasks,
            shapes,
            clipped,
            remaining,
            self._metadata,
            np.frombuffer(self._class_ids, np.int64),
            np.frombuffer(self._repeats, np.bool_),
            self._names,
            self._parents,
            self._hidden,
        )


def _task_type(config: LabelConfig | None) -> Any:
    """Build the type of a common task; with a label config its results have the config's controls."""
    control: Any = Literal[tuple(config.controls)] if config and config.controls else str
    result = msgspec.defstruct(
        "Result",
        [
            ("type", Literal[(*_SHAPES, *_OTHERS)]),
            ("value", Value, msgspec.field(default_factory=Value)),  # a relation has none of these
            ("id", _Id, ""),
            ("from_name", control, ""),
            ("original_width", _Pixels, 0),  # only that of a shape counts
            ("original_height", _Pixels, 0),
            ("item_index", Literal[0] | None, None),
            ("score", _Coordinate | None, None),
            ("meta", dict[str, Any] | None, None),
            ("parentID", str | None, None),
        ],
        gc=False,
        omit_defaults=True,
    )
    annotation = msgspec.defstruct(
        "Annotation",
        [
            ("result", cast(Any, list)[result]),
            ("id", int | None, None),
            ("completed_by", int | str | dict[str, Any] | None, None),
            ("was_cancelled", bool, False),
            ("ground_truth", bool, False),
            ("created_at", str, ""),
            ("updated_at", str, ""),
        ],
        gc=False,
    )
    return msgspec.defstruct("Task", [("annotations", cast(Any, list)[annotation])], bases=(_Task,), gc=False)
