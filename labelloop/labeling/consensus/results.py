"""Regions of a consensus with the JSON of the annotators' regions behind them: fields, ids, parents and relations."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from labelloop.labeling.consensus.consensus import AnnotatorView, Consensus, ConsensusRegion
from labelloop.labeling.region import Region
from labelloop.labeling.studio.task import Annotation, Result

Key = tuple[int | None, str]
"""A region of an annotator: the annotation's id, the region's id."""


class Joined(msgspec.Struct, frozen=True):
    """The regions of a consensus as they are written.

    Attributes:
        regions: One for each of ``Consensus.regions``, each with an id of its own and the results of the annotator's
            region that is most like it.
        became: Annotators' regions -> the id of the region that they are part of.
    """

    regions: tuple[Region, ...]
    became: Mapping[Key, str]

    def relation(self, relation: Result, annotation: int | None, kept: Container[str] = ()) -> dict[str, Any] | None:
        """A relation of an annotation between what its ends became; None where one of them is not there any more.

        Args:
            relation: The relation.
            annotation: The annotation's id.
            kept: Ids of the annotation's regions that are kept as they are.
        """
        ends: dict[str, str] = {}
        for field in ("from_id", "to_id"):
            old = str(relation.raw.get(field))
            new = old if old in kept else self.became.get((annotation, old))
            if new is None:
                return None
            ends[field] = new
        return {**relation.raw, **ends}


def join(
    found: Consensus,
    stances: Sequence[AnnotatorView],
    *,
    id_of: Callable[[ConsensusRegion], str] | None = None,
    old_id: Callable[[Region], str] = lambda region: region.id,
) -> Joined:
    """The regions of a consensus with the JSON of the regions that they are most like.

    Args:
        found: The consensus of ``stances``.
        stances: What each annotator drew.
        id_of: Gives the id of a region; None: that of the region that it is most like, where it is free.
        old_id: Gives the id of an annotator's region in Label Studio.
    """
    drawn = {(stance.annotator, place): each for stance in stances for place, each in enumerate(stance.regions)}
    origins = [[drawn[source.annotator, source.place] for source in agreed.sources] for agreed in found.regions]
    nearest = [_closest(agreed, regions) for agreed, regions in zip(found.regions, origins, strict=True)]
    wanted = [old_id(each) for each in nearest] if id_of is None else [id_of(each) for each in found.regions]
    names = _names(wanted)
    became = {
        (source.annotation, old_id(region)): name
        for agreed, regions, name in zip(found.regions, origins, names, strict=True)
        for source, region in zip(agreed.sources, regions, strict=True)
    }
    return Joined(
        tuple(
            _region(agreed, name, regions, like, became)
            for agreed, regions, name, like in zip(found.regions, origins, names, nearest, strict=True)
        ),
        became,
    )


def _closest(agreed: ConsensusRegion, regions: Sequence[Region]) -> Region:
    """Of the regions behind one of the consensus the one most like it: in its labels, then in its shape."""
    labels = sorted(agreed.region.labels)
    kind = type(agreed.region.geometry)
    places = range(len(regions))
    return regions[
        max(
            places,
            key=lambda place: (
                isinstance(regions[place].geometry, kind),
                sorted(regions[place].labels) == labels,
                agreed.sources[place].iou,
            ),
        )
    ]


def _region(
    agreed: ConsensusRegion, name: str, regions: Sequence[Region], like: Region, became: Mapping[Key, str]
) -> Region:
    """The region of the consensus with the results of the one it is like, its id and its parent's renamed."""
    parents = Counter(
        became[source.annotation, parent]
        for source, region in zip(agreed.sources, regions, strict=True)
        if region.result and (parent := region.result[0].parent_id) and (source.annotation, parent) in became
    )
    own: dict[str, Any] = {"id": name, **({"parentID": parents.most_common(1)[0][0]} if parents else {})}
    results = tuple(
        Result({**{key: value for key, value in each.raw.items() if key != "parentID"}, **own}) for each in like.result
    )
    shape = msgspec.structs.replace(
        agreed.region, id=name, control=like.control, to_name=like.to_name, type=like.type, result=results
    )
    return msgspec.structs.replace(shape, score=round(agreed.probability, 4))


def _names(wanted: Sequence[str]) -> list[str]:
    """An id for each region, its source's where that is free: two annotators' regions may share one."""
    taken: set[str] = set()
    names = []
    for first in wanted:
        name, number = first, 1
        while name in taken:
            number += 1
            name = f"{first}-{number}"
        taken.add(name)
        names.append(name)
    return names


def annotation_order(agreement: Mapping[int, float], annotations: Iterable[Annotation]) -> dict[int | None, int]:
    """Annotation id -> its rank as the one to take whole: the ground truth, the highest agreement, the latest.

    Args:
        agreement: Annotation id -> mean agreement with the other annotators, where it is known.
        annotations: The annotations to choose from.
    """
    ordered = sorted(
        annotations,
        key=lambda each: (
            each.ground_truth,
            round(agreement.get(each.id or 0, -1.0), 9),
            each.updated_at or each.created_at,
            each.id or 0,
        ),
        reverse=True,
    )
    return {each.id: rank for rank, each in enumerate(ordered)}
