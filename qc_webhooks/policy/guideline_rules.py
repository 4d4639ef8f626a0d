"""RULES: checks of each annotation against the labeling guideline, independent of other annotations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.overlap import MAX_PAIRS, intersecting_boxes, iou_pairs
from labelloop.labeling.geometry.shapes import Polygon
from labelloop.labeling.region import Region
from qc_webhooks.agreement import Answers
from qc_webhooks.agreement.conflicts import shape_word
from qc_webhooks.agreement.region_text import bounds_of, position_text, region_name

Effect = Literal["warn", "block"]
EFFECTS: tuple[Effect, ...] = ("warn", "block")


@dataclass(frozen=True)
class Rule:
    """One rule of a policy; the meaning of a key depends on the rule, see ``RULES``.

    Attributes:
        rule: Key in RULES.
        effect: ``warn``: the note mentions a violation; ``block``: the task goes to a reviewer, even if all agree.
        value: Threshold of the rule.
        labels: Restricts the rule to regions with one of these labels; empty: all regions.
        others: Labels that the regions must, or must not, meet.
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
    """A violation of a rule by one annotation.

    Attributes:
        rule: The rule.
        text: The violation as a sentence, without the annotator's name.
        annotator: User id of the annotator.
        regions: Ids of the regions.
        checked: False: the annotation could not be checked; the text gives the reason.
    """

    rule: Rule
    text: str
    annotator: int
    regions: tuple[str, ...] = ()
    checked: bool = True


# (violation as a sentence, ids of its regions).
Findings = Iterator[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class RuleInput:
    """The input of a rule: one annotation.

    Attributes:
        regions: All its regions.
        answered: Controls with an answer about the whole task.
        seconds: Annotation time; None if unknown.
        unread: Controls with an unreadable answer; "" if the control is unknown.
        too_large: Why regions and answers are missing; empty if they are not.
    """

    regions: tuple[Region, ...] = ()
    answered: frozenset[str] = frozenset()
    seconds: float | None = None
    unread: frozenset[str] = frozenset()
    too_large: str = ""


def min_box_px(annotation: RuleInput, rule: Rule) -> Findings:
    """Both sides of every region measure at least ``value`` pixels."""
    minimum = rule.value or 0.0
    for region in with_labels(annotation, rule.labels):
        left, top, right, bottom = region.geometry.bounds
        shortest = min(right - left, bottom - top)
        if shortest < minimum - 1e-6 and region.type not in _POINTS:
            side = "wide" if right - left <= bottom - top else "high"
            yield f"{_region_text(region)} is {shortest:.0f} px {side}, less than {minimum:g} px", (region.id,)


def max_overlap_same_label(annotation: RuleInput, rule: Rule) -> Findings:
    """Two regions with a common label overlap by at most ``value`` (IoU)."""
    maximum = 1.0 if rule.value is None else rule.value
    for first, second, iou in _pairs(with_labels(annotation, rule.labels)):
        if iou > maximum and set(first.labels) & set(second.labels):
            overlap_text = f"overlaps another one by {100 * iou:.0f} %, more than {100 * maximum:g} %"
            yield f"{_region_text(first)} {overlap_text}", (first.id, second.id)


def required_attribute(annotation: RuleInput, rule: Rule) -> Findings:
    """Every region has an answer to ``control``."""
    for region in with_labels(annotation, rule.labels):
        if not region.attributes.get(rule.control):
            yield f"{_region_text(region)} has no answer to {rule.control}", (region.id,)


def required_answer(annotation: RuleInput, rule: Rule) -> Findings:
    """The question ``control`` about the whole task has an answer."""
    if rule.control not in annotation.answered:
        yield f"{rule.control} is not answered", ()


def must_meet(annotation: RuleInput, rule: Rule) -> Findings:
    """Every region of ``labels`` touches one of ``others``."""
    partners = [region for region in annotation.regions if set(region.labels) & set(rule.others)]
    regions = with_labels(annotation, rule.labels)
    touch = _touching(regions, partners)
    for index, region in enumerate(regions):
        if index not in touch:
            yield f"{_region_text(region)} meets no {_either(rule.others)}", (region.id,)


def must_not_meet(annotation: RuleInput, rule: Rule) -> Findings:
    """No region of ``labels`` overlaps one of ``others`` by more than ``value`` (IoU; default 0)."""
    maximum = rule.value or 0.0
    forbidden = [region for region in annotation.regions if set(region.labels) & set(rule.others)]
    regions = with_labels(annotation, rule.labels)
    reported: set[int] = set()
    for row, column, iou in _overlaps(regions, forbidden):
        region, other = regions[row], forbidden[column]
        if row not in reported and other is not region and _same_image(region, other) and iou > maximum:
            reported.add(row)
            yield f"{_region_text(region)} meets {_region_name(other)}", (region.id, other.id)


def too_fast(annotation: RuleInput, rule: Rule) -> Findings:
    """The annotation time is at least ``value`` seconds."""
    minimum = rule.value or 0.0
    if annotation.seconds is not None and annotation.seconds < minimum:
        yield f"an annotation took {annotation.seconds:.1f} s, less than {minimum:g} s", ()


def max_regions(annotation: RuleInput, rule: Rule) -> Findings:
    """An annotation has at most ``value`` regions of ``labels``."""
    regions, maximum = with_labels(annotation, rule.labels), rule.value or 0
    if len(regions) > maximum:
        yield f"there are {len(regions)} {_either(rule.labels) or 'regions'}, more than {maximum:g}", ()


def min_regions(annotation: RuleInput, rule: Rule) -> Findings:
    """An annotation has at least ``value`` regions of ``labels``."""
    regions, minimum = with_labels(annotation, rule.labels), rule.value or 0
    if len(regions) < minimum:
        yield f"there are {len(regions)} {_either(rule.labels) or 'regions'}, fewer than {minimum:g}", ()


@dataclass(frozen=True)
class RuleCheck:
    """The implementation of a rule.

    Attributes:
        violations: Yields the violations.
        required_keys: Required keys of ``Rule``.
        optional_keys: Further keys of ``Rule`` that it uses.
        finds_missing: Whether it reports missing things: unreliable for an annotation with unreadable results.
    """

    violations: Callable[[RuleInput, Rule], Findings]
    required_keys: tuple[str, ...]
    optional_keys: tuple[str, ...] = ("labels",)
    finds_missing: bool = False


RULES: Mapping[str, RuleCheck] = {
    "min_box_px": RuleCheck(min_box_px, ("value",)),
    "max_overlap_same_label": RuleCheck(max_overlap_same_label, ("value",)),
    "required_attribute": RuleCheck(required_attribute, ("control",), finds_missing=True),
    "required_answer": RuleCheck(required_answer, ("control",), (), finds_missing=True),
    "must_meet": RuleCheck(must_meet, ("labels", "others"), (), finds_missing=True),
    "must_not_meet": RuleCheck(must_not_meet, ("labels", "others"), ("value",)),
    "too_fast": RuleCheck(too_fast, ("value",), ()),
    "max_regions": RuleCheck(max_regions, ("value",)),
    "min_regions": RuleCheck(min_regions, ("value",), finds_missing=True),
}


def violations(answers: Sequence[Answers], rules: Sequence[Rule]) -> tuple[Violation, ...]:
    """Check all annotations; of a task with a ground truth, only that. Ordered by rule, then annotation."""
    truth = [answer for answer in answers if answer.ground_truth]
    checked = truth or sorted(answers, key=lambda answer: answer.annotation)
    inputs = [(answer.annotator, rule_input(answer)) for answer in checked]
    return tuple(
        violation
        for rule in rules
        for annotator, annotation in inputs
        for violation in _violations_of(annotator, annotation, rule)
    )


def _violations_of(annotator: int, annotation: RuleInput, rule: Rule) -> list[Violation]:
    """Violations of a rule in one annotation; one unchecked entry if they cannot be determined."""
    check = RULES[rule.rule]
    if annotation.too_large and rule.rule != "too_fast":
        return [_unchecked(rule, annotator, annotation.too_large)]
    try:
        findings = check.violations(annotation, rule)
        rule_violations = [Violation(rule, text, annotator, regions) for text, regions in findings]
    except TooLargeToJudge as error:
        return [_unchecked(rule, annotator, str(error))]
    relevant_controls = {rule.control, ""} if rule.rule == "required_answer" else annotation.unread
    if rule_violations and check.finds_missing and annotation.unread & relevant_controls:
        return [_unchecked(rule, annotator, "an annotation cannot be read whole")]
    return rule_violations


def _unchecked(rule: Rule, annotator: int, reason: str) -> Violation:
    reason = f"{reason[0].lower()}{reason[1:]}".rstrip(".")
    return Violation(rule, f"the rule {rule.rule} is not checked: {reason}", annotator, checked=False)


def describe_violations(all_violations: Iterable[Violation]) -> list[str]:
    """Describe each distinct violation in one sentence, blocking ones first."""
    ordered = sorted(all_violations, key=lambda violation: violation.rule.effect != "block")
    texts = list(dict.fromkeys(f"{violation.text[0].upper()}{violation.text[1:]}." for violation in ordered))
    return texts[:2] + ([f"And {len(texts) - 2} more against the guideline."] if len(texts) > 2 else [])


def rule_input(answers: Answers) -> RuleInput:
    """The input of the rules for one annotator's answers."""
    regions = [region for values in answers.controls.values() for region in values if isinstance(region, Region)]
    answered = frozenset(
        name for (name, _), values in answers.controls.items() if values and not isinstance(values[0], Region)
    )
    answered |= frozenset(answers.uncompared)
    return RuleInput(tuple(regions), answered, answers.seconds, answers.unread_controls, answers.too_large)


def with_labels(annotation: RuleInput, labels: Sequence[str]) -> list[Region]:
    """The regions with one of the labels; all without labels."""
    return [region for region in annotation.regions if not labels or set(region.labels) & set(labels)]


_POINTS = {"keypointlabels", "keypoint"}


def _pairs(regions: Sequence[Region]) -> Iterator[tuple[Region, Region, float]]:
    for index, other, iou in _overlaps(regions, regions):
        if index < other and _same_image(regions[index], regions[other]):
            yield regions[index], regions[other], iou


def _overlaps(a: Sequence[Region], b: Sequence[Region]) -> Iterator[tuple[int, int, float]]:
    """Yield (index in a, index in b, IoU) of overlapping regions, in order.

    Raises:
        TooLargeToJudge: Too many pairs overlap.
    """
    pairs = iou_pairs([region.geometry for region in a], [region.geometry for region in b])
    yield from zip(pairs.rows.tolist(), pairs.columns.tolist(), pairs.values.tolist(), strict=True)


def _touching(a: Sequence[Region], b: Sequence[Region]) -> set[int]:
    """Indices of the regions in ``a`` that touch a region in ``b`` on the same image.

    Raises:
        TooLargeToJudge: Too many pairs may touch.
    """
    if not a or not b:
        return set()
    shapes = [np.array([_shape(region) for region in regions], dtype=object) for regions in (a, b)]
    image_ids: dict[tuple[str, int], int] = {}
    images = [
        np.array([image_ids.setdefault(_image_of(region), len(image_ids)) for region in regions]) for regions in (a, b)
    ]
    index_in_b = {id(region): index for index, region in enumerate(b)}
    own_index = np.array([index_in_b.get(id(region), -1) for region in a])
    touches = np.zeros(len(a), dtype=bool)
    pair_count = 0
    for rows, columns in intersecting_boxes(*(np.nan_to_num(shapely.bounds(outlines)) for outlines in shapes)):
        candidates = (images[0][rows] == images[1][columns]) & (own_index[rows] != columns)
        rows, columns = rows[candidates], columns[candidates]  # noqa: PLW2901 - same image, not the same region
        pair_count += len(rows)
        if pair_count > MAX_PAIRS:
            raise TooLargeToJudge(f"more than {MAX_PAIRS:,} pairs of its regions may touch")
        touches[rows[shapely.intersects(shapes[0][rows], shapes[1][columns])]] = True
    return set(np.flatnonzero(touches).tolist())


def _shape(region: Region) -> Any:
    outline = region.geometry.polygon()
    if not outline.is_empty or isinstance(region.geometry, Polygon):
        return outline
    left, top, right, bottom = region.geometry.bounds  # points and open lines have no area
    return shapely.box(left, top, right, bottom)


def _same_image(a: Region, b: Region) -> bool:
    return _image_of(a) == _image_of(b)


def _image_of(region: Region) -> tuple[str, int]:
    return region.to_name, region.item_index


def _region_text(region: Region) -> str:
    return f"{_region_name(region)} {position_text(bounds_of(region), region.item_index)}"


def _region_name(region: Region) -> str:
    return region_name(region.labels, shape_word(region))


def _either(labels: Sequence[str]) -> str:
    return " or ".join(labels)
