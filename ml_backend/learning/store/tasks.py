"""Owns the table of a project's tasks: which are open, what their photos show as a whole, their place in the queue.

No question here reads more than what it answers with: a project may have a hundred thousand open tasks.
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

from labelloop.service.db.engine import quick, reading, upsert
from labelloop.service.studio.mirror import chunks, text_of
from labelloop.service.studio.tasks import Mark
from ml_backend.detection.detections import Floats
from ml_backend.learning.store.tables import LOOKS, MIRRORS

_CHUNK = 500
FAILED = 2**32
"""Added to the turn of a task whose photo could not be had: the others go first."""

TRIES = 3
"""Times that a photo is looked for in the background, before somebody changes its task."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a task's photos.

    Attributes:
        photo: Checksum of their addresses; empty: they were not looked at.
        vector: (d,) float32 of length 1; None where there is none.
        version: Learned version that looked at it last; empty: none.
        doubt: As `acquisition.uncertainty` has it; None where nothing was seen, or nobody looked.
    """

    photo: str
    vector: Floats | None
    version: str = ""
    doubt: float | None = None


@dataclass(frozen=True)
class Waiting:
    """An open task, its place in the queue as a score (the lowest comes first), and what it promises."""

    task: int
    score: float
    doubt: float | None


class PhotoVectorStore:
    """The table `learn_looks`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def known(self, project: int, backbone: str, tasks: Iterable[int]) -> dict[int, Known]:
        """What is known of these tasks; a vector of another backbone is none."""
        found: dict[int, Known] = {}
        for row in _rows(self.engine, project, tasks, LOOKS.c.photo, LOOKS.c.vector, LOOKS.c.version, LOOKS.c.doubt,
                              LOOKS.c.backbone):  # fmt: skip
            if row.backbone == backbone and row.vector:
                found[row.task] = Known(row.photo, np.frombuffer(row.vector, "<f4"), row.version, row.doubt)
            else:
                found[row.task] = Known("", None)
        return found

    def vectors(self, project: int, backbone: str, tasks: Iterable[int]) -> tuple[list[int], Floats]:
        """(those of these tasks that have a vector of this backbone, in their order; the vectors (n, d) as a block)."""
        wanted = list(tasks)
        blobs = {
            row.task: row.vector
            for row in _rows(self.engine, project, wanted, LOOKS.c.vector, LOOKS.c.backbone)
            if row.backbone == backbone and row.vector
        }
        there = [task for task in wanted if task in blobs]
        block = np.frombuffer(b"".join(blobs[task] for task in there), "<f4")
        return there, block.reshape(len(there), -1) if there else np.zeros((0, 0), np.float32)

    def seen(self, project: int, backbone: str, tasks: Iterable[int]) -> set[int]:
        """Those of these tasks that have a vector of this backbone."""
        rows = _rows(self.engine, project, tasks, LOOKS.c.backbone, LOOKS.c.chance)
        return {row.task for row in rows if row.backbone == backbone and row.chance is not None}

    def by_doubt(self, project: int, version: str, *, empty: bool, fresh: bool, limit: int) -> list[int]:
        """Open tasks without a pre-label of a version.

        Args:
            project: Its number.
            version: That shall make pre-labels.
            empty: Those on which nothing was seen, by number; else the others, those that promise most first.
            fresh: Whether tasks that no learned version looked at are among the former.
            limit: Most that are returned.
        """
        query = sa.select(LOOKS.c.task).where(*_open(project), LOOKS.c.prelabel != version)
        if empty:
            query = query.where(LOOKS.c.doubt.is_(None)).order_by(LOOKS.c.task)
            query = query if fresh else query.where(LOOKS.c.version != "")
        else:
            query = query.where(LOOKS.c.doubt.is_not(None)).order_by(LOOKS.c.doubt.desc(), LOOKS.c.task)
        return self._numbers(query.limit(limit))

    def by_chance(self, project: int, version: str, *, limit: int) -> list[int]:
        """Open tasks whose photos are known, that no learned version looked at, in the order of a fair sample."""
        query = sa.select(LOOKS.c.task).where(
            *_open(project), LOOKS.c.prelabel != version, LOOKS.c.version == "", LOOKS.c.chance.is_not(None)
        )
        return self._numbers(query.order_by(LOOKS.c.chance, LOOKS.c.task).limit(limit))

    def blind(self, project: int, version: str, *, limit: int) -> list[int]:
        """Open tasks whose photos are not known, by number; those that could not be had last."""
        query = sa.select(LOOKS.c.task).where(*_open(project), LOOKS.c.prelabel != version, LOOKS.c.chance.is_(None))
        return self._numbers(query.order_by(LOOKS.c.turn // FAILED, LOOKS.c.task).limit(limit))

    def unseen(self, project: int, *, tries: int = TRIES, limit: int) -> list[int]:
        """Open tasks whose photos are to be looked at next, in an order that has nothing to do with their numbers."""
        query = sa.select(LOOKS.c.task).where(*_open(project), LOOKS.c.chance.is_(None), LOOKS.c.turn < tries * FAILED)
        return self._numbers(query.order_by(LOOKS.c.turn, LOOKS.c.task).limit(limit))

    def prelabelled(self, project: int, version: str, *, limit: int) -> list[int]:
        """Open tasks with a pre-label of a version, in the order in which they are served."""
        query = sa.select(LOOKS.c.task).where(*_open(project), LOOKS.c.prelabel == version)
        return self._numbers(query.order_by(LOOKS.c.score, LOOKS.c.task).limit(limit))

    def annotated(self, project: int, tasks: Iterable[int]) -> set[int]:
        """Those of these tasks that have an annotation, a skipped one too."""
        return {
            row.task
            for row in _rows(self.engine, project, tasks, LOOKS.c.live, LOOKS.c.skipped)
            if row.live + row.skipped
        }

    def waiting(self, project: int, version: str, *, limit: int) -> list[Waiting]:
        """The open tasks that a learned version has looked at, the first to be served."""
        query = sa.select(LOOKS.c.task, LOOKS.c.score, LOOKS.c.doubt).where(*_looked(project, version))
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(LOOKS.c.score, LOOKS.c.task).limit(limit))
            return [Waiting(row.task, row.score, row.doubt) for row in rows]

    def count_open(self, project: int) -> int:
        """How many open tasks there are."""
        return self._count(_open(project))

    def count_waiting(self, project: int, version: str) -> int:
        """How many open tasks a learned version has looked at."""
        return self._count(_looked(project, version))

    def count_prelabelled(self, project: int, version: str, *, open_only: bool = True) -> int:
        """How many tasks have a pre-label of a version, as far as it was written here."""
        where = _open(project) if open_only else (LOOKS.c.project == project,)
        return self._count((*where, LOOKS.c.prelabel == version))

    def keep(
        self, project: int, backbone: str, vectors: Mapping[int, tuple[str, Floats]], *, annotated: bool = False
    ) -> None:
        """Notes vectors: task -> (checksum of its addresses, vector).

        Args:
            project: Its number.
            backbone: What they are of.
            vectors: See above.
            annotated: Whether tasks that are not here yet are annotated.
        """
        rows = []
        for task, (photo, vector) in vectors.items():
            blob = vector.astype("<f4").tobytes()
            rows.append(_row(project, task, photo=photo, vector=blob, chance=zlib.crc32(blob), backbone=backbone,
                             live=int(annotated)))  # fmt: skip
        changed = ("photo", "vector", "chance", "backbone", "version", "doubt")
        _put(self.engine, rows, changed)

    def not_seen(self, project: int, tasks: Iterable[int]) -> None:
        """The photos of these tasks could not be had: the others go first."""
        with quick(self.engine) as connection:
            for some in chunks(tasks, _CHUNK):
                mine = (LOOKS.c.project == project) & LOOKS.c.task.in_(some)
                connection.execute(sa.update(LOOKS).where(mine).values(turn=LOOKS.c.turn + FAILED))

    def forget(self, project: int, tasks: Collection[int]) -> None:
        """The photos of these tasks became others."""
        with quick(self.engine) as connection:
            for some in chunks(tasks, _CHUNK):
                mine = (LOOKS.c.project == project) & LOOKS.c.task.in_(some)
                connection.execute(sa.update(LOOKS).where(mine).values(**_NOTHING, prelabel="", score=None))

    def rebase(self, project: int, backbone: str) -> None:
        """Forgets vectors and doubts of another backbone than this."""
        with quick(self.engine) as connection:
            others = (LOOKS.c.project == project) & (LOOKS.c.backbone != backbone) & (LOOKS.c.backbone != "")
            connection.execute(sa.update(LOOKS).where(others).values(**_NOTHING))

    def looked(self, project: int, version: str, doubts: Mapping[int, tuple[float | None, float]]) -> None:
        """A learned version looked: task -> (its doubt, the score of the prediction that was written)."""
        self._update(
            project, [{"version": version, "doubt": doubt, "prelabel": version, "score": score, "one": task}
                      for task, (doubt, score) in doubts.items()]
        )  # fmt: skip

    def written(self, project: int, version: str, scores: Mapping[int, float | None]) -> None:
        """Predictions of a version are there: task -> its score."""
        self._update(project, [{"prelabel": version, "score": score, "one": task} for task, score in scores.items()])

    def counted(self, project: int, annotations: Mapping[int, tuple[int, int]]) -> None:
        """Annotations of tasks as they are now: task -> (those that count, skipped ones)."""
        rows = [{"live": live, "skipped": skipped, "one": task} for task, (live, skipped) in annotations.items()]
        self._update(project, rows)

    def unwritten(self, project: int, version: str) -> None:
        """The predictions of a version are gone."""
        with quick(self.engine) as connection:
            mine = (LOOKS.c.project == project) & (LOOKS.c.prelabel == version)
            connection.execute(sa.update(LOOKS).where(mine).values(prelabel="", score=None))

    def add(self, project: int, tasks: Iterable[int]) -> None:
        """Open tasks that were met before the project was read; what is known of them stays."""
        _put(self.engine, [_row(project, task) for task in tasks], ())

    def drop(self, project: int, tasks: Iterable[int] | None = None) -> None:
        """Forgets tasks, or the whole project."""
        with quick(self.engine) as connection:
            if tasks is None:
                for table in (LOOKS, MIRRORS):
                    connection.execute(sa.delete(table).where(table.c.project == project))
                return
            for some in chunks(tasks, _CHUNK):
                connection.execute(sa.delete(LOOKS).where(LOOKS.c.project == project, LOOKS.c.task.in_(some)))

    def copy(self, project: int) -> TaskCopy:
        """The project's rows, as a `Tracker` keeps them."""
        return TaskCopy(self.engine, project)

    def _update(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        mine = (LOOKS.c.project == project) & (LOOKS.c.task == sa.bindparam("one"))
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in rows[0] if name != "one"}
        given = [{name if name == "one" else f"new_{name}": value for name, value in row.items()} for row in rows]
        with quick(self.engine) as connection:
            connection.execute(sa.update(LOOKS).where(mine).values(values), given)

    def _numbers(self, query: sa.Select[tuple[int]]) -> list[int]:
        with reading(self.engine) as connection:
            return list(connection.scalars(query))

    def _count(self, where: Iterable[sa.ColumnElement[bool]]) -> int:
        with reading(self.engine) as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(LOOKS).where(*where)) or 0)


class TaskCopy:
    """A project's rows of `learn_looks` as a copy of its tasks; see `labelloop.service.studio.mirror.Copy`."""

    def __init__(self, engine: sa.Engine, project: int) -> None:
        self._engine, self._project = engine, project

    def note(self, name: str) -> str:
        """A value kept beside the tasks; empty where there is none."""
        with reading(self._engine) as connection:
            return self._notes(connection).get(name, "")

    def keep(self, **notes: str) -> None:
        """Keeps values; an empty one is taken away."""
        with quick(self._engine) as connection:
            told = {name: value for name, value in (self._notes(connection) | notes).items() if value}
            row = {"project": self._project, "notes": msgspec.json.encode(told).decode()}
            upsert(connection, MIRRORS, [row], conflict=("project",), changed=("notes",))

    def put(self, marks: Iterable[Mark]) -> int:
        """Writes tasks as Label Studio has them now; what is known of their photos stays. Returns how many."""
        done = 0
        for some in chunks(marks, _CHUNK):
            rows = [
                _row(self._project, one.id, mark=text_of(one), live=one.total_annotations,
                     skipped=one.cancelled_annotations)
                for one in some
            ]  # fmt: skip
            _put(self._engine, rows, ("mark", "live", "skipped", "turn"))
            done += len(some)
        return done

    def remove(self, ids: Iterable[int]) -> None:
        """Takes tasks out."""
        PhotoVectorStore(self._engine).drop(self._project, ids)

    def last(self) -> int:
        """The largest number of a task that was read; 0 without any."""
        with reading(self._engine) as connection:
            where = (LOOKS.c.project == self._project, LOOKS.c.mark != "")
            return int(connection.scalar(sa.select(sa.func.max(LOOKS.c.task)).where(*where)) or 0)

    def counts(self) -> tuple[int, int, int]:
        """How many tasks, annotations that were not skipped, and skipped ones there are."""
        sums = (sa.func.coalesce(sa.func.sum(column), 0) for column in (LOOKS.c.live, LOOKS.c.skipped))
        with reading(self._engine) as connection:
            query = sa.select(sa.func.count(), *sums).where(LOOKS.c.project == self._project)
            count, live, skipped = connection.execute(query).one()
        return int(count), int(live), int(skipped)

    def marks(self, ids: Collection[int]) -> dict[int, str]:
        """The mark of each of these tasks that is here."""
        return {row.task: row.mark for row in _rows(self._engine, self._project, ids, LOOKS.c.mark)}

    def marks_between(self, after: int, until: int | None) -> dict[int, str]:
        """The mark of each task whose id is above `after` and at most `until`; None: without an upper bound."""
        query = sa.select(LOOKS.c.task, LOOKS.c.mark).where(LOOKS.c.project == self._project, LOOKS.c.task > after)
        with reading(self._engine) as connection:
            rows = connection.execute(query if until is None else query.where(LOOKS.c.task <= until))
            return {row.task: row.mark for row in rows}

    def _notes(self, connection: sa.Connection) -> dict[str, str]:
        text = connection.scalar(sa.select(MIRRORS.c.notes).where(MIRRORS.c.project == self._project))
        return {} if text is None else msgspec.json.decode(text, type=dict[str, str])


def photo_key(addresses: Sequence[str]) -> str:
    """A checksum of the addresses of a task's photos."""
    return hashlib.sha256("\n".join(addresses).encode()).hexdigest()[:24]


def turn_of(project: int, task: int) -> int:
    """When a task's photos are looked at: by chance, always the same."""
    return zlib.crc32(f"labelloop turn {project} {task}".encode())


_NOTHING: Mapping[str, Any] = {
    "backbone": "", "photo": "", "vector": b"", "chance": None, "version": "", "doubt": None,
}  # fmt: skip


def _row(project: int, task: int, **given: Any) -> dict[str, Any]:
    """A whole row, with these values; the others say that nothing is known."""
    return {
        "project": project, "task": task, **_NOTHING, "score": None, "mark": "", "live": 0, "skipped": 0,
        "turn": turn_of(project, task), "prelabel": "", **given,
    }  # fmt: skip


def _put(engine: sa.Engine, rows: Sequence[Mapping[str, Any]], changed: Sequence[str]) -> None:
    with quick(engine) as connection:
        for some in chunks(rows, _CHUNK):
            upsert(connection, LOOKS, some, conflict=("project", "task"), changed=changed)


def _rows(engine: sa.Engine, project: int, tasks: Iterable[int], *columns: sa.Column[Any]) -> list[sa.Row[Any]]:
    found: list[sa.Row[Any]] = []
    with reading(engine) as connection:
        for some in chunks(tasks, _CHUNK):
            query = sa.select(LOOKS.c.task, *columns).where(LOOKS.c.project == project, LOOKS.c.task.in_(some))
            found += connection.execute(query).all()
    return found


def _open(project: int) -> tuple[sa.ColumnElement[bool], ...]:
    return LOOKS.c.project == project, LOOKS.c.live == 0, LOOKS.c.skipped == 0


def _looked(project: int, version: str) -> tuple[sa.ColumnElement[bool], ...]:
    return *_open(project), LOOKS.c.version == version, LOOKS.c.score.is_not(None)
