"""The process that one job runs in alone; `labelloop worker` starts it."""

import sys

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.isolated_job import answer
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
    answer(_handlers, int(sys.argv[1]))
