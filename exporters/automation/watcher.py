"""Looks whether a project is due, exports it, and sees to it that those who asked for it are told."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog

from exporters.automation.events import PROJECT, THEN, WEBHOOK, environment, project_key, told
from exporters.automation.policy import ExportPolicy
from exporters.automation.state import Memory
from exporters.automation.triggers import Last, Now, due
from exporters.model.accounting import Report
from exporters.pipeline.export import export
from exporters.pipeline.export_run import Progress
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio

_log = structlog.get_logger(__name__)
_ANNOTATED = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}


class Watcher:
    """Automatic exports of one Label Studio.

    Args:
        settings: Where the store and the database are.
        studio: Label Studio.
        engine: The migrated database.
    """

    def __init__(self, settings: Settings, studio: Studio, engine: sa.Engine) -> None:
        self.inbox = Inbox.from_settings(settings, engine)
        self._settings = settings
        self._studio = studio
        self._memory = Memory(engine)

    def look(self, project: int, policy: ExportPolicy) -> tuple[Now, Last, str]:
        """How a project stands, how it stood at its last automatic export, and why it is due; empty: it is not."""
        now = self.now(project)
        last = self._memory.last(project, policy.to, now)
        return now, last, due(policy, now, last)

    def ask(self, project: int, policy: ExportPolicy) -> bool:
        """Have the project exported by a worker, if it is due; asking again while that waits changes nothing."""
        now, last, reason = self.look(project, policy)
        if not reason:
            return False
        return self.inbox.put(PROJECT, str(project), project_key(project, last, now), {"reason": reason})

    def run(self, project: int, policy: ExportPolicy, reason: str, *, progress: Progress | None = None) -> Report:
        """Export the project now, and put into the inbox what follows from it."""
        now = self.now(project)  # before the export: what comes while it runs counts for the next
        last = self._memory.last(project, policy.to, now)
        report = export(
            project,
            settings=self._settings,
            studio=self._studio,
            formats=policy.format.split(","),
            to=policy.to or None,
            annotation=policy.annotation,
            split=policy.split,
            split_key=policy.split_key,
            rename=policy.rename,
            category_ids=policy.category_ids,
            group_by=policy.group_by,
            disputed=policy.disputed,
            max_errors=policy.max_errors,
            allow_shrink=policy.allow_shrink,
            copy_images=policy.copy_images,
            progress=progress,
        )
        outcome = "published" if report.published else f"not published: {report.refused}"
        self._memory.exported(project, policy.to, now, version=report.version or last.version, outcome=outcome)
        _log.info("exported", project=project, url=report.url, version=report.version, reason=reason, outcome=outcome)
        if report.published:
            self._follow(report, project, policy, reason)
        return report

    def now(self, project: int) -> Now:
        """How a project stands: five small requests, no annotation is read."""
        newest = next(self._studio.tasks(project, page_size=1, ordering=["-tasks:updated_at"]), None)
        unsure = sum(self._annotated(project, status) for status in ("disputed", "waiting", "not_judged"))
        return Now(
            accepted=self._annotated(project) - unsure,
            tasks=self._studio.count_tasks(project),
            newest=newest.updated_at if newest else "",
            at=datetime.now().astimezone(),
        )

    def _annotated(self, project: int, status: str = "") -> int:
        items: list[dict[str, Any]] = [_ANNOTATED]
        if status:
            of = {"filter": "filter:tasks:data.qc_status", "operator": "equal", "type": "String", "value": status}
            items.append(of)
        return self._studio.count_tasks(project, filters={"conjunction": "and", "items": items})

    def _follow(self, report: Report, project: int, policy: ExportPolicy, reason: str) -> None:
        subject, key = f"{project}:{report.version}", f"{report.url} {report.version}"
        if policy.webhook:
            payload = {"to": policy.webhook, "body": told(report, project, reason)}
            self.inbox.put(WEBHOOK, subject, key, payload)
        if policy.then:
            payload = {"command": list(policy.then), "told": environment(report, project)}
            self.inbox.put(THEN, subject, key, payload)
