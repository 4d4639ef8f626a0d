"""The stack's people: an admin and two annotators, their passwords, and the admin's token for our programs."""

from dataclasses import dataclass
from pathlib import Path

from labelloop.stack.accounts import Account, introduce, log_in, personal_access_token, sign_up
from labelloop.stack.environment import read_env


@dataclass(frozen=True)
class Person:
    """Someone of the local stack.

    Attributes:
        name: First name, as Label Studio shows it.
        email: What they log in with.
        secret: The name of their password in `settings.env`.
    """

    name: str
    email: str
    secret: str

    def account(self, home: Path) -> Account:
        """Their log-in, with the password that this home folder has for them."""
        return Account(self.email, read_env(home)[self.secret])


ADMIN = Person("Admin", "admin@example.com", "PASSWORD_ADMIN")
ANNOTATORS = (Person("Anna", "anna@example.com", "PASSWORD_ANNA"), Person("Ben", "ben@example.com", "PASSWORD_BEN"))
PEOPLE = (ADMIN, *ANNOTATORS)


def admin_token(url: str, home: Path) -> str:
    """Make the admin's personal access token (and give the admin a name).

    Raises:
        AccountRefused: The password was changed, or there is a token already that nobody told us.
    """
    with log_in(url, ADMIN.account(home)) as session:
        introduce(session, ADMIN.name)
        return personal_access_token(session)


def sign_up_annotator(url: str, person: Person, home: Path) -> None:
    """Make an annotator's account.

    Raises:
        AccountRefused: With what the sign-up form said.
    """
    with sign_up(url, person.account(home)) as session:
        introduce(session, person.name)
