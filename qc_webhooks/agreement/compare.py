"""Compare the answers of two annotators: agreement per control and overall, and their conflicts."""

import re
from collections.abc import Mapping

import msgspec

from labelloop.labeling.errors import TooLargeToJudge
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict, not_named_conflict
from qc_webhooks.agreement.metrics import METRICS, Tolerance


class Comparison(msgspec.Struct, frozen=True):
    """Agreement of two annotators on a task.

    Attributes:
        a: Id of the first annotator.
        b: Id of the second annotator.
        controls: Control name -> agreement in [0, 1], for every control that at least one of them used.
        overall: Weighted mean over the controls; 1 if neither used one with a weight.
        unjudged: Controls that cannot be compared between the two, because no metric compares them or an answer cannot
            be read; "" for an annotation with an unreadable result of unknown control. Not part of ``controls`` and
            ``overall``.
        deciding: Agreement by control that decides whether the two agree; None: ``controls``.
        disputed: Whether the two disagree on a single object that the policy disputes.
    """

    a: int
    b: int
    controls: Mapping[str, float]
    overall: float
    unjudged: tuple[str, ...] = ()
    deciding: Mapping[str, float] | None = None
    disputed: bool = False

    def agrees(self, threshold: float, *, every_control: bool, controls: Mapping[str, float] | None = None) -> bool:
        """Whether the overall agreement, and each control's if asked for, reaches its threshold.

        Args:
            threshold: Minimum overall agreement; also of controls without a threshold of their own.
            every_control: Whether each control must reach its threshold too.
            controls: Minimum agreement by control; always checked.
        """
        if self.overall < threshold - _ROUNDING:
            return False
        own = controls or {}
        for name, score in self.controls.items():
            minimum = own.get(control_name(name), threshold if every_control else None)
            if minimum is not None and score < minimum - _ROUNDING:
                return False
        return True


# Tolerance of float sums: an agreement of 0.7 must not miss a threshold of 0.7 by the last bit.
_ROUNDING = 1e-9


def compare(
    a: Answers,
    b: Answers,
    *,
    tolerance: Tolerance,
    weights: Mapping[str, float] | None = None,
    known: Mapping[tuple[str, str], float] | None = None,
) -> Comparison:
    """Compute the agreement of two annotators on every control that one of them used.

    A control that one left empty and the other used counts: leaving out is an answer. A control that both left empty
    does not count.

    Args:
        a: Answers of the first annotator.
        b: Answers of the second.
        tolerance: Overlap thresholds for the same region.
        weights: Control name -> weight in the overall agreement; default 1.
        known: (control, kind) -> agreement, where it is computed already.
    """
    measured = known or {}
    unread = a.unread_controls | b.unread_controls
    used = _used(a, b)
    is_ambiguous = len({name for name, _ in used}) < len(used)
    scores = {
        f"{name} ({kind})" if is_ambiguous and not _unique(name, a, b) else name: measured[name, kind]
        if (name, kind) in measured
        else METRICS[kind](a.controls.get((name, kind), ()), b.controls.get((name, kind), ()), tolerance)
        for name, kind in used
        if not unread or not unread & {name, control_name(name), ""}
    }
    overall = mean_agreement(scores, weights or {})
    unjudged = tuple(sorted({*unread, *a.uncompared, *b.uncompared})) if unread or a.uncompared or b.uncompared else ()
    return Comparison(a.annotator, b.annotator, scores, overall, unjudged)


def mean_agreement(controls: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of agreements by control; 1 if none has a weight."""
    if not weights:
        return sum(controls.values()) / len(controls) if controls else 1.0
    weighted = [(score, weights.get(control_name(name), 1.0)) for name, score in controls.items()]
    total = sum(weight for _, weight in weighted)
    return sum(score * weight for score, weight in weighted) / total if total else 1.0


def control_name(name: str) -> str:
    """The control of a key of ``Comparison.controls``; the key may include the kind of answer and the image."""
    return _ADDED.sub("", name) if name.endswith(")") else name


# What is added to the name of a control: the kind where it has several, the image where each has an answer of its own.
_ADDED = re.compile(rf"(?: \((?:image \d+|{'|'.join(METRICS)})\))+$")


def find_conflicts(
    a: Answers, b: Answers, *, tolerance: Tolerance, agreement: float, controls: Mapping[str, float] | None = None
) -> tuple[Conflict, ...]:
    """List the conflicts of two annotators by control; a control with too many regions gives one ``not_named``.

    Args:
        a: Answers of the first annotator.
        b: Answers of the second.
        tolerance: Overlap thresholds for the same region.
        agreement: Matches below this overlap or similarity are conflicts.
        controls: Higher values of ``agreement`` by control.
    """
    conflicts: list[Conflict] = []
    for name, kind in _used(a, b):
        values = (annotator.controls.get((name, kind), ()) for annotator in (a, b))
        min_agreement = max(agreement, (controls or {}).get(control_name(name), 0.0))
        try:
            conflicts += CONFLICTS[kind](name, *values, tolerance=tolerance, agreement=min_agreement)
        except TooLargeToJudge as error:
            conflicts.append(not_named_conflict(name, error))
    return tuple(conflicts)


def _used(a: Answers, b: Answers) -> list[tuple[str, str]]:
    return sorted(a.controls.keys() | b.controls.keys())


def _unique(name: str, a: Answers, b: Answers) -> bool:
    return len({kind for other, kind in (*a.controls, *b.controls) if other == name}) == 1
