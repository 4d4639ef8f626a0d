"""Owns that Label Studio follows a version: the connection's title and the project's `model_version` become it.

Label Studio asks the backend several times whenever it is asked for its connections, and takes a tenth of a second for
that. So it is asked once, when every worker of the backend serves the version; whether they do, the backend itself says
in a few milliseconds. Where this machine does not reach it at the address that Label Studio has, Label Studio is asked.
"""

import time
from typing import Any

import httpx

from labelloop.service.connect_report import Change
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.studio.connect import basic_auth, same_address

SWAP_S = 15.0
"""How long `follow_version` waits for the backend."""

ASKED_AGAIN = 6
"""Answers in a row that must name the version: several workers swap one after the other."""

PAUSE_S = 0.05
"""Between two questions while another version is served; Label Studio is asked less often."""

TIMEOUT_S = 2.0


class NotSwapped(LabelloopError):
    """The backend has not taken over the version that became active."""

    code = "version_not_served"
    status = 504

    def __init__(self, url: str, version: str, answers: str) -> None:
        super().__init__(
            f"The ML backend at {url} answers Label Studio with {answers or 'nothing'}, not yet with {version}.",
            fix="See that it runs with the same LABELLOOP_STORE_URL; its log says what it could not load. Then run "
            "`labelloop connect PROJECT`.",
        )
        self.version = version
        self.answers = answers


def follow_version(
    studio: Studio, project_id: int, version: str, settings: Settings, *, wait_s: float = SWAP_S
) -> list[Change]:
    """After an activation: the connection's title and the project's `model_version` become the new version.

    Label Studio then asks for pre-labels of that version, and sorts by them. Sampling and all else stay as they are.

    Args:
        studio: Label Studio.
        project_id: The project.
        version: What the backend is about to serve.
        settings: Where Label Studio reaches the backend, and Basic auth.
        wait_s: Longest wait until the backend answers with the version.

    Returns:
        One line for the connection, one for the project; none where the project is not connected to this backend.

    Raises:
        NotSwapped: The backend goes on answering with another version.
        StudioError: Label Studio cannot be asked.
    """
    deadline = time.monotonic() + wait_s
    needed, agreed = (1 if _all_swapped(project_id, version, settings, deadline) else ASKED_AGAIN), 0
    while True:
        rows = studio.ml_backends(project_id)  # Label Studio asks the backend's /setup, and keeps what that says
        row = next((one for one in rows if same_address(one["url"], settings.ml_url)), None)
        if row is None:
            return []
        agreed = agreed + 1 if row["model_version"] == version else 0
        if agreed == needed:
            break
        if not agreed:
            if time.monotonic() > deadline:
                raise NotSwapped(settings.ml_url, version, str(row["model_version"] or ""))
            time.sleep(4 * PAUSE_S)
    before = str(row["title"])
    if before != version:
        auth = basic_auth(settings)
        asked = "BASIC_AUTH" if auth else "NONE"
        studio.update_ml_backend(row["id"], now=row, basic_auth=auth, auth_method=asked, title=version)
    changes = [Change(f"ML backend {version} at {settings.ml_url}", done=before != version)]
    followed = str(studio.project(project_id).get("model_version") or "")
    others = {str(one["title"]) for one in rows if one is not row}
    if followed in others:
        return changes
    if followed != version:
        studio.update_project(project_id, model_version=version)
    # Label Studio moves the project along when the title that it followed changes.
    return [*changes, Change(f"Project {project_id} follows {version}", done=version not in {followed, before})]


def _all_swapped(project_id: int, version: str, settings: Settings, deadline: float) -> bool:
    """Waits until the backend serves the version; False where it does not in time, or cannot be asked from here."""
    agreed = 0
    # A connection for each question: else one worker would answer them all.
    fresh: dict[str, Any] = {"timeout": TIMEOUT_S, "headers": {"Connection": "close"}, "auth": basic_auth(settings)}
    with httpx.Client(verify=settings.ml_url.startswith("https:"), trust_env=False, **fresh) as client:
        while agreed < ASKED_AGAIN:
            try:
                asked = {"project": str(project_id), "stored": "no"}
                answer = client.get(f"{settings.ml_url.rstrip('/')}/versions", params=asked).raise_for_status()
                served = answer.json()["versions"][0]
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError):
                return False
            agreed = agreed + 1 if served == version else 0
            if not agreed:
                if time.monotonic() > deadline:
                    return False
                time.sleep(PAUSE_S)
    return True
