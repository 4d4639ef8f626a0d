"""ROUTES: plan what a verdict changes in a task. Changes that a user made since the last check are left alone."""

from collections.abc import Callable, Mapping
from typing import Any

from qc_webhooks.artifacts.review_copy import ReviewCopyContent
from qc_webhooks.decision.context import KEYS, Action, RoutingContext
from qc_webhooks.decision.expected_gain import ExpectedGain
from qc_webhooks.decision.review_reasons import BLOCKED, is_for_review
from qc_webhooks.decision.send_backs import SEND_BACK_KEYS, note_sentences, send_back_keys
from qc_webhooks.policy.guideline_rules import describe_violations
from qc_webhooks.verdict.note import write_note

Route = Callable[[RoutingContext], Action | None]


def import_review_decision(context: RoutingContext) -> Action | None:
    """Add a reviewer's annotation from the review project to the task, under the reviewer's name."""
    review = context.review
    if review.decision is None or review.is_imported:
        return None
    return Action("bring_back", "submitted in the review project", imported_decision=review.decision)


def accept(context: RoutingContext) -> Action | None:
    """Mark the annotation that a reviewer made from an overlay or in the review project as ground truth.

    Label Studio has no button for it. An existing ground truth, set by a user or by us, is kept.
    """
    if context.review.accepted is None or context.verdict.ground_truth is not None:
        return None
    return Action("accept", "submitted by a reviewer", ground_truth=context.review.accepted)


def raise_overlap(context: RoutingContext) -> Action | None:
    """Raise the overlap to the number of annotators that a verdict needs, if the policy asks for it.

    Done once: an overlap that a user lowers afterwards stays.
    """
    policy, task = context.policy, context.task
    if not policy.raise_overlap or context.verdict.outcome != "waiting" or task.overlap >= policy.annotators:
        return None
    if task.last_decision is not None and task.last_decision.asked_overlap is not None:
        return None
    return Action("raise_overlap", f"served to {task.overlap} only", overlap=policy.annotators, is_labeled=False)


def one_more_annotator(context: RoutingContext) -> Action | None:
    """Request one more annotator, blind, where it is worth it, up to the policy's maximum.

    Label Studio serves a task to a further user while ``overlap`` is above the number of annotators and ``is_labeled``
    is false; both are set together. It never serves a task again to a user who annotated it.
    """
    verdict = context.verdict
    if not _may_request(context) or _is_served(context):
        return None
    return Action(
        "one_more_annotator",
        f"{verdict.outcome} by {verdict.annotators} annotators{_gain_text(context.assessment.expected_gain)}",
        overlap=max(verdict.annotators + 1, context.task.overlap),
        is_labeled=False,
    )


def seed(context: RoutingContext) -> Action | None:
    """Serve a task with a ground truth to the annotators to measure, and to no one else.

    They see only the image and the pre-label, as in every other task. While no annotator is to be measured the task is
    held back: it is resolved, and Label Studio would serve it before all others.
    """
    verdict, task, last = context.verdict, context.task, context.task.last_decision
    if not _measures_annotators(context) or not task.overlap_is_ours:
        return None
    overlap = max(task.requested_overlap.overlap or 0, verdict.annotators)
    is_served = overlap > verdict.annotators
    if task.is_labeled != is_served and (not is_served or task.overlap == overlap):
        return None
    if last is not None and last.asked_overlap == overlap == task.overlap:
        return None  # a user marked it as finished or unfinished since
    reason = f"measures {overlap - verdict.annotators} more" if is_served else "no annotator to measure now"
    return Action("seed", f"ground truth: {reason}", overlap=overlap, is_labeled=not is_served)


def withdraw(context: RoutingContext) -> Action | None:
    """Withdraw the request for an annotator that the task no longer needs, e.g. after a correction or a deletion."""
    verdict, task, last = context.verdict, context.task, context.task.last_decision
    if _measures_annotators(context):
        return None
    if is_worth_asking(context) or last is None or last.asked_overlap is None or last.found_overlap is None:
        return None
    if verdict.outcome == "disputed" or (context.was_requested and not task.has_changed):
        return None  # the reliability model changes over time; a request stands until the task changes
    overlap = (
        max(last.found_overlap, verdict.annotators)
        if verdict.outcome in {"agreed", "not_judged"}
        else last.found_overlap
    )
    if not task.overlap_is_ours or last.found_overlap <= task.overlap <= overlap:
        return None
    return Action("withdraw", f"{verdict.outcome} again", overlap=overlap, is_labeled=verdict.annotators >= overlap)


def send_back(context: RoutingContext) -> Action | None:
    """Show a task that was sent back to its annotator, and what became of it.

    Label Studio serves a task only once to a user, and Community has no comments: the annotator finds the task in a tab
    of the Data Manager, with the comment in a column and in the note, and changes the annotation there.
    """
    task, state = context.task, context.review.send_back_state
    keys = qc_keys(context)
    shown = {key: task.data.get(key) for key in SEND_BACK_KEYS}
    if state is None or not task.has_changed or shown == {key: keys[key] for key in SEND_BACK_KEYS}:
        return None
    last = context.review.send_backs[-1]
    reason = f"sent back to {last.name}: {last.comment}" if state == "sent back" else state
    return Action("send_back", reason, keys=keys)


def flag(context: RoutingContext) -> Action | None:
    """Write the verdict into the task's data, where the Data Manager shows, filters and sorts it.

    Before enough annotators submitted, nothing is written unless there are keys already: these must not stay outdated.
    """
    task, assessment = context.task, context.assessment
    current = {key: task.data[key] for key in KEYS if key in task.data}
    has_nothing_to_write = not (
        current or assessment.violations or assessment.reasons or context.review.send_backs
    )  # fmt: skip
    if context.verdict.annotators < context.policy.annotators and has_nothing_to_write:
        return None
    keys = qc_keys(context)
    if current == keys:
        return None
    written = task.last_decision.keys if task.last_decision else None
    if not task.has_changed and written is not None and current != written:
        return None  # a user changed our keys, and the annotations did not change since
    return Action("flag", context.verdict.outcome, keys=keys)


def overlay(context: RoutingContext) -> Action | None:
    """Show a dispute that waits for a reviewer as predictions, and remove them afterwards.

    All users see predictions, so they are written only after the last blind annotation.
    """
    review = context.review
    if not is_adjudicated(context):
        return Action("overlay", "waits for no reviewer", overlays=()) if review.overlays else None
    if context.task.overlays_are_final:
        return None
    overlays = review.proposed_overlays or ()  # without a current proposal, none is better than an outdated one
    if tuple(proposed.key for proposed in overlays) == review.overlays:
        return None
    return Action("overlay", "waits for a reviewer" if overlays else "out of date", overlays=overlays)


def copy(context: RoutingContext) -> Action | None:
    """Copy a task that waits for a reviewer into the review project, and remove the copy afterwards."""
    review = context.review
    if not is_copied(context):
        if review.copy is None:
            return None
        return Action("copy", "waits for no reviewer", copy_content=ReviewCopyContent())
    if context.copy_is_final or review.copy_content is None:
        return None
    return Action("copy", "waits for a reviewer", copy_content=review.copy_content)


# The order matters: an accepted annotation ends the dispute; otherwise requesting an annotator comes before a review.
ROUTES: Mapping[str, Route] = {
    "bring_back": import_review_decision,
    "accept": accept,
    "raise_overlap": raise_overlap,
    "one_more_annotator": one_more_annotator,
    "seed": seed,
    "withdraw": withdraw,
    "send_back": send_back,
    "flag": flag,
    "overlay": overlay,
    "copy": copy,
}


def plan(context: RoutingContext) -> tuple[Action, ...]:
    """Return the actions to take now; empty if the task is up to date.

    An action that changes the verdict comes last: the task must be judged again after it.
    """
    actions: list[Action] = []
    for route in ROUTES.values():
        action = route(context)
        if action is not None:
            actions.append(action)
            if action.changes_verdict:
                break
    return tuple(actions)


def qc_keys(context: RoutingContext) -> dict[str, Any]:
    """The qc_* keys of the verdict."""
    verdict = context.verdict
    # An annotator who is measured on the task must not see that it is resolved.
    note = ""
    if not _is_measuring(context):
        text = write_note(
            verdict, context.policy, expected_errors=_expected_errors(context), more=_further_sentences(context)
        )
        # What the annotator is to correct comes first; annotators who are still blind must not read it.
        sent_back = [] if _is_served(context) else note_sentences(context.review.send_backs)
        note = " ".join((*sent_back, text))
    return {
        "qc_status": verdict.outcome,
        "qc_agreement": None if verdict.agreement is None else round(verdict.agreement, 4),
        "qc_annotators": verdict.annotators,
        "qc_note": note,
        "qc_review": "yes" if needs_review(context) else "no",
        **send_back_keys(context.review.send_backs, context.task.data),
    }


def needs_review(context: RoutingContext) -> bool:
    """Whether the task waits for a reviewer and for no annotator.

    True for a dispute without a request for a further annotator, for a task that cannot be judged, and for one that the
    policy sends to review.
    """
    state = context.review.send_back_state
    if state == "sent back":
        return False  # its annotator is at work
    is_reviewable = state == "redone" or is_for_review(context.verdict, context.policy, context.assessment.reasons)
    return is_reviewable and not _may_request(context) and not _is_served(context)


def is_adjudicated(context: RoutingContext) -> bool:
    """Whether the task is shown to a reviewer with overlays."""
    return context.policy.adjudicate and context.verdict.ground_truth is None and needs_review(context)


def is_copied(context: RoutingContext) -> bool:
    """Whether the task is copied into the review project."""
    is_open = context.verdict.ground_truth is None and needs_review(context)
    return context.policy.review_project and context.review.has_project and is_open


# Conflict types that the expected gain covers. It does not cover others (how a shape is drawn): a dispute about these
# always gets a further annotator.
_COVERED_CONFLICTS = frozenset({"missing", "extra", "label", "choice", "empty", "duplicate"})


def is_worth_asking(context: RoutingContext) -> bool:
    """Whether a further annotator is worth it: the consensus is uncertain, and one more can resolve it."""
    verdict, gain = context.verdict, context.assessment.expected_gain
    if verdict.outcome in {"waiting", "not_judged"} or verdict.ground_truth is not None:
        return False  # for not_judged, a further annotation does not make the others readable
    disputed = verdict.outcome == "disputed"
    if gain is None:
        return disputed
    if gain.gain >= context.policy.least_gain:
        return disputed or gain.is_measured
    return disputed and any(
        conflict.type not in _COVERED_CONFLICTS or conflict.control not in gain.controls
        for conflict in verdict.conflicts
    )


def _measures_annotators(context: RoutingContext) -> bool:
    """Whether the policy uses the task to measure annotators."""
    return context.policy.ground_truth_share > 0 and context.verdict.ground_truth is not None


def _is_measuring(context: RoutingContext) -> bool:
    """Whether the task is served, or about to be, to an annotator who is measured on it."""
    if not _measures_annotators(context):
        return False
    task = context.task
    return _is_served(context) or (
        task.overlap_is_ours and (task.requested_overlap.overlap or 0) > context.verdict.annotators
    )


def _may_request(context: RoutingContext) -> bool:
    return (
        is_worth_asking(context)
        and context.review.send_back_state != "sent back"
        and context.verdict.annotators < context.policy.max_annotators
        and context.task.overlap_is_ours
        and not context.was_requested
    )


def _expected_errors(context: RoutingContext) -> float | None:
    """Expected errors of the consensus, for an agreed task that waits for one more annotator."""
    gain = context.assessment.expected_gain
    is_requested = context.was_requested and _is_served(context) and is_worth_asking(context)
    if context.verdict.outcome != "agreed" or gain is None or not (_may_request(context) or is_requested):
        return None
    return gain.errors


def _further_sentences(context: RoutingContext) -> list[str]:
    """Sentences of the note after the verdict: why annotators differ, violations of rules, reasons of a review."""
    assessment = context.assessment
    if context.verdict.ground_truth is not None:
        return list(assessment.reasons)  # doubts about the ground truth
    reasons = [reason for reason in assessment.reasons if reason != BLOCKED] if needs_review(context) else []
    return [*assessment.explanations, *describe_violations(assessment.violations), *reasons]


def _gain_text(gain: ExpectedGain | None) -> str:
    return "" if gain is None else f", {gain.errors:.3f} errors likely, {gain.gain:.3f} to gain"


def _is_served(context: RoutingContext) -> bool:
    return context.task.overlap > context.verdict.annotators and not context.task.is_labeled
