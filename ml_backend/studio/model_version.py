"""Set the model version in Label Studio: the connection's title and the project's `model_version`.

Label Studio calls the backend several times whenever its connections are listed, which takes 0.1 s. So they are listed
once, after every worker of the backend serves the version; the backend's own `/versions` answers in a few milliseconds.
Where this machine cannot reach the backend at Label Studio's address, the connections are polled instead.
"""

import time
from typing import Any

import httpx

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.studio.connect import basic_auth, is_same_url

# Seconds that `follow_version` waits for the backend.
SWAP_S = 15.0

# Consecutive answers that must name the version: the workers swap one after the other.
CONSECUTIVE_ANSWERS = 6

# Seconds between two requests while another version is served; Label Studio is polled less often.
POLL_INTERVAL_S = 0.05

TIMEOUT_S = 2.0


class NotSwapped(LabelloopError):
    """The backend does not serve the activated version."""

    code = "version_not_served"
    status = 504
    message = "The ML backend at {url} still serves {served} to Label Studio, not {version}."
    fix = (
        "Check that it runs with the same LABELLOOP_STORE_URL and see its log for load errors. Then run "
        "`labelloop connect PROJECT`."
    )


def follow_version(
    studio: Studio, project_id: int, version: str, settings: Settings, *, wait_s: float = SWAP_S
) -> list[ConnectionChange]:
    """Set the connection's title and the project's `model_version` to a newly activated version.

    Label Studio then requests pre-labels of that version and sorts by them. Other project settings are unchanged.

    Args:
        studio: Label Studio.
        project_id: The project.
        version: The version that the backend is about to serve.
        settings: The backend's address as Label Studio sees it, and Basic auth.
        wait_s: Longest wait in seconds until the backend serves the version.

    Returns:
        One change for the connection, one for the project; empty where the project is not connected to this backend.

    Raises:
        NotSwapped: The backend still serves another version.
        StudioError: Label Studio cannot be reached.
    """
    deadline = time.monotonic() + wait_s
    needed, agreed = (1 if _wait_for_workers(project_id, version, settings, deadline) else CONSECUTIVE_ANSWERS), 0
    while True:
        rows = studio.ml_backends(project_id)  # Label Studio calls /setup and stores the version
        row = next((candidate for candidate in rows if is_same_url(candidate["url"], settings.ml_url)), None)
        if row is None:
            return []
        agreed = agreed + 1 if row["model_version"] == version else 0
        if agreed == needed:
            break
        if not agreed:
            if time.monotonic() > deadline:
                raise NotSwapped(url=settings.ml_url, version=version, served=row["model_version"] or "no version")
            time.sleep(4 * POLL_INTERVAL_S)
    before = str(row["title"])
    if before != version:
        auth = basic_auth(settings)
        auth_method = "BASIC_AUTH" if auth else "NONE"
        studio.update_ml_backend(row["id"], current=row, basic_auth=auth, auth_method=auth_method, title=version)
    changes = [ConnectionChange(f"ML backend {version} at {settings.ml_url}", done=before != version)]
    followed = str(studio.project(project_id, only=["model_version"]).get("model_version") or "")
    others = {str(other["title"]) for other in rows if other is not row}
    if followed in others:
        return changes
    if followed != version:
        studio.update_project(project_id, model_version=version)
    # Label Studio updates the project itself when the connection title that it follows changes.
    return [
        *changes,
        ConnectionChange(f"Project {project_id} follows {version}", done=version not in {followed, before}),
    ]


def _wait_for_workers(project_id: int, version: str, settings: Settings, deadline: float) -> bool:
    """Wait until every worker serves the version; False on timeout or if the backend cannot be reached from here."""
    agreed = 0
    # A new connection per request: otherwise one worker would answer them all.
    fresh: dict[str, Any] = {"timeout": TIMEOUT_S, "headers": {"Connection": "close"}, "auth": basic_auth(settings)}
    with httpx.Client(verify=settings.ml_url.startswith("https:"), trust_env=False, **fresh) as client:
        while agreed < CONSECUTIVE_ANSWERS:
            try:
                params = {"project": str(project_id), "stored": "no"}
                answer = client.get(f"{settings.ml_url.rstrip('/')}/versions", params=params).raise_for_status()
                served = answer.json()["versions"][0]
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError):
                return False
            agreed = agreed + 1 if served == version else 0
            if not agreed:
                if time.monotonic() > deadline:
                    return False
                time.sleep(POLL_INTERVAL_S)
    return True
