"""RULES: what the labeling guideline asks of every annotation, checked without anybody's opinion."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.overlap import MOST_PAIRS, meeting, overlaps
from labelloop.labeling.geometry.shapes import Polygon
from labelloop.labeling.studio.regions import Region
from qc_webhooks.agreement import Answers
from qc_webhooks.agreement.conflicts import shape_word
from qc_webhooks.agreement.region_text import bounds_of, place_of, thing

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
        checked: False: nothing is known to be broken, for the annotation could not be checked; the text says why.
    """

    rule: Rule
    text: str
    annotator: int
    regions: tuple[str, ...] = ()
    checked: bool = True


# What is broken, in a sentence, and the ids of the regions concerned.
Found = Iterator[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Work:
    """What a rule looks at.

    Attributes:
        regions: Everything that was drawn.
        answered: Controls that were answered about the whole task.
        seconds: How long it took; None: not known.
        unread: Controls of which an answer cannot be read; "" where it is not known which.
        too_large: Why neither regions nor answers are here, in a sentence; empty: they are.
    """

    regions: tuple[Region, ...] = ()
    answered: frozenset[str] = frozenset()
    seconds: float | None = None
    unread: frozenset[str] = frozenset()
    too_large: str = ""


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
    touch = _touching(those, wanted)
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
        misses: Whether it finds what is not there: of an annotation that cannot be read whole, nobody knows.
    """

    find: Callable[[Work, Rule], Found]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ("labels",)
    misses: bool = False


RULES: Mapping[str, Check] = {
    "min_box_px": Check(min_box_px, ("value",)),
    "max_overlap_same_label": Check(max_overlap_same_label, ("value",)),
    "required_attribute": Check(required_attribute, ("control",), misses=True),
    "required_answer": Check(required_answer, ("control",), (), misses=True),
    "must_meet": Check(must_meet, ("labels", "others"), (), misses=True),
    "must_not_meet": Check(must_not_meet, ("labels", "others"), ("value",)),
    "too_fast": Check(too_fast, ("value",), ()),
    "max_regions": Check(max_regions, ("value",)),
    "min_regions": Check(min_regions, ("value",), misses=True),
}


def violations(answers: Sequence[Answers], rules: Sequence[Rule]) -> tuple[Violation, ...]:
    """What breaks the rules, in the order of the rules and of the annotations; of a ground truth only its own."""
    truth = [each for each in answers if each.ground_truth]
    works = [(each.annotator, work_of(each)) for each in truth or sorted(answers, key=lambda each: each.annotation)]
    return tuple(found for rule in rules for annotator, work in works for found in _broken(annotator, work, rule))


def _broken(annotator: int, work: Work, rule: Rule) -> list[Violation]:
    """What breaks a rule in one annotation; one entry that says so where that cannot be known."""
    check = RULES[rule.rule]
    if work.too_large and rule.rule != "too_fast":
        return [_unchecked(rule, annotator, work.too_large)]
    try:
        found = [Violation(rule, text, annotator, regions) for text, regions in check.find(work, rule)]
    except TooLargeToJudge as error:
        return [_unchecked(rule, annotator, str(error))]
    asked = {rule.control, ""} if rule.rule == "required_answer" else work.unread
    if found and check.misses and work.unread & asked:
        return [_unchecked(rule, annotator, "an annotation cannot be read whole")]
    return found


def _unchecked(rule: Rule, annotator: int, reason: str) -> Violation:
    reason = f"{reason[0].lower()}{reason[1:]}".rstrip(".")
    return Violation(rule, f"the rule {rule.rule} is not checked: {reason}", annotator, checked=False)


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
    answered |= frozenset(answers.uncompared)
    return Work(tuple(regions), answered, answers.seconds, answers.unread_controls, answers.too_large)


def chosen(work: Work, labels: Sequence[str]) -> list[Region]:
    """The regions that have one of the labels; without labels all."""
    return [region for region in work.regions if not labels or set(region.labels) & set(labels)]


_POINTS = {"keypointlabels", "keypoint"}


def _pairs(regions: Sequence[Region]) -> Iterator[tuple[Region, Region, float]]:
    for place, other, iou in _overlaps(regions, regions):
        if place < other and _same_image(regions[place], regions[other]):
            yield regions[place], regions[other], iou


def _overlaps(a: Sequence[Region], b: Sequence[Region]) -> Iterator[tuple[int, int, float]]:
    """Which of ``a`` overlap which of ``b``, in order.

    Raises:
        TooLargeToJudge: Too many do to be looked at.
    """
    found = overlaps([each.geometry for each in a], [each.geometry for each in b])
    yield from zip(found.rows.tolist(), found.columns.tolist(), found.values.tolist(), strict=True)


def _touching(a: Sequence[Region], b: Sequence[Region]) -> set[int]:
    """Places of those of ``a`` that touch one of ``b`` on the same image.

    Raises:
        TooLargeToJudge: Too many may do so.
    """
    if not a or not b:
        return set()
    shapes = [np.array([_outline(each) for each in regions], dtype=object) for regions in (a, b)]
    numbers: dict[tuple[str, int], int] = {}
    places = [np.array([numbers.setdefault(_place(each), len(numbers)) for each in regions]) for regions in (a, b)]
    own = {id(each): place for place, each in enumerate(b)}
    selves = np.array([own.get(id(each), -1) for each in a])
    touch = np.zeros(len(a), dtype=bool)
    looked_at = 0
    for rows, columns in meeting(*(np.nan_to_num(shapely.bounds(each)) for each in shapes)):
        may = (places[0][rows] == places[1][columns]) & (selves[rows] != columns)
        rows, columns = rows[may], columns[may]  # noqa: PLW2901 - those that count
        looked_at += len(rows)
        if looked_at > MOST_PAIRS:
            raise TooLargeToJudge(f"more than {MOST_PAIRS:,} pairs of its regions may touch")
        touch[rows[shapely.intersects(shapes[0][rows], shapes[1][columns])]] = True
    return set(np.flatnonzero(touch).tolist())


def _outline(region: Region) -> Any:
    outline = region.geometry.polygon()
    if not outline.is_empty or isinstance(region.geometry, Polygon):
        return outline
    left, top, right, bottom = region.geometry.bounds  # a point or an open line encloses nothing
    return shapely.box(left, top, right, bottom)


def _same_image(one: Region, other: Region) -> bool:
    return _place(one) == _place(other)


def _place(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index


def _what(region: Region) -> str:
    return f"{_article(region)} {place_of(bounds_of(region), region.item_index)}"


def _article(region: Region) -> str:
    return thing(region.labels, shape_word(region))


def _either(labels: Sequence[str]) -> str:
    return " or ".join(labels)
