"""Owns what is known of photos as a whole: their vectors, and how much the last version wondered about open ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from labelloop.service.db import quick, reading
from ml_backend.detections import Floats
from ml_backend.learning.tables import LOOKS, TASKS


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a task's photos.

    Attributes:
        photo: Checksum of their addresses.
        vector: (d,) float32 of length 1.
        version: That looked at it last; empty: none that learned.
        doubt: As `acquisition.uncertainty` has it; None where nothing was seen, or nobody looked.
    """

    photo: str
    vector: Floats
    version: str = ""
    doubt: float | None = None


@dataclass(frozen=True)
class Waiting:
    """An open task, its place in the queue as a score (the lowest comes first), and what it promises."""

    task: int
    score: float
    doubt: float | None


class LookStore:
    """The table `learn_looks`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def known(self, project: int, backbone: str) -> dict[int, Known]:
        """Every task of a project with a vector of this backbone."""
        with reading(self.engine) as connection:
            query = sa.select(LOOKS).where(LOOKS.c.project == project, LOOKS.c.backbone == backbone)
            return {
                row.task: Known(row.photo, np.frombuffer(row.vector, "<f4"), row.version, row.doubt)
                for row in connection.execute(query)
            }

    def tasks(self, project: int, backbone: str) -> set[int]:
        """Every task of a project with a vector of this backbone."""
        with reading(self.engine) as connection:
            query = sa.select(LOOKS.c.task).where(LOOKS.c.project == project, LOOKS.c.backbone == backbone)
            return set(connection.scalars(query))

    def waiting(self, project: int, version: str) -> list[Waiting]:
        """The open tasks that a version has looked at, in the order in which they are served."""
        done = sa.select(TASKS.c.task).where(TASKS.c.project == project, TASKS.c.state != "gone")
        query = sa.select(LOOKS.c.task, LOOKS.c.score, LOOKS.c.doubt).where(
            LOOKS.c.project == project,
            LOOKS.c.version == version,
            LOOKS.c.score.is_not(None),
            LOOKS.c.task.not_in(done),
        )
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(LOOKS.c.score, LOOKS.c.task))
            return [Waiting(row.task, row.score, row.doubt) for row in rows]

    def keep(self, project: int, backbone: str, vectors: Mapping[int, tuple[str, Floats]]) -> None:
        """Notes vectors: task -> (checksum of its addresses, vector)."""
        with quick(self.engine) as connection:
            for task, (photo, vector) in vectors.items():
                mine = (LOOKS.c.project == project) & (LOOKS.c.task == task)
                connection.execute(sa.delete(LOOKS).where(mine))
                row = {"photo": photo, "vector": vector.astype("<f4").tobytes(), "backbone": backbone, "version": ""}
                connection.execute(sa.insert(LOOKS).values(project=project, task=task, **row))

    def looked(self, project: int, version: str, doubts: Mapping[int, tuple[float | None, float]]) -> None:
        """A version looked: task -> (its doubt, the score of the prediction that was written)."""
        with quick(self.engine) as connection:
            for task, (doubt, score) in doubts.items():
                mine = (LOOKS.c.project == project) & (LOOKS.c.task == task)
                connection.execute(sa.update(LOOKS).where(mine).values(version=version, doubt=doubt, score=score))

    def drop(self, project: int, tasks: Iterable[int] | None = None) -> None:
        """Forgets tasks, or the whole project."""
        with quick(self.engine) as connection:
            if tasks is None:
                connection.execute(sa.delete(LOOKS).where(LOOKS.c.project == project))
                return
            for task in tasks:
                connection.execute(sa.delete(LOOKS).where(LOOKS.c.project == project, LOOKS.c.task == task))


def photo_key(addresses: Sequence[str]) -> str:
    """A checksum of the addresses of a task's photos."""
    return hashlib.sha256("\n".join(addresses).encode()).hexdigest()[:24]
