"""Index of the existing tasks of a project, by import identity, image address and file name."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import msgspec

from exporters.model.file_names import IMPORT_META, public_url, source_name
from labelloop.labeling.studio.config import data_value
from labelloop.labeling.studio.task import Task


class ExistingTask(msgspec.Struct):
    """A task of the project.

    Attributes:
        task: Its id.
        url: The address of its image, as stored.
        model_versions: The model versions of its predictions.
        regions: Ids of the regions in its annotations.
        annotations: Number of its annotations.
        size: (width, height) of its image in pixels from its regions; zeros if unknown.
    """

    task: int
    url: str
    model_versions: set[str]
    regions: set[str]
    annotations: int
    size: tuple[int, int] = (0, 0)


class ExistingTasks:
    """The tasks of a project by import identity, image address and file name."""

    def __init__(self, tasks: Iterable[Task], key: str) -> None:
        self._by_task: dict[int, ExistingTask] = {}
        self._by_identity: dict[str, ExistingTask] = {}
        self._by_url: dict[str, ExistingTask] = {}
        self._by_name: dict[str, ExistingTask | None] = {}
        self._key = key
        for task in tasks:
            if task.id is not None:
                self._add(task)

    def __len__(self) -> int:
        return len(self._by_task)

    def find(self, identity: str, address: str = "") -> ExistingTask | None:
        """The task that an import created from this image, or the task with this image address."""
        return self._by_identity.get(identity) or (self._by_url.get(public_url(address)) if address else None)

    def by_id(self, task: int) -> ExistingTask | None:
        """The task with this id."""
        return self._by_task.get(task)

    def by_name(self, name: str) -> ExistingTask | None:
        """The only task whose image has this file name, with or without extension; None if there are several."""
        path = PurePosixPath(name)
        return self._by_name.get(path.name.casefold()) or self._by_name.get(f"{path.stem.casefold()}.")

    def add(self, existing: ExistingTask, identity: str) -> None:
        """Add a task that was just created."""
        self._by_task[existing.task] = existing
        self._by_identity[identity] = existing
        if existing.url:
            self._by_url[public_url(existing.url)] = existing

    def _add(self, task: Task) -> None:
        assert task.id is not None
        value = data_value(task.data, self._key)
        url = value if isinstance(value, str) else ""
        results = [result for annotation in task.annotations for result in annotation.results]
        sizes = ((result.original_width, result.original_height) for result in results)
        size = next(((width, height) for width, height in sizes if width and height), (0, 0))
        existing = ExistingTask(
            task=task.id,
            url=url,
            model_versions={prediction.model_version for prediction in task.predictions},
            regions={result.id for result in results},
            annotations=len(task.annotations),
            size=size,
        )
        meta = (task.meta or {}).get(IMPORT_META)
        identity, name = _identity_and_name(meta)
        self.add(existing, identity or f"task {task.id}")
        path = PurePosixPath(name or source_name(url))
        for alias in (path.name.casefold(), f"{path.stem.casefold()}."):
            self._by_name[alias] = None if alias in self._by_name else existing


def _identity_and_name(meta: Any) -> tuple[str, str]:
    if not isinstance(meta, dict):
        return "", ""
    identity, name = meta.get("id"), meta.get("name")
    return (identity if isinstance(identity, str) else ""), (name if isinstance(name, str) else "")
