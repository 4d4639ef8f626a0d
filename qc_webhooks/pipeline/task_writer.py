"""Applies the actions of ROUTES in Label Studio; logs each write before and after, to recover from a killed worker."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.overlays import Overlay, overlay_key, overlays_of
from qc_webhooks.artifacts.review_copy import ReviewCopy, ReviewCopyContent, ReviewDecision, imported_annotation
from qc_webhooks.decision.context import KEYS, Action, LastDecision
from qc_webhooks.errors import WriteLost
from qc_webhooks.pipeline.review_project import ReviewProjects, write_overlays
from qc_webhooks.store.decisions import DecisionStore, WriteLogEntry

log = structlog.get_logger(__name__)


class TaskWriter:
    """Writes to the tasks of one Label Studio.

    Args:
        studio: Label Studio.
        decisions: Stored decisions and the write log.
        reviews: Client of the review projects.
    """

    def __init__(self, studio: Studio, decisions: DecisionStore, reviews: ReviewProjects) -> None:
        self._studio = studio
        self._decisions = decisions
        self.reviews = reviews

    def current(self, project: int, task: Task, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Current values of the fields named in ``like``."""
        copy = self.reviews.store.copy(project, task.id or 0) if "copy" in fields else None
        return current_fields(task, fields, copy)

    def apply(self, project: int, task: Task, actions: Sequence[Action], fingerprint: str) -> None:
        """Apply the actions to the task.

        Args:
            project: The project's id.
            task: The task as read.
            actions: Result of ``plan``.
            fingerprint: Fingerprint of the judged state.

        Raises:
            StudioError: Label Studio cannot be reached, or refuses.
            WriteLost: It answered with other values than were written.
        """
        for action in actions:
            if action.imported_decision is not None:
                self._bring(project, task, action, action.imported_decision)
            if action.ground_truth is not None:
                self._mark_truth(project, task, action, action.ground_truth)
        fields = [action for action in actions if _fields([action])]
        if fields:
            self._update(project, task, fields)
        for action in actions:
            if action.overlays is not None:
                self._overlay(project, task, action, action.overlays)
            if action.copy_content is not None:
                self._copy(project, task, action, action.copy_content, fingerprint)

    def recover(self, project: int, task: Task, last_decision: LastDecision | None) -> LastDecision | None:
        """The last decision, including writes begun by a killed worker that reached Label Studio."""
        for write in self._decisions.planned_writes(project, task.id or 0):
            arrived = self.current(project, task, write.after) == write.after
            self._decisions.finish_write(write, done=arrived)
            if arrived:
                last_decision = _decision_with_write(last_decision, write)
        return last_decision

    def abandon(self, project: int, task: int) -> None:
        """Close the open writes of a deleted task."""
        for write in self._decisions.planned_writes(project, task):
            self._decisions.finish_write(write, done=False)

    def _begin(self, project: int, task: Task, actions: Sequence[Action], after: Mapping[str, Any]) -> WriteLogEntry:
        return self._decisions.begin_write(
            project,
            task.id or 0,
            route="+".join(action.route for action in actions),
            reason="; ".join(action.reason for action in actions),
            before=self.current(project, task, after),
            after=after,
        )

    def _mark_truth(self, project: int, task: Task, action: Action, annotation: int) -> None:
        write = self._begin(project, task, [action], {"ground_truth": annotation})
        answer = self._studio.update_annotation(annotation, ground_truth=True)
        if not answer.get("ground_truth"):
            raise WriteLost(project=project, task=task.id or 0, expected=write.after, actual={"ground_truth": None})
        self._decisions.finish_write(write, done=True)

    def _update(self, project: int, task: Task, actions: Sequence[Action]) -> None:
        after = _fields(actions)
        write = self._begin(project, task, actions, after)
        # PATCH replaces the whole data: send the raw data as read, with our keys on top.
        data = {**task.data, **after["keys"]} if "keys" in after else None
        answer = self._studio.update_task(
            task.id or 0, data=data, overlap=after.get("overlap"), is_labeled=after.get("is_labeled")
        )
        written = current_fields(read_task({**answer, "data": answer.get("data") or {}}), after)
        if written != after:
            raise WriteLost(project=project, task=task.id or 0, expected=after, actual=written)
        self._decisions.finish_write(write, done=True)

    def _overlay(self, project: int, task: Task, action: Action, wanted: Sequence[Overlay]) -> None:
        """Write the overlays of a dispute."""
        write = self._begin(project, task, [action], {"overlays": [list(overlay.key) for overlay in wanted]})
        write_overlays(self._studio, task, wanted)
        self._decisions.finish_write(write, done=True)

    def _bring(self, project: int, task: Task, action: Action, decision: ReviewDecision) -> None:
        write = self._begin(project, task, [action], {"brought": [decision.annotator, decision.content_hash]})
        self.reviews.import_decision(task.id or 0, decision)
        self._decisions.finish_write(write, done=True)

    def _copy(self, project: int, task: Task, action: Action, content: ReviewCopyContent, fingerprint: str) -> None:
        write = self._begin(project, task, [action], {"copy": content.content_hash if content.overlays else None})
        if content.overlays:
            self.reviews.write_copy(project, task, content, fingerprint)
        else:
            self.reviews.delete_copy(project, task.id or 0)
        self._decisions.finish_write(write, done=True)


def current_fields(task: Task, fields: Mapping[str, Any], copy: ReviewCopy | None = None) -> dict[str, Any]:
    """Current values of the fields named in ``fields``, from the task and its copy."""
    truth = [annotation.id for annotation in task.annotations if annotation.ground_truth]
    values = {
        "keys": {key: task.data[key] for key in KEYS if key in task.data},
        "overlap": task.overlap,
        "is_labeled": task.is_labeled,
        "ground_truth": truth[0] if truth else None,
        "overlays": [list(overlay_key(prediction)) for prediction in overlays_of(task)],
        "copy": copy.content_hash if copy and copy.task else None,
        "brought": None,
    }
    if fields.get("brought") and imported_annotation(task, *fields["brought"]) is not None:
        values["brought"] = fields["brought"]
    return {name: values[name] for name in fields}


def _fields(actions: Sequence[Action]) -> dict[str, Any]:
    """Fields of the task itself, written by one PATCH."""
    values: dict[str, Any] = {}
    for action in actions:
        if action.keys:
            values["keys"] = {**values.get("keys", {}), **action.keys}
        if action.overlap is not None:
            values |= {"overlap": action.overlap, "is_labeled": action.is_labeled}
    return values


def _decision_with_write(last_decision: LastDecision | None, write: WriteLogEntry) -> LastDecision:
    """The last decision updated by a write that arrived but was not saved; the task counts as changed."""
    previous = last_decision or LastDecision("")
    keys = write.after.get("keys", previous.keys)
    asked_overlap, found_overlap = previous.asked_overlap, previous.found_overlap
    if "overlap" in write.after:
        raised = write.after["overlap"] > write.before["overlap"] or not write.after["is_labeled"]
        asked_overlap = write.after["overlap"] if raised else None
        found_overlap = (write.before["overlap"] if found_overlap is None else found_overlap) if raised else None
        if "raise_overlap" in write.route.split("+"):
            found_overlap = asked_overlap
    return LastDecision("", keys, asked_overlap, None, found_overlap, previous.overlay)
