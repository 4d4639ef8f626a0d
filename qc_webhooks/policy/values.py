"""The policy of a project: when annotators agree, who is asked, what is reviewed, what quality control may change."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from msgspec.structs import replace

from qc_webhooks.agreement import Comparison, Tolerance
from qc_webhooks.agreement.compare import control_name, mean_agreement
from qc_webhooks.errors import PolicyError, PolicyFault
from qc_webhooks.policy.conflict_rules import ConflictPolicy, conflict_faults
from qc_webhooks.policy.guideline_rules import EFFECTS, RULES, Rule

OVERALL = "overall"

# Comparisons of an agreement with the threshold of a review route.
OPERATORS: Mapping[str, Any] = {
    "lt": lambda value, threshold: value < threshold - 1e-9,
    "lte": lambda value, threshold: value <= threshold + 1e-9,
    "gt": lambda value, threshold: value > threshold + 1e-9,
    "gte": lambda value, threshold: value >= threshold - 1e-9,
    "eq": lambda value, threshold: abs(value - threshold) <= 1e-9,
}


@dataclass(frozen=True)
class ControlPolicy:
    """Settings of one control.

    Attributes:
        agreement: Minimum agreement of two annotators on this control; None: the policy's ``agreement`` if
            ``every_control`` is set.
        weight: Weight in the overall agreement; 0: excluded.
    """

    agreement: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class ReviewRoute:
    """Sends a share of the agreed tasks to a reviewer. The first route that matches a task decides.

    Attributes:
        dimension: ``overall`` or the name of a control.
        operator: Key of OPERATORS.
        threshold: Compared with the task's mean agreement on that dimension.
        share: Share of the matching tasks to review, selected by a hash of the task id.
    """

    dimension: str = OVERALL
    operator: str = "lt"
    threshold: float = 1.0
    share: float = 1.0


@dataclass(frozen=True)
class Policy:
    """The settings of quality control. Every field is a setting of ``policy.toml``; this docstring is its help.

    Attributes:
        agreement: Two annotators agree on a task when their agreement reaches this value, above 0 to 1.
        every_control: Whether each control must reach ``agreement``, not only the mean over the controls.
        match_iou: Two regions are the same object when their shapes overlap at least this much (IoU), above 0 to 1.
        near_iou: Unmatched regions that overlap at least this much are reported as "low overlap" instead of
            "missing" and "extra", above 0 and at most ``match_iou``.
        annotators: Number of annotators that a verdict needs, at least 2.
        max_annotators: Maximum number of annotators per task, at least ``annotators``.
        least_gain: One more annotator is requested while further annotators, up to the maximum, are expected to
            correct at least this many errors of the task's consensus, above 0 to 1.
        set_maximum_annotations: Whether ``connect`` raises the project's ``maximum_annotations`` to ``annotators``.
            This multiplies the work of every task; without it, agreement is measured where two submit. Label Studio
            then applies the new number to every task with an overlap above 1.
        raise_overlap: Whether a task that Label Studio serves to fewer than ``annotators`` is served to that many. A
            task created by a single API call has an overlap of 1.
        adjudicate: Whether tasks that wait for a reviewer get overlays: one prediction per group of annotators and a
            proposed consensus, which the reviewer accepts or corrects. Every user of the project sees them.
        review_share: Share of the agreed tasks that match no route of ``review`` to review, 0 to 1.
        ground_truth_share: Share of tasks with a known ground truth in each annotator's work, to measure the
            annotator, 0 to 0.5; 0: none are served for that.
        ground_truth_first: Number of tasks with a ground truth that a new annotator gets first, if
            ``ground_truth_share`` is above 0.
        review_not_judged: Whether a task that cannot be judged, because an annotation cannot be read completely or a
            control cannot be compared, goes to a reviewer.
        review_project: Whether tasks that wait for a reviewer are copied into a review project, where a label stream
            serves them with the proposed consensus filled in.
        least_model_score: Agreed tasks whose pre-label has a lower score are reviewed; 0: none.
        least_model_agreement: Agreed tasks whose pre-label agrees less with the annotators are reviewed; 0: none.
        least_model_doubt: Undisputed tasks, also with a single annotator, are reviewed if the model's probability
            that something is wrong (``qc_model_score``) reaches this value; 0: none.
        model_voice: Whether the model is one more voice of the consensus, where its prediction is older than every
            annotation of the task and no annotator started from a prediction. It is no annotator: it counts in no
            agreement, no number of annotators and no reliability.
        conflicts: Which conflicts about single objects make a dispute: table ``[conflicts]``.
        controls: Settings of single controls: tables ``[controls.NAME]``.
        review: Review routes for agreed tasks: tables ``[[review]]``, in order.
        rules: Rules of the labeling guideline: tables ``[[rules]]``.
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
    model_voice: bool = True
    conflicts: ConflictPolicy = field(default_factory=ConflictPolicy)
    controls: Mapping[str, ControlPolicy] = field(default_factory=dict)
    review: tuple[ReviewRoute, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if faults := [PolicyFault("policy", *fault) for fault in range_faults(self)]:
            raise PolicyError(faults)

    @cached_property
    def tolerance(self) -> Tolerance:
        """Thresholds for the same region."""
        pixels = self.conflicts.pixels if self.conflicts.by_objects else 0.0
        return Tolerance(match_iou=self.match_iou, near_iou=self.near_iou, pixels=pixels)

    @cached_property
    def weights(self) -> dict[str, float]:
        """Weight by control, for the controls with settings."""
        return {name: control.weight for name, control in self.controls.items()}

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Minimum agreement by control, where it is set."""
        return {name: control.agreement for name, control in self.controls.items() if control.agreement is not None}

    def counts(self, control: str) -> bool:
        """Whether answers to a control affect whether two annotators agree."""
        own = self.controls.get(control)
        return own is None or own.weight > 0 or own.agreement is not None

    def without_uncounted(self, pair: Comparison) -> Comparison:
        """The comparison without unjudged controls that have no weight."""
        if all(map(self.counts, pair.unjudged)):
            return pair
        return replace(pair, unjudged=tuple(name for name in pair.unjudged if self.counts(name)))

    def agrees(self, pair: Comparison) -> bool:
        """Whether two annotators agree; an uncompared control counts as disagreement (see ``without_uncounted``)."""
        return not pair.disputed and self.agrees_by_mean(pair)

    def agrees_by_mean(self, pair: Comparison) -> bool:
        """Whether the mean agreements of two annotators suffice, whatever single objects they dispute."""
        return not pair.unjudged and self._agree(pair)

    def may_agree(self, pair: Comparison) -> bool:
        """Whether the mean agreements of two annotators would suffice if their uncompared answers were equal."""
        if "" in pair.unjudged:
            return True
        pair = self._deciding(pair)
        weights = self.weights
        unjudged_weight = sum(weights.get(name, 1.0) for name in pair.unjudged)
        judged_weight = sum(weights.get(control_name(name), 1.0) for name in pair.controls)
        total = unjudged_weight + judged_weight
        return self._agree(
            replace(pair, overall=(pair.overall * judged_weight + unjudged_weight) / total) if total else pair
        )

    @cached_property
    def _effective_thresholds(self) -> dict[str, float]:
        """Minimum agreement by control; one without weight cannot prevent agreement, unless it has a threshold."""
        without_weight = (
            name for name, control in self.controls.items() if not control.weight and control.agreement is None
        )
        return self.thresholds | dict.fromkeys(without_weight, 0.0)

    def _agree(self, pair: Comparison) -> bool:
        return self._deciding(pair).agrees(
            self.agreement, every_control=self.every_control, controls=self._effective_thresholds
        )

    def _deciding(self, pair: Comparison) -> Comparison:
        """The comparison with the agreements that decide, where they differ from the measured ones."""
        if pair.deciding is None:
            return pair
        return Comparison(pair.a, pair.b, pair.deciding, mean_agreement(pair.deciding, self.weights), pair.unjudged)


def describe_policy() -> list[tuple[str, Any, str]]:
    """(name, default, help) of every setting, for the docs and the command line."""
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
    return [(setting.name, getattr(defaults, setting.name), helps[setting.name]) for setting in fields(Policy)]


# (setting, what is wrong with it).
Fault = tuple[str, str]


def range_faults(policy: Policy) -> Iterator[Fault]:
    """Yield the settings that are out of range."""
    share, above, at_least = "must be from 0 to 1", "must be above 0 and at most 1", "must be at least"
    ranges = (
        ("agreement", 0 < policy.agreement <= 1, above),
        ("match_iou", 0 < policy.match_iou <= 1, above),
        ("near_iou", 0 < policy.near_iou <= policy.match_iou, f"{above[:-1]}match_iou ({policy.match_iou})"),
        ("least_gain", 0 < policy.least_gain <= 1, above),
        ("annotators", policy.annotators >= 2, "must be at least 2: a verdict compares annotators"),
        ("max_annotators", policy.max_annotators >= policy.annotators, f"{at_least} annotators ({policy.annotators})"),
        ("review_share", 0 <= policy.review_share <= 1, share),
        ("ground_truth_share", 0 <= policy.ground_truth_share <= 0.5, "must be from 0 to 0.5"),
        ("ground_truth_first", policy.ground_truth_first >= 0, "must be 0 or more"),
        ("least_model_score", 0 <= policy.least_model_score <= 1, share),
        ("least_model_agreement", 0 <= policy.least_model_agreement <= 1, share),
        ("least_model_doubt", 0 <= policy.least_model_doubt <= 1, share),
    )  # fmt: skip
    for name, is_valid, reason in ranges:
        if not is_valid:
            yield name, f"{reason}, not {getattr(policy, name)!r}"
    for name, control in policy.controls.items():
        if control.agreement is not None and not 0 <= control.agreement <= 1:
            yield f"controls.{name}.agreement", f"{share}, not {control.agreement!r}"
        if not 0 <= control.weight < float("inf"):
            yield f"controls.{name}.weight", f"must be 0 or more, not {control.weight!r}"
    yield from conflict_faults(policy.conflicts)
    for index, route in enumerate(policy.review, start=1):
        yield from _route_faults(route, f"review[{index}]")
    for index, rule in enumerate(policy.rules, start=1):
        yield from _rule_faults(rule, f"rules[{index}]")


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
    used_keys = {key for key in ("value", "labels", "others", "control") if getattr(rule, key) not in (None, (), "")}
    for key in check.required_keys:
        if key not in used_keys:
            yield f"{name}.{key}", f"is missing: {rule.rule} needs {' and '.join(check.required_keys)}"
    for key in sorted(used_keys - {*check.required_keys, *check.optional_keys}):
        yield f"{name}.{key}", f"{rule.rule} knows no such key"
    if rule.value is not None and not 0 <= rule.value < float("inf"):
        yield f"{name}.value", f"must be 0 or more, not {rule.value!r}"
