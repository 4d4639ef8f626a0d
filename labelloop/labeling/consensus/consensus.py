"""Consensus of several annotations of a task: the most likely regions and answers, with probability and provenance."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from labelloop.labeling.consensus.box_bias import box_edges
from labelloop.labeling.consensus.clustering import MIN_IOU, Cluster, cluster_regions
from labelloop.labeling.consensus.crowd import (
    AnnotatorModel,
    AnnotatorView,
    ConfusionModel,
    Evidence,
    amounts_of,
    annotated_boxes,
    choice_controls,
    choice_votes,
    collect_evidence,
    control_of,
    fit_annotator_model,
    rankings_of,
    region_votes,
    texts_of,
    uniform_confusion,
)
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.consensus.merge import medoid, merge_shapes
from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.consensus.rankings import RankingConsensus, merge_rankings
from labelloop.labeling.consensus.scales import ScaleConsensus, ScaleModel
from labelloop.labeling.consensus.tags import Answer, TagModel, Votes, has_several_tags, uniform_tags
from labelloop.labeling.consensus.texts import TextConsensus, merge_texts
from labelloop.labeling.consensus.voiced import hear
from labelloop.labeling.geometry.overlap import iou_matrix
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.writing import to_results

__all__ = [
    "AnnotatorModel",
    "AnnotatorView",
    "Consensus",
    "ConsensusChoice",
    "ConsensusRegion",
    "Evidence",
    "RegionProvenance",
    "collect_evidence",
    "consensus",
    "consensus_results",
    "fit_annotator_model",
    "provenance_json",
]  # fmt: skip

# An object is in the consensus if it is more likely than not to exist.
MIN_PROBABILITY = 0.5
# IoU from which a box is at the right place, as in the default policy.
MATCH_IOU = 0.5


class RegionProvenance(msgspec.Struct, frozen=True, gc=False):
    """One annotator's region in the cluster of a consensus region.

    Attributes:
        annotator: The annotator's id.
        annotation: The annotation's id; None if unknown.
        region: The region's id in that annotation.
        labels: The labels that this annotator chose.
        iou: IoU of that shape with the consensus shape, 0 to 1.
        region_index: Its index among that annotator's regions; ids may repeat.
    """

    annotator: int
    annotation: int | None
    region: str
    labels: tuple[str, ...]
    iou: float
    region_index: int = 0


class ModelVote(msgspec.Struct, frozen=True, gc=False):
    """A model's vote on an object.

    Attributes:
        version: Its version.
        score: The score of its region; None: it does not mark the object.
    """

    version: str
    score: float | None


class ConsensusRegion(msgspec.Struct, frozen=True, gc=False):
    """The consensus of one cluster of regions.

    Attributes:
        region: Shape, labels and attributes of the consensus; its ``score`` is ``probability``.
        probability: Probability that the object exists and, for a box, that the region overlaps it enough, 0 to 1.
        label_probability: Probability that the labels are right, given that it exists.
        sources: The regions of the cluster.
        missed_by: Annotators of the task who did not mark it.
        voice: The vote of the model that is one more voice; None: none was heard.
    """

    region: Region
    probability: float
    label_probability: float
    sources: tuple[RegionProvenance, ...]
    missed_by: tuple[int, ...]
    voice: ModelVote | None = None


class ConsensusChoice(msgspec.Struct, frozen=True, gc=False):
    """The consensus answer of a per-task control.

    Attributes:
        chosen: The most likely answer.
        probability: Probability that it is right, 0 to 1.
        votes: The answers by annotator.
    """

    chosen: Answer
    probability: float
    votes: Votes


class Consensus(msgspec.Struct, frozen=True, gc=False):
    """The consensus of a task.

    Attributes:
        annotators: The annotators of the task.
        regions: Objects whose probability is above the threshold.
        rejected: All other objects; no marked region is lost.
        choices: Answers of per-task controls, by control.
        amounts: Ratings and numbers about the whole task, by control.
        texts: Texts about the whole task, by control.
        rankings: Rankings, by control.
    """

    annotators: tuple[int, ...]
    regions: tuple[ConsensusRegion, ...] = ()
    rejected: tuple[ConsensusRegion, ...] = ()
    choices: Mapping[str, ConsensusChoice] = {}
    amounts: Mapping[str, ScaleConsensus] = {}
    texts: Mapping[str, TextConsensus] = {}
    rankings: Mapping[str, RankingConsensus] = {}


def consensus(
    views: Sequence[AnnotatorView],
    model: AnnotatorModel | None = None,
    *,
    min_iou: float = MIN_IOU,
    min_probability: float = MIN_PROBABILITY,
    match_iou: float = MATCH_IOU,
    clusters: Sequence[Cluster] | None = None,
    voice: VoiceRegions | None = None,
) -> Consensus:
    """Compute the consensus of several annotators.

    Regions are clustered, at most one of each annotator. A cluster is accepted if its probability (from the recall
    and the false regions of all annotators) is above ``min_probability``; the probability that is stated is calibrated
    where the model is fitted (`AnnotatorModel.region_probabilities`), on the same side of the threshold. Its shape is
    the fused shape of its members, its labels the most likely ones under the annotators' confusion matrices. Answers of
    several tags (multiple choice, taxonomies) are decided tag by tag.

    Args:
        views: One view per annotator, in any order.
        model: The fitted model of the annotators; None: all are equally reliable.
        min_iou: Minimum average IoU of a cluster; the same as for ``collect_evidence``.
        min_probability: An object is accepted above this probability.
        match_iou: IoU from which a box is at the right place; it only enters the stated probability.
        clusters: The clusters of the regions, if already computed: of the views sorted by annotator.
        voice: What a model that never learned from this task says; heard where ``model`` knows its errors.
    """
    model = model or AnnotatorModel()
    ordered = sorted(views, key=lambda view: view.annotator)
    if clusters is None:
        clusters = cluster_regions([view.regions for view in ordered], min_iou=min_iou)
    regions = [_consensus_region(ordered, cluster, model) for cluster in clusters]
    if voice is not None and model.voice is not None:
        regions = [region for region in _heard(ordered, clusters, model, voice, regions)
                   if region.sources or region.probability > min_probability]  # fmt: skip
        accepted = [region.probability > min_probability for region in regions]
    else:
        accepted = [region.probability > min_probability for region in regions]
        regions = _state_probabilities(ordered, regions, model, match_iou, min_probability)
    return Consensus(
        tuple(view.annotator for view in ordered),
        tuple(region for region, is_accepted in zip(regions, accepted, strict=True) if is_accepted),
        tuple(region for region, is_accepted in zip(regions, accepted, strict=True) if not is_accepted),
        {
            control: ConsensusChoice(*_best_answer(votes, model.tags.get(control), model.choices.get(control)), votes)
            for control in choice_controls(ordered)
            for votes in [choice_votes(ordered, control)]
        },
        {
            control: (model.scales.get(control) or ScaleModel()).merge(answers)
            for control, answers in amounts_of(ordered)
        },
        {control: merge_texts(texts, model.texts.get(control, {})) for control, texts in texts_of(ordered)},
        {control: merge_rankings(rankings, model.rankings.get(control)) for control, rankings in rankings_of(ordered)},
    )


def consensus_results(
    agreed: ConsensusRegion, region: Region, *, config: LabelConfig | None = None
) -> list[dict[str, Any]]:
    """A consensus region as Label Studio's results, with its provenance in each result's ``meta``.

    Args:
        agreed: The region.
        region: The same region with source results (see ``attach_results``), or ``agreed.region``.
        config: The label config.

    Raises:
        LabelingError: Neither the region nor ``config`` names a required control (see ``to_results``).
    """
    source = provenance_json(agreed)
    return [with_provenance(result, source) for result in to_results(region, config=config)]


def with_provenance(result: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The result with its provenance in ``meta.labelloop``; the rest of its ``meta`` is kept."""
    meta = result.get("meta")
    return {**result, "meta": {**(meta if isinstance(meta, Mapping) else {}), "labelloop": source}}


def provenance_json(agreed: ConsensusRegion) -> dict[str, Any]:
    """The provenance of a consensus region, as JSON."""
    return {
        "probability": _rounded(agreed.probability),
        "label_probability": _rounded(agreed.label_probability),
        "annotators": [source.annotator for source in agreed.sources],
        "missed_by": list(agreed.missed_by),
        "sources": [
            {
                "annotation": source.annotation,
                "region": source.region,
                "labels": list(source.labels),
                "iou": _rounded(source.iou),
            }
            for source in agreed.sources
        ],
        **(
            {}
            if agreed.voice is None
            else {"model": {"version": agreed.voice.version, "score": _score(agreed.voice.score)}}
        ),
    }


def _score(score: float | None) -> float | None:
    return None if score is None else _rounded(score)


def _consensus_region(views: Sequence[AnnotatorView], cluster: Cluster, model: AnnotatorModel) -> ConsensusRegion:
    regions = [views[member.annotator].regions[member.region] for member in cluster]
    marked_by = tuple(views[member.annotator].annotator for member in cluster)
    annotators = tuple(view.annotator for view in views)
    probability = model.detection.probability(ObjectEvidence(annotators, marked_by))
    votes = region_votes(views, cluster)
    control = control_of(views, cluster)
    labels, label_probability = _best_answer(votes, model.tags.get(control), model.labels.get(control))
    shapes = [region.geometry for region in regions]
    template = regions[medoid(shapes)]
    boxes = annotated_boxes(views, cluster)
    shape = model.box_bias.fuse_boxes(boxes) if boxes and model.box_bias.by_annotator else merge_shapes(shapes)
    chosen = next((region.labels for region in regions if tuple(sorted(region.labels)) == labels), labels)
    region = msgspec.structs.replace(
        template, geometry=shape, labels=chosen, score=probability, attributes=_attributes(regions), result=()
    )
    # what one annotator marked alone is mostly kept as drawn, and need not be compared with itself
    overlaps = [1.0] if shapes == [shape] else iou_matrix(shapes, [shape])[:, 0].tolist()
    sources = tuple(
        RegionProvenance(
            annotator, views[member.annotator].annotation, source.id, source.labels, overlap, member.region
        )
        for member, annotator, source, overlap in zip(cluster, marked_by, regions, overlaps, strict=True)
    )
    missed_by = tuple(annotator for annotator in annotators if annotator not in marked_by)
    return ConsensusRegion(region, probability, label_probability, sources, missed_by)


def _state_probabilities(
    views: Sequence[AnnotatorView],
    regions: Sequence[ConsensusRegion],
    model: AnnotatorModel,
    match_iou: float,
    min_probability: float,
) -> list[ConsensusRegion]:
    """The regions with calibrated probabilities; each stays on its side of the threshold."""
    annotators = [view.annotator for view in views]
    marked_by = [{source.annotator for source in agreed.sources} for agreed in regions]
    marked = np.array([[annotator in markers for annotator in annotators] for markers in marked_by], dtype=bool)
    if not regions or (exists := model.region_probabilities(annotators, marked)) is None:
        return list(regions)
    located = model.region_probabilities(annotators, marked, match_iou)
    stated = []
    for agreed, existing, at_place in zip(regions, exists.tolist(), located.tolist(), strict=True):  # type: ignore[union-attr]
        probability = at_place if box_edges(agreed.region.geometry) else existing
        limit = max if agreed.probability > min_probability else min
        probability = limit(probability, min_probability)
        region = msgspec.structs.replace(agreed.region, score=probability)
        stated.append(msgspec.structs.replace(agreed, region=region, probability=probability))
    return stated


def _heard(
    views: Sequence[AnnotatorView],
    clusters: Sequence[Cluster],
    model: AnnotatorModel,
    voice: VoiceRegions,
    regions: Sequence[ConsensusRegion],
) -> list[ConsensusRegion]:
    """The regions as a model's voice changes them, and those of it that no annotator marked."""
    heard, alone = hear(views, clusters, model, voice)
    result = []
    for region, said in zip(regions, heard, strict=True):
        labels, label_probability = region.region.labels, region.label_probability
        if said.labels is not None:
            best, label_probability = min(said.labels.items(), key=lambda item: (-item[1], item[0]))
            labels = labels if tuple(sorted(labels)) == best else best
        merged = msgspec.structs.replace(
            region.region, geometry=said.box or region.region.geometry, labels=labels, score=said.probability
        )
        score = None if said.region is None else said.region.score
        result.append(
            msgspec.structs.replace(
                region, region=merged, probability=said.probability, label_probability=label_probability,
                voice=ModelVote(voice.version, score),
            )
        )  # fmt: skip
    annotators = tuple(view.annotator for view in views)
    for said in alone:
        if said.region is not None:
            own = msgspec.structs.replace(said.region, score=said.probability)
            label_probability = max((said.labels or {}).values(), default=1.0)
            vote = ModelVote(voice.version, said.region.score)
            result.append(ConsensusRegion(own, said.probability, label_probability, (), annotators, vote))
    return result


def _best_answer(votes: Votes, tags: TagModel | None, confusion: ConfusionModel | None) -> tuple[Answer, float]:
    """The most likely answer: tag by tag where answers of the control have several tags, else among whole answers."""
    answers = {answer for _, answer in votes}
    if tags is not None or has_several_tags(answers):
        return (tags or uniform_tags(votes)).best(votes)
    posterior = (confusion or uniform_confusion(answers)).posterior(votes)
    if len(answers) > 1 and all(map(_is_date, answers)):
        dates = sorted(answer for _, answer in votes)
        middle = dates[(len(dates) - 1) // 2]
        return middle, posterior.get(middle, 0.0)
    return _best(posterior, votes)


def _is_date(answer: Answer) -> bool:
    """Whether an answer is a date or a time in ISO form, whose text order is the order of time."""
    if len(answer) != 1 or not {"-", ":"} & set(answer[0]):
        return False
    try:
        datetime.fromisoformat(answer[0])
    except ValueError:
        return False
    return True


def _best(posterior: Mapping[Answer, float], votes: Votes) -> tuple[Answer, float]:
    """The most likely answer; ties go to the one with more votes, then to the first in alphabetical order."""
    counts = Counter(answer for _, answer in votes)
    best = min(posterior, key=lambda answer: (-round(posterior[answer], 9), -counts[answer], answer))
    return best, posterior[best]


def _attributes(regions: Sequence[Region]) -> dict[str, tuple[Any, ...]]:
    """Each attribute among those who gave one: texts the nearest to all, numbers the median, others the majority."""
    types = {result.from_name: result.type for region in regions for result in region.result}
    merged: dict[str, tuple[Any, ...]] = {}
    for name in dict.fromkeys(name for region in regions for name in region.attributes):
        answers = [region.attributes[name] for region in regions if name in region.attributes]
        merged[name] = ATTRIBUTE_MERGES.get(types.get(name, ""), _majority)(answers)
    return merged


def _majority(answers: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The most frequent answer; ties go to the first."""
    return max(answers, key=answers.count)


def _most_tags(answers: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The tags that most gave, in the order in which they were given; of single tags, the most frequent one."""
    if not has_several_tags(answers):
        return _majority(answers)
    votes = tuple(enumerate(answers))
    chosen, _ = uniform_tags(votes).best(votes)
    return tuple(sorted(chosen, key=[tag for answer in (*answers, chosen) for tag in answer].index))


def _median(answers: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return sorted(answers)[(len(answers) - 1) // 2]


def _nearest_text(answers: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    chosen = merge_texts(tuple(enumerate("\n".join(map(str, lines)) for lines in answers)))
    return answers[chosen.annotator]


# Result type of a per-region answer -> merge; others take the majority.
ATTRIBUTE_MERGES: Mapping[str, Callable[[Sequence[tuple[Any, ...]]], tuple[Any, ...]]] = {
    "choices": _most_tags,
    "taxonomy": _most_tags,
    "textarea": _nearest_text,
    "rating": _median,
    "number": _median,
}


def _rounded(number: float) -> float:
    return round(number, 4)
