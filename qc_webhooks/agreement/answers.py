"""One annotator's answers to a task, sorted by control: what METRICS compare."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from labelloop.labeling.annotators import annotator_of, latest_annotations
from labelloop.labeling.config import LabelConfig
from labelloop.labeling.geometry import KeyPoint
from labelloop.labeling.regions import read_annotation
from labelloop.labeling.task import Annotation, Prediction, Result, Task
from labelloop.labeling.values import shape_of

# Where nobody recorded the size of an image, percent are read on a square: the overlap of upright shapes is the same.
_UNKNOWN_SIZE = (1000, 1000)


@dataclass(frozen=True)
class Span:
    """A stretch of a text, a recording or a time series.

    Attributes:
        start: Where it begins: characters, seconds, or what the series counts by.
        end: Where it ends.
        labels: Its labels.
        id: Label Studio's id of it.
        to_name: The object that it is a stretch of.
        place: What tells apart stretches that cannot meet: a channel, a paragraph, an element of a page.
    """

    start: float
    end: float
    labels: tuple[str, ...] = ()
    id: str = ""
    to_name: str = ""
    place: str = ""


@dataclass(frozen=True)
class Amount:
    """A number that was given.

    Attributes:
        value: The number.
        span: How far two answers can lie apart at most (of stars: the most less one); None: there is no bound.
    """

    value: float
    span: float | None = None


@dataclass(frozen=True)
class Answers:
    """The latest annotation of one annotator.

    Attributes:
        annotator: The annotator's id (``completed_by``); unknown annotators are told apart by negative annotation ids.
        annotation: The annotation's id.
        updated_at: When it was changed last, as Label Studio spells it.
        ground_truth: Whether it was marked as the truth.
        controls: (control name, kind of answer) -> the answer. The kind is a key of METRICS.
        unread: What could not be read, in words.
        uncompared: Names of controls whose answers no metric compares (video, links, drafts of a brush).
        seconds: How long it took (Label Studio's ``lead_time``); None where that is not known.
    """

    annotator: int
    annotation: int
    updated_at: str
    ground_truth: bool = False
    controls: Mapping[tuple[str, str], Sequence[Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    seconds: float | None = None


def read_answers(task: Task, *, config: LabelConfig | None = None) -> tuple[Answers, ...]:
    """The answers of everybody who annotated the task: their latest annotation, skipped ones left out.

    Returns:
        One entry an annotator, ordered by annotation id, so that the result does not depend on Label Studio's order.
    """
    sizes = _sizes(task)
    return tuple(
        _read(
            annotation,
            Answers(
                annotator_of(annotation),
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


def read_prediction(prediction: Prediction, task: Task, *, config: LabelConfig | None = None) -> Answers:
    """What a model says of the task, as if it were an annotator (with the id 0)."""
    return _read(prediction, Answers(0, 0, ""), task, config, _sizes(task))


def _read(
    source: Annotation | Prediction,
    who: Answers,
    task: Task,
    config: LabelConfig | None,
    sizes: Mapping[int, tuple[int, int]],
) -> Answers:
    reading = read_annotation(
        source, task=task, config=config, size=lambda index: sizes.get(index, sizes.get(0, _UNKNOWN_SIZE))
    )
    controls: dict[tuple[str, str], list[Any]] = {}
    for region in reading.regions:
        kind = "keypoints" if isinstance(region.geometry, KeyPoint) else "regions"
        controls.setdefault((region.control, kind), []).append(region)
    paths = {result.from_name for result in reading.answers if result.type == "taxonomy"}
    for name, chosen in reading.choices.items():
        if chosen:
            controls.setdefault((name, "taxonomy" if name in paths else "choices"), []).extend(chosen)
    uncompared = {result.from_name or result.type for result in reading.relations}
    unread = [str(error) for error in reading.errors]
    ids = Counter(result.id for result in reading.carried if result.id)
    for result in reading.carried:
        kind = CARRIED.get(result.type, "")
        # An answer that shares its id is about a span (or a region that could not be read).
        about_one = kind != "spans" and (ids[result.id] > 1 or shape_of(result.value) is not None)
        if not kind or about_one:
            uncompared.add(result.from_name or result.type)
            continue
        try:
            found = _CARRIED_READERS[kind](result, config)
        except (KeyError, TypeError, ValueError) as error:
            unread.append(f"task {task.id}: {result.from_name or result.type}: {error or type(error).__name__}")
            continue
        controls.setdefault((result.from_name, kind), []).extend(found)
    return replace(who, controls=MappingProxyType(controls), unread=tuple(unread), uncompared=tuple(sorted(uncompared)))


# Result types that draw nothing on an image -> the kind of answer.
CARRIED: Mapping[str, str] = {
    "rating": "rating",
    "number": "number",
    "textarea": "text",
    "datetime": "choices",
    "pairwise": "choices",
    "labels": "spans",
    "hypertextlabels": "spans",
    "paragraphlabels": "spans",
    "timeserieslabels": "spans",
}


def _read_rating(result: Result, config: LabelConfig | None) -> list[Amount]:
    control = config.control(result.from_name) if config else None
    most = float(control.attributes.get("maxRating", 5)) if control else 5.0
    return [Amount(float(result.value["rating"]), max(most - 1, 1.0))]


def _read_number(result: Result, config: LabelConfig | None) -> list[Amount]:
    control = config.control(result.from_name) if config else None
    bounds = [control.attributes.get(name) for name in ("min", "max")] if control else [None, None]
    span = float(bounds[1]) - float(bounds[0]) if bounds[0] and bounds[1] else None
    return [Amount(float(result.value["number"]), span or None)]


def _read_text(result: Result, _config: LabelConfig | None) -> list[str]:
    text = result.value["text"]
    return [str(line) for line in text] if isinstance(text, list) else [str(text)]


def _read_choice(result: Result, _config: LabelConfig | None) -> list[str]:
    return [str(result.value["datetime" if result.type == "datetime" else "selected"])]


def _read_span(result: Result, _config: LabelConfig | None) -> list[Span]:
    value = result.value
    start, end, place = value["start"], value["end"], str(value.get("channel", ""))
    offsets = value.get("globalOffsets")
    if isinstance(offsets, Mapping):  # text on a page: counted over the whole of it
        start, end = offsets["start"], offsets["end"]
    elif result.type == "paragraphlabels":
        if start != end:
            raise ValueError("a span over several paragraphs without offsets into the whole")
        start, end, place = value["startOffset"], value["endOffset"], str(start)
    found = value.get(result.type) or value.get("labels") or []
    return [Span(_moment(start), _moment(end), tuple(found), result.id, result.to_name, place)]


def _moment(value: Any) -> float:
    """A number, or a time of a series as seconds."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return datetime.fromisoformat(value).timestamp()
    return float(value)


_CARRIED_READERS: Mapping[str, Callable[[Result, LabelConfig | None], list[Any]]] = {
    "rating": _read_rating,
    "number": _read_number,
    "text": _read_text,
    "choices": _read_choice,
    "spans": _read_span,
}


def _sizes(task: Task) -> dict[int, tuple[int, int]]:
    """Image sizes that any result of the task recorded: an annotator's tool may have left out what another's wrote."""
    sizes: dict[int, tuple[int, int]] = {}
    told = [item.results for item in task.annotations] + [item.results for item in task.predictions]
    for result in (result for results in told for result in results):
        if result.original_width and result.original_height:
            sizes.setdefault(result.item_index or 0, (result.original_width, result.original_height))
    return sizes
