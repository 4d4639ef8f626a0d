"""Diagnoses of carelessness: annotators who err far more often than the others, on no particular content."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.content import Borders
from qc_webhooks.annotators.diagnosis import OPEN_KINDS, Diagnosis, percent, say
from qc_webhooks.annotators.error_rates import (
    ErrorRate,
    Measure,
    answer_rates,
    find_outliers,
    find_sloppy,
    presence_rates,
)
from qc_webhooks.annotators.questions import QuestionAnswers
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

_MEASURE_TEXTS: Mapping[str, Callable[[ErrorRate, float], str]] = {
    "misses": lambda one, usual: f"misses {percent(one.rate)} of the objects, the others {percent(usual)}",
    "extras": lambda one, usual: f"{percent(one.rate)} of the regions are no object, of the others' {percent(usual)}",
    "labels": lambda one, usual: f"{percent(one.rate)} of the labels are wrong, of the others' {percent(usual)}",
    "answers": lambda one, usual: f"{percent(one.rate)} of the answers are wrong, of the others' {percent(usual)}",
}

Rates = Mapping[tuple[str, Measure], Sequence[ErrorRate]]


def error_rates_of(
    tasks: Sequence[TaskFacts],
    questions: Sequence[QuestionAnswers],
    explained: Mapping[int, Floats],
    found: Sequence[Diagnosis],
    without: Collection[int],
) -> Rates:
    """Errors of each annotator, by control and measure, on what no split explains.

    Args:
        tasks: Facts of each task.
        questions: All questions.
        explained: Id of a question -> share of each item that a split explains.
        found: The splits.
        without: Annotators to leave out.
    """
    rates: dict[tuple[str, Measure], Sequence[ErrorRate]] = {}
    for asked in questions:
        if asked.kind == "presence":
            rates[asked.control, "misses"], rates[asked.control, "extras"] = presence_rates(asked, explained[id(asked)])
        elif asked.kind == "tag":
            misses, extras = presence_rates(asked, explained[id(asked)])
            before = {one.annotator: one for one in rates.get((asked.control, "answers"), ())}
            rates[asked.control, "answers"] = [
                ErrorRate(
                    miss.annotator,
                    miss.errors + extra.errors + (before[miss.annotator].errors if miss.annotator in before else 0.0),
                    miss.n + extra.n + (before[miss.annotator].n if miss.annotator in before else 0.0),
                )
                for miss, extra in zip(misses, extras, strict=True)
            ]
    of_objects = {asked.control for asked in questions if asked.kind == "presence"}
    of_tasks = {asked.control for asked in questions if asked.kind == "answer"}
    for control in sorted(of_objects | of_tasks):
        open_pairs = [
            item.answers
            for item in found
            if item.control == control and item.measure in {"labels", "answers"} and item.first and item.second
        ]
        for controls, measure in ((of_objects, "labels"), (of_tasks, "answers")):
            if control in controls:
                rates[control, measure] = answer_rates(  # type: ignore[index]  # the two names are of Measure
                    tasks, control, of_regions=measure == "labels", without=without, open_pairs=open_pairs
                )
    return rates


def careless(rates: Rates, borders: Mapping[str, Borders | None], found: Sequence[Diagnosis]) -> Iterator[Diagnosis]:
    """A diagnosis for each annotator and control, with every measure on which the annotator errs far more often."""
    tests = sum(len(measured) for measured in rates.values())
    errors: dict[tuple[str, int], dict[Measure, str]] = defaultdict(dict)
    cases: dict[tuple[str, int], int] = defaultdict(int)
    for (control, measure), measured in rates.items():
        by_person = {one.annotator: one for one in measured}
        for who in find_outliers(measured, tests=tests):
            if not _differs_on_content(found, who, control, measure):
                usual = float(np.median([one.rate for one in measured if one.annotator != who]))
                errors[control, who][measure] = _MEASURE_TEXTS[measure](by_person[who], usual)
                cases[control, who] = max(cases[control, who], round(by_person[who].n))
    for control, drawn in borders.items():
        for who in find_sloppy(drawn.people, drawn.scatter, drawn.objects) if drawn else ():
            assert drawn is not None
            value = float(drawn.scatter[drawn.people.index(who)])
            usual = float(
                np.median([one for name, one in zip(drawn.people, drawn.scatter, strict=True) if name != who])
            )
            errors[control, who]["borders"] = (
                f"edges scatter by {100 * value:.1f} % of the side, the others' by {100 * usual:.1f} %"
            )
            cases[control, who] = max(cases[control, who], int(drawn.objects[drawn.people.index(who)]))
    for (control, who), by_measure in errors.items():
        yield say("careless", control, ("", ""), cases[control, who], what="errs far more often than the others",
                  who=(who,), evidence="; ".join(by_measure.values()), measure=", ".join(by_measure))  # fmt: skip


def _differs_on_content(found: Sequence[Diagnosis], who: int, control: str, measure: str) -> bool:
    """Whether a split already explains this annotator's errors on a measure."""
    related = {"extras": "misses"}.get(measure, measure)
    return any(
        item.control == control and related in item.measures and who in (*item.first, *item.second)
        for item in found
        if item.kind in OPEN_KINDS
    )
