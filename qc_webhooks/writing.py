"""Carries out what ROUTES want in Label Studio, logged before and after, so that a killed worker's writes are found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from labelloop.labeling.task import Task, read_task
from labelloop.service.studio import NotFound, Studio
from qc_webhooks.errors import WriteLost
from qc_webhooks.memory import MemoryStore, Write
from qc_webhooks.overlay import Overlay, mark_of, overlays_of
from qc_webhooks.routing import KEYS, Action, Memory

log = structlog.get_logger(__name__)


class Writer:
    """Writes to the tasks of one Label Studio.

    Args:
        studio: Label Studio.
        memory: Where writes are logged.
    """

    def __init__(self, studio: Studio, memory: MemoryStore) -> None:
        self._studio = studio
        self._memory = memory

    def carry_out(self, project: int, task: Task, actions: Sequence[Action]) -> None:
        """Makes the task as the actions want it.

        Args:
            project: The project's id.
            task: The task as it was read.
            actions: What ``plan`` gave.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses.
            WriteLost: It answered other values than we wrote.
        """
        for action in actions:
            if action.ground_truth is not None:
                self._mark_truth(project, task, action, action.ground_truth)
        fields = [action for action in actions if _fields([action])]
        if fields:
            self._update(project, task, fields)
        for action in actions:
            if action.overlays is not None:
                self._overlay(project, task, action, action.overlays)

    def settle(self, project: int, task: Task, memory: Memory | None) -> Memory | None:
        """What we did before, completed by writes that a killed worker began: the server says whether they arrived."""
        for write in self._memory.planned(project, task.id or 0):
            arrived = current(task, write.after) == write.after
            self._memory.finish(write, done=arrived)
            if arrived:
                memory = _recovered(memory, write)
        return memory

    def abandon(self, project: int, task: int) -> None:
        """Closes what was begun on a task that is gone."""
        for write in self._memory.planned(project, task):
            self._memory.finish(write, done=False)

    def _begin(self, project: int, task: Task, actions: Sequence[Action], after: Mapping[str, Any]) -> Write:
        return self._memory.begin(
            project,
            task.id or 0,
            route="+".join(action.route for action in actions),
            reason="; ".join(action.reason for action in actions),
            before=current(task, after),
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
        held = overlays_of(task)
        right = 0
        while right < min(len(held), len(wanted)) and mark_of(held[right]) == wanted[right].mark:
            right += 1
        for prediction in reversed(held[right:]):
            self.remove(prediction.id or 0)
        for each in wanted[right:]:
            self._studio.add_prediction(
                task.id or 0, [dict(result) for result in each.result], each.score, each.version
            )
        self._memory.finish(write, done=True)

    def remove(self, prediction: int) -> None:
        """Removes an overlay; one that is gone already is no error."""
        try:
            self._studio.delete_prediction(prediction)
        except NotFound:
            log.info("overlay_gone_already", prediction=prediction)


def current(task: Task, like: Iterable[str]) -> dict[str, Any]:
    """The fields that ``like`` has, as they are in the task."""
    truth = [annotation.id for annotation in task.annotations if annotation.ground_truth]
    values = {
        "keys": {key: task.data[key] for key in KEYS if key in task.data},
        "overlap": task.overlap,
        "is_labeled": task.is_labeled,
        "ground_truth": truth[0] if truth else None,
        "overlays": [list(mark_of(each)) for each in overlays_of(task)],
    }
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


def _recovered(memory: Memory | None, write: Write) -> Memory:
    """Memory with a write that arrived although nobody was left to remember it; it counts as news."""
    before = memory or Memory("")
    keys = write.after.get("keys", before.keys)
    asked, found = before.asked_overlap, before.found_overlap
    if "overlap" in write.after:
        raised = write.after["overlap"] > write.before["overlap"] or not write.after["is_labeled"]
        asked = write.after["overlap"] if raised else None
        found = (write.before["overlap"] if found is None else found) if raised else None
    return Memory("", keys, asked, None, found, before.overlay)
