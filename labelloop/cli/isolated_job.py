"""The process that runs one job that takes long or killed its worker; started by `labelloop worker`."""

import importlib
import sys

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.isolated_job import run_child
from labelloop.service.jobs.jobs import Handler
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio

# First part of a topic -> the module with its handler: the others would only take time and memory.
PROGRAMS = {"qc": "qc_webhooks.jobs", "learn": "ml_backend.jobs", "export": "exporters.jobs"}


def handler_of(topic: str) -> Handler:
    """The handler of a topic."""
    settings = Settings()
    setup_logging(settings)
    program = importlib.import_module(PROGRAMS[topic.partition(".")[0]])
    handlers: dict[str, Handler] = program.handlers(settings, Studio.from_settings(settings), open_database(settings))
    return handlers[topic]


if __name__ == "__main__":
    run_child(handler_of, int(sys.argv[1]))
