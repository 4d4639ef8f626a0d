"""Facts of a task, stored so that statistics, dashboard and policy simulation need not read Label Studio."""

import msgspec

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, Edges
from labelloop.labeling.consensus.consensus import Evidence
from labelloop.labeling.consensus.model_voice import HeardTask
from labelloop.labeling.consensus.scales import Amounts
from labelloop.labeling.consensus.tags import Votes
from labelloop.labeling.consensus.texts import Similarities
from qc_webhooks.agreement.detection_counts import DetectionCounts
from qc_webhooks.verdict.continua import Continuum

# Origins of a region: drawn by hand, pre-label accepted unchanged, pre-label corrected.
MANUAL, UNCHANGED, CORRECTED = 0, 1, 2


class AnnotationFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One annotator's annotation of the task.

    Attributes:
        annotator: User id.
        submitted_at: Time of submission or last change, seconds since 1970; 0 if Label Studio does not record it.
        seconds: Annotation time (Label Studio's ``lead_time``); None if unknown.
        regions: Number of regions.
        ground_truth: Whether it is marked as ground truth, that is, made by a reviewer and not blind.
        ground_truth_agreement: Agreement with the task's ground truth in [0, 1]; None without one.
        measures_annotator: Whether the ground truth existed before, so the task measured this annotator.
        is_complete: Whether all of it could be read; otherwise missing answers prove nothing.
    """

    annotator: int
    submitted_at: float
    seconds: float | None
    regions: int
    ground_truth: bool = False
    ground_truth_agreement: float | None = None
    measures_annotator: bool = False
    is_complete: bool = True


class RegionFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One annotator's region of an object.

    Attributes:
        annotator: User id.
        labels: Labels in alphabetical order.
        area: Area in square pixels.
        origin: ``BY_HAND``, ``UNTOUCHED`` (pre-label accepted unchanged) or ``CHANGED`` (pre-label corrected).
        edges: Edges of an upright box that others drew too; None otherwise.
    """

    annotator: int
    labels: tuple[str, ...]
    area: float
    origin: int
    edges: Edges | None = None


class ObjectFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An object that at least one annotator marked.

    Attributes:
        control: Name of the control it was drawn with.
        marks: Regions of the object, at most one per annotator.
    """

    control: str
    marks: tuple[RegionFacts, ...]

    @property
    def boxes(self) -> AnnotatedBoxes:
        """(annotator, edges) of each box; empty unless all regions of the object are upright boxes."""
        return tuple((mark.annotator, mark.edges) for mark in self.marks if mark.edges is not None)


class Question(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers about the whole task to one control.

    Attributes:
        control: The control.
        votes: The annotator and the answer of each.
        origins: What became of the pre-label in each, as of a region; empty: all were given by hand, or the task was
            judged by an earlier version.
    """

    control: str
    votes: Votes
    origins: tuple[int, ...] = ()

    @property
    def origin_by_annotator(self) -> dict[int, int]:
        """Annotator -> what became of the pre-label."""
        origins = self.origins or (MANUAL,) * len(self.votes)
        return {who: origin for (who, _), origin in zip(self.votes, origins, strict=True)}


class AnnotatorPair(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Agreement of two annotators.

    Attributes:
        a: User id of the first annotator.
        b: User id of the second.
        overall: Overall agreement in [0, 1].
        controls: Agreement by control.
        common_regions: Number of matched regions that at least one of them drew by hand or corrected.
        identical_regions: Number of these that are identical to the pixel.
        deciding: Lowest and mean agreement that decide whether they agree; None: those of the agreements above.
        disputed: Whether they disagree on a single object that the policy disputes.
    """

    a: int
    b: int
    overall: float
    controls: dict[str, float]
    common_regions: int
    identical_regions: int
    deciding: tuple[float, float] | None = None
    disputed: bool = False

    @property
    def agreement_threshold(self) -> tuple[float, float]:
        """Highest ``agreement`` at which they agree, where every control counts and where the mean does; -1: none."""
        if self.disputed:
            return -1.0, -1.0
        return self.deciding or (min(self.overall, *self.controls.values(), 1.0), self.overall)


class Repeat(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An annotator's agreement with an earlier annotation of their own of the same task, in [0, 1]."""

    annotator: int
    agreement: float


class RegionAnswers(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers to one control about the regions of one object.

    Attributes:
        control: The control.
        type: Result type of the control.
        answers: The values of each annotator, as text.
    """

    control: str
    type: str
    answers: tuple[tuple[int, tuple[str, ...]], ...]


class TaskFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The stored facts of one task.

    Attributes:
        task: Task id.
        annotations: Its annotations in the order of submission.
        objects: Its objects.
        questions: Answers about the whole task.
        pairs: Agreement of each pair of annotators.
        repeats: Annotators who annotated it twice.
        image_urls: URLs of its images, as stored in the task's data.
        agreement: Mean agreement over the pairs; None if nothing was compared.
        outcome: Outcome of the verdict.
        review: Whether it waits for a reviewer.
        amounts: Ratings and numbers about the whole task, by control.
        texts: Similarity of each pair of texts about the whole task, by control.
        rankings: Similarity of each pair of rankings, by control.
        detections: Control -> counts of its detections, for each control with a region; None: not counted, because the
            task has fewer than two annotators, has too many regions, or was judged by an earlier version.
        spans: What each annotator marked on each text or recording; None: judged by an earlier version.
        concordance: Kendall's W of the rankings, by control.
        region_answers: Answers about the regions of an object that at least two annotators gave.
        heard: What the model's independent prediction says about the objects; None: none is heard.
    """

    task: int
    annotations: tuple[AnnotationFacts, ...] = ()
    objects: tuple[ObjectFacts, ...] = ()
    questions: tuple[Question, ...] = ()
    pairs: tuple[AnnotatorPair, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    image_urls: tuple[str, ...] = ()
    agreement: float | None = None
    outcome: str = "waiting"
    review: bool = False
    amounts: tuple[tuple[str, Amounts], ...] = ()
    texts: tuple[tuple[str, Similarities], ...] = ()
    rankings: tuple[tuple[str, Similarities], ...] = ()
    detections: dict[str, DetectionCounts] | None = None
    spans: tuple[Continuum, ...] | None = None
    concordance: tuple[tuple[str, float], ...] = ()
    heard: HeardTask | None = None
    region_answers: tuple[RegionAnswers, ...] = ()

    @property
    def last_annotated_at(self) -> float:
        """Time of the last annotation, seconds since 1970."""
        return max((turn.submitted_at for turn in self.annotations), default=0.0)

    @property
    def rated(self) -> int:
        """Number of annotators whose detections are counted."""
        return len({turn.annotator for turn in self.blind})

    @property
    def blind(self) -> tuple[AnnotationFacts, ...]:
        """Annotations made without knowing the others: without the reviewer's and those with unreadable results."""
        return tuple(turn for turn in self.annotations if turn.is_complete and not turn.ground_truth)

    def evidence(self) -> Evidence:
        """Return the task as evidence about its annotators."""
        return Evidence(
            tuple(sorted(turn.annotator for turn in self.annotations if turn.is_complete)),
            tuple(
                (object_.control, tuple((mark.annotator, mark.labels) for mark in object_.marks))
                for object_ in self.objects
            ),
            tuple((question.control, question.votes) for question in self.questions),
            tuple(boxes for object_ in self.objects if (boxes := object_.boxes)),
            next((turn.annotator for turn in self.annotations if turn.ground_truth and turn.is_complete), None),
            self.amounts,
            self.texts,
            self.rankings,
        )
