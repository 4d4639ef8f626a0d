"""Diagnoses of splits: groups of annotators who answer the same content differently, each consistently."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.content import ContentSplit, describe_open, find_content_split
from qc_webhooks.annotators.diagnosis import MIN_OBJECTS, Diagnosis, DiagnosisKind, say
from qc_webhooks.annotators.error_rates import Measure
from qc_webhooks.annotators.explanations import (
    MIN_ANSWERS,
    extras_limit,
    find_camps,
    fit_persons,
    read_groups,
    split,
)
from qc_webhooks.annotators.questions import QuestionAnswers, QuestionKind
from qc_webhooks.statistics import ABSENT

Floats = NDArray[np.float64]

# Share of the disputes of two annotators that must go one way.
_ONE_WAY = 0.9


def split_of(asked: QuestionAnswers, *, unit: str) -> tuple[Diagnosis | None, Floats]:
    """The split of a question and the share of each item that it covers."""
    nothing = None, np.zeros(len(asked.answers))
    if int(asked.disputed.sum()) < MIN_OBJECTS:
        return nothing
    if asked.kind == "presence":
        by_content = find_content_split(asked, unit=unit)
        if by_content is not None and by_content.items >= MIN_ANSWERS:
            return _content_diagnosis(asked, by_content), by_content.inside.astype(np.float64)
    if len(asked.people) == 2:
        return (_two_views(asked), asked.disputed.astype(np.float64)) if asked.kind != "presence" else nothing
    camps = find_camps(asked)
    if camps is not None:
        content = describe_open(asked, camps.open, unit=unit)
        evidence = f"{round(float(camps.open.sum()))} open cases, held-out log-likelihood +{camps.gain:.0f}"
        diagnosis = _group_diagnosis(asked, camps.open, (camps.first, camps.second), content=content, evidence=evidence)
        if diagnosis is not None:
            return diagnosis, camps.open
    yes, no = split(asked)
    posterior = fit_persons(yes, no, extras_limit(asked)).posterior(yes, no)
    for class_ in (0, 1):
        groups = read_groups(asked, posterior[:, class_])
        if groups is None or not (groups[0] and groups[1]) or not _consistent_in_halves(asked, posterior[:, class_]):
            continue
        if asked.kind == "presence" and min(len(groups[0]), len(groups[1])) < 2:
            continue  # one annotator's extra regions
        content = describe_open(asked, posterior[:, class_] * asked.disputed, unit=unit)
        diagnosis = _group_diagnosis(asked, posterior[:, class_] * asked.disputed, groups[:2], content=content)
        if diagnosis is not None:
            return diagnosis, posterior[:, class_] * asked.disputed
    return nothing


def _consistent_in_halves(asked: QuestionAnswers, weights: Floats) -> bool:
    """Whether each half of the tasks reads the same groups."""
    ranks = np.unique(asked.tasks, return_inverse=True)[1]
    yes, no = split(asked)
    sides = []
    for half in (ranks % 2 == 0, ranks % 2 == 1):
        for_yes, for_no = (weights * half) @ yes, (weights * half) @ no
        sides.append(np.where(for_yes + for_no < 2, np.nan, for_yes / np.maximum(for_yes + for_no, 1e-9) - 0.5))
    both = np.isfinite(sides[0]) & np.isfinite(sides[1])
    return bool((np.sign(sides[0][both]) == np.sign(sides[1][both])).all())


def _group_diagnosis(
    asked: QuestionAnswers,
    weights: Floats,
    groups: tuple[tuple[int, ...], tuple[int, ...]],
    *,
    content: str,
    evidence: str = "",
) -> Diagnosis | None:
    """A split into two groups; None where neither a group nor one annotator alone is against the others."""
    first, second = groups
    items = round(float(weights[asked.disputed].sum()))
    if items < MIN_OBJECTS:
        return None
    sides = sides_of(asked, weights)
    what = question_text(asked, content)
    evidence = evidence or f"{items} cases with both answers"
    kind, who = _kind_of_groups(first, second, len(asked.people))
    if kind is None:
        return None
    return say(kind, asked.control, asked.names, items, what=what, who=who, first=first, second=second, sides=sides,
               evidence=f"{evidence}; {len(first)} against {len(second)} annotators", content=content or what,
               measure=measure_of(asked))  # fmt: skip


# Share of a project's annotators who must be placed in a group, for one of them to be against all others.
_MOST_PLACED = 0.75


def _kind_of_groups(
    first: Sequence[int], second: Sequence[int], team: int
) -> tuple[Literal["guideline", "two views", "one person"] | None, tuple[int, ...]]:
    if min(len(first), len(second)) >= 2:
        return "guideline", ()
    if len(first) + len(second) < _MOST_PLACED * team:
        return None, ()
    if len(first) == len(second) == 1:
        return "two views", ()
    if len(first) == 1 and len(second) >= 2:
        return "one person", tuple(first)
    if len(second) == 1 and len(first) >= 2:
        return "one person", tuple(second)
    return None, ()


def _content_diagnosis(asked: QuestionAnswers, found: ContentSplit) -> Diagnosis | None:
    kind, who = _kind_of_groups(found.first, found.second, len(asked.people))
    if kind is None:
        return None
    inside_first, inside_second, outside_first, outside_second = (f"{100 * share:.0f} %" for share in found.shares)
    evidence = (
        f"of such objects one side marks {inside_first} and the other {inside_second}; of all others {outside_first}"
        f" and {outside_second}"
    )
    names = (found.label or "objects", ABSENT)
    what = f"whether {found.label or 'objects ' + found.content} {'are' if not found.label else 'is'} to be marked"
    said = say(kind, asked.control, names, found.items, what=what, who=who, first=found.first, second=found.second,
               sides=sides_of(asked, found.inside.astype(np.float64)), evidence=evidence, content=found.content,
               measure="misses")  # fmt: skip
    least, most = found.areas
    return replace(said, least_area=least, most_area=most if np.isfinite(most) else 0.0)


def _two_views(asked: QuestionAnswers) -> Diagnosis | None:
    """The two annotators of a project who differ in one direction."""
    disputed = asked.answers[asked.disputed]
    one_way = int((disputed[:, 0] == 1).sum())
    n = len(disputed)
    if n < MIN_OBJECTS or max(one_way, n - one_way) < _ONE_WAY * n:
        return None
    first, second = (0, 1) if 2 * one_way > n else (1, 0)
    what = question_text(asked, "")
    return say("two views", asked.control, asked.names, n, what=what, content=what, measure=measure_of(asked),
               first=(asked.people[first],), second=(asked.people[second],),
               sides=sides_of(asked, asked.disputed.astype(np.float64)),
               evidence=f"{max(one_way, n - one_way)} of {n} differences go one way")  # fmt: skip


def border_diagnosis(
    control: str,
    larger: tuple[int, ...],
    tighter: tuple[int, ...],
    ratio: float,
    *,
    items: int,
    people: Sequence[int],
) -> Diagnosis:
    """The diagnosis of annotators who draw borders larger or tighter, see ``find_border_split``."""
    kind: DiagnosisKind | None
    kind, who = _kind_of_groups(larger, tighter, len(people))
    evidence = f"areas differ by {100 * (ratio - 1):.0f} %, within each group by less"
    if kind is None or len(larger) + len(tighter) < len(people) / 2:
        kind, who = "undecided", ()
    return say(kind, control, ("drawn larger", "drawn tighter"), items, what="where the border of an object is",
               who=who, first=larger, second=tighter, evidence=evidence, content="borders",
               measure="borders")  # fmt: skip


def question_text(asked: QuestionAnswers, content: str) -> str:
    """What a question asks, in words; ``content``: the objects that it asks about, empty for some."""
    first, second = asked.names
    if asked.kind == "presence":
        return f"whether {f'objects {content}' if content else 'some objects'} are to be marked"
    if second == ABSENT:
        return f"whether {first} is to be given"
    return f"{first} or {second}"


_MEASURE_OF_KIND: Mapping[QuestionKind, Measure] = {
    "presence": "misses",
    "label": "labels",
    "answer": "answers",
    "tag": "answers",
}


def measure_of(asked: QuestionAnswers) -> Measure:
    """What the errors about a question are."""
    return _MEASURE_OF_KIND[asked.kind]


def sides_of(asked: QuestionAnswers, weights: Floats) -> dict[int, tuple[int, int]]:
    """Annotator -> number of times each of the two answers was given, over the disputed items of some weight."""
    chosen = (weights > 0.5) & asked.disputed
    answers = asked.answers[chosen]
    return {
        who: (int((answers[:, column] == 1).sum()), int((answers[:, column] == 0).sum()))
        for column, who in enumerate(asked.people)
    }
