"""Facade of learning for the web app and `connect`: enqueue events, report status, connect projects."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.labeling.errors import MalformedConfig
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.db.engine import open_database
from labelloop.service.errors import BadRequest
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.events import LEARN, queue_event, read_event, sweep_event
from ml_backend.learning.report.report import MAX_EDITED, LearningReport, make_report
from ml_backend.learning.store.annotations import NotConnectedToLearning, TrainingDataStore
from ml_backend.learning.store.runs import RunStore, TrainingRun
from ml_backend.learning.store.train_jobs import TrainJob, TrainJobStore
from ml_backend.learning.train_schedule import able, cannot_train, state_in_words
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_notes import notes_of
from ml_backend.predict.control_support import controls_of
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.serving import activation
from ml_backend.studio.extra_params import options_of

log = structlog.get_logger(__name__)


# Seconds without progress after which a phase counts as interrupted: its worker was killed.
STALE_PHASE_S = 180.0


class LearningState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a project's learning.

    Attributes:
        job_status: ``queued``, ``running``, ``completed``, or ``failed``.
        phase: Current phase; see `PHASES`.
        done: Completed items of the phase.
        total: Items of the phase; 0: not counted.
        waiting: Number of pending events.
        waiting_s: Age of the oldest pending event, seconds.
        last: The last run.
    """

    job_status: str
    phase: str = ""
    done: int = 0
    total: int = 0
    waiting: int = 0
    waiting_s: float = 0.0
    last: TrainingRun | None = None


class LearningService:
    """Enqueues events and reads the state of learning. The database is opened on first use. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._opening = threading.Lock()
        self._opened: Jobs | None = None

    def open(self) -> None:
        """Open the database before the first event. A failure is only logged: the first event reports it."""
        try:
            self._jobs()
        except Exception as error:  # noqa: BLE001 - the first event reports it
            log.warning("database_not_opened", reason=str(error))

    def open_in_background(self) -> None:
        """Open the database in the background."""
        if self._opened is None:
            threading.Thread(target=self.open, name="open-database", daemon=True).start()

    def enqueue(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Enqueue the events of a webhook body, in milliseconds; returns (number of events, number of new ones).

        Raises:
            BadRequest: The body is malformed.
            DatabaseError: The database cannot be opened.
        """
        events = read_event(body)
        new = [self._jobs().submit(event.topic, str(event.project), event.key, event.payload) for event in events]
        return len(new), sum(new)

    def state(self, project: int) -> LearningState:
        """Return the state of a project's learning."""
        engine = self._jobs().inbox.engine
        return learning_state(project, TrainingDataStore(engine), RunStore(engine), self._jobs().inbox)

    def report(self, project: int, served: str, *, unlearned: str = "") -> LearningReport:
        """Return the learning report of a project.

        Args:
            project: The project id.
            served: The version served to it.
            unlearned: Why no version can be trained; empty if one can.

        Raises:
            NotConnectedToLearning: It was never connected.
        """
        engine = self._jobs().inbox.engine
        if TrainingDataStore(engine).project(project) is None:
            raise NotConnectedToLearning(project=project)
        policy = read_learning_policy(self._settings.home, project)
        return make_report(
            project, engine=engine, policy=policy, served=served, clock=time.time, most=MAX_EDITED, unlearned=unlearned
        )

    def projects(self) -> list[tuple[int, int]]:
        """Return (project, number of labelled tasks) of every connected project."""
        training_data = TrainingDataStore(self._jobs().inbox.engine)
        labelled = ("teaches", "held_out")
        return [
            (
                project.project,
                sum(count for state, count in training_data.counts(project.project).items() if state in labelled),
            )
            for project in training_data.projects()
        ]

    @property
    def engine(self) -> sa.Engine:
        """The database, opened on first use.

        Raises:
            DatabaseError: It cannot be opened.
        """
        return self._jobs().inbox.engine

    def finetuning(self, project: int) -> str:
        """Why a project that is to be fine-tuned (`on = "on"`) cannot be; empty if it can, or need not be."""
        policy = read_learning_policy(self._settings.home, project)
        jobs = TrainJobStore(self.engine)
        if policy.train.on != "on" or not policy.learn or able(policy.train, jobs.trainers(), now=jobs.now()):
            return ""
        return f"Project {project}: {cannot_train(policy.train)}"

    def finetuning_state(self, project: int) -> tuple[str, str, TrainJob | None]:
        """Return why fine-tuning is impossible though it is asked for, its state in words, and the last job."""
        policy, jobs = read_learning_policy(self._settings.home, project), TrainJobStore(self.engine)
        counts = TrainingDataStore(self.engine).counts(project)
        labelled = counts.get("teaches", 0) + counts.get("held_out", 0)
        last = next(iter(jobs.last(project, 1)), None)
        words = state_in_words(policy.train, last, labelled=labelled, known=jobs.trainers(), now=jobs.now())
        return self.finetuning(project), words, last

    def learns(self, project: int) -> bool:
        """Whether the project's policy turns learning on."""
        return read_learning_policy(self._settings.home, project).learn

    def _jobs(self) -> Jobs:
        with self._opening:
            if self._opened is None:
                self._opened = Jobs(self._settings, Inbox.from_settings(self._settings, open_database(self._settings)))
            return self._opened


def learning_state(project: int, training_data: TrainingDataStore, runs: RunStore, inbox: Inbox) -> LearningState:
    """Return the state of a project's learning, from the phases and runs that the worker recorded."""
    state = training_data.project(project)
    now, events = time.time(), inbox.unfinished_events(LEARN, str(project))
    waiting = len(events)
    waiting_s = round(max((now - event.created_at for event in events), default=0.0), 1)
    last = next(iter(runs.last(project, 1)), None)
    if state is not None and state.phase and now - (state.phase_at or 0) < STALE_PHASE_S:
        return LearningState("running", state.phase, state.phase_done, state.phase_total, waiting, waiting_s, last)
    if waiting:
        return LearningState("queued", waiting=waiting, waiting_s=waiting_s, last=last)
    return LearningState("failed" if last is not None and last.verdict == "failed" else "completed", last=last)


def connect_to_learning(studio: Studio, project: int, settings: Settings, engine: sa.Engine) -> list[ConnectionChange]:
    """Connect a project to learning, and enqueue the first sync and ranking. Idempotent.

    Returns:
        Whether the project learns, then a note for each control that is not pre-labelled or not learned from.

    Raises:
        LearningPolicyError: The project's learn.toml cannot be used.
        StudioError: Label Studio cannot be reached.
    """
    policy = read_learning_policy(settings.home, project)
    try:
        config = studio.label_config(project)
        options = options_of(studio.ml_backends(project), settings.ml_url, config)
        refused = []
    except BadRequest as error:  # `/setup` refuses them too
        options = ProjectOptions()
        refused = [ConnectionChange(f"{error.message} {error.fix}".strip(), done=False, note=True)]
    except MalformedConfig as error:
        what = f"Project {project} does not learn: its label config cannot be read ({error.reason})"
        return [ConnectionChange(what, done=False, note=True)]
    outputs = activation.served_outputs(settings, project)
    supported = controls_of(config, outputs, options=options.controls)
    new = TrainingDataStore(engine).connect(project)
    notes = [
        *refused,
        *(ConnectionChange(reason, done=False, note=True) for reason in notes_of(config, supported, outputs)),
    ]
    if not policy.learn:
        return [
            ConnectionChange(f"Project {project} does not learn: its learn.toml says so", done=False, note=True),
            *notes,
        ]
    if not any(control.learns for control in supported):
        what = f"Project {project} does not learn: no control of it can be learned from"
        return [ConnectionChange(what, done=False, note=True), *notes]
    if new:
        inbox = Inbox.from_settings(settings, engine)
        for event in (sweep_event(project, source="connect"), queue_event(project, source="connect")):
            inbox.put(event.topic, str(project), event.key, event.payload)
    learned = ", ".join(dict.fromkeys(control.control for control in supported if control.learns))
    what = f"Project {project} learns {learned} from {policy.first} labelled tasks on"
    return [ConnectionChange(what, done=new), *notes]
