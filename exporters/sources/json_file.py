"""A Label Studio JSON export or JSON lines, of any size, on the disk or in S3."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from exporters.errors import InputBroken, NotTasks, SourceNotFound
from exporters.sources.base import read
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_file_type
from labelloop.labeling.studio.stream import check_end, iter_raw_tasks
from labelloop.labeling.studio.task import Task
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import NotThere, open_store


class JsonFile:
    """A Label Studio JSON export of any size, or JSON lines, read a task at a time.

    Raises:
        SourceNotFound: There is no such file.
        NotTasks: It is something else.
        InputBroken: It ends before its end.
    """

    def __init__(self, path: Path, config: LabelConfig | None, *, location: str = "") -> None:
        if not path.is_file():
            raise SourceNotFound(str(path), "there is no such file")
        self.title = Path(location or path.name).stem
        self.origin: dict[str, Any] = {"kind": "file", "location": location or path.name}
        self.config = config
        self.total: int | None = None
        self._path = path
        self._shown = location or str(path)
        with self._open() as file:
            if other := sniff_file_type(file.read(HEAD_BYTES)):
                raise NotTasks(self._shown, other.what, other.fix)
            file.seek(0)
            check_end(file)
            self._mark = _mark(file)

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task of the file.

        Raises:
            InputBroken: The file ends before its end, or was written to since it was opened.
        """
        with self._open() as file:
            yield from iter_raw_tasks(file)
            if _mark(file) != self._mark:
                raise InputBroken(self._shown, "it was written to while it was read", "Wait until it is written.")

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task of the file; an unreadable one does not stop the rest."""
        yield from read(self.raw())

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The file; what is no task's own fault ends the run."""
        with self._path.open("rb") as file:
            try:
                yield file
            except MalformedTask as error:
                raise InputBroken(self._shown, error.reason) from error

    def mentions(self, word: bytes) -> bool:
        """Whether a word stands anywhere in the file: told at the speed of the disk, no task is read."""
        end = b""
        with self._path.open("rb") as file:
            while chunk := file.read(1 << 20):
                if word in end + chunk:
                    return True
                end = chunk[-len(word) :]
        return False

    def close(self) -> None:
        """Nothing: the file is open only while it is read."""


class S3Json(JsonFile):
    """A JSON export in a bucket, brought to the disk first."""

    def __init__(self, url: str, config: LabelConfig | None, settings: Settings) -> None:
        bucket, _, key = url.partition("://")[2].partition("/")
        with ExitStack() as opened:
            path = opened.enter_context(scratch_folder()) / "export.json"
            try:
                open_store(f"s3://{bucket}", settings).download(key, path)
            except NotThere as error:
                raise SourceNotFound(url, "there is no such object") from error
            super().__init__(path, config, location=url)
            self._scratch = opened.pop_all()

    def close(self) -> None:
        """Remove the copy on the disk."""
        self._scratch.close()


def _mark(file: BinaryIO) -> tuple[int, int]:
    """What tells that a file was written to."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns
