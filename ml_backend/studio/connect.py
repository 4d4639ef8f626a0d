"""Owns connecting a Label Studio project to this backend: the connection, its webhook, and what makes sampling work.

Why each step is needed (seen on Label Studio 1.23.2):

- Uncertainty sampling sorts by the predictions whose version is the project's `model_version`; that field may only hold
  the title of a connection or a version that has predictions. So the connection's title is kept equal to the version.
- The webhook that Label Studio makes by itself carries no auth header, and is not made at all for some addresses.
- An address that Label Studio's SSRF protection refuses leaves a half-made connection behind.
"""

import base64
from typing import Any

from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.connect_report import Change
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_support import controls_of
from ml_backend.smart import serves_smart_tools

PROVISIONAL_TITLE = "labelloop"
"""Title of a new connection until Label Studio has asked the backend for its version."""

SAMPLING = "Uncertainty sampling"
CONNECTED = "CO"

SSRF_FIX = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16: that "
    "opens private addresses and keeps the cloud's metadata address closed. Then connect again."
)


class ConnectionRefused(LabelloopError):
    """Label Studio did not take the ML backend's address; the message has its reason, the fix says what to do."""

    code = "ml_backend_refused"
    status = 502

    def __init__(self, url: str, reason: str, *, fix: str) -> None:
        super().__init__(f"Label Studio did not connect the ML backend at {url}: {reason}", fix=fix)
        self.url = url
        self.reason = reason


class OtherBackendFirst(LabelloopError):
    """Another ML backend was connected before; Label Studio asks only the oldest for pre-labels."""

    code = "other_ml_backend_first"
    status = 409

    def __init__(self, project_id: int, title: str, url: str) -> None:
        super().__init__(
            f"Project {project_id} has another ML backend, {title!r} at {url}, connected before this one; Label Studio "
            "asks only the oldest for pre-labels.",
            fix="Remove it in the project's Settings > Model, if pre-labels shall come from labelloop.",
        )
        self.title = title
        self.url = url


def connect(studio: Studio, project_id: int, settings: Settings) -> list[Change]:
    """Connects a project to the ML backend, or repairs what is not right. Twice changes nothing.

    Args:
        studio: Label Studio.
        project_id: The project.
        settings: Where Label Studio reaches the backend (`ml_url`), Basic auth and the webhook secret.

    Returns:
        One line for the connection, one for its webhook, one for the project's sampling.

    Raises:
        ConnectionRefused: Label Studio refuses or does not reach the backend. Nothing half-made is left.
        OtherBackendFirst: All was done, but another backend stands before ours.
        StudioError: Label Studio cannot be asked.
    """
    before = studio.ml_backends(project_id)
    ours = [row for row in before if same_address(row["url"], settings.ml_url)]
    row, connection = _connection(studio, project_id, settings, ours)
    for surplus in (one for one in ours if one["id"] != row["id"]):
        studio.delete_ml_backend(surplus["id"])
    changes = [
        connection,
        _webhook(studio, project_id, settings),
        _sampling(studio, project_id, str(row["title"]), queue=_has_order(studio, project_id, settings)),
    ]
    others = [one for one in before if not same_address(one["url"], settings.ml_url)]
    first = min(others, key=lambda one: int(one["id"]), default=None)
    if first is not None and int(first["id"]) < int(row["id"]):
        raise OtherBackendFirst(project_id, str(first["title"]), str(first["url"]))
    return changes


def _connection(
    studio: Studio, project_id: int, settings: Settings, ours: list[dict[str, Any]]
) -> tuple[dict[str, Any], Change]:
    """The project's one connection to us, titled with the version that it answers with."""
    auth = basic_auth(settings)
    asked = "BASIC_AUTH" if auth else "NONE"
    done = False
    try:
        row = min(ours, key=lambda one: (one["state"] != CONNECTED, int(one["id"])), default=None)
        if row is None:
            row = studio.add_ml_backend(project_id, settings.ml_url, PROVISIONAL_TITLE, basic_auth=auth)
            done = True
        elif row["state"] != CONNECTED or row["auth_method"] != asked or not _carries(studio, project_id, settings):
            # Label Studio says why it cannot reach a backend only when the connection is saved. It never shows the
            # password that it keeps: the webhook, which is written after it, tells whether that is ours.
            row = studio.update_ml_backend(row["id"], basic_auth=auth, auth_method=asked)
            done = True
        if not row["model_version"]:
            row = next(one for one in studio.ml_backends(project_id) if one["id"] == row["id"])
        version = str(row["model_version"] or "")
        if not version:
            raise ConnectionRefused(
                settings.ml_url,
                "its /setup told no version.",
                fix=f"`curl --user USER:PASSWORD {settings.ml_url}/ready` says why.",
            )
        wrong: dict[str, Any] = {"title": version} if row["title"] != version else {}
        if not row.get("is_interactive") and _smart(studio, project_id):
            wrong["is_interactive"] = True  # the editor then offers Auto-Annotation
        if wrong:
            row = studio.update_ml_backend(row["id"], basic_auth=auth, auth_method=asked, **wrong)
            done = True
    except StudioRefused as error:
        _remove_half_made(studio, project_id, settings)
        raise _explained(settings.ml_url, error) from error
    return row, Change(f"ML backend {row['title']} at {settings.ml_url}", done)


def _smart(studio: Studio, project_id: int) -> bool:
    """Whether the project's label config asks for smart tools that we can serve."""
    return serves_smart_tools(_config(studio, project_id))


def _has_order(studio: Studio, project_id: int, settings: Settings) -> bool:
    """Whether tasks are to come by their predictions: not where no model could make one, or the policy says no."""
    supported = controls_of(_config(studio, project_id))
    unserved = bool(supported) and all(one.prelabels is False for one in supported)
    return read_learning_policy(settings.home, project_id).queue and not unserved


def _config(studio: Studio, project_id: int) -> LabelConfig:
    try:
        return LabelConfig.parse(str(studio.project(project_id).get("label_config") or "<View/>"))
    except MalformedConfig:
        return LabelConfig({}, {})


def _remove_half_made(studio: Studio, project_id: int, settings: Settings) -> None:
    """A refused address leaves its row, without webhook or version; it would be shown as broken for ever.

    A connection that worked before has a version, and stays: its backend may just be down.
    """
    for row in studio.ml_backends(project_id):
        if same_address(row["url"], settings.ml_url) and row["state"] != CONNECTED and not row["model_version"]:
            studio.delete_ml_backend(row["id"])


def _explained(url: str, error: StudioRefused) -> LabelloopError:
    detail = error.detail
    if error.answer == 403 and ("reserved" in detail or "block" in detail):
        return ConnectionRefused(url, "its SSRF protection forbids private addresses.", fix=SSRF_FIX)
    if "authentication parameters" in detail or "401 Client Error" in detail:
        return ConnectionRefused(
            url,
            "the backend asks for Basic auth, and did not accept ours.",
            fix="Give this command the LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD of the backend.",
        )
    if "resolve hostname" in detail:
        return ConnectionRefused(
            url,
            "it does not know that host.",
            fix="Set LABELLOOP_ML_URL to an address as Label Studio's machine sees it.",
        )
    if "health check failed" in detail:
        return ConnectionRefused(
            url,
            "nothing healthy answers there.",
            fix="Start it with `labelloop ml serve`, and see that LABELLOOP_ML_URL is its address as Label Studio's "
            "machine sees it.",
        )
    if "valid ML backend" in detail:
        return ConnectionRefused(
            url,
            "its /setup failed.",
            fix=f"Its log, or `curl --user USER:PASSWORD {url}/ready`, says why: most often the model file.",
        )
    return error


def _webhook(studio: Studio, project_id: int, settings: Settings) -> Change:
    """The hook that Label Studio made for the backend (or that we make where it did not), with our headers."""
    url, headers = _webhook_url(settings), _headers(settings)
    what = f"Webhook {url}" + (f" with {' and '.join(sorted(headers))}" if headers else "")
    hook = _find_webhook(studio, project_id, settings)
    try:
        if hook is None:
            studio.add_webhook(project_id, url, headers=headers)
            return Change(what, done=True)
        now = hook["headers"] or {}
        if headers.items() <= now.items() and hook["is_active"] and hook["send_payload"]:
            return Change(what, done=False)
        studio.update_webhook(hook["id"], headers={**now, **headers}, is_active=True, send_payload=True)
    except StudioRefused as error:
        if "valid URL" in error.detail:
            raise ConnectionRefused(
                url,
                "it takes no webhook to a host name without a dot.",
                fix="Give the host a dotted alias (such as ml.internal) and use it in LABELLOOP_ML_URL.",
            ) from error
        if error.answer == 403:
            raise ConnectionRefused(url, "its SSRF protection forbids private addresses.", fix=SSRF_FIX) from error
        raise
    return Change(what, done=True)


def _webhook_url(settings: Settings) -> str:
    return f"{settings.ml_url.rstrip('/')}/webhook"


def _find_webhook(studio: Studio, project_id: int, settings: Settings) -> dict[str, Any] | None:
    url = _webhook_url(settings)
    return next((one for one in studio.webhooks(project_id) if same_address(one["url"], url)), None)


def _carries(studio: Studio, project_id: int, settings: Settings) -> bool:
    """Whether the project's webhook has the key of now."""
    hook = _find_webhook(studio, project_id, settings)
    wanted = _headers(settings).get("Authorization")
    return wanted is None or (hook is not None and (hook["headers"] or {}).get("Authorization") == wanted)


def _sampling(studio: Studio, project_id: int, version: str, *, queue: bool) -> Change:
    """The label stream serves what teaches most first, by the predictions of this version.

    Where the project's learn.toml does not want that, the sampling that is set stays, and only the version is followed.
    """
    wanted = {"show_collab_predictions": True, "model_version": version, **({"sampling": SAMPLING} if queue else {})}
    project = studio.project(project_id)
    wrong = {name: value for name, value in wanted.items() if project.get(name) != value}
    if wrong:
        # Label Studio clears model_version when pre-labels are switched on or off, so both go together.
        studio.update_project(project_id, **wanted)
    what = SAMPLING if queue else "Sampling as it is set, pre-labels"
    return Change(f"{what} by the predictions of {version}", done=bool(wrong))


def basic_auth(settings: Settings) -> tuple[str, str] | None:
    """User and password that the ML backend asks for; None where it asks for none."""
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


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are one, with or without a slash at the end."""
    return one.rstrip("/") == other.rstrip("/")
