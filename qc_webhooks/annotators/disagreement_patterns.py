"""Where opinions split, and why: an unclear guideline, a misunderstanding, carelessness, or a hard call.

For two answers that are given for the same things, everybody leans one way by some share. When the guideline says
which is right, all lean the same way, and slips go both ways. When it does not say, annotators decide for themselves
and stay with it: some nearly always say the one, others nearly always the other. That is more variation between
annotators than chance would give, with several people on both sides. One person alone on a side who errs in one
direction only has misunderstood; who errs in both is careless.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from qc_webhooks.statistics import ABSENT
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import Facts

Kind = Literal["guideline", "two views", "one person", "careless", "hard"]

# Things that two answers were given for, below which nothing is said; and answers of a person that show a leaning.
LEAST_ITEMS, LEAST_ANSWERS = 12, 6
# Who gives one of two answers at least this often has a side; between the two a person wavers.
LEANING = 0.75
# Variation between people this unlikely by chance is no chance.
_CHANCE = 0.001
_RESAMPLES = 2000
# Who differs at least this many times as often as the others, and causes at least this share of it, is the reason.
_TIMES_OTHERS, _MOST_OF_IT = 2.5, 0.5
# Errors in both directions: the rarer direction is at least this share of the more frequent one.
_BOTH_WAYS = 1 / 3


@dataclass(frozen=True)
class DisagreementPattern:
    """Two answers that are confused.

    Attributes:
        control: The control.
        answers: The two answers; the second may be ``(absent)``: whether the first is to be marked at all.
        items: For how many things both were given.
        kind: ``guideline``: two camps, each true to itself; ``two views``: two people, each true to themselves;
            ``one person``: one sees it differently from all the others; ``careless``: few cause most of it, with slips
            in both directions; ``hard``: everybody wavers.
        sides: Annotator -> how often each of the two answers was given for those things.
        first: Who leans to the first answer.
        second: Who leans to the second.
        who: Whom it is due to, where it is due to few.
        text: What it means, and what to do.
    """

    control: str
    answers: tuple[str, str]
    items: int
    kind: Kind
    sides: Mapping[int, tuple[int, int]]
    first: tuple[int, ...]
    second: tuple[int, ...]
    who: tuple[int, ...]
    text: str


@dataclass
class _Tally:
    """What is counted for two answers.

    Attributes:
        items: Things that both were given for.
        said: Annotator -> how often each of the two was given for those.
        differed: Annotator -> of the things that the others called the first (the second): how many there were, and
            for how many this one said the other answer.
    """

    items: int = 0
    said: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    differed: dict[int, list[list[int]]] = field(default_factory=lambda: defaultdict(lambda: [[0, 0], [0, 0]]))


def splits(tasks: Iterable[Facts]) -> tuple[DisagreementPattern, ...]:
    """Every pair of answers that is confused often enough to say why; the most frequent first."""
    votes: dict[str, list[dict[int, str]]] = defaultdict(list)
    for task in tasks:
        blind = {turn.annotator for turn in task.blind}
        for thing in task.things:
            given = {mark.annotator: _name(mark.labels) for mark in thing.marks if mark.annotator in blind}
            if given:
                votes[thing.control].append({who: given.get(who, ABSENT) for who in blind})
        for question in task.questions:
            votes[question.control].append({who: _name(answer) for who, answer in question.votes if who in blind})
    found = [split for control, items in votes.items() for split in _of_control(control, items)]
    return tuple(sorted(found, key=lambda split: (-split.items, split.control, split.answers)))


def _of_control(control: str, items: Sequence[Mapping[int, str]]) -> Iterable[DisagreementPattern]:
    tallies: dict[tuple[str, str], _Tally] = defaultdict(_Tally)
    by_answer: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for item in items:
        counts = Counter(item.values())
        answers = sorted(counts, key=lambda name: (name == ABSENT, name))
        for one, other in combinations(answers, 2):
            tally = tallies[one, other]
            tally.items += 1
            for who, answer in item.items():
                if answer in (one, other):
                    tally.said[who][answer == other] += 1
        for who, answer in item.items():
            others = _most_of_others(counts, answer)
            if others is None:
                continue
            by_answer[others][who][0] += 1
            if answer != others:
                pair = (others, answer) if (others == ABSENT, others) < (answer == ABSENT, answer) else (answer, others)
                tallies[pair].differed[who][pair.index(others)][1] += 1
    for pair, tally in tallies.items():
        for place, name in enumerate(pair):
            for who, (n, _) in by_answer[name].items():
                tally.differed[who][place][0] = n
        if tally.items >= LEAST_ITEMS:
            yield _explain(control, pair, tally)


def _most_of_others(counts: Counter[str], own: str) -> str | None:
    """What most of the others said; None where there are none, or they are of two minds."""
    others = sorted(((count - (name == own), name) for name, count in counts.items()), reverse=True)
    if others[0][0] == 0 or (len(others) > 1 and others[0][0] == others[1][0]):
        return None
    return others[0][1]


def _explain(control: str, answers: tuple[str, str], tally: _Tally) -> DisagreementPattern:
    sides = {who: (one, other) for who, (one, other) in sorted(tally.said.items())}
    known = {who: given for who, given in sides.items() if sum(given) >= LEAST_ANSWERS}
    first = tuple(who for who, (one, other) in known.items() if one >= LEANING * (one + other))
    second = tuple(who for who, (one, other) in known.items() if other >= LEANING * (one + other))
    few = _few(tally)
    kind: Kind = "hard"
    if few:
        kind = "careless" if all(_both_ways(tally.differed[who]) for who in few) else "one person"
    varies = len(known) >= 2 and _varies(list(known.values()))
    if varies and min(len(first), len(second)) >= 2 and not _is_one_group(few, first, second):
        kind, few = "guideline", ()
    elif varies and len(tally.said) == 2 and len(first) == len(second) == 1:
        kind, few = "two views", ()
    if kind == "one person" and len(few) > 1:
        kind = "careless"
    return DisagreementPattern(
        control, answers, tally.items, kind, sides, first, second, few, _text(kind, answers, tally.items, few)
    )


def _few(tally: _Tally) -> tuple[int, ...]:
    """Those, fewer than half, who differ far more often than the others and cause most of it; mostly nobody."""
    rates = {who: (sum(hits for _, hits in both), sum(n for n, _ in both)) for who, both in tally.differed.items()}
    total = sum(hits for hits, _ in rates.values())
    suspects = []
    for who, (hits, n) in rates.items():
        others_hits, others_n = total - hits, sum(n for _, n in rates.values()) - n
        rate = proportion_ci(hits, n, enough=LEAST_ANSWERS)
        if rate.low is not None and others_n and rate.low > _TIMES_OTHERS * others_hits / others_n / 2:
            usual = float(np.median([h / m for other, (h, m) in rates.items() if other != who and m]))
            if hits / n > _TIMES_OTHERS * usual:
                suspects.append(who)
    caused = sum(rates[who][0] for who in suspects)
    return tuple(sorted(suspects)) if 2 * len(suspects) < len(rates) and caused >= _MOST_OF_IT * total > 0 else ()


def _both_ways(differed: Sequence[Sequence[int]]) -> bool:
    """Whether a person slips in both directions alike, as far as can be told."""
    (n, hits), (m, others) = differed
    if min(n, m) < LEAST_ANSWERS:
        return False
    one, other = hits / n, others / m
    return min(one, other) >= _BOTH_WAYS * max(one, other)


def _is_one_group(few: Sequence[int], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether one of the camps is nothing but the few who differ."""
    return bool(few) and (set(first) <= set(few) or set(second) <= set(few)) and len(few) < 2


def _varies(given: Sequence[tuple[int, int]]) -> bool:
    """Whether people differ more than chance: a chi-squared test of homogeneity whose null is simulated.

    Simulated, because of six answers a person the usual approximation says little.
    """
    table = np.array(given, dtype=np.float64)
    n, rate = table.sum(axis=1), table[:, 1].sum() / table.sum()
    if rate in (0.0, 1.0):
        return False
    expected, variance = n * rate, n * rate * (1 - rate)
    found = float(((table[:, 1] - expected) ** 2 / variance).sum())
    drawn = np.random.default_rng(0).binomial(n.astype(np.intp), rate, size=(_RESAMPLES, len(n)))
    null = ((drawn - expected) ** 2 / variance).sum(axis=1)
    return float((null >= found).mean()) < _CHANCE


def _text(kind: Kind, answers: tuple[str, str], items: int, few: Sequence[int]) -> str:
    one, other = answers
    what = f"whether {one} is to be marked" if other == ABSENT else f"{one} or {other}"
    whose = "One person" if len(few) == 1 else f"{len(few)} people"
    texts: dict[Kind, str] = {
        "guideline": f"The guideline is unclear: {what}. Two camps, each true to itself, differed over {items} objects."
        " Write the rule, and judge the tasks again.",
        "two views": f"Two people see it differently: {what}, over {items} objects. Decide who is right, and write it"
        " down.",
        "one person": f"{whose} of all sees it differently from the others: {what}, {items} objects. Show them the"
        " rule.",
        "careless": f"{whose} slip{'s' if len(few) == 1 else ''} here, in both directions: {what}, {items} objects. The"
        " others agree, so the guideline is clear enough.",
        "hard": f"A hard call for everybody: {what}, {items} objects. Nobody is true to one answer; more examples in"
        " the guideline may help.",
    }
    return texts[kind]


def _name(labels: Sequence[str]) -> str:
    return " + ".join(labels) or "(no label)"
