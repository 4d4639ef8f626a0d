"""Computes the facts of a task: who drew and answered what, and how far the annotators agree."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from labelloop.labeling.consensus.box_bias import Edges
from labelloop.labeling.consensus.clustering import Cluster, cluster_regions
from labelloop.labeling.consensus.consensus import AnnotatorView
from labelloop.labeling.consensus.crowd import (
    amounts_of,
    annotated_boxes,
    choice_controls,
    choice_votes,
    control_of,
    rankings_of,
    texts_of,
)
from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.consensus.rankings import ranking_similarities
from labelloop.labeling.consensus.texts import similarities
from labelloop.labeling.consensus.voiced import heard_task
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.labeling.studio.latest import with_unique_ids
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task
from qc_webhooks.agreement.answers import Answers, complete_answers, read_answers
from qc_webhooks.agreement.compare import Comparison, compare
from qc_webhooks.agreement.detection_counts import DetectionCounts, count_detections
from qc_webhooks.agreement.metrics import Tolerance
from qc_webhooks.artifacts.overlays import overlays_of
from qc_webhooks.verdict.concordance import kendall_w
from qc_webhooks.verdict.continua import continua_of
from qc_webhooks.verdict.dispute_card import annotator_view
from qc_webhooks.verdict.task_facts import (
    CORRECTED,
    MANUAL,
    UNCHANGED,
    AnnotationFacts,
    AnnotatorPair,
    ObjectFacts,
    Question,
    RegionAnswers,
    RegionFacts,
    Repeat,
    TaskFacts,
)
from qc_webhooks.verdict.verdict import TaskVerdict

# Two shapes are identical if each edge of their bounds differs by at most SAME_EDGE of the image size, and their areas
# by at most SAME_AREA. Two people do not draw that alike; rounding causes half a pixel in 1,000.
SAME_EDGE, SAME_AREA = 0.0005, 0.004

# Longer values are data URLs with the image itself; they are not stored again.
_LONGEST_ADDRESS = 2000


def facts_of(
    task: Task,
    answers: Sequence[Answers],
    verdict: TaskVerdict,
    tolerance: Tolerance,
    *,
    config: LabelConfig | None = None,
    clusters: Sequence[Cluster] | None = None,
    voice: VoiceRegions | None = None,
) -> TaskFacts:
    """Compute the facts of a task.

    Args:
        task: The task with its annotations and the pre-labels they started from.
        answers: One entry per annotator, see ``read_answers``.
        verdict: Verdict on the task.
        tolerance: Overlap thresholds for the same object.
        config: The project's label config; it names the keys of the images.
        clusters: Clusters of the complete answers' regions as ``consensus`` takes them, if already computed.
        voice: The model's independent prediction, if it is heard.
    """
    answers = sorted(answers, key=lambda submission: submission.annotator)
    views = [annotator_view(submission) for submission in complete_answers(answers)]
    region_counts = {view.annotator: len(view.regions) for view in map(annotator_view, answers)}
    annotations = {annotation.id: annotation for annotation in with_unique_ids(task.annotations)}
    prelabels = _prelabels(task)
    if clusters is None:
        clusters = cluster_regions([view.regions for view in views])
    origins = {
        (view_index, region_index): _origin(region, prelabels)
        for view_index, view in enumerate(views)
        for region_index, region in enumerate(view.regions)
    }
    turns = [
        AnnotationFacts(
            submission.annotator,
            to_unix_time(
                annotations[submission.annotation].updated_at or annotations[submission.annotation].created_at
            ),
            _seconds(annotations[submission.annotation]),
            region_counts[submission.annotator],
            submission.ground_truth,
            *_against(submission, verdict, answers),
            submission.is_complete,
        )
        for submission in answers
    ]
    return TaskFacts(
        task.id or 0,
        tuple(sorted(turns, key=lambda turn: (turn.ground_truth, turn.submitted_at, turn.annotator))),
        tuple(_object_facts(views, cluster, origins) for cluster in clusters),
        tuple(_question(task, views, annotations, control) for control in choice_controls(views)),
        _pairs(verdict, views, clusters, origins),
        _repeats(task, answers, tolerance, config),
        image_urls_of(task, config),
        verdict.agreement,
        verdict.outcome,
        amounts=amounts_of(views),
        texts=tuple((control, similarities(texts)) for control, texts in texts_of(views)),
        rankings=tuple((control, ranking_similarities(rankings)) for control, rankings in rankings_of(views)),
        detections=_detections(answers, tolerance),
        spans=continua_of(task, answers, config),
        concordance=_concordance(views),
        region_answers=tuple(answer for cluster in clusters for answer in _region_answers(views, cluster)),
        heard=None if voice is None else heard_task(views, clusters, voice, truth=_truth(answers)),
    )


def _truth(answers: Sequence[Answers]) -> int | None:
    return next((item.annotator for item in complete_answers(answers) if item.ground_truth), None)


def _region_answers(views: Sequence[AnnotatorView], cluster: Cluster) -> Iterator[RegionAnswers]:
    drawn = [(views[member.annotator].annotator, views[member.annotator].regions[member.region]) for member in cluster]
    types = {result.from_name: result.type for _, region in drawn for result in region.result}
    for control in sorted({name for _, region in drawn for name in region.attributes}):
        answers = tuple(
            (annotator, tuple(map(str, region.attributes[control])))
            for annotator, region in drawn
            if control in region.attributes
        )
        if len(answers) > 1:
            yield RegionAnswers(control, types.get(control, ""), answers)


def _concordance(views: Sequence[AnnotatorView]) -> tuple[tuple[str, float], ...]:
    """Kendall's W of the rankings, by control, where it is defined."""
    defined = ((control, kendall_w([ranking for _, ranking in rankings])) for control, rankings in rankings_of(views))
    return tuple((control, round(value, 6)) for control, value in defined if value is not None)


def image_urls_of(task: Task, config: LabelConfig | None) -> tuple[str, ...]:
    """URLs of a task's images, as stored; empty if the label config has no image."""
    urls: list[str] = []
    for tag in config.objects.values() if config else ():
        value = data_value(task.data, tag.value) if tag.tag.lower() == "image" else None
        values = value if isinstance(value, list) else [value]
        urls += [url for url in values if isinstance(url, str) and 0 < len(url) <= _LONGEST_ADDRESS]
    return tuple(urls)


def to_unix_time(text: str) -> float:
    """Label Studio's timestamp in seconds since 1970; 0 if invalid."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


def same_shape(a: Region, b: Region) -> bool:
    """Whether two regions are identical to the pixel."""
    if type(a.geometry) is not type(b.geometry) or a.item_index != b.item_index:
        return False
    tolerances = (SAME_EDGE * max(a.width, 1), SAME_EDGE * max(a.height, 1)) * 2
    edges = zip(a.geometry.bounds, b.geometry.bounds, tolerances, strict=True)
    if any(abs(edge_a - edge_b) > limit for edge_a, edge_b, limit in edges):
        return False
    area_a, area_b = _area(a.geometry), _area(b.geometry)
    return abs(area_a - area_b) <= SAME_AREA * max(area_a, area_b)


def _detections(answers: Sequence[Answers], tolerance: Tolerance) -> dict[str, DetectionCounts] | None:
    """Counts of the detections of each control; a ground truth is no annotator."""
    rated = [annotator_view(item) for item in complete_answers(answers) if not item.ground_truth]
    if len(rated) < 2:
        return None
    detections: dict[str, list[tuple[Region, int]]] = {}
    for owner, view in enumerate(rated):
        for region in view.regions:
            detections.setdefault(region.control, []).append((region, owner))
    with suppress(TooLargeToJudge):
        return {
            control: count_detections(
                [region for region, _ in regions],
                [owner for _, owner in regions],
                annotators=len(rated),
                match_iou=tolerance.match_iou,
            )
            for control, regions in detections.items()
        }
    return None


def _against(submission: Answers, verdict: TaskVerdict, answers: Sequence[Answers]) -> tuple[float | None, bool]:
    """Agreement with the ground truth, and whether the ground truth existed before the annotation."""
    truth = next((other for other in answers if other.annotation == verdict.ground_truth), None)
    if truth is None or truth is submission:
        return None, False
    pair_ids = {submission.annotator, truth.annotator}
    score = next(
        (pair.overall for pair in verdict.comparisons if not pair.unjudged and {pair.a, pair.b} == pair_ids), None
    )
    return None if score is None else round(score, 6), submission.annotation > truth.annotation


def _object_facts(
    views: Sequence[AnnotatorView], cluster: Cluster, origins: Mapping[tuple[int, int], int]
) -> ObjectFacts:
    boxes = {annotator: _rounded(edges) for annotator, edges in annotated_boxes(views, cluster)}
    marks = []
    for member in cluster:
        view = views[member.annotator]
        region = view.regions[member.region]
        labels, origin = tuple(sorted(region.labels)), origins[member.annotator, member.region]
        area = round(_area(region.geometry), 1)
        marks.append(RegionFacts(view.annotator, labels, area, origin, boxes.get(view.annotator)))
    return ObjectFacts(control_of(views, cluster), tuple(marks))


def _rounded(edges: Edges) -> Edges:
    left, top, right, bottom = (round(edge, 2) for edge in edges)
    return left, top, right, bottom


def _pairs(
    verdict: TaskVerdict,
    views: Sequence[AnnotatorView],
    clusters: Sequence[Cluster],
    origins: Mapping[tuple[int, int], int],
) -> tuple[AnnotatorPair, ...]:
    common: dict[tuple[int, int], list[bool]] = {}
    for cluster in clusters:
        for index, member in enumerate(cluster):
            for partner in cluster[index + 1 :]:
                if origins[member.annotator, member.region] == origins[partner.annotator, partner.region] == UNCHANGED:
                    continue  # both accepted the same pre-label: no sign of copying
                first, second = views[member.annotator], views[partner.annotator]
                identical = same_shape(first.regions[member.region], second.regions[partner.region])
                key = min(first.annotator, second.annotator), max(first.annotator, second.annotator)
                common.setdefault(key, []).append(identical)
    return tuple(
        AnnotatorPair(
            pair.a,
            pair.b,
            round(pair.overall, 6),
            {name: round(score, 6) for name, score in pair.controls.items()},
            len(regions := common.get((min(pair.a, pair.b), max(pair.a, pair.b)), [])),
            sum(regions),
            _deciding(pair),
            pair.disputed,
        )
        for pair in verdict.comparisons
        if not pair.unjudged
    )


def _deciding(pair: Comparison) -> tuple[float, float] | None:
    if pair.deciding is None or pair.deciding == pair.controls:
        return None
    scores = list(pair.deciding.values())
    mean = sum(scores) / len(scores) if scores else 1.0
    return round(min(scores, default=1.0), 6), round(mean, 6)


def _repeats(
    task: Task, answers: Sequence[Answers], tolerance: Tolerance, config: LabelConfig | None
) -> tuple[Repeat, ...]:
    """Agreement of annotators with their own previous annotation of the task."""
    latest = {submission.annotation for submission in answers}
    live = [
        annotation
        for annotation in with_unique_ids(task.annotations)
        if not annotation.was_cancelled and annotation.completed_by
    ]
    older = tuple(annotation for annotation in live if annotation.id not in latest)
    if not older:
        return ()
    current = {
        submission.annotator: submission for submission in complete_answers(answers) if not submission.ground_truth
    }
    earlier = read_answers(msgspec.structs.replace(task, annotations=older), config=config)
    repeats = []
    for submission in complete_answers(earlier):
        if submission.annotator in current:
            with suppress(TooLargeToJudge):  # not comparable
                agreement = compare(submission, current[submission.annotator], tolerance=tolerance).overall
                repeats.append(Repeat(submission.annotator, round(agreement, 6)))
    return tuple(repeats)


def _prelabels(task: Task) -> frozenset[tuple[Any, ...]]:
    """Keys of the regions that models pre-labelled, to recognise unchanged ones; overlays are not pre-labels."""
    overlay_ids = {overlay.id for overlay in overlays_of(task)}
    return frozenset(
        _drawing(result.type, result.value)
        for prediction in task.predictions
        if prediction.id not in overlay_ids
        for result in prediction.results
    )


def _origin(region: Region, prelabels: frozenset[tuple[Any, ...]]) -> int:
    if any(_drawing(result.type, result.value) in prelabels for result in region.result):
        return UNCHANGED
    origin = region.result[0].origin if region.result else None
    return {"prediction": UNCHANGED, "prediction-changed": CORRECTED}.get(origin or "", MANUAL)


def _question(
    task: Task, views: Sequence[AnnotatorView], annotations: Mapping[int | None, Annotation], control: str
) -> Question:
    """The answers to one control, with what became of the pre-label in each."""
    votes = choice_votes(views, control)
    annotation_of = {view.annotator: annotations.get(view.annotation) for view in views}
    predictions = {prediction.id: prediction for prediction in task.predictions}
    origins = []
    for who, _ in votes:
        annotation = annotation_of[who]
        parent = predictions.get(annotation.parent_prediction) if annotation else None
        origins.append(_answer_origin(annotation, parent, control))
    return Question(control, votes, tuple(origins) if any(origins) else ())


def _answer_origin(annotation: Annotation | None, parent: ModelPrediction | None, control: str) -> int:
    """What became of the pre-label in an answer about the whole task.

    An answer that equals the pre-label's by chance is none: the annotation must have been started from a prediction.
    """
    results = [result for result in annotation.results if result.from_name == control] if annotation else []
    if parent is not None:
        predicted = sorted(_drawing(item.type, item.value) for item in parent.results if item.from_name == control)
        if predicted:
            given = sorted(_drawing(item.type, item.value) for item in results)
            return UNCHANGED if given == predicted else CORRECTED
    origins = {result.origin for result in results}
    if "prediction-changed" in origins:
        return CORRECTED
    return UNCHANGED if origins == {"prediction"} else MANUAL


def _drawing(type_: str, value: Mapping[str, Any]) -> tuple[Any, ...]:
    plain = {
        name: round(item, 4) if isinstance(item, float) else item for name, item in value.items() if name != "text"
    }
    return type_, msgspec.json.encode(plain, order="sorted")


def _area(shape: Geometry) -> float:
    return float(shape.area)


def _seconds(annotation: Annotation) -> float | None:
    return annotation.lead_time if annotation.lead_time and annotation.lead_time > 0 else None
