"""Snapshots: a whole project written by Label Studio into a file of its own, then brought here as it is.

For a whole project a snapshot costs Label Studio less than half of what pages do (bench/results/sources.md).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelloop.service.studio.errors import NotFound, StudioError, StudioUnreachable
from labelloop.service.studio.http import StudioClient

_LONG_S = 600.0  # without its job queue Label Studio writes the snapshot before it answers
_POLL_S = 0.5
_OPTIONS = {
    "drafts": {"only_id": True},
    "predictions": {"only_id": True},
    "annotations__completed_by": {"only_id": True},
    "interpolate_key_frames": False,
}


class SnapshotFailed(StudioError):
    """Label Studio could not write a snapshot of a project."""

    code = "snapshot_failed"


class SnapshotCalls(StudioClient):
    """What concerns export snapshots."""

    def snapshot(self, project: int, title: str, *, wait_s: float = 3600.0) -> int:
        """A finished snapshot of all tasks of a project, with all annotations; predictions as bare ids.

        One of this title that is there already (an export before us was killed, or its answer got lost) is taken.

        Args:
            project: Its id.
            title: What tells it from others; give each state of the project another one.
            wait_s: Longest wait until it is written.

        Returns:
            Its number.

        Raises:
            SnapshotFailed: Label Studio gave up, or it took too long.
        """
        found = self._titled(project, title)
        if found is None:
            try:
                fields = {"title": title, "serialization_options": _OPTIONS}
                found = self.request("POST", f"api/projects/{project}/exports/", json=fields, timeout_s=_LONG_S)
            except StudioUnreachable:  # a proxy gave up waiting; Label Studio did not
                found = self._titled(project, title)
                if found is None:
                    raise
        return self._finished(project, found, time.monotonic() + wait_s)

    def download_snapshot(
        self, project: int, snapshot: int, to: Path, progress: Callable[[int], object] | None = None
    ) -> None:
        """Brings a finished snapshot's JSON to the disk, in constant memory.

        Args:
            project: Its id.
            snapshot: The snapshot's number.
            to: The file; replaced when everything is there.
            progress: Told the bytes so far.
        """
        path = f"api/projects/{project}/exports/{snapshot}/download"
        self.download(path, to, params={"exportType": "JSON"}, timeout_s=_LONG_S, progress=progress)

    def delete_snapshot(self, project: int, snapshot: int) -> None:
        """Removes a snapshot and its file from Label Studio; one that is gone is no error."""
        try:
            self.request("DELETE", f"api/projects/{project}/exports/{snapshot}")
        except NotFound:
            return

    def _titled(self, project: int, title: str) -> dict[str, Any] | None:
        snapshots = self.request("GET", f"api/projects/{project}/exports/")
        alive = [each for each in snapshots if each.get("title") == title and each.get("status") != "failed"]
        return dict(alive[0]) if alive else None

    def _finished(self, project: int, snapshot: dict[str, Any], deadline: float) -> int:
        number = int(snapshot["id"])
        while True:
            status = snapshot.get("status")
            if status == "completed":
                return number
            if status == "failed" or time.monotonic() > deadline:
                why = "failed" if status == "failed" else "is not finished yet"
                raise SnapshotFailed(
                    f"Snapshot {number} of project {project} {why}.", fix="See Label Studio's log; read it in pages."
                )
            time.sleep(_POLL_S)
            snapshot = dict(self.request("GET", f"api/projects/{project}/exports/{number}"))
