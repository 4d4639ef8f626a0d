"""Where annotated tasks come from: a live project, a JSON export or JSON lines, on the disk or in S3."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from exporters.errors import BadOption, SourceNotFound
from labelloop.labeling.config import LabelConfig
from labelloop.labeling.errors import MalformedConfig, MalformedTask
from labelloop.labeling.stream import iter_raw_tasks
from labelloop.labeling.task import Task, read_task
from labelloop.service.settings import Settings
from labelloop.service.store import NotThere, open_store
from labelloop.service.studio import Studio


class Source(Protocol):
    """Tasks one at a time, with what is known about them.

    Attributes:
        title: A name for people, and for the data set where none is given.
        origin: Where the tasks are from, for the manifest; no secrets.
        config: The label config, or ``None`` where there is none.
        total: How many tasks there are, or ``None`` where that would take reading them.
    """

    title: str
    origin: dict[str, Any]
    config: LabelConfig | None
    total: int | None

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task, or why it cannot be read; can be called again."""

    def close(self) -> None:
        """Give back what the source holds."""


class JsonFile:
    """A Label Studio JSON export of any size, or JSON lines, read a task at a time."""

    def __init__(self, path: Path, config: LabelConfig | None, *, location: str = "") -> None:
        if not path.is_file():
            raise SourceNotFound(str(path), "there is no such file")
        self.title = Path(location or path.name).stem
        self.origin: dict[str, Any] = {"kind": "file", "location": location or path.name}
        self.config = config
        self.total: int | None = None
        self._path = path

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task of the file; an unreadable one does not stop the rest."""
        with self._path.open("rb") as file:
            yield from _read(file)

    def close(self) -> None:
        """Nothing: the file is open only while it is read."""


class S3Json(JsonFile):
    """A JSON export in a bucket, brought to the disk first."""

    def __init__(self, url: str, config: LabelConfig | None, settings: Settings) -> None:
        bucket, _, key = url.partition("://")[2].partition("/")
        if not bucket or not key or key.endswith("/"):
            raise SourceNotFound(url, "it names no object")
        try:
            data = open_store(f"s3://{bucket}", settings).get(key)
        except NotThere as error:
            raise SourceNotFound(url, "there is no such object") from error
        self._folder = tempfile.TemporaryDirectory(prefix="labelloop-source-")
        path = Path(self._folder.name) / "export.json"
        path.write_bytes(data)
        super().__init__(path, config, location=url)

    def close(self) -> None:
        """Remove the copy on the disk."""
        self._folder.cleanup()


class Project:
    """A live project, read in pages; addresses stay as they are stored and no model is asked."""

    def __init__(
        self, project: int, config: LabelConfig | None, settings: Settings, studio: Studio | None = None
    ) -> None:
        self._studio = studio or Studio.from_settings(settings)
        self._id = project
        fields = self._studio.project(project)
        self.title = str(fields.get("title") or f"project-{project}")
        self.origin: dict[str, Any] = {
            "kind": "project",
            "location": settings.label_studio_url,
            "project": project,
            "title": self.title,
        }
        self.config: LabelConfig | None = config or self._studio.label_config(project)
        total = fields.get("task_number")
        self.total: int | None = total if isinstance(total, int) else None

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task with its annotations, in the order of their ids."""
        yield from self._studio.tasks(self._id)

    def close(self) -> None:
        """Nothing: the client belongs to the caller."""


def open_source(
    source: str | int | Path, *, settings: Settings, label_config: str | None = None, studio: Studio | None = None
) -> Source:
    """The source of a project's number, a file's path, or an s3:// address.

    Args:
        source: where the tasks are.
        settings: how to reach Label Studio and S3.
        label_config: the label config's XML; for a project its own is taken where this is not given.
        studio: a client to use instead of the settings' own.

    Raises:
        SourceNotFound: there is nothing there.
        BadOption: the label config is not one.
    """
    config = None
    if label_config is not None:
        try:
            config = LabelConfig.parse(label_config)
        except MalformedConfig as error:
            raise BadOption("--label-config", error.reason, "the XML of a project's labelling interface") from error
    text = str(source)
    if text.isdecimal():
        return Project(int(text), config, settings, studio)
    if text.startswith("s3://"):
        return S3Json(text, config, settings)
    return JsonFile(Path(text.removeprefix("file://")), config)


def _read(file: BinaryIO) -> Iterator[Task | MalformedTask]:
    tasks = iter_raw_tasks(file)
    while True:
        try:
            raw = next(tasks)
        except StopIteration:
            return
        except MalformedTask as error:  # the rest of the file cannot be told apart any more
            yield error
            return
        try:
            yield read_task(raw)
        except MalformedTask as error:
            yield error
