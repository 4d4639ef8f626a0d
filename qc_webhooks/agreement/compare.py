"""Compare the answers of two annotators: agreement per control and overall, and their conflicts."""

from collections.abc import Mapping
from dataclasses import dataclass

from labelloop.labeling.errors import TooLargeToJudge
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict, not_named_conflict
from qc_webhooks.agreement.metrics import METRICS, Tolerance


@dataclass(frozen=True)
class Comparison:
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
        own = controls or {}
        thresholds = {
            name: own.get(control_name(name), threshold)
            for name in self.controls
            if every_control or control_name(name) in own
        }
        return self.overall >= threshold - _ROUNDING and all(
            self.controls[name] >= minimum - _ROUNDING for name, minimum in thresholds.items()
        )


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
    scores = {
        f"{name}" if _unique(name, a, b) else f"{name} ({kind})": measured[name, kind]
        if (name, kind) in measured
        else METRICS[kind](a.controls.get((name, kind), ()), b.controls.get((name, kind), ()), tolerance)
        for name, kind in _used(a, b)
        if not unread & {name, control_name(name), ""}
    }
    weighted = [(score, (weights or {}).get(control_name(name), 1.0)) for name, score in scores.items()]
    total = sum(weight for _, weight in weighted)
    overall = sum(score * weight for score, weight in weighted) / total if total else 1.0
    unjudged = tuple(sorted({*unread, *a.uncompared, *b.uncompared}))
    return Comparison(a.annotator, b.annotator, scores, overall, unjudged)


def control_name(name: str) -> str:
    """The control of a key of ``Comparison.controls``; the key includes the kind if a control has several."""
    return name.partition(" (")[0]


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
        min_agreement = max(agreement, (controls or {}).get(name, 0.0))
        try:
            conflicts += CONFLICTS[kind](name, *values, tolerance=tolerance, agreement=min_agreement)
        except TooLargeToJudge as error:
            conflicts.append(not_named_conflict(name, error))
    return tuple(conflicts)


def _used(a: Answers, b: Answers) -> list[tuple[str, str]]:
    return sorted({*a.controls, *b.controls})


def _unique(name: str, a: Answers, b: Answers) -> bool:
    return len({kind for other, kind in (*a.controls, *b.controls) if other == name}) == 1
