"""The Label Studio client (`Studio`): projects, users, tabs, uploads and predictions; mixins add the other calls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import Settings
from labelloop.service.studio.errors import PredictionsDropped
from labelloop.service.studio.snapshots import SnapshotsApi
from labelloop.service.studio.tasks import TasksApi
from labelloop.service.studio.webhooks import WebhooksApi

_PAGE_SIZE = 100
_LONG_TIMEOUT_S = 300.0


class Studio(TasksApi, WebhooksApi, SnapshotsApi):
    """Label Studio as one user. Thread-safe; create one per process and pass it down.

    Args:
        url: Label Studio's URL; a path prefix is kept.
        api_key: A personal access token, or a legacy token.
        timeout_s: Timeout of one request; imports and pages of tasks get 300 s.

    Every call may raise `StudioUnreachable`, `StudioUnauthorized`, `StudioNotFound` or `StudioRefused`.
    """

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The client for the Label Studio of the settings."""
        return cls(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())

    def me(self) -> dict[str, Any]:
        """The user of the token."""
        return dict(self.request("GET", "api/current-user/whoami"))

    def version(self) -> str:
        """Label Studio's release, such as `1.23.2`."""
        return str(self.request("GET", "api/version").get("release", ""))

    def users(self) -> list[dict[str, Any]]:
        """All users of the organization."""
        return list(self.request("GET", "api/users/"))

    def projects(self) -> list[dict[str, Any]]:
        """All projects that the user can see."""
        projects: list[dict[str, Any]] = []
        page = 1
        while True:
            answer = self.request("GET", "api/projects/", params={"page": page, "page_size": _PAGE_SIZE})
            projects.extend(answer["results"])
            if not answer["next"]:
                return projects
            page += 1

    def has_project(self, project: int) -> bool:
        """Whether the list of projects has it: a 404 may be about something else, or come from a proxy."""
        return any(int(item["id"]) == project for item in self.projects())

    def project(self, project: int, *, only: Sequence[str] = ()) -> dict[str, Any]:
        """One project. Raises `StudioNotFound`.

        Args:
            project: The project's id.
            only: Fields to return; all where empty, which takes Label Studio four times as long in a large project.
        """
        params = {"include": ",".join(only)} if only else None
        return dict(self.request("GET", f"api/projects/{project}/", params=params))

    def create_project(self, **fields: Any) -> dict[str, Any]:
        """Create a project; `fields` are Label Studio's, such as `title` and `label_config`."""
        return dict(self.request("POST", "api/projects/", json=fields))

    def update_project(self, project: int, **fields: Any) -> dict[str, Any]:
        """Update the given fields of a project."""
        return dict(self.request("PATCH", f"api/projects/{project}/", json=fields))

    def delete_project(self, project: int) -> None:
        """Delete a project with all its tasks."""
        self.request("DELETE", f"api/projects/{project}/")

    def label_config(self, project: int) -> LabelConfig:
        """The project's labeling interface, parsed. Raises `MalformedConfig`."""
        return LabelConfig.parse(self.project(project, only=["label_config"])["label_config"])

    def views(self, project: int) -> list[dict[str, Any]]:
        """The project's Data Manager tabs."""
        return list(self.request("GET", "api/dm/views/", params={"project": project}))

    def add_view(self, project: int, data: dict[str, Any]) -> dict[str, Any]:
        """Create a tab for all users of the project. `data` is Label Studio's: title, filters, ordering."""
        return dict(self.request("POST", "api/dm/views/", json={"project": project, "data": data}))

    def update_view(self, view: int, project: int, data: dict[str, Any]) -> dict[str, Any]:
        """Replace a tab's `data`; omitted filters and ordering are kept."""
        return dict(self.request("PATCH", f"api/dm/views/{view}/", json={"project": project, "data": data}))

    def delete_view(self, view: int) -> None:
        """Delete a tab."""
        self.request("DELETE", f"api/dm/views/{view}/")

    def upload_files(self, project: int, paths: Sequence[Path]) -> list[str]:
        """Upload files in one request, without creating tasks.

        Args:
            project: The project's id.
            paths: At most 100 files and 250 MB in total (Label Studio's limits).

        Returns:
            The URL path of each file for a task's data, such as ``/data/upload/1/1a2b3c4d-name.jpg``.
        """
        if not paths:
            return []
        ids = list(self._send_files(project, paths, commit_to_project=False)["file_upload_ids"])
        rows = self.request("GET", f"api/projects/{project}/file-uploads", params={"ids": str(ids)})
        stored = {row["id"]: row["file"] for row in rows}
        prefix = urlsplit(self.url).path.rstrip("/")
        return [f"{prefix}/data/{quote(stored[upload_id])}" for upload_id in ids]

    def add_prediction(
        self, task: int, result: list[dict[str, Any]], score: float | None, model_version: str
    ) -> dict[str, Any]:
        """Add one prediction to a task."""
        body = {"task": task, "result": result, "score": score, "model_version": model_version}
        return dict(self.request("POST", "api/predictions/", json=body))

    def update_prediction(self, prediction: int, **fields: Any) -> dict[str, Any]:
        """Update the given fields of a prediction, such as its score."""
        return dict(self.request("PATCH", f"api/predictions/{prediction}/", json=fields))

    def delete_prediction(self, prediction: int) -> None:
        """Delete one prediction."""
        self.request("DELETE", f"api/predictions/{prediction}/")

    def import_predictions(self, project: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Add many predictions at once (250 take 0.3 s; one by one they take 24 s).

        Args:
            project: The project's id.
            predictions: `{"task", "result", "score", "model_version"}` each.

        Returns:
            The number of stored predictions, which equals the number sent.

        Raises:
            PredictionsDropped: Label Studio stored fewer; it responds 201 and does not say which.
        """
        if not predictions:
            return 0
        answer = self.request(
            "POST", f"api/projects/{project}/import/predictions", json=list(predictions), timeout_s=_LONG_TIMEOUT_S
        )
        created = int(answer["created"])
        if created != len(predictions):
            raise PredictionsDropped(project=project, sent=len(predictions), created=created)
        return created

    def model_versions(self, project: int) -> dict[str, int]:
        """The number of predictions in the project by model version."""
        answer = self.request("GET", f"api/projects/{project}/model-versions/", params={"extended": True})
        return {str(row["model_version"]): int(row["count"]) for row in answer["static"]}

    def delete_model_version(self, project: int, version: str) -> None:
        """Delete all predictions of a version. Label Studio clears `project.model_version` if it names this version."""
        self.request("DELETE", f"api/projects/{project}/model-versions/", json={"model_version": version})
