"""The worker process: the jobs of all programs on one inbox, once Label Studio answers."""

import sys
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from exporters import jobs as exporters
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Handler, Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.jobs.worker_id import current_worker
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import require_home
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioUnreachable
from labelloop.service.system import restrict_to_owner
from ml_backend import jobs as ml
from ml_backend.training.parallel import single_threaded_blas
from qc_webhooks import jobs as qc
from qc_webhooks.events import TASK

PROGRAMS = (qc, ml, exporters)
# Annotators wait for the verdict on a task; a dense one runs in the process of long jobs.
SHORT_TOPICS = (TASK,)
ISOLATED_JOB_COMMAND = (sys.executable, "-m", "labelloop.cli.isolated_job")
INITIAL_PAUSE_S, MAX_PAUSE_S = 0.5, 5.0
log = structlog.get_logger(__name__)


def run_background_worker(settings: Settings, *, threads: int | None = None) -> None:
    """Run the jobs until SIGINT or SIGTERM.

    Raises:
        StudioUnauthorized: Label Studio rejects the token; waiting would not help.
        DatabaseError: The database cannot be opened.
    """
    require_home(settings)
    restrict_to_owner(settings.home)
    setup_logging(settings)
    engine = open_database(settings)
    studio, workers = Studio.from_settings(settings), WorkerHeartbeats(engine)
    wait_for_label_studio(
        studio, settings.label_studio_url, on_wait=lambda state: workers.record(current_worker(), state)
    )
    periodic_jobs = [job for program in PROGRAMS for job in program.periodic_jobs(settings, studio, engine)]
    inbox = Inbox.from_settings(settings, engine)
    jobs = Jobs(
        settings,
        inbox,
        handlers(settings, studio, engine),
        periodic_jobs,
        isolated_command=ISOLATED_JOB_COMMAND,
        short_topics=SHORT_TOPICS,
    )
    # Several jobs with small matrices run at once: BLAS threads inside them would spin and wait for each other.
    with single_threaded_blas():
        run_worker(jobs, threads)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> dict[str, Handler]:
    """The handlers of every program, by topic."""
    by_topic: dict[str, Handler] = {}
    for program in PROGRAMS:
        by_topic |= program.handlers(settings, studio, engine)
    return by_topic


def wait_for_label_studio(studio: Studio, url: str, *, on_wait: Callable[[str], object] = lambda _: None) -> None:
    """Wait without a limit until Label Studio answers; each attempt is logged.

    Args:
        studio: Label Studio.
        url: Its address.
        on_wait: Called before each pause with the state of the worker.

    Raises:
        StudioUnauthorized: It answers and rejects the token.
    """
    pause_s, started = INITIAL_PAUSE_S, time.monotonic()
    while True:
        try:
            studio.me()
        except StudioUnreachable as error:
            log.info("waiting_for_label_studio", url=url, waited_s=round(time.monotonic() - started), reason=str(error))
            on_wait(f"waiting for Label Studio at {url}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        else:
            return
