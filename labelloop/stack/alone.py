"""The process that one job runs in alone; `labelloop worker` starts it."""

import sys

from labelloop.service.alone import answer
from labelloop.service.db import open_database
from labelloop.service.jobs import Handler
from labelloop.service.logs import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio


def _handlers() -> dict[str, Handler]:
    from labelloop.stack.worker import handlers

    settings = Settings()
    setup_logging(settings)
    return handlers(settings, Studio.from_settings(settings), open_database(settings))


if __name__ == "__main__":
    answer(_handlers, int(sys.argv[1]))
