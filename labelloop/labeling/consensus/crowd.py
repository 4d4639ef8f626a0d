"""What a project's annotations tell about its annotators: who finds objects, and who confuses which labels."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, BoxBiasModel, box_edges, fit_box_bias
from labelloop.labeling.consensus.clustering import LEAST_OVERLAP, Cluster, cluster_regions
from labelloop.labeling.consensus.dawid_skene import POOLING, class_posterior, dawid_skene
from labelloop.labeling.consensus.detection_model import UNKNOWN, DetectionModel, ObjectEvidence, fit_detection_model
from labelloop.labeling.region import Region

Floats = NDArray[np.float64]

# The labels of a region, or what was chosen about a whole task, in alphabetical order.
Answer = tuple[str, ...]
# Who answered what.
Votes = tuple[tuple[int, Answer], ...]

# How often an annotator of whom nothing is known gives the right label.
_TYPICAL_ACCURACY = 0.8


class AnnotatorView(msgspec.Struct, frozen=True, gc=False):
    """What one annotator says about a task.

    Attributes:
        annotator: The annotator's id.
        regions: All regions, in pixels.
        choices: Answers about the whole task, by control.
        annotation: The annotation's id, for provenance.
    """

    annotator: int
    regions: tuple[Region, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = {}
    annotation: int | None = None


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """What a task tells about its annotators, without shapes: small enough to keep for every task of a project.

    Attributes:
        looked: Who annotated the task.
        clusters: For each cluster of regions its control, and who gave it which labels.
        choices: For each question about the whole task its control, and who answered what.
        boxes: For each cluster of several upright boxes who drew which.
        truth: Who of those who looked told the truth; None: it is not known.
    """

    looked: tuple[int, ...]
    clusters: tuple[tuple[str, Votes], ...]
    choices: tuple[tuple[str, Votes], ...]
    boxes: tuple[AnnotatedBoxes, ...] = ()
    truth: int | None = None

    @property
    def blind(self) -> tuple[int, ...]:
        """Who annotated the task without telling the truth."""
        return tuple(who for who in self.looked if who != self.truth)

    def objects(self) -> Iterator["LabelledItem"]:
        """What those say of each object, and what is known of it."""
        for control, votes in self.clusters:
            answer = self._answer(votes)
            yield LabelledItem(control, self._others(votes), answer, None if self.truth is None else answer is not None)

    def answers(self) -> Iterator["LabelledItem"]:
        """What those say to each question about the whole task, and what is known of it."""
        for control, votes in self.choices:
            yield LabelledItem(control, self._others(votes), self._answer(votes))

    def _others(self, votes: Votes) -> Votes:
        return votes if self.truth is None else tuple(vote for vote in votes if vote[0] != self.truth)

    def _answer(self, votes: Votes) -> Answer | None:
        return next((answer for who, answer in votes if who == self.truth), None) if self.truth is not None else None


class LabelledItem(NamedTuple):
    """What is said of an object, or in answer to a question.

    Attributes:
        control: The control.
        votes: Who said what, whoever told the truth left out.
        answer: The true one; None: it is not known, or there is none.
        real: Whether the object is one; None: it is not known.
    """

    control: str
    votes: Votes
    answer: Answer | None = None
    real: bool | None = None


class ConfusionModel(msgspec.Struct, frozen=True):
    """Raters of one control, by Dawid and Skene.

    Attributes:
        classes: The answers that occur, in alphabetical order.
        marginals: How common each is, of shape ``(classes,)``.
        confusion: Of each annotator and, last, of an unknown one: ``[rater, truth, answer]``.
        raters: Annotator -> place in ``confusion``.
    """

    classes: tuple[Answer, ...]
    marginals: Floats
    confusion: Floats
    raters: Mapping[int, int]

    def posterior(self, votes: Votes) -> dict[Answer, float]:
        """How likely each answer is the right one. An answer that never occurred before counts as one vote."""
        if any(answer not in self.classes for _, answer in votes):
            return uniform_confusion({answer for _, answer in votes}).posterior(votes)
        places = {answer: place for place, answer in enumerate(self.classes)}
        raters = [self.raters.get(who, len(self.confusion) - 1) for who, _ in votes]
        found = class_posterior(self.marginals, self.confusion, raters, [places[answer] for _, answer in votes])
        return dict(zip(self.classes, found.tolist(), strict=True))


class AnnotatorModel(msgspec.Struct, frozen=True):
    """The annotators of a project.

    Attributes:
        presence: How they find objects.
        labels: How they label, by control of regions.
        choices: How they answer, by control of questions about whole tasks.
        hands: How they draw boxes.
    """

    presence: DetectionModel = UNKNOWN
    labels: Mapping[str, ConfusionModel] = {}
    choices: Mapping[str, ConfusionModel] = {}
    hands: BoxBiasModel = BoxBiasModel()


def evidence(stances: Sequence[AnnotatorView], *, least: float = LEAST_OVERLAP, truth: int | None = None) -> Evidence:
    """What a task tells about its annotators.

    Args:
        stances: One entry an annotator.
        least: Least average overlap of regions that are one object.
        truth: The annotator who told the truth, whose annotation is the ground truth; None: it is not known.
    """
    clusters = cluster_regions([stance.regions for stance in stances], least=least)
    return Evidence(
        tuple(stance.annotator for stance in stances),
        tuple((control_of(stances, cluster), region_votes(stances, cluster)) for cluster in clusters),
        tuple((control, choice_votes(stances, control)) for control in questions(stances)),
        tuple(boxes for cluster in clusters if (boxes := drawn_boxes(stances, cluster))),
        truth,
    )


def estimate_crowd(tasks: Iterable[Evidence]) -> AnnotatorModel:
    """Every annotator's recall, false regions, confusion and hand, from all tasks together.

    No truth is needed; where one is known it is not estimated, and whoever told it is not measured by it.
    """
    sightings: list[ObjectEvidence] = []
    images: Counter[tuple[int, ...]] = Counter()
    known: Counter[tuple[int, ...]] = Counter()
    labels: dict[str, list[LabelledItem]] = {}
    choices: dict[str, list[LabelledItem]] = {}
    boxes: list[AnnotatedBoxes] = []
    for task in tasks:
        boxes += task.boxes
        looked = task.blind
        if not looked:
            continue
        images[tuple(sorted(looked))] += 1
        known[tuple(sorted(looked))] += task.truth is not None
        for told in task.objects():
            sightings.append(ObjectEvidence(looked, tuple(who for who, _ in told.votes), told.real))
            if told.real is not False:
                labels.setdefault(told.control, []).append(told)
        for told in task.answers():
            choices.setdefault(told.control, []).append(told)
    return AnnotatorModel(
        fit_detection_model(sightings, images, known),
        {control: _estimate_told(items) for control, items in labels.items()},
        {control: _estimate_told(items) for control, items in choices.items()},
        fit_box_bias(boxes),
    )


def _estimate_told(items: Sequence[LabelledItem]) -> ConfusionModel:
    said = [told for told in items if told.votes]
    return estimate_labels([told.votes for told in said], [told.answer for told in said])


def estimate_labels(items: Sequence[Votes], truths: Sequence[Answer | None] = ()) -> ConfusionModel:
    """Dawid and Skene's estimate from the votes on every item of one control.

    Args:
        items: Who answered what, an entry an item.
        truths: The true answer of each item, None where it is not known; empty: none is known.
    """
    known = {item: answer for item, answer in enumerate(truths) if answer is not None}
    classes = tuple(sorted({answer for votes in items for _, answer in votes} | set(known.values())))
    who = sorted({annotator for votes in items for annotator, _ in votes})
    if len(classes) < 2 or not who:
        return uniform_confusion(classes)
    raters = {annotator: place for place, annotator in enumerate(who)}
    places = {answer: place for place, answer in enumerate(classes)}
    flat = [(item, raters[who], places[answer]) for item, votes in enumerate(items) for who, answer in votes]
    item, rater, answer = np.array(flat, dtype=np.intp).T
    settled = {item: places[answer] for item, answer in known.items()}
    model = dawid_skene(item, rater, answer, classes=len(classes), pooling=POOLING, known=settled)
    counts = np.bincount(rater, minlength=len(who)).astype(float)
    typical = np.tensordot(counts / counts.sum(), model.confusion, axes=1)
    return ConfusionModel(classes, model.marginals, np.concatenate((model.confusion, typical[None])), raters)


def uniform_confusion(classes: Iterable[Answer]) -> ConfusionModel:
    """Raters of whom nothing is known: all alike, so that the majority wins."""
    found = tuple(sorted(classes))
    count = max(len(found), 1)
    wrong = (1 - _TYPICAL_ACCURACY) / max(count - 1, 1)
    confusion = np.full((1, count, count), wrong)
    confusion[0, range(count), range(count)] = _TYPICAL_ACCURACY if count > 1 else 1.0
    return ConfusionModel(found, np.full(count, 1 / count), confusion, {})


def questions(stances: Sequence[AnnotatorView]) -> tuple[str, ...]:
    """The controls of questions about the whole task that somebody answered."""
    return tuple(sorted({control for stance in stances for control in stance.choices}))


def choice_votes(stances: Sequence[AnnotatorView], control: str) -> Votes:
    """Who answered a question about the whole task, and what; who left it open has no vote."""
    return tuple(
        (stance.annotator, tuple(sorted(stance.choices[control]))) for stance in stances if stance.choices.get(control)
    )


def control_of(stances: Sequence[AnnotatorView], cluster: Cluster) -> str:
    """The control that the regions of a cluster were drawn with."""
    first = cluster[0]
    return stances[first.annotator].regions[first.region].control


def region_votes(stances: Sequence[AnnotatorView], cluster: Cluster) -> Votes:
    """Who gave a cluster which labels."""
    return tuple(
        (stances[member.annotator].annotator, tuple(sorted(stances[member.annotator].regions[member.region].labels)))
        for member in cluster
    )


def drawn_boxes(stances: Sequence[AnnotatorView], cluster: Cluster) -> AnnotatedBoxes:
    """Who drew which upright box of a cluster; empty where only one region is in it, or another shape."""
    found = [
        (stances[each.annotator].annotator, box_edges(stances[each.annotator].regions[each.region].geometry))
        for each in cluster
    ]
    boxes = tuple((who, edges) for who, edges in found if edges is not None)
    return boxes if len(boxes) == len(cluster) > 1 else ()
