"""Tasks and annotations: page-wise reads without side effects, imports, updates, and the label stream."""

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
from labelloop.service.studio.errors import StudioError, StudioNotFound
from labelloop.service.studio.http import StudioClient

_LONG_TIMEOUT_S = 300.0  # Label Studio builds an import or a page of masks completely before it responds
_FILES_PER_REQUEST = 20
_STAMP_FIELDS = "id,updated_at,total_annotations,cancelled_annotations"
_CONTENT_FIELDS = {"annotations", "predictions", "drafts"}
_SAMPLE_PAGE_SIZE = 4  # tasks per page of a sample
_RESOLVED_URL = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign)/\?fileuri=")


class TaskStamp(msgspec.Struct, frozen=True):
    """The fields that show whether a task changed: time of the last change and annotation counts.

    Some bulk actions of Label Studio change annotations without `updated_at`, or set it wrong. Reading a stamp costs
    about 1 % of reading the task.
    """

    id: int
    updated_at: str = ""
    total_annotations: int = 0
    cancelled_annotations: int = 0


class _Page(msgspec.Struct):
    tasks: list[msgspec.Raw]
    total: int


class TasksApi(StudioClient):
    """Tasks and their annotations."""

    def tasks(
        self,
        project: int,
        *,
        page_size: int = 100,
        filters: dict[str, Any] | None = None,
        ordering: list[str] | None = None,
        only_ids: Iterable[int] | None = None,
    ) -> Iterator[Task]:
        """Read a project's tasks page by page, each with all annotations (also skipped ones) and predictions.

        Does not call the ML backend. URLs are as stored (`s3://...`), not resolved for a browser.

        Args:
            project: The project's id.
            page_size: Tasks per request.
            filters: As in a Data Manager tab: `{"conjunction": "and", "items": [...]}`.
            ordering: As in a Data Manager tab, such as `["-tasks:data.qc_iou"]`. Without it tasks come by id, and every
                task that exists during the whole read is returned exactly once, despite concurrent changes. With an
                ordering or an `or` of filters, pages are numbered, and a task that moves between pages may be missed.
            only_ids: Only these tasks, by id; missing ids are ignored.

        Raises:
            StudioNotFound: No such project.
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
        """As `tasks`, each as undecoded JSON."""
        for raw in self._raw_tasks(project, page_size, filters, None, only_ids):
            yield bytes(raw)

    def count_tasks(self, project: int, *, filters: dict[str, Any] | None = None) -> int:
        """The number of tasks that match the filters of a Data Manager tab; their content is not read."""
        return self._page(project, {"filters": filters}, 1, 1, None).total

    def stamps(
        self, project: int, *, filters: dict[str, Any] | None = None, page_size: int = 1000
    ) -> Iterator[TaskStamp]:
        """Read the stamps of a project's tasks, by id, without their content.

        Args:
            project: The project's id.
            filters: As in a Data Manager tab, joined by `and`.
            page_size: Tasks per request.

        Raises:
            StudioNotFound: No such project.
        """
        for raw in self._pages_by_id(
            project, page_size, list((filters or {}).get("items", ())), None, include=_STAMP_FIELDS
        ):
            yield msgspec.json.decode(raw, type=TaskStamp)

    def sample(self, project: int, count: int, *, filters: dict[str, Any] | None = None) -> list[TaskStamp]:
        """Read the stamps of a sample of tasks, evenly spread over the project, in about `count / 4` requests.

        Args:
            project: The project's id.
            count: Approximate size of the sample; a smaller project is returned completely.
            filters: As in a Data Manager tab.

        Raises:
            StudioNotFound: No such project.
        """
        query = {"filters": filters, "ordering": ["tasks:id"]}

        def page(number: int) -> _Page:
            return self._page(project, query, number, _SAMPLE_PAGE_SIZE, None, include=_STAMP_FIELDS)

        first = page(1)
        pages, sampled = -(-first.total // _SAMPLE_PAGE_SIZE), max(-(-count // _SAMPLE_PAGE_SIZE), 1)
        step = max(pages / sampled, 1.0)
        numbers = sorted({int(index * step) + 1 for index in range(min(sampled, pages))} - {1})
        raw_stamps = list(first.tasks)
        for number in numbers:
            with suppress(StudioNotFound):  # tasks were deleted meanwhile
                raw_stamps += page(number).tasks
        return [msgspec.json.decode(raw, type=TaskStamp) for raw in raw_stamps]

    def task(self, project: int, task: int) -> Task | None:
        """One task with its annotations and predictions; None if it does not exist."""
        return next(self.tasks(project, only_ids=[task]), None)

    def task_json(self, project: int, task: int) -> dict[str, Any] | None:
        """One task as Label Studio's JSON; None if it does not exist."""
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
        """Update the given fields of a task. Label Studio sends no webhook and calls no backend.

        The response has the whole task. Its annotations, predictions and drafts are not decoded: those of a dense task
        take 100 MB.

        Args:
            task: The task's id.
            data: Replaces the complete data of the task. URLs must be as stored.
            overlap: Number of annotators per task. A higher value takes effect only with `is_labeled=False`.
            is_labeled: Whether the task counts as done.
            meta: Replaces the complete meta of the task.
            resolved: Whether URLs resolved for a browser are intended, as in a copy of another project's task.

        Returns:
            The other fields of the task.

        Raises:
            StudioError: `data` has a URL that was resolved for a browser; it would overwrite the stored URL.
        """
        if data is not None and not resolved and _RESOLVED_URL.search(msgspec.json.encode(data).decode()):
            raise StudioError(
                f"The data for task {task} has a URL resolved for a browser; it would overwrite the stored URL.",
                fix="Read the task with Studio.task or Studio.task_json, and change that.",
            )
        fields = {"data": data, "overlap": overlap, "is_labeled": is_labeled, "meta": meta}
        changes = {name: value for name, value in fields.items() if value is not None}
        body = self.content("PATCH", f"api/tasks/{task}/", json=changes)
        try:
            answer = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            raise self._not_json("PATCH", f"api/tasks/{task}/") from None
        return {name: msgspec.json.decode(raw) for name, raw in answer.items() if name not in _CONTENT_FIELDS}

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> list[int]:
        """Import tasks; their annotations become ground truth unless they have `"ground_truth": false`.

        Args:
            project: The project's id.
            tasks: `{"data": {...}}` or bare data, as in Label Studio's import.

        Returns:
            The ids of the new tasks.
        """
        answer = self.request(
            "POST",
            f"api/projects/{project}/import",
            params={"return_task_ids": True},
            json=list(tasks),
            timeout_s=_LONG_TIMEOUT_S,
        )
        return list(answer["task_ids"])

    def upload_images(self, project: int, paths: Iterable[Path]) -> list[int]:
        """Upload image files as one task each; returns the new tasks' ids in the order of the files."""
        ids: list[int] = []
        remaining = iter(paths)
        while batch := list(islice(remaining, _FILES_PER_REQUEST)):
            ids.extend(self._send_files(project, batch, return_task_ids=True)["task_ids"])
        return ids

    def _send_files(self, project: int, paths: Sequence[Path], **params: bool) -> dict[str, Any]:
        """Send files in one request; returns Label Studio's answer."""
        with ExitStack() as stack:
            files = [
                (f"file{n}", (path.name, stack.enter_context(path.open("rb")), mime_type(path)))
                for n, path in enumerate(paths)
            ]
            answer = self.request(
                "POST", f"api/projects/{project}/import", params=params, files=files, timeout_s=_LONG_TIMEOUT_S
            )
        return dict(answer)

    def add_annotation(
        self,
        task: int,
        result: list[dict[str, Any]],
        *,
        lead_time: float | None = None,
        completed_by: int | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add an annotation, as Submit does; `was_cancelled=True` skips the task.

        Args:
            task: The task's id.
            result: Regions in Label Studio's JSON.
            lead_time: Annotation time in seconds.
            completed_by: User id; None: the token's user.
            fields: Other fields of the annotation.
        """
        optional = {"lead_time": lead_time, "completed_by": completed_by}
        body = {"result": result, **{name: value for name, value in optional.items() if value is not None}, **fields}
        return dict(self.request("POST", f"api/tasks/{task}/annotations/", json=body))

    def update_annotation(self, annotation: int, **fields: Any) -> dict[str, Any]:
        """Update the given fields; `ground_truth=True` clears it on the task's other annotations."""
        return dict(self.request("PATCH", f"api/annotations/{annotation}/", json=fields))

    def delete_task(self, task: int) -> None:
        """Delete a task with all its annotations and predictions."""
        self.request("DELETE", f"api/tasks/{task}/")

    def next_task(self, project: int) -> dict[str, Any] | None:
        """The next task of the label stream for the token's user, locked for that user; None if there is none."""
        try:
            return dict(
                self.request(
                    "POST", "api/dm/actions/", params={"id": "next_task", "project": project}, json={}, retry=True
                )
            )
        except StudioNotFound as error:
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
    ) -> Iterator[msgspec.Raw]:
        if only_ids is not None:
            for ids in _chunks(sorted(set(only_ids)), page_size):
                selected = {"selectedItems": {"all": False, "included": ids}}
                query = {"filters": filters, "ordering": ordering or ["tasks:id"], **selected}
                yield from self._page(project, query, 1, page_size).tasks
        elif ordering or (filters or {}).get("conjunction", "and") != "and":
            yield from self._pages_by_number(
                project, page_size, {"filters": filters, "ordering": ordering or ["tasks:id"]}
            )
        else:
            yield from self._pages_by_id(project, page_size, list((filters or {}).get("items", ())), "all")

    def _pages_by_id(
        self,
        project: int,
        page_size: int,
        items: list[dict[str, Any]],
        fields: str | None,
        *,
        include: str | None = None,
    ) -> Iterator[msgspec.Raw]:
        last_id = 0
        while True:
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last_id}
            filters = {"conjunction": "and", "items": [*items, after]}
            page = self._page(
                project, {"filters": filters, "ordering": ["tasks:id"]}, 1, page_size, fields, include=include
            )
            yield from page.tasks
            if not page.tasks or len(page.tasks) >= page.total:
                return
            last_id = _task_id(page.tasks[-1])

    def _pages_by_number(self, project: int, page_size: int, query: dict[str, Any]) -> Iterator[msgspec.Raw]:
        seen_ids: set[int] = set()
        number = rows = 0
        while True:
            number += 1
            try:
                page = self._page(project, query, number, page_size)
            except StudioNotFound:
                if number > 1:  # the last tasks were deleted between two pages
                    return
                raise
            for raw in page.tasks:
                if (task_id := _task_id(raw)) not in seen_ids:
                    seen_ids.add(task_id)
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
        non_empty = {name: value for name, value in query.items() if value}
        body = self.content(
            "GET",
            "api/tasks",
            params={
                "project": project,
                "fields": fields,
                "include": include,
                # `review` skips the call of the ML backend (in projects that evaluate predictions automatically) and
                # the columns that only the Data Manager's table shows.
                "review": True,
                "resolve_uri": False,
                "page": number,
                "page_size": page_size,
                # Label Studio unquotes this twice: otherwise a "%" in a filter would be lost.
                "query": quote(msgspec.json.encode(non_empty).decode()),
            },
            timeout_s=_LONG_TIMEOUT_S,
        )
        try:
            return msgspec.json.decode(body, type=_Page)
        except msgspec.DecodeError:
            raise self._not_json("GET", "api/tasks") from None


class _TaskId(msgspec.Struct):
    id: int


def _task_id(raw: msgspec.Raw) -> int:
    return msgspec.json.decode(raw, type=_TaskId).id


def _chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    size = max(1, min(size, 500))  # the ids are part of the URL
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def mime_type(path: Path) -> str:
    """The MIME type by file extension."""
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
