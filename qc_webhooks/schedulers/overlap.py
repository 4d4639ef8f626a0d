"""Tasks that Label Studio serves to fewer annotators than a verdict needs: named, and raised where the policy says so.

A task made by a single ``POST /api/tasks`` has an overlap of 1, whatever the project's ``maximum_annotations`` is. It
is finished after its first annotator, and no second one is ever asked.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio
from qc_webhooks.events import raise_hint
from qc_webhooks.policy import Policy

# So many tasks are handed to the workers in one look; the next look takes the next ones.
MOST_AT_ONCE = 500

log = structlog.get_logger(__name__)


def below(annotators: int) -> dict[str, Any]:
    """The Data Manager's filter for tasks that are served to fewer annotators."""
    short = {"filter": "filter:tasks:overlap", "operator": "less", "type": "Number", "value": annotators}
    return {"conjunction": "and", "items": [short]}


def count_short(studio: Studio, project: Mapping[str, Any], policy: Policy) -> int:
    """How many tasks get fewer annotators than a verdict needs, by one small request.

    0 where the project itself asks for fewer, or for several on a share of its tasks only: that is somebody's choice,
    and `connect` says so.
    """
    if not project.get("task_number"):
        return 0
    if int(project.get("maximum_annotations") or 1) < policy.annotators and not policy.raise_overlap:
        return 0
    if float(project.get("overlap_cohort_percentage") or 100) < 100:
        return 0
    return studio.count_tasks(int(project["id"]), filters=below(policy.annotators))


def describe_short(tasks: int, policy: Policy) -> str:
    """What such tasks wait for, in a sentence."""
    verb = "task has" if tasks == 1 else "tasks have"
    return (
        f"{tasks:,} {verb} an overlap below {policy.annotators} (made one at a time by the API): no"
        f" {'second' if policy.annotators == 2 else 'further'} annotator is ever asked, and no verdict is reached"
    )


class OverlapKeeper:
    """Looks after such tasks.

    Args:
        studio: Label Studio.
        inbox: Where tasks go that are to be raised.
        policy: Gives a project's policy.
    """

    def __init__(self, studio: Studio, inbox: Inbox, policy: Callable[[int], Policy]) -> None:
        self._studio = studio
        self._inbox = inbox
        self._policy = policy
        self._seen: dict[int, tuple[int, bool]] = {}  # project -> what the last look found

    def look(self, project: int) -> int:
        """Names a project's short tasks when their number changed. Returns how many were handed to the workers.

        While the number stays as it is, a look is two small requests, however many tasks there are.
        """
        policy = self._policy(project)
        found = count_short(self._studio, self._studio.project(project), policy), policy.raise_overlap
        if self._seen.get(project, (0, False)) == found:
            return 0
        self._seen[project] = found
        tasks, raised = found
        if not tasks:
            return 0
        if not raised:
            fix = f"set raise_overlap = true in qc/{project}/policy.toml, or raise their overlap in Label Studio"
            log.warning("tasks_without_further_annotators", project=project, tasks=tasks,
                        reason=describe_short(tasks, policy), fix=fix)  # fmt: skip
            return 0
        handed = 0
        for stamp in self._studio.stamps(project, filters=below(policy.annotators)):
            hint = raise_hint(project, stamp.id, policy.annotators)
            handed += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
            if handed >= MOST_AT_ONCE:
                self._seen.pop(project)  # the next look goes on with the others
                break
        log.info("overlap_raised", project=project, tasks=tasks, handed=handed)
        return handed
