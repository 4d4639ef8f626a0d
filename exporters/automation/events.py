"""What goes through the inbox for automatic exports: topics, keys, and what is told of a published version."""

from typing import Any

from exporters.automation.triggers import Last, Now
from exporters.dataset.versions import manifest_key
from exporters.model.accounting import Report
from exporters.model.manifest import FORMAT

PROJECT = "export.project"
"""Export a project by its policy; the subject is the project's number."""
WEBHOOK = "export.webhook"
"""Tell an address of a published version."""
THEN = "export.then"
"""Run the policy's command for a published version."""
PUBLISHED = "dataset.published"


def project_key(project: int, last: Last, now: Now) -> str:
    """One export for each state of the memory, and a further try each day."""
    return f"{project}:{last.version}:{last.at.timestamp():.3f}:{now.at.date()}"


def told(report: Report, project: int | None, reason: str) -> dict[str, Any]:
    """The body of the webhook."""
    return {
        "event": PUBLISHED,
        "id": f"{report.url} {report.version}",
        "url": report.url,
        "version": report.version,
        "manifest": manifest_key(report.version),
        "manifest_sha256": report.manifest_sha256,
        "format": FORMAT,
        "project": project,
        "reason": reason,
        "images": dict(report.images),
        "classes": dict(report.classes),
        "tasks": report.accounts.tasks.kept,
    }


def environment(report: Report, project: int | None) -> dict[str, str]:
    """What a command is told of a version, as environment variables."""
    return {
        "DATASET_URL": report.url,
        "DATASET_VERSION": report.version,
        "DATASET_MANIFEST": f"{report.url.rstrip('/')}/{manifest_key(report.version)}",
        "DATASET_MANIFEST_SHA256": report.manifest_sha256,
        "DATASET_PROJECT": "" if project is None else str(project),
    }
