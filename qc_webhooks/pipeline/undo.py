"""Takes back what quality control wrote to tasks, the newest first, and leaves alone what somebody changed since."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.worker_id import this_worker
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.overlays import accepted_annotation, mark_of, overlays_of
from qc_webhooks.artifacts.review_copy import imported_decision
from qc_webhooks.decision.context import KEYS
from qc_webhooks.errors import TaskBusy
from qc_webhooks.events import recheck_hint
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import remove_prediction
from qc_webhooks.pipeline.task_writer import Writer, current
from qc_webhooks.store.decisions import DecisionStore, WriteLogEntry

# How long a worker may have the task in hand.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Undone:
    """What came of undoing one part of one write.

    Attributes:
        task: The task's id.
        route: The routes that had written, joined by +.
        part: A key of PARTS; ``task`` where the task is gone.
        text: What was done, or why it was left alone.
        left: Whether it was left alone.
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
        memory: The log of writes.
        checker: Judges the tasks, so that what is undone is not written again.
        inbox: Keeps the workers away from a task meanwhile.
    """

    def __init__(self, studio: Studio, memory: DecisionStore, checker: Checker, inbox: Inbox) -> None:
        self._studio = studio
        self._memory = memory
        self._checker = checker
        self._inbox = inbox
        self._writer = Writer(studio, memory, checker.desk)

    def run(self, project: int, *, task: int | None = None, last: int | None = None) -> Iterator[Undone]:
        """Undoes the newest writes, task by task. One that was undone or left alone once is not tried again.

        Args:
            project: The project's id.
            task: Only those to this task.
            last: Only so many; None: all.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses; what was not undone yet stays.
            TaskBusy: A worker did not let go of a task.
        """
        writes: dict[int, list[WriteLogEntry]] = {}
        for write in self._memory.done(project, task=task, last=last):
            writes.setdefault(write.task, []).append(write)
        for number, those in writes.items():
            with held(self._inbox, project, number):
                yield from self._undo_task(project, number, those)

    def _undo_task(self, project: int, number: int, writes: list[WriteLogEntry]) -> Iterator[Undone]:
        was_judged = self._checker.is_judged(project, number)
        parts: set[str] = set()
        for write in writes:
            outcomes = list(self._undo_write(project, write))
            yield from outcomes
            parts |= {outcome.part for outcome in outcomes if not outcome.left}
            self._memory.mark(write, "left" if all(outcome.left for outcome in outcomes) else "undone")
        # What nobody has judged yet is news, and the worker's to judge.
        if was_judged and parts:
            shown = bool(parts & {"overlays", "copy"}) or "ground_truth" not in parts
            self._checker.acknowledge(project, number, overlays=shown)

    def _undo_write(self, project: int, write: WriteLogEntry) -> Iterator[Undone]:
        source = self._studio.task_json(project, write.task)
        if source is None:
            yield Undone(write.task, write.route, "task", "the task is gone", left=True)
            return
        task = read_task(source)
        for part in (name for name in PARTS if name in write.after):
            if self._writer.current(project, task, {part: write.after[part]}) == {part: write.before[part]}:
                yield Undone(write.task, write.route, part, "it is as it was before")
                continue
            text, left = PARTS[part](self._studio, self._writer, task, write)
            yield Undone(write.task, write.route, part, text, left)


@contextmanager
def held(inbox: Inbox, project: int, task: int) -> Iterator[None]:
    """A task that no worker touches meanwhile; its events wait.

    Raises:
        TaskBusy: A worker did not let go of it in time.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        hint = recheck_hint(project, task, source="undo")
        inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        claim = inbox.claim(hint.topic, hint.subject, this_worker())
        if claim is not None:
            break
        if time.monotonic() > until:
            raise TaskBusy(project, task)
        time.sleep(0.5)
    try:
        yield
    finally:
        inbox.release(claim)


Outcome = tuple[str, bool]


def _keys(studio: Studio, _writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    if current(task, {"keys": None})["keys"] != write.after["keys"]:
        return "somebody changed the qc_* keys since", True
    others = {name: value for name, value in task.data.items() if name not in KEYS}
    studio.update_task(task.id or 0, data={**others, **write.before["keys"]})
    status = write.before["keys"].get("qc_status")
    return f"back to {status}" if status else "removed", False


def _overlap(studio: Studio, _writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    before, after = write.before["overlap"], write.after["overlap"]
    if task.overlap != after:
        return f"it is {task.overlap} by now, not the {after} that was written", True
    annotators = {each.completed_by for each in task.annotations if not each.was_cancelled}
    studio.update_task(task.id or 0, overlap=before, is_labeled=len(annotators) >= before)
    return f"from {after} back to {before}", False


def _overlays(studio: Studio, _writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    if not write.after["overlays"]:
        return "removed overlays are not put back; an open dispute gets them anew", True
    if accepted_annotation(task) is not None:
        return "an annotation was just made from one; the dispute is about to be closed", True
    written = [tuple(mark) for mark in write.after["overlays"]]
    ours = [each for each in overlays_of(task) if mark_of(each) in written]
    if not ours:
        return "somebody removed them since", True
    for each in reversed(ours):
        remove_prediction(studio, each.id or 0)
    return f"{len(ours)} removed", False


def _ground_truth(studio: Studio, _writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    annotation = write.after["ground_truth"]
    if annotation not in {each.id for each in task.annotations}:
        return f"annotation {annotation} is gone", True
    now = current(task, {"ground_truth": None})["ground_truth"]
    if now != annotation:
        return f"annotation {now} is the ground truth by now, not {annotation}", True
    studio.update_annotation(annotation, ground_truth=False)
    return f"annotation {annotation} is none any more", False


def _copy(_studio: Studio, writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    if write.after["copy"] is None:
        return "removed copies are not put back; an open dispute gets one anew", True
    project, number = task.project or 0, task.id or 0
    held = writer.desk.store.copy(project, number)
    if held is None or held.mark != write.after["copy"]:
        return "it holds something else by now", True
    if writer.desk.decision(held) is not None:
        return "a reviewer has just submitted it; the dispute is about to be closed", True
    writer.desk.clear(project, number)
    return f"task {held.copy} of project {held.review} removed", False


def _brought(_studio: Studio, _writer: Writer, task: Task, write: WriteLogEntry) -> Outcome:
    if imported_decision(task, *write.after["brought"]) is None:
        return "the reviewer's annotation is gone", True
    return "the reviewer's annotation stays, as one more stance; delete it in Label Studio to have it as it was", True


# Part of a write -> how it is taken back: what was done or why not, and whether it was left alone.
PARTS: Mapping[str, Callable[[Studio, Writer, Task, WriteLogEntry], Outcome]] = {
    "copy": _copy,
    "overlays": _overlays,
    "keys": _keys,
    "overlap": _overlap,
    "ground_truth": _ground_truth,
    "brought": _brought,
}


def describe(undone: Undone) -> str:
    """One line for the command line."""
    names: dict[str, Any] = {
        "keys": "qc_* keys",
        "ground_truth": "ground truth",
        "copy": "copy for review",
        "brought": "decision",
    }
    verb = "left alone, " if undone.left else ""
    return f"task {undone.task}: {names.get(undone.part, undone.part)}: {verb}{undone.text}"
