"""Tasks and annotations: reading them in pages without side effects, importing, changing, the label stream."""

import mimetypes
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.studio.errors import NotFound, StudioError
from labelloop.service.studio.http import StudioClient

_LONG_S = 300.0  # an import or a page of many masks is made whole before its first byte comes
_FILES_A_REQUEST = 20
_STAMP = "id,updated_at,total_annotations,cancelled_annotations"
_SAMPLED = 4  # tasks of each page of a sample
_RESOLVED = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign)/\?fileuri=")


class Mark(msgspec.Struct, frozen=True):
    """What tells whether a task changed: its last change, and how many annotations it has, skipped ones apart.

    Some bulk actions of Label Studio change annotations and leave `updated_at` alone, or set it wrong.
    """

    id: int
    updated_at: str = ""
    total_annotations: int = 0
    cancelled_annotations: int = 0


class _Page(msgspec.Struct):
    tasks: list[msgspec.Raw]
    total: int


class Stamp(Mark, frozen=True):
    """A mark that was read by itself: a hundredth of what the task itself takes to read."""


class TaskCalls(StudioClient):
    """What concerns tasks and the annotations in them."""

    def tasks(
        self,
        project: int,
        *,
        page_size: int = 100,
        filters: dict[str, Any] | None = None,
        ordering: list[str] | None = None,
        only_ids: Iterable[int] | None = None,
    ) -> Iterator[Task]:
        """A project's tasks, page by page, each with all its annotations (skipped ones too) and predictions.

        Never calls the ML backend, and gives addresses as stored (`s3://...`), not as resolved for a browser.

        Args:
            project: Its id.
            page_size: Tasks in one request.
            filters: As in a Data Manager tab: `{"conjunction": "and", "items": [...]}`.
            ordering: As in a Data Manager tab, such as `["-tasks:data.qc_iou"]`. Without it tasks come by id, and every
                task that is there from the first page to the last comes exactly once, whatever is changed meanwhile.
                With an ordering or an `or` of filters pages are counted: a task that moves may be missed.
            only_ids: Only these tasks, by id; ids that are not there are left out.

        Raises:
            NotFound: No such project.
            MalformedTask: A task's JSON is not a task.
        """
        for raw in self._raw_tasks(project, page_size, filters, ordering, only_ids):
            yield read_task(raw)

    def raw_tasks(
        self,
        project: int,
        *,
        page_size: int = 100,
        filters: dict[str, Any] | None = None,
        only_ids: Iterable[int] | None = None,
    ) -> Iterator[bytes]:
        """As `tasks`, each as the JSON that came, not decoded."""
        for raw in self._raw_tasks(project, page_size, filters, None, only_ids):
            yield bytes(raw)

    def count_tasks(self, project: int, *, filters: dict[str, Any] | None = None) -> int:
        """How many tasks of a project pass the filters of a Data Manager tab; their content is not read."""
        return self._page(project, {"filters": filters}, 1, 1, None).total

    def task_marks(self, project: int, *, page_size: int = 1000) -> Iterator[Mark]:
        """Of every task, by id, what tells whether it changed; nothing else of it is read."""
        return self.stamps(project, page_size=page_size)

    def stamps(self, project: int, *, filters: dict[str, Any] | None = None, page_size: int = 1000) -> Iterator[Stamp]:
        """When each task of a project changed last, by id, without reading what is in it.

        Args:
            project: Its id.
            filters: As in a Data Manager tab, joined by `and`.
            page_size: Tasks in one request.

        Raises:
            NotFound: No such project.
        """
        for raw in self._by_id(project, page_size, list((filters or {}).get("items", ())), None, include=_STAMP):
            yield msgspec.json.decode(raw, type=Stamp)

    def sample(self, project: int, count: int, *, filters: dict[str, Any] | None = None) -> list[Stamp]:
        """Marks of about so many tasks from all over a project, in a few requests whatever its size.

        Args:
            project: Its id.
            count: How many are wanted; of a smaller project all are given.
            filters: As in a Data Manager tab.

        Raises:
            NotFound: No such project.
        """
        query = {"filters": filters, "ordering": ["tasks:id"]}

        def page(number: int) -> _Page:
            return self._page(project, query, number, _SAMPLED, None, include=_STAMP)

        first = page(1)
        pages, wanted = -(-first.total // _SAMPLED), max(-(-count // _SAMPLED), 1)
        step = max(pages / wanted, 1.0)
        numbers = sorted({int(place * step) + 1 for place in range(min(wanted, pages))} - {1})
        found = list(first.tasks)
        for number in numbers:
            with suppress(NotFound):  # tasks left meanwhile
                found += page(number).tasks
        return [msgspec.json.decode(raw, type=Stamp) for raw in found]

    def task(self, project: int, task: int) -> Task | None:
        """One task with its annotations and predictions; None if the project has no such task."""
        return next(self.tasks(project, only_ids=[task]), None)

    def task_json(self, project: int, task: int) -> dict[str, Any] | None:
        """One task as Label Studio's JSON; None if the project has no such task."""
        raw = next(self._raw_tasks(project, 1, None, None, [task]), None)
        return None if raw is None else dict(msgspec.json.decode(raw))

    def update_task(
        self,
        task: int,
        *,
        data: dict[str, Any] | None = None,
        overlap: int | None = None,
        is_labeled: bool | None = None,
        meta: dict[str, Any] | None = None,
        resolved: bool = False,
    ) -> dict[str, Any]:
        """Changes a task; what is not given stays. Label Studio fires no webhook for it and calls no backend.

        Args:
            task: Its id.
            data: Replaces the task's data WHOLE. Addresses must be as stored.
            overlap: How many annotators shall do it. Raising it asks for more only together with `is_labeled=False`.
            is_labeled: Whether it counts as done.
            meta: Replaces the task's meta whole.
            resolved: Whether addresses as resolved for a browser are meant, as in the copy of another project's task.

        Raises:
            StudioError: `data` holds an address that was resolved for a browser: writing it would lose the stored one.
        """
        if data is not None and not resolved and _RESOLVED.search(msgspec.json.encode(data).decode()):
            raise StudioError(
                f"The data for task {task} holds an address resolved for a browser; it would overwrite the stored one.",
                fix="Read the task with Studio.task or Studio.task_json and change that.",
            )
        fields = {"data": data, "overlap": overlap, "is_labeled": is_labeled, "meta": meta}
        given = {name: value for name, value in fields.items() if value is not None}
        return dict(self.request("PATCH", f"api/tasks/{task}/", json=given))

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> list[int]:
        """Imports tasks; their annotations become ground truth unless each says `"ground_truth": false`.

        Args:
            project: Its id.
            tasks: `{"data": {...}}` or bare data, as in Label Studio's import.

        Returns:
            The new tasks' ids.
        """
        answer = self.request(
            "POST",
            f"api/projects/{project}/import",
            params={"return_task_ids": True},
            json=list(tasks),
            timeout_s=_LONG_S,
        )
        return list(answer["task_ids"])

    def upload_images(self, project: int, paths: Iterable[Path]) -> list[int]:
        """Uploads image files, a task each. Returns the new tasks' ids, in the order of the files."""
        ids: list[int] = []
        waiting = iter(paths)
        while batch := list(islice(waiting, _FILES_A_REQUEST)):
            with ExitStack() as stack:
                files = [
                    (f"file{n}", (path.name, stack.enter_context(path.open("rb")), _mime(path)))
                    for n, path in enumerate(batch)
                ]
                answer = self.request(
                    "POST",
                    f"api/projects/{project}/import",
                    params={"return_task_ids": True},
                    files=files,
                    timeout_s=_LONG_S,
                )
            ids.extend(answer["task_ids"])
        return ids

    def add_annotation(
        self,
        task: int,
        result: list[dict[str, Any]],
        *,
        lead_time: float | None = None,
        completed_by: int | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Adds an annotation, as Submit does; `was_cancelled=True` skips.

        Args:
            task: Its id.
            result: Regions, as Label Studio's JSON.
            lead_time: Seconds of work.
            completed_by: User id; None: the token's user.
            fields: Any other field of an annotation.
        """
        given = {"lead_time": lead_time, "completed_by": completed_by}
        body = {"result": result, **{name: value for name, value in given.items() if value is not None}, **fields}
        return dict(self.request("POST", f"api/tasks/{task}/annotations/", json=body))

    def update_annotation(self, annotation: int, **fields: Any) -> dict[str, Any]:
        """Changes the given fields; `ground_truth=True` takes it from the task's other annotations."""
        return dict(self.request("PATCH", f"api/annotations/{annotation}/", json=fields))

    def delete_task(self, task: int) -> None:
        """Removes a task with all its annotations and predictions."""
        self.request("DELETE", f"api/tasks/{task}/")

    def next_task(self, project: int) -> dict[str, Any] | None:
        """What the label stream serves the token's user next, and locks for them; None when nothing is left."""
        try:
            return dict(
                self.request(
                    "POST", "api/dm/actions/", params={"id": "next_task", "project": project}, json={}, retry=True
                )
            )
        except NotFound as error:
            if "no tasks" in error.detail.lower():  # "There are no tasks for anne@example.com"
                return None
            raise

    def _raw_tasks(
        self,
        project: int,
        page_size: int,
        filters: dict[str, Any] | None,
        ordering: list[str] | None,
        only_ids: Iterable[int] | None,
        *,
        fields: str | None = "all",
    ) -> Iterator[msgspec.Raw]:
        if only_ids is not None:
            for ids in _chunks(sorted(set(only_ids)), page_size):
                selected = {"selectedItems": {"all": False, "included": ids}}
                query = {"filters": filters, "ordering": ordering or ["tasks:id"], **selected}
                yield from self._page(project, query, 1, page_size).tasks
        elif ordering or (filters or {}).get("conjunction", "and") != "and":
            yield from self._counted(project, page_size, {"filters": filters, "ordering": ordering or ["tasks:id"]})
        else:
            yield from self._by_id(project, page_size, list((filters or {}).get("items", ())), fields)

    def _by_id(
        self,
        project: int,
        page_size: int,
        items: list[dict[str, Any]],
        fields: str | None,
        *,
        include: str | None = None,
    ) -> Iterator[msgspec.Raw]:
        last = 0
        while True:
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}
            filters = {"conjunction": "and", "items": [*items, after]}
            page = self._page(
                project, {"filters": filters, "ordering": ["tasks:id"]}, 1, page_size, fields, include=include
            )
            yield from page.tasks
            if not page.tasks or len(page.tasks) >= page.total:
                return
            last = _id(page.tasks[-1])

    def _counted(self, project: int, page_size: int, query: dict[str, Any]) -> Iterator[msgspec.Raw]:
        seen: set[int] = set()
        number = rows = 0
        while True:
            number += 1
            try:
                page = self._page(project, query, number, page_size)
            except NotFound:
                if number > 1:  # the last tasks left between two pages
                    return
                raise
            for raw in page.tasks:
                if (task := _id(raw)) not in seen:
                    seen.add(task)
                    yield raw
            rows += len(page.tasks)
            if not page.tasks or rows >= page.total:
                return

    def _page(
        self,
        project: int,
        query: dict[str, Any],
        number: int,
        page_size: int,
        fields: str | None = "all",
        *,
        include: str | None = None,
    ) -> _Page:
        given = {name: value for name, value in query.items() if value}
        body = self.content(
            "GET",
            "api/tasks",
            params={
                "project": project,
                "fields": fields,
                "include": include,
                # `review` makes Label Studio leave out both the call of the ML backend (projects that evaluate
                # predictions automatically) and the columns that only the Data Manager's table shows.
                "review": True,
                "resolve_uri": False,
                "page": number,
                "page_size": page_size,
                # Label Studio unquotes this once more than HTTP does: a "%" in a filter would be lost.
                "query": quote(msgspec.json.encode(given).decode()),
            },
            timeout_s=_LONG_S,
        )
        try:
            return msgspec.json.decode(body, type=_Page)
        except msgspec.DecodeError:
            raise self._not_json("GET", "api/tasks") from None


class _Id(msgspec.Struct):
    id: int


def _id(raw: msgspec.Raw) -> int:
    return msgspec.json.decode(raw, type=_Id).id


def _chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    size = max(1, min(size, 500))  # the ids travel in the address
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _mime(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
