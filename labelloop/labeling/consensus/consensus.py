"""Several annotations of a task -> one: what is most likely right, how likely, and from whom it came."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from labelloop.labeling.consensus.clustering import LEAST_OVERLAP, Cluster, cluster_regions
from labelloop.labeling.consensus.crowd import (
    AnnotatorModel,
    AnnotatorView,
    Answer,
    Evidence,
    Votes,
    choice_votes,
    control_of,
    drawn_boxes,
    estimate_crowd,
    evidence,
    questions,
    region_votes,
    uniform_confusion,
)
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.consensus.merge import medoid, merge_shapes
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
    "agreed_results",
    "consensus",
    "estimate_crowd",
    "evidence",
    "provenance",
]  # fmt: skip

# An object is in the consensus when it is more likely there than not.
LEAST_PROBABILITY = 0.5


class RegionProvenance(msgspec.Struct, frozen=True, gc=False):
    """One annotator's region behind a region of the consensus.

    Attributes:
        annotator: The annotator's id.
        annotation: The annotation's id, None where it is not known.
        region: The region's id in that annotation.
        labels: What that annotator called it.
        iou: Overlap of that shape with the shape of the consensus, 0 to 1.
        place: Its place among that annotator's regions; an id may be there twice.
    """

    annotator: int
    annotation: int | None
    region: str
    labels: tuple[str, ...]
    iou: float
    place: int = 0


class ConsensusRegion(msgspec.Struct, frozen=True, gc=False):
    """A region that some annotators marked, as one.

    Attributes:
        region: Shape, labels and attributes of the consensus; its ``score`` is ``probability``.
        probability: How likely the object is there, 0 to 1.
        label_probability: How likely the labels are right, if it is.
        sources: The regions it was made from.
        missed_by: Annotators of the task who did not mark it.
    """

    region: Region
    probability: float
    label_probability: float
    sources: tuple[RegionProvenance, ...]
    missed_by: tuple[int, ...]


class ConsensusChoice(msgspec.Struct, frozen=True, gc=False):
    """The answer to a question about the whole task.

    Attributes:
        chosen: The most likely answer.
        probability: How likely it is right, 0 to 1.
        votes: Who answered what.
    """

    chosen: Answer
    probability: float
    votes: Votes


class Consensus(msgspec.Struct, frozen=True, gc=False):
    """What several annotators say together.

    Attributes:
        annotators: Who annotated the task.
        regions: Objects that are more likely there than not.
        rejected: The others; nothing that anybody marked is lost.
        choices: Answers about the whole task, by control.
    """

    annotators: tuple[int, ...]
    regions: tuple[ConsensusRegion, ...] = ()
    rejected: tuple[ConsensusRegion, ...] = ()
    choices: Mapping[str, ConsensusChoice] = {}


def consensus(
    stances: Sequence[AnnotatorView],
    crowd: AnnotatorModel | None = None,
    *,
    least: float = LEAST_OVERLAP,
    least_probability: float = LEAST_PROBABILITY,
    clusters: Sequence[Cluster] | None = None,
) -> Consensus:
    """One annotation from those of several annotators.

    Regions are clustered, at most one of each annotator; a cluster is in when its probability (from the recall and
    the false regions of those who marked it and of those who did not) is above ``least_probability``. Its shape is the
    middle of its members' shapes, its labels the most likely under each annotator's confusion matrix.

    Args:
        stances: One entry an annotator; their order decides nothing.
        crowd: What is known about the annotators; None: nothing, so all are alike.
        least: Least average overlap of regions that are one object; as in ``evidence``.
        least_probability: From which probability on an object is in the consensus.
        clusters: The regions' clusters, where they are known already: of the stances in the order of annotators.
    """
    crowd = crowd or AnnotatorModel()
    ordered = sorted(stances, key=lambda stance: stance.annotator)
    if clusters is None:
        clusters = cluster_regions([stance.regions for stance in ordered], least=least)
    found = [_agreed(ordered, cluster, crowd) for cluster in clusters]
    return Consensus(
        tuple(stance.annotator for stance in ordered),
        tuple(each for each in found if each.probability > least_probability),
        tuple(each for each in found if each.probability <= least_probability),
        {control: _answered(choice_votes(ordered, control), crowd, control) for control in questions(ordered)},
    )


def agreed_results(
    agreed: ConsensusRegion, region: Region, *, config: LabelConfig | None = None
) -> list[dict[str, Any]]:
    """A region of the consensus as Label Studio's results, with its provenance in each result's ``meta``.

    Args:
        agreed: The region.
        region: The same with the results that it is written from (see ``joining.join``), or as it is.
        config: The label config.

    Raises:
        LabelingError: A control is needed that neither the region nor ``config`` names (see ``to_results``).
    """
    told = provenance(agreed)
    return [with_meta(result, told) for result in to_results(region, config=config)]


def with_meta(result: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """A result that says in ``meta.labelloop`` where it came from; what else its ``meta`` holds stays."""
    held = result.get("meta")
    return {**result, "meta": {**(held if isinstance(held, Mapping) else {}), "labelloop": told}}


def provenance(agreed: ConsensusRegion) -> dict[str, Any]:
    """Where a region of the consensus came from, as JSON."""
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
    }


def _agreed(stances: Sequence[AnnotatorView], cluster: Cluster, crowd: AnnotatorModel) -> ConsensusRegion:
    regions = [stances[member.annotator].regions[member.region] for member in cluster]
    who = tuple(stances[member.annotator].annotator for member in cluster)
    looked = tuple(stance.annotator for stance in stances)
    probability = crowd.presence.probability(ObjectEvidence(looked, who))
    votes = region_votes(stances, cluster)
    control = control_of(stances, cluster)
    labels, label_probability = _most_likely(votes, crowd, control)
    shapes = [region.geometry for region in regions]
    middle = regions[medoid(shapes)]
    boxes = drawn_boxes(stances, cluster)
    shape = crowd.hands.fuse_boxes(boxes) if boxes and crowd.hands.known else merge_shapes(shapes)
    chosen = next((region.labels for region in regions if tuple(sorted(region.labels)) == labels), labels)
    region = msgspec.structs.replace(
        middle, geometry=shape, labels=chosen, score=probability, attributes=_attributes(regions), result=()
    )
    overlaps = iou_matrix(shapes, [shape])[:, 0].tolist()
    sources = tuple(
        RegionProvenance(annotator, stances[member.annotator].annotation, each.id, each.labels, overlap, member.region)
        for member, annotator, each, overlap in zip(cluster, who, regions, overlaps, strict=True)
    )
    missed_by = tuple(annotator for annotator in looked if annotator not in who)
    return ConsensusRegion(region, probability, label_probability, sources, missed_by)


def _answered(votes: Votes, crowd: AnnotatorModel, control: str) -> ConsensusChoice:
    known = crowd.choices.get(control) or uniform_confusion({answer for _, answer in votes})
    chosen, probability = _best(known.posterior(votes), votes)
    return ConsensusChoice(chosen, probability, votes)


def _most_likely(votes: Votes, crowd: AnnotatorModel, control: str) -> tuple[Answer, float]:
    known = crowd.labels.get(control) or uniform_confusion({answer for _, answer in votes})
    return _best(known.posterior(votes), votes)


def _best(posterior: Mapping[Answer, float], votes: Votes) -> tuple[Answer, float]:
    """The most likely answer; of equals the one that more chose, then the first in the alphabet."""
    counts = Counter(answer for _, answer in votes)
    best = min(posterior, key=lambda answer: (-round(posterior[answer], 9), -counts[answer], answer))
    return best, posterior[best]


def _attributes(regions: Sequence[Region]) -> dict[str, tuple[Any, ...]]:
    """What most said about each attribute, of those who said anything; the first of equals."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in dict.fromkeys(name for region in regions for name in region.attributes):
        said = [region.attributes[name] for region in regions if name in region.attributes]
        found[name] = max(said, key=said.count)
    return found


def _rounded(number: float) -> float:
    return round(number, 4)
