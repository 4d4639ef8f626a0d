"""Checks of one project in Label Studio: its ML backend, webhooks, sampling, tabs and images."""

import contextlib
from base64 import b64encode
from collections.abc import Collection, Mapping
from typing import Any

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.doctor.label_studio import BANNED_ADDRESS, OPEN_NETWORK_FIX
from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig, data_value
from labelloop.service.errors import LabelloopError
from labelloop.service.media import Media, MediaError
from labelloop.service.studio import StudioNotFound
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.predict.control_support import ModelOutputs, controls_of
from qc_webhooks.events import SUBSCRIBED_ACTIONS
from qc_webhooks.studio.data_manager_tabs import TABS
from qc_webhooks.studio.webhook import webhook_headers, webhook_url

UNCERTAINTY = "Uncertainty sampling"
CONNECTED = "CO"

# Prefix of the versions that were learned in service.
LEARNED_PREFIX = "learned-"


def project(context: DoctorContext) -> Finding:
    """Does the project exist?"""
    try:
        fields = context.project()
    except StudioNotFound:
        projects = ", ".join(f"{row['id']} ({row.get('title', '')})" for row in context.studio.projects()[:10])
        return problem(
            f"Label Studio has no project {context.project_id}, or our user has no access to it.",
            f"It has: {projects}." if projects else "Create one in Label Studio first.",
        )
    return ok(f"{fields['title']!r}, {fields.get('task_number', 0)} tasks")


def backend(context: DoctorContext) -> Finding:
    """Is our ML backend connected completely, and the one that Label Studio asks?"""
    url, fix = context.settings.ml_url, _connect_fix(context)
    ours = _our_backend(context)
    if ours is None:
        others = ", ".join(str(row["url"]) for row in context.backends())
        suffix = f" It has {others}." if others else ""
        return problem(f"The project has no ML backend at {url}: nothing is pre-labelled.{suffix}", fix)
    if _webhook(context, f"{url}/webhook") is None and not context.project().get("model_version"):
        return problem(
            f"The ML backend {ours['id']} at {url} is incomplete: Label Studio saved it, then rejected the "
            "address, so it has no webhook and the project has no model version.",
            f"{OPEN_NETWORK_FIX} Then {fix[0].lower()}{fix[1:]}",
        )
    if ours["state"] != CONNECTED:
        why = context.redact(str(ours.get("error_message") or ours.get("readable_state") or ours["state"]))
        if BANNED_ADDRESS.search(why):
            return problem(
                f"Label Studio refuses to call the ML backend at {url}, a private address.", OPEN_NETWORK_FIX
            )
        return problem(
            f"Label Studio does not reach the ML backend at {url}: {why.strip()[:300]}",
            "Start it, make sure that Label Studio's machine reaches that address, and compare "
            f"LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD. Then {fix[0].lower()}{fix[1:]}",
        )
    if context.settings.basic_auth_user and ours.get("auth_method") != "BASIC_AUTH":
        return problem("Label Studio has no log-in for the ML backend, which requires one.", fix)
    first = min(context.backends(), key=lambda row: int(row["id"]))
    if first["id"] != ours["id"]:
        return warning(
            f"Label Studio asks only the first ML backend of a project, {first['url']}, and ours is not the first.",
            "Remove the other one in the project's settings under Model.",
        )
    return ok(f"{url} is connected as {ours['title']!r}")


def backend_webhook(context: DoctorContext) -> Finding:
    """Does Label Studio send annotation events to the ML backend, with our log-in?"""
    settings = context.settings
    wanted = {}
    if settings.basic_auth_user:
        login = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
        wanted["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    if secret := settings.webhook_secret.get_secret_value():
        wanted[SECRET_HEADER] = secret
    return _webhook_finding(context, f"{settings.ml_url}/webhook", "the ML backend", wanted, ())


def qc_webhook(context: DoctorContext) -> Finding:
    """Does Label Studio send annotation events to quality control, with our secret?"""
    settings = context.settings
    return _webhook_finding(
        context, webhook_url(settings), "quality control", webhook_headers(settings), SUBSCRIBED_ACTIONS
    )


def model_version(context: DoctorContext) -> Finding:
    """Does the project use the model version that the backend serves?"""
    row = _our_backend(context)
    if row is None:
        return skipped("The project has no ML backend of ours.")
    served, expected = str(row.get("model_version") or ""), str(context.project().get("model_version") or "")
    if not expected:
        return problem(
            "The project follows no model version: pre-labels are not shown and uncertainty sampling is random.",
            _connect_fix(context),
        )
    if served != expected and served.startswith(LEARNED_PREFIX) and expected == str(row.get("title") or ""):
        return warning(
            f"The project still follows {expected!r}, and the ML backend serves {served!r}, which was learned since: "
            "tasks keep the order of the old version until the next of them have pre-labels of the new one.",
            "This takes seconds, at most a minute while people submit. If it lasts, make sure that `labelloop worker` "
            f"runs. {_connect_fix(context)}",
        )
    if served != expected:
        return problem(
            f"The project follows the model version {expected!r} and the ML backend serves {served!r}: uncertainty "
            "sampling falls back to random, and pre-labels of the new model are not shown.",
            _connect_fix(context),
        )
    return ok(f"the project follows {expected}")


def sampling(context: DoctorContext) -> Finding:
    """Are the tasks about which the model is least certain served first?"""
    fields = context.project()
    order, version = str(fields.get("sampling") or ""), str(fields.get("model_version") or "")
    if order != UNCERTAINTY and _no_control_supported(fields):
        return ok("no control of the project gets pre-labels, so tasks keep the project's own order")
    if order != UNCERTAINTY:
        return warning(
            f"Tasks are served by {order.lower() or 'default order'}, not by the model's uncertainty.",
            f"{_connect_fix(context)} (Saving General settings in Label Studio may have reset it.)",
        )
    if _no_control_served(context):
        return ok("the served model pre-labels no control of the project, so no score orders its tasks")
    if version and fields.get("task_number") and not context.studio.model_versions(int(fields["id"])).get(version):
        return warning(
            f"No pre-label of {version} is stored yet, so tasks are served at random.",
            "In the Data Manager select all tasks, then Retrieve Predictions. Or start labeling: a task gets its "
            "pre-labels when it is opened.",
        )
    return ok("the tasks about which the model is least certain are served first")


def _no_control_supported(fields: Mapping[str, Any]) -> bool:
    """Whether no model can pre-label any control of a project."""
    try:
        supported = controls_of(LabelConfig.parse(str(fields.get("label_config") or "<View/>")))
    except MalformedConfig:
        return False
    return bool(supported) and all(support.prelabels is False for support in supported)


def _no_control_served(context: DoctorContext) -> bool:
    """Whether neither the served model nor a learned one pre-labels any control; False if that cannot be determined."""
    try:
        outputs, options = ModelOutputs.of(context.detector()), context.options()
        supported = controls_of(context.label_config(), outputs, options=options.controls)
    except (LabelloopError, MalformedConfig):
        return False
    return bool(supported) and not any(support.prelabels or support.learns for support in supported)


def tabs(context: DoctorContext) -> Finding:
    """Does the Data Manager have the tabs of quality control?"""
    titles = {str((view.get("data") or {}).get("title")) for view in context.views()}
    missing = [title for title in TABS if title not in titles]
    if missing:
        return problem(f"The Data Manager has no tab {' and no tab '.join(map(repr, missing))}.", _connect_fix(context))
    return ok(f"{', '.join(TABS)}")


def media(context: DoctorContext) -> Finding:
    """Can the image of the project's first task be read?"""
    keys = [key for key in context.label_config().image_keys if key]
    first = next(iter(context.studio.tasks(context.project()["id"], page_size=1)), None)
    if first is None:
        return skipped("The project has no task yet.")
    urls = [url for key in keys for url in _urls(data_value(first.data, key))]
    if not urls:
        return skipped(f"Task {first.id} has no image.")
    try:
        with contextlib.closing(Media(context.settings, context.studio)) as reader:
            width, height = reader.size(urls[0], task_id=first.id)
    except MediaError as error:
        return problem(f"The image of task {first.id} cannot be read: {context.redact(error.message)}", error.fix)
    return ok(f"the image of task {first.id} can be read ({width} x {height})")


def _webhook_finding(
    context: DoctorContext, url: str, service: str, headers: Mapping[str, str], actions: Collection[str]
) -> Finding:
    hook, fix = _webhook(context, url), _connect_fix(context)
    if hook is None:
        return problem(f"Label Studio has no webhook to {url}: {service} receives no annotation events.", fix)
    faults = []
    if not hook.get("is_active"):
        faults.append("is disabled")
    sent = {str(name).lower(): value for name, value in (hook.get("headers") or {}).items()}
    for name, value in headers.items():
        if name.lower() not in sent:
            faults.append(f"has no header {name}, so that {service} rejects its events")
        elif sent[name.lower()] != value:
            faults.append(f"has a header {name} with a value that differs from our settings")
    missing = (
        []
        if hook.get("send_for_all_actions")
        else [action for action in actions if action not in hook.get("actions", ())]
    )
    if missing or not (hook.get("send_for_all_actions") or hook.get("actions")):
        faults.append(f"is not sent for {', '.join(missing) or 'any action'}")
    if not hook.get("send_payload", True):
        faults.append("is sent without its payload")
    if faults:
        return problem(f"The webhook {hook['id']} to {url} {', '.join(faults)}.", fix)
    return ok(f"webhook {hook['id']} to {url}")


def _our_backend(context: DoctorContext) -> dict[str, Any] | None:
    return next((row for row in context.backends() if str(row["url"]).rstrip("/") == context.settings.ml_url), None)


def _webhook(context: DoctorContext, url: str) -> dict[str, Any] | None:
    hooks = [hook for hook in context.webhooks() if str(hook["url"]).rstrip("/") == url]
    return next((hook for hook in hooks if hook.get("is_active")), hooks[0] if hooks else None)


def _connect_fix(context: DoctorContext) -> str:
    return f"Run `labelloop connect {context.project_id}`."


def _urls(value: Any) -> list[str]:
    return [str(url) for url in (value if isinstance(value, list) else [value]) if url]
