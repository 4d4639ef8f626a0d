"""Judges the tasks of a project with older defaults under the newest ones, a few at a time."""

from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.events import preview_event
from qc_webhooks.policy import Policy
from qc_webhooks.policy.conflict_rules import BY_MEAN
from qc_webhooks.store.previews import PreviewStore
from qc_webhooks.store.projects import NEWEST_DEFAULTS, ConnectedProject

# Tasks per run: each is read from Label Studio once.
MAX_PER_RUN = 300


def queue_previews(previews: PreviewStore, inbox: Inbox, connected: ConnectedProject, policy: Policy) -> int:
    """Submit judged tasks without a preview. Returns the number of newly submitted tasks."""
    if connected.defaults >= NEWEST_DEFAULTS or policy.conflicts != BY_MEAN:
        return 0
    events = [
        preview_event(connected.project, task, NEWEST_DEFAULTS)
        for task in previews.missing(connected.project, limit=MAX_PER_RUN)
    ]
    return sum(inbox.put(event.topic, event.subject, event.key, event.payload) for event in events)
