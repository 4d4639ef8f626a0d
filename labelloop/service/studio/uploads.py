"""Files uploaded into a project without making tasks of them yet: tasks come later, whole, with their annotations."""

import mimetypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

from labelloop.service.studio.http import StudioClient

_LONG_S = 300.0


class UploadCalls(StudioClient):
    """What concerns uploaded files."""

    def upload_files(self, project: int, paths: Sequence[Path]) -> list[str]:
        """Uploads files in one request.

        Args:
            project: The project that they belong to.
            paths: At most 100 files, 250 MB together: Label Studio's own limits.

        Returns:
            The address of each, as a task's data holds it: ``/data/upload/1/1a2b3c4d-name.jpg``.
        """
        if not paths:
            return []
        with ExitStack() as stack:
            files = [
                (f"file{n}", (path.name, stack.enter_context(path.open("rb")), _mime(path)))
                for n, path in enumerate(paths)
            ]
            answer = self.request(
                "POST",
                f"api/projects/{project}/import",
                params={"commit_to_project": False},
                files=files,
                timeout_s=_LONG_S,
            )
        ids = list(answer["file_upload_ids"])
        rows = self.request("GET", f"api/projects/{project}/file-uploads", params={"ids": str(ids)})
        stored = {row["id"]: row["file"] for row in rows}
        prefix = urlsplit(self.url).path.rstrip("/")
        return [f"{prefix}/data/{quote(stored[number])}" for number in ids]


def _mime(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
