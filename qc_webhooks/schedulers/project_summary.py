"""Updates each project's summary when its facts change, so that dashboard pages only read it."""

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.service.db.engine import begin_read
from labelloop.service.errors import LabelloopError
from labelloop.service.studio import Studio, StudioNotFound
from qc_webhooks.annotators import Diagnosis
from qc_webhooks.report.project_summary import ProjectSummary, summarize_project
from qc_webhooks.report.replay import Replay
from qc_webhooks.schedulers.annotator_model import AnnotatorModelStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import BOARDS
from qc_webhooks.store.task_facts import FactsExtent, FactStore

# Maximum share of a worker's time for summaries.
_MAX_TIME_SHARE = 0.05

# Stored as the time of the newest fact where Label Studio did not answer, so that the summary is due again.
_NAMES_UNKNOWN = -1.0

log = structlog.get_logger(__name__)


class StoredSummary(msgspec.Struct, frozen=True):
    """A summary as stored.

    Attributes:
        summary: The summary.
        made_at: Time it was made, seconds since 1970.
        tasks: Number of tasks included.
    """

    summary: ProjectSummary
    made_at: float
    tasks: int


class _Diagnosed(msgspec.Struct, frozen=True):
    """The part of a summary with the diagnoses."""

    splits: tuple[Diagnosis, ...] = ()


class SummaryStore:
    """Project summaries in the database. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def made_at(self, project: int) -> float | None:
        """Time the project's summary was made, seconds since 1970; None without one."""
        with begin_read(self.engine) as connection:
            return connection.scalar(sa.select(BOARDS.c.made_at).where(BOARDS.c.project == project))

    def load(self, project: int) -> StoredSummary | None:
        """Summary of a project; None before the first one."""
        query = sa.select(BOARDS.c.board, BOARDS.c.made_at, BOARDS.c.tasks).where(BOARDS.c.project == project)
        with begin_read(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        return (
            None
            if row is None
            else StoredSummary(msgspec.json.decode(row.board, type=ProjectSummary), row.made_at, row.tasks)
        )

    def diagnoses(self, project: int) -> tuple[Diagnosis, ...]:
        """Why the annotators of a project disagree; empty before the first summary."""
        query = sa.select(BOARDS.c.board).where(BOARDS.c.project == project)
        with begin_read(self.engine) as connection:
            board = connection.scalar(query)
        return () if board is None else msgspec.json.decode(board, type=_Diagnosed).splits

    def replay(self, project: int) -> Replay | None:
        """Arrays of a project for what-if; None before the first summary of a task."""
        query = sa.select(BOARDS.c.replay).where(BOARDS.c.project == project, BOARDS.c.tasks > 0)
        with begin_read(self.engine) as connection:
            packed = connection.scalar(query)
        return None if packed is None else Replay.read(packed)

    def save(
        self, project: int, summary: ProjectSummary, replay: Replay, extent: FactsExtent, *, took_s: float
    ) -> None:
        """Replace the project's summary."""
        row = {
            "project": project, "made_at": time.time(), "took_s": took_s, "tasks": extent.tasks,
            "newest": extent.newest, "board": msgspec.json.encode(summary).decode(), "replay": replay.pack(),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(BOARDS).where(BOARDS.c.project == project))
            connection.execute(sa.insert(BOARDS).values(row))

    def is_due(self, project: int, extent: FactsExtent, *, now: float) -> bool:
        """Whether facts changed since the last summary or it lacks names, and the time budget allows another."""
        query = sa.select(BOARDS.c.made_at, BOARDS.c.took_s, BOARDS.c.tasks, BOARDS.c.newest)
        with begin_read(self.engine) as connection:
            row = connection.execute(query.where(BOARDS.c.project == project)).one_or_none()
        if row is None:
            return True  # the title and the names are shown before the first verdict
        changed = (row.tasks, row.newest) != (extent.tasks, extent.newest)
        return bool(changed and now >= row.made_at + row.took_s / _MAX_TIME_SHARE)


class SummaryScheduler:
    """Updates the summaries of all connected projects.

    Args:
        engine: The migrated database.
        studio: Label Studio, for project titles and user names.
        clock: Returns seconds since 1970.
    """

    def __init__(self, engine: sa.Engine, studio: Studio, *, clock: Callable[[], float] = time.time) -> None:
        self._facts, self._summaries, self._projects = FactStore(engine), SummaryStore(engine), ProjectStore(engine)
        self._models = AnnotatorModelStore(engine)
        self._studio = studio
        self._clock = clock

    def run(self) -> None:
        """Update the summaries that are due."""
        for project in [connected.project for connected in self._projects.all()]:
            extent = self._facts.extent(project)
            if self._summaries.is_due(project, extent, now=self._clock()):
                self.update(project, extent)

    def update(self, project: int, extent: FactsExtent | None = None) -> None:
        """Update one project's summary now."""
        extent = extent or self._facts.extent(project)
        started = time.monotonic()
        title, names, known = self._names(project)
        summary, replay = summarize_project(
            self._facts.iter_project(project), title=title, names=names, model=self._models.load(project)
        )
        took_s = time.monotonic() - started
        if not known:
            extent = replace(extent, newest=_NAMES_UNKNOWN)
        self._summaries.save(project, summary, replay, extent, took_s=took_s)
        log.info("board_made", project=project, tasks=extent.tasks, seconds=round(took_s, 2))

    def _names(self, project: int) -> tuple[str, dict[int, str], bool]:
        """Project title, user names, and whether Label Studio gave them or has no such project.

        Where it does not answer, they are those of the last summary.
        """
        try:
            title = str(self._studio.project(project).get("title") or "")
            return title, {int(user["id"]): _name(user) for user in self._studio.users()}, True
        except LabelloopError as error:
            log.warning("names_unknown", project=project, reason=str(error))
            last = self._summaries.load(project)
            title, names = (last.summary.title, last.summary.names) if last else ("", {})
            return title, names, isinstance(error, StudioNotFound)


def _name(user: dict[str, object]) -> str:
    full = " ".join(str(user.get(part) or "") for part in ("first_name", "last_name")).strip()
    return full or str(user.get("username") or user.get("email") or f"user {user['id']}")
