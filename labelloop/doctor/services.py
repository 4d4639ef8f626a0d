"""Checks of our two services over HTTP, as Label Studio calls them: with our log-in and our secret."""

import json
from http import HTTPStatus
from typing import Any

import httpx

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.settings import env_name
from labelloop.service.web.webhook_secret import SECRET_HEADER

# An action that Label Studio never sends: quality control accepts and ignores it.
NO_OP = {"action": "LABELLOOP_DOCTOR"}


def ml_backend(context: DoctorContext) -> Finding:
    """Does the ML backend answer?"""
    return _answers(context, "the ML backend", "ml_url", "labelloop ml serve")


def ml_login(context: DoctorContext) -> Finding:
    """Does the ML backend accept our Basic log-in, and require it?"""
    url, user = context.settings.ml_url, context.settings.basic_auth_user
    without, with_login = context.get(f"{url}/versions"), context.get(f"{url}/versions", auth=True)
    if with_login.status_code == HTTPStatus.UNAUTHORIZED:
        caller = f"the user {user} with the password of our settings" if user else "a caller without a log-in"
        return problem(
            f"The ML backend at {url} refuses {caller} (401).",
            "Give LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD the same values for the ML backend and "
            "for this command, restart the backend and run `labelloop connect PROJECT`.",
        )
    if not user:
        return ok("requires no log-in")
    if without.status_code != HTTPStatus.UNAUTHORIZED:
        return warning(
            f"The ML backend at {url} answers without a log-in although LABELLOOP_BASIC_AUTH_USER is set here.",
            "Set LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD for the ML backend too, and restart it.",
        )
    return ok(f"accepts our log-in ({user}) and requires it")


def ml_ready(context: DoctorContext) -> Finding:
    """Is the ML backend ready (its model loaded)?"""
    return _ready(context, "ML backend", context.settings.ml_url)


def qc(context: DoctorContext) -> Finding:
    """Does quality control answer?"""
    return _answers(context, "quality control", "qc_url", "labelloop qc serve")


def qc_ready(context: DoctorContext) -> Finding:
    """Is quality control ready (its database reachable)?"""
    return _ready(context, "quality control", context.settings.qc_url)


def qc_secret(context: DoctorContext) -> Finding:
    """Does quality control accept our secret, and reject a caller without it?"""
    url, secret = f"{context.settings.qc_url}/webhook", context.settings.webhook_secret.get_secret_value()
    with_secret = context.post(url, NO_OP, headers={SECRET_HEADER: secret} if secret else None, auth=True)
    if with_secret.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return problem(
            f"Quality control at {url} rejects the secret of our settings ({with_secret.status_code}): "
            "Label Studio's events are rejected as well.",
            "Give LABELLOOP_WEBHOOK_SECRET the same value for quality control and for this command, restart it and run "
            "`labelloop connect PROJECT`.",
        )
    if not with_secret.is_success:
        return problem(
            f"{url} answers an event with {with_secret.status_code}: {context.redact(_message(with_secret))}",
            "See the log of `labelloop qc serve`.",
        )
    if context.post(url, NO_OP).is_success:
        return warning(
            f"Any client that reaches {url} can send events: it requires no secret.",
            "Set LABELLOOP_WEBHOOK_SECRET to a long random text for quality control, restart it and run "
            "`labelloop connect PROJECT`.",
        )
    return ok("accepts our secret and rejects a caller without it")


def _answers(context: DoctorContext, what: str, setting: str, command: str) -> Finding:
    url = str(getattr(context.settings, setting))
    fix = f"Start it (`{command}`, or `labelloop up` for all), or set {env_name(setting)} to its address."
    try:
        answer = context.get(f"{url}/health")
    except httpx.HTTPError as error:
        return problem(f"{what[0].upper()}{what[1:]} does not answer at {url}: {context.reason(error)}.", fix)
    if not answer.is_success or "status" not in _body(answer):
        return problem(f"The service at {url}/health ({answer.status_code}) is not {what}.", fix)
    return ok(f"answers at {url}")


def _ready(context: DoctorContext, what: str, url: str) -> Finding:
    answer = context.get(f"{url}/ready", auth=True)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return skipped(f"The {what} rejects our log-in, so its readiness is unknown.")
    checks = _body(answer).get("checks") or {}
    bad = {name: outcome for name, outcome in checks.items() if outcome != "ok"}
    if bad:
        listed = "; ".join(f"{name}: {context.redact(str(outcome))}" for name, outcome in bad.items())
        return problem(f"{what[0].upper()}{what[1:]} is not ready. {listed}", f"Fix this, then see {url}/ready.")
    if not answer.is_success:
        return problem(f"{url}/ready answers {answer.status_code}.", "See its log.")
    return ok(f"ready ({', '.join(checks) or 'no checks'})")


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except json.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _message(answer: httpx.Response) -> str:
    error = _body(answer).get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else answer.text[:200]
