"""The work behind the inbox: automatic exports and what follows from them. Nobody below imports this module."""

from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import Engine

from exporters.automation.events import PROJECT
from exporters.automation.followers import followers
from exporters.automation.policy import ExportPolicyError, read_export_policy, watched_projects
from exporters.automation.watcher import Watcher
from exporters.errors import BadOption, SourceNotFound
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, Periodic, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio

log = structlog.get_logger(__name__)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """The handlers of the exporters' topics, for ``Jobs``.

    Args:
        settings: Where the store, the database and the export policies are.
        studio: Label Studio.
        engine: The migrated database.
    """
    watcher = Watcher(settings, studio, engine)

    def project(subject: str, events: Sequence[Event]) -> None:
        try:
            policy = read_export_policy(settings.home, int(subject))
            watcher.run(int(subject), policy, str(events[-1].payload.get("reason", "")))
        except (ExportPolicyError, BadOption, NotFound, SourceNotFound) as error:
            raise Reject(str(error)) from error  # trying the same again would fail again

    return {PROJECT: project, **followers(settings)}


def periodics(settings: Settings, studio: Studio, engine: Engine) -> list[Periodic]:
    """What runs now and then: a look at the projects that have an export policy, every ``poll_seconds``."""
    watcher = Watcher(settings, studio, engine)

    def look() -> None:
        for project in watched_projects(settings.home):
            try:
                policy = read_export_policy(settings.home, project)
                if policy.triggered:
                    watcher.ask(project, policy)
            except LabelloopError as error:
                log.warning("export_watch_failed", project=project, reason=str(error))

    return [Periodic("export.watch", settings.poll_seconds, look)]
