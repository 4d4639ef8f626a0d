"""People of a Label Studio server: sign up, log in and get a personal access token, all without a browser."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from labelloop.stack.errors import AccountRefused


@dataclass(frozen=True)
class Account:
    """Someone who logs in to Label Studio."""

    email: str
    password: str = field(repr=False)


@contextmanager
def sign_up(url: str, account: Account) -> Iterator[httpx.Client]:
    """Make an account through the sign-up form, which alone puts people into the organization.

    Yields:
        A client with the session of the new user.

    Raises:
        AccountRefused: With what the form said, e.g. that the user exists.
    """
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as session:
        _submit(session, "/user/signup/", account)
        yield session


@contextmanager
def log_in(url: str, account: Account) -> Iterator[httpx.Client]:
    """Open a session.

    Yields:
        A client with the session of the user.

    Raises:
        AccountRefused: There is no such account, or the password is not its.
    """
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as session:
        _submit(session, "/user/login/", account)
        yield session


def personal_access_token(session: httpx.Client) -> str:
    """Make the user's personal access token.

    Label Studio keeps one a user and shows it whole only when it is made.

    Raises:
        AccountRefused: There is one already, or the organization has them turned off.
    """
    answer = session.post("/api/token/", headers={"X-CSRFToken": session.cookies["csrftoken"]})
    if answer.status_code == httpx.codes.CREATED:
        return str(answer.json()["token"])
    raise AccountRefused(
        f"Label Studio made no personal access token: {answer.status_code} {answer.text[:200]}.",
        fix="Revoke the old one under Account & Settings > Personal Access Token, or set the one you have"
        " as LABELLOOP_LABEL_STUDIO_API_KEY.",
    )


def introduce(session: httpx.Client, name: str) -> None:
    """Give the user a first name, which Label Studio then shows in place of a shortened e-mail address."""
    who = session.get("/api/current-user/whoami").raise_for_status().json()["id"]
    headers = {"X-CSRFToken": session.cookies["csrftoken"]}
    session.patch(f"/api/users/{who}/", json={"first_name": name}, headers=headers).raise_for_status()


def _submit(session: httpx.Client, path: str, account: Account) -> None:
    where = f"{session.base_url}".rstrip("/") + path
    try:
        session.get(path).raise_for_status()
        form = {
            "email": account.email,
            "password": account.password,
            "csrfmiddlewaretoken": session.cookies["csrftoken"],
        }
        answer = session.post(path, data=form, headers={"Referer": where})
    except (httpx.HTTPError, KeyError) as error:
        raise AccountRefused(
            f"{where} did not answer as Label Studio does: {error}.", fix="Check the address, and that it is running."
        ) from error
    if answer.status_code != httpx.codes.FOUND:
        said = "; ".join(re.findall(r'class="(?:field_errors|error)"[^>]*>\s*(?:<li>)?\s*([^<]+?)\s*<', answer.text))
        raise AccountRefused(
            f"Label Studio refused {account.email} at {where}: {html.unescape(said) or answer.status_code}.",
            fix="Check the e-mail address and the password (at least 8 characters).",
        )
