"""A Label Studio JSON export or JSON lines, of any size, on the disk or in S3."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from exporters.errors import NotTasks, SourceNotFound
from exporters.sources.source import read
from labelloop.labeling.config import LabelConfig
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.mistaken import HEAD_BYTES, mistaken
from labelloop.labeling.stream import iter_raw_tasks
from labelloop.labeling.task import Task
from labelloop.service.settings import Settings
from labelloop.service.store import NotThere, open_store


class JsonFile:
    """A Label Studio JSON export of any size, or JSON lines, read a task at a time."""

    def __init__(self, path: Path, config: LabelConfig | None, *, location: str = "") -> None:
        if not path.is_file():
            raise SourceNotFound(str(path), "there is no such file")
        with path.open("rb") as file:
            other = mistaken(file.read(HEAD_BYTES))
        if other:
            raise NotTasks(location or str(path), other.what, other.fix)
        self.title = Path(location or path.name).stem
        self.origin: dict[str, Any] = {"kind": "file", "location": location or path.name}
        self.config = config
        self.total: int | None = None
        self._path = path

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task of the file."""
        with self._path.open("rb") as file:
            yield from _cut(file)

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task of the file; an unreadable one does not stop the rest."""
        yield from read(self.raw())

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
        self._folder = tempfile.TemporaryDirectory(prefix="labelloop-source-")
        path = Path(self._folder.name) / "export.json"
        try:
            open_store(f"s3://{bucket}", settings).download(key, path)
        except NotThere as error:
            raise SourceNotFound(url, "there is no such object") from error
        super().__init__(path, config, location=url)

    def close(self) -> None:
        """Remove the copy on the disk."""
        self._folder.cleanup()


def _cut(file: BinaryIO) -> Iterator[bytes | MalformedTask]:
    try:
        yield from iter_raw_tasks(file)
    except MalformedTask as error:  # the rest of the file cannot be told apart any more
        yield error
