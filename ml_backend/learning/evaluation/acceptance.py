"""Decide whether a candidate may replace the served version, with the reason in words.

With enough labelled held-out tasks the candidate is compared on them: no version is ever trained on these. Before that,
its cross-validated AP50 is compared with the AP50 of its base on the same images, and with the cross-validated AP50 of
the served version.

An external model cannot be cross-validated. With too few held-out tasks it is evaluated on all labelled images. It may
have been trained on them, which can only favour it.

AP50 on few boxes is uncertain, so a candidate is refused only if it is worse by more than the tolerance plus chance.
Otherwise a version that was lucky on the first held-out images would never be replaced.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ml_backend.learning.evaluator import EvaluationResult

JudgedBy = Literal["held-out", "cross-validation", "labelled photos", "nothing"]

# Divided by the square root of the number of images: the AP50 difference of two cross-validations explained by chance.
# Wide on purpose: between 4 and 9 images of blood cells the AP50 changed by up to 0.13 with one more image.
NOISE = 0.5


@dataclass(frozen=True)
class AcceptanceVerdict:
    """Whether a candidate passed, and why.

    Attributes:
        passed: Whether it may be served.
        judged_by: The data that decided.
        reason: The reason in words.
        ap50: AP50 of the candidate, mean over classes; None if it was not evaluated.
        parent_ap50: AP50 of the model it was compared with.
        by_class: AP50 of the candidate by class.
        parent_by_class: AP50 of the compared model by class.
        photos: Number of evaluated images.
        boxes: Number of boxes on them.
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
) -> AcceptanceVerdict:
    """Compare a candidate with the served version on the held-out images.

    Args:
        candidate: Results of the candidate.
        parent: Results of the served version on the same images.
        tolerance: Largest accepted drop in AP50, in addition to the standard error.
        earlier: Results of earlier versions. The candidate may be at most twice the accepted drop below the best of
            them, so that many small drops do not add up.
    """
    new, old = candidate.by_class(), parent.by_class()
    score, parent_score = mean(new), mean(old)
    best = max((mean(result.by_class()) for result in earlier), default=0.0)
    chance = standard_error(old, Counter(label for truth in parent.truths for label in truth.labels))
    slack = tolerance + chance
    passed = score >= parent_score - slack
    reason = f"AP50 {score:.3f} on {candidate.photos} held-out images, {parent_score:.3f} by the served version"
    if score < parent_score - 0.0005:
        how = f"{'no more' if passed else 'more'} than {slack:.3f}"
        reason += f": lower by {how} (tolerance {tolerance:g}, chance {chance:.3f} on {candidate.boxes} boxes)"
    if passed and score < best - 2 * slack:
        passed = False
        reason += f", but an earlier version had {best:.3f}, more than {2 * slack:.3f} above"
    elif not passed:
        reason += _largest_loss(new, old)
    return AcceptanceVerdict(
        passed, "held-out", reason, score, parent_score, new, old, photos=candidate.photos, boxes=candidate.boxes
    )  # fmt: skip


def judge_by_folds(
    score: float,
    base: EvaluationResult,
    *,
    before: float | None,
    photos: int,
    tolerance: float,
    by_class: Mapping[str, float] | None = None,
) -> AcceptanceVerdict:
    """Compare a candidate by cross-validation with its base and with the served version.

    Args:
        score: Cross-validated AP50 of the candidate.
        base: Results of the base model on the labelled images.
        before: Cross-validated AP50 of the served learned version; None if there is none, or if some of its training
            annotations were withdrawn.
        photos: Number of labelled images with a box.
        tolerance: Largest accepted drop in AP50.
        by_class: AP50 of the candidate by class, for the report.
    """
    base_by_class = base.by_class()
    base_score = mean(base_by_class)
    facts: dict[str, Any] = {"photos": photos, "boxes": base.boxes, "ap50": score, "by_class": by_class or {}}
    if score < base_score - tolerance:
        reason = (
            f"AP50 {score:.3f} by cross-validation on {photos} images, {base_score:.3f} by its base on the same images"
        )
        return AcceptanceVerdict(False, "cross-validation", f"{reason}: worse by more than the tolerance {tolerance:g}",
                       parent_ap50=base_score, parent_by_class=base_by_class, **facts)  # fmt: skip
    slack = tolerance + NOISE / float(np.sqrt(max(photos, 1)))
    if before is not None and score < before - slack:
        reason = f"AP50 {score:.3f} by cross-validation, {before:.3f} for the served version"
        return AcceptanceVerdict(
            False,
            "cross-validation",
            f"{reason}: lower by more than {slack:.2f}, which chance does not explain",
            parent_ap50=before,
            **facts,
        )
    reason = f"AP50 {score:.3f} by cross-validation on {photos} images, {base_score:.3f} by its base on the same images"
    return AcceptanceVerdict(
        True, "cross-validation", reason, parent_ap50=base_score, parent_by_class=base_by_class, **facts
    )


def judge_by_labels(
    candidate: EvaluationResult, *, served: float, crossed: bool, tolerance: float
) -> AcceptanceVerdict:
    """Compare an external model with the served version on all labelled images.

    Args:
        candidate: Results on labelled images, which it may have been trained on.
        served: AP50 of the served version on the same images, or cross-validated (see `crossed`).
        crossed: Whether `served` is the cross-validated AP50 of a learned version.
        tolerance: Largest accepted drop in AP50, in addition to chance.
    """
    by_class = candidate.by_class()
    score, slack = mean(by_class), tolerance + NOISE / float(np.sqrt(max(candidate.photos, 1)))
    passed = score >= served - slack
    how = "the served version, by cross-validation" if crossed else "the served version on the same images"
    reason = f"AP50 {score:.3f} on {candidate.photos} labelled images, {served:.3f} by {how}"
    if not passed:
        reason += f": lower by more than {slack:.2f}, which chance does not explain"
    return AcceptanceVerdict(
        passed, "labelled photos", reason, score, served, by_class, photos=candidate.photos, boxes=candidate.boxes
    )


def accept_without_evaluation(*, knows: Sequence[str]) -> AcceptanceVerdict:
    """Decide with too few images to evaluate: pass only if the served version detects none of the labelled classes.

    Args:
        knows: Labelled classes that the served version detects.
    """
    if knows:
        return AcceptanceVerdict(
            False,
            "nothing",
            f"too few labelled images to evaluate it, and the served version already detects {', '.join(knows)}",
        )
    return AcceptanceVerdict(
        True, "nothing", "too few labelled images to evaluate it; the served version detects none of the classes"
    )


def standard_error(by_class: Mapping[str, float], boxes: Mapping[str, int]) -> float:
    """Return the standard error of a mean AP50, treating each object as a Bernoulli trial with p = AP50 of its class.

    Two versions detect mostly the same objects, so their difference varies less than two independent figures would: if
    two answers in three agree, by about three quarters of one standard error.

    Args:
        by_class: AP50 of each labelled class.
        boxes: Number of boxes of each class, at least 1.
    """
    spread = 0.0
    for name, score in by_class.items():
        count = boxes[name]
        share = (score * count + 1) / (count + 2)  # Laplace smoothing: one more hit and one more miss
        spread += share * (1 - share) / count
    return float(np.sqrt(spread)) / max(len(by_class), 1)


def mean(by_class: Mapping[str, float]) -> float:
    """Return the mean AP50; 0 without classes."""
    return float(np.mean(list(by_class.values()) or [0.0]))


def _largest_loss(new: Mapping[str, float], old: Mapping[str, float]) -> str:
    """Name the class with the largest drop in AP50."""
    lost = {name: old[name] - new.get(name, 0.0) for name in old}
    name = max(lost, key=lambda label: lost[label], default="")
    return f"; largest drop: {name} ({old[name]:.3f} -> {new.get(name, 0.0):.3f})" if name else ""
