"""Checks of our two services, asked over HTTP as Label Studio asks them, with our log-in and our secret."""

import json
from http import HTTPStatus
from typing import Any

import httpx

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.settings import env_name
from labelloop.service.web.webhook_secret import SECRET_HEADER

# An action that no Label Studio sends: quality control answers it and does nothing.
NO_OP = {"action": "LABELLOOP_DOCTOR"}


def ml_backend(context: Context) -> Finding:
    """Does the ML backend answer?"""
    return _answers(context, "the ML backend", "ml_url", "labelloop ml serve")


def ml_login(context: Context) -> Finding:
    """Does the ML backend take our Basic log-in, and ask for it?"""
    url, user = context.settings.ml_url, context.settings.basic_auth_user
    without, with_login = context.get(f"{url}/versions"), context.get(f"{url}/versions", auth=True)
    if with_login.status_code == HTTPStatus.UNAUTHORIZED:
        mine = f"the user {user} with the password of our settings" if user else "a caller without a log-in"
        return problem(
            f"The ML backend at {url} refuses {mine} (401).",
            "Give LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD the same values for the ML backend and "
            "for this command, restart the backend and run `labelloop connect PROJECT`.",
        )
    if not user:
        return ok("asks for no log-in")
    if without.status_code != HTTPStatus.UNAUTHORIZED:
        return warning(
            f"The ML backend at {url} answers without a log-in although LABELLOOP_BASIC_AUTH_USER is set here.",
            "Set LABELLOOP_BASIC_AUTH_USER and LABELLOOP_BASIC_AUTH_PASSWORD for the ML backend too, and restart it.",
        )
    return ok(f"takes our log-in ({user}) and asks for it")


def ml_ready(context: Context) -> Finding:
    """Has the ML backend what it needs (its model)?"""
    return _ready(context, "ML backend", context.settings.ml_url)


def qc(context: Context) -> Finding:
    """Does quality control answer?"""
    return _answers(context, "quality control", "qc_url", "labelloop qc serve")


def qc_ready(context: Context) -> Finding:
    """Has quality control what it needs (its database)?"""
    return _ready(context, "quality control", context.settings.qc_url)


def qc_secret(context: Context) -> Finding:
    """Does quality control take our secret, and refuse a caller without it?"""
    url, secret = f"{context.settings.qc_url}/webhook", context.settings.webhook_secret.get_secret_value()
    with_secret = context.post(url, NO_OP, headers={SECRET_HEADER: secret} if secret else None, auth=True)
    if with_secret.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return problem(
            f"Quality control at {url} refuses the secret of our settings ({with_secret.status_code}): "
            "Label Studio's events would be refused as well.",
            "Give LABELLOOP_WEBHOOK_SECRET the same value for quality control and for this command, restart it and run "
            "`labelloop connect PROJECT`.",
        )
    if not with_secret.is_success:
        return problem(
            f"{url} answers an event with {with_secret.status_code}: {context.redact(_message(with_secret))}",
            "Look at the log of `labelloop qc serve`.",
        )
    if context.post(url, NO_OP).is_success:
        return warning(
            f"Anybody who reaches {url} can send events: it asks for no secret.",
            "Set LABELLOOP_WEBHOOK_SECRET to a long random text for quality control, restart it and run "
            "`labelloop connect PROJECT`.",
        )
    return ok("takes our secret and refuses a caller without it")


def _answers(context: Context, what: str, setting: str, command: str) -> Finding:
    url = str(getattr(context.settings, setting))
    fix = f"Start it (`{command}`), or set {env_name(setting)} to the address where it answers."
    try:
        answer = context.get(f"{url}/health")
    except httpx.HTTPError as error:
        return problem(f"{what[0].upper()}{what[1:]} does not answer at {url}: {context.reason(error)}.", fix)
    if not answer.is_success or "status" not in _body(answer):
        return problem(f"What answers at {url}/health ({answer.status_code}) is not {what}.", fix)
    return ok(f"answers at {url}")


def _ready(context: Context, what: str, url: str) -> Finding:
    answer = context.get(f"{url}/ready", auth=True)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return skipped(f"The {what} does not take our log-in, so it did not say whether it is ready.")
    checks = _body(answer).get("checks") or {}
    bad = {name: outcome for name, outcome in checks.items() if outcome != "ok"}
    if bad:
        listed = "; ".join(f"{name}: {context.redact(str(outcome))}" for name, outcome in bad.items())
        return problem(
            f"{what[0].upper()}{what[1:]} is not ready. {listed}", f"Put that right and look at {url}/ready."
        )
    if not answer.is_success:
        return problem(f"{url}/ready answers {answer.status_code}.", "Look at its log.")
    return ok(f"ready ({', '.join(checks) or 'nothing to wait for'})")


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except json.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _message(answer: httpx.Response) -> str:
    error = _body(answer).get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else answer.text[:200]
