"""``labelloop export --watch``: one project watched by this process alone, its webhooks and command seen to as well."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from exporters.automation.events import WEBHOOK, environment
from exporters.automation.policy import ExportPolicy
from exporters.automation.then import CommandFailed, run_post_export_command
from exporters.automation.watcher import Watcher
from exporters.model.accounting import Report
from exporters.pipeline.export_run import Progress
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Handler, Reject
from labelloop.service.jobs.worker_id import this_worker
from labelloop.service.settings import Settings
from labelloop.service.signals import on_stop_signals
from labelloop.service.studio import Studio, StudioUnauthorized

Tell = Callable[[str], None]
_AT_A_TIME = 100


def watch(
    project: int,
    policy: ExportPolicy,
    *,
    settings: Settings,
    followers: Mapping[str, Handler],
    tell: Tell,
    show: Callable[[Report], None],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Export a project whenever its policy says so, until Ctrl-C, SIGTERM or ``stop``.

    A look that fails (Label Studio is away, the store is full) is told and made again. The policy's command runs here,
    one version at a time; webhooks that fail are kept in the inbox and tried again here or by a worker.

    Args:
        project: Its number.
        policy: When to export what to where, and what follows.
        settings: Where Label Studio, the store and the database are.
        followers: The handlers of what follows, by topic.
        tell: Told each step in a line.
        show: Given each report.
        progress: Told while an export runs.
        stop: Ends the watch.

    Raises:
        StudioUnauthorized: Label Studio refuses the token; waiting would not help.
    """
    engine = open_database(settings)
    studio = Studio.from_settings(settings)
    watcher = Watcher(settings, studio, engine)
    stop = stop or threading.Event()
    # The command runs in this process, so that its output and its end are seen here.
    plain = policy if not policy.then else _without_command(policy)
    try:
        with on_stop_signals(lambda: _stopping(stop)):
            tell(f"Watching project {project}: {describe(policy)}. Ctrl-C ends it.")
            while not stop.is_set():
                try:
                    _, _, reason = watcher.look(project, plain)
                    if reason:
                        tell(f"Exporting: {reason}.")
                        report = watcher.run(project, plain, reason, progress=progress)
                        show(report)
                        if report.published and policy.then:
                            _follow(report, project, policy, tell)
                    deliver(watcher.inbox, WEBHOOK, followers[WEBHOOK], tell)
                except StudioUnauthorized:
                    raise
                except LabelloopError as error:
                    tell(str(error))
                stop.wait(settings.poll_seconds)
    finally:
        studio.close()
        engine.dispose()


def describe(policy: ExportPolicy) -> str:
    """When a project is exported again, in words."""
    parts = [
        f"every {policy.every_tasks} newly accepted tasks" if policy.every_tasks else "",
        f"every {policy.every_hours:g} hours" if policy.every_hours else "",
        f"every day at {policy.at}" if policy.at else "",
        "when every task is accepted" if policy.when_done else "",
    ]
    return ", ".join(part for part in parts if part)


def deliver(inbox: Inbox, topic: str, handler: Handler, tell: Tell) -> None:
    """Handle the due events of one topic here, as a worker would."""
    for found, subject in inbox.due(_AT_A_TIME):
        claim = inbox.claim(topic, subject, this_worker()) if found == topic else None
        if claim is None:
            continue
        try:
            handler(subject, claim.events)
        except Reject as error:
            inbox.dead(claim, str(error))
            tell(str(error))
        except LabelloopError as error:
            inbox.retry(claim, str(error))
            tell(f"{error} It is tried again.")
        else:
            inbox.done(claim)


def _follow(report: Report, project: int, policy: ExportPolicy, tell: Tell) -> None:
    tell(f"Running {policy.then[0]} for {report.version}.")
    try:
        run_post_export_command(policy.then, environment(report, project))
    except CommandFailed as error:
        tell(str(error))
    else:
        tell(f"{policy.then[0]} ended well.")


def _without_command(policy: ExportPolicy) -> ExportPolicy:
    return replace(policy, then=())


def _stopping(stop: threading.Event) -> None:
    if stop.is_set():  # a second signal does not wait for the export that is under way
        raise KeyboardInterrupt
    stop.set()
