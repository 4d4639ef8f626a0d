"""Owns the gate: whether a candidate may replace what is served. The reason is always told, in words.

Judged by the held-out tasks where enough of them are labelled: they were never learned from, by anybody. Before that,
by cross-validation: the candidate's AP50 on labelled photos that took no part in the fit that answers them, against
what its base finds on the same photos, and against the same figure of the learned version that is served.

A model that was made elsewhere can take part in no fold. Before the held-out tasks suffice it is asked about all that
is labelled; that it may have learned from these photos speaks for it: what finds less there all the same is worse.

A figure from few boxes is uncertain. A candidate is refused where it is worse by more than the tolerance and what
chance explains: else a version that was lucky on the first held-out photos would be served for ever.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.training.metrics import GroundTruth, ap50

JudgedBy = Literal["held-out", "cross-validation", "labelled photos", "nothing"]

ENOUGH_PHOTOS = 5
"""Held-out photos with a box from which they are judged by."""

ENOUGH_BOXES = 10
"""Boxes on them, at least."""

NOISE = 0.5
"""Divided by the square root of the photos: how far two cross-validations may lie apart by chance, as AP50. Wide on
purpose: from 4 to 9 photos of blood cells the figure was seen to jump by .13 from one photo to the next."""

FLOOR = 0.01
"""Score of the weakest detection that counts."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Photos with what is on them, and what somebody found there.

    Attributes:
        truths: What was drawn on each photo.
        found: What was found on each.
        names: Label of each class of `found`; empty where the class has none in the project.
    """

    truths: Sequence[GroundTruth]
    found: Sequence[Detections]
    names: Sequence[str]

    def by_class(self) -> dict[str, float]:
        """AP50 of every class that was drawn."""
        return dict(self._by_class)

    @cached_property
    def _by_class(self) -> dict[str, float]:
        return ap50(self.truths, self.found, names=list(self.names))

    @property
    def photos(self) -> int:
        """Photos with a box."""
        return sum(bool(one.labels) for one in self.truths)

    @property
    def boxes(self) -> int:
        """Boxes on them."""
        return sum(len(one.labels) for one in self.truths)

    @property
    def enough(self) -> bool:
        """Whether it can be judged by."""
        return self.photos >= ENOUGH_PHOTOS and self.boxes >= ENOUGH_BOXES


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passed, and why.

    Attributes:
        passed: Whether it may be served.
        judged_by: What decided.
        reason: In words.
        ap50: Of the candidate, mean over classes; `by_class` each. None and empty where nothing could be measured.
        parent_ap50: Of what it was compared with; `parent_by_class` each.
        photos: Photos that it was judged on; `boxes` on them.
    """

    passed: bool
    judged_by: JudgedBy
    reason: str
    ap50: float | None = None
    parent_ap50: float | None = None
    by_class: Mapping[str, float] = field(default_factory=dict)
    parent_by_class: Mapping[str, float] = field(default_factory=dict)
    photos: int = 0
    boxes: int = 0


def judge_held_out(
    candidate: EvaluationResult, parent: EvaluationResult, *, tolerance: float, earlier: Sequence[EvaluationResult] = ()
) -> Verdict:
    """By the held-out photos: the candidate must find as much of what is on them, but for the tolerance and chance.

    Args:
        candidate: What it finds on them.
        parent: What the served version finds on the same.
        tolerance: AP50 that it may be lower.
        earlier: What versions before the served one find: it may be lower than the best by twice as much, so that many
            small steps down do not add up.
    """
    new, old = candidate.by_class(), parent.by_class()
    mine, theirs = mean(new), mean(old)
    best = max((mean(one.by_class()) for one in earlier), default=0.0)
    chance = standard_error(old, Counter(label for truth in parent.truths for label in truth.labels))
    slack = tolerance + chance
    passed = mine >= theirs - slack
    said = f"AP50 {mine:.3f} on {candidate.photos} held-out photos, {theirs:.3f} by what is served"
    if mine < theirs - 0.0005:
        how = f"{'no more' if passed else 'more'} than {slack:.3f}"
        said += f": lower by {how} (tolerance {tolerance:g}, chance {chance:.3f} on {candidate.boxes} boxes)"
    if passed and mine < best - 2 * slack:
        passed = False
        said += f", but an earlier version had {best:.3f}, more than {2 * slack:.3f} above"
    elif not passed:
        said += _worst(new, old)
    return Verdict(
        passed, "held-out", said, mine, theirs, new, old, photos=candidate.photos, boxes=candidate.boxes
    )  # fmt: skip


def judge_by_folds(
    score: float,
    base: EvaluationResult,
    *,
    before: float | None,
    photos: int,
    tolerance: float,
    by_class: Mapping[str, float] | None = None,
) -> Verdict:
    """By cross-validation.

    Args:
        score: AP50 of the candidate on photos that took no part in the fit.
        base: What the base finds on the labelled photos, which it never learned from.
        before: The score of the learned version that is served, when it was judged in the same way; None: there is
            none, or it was learned from annotations that are withdrawn.
        photos: Labelled photos with a box.
        tolerance: AP50 that it may be lower.
        by_class: The score by class, to be shown.
    """
    known = base.by_class()
    theirs = mean(known)
    facts: dict[str, Any] = {"photos": photos, "boxes": base.boxes, "ap50": score, "by_class": by_class or {}}
    if score < theirs - tolerance:
        said = f"AP50 {score:.3f} by cross-validation on {photos} photos, {theirs:.3f} by its base on the same"
        return Verdict(False, "cross-validation", f"{said}: worse by more than the tolerance {tolerance:g}",
                       parent_ap50=theirs, parent_by_class=known, **facts)  # fmt: skip
    slack = tolerance + NOISE / float(np.sqrt(max(photos, 1)))
    if before is not None and score < before - slack:
        said = f"AP50 {score:.3f} by cross-validation, {before:.3f} when what is served was judged so"
        return Verdict(False, "cross-validation", f"{said}: lower by more than {slack:.2f}, which is more than chance",
                       parent_ap50=before, **facts)  # fmt: skip
    said = f"AP50 {score:.3f} by cross-validation on {photos} photos, {theirs:.3f} by its base on the same"
    return Verdict(True, "cross-validation", said, parent_ap50=theirs, parent_by_class=known, **facts)


def judge_by_labels(candidate: EvaluationResult, *, served: float, crossed: bool, tolerance: float) -> Verdict:
    """A model that was made elsewhere, by the labelled photos: the held-out ones are too few.

    Args:
        candidate: What it finds on labelled photos, which it may have learned from.
        served: AP50 of what is served on the same; `crossed`: of a learned version, by cross-validation.
        crossed: See `served`.
        tolerance: AP50 that it may be lower, beside chance.
    """
    mine = candidate.by_class()
    score, slack = mean(mine), tolerance + NOISE / float(np.sqrt(max(candidate.photos, 1)))
    passed = score >= served - slack
    how = "what is served by cross-validation" if crossed else "what is served on the same"
    said = f"AP50 {score:.3f} on {candidate.photos} labelled photos, {served:.3f} by {how}"
    if not passed:
        said += f": lower by more than {slack:.2f}, which is more than chance"
    return Verdict(passed, "labelled photos", said, score, served, mine, photos=candidate.photos, boxes=candidate.boxes)


def accept_without_evaluation(*, knows: Sequence[str]) -> Verdict:
    """Too few photos to judge by: it is served where what is served finds none of the classes anyway.

    Args:
        knows: Drawn classes that what is served can find.
    """
    if knows:
        return Verdict(
            False,
            "nothing",
            f"too few labelled photos to judge it, and what is served finds {', '.join(knows)} already",
        )
    return Verdict(True, "nothing", "too few labelled photos to judge it; what is served finds none of the classes")


def standard_error(by_class: Mapping[str, float], boxes: Mapping[str, int]) -> float:
    """Of a mean AP50: as if each object of a class were found or not by the toss of a coin as good as its AP50.

    Two versions find much the same objects, so their difference varies less than two such figures would: by about
    three quarters of one figure's standard error, where two answers in three are alike.

    Args:
        by_class: AP50 of each class that was drawn.
        boxes: How often it was drawn, at least once each.
    """
    spread = 0.0
    for name, score in by_class.items():
        count = boxes[name]
        share = (score * count + 1) / (count + 2)  # one found and one missed more: few boxes make nobody certain
        spread += share * (1 - share) / count
    return float(np.sqrt(spread)) / max(len(by_class), 1)


def mean(by_class: Mapping[str, float]) -> float:
    """Mean AP50; 0 where nothing was drawn."""
    return float(np.mean(list(by_class.values()) or [0.0]))


def _worst(new: Mapping[str, float], old: Mapping[str, float]) -> str:
    """The class that lost most."""
    lost = {name: old[name] - new.get(name, 0.0) for name in old}
    name = max(lost, key=lambda one: lost[one], default="")
    return f"; most of it at {name} ({old[name]:.3f} -> {new.get(name, 0.0):.3f})" if name else ""
