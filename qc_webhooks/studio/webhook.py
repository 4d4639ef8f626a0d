"""Webhook of a Label Studio project: created once, with the secret and the needed actions."""

import base64
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from labelloop.service.connect_report import ConnectionChange
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.web.webhook_secret import SECRET_HEADER
from qc_webhooks.errors import WebhookHostRefused
from qc_webhooks.events import SUBSCRIBED_ACTIONS

# Allows local networks and keeps the metadata address of cloud machines banned.
_OPEN_SUBNETS = "USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16"


def webhook_url(settings: Settings) -> str:
    """URL that Label Studio sends its events to."""
    return f"{settings.qc_url}/webhook"


def webhook_headers(settings: Settings) -> dict[str, str]:
    """Headers that authenticate the webhook: the secret, or Basic auth where no secret is set."""
    if secret := settings.webhook_secret.get_secret_value():
        return {SECRET_HEADER: secret}
    if settings.basic_auth_user:
        pair = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def ensure_webhook(studio: Studio, project: int, settings: Settings) -> ConnectionChange:
    """Create or repair the webhook of a project.

    Raises:
        WebhookHostRefused: Label Studio does not accept the address.
    """
    url, headers = webhook_url(settings), webhook_headers(settings)
    what = f"webhook to {url}"
    if is_single_label(url):
        raise WebhookHostRefused(
            url=url,
            reason="its host has no dot",
            fix="Give the service a dotted name (in a compose file: a network alias such as qc.internal), "
            f"put it in LABELLOOP_QC_URL and connect again. {_poller_hint(settings)}",
        )
    ours = [hook for hook in studio.webhooks(project) if hook["url"] == url]
    if not ours:
        _write_webhook(
            url, settings, lambda: studio.add_webhook(project, url, actions=SUBSCRIBED_ACTIONS, headers=headers)
        )
        return ConnectionChange(what, done=True)
    hook, *copies = sorted(ours, key=lambda item: item["id"])
    for copy in copies:
        studio.delete_webhook(copy["id"])  # every event would come twice
    # Always send `actions`: Label Studio clears them otherwise.
    fields = {
        "url": url,
        "is_active": True,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": sorted(SUBSCRIBED_ACTIONS),
        "headers": {**(hook.get("headers") or {}), **headers},
    }
    current = {name: hook.get(name) for name in fields} | {"actions": sorted(hook.get("actions") or ())}
    if current == fields:
        return ConnectionChange(what, done=bool(copies))
    _write_webhook(url, settings, lambda: studio.update_webhook(hook["id"], **fields))
    return ConnectionChange(what, done=True)


def is_single_label(url: str) -> bool:
    """Whether Label Studio rejects the host as invalid: no dot, no IP address, not ``localhost``."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or "." in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _write_webhook(url: str, settings: Settings, write: Callable[[], object]) -> None:
    try:
        write()
    except StudioRefused as error:
        if error.http_status == 403 and "reserved network" in error.detail:
            reason = "it is a private address, which Label Studio bans by default"
            fix = f"Start Label Studio with {_OPEN_SUBNETS}, and connect again. "
        elif error.http_status == 400 and "url" in error.detail.lower():
            reason, fix = error.detail, "Put another address in LABELLOOP_QC_URL and connect again. "
        else:
            raise
        raise WebhookHostRefused(url=url, reason=reason, fix=fix + _poller_hint(settings)) from error


def _poller_hint(settings: Settings) -> str:
    return f"Until then the poller finds every change within about {settings.poll_seconds:g} s."
