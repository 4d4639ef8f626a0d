"""Updates each project's summary when its facts change, so that dashboard pages only read it."""

import time
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.service.db.engine import begin_read
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.repeated_failures import RepeatedFailures
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

# Seconds until Label Studio is asked again for names that it did not give; doubles each time.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 30.0, 3600.0

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
        self,
        project: int,
        summary: ProjectSummary,
        replay: Replay,
        extent: FactsExtent,
        *,
        took_s: float,
        has_names: bool = True,
    ) -> None:
        """Replace the project's summary."""
        row = {
            "project": project, "made_at": time.time(), "took_s": took_s, "tasks": extent.tasks,
            "newest": extent.newest if has_names else _without_names(extent.newest),
            "board": msgspec.json.encode(summary).decode(), "replay": replay.pack(),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(BOARDS).where(BOARDS.c.project == project))
            connection.execute(sa.insert(BOARDS).values(row))

    def is_due(self, project: int, extent: FactsExtent, *, now: float, asks_names: bool = True) -> bool:
        """Whether another summary is due, and the time budget allows it.

        Args:
            project: The project's id.
            extent: Its facts; a summary of others is outdated.
            now: Seconds since 1970.
            asks_names: Whether a summary without names is outdated, too.
        """
        query = sa.select(BOARDS.c.made_at, BOARDS.c.took_s, BOARDS.c.tasks, BOARDS.c.newest)
        with begin_read(self.engine) as connection:
            row = connection.execute(query.where(BOARDS.c.project == project)).one_or_none()
        if row is None:
            return True  # the title and the names are shown before the first verdict
        lacks_names = row.newest < 0
        newest = _without_names(row.newest) if lacks_names else row.newest
        changed = (row.tasks, newest) != (extent.tasks, extent.newest) or (lacks_names and asks_names)
        return bool(changed and now >= row.made_at + row.took_s / _MAX_TIME_SHARE)


def _without_names(newest: float) -> float:
    """The time of the newest fact as stored with a summary without names, below 0, and back."""
    return -newest - 1.0


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
        self._ask_at: dict[int, float] = {}
        self._pause_s: dict[int, float] = {}
        self._failures = RepeatedFailures("names_unknown", clock=clock)

    def run(self) -> None:
        """Update the summaries that are due."""
        for project in [connected.project for connected in self._projects.all()]:
            extent = self._facts.extent(project)
            now = self._clock()
            if self._summaries.is_due(project, extent, now=now, asks_names=now >= self._ask_at.get(project, now)):
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
        self._summaries.save(project, summary, replay, extent, took_s=took_s, has_names=known)
        log.info("board_made", project=project, tasks=extent.tasks, seconds=round(took_s, 2))

    def _names(self, project: int) -> tuple[str, dict[int, str], bool]:
        """Project title, user names, and whether Label Studio gave them or has no such project.

        Where it does not answer, they are those of the last summary, and it is asked again after a growing pause.
        """
        is_known = False
        if (now := self._clock()) >= self._ask_at.get(project, now):
            try:
                title = str(self._studio.project(project).get("title") or "")
                names = {int(user["id"]): _name(user) for user in self._studio.users()}
            except StudioNotFound:
                is_known = True
            except LabelloopError as error:
                pause_s = self._pause_s.get(project, _FIRST_PAUSE_S)
                self._ask_at[project], self._pause_s[project] = now + pause_s, min(2 * pause_s, _MAX_PAUSE_S)
                self._failures.failed(project, str(error))
            else:
                self._ask_at.pop(project, None)
                self._pause_s.pop(project, None)
                self._failures.succeeded(project)
                return title, names, True
        last = self._summaries.load(project)
        title, names = (last.summary.title, last.summary.names) if last else ("", {})
        return title, names, is_known


def _name(user: dict[str, object]) -> str:
    full = " ".join(str(user.get(part) or "") for part in ("first_name", "last_name")).strip()
    return full or str(user.get("username") or user.get("email") or f"user {user['id']}")
