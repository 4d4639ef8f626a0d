"""Connecting a project: how many annotators, our tabs, the poller, and the webhook with our secret."""

import base64
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Engine

from labelloop.service.changes import Change
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.web import SECRET_HEADER
from qc_webhooks.errors import HostRefused
from qc_webhooks.events import WANTED
from qc_webhooks.memory import MemoryStore
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.projects import ProjectStore
from qc_webhooks.tabs import ensure_tabs

# Opens the local networks and keeps the metadata address of cloud machines closed.
_OPEN_SUBNETS = "USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16"


def connect(studio: Studio, project_id: int, settings: Settings, engine: Engine) -> list[Change]:
    """Puts a project under quality control. Doing it twice changes nothing.

    Raises:
        NotFound: No such project.
        PolicyError: The policy cannot be followed; nothing was changed.
        HostRefused: Label Studio does not accept our webhook's address. All the rest is done by then: the poller
            carries quality control alone until the address is put right and the project is connected again.
    """
    policy = read_policy(settings.home, project_id)
    project = studio.project(project_id)
    changes = [_ensure_annotators(studio, project, policy, MemoryStore(engine))]
    changes += ensure_tabs(studio, project_id)
    added = ProjectStore(engine).add(project_id)
    changes.append(Change(f"quality control looks at the project every {settings.poll_seconds:g} s", done=added))
    changes.append(_ensure_webhook(studio, project_id, settings))
    return changes


def webhook_url(settings: Settings) -> str:
    """Where Label Studio sends its events."""
    return f"{settings.qc_url}/webhook"


def webhook_headers(settings: Settings) -> dict[str, str]:
    """What a webhook must carry to be let in: our secret, or Basic auth where there is no secret."""
    if secret := settings.webhook_secret.get_secret_value():
        return {SECRET_HEADER: secret}
    if settings.basic_auth_user:
        pair = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _ensure_annotators(studio: Studio, project: Mapping[str, Any], policy: Policy, memory: MemoryStore) -> Change:
    held, number = int(project.get("maximum_annotations") or 1), int(project["id"])
    what = f"at least {policy.annotators} annotators a task"
    if held >= policy.annotators:
        return Change(what, done=False)
    if not policy.set_maximum_annotations:
        return Change(
            f"{held} annotator a task, left as it is: agreement is measured where {policy.annotators} submit, and"
            f" `set_maximum_annotations = true` in qc/{number}/policy.toml of the home folder asks for as many",
            done=False,
        )
    studio.update_project(number, maximum_annotations=policy.annotators)
    memory.forget_overlaps(number)  # Label Studio has set every task's overlap anew
    return Change(what, done=True)


def _ensure_webhook(studio: Studio, project: int, settings: Settings) -> Change:
    url, headers = webhook_url(settings), webhook_headers(settings)
    what = f"webhook to {url}"
    if is_single_label(url):
        raise HostRefused(
            url,
            "its host has no dot",
            fix="Give the service a dotted name (in a compose file: a network alias such as qc.internal), "
            f"put it in LABELLOOP_QC_URL and connect again. {_meanwhile(settings)}",
        )
    ours = [hook for hook in studio.webhooks(project) if hook["url"] == url]
    if not ours:
        _guarded(url, settings, lambda: studio.add_webhook(project, url, actions=WANTED, headers=headers))
        return Change(what, done=True)
    hook, *copies = sorted(ours, key=lambda item: item["id"])
    for copy in copies:
        studio.delete_webhook(copy["id"])  # every event would come twice
    # `actions` always go along: Label Studio wipes them when they are not sent again.
    wanted = {
        "url": url,
        "is_active": True,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": sorted(WANTED),
        "headers": {**(hook.get("headers") or {}), **headers},
    }
    held = {name: hook.get(name) for name in wanted} | {"actions": sorted(hook.get("actions") or ())}
    if held == wanted:
        return Change(what, done=bool(copies))
    _guarded(url, settings, lambda: studio.update_webhook(hook["id"], **wanted))
    return Change(what, done=True)


def is_single_label(url: str) -> bool:
    """Whether Label Studio takes the host for no host at all: no dot, no address, not ``localhost``."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or "." in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _guarded(url: str, settings: Settings, write: Callable[[], object]) -> None:
    try:
        write()
    except StudioRefused as error:
        if error.answer == 403 and "reserved network" in error.detail:
            reason = "it is a private address, which Label Studio bans by default"
            fix = f"Start Label Studio with {_OPEN_SUBNETS}, and connect again. "
        elif error.answer == 400 and "url" in error.detail.lower():
            reason, fix = error.detail, "Put another address in LABELLOOP_QC_URL and connect again. "
        else:
            raise
        raise HostRefused(url, reason, fix=fix + _meanwhile(settings)) from error


def _meanwhile(settings: Settings) -> str:
    return f"Until then the poller finds every change within about {settings.poll_seconds:g} s."
