"""What is said of annotators who disagree: the kinds of diagnoses, each with its sentence and its advice."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

DiagnosisKind = Literal[
    "guideline", "two views", "one person", "careless", "copier", "click-through", "hard", "undecided"
]

# Measure -> types of conflicts that are its errors.
_CONFLICTS_BY_MEASURE: Mapping[str, frozenset[str]] = {
    "misses": frozenset({"missing", "extra", "empty"}),
    "extras": frozenset({"missing", "extra", "empty"}),
    "labels": frozenset({"label"}),
    "answers": frozenset({"choice", "answer"}),
    "borders": frozenset({"low_overlap"}),
    "habits": frozenset({"missing", "extra", "empty", "label", "choice", "answer", "low_overlap", "duplicate"}),
}
# Kinds whose conflicts have certain labels, answers or sizes.
_ABOUT_CONTENT = frozenset({"guideline", "two views", "one person", "hard"})
# Kinds that say that the guideline leaves something open.
OPEN_KINDS = frozenset({"guideline", "two views"})
# First answer of a split about marking objects of any label.
_ANY_OBJECT = frozenset({"objects", "(any)"})
# Fewest items that were given both answers for a split; below it the evidence is called too little.
MIN_OBJECTS = 12


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
        what: What it is about, as a clause: "whether Van is to be marked".
        least_area: Lowest area of the objects that it is about, square pixels; 0: any.
        most_area: Highest area of them; 0: any.
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
    what: str = ""
    least_area: float = 0.0
    most_area: float = 0.0

    @property
    def title(self) -> str:
        """What it is about, in a few words."""
        return self.content or " / ".join(answer for answer in self.answers if answer) or self.control

    @property
    def measures(self) -> frozenset[str]:
        """What is counted."""
        return frozenset(self.measure.split(", "))

    def covers(
        self, conflict_type: str, control: str, a: Sequence[str], b: Sequence[str], *, area: float = 0.0
    ) -> bool:
        """Whether a conflict may be a case of it.

        Args:
            conflict_type: Type of the conflict.
            control: Its control.
            a: Labels or answer of one side.
            b: Those of the other.
            area: Area of the object in square pixels; 0: unknown.
        """
        if self.control and control != self.control:
            return False
        kinds = _CONFLICTS_BY_MEASURE
        if not any(conflict_type in kinds.get(measure, frozenset()) for measure in self.measures):
            return False
        if self.kind not in _ABOUT_CONTENT:
            return True
        if self.measure == "misses":
            label = self.answers[0]
            if area and (area < self.least_area or (self.most_area and area > self.most_area)):
                return False
            return label in _ANY_OBJECT or label in {*a, *b}
        return self.measure == "borders" or {" + ".join(a), " + ".join(b)} == set(self.answers)

    def explanation(self, differing: Collection[int], others: Collection[int] = ()) -> str:
        """One sentence on a conflict that it covers, with names; empty where it is not about these annotators.

        Args:
            differing: The annotators that the conflict is attributed to.
            others: All annotators of the task.
        """
        concerned = {*differing, *others}
        if self.kind in OPEN_KINDS:
            groups = frozenset(self.first), frozenset(self.second)
            sides = [sorted(group & concerned) for group in groups]
            if not all(sides) or not set(differing) & (groups[0] | groups[1]):
                return ""
            return f"{_people(sides[0])} and {_people(sides[1])} read the guideline differently: {self.subject}."
        if self.kind == "hard":
            return f"A hard call, on which all annotators waver: {self.subject}."
        named = sorted(set(self.who) & set(differing))
        if not named:
            return ""
        if self.kind == "one person":
            return f"{_people(named)} answers this differently from all others: {self.subject}."
        return f"{_people(named)} {self.what} ({self.evidence})." if self.what else ""

    @property
    def note(self) -> str:
        """The same without names, for a note that annotators may read; empty where it is about single ones."""
        if self.kind in OPEN_KINDS:
            return f"The guideline leaves it open, and annotators read it in two ways: {self.subject}."
        return f"A hard call, on which all annotators waver: {self.subject}." if self.kind == "hard" else ""

    @property
    def subject(self) -> str:
        """What it is about, as a clause."""
        return self.what or self.title


def _people(ids: Sequence[int]) -> str:
    """Annotators in words: "annotator 3 and annotator 5"."""
    names = [f"annotator {who}" for who in ids]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class DiagnosisText:
    """What is said of a diagnosis.

    Attributes:
        name: Name on a page.
        sentence: The finding; ``{what}``, ``{people}``, ``{evidence}`` are filled in.
        advice: What to do.
    """

    name: str
    sentence: str
    advice: str


DIAGNOSES: Mapping[DiagnosisKind, DiagnosisText] = {
    "guideline": DiagnosisText(
        "unclear guideline",
        "The guideline is unclear: {what}. Two groups are each consistent ({evidence}).",
        "Write the rule, and judge the tasks again.",
    ),
    "two views": DiagnosisText(
        "two views",
        "Two annotators disagree consistently: {what} ({evidence}).",
        "Decide who is right, and write the rule.",
    ),
    "one person": DiagnosisText(
        "one annotator",
        "{people} differs consistently: {what} ({evidence}). The others agree.",
        "Show the annotator the rule; where no rule says it, write one.",
    ),
    "careless": DiagnosisText(
        "carelessness",
        "{people} {what} ({evidence}). It follows no content: the guideline is clear enough.",
        "Go through some of these tasks with the annotator, and have them annotated again.",
    ),
    "copier": DiagnosisText(
        "copied work",
        "{people} {what} ({evidence}).",
        "Ask the annotator, and do not count this work as an independent opinion.",
    ),
    "click-through": DiagnosisText(
        "clicked through",
        "{people} {what} ({evidence}).",
        "Have these tasks annotated again, and speak with the annotator.",
    ),
    "hard": DiagnosisText(
        "hard call",
        "A hard call: {what}. All annotators waver ({evidence}); none is consistent.",
        "Add examples to the guideline, or ask more annotators per task.",
    ),
    "undecided": DiagnosisText(
        "not enough evidence",
        "The cause cannot be told yet: {what} ({evidence}).",
        "Have a third annotator do some of these tasks, or wait for more.",
    ),
}  # fmt: skip


def named_by_measure(diagnoses: Iterable[Diagnosis]) -> dict[int, frozenset[str]]:
    """Annotator -> measures on which a diagnosis names them."""
    named: dict[int, set[str]] = {}
    for diagnosis in diagnoses:
        for who in diagnosis.who:
            named.setdefault(who, set()).update(diagnosis.measures)
    return {who: frozenset(measures) for who, measures in named.items()}


def say(
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
    """A diagnosis with its sentence; the arguments are its fields, and ``what`` is found."""
    said = DIAGNOSES[kind]
    people = " and ".join(f"annotator {one}" for one in who)
    sentence = said.sentence.format(what=what, evidence=evidence, people=people)
    sentence = sentence.strip()
    text = f"{sentence[0].upper()}{sentence[1:]} {said.advice}"
    return Diagnosis(control, answers, items, kind, dict(sides or {}), first, second, who, text, content, measure,
                     evidence, said.advice, what)  # fmt: skip


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"
