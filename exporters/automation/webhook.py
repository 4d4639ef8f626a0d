"""Tells an address of a published version: signed, without redirects, and to no private host that is not allowed."""

import hashlib
import hmac
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from exporters.errors import ExportError
from labelloop.service.media.ssrf_guard import AddressForbidden, GuardedTransport
from labelloop.service.settings import Settings

TIMEOUT_S = 15.0


class WebhookFailed(ExportError):
    """The address did not take it; it is tried again."""

    code = "webhook_failed"
    status = 502

    def __init__(self, url: str, reason: str) -> None:
        # The path may hold a secret (chat programs put it there): only the host is named.
        super().__init__(f"The webhook to {urlsplit(url).hostname} failed: {reason}.")


class WebhookForbidden(ExportError):
    """The address is of a private network; trying again would not help."""

    code = "webhook_forbidden"
    status = 403

    def __init__(self, url: str, address: str) -> None:
        host = urlsplit(url).hostname
        super().__init__(
            f"The webhook to {host} was not sent: {address} is an address of a private or reserved network.",
            fix=f"Where that is meant, name {host} in LABELLOOP_MEDIA_HOSTS.",
        )


def send(settings: Settings, url: str, body: dict[str, Any]) -> None:
    """POST ``body`` as JSON.

    With the setting ``export_webhook_secret`` the header ``X-Labelloop-Signature`` is ``v1=`` and the hexadecimal
    HMAC-SHA256, keyed by the secret, of the header ``X-Labelloop-Timestamp``, a full stop and the body.

    Raises:
        WebhookForbidden: The host is private and not allowed.
        WebhookFailed: Anything but an answer from 200 to 299.
    """
    data = msgspec.json.encode(body)
    headers = {"Content-Type": "application/json", "X-Labelloop-Event": body["event"], "User-Agent": "labelloop"}
    headers["X-Labelloop-Delivery"] = hashlib.sha256(body["id"].encode()).hexdigest()[:32]
    headers |= signature(settings.export_webhook_secret.get_secret_value(), data, int(time.time()))
    trusted = frozenset(host.lower() for host in settings.media_hosts)
    transport = GuardedTransport(trusted, allow_private=settings.media_allow_private_hosts)
    transport.end_by(time.monotonic() + TIMEOUT_S)
    try:
        with httpx.Client(transport=transport, trust_env=False, timeout=TIMEOUT_S) as client:
            answer = client.post(url, content=data, headers=headers)
    except AddressForbidden as error:
        raise WebhookForbidden(url, error.address) from None
    except httpx.ConnectError as error:  # its text names no address
        raise WebhookFailed(url, f"it cannot be reached ({error})") from None
    except httpx.TimeoutException:
        raise WebhookFailed(url, f"no answer within {TIMEOUT_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WebhookFailed(url, type(error).__name__) from None
    if not answer.is_success:
        raise WebhookFailed(url, f"it answered {answer.status_code}")


def signature(secret: str, data: bytes, timestamp: int) -> dict[str, str]:
    """The headers that prove who sent ``data`` and when; none without a secret."""
    if not secret:
        return {}
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + data, hashlib.sha256).hexdigest()
    return {"X-Labelloop-Timestamp": str(timestamp), "X-Labelloop-Signature": f"v1={digest}"}
