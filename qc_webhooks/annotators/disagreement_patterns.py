"""Systematic disagreements and their cause: unclear guideline, misunderstanding, carelessness, or a hard call.

For two answers given to the same objects, each annotator prefers one of them by some share. When the guideline decides
the case, all annotators prefer the same answer, and errors go in both directions. When it does not, annotators decide
for themselves and stay consistent: some nearly always give one answer, some nearly always the other. The result is more
variation between annotators than chance explains, with several annotators on both sides. A single annotator on one
side who errs in one direction has misunderstood the rule; one who errs in both directions is careless.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from qc_webhooks.statistics import ABSENT
from qc_webhooks.statistics.bootstrap import proportion_ci
from qc_webhooks.verdict.task_facts import TaskFacts

PatternKind = Literal["guideline", "two views", "one person", "careless", "hard"]

# Fewest objects with both answers for a pattern; fewest answers of an annotator for a preference.
MIN_OBJECTS, MIN_ANSWERS = 12, 6
# An annotator who gives one of the two answers at least this often prefers it.
PREFERENCE_SHARE = 0.75
# p-value below which variation between annotators is not chance.
_SIGNIFICANCE = 0.001
_RESAMPLES = 2000
# Outliers differ at least this many times as often as the others and cause at least this share of all differences.
_OUTLIER_RATIO, _OUTLIER_SHARE = 2.5, 0.5
# Errors go in both directions when the rarer direction is at least this share of the more frequent one.
_MIN_REVERSE_RATIO = 1 / 3


@dataclass(frozen=True)
class DisagreementPattern:
    """Two answers that annotators confuse.

    Attributes:
        control: The control.
        answers: The two answers; the second is ``(absent)`` where the question is whether to mark the first at all.
        items: Number of objects that were given both.
        kind: ``guideline``: two groups, each consistent; ``two views``: two annotators, each consistent;
            ``one person``: one annotator differs from all others; ``careless``: a few annotators cause most of it,
            with errors in both directions; ``hard``: no annotator is consistent.
        sides: Annotator -> number of times each of the two answers was given for these objects.
        first: Annotators who prefer the first answer.
        second: Annotators who prefer the second.
        who: The few annotators who cause it; empty where it is not due to a few.
        text: What it means and what to do.
    """

    control: str
    answers: tuple[str, str]
    items: int
    kind: PatternKind
    sides: Mapping[int, tuple[int, int]]
    first: tuple[int, ...]
    second: tuple[int, ...]
    who: tuple[int, ...]
    text: str


@dataclass
class _Tally:
    """Counts of two answers.

    Attributes:
        items: Objects that were given both.
        answered: Annotator -> number of times each of the two was given for them.
        differed: Annotator -> for the objects whose majority answer is the first (the second): how many there are, and
            for how many this annotator gave the other answer.
    """

    items: int = 0
    answered: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    differed: dict[int, list[list[int]]] = field(default_factory=lambda: defaultdict(lambda: [[0, 0], [0, 0]]))


def find_disagreement_patterns(tasks: Iterable[TaskFacts]) -> tuple[DisagreementPattern, ...]:
    """Pairs of answers confused often enough to name a cause, the most frequent first."""
    votes: dict[str, list[dict[int, str]]] = defaultdict(list)
    for task in tasks:
        blind = {annotation.annotator for annotation in task.blind}
        for marked_object in task.objects:
            labels_by_annotator = {
                mark.annotator: _name(mark.labels) for mark in marked_object.marks if mark.annotator in blind
            }
            if labels_by_annotator:
                votes[marked_object.control].append({who: labels_by_annotator.get(who, ABSENT) for who in blind})
        for question in task.questions:
            votes[question.control].append({who: _name(answer) for who, answer in question.votes if who in blind})
    patterns = [pattern for control, items in votes.items() for pattern in _patterns_of_control(control, items)]
    return tuple(sorted(patterns, key=lambda pattern: (-pattern.items, pattern.control, pattern.answers)))


def _patterns_of_control(control: str, items: Sequence[Mapping[int, str]]) -> Iterable[DisagreementPattern]:
    tallies: dict[tuple[str, str], _Tally] = defaultdict(_Tally)
    by_answer: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for item in items:
        counts = Counter(item.values())
        answers = sorted(counts, key=lambda name: (name == ABSENT, name))
        for first_answer, second_answer in combinations(answers, 2):
            tally = tallies[first_answer, second_answer]
            tally.items += 1
            for who, answer in item.items():
                if answer in (first_answer, second_answer):
                    tally.answered[who][answer == second_answer] += 1
        for who, answer in item.items():
            majority = _majority_of_others(counts, answer)
            if majority is None:
                continue
            by_answer[majority][who][0] += 1
            if answer != majority:
                pair = (
                    (majority, answer)
                    if (majority == ABSENT, majority) < (answer == ABSENT, answer)
                    else (answer, majority)
                )
                tallies[pair].differed[who][pair.index(majority)][1] += 1
    for pair, tally in tallies.items():
        for index, name in enumerate(pair):
            for who, (n, _) in by_answer[name].items():
                tally.differed[who][index][0] = n
        if tally.items >= MIN_OBJECTS:
            yield _explain(control, pair, tally)


def _majority_of_others(counts: Counter[str], own: str) -> str | None:
    """Majority answer of the other annotators; None without others or on a tie."""
    others = sorted(((count - (name == own), name) for name, count in counts.items()), reverse=True)
    if others[0][0] == 0 or (len(others) > 1 and others[0][0] == others[1][0]):
        return None
    return others[0][1]


def _explain(control: str, answers: tuple[str, str], tally: _Tally) -> DisagreementPattern:
    sides = {who: (first_count, second_count) for who, (first_count, second_count) in sorted(tally.answered.items())}
    with_enough = {who: counts for who, counts in sides.items() if sum(counts) >= MIN_ANSWERS}
    first = tuple(
        who
        for who, (first_count, second_count) in with_enough.items()
        if first_count >= PREFERENCE_SHARE * (first_count + second_count)
    )
    second = tuple(
        who
        for who, (first_count, second_count) in with_enough.items()
        if second_count >= PREFERENCE_SHARE * (first_count + second_count)
    )
    outliers = _outliers(tally)
    kind: PatternKind = "hard"
    if outliers:
        kind = "careless" if all(_errs_both_ways(tally.differed[who]) for who in outliers) else "one person"
    varies = len(with_enough) >= 2 and _differs_from_chance(list(with_enough.values()))
    if varies and min(len(first), len(second)) >= 2 and not _is_one_group(outliers, first, second):
        kind, outliers = "guideline", ()
    elif varies and len(tally.answered) == 2 and len(first) == len(second) == 1:
        kind, outliers = "two views", ()
    if kind == "one person" and len(outliers) > 1:
        kind = "careless"
    return DisagreementPattern(
        control,
        answers,
        tally.items,
        kind,
        sides,
        first,
        second,
        outliers,
        _describe(kind, answers, tally.items, outliers),
    )


def _outliers(tally: _Tally) -> tuple[int, ...]:
    """Annotators, fewer than half, who differ far more often than the others and cause most differences."""
    rates = {who: (sum(hits for _, hits in both), sum(n for n, _ in both)) for who, both in tally.differed.items()}
    total = sum(hits for hits, _ in rates.values())
    suspects = []
    for who, (hits, n) in rates.items():
        others_hits, others_n = total - hits, sum(n for _, n in rates.values()) - n
        rate = proportion_ci(hits, n, enough=MIN_ANSWERS)
        if rate.low is not None and others_n and rate.low > _OUTLIER_RATIO * others_hits / others_n / 2:
            median = float(np.median([h / m for other, (h, m) in rates.items() if other != who and m]))
            if hits / n > _OUTLIER_RATIO * median:
                suspects.append(who)
    caused = sum(rates[who][0] for who in suspects)
    return tuple(sorted(suspects)) if 2 * len(suspects) < len(rates) and caused >= _OUTLIER_SHARE * total > 0 else ()


def _errs_both_ways(differed: Sequence[Sequence[int]]) -> bool:
    """Whether an annotator's errors go in both directions; False without enough answers."""
    (n, hits), (m, reverse_hits) = differed
    if min(n, m) < MIN_ANSWERS:
        return False
    first_rate, second_rate = hits / n, reverse_hits / m
    return min(first_rate, second_rate) >= _MIN_REVERSE_RATIO * max(first_rate, second_rate)


def _is_one_group(outliers: Sequence[int], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether one of the two groups consists of a single outlier."""
    return bool(outliers) and (set(first) <= set(outliers) or set(second) <= set(outliers)) and len(outliers) < 2


def _differs_from_chance(counts: Sequence[tuple[int, int]]) -> bool:
    """Whether annotators differ more than chance: chi-squared test of homogeneity with a simulated null distribution.

    Simulated, because the chi-squared approximation is poor with six answers per annotator.

    Args:
        counts: Number of first and second answers of each annotator.
    """
    table = np.array(counts, dtype=np.float64)
    n, rate = table.sum(axis=1), table[:, 1].sum() / table.sum()
    if rate in (0.0, 1.0):
        return False
    expected, variance = n * rate, n * rate * (1 - rate)
    statistic = float(((table[:, 1] - expected) ** 2 / variance).sum())
    drawn = np.random.default_rng(0).binomial(n.astype(np.intp), rate, size=(_RESAMPLES, len(n)))
    null = ((drawn - expected) ** 2 / variance).sum(axis=1)
    return float((null >= statistic).mean()) < _SIGNIFICANCE


def _describe(kind: PatternKind, answers: tuple[str, str], items: int, outliers: Sequence[int]) -> str:
    first, second = answers
    what = f"whether {first} is to be marked" if second == ABSENT else f"{first} or {second}"
    people = "One annotator" if len(outliers) == 1 else f"{len(outliers)} annotators"
    verb = "errs" if len(outliers) == 1 else "err"
    texts: dict[PatternKind, str] = {
        "guideline": f"The guideline is unclear: {what}. Two groups, each consistent, differed over {items} objects."
        " Write the rule, and judge the tasks again.",
        "two views": f"Two annotators disagree consistently: {what}, over {items} objects. Decide who is right, and"
        " write the rule.",
        "one person": f"{people} differs consistently: {what}, {items} objects. Show them the rule.",
        "careless": f"{people} {verb} in both directions: {what}, {items} objects. The others agree: the guideline is"
        " clear enough.",
        "hard": f"A hard call: {what}, {items} objects. No annotator is consistent; more examples in the guideline may"
        " help.",
    }
    return texts[kind]


def _name(labels: Sequence[str]) -> str:
    return " + ".join(labels) or "(no label)"
