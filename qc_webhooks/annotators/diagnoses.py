"""Why annotators disagree: one table of diagnoses, each with its evidence, its sentence and its advice.

The order of the search is the order of trust. First come answers that are nobody's own opinion: copied work, and work
that was clicked through. Without them, splits that follow content are looked for, then annotators who err far more
often than the others on what is left, and last what no explanation fits.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.annotators.content import (
    Borders,
    ContentSplit,
    describe_open,
    find_border_split,
    find_content_split,
    measure_borders,
)
from qc_webhooks.annotators.error_rates import (
    MIN_ITEMS,
    ErrorRate,
    Measure,
    answer_rates,
    find_outliers,
    find_sloppy,
    presence_rates,
)
from qc_webhooks.annotators.explanations import (
    MIN_ANSWERS,
    extras_limit,
    find_camps,
    fit_persons,
    may_be_camps,
    read_groups,
    split,
)
from qc_webhooks.annotators.questions import Asked, QuestionKind, questions_of
from qc_webhooks.annotators.work_habits import find_click_through, find_copiers
from qc_webhooks.statistics import ABSENT
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

DiagnosisKind = Literal[
    "guideline", "two views", "one person", "careless", "copier", "click-through", "hard", "undecided"
]

# Kinds that say that the guideline leaves something open.
OPEN_KINDS = frozenset({"guideline", "two views"})
# First answer of a split about marking objects of any label.
_ANY_OBJECT = frozenset({"objects", "(any)"})
# Fewest items that were given both answers for a split; below it the evidence is called too little.
MIN_OBJECTS = 12
# Disagreement of two annotators (share of differing answers) that needs an explanation.
_NOTABLE_DISAGREEMENT = 0.15
# Median error rate above which a question is hard for all.
_HARD_RATE = 0.1
# Share of the disputes of two annotators that must go one way.
_ONE_WAY = 0.9


@dataclass(frozen=True)
class Diagnosis:
    """Why annotators disagree about something, or what is wrong with an annotator's work.

    Attributes:
        control: The control; empty where it is about the whole work.
        answers: The two answers; the second is ``(absent)`` where the question is whether to mark the first at all.
        items: Number of objects or tasks that it is based on.
        kind: Key of DIAGNOSES.
        sides: Annotator -> number of times each of the two answers was given for these objects.
        first: Annotators who prefer the first answer (or draw larger).
        second: Annotators who prefer the second (or draw tighter).
        who: The annotators whom it names; empty where it is about the guideline or about all.
        text: What it means and what to do.
        content: What the split follows, in words; empty without a split.
        measure: What is counted: ``misses``, ``extras``, ``labels``, ``answers``, ``borders``, ``habits``; several are
            joined by commas.
        evidence: The figures that it rests on, in words.
        advice: What to do.
    """

    control: str
    answers: tuple[str, str]
    items: int
    kind: DiagnosisKind
    sides: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    first: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    who: tuple[int, ...] = ()
    text: str = ""
    content: str = ""
    measure: str = ""
    evidence: str = ""
    advice: str = ""

    @property
    def title(self) -> str:
        """What it is about, in a few words."""
        return self.content or " / ".join(answer for answer in self.answers if answer) or self.control

    @property
    def measures(self) -> frozenset[str]:
        """What is counted."""
        return frozenset(self.measure.split(", "))

    def covers(self, conflict_type: str, control: str, a: Sequence[str], b: Sequence[str]) -> bool:
        """Whether a conflict may be a case of it.

        Args:
            conflict_type: Type of the conflict.
            control: Its control.
            a: Labels or answer of one side.
            b: Those of the other.
        """
        if control != self.control:
            return False
        if self.measure == "misses":
            label = self.answers[0]
            return conflict_type in {"missing", "extra"} and (label in _ANY_OBJECT or label in {*a, *b})
        if self.measure == "borders":
            return conflict_type == "low_overlap"
        return {" + ".join(a), " + ".join(b)} == set(self.answers)


@dataclass(frozen=True)
class DiagnosisText:
    """What is said of a diagnosis.

    Attributes:
        name: Name on a page.
        based_on: What the evidence must show.
        sentence: The finding; ``{what}``, ``{people}``, ``{evidence}`` are filled in.
        advice: What to do.
    """

    name: str
    based_on: str
    sentence: str
    advice: str


DIAGNOSES: Mapping[DiagnosisKind, DiagnosisText] = {
    "guideline": DiagnosisText(
        "unclear guideline",
        "Two groups of two or more annotators answer the same content differently, each consistently (75 %), in both"
        " halves of the tasks, and better than errors of single annotators explain it.",
        "The guideline is unclear: {what}. Two groups are each consistent ({evidence}).",
        "Write the rule, and judge the tasks again.",
    ),
    "two views": DiagnosisText(
        "two views",
        "The project's only two annotators differ in one direction, on one content.",
        "Two annotators disagree consistently: {what} ({evidence}).",
        "Decide who is right, and write the rule.",
    ),
    "one person": DiagnosisText(
        "one annotator",
        "One annotator answers one content differently from all others, consistently (75 %), and works as they do"
        " elsewhere.",
        "{people} differs consistently: {what} ({evidence}). The others agree.",
        "Show the annotator the rule; where no rule says it, write one.",
    ),
    "careless": DiagnosisText(
        "carelessness",
        "At most half of the annotators err at least twice as often as the median of the others, beyond chance, and"
        " no content explains it.",
        "{people} {what} ({evidence}). It follows no content: the guideline is clear enough.",
        "Go through some of these tasks with the annotator, and have them annotated again.",
    ),
    "copier": DiagnosisText(
        "copied work",
        "Regions equal another annotator's far more closely than anybody else's, or nearly all errors are the same;"
        " the one who submits later is named.",
        "{people} {what} ({evidence}).",
        "Ask the annotator, and do not count this work as an independent opinion.",
    ),
    "click-through": DiagnosisText(
        "clicked through",
        "Pre-labels that others correct are submitted unchanged, one answer is given whatever the task shows, or most"
        " tasks take less than a quarter of the others' time.",
        "{people} {what} ({evidence}).",
        "Have these tasks annotated again, and speak with the annotator.",
    ),
    "hard": DiagnosisText(
        "hard call",
        "The median annotator errs in 10 % or more, and neither groups nor single annotators explain it.",
        "A hard call: {what}. All annotators waver ({evidence}); nobody is consistent.",
        "Add examples to the guideline, or ask more annotators per task.",
    ),
    "undecided": DiagnosisText(
        "not enough evidence",
        "Annotators disagree in 15 % or more of the cases, and there are too few cases, or too few annotators, to say"
        " why.",
        "Not enough evidence to say why: {what} ({evidence}).",
        "Have a third annotator do some of these tasks, or wait for more.",
    ),
}  # fmt: skip


def find_diagnoses(tasks: Sequence[TaskFacts]) -> tuple[Diagnosis, ...]:
    """All diagnoses of a project, in the order of DIAGNOSES, the most frequent first."""
    tasks = list(tasks)
    found = [*_copied(tasks), *_clicked_through(tasks)]
    # Only the answers of those who did the work themselves count as opinions.
    without = frozenset(who for diagnosis in found for who in diagnosis.who)
    questions = questions_of(tasks, without=without)
    explained: dict[int, Floats] = {id(asked): np.zeros(len(asked.answers)) for asked in questions}
    for asked in questions:
        diagnosis, covered = _split_of(asked, unit=_unit(tasks, asked.control))
        if diagnosis is not None:
            found.append(diagnosis)
            explained[id(asked)] = covered
    controls = tuple(dict.fromkeys(asked.control for asked in questions if asked.kind == "presence"))
    borders = {control: measure_borders(tasks, control, without=without) for control in controls}
    for control, measured in borders.items():
        if measured is not None and (groups := find_border_split(measured)) is not None:
            found.append(_border_diagnosis(control, *groups, items=int(measured.objects.sum()), people=measured.people))
    rates = _rates(tasks, questions, explained, found, without)
    careless = [*_careless(rates, borders, found)]
    names = {who for item in careless for who in item.who}
    # Who errs elsewhere too, and draws inexactly, misses small objects more: that is no view.
    found = [item for item in found if not (_is_about_marking(item) and names.issuperset(item.who))] + careless
    found += _unexplained(questions, explained, rates, found)
    order = list(DIAGNOSES)
    return tuple(sorted(found, key=lambda item: (order.index(item.kind), -item.items, item.control, item.answers)))


def _is_about_marking(item: Diagnosis) -> bool:
    return item.kind == "one person" and item.measure == "misses"


def named_by_measure(diagnoses: Iterable[Diagnosis]) -> dict[int, frozenset[str]]:
    """Annotator -> measures on which a diagnosis names them."""
    named: dict[int, set[str]] = {}
    for diagnosis in diagnoses:
        for who in diagnosis.who:
            named.setdefault(who, set()).update(diagnosis.measures)
    return {who: frozenset(measures) for who, measures in named.items()}


# --- work that is not the annotator's own ---------------------------------------------------------------------------


def _copied(tasks: Sequence[TaskFacts]) -> Iterator[Diagnosis]:
    for pair in find_copiers(tasks):
        who = (pair.copier,) if pair.copier is not None else ()
        a, b = pair.annotators
        if who:
            other = b if who == (a,) else a
            what = f"{pair.what} as annotator {other}, and submits later"
        else:
            what = f"{pair.what} of annotators {a} and {b} are the same; the times do not tell who copied"
        yield _said("copier", "", ("", ""), pair.n, what=what, who=who, measure="habits", evidence=pair.evidence,
                    content="copied work")  # fmt: skip


def _clicked_through(tasks: Sequence[TaskFacts]) -> Iterator[Diagnosis]:
    for habit in find_click_through(tasks):
        yield _said("click-through", habit.control, ("", ""), habit.n, what=habit.what, who=(habit.annotator,),
                    measure="habits", evidence=habit.evidence, content="clicked through")  # fmt: skip


# --- splits that follow content -------------------------------------------------------------------------------------


def _split_of(asked: Asked, *, unit: str) -> tuple[Diagnosis | None, Floats]:
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
        found = _group_diagnosis(asked, camps.open, (camps.first, camps.second), content=content, evidence=evidence)
        if found is not None:
            return found, camps.open
    yes, no = split(asked)
    posterior = fit_persons(yes, no, extras_limit(asked)).posterior(yes, no)
    for class_ in (0, 1):
        groups = read_groups(asked, posterior[:, class_])
        if groups is None or not (groups[0] and groups[1]) or not _consistent_in_halves(asked, posterior[:, class_]):
            continue
        if asked.kind == "presence" and min(len(groups[0]), len(groups[1])) < 2:
            continue  # one annotator's extra regions
        content = describe_open(asked, posterior[:, class_] * asked.disputed, unit=unit)
        found = _group_diagnosis(asked, posterior[:, class_] * asked.disputed, groups[:2], content=content)
        if found is not None:
            return found, posterior[:, class_] * asked.disputed
    return nothing


def _consistent_in_halves(asked: Asked, weights: Floats) -> bool:
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
    asked: Asked,
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
    sides = _sides(asked, weights)
    what = _what(asked, content)
    evidence = evidence or f"{items} cases with both answers"
    kind, who = _kind_of_groups(first, second, len(asked.people))
    if kind is None:
        return None
    return _said(kind, asked.control, asked.names, items, what=what, who=who, first=first, second=second, sides=sides,
                 evidence=f"{evidence}; {len(first)} against {len(second)} annotators", content=content or what,
                 measure=_measure(asked))  # fmt: skip


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


def _content_diagnosis(asked: Asked, found: ContentSplit) -> Diagnosis | None:
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
    return _said(kind, asked.control, names, found.items, what=what, who=who, first=found.first, second=found.second,
                 sides=_sides(asked, found.inside.astype(np.float64)), evidence=evidence, content=found.content,
                 measure="misses")  # fmt: skip


def _two_views(asked: Asked) -> Diagnosis | None:
    """The two annotators of a project who differ in one direction."""
    disputed = asked.answers[asked.disputed]
    one_way = int((disputed[:, 0] == 1).sum())
    n = len(disputed)
    if n < MIN_OBJECTS or max(one_way, n - one_way) < _ONE_WAY * n:
        return None
    first, second = (0, 1) if 2 * one_way > n else (1, 0)
    return _said("two views", asked.control, asked.names, n, what=_what(asked, ""), first=(asked.people[first],),
                 second=(asked.people[second],), sides=_sides(asked, asked.disputed.astype(np.float64)),
                 evidence=f"{max(one_way, n - one_way)} of {n} differences go one way", content=_what(asked, ""),
                 measure=_measure(asked))  # fmt: skip


def _border_diagnosis(
    control: str,
    larger: tuple[int, ...],
    tighter: tuple[int, ...],
    ratio: float,
    *,
    items: int,
    people: Sequence[int],
) -> Diagnosis:
    kind: DiagnosisKind | None
    kind, who = _kind_of_groups(larger, tighter, len(people))
    evidence = f"areas differ by {100 * (ratio - 1):.0f} %, within each group by less"
    if kind is None or len(larger) + len(tighter) < len(people) / 2:
        kind, who = "undecided", ()
    return _said(kind, control, ("drawn larger", "drawn tighter"), items, what="where the border of an object is",
                 who=who, first=larger, second=tighter, evidence=evidence, content="borders",
                 measure="borders")  # fmt: skip


def _what(asked: Asked, content: str) -> str:
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


def _measure(asked: Asked) -> Measure:
    return _MEASURE_OF_KIND[asked.kind]


def _sides(asked: Asked, weights: Floats) -> dict[int, tuple[int, int]]:
    chosen = (weights > 0.5) & asked.disputed
    answers = asked.answers[chosen]
    return {
        who: (int((answers[:, column] == 1).sum()), int((answers[:, column] == 0).sum()))
        for column, who in enumerate(asked.people)
    }


# --- annotators who err ---------------------------------------------------------------------------------------------

_MEASURE_TEXTS: Mapping[str, Callable[[ErrorRate, float], str]] = {
    "misses": lambda one, usual: f"misses {_percent(one.rate)} of the objects, the others {_percent(usual)}",
    "extras": lambda one, usual: f"{_percent(one.rate)} of the regions are no object, of the others' {_percent(usual)}",
    "labels": lambda one, usual: f"{_percent(one.rate)} of the labels are wrong, of the others' {_percent(usual)}",
    "answers": lambda one, usual: f"{_percent(one.rate)} of the answers are wrong, of the others' {_percent(usual)}",
}

Rates = Mapping[tuple[str, Measure], Sequence[ErrorRate]]


def _rates(
    tasks: Sequence[TaskFacts],
    questions: Sequence[Asked],
    explained: Mapping[int, Floats],
    found: Sequence[Diagnosis],
    without: Collection[int],
) -> Rates:
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


def _careless(rates: Rates, borders: Mapping[str, Borders | None], found: Sequence[Diagnosis]) -> Iterator[Diagnosis]:
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
        yield _said("careless", control, ("", ""), cases[control, who], what="errs far more often than the others",
                    who=(who,), evidence="; ".join(by_measure.values()), measure=", ".join(by_measure))  # fmt: skip


def _differs_on_content(found: Sequence[Diagnosis], who: int, control: str, measure: str) -> bool:
    """Whether a split already explains this annotator's errors on a measure."""
    related = {"extras": "misses"}.get(measure, measure)
    return any(
        item.control == control and related in item.measures and who in (*item.first, *item.second)
        for item in found
        if item.kind in {"guideline", "two views"}
    )


# --- what nothing explains ------------------------------------------------------------------------------------------


def _unexplained(
    questions: Sequence[Asked], explained: Mapping[int, Floats], rates: Rates, found: Sequence[Diagnosis]
) -> list[Diagnosis]:
    """Disagreement that no split and no annotator explains: a hard call, or not enough evidence."""
    diagnoses: dict[tuple[str, str], Diagnosis] = {}
    named = {(item.control, measure, who) for item in found for measure in item.measures for who in item.who}
    settled = {(item.control, measure) for item in found if item.kind != "undecided" for measure in item.measures}
    for asked in sorted(questions, key=lambda item: -int(item.disputed.sum())):
        key = asked.control, _measure(asked)
        if key in diagnoses or key in settled:
            continue
        rest = _rest(asked, explained[id(asked)], [who for who in asked.people if (*key, who) in named])
        disagreement, items = rest.disagreement(), int(rest.disputed.sum())
        if disagreement < _NOTABLE_DISAGREEMENT or items < 3:
            continue
        rated = [one.rate for one in rates.get(key, ()) if one.n >= MIN_ITEMS and (*key, one.annotator) not in named]
        median = float(np.median(rated)) if len(rated) >= 3 else 0.0
        is_hard = median >= _HARD_RATE and items >= MIN_OBJECTS and not may_be_camps(rest)
        evidence = f"{_percent(disagreement)} of the answers of two annotators differ, over {len(rest.answers)} cases"
        if is_hard:
            evidence += f"; the median annotator errs in {_percent(median)}"
        elif len(asked.people) < 3:
            evidence += "; with two annotators, a careless one and a different view look the same"
        else:
            evidence += f"; {items} with both answers"
        diagnoses[key] = _said(
            "hard" if is_hard else "undecided",
            asked.control,
            asked.names,
            items,
            what=_what(asked, ""),
            evidence=evidence,
            measure=key[1],
            sides=_sides(asked, asked.disputed.astype(np.float64)),
        )
    return list(diagnoses.values())


def _rest(asked: Asked, covered: Floats, without: Sequence[int]) -> Asked:
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


# --- words ----------------------------------------------------------------------------------------------------------


def _said(
    kind: DiagnosisKind,
    control: str,
    answers: tuple[str, str],
    items: int,
    *,
    what: str,
    evidence: str,
    who: tuple[int, ...] = (),
    first: tuple[int, ...] = (),
    second: tuple[int, ...] = (),
    sides: Mapping[int, tuple[int, int]] | None = None,
    content: str = "",
    measure: str = "",
) -> Diagnosis:
    said = DIAGNOSES[kind]
    people = " and ".join(f"annotator {one}" for one in who)
    sentence = said.sentence.format(what=what, evidence=evidence, people=people)
    sentence = sentence.strip()
    text = f"{sentence[0].upper()}{sentence[1:]} {said.advice}"
    return Diagnosis(control, answers, items, kind, dict(sides or {}), first, second, who, text, content, measure,
                     evidence, said.advice)  # fmt: skip


def _unit(tasks: Sequence[TaskFacts], control: str) -> str:
    """``pixels`` where boxes are drawn with the control, else ``area``: of other shapes, and the length of a span."""
    marks = (mark for task in tasks for item in task.objects if item.control == control for mark in item.marks)
    return "pixels" if any(mark.edges is not None for mark in marks) else "area"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


__all__ = ["DIAGNOSES", "MIN_OBJECTS", "OPEN_KINDS", "Diagnosis", "find_diagnoses", "named_by_measure"]
