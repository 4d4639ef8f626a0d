"""Model of a project's annotators, fitted to their annotations: detection, label confusion and box bias."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, BoxBiasModel, box_edges, fit_box_bias
from labelloop.labeling.consensus.clustering import MIN_IOU, Cluster, cluster_regions
from labelloop.labeling.consensus.dawid_skene import POOLING, class_posterior, dawid_skene
from labelloop.labeling.consensus.detection_model import PRIOR, DetectionModel, ObjectEvidence, fit_detection_model
from labelloop.labeling.consensus.detection_posterior import (
    ClusterCounts,
    DetectionPosterior,
    fit_detection_posterior,
)
from labelloop.labeling.consensus.localisation import Localisation, fit_localisation
from labelloop.labeling.consensus.model_voice import VoiceModel
from labelloop.labeling.consensus.rankings import Ranking, Rankings, fit_ranking_accuracy, ranking_similarities
from labelloop.labeling.consensus.scales import Amounts, ScaleModel, fit_scale_model
from labelloop.labeling.consensus.tags import Answer, TagModel, Votes, fit_tag_model, has_several_tags
from labelloop.labeling.consensus.texts import Similarities, Texts, fit_text_accuracy, similarities
from labelloop.labeling.region import Region

Floats = NDArray[np.float64]

# Prior accuracy of the labels of an unknown annotator.
_TYPICAL_ACCURACY = 0.8


class AnnotatorView(msgspec.Struct, frozen=True, gc=False):
    """One annotator's regions and choices of a task.

    Attributes:
        annotator: The annotator's id.
        regions: All regions, in pixels.
        choices: Answers to per-task controls, by control.
        annotation: The annotation's id, for provenance.
        amounts: Ratings and numbers about the whole task, by control.
        texts: Texts about the whole task, by control; lines are separated by line breaks.
        rankings: Rankings, by control.
    """

    annotator: int
    regions: tuple[Region, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = {}
    annotation: int | None = None
    amounts: Mapping[str, float] = {}
    texts: Mapping[str, str] = {}
    rankings: Mapping[str, Ranking] = {}


class Evidence(msgspec.Struct, frozen=True, gc=False, rename={"annotators": "looked"}):
    """Evidence of a task about its annotators, small enough to store for every task: without shapes, except boxes.

    It is stored as JSON: ``rename`` keeps the key.

    Attributes:
        annotators: The annotators of the task.
        clusters: The control and the label votes of each cluster of regions.
        choices: The control and the votes of each per-task question.
        boxes: The boxes of each cluster of several upright boxes, by annotator.
        truth: The annotator whose annotation is the ground truth; None: there is none.
        amounts: The control and the answers of each rating and number about the whole task.
        texts: The control of each text about the whole task, and the similarity of each pair of annotators.
        rankings: The same for rankings.
    """

    annotators: tuple[int, ...]
    clusters: tuple[tuple[str, Votes], ...]
    choices: tuple[tuple[str, Votes], ...]
    boxes: tuple[AnnotatedBoxes, ...] = ()
    truth: int | None = None
    amounts: tuple[tuple[str, Amounts], ...] = ()
    texts: tuple[tuple[str, Similarities], ...] = ()
    rankings: tuple[tuple[str, Similarities], ...] = ()

    @property
    def boxes_by_cluster(self) -> tuple[AnnotatedBoxes, ...]:
        """The boxes of each cluster, empty for one without; ``boxes`` are in the order of the clusters."""
        found, next_box = list[AnnotatedBoxes](), 0
        for _, votes in self.clusters:
            boxes = self.boxes[next_box] if next_box < len(self.boxes) else ()
            is_next = bool(boxes) and [who for who, _ in boxes] == [who for who, _ in votes]
            found.append(boxes if is_next else ())
            next_box += is_next
        return tuple(found)

    @property
    def rated_annotators(self) -> tuple[int, ...]:
        """The annotators without the one of the ground truth."""
        return tuple(annotator for annotator in self.annotators if annotator != self.truth)

    def objects(self) -> Iterator["LabelledItem"]:
        """The votes on each object, with its true labels if known."""
        for control, votes in self.clusters:
            answer = self._true_answer(votes)
            yield LabelledItem(
                control, self._without_truth(votes), answer, None if self.truth is None else answer is not None
            )

    def answers(self) -> Iterator["LabelledItem"]:
        """The votes on each per-task question, with the true answer if known."""
        for control, votes in self.choices:
            yield LabelledItem(control, self._without_truth(votes), self._true_answer(votes))

    def _without_truth(self, votes: Votes) -> Votes:
        return votes if self.truth is None else tuple(vote for vote in votes if vote[0] != self.truth)

    def _true_answer(self, votes: Votes) -> Answer | None:
        return (
            next((answer for annotator, answer in votes if annotator == self.truth), None)
            if self.truth is not None
            else None
        )


class LabelledItem(NamedTuple):
    """The votes on an object or a per-task question.

    Attributes:
        control: The control.
        votes: The votes of the rated annotators.
        answer: The true answer; None: unknown, or there is none.
        is_real: Whether the object exists; None: unknown.
    """

    control: str
    votes: Votes
    answer: Answer | None = None
    is_real: bool | None = None


class ConfusionModel(msgspec.Struct, frozen=True):
    """Dawid-Skene model of the raters of one control.

    Attributes:
        classes: The answers that occur, in alphabetical order.
        marginals: Their frequencies, of shape ``(classes,)``.
        confusion: Confusion matrices ``[rater, truth, answer]``; the last is that of an unknown rater.
        raters: Annotator -> index in ``confusion``.
    """

    classes: tuple[Answer, ...]
    marginals: Floats
    confusion: Floats
    raters: Mapping[int, int]

    def posterior(self, votes: Votes) -> dict[Answer, float]:
        """Probability of each answer given the votes. If a vote has an unknown answer, every vote counts equally."""
        if any(answer not in self.classes for _, answer in votes):
            return uniform_confusion({answer for _, answer in votes}).posterior(votes)
        class_index = {answer: index for index, answer in enumerate(self.classes)}
        raters = [self.raters.get(annotator, len(self.confusion) - 1) for annotator, _ in votes]
        posterior = class_posterior(
            self.marginals, self.confusion, raters, [class_index[answer] for _, answer in votes]
        )
        return dict(zip(self.classes, posterior.tolist(), strict=True))


class AnnotatorModel(msgspec.Struct, frozen=True, rename={"detection": "presence", "box_bias": "hands"}):
    """Model of a project's annotators. It is stored as JSON: ``rename`` keeps the keys.

    Attributes:
        detection: Recall and false regions.
        labels: Confusion of region labels, by control.
        choices: Confusion of answers, by per-task control.
        tags: Rates for each tag, by control whose answers have several tags; such a control is in no other mapping.
        scales: Biases and deviations, by control of ratings or numbers.
        texts: Accuracy of each annotator's texts, by control.
        rankings: What each annotator's rankings get right, by control.
        box_bias: Bias and variance of boxes.
        posterior: How sure ``detection`` is.
        localisation: How far boxes lie from the object's border.
        voice: Errors of the model that is one more voice of the consensus; None: none is heard.
    """

    detection: DetectionModel = PRIOR
    labels: Mapping[str, ConfusionModel] = {}
    choices: Mapping[str, ConfusionModel] = {}
    box_bias: BoxBiasModel = BoxBiasModel()
    tags: Mapping[str, TagModel] = {}
    scales: Mapping[str, ScaleModel] = {}
    texts: Mapping[str, Mapping[int, float]] = {}
    rankings: Mapping[str, Mapping[int, float]] = {}
    posterior: DetectionPosterior = DetectionPosterior()
    localisation: Localisation = Localisation()
    voice: VoiceModel | None = None

    def region_probabilities(
        self, annotators: Sequence[int], marked: NDArray[np.bool_], min_iou: float = 0.0
    ) -> Floats | None:
        """Probability of each cluster of an image to be an object that its region overlaps enough, (clusters,).

        It is calibrated (see `DetectionPosterior`); that of `DetectionModel` is not, and decides. None: not fitted.

        Args:
            annotators: The annotators of the image, (n,).
            marked: Who marked which cluster, (clusters, n).
            min_iou: Required IoU of the region with the object; 0: the object only has to exist.
        """
        if not self.posterior.draws:
            return None
        exists: Floats = self.posterior.mean_probabilities(annotators, marked)
        if not min_iou:
            return exists
        count = marked.sum(axis=1).astype(np.float64)
        located = self.localisation.region_rates(count / marked.shape[1], count, min_iou)
        probabilities: Floats = exists * located
        return probabilities


def collect_evidence(views: Sequence[AnnotatorView], *, min_iou: float = MIN_IOU, truth: int | None = None) -> Evidence:
    """Cluster the regions of a task and collect the votes.

    Args:
        views: One view per annotator.
        min_iou: Minimum average IoU of a cluster.
        truth: The annotator whose annotation is the ground truth; None: there is none.
    """
    clusters = cluster_regions([view.regions for view in views], min_iou=min_iou)
    return Evidence(
        tuple(view.annotator for view in views),
        tuple((control_of(views, cluster), region_votes(views, cluster)) for cluster in clusters),
        tuple((control, choice_votes(views, control)) for control in choice_controls(views)),
        tuple(boxes for cluster in clusters if (boxes := annotated_boxes(views, cluster))),
        truth,
        amounts_of(views),
        tuple((control, similarities(texts)) for control, texts in texts_of(views)),
        tuple((control, ranking_similarities(rankings)) for control, rankings in rankings_of(views)),
    )


def fit_annotator_model(tasks: Iterable[Evidence]) -> AnnotatorModel:
    """Fit detection, confusion and box bias of all annotators to all tasks.

    Ground truth is optional. It replaces the estimate where it exists, and its annotator is not rated on that task.
    """
    objects: list[ObjectEvidence] = []
    images: Counter[tuple[int, ...]] = Counter()
    known_images: Counter[tuple[int, ...]] = Counter()
    labels: dict[str, list[LabelledItem]] = {}
    choices: dict[str, list[LabelledItem]] = {}
    boxes: list[AnnotatedBoxes] = []
    amounts: dict[str, list[tuple[Amounts, float | None]]] = {}
    texts: dict[str, list[Similarities]] = {}
    rankings: dict[str, list[Similarities]] = {}
    counts, located = _ClusterCounter(), list[tuple[AnnotatedBoxes, int]]()
    for task in tasks:
        boxes += task.boxes
        located += [(several, len(task.annotators)) for several in task.boxes]
        counts.add(task)
        for control, values in task.amounts:
            truth = next((value for annotator, value in values if annotator == task.truth), None)
            rated = tuple(pair for pair in values if pair[0] != task.truth)
            amounts.setdefault(control, []).append((rated, truth))
        for control, alike in task.texts:
            texts.setdefault(control, []).append(alike)
        for control, alike in task.rankings:
            rankings.setdefault(control, []).append(alike)
        annotators = task.rated_annotators
        if not annotators:
            continue
        images[tuple(sorted(annotators))] += 1
        known_images[tuple(sorted(annotators))] += task.truth is not None
        for item in task.objects():
            objects.append(ObjectEvidence(annotators, tuple(annotator for annotator, _ in item.votes), item.is_real))
            if item.is_real is not False:
                labels.setdefault(item.control, []).append(item)
        for item in task.answers():
            choices.setdefault(item.control, []).append(item)
    tags = {control: items for control, items in {**labels, **choices}.items() if _are_tags(items)}
    detection, box_bias = fit_detection_model(objects, images, known_images), fit_box_bias(boxes)
    return AnnotatorModel(
        detection,
        {control: fit_confusion_model(*_votes_and_truths(items)) for control, items in labels.items()
         if control not in tags},
        {control: fit_confusion_model(*_votes_and_truths(items)) for control, items in choices.items()
         if control not in tags},
        box_bias,
        {control: fit_tag_model(*_votes_and_truths(items)) for control, items in tags.items()},
        {
            control: fit_scale_model([rated for rated, _ in items], [truth for _, truth in items])
            for control, items in amounts.items()
        },
        {control: fit_text_accuracy(items) for control, items in texts.items()},
        {control: fit_ranking_accuracy(items) for control, items in rankings.items()},
        fit_detection_posterior(counts.total(), detection),
        fit_localisation(located, box_bias),
    )  # fmt: skip


class _ClusterCounter:
    """Counts clusters by their markers; see `ClusterCounts`."""

    def __init__(self) -> None:
        self._images: Counter[int] = Counter()
        self._known_images: Counter[int] = Counter()
        self._clusters: Counter[tuple[int, int]] = Counter()
        self._objects: Counter[tuple[int, int]] = Counter()
        self._false_regions: Counter[tuple[int, int]] = Counter()
        self._sizes: dict[int, list[int]] = {}

    def add(self, task: Evidence) -> None:
        """Count the clusters of a task with at least two annotators, or with a ground truth."""
        n = len(task.rated_annotators)
        if n < (2 if task.truth is None else 1):
            return
        (self._images if task.truth is None else self._known_images)[n] += 1
        for item in task.objects():
            kind = {None: self._clusters, True: self._objects, False: self._false_regions}[item.is_real]
            kind[n, len(item.votes)] += 1
        self._sizes.setdefault(n, []).append(len(task.clusters))

    def total(self) -> ClusterCounts:
        """The counts, with Pearson's estimate of the dispersion of the clusters per image."""
        groups = [np.array(sizes) for sizes in self._sizes.values()]
        freedom = sum(len(sizes) - 1 for sizes in groups)
        squares = sum(float(((sizes - sizes.mean()) ** 2).sum()) / max(float(sizes.mean()), 1e-9) for sizes in groups)
        return ClusterCounts(
            self._images, self._clusters, self._known_images, self._objects, self._false_regions,
            max(1.0, squares / freedom) if freedom else 1.0,
        )  # fmt: skip


def _votes_and_truths(items: Sequence[LabelledItem]) -> tuple[list[Votes], list[Answer | None]]:
    answered = [item for item in items if item.votes]
    return [item.votes for item in answered], [item.answer for item in answered]


def _are_tags(items: Iterable[LabelledItem]) -> bool:
    return has_several_tags(answer for item in items for _, answer in item.votes)


def fit_confusion_model(items: Sequence[Votes], truths: Sequence[Answer | None] = ()) -> ConfusionModel:
    """Fit a Dawid-Skene model to the votes on all items of one control.

    Args:
        items: The votes on each item.
        truths: The true answer of each item, None if unknown; empty: all are unknown.
    """
    truth_by_item = {item: answer for item, answer in enumerate(truths) if answer is not None}
    classes = tuple(sorted({answer for votes in items for _, answer in votes} | set(truth_by_item.values())))
    annotators = sorted({annotator for votes in items for annotator, _ in votes})
    if len(classes) < 2 or not annotators:
        return uniform_confusion(classes)
    raters = {annotator: index for index, annotator in enumerate(annotators)}
    class_index = {answer: index for index, answer in enumerate(classes)}
    flat = [
        (item, raters[annotator], class_index[answer])
        for item, votes in enumerate(items)
        for annotator, answer in votes
    ]
    item, rater, answer = np.array(flat, dtype=np.intp).T
    known_classes = {item: class_index[answer] for item, answer in truth_by_item.items()}
    model = dawid_skene(item, rater, answer, classes=len(classes), pooling=POOLING, known_classes=known_classes)
    counts = np.bincount(rater, minlength=len(annotators)).astype(float)
    typical = np.tensordot(counts / counts.sum(), model.confusion, axes=1)
    return ConfusionModel(classes, model.marginals, np.concatenate((model.confusion, typical[None])), raters)


def uniform_confusion(classes: Iterable[Answer]) -> ConfusionModel:
    """Confusion model of unknown raters: all equally reliable, so the majority wins."""
    ordered = tuple(sorted(classes))
    count = max(len(ordered), 1)
    wrong = (1 - _TYPICAL_ACCURACY) / max(count - 1, 1)
    confusion = np.full((1, count, count), wrong)
    confusion[0, range(count), range(count)] = _TYPICAL_ACCURACY if count > 1 else 1.0
    return ConfusionModel(ordered, np.full(count, 1 / count), confusion, {})


def choice_controls(views: Sequence[AnnotatorView]) -> tuple[str, ...]:
    """The per-task controls with at least one answer, sorted."""
    return tuple(sorted({control for view in views for control in view.choices}))


def choice_votes(views: Sequence[AnnotatorView], control: str) -> Votes:
    """The votes on a per-task control; annotators without an answer have no vote."""
    return tuple((view.annotator, tuple(sorted(view.choices[control]))) for view in views if view.choices.get(control))


def amounts_of(views: Sequence[AnnotatorView]) -> tuple[tuple[str, Amounts], ...]:
    """The ratings and numbers about the whole task: control -> answers."""
    controls = sorted({control for view in views for control in view.amounts})
    return tuple(
        (control, tuple((view.annotator, view.amounts[control]) for view in views if control in view.amounts))
        for control in controls
    )


def texts_of(views: Sequence[AnnotatorView]) -> tuple[tuple[str, Texts], ...]:
    """The texts about the whole task: control -> texts."""
    controls = sorted({control for view in views for control in view.texts})
    return tuple(
        (control, tuple((view.annotator, view.texts[control]) for view in views if control in view.texts))
        for control in controls
    )


def rankings_of(views: Sequence[AnnotatorView]) -> tuple[tuple[str, Rankings], ...]:
    """The rankings: control -> rankings."""
    controls = sorted({control for view in views for control in view.rankings})
    return tuple(
        (control, tuple((view.annotator, view.rankings[control]) for view in views if control in view.rankings))
        for control in controls
    )


def control_of(views: Sequence[AnnotatorView], cluster: Cluster) -> str:
    """The control of the regions of a cluster."""
    first = cluster[0]
    return views[first.annotator].regions[first.region].control


def region_votes(views: Sequence[AnnotatorView], cluster: Cluster) -> Votes:
    """The label votes on a cluster."""
    return tuple(
        (views[member.annotator].annotator, tuple(sorted(views[member.annotator].regions[member.region].labels)))
        for member in cluster
    )


def annotated_boxes(views: Sequence[AnnotatorView], cluster: Cluster) -> AnnotatedBoxes:
    """The upright boxes of a cluster by annotator; empty for a single region, or if any has another shape."""
    drawn = [
        (views[member.annotator].annotator, box_edges(views[member.annotator].regions[member.region].geometry))
        for member in cluster
    ]
    boxes = tuple((annotator, edges) for annotator, edges in drawn if edges is not None)
    return boxes if len(boxes) == len(cluster) > 1 else ()
