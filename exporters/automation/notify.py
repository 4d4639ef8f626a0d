"""Notification of a published version: a signed webhook and the policy's command.

Every export loads this module, few send a webhook: the HTTP client is imported by `send`.
"""

import hashlib
import hmac
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from exporters.dataset.versions import manifest_key
from exporters.errors import BadOption, ExportError
from exporters.model.accounting import ExportReport
from exporters.model.manifest import FORMAT
from labelloop.service.settings import Settings

PUBLISHED = "dataset.published"
TIMEOUT_S = 15.0
# Seconds between SIGTERM and SIGKILL of a command that is interrupted.
GRACE_S = 10.0


class WebhookFailed(ExportError):
    """The receiver did not accept the webhook; the delivery is retried."""

    code = "webhook_failed"
    status = 502
    message = "The webhook to {host} failed: {reason}."


class WebhookForbidden(ExportError):
    """The webhook's host has a private or reserved address; a retry would fail again."""

    code = "webhook_forbidden"
    status = 403
    message = "The webhook to {host} was not sent: {address} is an address of a private or reserved network."
    fix = "To allow it, add {host} to LABELLOOP_MEDIA_HOSTS."


class CommandFailed(ExportError):
    """The command could not be started or ended with a status other than 0.

    Attributes:
        exit_status: As a shell reports it: 127 if the program cannot be started, 128 + N after signal N.
    """

    code = "command_failed"
    message = "The command {program!r} {reason}."
    fix = "See the command's own output."
    exit_status: int


def webhook_body(report: ExportReport, project: int | None, reason: str) -> dict[str, Any]:
    """The JSON body of the webhook.

    Args:
        report: The report of the export that published the version.
        project: The project's id; None for an export from a file.
        reason: Why the export ran.
    """
    return {
        "event": PUBLISHED,
        "id": f"{report.url} {report.version}",
        "url": report.url,
        "version": report.version,
        "manifest": manifest_key(report.version),
        "manifest_sha256": report.manifest_sha256,
        "format": FORMAT,
        "project": project,
        "reason": reason,
        "images": dict(report.images),
        "lines": dict(report.lines),
        "classes": dict(report.classes),
        "tasks": report.accounts.tasks.kept,
    }


def send(settings: Settings, url: str, body: dict[str, Any]) -> None:
    """POST ``body`` as JSON, without following redirects.

    With the setting ``export_webhook_secret`` the header ``X-Labelloop-Signature`` is ``v1=`` and the hexadecimal
    HMAC-SHA256, keyed by the secret, of the header ``X-Labelloop-Timestamp``, a full stop and the body.

    Args:
        settings: The secret, and the private hosts that are allowed.
        url: The address of the receiver.
        body: A body with the keys ``event`` and ``id``.

    Raises:
        WebhookForbidden: The host is private and not allowed.
        WebhookFailed: No answer, or a status other than 200 to 299.
    """
    import httpx

    from labelloop.service.media.ssrf_guard import AddressForbidden, GuardedTransport

    host = urlsplit(url).hostname  # chat programs put a secret into the path: errors name only the host
    data = msgspec.json.encode(body)
    headers = {"Content-Type": "application/json", "X-Labelloop-Event": body["event"], "User-Agent": "labelloop"}
    headers["X-Labelloop-Delivery"] = hashlib.sha256(body["id"].encode()).hexdigest()[:32]
    headers |= signature(settings.export_webhook_secret.get_secret_value(), data, int(time.time()))
    trusted = frozenset(host.lower() for host in settings.media_hosts)
    transport = GuardedTransport(trusted, allow_private=settings.media_allow_private_hosts)
    transport.end_by(time.monotonic() + TIMEOUT_S)
    try:
        with httpx.Client(transport=transport, trust_env=False, timeout=TIMEOUT_S) as client:
            response = client.post(url, content=data, headers=headers)
    except AddressForbidden as error:
        raise WebhookForbidden(host=host, address=error.address) from None
    except httpx.ConnectError as error:  # its text contains no address
        raise WebhookFailed(host=host, reason=f"it cannot be reached ({error})") from None
    except httpx.TimeoutException:
        raise WebhookFailed(host=host, reason=f"no answer within {TIMEOUT_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WebhookFailed(host=host, reason=type(error).__name__) from None
    if not response.is_success:
        raise WebhookFailed(host=host, reason=f"it answered {response.status_code}")


def signature(secret: str, data: bytes, timestamp: int) -> dict[str, str]:
    """The headers that authenticate ``data`` and its time; empty without a secret.

    Args:
        secret: The shared key.
        data: The body as sent.
        timestamp: Seconds since 1970.
    """
    if not secret:
        return {}
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + data, hashlib.sha256).hexdigest()
    return {"X-Labelloop-Timestamp": str(timestamp), "X-Labelloop-Signature": f"v1={digest}"}


def split_command(text: str) -> tuple[str, ...]:
    """Split a command line into words; quotes are respected, nothing is expanded.

    Raises:
        BadOption: It has no words, or an unclosed quote.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadOption("--then", text, f"a command and its arguments: {error}") from error
    if not words:
        raise BadOption("--then", text, "a command and its arguments")
    return words


def require_executable(command: Sequence[str]) -> tuple[str, ...]:
    """The command, if its program exists: checked before an export starts.

    Raises:
        BadOption: The program does not exist or is not executable.
    """
    if shutil.which(command[0]) is None:
        wanted = f"a program that can be started: {command[0]} does not exist, or is not executable (chmod +x)"
        raise BadOption("--then", shlex.join(command), wanted)
    return tuple(command)


def command_environment(report: ExportReport, project: int | None) -> dict[str, str]:
    """The environment variables that describe a published version to a command."""
    return {
        "DATASET_URL": report.url,
        "DATASET_VERSION": report.version,
        "DATASET_MANIFEST": f"{report.url.rstrip('/')}/{manifest_key(report.version)}",
        "DATASET_MANIFEST_SHA256": report.manifest_sha256,
        "DATASET_LATEST": f"{report.url.rstrip('/')}/latest" if report.latest == report.version else "",
        "DATASET_PROJECT": "" if project is None else str(project),
    }


def run_post_export_command(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the command without a shell and wait for it; it inherits our standard output and error.

    Args:
        command: The program and its arguments.
        environment: Variables added to our own environment, see `command_environment`.

    Raises:
        CommandFailed: It could not be started or ended with a status other than 0.
    """
    try:
        process = subprocess.Popen(list(command), env=os.environ | environment, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CommandFailed(
            program=command[0], reason=f"cannot be started: {error.strerror or error}", exit_status=127
        ) from error
    try:
        status = process.wait()
    except KeyboardInterrupt:  # a terminal's Ctrl-C has reached the command too; SIGTERM has not
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()
        process.wait()
        raise
    if status:
        outcome = f"was ended by signal {-status}" if status < 0 else f"ended with {status}"
        raise CommandFailed(program=command[0], reason=outcome, exit_status=status if status > 0 else 128 - status)
