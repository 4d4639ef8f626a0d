"""Owns the memory of lessons: what each annotated task teaches, as it was read last, and how far the poller is."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import insert_new, quick, reading
from labelloop.service.errors import LabelloopError
from ml_backend.learning.annotations import LabelledImage, TaskTrainingData
from ml_backend.learning.store.tables import PROJECTS, TASKS

_CHUNK = 500

STATES = {
    "teaches": "learned from",
    "held_out": "kept for judging",
    "left_out": "left out: skipped, disputed, not judged or without a photo",
}
"""The states of a task in words."""


class NotConnected(LabelloopError):
    """The project does not learn, for it was never connected."""

    code = "not_connected_to_learning"
    status = 404

    def __init__(self, project: int) -> None:
        super().__init__(
            f"Project {project} is not connected, so nothing is learned from it.",
            fix=f"Run `labelloop connect {project}` once. If that was done, give this command the same LABELLOOP_HOME, "
            "or start it in the same folder.",
        )
        self.project = project


@dataclass(frozen=True)
class ProjectState:
    """A project that learns; the fields are those of the table `learn_projects`."""

    project: int
    cursor: str = ""
    swept_at: float | None = None
    fingerprint: str = ""
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    phase_at: float | None = None
    config: str = ""
    untold_since: float | None = None


@dataclass(frozen=True)
class AnnotatedTask:
    """An annotated task with what its annotator began with; the fields are those of the table `learn_tasks`."""

    task: int
    seen: str
    reason: str
    photos: tuple[LabelledImage, ...]
    shown: tuple[LabelledImage, ...] | None
    shown_version: str
    annotator: int | None
    lead_time: float | None
    drawn_at: str


class TrainingDataStore:
    """Projects and lessons in the database. Safe from any thread, process or machine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def projects(self) -> list[ProjectState]:
        """Every project that is connected, by id."""
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.project)).all()
        return [_learner(row) for row in rows]

    def project(self, project: int) -> ProjectState | None:
        """One project; None where it is not connected."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(PROJECTS).where(PROJECTS.c.project == project)).first()
        return _learner(row) if row is not None else None

    def connect(self, project: int) -> bool:
        """Adds a project; False where it was there."""
        row = {
            "project": project, "connected_at": time.time(), "cursor": "", "fingerprint": "", "phase": "",
            "phase_done": 0, "phase_total": 0, "config": "",
        }  # fmt: skip
        with self.engine.begin() as connection:
            return insert_new(connection, PROJECTS, row, conflict=("project",))

    def disconnect(self, project: int) -> None:
        """Forgets a project that is no longer in Label Studio; its runs stay."""
        with self.engine.begin() as connection:
            for table in (PROJECTS, TASKS):
                connection.execute(sa.delete(table).where(table.c.project == project))

    def update_project(self, project: int, **values: Any) -> None:
        """Changes fields of a project."""
        with quick(self.engine) as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(values))

    def phase(self, project: int, phase: str, done: int = 0, total: int = 0) -> None:
        """What is being done for the project now, for those who watch; empty: nothing."""
        self.update_project(project, phase=phase, phase_done=done, phase_total=total, phase_at=time.time())

    def seen(self, project: int, tasks: Iterable[int] | None = None) -> dict[int, str]:
        """The checksum of each task as it was read last, of all or of these; tasks that are gone are not named."""
        found: dict[int, str] = {}
        wanted = [None] if tasks is None else _chunks(sorted(set(tasks)))
        with reading(self.engine) as connection:
            for some in wanted:
                query = sa.select(TASKS.c.task, TASKS.c.seen).where(TASKS.c.project == project, TASKS.c.state != "gone")
                if some is not None:
                    query = query.where(TASKS.c.task.in_(some))
                found |= {row.task: row.seen for row in connection.execute(query)}
        return found

    def tasks_of_annotations(self, project: int, annotations: Iterable[int]) -> set[int]:
        """The tasks that these annotations were read in; deletions do not name their task."""
        wanted = set(annotations)
        with reading(self.engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.task, TASKS.c.annotations).where(TASKS.c.project == project, TASKS.c.state != "gone")
            )
            return {row.task for row in rows if wanted & set(msgspec.json.decode(row.annotations))}

    def keep(self, project: int, found: Sequence[TaskTrainingData]) -> None:
        """Notes what these tasks teach now."""
        now = time.time()
        with quick(self.engine) as connection:
            for one in found:
                values = {
                    "seen": one.seen, "state": one.state, "reason": one.reason, "annotations": _json(one.annotations),
                    "photos": _json(one.photos), "boxes": one.boxes,
                    "shown": None if one.shown is None else _json(one.shown), "shown_version": one.shown_version,
                    "annotator": one.annotator, "lead_time": one.lead_time, "drawn_at": one.drawn_at, "read_at": now,
                }  # fmt: skip
                mine = (TASKS.c.project == project) & (TASKS.c.task == one.task)
                before = connection.execute(sa.select(TASKS.c.shown).where(mine)).first()
                if before is None:
                    connection.execute(sa.insert(TASKS).values(project=project, task=one.task, learned=None, **values))
                    continue
                if one.shown is None and before.shown is not None:  # its prediction was pruned meanwhile
                    del values["shown"], values["shown_version"]
                connection.execute(sa.update(TASKS).where(mine).values(values))

    def drop(self, project: int, tasks: Iterable[int]) -> None:
        """These tasks have no annotation any more, or are not there."""
        with quick(self.engine) as connection:
            for some in _chunks(sorted(set(tasks))):
                mine = (TASKS.c.project == project) & TASKS.c.task.in_(some)
                gone = {"state": "gone", "seen": "", "annotations": "[]", "photos": "[]", "boxes": 0}
                connection.execute(sa.update(TASKS).where(mine).values(**gone, reason="", read_at=time.time()))

    def training_tasks(
        self, project: int, *states: str, only: Iterable[int] | None = None
    ) -> list[tuple[int, str, tuple[LabelledImage, ...]]]:
        """(task, its checksum, its photos) of every task in these states (all that count), by task.

        Args:
            project: Its number.
            states: `teaches`, `held_out`.
            only: Of these tasks, a few.
        """
        query = sa.select(TASKS.c.task, TASKS.c.seen, TASKS.c.photos).where(
            TASKS.c.project == project, TASKS.c.state.in_(states or ("teaches", "held_out"))
        )
        if only is not None:
            query = query.where(TASKS.c.task.in_(sorted(only)))
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.task)).all()
        return [(row.task, row.seen, msgspec.json.decode(row.photos, type=tuple[LabelledImage, ...])) for row in rows]

    def tasks_without_prediction(self, project: int) -> list[tuple[int, tuple[LabelledImage, ...]]]:
        """(task, its photos) of those that what is served did not learn from and that nobody was asked about so far."""
        query = sa.select(TASKS.c.task, TASKS.c.photos).where(
            TASKS.c.project == project, TASKS.c.state == "teaches", TASKS.c.learned.is_(None), TASKS.c.found.is_(None)
        )
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at.desc(), TASKS.c.task.desc())).all()
        return [(row.task, msgspec.json.decode(row.photos, type=tuple[LabelledImage, ...])) for row in rows]

    def answer(self, project: int, found: Mapping[int, Sequence[LabelledImage]]) -> None:
        """Notes what was found on the photos of tasks by what had not learned from them."""
        with quick(self.engine) as connection:
            for task, photos in found.items():
                mine = (TASKS.c.project == project) & (TASKS.c.task == task)
                connection.execute(sa.update(TASKS).where(mine).values(found=_json(tuple(photos))))

    def answered(self, project: int) -> list[tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]]:
        """(what was drawn, what had been found) of the tasks that are learned from, the last drawn first."""
        query = sa.select(TASKS.c.photos, TASKS.c.found).where(
            TASKS.c.project == project, TASKS.c.state == "teaches", TASKS.c.found.is_not(None)
        )
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at.desc(), TASKS.c.task.desc())).all()
        many = tuple[LabelledImage, ...]
        return [(msgspec.json.decode(row.photos, type=many), msgspec.json.decode(row.found, type=many)) for row in rows]

    def worked(self, project: int) -> list[AnnotatedTask]:
        """Every task that was annotated and counts, in the order of drawing."""
        query = sa.select(TASKS).where(TASKS.c.project == project, TASKS.c.state.in_(("teaches", "held_out")))
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at, TASKS.c.task)).all()
        return [_worked(row) for row in rows]

    def counts(self, project: int) -> dict[str, int]:
        """How many tasks are in each state."""
        with reading(self.engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.state, sa.func.count()).where(TASKS.c.project == project).group_by(TASKS.c.state)
            ).all()
        return {str(state): int(count) for state, count in rows}

    def withdrawn(self, project: int) -> int:
        """How many tasks are in the published version otherwise than they would teach now: changed or deleted since."""
        with reading(self.engine) as connection:
            changed = sa.or_(TASKS.c.state != "teaches", TASKS.c.learned != TASKS.c.seen)
            query = sa.select(sa.func.count()).where(TASKS.c.project == project, TASKS.c.learned.is_not(None), changed)
            return int(connection.scalar(query) or 0)

    def published(self, project: int, learned: dict[int, str]) -> None:
        """These lessons (task -> checksum) are in what is served now, and no others."""
        with quick(self.engine) as connection:
            mine = TASKS.c.project == project
            connection.execute(sa.update(TASKS).where(mine, TASKS.c.learned.is_not(None)).values(learned=None))
            # One statement each: the checksum is what was learned, whatever the row says by now.
            rows = [{"one": task, "was": seen} for task, seen in learned.items()]
            if rows:
                statement = sa.update(TASKS).where(mine, TASKS.c.task == sa.bindparam("one"))
                connection.execute(statement.values(learned=sa.bindparam("was")), rows)
            connection.execute(sa.delete(TASKS).where(mine, TASKS.c.state == "gone"))


def fingerprint(lessons: Iterable[tuple[int, str]], *more: str) -> str:
    """A checksum of lessons (task, checksum) and of all else that decides what is learned from them."""
    lines = [*(f"{task} {seen}" for task, seen in sorted(lessons)), *more]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _learner(row: Any) -> ProjectState:
    names = ProjectState.__dataclass_fields__
    return ProjectState(**{name: getattr(row, name) for name in names})


def _worked(row: Any) -> AnnotatedTask:
    many = tuple[LabelledImage, ...]
    shown = None if row.shown is None else msgspec.json.decode(row.shown, type=many)
    photos = msgspec.json.decode(row.photos, type=many)
    told = (row.shown_version or "", row.annotator, row.lead_time, row.drawn_at or "")
    return AnnotatedTask(row.task, row.seen, row.reason, photos, shown, *told)


def _chunks(tasks: Sequence[int]) -> list[Sequence[int]]:
    return [tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK)]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
