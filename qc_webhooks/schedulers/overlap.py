"""Finds tasks whose overlap is below the policy's annotators; reports them, or raises it where the policy says so.

A task created by a single ``POST /api/tasks`` has an overlap of 1, whatever the project's ``maximum_annotations`` is.
Label Studio finishes it after its first annotator.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio
from qc_webhooks.events import raise_overlap_event
from qc_webhooks.policy import Policy

# Maximum number of tasks submitted per run; the next run continues.
MAX_PER_RUN = 500

log = structlog.get_logger(__name__)


def below_overlap(annotators: int) -> dict[str, Any]:
    """Data Manager filter for tasks with an overlap below ``annotators``."""
    short = {"filter": "filter:tasks:overlap", "operator": "less", "type": "Number", "value": annotators}
    return {"conjunction": "and", "items": [short]}


def count_low_overlap(studio: Studio, project: Mapping[str, Any], policy: Policy) -> int:
    """Number of tasks with an overlap below the policy's annotators; one small request.

    0 where the project itself requests fewer annotators, or several on a share of its tasks only: that is a deliberate
    setting, and `connect` reports it.
    """
    if not project.get("task_number"):
        return 0
    if int(project.get("maximum_annotations") or 1) < policy.annotators and not policy.raise_overlap:
        return 0
    if float(project.get("overlap_cohort_percentage") or 100) < 100:
        return 0
    return studio.count_tasks(int(project["id"]), filters=below_overlap(policy.annotators))


def describe_low_overlap(tasks: int, policy: Policy) -> str:
    """One sentence about these tasks."""
    verb = "task has" if tasks == 1 else "tasks have"
    return (
        f"{tasks:,} {verb} an overlap below {policy.annotators} (made one at a time by the API): no"
        f" {'second' if policy.annotators == 2 else 'further'} annotator is ever asked, and no verdict is reached"
    )


class OverlapScheduler:
    """Reports or raises low overlaps.

    Args:
        studio: Label Studio.
        inbox: Receives the tasks to raise.
        policy: Returns a project's policy.
    """

    def __init__(self, studio: Studio, inbox: Inbox, policy: Callable[[int], Policy]) -> None:
        self._studio = studio
        self._inbox = inbox
        self._policy = policy
        self._states: dict[int, tuple[int, bool]] = {}  # project -> (tasks, raise_overlap) of the last run

    def raise_overlaps(self, project: int) -> int:
        """Report or raise a project's tasks with a low overlap when their number changed.

        While the number is unchanged, a run takes two small requests.

        Returns:
            Number of tasks submitted to the workers.
        """
        policy = self._policy(project)
        state = count_low_overlap(self._studio, self._studio.project(project), policy), policy.raise_overlap
        if self._states.get(project, (0, False)) == state:
            return 0
        self._states[project] = state
        tasks, raised = state
        if not tasks:
            return 0
        if not raised:
            fix = f"set raise_overlap = true in qc/{project}/policy.toml, or raise their overlap in Label Studio"
            log.warning("tasks_without_further_annotators", project=project, tasks=tasks,
                        reason=describe_low_overlap(tasks, policy), fix=fix)  # fmt: skip
            return 0
        submitted = 0
        for stamp in self._studio.stamps(project, filters=below_overlap(policy.annotators)):
            hint = raise_overlap_event(project, stamp.id, policy.annotators)
            submitted += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
            if submitted >= MAX_PER_RUN:
                self._states.pop(project)  # the next run continues
                break
        log.info("overlap_raised", project=project, tasks=tasks, handed=submitted)
        return submitted
