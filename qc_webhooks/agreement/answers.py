"""The latest answers of each annotator of a task, grouped by control: the input of METRICS."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from types import MappingProxyType
from typing import Any

from labelloop.labeling.consensus.clustering import check_count, check_size
from labelloop.labeling.errors import MalformedValue, RegionError, TooLargeToJudge
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import ParsedAnnotation, Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import annotator_id, latest_annotations
from labelloop.labeling.studio.reading import at_image_size, read_annotation
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task
from labelloop.labeling.studio.values import ANSWERS, codec_for_value, parse_answer, parse_labels

# (width, height) where no result records the image size: overlaps of axis-aligned shapes do not depend on it.
UNKNOWN_SIZE = (1000, 1000)


@dataclass(frozen=True)
class Span:
    """A span of a text, a recording or a time series.

    Attributes:
        start: Start: characters, seconds, or the unit of the series.
        end: End, in the same unit.
        labels: Its labels.
        id: Label Studio's region id.
        to_name: Name of the object.
        scope: Channel, paragraph or page element; spans of different ones never overlap.
        unit: Unit of the ends, a key of `span_text.PLACES`. Not part of equality.
        text: The marked text, where Label Studio stores it. Not part of equality.
        answers: Per-region answers: control -> (result type, values). Not part of equality.
        results: Its results as submitted; empty where one result has several spans. Not part of equality.
        reach: By how much an instant (a span without length) is widened on both sides to be compared; 0 for others.
    """

    start: float
    end: float
    labels: tuple[str, ...] = ()
    id: str = ""
    to_name: str = ""
    scope: str = ""
    unit: str = field(default="character", compare=False)
    text: str = field(default="", compare=False)
    answers: dict[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict, compare=False)
    results: list[Result] = field(default_factory=list, compare=False)
    reach: float = 0.0

    @property
    def extent(self) -> tuple[float, float]:
        """Lower and upper end, with the reach of an instant."""
        return min(self.start, self.end) - self.reach, max(self.start, self.end) + self.reach

    @property
    def attributes(self) -> Mapping[str, tuple[Any, ...]]:
        """Values of the per-region answers, by control."""
        return {name: values for name, (_, values) in self.answers.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """Result types of the per-region answers, by control."""
        return {name: kind for name, (kind, _) in self.answers.items()}


@dataclass(frozen=True)
class Amount:
    """A numeric answer.

    Attributes:
        value: The number.
        span: Largest possible difference of two answers (stars: maximum minus one); None: unbounded.
    """

    value: float
    span: float | None = None


@dataclass(frozen=True)
class Answers:
    """The latest annotation of one annotator.

    Attributes:
        annotator: User id (``completed_by``); the negative annotation id where the annotator is unknown.
        annotation: Id of the annotation.
        updated_at: Time of the last change, as Label Studio writes it.
        ground_truth: Whether it is marked as ground truth.
        controls: (control name, kind of answer) -> the answer. The kind is a key of METRICS.
        unread: Messages about results that could not be read.
        unread_controls: Controls with a result that could not be read; "" if the control is unknown. A missing answer
            to these is not an empty answer.
        removed_controls: Controls with answers that are no longer in the label config.
        uncompared: Controls whose answers no metric compares (video, relations, unfinished brush strokes).
        seconds: Annotation time (Label Studio's ``lead_time``); None if unknown.
        too_large: Why the task is too large to be judged; ``controls`` is empty then. Empty otherwise.
    """

    annotator: int
    annotation: int
    updated_at: str
    ground_truth: bool = False
    controls: Mapping[tuple[str, str], Sequence[Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    unread_controls: frozenset[str] = frozenset()
    removed_controls: frozenset[str] = frozenset()
    uncompared: tuple[str, ...] = ()
    seconds: float | None = None
    too_large: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every answer could be read, so that a missing answer means none was given."""
        return not (self.unread_controls or self.too_large)


def complete_answers(answers: Sequence[Answers]) -> tuple[Answers, ...]:
    """Return the annotators with complete answers; the others are no evidence that something is absent."""
    return tuple(annotator for annotator in answers if annotator.is_complete)


def read_answers(task: Task, *, config: LabelConfig | None = None) -> tuple[Answers, ...]:
    """Read the latest annotation of every annotator of a task, without skipped ones.

    Returns:
        One entry per annotator, ordered by annotation id, so the result does not depend on Label Studio's order.
    """
    sizes = _ImageSizes(task)
    all_answers = tuple(
        _read(
            annotation,
            Answers(
                annotator_id(annotation),
                annotation.id or 0,
                annotation.updated_at,
                annotation.ground_truth,
                seconds=annotation.lead_time if annotation.lead_time and annotation.lead_time > 0 else None,
            ),
            task,
            config,
            sizes,
        )
        for annotation in latest_annotations(task.annotations)
    )
    return without_too_large(_with_reach(_without_gaps(all_answers, config)))


def without_too_large(answers: tuple[Answers, ...]) -> tuple[Answers, ...]:
    """Return the answers, without their controls if the task is too large to be judged."""
    drawn = [
        [value for values in annotator.controls.values() for value in values if isinstance(value, Region)]
        for annotator in answers
    ]
    try:
        check_size(drawn)
        check_count(sum(len(values) for annotator in answers for values in annotator.controls.values()))
    except TooLargeToJudge as error:
        return without_controls(answers, error)
    return answers


def without_controls(answers: tuple[Answers, ...], error: TooLargeToJudge) -> tuple[Answers, ...]:
    """Return the answers of a task that is too large to be judged: without controls, with the reason."""
    message = f"{str(error)[0].upper()}{str(error)[1:]}."
    return tuple(replace(annotator, controls=MappingProxyType({}), too_large=message) for annotator in answers)


def _without_gaps(answers: tuple[Answers, ...], config: LabelConfig | None) -> tuple[Answers, ...]:
    """Mark answers as unread where they may be stored under a control that left the label config.

    Renaming a control leaves its answers under the old name. An annotator who answered every control that the others
    did is compared by those; one who did not may have answered under the old name.
    """
    if config is None or not any(annotator.removed_controls for annotator in answers):
        return answers
    used = {name for annotator in answers for name, _ in annotator.controls}
    filled = []
    for annotator in answers:
        own = {name for name, _ in annotator.controls}
        gaps = (used - own or ({""} if not own else set())) if annotator.removed_controls else set()
        filled.append(replace(annotator, unread_controls=annotator.unread_controls | gaps))
    return tuple(filled)


def _with_reach(answers: tuple[Answers, ...]) -> tuple[Answers, ...]:
    """The answers with the reach of their instants: two within a quarter of the usual distance between instants match.

    The usual distance is the median of those of neighbours by one annotator. Where no annotator marked two, all match.
    """
    instants: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for annotator in answers:
        for (name, _), values in annotator.controls.items():
            for span in values:
                if isinstance(span, Span) and span.start == span.end:
                    by_annotator = instants.setdefault((name, span.to_name, span.scope), {})
                    by_annotator.setdefault(annotator.annotation, []).append(span.start)
    reaches = {key: _reach(list(by_annotator.values())) for key, by_annotator in instants.items()}
    if not any(reaches.values()):
        return answers

    def widened(name: str, value: Any) -> Any:
        if not isinstance(value, Span) or value.start != value.end:
            return value
        return replace(value, reach=reaches[name, value.to_name, value.scope])

    return tuple(
        replace(
            annotator,
            controls=MappingProxyType(
                {key: [widened(key[0], value) for value in values] for key, values in annotator.controls.items()}
            ),
        )
        for annotator in answers
    )


def _reach(instants: Sequence[Sequence[float]]) -> float:
    gaps = [later - first for marked in instants for first, later in pairwise(sorted(marked)) if later > first]
    every = [instant for marked in instants for instant in marked]
    # two instants at the distance d with the reach r have an IoU of (2r - d) / (2r + d), at least 0.2 up to d = 4r / 3
    farthest = median(gaps) / 4 if gaps else max(every) - min(every)
    return 0.75 * farthest


def read_prediction(prediction: ModelPrediction, task: Task, *, config: LabelConfig | None = None) -> Answers:
    """Read a model's prediction as the answers of an annotator with id 0."""
    return _read(prediction, Answers(0, 0, ""), task, config, _ImageSizes(task))


def _read(
    source: Annotation | ModelPrediction,
    metadata: Answers,
    task: Task,
    config: LabelConfig | None,
    sizes: "_ImageSizes",
) -> Answers:
    reading = read_annotation(source, task=task, config=config, size=sizes.of_item)
    controls: dict[tuple[str, str], list[Any]] = {}
    gaps = _Gaps(task, config)
    region_controls = {region.id: region.control for region in reading.regions}
    for region in sizes.on_common_images(reading.regions, gaps):
        kind = "keypoints" if isinstance(region.geometry, KeyPoint) else "regions"
        controls.setdefault((region.control, kind), []).append(region)
    paths = {result.from_name for result in reading.choice_results if result.type == "taxonomy"}
    for name, chosen in _choices(reading).items():
        if chosen:
            controls.setdefault((name, "taxonomy" if name in paths else "choices"), []).extend(chosen)
    for error in reading.errors:
        gaps.add_error(error, region_controls.get(error.result))
    gaps.uncompared |= {result.from_name or result.type for result in reading.relations}
    spans: dict[str, list[Span]] = {}
    region_answers: list[Result] = []
    ids = Counter(result.id for result in reading.other_results if result.id)
    for result in reading.other_results:
        kind = CARRIED.get(result.type, "")
        if not _is_known(config, result.from_name):
            gaps.add_removed(result)
        elif kind != "spans" and _is_per_region(result, ids):
            region_answers.append(result)
        elif not kind:
            gaps.uncompared.add(result.from_name or result.type)
        else:
            if kind == "spans" and result.id:
                region_controls[result.id] = result.from_name
            with gaps.of(result):
                values = _CARRIED_READERS[kind](result, config)
                controls.setdefault((answer_control(result), kind), []).extend(values)
                if kind == "spans" and len(values) == 1:
                    values[0].results.append(result)
                if kind == "spans" and result.id:
                    spans.setdefault(result.id, []).extend(values)
    for result in region_answers:
        of_region = region_controls.get(result.id)
        with gaps.of(result, of_region):
            if of_region is not None and result.id not in spans:
                raise MalformedValue("id", "its region cannot be read")
            _add_region_answer(result, spans, controls, config)
    return replace(
        metadata,
        controls=MappingProxyType(controls),
        unread=tuple(gaps.messages),
        unread_controls=frozenset(gaps.controls),
        removed_controls=frozenset(gaps.removed_controls),
        uncompared=tuple(sorted(gaps.uncompared)),
    )


def _is_known(config: LabelConfig | None, name: str) -> bool:
    """Whether the label config has a control, or an object that takes answers (``Chat``), of this name."""
    return config is None or config.control(name) is not None or name in config.objects


def _add_region_answer(
    result: Result,
    spans: dict[str, list[Span]],
    controls: dict[tuple[str, str], list[Any]],
    config: LabelConfig | None,
) -> None:
    """Add a per-region answer to its span; a span without labels is created by its answers alone."""
    if result.type not in ANSWERS or (result.id not in spans and not {"start", "end"} <= result.value.keys()):
        raise _NotComparableError
    values = parse_answer(result.value, result.type)
    if result.id not in spans:
        spans[result.id] = _read_span(result, config)
        controls.setdefault((result.from_name, "spans"), []).extend(spans[result.id])
    for span in spans[result.id]:
        span.answers[result.from_name] = (result.type, values)
        span.results.append(result)


class _NotComparableError(Exception):
    """An answer that can be read but that no metric compares."""


def _is_per_region(result: Result, ids: Counter[str]) -> bool:
    """Whether an answer belongs to a region or a span: it shares its id or repeats its geometry."""
    return (
        ids[result.id] > 1 or codec_for_value(result.value) is not None or {"start", "end"} <= result.value.keys()
    ) and result.type in {*ANSWERS, "pairwise"}


def _choices(reading: ParsedAnnotation) -> dict[str, tuple[str, ...]]:
    """Choices about the whole task, by control; in tasks with several images with the number of the image."""
    of_items = {result.from_name for result in reading.choice_results if result.item_index is not None}
    choices = {name: chosen for name, chosen in reading.choices.items() if name not in of_items}
    for result in reading.choice_results:
        if result.from_name in of_items:
            values = parse_answer(result.value, result.type)
            suffix = "" if result.item_index is None else item_suffix(result.item_index)
            earlier = choices.get(result.from_name, ())
            choices[result.from_name] = tuple(dict.fromkeys((*earlier, *(f"{value}{suffix}" for value in values))))
    return choices


def answer_control(result: Result) -> str:
    """The control of an answer about the whole task; of one about one of several images, with the image's number."""
    if result.item_index is None or result.type not in _ONE_PER_ITEM:
        return result.from_name
    return result.from_name + item_suffix(result.item_index)


def item_suffix(item_index: int) -> str:
    """What is added to an answer about one of several images, so that answers about different images differ."""
    return f" (image {item_index + 1})"


class _Gaps:
    """Collects what could not be read or compared in one annotation: messages, and controls with incomplete answers."""

    def __init__(self, task: Task, config: LabelConfig | None) -> None:
        self._task, self._config = task, config
        self.messages: list[str] = []
        self.controls: set[str] = set()
        self.removed_controls: set[str] = set()
        self.uncompared: set[str] = set()

    @contextmanager
    def of(self, result: Result, of_region: str | None = None) -> Iterator[None]:
        """Collect what is wrong with a result while it is read.

        Args:
            result: The result.
            of_region: The control of the region that it describes, whose answers are incomplete without it.
        """
        try:
            yield
        except _NotComparableError:
            self.uncompared.add(result.from_name or result.type)
        except (KeyError, TypeError, ValueError, OverflowError, MalformedValue) as problem:
            self._add(result, _reason(problem))
            self.controls |= {result.from_name, of_region or result.from_name}

    def add_error(self, error: RegionError, of_region: str | None) -> None:
        """Add a malformed result; for `of_region` see `of`."""
        source = error.source if isinstance(error.source, Mapping) else {}
        name = source.get("from_name")
        name = name if isinstance(name, str) else ""
        self.messages.append(str(error))
        if name and not _is_known(self._config, name):
            self.removed_controls.add(name)
        else:
            self.controls |= {name, of_region or name}

    def add_removed(self, result: Result) -> None:
        """Add a result whose control the label config does not have."""
        self._add(result, f"the label config has no control named {result.from_name!r}")
        (self.removed_controls if result.from_name else self.controls).add(result.from_name)

    def _add(self, result: Result, reason: str) -> None:
        self.messages.append(f"task {self._task.id}: {result.from_name or result.type}: {reason}")


def _reason(problem: Exception) -> str:
    return f"{problem.args[0]} is missing" if isinstance(problem, KeyError) else str(problem) or type(problem).__name__


# Result types of which each image of a task has an answer of its own (`perItem`).
_ONE_PER_ITEM = frozenset({"rating", "number", "textarea", "datetime"})

# Farthest end of a span: its squares and hundredths can be computed with. A time in microseconds since 1970 is nearer.
_FARTHEST = 1e16

# Kind of answer by result type, for results that draw nothing on an image.
CARRIED: Mapping[str, str] = {
    "rating": "rating",
    "number": "number",
    "textarea": "text",
    "datetime": "choices",
    "pairwise": "choices",
    "ranker": "ranking",
    "labels": "spans",
    "hypertextlabels": "spans",
    "paragraphlabels": "spans",
    "timeserieslabels": "spans",
    "timelinelabels": "spans",
}


def _read_rating(result: Result, config: LabelConfig | None) -> list[Amount]:
    control = config.control(result.from_name) if config else None
    max_rating = float(control.attributes.get("maxRating", 5)) if control else 5.0
    return [Amount(_number(result.value["rating"], "rating"), max(max_rating - 1, 1.0))]


def _read_number(result: Result, config: LabelConfig | None) -> list[Amount]:
    control = config.control(result.from_name) if config else None
    bounds = [control.attributes.get(name) for name in ("min", "max")] if control else [None, None]
    span = float(bounds[1]) - float(bounds[0]) if bounds[0] and bounds[1] else None
    return [Amount(_number(result.value["number"], "number"), span or None)]


def _read_text(result: Result, _config: LabelConfig | None) -> list[str]:
    text = result.value["text"]
    return [str(line) for line in text] if isinstance(text, list) else [str(text)]


def _read_choice(result: Result, _config: LabelConfig | None) -> list[str]:
    return [str(result.value["datetime" if result.type == "datetime" else "selected"])]


def _read_ranking(result: Result, _config: LabelConfig | None) -> list[tuple[str, str]]:
    """(bucket, item) pairs, bucket after bucket."""
    buckets = result.value["ranker"]
    if not isinstance(buckets, Mapping):
        raise _NotComparableError
    return [(str(bucket), str(item)) for bucket, items in buckets.items() for item in items]


def _read_span(result: Result, config: LabelConfig | None) -> list[Span]:
    value = result.value
    if "sequence" in value:  # the labels of a track of a video
        raise _NotComparableError
    span_labels = () if result.type in ANSWERS else parse_labels(value, result.type)
    if result.type == "timelinelabels":  # frames of a video, both ends included
        return [
            Span(start, end + 1, span_labels, result.id, result.to_name, unit="frame")
            for frames in value["ranges"]
            for start, end in [(_position(frames["start"], "start"), _position(frames["end"], "end"))]
        ]
    start, end, scope = value["start"], value["end"], str(value.get("channel", ""))
    offsets = value.get("globalOffsets")
    if isinstance(offsets, Mapping):  # text on a page: offsets into the whole page
        start, end = offsets["start"], offsets["end"]
    elif "startOffset" in value:  # a paragraph or a page element
        if start != end:
            raise _NotComparableError("a span over several paragraphs without offsets into the page")
        start, end, scope = value["startOffset"], value["endOffset"], str(start)
    tag = config.objects.get(result.to_name) if config else None
    time_format = tag.attributes.get("timeFormat", "") if tag else ""
    first, last = _seconds_of(start, time_format, "start"), _seconds_of(end, time_format, "end")
    text = value.get("text")
    return [
        Span(
            first, last, span_labels, result.id, result.to_name, scope,
            unit=_unit(start, first, result.type, tag.tag.lower() if tag else ""),
            text=text if isinstance(text, str) and result.type != "textarea" else "",
        )
    ]  # fmt: skip


def _unit(stored: Any, start: float, result_type: str, tag: str) -> str:
    """The unit of a span's ends, a key of `span_text.PLACES`, by what is stored and by what is annotated."""
    if isinstance(stored, str) and not _is_number(stored):
        return "time"
    if result_type == "timeserieslabels" or tag == "timeseries":
        return "number"
    return "second" if tag in {"audio", "audioplus", "video"} or start != int(start) else "character"


def _seconds_of(value: Any, time_format: str, field: str) -> float:
    """A number, or a timestamp of a series in seconds.

    Args:
        value: What Label Studio stores.
        field: Its field, for errors.
        time_format: The series' `timeFormat`, as d3 writes it: Python's, but for milliseconds (`%L`).
    """
    if not isinstance(value, str) or _is_number(value):
        return _position(value, field)
    try:
        moment = datetime.strptime(value, time_format.replace("%L", "%f"))  # noqa: DTZ007 - UTC below
    except ValueError:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise MalformedValue(field, f"expected a number or a time, found {value!r:.40}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _position(value: Any, field: str) -> float:
    number = _number(value, field)
    if abs(number) > _FARTHEST:
        raise MalformedValue(field, f"{value!r:.40} is out of range")
    return number


def _number(value: Any, field: str) -> float:
    """A finite number of any size, also one that is stored as a text."""
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    raise MalformedValue(field, "is missing" if value is None else f"expected a number, found {value!r:.40}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_CARRIED_READERS: Mapping[str, Callable[[Result, LabelConfig | None], list[Any]]] = {
    "rating": _read_rating,
    "number": _read_number,
    "text": _read_text,
    "choices": _read_choice,
    "ranking": _read_ranking,
    "spans": _read_span,
}


class _ImageSizes:
    """The size of each image of a task: the one that most of its results state. Some tools omit or misstate it."""

    def __init__(self, task: Task) -> None:
        stated: dict[tuple[str, int], Counter[tuple[int, int]]] = {}
        sources: tuple[Annotation | ModelPrediction, ...] = (*task.annotations, *task.predictions)
        for source in sources:
            for result in source.results:
                width, height = result.original_width, result.original_height
                if width and height:
                    image = result.to_name, result.item_index or 0
                    stated.setdefault(image, Counter())[width, height] += 1
        self._by_item = {item: sizes.most_common(1)[0][0] for (_, item), sizes in reversed(stated.items())}
        self._ambiguous = {image: sizes.most_common(1)[0][0] for image, sizes in stated.items() if len(sizes) > 1}

    def of_item(self, item_index: int) -> tuple[int, int]:
        """(width, height) of an image for results that state none, also where only another image has a size."""
        return self._by_item.get(item_index) or self._by_item.get(0, UNKNOWN_SIZE)

    def on_common_images(self, regions: Sequence[Region], gaps: _Gaps) -> Sequence[Region]:
        """The regions on images of the sizes that most results state; a mask of another size is a gap."""
        if not self._ambiguous:
            return regions
        kept = []
        for region in regions:
            own = region.width, region.height
            size = self._ambiguous.get((region.to_name, region.item_index), own)
            with gaps.of(region.result[0]):
                kept.append(region if size == own else at_image_size(region, *size))
        return kept
