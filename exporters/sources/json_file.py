"""Read a Label Studio JSON export or JSON lines of any size, on disk or in S3."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from exporters.errors import ExportError, IncompleteInput, SourceNotFound
from exporters.sources.base import read_tasks
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_file_type
from labelloop.labeling.studio.stream import check_complete, iter_raw_tasks
from labelloop.labeling.studio.task import Task
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import ObjectNotFound, open_store, split_bucket_url


class JsonFile:
    """A Label Studio JSON export of any size, or JSON lines, read one task at a time.

    Raises:
        SourceNotFound: The file does not exist.
        ExportError: The file has other content.
        IncompleteInput: The file is truncated.
    """

    def __init__(self, path: Path, config: LabelConfig | None, *, location: str = "") -> None:
        if not path.is_file():
            raise SourceNotFound(source=str(path), reason="there is no such file")
        self.title = Path(location or path.name).stem
        self.origin: dict[str, Any] = {"kind": "file", "location": location or path.name}
        self.config = config
        self.total: int | None = None
        self._path = path
        self._display_name = location or str(path)
        with self._open() as file:
            if other := sniff_file_type(file.read(HEAD_BYTES)):
                raise ExportError(
                    f"{self._display_name}: it is {other.what}, not Label Studio's tasks.",
                    fix=other.fix,
                    code="not_tasks",
                    status=400,
                )
            file.seek(0)
            check_complete(file)
            self._file_state = _file_state(file)

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task of the file.

        Raises:
            IncompleteInput: The file is truncated, or was modified since it was opened.
        """
        with self._open() as file:
            yield from iter_raw_tasks(file)
            if _file_state(file) != self._file_state:
                reason = "it was modified while it was read"
                raise IncompleteInput(source=self._display_name, reason=reason, fix="Wait until it is written.")

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task of the file; an unreadable task does not stop the others."""
        yield from read_tasks(self.raw())

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """Open the file; turn errors of the file format (not of a task) into `IncompleteInput`."""
        with self._path.open("rb") as file:
            try:
                yield file
            except MalformedTask as error:
                raise IncompleteInput(source=self._display_name, reason=error.reason) from error

    def contains(self, word: bytes) -> bool:
        """Whether the file contains a word anywhere; scans the bytes without decoding tasks."""
        tail = b""
        with self._path.open("rb") as file:
            while chunk := file.read(1 << 20):
                if word in tail + chunk:
                    return True
                tail = chunk[-len(word) :]
        return False

    def close(self) -> None:
        """Do nothing: the file is open only while it is read."""


class BucketJsonFile(JsonFile):
    """A JSON export in a bucket, downloaded first."""

    def __init__(self, url: str, config: LabelConfig | None, settings: Settings) -> None:
        bucket, key = split_bucket_url(url)
        with ExitStack() as stack:
            path = stack.enter_context(scratch_folder()) / "export.json"
            try:
                open_store(bucket, settings).download(key, path)
            except ObjectNotFound as error:
                raise SourceNotFound(source=url, reason="there is no such object") from error
            super().__init__(path, config, location=url)
            self._scratch = stack.pop_all()

    def close(self) -> None:
        """Remove the downloaded copy."""
        self._scratch.close()


def _file_state(file: BinaryIO) -> tuple[int, int]:
    """Size and modification time, to detect writes."""
    file_stat = os.fstat(file.fileno())
    return file_stat.st_size, file_stat.st_mtime_ns
