"""Apply a model's voice to the consensus of a task, and collect what a task says about the voice."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, BoxBiasModel, box_edges
from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.crowd import (
    AnnotatorModel,
    AnnotatorView,
    annotated_boxes,
    control_of,
    region_votes,
)
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.consensus.model_voice import VOICE, HeardTask, VoiceRegions, fit_voice_model, match_voice
from labelloop.labeling.consensus.tags import Answer
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.region import Region


def heard_task(
    views: Sequence[AnnotatorView], clusters: Sequence[Cluster], voice: VoiceRegions, *, truth: int | None = None
) -> HeardTask:
    """The voice on the objects of a task, to estimate its errors.

    Args:
        views: One view per annotator, in the order of the clusters' annotator indices.
        clusters: The clusters of the views' regions.
        voice: The model's regions; never learned from this task.
        truth: The annotator of the ground truth, who is no annotator of the task; None: there is none.
    """
    matched, alone = match_voice([view.regions for view in views], clusters, voice)
    annotators = tuple(view.annotator for view in views if view.annotator != truth)
    rows = [(index, tuple(who for who, _ in region_votes(views, cluster) if who != truth))
            for index, cluster in enumerate(clusters)]  # fmt: skip
    rows = [(index, marked_by) for index, marked_by in rows if marked_by]
    answers, boxes = [], []
    for index, region_index in matched.items():
        region, cluster = voice.regions[region_index], clusters[index]
        votes = tuple(vote for vote in region_votes(views, cluster) if vote[0] != truth)
        answers.append((control_of(views, cluster), votes, _answer(region)))
        if drawn := _boxes_with_voice(views, cluster, region):
            boxes.append(drawn)
    return HeardTask(
        annotators,
        tuple(marked_by for _, marked_by in rows),
        tuple(_score(voice.regions[matched[index]]) if index in matched else None for index, _ in rows),
        tuple(_score(voice.regions[index]) for index in alone),
        tuple(answers),
        tuple(boxes),
    )


def with_voice(model: AnnotatorModel, tasks: Sequence[HeardTask]) -> AnnotatorModel:
    """The annotators' model with the errors of the voice; unchanged where it was heard on too few tasks."""
    voice = fit_voice_model(tasks, model.detection, model.labels)
    return msgspec.structs.replace(model, voice=voice)


class HeardRegion(NamedTuple):
    """What the voice makes of a cluster, or of a region of its own.

    Attributes:
        probability: Probability that the object exists.
        region: The voice's region; None: it does not mark the cluster.
        labels: Probability of each answer; None: as the annotators say.
        box: The fused box; None: as the annotators say.
    """

    probability: float
    region: Region | None = None
    labels: Mapping[Answer, float] | None = None
    box: Rectangle | None = None


def hear(
    views: Sequence[AnnotatorView], clusters: Sequence[Cluster], model: AnnotatorModel, voice: VoiceRegions
) -> tuple[list[HeardRegion], list[HeardRegion]]:
    """Hear the voice on every cluster.

    Returns:
        One entry per cluster, and one per region that no annotator marked.
    """
    errors = model.voice
    if errors is None:
        raise ValueError("the annotator model has no voice")
    annotators = tuple(view.annotator for view in views)
    matched, alone = match_voice([view.regions for view in views], clusters, voice)
    bias = BoxBiasModel({**model.box_bias.by_annotator, VOICE: errors.box}, model.box_bias.typical)
    heard = []
    for index, cluster in enumerate(clusters):
        votes = region_votes(views, cluster)
        evidence = ObjectEvidence(annotators, tuple(who for who, _ in votes))
        region = voice.regions[matched[index]] if index in matched else None
        probability = errors.probability(evidence, None if region is None else _score(region))
        if region is None:
            heard.append(HeardRegion(probability))
            continue
        control = control_of(views, cluster)
        labels = None
        if control not in model.tags and control in model.labels:
            labels = errors.labels(control, model.labels[control].posterior(votes), _answer(region))
        boxes = _boxes_with_voice(views, cluster, region)
        heard.append(HeardRegion(probability, region, labels, bias.fuse_boxes(boxes) if boxes else None))
    lone = [
        HeardRegion(
            errors.probability_alone(annotators, _score(voice.regions[index])),
            voice.regions[index],
            {_answer(voice.regions[index]): errors.label_accuracy.get(voice.regions[index].control, 1.0)},
        )
        for index in alone
    ]
    return heard, lone


def _boxes_with_voice(views: Sequence[AnnotatorView], cluster: Cluster, region: Region) -> AnnotatedBoxes:
    own = box_edges(region.geometry)
    if own is None:
        return ()
    if len(cluster) == 1:  # `annotated_boxes` gives only boxes of several annotators
        view = views[cluster[0].annotator]
        edges = box_edges(view.regions[cluster[0].region].geometry)
        return () if edges is None else ((view.annotator, edges), (VOICE, own))
    drawn = annotated_boxes(views, cluster)
    return (*drawn, (VOICE, own)) if drawn else ()


def _answer(region: Region) -> Answer:
    return tuple(sorted(region.labels))


def _score(region: Region) -> float:
    return region.score or 0.0
