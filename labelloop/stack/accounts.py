"""Accounts on Label Studio: sign-up, log-in and access tokens without a browser, and the users of the local stack."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from labelloop.stack.environment import read_env
from labelloop.stack.errors import StackError


@dataclass(frozen=True)
class Account:
    """The credentials of a Label Studio user."""

    email: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class StackUser:
    """A user of the local stack.

    Attributes:
        name: First name, as Label Studio shows it.
        email: The log-in.
        secret: The variable in `settings.env` that holds the password.
    """

    name: str
    email: str
    secret: str

    def account(self, home: Path) -> Account:
        """The credentials, with the password stored in this home folder."""
        return Account(self.email, read_env(home)[self.secret])


ADMIN = StackUser("Admin", "admin@example.com", "PASSWORD_ADMIN")
ANNOTATORS = (
    StackUser("Anna", "anna@example.com", "PASSWORD_ANNA"),
    StackUser("Ben", "ben@example.com", "PASSWORD_BEN"),
)
USERS = (ADMIN, *ANNOTATORS)


def admin_token(url: str, home: Path) -> str:
    """Create the admin's personal access token and set the admin's first name.

    Raises:
        StackError: The password was changed, or a token exists already that `settings.env` does not hold.
    """
    with log_in(url, ADMIN.account(home)) as session:
        set_first_name(session, ADMIN.name)
        return personal_access_token(session)


def sign_up_annotator(url: str, user: StackUser, home: Path) -> None:
    """Create an annotator's account.

    Raises:
        StackError: Label Studio refused the sign-up form; the message quotes its answer.
    """
    with sign_up(url, user.account(home)) as session:
        set_first_name(session, user.name)


@contextmanager
def sign_up(url: str, account: Account) -> Iterator[httpx.Client]:
    """Create an account through the sign-up form, the only way that adds the user to the organization.

    Yields:
        A client with the session of the new user.

    Raises:
        StackError: Label Studio refused the form, e.g. because the user exists; the message quotes its answer.
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
        StackError: The account does not exist or the password is wrong.
    """
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as session:
        _submit(session, "/user/login/", account)
        yield session


def personal_access_token(session: httpx.Client) -> str:
    """Create the user's personal access token.

    Label Studio allows one per user and shows the full token only in the answer that creates it.

    Raises:
        StackError: The user has a token already, or the organization has disabled personal access tokens.
    """
    answer = session.post("/api/token/", headers={"X-CSRFToken": session.cookies["csrftoken"]})
    if answer.status_code == httpx.codes.CREATED:
        return str(answer.json()["token"])
    raise StackError(
        f"Label Studio created no personal access token: {answer.status_code} {answer.text[:200]}.",
        fix="Revoke the old one under Account & Settings > Personal Access Token, or set the one you have"
        " as LABELLOOP_LABEL_STUDIO_API_KEY.",
        code="account_refused",
    )


def set_first_name(session: httpx.Client, name: str) -> None:
    """Set the user's first name, which Label Studio shows instead of a shortened e-mail address."""
    user_id = session.get("/api/current-user/whoami").raise_for_status().json()["id"]
    headers = {"X-CSRFToken": session.cookies["csrftoken"]}
    session.patch(f"/api/users/{user_id}/", json={"first_name": name}, headers=headers).raise_for_status()


def _submit(session: httpx.Client, path: str, account: Account) -> None:
    url = f"{session.base_url}".rstrip("/") + path
    try:
        session.get(path).raise_for_status()
        form = {
            "email": account.email,
            "password": account.password,
            "csrfmiddlewaretoken": session.cookies["csrftoken"],
        }
        answer = session.post(path, data=form, headers={"Referer": url})
    except (httpx.HTTPError, KeyError) as error:
        raise StackError(
            f"{url} did not answer as Label Studio does: {error}.",
            fix="Check the address, and that it is running.",
            code="account_refused",
        ) from error
    if answer.status_code != httpx.codes.FOUND:
        errors = "; ".join(re.findall(r'class="(?:field_errors|error)"[^>]*>\s*(?:<li>)?\s*([^<]+?)\s*<', answer.text))
        raise StackError(
            f"Label Studio refused {account.email} at {url}: {html.unescape(errors) or answer.status_code}.",
            fix="Check the e-mail address and the password (at least 8 characters).",
            code="account_refused",
        )
