"""Two annotators' answers against each other: agreement per control and overall."""

from collections.abc import Mapping
from dataclasses import dataclass

from labelloop.labeling.errors import TooLargeToJudge
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict, not_named
from qc_webhooks.agreement.metrics import METRICS, Tolerance


@dataclass(frozen=True)
class Comparison:
    """How far two annotators agree on a task.

    Attributes:
        a: The first annotator's id.
        b: The second annotator's id.
        controls: Control name -> agreement, 0 to 1, of every control that at least one of them used.
        overall: Weighted mean over the controls; 1 where neither used any that counts.
        unjudged: Controls that one of them answered and that cannot be compared between the two, because no metric
            compares them or an answer cannot be read; "" stands for an annotation of which it is not known what is
            missing. ``controls`` and ``overall`` do not count them.
    """

    a: int
    b: int
    controls: Mapping[str, float]
    overall: float
    unjudged: tuple[str, ...] = ()

    def agrees(self, threshold: float, *, every_control: bool, controls: Mapping[str, float] | None = None) -> bool:
        """Whether the two agree: their overall agreement (and each control's, if asked) reaches the threshold.

        Args:
            threshold: For the overall agreement, and for controls without one of their own.
            every_control: Whether each control must reach the threshold too.
            controls: Thresholds of single controls; these hold in any case.
        """
        own = controls or {}
        asked = {
            name: own.get(control_name(name), threshold)
            for name in self.controls
            if every_control or control_name(name) in own
        }
        return self.overall >= threshold - _ROUNDING and all(
            self.controls[name] >= least - _ROUNDING for name, least in asked.items()
        )


# Sums of overlaps are floats: an agreement of 0.7 must not fail a threshold of 0.7 by the last bit.
_ROUNDING = 1e-9


def compare(a: Answers, b: Answers, *, tolerance: Tolerance, weights: Mapping[str, float] | None = None) -> Comparison:
    """Agreement of two annotators on every control that one of them used.

    A control that one left empty and the other used counts: leaving out is an answer. One that both left empty says
    nothing, and does not dilute the mean.

    Args:
        a: The first annotator's answers.
        b: The second's.
        tolerance: What counts as the same region.
        weights: Control name -> how much it counts in the overall agreement; 1 where it is not named.
    """
    unread = a.unread_controls | b.unread_controls
    scores = {
        f"{name}" if _unique(name, a, b) else f"{name} ({kind})": METRICS[kind](
            a.controls.get((name, kind), ()), b.controls.get((name, kind), ()), tolerance
        )
        for name, kind in _used(a, b)
        if not unread & {name, ""}
    }
    weighed = [(score, (weights or {}).get(control_name(name), 1.0)) for name, score in scores.items()]
    total = sum(weight for _, weight in weighed)
    overall = sum(score * weight for score, weight in weighed) / total if total else 1.0
    unjudged = tuple(sorted({*unread, *a.uncompared, *b.uncompared}))
    return Comparison(a.annotator, b.annotator, scores, overall, unjudged)


def control_name(name: str) -> str:
    """The control behind a name of ``Comparison.controls``, which tells kinds apart where one control has several."""
    return name.partition(" (")[0]


def find_conflicts(
    a: Answers, b: Answers, *, tolerance: Tolerance, agreement: float, controls: Mapping[str, float] | None = None
) -> tuple[Conflict, ...]:
    """What the two disagree on, control by control; of a control with too much for that, that it is not named.

    Args:
        a: The first annotator's answers.
        b: The second's.
        tolerance: What counts as the same region.
        agreement: What overlaps less, or is less alike, is a conflict.
        controls: The same for single controls, where it is more.
    """
    found: list[Conflict] = []
    for name, kind in _used(a, b):
        said = (each.controls.get((name, kind), ()) for each in (a, b))
        least = max(agreement, (controls or {}).get(name, 0.0))
        try:
            found += CONFLICTS[kind](name, *said, tolerance=tolerance, agreement=least)
        except TooLargeToJudge as error:
            found.append(not_named(name, error))
    return tuple(found)


def _used(a: Answers, b: Answers) -> list[tuple[str, str]]:
    return sorted({*a.controls, *b.controls})


def _unique(name: str, a: Answers, b: Answers) -> bool:
    return len({kind for other, kind in (*a.controls, *b.controls) if other == name}) == 1
