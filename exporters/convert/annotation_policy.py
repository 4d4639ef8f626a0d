"""Select the annotations of a task that go into the data set: POLICIES, by name."""

from collections.abc import Callable, Sequence

import msgspec

from exporters.errors import BadOption
from labelloop.labeling.studio.latest import latest_annotations, with_unique_ids
from labelloop.labeling.studio.task import Annotation, Task

# Rule under which the selected annotations are fused: see `exporters.convert.consensus`.
CONSENSUS = "consensus"
# Values of --disputed for tasks that quality control did not settle; ``apart`` is a split of their own.
DISPUTED = ("in", "out", "apart")
# ``qc_status`` in a task's data -> the reason in the accounts.
UNSETTLED = {"disputed": "disputed", "not_judged": "not judged"}
SKIPPED = "skipped by the annotator"
NOT_CHOSEN = "not chosen by the policy"
NOT_ANNOTATED = "not annotated"
PREDICTED = "only predictions, no annotation"
NONE_CHOSEN = "no annotation by the policy"


class AnnotationSelection(msgspec.Struct, frozen=True):
    """The selected annotations of a task.

    Attributes:
        chosen: The annotations that go into the data set.
        rule: The rule that selected them.
        refused: The other annotations with the reason, in the order of the task.
        reason: Why no annotation is selected; empty if one is.
    """

    chosen: tuple[Annotation, ...] = ()
    rule: str = ""
    refused: tuple[tuple[Annotation, str], ...] = ()
    reason: str = ""


# Annotations that are not cancelled -> the selected ones and the rule that selected them.
Policy = Callable[[Sequence[Annotation]], tuple[Sequence[Annotation], str]]


def ground_truth(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """Select the annotation marked as ground truth, the one updated last if there are several."""
    return _latest([annotation for annotation in annotations if annotation.ground_truth]), "ground truth"


def latest(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """Select the ground truth if there is one, else the annotation updated last."""
    chosen, rule = ground_truth(annotations)
    return (chosen, rule) if chosen else (_latest(annotations), "latest")


def all_annotations(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """Select all annotations: the image carries the objects of each annotator."""
    return annotations, "all"


def consensus(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """Select the ground truth if there is one, else the latest annotation of each annotator, to be fused (`CONSENSUS`).

    A single annotation is used unchanged.
    """
    chosen, rule = ground_truth(annotations)
    if chosen:
        return chosen, rule
    latest_of_each = latest_annotations(annotations)
    return latest_of_each, CONSENSUS if len(latest_of_each) > 1 else "one annotator"


class ByUser(msgspec.Struct, frozen=True):
    """Select the annotation of one annotator, the one updated last if there are several."""

    user: int

    def __call__(self, annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
        """See ``Policy``."""
        return _latest(
            [annotation for annotation in annotations if annotation.completed_by == self.user]
        ), f"user:{self.user}"


POLICIES: dict[str, Policy] = {
    "latest": latest,
    "consensus": consensus,
    "ground-truth": ground_truth,
    "all": all_annotations,
}


def parse_policy(name: str) -> Policy:
    """Return the policy of a name, including ``user:ID``.

    Raises:
        BadOption: no such policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    kind, _, user = name.partition(":")
    if kind == "user" and user.isdecimal():
        return ByUser(int(user))
    raise BadOption("--annotation", name, ", ".join([*POLICIES, "user:ID"]))


def unsettled_status(task: Task) -> str:
    """Return the quality control status that keeps a task from being settled; empty if its annotators agree.

    Quality control stores it in the task's data, and removes it there.
    """
    status = task.data.get("qc_status")
    return UNSETTLED.get(status, "") if isinstance(status, str) else ""


def select_annotations(task: Task, policy: Policy) -> AnnotationSelection:
    """Select the annotations of a task by a policy. Cancelled (skipped) annotations are never selected.

    Predictions do not count: a task with predictions alone has no annotation.
    """
    annotations = with_unique_ids(task.annotations)
    active = [annotation for annotation in annotations if not annotation.was_cancelled]
    chosen, rule = policy(active)
    chosen_ids = {id(annotation) for annotation in chosen}
    refused = tuple(
        (annotation, SKIPPED if annotation.was_cancelled else NOT_CHOSEN)
        for annotation in annotations
        if id(annotation) not in chosen_ids
    )
    if chosen:
        return AnnotationSelection(chosen=tuple(chosen), rule=rule, refused=refused)
    if not task.annotations:
        return AnnotationSelection(reason=PREDICTED if task.predictions or task.prediction_ids else NOT_ANNOTATED)
    reason = NONE_CHOSEN if active else SKIPPED
    return AnnotationSelection(refused=refused, reason=reason)


def _latest(annotations: Sequence[Annotation]) -> Sequence[Annotation]:
    if not annotations:
        return []
    # Label Studio writes all its times in one ISO form in UTC, so text order is time order; the id breaks ties.
    return [
        max(annotations, key=lambda annotation: (annotation.updated_at or annotation.created_at, annotation.id or 0))
    ]
