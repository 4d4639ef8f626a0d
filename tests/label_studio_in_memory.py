"""`LabelStudioInMemory`: projects, tasks, tabs, webhooks and ML backends with the habits of Label Studio 1.23.2.

`answer` is its API; the public methods are what people do in the browser. `tests/fake_label_studio.py` adds the client.
"""

import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from labelloop.labeling.studio.config import LabelConfig

ADMIN = {"id": 1, "email": "admin@example.com", "username": "admin", "first_name": "", "last_name": ""}
PROJECT_DEFAULTS = {
    "title": "", "description": "", "label_config": "<View></View>", "maximum_annotations": 1,
    "overlap_cohort_percentage": 100, "sampling": "Sequential sampling", "show_collab_predictions": True,
    "model_version": "", "evaluate_predictions_automatically": False, "annotator_evaluation_enabled": False,
}  # fmt: skip
TASK_DEFAULTS = {"meta": {}, "overlap": 1, "is_labeled": False, "annotations": [], "predictions": [], "drafts": []}
ANNOTATION_DEFAULTS = {
    "was_cancelled": False, "ground_truth": False, "lead_time": None, "parent_prediction": None,
}  # fmt: skip
BACKEND_DEFAULTS = {
    "state": "CO", "auth_method": "NONE", "is_interactive": False, "model_version": "", "basic_auth_pass_is_set": False,
    "extra_params": None,
}  # fmt: skip
ACTIONS = {
    "PROJECT_UPDATED", "TASKS_CREATED", "TASKS_DELETED", "ANNOTATION_CREATED", "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "LABEL_LINK_CREATED", "LABEL_LINK_UPDATED", "LABEL_LINK_DELETED",
}  # fmt: skip
# The detail that the client makes of an error page.
WEB_PAGE = "(a web page: 404 | Label Studio)"
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "greater": lambda value, wanted: value is not None and value > wanted,
    "greater_or_equal": lambda value, wanted: value is not None and value >= wanted,
    "less": lambda value, wanted: value is not None and value < wanted,
    "less_or_equal": lambda value, wanted: value is not None and value <= wanted,
    "equal": lambda value, wanted: value == wanted,
    "not_equal": lambda value, wanted: value != wanted,
    "contains": lambda value, wanted: value is not None and str(wanted) in str(value),
    "empty": lambda value, wanted: (value in {None, ""}) == bool(wanted),
}

Json = dict[str, Any]
Query = Mapping[str, Any]
Answer = tuple[int, Any]


class LabelStudioInMemory:
    """One Label Studio. Thread-safe.

    Attributes:
        requests: `(method, path)` of all requests so far.
        sent_tasks: The ids of all tasks sent so far with their content, in the order of sending.
        served_version: The version that ML backends answer at /setup; empty: the one that is stored stays.
        now: The time of the last change; see `tick`.
        ids: The next id of an annotation, a prediction, a snapshot and an upload.
    """

    def __init__(self, *, user: int = 1, served_version: str = "base-1", release: str = "1.23.2") -> None:
        self.user, self.served_version, self.release = user, served_version, release
        self.users_by_id: dict[int, Json] = {1: dict(ADMIN)}
        self.projects_by_id: dict[int, Json] = {}
        self.tasks_by_id: dict[int, Json] = {}
        self.webhooks_by_id: dict[int, Json] = {}
        self.views_by_id: dict[int, Json] = {}
        self.backends_by_id: dict[int, Json] = {}
        self.snapshots_by_id: dict[int, Json] = {}
        self.uploads_by_id: dict[int, Json] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent_tasks: list[int] = []
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ids = {name: itertools.count(1) for name in ("annotation", "prediction", "snapshot", "upload")}
        self._last_project, self._unique_ids = 0, dict[str, int]()
        self._lock = threading.RLock()

    # --- what people and other programs do ---------------------------------------------------------------------------

    def put_project(self, project: int | None = None, **fields: Any) -> int:
        """Create a project as a person does; returns its id."""
        number = project or max(self._last_project, *self.projects_by_id, 0) + 1
        self._last_project = max(self._last_project, number)
        self.projects_by_id[number] = PROJECT_DEFAULTS | {"id": number, "created_at": self.tick()} | fields
        return number

    def put_task(self, project: int, data: Json, *, silently: bool = False, **fields: Any) -> int:
        """Create a task, or replace the one with the id in `fields`; returns its id.

        Args:
            project: The project's id.
            data: The task's data.
            silently: Keep `updated_at`, as some bulk actions of Label Studio do.
            fields: Fields of Label Studio's JSON, with complete annotations and predictions.
        """
        number = fields.get("id") or max(self.tasks_by_id, default=0) + 1
        before = self.tasks_by_id.get(number, {})
        now = before["updated_at"] if silently else self.tick()
        times = {"created_at": before.get("created_at", now), "updated_at": now}
        self.tasks_by_id[number] = (
            through_json(TASK_DEFAULTS | {"id": number, "project": project, "data": data} | fields) | times
        )
        return number

    def annotate(self, task: int, annotator: int, result: list[Json], **fields: Any) -> int:
        """Submit an annotation in the browser; returns its id."""
        with self._lock:
            source = self.tasks_by_id[task]
            number, now = next(self.ids["annotation"]), self.tick()
            times = {"created_at": now, "updated_at": now}
            if unique_id := fields.pop("unique_id", None):
                self._unique_ids[unique_id] = number
            owner = {"id": number, "task": task, "project": source["project"], "completed_by": annotator}
            source["annotations"].append(
                ANNOTATION_DEFAULTS | owner | times | through_json({"result": result} | fields)
            )
            self._count_annotators(source)
            return number

    def edit_annotation(self, annotation: int, **fields: Any) -> None:
        """Update an annotation in the browser."""
        with self._lock:
            task, source = self._annotation(annotation)
            if fields.get("ground_truth"):
                for other in task["annotations"]:
                    other["ground_truth"] = False
            source |= {"updated_at": self.tick()} | through_json(fields)
            self._count_annotators(task)

    def remove_annotation(self, annotation: int) -> None:
        """Delete an annotation in the browser."""
        with self._lock:
            task, source = self._annotation(annotation)
            task["annotations"].remove(source)
            self._count_annotators(task)

    def put_prediction(
        self, task: int, result: list[Json], model_version: str | None, score: float | None = None, **fields: Any
    ) -> Json:
        """Store a prediction, as Label Studio does with an ML backend's; `updated_at` of the task stays."""
        with self._lock:
            body = {"task": task, "result": result, "model_version": model_version, "score": score}
            return self._store_prediction(through_json(body | fields))

    def put_backend(self, project: int, url: str, title: str, **fields: Any) -> Json:
        """Connect an ML backend, without a webhook; returns the stored row."""
        number = fields.get("id") or max(self.backends_by_id, default=0) + 1
        row = {"id": number, "project": project, "url": url, "title": title}
        self.backends_by_id[number] = BACKEND_DEFAULTS | row | fields
        return self.backends_by_id[number]

    def serves(self, task: int, annotator: int) -> bool:
        """Whether the label stream may give the task to this annotator."""
        source = self.tasks_by_id[task]
        annotators = {annotation["completed_by"] for annotation in source["annotations"]}
        return not source["is_labeled"] and annotator not in annotators and len(annotators) < source["overlap"]

    def tick(self) -> str:
        """The current time, one second after the last one, as Label Studio writes it."""
        with self._lock:
            self.now += timedelta(seconds=1)
            return self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    # --- the API ----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Query, body: Any, files: Any = None) -> Answer:
        """The status and the JSON of a response; None without a body.

        Args:
            method: The HTTP method.
            path: The path below Label Studio's URL.
            query: The query parameters.
            body: The decoded JSON of the request.
            files: A multipart form in httpx's format, in place of the JSON.
        """
        path = path.strip("/")
        self.requests.append((method, path))
        for route_method, pattern, handler in ROUTES:
            if route_method == method and (match := pattern.fullmatch(path)):
                try:
                    return handler(self, query, body if files is None else files, *map(int, match.groups()))
                except _Missing as missing:
                    return 404, str(missing)
        raise NotImplementedError(f"LabelStudioInMemory has no {method} /{path}")

    # --- projects ----------------------------------------------------------------------------------------------------

    def _whoami(self, _query: Query, _body: Any) -> Answer:
        return 200, self.users_by_id[self.user]

    def _version(self, _query: Query, _body: Any) -> Answer:
        return 200, {"release": self.release}

    def _users(self, _query: Query, _body: Any) -> Answer:
        return 200, list(self.users_by_id.values())

    def _list_projects(self, _query: Query, _body: Any) -> Answer:
        return 200, {"next": None, "results": [self._project_json(number) for number in self.projects_by_id]}

    def _create_project(self, _query: Query, body: Json) -> Answer:
        if not 3 <= len(body.get("title", "")) <= 50:
            return 400, "Validation error: {'title': ['Ensure this field has at least 3 characters.']}"
        return 201, self._project_json(self.put_project(**body))

    def _get_project(self, query: Query, _body: Any, project: int) -> Answer:
        fields = self._project_json(project)
        return 200, {name: fields[name] for name in str(query["include"]).split(",")} if "include" in query else fields

    def _patch_project(self, _query: Query, body: Json, project: int) -> Answer:
        fields = self._fields(project)
        if body.get("show_collab_predictions") is False:
            body["model_version"] = ""
        if body.get("maximum_annotations", fields["maximum_annotations"]) != fields["maximum_annotations"]:
            self._set_overlaps(project, body["maximum_annotations"])
        titles, versions = self._titles(project), self._versions(project)
        if body.get("model_version") and body["model_version"] not in titles | versions.keys():
            return (
                400,
                "Validation error: {'model_version': [\"Model version doesn't exist.\"]}",
            )
        fields |= body
        return 200, self._project_json(project)

    def _set_overlaps(self, project: int, annotators: int) -> None:
        """Tasks with an overlap of 1 keep it if others have more."""
        tasks = self._tasks_of(project)
        higher = [task for task in tasks if task["overlap"] > 1] if annotators > 1 else tasks
        for task in higher or tasks:
            task |= {"overlap": annotators, "is_labeled": _annotators(task) >= annotators}

    def _delete_project(self, _query: Query, _body: Any, project: int) -> Answer:
        self._fields(project)
        del self.projects_by_id[project]
        for rows in (self.tasks_by_id, self.webhooks_by_id, self.views_by_id, self.backends_by_id):
            for number in [number for number, row in rows.items() if row["project"] == project]:
                del rows[number]
        return 204, None

    def _fields(self, project: int) -> Json:
        if project not in self.projects_by_id:
            raise _Missing("No Project matches the given query.")
        return self.projects_by_id[project]

    def _project_json(self, project: int) -> Json:
        fields = self._fields(project)
        tasks = [_with_counts(task) for task in self._tasks_of(project)]
        truths = sum(bool(annotation.get("ground_truth")) for task in tasks for annotation in task["annotations"])
        counts = {
            "task_number": len(tasks),
            "total_annotations_number": sum(task["total_annotations"] for task in tasks),
            "skipped_annotations_number": sum(task["cancelled_annotations"] for task in tasks),
            "total_predictions_number": sum(len(task["predictions"]) for task in tasks),
            "ground_truth_number": truths,
        }
        return counts | fields

    # --- tasks and annotations ---------------------------------------------------------------------------------------

    def _page_of_tasks(self, query: Query, _body: Any) -> Answer:
        project, number, size = int(query["project"]), int(query["page"]), int(query["page_size"])
        self._fields(project)
        wanted = json.loads(unquote(query["query"]))
        tasks = self._tasks_of(project, (wanted.get("selectedItems") or {}).get("included"))
        if filters := wanted.get("filters"):
            joined, items = all if filters["conjunction"] == "and" else any, filters["items"]
            tasks = [task for task in tasks if not items or joined(_passes(task, item) for item in items)]
        for key in wanted.get("ordering", ())[:1]:  # Label Studio reads only the first
            tasks.sort(key=lambda task: _sort_key(task, key.removeprefix("-")), reverse=key.startswith("-"))
        page = [_with_counts(task) for task in tasks[(number - 1) * size : number * size]]
        if number > 1 and not page:
            return 404, "Invalid page."
        if query.get("include"):
            names = str(query["include"]).split(",")
            page = [{name: task[name] for name in names} for task in page]
        else:
            self.sent_tasks += [task["id"] for task in page]
        return 200, {"tasks": page, "total": len(tasks)}

    def _patch_task(self, _query: Query, body: Json, task: int) -> Answer:
        source = self._task(task)
        source |= body | {"updated_at": self.tick()}
        return 200, {name: value for name, value in _with_counts(source).items() if name != "drafts"}

    def _delete_task(self, _query: Query, _body: Any, task: int) -> Answer:
        self._task(task)
        del self.tasks_by_id[task]
        return 204, None

    def _import(self, query: Query, body: Any, project: int) -> Answer:
        if project not in self.projects_by_id:
            return 404, WEB_PAGE
        if body and isinstance(body[0], tuple):
            return self._import_files(query, body, project)
        overlap = self.projects_by_id[project]["maximum_annotations"]
        numbers = []
        for entry in body:
            row = entry if isinstance(entry.get("data"), dict) else {"data": entry}
            number = self.put_task(project, row["data"], meta=row.get("meta") or {}, overlap=overlap)
            for annotation in row.get("annotations", ()):
                fields = {"ground_truth": True} | {key: value for key, value in annotation.items() if key != "result"}
                self.annotate(number, fields.pop("completed_by", self.user), annotation["result"], **fields)
            for prediction in row.get("predictions", ()):
                stored = {"score": None, "model_version": "undefined"} | prediction | {"task": number}
                version = self._store_prediction(stored)["model_version"]
                self.projects_by_id[project]["model_version"] = self.projects_by_id[project]["model_version"] or version
            numbers.append(number)
        return 201, {"task_ids": numbers}

    def _import_files(self, query: Query, files: Any, project: int) -> Answer:
        numbers = []
        for _, (name, _stream, _kind) in files:
            number = next(self.ids["upload"])
            self.uploads_by_id[number] = {"id": number, "file": f"upload/{project}/{number:08x}-{name}"}
            numbers.append(number)
        if query.get("commit_to_project") is False:
            return 201, {"file_upload_ids": numbers}
        name = LabelConfig.parse(self.projects_by_id[project]["label_config"]).image_keys[0]
        overlap = self.projects_by_id[project]["maximum_annotations"]
        urls = [f"/data/{self.uploads_by_id[number]['file']}" for number in numbers]
        return 201, {"task_ids": [self.put_task(project, {name: url}, overlap=overlap) for url in urls]}

    def _uploads(self, query: Query, _body: Any, project: int) -> Answer:
        return 200, [self.uploads_by_id[number] for number in json.loads(query["ids"])]

    def _add_annotation(self, _query: Query, body: Json, task: int) -> Answer:
        self._task(task)
        taken = self._unique_ids.get(body.get("unique_id", ""))
        if any(other["id"] == taken for source in self.tasks_by_id.values() for other in source["annotations"]):
            return 409, "Annotation with this unique id already exists"
        fields = {key: value for key, value in body.items() if key not in {"completed_by", "result"}}
        number = self.annotate(task, body.get("completed_by", self.user), body["result"], **fields)
        return 201, self._annotation(number)[1]

    def _patch_annotation(self, _query: Query, body: Json, annotation: int) -> Answer:
        self.edit_annotation(annotation, **body)
        return 200, self._annotation(annotation)[1]

    def _delete_annotation(self, _query: Query, _body: Any, annotation: int) -> Answer:
        self.remove_annotation(annotation)
        return 204, None

    def _action(self, query: Query, _body: Any) -> Answer:
        assert query["id"] == "next_task"
        project = int(query["project"])
        fields = self._fields(project)
        tasks = [task for task in self._tasks_of(project) if self.serves(task["id"], self.user)]
        if fields["sampling"] == "Uncertainty sampling":
            tasks.sort(key=lambda task: _lowest_score(task, fields["model_version"]))
        tasks.sort(key=lambda task: not task["annotations"])  # breadth first
        if not tasks:
            return 404, f"There are no tasks for {self.users_by_id[self.user]['email']}"
        return 200, tasks[0]

    def _tasks_of(self, project: int, ids: Collection[int] | None = None) -> list[Json]:
        numbers = sorted(self.tasks_by_id if ids is None else self.tasks_by_id.keys() & set(ids))
        return [self.tasks_by_id[number] for number in numbers if self.tasks_by_id[number]["project"] == project]

    def _task(self, task: int) -> Json:
        if task not in self.tasks_by_id:
            raise _Missing("No Task matches the given query.")
        return self.tasks_by_id[task]

    def _annotation(self, annotation: int) -> tuple[Json, Json]:
        for task in self.tasks_by_id.values():
            for source in task["annotations"]:
                if source["id"] == annotation:
                    return task, source
        raise _Missing("No Annotation matches the given query.")

    def _count_annotators(self, task: Json) -> None:
        """A task is labeled once enough annotators submitted it; skipped annotations do not count."""
        task |= {"is_labeled": _annotators(task) >= task["overlap"], "updated_at": self.tick()}

    # --- predictions -------------------------------------------------------------------------------------------------

    def _add_prediction(self, _query: Query, body: Json) -> Answer:
        if body["task"] not in self.tasks_by_id:
            return 400, f"Validation error: {{'task': ['Invalid pk \"{body['task']}\" - object does not exist.']}}"
        self.tasks_by_id[body["task"]]["updated_at"] = self.tick()
        return 201, self._store_prediction(body)

    def _patch_prediction(self, _query: Query, body: Json, prediction: int) -> Answer:
        task, source = self._prediction(prediction)
        task["updated_at"] = self.tick()
        source |= body
        return 200, source

    def _delete_prediction(self, _query: Query, _body: Any, prediction: int) -> Answer:
        task, source = self._prediction(prediction)
        self._remove_predictions(task, [source])
        task["updated_at"] = self.tick()
        return 204, None

    def _import_predictions(self, _query: Query, body: list[Json], project: int) -> Answer:
        config = LabelConfig.parse(self._fields(project)["label_config"])
        known = {task["id"] for task in self._tasks_of(project)}
        for row in body:
            if row["task"] not in known:
                return 400, f'{row} contains invalid "task" field: corresponding task ID couldn\'t be retrieved'
        valid = [row for row in body if _is_valid(row["result"], config)]
        for row in valid:
            self._store_prediction({"score": None, "model_version": "undefined"} | row)
        return 201, {"created": len(valid)}

    def _model_versions(self, _query: Query, _body: Any, project: int) -> Answer:
        self._fields(project)
        versions = self._versions(project).items()
        return 200, {"static": [{"model_version": version, "count": count} for version, count in versions]}

    def _delete_model_version(self, _query: Query, body: Json, project: int) -> Answer:
        fields, version = self.projects_by_id[project], body["model_version"]
        if fields["model_version"] == version or fields["model_version"] in self._titles(project):
            fields["model_version"] = None
        for task in self._tasks_of(project):
            self._remove_predictions(task, [row for row in task["predictions"] if row["model_version"] == version])
        return 200, {}

    def _titles(self, project: int) -> set[str]:
        return {row["title"] for row in self.backends_by_id.values() if row["project"] == project}

    def _versions(self, project: int) -> Counter[str]:
        return Counter(row["model_version"] for task in self._tasks_of(project) for row in task["predictions"])

    def _store_prediction(self, body: Json) -> Json:
        task, now = self.tasks_by_id[body["task"]], self.tick()
        times = {"created_at": now, "updated_at": now}
        prediction = {"id": next(self.ids["prediction"]), "project": task["project"]} | times | body
        task["predictions"].append(prediction)
        return prediction

    def _prediction(self, prediction: int) -> tuple[Json, Json]:
        for task in self.tasks_by_id.values():
            for source in task["predictions"]:
                if source["id"] == prediction:
                    return task, source
        raise _Missing("No Prediction matches the given query.")

    def _remove_predictions(self, task: Json, predictions: list[Json]) -> None:
        removed = {prediction["id"] for prediction in predictions}
        task["predictions"] = [row for row in task["predictions"] if row["id"] not in removed]
        for annotation in task["annotations"]:
            if annotation.get("parent_prediction") in removed:
                annotation["parent_prediction"] = None

    # --- ML backends, webhooks, tabs and snapshots -------------------------------------------------------------------

    def _list_backends(self, query: Query, _body: Any) -> Answer:
        self._fields(int(query["project"]))
        return 200, [row for row in self.backends_by_id.values() if row["project"] == query["project"]]

    def _get_backend(self, _query: Query, _body: Any, backend: int) -> Answer:
        return 200, _row(self.backends_by_id, backend, "")

    def _add_backend(self, _query: Query, body: Json) -> Answer:
        project, fields = self._fields(body["project"]), dict(body)
        fields["basic_auth_pass_is_set"] = bool(fields.pop("basic_auth_pass", ""))
        row = self.put_backend(**fields, model_version=self.served_version)
        hook = f"{body['url'].rstrip('/')}/webhook"
        if not _has_single_label(hook) and hook not in {row["url"] for row in self.webhooks_by_id.values()}:
            self._add_webhook({}, {"project": body["project"], "url": hook})
        if project["show_collab_predictions"] and not project["model_version"]:
            project["model_version"] = row["title"]
        return 201, row

    def _patch_backend(self, _query: Query, body: Json, backend: int) -> Answer:
        row = _row(self.backends_by_id, backend, "")
        project = self.projects_by_id[row["project"]]
        if "title" in body and project["model_version"] == row["title"]:
            project["model_version"] = body["title"]
        if "basic_auth_pass" in body:
            row["basic_auth_pass_is_set"] = bool(body.pop("basic_auth_pass"))
        row |= body | {"state": "CO", "model_version": self.served_version or row["model_version"]}
        return 200, row

    def _delete_backend(self, _query: Query, _body: Any, backend: int) -> Answer:
        _row(self.backends_by_id, backend, "")
        del self.backends_by_id[backend]
        return 204, None

    def _list_webhooks(self, query: Query, _body: Any) -> Answer:
        if query["project"] not in self.projects_by_id:
            return 400, "Validation error: {'project': ['Select a valid choice.']}"
        return 200, [row for row in self.webhooks_by_id.values() if row["project"] == query["project"]]

    def _get_webhook(self, _query: Query, _body: Any, webhook: int) -> Answer:
        return 200, _row(self.webhooks_by_id, webhook, "Webhook")

    def _add_webhook(self, _query: Query, body: Json) -> Answer:
        if _has_single_label(body["url"]):
            return 400, "Validation error: {'url': ['Enter a valid URL.']}"
        if unknown := set(body.get("actions", ())) - ACTIONS:
            return 400, f"Validation error: {{'actions': {{'0': ['\"{min(unknown)}\" is not a valid choice.']}}}}"
        number = max(self.webhooks_by_id, default=0) + 1
        defaults = {"id": number, "send_payload": True, "send_for_all_actions": True, "headers": {}, "is_active": True}
        self.webhooks_by_id[number] = defaults | {"actions": []} | body
        return 201, self.webhooks_by_id[number]

    def _patch_webhook(self, _query: Query, body: Json, webhook: int) -> Answer:
        row = _row(self.webhooks_by_id, webhook, "Webhook")
        row |= {"actions": []} | body
        return 200, row

    def _delete_webhook(self, _query: Query, _body: Any, webhook: int) -> Answer:
        _row(self.webhooks_by_id, webhook, "Webhook")
        del self.webhooks_by_id[webhook]
        return 204, None

    def _list_views(self, query: Query, _body: Any) -> Answer:
        return 200, [row for row in self.views_by_id.values() if row["project"] == query["project"]]

    def _add_view(self, _query: Query, body: Json) -> Answer:
        self._fields(body["project"])
        number = max(self.views_by_id, default=0) + 1
        self.views_by_id[number] = {"id": number, "project": body["project"], "data": body["data"]}
        return 201, self.views_by_id[number]

    def _patch_view(self, _query: Query, body: Json, view: int) -> Answer:
        row = _row(self.views_by_id, view, "View")
        kept = {name: row["data"][name] for name in ("filters", "ordering") if name in row["data"]}
        changed = {name: value for name, value in body["data"].items() if value or name not in kept}
        row["data"] = kept | changed
        return 200, row

    def _delete_view(self, _query: Query, _body: Any, view: int) -> Answer:
        _row(self.views_by_id, view, "View")
        del self.views_by_id[view]
        return 204, None

    def _list_snapshots(self, _query: Query, _body: Any, project: int) -> Answer:
        return 200, [_without_tasks(row) for row in self.snapshots_by_id.values() if row["project"] == project]

    def _add_snapshot(self, _query: Query, body: Json, project: int) -> Answer:
        number = next(self.ids["snapshot"])
        tasks = [_exported(task) for task in self._tasks_of(project)]
        row = {
            "id": number,
            "project": project,
            "title": body["title"],
            "status": "completed",
            "tasks": through_json(tasks),
        }
        self.snapshots_by_id[number] = row
        return 201, _without_tasks(row)

    def _get_snapshot(self, _query: Query, _body: Any, _project: int, snapshot: int) -> Answer:
        return 200, _without_tasks(_row(self.snapshots_by_id, snapshot, ""))

    def _download_snapshot(self, _query: Query, _body: Any, _project: int, snapshot: int) -> Answer:
        return 200, _row(self.snapshots_by_id, snapshot, "")["tasks"]

    def _delete_snapshot(self, _query: Query, _body: Any, _project: int, snapshot: int) -> Answer:
        _row(self.snapshots_by_id, snapshot, "")
        del self.snapshots_by_id[snapshot]
        return 204, None


# Method, pattern of the path, handler. A group of a pattern is an id.
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    (method, re.compile(path.replace("N", r"(\d+)")), handler)
    for method, path, handler in (
        ("GET", "api/current-user/whoami", LabelStudioInMemory._whoami),
        ("GET", "api/version", LabelStudioInMemory._version),
        ("GET", "api/users", LabelStudioInMemory._users),
        ("GET", "api/projects", LabelStudioInMemory._list_projects),
        ("POST", "api/projects", LabelStudioInMemory._create_project),
        ("GET", "api/projects/N", LabelStudioInMemory._get_project),
        ("PATCH", "api/projects/N", LabelStudioInMemory._patch_project),
        ("DELETE", "api/projects/N", LabelStudioInMemory._delete_project),
        ("GET", "api/tasks", LabelStudioInMemory._page_of_tasks),
        ("PATCH", "api/tasks/N", LabelStudioInMemory._patch_task),
        ("DELETE", "api/tasks/N", LabelStudioInMemory._delete_task),
        ("POST", "api/projects/N/import", LabelStudioInMemory._import),
        ("GET", "api/projects/N/file-uploads", LabelStudioInMemory._uploads),
        ("POST", "api/tasks/N/annotations", LabelStudioInMemory._add_annotation),
        ("PATCH", "api/annotations/N", LabelStudioInMemory._patch_annotation),
        ("DELETE", "api/annotations/N", LabelStudioInMemory._delete_annotation),
        ("POST", "api/dm/actions", LabelStudioInMemory._action),
        ("POST", "api/predictions", LabelStudioInMemory._add_prediction),
        ("PATCH", "api/predictions/N", LabelStudioInMemory._patch_prediction),
        ("DELETE", "api/predictions/N", LabelStudioInMemory._delete_prediction),
        ("POST", "api/projects/N/import/predictions", LabelStudioInMemory._import_predictions),
        ("GET", "api/projects/N/model-versions", LabelStudioInMemory._model_versions),
        ("DELETE", "api/projects/N/model-versions", LabelStudioInMemory._delete_model_version),
        ("GET", "api/ml", LabelStudioInMemory._list_backends),
        ("POST", "api/ml", LabelStudioInMemory._add_backend),
        ("GET", "api/ml/N", LabelStudioInMemory._get_backend),
        ("PATCH", "api/ml/N", LabelStudioInMemory._patch_backend),
        ("DELETE", "api/ml/N", LabelStudioInMemory._delete_backend),
        ("GET", "api/webhooks", LabelStudioInMemory._list_webhooks),
        ("POST", "api/webhooks", LabelStudioInMemory._add_webhook),
        ("GET", "api/webhooks/N", LabelStudioInMemory._get_webhook),
        ("PATCH", "api/webhooks/N", LabelStudioInMemory._patch_webhook),
        ("DELETE", "api/webhooks/N", LabelStudioInMemory._delete_webhook),
        ("GET", "api/dm/views", LabelStudioInMemory._list_views),
        ("POST", "api/dm/views", LabelStudioInMemory._add_view),
        ("PATCH", "api/dm/views/N", LabelStudioInMemory._patch_view),
        ("DELETE", "api/dm/views/N", LabelStudioInMemory._delete_view),
        ("GET", "api/projects/N/exports", LabelStudioInMemory._list_snapshots),
        ("POST", "api/projects/N/exports", LabelStudioInMemory._add_snapshot),
        ("GET", "api/projects/N/exports/N", LabelStudioInMemory._get_snapshot),
        ("GET", "api/projects/N/exports/N/download", LabelStudioInMemory._download_snapshot),
        ("DELETE", "api/projects/N/exports/N", LabelStudioInMemory._delete_snapshot),
    )
]


class _Missing(Exception):
    """Label Studio answers 404 with this message."""


def _row(rows: dict[int, Json], number: int, kind: str) -> Json:
    if number not in rows:
        raise _Missing(f"No {kind} matches the given query." if kind else WEB_PAGE)
    return rows[number]


def through_json(value: Any) -> Any:
    """A copy without shared parts, as a value that went through JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _annotators(task: Json) -> int:
    submitted = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
    return len({annotation["completed_by"] for annotation in submitted})


def _counts(task: Json) -> dict[str, int]:
    skipped = sum(bool(annotation.get("was_cancelled")) for annotation in task["annotations"])
    return {
        "total_annotations": len(task["annotations"]) - skipped,
        "cancelled_annotations": skipped,
    }


def _with_counts(task: Json) -> Json:
    return task | _counts(task)


def _exported(task: Json) -> Json:
    """A task in a snapshot: predictions as ids, without the state of the queue."""
    predictions = [prediction["id"] for prediction in task["predictions"]]
    exported = _with_counts(task) | {"predictions": predictions}
    return {name: value for name, value in exported.items() if name not in {"overlap", "is_labeled"}}


def _without_tasks(snapshot: Json) -> Json:
    return {name: value for name, value in snapshot.items() if name != "tasks"}


def _column(task: Json, column: str) -> Any:
    """The value of a Data Manager column, such as `tasks:updated_at` or `tasks:data.qc_status`."""
    name = column.rpartition("tasks:")[2]
    if name.startswith("data."):
        return task["data"].get(name.removeprefix("data."))
    return task[name] if name in task else _counts(task)[name]


def _sort_key(task: Json, column: str) -> tuple[bool, Any]:
    """Tasks without the value come first."""
    value = _column(task, column)
    return value is not None, value


def _passes(task: Json, item: Json) -> bool:
    value, wanted = _column(task, item["filter"]), item["value"]
    if "tasks:data." in item["filter"] and value is not None:
        value = float(value) if item["type"] == "Number" else str(value)
    if value is None and item["operator"] != "empty":
        return False  # a task without the key passes no comparison, not even not_equal
    return OPERATORS[item["operator"]](value, wanted)


def _lowest_score(task: Json, version: str) -> float:
    scores = [row["score"] for row in task["predictions"] if row["model_version"] == version]
    return min((score for score in scores if score is not None), default=float("inf"))


def _is_valid(result: list[Json], config: LabelConfig) -> bool:
    """Whether an import of predictions keeps this result: its controls, objects and labels are in the config."""
    for region in result:
        control = config.controls.get(region.get("from_name", ""))
        if region.get("type") == "relation":
            continue
        if control is None or region.get("to_name") not in control.to_names:
            return False
        chosen = region["value"].get(region["type"])
        known = {label.value for label in control.labels}
        if known and isinstance(chosen, list) and not known.issuperset(chosen):
            return False
    return True


def _has_single_label(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host != "localhost" and "." not in host and ":" not in host
