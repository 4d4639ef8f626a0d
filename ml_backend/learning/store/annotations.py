"""Tables `learn_projects` and `learn_tasks`: connected projects and the training data of their annotated tasks."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, begin_relaxed, insert_if_absent
from labelloop.service.errors import LabelloopError
from ml_backend.learning.annotations import LabelledImage, TaskTrainingData
from ml_backend.learning.store.tables import PROJECTS, TASKS

_CHUNK = 500

# Text of each task state.
STATES = {
    "teaches": "learned from",
    "held_out": "held out for evaluation",
    "left_out": "left out: skipped, disputed, not judged or without an image",
}


class NotConnectedToLearning(LabelloopError):
    """The project does not learn, because it was never connected."""

    code = "not_connected_to_learning"
    status = 404
    message = "Project {project} is not connected, so nothing is learned from it."
    fix = (
        "Run `labelloop connect {project}` once. If it is connected, run this command with the same "
        "LABELLOOP_HOME, or in the same folder."
    )


@dataclass(frozen=True)
class ProjectState:
    """A connected project; the fields are columns of the table `learn_projects`."""

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
    withheld: str | None = None


@dataclass(frozen=True)
class AnnotatedTask:
    """An annotated task and the pre-labels its annotator started from; see the table `learn_tasks`."""

    task: int
    checksum: str
    reason: str
    photos: tuple[LabelledImage, ...]
    prelabels: tuple[LabelledImage, ...] | None
    prelabel_version: str
    annotator: int | None
    lead_time: float | None
    drawn_at: str


class TrainingDataStore:
    """Projects and training data in the database. Safe to use from several threads, processes and machines."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def projects(self) -> list[ProjectState]:
        """Return every connected project, by id."""
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.project)).all()
        return [_project_state(row) for row in rows]

    def project(self, project: int) -> ProjectState | None:
        """Return one project; None if it is not connected."""
        with begin_read(self.engine) as connection:
            row = connection.execute(sa.select(PROJECTS).where(PROJECTS.c.project == project)).first()
        return _project_state(row) if row is not None else None

    def connect(self, project: int) -> bool:
        """Add a project; returns False if it exists."""
        row = {
            "project": project, "connected_at": time.time(), "cursor": "", "fingerprint": "", "phase": "",
            "phase_done": 0, "phase_total": 0, "config": "",
        }  # fmt: skip
        with self.engine.begin() as connection:
            return insert_if_absent(connection, PROJECTS, row, conflict=("project",))

    def disconnect(self, project: int) -> None:
        """Delete a project that is gone from Label Studio; its runs are kept."""
        with self.engine.begin() as connection:
            for table in (PROJECTS, TASKS):
                connection.execute(sa.delete(table).where(table.c.project == project))

    def update_project(self, project: int, **values: Any) -> None:
        """Update columns of a project."""
        with begin_relaxed(self.engine) as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(values))

    def set_phase(self, project: int, phase: str, done: int = 0, total: int = 0) -> None:
        """Store the current phase of the project's run and its progress; empty: idle."""
        self.update_project(project, phase=phase, phase_done=done, phase_total=total, phase_at=time.time())

    def checksums(self, project: int, tasks: Iterable[int] | None = None) -> dict[int, str]:
        """Return the stored checksum of all or of these tasks, without tasks that are gone."""
        checksums: dict[int, str] = {}
        wanted = [None] if tasks is None else _chunks(sorted(set(tasks)))
        with begin_read(self.engine) as connection:
            for chunk in wanted:
                query = sa.select(TASKS.c.task, TASKS.c.seen).where(TASKS.c.project == project, TASKS.c.state != "gone")
                if chunk is not None:
                    query = query.where(TASKS.c.task.in_(chunk))
                checksums |= {row.task: row.seen for row in connection.execute(query)}
        return checksums

    def tasks_of_annotations(self, project: int, annotations: Iterable[int]) -> set[int]:
        """Return the tasks of these annotations; deletion events do not name the task."""
        wanted = set(annotations)
        with begin_read(self.engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.task, TASKS.c.annotations).where(TASKS.c.project == project, TASKS.c.state != "gone")
            )
            return {row.task for row in rows if wanted & set(msgspec.json.decode(row.annotations))}

    def save(self, project: int, training_data: Sequence[TaskTrainingData]) -> None:
        """Insert or update the training data of tasks."""
        now = time.time()
        with begin_relaxed(self.engine) as connection:
            for item in training_data:
                values = {
                    "seen": item.checksum,
                    "state": item.state,
                    "reason": item.reason,
                    "annotations": _json(item.annotations),
                    "photos": _json(item.photos),
                    "boxes": item.boxes,
                    "shown": None if item.prelabels is None else _json(item.prelabels),
                    "shown_version": item.prelabel_version,
                    "annotator": item.annotator,
                    "lead_time": item.lead_time,
                    "drawn_at": item.drawn_at,
                    "read_at": now,
                }
                where = (TASKS.c.project == project) & (TASKS.c.task == item.task)
                before = connection.execute(sa.select(TASKS.c.shown).where(where)).first()
                if before is None:
                    connection.execute(sa.insert(TASKS).values(project=project, task=item.task, learned=None, **values))
                    continue
                if item.prelabels is None and before.shown is not None:  # its prediction was deleted meanwhile
                    del values["shown"], values["shown_version"]
                connection.execute(sa.update(TASKS).where(where).values(values))

    def mark_gone(self, project: int, tasks: Iterable[int]) -> None:
        """Mark tasks that are deleted or have no annotation any more."""
        with begin_relaxed(self.engine) as connection:
            for chunk in _chunks(sorted(set(tasks))):
                where = (TASKS.c.project == project) & TASKS.c.task.in_(chunk)
                gone = {"state": "gone", "seen": "", "annotations": "[]", "photos": "[]", "boxes": 0}
                connection.execute(sa.update(TASKS).where(where).values(**gone, reason="", read_at=time.time()))

    def drawn_at(self, project: int) -> dict[int, str]:
        """Return when the annotation that counts was drawn, Label Studio's text, of every labelled task."""
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(TASKS.c.task, TASKS.c.drawn_at).where(TASKS.c.project == project))
            return {int(row.task): str(row.drawn_at or "") for row in rows}

    def training_tasks(
        self, project: int, *states: str, only: Iterable[int] | None = None
    ) -> list[tuple[int, str, tuple[LabelledImage, ...]]]:
        """Return (task, checksum, labelled images) of the tasks in these states, by task id.

        Args:
            project: The project id.
            states: `teaches` and/or `held_out`; default both.
            only: Restrict to these tasks.
        """
        query = sa.select(TASKS.c.task, TASKS.c.seen, TASKS.c.photos).where(
            TASKS.c.project == project, TASKS.c.state.in_(states or ("teaches", "held_out"))
        )
        if only is not None:
            query = query.where(TASKS.c.task.in_(sorted(only)))
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.task)).all()
        return [(row.task, row.seen, msgspec.json.decode(row.photos, type=tuple[LabelledImage, ...])) for row in rows]

    def tasks_without_prediction(self, project: int) -> list[tuple[int, tuple[LabelledImage, ...]]]:
        """Return (task, labelled images) of training tasks not in the served version and without stored predictions."""
        query = sa.select(TASKS.c.task, TASKS.c.photos).where(
            TASKS.c.project == project, TASKS.c.state == "teaches", TASKS.c.learned.is_(None), TASKS.c.found.is_(None)
        )
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at.desc(), TASKS.c.task.desc())).all()
        return [(row.task, msgspec.json.decode(row.photos, type=tuple[LabelledImage, ...])) for row in rows]

    def save_predictions(self, project: int, predictions: Mapping[int, Sequence[LabelledImage]]) -> None:
        """Store predictions of the served version on tasks it was not trained on."""
        with begin_relaxed(self.engine) as connection:
            for task, photos in predictions.items():
                where = (TASKS.c.project == project) & (TASKS.c.task == task)
                connection.execute(sa.update(TASKS).where(where).values(found=_json(tuple(photos))))

    def predictions(self, project: int) -> list[tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]]:
        """Return (labelled images, stored predictions) of training tasks, most recently annotated first."""
        query = sa.select(TASKS.c.photos, TASKS.c.found).where(
            TASKS.c.project == project, TASKS.c.state == "teaches", TASKS.c.found.is_not(None)
        )
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at.desc(), TASKS.c.task.desc())).all()
        many = tuple[LabelledImage, ...]
        return [(msgspec.json.decode(row.photos, type=many), msgspec.json.decode(row.found, type=many)) for row in rows]

    def annotated_tasks(self, project: int) -> list[AnnotatedTask]:
        """Return every training and held-out task, in order of annotation."""
        query = sa.select(TASKS).where(TASKS.c.project == project, TASKS.c.state.in_(("teaches", "held_out")))
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(TASKS.c.drawn_at, TASKS.c.task)).all()
        return [_annotated_task(row) for row in rows]

    def counts(self, project: int) -> dict[str, int]:
        """Return the number of tasks in each state."""
        with begin_read(self.engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.state, sa.func.count()).where(TASKS.c.project == project).group_by(TASKS.c.state)
            ).all()
        return {str(state): int(count) for state, count in rows}

    def count_withdrawn(self, project: int) -> int:
        """Count tasks in the published version whose annotations were changed or deleted since."""
        with begin_read(self.engine) as connection:
            changed = sa.or_(TASKS.c.state != "teaches", TASKS.c.learned != TASKS.c.seen)
            query = sa.select(sa.func.count()).where(TASKS.c.project == project, TASKS.c.learned.is_not(None), changed)
            return int(connection.scalar(query) or 0)

    def mark_published(self, project: int, learned: dict[int, str]) -> None:
        """Record the training data of the served version: checksum by task."""
        with begin_relaxed(self.engine) as connection:
            where = TASKS.c.project == project
            connection.execute(sa.update(TASKS).where(where, TASKS.c.learned.is_not(None)).values(learned=None))
            # The checksum that was trained on, which may differ from the row by now.
            rows = [{"one": task, "was": checksum} for task, checksum in learned.items()]
            if rows:
                statement = sa.update(TASKS).where(where, TASKS.c.task == sa.bindparam("one"))
                connection.execute(statement.values(learned=sa.bindparam("was")), rows)
            connection.execute(sa.delete(TASKS).where(where, TASKS.c.state == "gone"))


def fingerprint(training: Iterable[tuple[int, str]], *more: str) -> str:
    """Return a checksum of the training data (task, checksum) and of everything else that determines a run's result."""
    lines = [*(f"{task} {checksum}" for task, checksum in sorted(training)), *more]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _project_state(row: Any) -> ProjectState:
    names = ProjectState.__dataclass_fields__
    return ProjectState(**{name: getattr(row, name) for name in names})


def _annotated_task(row: Any) -> AnnotatedTask:
    many = tuple[LabelledImage, ...]
    prelabels = None if row.shown is None else msgspec.json.decode(row.shown, type=many)
    photos = msgspec.json.decode(row.photos, type=many)
    rest = (row.shown_version or "", row.annotator, row.lead_time, row.drawn_at or "")
    return AnnotatedTask(row.task, row.seen, row.reason, photos, prelabels, *rest)


def _chunks(tasks: Sequence[int]) -> list[Sequence[int]]:
    return [tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK)]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
