"""Export snapshots: Label Studio writes a complete project into a file, which is then downloaded.

For a complete project a snapshot costs Label Studio less than half of reading pages (bench/results/sources.md).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelloop.service.studio.errors import StudioError, StudioNotFound, StudioUnreachable
from labelloop.service.studio.http import StudioClient

_LONG_TIMEOUT_S = 600.0  # without a job queue Label Studio writes the snapshot before it responds
_POLL_S = 0.5
_OPTIONS = {
    "drafts": {"only_id": True},
    "predictions": {"only_id": True},
    "annotations__completed_by": {"only_id": True},
    "interpolate_key_frames": False,
}


class SnapshotsApi(StudioClient):
    """Export snapshots."""

    def snapshot(self, project: int, title: str, *, wait_s: float = 3600.0) -> int:
        """Create a snapshot of all tasks of a project, with all annotations and only the ids of predictions.

        An existing snapshot with this title is reused (after a crash or a lost response).

        Args:
            project: The project's id.
            title: Identifies the snapshot; use a new title for each state of the project.
            wait_s: Maximum wait until it is complete, in seconds.

        Returns:
            The snapshot's id.

        Raises:
            StudioError: Label Studio failed, or the wait timed out.
        """
        snapshot = self._find_by_title(project, title)
        if snapshot is None:
            try:
                fields = {"title": title, "serialization_options": _OPTIONS}
                snapshot = self.request(
                    "POST", f"api/projects/{project}/exports/", json=fields, timeout_s=_LONG_TIMEOUT_S
                )
            except StudioUnreachable:  # a proxy timed out; Label Studio goes on
                snapshot = self._find_by_title(project, title)
                if snapshot is None:
                    raise
        return self._wait_until_complete(project, snapshot, time.monotonic() + wait_s)

    def download_snapshot(
        self, project: int, snapshot: int, to: Path, progress: Callable[[int], object] | None = None
    ) -> None:
        """Download a complete snapshot's JSON in constant memory.

        Args:
            project: The project's id.
            snapshot: The snapshot's id.
            to: The file; replaced once the download is complete.
            progress: Called with the number of bytes received so far.
        """
        path = f"api/projects/{project}/exports/{snapshot}/download"
        self.download(path, to, params={"exportType": "JSON"}, timeout_s=_LONG_TIMEOUT_S, progress=progress)

    def delete_snapshot(self, project: int, snapshot: int) -> None:
        """Delete a snapshot and its file from Label Studio; a missing one is not an error."""
        try:
            self.request("DELETE", f"api/projects/{project}/exports/{snapshot}")
        except StudioNotFound:
            return

    def _find_by_title(self, project: int, title: str) -> dict[str, Any] | None:
        snapshots = self.request("GET", f"api/projects/{project}/exports/")
        matches = [row for row in snapshots if row.get("title") == title and row.get("status") != "failed"]
        return dict(matches[0]) if matches else None

    def _wait_until_complete(self, project: int, snapshot: dict[str, Any], deadline: float) -> int:
        snapshot_id = int(snapshot["id"])
        while True:
            status = snapshot.get("status")
            if status == "completed":
                return snapshot_id
            if status == "failed" or time.monotonic() > deadline:
                why = "failed" if status == "failed" else "is not complete yet"
                raise StudioError(
                    f"Snapshot {snapshot_id} of project {project} {why}.",
                    fix="See Label Studio's log.",
                    code="snapshot_failed",
                )
            time.sleep(_POLL_S)
            snapshot = dict(self.request("GET", f"api/projects/{project}/exports/{snapshot_id}"))
