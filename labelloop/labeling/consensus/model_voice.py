"""A model as one more voice of the consensus: its errors are estimated like a person's, its scores are calibrated.

CROWDLAB (Goh, Tkachenko and Mueller, "CROWDLAB: Supervised learning to infer consensus labels and quality scores for
data with multiple annotators", 2022) lets a classifier vote on labels; here a detector votes on objects. Its
predictions must be out of fold: of a model that never learned from this task's annotations. It is no annotator: the
annotators' own model (`DetectionModel`) is fitted without it, and it counts in no quorum.

Given the annotators, an object is easy, hard, or not there, with probabilities ``h`` (`DetectionModel`). The voice
multiplies them by its own likelihoods, with score s:

                               object of difficulty d             no object
    it marks the cluster       recall(d) x g1(s)                  match rate x g0(s)
    it leaves it out           1 - recall(d)                      1 - match rate
    it alone marks something   density x all annotators miss it   false regions x no annotator matches
                               x recall(d) x g1(s)                x g0(s)

The ratio of the score densities is that of a logistic calibration, g1(s) / g0(s) = exp(a + b logit(s)) x false marks /
true marks. All are estimated by EM.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, BoxBias, fit_box_bias
from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.detection_model import (
    DIFFICULTY,
    DetectionModel,
    ObjectEvidence,
    expit,
    fit_detection_model,
)
from labelloop.labeling.consensus.tags import Answer, Votes
from labelloop.labeling.geometry.overlap import Pairs, iou_pairs, match_pairs
from labelloop.labeling.region import Region

Floats = NDArray[np.float64]

# The voice's place among annotator ids: Label Studio's begin at 1, those of unknown annotators are negative.
VOICE = 0
# Minimum mean IoU of the voice's region with the regions of a cluster.
MIN_IOU = 0.3
# Of two regions of the voice that overlap more, only the one with the higher score is heard.
MAX_OVERLAP = 0.5
# Regions with a lower score are not heard; of an image, at most this many.
MIN_SCORE, MAX_REGIONS = 0.05, 300
# Fewest tasks with annotators and a voice for a fit.
MIN_TASKS = 10

# Beta prior of recall: pseudo-objects found and missed.
_RECALL = (2.0, 1.0)
# Prior false regions per image, and its weight in images.
_FALSE_REGIONS, _FALSE_IMAGES = 1.0, 2.0
# Prior probability that the voice marks a false region of an annotator too, and its weight in regions.
_MATCH_RATE, _MATCH_WEIGHT = 0.1, 20.0
# Upper limit of it; otherwise any agreement of the voice with a single annotator could count as coincidence.
_MAX_MATCH_RATE = 0.15
# Prior calibration (a, b) and its standard deviations: a score is a probability.
_CALIBRATION, _CALIBRATION_SD = np.array([0.0, 1.0]), np.array([2.0, 0.5])
# Rounds in which what the voice makes certain, from this probability, improves the annotators' detection.
_ROUNDS, _CERTAIN = 3, 0.9
# Score from which a region counts as a mark while the annotators' detection is estimated.
_SURE = 0.3
# Prior weight, in objects, of the annotators' own expectation of objects that none of them marks: this share of it, and
# this number.
_UNMARKED_SHARE, _UNMARKED_OBJECTS = 0.1, 5.0
# Prior share of right labels, and its weight in regions.
_ACCURACY, _ACCURACY_WEIGHT = 0.8, 10.0
_ITERATIONS = 30
_TINY = 1e-12


class VoiceRegions(msgspec.Struct, frozen=True, gc=False):
    """What a model says about a task.

    Attributes:
        version: Its version.
        regions: Its regions; the score of each is ``Region.score``.
    """

    version: str
    regions: tuple[Region, ...] = ()

    @classmethod
    def heard(cls, version: str, regions: Iterable[Region]) -> "VoiceRegions":
        """Keep the regions that are heard: scored, above ``MIN_SCORE``, without duplicates, best first."""
        scored = [region for region in regions if (region.score or 0.0) >= MIN_SCORE]
        scored.sort(key=lambda region: -(region.score or 0.0))
        scored = scored[:MAX_REGIONS]
        shapes = [region.geometry for region in scored]
        near = iou_pairs(shapes, shapes, min_iou=MAX_OVERLAP, upper_triangle=True)
        dropped: set[int] = set()
        for better, worse in sorted(zip(near.rows.tolist(), near.columns.tolist(), strict=True)):
            if better not in dropped and _image(scored[better]) == _image(scored[worse]):
                dropped.add(worse)
        return cls(version, tuple(region for index, region in enumerate(scored) if index not in dropped))


class HeardTask(msgspec.Struct, frozen=True, gc=False):
    """The voice on the objects of one task.

    Attributes:
        annotators: The annotators of the task, without the one of a ground truth.
        marked_by: Annotators who marked each cluster.
        scores: The voice's score of each cluster; None: it does not mark it.
        alone: Scores of its regions that no annotator marked.
        answers: For each cluster that it marks: control, votes of the annotators, and its own labels.
        boxes: For each cluster of upright boxes that it marks: the boxes of the annotators and its own.
    """

    annotators: tuple[int, ...]
    marked_by: tuple[tuple[int, ...], ...]
    scores: tuple[float | None, ...]
    alone: tuple[float, ...]
    answers: tuple[tuple[str, Votes, Answer], ...] = ()
    boxes: tuple[AnnotatedBoxes, ...] = ()


class LabelPosterior(Protocol):
    """A model of the annotators' labels of one control."""

    def posterior(self, votes: Votes) -> dict[Answer, float]:
        """Probability of each answer given the votes."""


class VoiceErrors(msgspec.Struct, frozen=True):
    """How a model errs, as an annotator.

    Attributes:
        logit: Logit of recall for an object of mean difficulty, at any score.
        false_regions: False regions per image, at any score.
        match_rate: Probability that it marks an annotator's false region too.
        intercept: a of the calibration of scores.
        slope: b of it.
        log_ratio: Log of its true marks by its false marks.
        unmarked: Objects that no annotator marked, relative to what the annotators' own model expects.
    """

    logit: float
    false_regions: float
    match_rate: float
    intercept: float
    slope: float
    log_ratio: float
    unmarked: float

    def recall(self) -> float:
        """Share of all objects that it marks with any score."""
        return float(expit(self.logit + np.array(DIFFICULTY)).mean())

    def calibrated(self, score: float) -> float:
        """Probability that a region with this score is an object, without the annotators."""
        return float(expit(np.array(self.intercept + self.slope * _logit(score))))


class VoiceModel(VoiceErrors, frozen=True):
    """The errors of a model, the annotators' detection as the model lets it appear, its labels and its boxes.

    Attributes:
        detection: The annotators' detection as the voice lets it appear: with one or two annotators of a task, their
            agreement alone says little about it. It serves this consensus only; no annotator is rated by it.
        tasks: Tasks that it was estimated from.
        label_accuracy: Share of right labels, by control.
        box: Bias and variance of its boxes.
    """

    detection: DetectionModel
    tasks: int
    label_accuracy: Mapping[str, float] = {}
    box: BoxBias = BoxBias()

    def probability(self, evidence: ObjectEvidence, score: float | None) -> float:
        """Probability that a cluster of annotators' regions is an object.

        Args:
            evidence: Who marked it.
            score: The voice's score; None: it does not mark it.
        """
        states = self.detection.state_probabilities(evidence)
        weights = states * self._likelihoods(score)
        return float(1 - weights[-1] / weights.sum())

    def probability_alone(self, annotators: Sequence[int], score: float) -> float:
        """Probability that a region that no annotator marked is an object."""
        real, false = _unmarked(self.detection, annotators, self.false_regions)
        weights = np.append(self.unmarked * real * expit(self.logit + np.array(DIFFICULTY)), false)
        weights[:-1] *= np.exp(self._log_density_ratio(score))
        return float(1 - weights[-1] / weights.sum())

    def labels(self, control: str, posterior: Mapping[Answer, float], answer: Answer) -> dict[Answer, float]:
        """Probability of each answer of a region, given the annotators' posterior and the voice's labels."""
        classes = {*posterior, answer}
        right = self.label_accuracy.get(control, _ACCURACY)
        wrong = (1 - right) / max(len(classes) - 1, 1)
        weights = {each: posterior.get(each, _TINY) * (right if each == answer else wrong) for each in classes}
        total = sum(weights.values())
        return {each: weight / total for each, weight in weights.items()}

    def _likelihoods(self, score: float | None) -> Floats:
        recall = expit(self.logit + np.array(DIFFICULTY))
        if score is None:
            return np.append(1 - recall, 1 - self.match_rate)
        return np.append(recall * np.exp(self._log_density_ratio(score)), self.match_rate)

    def _log_density_ratio(self, score: float) -> float:
        return self.intercept + self.slope * _logit(score) - self.log_ratio


def match_voice(
    regions_by_annotator: Sequence[Sequence[Region]], clusters: Sequence[Cluster], voice: VoiceRegions
) -> tuple[dict[int, int], tuple[int, ...]]:
    """Match the voice's regions to clusters, one to one, by mean IoU with the regions of a cluster.

    Returns:
        Index of a cluster -> index of its region of the voice; and the indices of the regions that no annotator marked.
    """
    if not voice.regions:
        return {}, ()
    members = [(regions_by_annotator[member.annotator][member.region], index)
               for index, cluster in enumerate(clusters) for member in cluster]  # fmt: skip
    near = iou_pairs([region.geometry for region in voice.regions], [region.geometry for region, _ in members])
    same = [
        _place(voice.regions[row]) == _place(members[column][0])
        for row, column in zip(near.rows.tolist(), near.columns.tolist(), strict=True)
    ]
    near = near.where(np.array(same, dtype=bool))
    if not near.rows.size:
        return {}, tuple(range(len(voice.regions)))
    of_member = np.array([index for _, index in members], dtype=np.intp)
    sizes = np.array([len(cluster) for cluster in clusters], dtype=np.float64)
    keys, inverse = np.unique(near.rows * len(clusters) + of_member[near.columns], return_inverse=True)
    rows, columns = np.divmod(keys, len(clusters))
    means = np.bincount(inverse, near.values) / sizes[columns]
    pairs = match_pairs(Pairs(rows, columns, means), (len(voice.regions), len(clusters)), threshold=MIN_IOU)
    matched = {column: row for row, column in pairs}
    # A further region on an object that is matched, or just misses a cluster, is no object of its own.
    doubtful = {int(row) for row, mean in zip(rows.tolist(), means.tolist(), strict=True) if mean >= MIN_IOU}
    alone = [row for row in range(len(voice.regions)) if row not in doubtful and row not in matched.values()]
    return matched, tuple(alone)


def fit_voice_model(
    tasks: Sequence[HeardTask], detection: DetectionModel, labels: Mapping[str, LabelPosterior]
) -> VoiceModel | None:
    """Estimate the voice's errors from what the annotators drew; None with fewer than ``MIN_TASKS``.

    Args:
        tasks: Tasks that the model never learned from.
        detection: The annotators' model, fitted without the voice.
        labels: The models of the annotators' labels, by control.
    """
    if len(tasks) < MIN_TASKS:
        return None
    own = detection
    detection = _joint_detection(tasks, own)
    errors, clusters, alone = _estimate(tasks, detection)
    for _ in range(_ROUNDS):
        detection = _refined_detection(tasks, own, clusters, alone)
        errors, clusters, alone = _estimate(tasks, detection)
    return VoiceModel(
        **msgspec.structs.asdict(errors),
        detection=detection,
        tasks=len(tasks),
        label_accuracy=_label_accuracy(tasks, labels),
        box=fit_box_bias([boxes for task in tasks for boxes in task.boxes]).by_annotator.get(VOICE, BoxBias()),
    )


def _estimate(tasks: Sequence[HeardTask], detection: DetectionModel) -> tuple[VoiceErrors, Floats, Floats]:
    """EM for the voice, given the annotators' detection.

    Returns:
        Its errors, and the probability that each cluster, and each region of the voice alone, is an object.
    """
    states = [detection.state_probabilities(ObjectEvidence(task.annotators, marked_by))
              for task in tasks for marked_by in task.marked_by]  # fmt: skip
    scores = [score for task in tasks for score in task.scores]
    # Objects that no annotator marked, per image and difficulty, and the chance that none matches a false region.
    unmarked = [_unmarked(detection, task.annotators, 1.0) for task in tasks]
    alone_task = np.array([index for index, task in enumerate(tasks) for _ in task.alone], dtype=np.intp)
    alone = np.array([_logit(score) for task in tasks for score in task.alone])
    missed = np.array([real for real, _ in unmarked])
    unmatched = np.array([false for _, false in unmarked])
    h = np.array(states).reshape(-1, len(DIFFICULTY) + 1)
    known = np.array([score is not None for score in scores], dtype=bool)
    logits = np.array([0.0 if score is None else _logit(score) for score in scores])
    recall_logit, false_regions, match_rate, log_ratio, factor = 0.5, _FALSE_REGIONS, _MATCH_RATE, 0.0, 1.0
    calibration = _CALIBRATION.copy()
    cluster, lone = h, np.zeros((len(alone), h.shape[1]))
    for _ in range(_ITERATIONS):
        recall = expit(recall_logit + np.array(DIFFICULTY))
        # E: the states of clusters (n, 3), and of regions of the voice alone (k, 3).
        ratio = np.exp(np.clip(calibration[0] + calibration[1] * logits - log_ratio, -30, 30))
        seen = np.where(known[:, None], recall * ratio[:, None], 1 - recall)
        cluster = h * np.column_stack((seen, np.where(known, match_rate, 1 - match_rate)))
        cluster /= np.maximum(cluster.sum(axis=1, keepdims=True), _TINY)
        ratio = np.exp(np.clip(calibration[0] + calibration[1] * alone - log_ratio, -30, 30))
        lone = np.column_stack(
            (factor * missed[alone_task] * recall * ratio[:, None], unmatched[alone_task] * false_regions)
        )
        lone /= np.maximum(lone.sum(axis=1, keepdims=True), _TINY)
        # M.
        found = cluster[known, :-1].sum(axis=0) + lone[:, :-1].sum(axis=0)
        lost = cluster[~known, :-1].sum(axis=0) + factor * (missed * (1 - recall)).sum(axis=0)
        recall_logit = _newton(recall_logit, found, lost)
        prior = _UNMARKED_SHARE * missed.sum() + _UNMARKED_OBJECTS
        factor = (lone[:, :-1].sum() + factor * (missed * (1 - recall)).sum() + prior) / (missed.sum() + prior)
        false_regions = (lone[:, -1].sum() + _FALSE_REGIONS * _FALSE_IMAGES) / (len(tasks) + _FALSE_IMAGES)
        both, false = cluster[known, -1].sum(), cluster[:, -1].sum()
        match_rate = float((both + _MATCH_RATE * _MATCH_WEIGHT) / (false + _MATCH_WEIGHT))
        match_rate = min(match_rate, _MAX_MATCH_RATE)
        is_real = np.concatenate((1 - cluster[known, -1], 1 - lone[:, -1]))
        calibration = _calibrate(calibration, np.concatenate((logits[known], alone)), is_real)
        log_ratio = float(np.log((is_real.sum() + 1) / ((1 - is_real).sum() + 1)))
    errors = VoiceErrors(
        float(recall_logit), float(false_regions), match_rate, float(calibration[0]), float(calibration[1]), log_ratio,
        float(factor),
    )  # fmt: skip
    return errors, 1 - cluster[:, -1], 1 - lone[:, -1]


def _refined_detection(
    tasks: Sequence[HeardTask], detection: DetectionModel, clusters: Floats, alone: Floats
) -> DetectionModel:
    """The annotators' detection, where what the voice makes certain counts as known."""
    objects: list[ObjectEvidence] = []
    images: Counter[tuple[int, ...]] = Counter()
    probabilities, lone = iter(clusters.tolist()), iter(alone.tolist())
    for task in tasks:
        annotators = tuple(sorted(task.annotators))
        images[annotators] += 1
        for marked_by, probability in zip(task.marked_by, probabilities, strict=False):
            is_real = probability > 0.5 if abs(probability - 0.5) > _CERTAIN - 0.5 else None
            objects.append(ObjectEvidence(annotators, marked_by, is_real))
        objects += [ObjectEvidence(annotators, (), True) for _, probability in zip(task.alone, lone, strict=False)
                    if probability > _CERTAIN]  # fmt: skip
    return _merged(detection, fit_detection_model(objects, images, images))


def _joint_detection(tasks: Sequence[HeardTask], detection: DetectionModel) -> DetectionModel:
    """The annotators' detection, estimated with the voice as an annotator who marks what it is sure of."""
    objects: list[ObjectEvidence] = []
    images: Counter[tuple[int, ...]] = Counter()
    for task in tasks:
        everyone = (VOICE, *sorted(task.annotators))
        images[everyone] += 1
        for marked_by, score in zip(task.marked_by, task.scores, strict=True):
            is_sure = score is not None and score >= _SURE
            objects.append(ObjectEvidence(everyone, (VOICE, *marked_by) if is_sure else marked_by))
        objects += [ObjectEvidence(everyone, (VOICE,)) for score in task.alone if score >= _SURE]
    return _merged(detection, fit_detection_model(objects, images))


def _merged(own: DetectionModel, joint: DetectionModel) -> DetectionModel:
    """The joint model, with the annotators of tasks without a voice as their own model has them."""
    logits = {who: logit for who, logit in joint.logits.items() if who != VOICE}
    rates = {who: rate for who, rate in joint.false_regions.items() if who != VOICE}
    return msgspec.structs.replace(joint, logits={**own.logits, **logits}, false_regions={**own.false_regions, **rates})


def _label_accuracy(tasks: Sequence[HeardTask], labels: Mapping[str, LabelPosterior]) -> dict[str, float]:
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for task in tasks:
        for control, votes, answer in task.answers:
            if control in labels and votes:
                right[control] += labels[control].posterior(votes).get(answer, 0.0)  # type: ignore[assignment]
                count[control] += 1
    return {control: (right[control] + _ACCURACY * _ACCURACY_WEIGHT) / (count[control] + _ACCURACY_WEIGHT)
            for control in count}  # fmt: skip


def _unmarked(detection: DetectionModel, annotators: Sequence[int], false_regions: float) -> tuple[Floats, float]:
    """Objects per image that all annotators miss, by difficulty; and false regions that none of them matches."""
    logits = np.array([detection.logits.get(who, detection.typical[0]) for who in annotators])
    missed = np.prod(1 - expit(logits[:, None] + np.array(DIFFICULTY)), axis=0)
    real: Floats = detection.density / len(DIFFICULTY) * missed
    return real, float(false_regions * (1 - detection.false_match_rate) ** len(annotators))


def _newton(logit: float, found: Floats, lost: Floats) -> float:
    """A few Newton steps of the logit of recall, with its Beta prior."""
    shifts, (hits, misses) = np.array(DIFFICULTY), _RECALL
    for _ in range(3):
        likely, mean = expit(logit + shifts), float(expit(np.array(logit)))
        slope = float((found * (1 - likely) - lost * likely).sum()) + hits * (1 - mean) - misses * mean
        curve = float(((found + lost) * likely * (1 - likely)).sum()) + (hits + misses) * mean * (1 - mean)
        logit = float(np.clip(logit + np.clip(slope / curve, -1, 1), -4, 4))
    return logit


def _calibrate(start: Floats, logits: Floats, is_real: Floats) -> Floats:
    """A few Newton steps of the logistic calibration of scores, with its normal prior."""
    design: Floats
    line: Floats
    design, line = np.column_stack((np.ones_like(logits), logits)), start
    for _ in range(3):
        likely = expit(design @ line)
        slope = design.T @ (is_real - likely) - (line - _CALIBRATION) / _CALIBRATION_SD**2
        curve = (design * (likely * (1 - likely))[:, None]).T @ design + np.diag(1 / _CALIBRATION_SD**2)
        line = line + np.clip(np.linalg.solve(curve, slope), -1, 1)
    return np.array([line[0], max(line[1], 0.05)])  # a higher score never lowers the probability


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-4), 1 - 1e-4)
    return float(np.log(clipped / (1 - clipped)))


def _place(region: Region) -> tuple[str, str, int]:
    return region.control, *_image(region)


def _image(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index
