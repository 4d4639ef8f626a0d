"""All that is known of a task when it is decided what to do about it, and what one route wants done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qc_webhooks.artifacts.overlays import Mark, Overlay
from qc_webhooks.artifacts.review_copy import Copy, Decision, ReviewCopyContent
from qc_webhooks.decision.expected_gain import ExpectedGain
from qc_webhooks.decision.ground_truth_sampling import RequestedOverlap
from qc_webhooks.policy import Policy
from qc_webhooks.policy.guideline_rules import Violation
from qc_webhooks.verdict.verdict import Verdict

# The flat keys of a task's data that are ours. Label Studio filters and sorts by flat data keys only.
KEYS = ("qc_status", "qc_agreement", "qc_annotators", "qc_note", "qc_review")


@dataclass(frozen=True)
class LastDecision:
    """What we decided last about a task and left behind in it.

    Attributes:
        fingerprint: What that verdict was drawn from: the annotations' versions and the policy.
        keys: The qc_* keys as we wrote them; None: we never wrote any.
        asked_overlap: The overlap that we set; None: none, or taken back.
        asked_at: How many annotators the task had then.
        found_overlap: The overlap before we changed it first.
        overlay: The fingerprint that the overlays were settled for: for that state nothing is written or removed
            again. None: there were to be none, or they could not be written yet.
    """

    fingerprint: str
    keys: Mapping[str, Any] | None = None
    asked_overlap: int | None = None
    asked_at: int | None = None
    found_overlap: int | None = None
    overlay: str | None = None


@dataclass(frozen=True)
class RoutingContext:
    """All that a route decides by.

    Attributes:
        data: The task's data as stored (raw URIs).
        overlap: How many annotators Label Studio waits for.
        is_labeled: Whether Label Studio takes the task for finished and serves it to nobody.
        verdict: What was found.
        policy: The project's policy.
        fingerprint: What the verdict was drawn from.
        memory: What we did before; None: nothing.
        accepted: The annotation that a reviewer made from an overlay, or in the review project; None: nobody did.
        held: The overlays that the task holds, the oldest first.
        wanted: The overlays that it is to hold, in the order of writing; None: they are not to be written now.
        broken: What breaks the guideline.
        reasons: Why a reviewer is to look at it although its annotators agree, each in a sentence.
        outlook: What a further annotator would bring to the consensus; None: not known, and a dispute is worth it.
        wish: With a ground truth: the overlap that it is to have, so that annotators are measured by it.
        desk: Whether there is a review project to copy what waits for a reviewer into.
        copy: The copy in it; None: there is none.
        decision: What a reviewer submitted to the copy; None: nothing yet.
        is_brought: Whether the task holds it already.
        sheet: What the copy is to hold; None: it is not to be written now.
    """

    data: Mapping[str, Any]
    overlap: int
    is_labeled: bool
    verdict: Verdict
    policy: Policy
    fingerprint: str
    memory: LastDecision | None = None
    accepted: int | None = None
    held: tuple[Mark, ...] = ()
    wanted: tuple[Overlay, ...] | None = None
    broken: tuple[Violation, ...] = ()
    reasons: tuple[str, ...] = ()
    outlook: ExpectedGain | None = None
    wish: RequestedOverlap = field(default_factory=RequestedOverlap)
    desk: bool = False
    copy: Copy | None = None
    decision: Decision | None = None
    is_brought: bool = False
    sheet: ReviewCopyContent | None = None

    @property
    def overlap_is_ours(self) -> bool:
        """Whether nobody touched the overlap since we set it, or we never did."""
        asked = self.memory.asked_overlap if self.memory else None
        return asked is None or asked == self.overlap

    @property
    def is_news(self) -> bool:
        """Whether the annotations or the policy changed since our last verdict."""
        return self.memory is None or self.memory.fingerprint != self.fingerprint

    @property
    def already_asked(self) -> bool:
        """Whether we asked for one more annotator than there are now. A human who undid it since has the last word."""
        return self.memory is not None and self.memory.asked_at == self.verdict.annotators

    @property
    def overlays_stand(self) -> bool:
        """Whether the overlays were settled for this very state. What a human removed of them since stays removed."""
        return self.memory is not None and self.memory.overlay == self.fingerprint

    @property
    def copy_stands(self) -> bool:
        """Whether the copy was made for this very state. What a human removed of it since stays removed."""
        return self.copy is not None and self.copy.fingerprint == self.fingerprint


@dataclass(frozen=True)
class Action:
    """What one route wants changed in the task.

    Attributes:
        route: Its key in ROUTES.
        reason: Why, for the log.
        keys: qc_* keys to set in the task's data.
        overlap: The overlap to set; ``is_labeled`` always goes with it, or Label Studio serves the task to nobody.
        is_labeled: Whether the task is finished.
        ground_truth: The annotation to mark as the ground truth.
        overlays: The overlays that the task is to hold, in the order of writing; None: they stay as they are.
        bring: What a reviewer submitted in the review project, to be added to the task.
        sheet: What the copy in the review project is to hold; a sheet without overlays: there is to be none.
    """

    route: str
    reason: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    overlap: int | None = None
    is_labeled: bool | None = None
    ground_truth: int | None = None
    overlays: tuple[Overlay, ...] | None = None
    bring: Decision | None = None
    sheet: ReviewCopyContent | None = None

    @property
    def decides(self) -> bool:
        """Whether the task is another one with it, and is to be judged again."""
        return self.ground_truth is not None or self.bring is not None
