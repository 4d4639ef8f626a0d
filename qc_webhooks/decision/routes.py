"""What a verdict does to a task: ROUTES plan it, `write` carries it out once, and a human's change is left alone."""

from collections.abc import Callable, Mapping
from typing import Any

from qc_webhooks.artifacts.review_copy import ReviewCopyContent
from qc_webhooks.decision.context import KEYS, Action, RoutingContext
from qc_webhooks.decision.expected_gain import ExpectedGain
from qc_webhooks.decision.review_reasons import BLOCKED, is_for_review
from qc_webhooks.policy.guideline_rules import describe_violations
from qc_webhooks.verdict.note import write_note

Route = Callable[[RoutingContext], Action | None]


def import_review_decision(situation: RoutingContext) -> Action | None:
    """Adds what a reviewer submitted in the review project to the task, under the reviewer's name."""
    if situation.decision is None or situation.is_brought:
        return None
    return Action("bring_back", "submitted in the review project", bring=situation.decision)


def accept(situation: RoutingContext) -> Action | None:
    """Marks the annotation that a reviewer made from an overlay, or in the review project, as the ground truth.

    Label Studio has no button for it.

    Where there is a ground truth already, a human or we decided before.
    """
    if situation.accepted is None or situation.verdict.ground_truth is not None:
        return None
    return Action("accept", "submitted by a reviewer", ground_truth=situation.accepted)


def raise_overlap(situation: RoutingContext) -> Action | None:
    """Serves a task to as many annotators as a verdict needs, where the policy asks for it.

    Once: an overlap that somebody lowers afterwards stays as it is.
    """
    policy, verdict, memory = situation.policy, situation.verdict, situation.memory
    if not policy.raise_overlap or verdict.outcome != "waiting" or situation.overlap >= policy.annotators:
        return None
    if memory is not None and memory.asked_overlap is not None:
        return None
    return Action("raise_overlap", f"served to {situation.overlap} only", overlap=policy.annotators, is_labeled=False)


def one_more_annotator(situation: RoutingContext) -> Action | None:
    """Sends a task to one more annotator, blind, where that pays, up to the policy's maximum.

    Label Studio serves a task to a further user when ``overlap`` is above the number of annotators and ``is_labeled``
    is false; both are set together. Who annotated it already is never served it again.
    """
    verdict = situation.verdict
    if not _may_ask(situation) or _is_served(situation):
        return None
    return Action(
        "one_more_annotator",
        f"{verdict.outcome} by {verdict.annotators} annotators{_told(situation.outlook)}",
        overlap=max(verdict.annotators + 1, situation.overlap),
        is_labeled=False,
    )


def seed(situation: RoutingContext) -> Action | None:
    """Serves a task whose ground truth is known to annotators who are to be measured by it, and to nobody else.

    They see nothing but the photo and the pre-label, as with every other task. While nobody is to be measured it is
    held back: it is settled, and Label Studio would serve it before all others.
    """
    verdict, memory = situation.verdict, situation.memory
    if not _measures(situation) or not situation.overlap_is_ours:
        return None
    wanted = max(situation.wish.overlap or 0, verdict.annotators)
    served = wanted > verdict.annotators
    if situation.is_labeled != served and (not served or situation.overlap == wanted):
        return None
    if memory is not None and memory.asked_overlap == wanted == situation.overlap:
        return None  # somebody marked it as finished, or unfinished, since
    why = f"measures {wanted - verdict.annotators} more" if served else "nobody is to be measured now"
    return Action("seed", f"ground truth: {why}", overlap=wanted, is_labeled=not served)


def withdraw(situation: RoutingContext) -> Action | None:
    """Takes back an annotator whom a settled task no longer needs (somebody corrected or deleted an annotation)."""
    memory, verdict = situation.memory, situation.verdict
    if _measures(situation):
        return None
    if is_worth_asking(situation) or memory is None or memory.asked_overlap is None or memory.found_overlap is None:
        return None
    if verdict.outcome == "disputed" or (situation.already_asked and not situation.is_news):
        return None  # what is known of annotators changes by and by; what was asked for stands until something happens
    wanted = (
        max(memory.found_overlap, verdict.annotators)
        if verdict.outcome in {"agreed", "not_judged"}
        else memory.found_overlap
    )
    if not situation.overlap_is_ours or memory.found_overlap <= situation.overlap <= wanted:
        return None
    return Action("withdraw", f"{verdict.outcome} again", overlap=wanted, is_labeled=verdict.annotators >= wanted)


def flag(situation: RoutingContext) -> Action | None:
    """Says the verdict in the task's data, where the Data Manager shows, filters and sorts it.

    Before enough annotators submitted nothing is written, unless something was: then it must not stay wrong.
    """
    held = {key: situation.data[key] for key in KEYS if key in situation.data}
    unsaid = not (held or situation.broken or situation.reasons)
    if situation.verdict.annotators < situation.policy.annotators and unsaid:
        return None
    keys = qc_keys(situation)
    if held == keys:
        return None
    written = situation.memory.keys if situation.memory else None
    if not situation.is_news and written is not None and held != written:
        return None  # somebody changed what we wrote, and nothing happened since
    return Action("flag", situation.verdict.outcome, keys=keys)


def overlay(situation: RoutingContext) -> Action | None:
    """Shows a dispute that waits for a reviewer as predictions, and removes them when it waits no longer.

    Every user sees predictions, so they are written after the last blind annotation only.
    """
    if not is_adjudicated(situation):
        return Action("overlay", "waits for no reviewer", overlays=()) if situation.held else None
    if situation.overlays_stand:
        return None
    wanted = situation.wanted or ()  # of another state, or not to be written now: none is better than a wrong one
    if tuple(each.mark for each in wanted) == situation.held:
        return None
    return Action("overlay", "waits for a reviewer" if wanted else "out of date", overlays=wanted)


def copy(situation: RoutingContext) -> Action | None:
    """Copies what waits for a reviewer into the review project, and removes the copy when it waits no longer."""
    if not is_copied(situation):
        return None if situation.copy is None else Action("copy", "waits for no reviewer", sheet=ReviewCopyContent())
    if situation.copy_stands or situation.sheet is None:
        return None
    return Action("copy", "waits for a reviewer", sheet=situation.sheet)


# The order is the order of thought: what a reviewer accepted ends the dispute; else who is asked decides whether a
# reviewer must look.
ROUTES: Mapping[str, Route] = {
    "bring_back": import_review_decision,
    "accept": accept,
    "raise_overlap": raise_overlap,
    "one_more_annotator": one_more_annotator,
    "seed": seed,
    "withdraw": withdraw,
    "flag": flag,
    "overlay": overlay,
    "copy": copy,
}


def plan(situation: RoutingContext) -> tuple[Action, ...]:
    """Everything that is to be changed now; empty when the task is as it should be.

    What decides the task is changed alone: it is to be judged again with it.
    """
    actions: list[Action] = []
    for route in ROUTES.values():
        action = route(situation)
        if action is not None:
            actions.append(action)
            if action.decides:
                break
    return tuple(actions)


def qc_keys(situation: RoutingContext) -> dict[str, Any]:
    """The qc_* keys that say this verdict."""
    verdict = situation.verdict
    return {
        "qc_status": verdict.outcome,
        "qc_agreement": None if verdict.agreement is None else round(verdict.agreement, 4),
        "qc_annotators": verdict.annotators,
        # Who is measured by a task must not be told that it is settled.
        "qc_note": ""
        if _is_measuring(situation)
        else write_note(verdict, situation.policy, doubt=_doubt(situation), more=_more(situation)),
        "qc_review": "yes" if needs_review(situation) else "no",
    }


def needs_review(situation: RoutingContext) -> bool:
    """Whether a reviewer is to look, and nobody else is waited for.

    So it is with a dispute that no further annotator is asked about, with a task that cannot be judged, and with one
    that the policy sends to review.
    """
    wanted = is_for_review(situation.verdict, situation.policy, situation.reasons)
    return wanted and not _may_ask(situation) and not _is_served(situation)


def is_adjudicated(situation: RoutingContext) -> bool:
    """Whether what a reviewer is to look at is to be shown as overlays."""
    return situation.policy.adjudicate and needs_review(situation)


def is_copied(situation: RoutingContext) -> bool:
    """Whether what a reviewer is to look at is to be copied into the review project."""
    return situation.policy.review_project and situation.desk and needs_review(situation)


# Conflicts that the posterior of the consensus speaks of. Of others (how a shape is drawn) it knows nothing, and a
# dispute about them is sent on as it always was.
_WEIGHED = frozenset({"missing", "extra", "label", "choice", "empty", "duplicate"})


def is_worth_asking(situation: RoutingContext) -> bool:
    """Whether a further annotator is worth it: the consensus is in doubt, and one more would end it."""
    verdict, outlook = situation.verdict, situation.outlook
    if verdict.outcome in {"waiting", "not_judged"} or verdict.ground_truth is not None:
        return False  # another opinion makes nothing readable
    disputed = verdict.outcome == "disputed"
    if outlook is None:
        return disputed
    if outlook.gain >= situation.policy.least_gain:
        return disputed or outlook.known
    return disputed and any(
        conflict.type not in _WEIGHED or conflict.control not in outlook.controls for conflict in verdict.conflicts
    )


def _measures(situation: RoutingContext) -> bool:
    """Whether annotators are measured by the task as the policy says."""
    return situation.policy.ground_truth_share > 0 and situation.verdict.ground_truth is not None


def _is_measuring(situation: RoutingContext) -> bool:
    """Whether the task is served now, or is about to be, to an annotator who is measured by it."""
    if not _measures(situation):
        return False
    return _is_served(situation) or (
        situation.overlap_is_ours and (situation.wish.overlap or 0) > situation.verdict.annotators
    )


def _may_ask(situation: RoutingContext) -> bool:
    return (
        is_worth_asking(situation)
        and situation.verdict.annotators < situation.policy.max_annotators
        and situation.overlap_is_ours
        and not situation.already_asked
    )


def _doubt(situation: RoutingContext) -> float | None:
    """Of an agreed task that waits for one more annotator: how many errors its consensus is likely to hold."""
    asked = situation.already_asked and _is_served(situation) and is_worth_asking(situation)
    if situation.verdict.outcome != "agreed" or situation.outlook is None or not (_may_ask(situation) or asked):
        return None
    return situation.outlook.errors


def _more(situation: RoutingContext) -> list[str]:
    """What the note says besides the verdict: what breaks the guideline and, while it is reviewed, why."""
    reasons = [each for each in situation.reasons if each != BLOCKED] if needs_review(situation) else []
    return [*describe_violations(situation.broken), *reasons] if situation.verdict.ground_truth is None else []


def _told(outlook: ExpectedGain | None) -> str:
    return "" if outlook is None else f", {outlook.errors:.3f} errors likely, {outlook.gain:.3f} to gain"


def _is_served(situation: RoutingContext) -> bool:
    return situation.overlap > situation.verdict.annotators and not situation.is_labeled
