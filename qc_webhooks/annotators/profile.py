"""All that is known of an annotator in one place, with what a lead should look at in plain words."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import AnnotatorModel
from qc_webhooks.annotators.disagreement_patterns import DisagreementPattern
from qc_webhooks.annotators.drift import Drift, drifts
from qc_webhooks.annotators.duplicates import Copies, copies
from qc_webhooks.annotators.prelabel_bias import Anchoring, anchorings
from qc_webhooks.annotators.reliability import LabelReliability, Reliability, rate_annotators
from qc_webhooks.annotators.speed import Speed, speeds
from qc_webhooks.statistics.bootstrap import ENOUGH, RESAMPLES, Estimate
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import Facts

Floats = NDArray[np.float64]

# What is too little to be worth a talk: below what is usual; more than others drew; objects for each region drawn.
_WORSE, _LOOSE, _STRICT = 0.03, 1.1, 1.2
# More than this share of the tasks handed in hastily.
_HASTY = 0.1
_REPEATABLE = 0.8
# Of fewer tasks with a ground truth nothing is told.
_FEW_TRUTHS = 5
# Of those so many are named that came out worst.
_WORST = 5
_TRUTH = "agreement with the ground truth"
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class AnnotatorProfile:
    """One annotator.

    Attributes:
        reliability: Accuracy, confusion, recall, precision, strictness.
        speed: None where no times are known.
        drift: A change over time; None: there is none to speak of.
        anchoring: What is done with pre-labels; None where none were used.
        copies: Others whose regions are the same to the pixel too often.
        repeats: Agreement with oneself on tasks done twice.
        against_truth: Agreement with the ground truth on tasks that were served to measure the annotator by.
        against_decided: The same on tasks that were decided after the annotator had done them. Many of these are
            disputes that a reviewer settled, so it is lower than on tasks in general.
        furthest: (task, agreement) of the tasks that were served for that and came out worst.
        size: Area drawn as a multiple of what the others drew for the same objects (geometric mean).
        concerns: What to look at, in words; empty: nothing.
    """

    reliability: Reliability
    speed: Speed | None = None
    drift: Drift | None = None
    anchoring: Anchoring | None = None
    copies: tuple[Copies, ...] = ()
    repeats: Estimate = field(default_factory=lambda: Estimate.lacking(0))
    size: Estimate = field(default_factory=lambda: Estimate.lacking(0))
    against_truth: Estimate = field(default_factory=lambda: Estimate.lacking(0))
    against_decided: Estimate = field(default_factory=lambda: Estimate.lacking(0))
    furthest: tuple[tuple[int, float], ...] = ()
    concerns: tuple[str, ...] = ()

    @property
    def annotator(self) -> int:
        """The annotator's id."""
        return self.reliability.annotator

    def as_json(self) -> dict[str, Any]:
        """For a report: the reliability's fields, and the others beside them."""
        told = asdict(self)
        return {**told.pop("reliability"), **told}


def portraits(
    tasks: Sequence[Facts], crowd: AnnotatorModel, found: Sequence[DisagreementPattern] = ()
) -> tuple[AnnotatorProfile, ...]:
    """Everybody who annotated one of the tasks, by id.

    Args:
        tasks: The facts of each task.
        crowd: What was estimated from their evidence.
        found: Where opinions split, see ``splits``: who differs mostly over what the guideline leaves open is told so.
    """
    rated = rate_annotators([task.evidence() for task in tasks], crowd)
    fast, drifted, anchored, copied = speeds(tasks), drifts(tasks), anchorings(tasks), copies(tasks)
    again, sizes = _repeats(tasks), _sizes(tasks)
    known, decided = _against_truths(tasks, known=True), _against_truths(tasks, known=False)
    nothing, worst = Estimate.lacking(0), _furthest(tasks)
    bare = [
        AnnotatorProfile(
            each,
            fast.get(each.annotator),
            drifted.get(each.annotator),
            anchored.get(each.annotator),
            copied.get(each.annotator, ()),
            again.get(each.annotator, nothing),
            sizes.get(each.annotator, nothing),
            known.get(each.annotator, nothing),
            decided.get(each.annotator, nothing),
            worst.get(each.annotator, ()),
        )
        for each in rated
    ]
    usual = _usual(bare)
    return tuple(replace(each, concerns=tuple(_concerns(each, usual, found))) for each in bare)


def _against_truths(tasks: Sequence[Facts], *, known: bool) -> dict[int, Estimate]:
    """Agreement with the ground truth, of who annotated when it was known already, or of who did before."""
    scores: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for turn in task.blind:
            if turn.against is not None and turn.known == known:
                scores[turn.annotator].append(turn.against)
    return {who: _mean(np.array(given), _FEW_TRUTHS) for who, given in scores.items()}


def _furthest(tasks: Sequence[Facts]) -> dict[int, tuple[tuple[int, float], ...]]:
    found: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for task in tasks:
        for turn in task.blind:
            if turn.known and turn.against is not None and turn.against < 1:
                found[turn.annotator].append((turn.against, task.task))
    return {who: tuple((task, score) for score, task in sorted(given)[:_WORST]) for who, given in found.items()}


def _repeats(tasks: Sequence[Facts]) -> dict[int, Estimate]:
    scores: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for repeat in task.repeats:
            scores[repeat.annotator].append(repeat.agreement)
    return {who: _mean(np.array(given)) for who, given in scores.items()}


def _mean(scores: Floats, enough: int = 5) -> Estimate:
    """A mean with its bootstrap interval; of a person's repeats there are seldom twenty."""
    n = len(scores)
    if n < enough:
        return Estimate.lacking(n, f"{n} of the {enough} that it takes")
    drawn = scores[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    if scores.min() == scores.max():
        # Drawing anew what is all the same says that nothing is left to chance; a rare miss may not have come yet.
        value, unseen = float(scores[0]), 1 - (proportion_ci(n, n, enough=enough).low or 0.0)
        low, high = value * (1 - unseen), value + (1 - value) * unseen
    return Estimate(float(scores.mean()), low, high, n)


def _sizes(tasks: Sequence[Facts]) -> dict[int, Estimate]:
    logs: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for thing in task.things:
            known = [(mark.annotator, math.log(mark.area)) for mark in thing.marks if mark.area > 0]
            total = sum(area for _, area in known)
            for who, area in known if len(known) > 1 else ():
                logs[who].append(area - (total - area) / (len(known) - 1))
    found = {}
    for who, given in logs.items():
        if len(given) < ENOUGH:
            found[who] = Estimate.lacking(len(given))
            continue
        ratios = np.clip(np.array(given), -1.0, 1.0)
        middle, half = float(ratios.mean()), _NORMAL_95 * float(ratios.std(ddof=1)) / math.sqrt(len(given))
        found[who] = Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(given))
    return found


def _usual(rated: Sequence[AnnotatorProfile]) -> Mapping[str, float]:
    """The median of everybody's rates, by what is rated."""
    values: dict[str, list[float]] = defaultdict(list)
    for each in rated:
        for name, estimate in _rates(each).items():
            if estimate.value is not None:
                values[name].append(estimate.value)
    return {name: float(np.median(known)) for name, known in values.items()}


def _rates(portrait: AnnotatorProfile) -> dict[str, Estimate]:
    each = portrait.reliability
    found = {f"accuracy of {name}": rated.accuracy for name, rated in {**each.labels, **each.choices}.items()}
    if each.regions:
        found |= {"recall": each.regions.recall, "precision": each.regions.precision}
    return found | {_TRUTH: portrait.against_truth}


def _concerns(each: AnnotatorProfile, usual: Mapping[str, float], found: Sequence[DisagreementPattern]) -> list[str]:
    lines = []
    for name, rate in _rates(each).items():
        if rate.high is not None and rate.value is not None and rate.high < usual[name] - _WORSE:
            lines.append(
                f"{name[0].upper()}{name[1:]} {_percent(rate.value)} ({_percent(rate.low)} to {_percent(rate.high)}),"
                f" where {_percent(usual[name])} is usual.{_excuse(name, each, found)}"
            )
    regions = each.reliability.regions
    if regions and regions.strictness and regions.drawn >= ENOUGH:
        if regions.strictness > _STRICT:
            lines.append(f"Marks less than there is: {regions.strictness:.2f} objects for each region drawn.")
        elif regions.strictness < 1 / _STRICT:
            lines.append(f"Marks more than there is: {regions.strictness:.2f} objects for each region drawn.")
    if each.size.low is not None and each.size.high is not None:
        if each.size.low > _LOOSE:
            lines.append(f"Draws {_percent((each.size.value or 1) - 1)} larger than the others.")
        elif each.size.high < 1 / _LOOSE:
            lines.append(f"Draws {_percent(1 - (each.size.value or 1))} smaller than the others.")
    if each.drift:
        way = "fell" if each.drift.after < each.drift.before else "rose"
        lines.append(
            f"Agreement with the others {way} from {_percent(each.drift.before)} to {_percent(each.drift.after)}."
        )
    if each.speed and each.speed.hasty.low is not None and each.speed.hasty.low > _HASTY:
        lines.append(f"{_percent(each.speed.hasty.value)} of the tasks took less than a quarter of the others' time.")
    if each.anchoring and each.anchoring.is_anchored:
        lines.append(f"Leaves {_percent(each.anchoring.left.value)} of the pre-labels that others correct as they are.")
    lines += [_copied(suspect) for suspect in each.copies if suspect.copied_by in {None, each.annotator}]
    if each.repeats.high is not None and each.repeats.high < _REPEATABLE:
        lines.append(f"Agrees with their own earlier work to {_percent(each.repeats.value)} only.")
    return lines


def _excuse(name: str, each: AnnotatorProfile, found: Sequence[DisagreementPattern]) -> str:
    """Whether most of what this annotator is held to have wrong is what the guideline leaves open."""
    control = name.removeprefix("accuracy of ")
    rated: LabelReliability | None = {**each.reliability.labels, **each.reliability.choices}.get(control)
    if rated is None:
        return ""
    wrong: Counter[frozenset[str]] = Counter()
    for truth, given in rated.confusion.items():
        for answer, count in given.items():
            if answer != truth:
                wrong[frozenset((truth, answer))] += count  # type: ignore[assignment]  # expected counts are fractions
    open_ = [
        frozenset(split.answers)
        for split in found
        if split.control == control and split.kind in {"guideline", "two views"}
    ]
    named = sum(wrong[pair] for pair in set(open_))
    if not wrong or named < sum(wrong.values()) / 2:
        return ""
    return f" Mostly {', '.join(' / '.join(sorted(pair)) for pair in open_)}, which the guideline leaves open."


def _copied(suspect: Copies) -> str:
    what = f"{_percent(suspect.share.value)} of the regions are the same to the pixel as annotator {suspect.other}'s"
    return f"{what}." if suspect.copied_by is None else f"{what}, and submitted after those."


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"
