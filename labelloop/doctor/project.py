"""Checks of one project in Label Studio: its ML backend, webhooks, sampling, tabs and photos."""

import contextlib
from base64 import b64encode
from collections.abc import Collection, Mapping
from typing import Any

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.doctor.label_studio import BANNED, OPEN_NETWORK
from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.errors import LabelloopError
from labelloop.service.media import Media, MediaError
from labelloop.service.studio import NotFound
from labelloop.service.web.webhook_secret import SECRET_HEADER
from ml_backend.predict.control_support import ModelOutputs, controls_of
from qc_webhooks.events import SUBSCRIBED_ACTIONS
from qc_webhooks.studio.data_manager_tabs import TABS
from qc_webhooks.studio.webhook import webhook_headers, webhook_url

UNCERTAINTY = "Uncertainty sampling"
CONNECTED = "CO"

LEARNED = "learned-"
"""How the names of versions begin that were learned in service."""


def project(context: Context) -> Finding:
    """Is the project there?"""
    try:
        found = context.project()
    except NotFound:
        known = ", ".join(f"{one['id']} ({one.get('title', '')})" for one in context.studio.projects()[:10])
        return problem(
            f"Label Studio has no project {context.project_id}, or our user may not see it.",
            f"It has: {known}." if known else "Make one in Label Studio first.",
        )
    return ok(f"{found['title']!r}, {found.get('task_number', 0)} tasks")


def backend(context: Context) -> Finding:
    """Is our ML backend connected, whole, and the one that Label Studio asks?"""
    url, fix = context.settings.ml_url, _connect(context)
    mine = _our_backend(context)
    if mine is None:
        others = ", ".join(str(one["url"]) for one in context.backends())
        told = f" It has {others}." if others else ""
        return problem(f"The project has no ML backend at {url}: nothing is pre-labelled.{told}", fix)
    if _hook(context, f"{url}/webhook") is None and not context.project().get("model_version"):
        return problem(
            f"The ML backend {mine['id']} at {url} is half made: Label Studio saved it, then refused the address, so "
            "it has no webhook and the project no model version.",
            f"{OPEN_NETWORK} Then {fix[0].lower()}{fix[1:]}",
        )
    if mine["state"] != CONNECTED:
        why = context.redact(str(mine.get("error_message") or mine.get("readable_state") or mine["state"]))
        if BANNED.search(why):
            return problem(f"Label Studio refuses to call the ML backend at {url}, a private address.", OPEN_NETWORK)
        return problem(
            f"Label Studio does not reach the ML backend at {url}: {why.strip()[:300]}",
            "Start it, see that Label Studio's machine reaches that address, and compare LABELLOOP_BASIC_AUTH_USER and "
            f"LABELLOOP_BASIC_AUTH_PASSWORD. Then {fix[0].lower()}{fix[1:]}",
        )
    if context.settings.basic_auth_user and mine.get("auth_method") != "BASIC_AUTH":
        return problem("Label Studio has no log-in for the ML backend, which asks for one.", fix)
    first = min(context.backends(), key=lambda one: int(one["id"]))
    if first["id"] != mine["id"]:
        return warning(
            f"Label Studio asks only the first ML backend of a project, {first['url']}, and ours is not the first.",
            "Remove the other one in the project's settings under Model.",
        )
    return ok(f"{url} is connected as {mine['title']!r}")


def backend_hook(context: Context) -> Finding:
    """Does Label Studio tell the ML backend of annotations, with our log-in?"""
    settings = context.settings
    wanted = {}
    if settings.basic_auth_user:
        login = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
        wanted["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    if secret := settings.webhook_secret.get_secret_value():
        wanted[SECRET_HEADER] = secret
    return _judge_hook(context, f"{settings.ml_url}/webhook", "the ML backend", wanted, ())


def qc_hook(context: Context) -> Finding:
    """Does Label Studio tell quality control of annotations, with our secret?"""
    settings = context.settings
    return _judge_hook(context, webhook_url(settings), "quality control", webhook_headers(settings), SUBSCRIBED_ACTIONS)


def model_version(context: Context) -> Finding:
    """Is the version that the backend answers the one that the project follows?"""
    mine = _our_backend(context)
    if mine is None:
        return skipped("The project has no ML backend of ours.")
    answered, followed = str(mine.get("model_version") or ""), str(context.project().get("model_version") or "")
    if not followed:
        return problem(
            "The project follows no model version: pre-labels are not shown and uncertainty sampling is random.",
            _connect(context),
        )
    if answered != followed and answered.startswith(LEARNED) and followed == str(mine.get("title") or ""):
        return warning(
            f"The project still follows {followed!r}, and the ML backend serves {answered!r}, which was learned since: "
            "tasks come in the order of the former until the next of them have pre-labels of the latter.",
            "That takes seconds, at most a minute while people submit. If it stays, see that `labelloop worker` runs. "
            f"{_connect(context)}",
        )
    if answered != followed:
        return problem(
            f"The project follows the model version {followed!r} and the ML backend serves {answered!r}: uncertainty "
            "sampling falls back to random, and pre-labels of the new model are not shown.",
            _connect(context),
        )
    return ok(f"the project follows {followed}")


def sampling(context: Context) -> Finding:
    """Are the tasks that the model is least sure of served first?"""
    fields = context.project()
    chosen, version = str(fields.get("sampling") or ""), str(fields.get("model_version") or "")
    if chosen != UNCERTAINTY and _unserved(fields):
        return ok("no control of the project gets pre-labels, so tasks come in the project's own order")
    if chosen != UNCERTAINTY:
        return warning(
            f"Tasks are served by {chosen.lower() or 'default order'}, not by what the model is least sure of.",
            f"{_connect(context)} (Saving General settings in Label Studio may have reset it.)",
        )
    if _unserved_now(context):
        return ok("the served model pre-labels no control of the project, so no score orders its tasks")
    if version and fields.get("task_number") and not context.studio.model_versions(int(fields["id"])).get(version):
        return warning(
            f"No pre-label of {version} is stored yet, so tasks are served at random.",
            "In the Data Manager choose all tasks, then Retrieve Predictions. Or just label: a task that is opened "
            "gets its pre-labels.",
        )
    return ok("the tasks that the model is least sure of are served first")


def _unserved(fields: Mapping[str, Any]) -> bool:
    """Whether no model could pre-label any control of a project."""
    try:
        supported = controls_of(LabelConfig.parse(str(fields.get("label_config") or "<View/>")))
    except MalformedConfig:
        return False
    return bool(supported) and all(one.prelabels is False for one in supported)


def _unserved_now(context: Context) -> bool:
    """Whether no control gets pre-labels from the served model or what is learned; False where one is unreadable."""
    try:
        supported = controls_of(context.label_config(), ModelOutputs.of(context.detector()))
    except (LabelloopError, MalformedConfig):
        return False
    return bool(supported) and not any(one.prelabels or one.learns for one in supported)


def tabs(context: Context) -> Finding:
    """Has the Data Manager the tabs of quality control?"""
    there = {str((view.get("data") or {}).get("title")) for view in context.views()}
    missing = [title for title in TABS if title not in there]
    if missing:
        return problem(f"The Data Manager has no tab {' and no tab '.join(map(repr, missing))}.", _connect(context))
    return ok(f"{', '.join(TABS)}")


def media(context: Context) -> Finding:
    """Can the image of the project's first task be read?"""
    keys = [key for key in context.label_config().image_keys if key]
    first = next(iter(context.studio.tasks(context.project()["id"], page_size=1)), None)
    if first is None:
        return skipped("The project has no task yet.")
    urls = [url for key in keys for url in _urls(first.data.get(key))]
    if not urls:
        return skipped(f"Task {first.id} has no image.")
    try:
        with contextlib.closing(Media(context.settings, context.studio)) as reader:
            width, height = reader.size(urls[0], task_id=first.id)
    except MediaError as error:
        return problem(f"The image of task {first.id} cannot be read: {context.redact(error.message)}", error.fix)
    return ok(f"the image of task {first.id} can be read ({width} x {height})")


def _judge_hook(context: Context, url: str, whom: str, headers: Mapping[str, str], actions: Collection[str]) -> Finding:
    hook, fix = _hook(context, url), _connect(context)
    if hook is None:
        return problem(f"Label Studio has no webhook to {url}: {whom} hears of no annotation.", fix)
    faults = []
    if not hook.get("is_active"):
        faults.append("is switched off")
    there = {str(name).lower(): value for name, value in (hook.get("headers") or {}).items()}
    for name, value in headers.items():
        if name.lower() not in there:
            faults.append(f"has no header {name}, so that {whom} refuses what it sends")
        elif there[name.lower()] != value:
            faults.append(f"has a header {name} with another value than our settings")
    missing = [] if hook.get("send_for_all_actions") else [one for one in actions if one not in hook.get("actions", ())]
    if missing or not (hook.get("send_for_all_actions") or hook.get("actions")):
        faults.append(f"is not sent for {', '.join(missing) or 'any action'}")
    if not hook.get("send_payload", True):
        faults.append("is sent without its payload")
    if faults:
        return problem(f"The webhook {hook['id']} to {url} {', '.join(faults)}.", fix)
    return ok(f"webhook {hook['id']} to {url}")


def _our_backend(context: Context) -> dict[str, Any] | None:
    return next((one for one in context.backends() if str(one["url"]).rstrip("/") == context.settings.ml_url), None)


def _hook(context: Context, url: str) -> dict[str, Any] | None:
    found = [one for one in context.webhooks() if str(one["url"]).rstrip("/") == url]
    return next((one for one in found if one.get("is_active")), found[0] if found else None)


def _connect(context: Context) -> str:
    return f"Run `labelloop connect {context.project_id}`."


def _urls(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one]
