"""`Studio`: every call that labelloop makes to Label Studio, on one connection."""

from typing import Self

from labelloop.service.settings import Settings
from labelloop.service.studio.predictions import PredictionCalls
from labelloop.service.studio.projects import ProjectCalls
from labelloop.service.studio.snapshots import SnapshotCalls
from labelloop.service.studio.tasks import TaskCalls
from labelloop.service.studio.uploads import UploadCalls
from labelloop.service.studio.webhooks import HookCalls


class Studio(ProjectCalls, TaskCalls, UploadCalls, PredictionCalls, HookCalls, SnapshotCalls):
    """Label Studio as one user. Thread-safe; make one a process and pass it down.

    Args:
        url: Label Studio's address; a path prefix is kept.
        api_key: A personal access token, or a legacy token.
        timeout_s: Longest wait for one answer; imports and pages of tasks get 300 s.

    Every call may raise `StudioUnreachable`, `StudioUnauthorized`, `NotFound` or `StudioRefused`.
    """

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The Label Studio that the settings name."""
        return cls(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())
