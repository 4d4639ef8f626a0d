"""The policy of a project: when annotators agree, who is asked, what is reviewed, what quality control may change."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from qc_webhooks.agreement import Comparison, Tolerance
from qc_webhooks.agreement.compare import control_name
from qc_webhooks.errors import PolicyError, PolicyFault
from qc_webhooks.policy.guideline_rules import EFFECTS, RULES, Rule

OVERALL = "overall"

# How an agreement is held against the number of a review route.
OPERATORS: Mapping[str, Any] = {
    "lt": lambda value, threshold: value < threshold - 1e-9,
    "lte": lambda value, threshold: value <= threshold + 1e-9,
    "gt": lambda value, threshold: value > threshold + 1e-9,
    "gte": lambda value, threshold: value >= threshold - 1e-9,
    "eq": lambda value, threshold: abs(value - threshold) <= 1e-9,
}


@dataclass(frozen=True)
class ControlPolicy:
    """What holds for one control.

    Attributes:
        agreement: What two annotators must reach on this control; None: the policy's, where every control must.
        weight: How much it counts in the overall agreement; 0: not at all.
    """

    agreement: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class ReviewRoute:
    """Which agreed tasks go to a reviewer. The first route that holds for a task decides.

    Attributes:
        dimension: ``overall`` or the name of a control.
        operator: Key of OPERATORS.
        threshold: What the task's mean agreement on that is held against.
        share: Of the tasks that it holds for, how many are reviewed, drawn by their number.
    """

    dimension: str = OVERALL
    operator: str = "lt"
    threshold: float = 1.0
    share: float = 1.0


@dataclass(frozen=True)
class Policy:
    """What quality control decides by. Every field is a setting of ``policy.toml``; the docstring is its help.

    Attributes:
        agreement: Two annotators agree on a task when their agreement reaches this, 0 to 1.
        every_control: Whether each control must reach ``agreement``, not only the mean over the controls.
        match_iou: Two regions are the same object when their shapes overlap at least this much (IoU), above 0 to 1.
        near_iou: Regions that are no match but overlap at least this much are named "low overlap" instead of
            "missing" and "extra", above 0 and below ``match_iou``.
        annotators: How many annotators a verdict needs, at least 2.
        max_annotators: Up to how many annotators a task is sent to, at least ``annotators``.
        least_gain: Another annotator is asked while further ones, up to the maximum, can be expected to put at least so
            many errors of the task's consensus right, 0 to 1.
        set_maximum_annotations: Whether ``connect`` raises the project's ``maximum_annotations`` to ``annotators``.
            It multiplies the work of every task; without it, agreement is measured where two submit. Label Studio
            then gives every task with an overlap above 1 the new number.
        raise_overlap: Whether a task that Label Studio serves to fewer than ``annotators`` is served to as many. A task
            that was made by a single call of its API has an overlap of 1.
        adjudicate: Whether what waits for a reviewer gets overlays: one prediction a stance and a proposed consensus,
            which the reviewer accepts or corrects. Every user of the project sees them.
        review_share: Of the agreed tasks that no route of ``review`` holds for, how many are reviewed, 0 to 1.
        ground_truth_share: How much of an annotator's stream are tasks whose ground truth is known, to measure the
            annotator by, 0 to 0.5; 0: none are served for that.
        ground_truth_first: So many tasks with a ground truth come first of all to an annotator who is new, where
            ``ground_truth_share`` is above 0.
        review_not_judged: Whether a task that cannot be judged, because an annotation cannot be read whole or a control
            cannot be compared, goes to a reviewer.
        review_project: Whether what waits for a reviewer is copied into a review project of its own, where a label
            stream serves it with the proposed consensus filled in.
        least_model_score: An agreed task whose pre-label has a lower score is reviewed; 0: none is.
        least_model_agreement: An agreed task whose pre-label agrees less with the annotators is reviewed; 0: none is.
        least_model_doubt: A task that nobody disputes, one annotator's too, is reviewed where the model is at least so
            sure that something is wrong with it (``qc_model_score``); 0: none is.
        controls: What holds for single controls: tables ``[controls.NAME]``.
        review: Which agreed tasks are reviewed: tables ``[[review]]``, in their order.
        rules: What the guideline asks of every annotation: tables ``[[rules]]``.
    """

    agreement: float = 0.7
    every_control: bool = True
    match_iou: float = 0.5
    near_iou: float = 0.1
    annotators: int = 2
    max_annotators: int = 3
    least_gain: float = 0.003
    set_maximum_annotations: bool = False
    raise_overlap: bool = False
    adjudicate: bool = True
    review_share: float = 0.0
    ground_truth_share: float = 0.0
    ground_truth_first: int = 0
    review_not_judged: bool = True
    review_project: bool = False
    least_model_score: float = 0.0
    least_model_agreement: float = 0.0
    least_model_doubt: float = 0.0
    controls: Mapping[str, ControlPolicy] = field(default_factory=dict)
    review: tuple[ReviewRoute, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if faults := [PolicyFault("policy", *fault) for fault in range_faults(self)]:
            raise PolicyError(faults)

    @property
    def tolerance(self) -> Tolerance:
        """What counts as the same region."""
        return Tolerance(match_iou=self.match_iou, near_iou=self.near_iou)

    @property
    def weights(self) -> dict[str, float]:
        """How much each control counts, where that is not 1."""
        return {name: each.weight for name, each in self.controls.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """What two annotators must reach on single controls."""
        return {name: each.agreement for name, each in self.controls.items() if each.agreement is not None}

    def weighs(self, control: str) -> bool:
        """Whether what is answered to a control decides whether two agree."""
        own = self.controls.get(control)
        return own is None or own.weight > 0 or own.agreement is not None

    def weighed(self, pair: Comparison) -> Comparison:
        """The comparison without the controls that cannot be compared and need not be."""
        return replace(pair, unjudged=tuple(name for name in pair.unjudged if self.weighs(name)))

    def agrees(self, pair: Comparison) -> bool:
        """Whether two annotators agree on a task; what cannot be compared is no agreement (see ``weighed``)."""
        return not pair.unjudged and self._agree(pair)

    def may_agree(self, pair: Comparison) -> bool:
        """Whether two annotators agree on a task if they answered alike what cannot be compared."""
        if "" in pair.unjudged:
            return True
        own = self.weights
        alike = sum(own.get(name, 1.0) for name in pair.unjudged)
        known = sum(own.get(control_name(name), 1.0) for name in pair.controls)
        total = alike + known
        return self._agree(replace(pair, overall=(pair.overall * known + alike) / total) if total else pair)

    def _agree(self, pair: Comparison) -> bool:
        own = self.thresholds
        # What counts for nothing must not keep two from agreeing either, unless it has a threshold of its own.
        own |= {name: 0.0 for name, each in self.controls.items() if not each.weight and each.agreement is None}
        return pair.agrees(self.agreement, every_control=self.every_control, controls=own)


def describe_policy() -> list[tuple[str, Any, str]]:
    """Every setting with its default and what it means, for the docs and the command line."""
    text = (Policy.__doc__ or "").split("Attributes:")[1]
    helps: dict[str, str] = {}
    name = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        head, colon, rest = line.partition(": ")
        if colon and head in asdict(Policy()):
            name, helps[head] = head, rest
        else:
            helps[name] += f" {line}"
    defaults = Policy()
    return [(each.name, getattr(defaults, each.name), helps[each.name]) for each in fields(Policy)]


Fault = tuple[str, str]
"""A setting, and what is wrong with it."""


def range_faults(policy: Policy) -> Iterator[Fault]:
    """Every value that is not in its range."""
    share, above = "must be from 0 to 1", "must be above 0 and at most 1"
    ranges = (
        ("agreement", 0 < policy.agreement <= 1, above),
        ("match_iou", 0 < policy.match_iou <= 1, above),
        ("near_iou", 0 < policy.near_iou <= policy.match_iou, f"{above[:-1]}match_iou ({policy.match_iou})"),
        ("least_gain", 0 < policy.least_gain <= 1, above),
        ("annotators", policy.annotators >= 2, "must be at least 2: one annotator has nobody to disagree with"),
        ("max_annotators", policy.max_annotators >= policy.annotators, f"must be at least annotators ({policy.annotators})"),  # noqa: E501 - a table
        ("review_share", 0 <= policy.review_share <= 1, share),
        ("ground_truth_share", 0 <= policy.ground_truth_share <= 0.5, "must be from 0 to 0.5"),
        ("ground_truth_first", policy.ground_truth_first >= 0, "must be 0 or more"),
        ("least_model_score", 0 <= policy.least_model_score <= 1, share),
        ("least_model_agreement", 0 <= policy.least_model_agreement <= 1, share),
        ("least_model_doubt", 0 <= policy.least_model_doubt <= 1, share),
    )  # fmt: skip
    for name, right, reason in ranges:
        if not right:
            yield name, f"{reason}, not {getattr(policy, name)!r}"
    for name, each in policy.controls.items():
        if each.agreement is not None and not 0 <= each.agreement <= 1:
            yield f"controls.{name}.agreement", f"{share}, not {each.agreement!r}"
        if not 0 <= each.weight < float("inf"):
            yield f"controls.{name}.weight", f"must be 0 or more, not {each.weight!r}"
    for place, route in enumerate(policy.review, start=1):
        yield from _route_faults(route, f"review[{place}]")
    for place, rule in enumerate(policy.rules, start=1):
        yield from _rule_faults(rule, f"rules[{place}]")


def _route_faults(route: ReviewRoute, name: str) -> Iterator[Fault]:
    if route.operator not in OPERATORS:
        yield f"{name}.operator", f"must be one of {', '.join(OPERATORS)}, not {route.operator!r}"
    for key in ("threshold", "share"):
        if not 0 <= getattr(route, key) <= 1:
            yield f"{name}.{key}", f"must be from 0 to 1, not {getattr(route, key)!r}"


def _rule_faults(rule: Rule, name: str) -> Iterator[Fault]:
    check = RULES.get(rule.rule)
    if check is None:
        yield f"{name}.rule", f"must be one of {', '.join(RULES)}, not {rule.rule!r}"
        return
    if rule.effect not in EFFECTS:
        yield f"{name}.effect", f"must be warn or block, not {rule.effect!r}"
    given = {key for key in ("value", "labels", "others", "control") if getattr(rule, key) not in (None, (), "")}
    for key in check.needs:
        if key not in given:
            yield f"{name}.{key}", f"is missing: {rule.rule} needs {' and '.join(check.needs)}"
    for key in sorted(given - {*check.needs, *check.takes}):
        yield f"{name}.{key}", f"{rule.rule} knows no such key"
    if rule.value is not None and not 0 <= rule.value < float("inf"):
        yield f"{name}.value", f"must be 0 or more, not {rule.value!r}"
