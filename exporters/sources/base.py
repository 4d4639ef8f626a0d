"""What a source is: annotated tasks one at a time, as JSON or read, with what is known about them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task, read_task

Progress = Callable[[int, int | None], None]
"""Called with (tasks brought here, tasks in all or None) while a source is read from elsewhere."""


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

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task, not decoded, or why no more can be told apart; can be called again."""

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task, or why it cannot be read; can be called again and gives the same."""

    def close(self) -> None:
        """Give back what the source holds."""


def read(raw_tasks: Iterable[bytes | MalformedTask]) -> Iterator[Task | MalformedTask]:
    """Each task of some JSON; an unreadable one does not stop the rest."""
    for raw in raw_tasks:
        if isinstance(raw, MalformedTask):
            yield raw
            continue
        try:
            yield read_task(raw)
        except MalformedTask as error:
            yield error
