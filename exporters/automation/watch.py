"""Watch projects: check whether an export is due, export, and deliver the notifications.

`Watcher` serves both the worker (through the inbox) and ``labelloop export --watch`` (`watch`, one process).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog

from exporters.automation.notify import (
    CommandFailed,
    WebhookForbidden,
    command_environment,
    run_post_export_command,
    send,
    webhook_body,
)
from exporters.automation.policy import ExportPolicy
from exporters.automation.state import ExportStateTable
from exporters.automation.triggers import LastExport, ProjectSnapshot, due
from exporters.model.accounting import ExportReport
from exporters.pipeline.export import export
from exporters.pipeline.export_run import Progress
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event, Inbox
from labelloop.service.jobs.jobs import Handler, Reject
from labelloop.service.jobs.worker_id import current_worker
from labelloop.service.settings import Settings
from labelloop.service.signals import on_stop_signals
from labelloop.service.studio import Studio, StudioUnauthorized

# Topics of the inbox: export a project (the subject is its id), send a webhook, run the policy's command.
PROJECT = "export.project"
WEBHOOK = "export.webhook"
THEN = "export.then"

OnMessage = Callable[[str], None]

_BATCH = 100
_ANNOTATED = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
_log = structlog.get_logger(__name__)


class Watcher:
    """Automatic exports of the projects of one Label Studio.

    Args:
        settings: Where the store and the database are.
        studio: Label Studio.
        engine: The migrated database.
    """

    def __init__(self, settings: Settings, studio: Studio, engine: sa.Engine) -> None:
        self.inbox = Inbox.from_settings(settings, engine)
        self._settings = settings
        self._studio = studio
        self._states = ExportStateTable(engine)

    def check(self, project: int, policy: ExportPolicy) -> tuple[ProjectSnapshot, LastExport, str]:
        """The state of a project, its last automatic export, and why an export is due (empty: it is not)."""
        now = self.read_state(project)
        last = self._states.last_export(project, policy.to, now)
        return now, last, due(policy, now, last)

    def enqueue_if_due(self, project: int, policy: ExportPolicy) -> bool:
        """Put an export into the inbox if one is due; while that event waits, another call adds none.

        Returns:
            Whether an event was added.
        """
        now, last, reason = self.check(project, policy)
        if not reason:
            return False
        return self.inbox.put(PROJECT, str(project), _event_key(project, last, now), {"reason": reason})

    def export(
        self, project: int, policy: ExportPolicy, reason: str, *, progress: Progress | None = None
    ) -> ExportReport:
        """Export the project now; if a version is published, put its notifications into the inbox."""
        now = self.read_state(project)  # before the export: changes made while it runs count for the next one
        last = self._states.last_export(project, policy.to, now)
        report = export(project, settings=self._settings, studio=self._studio, progress=progress, **policy.options())
        outcome = "published" if report.published else f"not published: {report.refused}"
        self._states.record_export(project, policy.to, now, version=report.version or last.version, outcome=outcome)
        _log.info("exported", project=project, url=report.url, version=report.version, reason=reason, outcome=outcome)
        if report.published:
            self._enqueue_notifications(report, project, policy, reason)
        return report

    def read_state(self, project: int) -> ProjectSnapshot:
        """The current state of a project: six small requests, no annotation is read."""
        newest = next(self._studio.tasks(project, page_size=1, ordering=["-tasks:updated_at"]), None)
        undecided = sum(self._count_annotated(project, status) for status in ("disputed", "waiting", "not_judged"))
        return ProjectSnapshot(
            accepted=self._count_annotated(project) - undecided,
            tasks=self._studio.count_tasks(project),
            newest=newest.updated_at if newest else "",
            at=datetime.now().astimezone(),
        )

    def _count_annotated(self, project: int, status: str = "") -> int:
        items: list[dict[str, Any]] = [_ANNOTATED]
        if status:
            has_status = {"filter": "filter:tasks:data.qc_status", "operator": "equal", "type": "String"}
            items.append({**has_status, "value": status})
        return self._studio.count_tasks(project, filters={"conjunction": "and", "items": items})

    def _enqueue_notifications(self, report: ExportReport, project: int, policy: ExportPolicy, reason: str) -> None:
        subject, key = f"{project}:{report.version}", f"{report.url} {report.version}"
        if policy.webhook:
            payload = {"to": policy.webhook, "body": webhook_body(report, project, reason)}
            self.inbox.put(WEBHOOK, subject, key, payload)
        if policy.then:
            payload = {"command": list(policy.then), "told": command_environment(report, project)}
            self.inbox.put(THEN, subject, key, payload)


def post_export_handlers(settings: Settings) -> Mapping[str, Handler]:
    """The handlers of the topics `WEBHOOK` and `THEN`, for ``Jobs`` and `watch`."""

    def webhook(_subject: str, events: Sequence[Event]) -> None:
        for event in events:
            try:
                send(settings, event.payload["to"], event.payload["body"])
            except WebhookForbidden as error:
                raise Reject(str(error)) from error

    def then(_subject: str, events: Sequence[Event]) -> None:
        for event in events:
            try:
                run_post_export_command(event.payload["command"], event.payload["told"])
            except CommandFailed as error:  # a failed training is not restarted without a decision
                raise Reject(f"{error} `labelloop inbox replay` repeats it.") from error

    return {WEBHOOK: webhook, THEN: then}


def watch(
    project: int,
    policy: ExportPolicy,
    *,
    settings: Settings,
    handlers: Mapping[str, Handler],
    on_message: OnMessage,
    on_report: Callable[[ExportReport], None],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Export a project whenever its policy says so, until Ctrl-C, SIGTERM or ``stop``.

    A check that fails (Label Studio does not answer, the store is full) is reported and repeated after
    ``poll_seconds``. The policy's command runs in this process, one version at a time; webhooks that fail stay in the
    inbox and are retried here or by a worker.

    Args:
        project: Its id.
        policy: When to export what to where, and which notifications follow.
        settings: Where Label Studio, the store and the database are.
        handlers: `post_export_handlers`.
        on_message: Called with one line per step.
        on_report: Called with each report.
        progress: Called while an export runs.
        stop: Ends the watch.

    Raises:
        StudioUnauthorized: Label Studio rejects the token; a retry would fail again.
    """
    engine = open_database(settings)
    studio = Studio.from_settings(settings)
    watcher = Watcher(settings, studio, engine)
    stop = stop or threading.Event()
    # The command runs in this process, so that its output and its status appear here.
    without_command = replace(policy, then=())
    try:
        with on_stop_signals(lambda: _request_stop(stop)):
            on_message(f"Watching project {project}: {describe_triggers(policy)}. Press Ctrl-C to stop.")
            while not stop.is_set():
                try:
                    _, _, reason = watcher.check(project, without_command)
                    if reason:
                        on_message(f"Exporting: {reason}.")
                        report = watcher.export(project, without_command, reason, progress=progress)
                        on_report(report)
                        if report.published and policy.then:
                            _run_command(report, project, policy, on_message)
                    deliver_due_events(watcher.inbox, WEBHOOK, handlers[WEBHOOK], on_message)
                except StudioUnauthorized:
                    raise
                except LabelloopError as error:
                    on_message(str(error))
                stop.wait(settings.poll_seconds)
    finally:
        studio.close()
        engine.dispose()


def describe_triggers(policy: ExportPolicy) -> str:
    """When a project is exported, in words."""
    parts = [
        f"every {policy.every_tasks} newly accepted tasks" if policy.every_tasks else "",
        f"every {policy.every_hours:g} hours" if policy.every_hours else "",
        f"every day at {policy.at}" if policy.at else "",
        "when every task is accepted" if policy.when_done else "",
    ]
    return ", ".join(part for part in parts if part)


def deliver_due_events(inbox: Inbox, topic: str, handler: Handler, on_message: OnMessage) -> None:
    """Handle the due events of one topic in this process, as a worker does."""
    for _, subject in inbox.due_subjects(_BATCH, topics=[topic]):
        claim = inbox.claim(topic, subject, current_worker())
        if claim is None:
            continue
        try:
            handler(subject, claim.events)
        except Reject as error:
            inbox.mark_dead(claim, str(error))
            on_message(str(error))
        except LabelloopError as error:
            inbox.retry(claim, str(error))
            on_message(f"{error} It is tried again.")
        else:
            inbox.mark_done(claim)


def _event_key(project: int, last: LastExport, now: ProjectSnapshot) -> str:
    """One event per state after an export, and one more try each day."""
    return f"{project}:{last.version}:{last.at.timestamp():.3f}:{now.at.date()}"


def _run_command(report: ExportReport, project: int, policy: ExportPolicy, on_message: OnMessage) -> None:
    on_message(f"Running {policy.then[0]} for {report.version}.")
    try:
        run_post_export_command(policy.then, command_environment(report, project))
    except CommandFailed as error:
        on_message(str(error))
    else:
        on_message(f"{policy.then[0]} ended with status 0.")


def _request_stop(stop: threading.Event) -> None:
    if stop.is_set():  # a second signal does not wait for the running export
        raise KeyboardInterrupt
    stop.set()
