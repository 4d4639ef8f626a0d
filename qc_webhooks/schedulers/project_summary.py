"""Counts the board of each project anew when its facts changed, so that no page of the dashboard has to."""

import time
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.service.db.engine import reading
from labelloop.service.errors import LabelloopError
from labelloop.service.studio import Studio
from qc_webhooks.report.project_summary import ProjectSummary, build_board
from qc_webhooks.report.replay import Replay
from qc_webhooks.schedulers.annotator_model import CrowdStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import BOARDS
from qc_webhooks.store.task_facts import Extent, FactStore

# A board is counted for at most this share of a worker's time.
_SHARE = 0.05

log = structlog.get_logger(__name__)


class Shown(msgspec.Struct, frozen=True):
    """A board, and when it was made.

    Attributes:
        board: The board.
        made_at: Seconds since 1970.
        tasks: How many tasks were counted.
    """

    board: ProjectSummary
    made_at: float
    tasks: int


class BoardStore:
    """The boards in the database. Safe from any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def made_at(self, project: int) -> float | None:
        """When the project's board was made; None: there is none yet."""
        with reading(self.engine) as connection:
            return connection.scalar(sa.select(BOARDS.c.made_at).where(BOARDS.c.project == project))

    def board(self, project: int) -> Shown | None:
        """The board of a project; None before the first one was counted."""
        query = sa.select(BOARDS.c.board, BOARDS.c.made_at, BOARDS.c.tasks).where(BOARDS.c.project == project)
        with reading(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        return (
            None if row is None else Shown(msgspec.json.decode(row.board, type=ProjectSummary), row.made_at, row.tasks)
        )

    def replay(self, project: int) -> Replay | None:
        """The record of a project for what-if."""
        with reading(self.engine) as connection:
            packed = connection.scalar(sa.select(BOARDS.c.replay).where(BOARDS.c.project == project))
        return None if packed is None else Replay.read(packed)

    def keep(self, project: int, board: ProjectSummary, replay: Replay, extent: Extent, *, took_s: float) -> None:
        """Puts a board in the place of the last one."""
        row = {
            "project": project, "made_at": time.time(), "took_s": took_s, "tasks": extent.tasks,
            "newest": extent.newest, "board": msgspec.json.encode(board).decode(), "replay": replay.pack(),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(BOARDS).where(BOARDS.c.project == project))
            connection.execute(sa.insert(BOARDS).values(row))

    def is_due(self, project: int, extent: Extent, *, now: float) -> bool:
        """Whether the facts changed since the board was made, and counting is affordable by now."""
        query = sa.select(BOARDS.c.made_at, BOARDS.c.took_s, BOARDS.c.tasks, BOARDS.c.newest)
        with reading(self.engine) as connection:
            row = connection.execute(query.where(BOARDS.c.project == project)).one_or_none()
        if row is None:
            return extent.tasks > 0
        changed = (row.tasks, row.newest) != (extent.tasks, extent.newest)
        return bool(changed and now >= row.made_at + row.took_s / _SHARE)


class SummaryScheduler:
    """Keeps the boards of all connected projects up to date.

    Args:
        engine: The migrated database.
        studio: Label Studio, for the names of projects and people.
        clock: Seconds since 1970.
    """

    def __init__(self, engine: sa.Engine, studio: Studio, *, clock: Callable[[], float] = time.time) -> None:
        self._facts, self._boards, self._projects = FactStore(engine), BoardStore(engine), ProjectStore(engine)
        self._crowds = CrowdStore(engine)
        self._studio = studio
        self._clock = clock

    def run(self) -> None:
        """Counts what is due."""
        for project in [each.project for each in self._projects.all()]:
            extent = self._facts.extent(project)
            if self._boards.is_due(project, extent, now=self._clock()):
                self.make(project, extent)

    def make(self, project: int, extent: Extent | None = None) -> None:
        """Counts the board of one project now."""
        extent = extent or self._facts.extent(project)
        started = time.monotonic()
        title, names = self._names(project)
        board, replay = build_board(
            self._facts.all(project), title=title, names=names, crowd=self._crowds.crowd(project)
        )
        took_s = time.monotonic() - started
        self._boards.keep(project, board, replay, extent, took_s=took_s)
        log.info("board_made", project=project, tasks=extent.tasks, seconds=round(took_s, 2))

    def _names(self, project: int) -> tuple[str, dict[int, str]]:
        """The project's title and what its people are called; those of the last board where nobody answers."""
        try:
            title = str(self._studio.project(project).get("title") or "")
            return title, {int(user["id"]): _name(user) for user in self._studio.users()}
        except LabelloopError as error:
            log.warning("names_unknown", project=project, reason=str(error))
            last = self._boards.board(project)
            return (last.board.title, last.board.names) if last else ("", {})


def _name(user: dict[str, object]) -> str:
    full = " ".join(str(user.get(part) or "") for part in ("first_name", "last_name")).strip()
    return full or str(user.get("username") or user.get("email") or f"user {user['id']}")
