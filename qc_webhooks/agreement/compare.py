"""Two annotators' answers against each other: agreement per control and overall."""

from collections.abc import Mapping
from dataclasses import dataclass

from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict
from qc_webhooks.agreement.metrics import METRICS, Tolerance


@dataclass(frozen=True)
class Comparison:
    """How far two annotators agree on a task.

    Attributes:
        a: The first annotator's id.
        b: The second annotator's id.
        controls: Control name -> agreement, 0 to 1, of every control that at least one of them used.
        overall: Mean over the controls; 1 where neither used any.
    """

    a: int
    b: int
    controls: Mapping[str, float]
    overall: float

    def agrees(self, threshold: float, *, every_control: bool) -> bool:
        """Whether the two agree: their overall agreement (and each control's, if asked) reaches the threshold."""
        scores = (self.overall, *self.controls.values()) if every_control else (self.overall,)
        return min(scores) >= threshold - _ROUNDING


# Sums of overlaps are floats: an agreement of 0.7 must not fail a threshold of 0.7 by the last bit.
_ROUNDING = 1e-9


def compare(a: Answers, b: Answers, *, tolerance: Tolerance) -> Comparison:
    """Agreement of two annotators on every control that one of them used.

    A control that one left empty and the other used counts: leaving out is an answer. One that both left empty says
    nothing, and does not dilute the mean.
    """
    scores = {
        f"{name}" if _unique(name, a, b) else f"{name} ({kind})": METRICS[kind](
            a.controls.get((name, kind), ()), b.controls.get((name, kind), ()), tolerance
        )
        for name, kind in _used(a, b)
    }
    overall = sum(scores.values()) / len(scores) if scores else 1.0
    return Comparison(a.annotator, b.annotator, scores, overall)


def find_conflicts(a: Answers, b: Answers, *, tolerance: Tolerance, agreement: float) -> tuple[Conflict, ...]:
    """What the two disagree on, control by control."""
    return tuple(
        conflict
        for name, kind in _used(a, b)
        for conflict in CONFLICTS[kind](
            name,
            a.controls.get((name, kind), ()),
            b.controls.get((name, kind), ()),
            tolerance=tolerance,
            agreement=agreement,
        )
    )


def _used(a: Answers, b: Answers) -> list[tuple[str, str]]:
    return sorted({*a.controls, *b.controls})


def _unique(name: str, a: Answers, b: Answers) -> bool:
    return len({kind for other, kind in (*a.controls, *b.controls) if other == name}) == 1
