"""A dispute as it is drawn: every stance's outlines in shares of the image, and what is disputed about which."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import shapely

from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.consensus import ConsensusRegion, consensus
from labelloop.labeling.geometry.shapes import Geometry, KeyPoint, Vector
from labelloop.labeling.region import Region
from qc_webhooks.agreement import Answers, Tolerance, whole_answers
from qc_webhooks.decision.proposal import stances
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.dispute_card import AttributedConflict, conflicts_of, stance_of
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import Verdict

CONSENSUS = "consensus"
# An outline is drawn a few hundred pixels wide: what is finer than this share of the image nobody sees.
_FINE = 0.002
_MOST_RINGS = 40
# Of a view, and conflicts of a task: a page that draws or tells more is slow, and nobody reads it.
MOST_OUTLINES, MOST_CONFLICTS = 500, 500

Points = tuple[tuple[float, float], ...]


class Outline(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One region.

    Attributes:
        rings: Its outlines (holes too), each a ring of (x, y) in shares of the image; of a point the point alone.
        open: Whether they are lines and enclose nothing.
        label: Its labels in words.
        photo: On which image of the task.
        disputed: Places in the conflicts that are about it.
    """

    rings: tuple[Points, ...]
    open: bool
    label: str
    photo: int
    disputed: tuple[int, ...]


class View(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What some annotators hold.

    Attributes:
        name: ``A``, ``B``, ... as on the overlays in Label Studio; ``consensus``.
        annotators: Who.
        outlines: What the one of them who is nearest to the others drew.
        said: (control, answer) about the whole task.
        more: How many more regions there are that are not drawn.
    """

    name: str
    annotators: tuple[int, ...]
    outlines: tuple[Outline, ...]
    said: tuple[tuple[str, str], ...] = ()
    more: int = 0


class Said(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One conflict in words.

    Attributes:
        type: See ``Conflict``.
        control: The control.
        annotators: Who differs.
        text: The sentence.
        a: What one side says.
        b: What the other says.
        photo: On which image.
    """

    type: str
    control: str
    annotators: tuple[int, ...]
    text: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    photo: int


class Drawing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A dispute.

    Attributes:
        conflicts: What is disputed.
        views: The stances, the largest group first, and last what they say together.
        sizes: (width, height) of each image as far as it is known.
        more: How many more conflicts there are that are not told; of each type there is one.
    """

    conflicts: tuple[Said, ...]
    views: tuple[View, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    more: int = 0

    @property
    def photo(self) -> int:
        """The image with the most conflicts."""
        places = [said.photo for said in self.conflicts]
        return max(sorted(set(places)), key=places.count, default=0)


def draw(
    answers: Sequence[Answers], verdict: Verdict, policy: Policy, *, clusters: Sequence[Cluster] | None = None
) -> Drawing:
    """The drawing of a dispute.

    Args:
        answers: One entry an annotator.
        verdict: What was found.
        policy: The project's policy.
        clusters: The regions' clusters, where they are known already, as ``consensus`` takes them.
    """
    together = consensus([stance_of(each) for each in whole_answers(answers)], clusters=clusters)
    everything = conflicts_of(answers, together, Tolerance(match_iou=policy.match_iou, near_iou=policy.near_iou))
    named = _shown(everything)
    regions = {answer.annotator: stance_of(answer).regions for answer in answers}
    disputed, disputed_of = _places(named)
    views = [
        View(
            chr(ord("A") + place % 26),
            tuple(answer.annotator for answer in group),
            _outlines(
                (region, tuple(disputed_of.get((group[0].annotator, region.id), ())))
                for region in regions[group[0].annotator]
            ),
            _said(group[0]),
            max(0, len(regions[group[0].annotator]) - MOST_OUTLINES),
        )
        for place, group in enumerate(stances(answers, verdict, policy))
    ]
    agreed = View(
        CONSENSUS,
        (),
        _outlines((each.region, _disputed_together(disputed, each)) for each in together.regions),
        tuple((control, " + ".join(answer.chosen) or "no answer") for control, answer in together.choices.items()),
        max(0, len(together.regions) - MOST_OUTLINES),
    )
    conflicts = tuple(
        Said(
            each.conflict.type,
            each.conflict.control,
            each.annotators,
            describe(each.conflict),
            each.conflict.a,
            each.conflict.b,
            each.conflict.item_index,
        )
        for each in named
    )
    sizes = _sizes(region for held in regions.values() for region in held)
    return Drawing(conflicts, (*views, agreed), sizes, len(everything) - len(named))


def _shown(named: Sequence[AttributedConflict]) -> list[AttributedConflict]:
    """The first conflicts, and the first of each type."""
    first = {each.conflict.type: place for place, each in reversed(list(enumerate(named)))}
    return [named[place] for place in sorted({*range(min(len(named), MOST_CONFLICTS)), *first.values()})]


def _outlines(regions: Iterable[tuple[Region, tuple[int, ...]]]) -> tuple[Outline, ...]:
    """Outlines of some regions with what is disputed about each; where there are too many, the disputed ones first."""
    held = list(regions)
    chosen = sorted(range(len(held)), key=lambda place: not held[place][1])[:MOST_OUTLINES]
    return tuple(_outline(*held[place]) for place in sorted(chosen))


def _said(answer: Answers) -> tuple[tuple[str, str], ...]:
    """The answers about the whole task that can be written in a line."""
    plain = {
        name: [str(each)[:80] for each in held if isinstance(each, str | int | float)]
        for (name, _), held in answer.controls.items()
    }
    return tuple((name, " + ".join(told)) for name, told in plain.items() if told)


def _places(named: Sequence[AttributedConflict]) -> tuple[Mapping[str, list[int]], Mapping[tuple[int, str], list[int]]]:
    """Places in the conflicts: by the id of a region, and by an annotator and the id."""
    of_region: dict[str, list[int]] = {}
    of_annotator: dict[tuple[int, str], list[int]] = {}
    for place, each in enumerate(named):
        for region in dict.fromkeys(each.conflict.regions):
            of_region.setdefault(region, []).append(place)
            if region:
                for annotator in dict.fromkeys(each.annotators):
                    of_annotator.setdefault((annotator, region), []).append(place)
    return of_region, of_annotator


def _disputed_together(disputed: Mapping[str, list[int]], agreed: ConsensusRegion) -> tuple[int, ...]:
    ids = {agreed.region.id, *(source.region for source in agreed.sources)}
    return tuple(sorted({place for region in ids for place in disputed.get(region, ())}))


def _outline(region: Region, disputed: tuple[int, ...]) -> Outline:
    rings, open_ = _rings(region.geometry)
    width, height = max(region.width, 1), max(region.height, 1)
    shares = tuple(tuple((round(x / width, 4), round(y / height, 4)) for x, y in ring) for ring in rings)
    return Outline(shares, open_, " + ".join(region.labels), region.item_index, disputed)


def _rings(shape: Geometry) -> tuple[list[list[tuple[float, float]]], bool]:
    if isinstance(shape, KeyPoint):
        return [[(shape.x, shape.y)]], True
    if isinstance(shape, Vector) and shape.polygon().is_empty:
        return [[(x, y) for x, y in line.coords] for line in shape.line().geoms], True
    left, top, right, bottom = shape.bounds
    area = shapely.simplify(shape.polygon(), _FINE * max(right - left, bottom - top), preserve_topology=True)
    parts = sorted(shapely.get_parts(area), key=lambda part: -part.area)
    rings = [ring for part in parts if part.geom_type == "Polygon" for ring in (part.exterior, *part.interiors)]
    return [[(x, y) for x, y in ring.coords[:-1]] for ring in rings[:_MOST_RINGS]], False


def _sizes(regions: Iterable[Region]) -> tuple[tuple[int, int], ...]:
    found = {region.item_index: (region.width, region.height) for region in regions}
    return tuple(found.get(place, (0, 0)) for place in range(max(found, default=-1) + 1))
