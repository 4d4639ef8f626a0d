"""Table `learn_looks`: all tasks of a project with their image vectors and their rank in the queue.

No query reads more rows than it returns: a project may have a hundred thousand open tasks.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, begin_relaxed, upsert
from labelloop.service.studio.task_cache import chunks, stamp_text
from labelloop.service.studio.tasks import TaskStamp
from ml_backend.detection.detections import Floats
from ml_backend.learning.store.tables import MIRRORS, TASK_VECTORS

_CHUNK = 500
# Added to `turn` of a task whose image could not be loaded, so that the others go first.
RETRY_OFFSET = 2**32

# Attempts in the background to load an image, until its task changes.
MAX_TRIES = 3


@dataclass(frozen=True, eq=False)
class TaskFeatures:
    """Stored features of a task's images.

    Attributes:
        photo: Checksum of their URLs; empty: no vector.
        vector: (d,) float32, L2-normalised; None without one.
        version: Learned version that predicted it last; empty: none.
        uncertainty: See `acquisition.uncertainty`; None without detections or predictions.
    """

    photo: str
    vector: Floats | None
    version: str = ""
    uncertainty: float | None = None


@dataclass(frozen=True)
class QueuedTask:
    """An open task, its score (lowest is served first) and its uncertainty (None without detections)."""

    task: int
    score: float
    uncertainty: float | None


class TaskVectorStore:
    """The table `learn_looks`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def features(self, project: int, backbone: str, tasks: Iterable[int]) -> dict[int, TaskFeatures]:
        """Return the features of tasks; vectors of other backbones are ignored."""
        features: dict[int, TaskFeatures] = {}
        for row in _rows(
            self.engine,
            project,
            tasks,
            TASK_VECTORS.c.photo,
            TASK_VECTORS.c.vector,
            TASK_VECTORS.c.version,
            TASK_VECTORS.c.doubt,
            TASK_VECTORS.c.backbone,
        ):
            if row.backbone == backbone and row.vector:
                features[row.task] = TaskFeatures(row.photo, np.frombuffer(row.vector, "<f4"), row.version, row.doubt)
            else:
                features[row.task] = TaskFeatures("", None)
        return features

    def vectors(self, project: int, backbone: str, tasks: Iterable[int]) -> tuple[list[int], Floats]:
        """Return (the tasks with a vector of this backbone in the given order, their vectors (n, d) float32)."""
        wanted = list(tasks)
        blobs = {
            row.task: row.vector
            for row in _rows(self.engine, project, wanted, TASK_VECTORS.c.vector, TASK_VECTORS.c.backbone)
            if row.backbone == backbone and row.vector
        }
        present = [task for task in wanted if task in blobs]
        block = np.frombuffer(b"".join(blobs[task] for task in present), "<f4")
        return present, block.reshape(len(present), -1) if present else np.zeros((0, 0), np.float32)

    def with_vectors(self, project: int, backbone: str, tasks: Iterable[int]) -> set[int]:
        """Return the tasks that have a vector of this backbone."""
        rows = _rows(self.engine, project, tasks, TASK_VECTORS.c.backbone, TASK_VECTORS.c.chance)
        return {row.task for row in rows if row.backbone == backbone and row.chance is not None}

    def by_uncertainty(self, project: int, version: str, *, empty: bool, fresh: bool, limit: int) -> list[int]:
        """Return open tasks without a pre-label of a version.

        Args:
            project: The project id.
            version: The version of the pre-labels.
            empty: True: tasks without detections, by id; False: the others, most uncertain first.
            fresh: With `empty`, whether to include tasks that no learned version has predicted.
            limit: Most tasks returned.
        """
        query = sa.select(TASK_VECTORS.c.task).where(*_open(project), TASK_VECTORS.c.prelabel != version)
        if empty:
            query = query.where(TASK_VECTORS.c.doubt.is_(None)).order_by(TASK_VECTORS.c.task)
            query = query if fresh else query.where(TASK_VECTORS.c.version != "")
        else:
            query = query.where(TASK_VECTORS.c.doubt.is_not(None)).order_by(
                TASK_VECTORS.c.doubt.desc(), TASK_VECTORS.c.task
            )
        return self._numbers(query.limit(limit))

    def random_sample(self, project: int, version: str, *, limit: int) -> list[int]:
        """Return open tasks with a vector that no learned version has predicted, in random order."""
        query = sa.select(TASK_VECTORS.c.task).where(
            *_open(project),
            TASK_VECTORS.c.prelabel != version,
            TASK_VECTORS.c.version == "",
            TASK_VECTORS.c.chance.is_not(None),
        )
        return self._numbers(query.order_by(TASK_VECTORS.c.chance, TASK_VECTORS.c.task).limit(limit))

    def without_vectors(self, project: int, version: str, *, limit: int) -> list[int]:
        """Return open tasks without a vector, in random order; tasks whose images could not be loaded come last."""
        query = sa.select(TASK_VECTORS.c.task).where(
            *_open(project), TASK_VECTORS.c.prelabel != version, TASK_VECTORS.c.chance.is_(None)
        )
        return self._numbers(query.order_by(TASK_VECTORS.c.turn, TASK_VECTORS.c.task).limit(limit))

    def next_to_embed(self, project: int, *, tries: int = MAX_TRIES, limit: int) -> list[int]:
        """Return the next open tasks to embed, in random order."""
        query = sa.select(TASK_VECTORS.c.task).where(
            *_open(project), TASK_VECTORS.c.chance.is_(None), TASK_VECTORS.c.turn < tries * RETRY_OFFSET
        )
        return self._numbers(query.order_by(TASK_VECTORS.c.turn, TASK_VECTORS.c.task).limit(limit))

    def prelabelled(self, project: int, version: str, *, limit: int) -> list[int]:
        """Return open tasks with a pre-label of a version, in the order they are served."""
        query = sa.select(TASK_VECTORS.c.task).where(*_open(project), TASK_VECTORS.c.prelabel == version)
        return self._numbers(query.order_by(TASK_VECTORS.c.score, TASK_VECTORS.c.task).limit(limit))

    def annotated(self, project: int, tasks: Iterable[int]) -> set[int]:
        """Return the tasks that have an annotation or a skip."""
        return {
            row.task
            for row in _rows(self.engine, project, tasks, TASK_VECTORS.c.live, TASK_VECTORS.c.skipped)
            if row.live + row.skipped
        }

    def queued(self, project: int, version: str, *, limit: int) -> list[QueuedTask]:
        """Return the open tasks predicted by a learned version, in the order they are served."""
        query = sa.select(TASK_VECTORS.c.task, TASK_VECTORS.c.score, TASK_VECTORS.c.doubt).where(
            *_seen_by(project, version)
        )
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(TASK_VECTORS.c.score, TASK_VECTORS.c.task).limit(limit))
            return [QueuedTask(row.task, row.score, row.doubt) for row in rows]

    def count_open(self, project: int) -> int:
        """Count the open tasks."""
        return self._count(_open(project))

    def count_queued(self, project: int, version: str) -> int:
        """Count the open tasks predicted by a learned version."""
        return self._count(_seen_by(project, version))

    def count_prelabelled(self, project: int, version: str, *, open_only: bool = True) -> int:
        """Count the tasks with a recorded pre-label of a version."""
        where = _open(project) if open_only else (TASK_VECTORS.c.project == project,)
        return self._count((*where, TASK_VECTORS.c.prelabel == version))

    def save_vectors(
        self, project: int, backbone: str, vectors: Mapping[int, tuple[str, Floats]], *, annotated: bool = False
    ) -> None:
        """Insert or update the vectors of tasks.

        Args:
            project: The project id.
            backbone: The backbone's version.
            vectors: (checksum of the image URLs, vector) by task.
            annotated: Whether to insert missing tasks as annotated.
        """
        rows = []
        for task, (photo, vector) in vectors.items():
            blob = vector.astype("<f4").tobytes()
            rows.append(_row(project, task, photo=photo, vector=blob, chance=zlib.crc32(blob), backbone=backbone,
                             live=int(annotated)))  # fmt: skip
        changed = ("photo", "vector", "chance", "backbone", "version", "doubt")
        _put(self.engine, rows, changed)

    def mark_failed(self, project: int, tasks: Iterable[int]) -> None:
        """Move tasks whose images could not be loaded to the end of the embedding order."""
        with begin_relaxed(self.engine) as connection:
            for chunk in chunks(tasks, _CHUNK):
                where = (TASK_VECTORS.c.project == project) & TASK_VECTORS.c.task.in_(chunk)
                connection.execute(sa.update(TASK_VECTORS).where(where).values(turn=TASK_VECTORS.c.turn + RETRY_OFFSET))

    def reset_images(self, project: int, tasks: Collection[int]) -> None:
        """Delete the features of tasks whose images changed."""
        with begin_relaxed(self.engine) as connection:
            for chunk in chunks(tasks, _CHUNK):
                where = (TASK_VECTORS.c.project == project) & TASK_VECTORS.c.task.in_(chunk)
                connection.execute(sa.update(TASK_VECTORS).where(where).values(**_NO_FEATURES, prelabel="", score=None))

    def clear_other_backbones(self, project: int, backbone: str) -> None:
        """Delete vectors and uncertainties of other backbones."""
        with begin_relaxed(self.engine) as connection:
            others = (
                (TASK_VECTORS.c.project == project)
                & (TASK_VECTORS.c.backbone != backbone)
                & (TASK_VECTORS.c.backbone != "")
            )
            connection.execute(sa.update(TASK_VECTORS).where(others).values(**_NO_FEATURES))

    def save_uncertainties(
        self,
        project: int,
        version: str,
        uncertainties: Mapping[int, float | None],
        scores: Mapping[int, float] | None = None,
    ) -> None:
        """Record predictions of a learned version.

        Args:
            project: The project id.
            version: The version.
            uncertainties: By task; None without detections.
            scores: Scores of the pre-labels by task; None: Label Studio has no pre-labels of them.
        """
        rows: list[dict[str, Any]] = [
            {"version": version, "doubt": uncertainty, "one": task} for task, uncertainty in uncertainties.items()
        ]
        if scores is not None:
            rows = [row | {"prelabel": version, "score": scores[row["one"]]} for row in rows]
        self._update(project, rows)

    def mark_prelabelled(self, project: int, version: str, scores: Mapping[int, float | None]) -> None:
        """Record existing predictions of a version: score by task."""
        self._update(project, [{"prelabel": version, "score": score, "one": task} for task, score in scores.items()])

    def update_annotation_counts(self, project: int, annotations: Mapping[int, tuple[int, int]]) -> None:
        """Update the numbers of (annotations, skips) by task."""
        rows = [{"live": live, "skipped": skipped, "one": task} for task, (live, skipped) in annotations.items()]
        self._update(project, rows)

    def clear_prelabels(self, project: int, version: str) -> None:
        """Forget the predictions of a version that were deleted."""
        with begin_relaxed(self.engine) as connection:
            where = (TASK_VECTORS.c.project == project) & (TASK_VECTORS.c.prelabel == version)
            connection.execute(sa.update(TASK_VECTORS).where(where).values(prelabel="", score=None))

    def add(self, project: int, tasks: Iterable[int]) -> None:
        """Insert open tasks before the project is read; existing rows are kept."""
        _put(self.engine, [_row(project, task) for task in tasks], ())

    def drop(self, project: int, tasks: Iterable[int] | None = None) -> None:
        """Delete tasks, or all tasks of the project."""
        with begin_relaxed(self.engine) as connection:
            if tasks is None:
                for table in (TASK_VECTORS, MIRRORS):
                    connection.execute(sa.delete(table).where(table.c.project == project))
                return
            for chunk in chunks(tasks, _CHUNK):
                connection.execute(
                    sa.delete(TASK_VECTORS).where(TASK_VECTORS.c.project == project, TASK_VECTORS.c.task.in_(chunk))
                )

    def mirror(self, project: int) -> TaskCopy:
        """The project's rows, as a mirror for `IncrementalSync`."""
        return TaskCopy(self.engine, project)

    def _update(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        where = (TASK_VECTORS.c.project == project) & (TASK_VECTORS.c.task == sa.bindparam("one"))
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in rows[0] if name != "one"}
        params = [{name if name == "one" else f"new_{name}": value for name, value in row.items()} for row in rows]
        with begin_relaxed(self.engine) as connection:
            connection.execute(sa.update(TASK_VECTORS).where(where).values(values), params)

    def _numbers(self, query: sa.Select[tuple[int]]) -> list[int]:
        with begin_read(self.engine) as connection:
            return list(connection.scalars(query))

    def _count(self, where: Iterable[sa.ColumnElement[bool]]) -> int:
        with begin_read(self.engine) as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(TASK_VECTORS).where(*where)) or 0)


class TaskCopy:
    """A project's rows of `learn_looks` as a copy of its tasks; see `labelloop.service.studio.task_cache.Copy`."""

    def __init__(self, engine: sa.Engine, project: int) -> None:
        self._engine, self._project = engine, project

    def get_state(self, name: str) -> str:
        """Return a value of the sync state; empty if missing."""
        with begin_read(self._engine) as connection:
            return self._notes(connection).get(name, "")

    def set_state(self, **notes: str) -> None:
        """Store values of the sync state; an empty value is deleted."""
        with begin_relaxed(self._engine) as connection:
            stored = {name: value for name, value in (self._notes(connection) | notes).items() if value}
            row = {"project": self._project, "notes": msgspec.json.encode(stored).decode()}
            upsert(connection, MIRRORS, [row], conflict=("project",), update=("notes",))

    def put(self, marks: Iterable[TaskStamp]) -> int:
        """Insert or update tasks, keeping their features; returns how many."""
        done = 0
        for chunk in chunks(marks, _CHUNK):
            rows = [
                _row(self._project, mark.id, mark=stamp_text(mark), live=mark.total_annotations,
                     skipped=mark.cancelled_annotations)
                for mark in chunk
            ]  # fmt: skip
            _put(self._engine, rows, ("mark", "live", "skipped", "turn"))
            done += len(chunk)
        return done

    def remove(self, ids: Iterable[int]) -> None:
        """Delete tasks."""
        TaskVectorStore(self._engine).drop(self._project, ids)

    def last(self) -> int:
        """Return the largest task id read so far; 0 without any."""
        with begin_read(self._engine) as connection:
            where = (TASK_VECTORS.c.project == self._project, TASK_VECTORS.c.mark != "")
            return int(connection.scalar(sa.select(sa.func.max(TASK_VECTORS.c.task)).where(*where)) or 0)

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of tasks, annotations and skips."""
        sums = (sa.func.coalesce(sa.func.sum(column), 0) for column in (TASK_VECTORS.c.live, TASK_VECTORS.c.skipped))
        with begin_read(self._engine) as connection:
            query = sa.select(sa.func.count(), *sums).where(TASK_VECTORS.c.project == self._project)
            count, live, skipped = connection.execute(query).one()
        return int(count), int(live), int(skipped)

    def stamps(self, ids: Collection[int]) -> dict[int, str]:
        """Return the mark of each existing task."""
        return {row.task: row.mark for row in _rows(self._engine, self._project, ids, TASK_VECTORS.c.mark)}

    def stamps_between(self, after: int, until: int | None) -> dict[int, str]:
        """Return the mark of each task with after < id <= until; None: no upper bound."""
        query = sa.select(TASK_VECTORS.c.task, TASK_VECTORS.c.mark).where(
            TASK_VECTORS.c.project == self._project, TASK_VECTORS.c.task > after
        )
        with begin_read(self._engine) as connection:
            rows = connection.execute(query if until is None else query.where(TASK_VECTORS.c.task <= until))
            return {row.task: row.mark for row in rows}

    def _notes(self, connection: sa.Connection) -> dict[str, str]:
        text = connection.scalar(sa.select(MIRRORS.c.notes).where(MIRRORS.c.project == self._project))
        return {} if text is None else msgspec.json.decode(text, type=dict[str, str])


def image_key_of(addresses: Sequence[str]) -> str:
    """Return a checksum of the URLs of a task's images."""
    return hashlib.sha256("\n".join(addresses).encode()).hexdigest()[:24]


def turn_of(project: int, task: int) -> int:
    """Return the deterministic random rank of a task in the embedding order."""
    return zlib.crc32(f"labelloop turn {project} {task}".encode())


_NO_FEATURES: Mapping[str, Any] = {
    "backbone": "", "photo": "", "vector": b"", "chance": None, "version": "", "doubt": None,
}  # fmt: skip


def _row(project: int, task: int, **values: Any) -> dict[str, Any]:
    """Return a full row with these values and defaults for the others."""
    return {
        "project": project, "task": task, **_NO_FEATURES, "score": None, "mark": "", "live": 0, "skipped": 0,
        "turn": turn_of(project, task), "prelabel": "", **values,
    }  # fmt: skip


def _put(engine: sa.Engine, rows: Sequence[Mapping[str, Any]], changed: Sequence[str]) -> None:
    with begin_relaxed(engine) as connection:
        for chunk in chunks(rows, _CHUNK):
            upsert(connection, TASK_VECTORS, chunk, conflict=("project", "task"), update=changed)


def _rows(engine: sa.Engine, project: int, tasks: Iterable[int], *columns: sa.Column[Any]) -> list[sa.Row[Any]]:
    result: list[sa.Row[Any]] = []
    with begin_read(engine) as connection:
        for chunk in chunks(tasks, _CHUNK):
            query = sa.select(TASK_VECTORS.c.task, *columns).where(
                TASK_VECTORS.c.project == project, TASK_VECTORS.c.task.in_(chunk)
            )
            result += connection.execute(query).all()
    return result


def _open(project: int) -> tuple[sa.ColumnElement[bool], ...]:
    return TASK_VECTORS.c.project == project, TASK_VECTORS.c.live == 0, TASK_VECTORS.c.skipped == 0


def _seen_by(project: int, version: str) -> tuple[sa.ColumnElement[bool], ...]:
    return *_open(project), TASK_VECTORS.c.version == version, TASK_VECTORS.c.score.is_not(None)
