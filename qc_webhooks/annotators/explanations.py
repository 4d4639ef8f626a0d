"""Explanations of disagreement about a yes-or-no question, compared by likelihood on tasks held out.

Two explanations are latent class models (Dawid and Skene, Applied Statistics 28 (1979)). In both, every item has a
true answer and every annotator an error rate for each true answer.

- ``persons``: nothing else. Annotators err independently: two careless ones disagree with each other most.
- ``camps``: some items are open. One group of annotators answers 1 there and the other 0, with the same error rates as
  elsewhere: two annotators of one group agree about them.

The second contains the first, so it must predict tasks better that it was not fitted to, and both halves of the tasks
must find the same groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.questions import NOT_ASKED, QuestionAnswers

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_ITERATIONS = 40
# Groups are revised from this iteration on; the fit ends once no rate changes by this much.
_REGROUP_FROM, _CONVERGED = 3, 1e-3
# Error rates are clipped; each is shrunk to the pooled rate by this number of answers.
_RATE_RANGE, _SHRINK = (0.004, 0.996), 4.0
# First guess of an error rate: in camps it is low, so that open items are not taken for errors.
_PRIOR_RATE, _CAMP_RATE = 0.1, 0.05
# Annotators who mark the same false object, on average: one, and half another by coincidence.
_FALSE_MARKS = 1.5
# Pseudo-items of each class.
_CLASS_ITEMS = 1.0
# Held-out gain that supports camps: log-likelihood in total, and its mean over its standard error.
MIN_GAIN, MIN_Z = 6.0, 2.0
# Highest error rate, on items that are not open, of an annotator of a camp.
_MAX_ERROR = 0.3
# Fewest answers of an annotator to place them in a group, and share of them that is consistent.
MIN_ANSWERS, CONSISTENT = 6, 0.75
_TINY = 1e-9


@dataclass(frozen=True)
class LatentFit:
    """A fitted model.

    Attributes:
        shares: Share of items of each class: answer 1, answer 0, and with camps the open ones.
        misses: P(0 | true answer 1) of each annotator, ``(annotators,)``.
        extras: P(1 | true answer 0).
        first: With camps: whether an annotator answers 1 to open items, ``(annotators,)``; None without.
    """

    shares: Floats
    misses: Floats
    extras: Floats
    first: Booleans | None = None

    def log_likelihoods(self, yes: Floats, no: Floats) -> Floats:
        """Joint log-likelihood of each item's answers and each class, ``(items, classes)``."""
        expected = _expected(self.first, len(self.misses))
        log_yes = expected * np.log(1 - self.misses) + (1 - expected) * np.log(self.extras)
        log_no = expected * np.log(self.misses) + (1 - expected) * np.log(1 - self.extras)
        # classes first: sums and maxima over a last axis of two or three are slow
        logs: Floats = (log_yes @ yes.T + log_no @ no.T + np.log(self.shares)[:, None]).T
        return logs

    def posterior(self, yes: Floats, no: Floats) -> Floats:
        """Probability of each class, ``(items, classes)``."""
        logs = self.log_likelihoods(yes, no).T
        likely: Floats = np.exp(logs - logs.max(axis=0))
        likely /= likely.sum(axis=0)
        return likely.T


@dataclass(frozen=True)
class _Patterns:
    """Items with the same answers, counted once: a model of the answers alone cannot tell them apart.

    Attributes:
        yes: Indicators of the answers 1, ``(patterns, annotators)``.
        no: Indicators of the answers 0.
        counts: Items of each pattern, ``(patterns,)``.
    """

    yes: Floats
    no: Floats
    counts: Floats

    @classmethod
    def of(cls, yes: Floats, no: Floats) -> "_Patterns":
        """Count the different rows of two matrices."""
        # one number a row: equal rows have equal ones, and different rows different ones but for a chance of 1e-15
        weights = np.random.default_rng(0).random((2, yes.shape[1]))
        _, rows, counts = np.unique(yes @ weights[0] + no @ weights[1], return_index=True, return_counts=True)
        return cls(yes[rows], no[rows], counts.astype(np.float64))

    def log_likelihood(self, fit: LatentFit) -> float:
        """Log-likelihood of all items."""
        return float(self.counts @ _log_sum(fit.log_likelihoods(self.yes, self.no)))


def split(asked: QuestionAnswers) -> tuple[Floats, Floats]:
    """Indicators of the answers 1 and of the answers 0, each ``(items, annotators)``."""
    return (asked.answers == 1).astype(np.float64), (asked.answers == 0).astype(np.float64)


def fit_persons(yes: Floats, no: Floats, most_extras: float = 1.0) -> LatentFit:
    """Fit the model without camps; ``most_extras`` limits P(1 | true answer 0), see ``extras_limit``."""
    return _fit(_Patterns.of(yes, no), None, most_extras)


def extras_limit(asked: QuestionAnswers) -> float:
    """Highest P(1 | true answer 0) of an annotator.

    What is no object was marked by one annotator, and by another at most by coincidence. Objects that several mark are
    objects, although others leave them out.
    """
    if asked.kind != "presence":
        return 1.0
    viewers = (asked.answers != NOT_ASKED).sum(axis=1)
    return min(_FALSE_MARKS / float(viewers.mean()), 1.0) if len(viewers) else 1.0


def fit_camps(yes: Floats, no: Floats, persons: LatentFit, most_extras: float = 1.0) -> LatentFit | None:
    """Fit the model with camps; None where no two groups are found."""
    patterns = _Patterns.of(yes, no)
    starts = _initial_groups(patterns, persons)
    # Either group may be the one that answers 1.
    fits = [_fit(patterns, groups, most_extras) for start in starts for groups in (start, ~start)]
    fits = [fit for fit in fits if fit.first is not None and not fit.first.all() and fit.first.any()]
    return max(fits, key=patterns.log_likelihood, default=None)


def _fit(patterns: _Patterns, first: Booleans | None, most_extras: float) -> LatentFit:
    yes, no, counts = patterns.yes, patterns.no, patterns.counts
    people = yes.shape[1]
    classes = 2 if first is None else 3
    start = _PRIOR_RATE if first is None else _CAMP_RATE
    fit = LatentFit(np.full(classes, 1 / classes), np.full(people, start), np.full(people, start), first)
    for step in range(_ITERATIONS):
        posterior = fit.posterior(yes, no) * counts[:, None]
        counts_yes, counts_no = posterior.T @ yes, posterior.T @ no
        if first is not None and step >= _REGROUP_FROM:
            first = _regroup(counts_yes[2], counts_no[2], fit)
        expected = _expected(first, people)
        misses = _rates((expected * counts_no).sum(axis=0), (expected * (counts_yes + counts_no)).sum(axis=0))
        extras = _rates(
            ((1 - expected) * counts_yes).sum(axis=0), ((1 - expected) * (counts_yes + counts_no)).sum(axis=0)
        )
        extras = np.minimum(extras, most_extras)
        shares = posterior.sum(axis=0) + _CLASS_ITEMS
        moved = max(float(np.abs(misses - fit.misses).max()), float(np.abs(extras - fit.extras).max()))
        fit = LatentFit(shares / shares.sum(), misses, extras, first)
        if moved < _CONVERGED and step > _REGROUP_FROM:
            break
    return fit


def _expected(first: Booleans | None, people: int) -> Floats:
    """The answer that is right for each annotator in each class, ``(classes, annotators)``."""
    rows = [np.ones(people), np.zeros(people)]
    return np.array(rows if first is None else [*rows, first.astype(np.float64)])


def _rates(hits: Floats, n: Floats) -> Floats:
    pooled = (hits.sum() + _PRIOR_RATE) / (n.sum() + 1)
    rates: Floats = np.clip((hits + _SHRINK * pooled) / (n + _SHRINK), *_RATE_RANGE)
    return rates


def _regroup(yes: Floats, no: Floats, fit: LatentFit) -> Booleans:
    """The group of each annotator that makes their answers to the open items most likely."""
    as_first = yes * np.log(1 - fit.misses) + no * np.log(fit.misses)
    as_second = yes * np.log(fit.extras) + no * np.log(1 - fit.extras)
    grouped: Booleans = as_first >= as_second
    return grouped


def _initial_groups(patterns: _Patterns, persons: LatentFit) -> list[Booleans]:
    """Groups of annotators who err together: from the leading eigenvectors of their residual covariance.

    Each eigenvector is cut at 0, and at half of its largest and of its smallest entry: a small group stands out at one
    end, and the others lie near 0.
    """
    yes, no = patterns.yes, patterns.no
    posterior = persons.posterior(yes, no)
    expected = posterior[:, :1] * (1 - persons.misses) + posterior[:, 1:] * persons.extras
    residual = np.where(yes + no > 0, yes - expected, 0.0)
    covariance = residual.T @ (residual * patterns.counts[:, None])
    np.fill_diagonal(covariance, 0.0)
    _, vectors = np.linalg.eigh(covariance)
    found: dict[bytes, Booleans] = {}
    for vector in vectors.T[: -1 - min(2, len(vectors)) : -1]:
        for cut in (0.0, vector.max() / 2, vector.min() / 2):
            groups: Booleans = vector >= cut
            # A group and its complement are one start.
            key = min(groups.tobytes(), (~groups).tobytes())
            if groups.any() and not groups.all():
                found[key] = groups
    return list(found.values())


@dataclass(frozen=True)
class Camps:
    """Two groups of annotators who answer the same items differently, each consistently.

    Attributes:
        first: Annotators who answer 1.
        second: Annotators who answer 0.
        others: Annotators with too few answers to place them.
        open: Probability that an item is open, ``(items,)``.
        gain: Held-out log-likelihood over the model without camps.
        z: Its mean over its standard error.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    others: tuple[int, ...]
    open: Floats
    gain: float
    z: float


def find_camps(asked: QuestionAnswers) -> Camps | None:
    """Camps about a question, from the answers alone; None where persons who err explain them as well.

    The answers of at least three annotators are needed: with two, groups and errors look the same.
    """
    if len(asked.people) < 3:
        return None
    yes, no = split(asked)
    limit = extras_limit(asked)
    persons = fit_persons(yes, no, limit)
    fit = fit_camps(yes, no, persons, limit)
    # Where camps are not better on the tasks they are fitted to, they are not on others.
    patterns = _Patterns.of(yes, no)
    if fit is None or patterns.log_likelihood(fit) - patterns.log_likelihood(persons) < MIN_GAIN:
        return None
    gain, z, groups = _held_out(asked, yes, no)
    if gain < MIN_GAIN or z < MIN_Z:
        return None
    open_ = fit.posterior(yes, no)[:, 2]
    placed = read_groups(asked, open_)
    if placed is None:
        return None
    first, second, others = placed
    # An item that is no object is there only because an annotator marked it: its rates are high by nature.
    errors = fit.misses if asked.kind == "presence" else np.maximum(fit.misses, fit.extras)
    if any(errors[asked.people.index(who)] > _MAX_ERROR for who in (*first, *second)):
        return None  # errs elsewhere too: the open items are only the harder ones
    if not first or not second or not _same_groups(groups, asked, first, second):
        return None
    return Camps(first, second, others, open_, gain, z)


def may_be_camps(asked: QuestionAnswers) -> bool:
    """Whether camps explain the answers better, though not beyond chance: then nothing else can be said either."""
    return len(asked.people) >= 3 and _held_out(asked, *split(asked))[0] > MIN_GAIN / 2


def read_groups(
    asked: QuestionAnswers, weights: Floats
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """(those who answer 1, those who answer 0, those with few answers); None where an annotator is inconsistent.

    Args:
        asked: The question.
        weights: Weight of each item, 0 to 1: the items that the groups are about.
    """
    yes, no = split(asked)
    for_yes, for_no = weights @ yes, weights @ no
    n = for_yes + for_no
    first, second, others, wavering = [], [], [], 0
    for column, who in enumerate(asked.people):
        if n[column] < MIN_ANSWERS:
            others.append(who)
        elif for_yes[column] >= CONSISTENT * n[column]:
            first.append(who)
        elif for_no[column] >= CONSISTENT * n[column]:
            second.append(who)
        else:
            wavering += 1
            others.append(who)
    return None if wavering > (len(first) + len(second)) / 4 else (tuple(first), tuple(second), tuple(others))


def _held_out(asked: QuestionAnswers, yes: Floats, no: Floats) -> tuple[float, float, list[Booleans]]:
    """Gain of camps on tasks held out, its z, and the groups that each half of the tasks finds."""
    half = _halves(asked.tasks)
    gains: list[Floats] = []
    groups: list[Booleans] = []
    for held in (half, ~half):
        if held.all() or not held.any():
            return 0.0, 0.0, []
        persons = fit_persons(yes[~held], no[~held], extras_limit(asked))
        camps = fit_camps(yes[~held], no[~held], persons, extras_limit(asked))
        if camps is None or camps.first is None:
            return 0.0, 0.0, []
        difference = _log_sum(camps.log_likelihoods(yes[held], no[held])) - _log_sum(
            persons.log_likelihoods(yes[held], no[held])
        )
        gains.append(np.bincount(asked.tasks[held], difference, asked.tasks.max() + 1).astype(np.float64))
        groups.append(camps.first)
    by_task = gains[0] + gains[1]
    by_task = by_task[np.unique(asked.tasks)]
    spread = float(by_task.std(ddof=1)) * np.sqrt(len(by_task)) if len(by_task) > 1 else 0.0
    total = float(by_task.sum())
    return total, total / max(spread, _TINY), groups


def _halves(tasks: NDArray[np.intp]) -> Booleans:
    """Every second task, ``(items,)``."""
    ranks = np.unique(tasks, return_inverse=True)[1]
    halves: Booleans = ranks % 2 == 0
    return halves


def _log_sum(logs: Floats) -> Floats:
    logs = logs.T
    top = logs.max(axis=0)
    summed: Floats = top + np.log(np.exp(logs - top).sum(axis=0))
    return summed


def _same_groups(
    groups: Sequence[Booleans], asked: QuestionAnswers, first: Sequence[int], second: Sequence[int]
) -> bool:
    """Whether both halves of the tasks place the annotators alike (in either direction)."""
    placed = np.isin(asked.people, [*first, *second])
    wanted = np.isin(asked.people, first)[placed]
    return all(
        max(float((group[placed] == wanted).mean()), float((group[placed] != wanted).mean())) >= 0.8 for group in groups
    )
