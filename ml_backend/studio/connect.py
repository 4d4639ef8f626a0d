"""Connect a Label Studio project to the ML backend: connection, webhook and uncertainty sampling.

Why each step is needed (tested with Label Studio 1.23.2):

- Uncertainty sampling sorts by the predictions of the project's `model_version`. That field only accepts the title of a
  connection or a version that has predictions, so the connection's title is set to the version.
- The webhook that Label Studio creates has no auth header, and for some addresses Label Studio creates none.
- An address refused by Label Studio's SSRF protection leaves a connection without a webhook or a version.
"""

import base64
from typing import Any

from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_support import controls_of
from ml_backend.smart import serves_smart_tools

# Title of a new connection until Label Studio has read the backend's version.
PROVISIONAL_TITLE = "labelloop"

SAMPLING = "Uncertainty sampling"
CONNECTED = "CO"

SSRF_FIX = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16: that "
    "opens private addresses and keeps the cloud's metadata address closed. Then connect again."
)


class ConnectionRefused(LabelloopError):
    """Label Studio refused the ML backend's address; the message has the reason."""

    code = "ml_backend_refused"
    status = 502
    message = "Label Studio did not connect the ML backend at {url}: {reason}"


def connect(studio: Studio, project_id: int, settings: Settings) -> list[ConnectionChange]:
    """Connect a project to the ML backend, or repair its connection. Idempotent.

    Args:
        studio: Label Studio.
        project_id: The project.
        settings: The backend's address as Label Studio sees it (`ml_url`), Basic auth and the webhook secret.

    Returns:
        One change for the connection, one for its webhook, one for the project's sampling.

    Raises:
        ConnectionRefused: Label Studio refuses or cannot reach the backend. The refused connection is removed.
        LabelloopError: The project is connected, but an older backend takes precedence.
        StudioError: Label Studio cannot be asked.
    """
    before = studio.ml_backends(project_id)
    ours = [row for row in before if is_same_url(row["url"], settings.ml_url)]
    row, connection = _connection(studio, project_id, settings, ours)
    for surplus in (connected for connected in ours if connected["id"] != row["id"]):
        studio.delete_ml_backend(surplus["id"])
    changes = [
        connection,
        _webhook(studio, project_id, settings),
        _sampling(
            studio, project_id, str(row["title"]), queue=_wants_uncertainty_sampling(studio, project_id, settings)
        ),
    ]
    others = [row for row in before if not is_same_url(row["url"], settings.ml_url)]
    first = min(others, key=lambda row: int(row["id"]), default=None)
    if first is not None and int(first["id"]) < int(row["id"]):
        raise LabelloopError(
            f"Project {project_id} has an older ML backend, {str(first['title'])!r} at {first['url']}. Label Studio"
            " requests pre-labels only from the oldest.",
            fix="To get pre-labels from labelloop, remove it in the project's Settings > Model.",
            code="other_ml_backend_first",
            status=409,
        )
    return changes


def _connection(
    studio: Studio, project_id: int, settings: Settings, ours: list[dict[str, Any]]
) -> tuple[dict[str, Any], ConnectionChange]:
    """Create or repair the project's connection to this backend, titled with the served version."""
    auth = basic_auth(settings)
    auth_method = "BASIC_AUTH" if auth else "NONE"
    done = False
    try:
        row = min(ours, key=lambda entry: (entry["state"] != CONNECTED, int(entry["id"])), default=None)
        if row is None:
            row = studio.add_ml_backend(project_id, settings.ml_url, PROVISIONAL_TITLE, basic_auth=auth)
            done = True
        elif (
            row["state"] != CONNECTED
            or row["auth_method"] != auth_method
            or not _has_current_auth(studio, project_id, settings)
        ):
            # Label Studio reports why it cannot reach a backend only when the connection is saved. It never returns the
            # stored password: the auth header of the webhook, which is written later, shows if it is the current one.
            row = studio.update_ml_backend(row["id"], basic_auth=auth, auth_method=auth_method)
            done = True
        if not row["model_version"]:
            row = next(entry for entry in studio.ml_backends(project_id) if entry["id"] == row["id"])
        version = str(row["model_version"] or "")
        if not version:
            raise ConnectionRefused(
                url=settings.ml_url,
                reason="its /setup returned no version.",
                fix=f"Run `curl --user USER:PASSWORD {settings.ml_url}/ready` for the reason.",
            )
        updates: dict[str, Any] = {"title": version} if row["title"] != version else {}
        if not row.get("is_interactive") and _has_smart_tools(studio, project_id):
            updates["is_interactive"] = True  # the editor then offers Auto-Annotation
        if updates:
            row = studio.update_ml_backend(row["id"], basic_auth=auth, auth_method=auth_method, **updates)
            done = True
    except StudioRefused as error:
        _remove_refused_connection(studio, project_id, settings)
        raise _refusal(settings.ml_url, error) from error
    return row, ConnectionChange(f"ML backend {row['title']} at {settings.ml_url}", done)


def _has_smart_tools(studio: Studio, project_id: int) -> bool:
    """Whether the project's label config has smart tools that this backend serves."""
    return serves_smart_tools(_config(studio, project_id))


def _wants_uncertainty_sampling(studio: Studio, project_id: int, settings: Settings) -> bool:
    """Whether to set uncertainty sampling: unless the policy forbids it or no control can be pre-labelled."""
    supported = controls_of(_config(studio, project_id))
    unserved = bool(supported) and all(control.prelabels is False for control in supported)
    return read_learning_policy(settings.home, project_id).queue and not unserved


def _config(studio: Studio, project_id: int) -> LabelConfig:
    try:
        return LabelConfig.parse(str(studio.project(project_id).get("label_config") or "<View/>"))
    except MalformedConfig:
        return LabelConfig({}, {})


def _remove_refused_connection(studio: Studio, project_id: int, settings: Settings) -> None:
    """Remove the row that Label Studio keeps for a refused address, without webhook or version.

    A connection that worked before has a version and is kept: its backend may just be down.
    """
    for row in studio.ml_backends(project_id):
        if is_same_url(row["url"], settings.ml_url) and row["state"] != CONNECTED and not row["model_version"]:
            studio.delete_ml_backend(row["id"])


def _refusal(url: str, error: StudioRefused) -> LabelloopError:
    detail = error.detail
    if error.http_status == 403 and ("reserved" in detail or "block" in detail):
        return ConnectionRefused(url=url, reason="its SSRF protection forbids private addresses.", fix=SSRF_FIX)
    if "authentication parameters" in detail or "401 Client Error" in detail:
        return ConnectionRefused(
            url=url,
            reason="the backend requires Basic auth and rejected these credentials.",
            fix="Run this command with the LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD of the backend.",
        )
    if "resolve hostname" in detail:
        return ConnectionRefused(
            url=url,
            reason="it cannot resolve that host name.",
            fix="Set LABELLOOP_ML_URL to an address that Label Studio's machine can reach.",
        )
    if "health check failed" in detail:
        return ConnectionRefused(
            url=url,
            reason="the health check failed.",
            fix="Start it with `labelloop ml serve`, and set LABELLOOP_ML_URL to an address that Label Studio's "
            "machine can reach.",
        )
    if "valid ML backend" in detail:
        return ConnectionRefused(
            url=url,
            reason="its /setup failed.",
            fix=f"See its log or run `curl --user USER:PASSWORD {url}/ready`. Most often the model file is the reason.",
        )
    return error


def _webhook(studio: Studio, project_id: int, settings: Settings) -> ConnectionChange:
    """Update the webhook that Label Studio created for the backend with the auth headers, or add one."""
    url, headers = _webhook_url(settings), _headers(settings)
    what = f"Webhook {url}" + (f" with {' and '.join(sorted(headers))}" if headers else "")
    hook = _find_webhook(studio, project_id, settings)
    try:
        if hook is None:
            studio.add_webhook(project_id, url, headers=headers)
            return ConnectionChange(what, done=True)
        current = hook["headers"] or {}
        if headers.items() <= current.items() and hook["is_active"] and hook["send_payload"]:
            return ConnectionChange(what, done=False)
        studio.update_webhook(hook["id"], headers={**current, **headers}, is_active=True, send_payload=True)
    except StudioRefused as error:
        if "valid URL" in error.detail:
            raise ConnectionRefused(
                url=url,
                reason="it accepts no webhook to a host name without a dot.",
                fix="Give the host a dotted alias (such as ml.internal) and use it in LABELLOOP_ML_URL.",
            ) from error
        if error.http_status == 403:
            raise ConnectionRefused(
                url=url, reason="its SSRF protection forbids private addresses.", fix=SSRF_FIX
            ) from error
        raise
    return ConnectionChange(what, done=True)


def _webhook_url(settings: Settings) -> str:
    return f"{settings.ml_url.rstrip('/')}/webhook"


def _find_webhook(studio: Studio, project_id: int, settings: Settings) -> dict[str, Any] | None:
    url = _webhook_url(settings)
    return next((hook for hook in studio.webhooks(project_id) if is_same_url(hook["url"], url)), None)


def _has_current_auth(studio: Studio, project_id: int, settings: Settings) -> bool:
    """Whether the project's webhook has the current Authorization header."""
    hook = _find_webhook(studio, project_id, settings)
    wanted = _headers(settings).get("Authorization")
    return wanted is None or (hook is not None and (hook["headers"] or {}).get("Authorization") == wanted)


def _sampling(studio: Studio, project_id: int, version: str, *, queue: bool) -> ConnectionChange:
    """Set uncertainty sampling and the model version of the project.

    With `queue = false` in the project's learn.toml the sampling is left unchanged and only the version is set.
    """
    wanted = {"show_collab_predictions": True, "model_version": version, **({"sampling": SAMPLING} if queue else {})}
    project = studio.project(project_id)
    updates = {name: value for name, value in wanted.items() if project.get(name) != value}
    if updates:
        # Label Studio clears model_version when pre-labels are switched on or off, so both go together.
        studio.update_project(project_id, **wanted)
    what = SAMPLING if queue else "Sampling unchanged, pre-labels"
    return ConnectionChange(f"{what} by the predictions of {version}", done=bool(updates))


def basic_auth(settings: Settings) -> tuple[str, str] | None:
    """Return the user and password of the ML backend; None without Basic auth."""
    if not settings.basic_auth_user:
        return None
    return settings.basic_auth_user, settings.basic_auth_password.get_secret_value()


def _headers(settings: Settings) -> dict[str, str]:
    headers = {}
    auth = basic_auth(settings)
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    if settings.webhook_secret.get_secret_value():
        headers[SECRET_HEADER] = settings.webhook_secret.get_secret_value()
    return headers


def is_same_url(first: str, second: str) -> bool:
    """Whether two URLs are equal, ignoring a trailing slash."""
    return first.rstrip("/") == second.rstrip("/")
