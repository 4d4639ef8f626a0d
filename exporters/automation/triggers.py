"""TRIGGERS: what starts an automatic export, each a function of the policy, the project's state and its last export."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from exporters.automation.policy import ExportPolicy

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class ProjectSnapshot:
    """The state of a project.

    Attributes:
        accepted: Annotated tasks, without those that quality control marks as disputed, waiting or not judged.
        tasks: All tasks.
        newest: The last change of any task, as Label Studio writes it.
        at: When the state was read, with the machine's time zone.
    """

    accepted: int
    tasks: int
    newest: str
    at: datetime


@dataclass(frozen=True)
class LastExport:
    """The state of a project at its last automatic export.

    Attributes:
        accepted: `ProjectSnapshot.accepted` then.
        newest: `ProjectSnapshot.newest` then.
        at: When it was exported; before the first export, when the project was first watched.
        version: The last version; empty before the first one.
    """

    accepted: int
    newest: str
    at: datetime
    version: str = ""


# Returns why an export is due, in a few words; empty: it is not.
Trigger = Callable[[ExportPolicy, ProjectSnapshot, LastExport], str]


def every_tasks(policy: ExportPolicy, now: ProjectSnapshot, last: LastExport) -> str:
    """Due after ``every_tasks`` newly accepted tasks."""
    new = now.accepted - last.accepted
    return f"{new} newly accepted tasks" if policy.every_tasks and new >= policy.every_tasks else ""


def every_hours(policy: ExportPolicy, now: ProjectSnapshot, last: LastExport) -> str:
    """Due ``every_hours`` hours after the last export, if anything changed."""
    waited = now.at - last.at >= timedelta(hours=policy.every_hours)
    return f"{policy.every_hours:g} hours" if policy.every_hours and waited and _changed(now, last) else ""


def at(policy: ExportPolicy, now: ProjectSnapshot, last: LastExport) -> str:
    """Due once the time of day passed since the last export, if anything changed; also after the machine was off."""
    if not policy.at:
        return ""
    hour, minute = map(int, policy.at.split(":"))
    moment = now.at.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if moment > now.at:
        moment -= _DAY
    return policy.at if last.at < moment and _changed(now, last) else ""


def when_done(policy: ExportPolicy, now: ProjectSnapshot, last: LastExport) -> str:
    """Due when every task is accepted, if anything changed since the last export."""
    done = policy.when_done and 0 < now.tasks <= now.accepted
    # Not `_changed`: an export that made no version would be due again at every check.
    changed = (now.newest, now.accepted) != (last.newest, last.accepted)
    return "every task is accepted" if done and changed else ""


TRIGGERS: dict[str, Trigger] = {
    "every_tasks": every_tasks,
    "every_hours": every_hours,
    "at": at,
    "when_done": when_done,
}


def due(policy: ExportPolicy, now: ProjectSnapshot, last: LastExport) -> str:
    """Why an export is due; empty: it is not. A project without accepted tasks is never due."""
    if not now.accepted:
        return ""
    return next((reason for trigger in TRIGGERS.values() if (reason := trigger(policy, now, last))), "")


def _changed(now: ProjectSnapshot, last: LastExport) -> bool:
    return not last.version or (now.newest, now.accepted) != (last.newest, last.accepted)
