"""Stores which tasks were sent back to which annotator, and which contradicted ground truths were confirmed."""

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from labelloop.service.db.engine import begin_read
from qc_webhooks.decision.send_backs import SendBack
from qc_webhooks.errors import QualityControlError
from qc_webhooks.store.tables import ANNOTATIONS, CONFIRMED_TRUTHS, SEND_BACKS, TASKS

# Characters of a comment; a longer one belongs into the guideline.
MAX_COMMENT = 1000


class SendBackStore:
    """Send-backs by project, task and annotator: the last one for each."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def of_task(self, project: int, task: int) -> tuple[SendBack, ...]:
        """The send-backs of a task, oldest first."""
        query = sa.select(SEND_BACKS).where(_is_task(SEND_BACKS, project, task)).order_by(SEND_BACKS.c.sent_at)
        with begin_read(self.engine) as connection:
            return tuple(_send_back(row) for row in connection.execute(query))

    def waiting(self, project: int) -> list[int]:
        """User ids of the annotators who have tasks to redo."""
        open_ = SEND_BACKS.c.redone_at.is_(None), SEND_BACKS.c.accepted_at.is_(None)
        query = sa.select(SEND_BACKS.c.annotator).distinct().where(SEND_BACKS.c.project == project, *open_)
        with begin_read(self.engine) as connection:
            return sorted(int(annotator) for annotator in connection.scalars(query))

    def send(self, project: int, task: int, annotator: int, comment: str) -> SendBack:
        """Send a task back to an annotator; replaces what was sent to them before.

        Raises:
            QualityControlError: There is no comment, it is too long, or the annotator has no judged annotation.
        """
        text = " ".join(comment.split())
        if not text or len(text) > MAX_COMMENT:
            raise QualityControlError(
                f"A comment has 1 to {MAX_COMMENT:,} characters, not {len(text):,}.",
                fix="Say in a sentence what the annotator is to correct.",
                code="bad_comment",
                status=400,
            )
        authors = self.authors(project, task)
        if annotator not in authors:
            named = ", ".join(map(str, sorted(authors))) or "none"
            raise QualityControlError(
                f"User {annotator} has no annotation of task {task}.",
                fix=f"Choose one of its annotators: {named}.",
                code="no_annotation",
                status=404,
            )
        sent = SendBack(annotator, authors[annotator], text, time.time())
        row = {"project": project, "task": task, "annotator": annotator, "version": sent.version,
               "comment": text, "sent_at": sent.sent_at}  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(SEND_BACKS).where(_is_row(project, task, annotator)))
            connection.execute(sa.insert(SEND_BACKS).values(row))
        return sent

    def authors(self, project: int, task: int) -> dict[int, str]:
        """User id -> version of the newest annotation, of the annotators of a judged task."""
        query = sa.select(ANNOTATIONS).where(_is_task(ANNOTATIONS, project, task)).order_by(ANNOTATIONS.c.updated_at)
        with begin_read(self.engine) as connection:
            return {
                row.annotator: row.updated_at for row in connection.execute(query) if row.annotator is not None
            }  # fmt: skip

    def set_times(self, project: int, task: int, annotator: int, **times: float | None) -> None:
        """Set ``redone_at`` or ``accepted_at``."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(SEND_BACKS).where(_is_row(project, task, annotator)).values(times))

    def accept(self, project: int, task: int) -> int:
        """Accept all redone work of a task. Returns the number of annotators."""
        redone = SEND_BACKS.c.redone_at.is_not(None), SEND_BACKS.c.accepted_at.is_(None)
        with self.engine.begin() as connection:
            query = sa.update(SEND_BACKS).where(_is_task(SEND_BACKS, project, task), *redone)
            return connection.execute(query.values(accepted_at=time.time())).rowcount

    def undo(self, project: int, task: int, state: str) -> None:
        """Take back the last step of a task: the newest send-back, or the acceptance of redone work."""
        own = _is_task(SEND_BACKS, project, task)
        with self.engine.begin() as connection:
            if state == "accepted":
                connection.execute(sa.update(SEND_BACKS).where(own).values(accepted_at=None))
            elif state == "sent back":
                newest = sa.select(sa.func.max(SEND_BACKS.c.sent_at)).where(own).scalar_subquery()
                connection.execute(sa.delete(SEND_BACKS).where(own, SEND_BACKS.c.sent_at == newest))

    def project_of(self, task: int) -> int:
        """Project of a judged task; task ids are unique in a Label Studio.

        Raises:
            QualityControlError: The task is not judged.
        """
        with begin_read(self.engine) as connection:
            project = connection.scalar(sa.select(TASKS.c.project).where(TASKS.c.task == task).limit(1))
        if project is None:
            raise QualityControlError(
                f"Task {task} is not judged yet.",
                fix="Connect its project, and wait for an annotation and `labelloop worker`.",
                code="not_judged",
                status=404,
            )
        return int(project)

    def confirm_truth(self, project: int, task: int, annotation: int) -> None:
        """Confirm a ground truth that the annotators contradict."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(CONFIRMED_TRUTHS).where(_is_task(CONFIRMED_TRUTHS, project, task)))
            row = {"project": project, "task": task, "annotation": annotation}
            connection.execute(sa.insert(CONFIRMED_TRUTHS).values(row))

    def confirmed_truth(self, project: int, task: int) -> int | None:
        """Id of the confirmed ground truth of a task; None without one."""
        query = sa.select(CONFIRMED_TRUTHS.c.annotation).where(_is_task(CONFIRMED_TRUTHS, project, task))
        with begin_read(self.engine) as connection:
            return connection.scalar(query)


def user_names(users: list[dict[str, Any]]) -> Mapping[int, str]:
    """User id -> the name that Label Studio shows in its lists: the email, else the id."""
    return {int(user["id"]): str(user.get("email") or f"user {user['id']}") for user in users}


def _send_back(row: Any) -> SendBack:
    return SendBack(row.annotator, row.version, row.comment, row.sent_at, row.redone_at, row.accepted_at)


def _is_task(table: sa.Table, project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.project == project, table.c.task == task)


def _is_row(project: int, task: int, annotator: int) -> sa.ColumnElement[bool]:
    return sa.and_(_is_task(SEND_BACKS, project, task), SEND_BACKS.c.annotator == annotator)
