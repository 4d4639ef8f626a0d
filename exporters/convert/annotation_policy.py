"""Whose annotation counts: POLICIES, from one task's annotations to those that are in the data set."""

from collections.abc import Callable, Sequence

import msgspec

from exporters.errors import BadOption
from labelloop.labeling.studio.latest import latest_annotations, numbered
from labelloop.labeling.studio.task import Annotation, Task

TOGETHER = "consensus"
"""The rule under which the chosen annotations become one: see ``exporters.convert.consensus``."""
DISPUTED = ("in", "out", "apart")
"""What becomes of the tasks that quality control did not settle: ``apart`` is a split of their own."""
UNSETTLED = {"disputed": "disputed", "not_judged": "not judged"}
"""What quality control says in a task's data -> what such a task is called in the bill."""
SKIPPED = "skipped by the annotator"
NOT_CHOSEN = "not chosen by the policy"
NOT_ANNOTATED = "not annotated"
PREDICTED = "only predictions, no annotation"
NONE_CHOSEN = "no annotation by the policy"


class Choice(msgspec.Struct, frozen=True):
    """The annotations that count, by which rule, and why each other one does not (in the task's order)."""

    chosen: tuple[Annotation, ...] = ()
    rule: str = ""
    refused: tuple[tuple[Annotation, str], ...] = ()
    reason: str = ""
    """Why the task has no annotation that counts; empty where it has one."""


Policy = Callable[[Sequence[Annotation]], tuple[Sequence[Annotation], str]]
"""Annotations that were not cancelled -> those that count and the rule that chose them."""


def ground_truth(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """The annotation marked as ground truth, the one updated last if several are."""
    return _newest([each for each in annotations if each.ground_truth]), "ground truth"


def latest(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """The ground truth where there is one, else the annotation updated last."""
    chosen, rule = ground_truth(annotations)
    return (chosen, rule) if chosen else (_newest(annotations), "latest")


def every(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """All of them: the image carries the objects of each annotator."""
    return annotations, "all"


def consensus(annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
    """The ground truth where there is one, else everybody's latest annotation, to be made one (rule ``TOGETHER``).

    An annotation alone counts as it is: there is nothing to weigh it against.
    """
    chosen, rule = ground_truth(annotations)
    if chosen:
        return chosen, rule
    everybody = latest_annotations(annotations)
    return everybody, TOGETHER if len(everybody) > 1 else "one annotator"


class ByUser(msgspec.Struct, frozen=True):
    """The annotation of one annotator, the one updated last if they made several."""

    user: int

    def __call__(self, annotations: Sequence[Annotation]) -> tuple[Sequence[Annotation], str]:
        """See ``Policy``."""
        return _newest([each for each in annotations if each.completed_by == self.user]), f"user:{self.user}"


POLICIES: dict[str, Policy] = {
    "latest": latest,
    "consensus": consensus,
    "ground-truth": ground_truth,
    "all": every,
}


def policy(name: str) -> Policy:
    """The policy of a name, ``user:ID`` included.

    Raises:
        BadOption: no such policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    kind, _, user = name.partition(":")
    if kind == "user" and user.isdecimal():
        return ByUser(int(user))
    raise BadOption("--annotation", name, ", ".join([*POLICIES, "user:ID"]))


def unsettled(task: Task) -> str:
    """What quality control holds the task for, where its annotators are not known to agree; empty where they are.

    It says so in the task's data, and takes it back there.
    """
    status = task.data.get("qc_status")
    return UNSETTLED.get(status, "") if isinstance(status, str) else ""


def choose(task: Task, policy: Policy) -> Choice:
    """Which annotations of a task are in the data set. Cancelled (skipped) ones never are.

    A prediction is not an annotation: a task that only a model has seen has no annotation.
    """
    annotations = numbered(task.annotations)
    live = [each for each in annotations if not each.was_cancelled]
    chosen, rule = policy(live)
    kept = {id(each) for each in chosen}
    refused = tuple(
        (each, SKIPPED if each.was_cancelled else NOT_CHOSEN) for each in annotations if id(each) not in kept
    )
    if chosen:
        return Choice(chosen=tuple(chosen), rule=rule, refused=refused)
    if not task.annotations:
        return Choice(reason=PREDICTED if task.predictions or task.prediction_ids else NOT_ANNOTATED)
    reason = NONE_CHOSEN if live else SKIPPED
    return Choice(refused=refused, reason=reason)


def _newest(annotations: Sequence[Annotation]) -> Sequence[Annotation]:
    if not annotations:
        return []
    # Label Studio writes all its times in one ISO form in UTC, so text order is time order; the id breaks ties.
    return [max(annotations, key=lambda each: (each.updated_at or each.created_at, each.id or 0))]
