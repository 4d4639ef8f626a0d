"""TRIGGERS: what starts an export by itself, each a function of the policy, what is there now and the last export."""

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from exporters.automation.policy import ExportPolicy

_DAY = timedelta(days=1)


class Now(msgspec.Struct, frozen=True):
    """How a project stands.

    Attributes:
        accepted: Annotated tasks that quality control does not hold for disputed, waiting or not judged.
        tasks: All tasks.
        newest: The last change of any task, as Label Studio writes it.
        at: The moment of this look, with the machine's time zone.
    """

    accepted: int
    tasks: int
    newest: str
    at: datetime


class Last(msgspec.Struct, frozen=True):
    """How a project stood at its last automatic export; ``at`` is the moment when it was first watched, without one.

    ``version`` is empty as long as there was none.
    """

    accepted: int
    newest: str
    at: datetime
    version: str = ""


Trigger = Callable[[ExportPolicy, Now, Last], str]
"""Gives the reason for an export in a few words; empty: none."""


def every_tasks(policy: ExportPolicy, now: Now, last: Last) -> str:
    """So many newly accepted tasks."""
    new = now.accepted - last.accepted
    return f"{new} newly accepted tasks" if policy.every_tasks and new >= policy.every_tasks else ""


def every_hours(policy: ExportPolicy, now: Now, last: Last) -> str:
    """So many hours since the last one, and something changed."""
    waited = now.at - last.at >= timedelta(hours=policy.every_hours)
    return f"{policy.every_hours:g} hours" if policy.every_hours and waited and _changed(now, last) else ""


def at(policy: ExportPolicy, now: Now, last: Last) -> str:
    """The time of day came since the last one, and something changed. A machine that slept makes up for it."""
    if not policy.at:
        return ""
    hour, minute = map(int, policy.at.split(":"))
    moment = now.at.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if moment > now.at:
        moment -= _DAY
    return policy.at if last.at < moment and _changed(now, last) else ""


def when_done(policy: ExportPolicy, now: Now, last: Last) -> str:
    """Every task is accepted, and something changed since the last one."""
    done = policy.when_done and 0 < now.tasks <= now.accepted
    return "every task is accepted" if done and _changed(now, last) else ""


TRIGGERS: dict[str, Trigger] = {
    "every_tasks": every_tasks,
    "every_hours": every_hours,
    "at": at,
    "when_done": when_done,
}


def due(policy: ExportPolicy, now: Now, last: Last) -> str:
    """Why an export is due; empty: it is not. Without any accepted task it never is."""
    if not now.accepted:
        return ""
    return next((reason for trigger in TRIGGERS.values() if (reason := trigger(policy, now, last))), "")


def _changed(now: Now, last: Last) -> bool:
    return not last.version or (now.newest, now.accepted) != (last.newest, last.accepted)
