"""How often each annotator errs, by measure, and who errs far more often than the others.

An annotator's answer is compared with what the others' answers make likely. Items that a diagnosed split explains are
left out first: on these no annotator errs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.explanations import extras_limit, fit_persons, split
from qc_webhooks.annotators.questions import MAX_ITEMS, QuestionAnswers, answer_name
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

Measure = Literal["misses", "extras", "labels", "answers", "borders"]

# An annotator errs far more often than the others above this multiple of their median rate, and this far above it.
OUTLIER_RATIO, OUTLIER_MARGIN = 2.0, 0.07
# The same for the scatter of borders, in shares of an object's side.
_SCATTER_RATIO, _SCATTER_MARGIN = 2.0, 0.01
# ... and beyond two standard errors above this multiple.
_SURE_SCATTER_RATIO = 1.5
# Fewest items for a rate, fewest other annotators to compare with.
MIN_ITEMS, MIN_OTHERS = 12, 2
# Chance that one of a team of equal annotators is named, over all annotators and measures.
_FALSE_NAME = 0.01
# Errors of one annotator come in runs: a bad hour, a hard image. Their number is worth this many independent ones.
_DESIGN_EFFECT = 1.5
_ITERATIONS = 30


@dataclass(frozen=True)
class ErrorRate:
    """Errors of one annotator.

    Attributes:
        annotator: The annotator's id.
        errors: Expected number of errors.
        n: Number of items, weighted by their probability of being real.
    """

    annotator: int
    errors: float
    n: float

    @property
    def rate(self) -> float:
        """Share of the items with an error."""
        return self.errors / self.n if self.n else 0.0

    def lower(self, chance: float) -> float:
        """The rate that is exceeded with all but this probability (Jeffreys' prior)."""
        from scipy.special import betaincinv

        errors, n = self.errors / _DESIGN_EFFECT, self.n / _DESIGN_EFFECT
        return float(betaincinv(errors + 0.5, max(n - errors, 0.0) + 0.5, chance))


def presence_rates(asked: QuestionAnswers, left_out: Floats) -> tuple[tuple[ErrorRate, ...], tuple[ErrorRate, ...]]:
    """(misses, extra regions) of each annotator.

    Args:
        asked: A question of the kind ``presence``.
        left_out: Share of each item that a split explains, ``(items,)``.
    """
    yes, no = split(asked)
    yes, no = yes * (1 - left_out)[:, None], no * (1 - left_out)[:, None]
    fit = fit_persons(yes, no, extras_limit(asked))
    logs = fit.log_likelihoods(yes, no)
    real = fit.posterior(yes, no)[:, 0]
    misses, extras = [], []
    for column, who in enumerate(asked.people):
        own = np.outer(yes[:, column], np.log([1 - fit.misses[column], fit.extras[column]])) + np.outer(
            no[:, column], np.log([fit.misses[column], 1 - fit.extras[column]])
        )
        others = logs - own
        likely = 1 / (1 + np.exp(np.clip(others[:, 1] - others[:, 0], -50, 50)))
        # Only what another annotator marked: an object that no other one saw says nothing about this one's recall.
        likely = likely * ((yes.sum(axis=1) - yes[:, column]) > 0)
        misses.append(ErrorRate(who, float(likely @ no[:, column]), float(likely @ (yes + no)[:, column])))
        # A region that another annotator drew too is no slip of one, whatever it is.
        alone = (yes.sum(axis=1) - yes[:, column]) <= 0
        extras.append(ErrorRate(who, float(((1 - real) * alone) @ yes[:, column]), float(yes[:, column].sum())))
    return tuple(misses), tuple(extras)


def answer_rates(
    tasks: Sequence[TaskFacts],
    control: str,
    *,
    of_regions: bool,
    without: Collection[int] = (),
    open_pairs: Iterable[tuple[str, str]] = (),
) -> tuple[ErrorRate, ...]:
    """Wrong labels (or answers) of each annotator on one control: Dawid and Skene's model with one rate a person.

    Args:
        tasks: Facts of each task.
        control: The control.
        of_regions: Labels of regions; otherwise answers about tasks.
        without: Annotators to leave out.
        open_pairs: Pairs of labels that a split explains: items whose answers include both are left out.
    """
    open_ = [set(pair) for pair in open_pairs]
    items: list[dict[int, str]] = []
    for task in tasks:
        viewers = {item.annotator for item in task.blind if item.annotator not in without}
        groups: Iterable[Iterable[tuple[int, tuple[str, ...]]]] = (
            (((mark.annotator, mark.labels) for mark in item.marks) for item in task.objects if item.control == control)
            if of_regions
            else (question.votes for question in task.questions if question.control == control)
        )
        for group in groups:
            votes = {who: answer_name(answer) for who, answer in group if who in viewers}
            if len(votes) > 1 and not any(pair <= set(votes.values()) for pair in open_):
                items.append(votes)
        if len(items) >= MAX_ITEMS:
            break
    return _one_coin(items)


def _one_coin(items: Sequence[Mapping[int, str]]) -> tuple[ErrorRate, ...]:
    if not items:
        return ()
    people = sorted({who for votes in items for who in votes})
    names = sorted({answer for votes in items for answer in votes.values()})
    if len(names) < 2:
        return tuple(ErrorRate(who, 0.0, float(sum(who in votes for votes in items))) for who in people)
    column_of, code_of = {who: n for n, who in enumerate(people)}, {name: n for n, name in enumerate(names)}
    rows = np.repeat(np.arange(len(items)), [len(votes) for votes in items])
    columns = np.array([column_of[who] for votes in items for who in votes], dtype=np.intp)
    codes = np.array([code_of[answer] for votes in items for answer in votes.values()], dtype=np.intp)
    count = len(names)
    errors: Floats = np.full(len(people), 0.1)
    marginals: Floats = np.full(count, 1 / count)
    totals = np.bincount(columns, minlength=len(people))
    right = np.zeros(len(rows))
    for _ in range(_ITERATIONS):
        weight = np.log((1 - errors) * (count - 1) / errors)[columns]
        logs = np.tile(np.log(marginals), (len(items), 1))
        np.add.at(logs, (rows, codes), weight)
        likely = np.exp(logs - logs.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        right = likely[rows, codes]
        wrong = np.bincount(columns, 1 - right, len(people))
        pooled = (wrong.sum() + 0.1) / (totals.sum() + 1)
        errors = np.clip((wrong + 4 * pooled) / (totals + 4), 0.004, 0.9)
        marginals = (likely.sum(axis=0) + 1) / (len(items) + count)
    # Without the annotator's own vote.
    logs_at = logs[rows]
    logs_at[np.arange(len(rows)), codes] -= np.log((1 - errors) * (count - 1) / errors)[columns]
    others = np.exp(logs_at - logs_at.max(axis=1, keepdims=True))
    others /= others.sum(axis=1, keepdims=True)
    confident = others.max(axis=1)
    agreed = others[np.arange(len(rows)), codes]
    wrong_share = 1 - agreed
    weights = np.clip((confident - 1 / count) / (1 - 1 / count), 0, 1)
    return tuple(
        ErrorRate(
            who,
            float((weights * wrong_share)[columns == column].sum()),
            float(weights[columns == column].sum()),
        )
        for column, who in enumerate(people)
    )


def find_outliers(rates: Sequence[ErrorRate], *, tests: int) -> tuple[int, ...]:
    """Annotators who err far more often than the median of the others, beyond chance.

    Args:
        rates: One measure of all annotators.
        tests: Number of annotators times measures that are compared.
    """
    rated = [rate for rate in rates if rate.n >= MIN_ITEMS]
    chance = _FALSE_NAME / max(tests, 1)
    named = []
    for one in rated:
        others = [other.rate for other in rated if other is not one]
        if len(others) < MIN_OTHERS:
            continue
        usual = float(np.median(others))
        if one.lower(chance) > usual + 0.02 and one.rate > max(OUTLIER_RATIO * usual, usual + OUTLIER_MARGIN):
            named.append(one.annotator)
    return tuple(named) if 2 * len(named) <= len(rated) else ()


def find_sloppy(people: Sequence[int], scatter: Floats, objects: NDArray[np.intp]) -> tuple[int, ...]:
    """Annotators whose borders scatter far more than the median of the others'."""
    counts = dict(zip(people, objects.tolist(), strict=True))
    rated = [
        (who, float(value))
        for who, value, count in zip(people, scatter, objects, strict=True)
        if count >= MIN_ITEMS * 2 and np.isfinite(value)
    ]
    named = []
    for who, value in rated:
        others = [other for name, other in rated if name != who]
        if len(others) < MIN_OTHERS:
            continue
        usual = float(np.median(others))
        # The squared median of n distances has a relative standard error of about 2 / sqrt(n).
        surely = value**2 * (1 - 4 / np.sqrt(counts[who])) > _SURE_SCATTER_RATIO**2 * usual**2
        if surely and value > max(_SCATTER_RATIO * usual, usual + _SCATTER_MARGIN):
            named.append(who)
    return tuple(named) if 2 * len(named) <= len(rated) else ()
