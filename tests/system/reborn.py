"""A worker that is born again whenever it is killed: forked, so that it takes milliseconds. `python -m ... FILE`.

The worker's process id stands in FILE while it lives, for whoever is to kill it.
"""

import os
import signal
import sys
from pathlib import Path

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.jobs import handlers, periodic_jobs


def work() -> None:
    """One life of the worker."""
    settings = Settings()
    engine, studio = open_database(settings), Studio.from_settings(settings)
    inbox = Inbox.from_settings(settings, engine)
    given = handlers(settings, studio, engine), periodic_jobs(settings, studio, engine)
    run_worker(Jobs(settings, inbox, *given))


def main(file: Path) -> None:
    """Keep a worker alive until we are told to stop."""
    child = 0

    def stop(*_: object) -> None:
        if child:
            os.kill(child, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            file.write_text(str(os.getpid()))
            work()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
