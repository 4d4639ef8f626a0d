"""Owns the door of the web service to learning: events go into the inbox, and what came of them is told."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.settings import Settings
from ml_backend.learning.events import LEARN, read_event
from ml_backend.learning.report.report import MOST_EDITED, Report, make_report
from ml_backend.learning.store.annotations import NotConnected, TrainingDataStore
from ml_backend.learning.store.runs import Run, Runs
from ml_backend.policy import read_learning_policy

log = structlog.get_logger(__name__)


SILENT_S = 180.0
"""A worker that has said nothing of a phase for so long was ended in it: none is silent as long."""


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """How learning of a project stands.

    Attributes:
        job_status: ``queued``, ``running``, ``completed``, or ``failed``.
        phase: What is being done; `done` of `total` where that can be counted.
        waiting: Events that wait; the first of them for so many seconds: `waiting_s`.
        last: The last run.
    """

    job_status: str
    phase: str = ""
    done: int = 0
    total: int = 0
    waiting: int = 0
    waiting_s: float = 0.0
    last: Run | None = None


class LearningService:
    """Stores events; the database is opened when first needed. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing."""
        self._settings = settings
        self._opening = threading.Lock()
        self._opened: Jobs | None = None

    def open(self) -> None:
        """Opens the database now, so that the first event need not wait for it. A failure is told by that event."""
        try:
            self._jobs()
        except Exception as error:  # noqa: BLE001 - whatever it is, the first event will say it to somebody
            log.warning("database_not_opened", reason=str(error))

    def open_in_background(self) -> None:
        """Opens the database in the background."""
        if self._opened is None:
            threading.Thread(target=self.open, name="open-database", daemon=True).start()

    def tell(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Stores what a webhook body asks for: (rows that it makes, those that were new). Milliseconds.

        Raises:
            BadRequest: It is malformed.
            DatabaseError: The database cannot be opened.
        """
        hints = read_event(body)
        new = [self._jobs().submit(one.topic, str(one.project), one.key, one.payload) for one in hints]
        return len(new), sum(new)

    def state(self, project: int) -> State:
        """How learning of a project stands."""
        engine = self._jobs().inbox.engine
        return state_of(project, TrainingDataStore(engine), Runs(engine), self._jobs().inbox)

    def report(self, project: int, served: str, *, unlearned: str = "") -> Report:
        """How learning of a project went and stands.

        Args:
            project: Its number.
            served: The version that is served to it.
            unlearned: Why no version can be learned; empty where one can.

        Raises:
            NotConnected: It was never connected.
        """
        engine = self._jobs().inbox.engine
        if TrainingDataStore(engine).project(project) is None:
            raise NotConnected(project)
        policy = read_learning_policy(self._settings.home, project)
        return make_report(
            project, engine=engine, policy=policy, served=served, clock=time.time, most=MOST_EDITED, unlearned=unlearned
        )

    def projects(self) -> list[tuple[int, int]]:
        """Every connected project, and how many of its tasks are labelled."""
        lessons = TrainingDataStore(self._jobs().inbox.engine)
        labelled = ("teaches", "held_out")
        return [
            (one.project, sum(count for state, count in lessons.counts(one.project).items() if state in labelled))
            for one in lessons.projects()
        ]

    def learns(self, project: int) -> bool:
        """Whether the project's policy has it learn."""
        return read_learning_policy(self._settings.home, project).learn

    def _jobs(self) -> Jobs:
        with self._opening:
            if self._opened is None:
                self._opened = Jobs(self._settings, Inbox.from_settings(self._settings, open_database(self._settings)))
            return self._opened


def state_of(project: int, lessons: TrainingDataStore, runs: Runs, inbox: Inbox) -> State:
    """How learning of a project stands, from what the worker notes."""
    learner = lessons.project(project)
    now, events = time.time(), inbox.open_events(LEARN, str(project))
    waiting = len(events)
    waiting_s = round(max((now - event.created_at for event in events), default=0.0), 1)
    last = next(iter(runs.last(project, 1)), None)
    if learner is not None and learner.phase and now - (learner.phase_at or 0) < SILENT_S:
        return State("running", learner.phase, learner.phase_done, learner.phase_total, waiting, waiting_s, last)
    if waiting:
        return State("queued", waiting=waiting, waiting_s=waiting_s, last=last)
    return State("failed" if last is not None and last.verdict == "failed" else "completed", last=last)
