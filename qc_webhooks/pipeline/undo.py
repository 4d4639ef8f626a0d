"""Undoes quality control's writes to tasks, newest first; skips values that were changed since."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.worker_id import current_worker
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.overlays import accepted_annotation, overlay_key, overlays_of
from qc_webhooks.artifacts.review_copy import imported_annotation
from qc_webhooks.decision.context import KEYS
from qc_webhooks.errors import QualityControlError
from qc_webhooks.events import recheck_event
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import remove_prediction
from qc_webhooks.pipeline.task_writer import TaskWriter, current_fields
from qc_webhooks.store.decisions import DecisionStore, WriteLogEntry
from qc_webhooks.store.send_backs import SendBackStore

# Maximum wait for a worker to release the task, in seconds.
LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class UndoResult:
    """Result of undoing one part of one write.

    Attributes:
        task: The task's id.
        route: Routes of the write, joined by +.
        part: A key of UNDO_BY_PART; ``task`` where the task is deleted.
        text: What was done, or why it was skipped.
        left: Whether it was skipped.
    """

    task: int
    route: str
    part: str
    text: str
    left: bool = False


class Undo:
    """Undoes writes to the tasks of one project.

    Args:
        studio: Label Studio.
        decisions: Stored decisions and the write log.
        checker: Saves the tasks as handled, so that an undone write is not repeated.
        inbox: Locks a task against the workers.
    """

    def __init__(self, studio: Studio, decisions: DecisionStore, checker: Checker, inbox: Inbox) -> None:
        self._studio = studio
        self._decisions = decisions
        self._checker = checker
        self._inbox = inbox
        self._writer = TaskWriter(studio, decisions, checker.reviews)
        self._send_backs = SendBackStore(decisions.engine)

    def run(self, project: int, *, task: int | None = None, last: int | None = None) -> Iterator[UndoResult]:
        """Undo the newest writes, task by task. A write is tried once.

        Args:
            project: The project's id.
            task: Only writes to this task.
            last: Number of newest writes; None: all.

        Raises:
            StudioError: Label Studio cannot be reached, or refuses; the remaining writes stay.
            QualityControlError: A worker did not release a task.
        """
        writes: dict[int, list[WriteLogEntry]] = {}
        for write in self._decisions.finished_writes(project, task=task, last=last):
            writes.setdefault(write.task, []).append(write)
        for number, task_writes in writes.items():
            with locked_task(self._inbox, project, number):
                yield from self._undo_task(project, number, task_writes)

    def _undo_task(self, project: int, number: int, writes: list[WriteLogEntry]) -> Iterator[UndoResult]:
        was_judged = self._checker.is_judged(project, number)
        parts: set[str] = set()
        for write in writes:
            outcomes = list(self._undo_write(project, write))
            yield from outcomes
            parts |= {outcome.part for outcome in outcomes if not outcome.left}
            self._decisions.set_write_state(write, "left" if all(outcome.left for outcome in outcomes) else "undone")
        # A task that is not judged yet is left to the worker.
        if was_judged and parts:
            keep_overlays = bool(parts & {"overlays", "copy"}) or "ground_truth" not in parts
            self._checker.acknowledge(project, number, overlays=keep_overlays)

    def _undo_write(self, project: int, write: WriteLogEntry) -> Iterator[UndoResult]:
        source = self._studio.task_json(project, write.task)
        if source is None:
            yield UndoResult(write.task, write.route, "task", "the task is deleted", left=True)
            return
        task = read_task(source)
        for part in (name for name in UNDO_BY_PART if name in write.after):
            if self._writer.current(project, task, {part: write.after[part]}) == {part: write.before[part]}:
                yield UndoResult(write.task, write.route, part, "already has the previous value")
                continue
            text, left = UNDO_BY_PART[part](self._studio, self._writer, task, write)
            if part == "keys" and not left and "send_back" in write.route.split("+"):
                self._send_backs.undo(project, write.task, str(write.after["keys"].get("qc_sent_back")))
            yield UndoResult(write.task, write.route, part, text, left)


@contextmanager
def locked_task(inbox: Inbox, project: int, task: int) -> Iterator[None]:
    """Lock a task against the workers; its events wait.

    Raises:
        QualityControlError: A worker did not release it in time.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        hint = recheck_event(project, task, source="undo")
        inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        claim = inbox.claim(hint.topic, hint.subject, current_worker())
        if claim is not None:
            break
        if time.monotonic() > deadline:
            raise QualityControlError(
                f"Task {task} of project {project} is still being processed by a worker.",
                fix="See `labelloop inbox counts`, and try again.",
                code="task_busy",
                status=409,
            )
        time.sleep(0.5)
    try:
        yield
    finally:
        inbox.release(claim)


Outcome = tuple[str, bool]


def _undo_keys(studio: Studio, _writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    if current_fields(task, {"keys": None})["keys"] != write.after["keys"]:
        return "the qc_* keys were changed since", True
    others = {name: value for name, value in task.data.items() if name not in KEYS}
    studio.update_task(task.id or 0, data={**others, **write.before["keys"]})
    status = write.before["keys"].get("qc_status")
    return f"back to {status}" if status else "removed", False


def _undo_overlap(studio: Studio, _writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    before, after = write.before["overlap"], write.after["overlap"]
    if task.overlap != after:
        return f"it is {task.overlap} now, not {after} as written", True
    annotators = {annotation.completed_by for annotation in task.annotations if not annotation.was_cancelled}
    studio.update_task(task.id or 0, overlap=before, is_labeled=len(annotators) >= before)
    return f"from {after} back to {before}", False


def _undo_overlays(studio: Studio, _writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    if not write.after["overlays"]:
        return "removed overlays are not restored; the next check of an open dispute writes them", True
    if accepted_annotation(task) is not None:
        return "an annotation was just made from one; the dispute is being closed", True
    written = [tuple(mark) for mark in write.after["overlays"]]
    overlays = [prediction for prediction in overlays_of(task) if overlay_key(prediction) in written]
    if not overlays:
        return "they were removed since", True
    for prediction in reversed(overlays):
        remove_prediction(studio, prediction.id or 0)
    return f"{len(overlays)} removed", False


def _undo_ground_truth(studio: Studio, _writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    annotation = write.after["ground_truth"]
    if annotation not in {item.id for item in task.annotations}:
        return f"annotation {annotation} is deleted", True
    current = current_fields(task, {"ground_truth": None})["ground_truth"]
    if current != annotation:
        return f"annotation {current} is the ground truth now, not {annotation}", True
    studio.update_annotation(annotation, ground_truth=False)
    return f"annotation {annotation} is no longer the ground truth", False


def _undo_copy(_studio: Studio, writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    if write.after["copy"] is None:
        return "removed copies are not restored; the next check of an open dispute creates one", True
    project, number = task.project or 0, task.id or 0
    copy = writer.reviews.store.copy(project, number)
    if copy is None or copy.content_hash != write.after["copy"]:
        return "its content was changed since", True
    if writer.reviews.decision(copy) is not None:
        return "a reviewer has just submitted it; the dispute is being closed", True
    writer.reviews.delete_copy(project, number)
    return f"task {copy.task} of project {copy.review} removed", False


def _undo_imported(_studio: Studio, _writer: TaskWriter, task: Task, write: WriteLogEntry) -> Outcome:
    if imported_annotation(task, *write.after["brought"]) is None:
        return "the reviewer's annotation is deleted", True
    return "the reviewer's annotation stays; delete it in Label Studio to remove it", True


# Part of a write -> undo function; it returns what was done or why not, and whether the part was skipped.
UNDO_BY_PART: Mapping[str, Callable[[Studio, TaskWriter, Task, WriteLogEntry], Outcome]] = {
    "copy": _undo_copy,
    "overlays": _undo_overlays,
    "keys": _undo_keys,
    "overlap": _undo_overlap,
    "ground_truth": _undo_ground_truth,
    "brought": _undo_imported,
}


def describe(undone: UndoResult) -> str:
    """One line for the command's output."""
    names: dict[str, Any] = {
        "keys": "qc_* keys",
        "ground_truth": "ground truth",
        "copy": "copy for review",
        "brought": "decision",
    }
    verb = "skipped, " if undone.left else ""
    return f"task {undone.task}: {names.get(undone.part, undone.part)}: {verb}{undone.text}"
