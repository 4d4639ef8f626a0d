"""CONFLICTS: which disagreements about single objects make a dispute, whatever the mean agreement is."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

from labelloop.labeling.region import Region

DecideBy = Literal["objects", "mean"]
DECIDE_BY: tuple[DecideBy, ...] = ("objects", "mean")

# Types of conflicts that can make a dispute by themselves. The other types are judged by their control's agreement.
DISPUTABLE = (
    "missing", "extra", "label", "low_overlap", "duplicate", "merged", "split", "empty", "attribute", "choice",
)  # fmt: skip
# Among annotators it is unknown which of two is right: what is missing in one is extra in the other.
_TWINS = {"missing": "extra", "extra": "missing", "merged": "split", "split": "merged"}
# A question about the whole task may have many answers; by default its agreement decides.
DEFAULT_DISPUTE = tuple(kind for kind in DISPUTABLE if kind != "choice")
# Words for a type of conflict that a person may try.
_SYNONYMS: Mapping[str, str] = {
    "missed": "missing", "added": "extra", "mislabelled": "label", "mislabeled": "label", "labels": "label",
    "wrong_label": "label", "badly_located": "low_overlap", "location": "low_overlap", "granularity": "merged",
    "attributes": "attribute", "choices": "choice", "duplicates": "duplicate",
}  # fmt: skip
_BY_AGREEMENT = ("answer", "text", "number", "rating")


@dataclass(frozen=True)
class LabelConflicts:
    """Settings of one label: table ``[conflicts.labels.NAME]``; None: those of ``[conflicts]``.

    Attributes:
        dispute: Types of conflicts that make a dispute.
        min_size: See ``ConflictPolicy``.
        min_image_share: See ``ConflictPolicy``.
    """

    dispute: tuple[str, ...] | None = None
    min_size: float | None = None
    min_image_share: float | None = None


@dataclass(frozen=True)
class ConflictPolicy:
    """The table ``[conflicts]`` of a policy. This docstring is its help.

    Attributes:
        decide_by: ``objects``: a conflict of a type in ``dispute`` about an object in doubt is a dispute; ``mean``:
            only the mean agreement decides.
        dispute: Types of conflicts that make a dispute, whatever the mean agreement is.
        majority: Share of the annotators that settles an object, its label or an answer, above 0.5 to 1. An object that
            fewer have, and fewer lack, is in doubt.
        pixels: Two shapes are drawn alike where every edge differs by at most this many pixels, 0 or more: two careful
            annotators who are each within 3 px of the object. Edges that scatter by 3 px are alike too, where no other
            object is near.
        overlap: Two shapes with less IoU that are not drawn alike are a conflict of the type ``low_overlap``, above 0
            to 1.
        min_size: Objects smaller than this never make a dispute: the square root of the area of their bounds, in
            pixels, 0 or more.
        min_image_share: Objects whose bounds cover a smaller share of the image never make a dispute, 0 to 1.
        labels: Settings of single labels: tables ``[conflicts.labels.NAME]``.
    """

    decide_by: DecideBy = "objects"
    dispute: tuple[str, ...] = DEFAULT_DISPUTE
    majority: float = 0.65
    pixels: float = 6.0
    overlap: float = 0.5
    min_size: float = 0.0
    min_image_share: float = 0.0
    labels: Mapping[str, LabelConflicts] = field(default_factory=dict)

    @property
    def by_objects(self) -> bool:
        """Whether single objects decide."""
        return self.decide_by == "objects"

    def disputes(self, kind: str, labels: Iterable[str] = ()) -> bool:
        """Whether a type of conflict about these labels makes a dispute: it does for at least one of them."""
        own = [self.labels[label].dispute for label in set(labels) if label in self.labels]
        lists = [self.dispute if kinds is None else kinds for kinds in own]
        if len(own) < len(set(labels)) or not lists:
            lists.append(self.dispute)
        return any(kind in kinds or _TWINS.get(kind) in kinds for kinds in lists)

    @property
    def counts_all_sizes(self) -> bool:
        """Whether objects of every size make a dispute."""
        return not (self.min_size or self.min_image_share or self.labels)

    def ignores(self, region: Region) -> bool:
        """Whether an object is too small to make a dispute, under the settings of each of its labels."""
        if self.counts_all_sizes:
            return False
        left, top, right, bottom = region.geometry.bounds
        area = max(right - left, 0.0) * max(bottom - top, 0.0)
        share = area / max(region.width * region.height, 1)
        limits = [self.labels.get(label, _NO_SETTINGS) for label in region.labels] or [_NO_SETTINGS]
        return all(
            area**0.5 < (self.min_size if limit.min_size is None else limit.min_size)
            or share < (self.min_image_share if limit.min_image_share is None else limit.min_image_share)
            for limit in limits
        )


_NO_SETTINGS = LabelConflicts()
# A project that was connected before conflicts decided: the behaviour that it keeps.
BY_MEAN = ConflictPolicy(decide_by="mean")


def describe_conflict_policy() -> list[tuple[str, Any, str]]:
    """(key, default, help) of every key of ``[conflicts]``, for the docs."""
    text = (ConflictPolicy.__doc__ or "").split("Attributes:")[1]
    names = [item.name for item in fields(ConflictPolicy)]
    helps: dict[str, str] = {}
    name = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        head, colon, rest = line.partition(": ")
        if colon and head in names:
            name, helps[head] = head, rest
        else:
            helps[name] += f" {line}"
    defaults = ConflictPolicy()
    return [(key, getattr(defaults, key), helps[key]) for key in names]


def conflict_faults(policy: ConflictPolicy) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) of the keys of ``[conflicts]`` that are invalid."""
    if policy.decide_by not in DECIDE_BY:
        yield "conflicts.decide_by", f"must be one of {', '.join(DECIDE_BY)}, not {policy.decide_by!r}"
    ranges = (
        ("majority", 0.5 < policy.majority <= 1, "must be above 0.5 and at most 1"),
        ("pixels", 0 <= policy.pixels < float("inf"), "must be 0 or more"),
        ("overlap", 0 < policy.overlap <= 1, "must be above 0 and at most 1"),
    )
    for key, is_valid, reason in ranges:
        if not is_valid:
            yield f"conflicts.{key}", f"{reason}, not {getattr(policy, key)!r}"
    yield from _size_faults("conflicts", policy)
    yield from _kind_faults("conflicts.dispute", policy.dispute)
    for name, label in policy.labels.items():
        yield from _size_faults(f"conflicts.labels.{name}", label)
        yield from _kind_faults(f"conflicts.labels.{name}.dispute", label.dispute or ())


def _size_faults(where: str, settings: ConflictPolicy | LabelConflicts) -> Iterator[tuple[str, str]]:
    if settings.min_size is not None and not 0 <= settings.min_size < float("inf"):
        yield f"{where}.min_size", f"must be 0 or more, not {settings.min_size!r}"
    if settings.min_image_share is not None and not 0 <= settings.min_image_share <= 1:
        yield f"{where}.min_image_share", f"must be from 0 to 1, not {settings.min_image_share!r}"


def _kind_faults(where: str, kinds: Iterable[str]) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        if kind in DISPUTABLE:
            continue
        plain = kind.strip().casefold().replace(" ", "_").replace("-", "_")
        if plain in _BY_AGREEMENT:
            yield where, f"has {kind!r}, which the `agreement` of its control decides: see [controls.NAME]"
            continue
        near = _SYNONYMS.get(plain) or next(iter(get_close_matches(plain, DISPUTABLE, n=1)), None)
        hint = f" ({near!r}?)" if near else ""
        yield where, f"has {kind!r}{hint}; there are {', '.join(DISPUTABLE)}"
