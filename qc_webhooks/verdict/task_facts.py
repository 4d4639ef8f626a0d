"""Facts of a task: what its verdict, statistics, the dashboard and a what-if need of it, without Label Studio."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, Edges
from labelloop.labeling.consensus.clustering import Cluster, cluster_regions
from labelloop.labeling.consensus.consensus import AnnotatorView, Evidence
from labelloop.labeling.consensus.crowd import Votes, choice_votes, control_of, drawn_boxes, questions
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import numbered
from labelloop.labeling.studio.task import Annotation, Task
from qc_webhooks.agreement.answers import Answers, read_answers, whole_answers
from qc_webhooks.agreement.compare import compare
from qc_webhooks.agreement.metrics import Tolerance
from qc_webhooks.artifacts.overlays import overlays_of
from qc_webhooks.verdict.dispute_card import stance_of
from qc_webhooks.verdict.verdict import Verdict

# How a region came about.
BY_HAND, UNTOUCHED, CHANGED = 0, 1, 2

# Two shapes are the same when every edge of their bounds is this near, in shares of the image, and their areas agree
# to this share. Nobody draws an object that alike twice; half a pixel on 1,000 pixels is what rounding does.
SAME_EDGE, SAME_AREA = 0.0005, 0.004

# An address longer than this is an image written into the task itself; it is not kept a second time.
_LONGEST_ADDRESS = 2000


class AnnotationFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One annotator's work on the task.

    Attributes:
        annotator: The annotator's id.
        at: When it was submitted, or changed last, seconds since 1970; 0 where Label Studio does not say.
        seconds: How long it took (Label Studio's ``lead_time``), None where that is not known.
        regions: How many regions were drawn.
        truth: Whether it is marked as the ground truth: then it is a reviewer's, and no blind opinion.
        against: Agreement with the task's ground truth, 0 to 1; None where there is none.
        known: Whether the ground truth was there before: then the task was served to measure the annotator by it.
        whole: Whether everything could be read: else what is not there tells nothing.
    """

    annotator: int
    at: float
    seconds: float | None
    regions: int
    truth: bool = False
    against: float | None = None
    known: bool = False
    whole: bool = True


class RegionFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One annotator's region for an object.

    Attributes:
        annotator: The annotator's id.
        labels: Its labels in alphabetical order.
        area: Its area in square pixels.
        origin: ``BY_HAND``, ``UNTOUCHED`` (a pre-label as it was) or ``CHANGED`` (a pre-label, corrected).
        edges: Of an upright box that others drew too; None of everything else.
    """

    annotator: int
    labels: tuple[str, ...]
    area: float
    origin: int
    edges: Edges | None = None


class ObjectFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An object that at least one annotator marked.

    Attributes:
        control: The control that it was drawn with.
        marks: At most one region of each annotator.
    """

    control: str
    marks: tuple[RegionFacts, ...]

    @property
    def boxes(self) -> AnnotatedBoxes:
        """Who drew which box, where all who marked it drew upright ones."""
        return tuple((mark.annotator, mark.edges) for mark in self.marks if mark.edges is not None)


class Question(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was answered about the whole task: the control, and who gave which answer."""

    control: str
    votes: Votes


class Pair(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Two annotators against each other.

    Attributes:
        a: The first annotator.
        b: The second.
        overall: Their agreement, 0 to 1.
        controls: The same by control.
        met: Regions of the two that mark the same object and that at least one of them drew by hand or corrected.
        same: How many of these are the same to the pixel.
    """

    a: int
    b: int
    overall: float
    controls: dict[str, float]
    met: int
    same: int


class Repeat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An annotator who did the task twice: who, and how far the two annotations agree, 0 to 1."""

    annotator: int
    agreement: float


class Facts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept of one task.

    Attributes:
        task: The task's id.
        turns: Who annotated it, in the order of submission.
        things: The objects in it.
        questions: The answers about the whole of it.
        pairs: Every two annotators against each other.
        repeats: Who did it twice.
        photos: The addresses of its images as they are stored in its data.
        agreement: Mean agreement over the pairs; None where nothing was compared.
        outcome: The verdict.
        review: Whether it waits for a reviewer.
    """

    task: int
    turns: tuple[AnnotationFacts, ...] = ()
    things: tuple[ObjectFacts, ...] = ()
    questions: tuple[Question, ...] = ()
    pairs: tuple[Pair, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    photos: tuple[str, ...] = ()
    agreement: float | None = None
    outcome: str = "waiting"
    review: bool = False

    @property
    def at(self) -> float:
        """When it was annotated last, seconds since 1970."""
        return max((turn.at for turn in self.turns), default=0.0)

    @property
    def blind(self) -> tuple[AnnotationFacts, ...]:
        """The turns of annotators who did not know what others said; a reviewer's, and what is unread, is left out."""
        return tuple(turn for turn in self.turns if turn.whole and not turn.truth)

    def evidence(self) -> Evidence:
        """What the task tells about its annotators."""
        return Evidence(
            tuple(sorted(turn.annotator for turn in self.turns if turn.whole)),
            tuple(
                (thing.control, tuple((mark.annotator, mark.labels) for mark in thing.marks)) for thing in self.things
            ),
            tuple((question.control, question.votes) for question in self.questions),
            tuple(boxes for thing in self.things if (boxes := thing.boxes)),
            next((turn.annotator for turn in self.turns if turn.truth and turn.whole), None),
        )


def facts_of(
    task: Task,
    answers: Sequence[Answers],
    verdict: Verdict,
    tolerance: Tolerance,
    *,
    config: LabelConfig | None = None,
    clusters: Sequence[Cluster] | None = None,
) -> Facts:
    """The facts of a task.

    Args:
        task: The task with its annotations and, where there are any, the pre-labels they began from.
        answers: One entry an annotator, see ``read_answers``.
        verdict: What was found.
        tolerance: When two regions are the same object.
        config: The project's label config; it says where the images are.
        clusters: The clusters of the regions that could be read whole, where they are known already, as ``consensus``
            takes them.
    """
    answers = sorted(answers, key=lambda each: each.annotator)
    stances = [stance_of(each) for each in whole_answers(answers)]
    drew = {stance.annotator: len(stance.regions) for stance in map(stance_of, answers)}
    annotations = {each.id: each for each in numbered(task.annotations)}
    drawn = _prelabels(task)
    if clusters is None:
        clusters = cluster_regions([stance.regions for stance in stances])
    origins = {
        (who, place): _origin(region, drawn)
        for who, stance in enumerate(stances)
        for place, region in enumerate(stance.regions)
    }
    turns = [
        AnnotationFacts(
            each.annotator,
            moment(annotations[each.annotation].updated_at or annotations[each.annotation].created_at),
            _seconds(annotations[each.annotation]),
            drew[each.annotator],
            each.ground_truth,
            *_against(each, verdict, answers),
            each.is_whole,
        )
        for each in answers
    ]
    return Facts(
        task.id or 0,
        tuple(sorted(turns, key=lambda turn: (turn.truth, turn.at, turn.annotator))),
        tuple(_thing(stances, cluster, origins) for cluster in clusters),
        tuple(Question(control, choice_votes(stances, control)) for control in questions(stances)),
        _pairs(verdict, stances, clusters, origins),
        _repeats(task, answers, tolerance, config),
        photos_of(task, config),
        verdict.agreement,
        verdict.outcome,
    )


def photos_of(task: Task, config: LabelConfig | None) -> tuple[str, ...]:
    """The addresses of a task's images, as stored; empty where the label config names none."""
    found: list[str] = []
    for tag in config.objects.values() if config else ():
        value = task.data.get(tag.value) if tag.tag.lower() == "image" else None
        held = value if isinstance(value, list) else [value]
        found += [each for each in held if isinstance(each, str) and 0 < len(each) <= _LONGEST_ADDRESS]
    return tuple(found)


def moment(text: str) -> float:
    """Label Studio's time as seconds since 1970; 0 where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


def same_shape(a: Region, b: Region) -> bool:
    """Whether two regions are the same to the pixel."""
    if type(a.geometry) is not type(b.geometry) or a.item_index != b.item_index:
        return False
    near = (SAME_EDGE * max(a.width, 1), SAME_EDGE * max(a.height, 1)) * 2
    edges = zip(a.geometry.bounds, b.geometry.bounds, near, strict=True)
    if any(abs(one - other) > most for one, other, most in edges):
        return False
    one, other = _area(a.geometry), _area(b.geometry)
    return abs(one - other) <= SAME_AREA * max(one, other)


def _against(each: Answers, verdict: Verdict, answers: Sequence[Answers]) -> tuple[float | None, bool]:
    """Agreement with the ground truth, and whether that was there before."""
    truth = next((other for other in answers if other.annotation == verdict.ground_truth), None)
    if truth is None or truth is each:
        return None, False
    met = {each.annotator, truth.annotator}
    score = next((pair.overall for pair in verdict.comparisons if not pair.unjudged and {pair.a, pair.b} == met), None)
    return None if score is None else round(score, 6), each.annotation > truth.annotation


def _thing(stances: Sequence[AnnotatorView], cluster: Cluster, origins: Mapping[tuple[int, int], int]) -> ObjectFacts:
    boxes = {who: _rounded(edges) for who, edges in drawn_boxes(stances, cluster)}
    marks = []
    for member in cluster:
        stance = stances[member.annotator]
        region = stance.regions[member.region]
        labels, origin = tuple(sorted(region.labels)), origins[member.annotator, member.region]
        area = round(_area(region.geometry), 1)
        marks.append(RegionFacts(stance.annotator, labels, area, origin, boxes.get(stance.annotator)))
    return ObjectFacts(control_of(stances, cluster), tuple(marks))


def _rounded(edges: Edges) -> Edges:
    left, top, right, bottom = (round(edge, 2) for edge in edges)
    return left, top, right, bottom


def _pairs(
    verdict: Verdict,
    stances: Sequence[AnnotatorView],
    clusters: Sequence[Cluster],
    origins: Mapping[tuple[int, int], int],
) -> tuple[Pair, ...]:
    met: dict[tuple[int, int], list[bool]] = {}
    for cluster in clusters:
        for place, one in enumerate(cluster):
            for other in cluster[place + 1 :]:
                if origins[one.annotator, one.region] == origins[other.annotator, other.region] == UNTOUCHED:
                    continue  # the same pre-label, accepted by both: that is no copy of one another
                first, second = stances[one.annotator], stances[other.annotator]
                same = same_shape(first.regions[one.region], second.regions[other.region])
                key = min(first.annotator, second.annotator), max(first.annotator, second.annotator)
                met.setdefault(key, []).append(same)
    return tuple(
        Pair(
            pair.a,
            pair.b,
            round(pair.overall, 6),
            {name: round(score, 6) for name, score in pair.controls.items()},
            len(found := met.get((min(pair.a, pair.b), max(pair.a, pair.b)), [])),
            sum(found),
        )
        for pair in verdict.comparisons
        if not pair.unjudged
    )


def _repeats(
    task: Task, answers: Sequence[Answers], tolerance: Tolerance, config: LabelConfig | None
) -> tuple[Repeat, ...]:
    """Annotators who annotated the task twice, their last two annotations against each other."""
    latest = {each.annotation for each in answers}
    live = [each for each in numbered(task.annotations) if not each.was_cancelled and each.completed_by]
    older = tuple(each for each in live if each.id not in latest)
    if not older:
        return ()
    now = {each.annotator: each for each in whole_answers(answers) if not each.ground_truth}
    before = read_answers(msgspec.structs.replace(task, annotations=older), config=config)
    found = []
    for each in whole_answers(before):
        if each.annotator in now:
            with suppress(TooLargeToJudge):  # nothing is known of it
                alike = compare(each, now[each.annotator], tolerance=tolerance).overall
                found.append(Repeat(each.annotator, round(alike, 6)))
    return tuple(found)


def _prelabels(task: Task) -> frozenset[tuple[Any, ...]]:
    """What the models had drawn, by what an untouched region still holds; our own overlays are no pre-labels."""
    ours = {each.id for each in overlays_of(task)}
    return frozenset(
        _drawing(result.type, result.value)
        for prediction in task.predictions
        if prediction.id not in ours
        for result in prediction.results
    )


def _origin(region: Region, drawn: frozenset[tuple[Any, ...]]) -> int:
    if any(_drawing(result.type, result.value) in drawn for result in region.result):
        return UNTOUCHED
    told = region.result[0].origin if region.result else None
    return {"prediction": UNTOUCHED, "prediction-changed": CHANGED}.get(told or "", BY_HAND)


def _drawing(type_: str, value: Mapping[str, Any]) -> tuple[Any, ...]:
    plain = {
        name: round(each, 4) if isinstance(each, float) else each for name, each in value.items() if name != "text"
    }
    return type_, msgspec.json.encode(plain, order="sorted")


def _area(shape: Geometry) -> float:
    return float(shape.area)


def _seconds(annotation: Annotation) -> float | None:
    return annotation.lead_time if annotation.lead_time and annotation.lead_time > 0 else None
