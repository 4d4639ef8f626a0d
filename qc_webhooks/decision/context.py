"""The values that routes decide by, and the actions that they return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qc_webhooks.artifacts.overlays import Overlay, OverlayKey
from qc_webhooks.artifacts.review_copy import ReviewCopy, ReviewCopyContent, ReviewDecision
from qc_webhooks.decision.expected_gain import ExpectedGain
from qc_webhooks.decision.ground_truth_sampling import RequestedOverlap
from qc_webhooks.decision.send_backs import SEND_BACK_KEYS, SendBack, State, state_of
from qc_webhooks.decision.truth_doubts import TruthDoubt
from qc_webhooks.policy import Policy
from qc_webhooks.policy.guideline_rules import Violation
from qc_webhooks.verdict.verdict import TaskVerdict

# Our keys in a task's data. Label Studio filters and sorts by flat data keys only.
KEYS = ("qc_status", "qc_agreement", "qc_annotators", "qc_note", "qc_review", *SEND_BACK_KEYS)


@dataclass(frozen=True)
class LastDecision:
    """The last decision on a task and what was written for it.

    Attributes:
        fingerprint: Fingerprint of its inputs: the annotations' versions and the policy.
        keys: The qc_* keys as written; None: never written.
        asked_overlap: The overlap that we set; None: none, or reverted.
        asked_at: Number of annotators when it was set.
        found_overlap: The overlap before our first change.
        overlay: Fingerprint of the state whose overlays are final: they are not written or removed again for it.
            None: there were none, or they could not be written yet.
    """

    fingerprint: str
    keys: Mapping[str, Any] | None = None
    asked_overlap: int | None = None
    asked_at: int | None = None
    found_overlap: int | None = None
    overlay: str | None = None


@dataclass(frozen=True)
class TaskState:
    """The stored state of the task, and the last decision on it.

    Attributes:
        data: The task's data as stored (URIs not resolved).
        overlap: Number of annotators that Label Studio waits for.
        is_labeled: Whether Label Studio considers the task finished and serves it to no one.
        fingerprint: Fingerprint of the annotations' versions and the policy.
        last_decision: The last decision; None: the first check of the task.
        requested_overlap: With a ground truth: the overlap that annotators are measured with.
    """

    data: Mapping[str, Any]
    overlap: int
    is_labeled: bool
    fingerprint: str
    last_decision: LastDecision | None = None
    requested_overlap: RequestedOverlap = field(default_factory=RequestedOverlap)

    @property
    def overlap_is_ours(self) -> bool:
        """Whether the overlap is the one that we set last, or we never set one."""
        requested = self.last_decision.asked_overlap if self.last_decision else None
        return requested is None or requested == self.overlap

    @property
    def has_changed(self) -> bool:
        """Whether the annotations or the policy changed since the last decision."""
        return self.last_decision is None or self.last_decision.fingerprint != self.fingerprint

    @property
    def overlays_are_final(self) -> bool:
        """Whether the overlays were written for this state. Overlays that a user removed since stay removed."""
        return self.last_decision is not None and self.last_decision.overlay == self.fingerprint


@dataclass(frozen=True)
class Assessment:
    """The verdict on the task under the project's policy.

    Attributes:
        verdict: Verdict on the task.
        policy: The project's policy.
        violations: Violations of the guideline.
        reasons: Reasons for a review beyond disagreement, one sentence each.
        expected_gain: Expected gain of a further annotator; None: unknown, and a dispute is worth one.
        truth_doubts: Doubts about the task's ground truths.
        explanations: Why annotators differ in such conflicts, one sentence each (diagnoses of the project).
    """

    verdict: TaskVerdict
    policy: Policy
    violations: tuple[Violation, ...] = ()
    reasons: tuple[str, ...] = ()
    expected_gain: ExpectedGain | None = None
    truth_doubts: tuple[TruthDoubt, ...] = ()
    explanations: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReviewState:
    """The review of the task: overlays on the task itself, and its copy in the review project.

    Attributes:
        accepted: The annotation that a reviewer submitted from an overlay or in the review project; None: none.
        overlays: The overlays on the task, oldest first.
        proposed_overlays: The overlays to write, in this order; None: write none now.
        has_project: Whether there is a review project for copies.
        copy: The copy in it; None: none.
        decision: What a reviewer submitted on the copy; None: nothing yet.
        is_imported: Whether the decision is on the task already.
        copy_content: The content to write to the copy; None: write none now.
        send_backs: Annotators that a reviewer sent the task back to, with their current state.
    """

    accepted: int | None = None
    overlays: tuple[OverlayKey, ...] = ()
    proposed_overlays: tuple[Overlay, ...] | None = None
    has_project: bool = False
    copy: ReviewCopy | None = None
    decision: ReviewDecision | None = None
    is_imported: bool = False
    copy_content: ReviewCopyContent | None = None
    send_backs: tuple[SendBack, ...] = ()

    @property
    def send_back_state(self) -> State | None:
        """State of the annotator who is behind; None if the task was never sent back."""
        return state_of(self.send_backs)


@dataclass(frozen=True)
class RoutingContext:
    """The input of every route.

    Attributes:
        task: The task as stored.
        assessment: Verdict and policy.
        review: State of the review.
    """

    task: TaskState
    assessment: Assessment
    review: ReviewState = field(default_factory=ReviewState)

    @property
    def verdict(self) -> TaskVerdict:
        """The verdict on the task."""
        return self.assessment.verdict

    @property
    def policy(self) -> Policy:
        """The project's policy."""
        return self.assessment.policy

    @property
    def was_requested(self) -> bool:
        """Whether one more annotator was requested at this number of annotators. A user may have reverted it since."""
        last = self.task.last_decision
        return last is not None and last.asked_at == self.verdict.annotators

    @property
    def copy_is_final(self) -> bool:
        """Whether the copy was written for this state. Parts that a user removed since stay removed."""
        return self.review.copy is not None and self.review.copy.fingerprint == self.task.fingerprint


@dataclass(frozen=True)
class Action:
    """What one route changes in the task.

    Attributes:
        route: Its key in ROUTES.
        reason: The reason, for the log.
        keys: qc_* keys to set in the task's data.
        overlap: The overlap to set, always with ``is_labeled``: otherwise Label Studio serves the task to no one.
        is_labeled: Whether the task is finished.
        ground_truth: The annotation to mark as ground truth.
        overlays: The overlays that the task is to have, in the order to write them; None: no change.
        imported_decision: A reviewer's decision from the review project, to add to the task.
        copy_content: The content of the copy in the review project; without overlays: remove the copy.
    """

    route: str
    reason: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    overlap: int | None = None
    is_labeled: bool | None = None
    ground_truth: int | None = None
    overlays: tuple[Overlay, ...] | None = None
    imported_decision: ReviewDecision | None = None
    copy_content: ReviewCopyContent | None = None

    @property
    def changes_verdict(self) -> bool:
        """Whether the action changes the annotations, so that the task must be judged again."""
        return self.ground_truth is not None or self.imported_decision is not None
