"""What Label Studio calls: ML backends and webhooks, changed without the losses that a bare PATCH brings."""

from collections.abc import Mapping, Sequence
from typing import Any

from labelloop.service.studio.errors import StudioError
from labelloop.service.studio.http import StudioClient


class HookCalls(StudioClient):
    """What concerns the services that Label Studio calls."""

    def ml_backends(self, project: int) -> list[dict[str, Any]]:
        """The project's ML backends; Label Studio asks each for /health and /setup before it answers."""
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
        """Connects an ML backend. Label Studio also makes a webhook to `<url>/webhook`, without any auth header.

        An address that Label Studio forbids is answered with 403 and yet leaves a half-made row: see `ml_backends`.
        """
        body = {"project": project, "url": url, "title": title, "is_interactive": is_interactive}
        return dict(self.request("POST", "api/ml/", json={**body, **_auth(basic_auth), **fields}))

    def update_ml_backend(
        self,
        backend: int,
        *,
        now: Mapping[str, Any] | None = None,
        basic_auth: tuple[str, str] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Changes the given fields; address, project and auth are sent again, as Label Studio needs them.

        Args:
            backend: Its id.
            now: As `ml_backends` gave it a moment ago; None: it is asked for.
            basic_auth: User and password. Needed whenever the backend has Basic auth: Label Studio does not tell it.
            fields: Label Studio's names. `auth_method="NONE"` takes Basic auth away.

        Raises:
            StudioError: The backend has Basic auth and `basic_auth` was not given.
        """
        now = now or self.request("GET", f"api/ml/{backend}")
        needed = {name: now[name] for name in ("url", "project", "auth_method")}
        kept = {**needed, **_auth(basic_auth), **fields}
        if kept["auth_method"] == "BASIC_AUTH" and "basic_auth_pass" not in kept:
            raise StudioError(
                f"ML backend {backend} has Basic auth, and Label Studio does not tell its password.",
                fix="Give basic_auth=(user, password) with every change.",
            )
        return dict(self.request("PATCH", f"api/ml/{backend}", json=kept))

    def delete_ml_backend(self, backend: int) -> None:
        """Disconnects an ML backend. The webhook that came with it stays: see `delete_webhook`."""
        self.request("DELETE", f"api/ml/{backend}")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        """The project's webhooks, headers in clear text."""
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
        """Adds a webhook for the given actions; none given: for all."""
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
        """Changes the given fields and keeps the actions, which Label Studio wipes when they are not sent again."""
        now = self.request("GET", f"api/webhooks/{webhook}/")
        return dict(self.request("PATCH", f"api/webhooks/{webhook}/", json={"actions": now["actions"], **fields}))

    def delete_webhook(self, webhook: int) -> None:
        """Removes a webhook."""
        self.request("DELETE", f"api/webhooks/{webhook}/")


def _auth(basic_auth: tuple[str, str] | None) -> dict[str, str]:
    if basic_auth is None:
        return {}
    return {"auth_method": "BASIC_AUTH", "basic_auth_user": basic_auth[0], "basic_auth_pass": basic_auth[1]}
