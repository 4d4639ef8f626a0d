"""RULES: what the labeling guideline asks of every annotation, checked without anybody's opinion."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry import Polygon
from labelloop.labeling.overlap import meeting, overlaps
from labelloop.labeling.regions import Region
from qc_webhooks.agreement import Answers
from qc_webhooks.agreement.conflicts import shape_word
from qc_webhooks.words import bounds_of, place_of, thing

Effect = Literal["warn", "block"]
EFFECTS: tuple[Effect, ...] = ("warn", "block")


@dataclass(frozen=True)
class Rule:
    """One rule of a policy; what each key means depends on the rule, see ``RULES``.

    Attributes:
        rule: Its key in RULES.
        effect: ``warn``: it is said in the note; ``block``: the task goes to a reviewer, whoever agrees.
        value: The number that it goes by.
        labels: Only regions with one of these labels; none: all.
        others: The labels that regions must or must not meet.
        control: The control that must be answered.
    """

    rule: str
    effect: Effect = "warn"
    value: float | None = None
    labels: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    control: str = ""


@dataclass(frozen=True)
class Violation:
    """What an annotation has that a rule forbids.

    Attributes:
        rule: The rule.
        text: In a sentence, without the annotator's name.
        annotator: Whose annotation it is.
        regions: Ids of the regions concerned.
    """

    rule: Rule
    text: str
    annotator: int
    regions: tuple[str, ...] = ()


# Of an annotation: its regions, its answers, and its lead time in seconds (None: not known).
Found = Iterator[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Work:
    """What a rule looks at.

    Attributes:
        regions: Everything that was drawn.
        answered: Controls that were answered about the whole task.
        seconds: How long it took; None: not known.
    """

    regions: tuple[Region, ...] = ()
    answered: frozenset[str] = frozenset()
    seconds: float | None = None


def min_box_px(work: Work, rule: Rule) -> Found:
    """Both sides of every region are at least ``value`` pixels."""
    least = rule.value or 0.0
    for region in chosen(work, rule.labels):
        left, top, right, bottom = region.geometry.bounds
        short = min(right - left, bottom - top)
        if short < least - 1e-6 and region.type not in _POINTS:
            side = "wide" if right - left <= bottom - top else "high"
            yield f"{_what(region)} is {short:.0f} px {side}, less than {least:g} px", (region.id,)


def max_overlap_same_label(work: Work, rule: Rule) -> Found:
    """Two regions of one label overlap at most ``value`` (IoU)."""
    most = 1.0 if rule.value is None else rule.value
    for one, other, iou in _pairs(chosen(work, rule.labels)):
        if iou > most and set(one.labels) & set(other.labels):
            said = f"overlaps another one by {100 * iou:.0f} %, more than {100 * most:g} %"
            yield f"{_what(one)} {said}", (one.id, other.id)


def required_attribute(work: Work, rule: Rule) -> Found:
    """Every region has an answer to ``control``."""
    for region in chosen(work, rule.labels):
        if not region.attributes.get(rule.control):
            yield f"{_what(region)} has no answer to {rule.control}", (region.id,)


def required_answer(work: Work, rule: Rule) -> Found:
    """The question ``control`` about the whole task is answered."""
    if rule.control not in work.answered:
        yield f"{rule.control} is not answered", ()


def must_meet(work: Work, rule: Rule) -> Found:
    """Every region of ``labels`` touches one of ``others``."""
    wanted = [region for region in work.regions if set(region.labels) & set(rule.others)]
    those = chosen(work, rule.labels)
    touch = {place for place, other in _near(those, wanted) if _touch(those[place], wanted[other])}
    for place, region in enumerate(those):
        if place not in touch:
            yield f"{_what(region)} meets no {_either(rule.others)}", (region.id,)


def must_not_meet(work: Work, rule: Rule) -> Found:
    """No region of ``labels`` overlaps one of ``others`` by more than ``value`` (IoU; 0 where it is not given)."""
    most = rule.value or 0.0
    barred = [region for region in work.regions if set(region.labels) & set(rule.others)]
    those = chosen(work, rule.labels)
    named: set[int] = set()
    for row, column, iou in _overlaps(those, barred):
        region, other = those[row], barred[column]
        if row not in named and other is not region and _same_image(region, other) and iou > most:
            named.add(row)
            yield f"{_what(region)} meets {_article(other)}", (region.id, other.id)


def too_fast(work: Work, rule: Rule) -> Found:
    """An annotation took at least ``value`` seconds."""
    least = rule.value or 0.0
    if work.seconds is not None and work.seconds < least:
        yield f"an annotation took {work.seconds:.1f} s, less than {least:g} s", ()


def max_regions(work: Work, rule: Rule) -> Found:
    """An annotation has at most ``value`` regions of ``labels``."""
    those, most = chosen(work, rule.labels), rule.value or 0
    if len(those) > most:
        yield f"there are {len(those)} {_either(rule.labels) or 'regions'}, more than {most:g}", ()


def min_regions(work: Work, rule: Rule) -> Found:
    """An annotation has at least ``value`` regions of ``labels``."""
    those, least = chosen(work, rule.labels), rule.value or 0
    if len(those) < least:
        yield f"there are {len(those)} {_either(rule.labels) or 'regions'}, fewer than {least:g}", ()


@dataclass(frozen=True)
class Check:
    """How a rule is followed.

    Attributes:
        find: What breaks it.
        needs: The keys of ``Rule`` that it cannot do without.
        takes: The keys that it knows besides.
    """

    find: Callable[[Work, Rule], Found]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ("labels",)


RULES: Mapping[str, Check] = {
    "min_box_px": Check(min_box_px, ("value",)),
    "max_overlap_same_label": Check(max_overlap_same_label, ("value",)),
    "required_attribute": Check(required_attribute, ("control",)),
    "required_answer": Check(required_answer, ("control",), ()),
    "must_meet": Check(must_meet, ("labels", "others"), ()),
    "must_not_meet": Check(must_not_meet, ("labels", "others"), ("value",)),
    "too_fast": Check(too_fast, ("value",), ()),
    "max_regions": Check(max_regions, ("value",)),
    "min_regions": Check(min_regions, ("value",)),
}


def violations(answers: Sequence[Answers], rules: Sequence[Rule]) -> tuple[Violation, ...]:
    """What breaks the rules, in the order of the rules and of the annotations; of a ground truth only its own."""
    truth = [each for each in answers if each.ground_truth]
    works = [(each.annotator, work_of(each)) for each in truth or sorted(answers, key=lambda each: each.annotation)]
    return tuple(
        Violation(rule, text, annotator, regions)
        for rule in rules
        for annotator, work in works
        for text, regions in RULES[rule.rule].find(work, rule)
    )


def describe_violations(found: Iterable[Violation], *, most: int = 2) -> list[str]:
    """Each different violation as one sentence, the blocking ones first."""
    ordered = sorted(found, key=lambda each: each.rule.effect != "block")
    texts = list(dict.fromkeys(f"{each.text[0].upper()}{each.text[1:]}." for each in ordered))
    return texts[:most] + ([f"And {len(texts) - most} more against the guideline."] if len(texts) > most else [])


def work_of(answers: Answers) -> Work:
    """What rules look at in one annotation."""
    regions = [region for held in answers.controls.values() for region in held if isinstance(region, Region)]
    answered = frozenset(
        name for (name, _), held in answers.controls.items() if held and not isinstance(held[0], Region)
    )
    return Work(tuple(regions), answered | frozenset(answers.uncompared), answers.seconds)


def chosen(work: Work, labels: Sequence[str]) -> list[Region]:
    """The regions that have one of the labels; without labels all."""
    return [region for region in work.regions if not labels or set(region.labels) & set(labels)]


_POINTS = {"keypointlabels", "keypoint"}


def _pairs(regions: Sequence[Region]) -> Iterator[tuple[Region, Region, float]]:
    for place, other, iou in _overlaps(regions, regions):
        if place < other and _same_image(regions[place], regions[other]):
            yield regions[place], regions[other], iou


def _overlaps(a: Sequence[Region], b: Sequence[Region]) -> Iterator[tuple[int, int, float]]:
    """Which of ``a`` overlap which of ``b``, in order; none where too many do to be looked at."""
    try:
        found = overlaps([each.geometry for each in a], [each.geometry for each in b])
    except TooLargeToJudge:
        return
    yield from zip(found.rows.tolist(), found.columns.tolist(), found.values.tolist(), strict=True)


def _near(a: Sequence[Region], b: Sequence[Region]) -> Iterator[tuple[int, int]]:
    """Which of ``a`` may touch which of ``b``: their bounds meet."""
    if not a or not b:
        return
    bounds = (np.array([_outline(each).bounds for each in regions]) for regions in (a, b))
    for rows, columns in meeting(*map(np.nan_to_num, bounds)):
        yield from zip(rows.tolist(), columns.tolist(), strict=True)


def _touch(one: Region, other: Region) -> bool:
    if one is other or not _same_image(one, other):
        return False
    shapes: list[Any] = [_outline(one), _outline(other)]
    return bool(shapes[0].intersects(shapes[1]))


def _outline(region: Region) -> Any:
    outline = region.geometry.polygon()
    if not outline.is_empty or isinstance(region.geometry, Polygon):
        return outline
    left, top, right, bottom = region.geometry.bounds  # a point or an open line encloses nothing
    return shapely.box(left, top, right, bottom)


def _same_image(one: Region, other: Region) -> bool:
    return (one.to_name, one.item_index) == (other.to_name, other.item_index)


def _what(region: Region) -> str:
    return f"{_article(region)} {place_of(bounds_of(region), region.item_index)}"


def _article(region: Region) -> str:
    return thing(region.labels, shape_word(region))


def _either(labels: Sequence[str]) -> str:
    return " or ".join(labels)
