"""Attach the JSON of the source regions to consensus regions: fields, ids, parents and relations."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from labelloop.labeling.consensus.consensus import AnnotatorView, Consensus, ConsensusRegion
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.task import Annotation

# A region of an annotator: (annotation id, region id).
RegionKey = tuple[int | None, str]


class MergedRegions(msgspec.Struct, frozen=True):
    """The regions of a consensus with source results.

    Attributes:
        regions: One for each of ``Consensus.regions``, with a unique id and the results of the most similar source
            region.
        region_ids: Source region -> id of the consensus region of its cluster.
    """

    regions: tuple[Region, ...]
    region_ids: Mapping[RegionKey, str]

    def remap_relation(
        self, relation: Result, annotation: int | None, kept_ids: Container[str] = ()
    ) -> dict[str, Any] | None:
        """The relation with the ids of the consensus regions; None if one of its ends no longer exists.

        Args:
            relation: The relation.
            annotation: The annotation's id.
            kept_ids: Ids of the annotation's regions that stay unchanged.
        """
        ends: dict[str, str] = {}
        for field in ("from_id", "to_id"):
            old = str(relation.raw.get(field))
            new = old if old in kept_ids else self.region_ids.get((annotation, old))
            if new is None:
                return None
            ends[field] = new
        return {**relation.raw, **ends}


def attach_results(
    consensus: Consensus,
    views: Sequence[AnnotatorView],
    *,
    id_of: Callable[[ConsensusRegion], str] | None = None,
    old_id: Callable[[Region], str] = lambda region: region.id,
) -> MergedRegions:
    """Give each consensus region an id and the results of its most similar source region.

    Args:
        consensus: The consensus of ``views``.
        views: The annotators' views.
        id_of: Returns the id of a consensus region. None: the id of the most similar source region, made unique.
        old_id: Returns the id of a source region in Label Studio.
    """
    drawn = {(view.annotator, index): region for view in views for index, region in enumerate(view.regions)}
    origins = [
        [drawn[source.annotator, source.region_index] for source in agreed.sources] for agreed in consensus.regions
    ]
    nearest = [_most_similar(agreed, regions) for agreed, regions in zip(consensus.regions, origins, strict=True)]
    wanted = (
        [old_id(region) for region in nearest] if id_of is None else [id_of(region) for region in consensus.regions]
    )
    ids = _unique_ids(wanted)
    became = {
        (source.annotation, old_id(region)): name
        for agreed, regions, name in zip(consensus.regions, origins, ids, strict=True)
        for source, region in zip(agreed.sources, regions, strict=True)
    }
    return MergedRegions(
        tuple(
            _region(agreed, name, regions, like, became)
            for agreed, regions, name, like in zip(consensus.regions, origins, ids, nearest, strict=True)
        ),
        became,
    )


def _most_similar(agreed: ConsensusRegion, regions: Sequence[Region]) -> Region:
    """The source region most similar to a consensus region: by kind of shape, then labels, then IoU.

    That of an object that only a model marked is the model's region.
    """
    if not regions:
        return agreed.region
    labels = sorted(agreed.region.labels)
    kind = type(agreed.region.geometry)
    indices = range(len(regions))
    return regions[
        max(
            indices,
            key=lambda index: (
                isinstance(regions[index].geometry, kind),
                sorted(regions[index].labels) == labels,
                agreed.sources[index].iou,
            ),
        )
    ]


def _region(
    agreed: ConsensusRegion, name: str, regions: Sequence[Region], like: Region, became: Mapping[RegionKey, str]
) -> Region:
    """The consensus region with the results of the source region ``like``, with new ids of itself and its parent."""
    parents = Counter(
        became[source.annotation, parent]
        for source, region in zip(agreed.sources, regions, strict=True)
        if region.result and (parent := region.result[0].parent_id) and (source.annotation, parent) in became
    )
    own: dict[str, Any] = {"id": name, **({"parentID": parents.most_common(1)[0][0]} if parents else {})}
    results = tuple(
        Result({**{key: value for key, value in result.raw.items() if key != "parentID"}, **own})
        for result in like.result
    )
    shape = msgspec.structs.replace(
        agreed.region, id=name, control=like.control, to_name=like.to_name, type=like.type, result=results
    )
    return msgspec.structs.replace(shape, score=round(agreed.probability, 4))


def _unique_ids(preferred: Sequence[str]) -> list[str]:
    """The preferred ids, made unique by a suffix: regions of two annotators may share an id."""
    used_ids: set[str] = set()
    ids = []
    for first in preferred:
        name, number = first, 1
        while name in used_ids:
            number += 1
            name = f"{first}-{number}"
        used_ids.add(name)
        ids.append(name)
    return ids


def rank_annotations(agreement: Mapping[int, float], annotations: Iterable[Annotation]) -> dict[int | None, int]:
    """Annotation id -> rank as the single annotation to use: ground truth, then agreement, then the latest.

    Args:
        agreement: Annotation id -> mean agreement with the other annotators, if known.
        annotations: The annotations to choose from.
    """
    ordered = sorted(
        annotations,
        key=lambda annotation: (
            annotation.ground_truth,
            round(agreement.get(annotation.id or 0, -1.0), 9),
            annotation.updated_at or annotation.created_at,
            annotation.id or 0,
        ),
        reverse=True,
    )
    return {annotation.id: rank for rank, annotation in enumerate(ordered)}
