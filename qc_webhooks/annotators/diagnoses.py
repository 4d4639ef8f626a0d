"""Why annotators disagree: the search for diagnoses, each with its evidence, its sentence and its advice.

The order of the search is the order of trust. First come answers that are no opinion of their author: copied work, and
work that was clicked through. Without them, splits that follow content are looked for, then annotators who err far more
often than the others on what is left, and last what no explanation fits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.carelessness import Rates, careless, error_rates_of
from qc_webhooks.annotators.content import find_border_split, measure_borders
from qc_webhooks.annotators.copied_work import find_copiers
from qc_webhooks.annotators.diagnosis import (
    DIAGNOSES,
    MIN_OBJECTS,
    Diagnosis,
    percent,
    say,
)
from qc_webhooks.annotators.error_rates import MIN_ITEMS
from qc_webhooks.annotators.explanations import may_be_camps
from qc_webhooks.annotators.questions import QuestionAnswers, questions_of
from qc_webhooks.annotators.splits import border_diagnosis, measure_of, question_text, sides_of, split_of
from qc_webhooks.annotators.work_habits import find_click_through
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

# Disagreement of two annotators (share of differing answers) that needs an explanation.
_NOTABLE_DISAGREEMENT = 0.15
# Median error rate above which a question is hard for all.
_HARD_RATE = 0.1


def find_diagnoses(tasks: Sequence[TaskFacts]) -> tuple[Diagnosis, ...]:
    """All diagnoses of a project, in the order of DIAGNOSES, the most frequent first."""
    tasks = list(tasks)
    diagnoses = [*_copied(tasks), *_clicked_through(tasks)]
    # Only the answers of those who did the work themselves count as opinions.
    without = frozenset(who for diagnosis in diagnoses for who in diagnosis.who)
    questions = questions_of(tasks, without=without)
    explained: dict[int, Floats] = {id(asked): np.zeros(len(asked.answers)) for asked in questions}
    for asked in questions:
        diagnosis, covered = split_of(asked, unit=unit_of(tasks, asked.control))
        if diagnosis is not None:
            diagnoses.append(diagnosis)
            explained[id(asked)] = covered
    controls = tuple(dict.fromkeys(asked.control for asked in questions if asked.kind == "presence"))
    borders = {control: measure_borders(tasks, control, without=without) for control in controls}
    for control, measured in borders.items():
        if measured is not None and (groups := find_border_split(measured)) is not None:
            diagnoses.append(
                border_diagnosis(control, *groups, items=int(measured.objects.sum()), people=measured.people)
            )
    rates = error_rates_of(tasks, questions, explained, diagnoses, without)
    named_careless = [*careless(rates, borders, diagnoses)]
    names = {who for item in named_careless for who in item.who}
    # Who errs elsewhere too, and draws inexactly, misses small objects more: that is no view.
    diagnoses = [
        item for item in diagnoses if not (_is_about_marking(item) and names.issuperset(item.who))
    ] + named_careless
    diagnoses += _unexplained(questions, explained, rates, diagnoses)
    order = list(DIAGNOSES)
    return tuple(sorted(diagnoses, key=lambda item: (order.index(item.kind), -item.items, item.control, item.answers)))


def _is_about_marking(item: Diagnosis) -> bool:
    return item.kind == "one person" and item.measure == "misses"


def _copied(tasks: Sequence[TaskFacts]) -> Iterator[Diagnosis]:
    for pair in find_copiers(tasks):
        who = (pair.copier,) if pair.copier is not None else ()
        a, b = pair.annotators
        if who:
            other = b if who == (a,) else a
            what = f"{pair.what} as annotator {other}, and submits later"
        else:
            what = f"{pair.what} of annotators {a} and {b} are the same; the times do not tell who copied"
        yield say("copier", "", ("", ""), pair.n, what=what, who=who, measure="habits", evidence=pair.evidence,
                  content="copied work")  # fmt: skip


def _clicked_through(tasks: Sequence[TaskFacts]) -> Iterator[Diagnosis]:
    for habit in find_click_through(tasks):
        yield say("click-through", habit.control, ("", ""), habit.n, what=habit.what, who=(habit.annotator,),
                  measure="habits", evidence=habit.evidence, content="clicked through")  # fmt: skip


def _unexplained(
    questions: Sequence[QuestionAnswers], explained: Mapping[int, Floats], rates: Rates, found: Sequence[Diagnosis]
) -> list[Diagnosis]:
    """Disagreement that no split and no annotator explains: a hard call, or not enough evidence."""
    diagnoses: dict[tuple[str, str], Diagnosis] = {}
    named = {(item.control, measure, who) for item in found for measure in item.measures for who in item.who}
    settled = {(item.control, measure) for item in found if item.kind != "undecided" for measure in item.measures}
    for asked in sorted(questions, key=lambda item: -int(item.disputed.sum())):
        key = asked.control, measure_of(asked)
        if key in diagnoses or key in settled:
            continue
        rest = _rest(asked, explained[id(asked)], [who for who in asked.people if (*key, who) in named])
        disagreement, items = rest.disagreement(), int(rest.disputed.sum())
        if disagreement < _NOTABLE_DISAGREEMENT or items < 3:
            continue
        rated = [one.rate for one in rates.get(key, ()) if one.n >= MIN_ITEMS and (*key, one.annotator) not in named]
        median = float(np.median(rated)) if len(rated) >= 3 else 0.0
        is_hard = median >= _HARD_RATE and items >= MIN_OBJECTS and not may_be_camps(rest)
        evidence = f"{percent(disagreement)} of the answers of two annotators differ, over {len(rest.answers)} cases"
        if is_hard:
            evidence += f"; the median annotator errs in {percent(median)}"
        elif len(asked.people) < 3:
            evidence += "; with two annotators, a careless one and a different view look the same"
        else:
            evidence += f"; {items} with both answers"
        diagnoses[key] = say(
            "hard" if is_hard else "undecided",
            asked.control,
            asked.names,
            items,
            what=question_text(asked, ""),
            evidence=evidence,
            measure=key[1],
            sides=sides_of(asked, asked.disputed.astype(np.float64)),
        )
    return list(diagnoses.values())


def _rest(asked: QuestionAnswers, covered: Floats, without: Sequence[int]) -> QuestionAnswers:
    """The question without the items that a split covers and without some annotators."""
    kept = covered < 0.5
    columns = [column for column, who in enumerate(asked.people) if who not in without]
    return replace(
        asked,
        people=tuple(asked.people[column] for column in columns),
        answers=asked.answers[kept][:, columns],
        tasks=asked.tasks[kept],
        sizes=asked.sizes[kept],
        labels=tuple(label for label, keep in zip(asked.labels, kept.tolist(), strict=True) if keep),
    )


def unit_of(tasks: Sequence[TaskFacts], control: str) -> str:
    """``pixels`` where boxes are drawn with the control, else ``area``: of other shapes, and the length of a span."""
    marks = (mark for task in tasks for item in task.objects if item.control == control for mark in item.marks)
    return "pixels" if any(mark.edges is not None for mark in marks) else "area"
