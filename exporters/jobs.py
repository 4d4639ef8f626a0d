"""Handlers and periodic jobs of automatic exports, for the worker."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Engine

from exporters.automation.policy import ExportPolicyError, read_export_policy, watched_projects
from exporters.automation.watch import PROJECT, Watcher, post_export_handlers
from exporters.errors import BadOption, SourceNotFound
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, PeriodicJob, Reject
from labelloop.service.jobs.repeated_failures import RepeatedFailures
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioNotFound


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
            watcher.export(int(subject), policy, str(events[-1].payload.get("reason", "")))
        except (ExportPolicyError, BadOption, StudioNotFound, SourceNotFound) as error:
            raise Reject(str(error)) from error  # a retry would fail again

    return {PROJECT: project, **post_export_handlers(settings)}


def periodic_jobs(settings: Settings, studio: Studio, engine: Engine) -> list[PeriodicJob]:
    """The periodic job that enqueues the due exports, every ``poll_seconds``."""
    watcher, failures = Watcher(settings, studio, engine), RepeatedFailures("export_watch_failed")

    def enqueue_due_exports() -> None:
        for project in watched_projects(settings.home):
            try:
                policy = read_export_policy(settings.home, project)
                if policy.is_automatic:
                    watcher.enqueue_if_due(project, policy)
            except LabelloopError as error:
                failures.failed(project, str(error))
            else:
                failures.succeeded(project)

    return [PeriodicJob("export.watch", settings.poll_seconds, enqueue_due_exports)]
