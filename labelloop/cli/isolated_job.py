"""The process that runs one isolated job; started by `labelloop worker`."""

import sys

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.isolated_job import run_child
from labelloop.service.jobs.jobs import Handler
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio


def _handlers() -> dict[str, Handler]:
    from labelloop.cli.worker import handlers

    settings = Settings()
    setup_logging(settings)
    return handlers(settings, Studio.from_settings(settings), open_database(settings))


if __name__ == "__main__":
    run_child(_handlers, int(sys.argv[1]))
