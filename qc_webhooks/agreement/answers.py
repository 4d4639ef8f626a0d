"""One annotator's answers to a task, sorted by control: what METRICS compare."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from labelloop.labeling.consensus.clustering import check_count, check_size
from labelloop.labeling.errors import MalformedValue, RegionError, TooLargeToJudge
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Reading, Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import annotator_of, latest_annotations
from labelloop.labeling.studio.regions import read_annotation
from labelloop.labeling.studio.task import Annotation, Prediction, Result, Task
from labelloop.labeling.studio.values import ANSWERS, answer, labels, shape_of

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
        answers: What was answered about it: control -> (result type, answer). No part of what it is.
    """

    start: float
    end: float
    labels: tuple[str, ...] = ()
    id: str = ""
    to_name: str = ""
    place: str = ""
    answers: dict[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict, compare=False)

    @property
    def attributes(self) -> Mapping[str, tuple[Any, ...]]:
        """What was answered about it, by control."""
        return {name: said for name, (_, said) in self.answers.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """The result types of these answers, by control."""
        return {name: kind for name, (kind, _) in self.answers.items()}


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
        unread_controls: Names of the controls whose answers are not whole, because a result cannot be read; "" where
            it is not known which control that concerns. What is missing there is not an empty answer.
        gone: Names of controls that were answered and that the label config no longer has.
        uncompared: Names of controls whose answers no metric compares (video, links, drafts of a brush).
        seconds: How long it took (Label Studio's ``lead_time``); None where that is not known.
        too_large: Why the task is too large to be judged, in a sentence; then ``controls`` holds nothing. Empty: it is
            not.
    """

    annotator: int
    annotation: int
    updated_at: str
    ground_truth: bool = False
    controls: Mapping[tuple[str, str], Sequence[Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    unread_controls: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    uncompared: tuple[str, ...] = ()
    seconds: float | None = None
    too_large: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether everything that was answered is here, so that what is not there was not answered."""
        return not (self.unread_controls or self.too_large)


def whole_answers(answers: Sequence[Answers]) -> tuple[Answers, ...]:
    """The annotators whose answers could be read whole: the others are no evidence that something is not there."""
    return tuple(each for each in answers if each.is_whole)


def read_answers(task: Task, *, config: LabelConfig | None = None) -> tuple[Answers, ...]:
    """The answers of everybody who annotated the task: their latest annotation, skipped ones left out.

    Returns:
        One entry an annotator, ordered by annotation id, so that the result does not depend on Label Studio's order.
    """
    sizes = _sizes(task)
    found = tuple(
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
    return bounded(_without_gaps(found, config))


def bounded(answers: tuple[Answers, ...]) -> tuple[Answers, ...]:
    """The answers to a task, as far as it is not too large to be judged."""
    drawn = [[each for held in one.controls.values() for each in held if isinstance(each, Region)] for one in answers]
    try:
        check_size(drawn)
        check_count(sum(len(held) for one in answers for held in one.controls.values()))
    except TooLargeToJudge as error:
        return without_controls(answers, error)
    return answers


def without_controls(answers: tuple[Answers, ...], error: TooLargeToJudge) -> tuple[Answers, ...]:
    """Answers to a task that is too large to be judged."""
    told = f"{str(error)[0].upper()}{str(error)[1:]}."
    return tuple(replace(each, controls=MappingProxyType({}), too_large=told) for each in answers)


def _without_gaps(answers: tuple[Answers, ...], config: LabelConfig | None) -> tuple[Answers, ...]:
    """Answers whose results for a control that left the label config are taken for unread where they leave a gap.

    A control that was renamed left its answers under the old name. Who answered everything that the others did is
    compared by that; who did not may have answered it under the old name.
    """
    if config is None or not any(each.gone for each in answers):
        return answers
    used = {name for each in answers for name, _ in each.controls}
    filled = []
    for each in answers:
        own = {name for name, _ in each.controls}
        gaps = (used - own or ({""} if not own else set())) if each.gone else set()
        filled.append(replace(each, unread_controls=each.unread_controls | gaps))
    return tuple(filled)


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
    for name, chosen in _choices(reading).items():
        if chosen:
            controls.setdefault((name, "taxonomy" if name in paths else "choices"), []).extend(chosen)
    gaps = _Gaps()
    for error in reading.errors:
        gaps.error(error, config)
    uncompared = {result.from_name or result.type for result in reading.relations}
    spans: dict[str, list[Span]] = {}
    about: list[Result] = []
    ids = Counter(result.id for result in reading.carried if result.id)
    for result in reading.carried:
        if not _is_known(config, result.from_name):
            gaps.gone_result(task, result)
            continue
        kind = CARRIED.get(result.type, "")
        if kind != "spans" and _is_about_one(result, ids):
            about.append(result)
            continue
        if not kind:
            uncompared.add(result.from_name or result.type)
            continue
        try:
            found = _CARRIED_READERS[kind](result, config)
        except _NotComparableError:
            uncompared.add(result.from_name)
            continue
        except (KeyError, TypeError, ValueError, MalformedValue) as problem:
            gaps.result(task, result, problem)
            continue
        controls.setdefault((result.from_name, kind), []).extend(found)
        if kind == "spans" and result.id:
            spans.setdefault(result.id, []).extend(found)
    for result in about:
        try:
            _answer_about(result, spans, controls, config)
        except _NotComparableError:
            uncompared.add(result.from_name or result.type)
        except (KeyError, TypeError, ValueError, MalformedValue) as problem:
            gaps.result(task, result, problem)
    return replace(
        who,
        controls=MappingProxyType(controls),
        unread=tuple(gaps.lines),
        unread_controls=frozenset(gaps.controls),
        gone=frozenset(gaps.gone),
        uncompared=tuple(sorted(uncompared)),
    )


def _is_known(config: LabelConfig | None, name: str) -> bool:
    """Whether the label config has what answers under a name: a control, or an object that takes answers (``Chat``)."""
    return config is None or config.control(name) is not None or name in config.objects


def _answer_about(
    result: Result,
    spans: dict[str, list[Span]],
    controls: dict[tuple[str, str], list[Any]],
    config: LabelConfig | None,
) -> None:
    """Adds an answer to the span that it is about; a stretch without labels is known by its answers alone."""
    if result.type not in ANSWERS or (result.id not in spans and not {"start", "end"} <= result.value.keys()):
        raise _NotComparableError
    said = answer(result.value, result.type)
    if result.id not in spans:
        spans[result.id] = _read_span(result, config)
        controls.setdefault((result.from_name, "spans"), []).extend(spans[result.id])
    for span in spans[result.id]:
        span.answers[result.from_name] = (result.type, said)


class _NotComparableError(Exception):
    """An answer that can be read and that no metric compares."""


def _is_about_one(result: Result, ids: Counter[str]) -> bool:
    """Whether an answer is about a region or a span: it shares its id, or repeats where that lies."""
    return (
        ids[result.id] > 1 or shape_of(result.value) is not None or {"start", "end"} <= result.value.keys()
    ) and result.type in {*ANSWERS, "pairwise"}


def _choices(reading: Reading) -> dict[str, tuple[str, ...]]:
    """What was chosen about the whole task, by control; of a task with several images with the image."""
    of_items = {result.from_name for result in reading.answers if result.item_index is not None}
    found = {name: chosen for name, chosen in reading.choices.items() if name not in of_items}
    for result in reading.answers:
        if result.from_name in of_items:
            said = answer(result.value, result.type)
            where = "" if result.item_index is None else f" (image {result.item_index + 1})"
            held = found.get(result.from_name, ())
            found[result.from_name] = tuple(dict.fromkeys((*held, *(f"{each}{where}" for each in said))))
    return found


class _Gaps:
    """What of one annotation could not be read: in words, and whose controls' answers are not whole."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.controls: set[str] = set()
        self.gone: set[str] = set()

    def error(self, error: RegionError, config: LabelConfig | None) -> None:
        self.lines.append(str(error))
        source = error.source if isinstance(error.source, Mapping) else {}
        name = source.get("from_name")
        name = name if isinstance(name, str) else ""
        if name and not _is_known(config, name):
            self.gone.add(name)
        else:
            self.controls.add(name)

    def result(self, task: Task, result: Result, problem: Exception) -> None:
        name = result.from_name
        self.lines.append(f"task {task.id}: {name or result.type}: {_reason(problem)}")
        self.controls.add(name)

    def gone_result(self, task: Task, result: Result) -> None:
        name = result.from_name
        self.lines.append(f"task {task.id}: {name or result.type}: the label config has no control named {name!r}")
        if name:
            self.gone.add(name)
        else:
            self.controls.add("")


def _reason(problem: Exception) -> str:
    return f"{problem.args[0]} is missing" if isinstance(problem, KeyError) else str(problem) or type(problem).__name__


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
    "timelinelabels": "spans",
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
    found = () if result.type in ANSWERS else labels(value, result.type)
    if result.type == "timelinelabels":  # frames of a video, both ends included
        return [
            Span(float(each["start"]), float(each["end"]) + 1, found, result.id, result.to_name)
            for each in value["ranges"]
        ]
    start, end, place = value["start"], value["end"], str(value.get("channel", ""))
    offsets = value.get("globalOffsets")
    if isinstance(offsets, Mapping):  # text on a page: counted over the whole of it
        start, end = offsets["start"], offsets["end"]
    elif "startOffset" in value:  # a paragraph, or an element of a page
        if start != end:
            raise _NotComparableError("a span over several paragraphs without offsets into the whole")
        start, end, place = value["startOffset"], value["endOffset"], str(start)
    return [Span(_moment(start), _moment(end), found, result.id, result.to_name, place)]


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
