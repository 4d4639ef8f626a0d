"""The webhook by which Label Studio tells us of a project: made once, with our secret and the actions that we need."""

import base64
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from labelloop.service.connect_report import Change
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.web.webhook_secret import SECRET_HEADER
from qc_webhooks.errors import HostRefused
from qc_webhooks.events import SUBSCRIBED_ACTIONS

# Opens the local networks and keeps the metadata address of cloud machines closed.
_OPEN_SUBNETS = "USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16"


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


def ensure_webhook(studio: Studio, project: int, settings: Settings) -> Change:
    """Makes the webhook of a project, or puts it right.

    Raises:
        HostRefused: Label Studio does not accept our address.
    """
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
        _guarded(url, settings, lambda: studio.add_webhook(project, url, actions=SUBSCRIBED_ACTIONS, headers=headers))
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
        "actions": sorted(SUBSCRIBED_ACTIONS),
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
