"""The protocol of a task source: annotated tasks one at a time, as JSON or decoded, with metadata."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task, read_task

# Called with (tasks read so far, total or None) while tasks are read from a remote source.
Progress = Callable[[int, int | None], None]


class TaskSource(Protocol):
    """Annotated tasks one at a time, with metadata.

    Attributes:
        title: Display name, and the default name of the data set.
        origin: Origin of the tasks for the manifest; contains no secrets.
        config: The label config, or ``None`` if the source has none.
        total: Number of tasks, or ``None`` if it is unknown before reading.
    """

    title: str
    origin: dict[str, Any]
    config: LabelConfig | None
    total: int | None

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The undecoded JSON of each task, or the error of one that cannot be separated; can be called again."""

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task, or the error why it cannot be read; can be called again with the same result."""

    def close(self) -> None:
        """Release the resources of the source."""


def read_tasks(raw_tasks: Iterable[bytes | MalformedTask]) -> Iterator[Task | MalformedTask]:
    """Decode each task; an unreadable task yields its error and does not stop the others."""
    for raw in raw_tasks:
        if isinstance(raw, MalformedTask):
            yield raw
            continue
        try:
            yield read_task(raw)
        except MalformedTask as error:
            yield error
