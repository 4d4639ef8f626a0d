"""Stores the connected projects and the poller's position in each."""

import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.db.engine import begin_read
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.policy.conflict_rules import BY_MEAN
from qc_webhooks.store.tables import PROJECTS

# Version of the policy's defaults for new projects: single objects decide (see ``ConflictPolicy``).
NEWEST_DEFAULTS = 2


@dataclass(frozen=True)
class ConnectedProject:
    """A project under quality control.

    Attributes:
        project: Its id.
        cursor: Newest ``updated_at`` of a compared task; empty: none yet.
        caught_up: Whether the last poll found nothing newer.
        polled_at: Seconds since 1970 of the last poll; None: never.
        swept_at: Seconds since 1970 of the last comparison of every task; None: never.
        evaluates: Whether Label Studio was set to serve tasks with a ground truth first.
        defaults: Version of the policy's defaults that the project uses.
    """

    project: int
    cursor: str = ""
    caught_up: bool = False
    polled_at: float | None = None
    swept_at: float | None = None
    evaluates: bool = False
    defaults: int = NEWEST_DEFAULTS

    @property
    def policy_defaults(self) -> Policy:
        """Its policy without a file: a project that was connected under older defaults keeps them."""
        return Policy() if self.defaults >= NEWEST_DEFAULTS else Policy(conflicts=BY_MEAN)


class ProjectStore:
    """Connected projects in the database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def all(self) -> list[ConnectedProject]:
        """All connected projects, by id."""
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.project)).all()
        return [
            ConnectedProject(
                row.project,
                row.cursor,
                row.settled,
                row.polled_at,
                row.swept_at,
                bool(row.evaluates),
                row.defaults or 1,
            )
            for row in rows
        ]

    def get(self, project: int) -> ConnectedProject | None:
        """A connected project; None where it is not connected."""
        return next((item for item in self.all() if item.project == project), None)

    def require(self, project: int) -> ConnectedProject:
        """The connected project.

        Raises:
            QualityControlError: The project is not connected.
        """
        connected = self.get(project)
        if connected is None:
            raise QualityControlError(
                f"Project {project} is not connected to quality control.",
                fix=f"Run `labelloop connect {project}` once. If it is connected, run this command with the same"
                " LABELLOOP_HOME, or in the same folder.",
                code="not_connected",
                status=404,
            )
        return connected

    def add(self, project: int) -> bool:
        """Add a project; False where it is connected already."""
        with self.engine.begin() as connection:
            if connection.scalar(sa.select(PROJECTS.c.project).where(PROJECTS.c.project == project)) is not None:
                return False
            row = {"project": project, "connected_at": time.time(), "cursor": "", "settled": False,
                   "defaults": NEWEST_DEFAULTS}  # fmt: skip
            connection.execute(sa.insert(PROJECTS).values(row))
            return True

    def policy(self, home: Path, project: int, *, config: LabelConfig | None = None) -> Policy:
        """Policy of a project: its defaults, then the files (see ``read_policy``).

        Raises:
            PolicyError: See ``read_policy``.
        """
        connected = self.get(project)
        return read_policy(home, project, config=config, defaults=connected.policy_defaults if connected else None)

    def adopt_defaults(self, project: int, version: int = NEWEST_DEFAULTS) -> None:
        """Use this version of the policy's defaults from now on."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(defaults=version))

    def set_evaluates(self, project: int, evaluates: bool) -> None:
        """Save whether Label Studio was set to serve tasks with a ground truth first."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(evaluates=evaluates))

    def advance(self, project: int, *, cursor: str, caught_up: bool, swept: bool) -> None:
        """Save the poller's position."""
        values = {"cursor": cursor, "settled": caught_up, "polled_at": time.time()}
        if swept:
            values["swept_at"] = time.time()
        with self.engine.begin() as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(values))
