"""Carries out what ROUTES want in Label Studio, logged before and after, so that a killed worker's writes are found."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.overlays import Overlay, mark_of, overlays_of
from qc_webhooks.artifacts.review_copy import Copy, Decision, ReviewCopyContent, imported_decision
from qc_webhooks.decision.context import KEYS, Action, LastDecision
from qc_webhooks.errors import WriteLost
from qc_webhooks.pipeline.review_project import ReviewDesk, lay_overlays
from qc_webhooks.store.decisions import DecisionStore, WriteLogEntry

log = structlog.get_logger(__name__)


class Writer:
    """Writes to the tasks of one Label Studio.

    Args:
        studio: Label Studio.
        memory: Where writes are logged.
        desk: Writes to review projects.
    """

    def __init__(self, studio: Studio, memory: DecisionStore, desk: ReviewDesk) -> None:
        self._studio = studio
        self._memory = memory
        self.desk = desk

    def current(self, project: int, task: Task, like: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that ``like`` has, as they are now."""
        copy = self.desk.store.copy(project, task.id or 0) if "copy" in like else None
        return current(task, like, copy)

    def carry_out(self, project: int, task: Task, actions: Sequence[Action], fingerprint: str) -> None:
        """Makes the task as the actions want it.

        Args:
            project: The project's id.
            task: The task as it was read.
            actions: What ``plan`` gave.
            fingerprint: Of the state that they are for.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses.
            WriteLost: It answered other values than we wrote.
        """
        for action in actions:
            if action.bring is not None:
                self._bring(project, task, action, action.bring)
            if action.ground_truth is not None:
                self._mark_truth(project, task, action, action.ground_truth)
        fields = [action for action in actions if _fields([action])]
        if fields:
            self._update(project, task, fields)
        for action in actions:
            if action.overlays is not None:
                self._overlay(project, task, action, action.overlays)
            if action.sheet is not None:
                self._copy(project, task, action, action.sheet, fingerprint)

    def settle(self, project: int, task: Task, memory: LastDecision | None) -> LastDecision | None:
        """What we did before, completed by writes that a killed worker began: the server says whether they arrived."""
        for write in self._memory.planned(project, task.id or 0):
            arrived = self.current(project, task, write.after) == write.after
            self._memory.finish(write, done=arrived)
            if arrived:
                memory = _recovered(memory, write)
        return memory

    def abandon(self, project: int, task: int) -> None:
        """Closes what was begun on a task that is gone."""
        for write in self._memory.planned(project, task):
            self._memory.finish(write, done=False)

    def _begin(self, project: int, task: Task, actions: Sequence[Action], after: Mapping[str, Any]) -> WriteLogEntry:
        return self._memory.begin(
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
            raise WriteLost(project, task.id or 0, write.after, {"ground_truth": None})
        self._memory.finish(write, done=True)

    def _update(self, project: int, task: Task, actions: Sequence[Action]) -> None:
        after = _fields(actions)
        write = self._begin(project, task, actions, after)
        # PATCH replaces the whole data: what was read, raw, goes back with our keys laid over it.
        data = {**task.data, **after["keys"]} if "keys" in after else None
        answer = self._studio.update_task(
            task.id or 0, data=data, overlap=after.get("overlap"), is_labeled=after.get("is_labeled")
        )
        kept = current(read_task({**answer, "data": answer.get("data") or {}}), after)
        if kept != after:
            raise WriteLost(project, task.id or 0, after, kept)
        self._memory.finish(write, done=True)

    def _overlay(self, project: int, task: Task, action: Action, wanted: Sequence[Overlay]) -> None:
        """Tabs stand in the order of writing: what is right so far stays, the rest goes and is written in order."""
        write = self._begin(project, task, [action], {"overlays": [list(each.mark) for each in wanted]})
        lay_overlays(self._studio, task, wanted)
        self._memory.finish(write, done=True)

    def _bring(self, project: int, task: Task, action: Action, decision: Decision) -> None:
        write = self._begin(project, task, [action], {"brought": [decision.annotator, decision.mark]})
        self.desk.bring(task.id or 0, decision)
        self._memory.finish(write, done=True)

    def _copy(self, project: int, task: Task, action: Action, sheet: ReviewCopyContent, fingerprint: str) -> None:
        write = self._begin(project, task, [action], {"copy": sheet.mark if sheet.overlays else None})
        if sheet.overlays:
            self.desk.lay(project, task, sheet, fingerprint)
        else:
            self.desk.clear(project, task.id or 0)
        self._memory.finish(write, done=True)


def current(task: Task, like: Mapping[str, Any], copy: Copy | None = None) -> dict[str, Any]:
    """The fields that ``like`` has, as they are in the task and its copy."""
    truth = [annotation.id for annotation in task.annotations if annotation.ground_truth]
    values = {
        "keys": {key: task.data[key] for key in KEYS if key in task.data},
        "overlap": task.overlap,
        "is_labeled": task.is_labeled,
        "ground_truth": truth[0] if truth else None,
        "overlays": [list(mark_of(each)) for each in overlays_of(task)],
        "copy": copy.mark if copy and copy.copy else None,
        "brought": None,
    }
    if like.get("brought") and imported_decision(task, *like["brought"]) is not None:
        values["brought"] = like["brought"]
    return {name: values[name] for name in like}


def _fields(actions: Sequence[Action]) -> dict[str, Any]:
    """The fields of the task itself, which go in one PATCH."""
    after: dict[str, Any] = {}
    for action in actions:
        if action.keys:
            after["keys"] = {**after.get("keys", {}), **action.keys}
        if action.overlap is not None:
            after |= {"overlap": action.overlap, "is_labeled": action.is_labeled}
    return after


def _recovered(memory: LastDecision | None, write: WriteLogEntry) -> LastDecision:
    """Memory with a write that arrived although nobody was left to remember it; it counts as news."""
    before = memory or LastDecision("")
    keys = write.after.get("keys", before.keys)
    asked, found = before.asked_overlap, before.found_overlap
    if "overlap" in write.after:
        raised = write.after["overlap"] > write.before["overlap"] or not write.after["is_labeled"]
        asked = write.after["overlap"] if raised else None
        found = (write.before["overlap"] if found is None else found) if raised else None
        if "raise_overlap" in write.route.split("+"):
            found = asked
    return LastDecision("", keys, asked, None, found, before.overlay)
