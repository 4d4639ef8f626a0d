"""The worker process: every program's jobs on one inbox, once Label Studio answers."""

import sys
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from exporters import jobs as exporters
from labelloop.service.db.engine import open_database
from labelloop.service.disk import keep_private
from labelloop.service.jobs.heartbeats import Workers
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Handler, Jobs
from labelloop.service.jobs.worker_id import this_worker
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import require_home
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioUnreachable
from ml_backend import jobs as ml
from ml_backend.training.parallel import single_threaded_blas
from qc_webhooks import jobs as qc

PROGRAMS = (qc, ml, exporters)
ALONE = (sys.executable, "-m", "labelloop.cli.isolated_job")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
log = structlog.get_logger(__name__)


def run_worker(settings: Settings, *, threads: int | None = None) -> None:
    """Run the jobs until SIGINT or SIGTERM.

    Raises:
        StudioUnauthorized: Label Studio is up and refuses the token; waiting would not help.
        DatabaseError: The database cannot be opened.
    """
    require_home(settings)
    keep_private(settings.home)
    setup_logging(settings)
    engine = open_database(settings)
    studio, workers = Studio.from_settings(settings), Workers(engine)
    wait_for_label_studio(studio, settings.label_studio_url, tell=lambda state: workers.beat(this_worker(), state))
    periodics = [job for program in PROGRAMS for job in program.periodics(settings, studio, engine)]
    inbox = Inbox.from_settings(settings, engine)
    jobs = Jobs(settings, inbox, handlers(settings, studio, engine), periodics, alone=ALONE)
    # Several jobs run at once and each has small matrices: threads within them would wait for each other, and spin.
    with single_threaded_blas():
        jobs.run_worker(threads)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> dict[str, Handler]:
    """The handlers of every program, by topic."""
    found: dict[str, Handler] = {}
    for program in PROGRAMS:
        found |= program.handlers(settings, studio, engine)
    return found


def wait_for_label_studio(studio: Studio, url: str, *, tell: Callable[[str], object] = lambda _: None) -> None:
    """Wait, as long as it takes, until Label Studio answers; each wait is a line in the log.

    Args:
        studio: Label Studio.
        url: Its address.
        tell: Called at each wait with what is waited for.

    Raises:
        StudioUnauthorized: It answers and refuses the token.
    """
    pause_s, started = FIRST_PAUSE_S, time.monotonic()
    while True:
        try:
            studio.me()
        except StudioUnreachable as error:
            log.info("waiting_for_label_studio", url=url, waited_s=round(time.monotonic() - started), reason=str(error))
            tell(f"waiting for Label Studio at {url}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            return
