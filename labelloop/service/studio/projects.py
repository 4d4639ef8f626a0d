"""Projects, their labeling interface and Data Manager tabs, users, and Label Studio's version."""

from typing import Any

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.studio.http import StudioClient

_PAGE = 100


class ProjectCalls(StudioClient):
    """What concerns a project as a whole."""

    def me(self) -> dict[str, Any]:
        """The user that the token belongs to."""
        return dict(self.request("GET", "api/current-user/whoami"))

    def version(self) -> str:
        """Label Studio's release, such as `1.23.2`."""
        return str(self.request("GET", "api/version").get("release", ""))

    def users(self) -> list[dict[str, Any]]:
        """Everybody in the organization."""
        return list(self.request("GET", "api/users/"))

    def projects(self) -> list[dict[str, Any]]:
        """Every project that the user sees."""
        found: list[dict[str, Any]] = []
        page = 1
        while True:
            answer = self.request("GET", "api/projects/", params={"page": page, "page_size": _PAGE})
            found.extend(answer["results"])
            if not answer["next"]:
                return found
            page += 1

    def project(self, project: int) -> dict[str, Any]:
        """One project. Raises `NotFound`."""
        return dict(self.request("GET", f"api/projects/{project}/"))

    def create_project(self, **fields: Any) -> dict[str, Any]:
        """Makes a project; `title` and `label_config` are Label Studio's names, as are all others."""
        return dict(self.request("POST", "api/projects/", json=fields))

    def update_project(self, project: int, **fields: Any) -> dict[str, Any]:
        """Changes the given fields of a project."""
        return dict(self.request("PATCH", f"api/projects/{project}/", json=fields))

    def delete_project(self, project: int) -> None:
        """Removes a project with all its tasks."""
        self.request("DELETE", f"api/projects/{project}/")

    def label_config(self, project: int) -> LabelConfig:
        """The project's labeling interface, read. Raises `MalformedConfig`."""
        # Nothing else: to count a project's tasks and annotations Label Studio looks at all of them.
        fields = self.request("GET", f"api/projects/{project}/", params={"include": "label_config"})
        return LabelConfig.parse(fields["label_config"])

    def views(self, project: int) -> list[dict[str, Any]]:
        """The project's Data Manager tabs."""
        return list(self.request("GET", "api/dm/views/", params={"project": project}))

    def add_view(self, project: int, data: dict[str, Any]) -> dict[str, Any]:
        """Makes a tab that every user of the project sees. `data` is Label Studio's: title, filters, ordering."""
        return dict(self.request("POST", "api/dm/views/", json={"project": project, "data": data}))

    def update_view(self, view: int, project: int, data: dict[str, Any]) -> dict[str, Any]:
        """Replaces a tab's `data`; filters and ordering that are not given stay as they are."""
        return dict(self.request("PATCH", f"api/dm/views/{view}/", json={"project": project, "data": data}))

    def delete_view(self, view: int) -> None:
        """Removes a tab."""
        self.request("DELETE", f"api/dm/views/{view}/")
