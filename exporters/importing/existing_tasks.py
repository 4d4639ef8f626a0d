"""The tasks that a project has already: which photo each one is, and what was imported to it before."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import msgspec

from exporters.model.names import public_url, source_name
from exporters.model.originals import META
from labelloop.labeling.studio.task import Task


class Known(msgspec.Struct):
    """A task of the project.

    Attributes:
        task: Its number.
        url: Its photo, as stored.
        versions: The model versions that it has predictions of.
        regions: Ids of the regions in its annotations.
        annotations: How many annotations it has.
        size: Its photo's width and height where its regions tell, else zeros.
    """

    task: int
    url: str
    versions: set[str]
    regions: set[str]
    annotations: int
    size: tuple[int, int] = (0, 0)


class ExistingTasks:
    """The project's tasks by identity, address and file name."""

    def __init__(self, tasks: Iterable[Task], key: str) -> None:
        self._by_task: dict[int, Known] = {}
        self._by_identity: dict[str, Known] = {}
        self._by_url: dict[str, Known] = {}
        self._by_name: dict[str, Known | None] = {}
        self._key = key
        for task in tasks:
            if task.id is not None:
                self._add(task)

    def __len__(self) -> int:
        return len(self._by_task)

    def made_from(self, identity: str, address: str = "") -> Known | None:
        """The task that an import made from this photo, or whose photo lies at this very address."""
        return self._by_identity.get(identity) or (self._by_url.get(public_url(address)) if address else None)

    def number(self, task: int) -> Known | None:
        """The task of a number."""
        return self._by_task.get(task)

    def named(self, name: str) -> Known | None:
        """The only task whose photo has this file name, or this name without its extension."""
        path = PurePosixPath(name)
        return self._by_name.get(path.name.casefold()) or self._by_name.get(f"{path.stem.casefold()}.")

    def remember(self, known: Known, identity: str) -> None:
        """A task that was just made."""
        self._by_task[known.task] = known
        self._by_identity[identity] = known
        if known.url:
            self._by_url[public_url(known.url)] = known

    def _add(self, task: Task) -> None:
        assert task.id is not None
        value = task.data.get(self._key)
        url = value if isinstance(value, str) else ""
        results = [result for annotation in task.annotations for result in annotation.results]
        sizes = ((each.original_width, each.original_height) for each in results)
        size = next(((width, height) for width, height in sizes if width and height), (0, 0))
        known = Known(
            task=task.id,
            url=url,
            versions={each.model_version for each in task.predictions},
            regions={each.id for each in results},
            annotations=len(task.annotations),
            size=size,
        )
        told = (task.meta or {}).get(META)
        identity, name = _told(told)
        self.remember(known, identity or f"task {task.id}")
        own = PurePosixPath(name or source_name(url))
        for alias in (own.name.casefold(), f"{own.stem.casefold()}."):
            self._by_name[alias] = None if alias in self._by_name else known


def _told(meta: Any) -> tuple[str, str]:
    if not isinstance(meta, dict):
        return "", ""
    identity, name = meta.get("id"), meta.get("name")
    return (identity if isinstance(identity, str) else ""), (name if isinstance(name, str) else "")
