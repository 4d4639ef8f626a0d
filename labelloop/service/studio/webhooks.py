"""ML backends and webhooks; updates keep the fields that a plain PATCH would reset."""

from collections.abc import Mapping, Sequence
from typing import Any

from labelloop.service.studio.errors import StudioError
from labelloop.service.studio.http import StudioClient


class WebhooksApi(StudioClient):
    """ML backends and webhooks of a project."""

    def ml_backends(self, project: int) -> list[dict[str, Any]]:
        """The project's ML backends; Label Studio calls /health and /setup of each before it responds."""
        return list(self.request("GET", "api/ml/", params={"project": project}))

    def add_ml_backend(
        self,
        project: int,
        url: str,
        title: str,
        *,
        basic_auth: tuple[str, str] | None = None,
        is_interactive: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """Connect an ML backend. Label Studio also creates a webhook to `<url>/webhook`, without an auth header.

        For a forbidden URL Label Studio responds 403 but still stores an incomplete backend: see `ml_backends`.
        """
        body = {"project": project, "url": url, "title": title, "is_interactive": is_interactive}
        return dict(self.request("POST", "api/ml/", json={**body, **_auth_fields(basic_auth), **fields}))

    def update_ml_backend(
        self,
        backend: int,
        *,
        current: Mapping[str, Any] | None = None,
        basic_auth: tuple[str, str] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Update the given fields; URL, project and auth are sent again, because Label Studio requires them.

        Args:
            backend: The backend's id.
            current: The backend as `ml_backends` returned it; None: it is fetched.
            basic_auth: User and password. Required if the backend has Basic auth: Label Studio does not return them.
            fields: Label Studio's fields. `auth_method="NONE"` removes Basic auth.

        Raises:
            StudioError: The backend has Basic auth and `basic_auth` is missing.
        """
        current = current or self.request("GET", f"api/ml/{backend}")
        required = {name: current[name] for name in ("url", "project", "auth_method")}
        body = {**required, **_auth_fields(basic_auth), **fields}
        if body["auth_method"] == "BASIC_AUTH" and "basic_auth_pass" not in body:
            raise StudioError(
                f"ML backend {backend} has Basic auth, and Label Studio does not return its password.",
                fix="Pass basic_auth=(user, password) with every update.",
            )
        return dict(self.request("PATCH", f"api/ml/{backend}", json=body))

    def delete_ml_backend(self, backend: int) -> None:
        """Disconnect an ML backend. Its webhook stays: see `delete_webhook`."""
        self.request("DELETE", f"api/ml/{backend}")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        """The project's webhooks, with their headers in clear text."""
        return list(self.request("GET", "api/webhooks/", params={"project": project}))

    def add_webhook(
        self,
        project: int,
        url: str,
        *,
        actions: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        send_payload: bool = True,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add a webhook for the given actions; empty: for all actions."""
        body = {
            "project": project,
            "url": url,
            "actions": list(actions),
            "send_for_all_actions": not actions,
            "headers": dict(headers or {}),
            "send_payload": send_payload,
        }
        return dict(self.request("POST", "api/webhooks/", json={**body, **fields}))

    def update_webhook(self, webhook: int, **fields: Any) -> dict[str, Any]:
        """Update the given fields and send the actions again, which Label Studio would otherwise clear."""
        current = self.request("GET", f"api/webhooks/{webhook}/")
        return dict(self.request("PATCH", f"api/webhooks/{webhook}/", json={"actions": current["actions"], **fields}))

    def delete_webhook(self, webhook: int) -> None:
        """Delete a webhook."""
        self.request("DELETE", f"api/webhooks/{webhook}/")


def _auth_fields(basic_auth: tuple[str, str] | None) -> dict[str, str]:
    if basic_auth is None:
        return {}
    return {"auth_method": "BASIC_AUTH", "basic_auth_user": basic_auth[0], "basic_auth_pass": basic_auth[1]}
